"""Tests of the fuzzer's corpus, and comparisons of the store with a simple model (hypothesis)."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import random
import re
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Callable
from unittest import mock

from pipecache import (
    POLICIES,
    CommandError,
    Keyspace,
    NullReply,
    SetReply,
    execute,
)
from tests.support import required, running_under_wine
from tests.support.internals import (
    ServedClient,
    SharedState,
    check_keyspace,
    new_keyspace,
    reserved,
    watched_keys,
)
from tests.tools import fuzz_wire

#: The number of sequences to try, unless PIPECACHE_EXAMPLES is set.
EXAMPLES = 200

KEYS = [b"a", b"b", b"c"]
MEMBERS = [b"", b"1", b"2", b"3.5", b"x", b"y"]

INTEGER = re.compile(rb"0|-?[1-9]\d{0,17}")


class CorpusTests(unittest.TestCase):
    """The inputs that the fuzzer starts with, without the fuzzer."""

    def test_the_corpus(self) -> None:
        paths = sorted(fuzz_wire.CORPUS.iterdir())
        self.assertGreater(len(paths), 40)
        for path in paths:
            with self.subTest(path=path.name):
                fuzz_wire.check(path.read_bytes())

    def test_the_fuzzer_sees_what_is_wrong(self) -> None:
        data = (fuzz_wire.CORPUS / "lists").read_bytes()
        fuzz_wire.check(data)
        whole = Keyspace._remove

        def forgetful(keyspace: Keyspace, key: bytes) -> None:
            used = keyspace.used_memory
            whole(keyspace, key)
            keyspace.used_memory = used

        with mock.patch.object(Keyspace, "_remove", forgetful):
            with self.assertRaises(AssertionError):
                fuzz_wire.check(data + b"\nDEL l m")

    def test_the_reader_of_replies(self) -> None:
        kinds = fuzz_wire.KINDS3
        for replies, count in (
            (b"", 0),
            (b"+OK\r\n:1\r\n", 2),
            (b"*2\r\n$1\r\na\r\n*0\r\n$-1\r\n", 2),
            (b"%1\r\n$1\r\na\r\n~1\r\n,1.5\r\n_\r\n", 2),
        ):
            self.assertEqual(fuzz_wire.count_replies(replies, kinds), count, replies)
        for wrong in (
            *(b"+OK", b"+OK\n", b"OK\r\n", b"$2\r\na\r\n", b"$01\r\na\r\n", b"*2\r\n:1\r\n"),
            *(
                b"*-2\r\n",
                b"+a\nb\r\n",
                b"-what\r\n",
                b":1.5\r\n",
                b"=5\r\nabc:d\r\n",
                b"$+1\r\na\r\n",
            ),
        ):
            with self.subTest(wrong=wrong), self.assertRaises(AssertionError):
                fuzz_wire.count_replies(wrong, kinds)

    def test_other_inputs_by_chance(self) -> None:
        chance = random.Random(7)
        corpus = [path.read_bytes() for path in sorted(fuzz_wire.CORPUS.iterdir())]
        for _ in range(300):
            data = bytearray(chance.choice(corpus))
            for _ in range(chance.randrange(4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with self.subTest(data=bytes(data)):
                fuzz_wire.check(bytes(data))


class Scores(dict):  # type: ignore[type-arg]
    """A sorted set of the model."""

    def order(self) -> list[bytes]:
        return sorted(self, key=lambda member: (self[member], member))


def between(value: Any, start: int, stop: int) -> Any:
    """Return the elements from start to stop, both included; numbers below 0 count from the end."""
    first = max(start + len(value), 0) if start < 0 else start
    last = stop + len(value) if stop < 0 else stop
    return value[first : last + 1] if last >= 0 else value[:0]


def integer(text: bytes) -> int:
    if not INTEGER.fullmatch(text):
        raise CommandError("ERR")
    return int(text)


class Model:
    """A simple model of a store: dicts, lists, sets, and the time at which each key expires.

    No value is changed in its place, so that to keep one is to keep what it was.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, Any] = {}
        self.ends: dict[bytes, int] = {}
        self.now = 0

    def expire(self) -> None:
        for key in [key for key, end in self.ends.items() if end <= self.now]:
            del self.values[key], self.ends[key]

    def get(self, key: bytes, kind: type, empty: Any = None) -> Any:
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

    def place(self, key: bytes, value: Any, end: int | None = None) -> None:
        self.remove(key)
        self.put(key, value)
        if end is not None:
            self.ends[key] = end

    # Strings. Each method runs a command and returns the reply.

    def do_get(self, key: bytes) -> Any:
        return self.get(key, bytes)

    def do_set(self, key: bytes, value: bytes) -> Any:
        self.place(key, value)
        return b"OK"

    def do_setnx(self, key: bytes, value: bytes) -> Any:
        return int(key not in self.values and self.do_set(key, value) == b"OK")

    def do_setex(self, key: bytes, seconds: int, value: bytes) -> Any:
        self.place(key, value, self.now + seconds * 1000)
        return b"OK"

    def do_getset(self, key: bytes, value: bytes) -> Any:
        old = self.get(key, bytes)
        self.place(key, value)
        return old

    def do_getdel(self, key: bytes) -> Any:
        old = self.get(key, bytes)
        self.remove(key)
        return old

    def do_append(self, key: bytes, value: bytes) -> Any:
        self.put(key, self.get(key, bytes, b"") + value)
        return len(self.values[key])

    def do_setrange(self, key: bytes, offset: int, value: bytes) -> Any:
        old = self.get(key, bytes)
        if not value:
            return len(old or b"")
        padded = (old or b"").ljust(offset, b"\0")
        self.put(key, padded[:offset] + value + padded[offset + len(value) :])
        return len(self.values[key])

    def do_getrange(self, key: bytes, start: int, end: int) -> Any:
        value = self.get(key, bytes, b"")
        if start < 0 and end < 0 and start > end:
            return b""
        return between(value, start, max(end, -len(value)))

    def do_incrby(self, key: bytes, number: int) -> Any:
        result = integer(self.get(key, bytes, b"0")) + number
        self.put(key, b"%d" % result)
        return result

    # Keys

    def do_del(self, *keys: bytes) -> Any:
        return sum(self.remove(key) for key in keys)

    def do_exists(self, *keys: bytes) -> Any:
        return sum(key in self.values for key in keys)

    def do_expire(self, key: bytes, seconds: int, condition: bytes = b"") -> Any:
        if key not in self.values:
            return 0
        end = self.now + seconds * 1000
        old = self.ends.get(key, 10**20)
        has_one = key in self.ends
        wanted = {b"NX": not has_one, b"XX": has_one, b"GT": end > old, b"LT": end < old}
        if not wanted.get(condition, True):
            return 0
        if seconds <= 0:
            self.remove(key)
        else:
            self.ends[key] = end
        return 1

    def do_persist(self, key: bytes) -> Any:
        return int(self.ends.pop(key, None) is not None)

    def do_pttl(self, key: bytes) -> Any:
        if key not in self.values:
            return -2
        return self.ends[key] - self.now if key in self.ends else -1

    def do_type(self, key: bytes) -> Any:
        names: dict[Any, bytes] = {
            bytes: b"string",
            list: b"list",
            dict: b"hash",
            set: b"set",
            Scores: b"zset",
        }
        return names.get(type(self.values.get(key)), b"none")

    def do_rename(self, source: bytes, target: bytes) -> Any:
        if source not in self.values:
            raise CommandError("ERR no such key")
        value, end = self.values[source], self.ends.get(source)
        self.remove(source)
        self.place(target, value, end)
        return b"OK"

    def do_renamenx(self, source: bytes, target: bytes) -> Any:
        if source in self.values and target in self.values:
            return 0
        return int(self.do_rename(source, target) == b"OK")

    def do_copy(self, source: bytes, target: bytes, replace: bytes) -> Any:
        if source == target:
            raise CommandError("ERR source and destination objects are the same")
        if source not in self.values or (target in self.values and not replace):
            return 0
        self.place(target, self.values[source], self.ends.get(source))
        return 1

    def do_flushall(self) -> Any:
        self.values, self.ends = {}, {}
        return b"OK"

    def do_dbsize(self) -> Any:
        return len(self.values)

    # Lists

    def do_rpush(self, key: bytes, *elements: bytes) -> Any:
        self.put(key, self.get(key, list, []) + list(elements))
        return len(self.values[key])

    def do_lpush(self, key: bytes, *elements: bytes) -> Any:
        self.put(key, list(elements)[::-1] + self.get(key, list, []))
        return len(self.values[key])

    def do_lpop(self, key: bytes) -> Any:
        first, *rest = self.get(key, list) or [None]
        if first is not None:
            self.put(key, rest)
        return first

    def do_rpop(self, key: bytes) -> Any:
        *rest, last = self.get(key, list) or [None]
        if last is not None:
            self.put(key, rest)
        return last

    def do_lrange(self, key: bytes, start: int, stop: int) -> Any:
        return between(self.get(key, list, []), start, stop)

    def do_ltrim(self, key: bytes, start: int, stop: int) -> Any:
        self.put(key, self.do_lrange(key, start, stop))
        return b"OK"

    def do_lindex(self, key: bytes, index: int) -> Any:
        value = self.get(key, list, [])
        return value[index] if -len(value) <= index < len(value) else None

    def do_lset(self, key: bytes, index: int, element: bytes) -> Any:
        value = list(self.get(key, list, []))
        if not -len(value) <= index < len(value):
            raise CommandError("ERR")
        value[index] = element
        self.put(key, value)
        return b"OK"

    def do_linsert(self, key: bytes, where: bytes, pivot: bytes, element: bytes) -> Any:
        value = self.get(key, list, [])
        if pivot not in value:
            return -1 if value else 0
        place = value.index(pivot) + (where == b"AFTER")
        self.put(key, [*value[:place], element, *value[place:]])
        return len(value) + 1

    def do_lrem(self, key: bytes, count: int, element: bytes) -> Any:
        value = self.get(key, list, [])
        places = [place for place, each in enumerate(value) if each == element]
        gone = places[:count] if count > 0 else places[count:]
        self.put(key, [each for place, each in enumerate(value) if place not in gone])
        return len(gone)

    def do_rpoplpush(self, source: bytes, target: bytes) -> Any:
        if not self.get(source, list):
            return None
        self.get(target, list)
        element = self.do_rpop(source)
        self.do_lpush(target, element)
        return element

    # Hashes

    def do_hset(self, key: bytes, field: bytes, value: bytes) -> Any:
        old = self.get(key, dict, {})
        self.put(key, {**old, field: value})
        return int(field not in old)

    def do_hget(self, key: bytes, field: bytes) -> Any:
        return self.get(key, dict, {}).get(field)

    def do_hincrby(self, key: bytes, field: bytes, number: int) -> Any:
        result = integer(self.get(key, dict, {}).get(field, b"0")) + number
        self.do_hset(key, field, b"%d" % result)
        return result

    def do_hdel(self, key: bytes, *fields: bytes) -> Any:
        old = self.get(key, dict, {})
        self.put(key, {name: value for name, value in old.items() if name not in fields})
        return len(old.keys() & set(fields))

    def do_hgetall(self, key: bytes) -> Any:
        return dict(self.get(key, dict, {}))

    # Sets

    def do_sadd(self, key: bytes, *members: bytes) -> Any:
        old = self.get(key, set, set())
        self.put(key, old | set(members))
        return len(set(members) - old)

    def do_srem(self, key: bytes, *members: bytes) -> Any:
        old = self.get(key, set, set())
        self.put(key, old - set(members))
        return len(old & set(members))

    def do_smembers(self, key: bytes) -> Any:
        return set(self.get(key, set, set()))

    def do_smove(self, source: bytes, target: bytes, member: bytes) -> Any:
        if not self.get(source, set):
            return 0
        self.get(target, set)
        if member not in self.values[source]:
            return 0
        self.do_srem(source, member)
        self.do_sadd(target, member)
        return 1

    def do_sinter(self, one: bytes, other: bytes) -> Any:
        return self.get(one, set, set()) & self.get(other, set, set())

    def do_sdiff(self, one: bytes, other: bytes) -> Any:
        return self.get(one, set, set()) - self.get(other, set, set())

    def do_sunionstore(self, target: bytes, one: bytes, other: bytes) -> Any:
        result = self.get(one, set, set()) | self.get(other, set, set())
        self.place(target, result)
        return len(result)

    def do_sdiffstore(self, target: bytes, one: bytes, other: bytes) -> Any:
        result = self.do_sdiff(one, other)
        self.place(target, result)
        return len(result)

    # Sorted sets

    def do_zadd(self, key: bytes, score: int, member: bytes) -> Any:
        old = self.get(key, Scores, Scores())
        self.put(key, Scores({**old, member: float(score)}))
        return int(member not in old)

    def do_zincrby(self, key: bytes, number: int, member: bytes) -> Any:
        result = self.get(key, Scores, Scores()).get(member, 0.0) + number
        self.do_zadd(key, result, member)
        return result

    def do_zrem(self, key: bytes, member: bytes) -> Any:
        old = self.get(key, Scores, Scores())
        self.put(key, Scores({name: score for name, score in old.items() if name != member}))
        return int(member in old)

    def do_zscore(self, key: bytes, member: bytes) -> Any:
        return self.get(key, Scores, Scores()).get(member)

    def do_zrank(self, key: bytes, member: bytes) -> Any:
        order = self.get(key, Scores, Scores()).order()
        return order.index(member) if member in order else None

    def do_zrange(self, key: bytes, start: int, stop: int) -> Any:
        return between(self.get(key, Scores, Scores()).order(), start, stop)

    def do_zrangebyscore(self, key: bytes, low: int, high: int) -> Any:
        scores = self.get(key, Scores, Scores())
        return [member for member in scores.order() if low <= scores[member] <= high]

    def do_zremrangebyrank(self, key: bytes, start: int, stop: int) -> Any:
        return sum(self.do_zrem(key, member) for member in self.do_zrange(key, start, stop))

    def do_zpopmax(self, key: bytes) -> Any:
        scores = self.get(key, Scores, Scores())
        last = scores.order()[-1:]
        return [
            each
            for member in last
            if self.do_zrem(key, member)
            for each in (member, scores[member])
        ]


#: The commands and a letter for each argument: k key, K keys, m member, M members, n number,
#: u small number from 0, s seconds, w place of an insertion, c condition, r REPLACE or nothing.
COMMANDS = {
    "get": "k", "set": "km", "setnx": "km", "setex": "ksm", "getset": "km", "getdel": "k",
    "append": "km", "setrange": "kum", "getrange": "knn", "incrby": "kn",
    "del": "K", "exists": "K", "expire": "kn", "expire ": "knc", "persist": "k", "pttl": "k",
    "type": "k", "rename": "kk", "renamenx": "kk", "copy": "kkr", "flushall": "", "dbsize": "",
    "rpush": "kM", "lpush": "kM", "lpop": "k", "rpop": "k", "lrange": "knn", "ltrim": "knn",
    "lindex": "kn", "lset": "knm", "linsert": "kwmm", "lrem": "knm", "rpoplpush": "kk",
    "hset": "kmm", "hget": "km", "hincrby": "kmn", "hdel": "kM", "hgetall": "k",
    "sadd": "kM", "srem": "kM", "smembers": "k", "smove": "kkm", "sinter": "kk", "sdiff": "kk",
    "sunionstore": "kkk", "sdiffstore": "kkk",
    "zadd": "knm", "zincrby": "knm", "zrem": "km", "zscore": "km", "zrank": "km",
    "zrange": "knn", "zrangebyscore": "knn", "zremrangebyrank": "knn", "zpopmax": "k",
}  # fmt: skip
TRANSACTIONS = {"multi": "", "exec": "", "discard": "", "watch": "K"}
#: The commands that only read.
READS = frozenset(
    {"get", "getrange", "exists", "pttl", "type", "dbsize", "lrange", "lindex", "hget", "hgetall",
     "smembers", "sinter", "sdiff", "zscore", "zrank", "zrange", "zrangebyscore"}
)  # fmt: skip


def plain(reply: Any) -> Any:
    """Return a reply in which an error is only its first word, and members are a set."""
    if isinstance(reply, CommandError):
        return "error " + str(reply).split()[0]
    if isinstance(reply, SetReply):
        return set(reply)
    return [plain(each) for each in reply] if isinstance(reply, list) else reply


class Client:
    """A client of the model: its queued commands, and the keys that it watches."""

    def __init__(self, real: ServedClient) -> None:
        #: The client object of the server.
        self.real = real
        self.queue: list[tuple[str, tuple[Any, ...]]] | None = None
        self.watched: set[bytes] = set()
        #: True if a watched key was changed, and if a watched key may have been changed.
        self.broken = self.touched = False

    def end(self) -> None:
        self.queue = None
        self.watched = set()
        self.broken = self.touched = False


class Both:
    """Two clients that send the same commands to the server's store and to the model.

    :param limit: bytes of memory, or None.
    """

    def __init__(self, limit: int | None = None, policy: str = POLICIES[0]) -> None:
        self.model = Model()
        self.keyspace = keyspace = new_keyspace(
            lambda: self.model.now / 1000, lambda: 1_700_000_000.0
        )
        if limit:
            keyspace.memory_limit = limit
        self.limit, self.policy = limit, policy
        keyspace.policy = policy
        keyspace.track_changes()
        self.evicted: list[bytes] = []
        state = SharedState(keyspace)
        keyspace.notify = self.observe
        self.clients = [Client(state.new_client()) for _ in range(2)]

    def observe(self, event: bytes, key: bytes, value: Any) -> None:
        if event == b"evicted":
            self.evicted.append(key)

    def changing(self, change: Callable[[], Any], named: Any = KEYS) -> Any:
        """Change the model, and note which clients watch a key that was changed."""
        before = {key: (self.model.values.get(key), self.model.ends.get(key)) for key in KEYS}
        try:
            return change()
        finally:
            for key, (value, end) in before.items():
                changed = (value, end) != (self.model.values.get(key), self.model.ends.get(key))
                for client in self.clients:
                    if key in client.watched:
                        client.broken |= changed
                        client.touched |= changed or key in named

    def advance(self, milliseconds: int) -> None:
        self.model.now += milliseconds
        self.changing(self.model.expire, ())

    def answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Run a command on the model and return its reply."""
        named = () if name in READS else KEYS if name == "flushall" else arguments
        try:
            return self.changing(lambda: getattr(self.model, f"do_{name}")(*arguments), named)
        except CommandError as error:
            return plain(error)

    def run(self, who: int, name: str, *arguments: Any) -> None:
        client, name = self.clients[who], name.strip()
        words = [
            word if isinstance(word, bytes) else str(word).encode()
            for word in (name, *arguments) if word != b""or name != "copy"
        ]  # fmt: skip
        full = self.keyspace.used_memory > self.keyspace.memory_limit
        found = plain(execute(client.real, words))
        for key in self.evicted:
            self.lose(key)
        evicted, self.evicted = self.evicted, []
        if evicted and not full:
            raise AssertionError(f"{evicted} were evicted although memory was left")
        if found == "error OOM":
            self.refused(full)
            return
        expected = self.expected(client, name, arguments, found)
        if found != expected:
            raise AssertionError(f"{words}: expected {expected!r}, found {found!r}")

    def expected(self, client: Client, name: str, arguments: tuple[Any, ...], found: Any) -> Any:
        """Return the reply that the model gives, also to the commands of transactions."""
        if name == "exec":
            queue, broken, touched = client.queue, client.broken, client.touched
            if queue is None:  # which leaves the watch as it is
                return "error ERR"
            client.end()
            aborted = isinstance(found, NullReply)
            if aborted:
                if not touched:
                    raise AssertionError(
                        "a transaction was aborted although no watched key changed"
                    )
                return found
            if broken:
                raise AssertionError("a transaction was run although a watched key changed")
            return [self.answer(each, its) for each, its in queue]
        if name in ("multi", "watch") and client.queue is not None:
            return "error ERR"
        if name == "discard" and client.queue is None:
            return "error ERR"
        if name == "multi":
            client.queue = []
        elif name == "discard":
            client.end()
        elif name == "watch":
            client.watched.update(arguments)
        elif client.queue is not None:
            client.queue.append((name, arguments))
            return b"QUEUED"
        else:
            return self.answer(name, arguments)
        return b"OK"

    def lose(self, key: bytes) -> None:
        if self.policy == "noeviction":
            raise AssertionError(f"{key!r} was evicted under the policy noeviction")
        if self.policy.startswith("volatile") and key not in self.model.ends:
            raise AssertionError(f"{key!r} was evicted although it does not expire")
        if self.policy == "volatile-ttl" and self.model.ends[key] > min(self.model.ends.values()):
            raise AssertionError(f"{key!r} was evicted before one that expires earlier")
        self.changing(lambda: self.model.remove(key))

    def refused(self, full: bool) -> None:
        left = self.model.values if self.policy.startswith("allkeys") else self.model.ends
        if not full or (left and self.policy != "noeviction"):
            raise AssertionError("a command was refused although memory is left")

    def check(self) -> None:
        check_keyspace(self.keyspace, reserved([client.real for client in self.clients]))
        found, expected = set(self.keyspace.keys()), set(self.model.values)
        if found != expected:
            raise AssertionError(f"expected the keys {expected}, found {found}")

    def finish(self) -> None:
        """Check that the store and the model hold the same, and that all memory is released."""
        for client in self.clients:
            client.real.end_transaction()
            client.end()
        self.check()
        if watched_keys(self.keyspace):
            raise AssertionError("a watch is left")
        for key in KEYS:
            self.run(0, "pttl", key)
            for name in ("get", "hgetall", "smembers"):
                self.run(0, name, key)
            for name in ("lrange", "zrange"):
                self.run(0, name, key, 0, -1)
            for member in self.model.values[key] if self.model.do_type(key) == b"zset" else ():
                self.run(0, "zscore", key, member)
        # Memory is brought below the limit, unless no key is left that may be evicted.
        if self.limit:
            with contextlib.suppress(CommandError):
                self.keyspace.free_memory()
            for key in self.evicted:
                self.lose(key)
            if self.keyspace.used_memory > self.limit:
                self.refused(True)
            self.check()


class ModelTests(unittest.TestCase):
    """Sequences of commands that hypothesis generates, and shortens if one of them fails."""

    @classmethod
    def setUpClass(cls) -> None:
        folder = required("PIPECACHE_HYPOTHESIS")
        sys.path.insert(0, folder)
        cls.addClassCleanup(sys.path.remove, folder)
        # Otherwise hypothesis writes its database into the working directory.
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        with contextlib.ExitStack() as stack:
            if running_under_wine():
                # hypothesis asks for the system's name by WMI, on which Wine ends the program.
                stack.enter_context(
                    mock.patch("platform._wmi_query", side_effect=OSError, create=True)
                )
            configuration: Any = importlib.import_module("hypothesis.configuration")
        configuration.set_hypothesis_home_dir(Path(temporary.name))

    def sequences(self) -> tuple[Any, Any]:
        """Return strategies for steps of both clients: without transactions, and with them."""
        strategies: Any = importlib.import_module("hypothesis.strategies")
        key, member = strategies.sampled_from(KEYS), strategies.sampled_from(MEMBERS)
        kinds = {
            "k": key,
            "m": member,
            "K": strategies.lists(key, min_size=1, max_size=3),
            "M": strategies.lists(member, min_size=1, max_size=3),
            "n": strategies.integers(-3, 3),
            "u": strategies.integers(0, 3),
            "s": strategies.integers(1, 9),
            "w": strategies.sampled_from([b"BEFORE", b"AFTER"]),
            "c": strategies.sampled_from([b"NX", b"XX", b"GT", b"LT"]),
            "r": strategies.sampled_from([b"", b"REPLACE"]),
        }
        who = strategies.integers(0, 1)

        def step(name: str, letters: str) -> Any:
            return strategies.tuples(who, strategies.just(name), *map(kinds.__getitem__, letters))

        advance = strategies.tuples(strategies.integers(1, 5000), strategies.just("advance"))
        single = strategies.one_of(*(step(*item) for item in COMMANDS.items()), advance)
        few = strategies.lists(single, max_size=10)
        loose = strategies.one_of(*(step(*item) for item in TRANSACTIONS.items()))

        def transaction(client: int, keys: list[bytes], between: Any, queued: Any) -> Any:
            first: list[Any] = [(client, "watch", keys), *between, (client, "multi")]
            first += [(client, *each[1:]) for each in queued if each[1] != "advance"]
            return [*first, (client, "exec")]

        whole = strategies.builds(
            transaction, who, kinds["K"], strategies.lists(single, max_size=2), few
        )

        # A list of lists: hypothesis generates short lists, and shrinks these to nothing.
        def sequences(part: Any) -> Any:
            parts = strategies.lists(part, min_size=5, max_size=10)
            return parts.map(lambda found: list(itertools.chain(*found)))

        return sequences(few), sequences(
            strategies.one_of(few, whole, strategies.lists(loose, max_size=2))
        )

    def holds(self, given: Any, test: Callable[[Any], None]) -> None:
        """Run a test with many examples of a strategy."""
        hypothesis: Any = importlib.import_module("hypothesis")
        settings = hypothesis.settings(
            max_examples=int(os.environ.get("PIPECACHE_EXAMPLES", EXAMPLES)),
            deadline=None,
            database=None,
            derandomize="PIPECACHE_EXAMPLES" not in os.environ,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        with contextlib.redirect_stdout(None):
            settings(hypothesis.given(given)(test))()

    def carry_out(self, both: Both, steps: list[tuple[Any, ...]]) -> None:
        for who, name, *groups in steps:
            if name == "advance":
                both.advance(who)
            else:
                flat = [each if isinstance(each, list) else [each] for each in groups]
                both.run(who, name, *itertools.chain(*flat))
            both.check()
        both.finish()

    def test_the_store_and_the_model(self) -> None:
        _, steps = self.sequences()
        self.holds(steps, lambda given: self.carry_out(Both(), given))

    def test_when_memory_is_short(self) -> None:
        """Only keys that the policy allows are evicted, and only if memory is short."""
        strategies: Any = importlib.import_module("hypothesis.strategies")
        steps, _ = self.sequences()
        # Three small keys take about 1,000 bytes.
        limit, policy = strategies.integers(1, 1500), strategies.sampled_from(POLICIES)
        self.holds(
            strategies.tuples(limit, policy, steps),
            lambda given: self.carry_out(Both(*given[:2]), given[2]),
        )


if __name__ == "__main__":
    unittest.main()
