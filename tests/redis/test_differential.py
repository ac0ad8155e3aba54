r"""Comparison with redis-server: the replies to random commands must be equal.

The table in ``support/generator.py`` declares each command and what its arguments are drawn
from. Both servers receive a sequence of such commands, some of which are damaged. The test compares
every reply, including its RESP type and the text of an error, and at the end all keys. It does not
compare what differs between two Redis servers: the order in a set or hash, random choices, times to
the millisecond, connection ids.

The number of a sequence is the seed of its random choices. The test prints the seed, so that

    PIPECACHE_SEED=12345 PIPECACHE_SEQUENCES=1 python tests --only native -k Differential

repeats one sequence, and a larger PIPECACHE_SEQUENCES runs more. Without a time limit:

    PIPECACHE_REDIS_SERVER=redis-server PIPECACHE_SEQUENCES=100000 \
        python -m unittest tests.redis.test_differential
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
import unittest
from collections import Counter
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

from tests.support import WINDOWS, ServerProcess, redis_address
from tests.support.generator import TABLE, Generator, Step, command_name, rows
from tests.support.redis_server import Connection
from tests.support.wire import Reply, command

#: The number of sequences in a run.
SEQUENCES = 3000

#: The number of commands whose differences a run reports, and of sequences that it shortens.
REPORTS = 10
SHRINKS = 30

#: Seconds after which a sequence is not shortened further.
SHRINK_TIME = 5.0

#: Milliseconds by which the two servers may run a command at different times.
TOLERANCE = 2000

# ---------------------------------------------------------------------------
# Comparing replies
# ---------------------------------------------------------------------------

#: A function that returns True if the replies of both servers to the commands of a step agree.
Check = Callable[[Step, Sequence[Reply], Sequence[Reply]], bool]


def elements(reply: Reply) -> list[Reply]:
    """Return the replies inside an array, set or map, in which keys and values take turns."""
    return list(reply[1]) if isinstance(reply[1], tuple) else []


def pairs(reply: Reply) -> list[tuple[Reply, ...]]:
    """Return the pairs of a map, of an array of pairs, or of a flat array."""
    inside = elements(reply)
    if inside and isinstance(inside[0][1], tuple):
        return [tuple(elements(each)) for each in inside]
    return list(zip(inside[::2], inside[1::2]))


def shape(reply: Reply) -> object:
    """Return a reply without the values in it; an error is kept."""
    if isinstance(reply[1], tuple):
        return reply[0], [shape(each) for each in reply[1]]
    return reply if reply[0] == "-" else (reply[0], reply[1] is None)


def without_order(reply: Reply) -> object:
    """Return a form of a reply that does not depend on the order of elements."""
    return (reply[0], Counter(elements(reply))) if elements(reply) else reply


def pairs_without_order(reply: Reply) -> object:
    """Return a form of a reply that does not depend on the order of pairs."""
    inside = elements(reply)
    return (reply[0], len(inside), Counter(pairs(reply))) if inside else reply


def without_id(reply: Reply) -> object:
    """Return the reply to HELLO without the id of the connection."""
    inside = elements(reply)
    return (reply[0], inside[:7], inside[8:]) if len(inside) == 14 else reply


def page(reply: Reply) -> object:
    """Return all elements of a complete scan; of a single page, only the types."""
    inside = elements(reply)
    return (reply[0], [kind for kind, _ in inside]) if inside else reply


def by(normal: Callable[[Reply], object]) -> Check:
    """Return a check that two replies are equal in this form."""

    def check(step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]) -> bool:
        return [normal(reply) for reply in theirs] == [normal(reply) for reply in ours]

    return check


def near(tolerance: int) -> Check:
    """Return a check that two times differ by at most the tolerance."""

    def check(step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]) -> bool:
        ((kind, one),), ((other_kind, other),) = theirs, ours
        if kind == other_kind == ":" and one >= 0 and other >= 0:
            return bool(abs(one - other) <= tolerance)
        return theirs == ours

    return check


def check_choice(step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]) -> bool:
    """Check a random choice: an equal number of existing members on both sides, none of them twice.

    With a negative count, a member may appear several times. SPOP must remove the members.
    """
    whole = pairs_without_order if step.name == "HRANDFIELD" else without_order
    if whole(theirs[0]) != whole(ours[0]) or list(map(shape, theirs)) != list(map(shape, ours)):
        return False
    return all(_is_choice(step, *replies) for replies in (theirs, ours))


def _is_choice(step: Step, before: Reply, reply: Reply, *after: Reply) -> bool:
    there: Sequence[object] = elements(before)
    chosen: Sequence[object] = elements(reply)
    if reply[0] == "$" and reply[1] is not None:
        chosen = [reply]
    if step.name == "HRANDFIELD":
        there = pairs(before) if len(step.arguments) > 3 else there[::2]
        chosen = pairs(reply) if len(step.arguments) > 3 else chosen
    repeats = b"".join(step.arguments[2:3]).startswith(b"-")
    if len(set(chosen)) < len(chosen) and not repeats:
        return False
    if after and set(elements(after[0])) != set(there) - set(chosen):
        return False
    return set(chosen) <= set(there)


CHECKS: dict[str, Check] = {
    **dict.fromkeys(["SMEMBERS", "SINTER", "SUNION", "SDIFF"], by(without_order)),
    **dict.fromkeys(["KEYS", "HKEYS", "HVALS"], by(without_order)),
    "HGETALL": by(pairs_without_order),
    **dict.fromkeys(["SCAN", "HSCAN", "SSCAN", "ZSCAN"], by(page)),
    **dict.fromkeys(["RANDOMKEY", "HRANDFIELD", "SRANDMEMBER", "SPOP"], check_choice),
    **dict.fromkeys(["TTL", "EXPIRETIME"], near(TOLERANCE // 1000)),
    **dict.fromkeys(["PTTL", "PEXPIRETIME"], near(TOLERANCE)),
    "CLIENT ID": by(shape),
    "HELLO": by(without_id),
    # The encoding depends on earlier commands, too: after APPEND, Redis keeps 1 as a raw string.
    "OBJECT ENCODING": by(shape),
}
EXACT = by(lambda reply: reply)


# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------

QUEUED = ("+", b"QUEUED")

#: The text in place of a reply that does not arrive.
NO_REPLY = "no reply: "

#: The commands that return pages, and the index of the cursor among the arguments.
CURSORS = {"SCAN": 1, "HSCAN": 2, "SSCAN": 2, "ZSCAN": 2}

#: The command that returns the whole value of a type.
CONTENTS = {
    b"string": "GET",
    b"list": "LRANGE 0 -1",
    b"hash": "HGETALL",
    b"set": "SMEMBERS",
    b"zset": "ZRANGE 0 -1 WITHSCORES",
}

#: The connection that reads all keys at the end, and the name of a difference in them.
OBSERVER = 2
LEFT = "what is left"


class Side:
    """One of the two servers, with the connections of a sequence."""

    def __init__(self, title: str, address: str) -> None:
        self.title = title
        self._address = address
        self._connections: list[Connection] = []

    def begin(self, version: int) -> None:
        """Delete all keys, and switch the connections to a version of RESP."""
        if not self._connections:
            self._connections = [Connection(self._address) for _ in (0, 1, OBSERVER)]
        start = [[b"RESET"], [b"FLUSHALL"], [b"HELLO", b"%d" % version]]
        for connection in self._connections:
            connection.send(b"".join(command(*arguments) for arguments in start))
        for connection in self._connections:
            replies = [connection.receive() for _ in start]
            if "-" in [kind for kind, _ in replies]:
                raise ConnectionError(f"{self.title} does not begin: {replies}")

    def send(self, connection: int, steps: Iterable[Step]) -> None:
        """Send the commands of several steps at once."""
        commands = [command(*each) for step in steps for each in step.commands]
        with contextlib.suppress(OSError):  # then the replies are missing
            self._connections[connection].send(b"".join(commands))

    def receive(self, step: Step) -> list[Reply]:
        """Return the replies to the commands of a step."""
        return [self._receive(step.connection) for _ in step.commands]

    def _receive(self, connection: int) -> Reply:
        try:
            return self._connections[connection].receive()
        except (OSError, ValueError) as error:
            return NO_REPLY, str(error)

    def scan(self, step: Step, reply: Reply) -> Reply:
        """Return all pages of a scan that begins with this one."""
        place = CURSORS[step.name]
        arguments = list(step.arguments)
        if arguments[place : place + 1] != [b"0"]:
            return reply
        found: set[object] = set()
        for _ in range(10_000):
            if len(elements(reply)) != 2:
                return reply
            cursor, items = elements(reply)
            found.update(pairs(items) if step.name in ("HSCAN", "ZSCAN") else elements(items))
            if cursor[1] == b"0":
                return "scan", frozenset(found)
            arguments[place] = cursor[1]
            self.send(step.connection, [step._replace(arguments=tuple(arguments))])
            reply = self._receive(step.connection)
        return "scan", "without end"

    def close(self) -> None:
        """Close the connections; the next sequence has new ones."""
        for connection in self._connections:
            connection.close()
        self._connections = []


class Difference(NamedTuple):
    """The first difference between two servers."""

    #: The command whose replies differ.
    name: str
    #: The number of steps up to the difference; one more than all if the final keys differ.
    length: int
    step: Step
    theirs: Sequence[Reply]
    ours: Sequence[Reply]


class Comparison:
    """Two servers that receive the same commands.

    :param theirs: the server whose replies are right.
    """

    def __init__(self, theirs: Side, ours: Side) -> None:
        self.sides = (theirs, ours)
        #: For each command, the number of replies that are values, and of errors.
        self.good: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self._queued: list[list[Step]] = []

    def run(self, version: int, steps: Sequence[Step]) -> Difference | None:
        """Run a sequence on both servers and return the first difference, or None."""
        for side in self.sides:
            side.begin(version)
        self._queued = [[], [], []]
        difference = self._replies(steps) or self._state(len(steps) + 1)
        if difference:
            for side in self.sides:
                side.close()
        return difference

    def _replies(self, steps: Sequence[Step]) -> Difference | None:
        number = 0
        for batch in batches(steps):
            for step, theirs, ours in self._exchange(batch):
                number += 1
                name = self._disagreement(step, theirs, ours)
                if name:
                    return Difference(name, number, step, theirs, ours)
        return None

    def _exchange(self, batch: Sequence[Step]) -> Iterator[tuple[Step, list[Reply], list[Reply]]]:
        for side in self.sides:
            side.send(batch[0].connection, batch)
        for step in batch:
            theirs, ours = [side.receive(step) for side in self.sides]
            if step.name in CURSORS:
                theirs, ours = [
                    [side.scan(step, reply)] for side, (reply,) in zip(self.sides, (theirs, ours))
                ]
            yield step, theirs, ours

    def _disagreement(
        self, step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]
    ) -> str | None:
        """Return the command whose replies differ; for EXEC, the one inside the transaction."""
        queued = self._queued[step.connection]
        if theirs[0] == QUEUED:
            queued.append(step)
            return None if theirs == ours else step.name
        parts: list[tuple[Step, Sequence[Reply], Sequence[Reply]]] = [(step, theirs, ours)]
        if step.name == "EXEC" and theirs[0][0] == ours[0][0]:
            results = [elements(replies[0]) for replies in (theirs, ours)]
            sizes = {sum(len(each.commands) for each in queued)}
            if results[0] and {len(each) for each in results} == sizes:
                self.good["EXEC"] += 1
                in_turn = [iter(each) for each in results]
                parts.clear()
                for each in queued:
                    one, other = [[next(replies) for _ in each.commands] for replies in in_turn]
                    parts.append((each, one, other))
        if step.name in ("MULTI", "EXEC", "DISCARD", "RESET") and theirs[0][0] != "-":
            queued.clear()
        return next(
            (each.name for each, *replies in parts if not self._agree(each, *replies)), None
        )

    def _agree(self, step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]) -> bool:
        kind = theirs[step.place][0]
        (self.bad if kind == "-" else self.good)[step.name] += 1
        return CHECKS.get(step.name, EXACT)(step, theirs, ours)

    def _state(self, number: int) -> Difference | None:
        """Return a difference between the keys of both servers, or None."""

        def look(*commands: Sequence[bytes]) -> Iterator[tuple[Step, list[Reply], list[Reply]]]:
            steps = [Step(each[0].decode(), tuple(each), OBSERVER) for each in commands]
            return self._exchange(steps)

        looks = [*look([b"KEYS", b"*"])]
        keys = [key for _, key in elements(looks[0][1][0])]
        if keys:
            looks += look(*[[name, key] for name in (b"TYPE", b"PTTL") for key in keys])
            kinds = [theirs[0][1] for _, theirs, _ in looks[1 : 1 + len(keys)]]
            contents = [CONTENTS.get(kind, "GET").encode().split() for kind in kinds]
            looks += look(*[[each[0], key, *each[1:]] for each, key in zip(contents, keys)])
        for step, theirs, ours in looks:
            if not CHECKS.get(step.name, EXACT)(step, theirs, ours):
                return Difference(LEFT, number, step, theirs, ours)
        return None


def batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Return groups of steps that can be sent at once."""
    batch: list[Step] = []
    for step in steps:
        last = batch[-1] if batch else step
        if batch and (step.pause or last.connection != step.connection or last.name in CURSORS):
            yield batch
            batch = []
        batch.append(step)
    if batch:
        yield batch


def shrink(
    comparison: Comparison, version: int, steps: Sequence[Step], found: Difference
) -> tuple[list[Step], Difference]:
    """Remove the steps that the difference does not need, as far as time allows."""
    deadline = time.monotonic() + SHRINK_TIME
    left = list(steps[: found.length])

    def still(fewer: list[Step]) -> bool:
        nonlocal left, found
        difference = comparison.run(version, fewer)
        if not difference or difference.name != found.name:
            return False
        left, found = fewer[: difference.length], difference
        return True

    size = len(left)
    while size:
        start = 0
        while start < len(left) and time.monotonic() < deadline:
            if not still(left[:start] + left[start + size :]):
                start += size
        size //= 2
    for number in range(len(left)):
        place = 2
        while number < len(left) and time.monotonic() < deadline:
            step = left[number]
            if place >= len(step.arguments):
                break
            fewer = step.arguments[:place] + step.arguments[place + 1 :]
            if not still([*left[:number], step._replace(arguments=fewer), *left[number + 1 :]]):
                place += 1
    return left, found


# ---------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------


def show_argument(argument: bytes) -> str:
    """Return an argument as a person would type it."""
    text = repr(argument)[1:]
    return text[1:-1] if re.fullmatch(rb"[!-~]+", argument) and "\\" not in text else text


def show_reply(reply: Reply) -> str:
    """Return a reply as text, with the byte of its RESP type."""
    kind, value = reply
    if isinstance(value, tuple):
        return f"{kind}{len(value)} [{', '.join(map(show_reply, value))}]"
    if isinstance(value, bytes):
        return f"{kind}{value.decode('latin-1') if kind in '+-,' else repr(value)[1:]}"
    return f"{kind}{'-1' if value is None else value}"


def show_step(step: Step) -> Iterator[str]:
    """Return the commands of a step, one per line."""
    for arguments in step.commands:
        line = " ".join(map(show_argument, arguments))
        yield f"{'other client> ' * step.connection}{line}"


def describe(
    comparison: Comparison, seed: int, version: int, steps: Sequence[Step], found: Difference
) -> str:
    """Return a difference as text: the seed, the commands, the replies."""
    lines = [
        f"{found.name}: PIPECACHE_SEED={seed} PIPECACHE_SEQUENCES=1, RESP{version}",
        *[f"    {line}" for step in steps[: found.length - 1] for line in show_step(step)],
    ]
    lines += [f"  > {line}" for line in show_step(found.step._replace(connection=0))]
    width = max(len(side.title) for side in comparison.sides)
    for side, replies in zip(comparison.sides, (found.theirs, found.ours)):
        lines += [f"    {side.title:{width}}  {show_reply(reply)}" for reply in replies]
    return "\n".join(line if len(line) < 1000 else f"{line[:1000]} ..." for line in lines)


def search(comparison: Comparison, seed: int, sequences: int) -> list[str]:
    """Run sequences from a seed on; return a description of one difference per command."""
    reports: dict[str, str] = {}
    tally: Counter[str] = Counter()
    shrunk = 0
    print(f"\nPIPECACHE_SEED={seed} PIPECACHE_SEQUENCES={sequences}", flush=True)
    for number in range(seed, seed + sequences):
        sequence = Generator(number)
        version, steps = sequence.version, sequence.steps
        found = comparison.run(version, steps)
        if found is None:
            continue
        tally[found.name] += 1
        if found.name in reports or len(reports) >= REPORTS or shrunk >= SHRINKS:
            continue
        shrunk += 1
        try:
            # A sequence does not depend on the time, unless the machine was suspended.
            again = comparison.run(version, steps)
            if again is None:
                tally["nothing when repeated"] += 1
                continue
            steps, found = shrink(comparison, version, steps, again)
            lost = NO_REPLY in [kind for kind, _ in found.ours]
        except OSError:
            lost = True
        name = f"what {steps[-1].name} leaves" if found.name == LEFT else found.name
        found = found._replace(name=name)
        reports.setdefault(name, describe(comparison, number, version, steps, found))
        if lost:  # a server has stopped replying, and would do so again
            break
    good, bad = sum(comparison.good.values()), sum(comparison.bad.values())
    differ = [f"{count} differ in {name}" for name, count in tally.most_common()]
    print(
        f"{number - seed + 1} sequences, {good + bad} replies,"
        f" {100 * bad / (good + bad):.0f} % of them errors: {', '.join(differ) or 'no difference'}",
        flush=True,
    )
    return list(reports.values())


# ---------------------------------------------------------------------------
# The tests
# ---------------------------------------------------------------------------


def many(kind: str, values: str) -> Reply:
    """Return an array, set or map of the words as bulk strings."""
    return kind, tuple(("$", value.encode()) for value in values.split())


class CheckTests(unittest.TestCase):
    """Tests of the checks for replies that are not determined."""

    AB = many("*", "a b")
    ABC = many("*", "a b c")
    A, B, C, ONE = ("$", b"a"), ("$", b"b"), ("$", b"c"), (":", 1)

    AGREE: tuple[tuple[str, list[Reply], list[Reply], bool], ...] = (
        ("GET k", [A], [A], True),
        ("GET k", [A], [B], False),
        ("GET k", [A], [("+", b"a")], False),
        ("GET k", [("$", None)], [("_", b"")], False),
        ("SMEMBERS k", [AB], [many("*", "b a")], True),
        ("SMEMBERS k", [AB], [many("~", "a b")], False),
        ("SMEMBERS k", [AB], [many("*", "a b b")], False),
        ("SMEMBERS k", [AB], [many("*", "b b")], False),
        ("HGETALL k", [many("%", "a 1 b 2")], [many("%", "b 2 a 1")], True),
        ("HGETALL k", [many("%", "a 1 b 2")], [many("%", "b 1 a 2")], False),
        ("TTL k", [(":", 100)], [(":", 99)], True),
        ("TTL k", [(":", 100)], [(":", 90)], False),
        ("TTL k", [(":", 0)], [(":", -1)], False),
        ("CLIENT ID", [(":", 1)], [(":", 2)], True),
        ("CLIENT ID", [(":", 1)], [A], False),
        ("SRANDMEMBER k", [AB, A], [AB, B], True),
        ("SRANDMEMBER k", [AB, A], [AB, C], False),
        ("SRANDMEMBER k 2", [ABC, AB], [ABC, many("*", "c b")], True),
        ("SRANDMEMBER k 2", [ABC, AB], [ABC, many("*", "b b")], False),
        ("SRANDMEMBER k 2", [ABC, AB], [ABC, many("*", "b")], False),
        ("SRANDMEMBER k -2", [ABC, AB], [ABC, many("*", "b b")], True),
        ("HRANDFIELD k", [many("*", "a 1 b 2"), A], [many("*", "a 1 b 2"), B], True),
        ("HRANDFIELD k", [many("*", "a 1 b 2"), A], [many("*", "a 1 b 2"), ("$", b"1")], False),
        (
            "HRANDFIELD k 1 WITHVALUES",
            [many("*", "a 1 b 2"), many("*", "a 1")],
            [many("*", "b 2 a 1"), many("*", "b 1")],
            False,
        ),
        ("SPOP k", [AB, A, many("*", "b"), ONE], [AB, B, many("*", "a"), ONE], True),
        ("SPOP k", [AB, A, many("*", "b"), ONE], [AB, B, many("*", "b"), ONE], False),
        ("SPOP k", [AB, A, many("*", "b"), ONE], [AB, B, AB, ONE], False),
        ("SCAN 5", [("*", (A, AB))], [("*", (B, many("*", "")))], True),
        ("SCAN 5", [("*", (A, AB))], [("*", (ONE, AB))], False),
    )

    def test_replies(self) -> None:
        for line, theirs, ours, expected in self.AGREE:
            with self.subTest(line, theirs=theirs, ours=ours):
                step = Step(command_name(line), tuple(line.encode().split()))
                agree = CHECKS.get(step.name, EXACT)(step, theirs, ours)
                self.assertEqual(agree, expected)


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class DifferentialTests(unittest.TestCase):
    def redis(self) -> Side:
        side = Side("redis-server", redis_address(self))
        self.addCleanup(side.close)
        return side

    def differences(self, ours: Side, sequences: int) -> tuple[Comparison, list[str]]:
        self.addCleanup(ours.close)
        comparison = Comparison(self.redis(), ours)
        seed = int(os.environ.get("PIPECACHE_SEED") or random.randrange(10**9))
        sequences = int(os.environ.get("PIPECACHE_SEQUENCES") or sequences)
        return comparison, search(comparison, seed, sequences)

    def test_every_reply_is_that_of_redis(self) -> None:
        with ServerProcess() as server:
            _, reports = self.differences(Side("pipecache", server.address), SEQUENCES)
        if reports:
            self.fail("\n\n".join(["replies differ", *reports]))

    def test_two_redis_servers_agree(self) -> None:
        """Two redis-servers agree, and most commands succeed; otherwise the other test is void."""
        comparison, reports = self.differences(self.redis(), 1000)
        if reports:
            self.fail("\n\n".join(["the test itself is wrong", *reports]))
        good, bad = comparison.good, comparison.bad
        if sum(good.values()) < 10_000:
            return  # a single sequence is repeated
        names = {command_name(row) for family in TABLE for row in rows(family)}
        names -= {name for name in names if name.endswith("NOSUCH")}
        names -= {"CLIENT", "OBJECT", "stranger"}
        self.assertEqual({name for name in names if good[name] < 5}, set())
        share = sum(bad.values()) / sum((good + bad).values())
        self.assertTrue(0.2 < share < 0.4, f"{share:.0%} errors")


if __name__ == "__main__":
    unittest.main()
