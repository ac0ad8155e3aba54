"""Tests of client.py: blocking, publish/subscribe, MONITOR, owned locks, cached results."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from typing import Any, Callable

import client
from client import (
    CacheError,
    CacheTimeout,
    ConnectionLost,
    LockError,
    LockNotOwnedError,
    PubSub,
    PubSubError,
)
from pipecache import Server
from tests.support import DEADLINE, ROOT, WINDOWS, Background, ServerCase, new_client, wait_until
from tests.support.internals import connection_count
from tests.tools import provision


class LiveClientCase(ServerCase):
    def setUp(self) -> None:
        self.server = self.serve()
        self.cache = self.client()

    def client(self, **options: Any) -> client.Client:
        cache = new_client(self.name, **options)
        self.addCleanup(cache.close)
        return cache

    def blocked(self, count: int) -> None:
        """Wait until ``count`` clients are blocked."""
        wait_until(
            lambda: self.cache.info("clients")["blocked_clients"] == count,
            f"{count} clients are blocked",
        )


class WaitingTests(LiveClientCase):
    def test_blocking_methods_return_new_elements(self) -> None:
        other = self.client()
        calls: tuple[tuple[Callable[[], Any], Callable[[], Any], Any], ...] = (
            (lambda: other.blpop("l"), lambda: self.cache.rpush("l", "v"), ("l", "v")),
            (lambda: other.brpop(["a", "l"], 60), lambda: self.cache.rpush("l", "v"), ("l", "v")),
            (lambda: other.blmove("l", "m", 60), lambda: self.cache.rpush("l", "v"), "v"),
            (lambda: other.brpoplpush("l", "m"), lambda: self.cache.rpush("l", "v"), "v"),
            (
                lambda: other.blmpop(60, 1, "l", direction="LEFT", count=2),
                lambda: self.cache.rpush("l", "v", "w"),
                ["l", ["v", "w"]],
            ),
            (lambda: other.bzpopmin("z"), lambda: self.cache.zadd("z", {"m": 1}), ("z", "m", 1.0)),
            (lambda: other.bzpopmax("z"), lambda: self.cache.zadd("z", {"m": 1}), ("z", "m", 1.0)),
            (
                lambda: other.bzmpop(60, 1, ["z"], max=True),
                lambda: self.cache.zadd("z", {"m": 1}),
                ["z", [["m", "1"]]],
            ),
        )
        for number, (wait, push, expected) in enumerate(calls):
            with self.subTest(number=number):
                waiting = Background(wait)
                self.blocked(1)
                push()
                self.assertEqual(waiting.wait(), expected)

    def test_blocking_methods_time_out(self) -> None:
        self.assertIsNone(self.cache.blpop("l", 0.01))
        self.assertIsNone(self.cache.bzpopmin(["a", "b"], timeout=0.01))
        self.assertIsNone(self.cache.blmove("a", "b", 0.01))

    def test_blocking_may_take_longer_than_the_timeout_of_replies(self) -> None:
        hasty = self.client(timeout=0.1)
        self.assertIsNone(hasty.blpop("l", 0.3))
        waiting = Background(lambda: hasty.blpop("l", 0))
        self.blocked(1)
        with self.assertRaises(CacheTimeout):
            hasty.execute_command("DEBUG", "SLEEP", "0.5")
        self.cache.rpush("l", "v")
        self.assertEqual(waiting.wait(), ("l", "v"))

    def test_the_server_ends_meanwhile(self) -> None:
        waiting = Background(lambda: self.client().blpop("l", 0))
        self.blocked(1)
        self.server.stop()
        with self.assertRaises(ConnectionLost):
            waiting.wait()

    def test_in_a_pipeline_and_a_transaction(self) -> None:
        with self.cache.pipeline() as pipe:
            self.assertEqual(
                pipe.rpush("l", "v").blpop("l").blpop("l").execute(), [1, ("l", "v"), None]
            )


class PubSubTests(LiveClientCase):
    def subscribed(self, *names: str, **options: Any) -> PubSub:
        pubsub = self.client().pubsub(**options)
        self.addCleanup(pubsub.close)
        pubsub.subscribe(*names)
        for _ in names:
            pubsub.get_message(timeout=DEADLINE)
        return pubsub

    def test_messages(self) -> None:
        pubsub = self.subscribed("news")
        self.assertIsNone(pubsub.get_message())
        self.assertIsNone(pubsub.get_message(timeout=0.01))
        self.assertEqual(self.cache.publish("news", "hello"), 1)
        message = {"type": "message", "pattern": None, "channel": "news", "data": "hello"}
        self.assertEqual(pubsub.get_message(timeout=None), message)
        pubsub.ping("x")
        pong = {"type": "pong", "pattern": None, "channel": None, "data": "x"}
        self.assertEqual(pubsub.get_message(timeout=DEADLINE), pong)

    def test_bytes(self) -> None:
        pubsub = self.client(decode_responses=False).pubsub(ignore_subscribe_messages=True)
        self.addCleanup(pubsub.close)
        pubsub.psubscribe("n*")
        self.assertIsNone(pubsub.get_message(timeout=DEADLINE))
        self.cache.publish("news", bytes(range(256)))
        message = pubsub.get_message(timeout=DEADLINE)
        assert message is not None
        self.assertEqual((message["pattern"], message["data"]), (b"n*", bytes(range(256))))

    def test_a_loop_that_ends_with_the_last_channel(self) -> None:
        pubsub = self.subscribed("news", ignore_subscribe_messages=True)
        for text in ("one", "two", "end"):
            self.cache.publish("news", text)
        heard = []
        for message in pubsub:
            heard.append(message["data"])
            if message["data"] == "end":
                pubsub.unsubscribe()
        self.assertEqual(heard, ["one", "two", "end"])

    def test_subscribing_while_another_thread_listens(self) -> None:
        pubsub = self.subscribed("first")
        listening = Background(lambda: [pubsub.get_message(timeout=DEADLINE) for _ in range(2)])
        pubsub.subscribe("second")
        wait_until(
            lambda: self.cache.publish("second", "hello"), "the second channel is subscribed"
        )
        heard: Any = listening.wait()
        self.assertEqual([each["type"] for each in heard], ["subscribe", "message"])

    def test_a_thread_that_listened_has_ended(self) -> None:
        # Windows cancels the pending read of a thread that ends; no later message may be lost.
        pubsub = self.subscribed("news")
        self.assertIsNone(Background(lambda: pubsub.get_message(timeout=0.01)).wait())
        self.assertEqual(self.cache.publish("news", "hello"), 1)
        message = pubsub.get_message(timeout=DEADLINE) or {}
        self.assertEqual(message.get("data"), "hello")
        self.assertEqual(connection_count(self.server), 2)

    def test_closing_while_another_thread_listens(self) -> None:
        pubsub = self.subscribed("news")
        listening = Background(lambda: list(pubsub.listen()))
        pubsub.close()
        self.assertEqual(listening.wait(), [])
        wait_until(lambda: self.cache.publish("news", "x") == 0, "the connection is closed")

    def test_handlers_in_a_thread(self) -> None:
        heard: list[Any] = []
        with self.assertRaises(PubSubError):
            self.subscribed("plain").run_in_thread()
        pubsub = self.client().pubsub()
        pubsub.subscribe(news=heard.append)
        pubsub.psubscribe(**{"w*": lambda message: heard.append(message["data"])})
        thread = pubsub.run_in_thread(daemon=True)
        wait_until(self.cache.pubsub_numpat, "the pattern is subscribed")
        self.cache.publish("weather", "rain")
        self.cache.publish("news", "hello")
        wait_until(lambda: len(heard) == 2, "both messages have arrived")
        self.assertEqual((heard[0], heard[1]["data"]), ("rain", "hello"))
        thread.stop()
        thread.join(DEADLINE)
        self.assertFalse(thread.is_alive())

    def test_a_handler_that_fails(self) -> None:
        failures: list[Any] = []

        def fail(message: dict[str, Any]) -> None:
            raise ZeroDivisionError(message["data"])

        pubsub = self.client().pubsub()
        pubsub.subscribe(news=fail)
        handler = lambda error, *others: failures.append(str(error))  # noqa: E731
        thread = pubsub.run_in_thread(exception_handler=handler)
        for text in ("one", "two"):
            wait_until(lambda text=text: self.cache.publish("news", text), "the subscription")  # type: ignore[misc]
        wait_until(lambda: len(failures) == 2, "both calls have failed")
        thread.stop()
        thread.join(DEADLINE)
        self.assertEqual(failures, ["one", "two"])

    def test_subscriptions_are_renewed_when_the_server_is_back(self) -> None:
        pubsub = self.subscribed("news")
        pubsub.psubscribe("w*")
        self.assertIsNotNone(pubsub.get_message(timeout=DEADLINE))
        self.server.stop()
        again = Server(self.name)
        again.start()
        self.addCleanup(again.stop)
        listening = Background(lambda: [pubsub.get_message(timeout=DEADLINE) for _ in range(3)])
        other = self.client()
        wait_until(lambda: other.publish("weather", "rain"), "the channel is subscribed")
        heard: Any = listening.wait()
        self.assertEqual([each["type"] for each in heard], ["subscribe", "psubscribe", "pmessage"])

    @unittest.skipIf(WINDOWS, "the other program uses a socket")
    def test_a_server_that_hangs_up_again_and_again(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "socket")
        listener = socket.socket(getattr(socket, "AF_UNIX", -1))
        self.addCleanup(listener.close)
        listener.bind(path)
        listener.listen()
        connections = []

        def hang_up() -> None:
            with contextlib.suppress(OSError):  # the socket is closed at the end
                while True:
                    connection, _ = listener.accept()
                    connections.append(connection.recv(100))
                    connection.close()

        Background(hang_up)
        pubsub = client.Client(path, connect_timeout=0.2).pubsub()
        pubsub.subscribe("news")
        with self.assertRaises((ConnectionLost, client.ServerNotRunning)):
            pubsub.get_message(timeout=DEADLINE)
        self.assertLess(len(connections), 20)
        pubsub.close()
        listener.shutdown(socket.SHUT_RDWR)

    def test_no_server_any_more(self) -> None:
        pubsub = self.client(connect_timeout=0.1).pubsub()
        pubsub.subscribe("news")
        pubsub.get_message(timeout=DEADLINE)
        self.server.stop()
        with self.assertRaises((client.ServerNotRunning, CacheTimeout)):
            pubsub.get_message(timeout=DEADLINE)
        pubsub.close()


class MonitorTests(LiveClientCase):
    def test_a_monitor_receives_commands_of_others(self) -> None:
        with self.client().monitor() as monitor:
            self.cache.set("k", 'two "words"')
            told = monitor.next_command()
            self.assertEqual(told["command"], 'SET k two "words"')
            self.assertEqual((told["db"], told["client_type"]), (0, "pipe" if WINDOWS else "unix"))
            self.assertLess(abs(told["time"] - time.time()), 60)
            self.cache.get("k")
            self.assertEqual(next(monitor.listen())["command"], "GET k")
        with self.assertRaises(CacheError):
            monitor.next_command()
        wait_until(lambda: "flags=O" not in str(self.cache.client_list()), "the monitor is gone")


class CachedTests(LiveClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.calls: list[Any] = []

    def cached(self, cache: client.Client, **options: Any) -> Any:
        @cache.cached(ttl=60, **options)
        def double(value: Any, plus: Any = None) -> Any:
            """Return the double."""
            self.calls.append(value)
            if value == "bad":
                raise ValueError(value)
            return None if value is None else [value, value, plus]

        return double

    def test_a_call_is_made_once(self) -> None:
        double = self.cached(self.cache)
        for _ in range(2):
            self.assertEqual(double(1), [1, 1, None])
            self.assertEqual(double(1, plus="ü"), [1, 1, "ü"])
            self.assertIsNone(double(None))
        self.assertEqual(self.calls, [1, 1, None])
        self.assertEqual((double.__name__, double.__doc__), ("double", "Return the double."))
        keys = self.cache.keys("cached:*")
        self.assertEqual(len(keys), 3)
        self.assertTrue(all(0 < self.cache.pttl(key) <= 60_000 for key in keys))
        double.invalidate(1)
        double(1)
        self.assertEqual(self.calls, [1, 1, None, 1])

    def test_cached_results_are_shared(self) -> None:
        self.cached(self.cache, key=str, prefix="double:")(2)
        self.assertEqual(self.cache.get("double:2"), "[2, 2, null]")
        self.assertEqual(
            self.cached(self.client(decode_responses=False), key=str, prefix="double:")(2),
            [2, 2, None],
        )
        self.assertEqual(self.calls, [2])

    def test_an_exception_is_not_kept(self) -> None:
        double = self.cached(self.cache)
        for _ in range(2):
            with self.assertRaises(ValueError):
                double("bad")
        self.assertEqual(self.calls, ["bad", "bad"])

    def test_no_server(self) -> None:
        double = self.cached(self.cache)
        self.server.stop()
        with self.assertLogs("pipecache.client", "DEBUG"):
            self.assertEqual(double(1), [1, 1, None])
        self.assertEqual(self.calls, [1])

    def test_other_forms_and_wrong_times(self) -> None:
        dumps = lambda value: json.dumps(value).encode("utf-16")  # noqa: E731
        double = self.cached(
            self.cache, dumps=dumps, loads=lambda data: json.loads(data.decode("utf-16"))
        )
        self.assertEqual((double(1), double(1)), ([1, 1, None], [1, 1, None]))
        self.assertEqual(self.calls, [1])
        with self.assertRaises(ValueError):
            self.cache.cached(ttl=0)


#: A program that acquires an owned lock and holds it until it is killed.
HOLDER = """\
import sys, client
lock = client.Client(pipe=sys.argv[1]).lock("lock", owned=True)
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


class OwnedLockTests(LiveClientCase):
    def holder(self) -> subprocess.Popen[bytes]:
        """Return a process that holds the lock."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, self.name], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(process.communicate)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline().strip(), b"True")
        return process

    def test_a_holder_that_is_killed(self) -> None:
        process = self.holder()
        lock = self.cache.lock("lock", owned=True)
        self.assertFalse(lock.acquire(blocking=False))
        waiting = Background(lambda: self.client().lock("lock", owned=True).acquire())
        plain = self.cache.lock("lock")
        self.assertFalse(plain.acquire(blocking_timeout=0.2))
        process.kill()
        process.wait(DEADLINE)
        killed = time.monotonic()
        self.assertIs(waiting.wait(), True)
        self.assertLess(time.monotonic() - killed, 1)

    def test_as_a_context_manager(self) -> None:
        with self.cache.lock("lock", owned=True) as lock:
            self.assertTrue(lock.owned())
            self.assertEqual(self.cache.ttl("lock"), -1)
            self.assertEqual(sum(int(each["owned"]) for each in self.cache.client_list()), 1)
            self.cache.close()  # the lock has its own connection
            self.assertTrue(lock.owned())
        self.assertFalse(lock.locked())
        with self.assertRaises(LockError):
            lock.release()

    def test_time_left_and_ownership_stay(self) -> None:
        lock = self.cache.lock("lock", timeout=60, owned=True)
        self.assertTrue(lock.acquire())
        self.assertTrue(lock.extend(60) and lock.reacquire())
        self.assertGreater(self.cache.pttl("lock"), 0)
        self.assertEqual(sum(int(each["owned"]) for each in self.cache.client_list()), 1)
        lock.release()

    def test_a_lock_is_lost_with_its_connection(self) -> None:
        lock = self.cache.lock("lock", owned=True)
        lock.acquire()
        for each in self.cache.client_list():
            if int(each["owned"]):
                self.cache.client_kill_filter(_id=each["id"])
        wait_until(lambda: not lock.locked(), "the lock is released")
        self.assertFalse(lock.owned())
        with self.assertRaises(LockNotOwnedError):
            lock.release()
        self.assertTrue(lock.acquire(blocking=False))
        lock.release()

    def test_a_lock_that_another_client_has_taken(self) -> None:
        lock = self.cache.lock("lock", owned=True)
        lock.acquire()
        self.cache.set("lock", "somebody")
        self.assertFalse(lock.owned())
        with self.assertRaises(LockNotOwnedError):
            lock.release()
        self.assertEqual(self.cache.get("lock"), "somebody")

    def test_a_lock_that_is_garbage_collected(self) -> None:
        self.cache.lock("lock", owned=True, thread_local=False).acquire()
        wait_until(lambda: not self.cache.exists("lock"), "the lock is released")

    def test_many_threads_and_one_lock(self) -> None:
        inside, most = [0], [0]

        def work() -> None:
            for _ in range(5):
                with self.cache.lock("lock", owned=True, sleep=0.001):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    self.cache.incr("count")
                    inside[0] -= 1

        for each in [Background(work) for _ in range(6)]:
            each.wait()
        self.assertEqual((most[0], self.cache.get("count")), (1, "30"))

    if sys.platform != "win32":

        def test_a_forked_child_does_not_hold_it(self) -> None:
            lock = self.cache.lock("lock", owned=True, thread_local=False)
            lock.acquire()
            begin, end = os.pipe()
            child = os.fork()
            if child == 0:
                held = lock.owned()
                os.read(begin, 1)
                os._exit(int(held))
            try:
                self.assertTrue(lock.owned())
                lock.release()
                self.assertTrue(lock.acquire())
                del lock  # the child must not keep the connection open either
                wait_until(lambda: not self.cache.exists("lock"), "the lock is released")
            finally:
                os.write(end, b"x")
                status = os.waitpid(child, 0)[1]
                os.close(begin)
                os.close(end)
            self.assertEqual(status, 0)

    def test_owned_keys(self) -> None:
        other = self.client()
        self.assertIs(other.set("here", "yes", owned=True, ex=60), True)
        self.assertEqual(self.cache.get("here"), "yes")
        other.close()
        wait_until(lambda: not self.cache.exists("here"), "the key is deleted")


class CommandLineTests(LiveClientCase):
    def run_until_interrupted(self, arguments: list[str], act: Callable[[], object]) -> list[str]:
        """Return the lines that client.py prints up to the first one after an action."""
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "client.py"), "--pipe", self.name, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            creationflags=provision.OWN_CONSOLE,
        )  # fmt: skip
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        lines = [process.stdout.readline().decode().rstrip()]
        act()
        lines.append(process.stdout.readline().decode().rstrip())
        provision.interrupt(process, self.name)
        _, errors = process.communicate(timeout=DEADLINE)
        self.assertEqual((process.returncode, errors), (0, b""))
        return lines

    def test_streams(self) -> None:
        publish = lambda: self.cache.publish("news", "hello world")  # noqa: E731
        self.assertEqual(
            self.run_until_interrupted(["SUBSCRIBE", "news"], publish),
            ["subscribe news 1", "message news hello world"],
        )
        self.assertEqual(
            self.run_until_interrupted(["psubscribe", "n*"], publish),
            ["psubscribe n* 1", "pmessage n* news hello world"],
        )
        lines = self.run_until_interrupted(["MONITOR"], lambda: self.cache.get("k"))
        self.assertEqual(lines[0], "OK")
        self.assertRegex(lines[1], r'^\d+\.\d{6} \[0 .*\] "GET" "k"$')

    def test_waiting(self) -> None:
        def wait(timeout: str) -> list[bytes]:
            arguments = ["--pipe", self.name, "BLPOP", "l", timeout]
            return subprocess.run(
                [sys.executable, str(ROOT / "client.py"), *arguments], stdin=subprocess.DEVNULL,
                capture_output=True, check=True, timeout=DEADLINE,
            ).stdout.split()  # fmt: skip

        self.assertEqual(wait("0.01"), [])
        waiting = Background(lambda: wait("0"))
        self.blocked(1)
        self.cache.rpush("l", "v")
        self.assertEqual(waiting.wait(), [b"l", b"v"])


if __name__ == "__main__":
    unittest.main()
