"""Tests of the store without commands: values, expiry, patterns."""

from __future__ import annotations

import unittest
from typing import Callable

from pipecache import CommandError, ListValue, glob
from tests.support import Clock
from tests.support.internals import new_store, queued_deadlines


class StoreTests(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = new_store(self.clock)

    def expiring(self, key: bytes, milliseconds: int) -> None:
        self.store.replace(key, b"value", self.store.now() + milliseconds)

    def test_a_value_is_there_until_its_deadline(self) -> None:
        self.expiring(b"k", 1500)
        self.clock.now += 1.499
        self.assertEqual(self.store.read(b"k", bytes), b"value")
        self.assertIn(b"k", self.store)
        self.clock.now += 0.001
        self.assertNotIn(b"k", self.store)
        self.assertIsNone(self.store.read(b"k", bytes))
        self.assertEqual((len(self.store), self.store.expiring, self.store.expired), (0, 0, 1))

    def test_every_method_sees_an_expired_key(self) -> None:
        looks: tuple[Callable[[], object], ...] = (
            lambda: self.store.read(b"k", bytes),
            lambda: b"k" in self.store,
            lambda: self.store.strings([b"k"])[0],
            self.store.keys,
            lambda: self.store.delete(b"k"),
            lambda: self.store.persist(b"k"),
        )
        for number, look in enumerate(looks):
            with self.subTest(number=number):
                self.expiring(b"k", 10)
                self.clock.now += 1
                self.assertFalse(look())
                self.assertEqual(len(self.store), 0)

    def test_replace_removes_the_deadline_and_write_keeps_it(self) -> None:
        self.expiring(b"k", 1000)
        self.store.write(b"k", b"other", b"append")
        self.assertIsNotNone(self.store.deadline(b"k"))
        self.store.replace(b"k", b"third")
        self.assertIsNone(self.store.deadline(b"k"))
        self.clock.now += 2
        self.assertFalse(self.store.sweep(10))
        self.assertEqual(self.store.read(b"k", bytes), b"third")

    def test_persist(self) -> None:
        self.expiring(b"k", 1000)
        self.assertTrue(self.store.persist(b"k"))
        self.assertFalse(self.store.persist(b"k"))
        self.assertFalse(self.store.persist(b"missing"))
        self.clock.now += 2
        self.assertIn(b"k", self.store)

    def test_sweep_removes_expired_keys_in_order(self) -> None:
        for number in range(10):
            self.expiring(b"%d" % number, 100 * (10 - number))
        self.clock.now += 0.5
        self.assertTrue(self.store.sweep(3))
        self.assertEqual(len(self.store), 7)
        self.assertFalse(self.store.sweep(100))
        self.assertEqual(sorted(self.store.keys()), [b"0", b"1", b"2", b"3", b"4"])
        self.assertEqual(self.store.expired, 5)

    def test_sweep_ignores_a_deadline_that_was_changed(self) -> None:
        self.expiring(b"k", 100)
        self.store.set_deadline(b"k", self.store.now() + 5000)
        self.clock.now += 1
        self.store.sweep(10)
        self.assertIn(b"k", self.store)
        self.clock.now += 5
        self.store.sweep(10)
        self.assertEqual(len(self.store), 0)

    def test_changed_deadlines_do_not_accumulate(self) -> None:
        self.expiring(b"other", 50)
        for number in range(10_000):
            self.expiring(b"k", 1000 + number)
        self.assertLess(queued_deadlines(self.store), 100)
        self.clock.now += 0.1
        self.store.sweep(1000)
        self.assertEqual(self.store.keys(), [b"k"])

    def test_a_value_of_another_type_is_an_error(self) -> None:
        self.store.replace(b"list", ListValue([b"a"]))
        with self.assertRaisesRegex(CommandError, "^WRONGTYPE "):
            self.store.read(b"list", bytes)
        self.assertEqual(self.store.strings([b"list", b"none"]), [None, None])

    def test_clear(self) -> None:
        self.expiring(b"k", 100)
        self.store.clear()
        self.assertEqual((len(self.store), self.store.expiring), (0, 0))
        self.store.replace(b"k", b"value")
        self.clock.now += 1
        self.store.sweep(10)
        self.assertIn(b"k", self.store)

    def test_the_real_clock_goes_forward(self) -> None:
        store = new_store()
        store.replace(b"k", b"value", store.now())
        self.assertNotIn(b"k", store)


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
                self.assertTrue(glob(pattern)(key))

    def test_no_match(self) -> None:
        for pattern, key in self.NO_MATCH:
            with self.subTest(pattern=pattern, key=key):
                self.assertFalse(glob(pattern)(key))

    def test_a_pattern_made_to_be_slow(self) -> None:
        # A matcher that tries every division of the key would not end here.
        self.assertFalse(glob(b"a*" * 30 + b"b")(b"a" * 10_000))
        self.assertTrue(glob(b"*" * 200 + b"b")(b"a" * 1000 + b"b"))


if __name__ == "__main__":
    unittest.main()
