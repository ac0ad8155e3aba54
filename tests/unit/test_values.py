"""Tests of lists, hashes, sets and sorted sets, which are compared with simple models."""

from __future__ import annotations

import collections
import contextlib
import gc
import math
import random
import tracemalloc
import unittest
from typing import Any, Callable, ClassVar, Iterable, Mapping, Sequence
from unittest import mock

import pipecache
from pipecache import (
    MAX_SCAN,
    POLICIES,
    SCAN_ALL_BELOW,
    CommandError,
    Hash,
    ListValue,
    ScannableDict,
    Set,
    SortedSet,
    execute,
)
from tests.support.cases import ClientCase
from tests.support.generator import Generator
from tests.support.internals import SharedState, parts_of, payload, recount, reserved

#: A function that returns one page of a scan, for a cursor and a count.
Page = Callable[[int, int], "tuple[int, list[bytes]]"]


class AccountingTests(ClientCase):
    """The memory in use is counted at each change, and equals a recount of all values."""

    SEQUENCES = 1000

    def setUp(self) -> None:
        super().setUp()
        # Then a sorted set of a few members has several parts.
        small = mock.patch.object(SortedSet, "MAX_CHUNK", 3)
        small.start()
        self.addCleanup(small.stop)

    def test_after_any_command(self) -> None:
        for seed in range(self.SEQUENCES):
            with self.subTest(seed=seed):
                self.check_sequence(seed)

    def check_sequence(self, seed: int) -> None:
        random.seed(seed)
        self.state = SharedState()
        self.clock, self.keyspace = self.state.clock, self.state.keyspace
        self.keyspace.policy = random.choice(POLICIES)
        self.keyspace.memory_limit = random.choice([1000, 5000, math.inf, math.inf])
        clients = [self.state.connect() for _ in range(3)]
        for step in Generator(seed).steps:
            self.clock.now += random.choice([0] * 20 + [0.001, 1, 1000])
            reply = execute(clients[step.connection], list(step.arguments))
            self.assertNotIn("internal error", str(reply), step)
            expected = recount(self.keyspace) + reserved(clients, self.state.blocked_keys())
            self.assertEqual(self.keyspace.used_memory, expected, step)
        for client in clients:
            self.state.disconnect(client)
        self.assertEqual(self.state.leftovers(), [])
        self.keyspace.clear()
        self.assertEqual(self.keyspace.used_memory, 0)

    def test_a_member_without_bytes(self) -> None:
        for name, put, take in (
            (b"list", b"RPUSH", (b"LPOP",)),
            (b"set", b"SADD", (b"SPOP",)),
            (b"set", b"SADD", (b"SPOP", b"1")),
            (b"zset", b"ZADD 1", (b"ZPOPMIN",)),
            (b"hash", b"HSET", (b"HDEL", b"")),
        ):
            with self.subTest(name=name, take=take):
                self.keyspace.clear()
                command, *score = put.split()
                value = [b""] if name == b"hash" else []
                self.run_command(command, b"k", *score, b"", *value)
                self.assertEqual(self.keyspace.used_memory, recount(self.keyspace))
                self.run_command(take[0], b"k", *take[1:])
                self.assertEqual(self.run_command(b"EXISTS", b"k"), 0)
                self.assertEqual(self.keyspace.used_memory, 0)


class ListTests(ClientCase):
    def test_both_ends_of_a_long_list_are_fast(self) -> None:
        self.assertIsInstance(ListValue(), collections.deque)
        self.run_command(b"RPUSH", b"k", *[b"element"] * 10_000)
        with mock.patch.object(
            ListValue, "pop_end", autospec=True, side_effect=ListValue.pop_end
        ) as take:
            for line in (b"RPUSH k new", b"LTRIM k 1 -1", b"LPUSH k new", b"LTRIM k 0 9999"):
                self.ask(line)
        self.assertEqual(take.call_count, 2)
        self.assertEqual(self.ask(b"LLEN k"), b":10000\r\n")

    def test_against_a_list(self) -> None:
        model: list[bytes] = []
        for _ in range(3000):
            element = b"x" * random.randrange(4)
            index = random.randrange(-12, 12)
            line: tuple[bytes, ...]
            kind = random.randrange(8)
            if kind < 3:
                line = (b"RPUSH", b"k", element)
                model.append(element)
            elif kind < 5:
                line = (b"LPUSH", b"k", element)
                model.insert(0, element)
            elif kind == 5:
                line = (b"LPOP", b"k", b"2")
                del model[:2]
            elif kind == 6:
                line = (b"LREM", b"k", b"1", element)
                if element in model:
                    model.remove(element)
            else:
                line = (b"LSET", b"k", b"%d" % index, element)
                with contextlib.suppress(IndexError):
                    model[index] = element
            self.run_command(*line)
            self.assertEqual(self.run_command(b"LRANGE", b"k", b"0", b"-1"), model, line)
            self.assertEqual(self.keyspace.used_memory, recount(self.keyspace), line)


class HashTests(unittest.TestCase):
    def test_against_a_dict(self) -> None:
        random.seed(1)
        value, model = Hash(), {}
        for _ in range(5000):
            field, content = b"%d" % random.randrange(50), b"x" * random.randrange(5)
            if random.random() < 0.6:
                self.assertEqual(value.put(field, content), field not in model)
                model[field] = content
            else:
                self.assertEqual(value.remove(field), model.pop(field, None) is not None)
            self.assertEqual(value.data_bytes, payload(value))
        self.assertEqual(value, model)

    def test_a_copy_is_another(self) -> None:
        for kind in (Hash, Set):
            value = kind()
            value.put(b"a", b"")
            twin = value.from_parts(value.to_parts())
            twin.put(b"b", b"")
            self.assertIs(type(twin), kind)
            self.assertEqual((list(value), list(twin)), ([b"a"], [b"a", b"b"]))
            self.assertEqual((value.data_bytes, twin.data_bytes), (1, 2))


class SortedSetTests(unittest.TestCase):
    """Comparisons with a dict that is sorted for each check."""

    #: Members in one part, and in all: parts are split, become empty and are removed.
    SIZES = ((4, 300), (SortedSet.MAX_CHUNK, 5000))

    def check(self, value: SortedSet, model: Mapping[bytes, float]) -> None:
        pairs = sorted((score, member) for member, score in model.items())
        self.assertEqual(value.slice(0, len(pairs)), pairs)
        self.assertEqual((len(value), value.data_bytes), (len(model), sum(map(len, model))))
        for part in parts_of(value)[: -1 if len(parts_of(value)) == 1 else None]:
            self.assertTrue(0 < len(part) <= value.MAX_CHUNK)
        for _ in range(20):
            start, stop = random.randrange(-5, len(pairs) + 5), random.randrange(len(pairs) + 5)
            self.assertEqual(value.slice(start, stop), pairs[max(start, 0) : stop])
        for rank, pair in random.sample(list(enumerate(pairs)), min(20, len(pairs))):
            self.assertEqual(value.rank(pair), rank)
            below = sum(score < pair[0] for score, _ in pairs)
            self.assertEqual(value.rank(pair[:1]), below)
            up_to = sum(score <= pair[0] for score, _ in pairs)
            self.assertEqual(value.rank((pair[0], pipecache.LAST_MEMBER)), up_to)

    def test_against_a_dict(self) -> None:
        for part, members in self.SIZES:
            random.seed(part)
            with mock.patch.object(SortedSet, "MAX_CHUNK", part), self.subTest(part=part):
                self.stir(members)

    def stir(self, members: int) -> None:
        """Add, change and remove members of a sorted set at random, until it is empty."""
        value = SortedSet()
        model: dict[bytes, float] = {}
        for share in (0.9, 0.5, 0.1):
            for _ in range(members * 2):
                member = b"m%d" % random.randrange(members)
                if random.random() < share:
                    # There are few different scores, so that many are equal.
                    score = random.choice([random.random(), random.randrange(5), math.inf])
                    value.put(member, score)
                    model[member] = score
                else:
                    self.assertEqual(value.remove(member), model.pop(member, None) is not None)
            self.check(value, model)
        for member in model:
            value.remove(member)
        self.check(value, {})
        self.assertEqual(parts_of(value), [[]])
        value.put(b"again", 1.0)
        self.check(value, {b"again": 1.0})

    def test_members_that_come_in_order(self) -> None:
        """Insertions at the ends of the parts are the critical ones."""
        for part, members in self.SIZES:
            for scores in (range(members), range(members, 0, -1), [0] * members):
                chunk = mock.patch.object(SortedSet, "MAX_CHUNK", part)
                with chunk, self.subTest(part, scores=scores):
                    model = {b"%06d" % number: float(score) for number, score in enumerate(scores)}
                    value = SortedSet()
                    for member, score in model.items():
                        value.put(member, score)
                    self.check(value, model)

    def test_a_copy_is_another(self) -> None:
        value = SortedSet()
        value.put(b"a", 1.0)
        twin = value.from_parts(value.to_parts())
        twin.put(b"b", 0.0)
        twin.put(b"a", 2.0)
        self.check(value, {b"a": 1.0})
        self.check(twin, {b"a": 2.0, b"b": 0.0})


class DrawTests(ClientCase):
    """A random choice reaches every member, each about as often as the others."""

    def table(self, keys: Iterable[bytes]) -> ScannableDict:
        table = ScannableDict()
        table.update(dict.fromkeys(keys))
        return table

    def add(self, table: ScannableDict, keys: Iterable[bytes]) -> None:
        for key in keys:
            table[key] = None

    def drawn(self, table: ScannableDict, times: int) -> collections.Counter[bytes]:
        return collections.Counter(table.random_key() for _ in range(times))

    def test_each_of_ten_members(self) -> None:
        table = self.table(map(str.encode, "abcdefghij"))
        drawn = self.drawn(table, 500)
        self.assertEqual(drawn.keys(), table.keys())
        self.assertGreater(min(drawn.values()), 20)
        self.assertLess(max(drawn.values()), 100)

    def test_each_member_after_any_change(self) -> None:
        changes: tuple[tuple[str, str], ...] = (
            ("", "k"),  # one more
            ("", "klm"),
            ("", "klmnopqrstuvwxyz"),
            ("a", ""),
            ("a", "k"),  # as many as before
            ("a", "a"),
            ("abcdefghij", "k"),
            ("abcdefghij", "klmnopqrst"),
        )
        for removed, added in changes:
            with self.subTest(removed=removed, added=added):
                table = self.table(map(str.encode, "abcdefghij"))
                self.drawn(table, 3)
                for key in removed:
                    del table[key.encode()]
                self.add(table, map(str.encode, added))
                self.assertEqual(self.drawn(table, 1000).keys(), table.keys())

    def test_a_member_that_was_removed_and_added_again(self) -> None:
        for times in (1, 8, 15, 50):
            with self.subTest(times=times):
                self.ask(b"DEL s")
                self.ask(b"SADD s 0 1 2 3 4 5 6 7 8 9")
                self.ask(b"SRANDMEMBER s")
                for _ in range(times):
                    self.ask(b"SREM s 0")
                    self.ask(b"SADD s 0")
                drawn = [self.run_command(b"SRANDMEMBER", b"s") for _ in range(500)]
                self.assertTrue(20 < drawn.count(b"0") < 100, drawn.count(b"0"))

    def test_removed_members_are_released(self) -> None:
        """A value that was drawn from releases removed members, even if there is no second draw."""
        for name in (b"RANDOMKEY", b"SRANDMEMBER s"):
            self.ask(b"SADD s a b c")
            self.ask(name)
            gc.collect()
            tracemalloc.start()
            try:
                for number in range(20_000):
                    self.ask(b"SET %d v" % number)
                    self.ask(b"DEL %d" % number)
                    self.ask(b"SADD s %d" % number)
                    self.ask(b"SREM s %d" % number)
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            with self.subTest(name=name):
                self.assertLess(kept, 200_000)

    def test_each_of_many_members(self) -> None:
        table = self.table(b"%d" % number for number in range(5000))
        for first in (5000, 5001, 5050, 5500):
            with self.subTest(first=first):
                table.random_key()
                self.add(table, (b"%d" % number for number in range(5000, first + 50)))
                missed = table.keys() - self.drawn(table, 100_000).keys()
                self.assertEqual(missed, set())

    def test_commands(self) -> None:
        for name, add in ((b"SRANDMEMBER s", b"SADD s %d"), (b"HRANDFIELD h", b"HSET h %d v")):
            for number in range(20):
                with self.subTest(name=name, members=number + 1):
                    self.ask(add % number)
                    found = {self.ask(name) for _ in range(500)}
                    self.assertEqual(len(found), number + 1)
        self.ask(b"FLUSHALL")
        for number in range(20):
            self.ask(b"SET %d v" % number)
            self.assertEqual(len({self.ask(b"RANDOMKEY") for _ in range(500)}), number + 1)

    def test_spop_removes_all_members(self) -> None:
        self.run_command(b"SADD", b"s", *(b"%d" % number for number in range(1000)))
        taken = {self.run_command(b"SPOP", b"s") for _ in range(1000)}
        self.assertEqual(taken, {b"%d" % number for number in range(1000)})
        self.assertEqual(self.ask(b"EXISTS s"), b":0\r\n")

    def test_an_expired_key_is_not_drawn(self) -> None:
        self.ask(b"SET stays v")
        for number in range(100):
            self.ask(b"PSETEX %d 10 v" % number)
        self.assertEqual(len({self.ask(b"RANDOMKEY") for _ in range(10_000)}), 101)
        self.clock.now += 1
        self.assertEqual({self.ask(b"RANDOMKEY") for _ in range(100)}, {b"$5\r\nstays\r\n"})


class WalkTests(ClientCase):
    """SCAN and similar: every scan ends, and returns all that is present from begin to end."""

    #: The number of scans at the same time, and of repetitions.
    WALKS = 4
    ROUNDS = 5

    #: The command that makes a key of each type, and the value.
    FILLS: ClassVar[dict[bytes, tuple[bytes, ...]]] = {
        b"string": (b"SET", b"v"),
        b"list": (b"RPUSH", b"e"),
        b"hash": (b"HSET", b"f", b"v"),
        b"set": (b"SADD", b"m"),
        b"zset": (b"ZADD", b"1", b"m"),
    }

    def page(self, *words: bytes, step: int = 1) -> Page:
        """Return a function that returns pages of a command, given its words up to the cursor."""

        def ask(cursor: int, count: int) -> tuple[int, list[bytes]]:
            reply: Any = self.run_command(*words, b"%d" % cursor, b"COUNT", b"%d" % count)
            following, found = reply
            return int(following), found[::step]

        return ask

    def check_walks(
        self, page: Page, change: Callable[[], object], stays: set[bytes], passing: set[bytes]
    ) -> None:
        """Run several scans at the same time, with changes before each page."""
        cursors = dict.fromkeys(range(self.WALKS), 0)
        found: dict[int, set[bytes]] = {scan: set() for scan in cursors}
        pages = 0
        while cursors:
            for _ in range(random.randrange(5)):
                change()
            scan = random.choice(list(cursors))
            # Some scans have small pages, others have large ones.
            cursors[scan], some = page(cursors[scan], random.choice([1, 1 + scan * 10, 30]))
            found[scan].update(some)
            pages += 1
            self.assertLessEqual(pages, self.WALKS * len(stays | passing))
            if not cursors[scan]:
                del cursors[scan]
                self.assertEqual(stays - found[scan], set())
                self.assertLessEqual(found[scan], stays | passing)

    def test_keys(self) -> None:
        """A command that changes a value does not move its key to where a scan misses it."""
        passing = [b"passing:%d" % number for number in range(200)]
        stays = {kind: [b"%b:%d" % (kind, number) for number in range(30)] for kind in self.FILLS}

        def change() -> None:
            goes, other = random.sample(passing, 2)
            string, text = random.sample(stays[b"string"], 2)
            members, more = random.sample(stays[b"set"], 2)
            (elements,), (ranked,) = (
                random.sample(stays[b"list"], 1),
                random.sample(stays[b"zset"], 1),
            )
            number = b"%d" % random.randrange(9)
            lines: Sequence[tuple[bytes, ...]] = (
                (b"SET", goes, b"v"),
                (b"SET", goes, b"v"),
                (b"PSETEX", goes, b"2", b"v"),
                (b"DEL", goes),
                (b"RENAME", goes, other),
                (b"RENAME", goes, string),
                (b"COPY", text, string, b"REPLACE"),
                (b"SET", string, b"w"),
                (b"GETSET", string, b"w"),
                (b"EXPIRE", string, b"1000"),
                (b"PERSIST", string),
                (b"RPUSH", elements, b"e"),
                (b"LTRIM", elements, b"0", b"0"),
                (b"LMOVE", elements, elements, b"LEFT", b"LEFT"),
                (b"SADD", members, number),
                (b"SUNIONSTORE", members, members, more),
                (b"ZADD", ranked, number, b"m"),
            )
            self.run_command(*random.choice(lines))
            self.clock.now += 0.001

        keys = [key for kind in stays.values() for key in kind]
        for seed in range(self.ROUNDS):
            with self.subTest(seed=seed):
                random.seed(seed)
                self.keyspace.clear()
                for key in random.sample(keys, len(keys)):
                    name, *value = self.FILLS[key.partition(b":")[0]]
                    self.run_command(name, key, *value)
                self.check_walks(self.page(b"SCAN"), change, set(keys), set(passing))

    def test_members(self) -> None:
        """A scan of a value with more members than one page returns."""
        stays = [b"stays:%d" % number for number in range(2 * SCAN_ALL_BELOW)]
        passing = [b"passing:%d" % number for number in range(200)]
        for scan, step, changes in (
            (b"HSCAN", 2, ("HSET k {goes} v", "HDEL k {goes}", "HSET k {stays} {number}")),
            (b"SSCAN", 1, ("SADD k {goes}", "SREM k {goes}", "SADD k {stays}")),
            (b"ZSCAN", 2, ("ZADD k 1 {goes}", "ZREM k {goes}", "ZINCRBY k {number} {stays}")),
        ):

            def change(changes: Sequence[str] = changes) -> None:
                line = random.choice(changes).format(
                    goes=random.choice(passing).decode(),
                    stays=random.choice(stays).decode(),
                    number=random.randrange(10),
                )
                self.assertNotIsInstance(self.run_command(*line.encode().split()), CommandError)

            for seed in range(self.ROUNDS):
                with self.subTest(scan=scan, seed=seed):
                    random.seed(seed)
                    self.keyspace.clear()
                    for key in random.sample(stays, len(stays)):
                        line = changes[0].format(goes=key.decode()).encode()
                        self.run_command(*line.split())
                    page = self.page(scan, b"k", step=step)
                    self.check_walks(page, change, set(stays), set(passing))

    def test_a_short_value_is_one_page(self) -> None:
        fields = [b"%d" % number for number in range(SCAN_ALL_BELOW)]
        self.run_command(b"SADD", b"k", *fields)
        for cursor in (0, 5, 2**64 - 1):
            following, found = self.page(b"SSCAN", b"k")(cursor, 1)
            self.assertEqual((following, sorted(found)), (0, sorted(fields)))

    def test_a_value_that_shrinks_meanwhile(self) -> None:
        """The scan goes on and ends if the value shrinks or is replaced."""
        members = [b"%d" % number for number in range(1000)]
        self.run_command(b"SADD", b"k", *members)
        page = self.page(b"SSCAN", b"k")
        cursor, _ = page(0, 10)
        self.run_command(b"SREM", b"k", *members[500:])
        cursor, found = page(cursor, 1000)
        self.assertEqual((cursor, set(found)), (0, set(members[:500])))
        cursor, _ = page(0, 10)
        self.run_command(b"DEL", b"k")
        self.assertEqual(page(cursor, 10), (0, []))
        self.run_command(b"SADD", b"k", *members[:200])
        while cursor:
            cursor, _ = page(cursor, 10)

    def test_unknown_cursors(self) -> None:
        for number in range(50):
            self.ask(b"SET %d v" % number)
        for cursor in (1, 49, 50, 51, 10**9, 2**64 - 1):
            following, pages = cursor, 0
            while following:
                following, found = self.page(b"SCAN")(following, 10)
                self.assertLessEqual(len(found), 10)
                pages += 1
            self.assertLessEqual(pages, 5)

    def test_a_page_is_bounded(self) -> None:
        self.run_command(b"MSET", *(b"%d" % (number // 2) for number in range(2 * MAX_SCAN + 20)))
        cursor, found = self.page(b"SCAN")(0, 10**9)
        self.assertEqual((cursor, len(found)), (10, MAX_SCAN))


if __name__ == "__main__":
    unittest.main()
