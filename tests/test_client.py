"""client.py against a server inside this process, and against things that are no server."""

from __future__ import annotations

import ast
import gc
import io
import os
import sys
import threading
import unittest
from contextlib import redirect_stderr, redirect_stdout
from typing import Any
from unittest import mock

import client
import pipecache
from client import (
    CacheError,
    CacheTimeout,
    Client,
    ConnectionLost,
    DataError,
    ProtocolError,
    ReplyReader,
    ResponseError,
    ServerNotRunning,
    encode_command,
    send_command,
)
from tests.support import DEADLINE, ROOT, WINDOWS, new_client, unique_name
from tests.test_server import ServerCase
from tests.test_transports import Background


class EncodeTests(unittest.TestCase):
    def test_arguments(self) -> None:
        for argument, expected in (
            ("text", b"text"),
            ("\u00e9", b"\xc3\xa9"),
            (b"\xff\x00", b"\xff\x00"),
            (bytearray(b"ab"), b"ab"),
            (memoryview(b"cd"), b"cd"),
            (12, b"12"),
            (-1.5, b"-1.5"),
            ("", b""),
        ):
            with self.subTest(argument=argument):
                encoded = encode_command(["ECHO", argument])
                self.assertEqual(
                    encoded, b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(expected), expected)
                )

    def test_arguments_that_cannot_be_sent(self) -> None:
        for argument in (None, True, [], {}, object()):
            with self.subTest(argument=argument), self.assertRaises(DataError):
                encode_command(["SET", "k", argument])  # type: ignore[list-item]


class ReplyReaderTests(unittest.TestCase):
    REPLIES: tuple[tuple[bytes, Any], ...] = (
        (b"+OK\r\n", "OK"),
        (b":-12\r\n", -12),
        (b"$-1\r\n", None),
        (b"$0\r\n\r\n", ""),
        (b"$4\r\na\r\nb\r\n", "a\r\nb"),
        (b"*-1\r\n", None),
        (b"*0\r\n", []),
        (b"*3\r\n$1\r\na\r\n:1\r\n*1\r\n$-1\r\n", ["a", 1, [None]]),
        (b"$100000\r\n" + b"x" * 100_000 + b"\r\n", "x" * 100_000),
    )

    def test_replies_cut_anywhere(self) -> None:
        stream = b"".join(encoded for encoded, _ in self.REPLIES)
        for size in (1, 2, 3, 7, 1000, len(stream)):
            chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
            reader = ReplyReader(iter(chunks[1:]).__next__)
            reader.feed(chunks[0])
            for _, expected in self.REPLIES:
                with self.subTest(size=size):
                    self.assertEqual(reader.read(decode=True), expected)

    def test_an_empty_line_in_two_halves(self) -> None:
        reader = ReplyReader(lambda: b"\n")
        reader.feed(b"\r")
        with self.assertRaises(ProtocolError):
            reader.read(decode=True)

    def test_errors_are_returned(self) -> None:
        reader = ReplyReader(lambda: b"")
        reader.feed(b"*2\r\n-ERR no\r\n:1\r\n")
        error, number = reader.read(decode=False)
        self.assertIsInstance(error, ResponseError)
        self.assertEqual((str(error), number), ("ERR no", 1))

    def test_what_is_not_resp(self) -> None:
        for data in (b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"$abc\r\n", b":1.5\r\n"):
            reader = ReplyReader(lambda: b"")
            reader.feed(data)
            with self.subTest(data=data), self.assertRaises(ProtocolError):
                reader.read(decode=True)


class ClientTests(ServerCase):
    def setUp(self) -> None:
        self.serve()
        self.cache = new_client(self.name)
        self.addCleanup(self.cache.close)

    def test_the_methods(self) -> None:
        cache = self.cache
        for result, expected in (
            (cache.ping(), True),
            (cache.set("k", "v"), True),
            (cache.get("k"), "v"),
            (cache.get("none"), None),
            (cache.set("k", "w", nx=True), None),
            (cache.set("k", "w", xx=True, get=True), "v"),
            (cache.set("k", "x", ex=100), True),
            (cache.ttl("k"), 100),
            (cache.set("k", "y", keepttl=True), True),
            (cache.ttl("k"), 100),
            (cache.set("k", "z", px=5000), True),
            (cache.ttl("k"), 5),
            (cache.persist("k"), True),
            (cache.persist("k"), False),
            (cache.expire("k", 10), True),
            (cache.expire("none", 10), False),
            (cache.setnx("k", "v"), False),
            (cache.setnx("l", "v"), True),
            (cache.setex("m", 10, "v"), True),
            (cache.psetex("m", 10_000, "v"), True),
            (cache.getset("l", "w"), "v"),
            (cache.getdel("l"), "w"),
            (cache.set("was", "OK"), True),
            (cache.set("was", "new", get=True), "OK"),
            (cache.set("was", "newer", get=True, ex=9), "new"),
            (cache.delete("was"), 1),
            (cache.append("k", "++"), 3),
            (cache.strlen("k"), 3),
            (cache.incr("n"), 1),
            (cache.incr("n", 10), 11),
            (cache.incrby("n", 4), 15),
            (cache.decr("n"), 14),
            (cache.decrby("n", 4), 10),
            (cache.mset({"a": 1, b"b": 2.5}), True),
            (cache.mget("a", "b", "c"), ["1", "2.5", None]),
            (cache.mget(["a", "b"], "c"), ["1", "2.5", None]),
            (cache.exists("a", "b", "c"), 2),
            (sorted(cache.keys("[ab]")), ["a", "b"]),
            (cache.delete("a", "b", "c"), 2),
            (cache.echo("hello"), "hello"),
            (cache.dbsize(), 3),
            (cache.info("keyspace"), {"db0": "keys=3,expires=2"}),
            (cache.flushall(), True),
            (len(cache.keys()), 0),
            (cache.execute_command("STRLEN", "k"), 0),
        ):
            self.assertEqual((result, type(result)), (expected, type(expected)))

    def test_bytes(self) -> None:
        with new_client(self.name, decode_responses=False) as cache:
            self.assertIs(cache.set("k", b"\xff\r\n"), True)
            self.assertEqual(cache.get("k"), b"\xff\r\n")
            self.assertEqual(cache.keys(), [b"k"])
            self.assertIs(cache.ping(), True)
        with self.assertRaises(UnicodeDecodeError):
            self.cache.get("k")
        self.assertEqual(self.cache.exists("k"), 1)

    def test_an_error_reply_keeps_the_connection(self) -> None:
        self.cache.set("k", "v")
        with self.assertRaisesRegex(ResponseError, "^ERR value is not an integer"):
            self.cache.incr("k")
        self.assertEqual(self.cache.get("k"), "v")
        self.assertEqual(self.cache.info()["total_connections_received"], 1)

    def test_a_pipeline(self) -> None:
        with self.cache.pipeline() as pipe:
            self.assertIs(pipe.set("k", "v").get("k").incr("n"), pipe)
            self.assertEqual(len(pipe), 3)
            self.assertEqual(pipe.execute(), [True, "v", 1])
            self.assertEqual(pipe.execute(), [])

    def test_an_error_in_a_pipeline(self) -> None:
        pipe = self.cache.pipeline()
        pipe.set("k", "v").incr("k").get("k")
        with self.assertRaisesRegex(ResponseError, r"Command 2 \('INCRBY'\) .* not an integer"):
            pipe.execute()
        pipe.set("k", "w").incr("k").get("k")
        first, error, last = pipe.execute(raise_on_error=False)
        self.assertIsInstance(error, ResponseError)
        self.assertEqual((first, last), (True, "w"))

    def test_a_long_pipeline(self) -> None:
        pipe = self.cache.pipeline()
        for number in range(3000):
            pipe.set(f"k{number}", "x" * 500)
        self.assertEqual(pipe.execute(), [True] * 3000)
        for number in range(3000):
            pipe.get(f"k{number}")
        self.assertEqual(pipe.execute(), ["x" * 500] * 3000)

    def test_transactions_are_not_here_yet(self) -> None:
        with self.assertRaises(NotImplementedError):
            self.cache.pipeline(transaction=True)

    def test_threads_share_a_client(self) -> None:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(100):
                    value = f"{number}-{turn}" * (1 + turn * 30)
                    self.cache.set(str(number), value)
                    if self.cache.get(str(number)) != value:
                        raise AssertionError("somebody else's reply")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual(failures, [])
        self.assertLessEqual(self.cache.info()["total_connections_received"], 8)

    def test_a_forked_child_has_connections_of_its_own(self) -> None:
        if sys.platform == "win32":
            self.skipTest("Windows has no fork")
        self.cache.set("k", "parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = int(self.cache.get("k") != "parent")
                self.cache.set("k", "child")
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(self.cache.get("k"), "child")

    def test_send_command(self) -> None:
        for line, reply in (
            ("SET city new  york", "OK"),
            ("GET city", "new  york"),
            ("G city", "new  york"),
            ("GET none", ""),
            ("NOSUCH", "ERROR: Unknown command"),
            ("SET k \u00e9\udcff", "OK"),
            ("GET k", "\u00e9\udcff"),
            ("MGET city none k", "new  york\n\n\u00e9\udcff"),
        ):
            with self.subTest(line=line):
                self.assertEqual(send_command(line, self.name), reply)
        self.cache.set("long", "line\n" * 100_000)
        self.assertEqual(send_command("GET long", self.name), "line\n" * 100_000)
        if WINDOWS:
            self.assertEqual(send_command("SET k a\nb", self.name), "OK")
        else:
            with self.assertRaisesRegex(DataError, "no line break"):
                send_command("SET k a\nb", self.name)


class VanishedServerTests(ServerCase):
    def test_nobody_there(self) -> None:
        name = unique_name()
        with new_client(name) as cache:
            with self.assertRaisesRegex(ServerNotRunning, "^Cache server not running: "):
                cache.get("k")
            with self.assertRaises(ConnectionError):
                cache.get("k")
        self.assertEqual(send_command("GET k", name), "Error: Cache server not running")

    def test_one_exception_and_then_a_new_connection(self) -> None:
        server = self.serve()
        with new_client(self.name) as cache:
            cache.set("k", "v")
            server.stop()
            with self.assertRaises((ConnectionLost, ServerNotRunning)):
                cache.get("k")
            with self.assertRaises(ServerNotRunning):
                cache.get("k")
            with pipecache.Server(self.name):
                self.assertIsNone(cache.get("k"))
                self.assertIs(cache.set("k", "v"), True)

    def test_the_other_idle_connections_are_dropped_too(self) -> None:
        server = self.serve()
        with new_client(self.name) as cache:
            with server._store.lock:  # so that each call needs a connection of its own
                calls = [Background(lambda: cache.set("k", "v")) for _ in range(3)]
            for call in calls:
                call.wait()
            server.stop()
            with pipecache.Server(self.name):
                with self.assertRaises(ConnectionLost):
                    cache.get("k")
                self.assertIsNone(cache.get("k"))

    def test_no_reply_in_time(self) -> None:
        server = self.serve()
        with Client(self.name, timeout=0.1) as cache:
            with server._store.lock:
                with self.assertRaisesRegex(CacheTimeout, "within 0.1 s"):
                    cache.get("k")
                with self.assertRaises(TimeoutError):
                    cache.get("k")
        with new_client(self.name) as cache:
            self.assertIsNone(cache.get("k"))

    def test_a_client_that_is_forgotten_gives_its_place_back(self) -> None:
        self.serve(max_clients=2)
        for _ in range(10):
            new_client(self.name).ping()
            gc.collect()

    def test_several_threads_lose_the_server_at_once(self) -> None:
        server = self.serve()
        with new_client(self.name) as cache:
            with server._store.lock:
                calls = [Background(lambda: cache.set("k", "v")) for _ in range(8)]
            for call in calls:
                call.wait()
            server.stop()
            calls = [Background(lambda: cache.get("k")) for _ in range(8)]
            for call in calls:
                with self.assertRaises(ConnectionError):
                    call.wait()

    def test_time_limits_that_cannot_be(self) -> None:
        for limit in (0, -1):
            with self.subTest(limit=limit), self.assertRaises(ValueError):
                Client(timeout=limit)
        with self.assertRaises(ValueError):
            Client(connect_timeout=-1)

    @unittest.skipIf(WINDOWS, "a pipe has messages, which come whole")
    def test_a_reply_that_was_cut(self) -> None:
        for said, expected in ((b"", ConnectionLost), (b"x" * 100, ConnectionLost)):
            with self.subTest(said=said):
                listener = pipecache.make_listener(pipecache.pipe_address(unique_name()))
                asking = Background(
                    lambda: send_command("GET k", listener.address)  # noqa: B023
                )
                connection = listener.accept()
                assert connection is not None
                connection.receive()
                if said:
                    connection.send(said)
                connection.close()
                with self.assertRaises(expected):
                    asking.wait()
                listener.interrupt()
                listener.close()

    def test_the_last_words_of_a_server_are_read(self) -> None:
        self.serve(max_message=2000)
        with new_client(self.name) as cache, self.assertLogs("pipecache", "WARNING"):
            with self.assertRaisesRegex(ResponseError, "invalid bulk length"):
                cache.set("k", "x" * 3000)
            self.assertIsNone(cache.get("k"))

    def test_every_exception_is_a_cache_error(self) -> None:
        for name in client.__all__:
            thing = getattr(client, name)
            if isinstance(thing, type) and issubclass(thing, Exception):
                self.assertTrue(issubclass(thing, CacheError), name)


class CommandLineTests(ServerCase):
    def run_main(self, *arguments: str, lines: str | None = None) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            with mock.patch.object(sys, "stdin", io.StringIO(lines or "")):
                status = client.main(["--pipe", self.name, *arguments])
        return status, out.getvalue(), err.getvalue()

    def test_one_command(self) -> None:
        self.serve()
        for arguments, expected in (
            (("SET", "city", "new  york"), (0, "OK\n", "")),
            (("GET", "city"), (0, "new  york\n", "")),
            (("GET", "none"), (0, "\n", "")),
            (("INCR", "n"), (0, "1\n", "")),
            (("MGET", "city", "n"), (0, "new  york\n1\n", "")),
            (("PING",), (0, "PONG\n", "")),
            (
                ("NOSUCH",),
                (1, "ERROR: unknown command 'NOSUCH', with args beginning with:\n", ""),
            ),
        ):
            with self.subTest(arguments=arguments):
                self.assertEqual(self.run_main(*arguments), expected)

    def test_no_server(self) -> None:
        self.name = unique_name()
        status, out, err = self.run_main("GET", "city")
        self.assertEqual((status, out), (2, ""))
        self.assertRegex(err, "^Error: Cache server not running: .*\n$")

    def test_a_prompt(self) -> None:
        self.serve()
        lines = (
            "SET city 'new  york'\n"
            "\n"
            "GET city\n"
            "SET path C:\\temp\n"
            "GET path\n"
            "GET none\n"
            "ECHO it's\n"
            'ECHO {"a":1}\n'
            "MGET city none\n"
            "GET 'city\n"
            "INCR city\n"
            "QUIT\n"
            "SET city never\n"
        )
        status, out, _ = self.run_main(lines=lines)
        self.assertEqual(status, 1)  # the worst of all
        self.assertEqual(
            out.splitlines(),
            [
                "OK",
                "new  york",
                "OK",
                "C:\\temp",
                "(nil)",
                "it's",
                '{"a":1}',
                "new  york",
                "(nil)",
                "ERROR: Unbalanced quotes in the command",
                "ERROR: value is not an integer or out of range",
            ],
        )


class SourceTests(unittest.TestCase):
    """Each of the two files works alone, and what both declare is declared alike."""

    def tree(self, name: str) -> ast.Module:
        return ast.parse((ROOT / name).read_text(encoding="utf-8"))

    def test_only_the_standard_library_is_imported(self) -> None:
        known = getattr(sys, "stdlib_module_names", None)
        if known is None:
            self.skipTest("Python before 3.10 does not list its modules")
        for name in ("pipecache.py", "client.py"):
            for node in ast.walk(self.tree(name)):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    modules = [node.module or ""]
                for module in modules:
                    self.assertIn(module.split(".")[0], known, name)

    def test_what_both_declare_is_alike(self) -> None:
        def declarations(name: str) -> dict[str, str]:
            found = {}
            for node in ast.walk(self.tree(name)):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    found[node.targets[0].id] = ast.dump(node.value)
                elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                    found[node.name] = ast.dump(node)
            return found

        server, ours = declarations("pipecache.py"), declarations("client.py")
        shared = {name for name in server.keys() & ours.keys() if name.isupper()}
        shared |= {"ReadFile", "GetOverlappedResult", "CancelIoEx", "WaitNamedPipeW"}
        shared |= {"OVERLAPPED", "CreateEventW", "CloseHandle", "_bind", "_true", "pipe_address"}
        self.assertIn("ERROR_MORE_DATA", shared)
        for name in sorted(shared):
            with self.subTest(name=name):
                self.assertEqual(server[name], ours[name])


if __name__ == "__main__":
    unittest.main()
