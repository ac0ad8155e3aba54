"""Tests of MULTI, EXEC and WATCH."""

from __future__ import annotations

import functools
import math
import threading
import unittest
from typing import Callable, Iterable, Tuple

from pipecache import NULL_ARRAY, WATCH_COST, Server, Watch
from tests.support import (
    DEADLINE,
    WINDOWS,
    Conversation,
    ConversationCase,
    RawConnection,
    new_client,
    redis_address,
    unique_name,
    wait_until,
)
from tests.support.cases import ClientCase
from tests.support.internals import keyspace_of, watched_keys
from tests.support.wire import (
    ABORTED,
    EMPTY,
    NIL_ARRAY,
    NO_MULTI,
    NOT_AN_INTEGER,
    OK,
    PONG,
    QUEUED,
    RESET,
    SYNTAX,
    array,
    bulk,
    command,
    unknown_command,
    unknown_subcommand,
    wrong_arity,
)

#: The commands before a client watches the key k, and the commands of another client after that;
#: separated by semicolons.
Change = Tuple[bytes, bytes]

#: A command and the reply.
Line = Tuple[bytes, bytes]

BREAKS: tuple[Change, ...] = (
    # Strings
    (b"", b"SET k v"),
    (b"SET k v", b"SET k w"),
    (b"SET k v", b"SET k v"),
    (b"SET k v", b"SET k v KEEPTTL"),
    (b"SET k v", b"SET k v XX GET"),
    (b"SETEX k 100 v", b"SET k v"),
    (b"", b"SETNX k v"),
    (b"", b"SETEX k 100 v"),
    (b"SET k v", b"GETSET k v"),
    (b"SET k v", b"GETDEL k"),
    (b"SET k v", b"APPEND k x"),
    (b"SET k v", b"SETRANGE k 0 v"),
    (b"SET k v", b"MSET other x k v"),
    (b"", b"MSETNX other x k v"),
    (b"SET k 1", b"INCR k"),
    (b"SET k 1", b"INCRBY k 0"),
    (b"SET k 1", b"INCRBYFLOAT k 0"),
    # Keys
    (b"SET k v", b"DEL k"),
    (b"SET k v", b"UNLINK other k"),
    (b"SET k v", b"RENAME k other"),
    (b"SET other v", b"RENAME other k"),
    (b"SET k v;SET other v", b"RENAME other k"),
    (b"SET other v", b"RENAMENX other k"),
    (b"SET other v", b"COPY other k"),
    (b"SET k v;SET other v", b"COPY other k REPLACE"),
    (b"SET k v", b"FLUSHALL"),
    (b"SET k v", b"FLUSHDB ASYNC"),
    # Times to live
    (b"SET k v", b"EXPIRE k 100"),
    (b"SET k v", b"PEXPIREAT k 4000000000000"),
    (b"SETEX k 100 v", b"EXPIRE k 100"),
    (b"SET k v", b"EXPIRE k -1"),
    (b"SETEX k 100 v", b"PERSIST k"),
    (b"SET k v", b"GETEX k EX 100"),
    (b"SETEX k 100 v", b"GETEX k PERSIST"),
    # Lists
    (b"", b"RPUSH k a"),
    (b"RPUSH k a", b"LPUSH k b"),
    (b"RPUSH k a", b"LPUSHX k b"),
    (b"RPUSH k a b", b"LPOP k"),
    (b"RPUSH k a", b"RPOP k 5"),
    (b"RPUSH k a", b"LSET k 0 a"),
    (b"RPUSH k a", b"LINSERT k BEFORE a b"),
    (b"RPUSH k a", b"LREM k 0 a"),
    (b"RPUSH k a", b"LTRIM k 0 -1"),
    (b"RPUSH k a b", b"LMOVE k other LEFT LEFT"),
    (b"RPUSH other a b", b"LMOVE other k LEFT LEFT"),
    (b"RPUSH k a", b"RPOPLPUSH k k"),
    (b"RPUSH k a", b"LMPOP 2 other k LEFT"),
    # Hashes
    (b"", b"HSET k f v"),
    (b"HSET k f v", b"HSET k f v"),
    (b"HSET k f v", b"HMSET k f v"),
    (b"HSET k f v", b"HSETNX k g v"),
    (b"HSET k f v", b"HDEL k f"),
    (b"HSET k f 1", b"HINCRBY k f 0"),
    (b"HSET k f 1", b"HINCRBYFLOAT k f 0"),
    # Sets
    (b"", b"SADD k a"),
    (b"SADD k a", b"SADD k a b"),
    (b"SADD k a", b"SREM k a"),
    (b"SADD k a", b"SPOP k"),
    (b"SADD k a", b"SPOP k 5"),
    (b"SADD k a", b"SMOVE k other a"),
    (b"SADD other a", b"SMOVE other k a"),
    (b"SADD k a", b"SINTERSTORE k none"),
    (b"SADD k a", b"SUNIONSTORE k k"),
    (b"SADD other a", b"SDIFFSTORE k other"),
    # Sorted sets
    (b"", b"ZADD k 1 a"),
    (b"ZADD k 1 a", b"ZADD k 2 a"),
    (b"ZADD k 1 a", b"ZINCRBY k 1 a"),
    (b"ZADD k 1 a", b"ZREM k a"),
    (b"ZADD k 1 a", b"ZPOPMIN k"),
    (b"ZADD k 1 a", b"ZPOPMAX k 5"),
    (b"ZADD k 1 a", b"ZREMRANGEBYRANK k 0 0"),
    (b"ZADD k 1 a", b"ZREMRANGEBYSCORE k 0 5"),
    # Another transaction; a change that is reverted
    (b"SET k v", b"MULTI;SET k w;EXEC"),
    (b"SET k v", b"DEL k;SET k v"),
)

KEEPS: tuple[Change, ...] = (
    # Commands that only read
    *((b"SET k v", line) for line in (b"GET k", b"MGET k", b"TTL k", b"TOUCH k", b"TYPE k")),
    *((b"SET k v", line) for line in (b"GETEX k", b"EXISTS k", b"SCAN 0", b"OBJECT ENCODING k")),
    (b"SADD k a", b"SUNION k k"),
    (b"RPUSH k a", b"LRANGE k 0 -1"),
    # Commands that change another key
    (b"SET k v;SET other v", b"DEL other"),
    (b"SET k v", b"COPY k other"),
    (b"SADD k a", b"SUNIONSTORE other k"),
    # Commands that change nothing
    (b"", b"DEL k"),
    (b"", b"FLUSHALL"),
    (b"", b"GETDEL k"),
    (b"", b"EXPIRE k 100"),
    (b"", b"GETEX k EX 100"),
    (b"", b"SET k v XX"),
    (b"SET k v", b"SET k w NX"),
    (b"SET k v", b"SET k w NX GET"),
    (b"SET k v", b"SETNX k w"),
    (b"SET k v", b"MSETNX other x k v"),
    (b"SET k v", b"RENAME k k"),
    (b"SET k v", b"RENAMENX k k"),
    (b"SET k v;SET other w", b"RENAMENX other k"),
    (b"SET k v;SET other w", b"COPY other k"),
    (b"SET k v", b"PERSIST k"),
    (b"SET k v", b"GETEX k PERSIST"),
    (b"SETEX k 100 v", b"EXPIRE k 100 NX"),
    (b"SETEX k 100 v", b"EXPIRE k 10 GT"),
    (b"", b"LPOP k"),
    (b"", b"LPOP k 1"),
    (b"RPUSH k a", b"LPOP k 0"),
    (b"RPUSH k a", b"RPOP k 0"),
    (b"", b"LPUSHX k a"),
    (b"RPUSH k a", b"LINSERT k BEFORE none b"),
    (b"RPUSH k a", b"LREM k 0 none"),
    (b"", b"LMPOP 1 k LEFT"),
    (b"HSET k f v", b"HSETNX k f w"),
    (b"HSET k f v", b"HDEL k none"),
    (b"SADD k a", b"SADD k a"),
    (b"SADD k a", b"SREM k none"),
    (b"SADD k a", b"SPOP k 0"),
    (b"", b"SPOP k"),
    (b"SADD k a", b"SMOVE k other none"),
    (b"SADD k a", b"SMOVE k k a"),
    (b"SADD k a;SADD other a", b"SMOVE other k a"),
    (b"", b"SINTERSTORE k none"),
    (b"ZADD k 1 a", b"ZADD k 1 a"),
    (b"ZADD k 1 a", b"ZADD k XX 1 none"),
    (b"ZADD k 1 a", b"ZADD k NX 2 a"),
    (b"ZADD k 1 a", b"ZADD k GT 0 a"),
    (b"ZADD k 1 a", b"ZINCRBY k 0 a"),
    (b"ZADD k 1 a", b"ZREM k none"),
    (b"ZADD k 1 a", b"ZPOPMIN k 0"),
    (b"ZADD k 1 a", b"ZREMRANGEBYRANK k 5 6"),
    (b"ZADD k 1 a", b"ZREMRANGEBYSCORE k 5 6"),
    # Commands that fail
    (b"SET k v", b"INCR k"),
    (b"SET k v", b"LPUSH k a"),
    (b"SET k v", b"SET k w NX XX"),
    (b"HSET k f v", b"HINCRBY k f 1"),
    (b"RPUSH k a", b"LSET k 5 b"),
    # Another transaction that is aborted
    (b"SET k v", b"MULTI;SET k w;DISCARD"),
    (b"SET k v", b"MULTI;SET k w;RESET"),
    (b"SET k v", b"MULTI;SET k w;NOSUCH;EXEC"),
    (b"SET k v", b"WATCH k;SET k2 v;MULTI;EXEC"),
)

#: Conversations of one client.
CONVERSATIONS: dict[str, tuple[Line, ...]] = {
    "commands": (
        (b"EXEC", NO_MULTI),
        (b"DISCARD", b"-ERR DISCARD without MULTI\r\n"),
        (b"MULTI", OK),
        (b"SET k v", QUEUED),
        (b"DISCARD", OK),
        (b"EXISTS k", b":0\r\n"),
        (b"MULTI", OK),
        (b"SET k v", QUEUED),
        (b"INCR k", QUEUED),
        (b"GET k", QUEUED),
        (b"EXEC", array(OK, NOT_AN_INTEGER, bulk(b"v"))),
        (b"MULTI", OK),
        (b"SET k w", QUEUED),
        (b"FOO", unknown_command(b"FOO")),
        (b"EXEC", ABORTED),
        (b"MULTI", OK),
        (b"GET", wrong_arity(b"get")),
        (b"EXEC", ABORTED),
        (b"MULTI", OK),
        (b"EXEC", EMPTY),
        (b"WATCH k", OK),
        (b"SET k x", OK),
        (b"MULTI", OK),
        (b"SET k y", QUEUED),
        (b"EXEC", NIL_ARRAY),
        (b"GET k", bulk(b"x")),
        (b"WATCH k", OK),
        (b"SET k x", OK),
        (b"UNWATCH", OK),
        (b"MULTI", OK),
        (b"EXEC", EMPTY),
    ),
    "errors before EXEC": (
        (b"MULTI", OK),
        (b"SET k", wrong_arity(b"set")),
        (b"SET k v", QUEUED),
        (b"EXEC", ABORTED),
        (b"MULTI", OK),
        (b"CLIENT NOSUCH", unknown_subcommand(b"CLIENT", b"NOSUCH")),
        (b"EXEC", ABORTED),
        (b"EXISTS k", b":0\r\n"),
        (b"EXEC", NO_MULTI),
        # These errors do not abort the transaction.
        (b"MULTI", OK),
        (b"MULTI", b"-ERR MULTI calls can not be nested\r\n"),
        (b"WATCH k", b"-ERR WATCH inside MULTI is not allowed\r\n"),
        (b"PING", QUEUED),
        (b"EXEC", b"*1\r\n" + PONG),
        # A wrong EXEC ends the transaction; a wrong DISCARD does not.
        (b"MULTI", OK),
        (
            b"EXEC now",
            b"-EXECABORT Transaction discarded because of: "
            b"wrong number of arguments for 'exec' command\r\n",
        ),
        (b"EXEC", NO_MULTI),
        (b"MULTI", OK),
        (b"DISCARD now", wrong_arity(b"discard")),
        (b"EXEC", ABORTED),
    ),
    "errors inside": (
        (b"MULTI", OK),
        (b"SET k v", QUEUED),
        (b"LPUSH k e", QUEUED),
        (b"SET k w NX XX", QUEUED),
        (b"EXPIRE k x", QUEUED),
        (b"HSET k f", wrong_arity(b"hset")),
        (b"DISCARD", OK),
        (b"MULTI", OK),
        (b"SET k v", QUEUED),
        (b"LPUSH k e", QUEUED),
        (b"SET k w NX XX", QUEUED),
        (b"EXPIRE k x", QUEUED),
        (b"SELECT 1", QUEUED),
        (b"APPEND k w", QUEUED),
        (
            b"EXEC",
            b"*6\r\n"
            + OK
            + b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
            + SYNTAX
            + b"-ERR value is not an integer or out of range\r\n"
            + b"-ERR DB index is out of range\r\n"
            + b":2\r\n",
        ),
        (b"GET k", b"$2\r\nvw\r\n"),
    ),
    "a watch of one's own": (
        (b"WATCH k", OK),
        (b"SET k v", OK),
        (b"MULTI", OK),
        (b"EXEC", NIL_ARRAY),
        # EXEC ends the watch, even if the transaction is aborted.
        (b"MULTI", OK),
        (b"PING", QUEUED),
        (b"EXEC", b"*1\r\n" + PONG),
        (b"WATCH k", OK),
        (b"SET k v", OK),
        (b"MULTI", OK),
        (b"NOSUCH", unknown_command(b"NOSUCH")),
        (b"EXEC", ABORTED),
        (b"MULTI", OK),
        (b"EXEC", EMPTY),
        # DISCARD and UNWATCH end the watch.
        (b"WATCH k none", OK),
        (b"SET k v", OK),
        (b"MULTI", OK),
        (b"DISCARD", OK),
        (b"MULTI", OK),
        (b"EXEC", EMPTY),
        (b"WATCH k", OK),
        (b"SET k v", OK),
        (b"UNWATCH", OK),
        (b"MULTI", OK),
        (b"EXEC", EMPTY),
        # A second WATCH adds to the first.
        (b"WATCH k", OK),
        (b"SET k v", OK),
        (b"WATCH k none", OK),
        (b"MULTI", OK),
        (b"EXEC", NIL_ARRAY),
        # A queued command does not break a watch.
        (b"WATCH k", OK),
        (b"MULTI", OK),
        (b"SET k w", QUEUED),
        (b"UNWATCH", QUEUED),
        (b"EXEC", b"*2\r\n" + OK + OK),
    ),
    "RESET": (
        (b"WATCH k", OK),
        (b"SET k v", OK),
        (b"MULTI", OK),
        (b"SET k w", QUEUED),
        (b"RESET", RESET),
        (b"EXEC", NO_MULTI),
        (b"GET k", b"$1\r\nv\r\n"),
        (b"MULTI", OK),
        (b"EXEC", EMPTY),
    ),
}


class ConversationTests(ConversationCase):
    """Tests with two clients, over connections."""

    def setUp(self) -> None:
        super().setUp()
        self.clients = [self.connect(), self.connect()]

    def each(self, changes: Iterable[Change], expected: bytes) -> None:
        watching, other = self.clients
        for before, change in changes:
            with self.subTest(before=before, change=change):
                for line in [b"FLUSHALL", *before.split(b";")]:
                    if line:
                        self.assertFalse(other.ask(*line.split()).startswith(b"-"), line)
                self.assertEqual(watching.ask(b"WATCH", b"none", b"k"), OK)
                for line in change.split(b";"):
                    other.ask(*line.split())
                self.assertEqual(watching.ask(b"MULTI"), OK)
                self.assertEqual(watching.ask(b"PING"), QUEUED)
                self.assertEqual(watching.ask(b"EXEC"), expected)

    def test_changes_that_break_a_watch(self) -> None:
        self.each(BREAKS, NIL_ARRAY)

    def test_commands_that_do_not_break_a_watch(self) -> None:
        self.each(KEEPS, b"*1\r\n" + PONG)

    def test_a_member_without_bytes(self) -> None:
        watching, other = self.clients
        for put, take in (
            ((b"RPUSH", b"k", b""), b"LPOP"),
            ((b"SADD", b"k", b""), b"SPOP"),
            ((b"ZADD", b"k", b"1", b""), b"ZPOPMIN"),
        ):
            with self.subTest(take=take):
                self.assertEqual(other.ask(b"FLUSHALL"), OK)
                self.assertEqual(other.ask(*put), b":1\r\n")
                self.assertEqual(watching.ask(b"WATCH", b"k"), OK)
                other.ask(take, b"k")
                self.assertEqual(other.ask(b"EXISTS", b"k"), b":0\r\n")
                self.assertEqual(watching.ask(b"MULTI"), OK)
                self.assertEqual(watching.ask(b"EXEC"), NIL_ARRAY)

    def test_a_key_that_expires(self) -> None:
        watching, other = self.clients
        self.assertEqual(other.ask(b"PSETEX", b"k", b"200", b"v"), OK)
        self.assertEqual(watching.ask(b"WATCH", b"k"), OK)
        wait_until(lambda: other.ask(b"EXISTS", b"k") == b":0\r\n", "the key has expired")
        self.assertEqual(watching.ask(b"MULTI"), OK)
        # On a slow machine the key may have expired before WATCH.
        self.assertIn(watching.ask(b"EXEC"), (NIL_ARRAY, EMPTY))

    def test_conversations_of_one_client(self) -> None:
        for title, lines in CONVERSATIONS.items():
            self.clients[1].ask(b"FLUSHALL")
            for number, (line, expected) in enumerate(lines):
                with self.subTest(title, number=number, line=line):
                    self.assertEqual(self.clients[0].ask(*line.split()), expected)

    def test_quit(self) -> None:
        watching, other = self.clients
        self.assertEqual(watching.ask(b"WATCH", b"k"), OK)
        self.assertEqual(watching.ask(b"MULTI"), OK)
        self.assertEqual(watching.ask(b"SET", b"k", b"v"), QUEUED)
        self.assertEqual(watching.ask(b"QUIT"), OK)
        self.assertTrue(watching.raw.ended())
        self.assertEqual(other.ask(b"EXISTS", b"k"), b":0\r\n")

    def test_each_client_has_its_own_queue(self) -> None:
        one, other = self.clients
        self.assertEqual(one.ask(b"MULTI"), OK)
        self.assertEqual(one.ask(b"SET", b"k", b"v"), QUEUED)
        self.assertEqual(other.ask(b"EXEC"), NO_MULTI)
        self.assertEqual(other.ask(b"GET", b"k"), b"$-1\r\n")
        self.assertEqual(one.ask(b"EXEC"), b"*1\r\n" + OK)
        self.assertEqual(other.ask(b"GET", b"k"), b"$1\r\nv\r\n")

    def in_threads(self, *works: Callable[[Conversation], object]) -> None:
        """Run all of these at the same time, each with its own connection."""
        failures: list[BaseException] = []

        def work(this: Callable[[Conversation], object], conversation: Conversation) -> None:
            try:
                this(conversation)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(this, self.connect())) for this in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual(failures, [])

    def test_no_client_sees_half_a_transaction(self) -> None:
        """No client sees one of two changes of a transaction, in or outside a transaction."""

        def add(conversation: Conversation, number: bytes) -> None:
            for _ in range(100):
                for line in ((b"MULTI",), (b"INCRBY", b"a", number), (b"INCRBY", b"b", number)):
                    conversation.ask(*line)
                size, a, b, _ = conversation.ask(b"EXEC").split(b"\r\n")
                self.assertEqual((size, a), (b"*2", b))

        def look(conversation: Conversation) -> None:
            for _ in range(200):
                _, _, a, _, b, _ = conversation.ask(b"MGET", b"a", b"b").split(b"\r\n")
                self.assertEqual(a, b)

        self.clients[0].ask(b"MSET", b"a", b"0", b"b", b"0")
        adding = [functools.partial(add, number=number) for number in (b"1", b"2", b"-3")]
        self.in_threads(*adding, *adding, look, look)
        self.assertEqual(self.clients[0].ask(b"GET", b"a"), b"$1\r\n0\r\n")

    def test_a_counter_with_watch_loses_nothing(self) -> None:
        """Read, and write unless another client has written meanwhile; otherwise try again."""

        def count(conversation: Conversation) -> None:
            done = 0
            while done < 50:
                conversation.ask(b"WATCH", b"n")
                seen = conversation.ask(b"GET", b"n").split(b"\r\n")[1]
                conversation.ask(b"MULTI")
                conversation.ask(b"SET", b"n", b"%d" % (int(seen) + 1))
                done += conversation.ask(b"EXEC") != NIL_ARRAY

        self.clients[0].ask(b"SET", b"n", b"0")
        self.in_threads(*[count] * 4)
        self.assertEqual(self.clients[0].ask(b"GET", b"n"), b"$3\r\n200\r\n")


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class RedisConversationTests(ConversationTests):
    """The same tables on redis-server, which proves the tables."""

    def serve(self) -> str:
        return redis_address(self)


class WatchTests(ClientCase):
    """Tests without a server, on a clock that the test sets."""

    def setUp(self) -> None:
        super().setUp()
        self.other = self.state.connect()

    def broken(self) -> bool:
        """Return True if EXEC is aborted; in any case the watch is ended."""
        self.assertEqual(self.ask(b"MULTI"), OK)
        reply = self.run_command(b"EXEC")
        self.assertIn(reply, ([], NULL_ARRAY))
        return reply is NULL_ARRAY

    def test_a_key_that_expires_unseen(self) -> None:
        self.ask(b"PSETEX k 100 v")
        self.ask(b"WATCH k")
        self.clock.now += 0.099
        self.assertFalse(self.broken())
        self.ask(b"WATCH k")
        self.clock.now += 0.001
        self.assertTrue(self.broken())

    def test_a_key_that_expires_before_it_is_watched(self) -> None:
        self.ask(b"PSETEX k 100 v")
        self.clock.now += 1
        self.ask(b"WATCH k")
        self.assertFalse(self.broken())

    def test_an_expired_key_breaks_a_watch_whoever_notices(self) -> None:
        for notice in (b"GET k", b"EXISTS k", b"SET k v", b"KEYS *", b"SCAN 0", b"RANDOMKEY"):
            with self.subTest(notice=notice):
                self.ask(b"FLUSHALL")
                self.ask(b"PSETEX k 100 v")
                self.ask(b"WATCH k")
                self.clock.now += 1
                self.ask(notice, self.other)
                self.assertTrue(self.broken())
        self.ask(b"PSETEX k 100 v")
        self.ask(b"WATCH k")
        self.clock.now += 1
        self.keyspace.remove_expired(10)
        self.assertTrue(self.broken())

    def test_a_key_that_is_evicted(self) -> None:
        for policy in ("allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"):
            with self.subTest(policy=policy):
                self.ask(b"SETEX k 100 v")
                self.ask(b"WATCH k")
                self.keyspace.policy = policy
                self.keyspace.memory_limit = WATCH_COST + 10
                self.keyspace.free_memory()
                self.assertTrue(self.broken())
                self.keyspace.memory_limit = math.inf

    def test_a_transaction_evicts_what_it_watches(self) -> None:
        """As in Redis, EXEC evicts keys before it checks the watch."""
        self.keyspace.policy = "allkeys-lru"
        self.ask(b"SET k v")
        self.ask(b"WATCH k")
        self.ask(b"MULTI")
        self.ask(b"SET other v")
        self.keyspace.memory_limit = self.keyspace.used_memory - 1
        self.assertIs(self.run_command(b"EXEC"), NULL_ARRAY)

    def test_a_watch_is_removed_completely(self) -> None:
        for number, end in enumerate((b"EXEC", b"DISCARD", b"UNWATCH", b"RESET", b"EXEC now")):
            with self.subTest(end=end):
                self.ask(b"WATCH a b c")
                self.ask(b"WATCH b d")
                self.ask(b"WATCH b", self.other)
                if number % 2 == 0:
                    self.ask(b"SET b v")
                if end != b"UNWATCH":
                    self.ask(b"MULTI")
                self.ask(end)
                self.assertEqual(watched_keys(self.keyspace), {b"b": 1})
                self.ask(b"UNWATCH", self.other)
                self.assertEqual(watched_keys(self.keyspace), {})

    def test_a_client_that_leaves_ends_its_watches(self) -> None:
        self.ask(b"WATCH a b")
        self.ask(b"MULTI")
        self.ask(b"SET a v")
        self.state.disconnect(self.client)
        self.assertEqual(watched_keys(self.keyspace), {})

    def test_two_that_watch_one_key(self) -> None:
        third = self.state.connect()
        for client in (self.client, self.other):
            self.ask(b"WATCH k", client)
            self.ask(b"MULTI", client)
            self.ask(b"SET k v", client)
        self.assertEqual(self.ask(b"EXEC", self.other), b"*1\r\n" + OK)
        self.assertEqual(self.ask(b"EXEC", self.client), NIL_ARRAY)
        self.assertEqual(self.ask(b"GET k", third), b"$1\r\nv\r\n")

    def test_watches_of_the_store(self) -> None:
        watch = Watch()
        self.keyspace.watch(b"k", watch)
        self.keyspace.watch(b"k", watch)
        self.keyspace.unwatch(watch)
        self.assertFalse(watch.broken)
        self.assertEqual(watched_keys(self.keyspace), {})


class LeavingTests(unittest.TestCase):
    """Tests with a client that disconnects during a transaction."""

    def setUp(self) -> None:
        self.name = unique_name()
        self.server = Server(self.name)
        self.server.start()
        self.addCleanup(self.server.stop)

    def test_the_watches_of_a_client_end_with_it(self) -> None:
        def leave(last: bytes) -> None:
            with RawConnection(self.name) as raw:
                begin = command(b"WATCH", b"a", b"b") + command(b"MULTI")
                begin += command(b"SET", b"a", b"v")
                raw.send(begin)
                self.assertEqual(raw.read(len(OK + OK + QUEUED)), OK + OK + QUEUED)
                self.assertEqual(watched_keys(keyspace_of(self.server)).keys(), {b"a", b"b"})
                if last:
                    raw.send(last)
                    while raw.receive():
                        pass

        with self.assertLogs("pipecache", "WARNING"):
            for last in (b"", command(b"QUIT"), b"*1\r\nfoo\r\n"):
                leave(last)
                wait_until(
                    lambda: not watched_keys(keyspace_of(self.server)),
                    "the watches of the client are gone",
                )
        with new_client(self.name) as cache:
            self.assertEqual(cache.dbsize(), 0)


if __name__ == "__main__":
    unittest.main()
