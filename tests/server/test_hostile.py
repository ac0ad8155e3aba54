"""Tests with small requests that could cost the server much time or memory."""

from __future__ import annotations

import itertools
import math
import random
import re
import time
import tracemalloc
import unittest
from typing import Any, Callable
from unittest import mock

import client
import pipecache
from pipecache import (
    CommandError,
    ListValue,
    RequestParser,
    Set,
    Settings,
    SortedSet,
    compile_glob,
    execute,
)
from tests.support import (
    WINDOWS,
    Background,
    ServerCase,
    new_client,
    wait_until,
)
from tests.support.cases import ClientCase, PushCase
from tests.support.internals import (
    client_count,
    keyspace_of,
    new_client_object,
    peak_size,
    set_last_command,
    unsubscribing_fails,
)
from tests.support.wire import command

MEGABYTE = 1024 * 1024

#: The class of the server's connections.
TRANSPORT: Any = getattr(pipecache, "PipeConnection" if WINDOWS else "SocketConnection")


def peak_of(work: Callable[[], object]) -> int:
    """Return the peak number of bytes that a call allocates."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


class ProcessorTests(ClientCase):
    """Cheap requests that once took much processor time, during which other clients waited."""

    def test_the_same_option_again_and_again(self) -> None:
        # In quadratic time a hundred thousand options took ten seconds.
        started = time.process_time()
        for words in (
            [b"ZADD", b"z"] + [b"CH"] * 100_000,
            [b"SET", b"k", b"v"] + [b"NX"] * 100_000,
            [b"SCAN", b"0"] + [b"COUNT", b"1"] * 50_000,
        ):
            execute(self.client, words)
        self.assertLess(time.process_time() - started, 2)

    def test_a_pattern_of_stars(self) -> None:
        started = time.process_time()
        for number in range(100):
            test = compile_glob(b"*" * (3900 + number))
            self.assertTrue(test(b"anything"))
        self.assertLess(time.process_time() - started, 2)

    def test_one_of_many_members_by_chance(self) -> None:
        members = [b"%d" % number for number in range(20_000)]
        execute(self.client, [b"SADD", b"s", *members])
        execute(self.client, [b"HSET", b"h", *itertools.chain(*zip(members, members))])
        with mock.patch("random.sample", side_effect=AssertionError("all members were listed")):
            for words in (
                b"SRANDMEMBER s 3", b"SRANDMEMBER s -3", b"HRANDFIELD h 3 WITHVALUES", b"SPOP s 2"
            ):  # fmt: skip
                reply: Any = execute(self.client, words.split())
                self.assertIn(len(reply), (2, 3))
        many: Any = execute(self.client, [b"SRANDMEMBER", b"s", b"15000"])
        self.assertEqual(len(set(many)), 15_000)

    def test_the_patterns_of_one_subscription_together(self) -> None:
        patterns = [b"?*" * 1000 + b"%d" % number for number in range(10)]
        reply = execute(self.client, [b"PSUBSCRIBE", *patterns])
        self.assertIn("the patterns are longer than 16384 bytes in total", str(reply))
        self.assertEqual(self.ask(b"PUBSUB NUMPAT"), b":0\r\n")

    def test_a_literal_between_stars_matches_like_a_class(self) -> None:
        chance = random.Random(3)
        for _ in range(3000):
            pattern = bytes(chance.choices(b"ab*\\", k=chance.randrange(1, 10)))
            key = bytes(chance.choices(b"ab*", k=chance.randrange(8)))
            # A class of one character means the same, but is not matched as a literal.
            other = re.sub(rb"\\?[ab]", lambda match: b"[%b]" % match[0][-1:], pattern)
            found, expected = (bool(compile_glob(each)(key)) for each in (pattern, other))
            self.assertEqual(found, expected, (pattern, key))


class ReplyTests(ClientCase):
    def test_a_transaction_of_long_replies(self) -> None:
        execute(self.client, [b"RPUSH", b"l", *[b""] * 50_000])
        self.client.settings.max_reply = 65536
        self.assertIs(execute(self.client, [b"MULTI"]), pipecache.OK)
        for _ in range(50):
            execute(self.client, [b"LRANGE", b"l", b"0", b"-1"])
        execute(self.client, [b"SET", b"after", b"1"])
        replies: list[Any] = []
        peak = peak_of(lambda: replies.append(execute(self.client, [b"EXEC"])))
        self.assertIn("longer than max-reply", str(replies[0]))
        self.assertLess(peak, 2 * MEGABYTE)  # two of the fifty replies
        self.assertEqual(execute(self.client, [b"GET", b"after"]), b"1")

    def test_many_short_elements_are_measured(self) -> None:
        for reply in ([b""] * 20_000, [None] * 20_000, [1] * 20_000, [[b""]] * 10_000):
            encoded = len(pipecache.encode_resp(reply))
            measured = pipecache.reply_size(reply)
            self.assertGreater(measured, encoded / 2, reply[:1])
            self.assertGreater(measured, 100_000)
        for kind in (pipecache.MultipleReplies, pipecache.Verbatim):
            self.assertIn(kind, pipecache._MEASURED_TYPES)


class SubscriberTests(PushCase):
    def test_one_message_by_many_patterns(self) -> None:
        other, peer = self.join()
        patterns = [b"%b*" % (b"c" * number) for number in range(51)]
        for pattern in patterns:
            execute(other, [b"PSUBSCRIBE", pattern])
        sizes: list[int] = []

        def can_queue(size: int) -> bool:
            sizes.append(peer.pending_bytes)
            return peer.pending_bytes + size < 5 * MEGABYTE

        with mock.patch.object(peer, "can_queue", can_queue):
            peak = peak_of(lambda: execute(self.client, [b"PUBLISH", b"c" * 60, b"x" * MEGABYTE]))
        self.assertEqual(len(sizes), 51)
        self.assertEqual(max(sizes) // MEGABYTE, 4)
        self.assertLess(peak, 12 * MEGABYTE)

    def test_memory_is_short_for_one_subscriber(self) -> None:
        (first, one), (second, two) = self.join(), self.join()
        for each in (first, second):
            execute(each, [b"SUBSCRIBE", b"c"])
        with mock.patch.object(one, "push", side_effect=MemoryError):
            with mock.patch.object(one, "disconnect") as disconnected:
                self.ask(b"PUBLISH c hello")
                self.state.flush()
        disconnected.assert_called_once_with("out of memory for its output buffer")
        self.assertEqual(two.take(), [b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello\r\n"])
        self.assertEqual(self.state.messages(), [])
        self.ask(b"PUBLISH c again")
        self.state.flush()
        self.assertEqual(len(one.take()), 1)


class ServedTests(ServerCase):
    def test_a_turn_ends_when_its_time_is_over(self) -> None:
        self.serve()
        expected = b"+PONG\r\n" * 30
        for turn_time, turns in ((math.inf, 1), (-1.0, 4)):
            raw = self.raw()
            with mock.patch.object(pipecache, "TURN_TIME", turn_time):
                with mock.patch.object(
                    TRANSPORT, "send", autospec=True, side_effect=TRANSPORT.send
                ) as send:
                    raw.send(command(b"PING") * 30)
                    self.assertEqual(raw.read(len(expected)), expected)
            self.assertEqual(send.call_count, turns)

    @unittest.skipIf(WINDOWS, "on a pipe, a message is one text command")
    def test_lines_beyond_a_thousand_are_answered(self) -> None:
        self.serve()
        raw = self.raw()
        sending = Background(lambda: raw.send(b"PING\n" * 30_000))
        self.assertTrue(raw.read(5 * 30_000) == b"PONG\n" * 30_000)
        sending.wait()

    def test_a_subscriber_of_many_patterns_is_dropped(self) -> None:
        server = self.serve(subscriber_buffer=1000)
        raw = self.raw()
        patterns = [b"c" * number + b"*" for number in range(30)]
        raw.ask(command(b"PSUBSCRIBE", *patterns))
        with new_client(self.name) as cache, self.assertLogs("pipecache", "INFO") as logged:
            self.assertEqual(cache.publish("c" * 30, "x" * 500), 30)
            wait_until(lambda: client_count(server) == 1, "the client is dropped")
        expected = "disconnected: output buffer exceeded --subscriber-buffer (1000 bytes)"
        self.assertIn(expected, logged.output[-1])

    def test_a_subscriber_without_replies_receives_messages(self) -> None:
        # A push can wake the client from the moment at which it subscribes.
        self.serve()
        raw = self.raw()
        raw.send(command(b"CLIENT", b"REPLY", b"OFF") + command(b"SUBSCRIBE", b"c"))
        text = b"x" * MEGABYTE
        with new_client(self.name) as cache:
            wait_until(cache.pubsub_channels, "the channel is subscribed")
            for _ in range(5):
                self.assertEqual(cache.publish("c", text), 1)
        expected = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$%d\r\n%b\r\n" % (len(text), text) * 5
        self.assertTrue(raw.read(len(expected)) == expected)

    def test_a_sleeping_client_does_not_block_others(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        raw.send(command(b"DEBUG", b"SLEEP", b"3600"))
        with new_client(self.name) as cache:
            wait_until(lambda: cache.info()["blocked_clients"] == 1, "the client sleeps")
        self.assertEqual(other.ask(b"SET k v\n"), b"OK\n")
        short = self.raw()
        self.assertEqual(short.ask(b"DEBUG SLEEP 0.001\n"), b"OK\n")

    def test_a_fault_while_sweeping(self) -> None:
        with mock.patch.object(pipecache, "EXPIRE_INTERVAL", 0.001):
            server = self.serve()
        with self.assertLogs("pipecache", "ERROR") as logged:
            with mock.patch.object(keyspace_of(server), "remove_expired", side_effect=MemoryError):
                wait_until(lambda: logged.output, "the error is logged")
        with new_client(self.name) as cache:
            cache.set("short", "1", px=1)
            wait_until(lambda: cache.info()["expired_keys"], "the key expires")

    def test_memory_is_short_when_a_client_leaves(self) -> None:
        server = self.serve()
        raw = self.raw()
        raw.ask(command(b"PING"))
        with unsubscribing_fails(MemoryError):
            with self.assertLogs("pipecache", "ERROR") as logged:
                raw.send(command(b"QUIT"))
                self.assertEqual(raw.read(5), b"+OK\r\n")
                self.assertTrue(raw.ended())  # the connection is closed nevertheless
                wait_until(lambda: logged.output, "the error is logged")
        self.assertEqual(self.raw().ask(command(b"PING")), b"+PONG\r\n")
        self.assertTrue(server.stop())

    def test_a_setting_that_is_not_a_size(self) -> None:
        self.serve()
        with new_client(self.name) as cache:
            for value in ("9" * 400, "9" * 19, "99999999999999gb", "9" * 1_000_000):
                with self.assertRaises(client.ResponseError):
                    cache.config_set("maxmemory", value)
            cache.config_set("maxmemory", "1234567890123")
            self.assertEqual(cache.config_get("maxmemory"), {"maxmemory": "1234567890123"})
            self.assertEqual(cache.info("limits")["maxmemory"], 1234567890123)

    def test_a_program_whose_name_has_lines(self) -> None:
        client = new_client_object()
        with mock.patch.object(type(client), "process", lambda _: (7, "/tmp/a\n2026 INFO forged")):
            self.assertEqual(client.describe(), "process 7, '/tmp/a\\n2026 INFO forged'")


class KeptTests(PushCase):
    """Data that the server keeps for a client counts as memory, and is limited."""

    def setUp(self) -> None:
        super().setUp()
        self.free = mock.patch.object(pipecache, "MEMORY_CHECK_THRESHOLD", 10_000)
        self.free.start()
        self.addCleanup(self.free.stop)

    def test_memory_of_clients_is_counted_and_released(self) -> None:
        names = [b"name%d" % number for number in range(100)]
        least = sum(map(len, names)) + 100 * 300
        for begin, end in (
            ([b"SUBSCRIBE", *names], [b"UNSUBSCRIBE"]),
            ([b"PSUBSCRIBE", *names], [b"PUNSUBSCRIBE", *names, *names]),
            ([b"WATCH", *names], [b"UNWATCH"]),
            ([b"SUBSCRIBE", *names], [b"RESET"]),
        ):
            with self.subTest(command=begin[0]):
                execute(self.client, begin)
                self.assertGreater(self.keyspace.used_memory, least)
                execute(self.client, begin)  # a repetition takes no more memory
                execute(self.client, end)
                self.assertEqual(self.keyspace.used_memory, 0)
        for begin in ([b"BLPOP", *names, b"0"], [b"SUBSCRIBE", *names], [b"WATCH", *names]):
            joined, _ = self.join()
            execute(joined, begin)
            self.assertGreater(self.keyspace.used_memory, least)
            self.state.disconnect(joined)
            self.assertEqual(self.keyspace.used_memory, 0)

    def test_memory_of_clients_is_limited(self) -> None:
        self.keyspace.memory_limit = 50_000
        names = [b"name%d" % number for number in range(1000)]
        for words in (
            [b"SUBSCRIBE", *names], [b"PSUBSCRIBE", *names], [b"WATCH", *names],
            [b"BLPOP", *names, b"0"],
        ):  # fmt: skip
            with self.subTest(command=words[0]):
                self.assertIn("OOM", str(execute(self.client, words)))
                self.assertEqual(self.keyspace.used_memory, 0)
        # A small request is accepted even without memory, but not many of them.
        self.keyspace.memory_limit = 0
        replies = [execute(self.client, [b"SUBSCRIBE", name]) for name in names]
        self.assertNotIn("OOM", str(replies[0]))
        self.assertIn("OOM", str(replies[-1]))
        self.assertLess(self.keyspace.used_memory, 12_000)

    def test_a_transaction_of_small_commands(self) -> None:
        execute(self.client, [b"MULTI"])
        for _ in range(100):
            execute(self.client, [b"PING"])
        self.assertGreater(self.keyspace.used_memory, 100 * 200)

    def test_names(self) -> None:
        for words in (
            [b"CLIENT", b"SETNAME", b"x" * 1025], [b"CLIENT", b"SETINFO", b"LIB-NAME", b"x" * 2000],
            [b"HELLO", b"3", b"SETNAME", b"x" * 2000],
        ):  # fmt: skip
            self.assertIn("longer than 1024", str(execute(self.client, words)))
        self.assertIs(execute(self.client, [b"CLIENT", b"SETNAME", b"x" * 1024]), pipecache.OK)

    def test_the_name_of_no_command(self) -> None:
        other, _ = self.join()
        for name, told in ((b"get", b"get"), (b"x y user=evil", b"NULL"), (b"\xff", b"NULL")):
            set_last_command(self.client, name)
            shown = self.ask(b"CLIENT LIST ID %d" % self.client.id, other)
            self.assertIn(b" cmd=%b user=default " % told, shown)

    def test_a_monitor_shows_a_part_of_a_long_argument(self) -> None:
        other, peer = self.join()
        execute(other, [b"MONITOR"])
        long = b"\xff" * 10 * MEGABYTE
        peak = peak_of(lambda: execute(self.client, [b"ECHO", long]))
        self.state.flush()
        (told,) = peer.take()
        self.assertIn(b'\\xff..."\r\n', told)
        self.assertLess(len(told), 5000)
        self.assertLess(peak, MEGABYTE)


class CollectionTests(ClientCase):
    """A collection releases the memory of removed members."""

    def test_most_members_are_removed(self) -> None:
        members = [b"%d" % number for number in range(50_000)]
        scored = list(itertools.chain(*((b"1", member) for member in members)))
        fields = list(itertools.chain(*((member, b"") for member in members)))
        for add, take in (
            ([b"SADD", b"k", *members], [b"SREM", b"k", *members[1:]]),
            ([b"HSET", b"k", *fields], [b"HDEL", b"k", *members[1:]]),
            ([b"ZADD", b"k", *scored], [b"ZREM", b"k", *members[1:]]),
        ):
            with self.subTest(command=add[0]):
                tracemalloc.start()
                self.addCleanup(tracemalloc.stop)
                before, _ = tracemalloc.get_traced_memory()
                self.assertEqual(execute(self.client, add), 50_000)
                self.assertEqual(execute(self.client, take), 49_999)
                after, _ = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                self.assertLess(after - before, 300_000)
                self.assertEqual(len(self.keyspace.peek(b"k")), 1)
                execute(self.client, [b"DEL", b"k"])

    def test_random_choices_do_not_hold_removed_members(self) -> None:
        def members(start: int) -> list[bytes]:
            return [b"%d" % number + b"x" * 100_000 for number in range(start, 40)]

        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        execute(self.client, [b"SADD", b"s", *members(0)])
        execute(self.client, [b"SRANDMEMBER", b"s"])
        execute(self.client, [b"SREM", b"s", *members(1)])
        kept, _ = tracemalloc.get_traced_memory()
        self.assertLess(kept, MEGABYTE)
        self.assertEqual(execute(self.client, [b"SRANDMEMBER", b"s"]), members(0)[0])

    def test_a_walk_goes_on_while_it_shrinks(self) -> None:
        for kind in (Set, SortedSet):
            value: Any = kind()
            table = value if kind is Set else value.scores
            for number in range(1000):
                value.put(b"%d" % number, b"" if kind is Set else 1.0)
            value.shrink()
            staying = {b"%d" % number for number in range(0, 1000, 10)}
            cursor, seen = table.scan(0, 100)
            for number in range(1000):
                if b"%d" % number not in staying:
                    value.remove(b"%d" % number)
                    value.shrink()
            found = set(seen)
            while cursor:
                cursor, more = table.scan(cursor, 30)
                found.update(more)
            self.assertLessEqual(staying, found)
        ListValue([b"a"]).shrink()

    def test_deleted_keys(self) -> None:
        for number in range(1000):
            self.keyspace.replace(b"%d" % number, b"")
        self.keyspace.remove_expired(0)
        for number in range(1, 1000):
            self.keyspace.delete(b"%d" % number)
        self.keyspace.remove_expired(0)
        self.assertEqual(peak_size(self.keyspace), 1)
        self.assertEqual(self.keyspace.keys(), [b"0"])


class ParserTests(unittest.TestCase):
    def test_a_chunk_gives_a_thousand_requests_at_most(self) -> None:
        parser = RequestParser(False, Settings())
        requests = parser.feed(b"\n" * 32_768)
        self.assertEqual(len(requests), pipecache.MAX_PARSED_REQUESTS)
        self.assertTrue(parser.has_more)
        count = len(requests)
        while parser.has_more:
            requests = parser.feed(b"")
            self.assertLessEqual(len(requests), pipecache.MAX_PARSED_REQUESTS)
            count += len(requests)
        self.assertEqual((count, parser.buffered_bytes), (32_768, 0))

    def test_an_error_has_no_traceback(self) -> None:
        ((error, _),) = RequestParser(False, Settings()).feed(b'GET "x\n')
        assert isinstance(error, CommandError)
        self.assertIsNone(error.__traceback__)


class TextErrorTests(ClientCase):
    def test_errors_obey_client_reply(self) -> None:
        error = CommandError("ERR Unbalanced quotes in the command")
        self.assertIs(execute(self.client, error), error)
        execute(self.client, [b"CLIENT", b"REPLY", b"OFF"])
        self.assertIs(execute(self.client, error), pipecache.NO_REPLY)
        execute(self.client, [b"CLIENT", b"REPLY", b"ON"])
        self.assertIs(execute(self.client, error), error)

    def test_an_error_aborts_a_transaction(self) -> None:
        execute(self.client, [b"MULTI"])
        execute(self.client, CommandError("ERR Unbalanced quotes in the command"))
        self.assertIn("EXECABORT", str(execute(self.client, [b"EXEC"])))


class NumberTests(ClientCase):
    def test_decimals_beyond_what_redis_has(self) -> None:
        for number in (b"1e4933", b"1e9999", b"-1e9999"):
            for words in ([b"INCRBYFLOAT", b"f", number], [b"HINCRBYFLOAT", b"h", b"f", number]):
                self.assertIn("not a valid float", str(execute(self.client, words)))
        self.assertEqual(execute(self.client, [b"EXISTS", b"f", b"h"]), 0)

    def test_decimals_of_many_digits(self) -> None:
        for exponent in (10, 3999, 4000, 4001, 4900):
            reply: Any = execute(
                self.client, [b"INCRBYFLOAT", b"%d" % exponent, b"1e%d" % exponent]
            )
            magnitude = len(reply) - 10 + math.log10(float(reply[:10]))
            self.assertAlmostEqual(magnitude, exponent)

    def test_a_value_that_grows_beyond_the_memory(self) -> None:
        self.keyspace.memory_limit = 10_000_000
        for key, offset, expected in (
            (b"k", b"20000000", "OOM"), (b"k", b"5000000", "5000001"), (b"k", b"20000000", "OOM"),
            (b"l", b"9000000", "OOM"),
        ):  # fmt: skip
            self.assertIn(expected, str(execute(self.client, [b"SETRANGE", key, offset, b"x"])))
        self.keyspace.policy = "allkeys-lru"
        self.assertEqual(execute(self.client, [b"SETRANGE", b"l", b"9000000", b"x"]), 9_000_001)
        self.assertEqual(self.keyspace.evicted, 1)


if __name__ == "__main__":
    unittest.main()
