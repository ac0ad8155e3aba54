"""Tests of a server inside the test process, with well-behaved and other clients."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

import pipecache
from pipecache import AddressInUse, Server
from tests.support import (
    DEADLINE,
    ROOT,
    WINDOWS,
    Background,
    RawConnection,
    ServerCase,
    new_client,
    unique_name,
    wait_until,
)
from tests.support.internals import (
    client_count,
    connection_count,
    is_quiet,
    is_stopping,
    keyspace_locked,
    listener_of,
    settings_of,
    thread_count,
)
from tests.support.wire import command


class ConversationTests(ServerCase):
    def setUp(self) -> None:
        self.serve()

    def test_text(self) -> None:
        raw = self.raw()
        for line, reply in (
            (b"SET city dubai\n", b"OK\n"),
            (b"GET city\n", b"dubai\n"),
            (b"G city\r\n", b"dubai\r\n"),
            (b"GET none\n", b"\n"),
            (b"NOSUCH\n", b"ERROR: Unknown command\n"),
            (b"\n", b"ERROR: Empty command\n"),
            (b'GET "city\n', b"ERROR: Unbalanced quotes in the command\n"),
            (b"INCR n\n", b"1\n"),
            (b"MGET city n\n", b"dubai\n1\n"),
        ):
            with self.subTest(line=line):
                self.assertEqual(raw.ask(line), reply)

    @unittest.skipUnless(WINDOWS, "only a pipe has messages")
    def test_messages(self) -> None:
        raw = self.raw()
        for message, reply in (
            (b"SET city dubai", b"OK"),
            (b"GET city", b"dubai"),
            (b"GET none", b""),
            (b"", b"ERROR: Empty command"),
            (b"SET poem two\nlines\n\n", b"OK\n"),
            (b"GET poem", b"two\nlines\n"),
            (b"GET poem\r\n", b"two\nlines\n\r\n"),
        ):
            with self.subTest(message=message):
                self.assertEqual(raw.ask(message), reply)

    def test_resp_and_text_on_one_connection(self) -> None:
        raw = self.raw()
        self.assertEqual(raw.ask(command(b"SET", b"k", b"a\r\nb")), b"+OK\r\n")
        self.assertEqual(raw.ask(b"STRLEN k\n"), b"4\n")
        self.assertEqual(raw.ask(command(b"GET", b"k")), b"$4\r\na\r\nb\r\n")
        self.assertEqual(
            raw.ask(command(b"NO", b"k")),
            b"-ERR unknown command 'NO', with args beginning with: 'k' \r\n",
        )

    def test_a_pipeline_is_answered_in_order_and_at_once(self) -> None:
        raw = self.raw()
        raw.send(b"".join(command(b"INCR", b"n") for _ in range(10)))
        self.assertEqual(raw.receive(), b"".join(b":%d\r\n" % n for n in range(1, 11)))

    def test_ten_thousand_commands_in_one_message(self) -> None:
        raw = self.raw()
        replies = b"".join(b":%d\r\n" % n for n in range(1, 10_001))
        pipeline = b"".join([command(b"INCR", b"n")] * 10_000)
        sending = threading.Thread(target=raw.send, args=(pipeline,))
        sending.start()
        self.assertEqual(raw.read(len(replies)), replies)
        sending.join(DEADLINE)

    def test_a_byte_at_a_time(self) -> None:
        raw = self.raw()
        for byte in command(b"SET", b"k", b"a\r\nb") + command(b"GET", b"k"):
            raw.send(bytes([byte]))
        self.assertEqual(raw.read(15), b"+OK\r\n$4\r\na\r\nb\r\n")

    def test_a_protocol_error_ends_the_connection_and_nothing_else(self) -> None:
        other = self.raw()
        self.assertEqual(other.ask(b"SET k v\n"), b"OK\n")
        raw = self.raw()
        with self.assertLogs("pipecache", "WARNING"):
            reply = raw.ask(command(b"GET", b"k") + b"*1\r\nfoo\r\n" + command(b"DEL", b"k"))
            expected = b"$1\r\nv\r\n-ERR Protocol error: expected '$', got 'f'\r\n"
            self.assertEqual(reply + raw.read(len(expected) - len(reply)), expected)
            self.assertTrue(raw.ended())
        self.assertEqual(other.ask(b"GET k\n"), b"v\n")

    def test_quit(self) -> None:
        ping = command(b"PING")
        for line, reply in ((b"QUIT\n", b"OK\n"), (command(b"QUIT") + ping, b"+OK\r\n")):
            raw = self.raw()
            self.assertEqual(raw.ask(line), reply)
            self.assertTrue(raw.ended())

    def test_values_byte_for_byte(self) -> None:
        values = (
            b"several  blanks   and a tab\t",
            b"two\nlines\r\nand an end\n",
            "\u062f\u0628\u064a \u8fea\u62dc \U0001f3d9".encode(),
            bytes(range(256)),
            b"",
            b"*1\r\n$4\r\nPING\r\n",
            os.urandom(10 * 1024 * 1024),
        )
        with new_client(self.name, decode_responses=False) as cache:
            for value in values:
                with self.subTest(value=value[:30]):
                    self.assertIs(cache.set("k", value), True)
                    self.assertEqual(cache.get("k"), value)
                    self.assertEqual(cache.strlen("k"), len(value))

    def test_a_long_text_command(self) -> None:
        value = b"0123456789" * 100_000
        raw = self.raw()
        self.assertEqual(raw.ask(b"SET k " + value + b"\n"), b"OK\n")
        raw.send(b"GET k\n")
        self.assertEqual(raw.read(len(value) + 1), value + b"\n")

    def test_expired_keys_are_removed_without_commands(self) -> None:
        with new_client(self.name) as cache:
            cache.psetex("k", 1, "v")
            wait_until(lambda: cache.dbsize() == 0, "the key is removed")
            self.assertEqual(cache.info()["expired_keys"], 1)

    def test_counters_from_many_threads(self) -> None:
        with new_client(self.name) as cache:
            threads = [
                threading.Thread(target=lambda: [cache.incr("n") for _ in range(200)])
                for _ in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
            self.assertEqual(cache.get("n"), "1600")


class CrowdTests(ServerCase):
    def test_two_thousand_connects_from_eight_threads(self) -> None:
        self.serve()
        failures: list[BaseException] = []

        def connect() -> None:
            try:
                for number in range(250):
                    with new_client(self.name) as cache:
                        if cache.echo(number) != str(number):
                            raise AssertionError("a wrong reply")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=connect) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE * 4)
        self.assertEqual(failures, [])
        wait_until(lambda: self.info("connected_clients") == 1, "every client has left")
        self.assertEqual(self.info("total_connections_received") > 2000, True)

    def test_clients_that_leave_at_once(self) -> None:
        self.serve()
        for number in range(500):
            raw = RawConnection(self.name)
            if number % 3 == 1:
                raw.send(b"SET k v\n")  # the client does not read the reply
            elif number % 3 == 2:
                raw.send(b"*2\r\n$3\r\nGE")  # an incomplete command
            raw.close()
        self.assertEqual(self.raw().ask(b"PING\n"), b"PONG\n")
        wait_until(lambda: self.info("connected_clients") == 2, "every client has left")

    def test_256_clients_and_one_more(self) -> None:
        self.serve(max_clients=256)
        crowd = [self.raw() for _ in range(256)]
        for number, raw in enumerate(crowd):
            raw.send(b"ECHO %d\n" % number)
        for number, raw in enumerate(crowd):
            self.assertEqual(raw.receive(), b"%d\n" % number)
        answered = threading.Event()
        replies = []

        def one_more() -> None:
            with new_client(self.name, decode_responses=False) as cache:
                replies.append(cache.echo("served"))
            answered.set()

        thread = threading.Thread(target=one_more)
        thread.start()
        self.assertFalse(answered.wait(0.2))
        crowd[100].close()
        thread.join(DEADLINE)
        self.assertEqual(replies, [b"served"])

    @unittest.skipUnless(WINDOWS, "a socket queues the client instead")
    def test_a_full_pipe_is_a_clear_refusal(self) -> None:
        self.serve(max_clients=1)
        raw = self.raw()
        self.assertEqual(raw.ask(b"PING"), b"PONG")
        with new_client(self.name, connect_timeout=0.1) as cache:
            with self.assertRaisesRegex(TimeoutError, "busy for 0.1 s"):
                cache.ping()

    def test_a_slot_is_free_as_soon_as_its_client_leaves(self) -> None:
        self.serve(max_clients=1)
        for number in range(50):
            with new_client(self.name) as cache:
                self.assertEqual(cache.echo(number), str(number))

    def test_a_client_that_never_reads_does_not_delay_others(self) -> None:
        self.serve()
        with new_client(self.name) as cache:
            cache.set("big", "x" * 1_000_000)
            greedy = self.raw()
            for _ in range(20):
                greedy.send(b"GET big\n")
            for number in range(50):
                self.assertEqual(cache.echo(number), str(number))

    def test_a_client_that_never_reads_is_dropped(self) -> None:
        server = self.serve()
        greedy = self.raw()
        with new_client(self.name) as cache, self.assertLogs("pipecache", "INFO") as logged:
            cache.set("big", "x" * 1_000_000)
            with mock.patch.object(settings_of(server), "reply_timeout", 0.1):
                greedy.send(b"GET big\n")
                wait_until(lambda: client_count(server) == 1, "the client is dropped")
        self.assertIn(
            "disconnected: the client did not read its reply within 0.1 s", logged.output[-1]
        )

    def test_silent_clients_do_not_delay_others(self) -> None:
        self.serve()
        silent = [self.raw() for _ in range(20)]
        self.assertEqual(self.raw().ask(b"PING\n"), b"PONG\n")
        self.assertEqual(silent[0].ask(b"PING\n"), b"PONG\n")

    def test_a_long_pipeline_that_is_read_last(self) -> None:
        self.serve()
        raw = self.raw()
        with new_client(self.name) as cache:
            cache.set("k", "v" * 1000)
        for _ in range(50):
            raw.send(command(b"GET", b"k") * 100)
        one = b"$1000\r\n" + b"v" * 1000 + b"\r\n"
        self.assertEqual(raw.read(len(one) * 5000), one * 5000)

    def test_nothing_is_leaked(self) -> None:
        server = self.serve()
        gc.collect()
        gc.disable()  # an object that only the garbage collector frees counts as leaked
        self.addCleanup(gc.enable)
        before = self.sessions()
        for _ in range(300):
            RawConnection(self.name).close()
        # A pipe may miss a client that leaves at once; a socket queues clients until accept().
        wait_until(
            lambda: (WINDOWS or connection_count(server) == 300) and is_quiet(server),
            "every client has left",
        )
        wait_until(lambda: self.sessions() <= before, "all sessions are freed")
        self.assertLessEqual(thread_count(server), 2 * pipecache.SPARE_LISTENERS + 300)

    @staticmethod
    def sessions() -> int:
        return sum(isinstance(each, pipecache.Session) for each in gc.get_objects())


class LifeTests(ServerCase):
    def test_a_context_manager(self) -> None:
        name = unique_name()
        with Server(name):
            with new_client(name) as cache:
                cache.set("k", "v")
                self.assertEqual(cache.get("k"), "v")
        with new_client(name) as cache, self.assertRaises(ConnectionError):
            cache.get("k")

    def test_serve_forever_until_stopped_elsewhere(self) -> None:
        self.name = unique_name()
        server = Server(self.name)
        serving = Background(server.serve_forever)
        wait_until(self.answers, "the server answers")
        server.stop()
        serving.wait()

    def answers(self) -> bool:
        with contextlib.suppress(OSError), RawConnection(self.name) as raw:
            return raw.ask(b"PING\n") == b"PONG\n"
        return False

    def test_a_name_that_is_taken(self) -> None:
        self.serve()
        second = Server(self.name)
        with self.assertRaises(AddressInUse):
            second.start()
        second.stop()
        self.assertEqual(self.raw().ask(b"PING\n"), b"PONG\n")

    def test_once_only(self) -> None:
        server = self.serve()
        with self.assertRaises(RuntimeError):
            server.start()
        server.stop()
        server.stop()
        with self.assertRaises(RuntimeError):
            server.start()

    def test_stop_with_clients_of_every_kind(self) -> None:
        server = self.serve()
        before = threading.active_count()
        idle = [self.raw() for _ in range(60)]
        half = self.raw()
        half.send(b"*2\r\n$3\r\nGE")
        stuck = self.raw()
        with new_client(self.name) as cache:
            cache.set("big", "x" * 5_000_000)
        stuck.send(b"GET big\n")
        self.assertEqual(stuck.receive(1), b"x")
        started = time.monotonic()
        server.stop()
        self.assertLess(time.monotonic() - started, pipecache.STOP_TIMEOUT)
        for raw in [*idle, half]:
            self.assertTrue(raw.ended())
        self.assertLessEqual(threading.active_count(), before)
        with self.assertRaises(OSError):
            RawConnection(self.name)

    def test_stop_from_two_sides(self) -> None:
        server = self.serve()
        raw = self.raw()
        raw.ask(b"PING\n")
        threads = [threading.Thread(target=server.stop) for _ in range(4)]
        for thread in threads:
            thread.start()
        server.stop()
        self.assertEqual(thread_count(server), 0)
        for thread in threads:
            thread.join(DEADLINE)
        with Server(self.name):
            pass

    def test_a_forked_child_leaves_the_server_alone(self) -> None:
        if sys.platform == "win32":
            self.skipTest("Windows has no fork")
        self.serve()
        raw = self.raw()
        raw.ask(b"PING\n")
        script = (
            "import os, sys, pipecache, client\n"
            f"server = pipecache.Server({unique_name()!r})\n"
            "server.start()\n"
            "cache = client.Client(server.address)\n"
            "cache.set('k', 'v')\n"
            "if os.fork() == 0:\n"
            "    sys.exit()\n"
            "os.wait()\n"
            "print(cache.get('k'), client.Client(server.address).get('k'))\n"
        )
        self.assertEqual(self.run_script(script), b"v v\n")

    def test_threads_that_cannot_be_started(self) -> None:
        server = self.serve()
        refusal = RuntimeError("can't start new thread")
        raws = []
        with mock.patch.object(threading.Thread, "start", side_effect=refusal):
            with self.assertLogs("pipecache", "ERROR"):
                for _ in range(pipecache.SPARE_LISTENERS):
                    raws.append(self.raw())
                    self.assertEqual(raws[-1].ask(b"PING\n"), b"PONG\n")
            name = unique_name()
            second = Server(name)
            with self.assertLogs("pipecache", "ERROR"):
                with self.assertRaises(pipecache.TransportError):
                    second.start()
        for each in (server, second):
            self.assertTrue(each.stop())
            self.assertEqual(thread_count(each), 0)
        with Server(name):  # the server has released the name
            pass

    def test_a_command_under_way_is_answered(self) -> None:
        server = self.serve()
        raw = self.raw()
        with keyspace_locked(server):
            raw.send(b"SET k v\n")
            wait_until(lambda: client_count(server), "the client is served")
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            wait_until(lambda: is_stopping(server), "the server stops")
        self.assertIn(raw.receive(), (b"OK\n", b""))
        stopping.join(DEADLINE)
        self.assertFalse(stopping.is_alive())

    def test_a_program_that_forgets_to_stop_it_still_ends(self) -> None:
        script = (
            "import pipecache, client\n"
            f"pipecache.Server({unique_name()!r}).start()\n"
            "print('the end', flush=True)\n"
        )
        self.assertEqual(self.run_script(script).split(), [b"the", b"end"])

    def run_script(self, script: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_accepting_goes_on_after_a_failure(self) -> None:
        server = self.serve()
        listener = listener_of(server)
        accept = listener.accept
        failures = [OSError(24, "Too many open files")] * 20

        def failing() -> object:
            if failures:
                raise failures.pop()
            return accept()

        with mock.patch.object(listener, "accept", failing), self.assertLogs("pipecache", "ERROR"):
            for _ in range(30):
                with new_client(self.name) as cache:
                    cache.ping()


if __name__ == "__main__":
    unittest.main()
