"""Tests of the store without commands: values, expiry, patterns."""

from __future__ import annotations

import unittest
from typing import Callable

from pipecache import CommandError, ListValue, compile_glob
from tests.support import Clock
from tests.support.internals import new_keyspace, queued_deadlines


class StoreTests(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.keyspace = new_keyspace(self.clock)

    def expiring(self, key: bytes, milliseconds: int) -> None:
        self.keyspace.replace(key, b"value", self.keyspace.now() + milliseconds)

    def test_a_value_is_there_until_its_deadline(self) -> None:
        self.expiring(b"k", 1500)
        self.clock.now += 1.499
        self.assertEqual(self.keyspace.read(b"k", bytes), b"value")
        self.assertIn(b"k", self.keyspace)
        self.clock.now += 0.001
        self.assertNotIn(b"k", self.keyspace)
        self.assertIsNone(self.keyspace.read(b"k", bytes))
        self.assertEqual(
            (len(self.keyspace), self.keyspace.expiring, self.keyspace.expired), (0, 0, 1)
        )

    def test_every_method_sees_an_expired_key(self) -> None:
        looks: tuple[Callable[[], object], ...] = (
            lambda: self.keyspace.read(b"k", bytes),
            lambda: b"k" in self.keyspace,
            lambda: self.keyspace.read_strings([b"k"])[0],
            self.keyspace.keys,
            lambda: self.keyspace.delete(b"k"),
            lambda: self.keyspace.persist(b"k"),
        )
        for number, look in enumerate(looks):
            with self.subTest(number=number):
                self.expiring(b"k", 10)
                self.clock.now += 1
                self.assertFalse(look())
                self.assertEqual(len(self.keyspace), 0)

    def test_replace_removes_the_deadline_and_write_keeps_it(self) -> None:
        self.expiring(b"k", 1000)
        self.keyspace.write(b"k", b"other", b"append")
        self.assertIsNotNone(self.keyspace.deadline(b"k"))
        self.keyspace.replace(b"k", b"third")
        self.assertIsNone(self.keyspace.deadline(b"k"))
        self.clock.now += 2
        self.assertFalse(self.keyspace.remove_expired(10))
        self.assertEqual(self.keyspace.read(b"k", bytes), b"third")

    def test_persist(self) -> None:
        self.expiring(b"k", 1000)
        self.assertTrue(self.keyspace.persist(b"k"))
        self.assertFalse(self.keyspace.persist(b"k"))
        self.assertFalse(self.keyspace.persist(b"missing"))
        self.clock.now += 2
        self.assertIn(b"k", self.keyspace)

    def test_sweep_removes_expired_keys_in_order(self) -> None:
        for number in range(10):
            self.expiring(b"%d" % number, 100 * (10 - number))
        self.clock.now += 0.5
        self.assertTrue(self.keyspace.remove_expired(3))
        self.assertEqual(len(self.keyspace), 7)
        self.assertFalse(self.keyspace.remove_expired(100))
        self.assertEqual(sorted(self.keyspace.keys()), [b"0", b"1", b"2", b"3", b"4"])
        self.assertEqual(self.keyspace.expired, 5)

    def test_sweep_ignores_a_deadline_that_was_changed(self) -> None:
        self.expiring(b"k", 100)
        self.keyspace.set_deadline(b"k", self.keyspace.now() + 5000)
        self.clock.now += 1
        self.keyspace.remove_expired(10)
        self.assertIn(b"k", self.keyspace)
        self.clock.now += 5
        self.keyspace.remove_expired(10)
        self.assertEqual(len(self.keyspace), 0)

    def test_changed_deadlines_do_not_accumulate(self) -> None:
        self.expiring(b"other", 50)
        for number in range(10_000):
            self.expiring(b"k", 1000 + number)
        self.assertLess(queued_deadlines(self.keyspace), 100)
        self.clock.now += 0.1
        self.keyspace.remove_expired(1000)
        self.assertEqual(self.keyspace.keys(), [b"k"])

    def test_a_value_of_another_type_is_an_error(self) -> None:
        self.keyspace.replace(b"list", ListValue([b"a"]))
        with self.assertRaisesRegex(CommandError, "^WRONGTYPE "):
            self.keyspace.read(b"list", bytes)
        self.assertEqual(self.keyspace.read_strings([b"list", b"none"]), [None, None])

    def test_clear(self) -> None:
        self.expiring(b"k", 100)
        self.keyspace.clear()
        self.assertEqual((len(self.keyspace), self.keyspace.expiring), (0, 0))
        self.keyspace.replace(b"k", b"value")
        self.clock.now += 1
        self.keyspace.remove_expired(10)
        self.assertIn(b"k", self.keyspace)

    def test_the_real_clock_goes_forward(self) -> None:
        keyspace = new_keyspace()
        keyspace.replace(b"k", b"value", keyspace.now())
        self.assertNotIn(b"k", keyspace)


class GlobTests(unittest.TestCase):
    """Patterns, which match as in Redis."""

    MATCH = (
        (b"*", b"anything\n\xff"),
        (b"*", b""),
        (b"user:*", b"user:"),
        (b"user:*:name", b"user:1:2:name"),
        (b"h?llo", b"hello"),
        (b"h[ae]llo", b"hallo"),
        (b"h[^e]llo", b"hallo"),
        (b"h[a-c]llo", b"hbllo"),
        (b"h[c-a]llo", b"hbllo"),
        (b"[a-]", b"_"),  # a range to the bracket, which then ends nothing
        (b"[\\]]", b"]"),
        (b"[\\-x]", b"-"),
        (b"[^]", b"x"),
        (b"h\\*llo", b"h*llo"),
        (b"a.b", b"a.b"),
        (b"a\\", b"a\\"),
        (b"a[bc", b"ac"),
        (b"**a**", b"bab"),
        (b"a*a", b"aa"),
        (b"*ab*ab*", b"xabxabx"),
        (b"*aab", b"aaab"),
        (b"", b""),
    )
    NO_MATCH = (
        (b"", b"a"),
        (b"a*a", b"a"),
        (b"h?llo", b"hllo"),
        (b"h[ae]llo", b"hillo"),
        (b"h[^e]llo", b"hello"),
        (b"[]", b"]"),
        (b"[a-]", b"-"),
        (b"a.b", b"axb"),
        (b"*ab*ab*", b"xabx"),
        (b"user:*", b"auser:"),
        (b"GET", b"get"),
    )

    def test_match(self) -> None:
        for pattern, key in self.MATCH:
            with self.subTest(pattern=pattern, key=key):
                self.assertTrue(compile_glob(pattern)(key))

    def test_no_match(self) -> None:
        for pattern, key in self.NO_MATCH:
            with self.subTest(pattern=pattern, key=key):
                self.assertFalse(compile_glob(pattern)(key))

    def test_a_pattern_made_to_be_slow(self) -> None:
        # A matcher that tries every division of the key would not end here.
        self.assertFalse(compile_glob(b"a*" * 30 + b"b")(b"a" * 10_000))
        self.assertTrue(compile_glob(b"*" * 200 + b"b")(b"a" * 1000 + b"b"))


if __name__ == "__main__":
    unittest.main()
