"""The fuzzer's corpus again, and the store against a simple model of it (hypothesis)."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
import unittest
from typing import Any
from unittest import mock

from pipecache import CommandError, Context, Live, Settings, Statistics, Store, execute
from tests import fuzz_wire, provision

#: Sequences that are tried, unless PIPECACHE_EXAMPLES says otherwise.
EXAMPLES = 300

KEYS = [b"a", b"b", b"c"]
MEMBERS = [b"", b"1", b"2", b"3.5", b"x", b"y"]


class CorpusTests(unittest.TestCase):
    """What the fuzzer begins with, without the fuzzer."""

    def test_the_corpus(self) -> None:
        paths = sorted(fuzz_wire.CORPUS.iterdir())
        self.assertGreater(len(paths), 40)
        for path in paths:
            with self.subTest(path=path.name):
                fuzz_wire.check(path.read_bytes())

    def test_the_fuzzer_sees_what_is_wrong(self) -> None:
        data = (fuzz_wire.CORPUS / "lists").read_bytes()
        fuzz_wire.check(data)
        whole = Store._remove

        def forgetful(store: Store, key: bytes) -> None:
            used = store.used
            whole(store, key)
            store.used = used

        with mock.patch.object(Store, "_remove", forgetful):
            with self.assertRaises(AssertionError):
                fuzz_wire.check(data + b"\nDEL l m")

    def test_other_inputs_by_chance(self) -> None:
        chance = random.Random(7)
        corpus = [path.read_bytes() for path in sorted(fuzz_wire.CORPUS.iterdir())]
        for _ in range(300):
            data = bytearray(chance.choice(corpus))
            for _ in range(chance.randrange(4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            fuzz_wire.check(bytes(data))


class Model:
    """What a store holds, as plain as can be: dicts, lists, sets, and when each key ends."""

    def __init__(self) -> None:
        self.values: dict[bytes, Any] = {}
        self.ends: dict[bytes, int] = {}
        self.now = 0

    def expire(self) -> None:
        for key in [key for key, end in self.ends.items() if end <= self.now]:
            del self.values[key], self.ends[key]

    def get(self, key: bytes, kind: type, empty: Any) -> Any:
        value = self.values.get(key)
        if value is not None and type(value) is not kind:
            raise CommandError("WRONGTYPE")
        return empty if value is None else value

    def put(self, key: bytes, value: Any) -> None:
        if value == b"" or value:
            self.values[key] = value
        else:
            self.remove(key)

    def remove(self, key: bytes) -> int:
        self.ends.pop(key, None)
        return int(self.values.pop(key, None) is not None)

    # Each command: what it does, and what it answers.

    def set(self, key: bytes, value: bytes) -> Any:
        self.remove(key)
        self.values[key] = value
        return b"OK"

    def setex(self, key: bytes, seconds: int, value: bytes) -> Any:
        self.set(key, value)
        self.ends[key] = self.now + seconds * 1000
        return b"OK"

    def get_(self, key: bytes) -> Any:
        return self.get(key, bytes, None)

    def append(self, key: bytes, value: bytes) -> Any:
        self.values[key] = self.get(key, bytes, b"") + value
        return len(self.values[key])

    def del_(self, *keys: bytes) -> Any:
        return sum(self.remove(key) for key in keys)

    def expire_(self, key: bytes, seconds: int) -> Any:
        if key not in self.values:
            return 0
        if seconds <= 0:
            self.remove(key)
        else:
            self.ends[key] = self.now + seconds * 1000
        return 1

    def persist(self, key: bytes) -> Any:
        return int(self.ends.pop(key, None) is not None)

    def pttl(self, key: bytes) -> Any:
        if key not in self.values:
            return -2
        return self.ends[key] - self.now if key in self.ends else -1

    def rename(self, source: bytes, target: bytes) -> Any:
        if source not in self.values:
            raise CommandError("ERR no such key")
        value, end = self.values[source], self.ends.get(source)
        self.remove(source)
        self.remove(target)
        self.values[target] = value
        if end is not None:
            self.ends[target] = end
        return b"OK"

    def copy(self, source: bytes, target: bytes, _: bytes) -> Any:
        if source == target:
            raise CommandError("ERR source and destination objects are the same")
        if source not in self.values:
            return 0
        value, end = self.values[source], self.ends.get(source)
        self.remove(target)
        self.values[target] = value if isinstance(value, bytes) else type(value)(value)
        if end is not None:
            self.ends[target] = end
        return 1

    def rpush(self, key: bytes, *elements: bytes) -> Any:
        self.put(key, self.get(key, list, []) + list(elements))
        return len(self.values[key])

    def lpop(self, key: bytes) -> Any:
        first, *rest = self.get(key, list, None) or [None]
        if first is not None:
            self.put(key, rest)
        return first

    def lrange(self, key: bytes, start: int, stop: int) -> Any:
        value = self.get(key, list, [])
        first = max(start + len(value), 0) if start < 0 else start
        last = stop + len(value) if stop < 0 else stop
        return value[first : last + 1] if last >= 0 else []

    def ltrim(self, key: bytes, start: int, stop: int) -> Any:
        self.put(key, self.lrange(key, start, stop))
        return b"OK"

    def hset(self, key: bytes, field: bytes, value: bytes) -> Any:
        old = self.get(key, dict, {})
        self.put(key, {**old, field: value})
        return int(field not in old)

    def hdel(self, key: bytes, *fields: bytes) -> Any:
        old = self.get(key, dict, {})
        self.put(key, {name: value for name, value in old.items() if name not in fields})
        return len(old.keys() & set(fields))

    def hgetall(self, key: bytes) -> Any:
        return dict(self.get(key, dict, {}))

    def sadd(self, key: bytes, *members: bytes) -> Any:
        old = self.get(key, set, set())
        self.put(key, old | set(members))
        return len(set(members) - old)

    def srem(self, key: bytes, *members: bytes) -> Any:
        old = self.get(key, set, set())
        self.put(key, old - set(members))
        return len(old & set(members))

    def smembers(self, key: bytes) -> Any:
        return sorted(self.get(key, set, set()))

    def zadd(self, key: bytes, score: int, member: bytes) -> Any:
        old = self.get(key, Scores, Scores())
        self.put(key, Scores({**old, member: float(score)}))
        return int(member not in old)

    def zrem(self, key: bytes, member: bytes) -> Any:
        old = self.get(key, Scores, Scores())
        self.put(key, Scores({name: score for name, score in old.items() if name != member}))
        return int(member in old)

    def zrange(self, key: bytes, start: int, stop: int) -> Any:
        scores = self.get(key, Scores, Scores())
        order = sorted(scores, key=lambda member: (scores[member], member))
        first = max(start + len(order), 0) if start < 0 else start
        last = stop + len(order) if stop < 0 else stop
        return order[first : last + 1] if last >= 0 else []


class Scores(dict):  # type: ignore[type-arg]
    """A sorted set of the model."""


def plain(reply: Any) -> Any:
    """A reply, or the first word of an error."""
    return str(reply).split()[0] if isinstance(reply, CommandError) else reply


class Both:
    """The same commands to the server's store and to the model."""

    def __init__(self) -> None:
        self.model = Model()
        self.store = Store(lambda: self.model.now / 1000, lambda: 1_700_000_000.0)
        self.context = Context(self.store, Settings(), Statistics("address"), Live(self.store))
        self.store.track()

    def advance(self, seconds: int) -> None:
        self.model.now += seconds * 1000
        self.model.expire()

    def run(self, name: str, *arguments: Any) -> None:
        words = [
            word if isinstance(word, bytes) else str(word).encode() for word in (name, *arguments)
        ]
        found = plain(execute(self.context, words))
        try:
            method = {"get": "get_", "del": "del_", "expire": "expire_"}.get(name, name)
            expected = getattr(self.model, method)(*arguments)
        except CommandError as error:
            expected = plain(error)
        if name == "smembers" and isinstance(found, list):
            found = sorted(found)
        if found != expected:
            raise AssertionError(f"{words}: expected {expected!r}, found {found!r}")

    def check(self) -> None:
        fuzz_wire.check_store(self.store)
        found, expected = set(self.store.keys()), set(self.model.values)
        if found != expected:
            raise AssertionError(f"expected the keys {expected}, found {found}")


class ModelTests(unittest.TestCase):
    """Sequences of commands that hypothesis thinks of, and makes shorter when one fails."""

    @classmethod
    def setUpClass(cls) -> None:
        folder = provision.given("PIPECACHE_HYPOTHESIS")
        sys.path.insert(0, folder)
        cls.addClassCleanup(sys.path.remove, folder)

    def test_the_store_and_the_model(self) -> None:
        hypothesis: Any = importlib.import_module("hypothesis")
        strategies: Any = importlib.import_module("hypothesis.strategies")
        key, member = strategies.sampled_from(KEYS), strategies.sampled_from(MEMBERS)
        number = strategies.integers(-3, 3)
        members = strategies.lists(member, min_size=1, max_size=3)
        every: list[Any] = [
            *(strategies.tuples(strategies.just(name), key) for name in
              ("get", "del", "persist", "pttl", "lpop", "hgetall", "smembers")),
            *(strategies.tuples(strategies.just(name), key, member) for name in
              ("set", "append", "zrem")),
            *(strategies.tuples(strategies.just(name), key, number, number) for name in
              ("lrange", "ltrim", "zrange")),
            *(strategies.builds(lambda n, k, m: (n, k, *m), strategies.just(name), key, members)
              for name in ("rpush", "hdel", "sadd", "srem")),
            strategies.tuples(strategies.just("setex"), key, strategies.integers(1, 9), member),
            strategies.tuples(strategies.just("expire"), key, number),
            strategies.tuples(strategies.just("rename"), key, key),
            strategies.tuples(strategies.just("copy"), key, key, strategies.just(b"REPLACE")),
            strategies.tuples(strategies.just("hset"), key, member, member),
            strategies.tuples(strategies.just("zadd"), key, number, member),
            strategies.tuples(strategies.just("advance"), strategies.integers(1, 5)),
        ]  # fmt: skip

        sequences = strategies.lists(strategies.one_of(every), max_size=40)

        @hypothesis.settings(  # type: ignore[misc]
            max_examples=int(os.environ.get("PIPECACHE_EXAMPLES", EXAMPLES)),
            deadline=None,
            database=None,
            derandomize="PIPECACHE_EXAMPLES" not in os.environ,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(sequences)  # type: ignore[misc]
        def same(commands: list[tuple[Any, ...]]) -> None:
            both = Both()
            for name, *arguments in commands:
                if name == "advance":
                    both.advance(*arguments)
                else:
                    both.run(name, *arguments)
            both.check()

        with contextlib.redirect_stdout(None):
            same()


if __name__ == "__main__":
    unittest.main()
