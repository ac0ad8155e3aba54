"""Tests of the limits for clients: setting, reading and enforcing each."""

from __future__ import annotations

import contextlib
import functools
import time
import unittest
from typing import Any
from unittest import mock

import client
import pipecache
from pipecache import LIMITS, Server, Settings
from tests.support import DEADLINE, Background, RawConnection, ServerCase, new_client, wait_until
from tests.support.internals import (
    DROP_OVERDUE,
    SilentClient,
    client_count,
    is_inbox_full,
    keyspace_of,
    parse_options,
    settings_of,
)
from tests.support.wire import command

#: A value for each limit, and the reply of CONFIG GET for it.
OTHERS = {
    "max_clients": ("7", "7"),
    "max_message": ("10mb", "10485760"),
    "max_arguments": ("1000", "1000"),
    "max_command": ("20mb", "20971520"),
    "max_reply": ("1gb", "1073741824"),
    "max_memory": ("100mb", "104857600"),
    "subscriber_buffer": ("64kb", "65536"),
    "idle_timeout": ("2.5", "2.5"),
    "message_timeout": ("0", "0"),
    "reply_timeout": ("12", "12"),
}


class SettingTests(ServerCase):
    def test_every_limit_is_tested(self) -> None:
        self.assertEqual(set(OTHERS), set(LIMITS))

    def test_defaults(self) -> None:
        self.serve()
        with new_client(self.name) as cache:
            told = cache.config_get("*")
            section = cache.info("limits")
        for limit in LIMITS.values():
            with self.subTest(limit=limit.parameter):
                self.assertEqual(float(told[limit.parameter]), limit.default)
                self.assertEqual(float(section[limit.parameter.replace("-", "_")]), limit.default)

    def test_config_set(self) -> None:
        server = self.serve()
        with new_client(self.name) as cache:
            for name, (text, told) in OTHERS.items():
                parameter = LIMITS[name].parameter
                with self.subTest(limit=name):
                    if name == "max_clients":
                        with self.assertRaisesRegex(client.ResponseError, "immutable"):
                            cache.config_set(parameter, text)
                        continue
                    cache.config_set(parameter, text)
                    self.assertEqual(cache.config_get(parameter), {parameter: told})
                    self.assertEqual(getattr(settings_of(server), name), float(told))
                    for wrong in ("x", "-1", "", "1e9", "nan", "99999999999999999999x"):
                        with self.assertRaisesRegex(client.ResponseError, f"{parameter}'.*must be"):
                            cache.config_set(parameter, wrong)
                    self.assertEqual(cache.config_get(parameter), {parameter: told})

    def test_options(self) -> None:
        arguments = [
            word
            for name, (text, _) in OTHERS.items()
            for word in ("--" + name.replace("_", "-"), text)
        ]
        options = parse_options(arguments)
        for name, (_, told) in OTHERS.items():
            self.assertEqual(options[name], float(told), name)

    def test_values_that_are_too_small(self) -> None:
        for name, limit in LIMITS.items():
            if limit.minimum:
                with self.subTest(limit=name), self.assertRaisesRegex(
                    ValueError, f"{name} must be"
                ):
                    Settings(**{name: limit.minimum / 2})  # type: ignore[arg-type]
        with self.assertRaises(TypeError):
            Settings(max_nonsense=1)
        with self.assertRaisesRegex(ValueError, "max_memory must be 0 bytes or more"):
            Settings(max_memory="10mb")  # type: ignore[arg-type]


class SizeTests(ServerCase):
    def test_arguments(self) -> None:
        self.serve(max_arguments=128)
        raw = self.raw()
        self.assertEqual(raw.ask(command(b"DEL", *[b"k"] * 127)), b":0\r\n")
        reply = raw.ask(b"DEL" + b" k" * 128 + b"\n")
        self.assertEqual(reply, b"ERROR: more arguments than --max-arguments (128)\n")
        self.assertIn(b"invalid multibulk length", raw.ask(b"*129\r\n"))
        self.assertTrue(raw.ended())

    def test_a_command_of_many_long_arguments(self) -> None:
        self.serve(max_command=65536)
        raw = self.raw()
        value = b"x" * 30_000
        self.assertEqual(raw.ask(command(b"MSET", b"a", value, b"b", value)), b"+OK\r\n")
        # The server refuses the third value when its length arrives.
        raw.send(command(b"MSET", b"a", value, b"b", value, b"c", value)[: -30_000 - 2])
        self.assertIn(b"the command is longer than --max-command (65536 bytes)", raw.receive())
        self.assertTrue(raw.ended())

    def test_a_reply(self) -> None:
        self.serve(max_reply=65536)
        with new_client(self.name) as cache:
            cache.set("big", "x" * 10_000)
            cache.rpush("list", *["x" * 10_000] * 7)
            cache.hset("hash", mapping={str(number): "x" * 10_000 for number in range(7)})
            for words in (
                ("MGET", *["big"] * 7), ("LRANGE", "list", 0, -1), ("HGETALL", "hash"),
                ("SRANDMEMBER", "set", -7), ("HRANDFIELD", "hash", -7, "WITHVALUES"),
            ):  # fmt: skip
                cache.sadd("set", "x" * 10_000)
                with self.subTest(words=words):
                    with self.assertRaisesRegex(client.ResponseError, "longer than max-reply"):
                        cache.execute_command(*words)
            self.assertEqual(len(cache.mget(["big"] * 6)), 6)
            transaction = cache.pipeline()
            for _ in range(7):
                transaction.get("big")
            with self.assertRaisesRegex(client.ResponseError, "longer than max-reply"):
                transaction.execute()
            self.assertTrue(cache.ping())
        self.assertRegex(self.raw().ask(b"LRANGE list 0 -1\n"), b"^ERROR: the reply is longer than")

    def test_a_reply_is_measured_before_it_is_made(self) -> None:
        # A list of a million references to one value takes little memory until it is encoded.
        value = b"x" * 1_000_000
        for reply in ([value] * 1_000_000, {b"a": [value] * 999_999, b"b": (value, 1, None)}):
            self.assertTrue(10**12 <= pipecache.reply_size(reply) < 1.0001 * 10**12)

    def test_incomplete_commands_count_as_memory(self) -> None:
        server = self.serve(max_memory=10_000_000)
        beginning = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4000000\r\n" + b"x" * 1_900_000
        senders = [self.raw() for _ in range(8)]
        for raw in senders:
            with contextlib.suppress(OSError):  # the server disconnects some before the end
                raw.send(beginning)
        wait_until(lambda: client_count(server) < 6, "some clients are disconnected")
        used = keyspace_of(server).used_memory
        self.assertTrue(4_000_000 < used < 10_200_000, used)
        with new_client(self.name) as cache:
            self.assertTrue(cache.ping())
        for raw in senders:
            raw.close()
        wait_until(lambda: client_count(server) == 0, "all clients are gone")
        self.assertEqual(keyspace_of(server).used_memory, 0)

    def test_input_that_is_not_processed_counts_as_memory(self) -> None:
        server = self.serve(max_memory=10_000_000)
        big, small = b"x" * 1_000_000, b"y" * 10_000
        with new_client(self.name) as cache:
            cache.set("big", big)
        wait_until(lambda: client_count(server) == 0, "the client is gone")
        before = keyspace_of(server).used_memory
        raw = self.raw()
        # The client does not read replies while it sends.
        count = 2000
        sending = Background(
            lambda: raw.send(command(b"GET", b"big") * 20 + command(b"ECHO", small) * count)
        )
        wait_until(lambda: is_inbox_full(server), "the server stops reading")
        used = keyspace_of(server).used_memory
        self.assertTrue(10_000_000 < used < 10_200_000, used)
        expected = b"$%d\r\n%b\r\n" % (len(big), big) * 20
        expected += b"$%d\r\n%b\r\n" % (len(small), small) * count
        self.assertTrue(raw.read(len(expected)) == expected)
        sending.wait()
        raw.close()
        wait_until(lambda: keyspace_of(server).used_memory == before, "all memory is released")

    def test_a_blocked_client_that_sends_too_much(self) -> None:
        server = self.serve(max_memory=5_000_000)
        raw = self.raw()
        with self.assertLogs("pipecache", "INFO") as logs:
            with contextlib.suppress(OSError):  # the server disconnects the client
                raw.send(command(b"BLPOP", b"list", b"0"))
                raw.send(command(b"ECHO", b"y" * 10_000) * 2000)
            wait_until(lambda: client_count(server) == 0, "the client is gone")
        expected = "disconnected: sent more input than can be buffered while it was blocked"
        self.assertIn(expected, "".join(logs.output))
        self.assertEqual(keyspace_of(server).used_memory, 0)

    def test_an_incomplete_command_evicts_keys(self) -> None:
        self.serve(max_memory=5_000_000, policy="allkeys-random")
        with new_client(self.name) as cache:
            for number in range(40):
                cache.set(str(number), "x" * 100_000)
            raw = self.raw()
            data = command(b"SET", b"k", b"y" * 3_000_000)
            raw.send(data[:-10])
            wait_until(lambda: cache.info()["evicted_keys"], "keys are evicted")
            self.assertLess(cache.dbsize(), 40)
            self.assertEqual(raw.ask(data[-10:]), b"+OK\r\n")

    def test_a_lower_limit_evicts_keys_without_commands(self) -> None:
        server = self.serve(policy="allkeys-lru")
        with new_client(self.name) as cache:
            cache.mset({str(number): "x" for number in range(5 * pipecache.KEYS_PER_CYCLE)})
            cache.config_set("maxmemory", "10kb")
            wait_until(
                lambda: keyspace_of(server).used_memory <= 10240, "memory is below the limit"
            )
            self.assertTrue(0 < cache.dbsize() < pipecache.KEYS_PER_CYCLE)


class OverdueTests(unittest.TestCase):
    """The times after which the server drops a client."""

    def setUp(self) -> None:
        self.settings = Settings(idle_timeout=10, message_timeout=20)
        self.client = SilentClient(self.settings)

    def check(self, *reasons: tuple[float, str]) -> None:
        """Check the reason for dropping the client after each number of seconds."""
        for seconds, reason in reasons:
            with self.subTest(seconds=seconds):
                self.assertEqual(self.client.timeout_reason(seconds), reason)

    def test_idle(self) -> None:
        self.check((9.9, ""), (10.1, "idle for longer than --idle-timeout (10 s)"))
        self.client.sends_command(5)
        self.check((14.9, ""))
        self.settings.idle_timeout = 0
        self.check((1e9, ""))

    def test_blocked_and_subscribed_clients_are_not_idle(self) -> None:
        pipecache.execute(self.client.object, [b"SUBSCRIBE", b"news"])
        self.check((1000, ""))
        pipecache.execute(self.client.object, [b"UNSUBSCRIBE"])
        self.assertNotEqual(self.client.timeout_reason(1000), "")
        pipecache.execute(self.client.object, [b"BLPOP", b"list", b"0"])
        self.check((1000, ""))

    def test_a_command_that_does_not_end(self) -> None:
        self.client.begins_command(5)
        self.check((24.9, ""), (25.1, "incomplete command after --message-timeout (20 s)"))
        self.settings.message_timeout = 0
        self.check((1e9, ""))


class TimeTests(ServerCase):
    def serve(self, **options: Any) -> Server:
        patched = mock.patch.object(pipecache, "TIMEOUT_CHECK_INTERVAL", 0.01)
        patched.start()
        self.addCleanup(patched.stop)
        return super().serve(**options)

    def test_silent_clients_are_dropped(self) -> None:
        with self.assertLogs("pipecache", "INFO") as logged:
            self.serve(max_clients=3, idle_timeout=0.2)
            silent = [self.raw() for _ in range(3)]
            for raw in silent:
                self.assertEqual(raw.ask(b"PING\n"), b"PONG\n")
            self.assertEqual(self.raw().ask(b"PING\n"), b"PONG\n")
            for raw in silent:
                self.assertTrue(raw.ended())
            said = "disconnected: idle for longer than --idle-timeout (0.2 s)"
            wait_until(
                lambda: str(logged.output).count(said) >= len(silent), "each client is logged"
            )

    def test_clients_that_never_finish_a_command(self) -> None:
        beginnings = (b"*", b"*2\r\n", b"*2\r\n$3\r\nGET\r\n$5\r\nab")
        with self.assertLogs("pipecache", "INFO") as logged:
            self.serve(message_timeout=0.2)
            bystander = self.raw()
            for beginning in beginnings:
                with self.subTest(beginning=beginning):
                    raw = self.raw()
                    self.assertEqual(raw.ask(command(b"PING") + beginning), b"+PONG\r\n")
                    self.assertTrue(raw.ended())
            self.assertEqual(bystander.ask(b"PING\n"), b"PONG\n")
            said = "disconnected: incomplete command after --message-timeout (0.2 s)"
            wait_until(
                lambda: str(logged.output).count(said) >= len(beginnings), "each client is logged"
            )
        self.assertEqual(str(logged.output).count(said), len(beginnings))

    def test_single_bytes_do_not_prolong_the_timeout(self) -> None:
        self.serve(message_timeout=0.3)
        raw = self.raw()
        raw.send(b"*2\r\n$3\r\nGET\r\n$100000\r\n")
        deadline = time.monotonic() + DEADLINE
        with self.assertRaises(OSError):
            while time.monotonic() < deadline:
                raw.send(b"x")
                time.sleep(0.01)

    def test_time_between_commands_is_not_counted(self) -> None:
        server = self.serve(message_timeout=0.1)
        raw = self.raw()
        for _ in range(3):
            self.assertEqual(raw.ask(command(b"PING")), b"+PONG\r\n")
            looked = mock.Mock(wraps=getattr(server, DROP_OVERDUE))
            with mock.patch.object(server, DROP_OVERDUE, looked):
                wait_until(
                    functools.partial(self.seen, looked),
                    "the server has looked for clients to drop",
                )
        self.assertEqual(raw.ask(command(b"PING")), b"+PONG\r\n")

    @staticmethod
    def seen(looked: mock.Mock) -> bool:
        return looked.call_count > 15

    def test_a_subscriber_stays(self) -> None:
        self.serve(idle_timeout=0.1)
        raw = self.raw()
        self.assertIn(b"subscribe", raw.ask(command(b"SUBSCRIBE", b"news")))
        idle = self.raw()
        self.assertEqual(idle.ask(b"PING\n"), b"PONG\n")
        self.assertTrue(idle.ended())
        with RawConnection(self.name) as publisher:
            self.assertEqual(publisher.ask(b"PUBLISH news hello\n"), b"1\n")
        self.assertIn(b"hello", raw.receive())


if __name__ == "__main__":
    unittest.main()
