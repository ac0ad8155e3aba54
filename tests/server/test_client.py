"""Tests of client.py with a server inside the test process, and with other programs."""

from __future__ import annotations

import ast
import contextlib
import gc
import io
import os
import socket
import sys
import tempfile
import threading
import unittest
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, Iterator
from unittest import mock

import client
import pipecache
from client import (
    AuthenticationError,
    CacheError,
    CacheTimeout,
    Client,
    ConnectionLost,
    DataError,
    ExecAbortError,
    LockError,
    LockNotOwnedError,
    OutOfMemoryError,
    Pipeline,
    ProtocolError,
    ReplyReader,
    ResponseError,
    ServerNotRunning,
    WatchError,
    WrongTypeError,
    encode_commands,
    send_command,
)
from tests.support import (
    DEADLINE,
    ROOT,
    WINDOWS,
    Background,
    ServerCase,
    new_client,
    unique_name,
    wait_until,
)
from tests.support.internals import keyspace_locked


def encoded(reply: Any) -> Any:
    """Return a reply without decoding."""
    if isinstance(reply, list):
        return [encoded(element) for element in reply]
    return reply.encode() if isinstance(reply, str) else reply


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
                encoded = encode_commands([["ECHO", argument]])
                self.assertEqual(
                    encoded, b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(expected), expected)
                )

    def test_many_commands(self) -> None:
        self.assertEqual(
            encode_commands([("PING",), ["SET", "k", "\u20ac"], ("DEL", *["k"] * 199)]),
            b"*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\n\xe2\x82\xac\r\n"
            b"*200\r\n$3\r\nDEL\r\n" + b"$1\r\nk\r\n" * 199,
        )
        self.assertEqual(encode_commands([]), b"")

    def test_long_data(self) -> None:
        long = b"\xff\r\n" * 30_000
        cases: tuple[tuple[list[list[Any]], bytes], ...] = (
            ([["ECHO", long]], b"*2\r\n$4\r\nECHO\r\n$90000\r\n%b\r\n" % long),
            (
                [["SET", long, long, "NX"], ["PING"]],
                b"*4\r\n$3\r\nSET\r\n$90000\r\n%b\r\n$90000\r\n%b\r\n$2\r\nNX\r\n"
                b"*1\r\n$4\r\nPING\r\n" % (long, long),
            ),
        )
        for commands, expected in cases:
            self.assertEqual(encode_commands(commands), expected)

    def test_arguments_that_cannot_be_sent(self) -> None:
        arguments: tuple[Any, ...] = (None, True, [], {}, object())
        for argument in arguments:
            with self.subTest(argument=argument), self.assertRaises(DataError):
                encode_commands([["SET", "k", argument]])


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
        (b"*3\r\n$2\r\nab\r\n$1\r\nc\r\n$0\r\n\r\n", ["ab", "c", ""]),
        (b"*2\r\n$2\r\n\r\n\r\n$4\r\n$1\r\n\r\n", ["\r\n", "$1\r\n"]),
        (b"*3\r\n*-1\r\n*0\r\n*1\r\n*1\r\n+OK\r\n", [None, [], [["OK"]]]),
        (b"*2\r\n$2\r\n\xc3\xa9\r\n+\xc3\xa9\r\n", ["\u00e9", "\u00e9"]),
        (b"$5000\r\n" + b"x" * 5000 + b"\r\n", "x" * 5000),
        (b"*200\r\n" + b"$3\r\nabc\r\n" * 200, ["abc"] * 200),
        (b"$100000\r\n" + b"x" * 100_000 + b"\r\n", "x" * 100_000),
    )

    def readers(self, stream: bytes) -> Iterator[ReplyReader]:
        """Return readers, each of which receives the stream in chunks of one size."""
        for size in (1, 2, 3, 7, 1000, len(stream)):
            chunks = [stream[start : start + size] for start in range(0, len(stream), size)]
            reader = ReplyReader(iter(chunks[1:]).__next__)
            reader.feed(chunks[0])
            with self.subTest(size=size):
                yield reader

    def test_replies_cut_anywhere(self) -> None:
        stream = b"".join(encoded for encoded, _ in self.REPLIES)
        for reader in self.readers(stream):
            for _, expected in self.REPLIES:
                self.assertEqual(reader.read(decode=True), expected)

    def test_many_replies_at_once(self) -> None:
        rotated = self.REPLIES[5:] + self.REPLIES[:5]
        for replies in (self.REPLIES, rotated, self.REPLIES[3:4] * 50, self.REPLIES[:1] * 50):
            stream = b"".join(encoded for encoded, _ in replies)
            expected = [reply for _, reply in replies]
            for reader in self.readers(stream + b":1\r\n"):
                self.assertEqual(reader.read_many(len(replies), decode=True), expected)
                self.assertEqual(reader.read(decode=True), 1)
            for reader in self.readers(stream):
                self.assertEqual(reader.read_many(len(replies), decode=False), encoded(expected))

    def test_errors_among_many_replies(self) -> None:
        stream = b"+OK\r\n-ERR no\r\n*2\r\n:1\r\n-WRONGTYPE \xff\r\n$1\r\na\r\n"
        for reader in self.readers(stream):
            replies = reader.read_many(4, decode=True)
            self.assertEqual(
                repr(replies),
                "['OK', ResponseError('no'), [1, WrongTypeError('WRONGTYPE \ufffd')], 'a']",
            )

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
        self.assertEqual((str(error), number), ("no", 1))

    def test_the_classes_of_errors(self) -> None:
        for line, kind, message in (
            ("ERR no such key", ResponseError, "no such key"),
            ("WRONGTYPE Operation", WrongTypeError, "WRONGTYPE Operation"),
            ("OOM command not allowed", OutOfMemoryError, "command not allowed"),
            ("NOAUTH Authentication required.", AuthenticationError, "Authentication required."),
            ("WRONGPASS invalid", AuthenticationError, "invalid"),
            ("EXECABORT Transaction discarded", ExecAbortError, "Transaction discarded"),
            ("NOPROTO unsupported", ResponseError, "NOPROTO unsupported"),
            ("ERR", ResponseError, ""),
        ):
            reader = ReplyReader(lambda: b"")
            reader.feed(f"-{line}\r\n".encode())
            error = reader.read(decode=True)
            with self.subTest(line=line):
                self.assertEqual((type(error), str(error)), (kind, message))
                self.assertEqual(error.status_code, line.split()[0])

    def test_input_that_is_not_resp(self) -> None:
        for data in (b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"$abc\r\n", b":1.5\r\n"):
            for method in ("read", "read_many"):
                reader = ReplyReader(lambda: b"")
                reader.feed(data if method == "read" else b":1\r\n" + data)
                with self.subTest(data=data, method=method), self.assertRaises(ProtocolError):
                    reader.read(True) if method == "read" else reader.read_many(2, True)

    def test_replies_that_are_not_utf_8(self) -> None:
        reader = ReplyReader(lambda: b"")
        reader.feed(b"*1\r\n$1\r\n\xff\r\n")
        with self.assertRaises(UnicodeDecodeError):
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
            (cache.info("keyspace")["db0"]["keys"], 3),
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
        with self.assertRaisesRegex(ResponseError, "^value is not an integer"):
            self.cache.incr("k")
        self.assertEqual(self.cache.get("k"), "v")
        self.assertEqual(self.cache.info()["total_connections_received"], 1)

    def test_the_methods_for_other_types(self) -> None:
        cache = self.cache
        for result, expected in (
            (cache.msetnx({"k": "v", "n": 1}), True),
            (cache.set("k", "w", ifeq="v", exat=2_000_000_000), True),
            (cache.set("k", "x", ifeq="v"), None),
            (cache.expiretime("k"), 2_000_000_000),
            (cache.delex("k", ifeq="v"), 0),
            (cache.delifeq("k", "w"), 1),
            (cache.type("n"), "string"),
            (cache.object("encoding", "n"), "int"),
            (cache.pexpire("n", timedelta(hours=1), nx=True), True),
            (cache.rename("n", "m"), True),
            (list(cache.scan_iter(count=1)), ["m"]),
            (cache.rpush("l", "a", "b"), 2),
            (cache.lrange("l", 0, -1), ["a", "b"]),
            (cache.lmpop(1, "l", direction="LEFT", count=2), ["l", ["a", "b"]]),
            (cache.hset("h", mapping={"a": 1, "b": 2}), 2),
            (cache.hgetall("h"), {"a": "1", "b": "2"}),
            (dict(cache.hscan_iter("h")), {"a": "1", "b": "2"}),
            (cache.hincrbyfloat("h", "a", 0.5), 1.5),
            (cache.sadd("s", "a", "b"), 2),
            (cache.smembers("s"), {"a", "b"}),
            (cache.sinter("s", "none"), set()),
            (cache.zadd("z", {"a": 1, "b": 2}), 2),
            (cache.zrange("z", 0, -1, desc=True, withscores=True), [("b", 2.0), ("a", 1.0)]),
            (cache.zadd("z", {"a": 1}, incr=True), 2.0),
            (cache.zpopmin("z"), [("a", 2.0)]),
            (cache.zmscore("z", ["a", "b"]), [None, 2.0]),
            (cache.client_setname("me"), True),
            (cache.client_list(client_id=[cache.client_id()])[0]["name"], "me"),
            (cache.client_info()["name"], "me"),
            (cache.config_get("maxmemory"), {"maxmemory": "0"}),
        ):
            self.assertEqual((result, type(result)), (expected, type(expected)))
        with self.assertRaisesRegex(WrongTypeError, "^WRONGTYPE Operation"):
            cache.get("h")

    def test_a_pipeline(self) -> None:
        for transaction in (True, False):
            with self.cache.pipeline(transaction) as pipe:
                self.cache.flushall()
                self.assertIs(pipe.set("k", "v").get("k").incr("n"), pipe)
                self.assertEqual((len(pipe), bool(pipe)), (3, True))
                self.assertEqual(pipe.execute(), [True, "v", 1])
                self.assertEqual((len(pipe), bool(pipe)), (0, True))
                self.assertEqual(pipe.execute(), [])
        self.assertIs(self.cache.pipeline().transaction, True)

    def test_an_error_in_a_pipeline(self) -> None:
        for transaction in (True, False):
            pipe = self.cache.pipeline(transaction)
            pipe.set("k", "v").incr("k").get("k")
            with self.assertRaisesRegex(
                ResponseError,
                r"^Command # 2 \(INCRBY k 1\) of pipeline caused error: value is not an integer",
            ):
                pipe.execute()
            pipe.set("k", "w").incr("k").get("k")
            first, error, last = pipe.execute(raise_on_error=False)
            self.assertIsInstance(error, ResponseError)
            self.assertEqual((first, last), (True, "w"))

    def test_a_long_pipeline(self) -> None:
        for transaction in (True, False):
            pipe = self.cache.pipeline(transaction)
            for number in range(3000):
                pipe.set(f"k{number}", "x" * 500)
            self.assertEqual(pipe.execute(), [True] * 3000)
            for number in range(3000):
                pipe.get(f"k{number}")
            pipe.echo("x" * 1_000_000).echo("y" * 1_000_000).echo("\xff" * 10)
            self.assertEqual(
                pipe.execute(),
                ["x" * 500] * 3000 + ["x" * 1_000_000, "y" * 1_000_000, "\xff" * 10],
            )

    def test_a_long_pipeline_goes_in_parts(self) -> None:
        commands = [["SET", f"k{number}", "x" * (number % 700)] for number in range(3000)]
        commands += [["SET", "long", "x" * client.PIPELINE_BYTES], ["GET", "k1"]]
        parts = list(client._encode_parts(commands))
        self.assertEqual(b"".join(data for data, _ in parts), encode_commands(commands))
        self.assertEqual(sum(count for _, count in parts), len(commands))
        for data, count in parts:
            self.assertTrue(len(data) <= client.PIPELINE_BYTES or count == 1)

    def test_nothing_is_sent_of_a_pipeline_that_cannot_be_encoded(self) -> None:
        pipe = self.cache.pipeline(transaction=False)
        pipe.set("k", "x" * client.PIPELINE_BYTES).set("k", [])
        with self.assertRaises(DataError):
            pipe.execute()
        self.assertEqual((len(pipe), self.cache.exists("k")), (0, 0))

    def test_threads_share_a_client(self) -> None:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(100):
                    value = f"{number}-{turn}" * (1 + turn * 30)
                    self.cache.set(str(number), value)
                    if self.cache.get(str(number)) != value:
                        raise AssertionError("the reply to another thread")
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
            with self.assertRaisesRegex(DataError, "cannot contain a line break"):
                send_command("SET k a\nb", self.name)


class TransactionTests(ServerCase):
    def setUp(self) -> None:
        self.server = self.serve()
        self.cache = new_client(self.name)
        self.addCleanup(self.cache.close)

    def test_a_watched_key(self) -> None:
        self.cache.set("k", 1)
        with self.cache.pipeline() as pipe:
            self.assertIs(pipe.watch("k"), True)
            number = int(pipe.get("k"))
            self.assertIs(pipe.set("other", number), True)
            pipe.multi()
            self.assertIs(pipe.set("k", number + 1), pipe)
            self.assertEqual(pipe.execute(), [True])
            pipe.watch("k")
            self.cache.incr("k")
            pipe.multi()
            with self.assertRaisesRegex(WatchError, r"^Watched variable changed\.$"):
                pipe.set("k", "never").execute()
            self.assertEqual(pipe.get("k").execute(), ["3"])
        self.assertEqual(self.info("total_connections_received"), 3)  # including this one

    def test_a_watch_that_is_given_up(self) -> None:
        with self.cache.pipeline() as pipe:
            for give_up in (pipe.unwatch, pipe.reset):
                pipe.watch("k")
                self.cache.incr("k")
                give_up()
                self.assertEqual(pipe.incr("k", 0).execute(), [int(self.cache.get("k"))])
        with self.cache.pipeline() as pipe:
            pipe.watch("k")
        del pipe
        gc.collect()
        wait_until(
            lambda: self.info("connected_clients") <= 3, "the connection that watches has ended"
        )

    def test_an_error_while_watching(self) -> None:
        with self.cache.pipeline() as pipe:
            pipe.watch("k")
            self.cache.set("k", "v")
            with self.assertRaises(ResponseError):
                pipe.incr("k")
            with self.assertRaises(DataError):
                pipe.set("k", None)  # type: ignore[arg-type]
            pipe.multi()
            with self.assertRaises(WatchError):
                pipe.set("k", "never").execute()

    def test_the_order_of_calls(self) -> None:
        pipe = self.cache.pipeline()
        pipe.multi()
        with self.assertRaisesRegex(CacheError, "nested calls to MULTI"):
            pipe.multi()
        with self.assertRaisesRegex(CacheError, "WATCH after a MULTI"):
            pipe.watch("k")
        pipe.reset()
        pipe.get("k")
        with self.assertRaisesRegex(CacheError, "without an initial WATCH"):
            pipe.multi()

    def test_a_command_that_cannot_be_queued(self) -> None:
        for raise_on_error in (True, False):
            pipe = self.cache.pipeline().set("k", "never").execute_command("GET")
            with self.assertRaisesRegex(ResponseError, r"^Command # 2 \(GET\) .* wrong number of"):
                pipe.execute(raise_on_error)
        self.assertIsNone(self.cache.get("k"))

    def test_the_server_vanishes_from_a_watch(self) -> None:
        pipe = self.cache.pipeline()
        pipe.watch("k")
        self.server.stop()
        with pipecache.Server(self.name):
            with self.assertRaisesRegex(WatchError, "A ConnectionLost occurred while watching"):
                pipe.get("k")
            self.assertEqual(pipe.get("k").execute(), [None])

    def test_the_server_vanishes_from_a_transaction(self) -> None:
        pipe = self.cache.pipeline()
        pipe.watch("k")
        pipe.multi()
        self.server.stop()
        with pipecache.Server(self.name):
            with self.assertRaises(ConnectionLost):  # the client cannot know if it has run
                pipe.incr("k").execute()
            self.assertEqual(pipe.get("k").execute(), [None])

    def test_a_failed_read_ends_the_watch(self) -> None:
        self.cache.set("k", b"\xff")
        pipe = self.cache.pipeline()
        pipe.watch("k")
        with self.assertRaises(UnicodeDecodeError):
            pipe.get("k")
        self.assertIs(pipe.get("none"), pipe)

    def test_a_function_again_and_again(self) -> None:
        def add(pipe: Pipeline) -> str:
            number = int(pipe.get("n") or 0)
            pipe.multi()
            pipe.set("n", number + 1)
            return "added"

        def work() -> None:
            for _ in range(20):
                self.cache.transaction(add, "n", watch_delay=0.001)

        for call in [Background(work) for _ in range(4)]:
            call.wait()
        self.assertEqual(self.cache.get("n"), "80")
        self.assertEqual(self.cache.transaction(add, "n"), [True])
        self.assertEqual(self.cache.transaction(add, "n", value_from_callable=True), "added")


class LockTests(ServerCase):
    def setUp(self) -> None:
        self.serve()
        self.cache = new_client(self.name)
        self.addCleanup(self.cache.close)

    def test_one_holder_at_a_time(self) -> None:
        lock, other = self.cache.lock("k", timeout=100), self.cache.lock("k", blocking=False)
        self.assertIs(lock.locked(), False)
        self.assertIs(lock.acquire(), True)
        self.assertEqual((lock.owned(), lock.locked()), (True, True))
        self.assertEqual((other.owned(), other.locked()), (False, True))
        self.assertIs(other.acquire(), False)
        self.assertIs(other.acquire(blocking=True, blocking_timeout=0.01, sleep=0.005), False)
        with self.assertRaisesRegex(LockError, "not owned"):
            other.release()
        with self.assertRaisesRegex(LockError, "Unable to acquire"):
            with other:
                self.fail("the lock is held")
        lock.release()
        self.assertIs(lock.locked(), False)
        with self.assertRaises(LockError):
            lock.release()
        with other:
            self.assertEqual(self.cache.ttl("k"), -1)
        self.assertEqual(self.cache.exists("k"), 0)

    def test_the_timeout_of_a_lock(self) -> None:
        lock = self.cache.lock("k", timeout=100)
        with lock:
            self.assertEqual(self.cache.ttl("k"), 100)
            self.assertIs(lock.extend(50), True)
            self.assertEqual(self.cache.ttl("k"), 150)
            self.assertIs(lock.extend(0.5 + 59, replace_ttl=True), True)
            self.assertIn(self.cache.pttl("k"), range(50_000, 59_501))
            self.assertIs(lock.reacquire(), True)
            self.assertEqual(self.cache.ttl("k"), 100)
        with self.assertRaisesRegex(LockError, "not owned"):
            lock.extend(1)
        with self.assertRaisesRegex(LockError, "not owned"):
            lock.reacquire()
        with self.cache.lock("k") as endless:
            with self.assertRaisesRegex(LockError, "no timeout"):
                endless.extend(1)
            with self.assertRaisesRegex(LockError, "no timeout"):
                endless.reacquire()

    def test_a_lock_that_was_lost(self) -> None:
        for value in (None, "another's token"):
            lock = self.cache.lock("k", timeout=100)
            lock.acquire()
            self.cache.delete("k")
            if value:
                self.cache.set("k", value)
            self.assertIs(lock.owned(), False)
            for call in (lambda: lock.extend(1), lock.reacquire, lock.release):  # noqa: B023
                with self.assertRaises(LockNotOwnedError):
                    call()
            self.assertEqual(self.cache.get("k"), value)

    def test_a_lock_belongs_to_a_thread(self) -> None:
        mine, ours = self.cache.lock("mine"), self.cache.lock("ours", thread_local=False)
        mine.acquire(token="token")
        ours.acquire()
        self.assertEqual(self.cache.get("mine"), "token")
        self.assertEqual(Background(mine.owned).wait(), False)
        with self.assertRaises(LockError):
            Background(mine.release).wait()
        Background(ours.release).wait()
        mine.release()

    def test_threads_wait_for_their_turn(self) -> None:
        inside: list[int] = []

        def work() -> None:
            for _ in range(5):
                with self.cache.lock("k", sleep=0.001):
                    inside.append(1)
                    self.assertEqual(len(inside), 1)
                    inside.pop()

        for call in [Background(work) for _ in range(4)]:
            call.wait()


class VanishedServerTests(ServerCase):
    def test_no_server(self) -> None:
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
            with keyspace_locked(server):  # then each call needs its own connection
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
            with keyspace_locked(server):
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
            with keyspace_locked(server):
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

    if sys.platform != "win32":

        def test_time_limits_near_zero(self) -> None:
            # For a socket, a limit of 0 microseconds means no limit.
            with contextlib.ExitStack() as stack:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                path = os.path.join(folder, "socket")
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(path)
                listener.listen(0)
                with Client(path, timeout=1e-9) as cache, self.assertRaises(CacheTimeout):
                    cache.ping()
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(path)  # The queue of the listener is full now.
                with Client(path, connect_timeout=0) as cache, self.assertRaises(CacheTimeout):
                    cache.ping()

    @unittest.skipIf(WINDOWS, "a pipe delivers messages whole")
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
        with new_client(self.name) as cache, self.assertLogs("pipecache", "WARNING") as logged:
            with self.assertRaisesRegex(ResponseError, "invalid bulk length"):
                cache.set("k", "x" * 3000)
            self.assertIsNone(cache.get("k"))
            wait_until(lambda: logged.output, "a line in the log")

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
        self.assertEqual(status, 1)  # the highest of all statuses
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
    """Each of the two files works alone, and both declare the same things in the same way."""

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

    def test_both_files_declare_the_same(self) -> None:
        def declarations(name: str) -> dict[str, str]:
            found = {}
            nodes = [*self.tree(name).body]
            for node in nodes:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    found[node.targets[0].id] = ast.dump(node.value)
                elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                    if ast.get_docstring(node):  # Each file has its own words.
                        del node.body[0]
                    found[node.name] = ast.dump(node)
                elif isinstance(node, ast.If):  # code for Windows only
                    nodes += node.body
            return found

        server, ours = declarations("pipecache.py"), declarations("client.py")
        shared = {name for name in server.keys() & ours.keys() if name.isupper()}
        shared |= {"ReadFile", "GetOverlappedResult", "CancelIoEx", "WaitNamedPipeW"}
        shared |= {"OVERLAPPED", "CreateEventW", "CloseHandle", "_bind", "_nonzero", "pipe_address"}
        self.assertIn("ERROR_MORE_DATA", shared)
        for name in sorted(shared):
            with self.subTest(name=name):
                self.assertEqual(server[name], ours[name])


if __name__ == "__main__":
    unittest.main()
