"""Tests of --max-memory: refused commands, eviction, and the accuracy of the count."""

from __future__ import annotations

import gc
import math
import random
import tracemalloc
import unittest
from typing import Callable, Iterator, Sequence, Tuple

from pipecache import (
    KEYS_PER_CYCLE,
    POLICIES,
    CommandError,
    execute,
)
from tests.support import (
    WINDOWS,
    Conversation,
    ConversationCase,
    ServerProcess,
    redis_address,
)
from tests.support.cases import ClientCase
from tests.support.internals import new_client_object, new_keyspace
from tests.support.wire import (
    ABORTED,
    NIL,
    NO_MULTI,
    OK,
    QUEUED,
    SYNTAX,
    command,
    unknown_command,
    wrong_arity,
)

OOM = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"

#: The commands that Redis refuses when memory is short, and some others.
REFUSED = (
    *(b"SET k v", b"SETNX k v", b"SETEX k 1 v", b"PSETEX k 1 v", b"GETSET k v", b"APPEND k v"),
    *(b"SETRANGE k 0 v", b"MSET k v", b"MSETNX k v", b"INCR k", b"DECR k", b"INCRBY k 1"),
    *(b"DECRBY k 1", b"INCRBYFLOAT k 1", b"COPY k other"),
    *(b"LPUSH l e", b"RPUSH l e", b"LPUSHX l e", b"RPUSHX l e", b"LSET l 0 e"),
    *(b"LINSERT l BEFORE e f", b"LMOVE l m LEFT LEFT", b"RPOPLPUSH l m"),
    *(b"HSET h f v", b"HMSET h f v", b"HSETNX h f v", b"HINCRBY h f 1", b"HINCRBYFLOAT h f 1"),
    *(b"SADD s m", b"SINTERSTORE s t", b"SUNIONSTORE s t", b"SDIFFSTORE s t"),
    *(b"ZADD z 1 m", b"ZINCRBY z 1 m"),
)
ALLOWED = (
    *(b"GET k", b"MGET k", b"GETRANGE k 0 1", b"STRLEN k", b"EXISTS k", b"TYPE k", b"TTL k"),
    *(b"SCAN 0", b"KEYS *", b"DBSIZE", b"PING", b"INFO memory", b"LRANGE l 0 1", b"HGETALL h"),
    *(b"SMEMBERS s", b"ZRANGE z 0 1", b"EXPIRE k 100", b"GETEX k PERSIST", b"PERSIST k"),
    *(b"LPOP l", b"RPOP l", b"LTRIM l 0 1", b"LREM l 0 e", b"LMPOP 1 l LEFT", b"HDEL h f"),
    *(b"SREM s m", b"SPOP s", b"SMOVE s t m", b"ZREM z m", b"ZPOPMIN z"),
    *(b"ZREMRANGEBYRANK z 0 0", b"ZREMRANGEBYSCORE z 0 0", b"GETDEL k", b"DEL k", b"UNLINK k"),
    *(b"FLUSHALL", b"CONFIG SET maxmemory 1"),
)

#: A command and the reply; ``&`` stands before a command of another client.
Line = Tuple[bytes, bytes]

#: Queued commands take memory, so Redis queues none when memory is short.
MULTI: tuple[Line, ...] = (
    (b"SET k v", OK),
    (b"MULTI", OK),
    (b"SET k w", QUEUED),
    (b"& CONFIG SET maxmemory 1", OK),
    (b"GET k", OOM),
    (b"DISCARD", OK),
    (b"GET k", b"$1\r\nv\r\n"),
    (b"MULTI", OK),
    (b"PING", OOM),
    (b"EXEC", ABORTED),
    # A queued command that may need memory aborts the transaction.
    (b"CONFIG SET maxmemory 0", OK),
    (b"WATCH k", OK),
    (b"MULTI", OK),
    (b"SET k w", QUEUED),
    (b"& CONFIG SET maxmemory 1", OK),
    (b"EXEC", b"-EXECABORT Transaction discarded because of: %b" % OOM[1:]),
    (b"EXEC", NO_MULTI),
    (b"GET k", b"$1\r\nv\r\n"),
    # Other queued commands are run.
    (b"CONFIG SET maxmemory 0", OK),
    (b"MULTI", OK),
    (b"GET k", QUEUED),
    (b"DEL k", QUEUED),
    (b"& CONFIG SET maxmemory 1", OK),
    (b"EXEC", b"*2\r\n$1\r\nv\r\n:1\r\n"),
    (b"CONFIG SET maxmemory 0", OK),
)

#: Errors for wrong commands when memory is short.
WRONG: tuple[Line, ...] = (
    (b"SET filler " + b"x" * 1000, OK),
    (b"CONFIG SET maxmemory 1", OK),
    (b"SET k", wrong_arity(b"set")),
    (b"NOSUCH", unknown_command(b"NOSUCH")),
    # Redis checks for memory before these errors.
    (b"HSET k f v g", OOM),
    (b"INCR filler", OOM),
    (b"LPUSH filler e", OOM),
    (b"CONFIG SET maxmemory 0", OK),
)


class OutOfMemoryTests(ConversationCase):
    """Tests without eviction, over connections."""

    def setUp(self) -> None:
        super().setUp()
        self.clients = [self.connect(), self.connect()]
        self.assertEqual(self.ask(b"FLUSHALL"), OK)

    def ask(self, line: bytes) -> bytes:
        client = self.clients[line.startswith(b"& ")]
        return client.ask(*line.lstrip(b"& ").split())

    def check(self, lines: Sequence[Line]) -> None:
        for number, (line, expected) in enumerate(lines):
            with self.subTest(number=number, line=line[:50]):
                self.assertEqual(self.ask(line), expected)

    def test_only_what_grows_is_refused(self) -> None:
        self.ask(b"SET filler " + b"x" * 1000)
        for line in (b"SET k 1", b"RPUSH l e", b"HSET h f 1", b"SADD s m", b"ZADD z 1 m"):
            self.assertFalse(self.ask(line).startswith(b"-"))
        self.ask(b"CONFIG SET maxmemory 1")
        for line in REFUSED:
            with self.subTest(line=line):
                self.assertEqual(self.ask(line), OOM)
        for line in ALLOWED:
            with self.subTest(line=line):
                self.assertFalse(self.ask(line).startswith(b"-"))

    def test_transactions(self) -> None:
        self.check(MULTI)

    def test_queued_commands_take_memory(self) -> None:
        """The memory of a queue counts, so a client cannot queue more than the limit."""
        facts = self.ask(b"INFO memory").decode().splitlines()
        (used,) = (line.split(":")[1] for line in facts if line.startswith("used_memory:"))
        limit = b"CONFIG SET maxmemory %d" % (int(used) + 3_000_000)
        for end in (b"DISCARD", b"RESET", b"EXEC"):
            with self.subTest(end=end):
                self.assertEqual(self.ask(limit), OK)
                self.assertEqual(self.ask(b"MULTI"), OK)
                replies = [self.ask(b"SET k " + b"x" * 100_000) for _ in range(40)]
                self.assertEqual({*replies}, {QUEUED, OOM})
                self.ask(end)
                self.assertEqual(self.ask(b"SET k v"), OK)
        self.ask(b"CONFIG SET maxmemory 0")

    def test_errors_of_wrong_commands(self) -> None:
        self.check(WRONG)


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class RedisOutOfMemoryTests(OutOfMemoryTests):
    """The same tables on redis-server, which proves the tables."""

    def serve(self) -> str:
        return redis_address(self)


class MemoryCase(ClientCase):
    def limit(self, policy: str, size: float) -> None:
        self.keyspace.policy, self.keyspace.memory_limit = policy, size

    def keys(self) -> set[bytes]:
        return set(self.keyspace.keys())

    def fill(self, count: int, prefix: bytes = b"k", lifetime: int | None = None) -> None:
        """Set one key per second; each expires ten seconds after the one before."""
        for number in range(count):
            words = [b"SET", b"%b%d" % (prefix, number), b"v" * 100]
            if lifetime is not None:
                words += [b"EX", b"%d" % (lifetime + number * 10)]
            self.assertEqual(self.run_command(*words), b"OK")
            self.clock.now += 1


class EvictionTests(MemoryCase):
    def test_nothing_is_evicted_below_the_limit(self) -> None:
        for policy in POLICIES:
            with self.subTest(policy=policy):
                self.limit(policy, math.inf)
                self.keyspace.clear()
                self.fill(100, lifetime=10_000)
                self.limit(policy, self.keyspace.used_memory)
                self.assertEqual(self.ask(b"SET other v"), OK)
                self.assertEqual((len(self.keyspace), self.keyspace.evicted), (101, 0))

    def test_no_more_keys_are_evicted_than_necessary(self) -> None:
        for policy in POLICIES[1:]:
            with self.subTest(policy=policy):
                self.limit(policy, math.inf)
                self.keyspace.clear()
                self.keyspace.evicted = 0
                self.fill(100, lifetime=10_000)
                self.limit(policy, self.keyspace.used_memory - 1)
                self.assertEqual(self.ask(b"SET other v"), OK)
                self.assertEqual((len(self.keyspace), self.keyspace.evicted), (100, 1))
                self.assertIn(b"other", self.keys())

    def test_the_least_recently_used(self) -> None:
        """The key is chosen from a random sample, so now and then another one is evicted."""
        uses: tuple[bytes, ...] = (
            *(b"GET {}", b"SET {} v", b"APPEND {} x", b"TOUCH {}", b"MGET {} none", b"STRLEN {}"),
            *(b"GETSET {} v", b"SETRANGE {} 0 x", b"COPY {} other REPLACE"),
        )
        for use in uses:
            with self.subTest(use=use):
                self.keyspace.clear()
                self.limit("allkeys-lru", math.inf)
                self.fill(1000)
                used = {b"k%d" % number for number in range(0, 1000, 2)}
                for key in used:
                    self.ask(use.replace(b"{}", key))
                self.limit("allkeys-lru", self.keyspace.used_memory * 0.7)
                self.keyspace.free_memory()
                evicted = 1000 - len(self.keys() - {b"other"})
                self.assertGreater(evicted, 200)
                # A random choice would evict half of them.
                self.assertGreater(len(self.keys() & used), 500 - evicted * 0.15)

    def test_commands_that_do_not_count_as_a_use(self) -> None:
        self.limit("allkeys-lru", math.inf)
        self.fill(1)
        self.clock.now += 1000
        for line in (
            *(b"EXISTS k0", b"TYPE k0", b"TTL k0", b"OBJECT ENCODING k0", b"OBJECT IDLETIME k0"),
            *(b"MEMORY USAGE k0", b"SCAN 0", b"SCAN 0 TYPE string", b"KEYS *", b"RANDOMKEY"),
        ):
            with self.subTest(line=line):
                self.ask(line)
                self.assertEqual(self.ask(b"OBJECT IDLETIME k0"), b":1001\r\n")

    def test_the_least_recently_used_of_expiring_keys(self) -> None:
        self.limit("volatile-lru", math.inf)
        self.fill(200, b"stays")
        self.fill(1000, lifetime=100_000)
        used = {b"k%d" % number for number in range(0, 1000, 2)}
        for key in used:
            self.ask(b"GET " + key)
        self.limit("volatile-lru", self.keyspace.used_memory * 0.7)
        self.keyspace.free_memory()
        left = self.keys()
        self.assertEqual(sum(key.startswith(b"stays") for key in left), 200)
        evicted = 1200 - len(left)
        self.assertGreater(evicted, 200)
        self.assertGreater(len(left & used), 500 - evicted * 0.15)

    def test_the_keys_that_expire_first(self) -> None:
        self.fill(20, b"stays")
        self.fill(100, lifetime=10_000)
        # Deadlines that were changed, removed and set again.
        self.check(
            (b"PERSIST k0", b":1\r\n"),
            (b"EXPIRE k1 1000000", b":1\r\n"),
            (b"EXPIRE k99 5000", b":1\r\n"),
            (b"SET k2 v", OK),
            (b"RENAME k3 k2", OK),
        )
        order = [b"k99", b"k2", *(b"k%d" % number for number in range(4, 99)), b"k1"]
        everything = self.keys()
        for number, key in enumerate(order):
            self.limit("volatile-ttl", self.keyspace.used_memory - 1)
            self.keyspace.free_memory()
            self.assertEqual(everything - self.keys(), {*order[:number], key})
        self.limit("volatile-ttl", self.keyspace.used_memory - 1)
        self.assertEqual(self.ask(b"SET other v"), OOM)
        self.assertEqual(self.keyspace.evicted, len(order))

    def test_random_keys(self) -> None:
        self.fill(1000)
        for key in range(500):
            self.ask(b"GET k%d" % key)
        self.limit("allkeys-random", math.inf)
        self.limit("allkeys-random", self.keyspace.used_memory / 2)
        self.keyspace.free_memory()
        evicted = {b"k%d" % number for number in range(1000)} - self.keys()
        self.assertTrue(490 <= len(evicted) <= 510)
        for start in range(0, 1000, 250):
            quarter = {b"k%d" % number for number in range(start, start + 250)}
            self.assertTrue(75 < len(quarter & evicted) < 175)

    def test_random_keys_include_the_newest(self) -> None:
        """New keys are evicted as often as old ones."""
        self.fill(2000)
        self.limit("allkeys-random", math.inf)
        self.limit("allkeys-random", self.keyspace.used_memory - 1)
        self.keyspace.free_memory()
        self.limit("allkeys-random", math.inf)
        self.fill(200, b"new")
        # Half of the new keys are left, as of the old ones.
        self.limit("allkeys-random", self.keyspace.used_memory / 2)
        self.keyspace.free_memory()
        left = sum(key.startswith(b"new") for key in self.keys())
        self.assertTrue(60 < left < 140, left)

    def test_no_key_expires(self) -> None:
        self.fill(10)
        for policy in ("volatile-lru", "volatile-ttl", "noeviction"):
            with self.subTest(policy=policy):
                self.limit(policy, math.inf)
                self.limit(policy, self.keyspace.used_memory - 1)
                self.assertEqual(self.ask(b"SET other v"), OOM)
                self.assertEqual(len(self.keyspace), 10)
                # A key that no longer expires is not evicted.
                self.check((b"EXPIRE k0 100", b":1\r\n"), (b"PERSIST k0", b":1\r\n"))
                self.assertEqual(self.ask(b"SET other v"), OOM)

    def test_expired_keys_are_removed_first(self) -> None:
        """An expired key is removed first, so no other key is evicted for it."""
        for policy in POLICIES:
            with self.subTest(policy=policy):
                self.keyspace.clear()
                self.keyspace.evicted = 0
                self.limit(policy, math.inf)
                self.fill(10, lifetime=10_000)
                self.run_command(b"SET", b"big", b"x" * 10_000, b"PX", b"1")
                self.limit(policy, self.keyspace.used_memory - 1)
                self.clock.now += 1
                self.assertEqual(self.ask(b"SET other v"), OK)
                self.assertEqual((len(self.keyspace), self.keyspace.evicted), (11, 0))

    def test_a_value_above_the_limit(self) -> None:
        """As in Redis, memory is checked before a command: the value is stored, then evicted."""
        self.limit("allkeys-lru", 10_000)
        self.fill(20)
        self.run_command(b"SET", b"big", b"x" * 20_000)
        self.clock.now += 1
        self.assertEqual(self.ask(b"SET k v"), OK)
        self.assertLess(self.keyspace.used_memory, 10_000)
        self.assertNotIn(b"big", self.keyspace)

    def test_every_type_of_value_is_evicted(self) -> None:
        for policy in ("allkeys-lru", "allkeys-random"):
            with self.subTest(policy=policy):
                self.limit(policy, 100_000)
                for _ in range(2000):
                    line = random.choice(
                        [b"SET %d v", b"RPUSH %d a b", b"HSET %d f v", b"SADD %d m", b"ZADD %d 1 m"]
                    )
                    self.ask(line % (random.randrange(10**9)))
                    self.clock.now += 0.01
                    self.assertLess(self.keyspace.used_memory, 102_000)
                self.assertGreater(self.keyspace.used_memory, 90_000)
                self.assertLess(len(self.keyspace), 1000)

    def test_the_memory_of_a_time_to_live_is_released(self) -> None:
        self.limit("volatile-ttl", math.inf)
        self.fill(100, lifetime=1000)
        self.limit("volatile-ttl", 0)
        self.keyspace.free_memory()
        self.assertEqual(
            (self.keyspace.used_memory, self.keyspace.expiring, len(self.keyspace)), (0, 0, 0)
        )


class SettingTests(MemoryCase):
    """Tests of CONFIG SET, INFO and MEMORY."""

    def facts(self, section: bytes = b"memory") -> dict[str, str]:
        reply = self.run_command(b"INFO", section)
        assert isinstance(reply, bytes)
        return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)

    def test_the_limit(self) -> None:
        self.fill(100)
        for size, expected in ((b"1kb", b"1024"), (b"10MB", b"10485760"), (b"0", b"0")):
            self.assertEqual(self.run_command(b"CONFIG", b"SET", b"maxmemory", size), b"OK")
            reply = self.run_command(b"CONFIG", b"GET", b"maxmemory")
            self.assertEqual(reply, {b"maxmemory": expected})
        self.ask(b"CONFIG SET maxmemory 1000")
        self.assertEqual(len(self.keyspace), 100)
        self.assertEqual(self.ask(b"SET k v"), OOM)
        self.ask(b"CONFIG SET maxmemory 0")
        self.assertEqual(self.ask(b"SET k v"), OK)

    def test_a_lower_limit_evicts_at_once(self) -> None:
        self.fill(100)
        self.ask(b"CONFIG SET maxmemory-policy allkeys-lru")
        self.ask(b"CONFIG SET maxmemory %d" % (self.keyspace.used_memory // 2))
        self.assertTrue(45 <= len(self.keyspace) <= 50)

    def test_a_much_lower_limit_evicts_some_keys_at_a_time(self) -> None:
        self.fill(3 * KEYS_PER_CYCLE)
        self.ask(b"CONFIG SET maxmemory-policy allkeys-random")
        self.assertEqual(self.ask(b"CONFIG SET maxmemory 1000"), OK)
        self.assertEqual(self.keyspace.evicted, KEYS_PER_CYCLE)
        self.assertEqual(self.ask(b"SET k v"), OK)
        self.assertEqual(self.keyspace.evicted, 2 * KEYS_PER_CYCLE)
        self.assertTrue(self.keyspace.evict(KEYS_PER_CYCLE // 2))
        self.assertFalse(self.keyspace.evict(KEYS_PER_CYCLE))
        self.assertTrue(500 < self.keyspace.used_memory <= 1000)
        self.ask(b"CONFIG SET maxmemory-policy noeviction maxmemory 1")
        self.assertFalse(self.keyspace.evict(KEYS_PER_CYCLE))
        self.assertTrue(500 < self.keyspace.used_memory <= 1000)

    def test_another_policy(self) -> None:
        self.fill(100)
        before = self.keyspace.used_memory
        for policy in (*POLICIES, *reversed(POLICIES)):
            with self.subTest(policy=policy):
                words = (b"CONFIG", b"SET", b"maxmemory-policy", policy.encode())
                self.assertEqual(self.run_command(*words), b"OK")
                self.assertEqual(self.facts()["maxmemory_policy"], policy)
        # The times of use take memory while a policy needs them.
        self.assertEqual(self.keyspace.used_memory, before)
        self.ask(b"CONFIG SET maxmemory-policy allkeys-lru")
        self.assertGreater(self.keyspace.used_memory, before + 100 * 40)
        self.ask(b"CONFIG SET maxmemory-policy volatile-ttl")
        self.assertEqual(self.keyspace.used_memory, before)

    def test_info(self) -> None:
        self.fill(10)
        self.ask(b"CONFIG SET maxmemory 1mb maxmemory-policy allkeys-lru")
        facts = self.facts()
        self.assertEqual(facts["used_memory"], str(self.keyspace.used_memory))
        self.assertEqual(facts["maxmemory"], str(1024**2))
        self.assertEqual(facts["maxmemory_human"], "1.00M")
        self.assertEqual(facts["maxmemory_policy"], "allkeys-lru")
        self.limit("allkeys-lru", self.keyspace.used_memory // 2)
        self.ask(b"SET k v")
        self.assertEqual(self.facts(b"stats")["evicted_keys"], str(self.keyspace.evicted))

    def test_memory_usage(self) -> None:
        """MEMORY USAGE returns the bytes that are counted for the key."""
        for line in (b"SET k v", b"RPUSH k a b", b"HSET k f v", b"SADD k m", b"ZADD k 1 m 2 n"):
            for policy in ("noeviction", "allkeys-lru"):
                with self.subTest(line=line, policy=policy):
                    self.keyspace.clear()
                    self.keyspace.policy = policy
                    self.ask(line)
                    self.assertEqual(
                        self.ask(b"MEMORY USAGE k"), b":%d\r\n" % self.keyspace.used_memory
                    )
                    usage = self.ask(b"MEMORY USAGE k SAMPLES 0")
                    self.assertEqual(usage, b":%d\r\n" % self.keyspace.used_memory)
        self.check(
            (b"MEMORY USAGE none", NIL),
            (b"MEMORY USAGE k SAMPLES -1", SYNTAX),
            (b"MEMORY USAGE k x", SYNTAX),
        )

    def test_idle_times(self) -> None:
        self.limit("allkeys-lru", math.inf)
        self.check((b"SET k v", OK), (b"OBJECT IDLETIME k", b":0\r\n"))
        self.clock.now += 10.9
        self.check(
            (b"OBJECT IDLETIME k", b":10\r\n"),
            (b"OBJECT IDLETIME none", NIL),
            (b"GET k", b"$1\r\nv\r\n"),
            (b"OBJECT IDLETIME k", b":0\r\n"),
        )
        # For older keys, the time of use is that of the change of policy.
        self.limit("noeviction", math.inf)
        self.clock.now += 100
        self.assertTrue(self.ask(b"OBJECT IDLETIME k").startswith(b"-ERR "))
        self.limit("volatile-lru", math.inf)
        self.clock.now += 1
        self.check((b"OBJECT IDLETIME k", b":1\r\n"))


class NothingLeftTests(MemoryCase):
    """An empty store uses no memory, in whatever way it became empty."""

    KINDS = (b"SET %d v", b"RPUSH %d a b", b"HSET %d f v", b"SADD %d m", b"ZADD %d 1 m")

    def test_an_empty_store_uses_no_memory(self) -> None:
        ways: dict[str, Callable[[], object]] = {
            "FLUSHALL": lambda: self.ask(b"FLUSHALL"),
            "FLUSHDB": lambda: self.ask(b"FLUSHDB ASYNC"),
            "deleted": lambda: self.run_command(b"DEL", *self.keys()),
            "expired": self.expire,
            "expired, and read": self.expire_and_look,
            "expired immediately": lambda: [
                self.run_command(b"EXPIRE", key, b"-1") for key in self.keys()
            ],
            "taken": self.take,
            "renamed onto one": self.rename,
        }
        for policy in POLICIES:
            for name, empty in ways.items():
                with self.subTest(policy=policy, way=name):
                    self.limit(policy, math.inf)
                    for number in range(50):
                        self.ask(self.KINDS[number % 5] % number)
                        if number % 3:
                            self.ask(b"EXPIRE %d 100" % number)
                    self.assertGreater(self.keyspace.used_memory, 50 * 50)
                    empty()
                    self.assertEqual((self.keyspace.used_memory, len(self.keyspace)), (0, 0))
                    self.assertEqual(self.keyspace.expiring, 0)

    def expire(self) -> None:
        for key in self.keys():
            self.run_command(b"EXPIRE", key, b"50")
        self.clock.now += 51
        self.keyspace.remove_expired(1000)

    def expire_and_look(self) -> None:
        keys = self.keys()
        for key in keys:
            self.run_command(b"PEXPIRE", key, b"1")
        self.clock.now += 1
        for key in keys:
            self.run_command(b"GET", key)

    def take(self) -> None:
        for key in self.keys():
            for name in (b"GETDEL", b"LPOP", b"SPOP", b"ZPOPMIN"):
                self.run_command(name, key)
            self.run_command(b"HDEL", key, b"f")
            self.run_command(b"RPOP", key)

    def rename(self) -> None:
        for key in self.keys():
            self.run_command(b"RENAME", key, b"one")
        self.run_command(b"DEL", b"one")


#: A function that returns a command for the key or element of that number.
Filling = Callable[[int], Sequence[bytes]]


class HonestyTests(unittest.TestCase):
    """Comparisons of the counted memory with what tracemalloc measures."""

    #: Numbers of keys. A dict doubles when it is full; these two sizes average that out.
    SIZES = (3000, 4800)

    FILLINGS: tuple[tuple[str, str, Filling], ...] = (
        ("short strings", "noeviction", lambda n: (b"SET", b"key:%d" % n, b"%011d" % n)),
        ("strings of 100", "noeviction", lambda n: (b"SET", b"key:%d" % n, b"%0100d" % n)),
        ("long strings", "noeviction", lambda n: (b"SET", b"key:%d" % n, b"%05000d" % n)),
        (
            "expiring keys",
            "noeviction",
            lambda n: (b"SET", b"key:%d" % n, b"%011d" % n, b"EX", b"%d" % (n + 1000)),
        ),
        ("with times of use", "allkeys-lru", lambda n: (b"SET", b"key:%d" % n, b"%011d" % n)),
        (
            "expiring keys with times of use",
            "volatile-lru",
            lambda n: (b"SET", b"key:%d" % n, b"%011d" % n, b"EX", b"%d" % (n + 1000)),
        ),
        ("a long list", "noeviction", lambda n: (b"RPUSH", b"k", b"element %d" % n)),
        ("a big hash", "noeviction", lambda n: (b"HSET", b"k", b"field:%d" % n, b"%011d" % n)),
        ("a big set", "noeviction", lambda n: (b"SADD", b"k", b"member:%d" % n)),
        (
            "a big sorted set",
            "noeviction",
            lambda n: (b"ZADD", b"k", b"%d.5" % n, b"member:%d" % n),
        ),
        (
            "a big sorted set in no order",
            "noeviction",
            lambda n: (b"ZADD", b"k", b"0.%d" % (n * 7919 % 10_000), b"member:%d" % n),
        ),
        *(
            (f"{what} of {size}", "noeviction", filling)
            for size in (1, 4, 20)
            for what, filling in {
                "lists": lambda n, size=size: (b"RPUSH", b"key:%d" % (n // size), b"e%d" % n),
                "hashes": lambda n, size=size: (
                    *(b"HSET", b"key:%d" % (n // size), b"f%d" % n, b"v%d" % n),
                ),
                "sets": lambda n, size=size: (b"SADD", b"key:%d" % (n // size), b"m%d" % n),
                "sorted sets": lambda n, size=size: (
                    *(b"ZADD", b"key:%d" % (n // size), b"%d.5" % n, b"m%d" % n),
                ),
            }.items()
        ),
    )

    #: The largest relative difference.
    TOLERANCE = 0.25

    def test_counted_and_measured_memory(self) -> None:
        for name, policy, filling in self.FILLINGS:
            with self.subTest(name):
                counted, taken = map(sum, zip(*self.measure(policy, filling)))
                message = f"{counted} bytes counted, {taken} taken: {counted / taken:.2f}"
                self.assertLess(abs(counted / taken - 1), self.TOLERANCE, message)

    def test_while_keys_are_evicted(self) -> None:
        """The tables that find keys to evict take memory, too.

        A dict in which keys are added and removed is less full than one that only grows.
        """
        fillings = {name: filling for name, _, filling in self.FILLINGS}
        for policy in POLICIES[1:]:
            name = "expiring keys" if policy.startswith("volatile") else "short strings"
            with self.subTest(policy):
                pairs = self.measure(policy, fillings[name], evicting=True)
                counted, taken = map(sum, zip(*pairs))
                message = f"{counted} bytes counted, {taken} taken: {counted / taken:.2f}"
                self.assertLess(taken, counted * 1.5, message)
                self.assertGreater(taken, counted * 0.75, message)

    def measure(
        self, policy: str, filling: Filling, evicting: bool = False
    ) -> Iterator[tuple[int, int]]:
        for size in self.SIZES:
            keyspace = new_keyspace()
            keyspace.policy = policy
            client = new_client_object(keyspace)
            gc.collect()
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                for number in range(size * 3 if evicting else size):
                    if number == size:
                        keyspace.memory_limit = keyspace.used_memory
                    reply = execute(client, list(filling(number)))
                    self.assertNotIsInstance(reply, CommandError)
                gc.collect()
                after, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            yield keyspace.used_memory, after - before


class CommandLineTests(unittest.TestCase):
    def test_options(self) -> None:
        options = ("--max-memory", "10kb", "--max-memory-policy", "allkeys-random")
        with ServerProcess(*options) as server:
            conversation = Conversation(server.name)
            self.addCleanup(conversation.raw.close)
            facts = conversation.ask(b"INFO", b"memory")
            self.assertIn(b"\r\nmaxmemory:10240\r\n", facts)
            self.assertIn(b"\r\nmaxmemory_policy:allkeys-random\r\n", facts)
            for number in range(200):
                set_one = command(b"SET", b"key:%d" % number, b"v" * 100)
                self.assertEqual(conversation.raw.ask(set_one), OK)
            conversation.raw.send(command(b"DBSIZE"))
            self.assertLess(int(conversation.raw.receive()[1:]), 60)


if __name__ == "__main__":
    unittest.main()
