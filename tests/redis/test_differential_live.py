r"""Comparison with redis-server: several clients that follow a schedule.

A schedule is a list of steps; a step is a client and its command. After each step, the test reads
everything that each client has received: replies, also those of blocked clients, messages, keyspace
events and the lines of MONITOR. Both servers must send the same. A step is complete when the reply
has arrived, or CLIENT LIST shows that the client is blocked; clients that the command served are
served before that. A subscriber sends PING, whose reply arrives after its messages. So the test
needs no pauses.

Schedules are random. The test prints the seed and a shortened schedule for a difference:

    PIPECACHE_SEED=12345 PIPECACHE_SEQUENCES=1 python tests --only native -k DifferentialLive

Two deliberate differences are left out: the commands that Redis forbids to a client of MONITOR, and
messages inside the reply to EXEC of the same client in RESP3.
"""

from __future__ import annotations

import os
import random
import re
import unittest
from typing import List, Tuple

from tests.support import WINDOWS, ServerProcess, redis_address
from tests.support.generator import Generator
from tests.support.redis_server import Connection
from tests.support.wire import Reply, command

SCHEDULES = 300
LENGTH = 40

#: The numbers of the clients: three that block and push, a subscriber in RESP2, one in RESP3 that
#: also publishes, one that receives the events of all keys, a monitor, and one that reads the
#: state of the others.
WORKERS, OLD, NEW, OBSERVER, MONITOR, ADMIN = range(3), 3, 4, 5, 6, 7

#: A step is a client and its command; an outcome is the replies and messages, by client.
Step = Tuple[int, Tuple[bytes, ...]]
Outcome = List[Tuple[int, Reply]]


class Client:
    """A connection, and True in `waits` while it is blocked."""

    def __init__(self, address: str) -> None:
        self.connection = Connection(address)
        self.number = b"%d" % self.connection.ask(b"CLIENT", b"ID")[1]
        self.waits = False


class Server:
    """One of the servers, with the connections of all clients."""

    def __init__(self, address: str) -> None:
        self.clients = [Client(address) for _ in range(8)]
        self._barriers = 0
        admin = self.clients[ADMIN].connection
        admin.ask(b"FLUSHALL")
        admin.ask(b"CONFIG", b"SET", b"notify-keyspace-events", b"KEAm")
        self.clients[NEW].connection.ask(b"HELLO", b"3")
        self.clients[OBSERVER].connection.ask(b"PSUBSCRIBE", b"__key*")
        self.clients[MONITOR].connection.ask(b"MONITOR")

    def close(self) -> None:
        for client in self.clients:
            client.connection.close()

    def carry_out(self, step: Step) -> Outcome:
        """Run a step and return the outcome."""
        number, arguments = step
        client = self.clients[number]
        outcome: Outcome = []
        if client.waits:
            return outcome
        client.connection.send(command(*arguments))
        if number in WORKERS:
            while not client.connection.has_reply(0.001):
                client.waits = self._waits(number)
                if client.waits:
                    break
            else:
                outcome.append((number, client.connection.receive()))
        for each in (NEW, OLD) if number == NEW else (OLD, NEW):
            outcome += self._drain(each)
        for each in WORKERS:
            if self.clients[each].waits and not self._waits(each):
                self.clients[each].waits = False
                outcome.append((each, self.clients[each].connection.receive()))
        return outcome + self._drain(OBSERVER) + self._drain(MONITOR)

    def _waits(self, number: int) -> bool:
        admin = self.clients[ADMIN].connection
        reply = admin.ask(b"CLIENT", b"LIST", b"ID", self.clients[number].number)[1]
        flags = re.search(rb" flags=(\S+)", reply)
        assert flags is not None, reply
        return b"b" in flags[1]

    def _drain(self, number: int) -> Outcome:
        # Read what a client receives up to the reply to its own PING.
        connection = self.clients[number].connection
        self._barriers += 1
        token = b"barrier %d" % self._barriers
        connection.send(command(b"PING", token))
        outcome: Outcome = []
        answered = seen = False
        while not answered or (number == MONITOR and not seen):
            reply = connection.receive()
            if reply in (("$", token), ("*", (("$", b"pong"), ("$", token)))):
                answered = True
            elif number == MONITOR:
                seen = token in reply[1]
                line = reply[1].partition(b"] ")[2]
                if not re.match(rb'"PING" "barrier|"CLIENT" "ID"|"(INFO|HELLO)"', line):
                    outcome.append((number, (reply[0], line)))
            else:
                outcome.append((number, reply))
        return outcome

    def finish(self) -> Outcome:
        """Unblock all clients; return the messages, and the values of all keys."""
        admin = self.clients[ADMIN].connection
        outcome: Outcome = []
        for number in WORKERS:
            client = self.clients[number]
            if client.waits:
                outcome.append((ADMIN, admin.ask(b"CLIENT", b"UNBLOCK", client.number)))
                outcome.append((number, client.connection.receive()))
        for key in sorted(each[1] for each in admin.ask(b"KEYS", b"*")[1]):
            kind = admin.ask(b"TYPE", key)[1]
            asked = {
                b"list": (b"LRANGE", key, b"0", b"-1"),
                b"zset": (b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"),
                b"string": (b"GET", key),
            }.get(kind, (b"TYPE", key))
            outcome.append((ADMIN, admin.ask(*asked)))
        stats = admin.ask(b"INFO", b"stats")[1]
        outcome += [(ADMIN, ("$", line)) for line in stats.split(b"\r\n") if b"pubsub_c" in line]
        return outcome


class Schedule:
    """The schedule of a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.steps: list[Step] = []
        while len(self.steps) < LENGTH:
            kind, worker = self.random.random(), self.random.choice(WORKERS)
            if kind < 0.1:
                self._transaction(worker)
            elif kind < 0.2:
                self.steps.append((self.random.choice((OLD, NEW)), self._subscription()))
            elif kind < 0.25:
                self.steps.append((NEW, self._words(f"PUBLISH {self._channel()} mine")))
            elif kind < 0.45:
                self.steps.append((worker, self._waiting("0")))
            else:
                self.steps.append((worker, self._change()))

    def _words(self, line: str) -> tuple[bytes, ...]:
        return tuple(line.encode().split())

    def _key(self) -> str:
        return self.random.choice("aabbcd")

    def _channel(self) -> str:
        return self.random.choice(("news", "nuts", "spam"))

    def _side(self) -> str:
        return self.random.choice(("LEFT", "RIGHT"))

    def _transaction(self, worker: int) -> None:
        inside = [self._change() for _ in range(self.random.randrange(1, 5))]
        if self.random.random() < 0.3:
            inside.append(self._waiting("0"))
        ending = self.random.choice((b"EXEC", b"EXEC", b"EXEC", b"DISCARD"))
        self.steps += [(worker, each) for each in ((b"MULTI",), *inside, (ending,))]

    def _subscription(self) -> tuple[bytes, ...]:
        # Redis sends to several patterns that match in the order of a hash.
        name = self.random.choice(("SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE"))
        choices = ("n[ae]*", "?u*", "s*") if name.startswith("P") else ("news", "nuts", "spam")
        names = self.random.sample(choices, self.random.randrange(1, 3))
        return self._words(f"{name} {' '.join(names)}")

    def _waiting(self, timeout: str) -> tuple[bytes, ...]:
        keys = " ".join(self.random.sample("abcd", self.random.randrange(1, 4)))
        count = len(keys.split())
        return self._words(
            self.random.choice(
                (
                    f"BLPOP {keys} {timeout}",
                    f"BRPOP {keys} {timeout}",
                    f"BLMOVE {self._key()} {self._key()} {self._side()} {self._side()} {timeout}",
                    f"BRPOPLPUSH {self._key()} {self._key()} {timeout}",
                    f"BLMPOP {timeout} {count} {keys} {self._side()} COUNT 2",
                    f"BZPOPMIN {keys} {timeout}",
                    f"BZPOPMAX {keys} {timeout}",
                    f"BZMPOP {timeout} {count} {keys} MIN COUNT 2",
                )
            )
        )

    def _change(self) -> tuple[bytes, ...]:
        key, other = self._key(), self._key()
        value = f"v{self.random.randrange(100)}"
        number = self.random.randrange(10)
        return self._words(
            self.random.choice(
                (
                    f"RPUSH {key} {value}",
                    f"LPUSH {key} {value} {value}x",
                    f"RPUSHX {key} {value}",
                    f"ZADD {key} {number} {value}",
                    f"ZINCRBY {key} {number} {value}",
                    f"LPOP {key}",
                    f"LMOVE {key} {other} {self._side()} {self._side()}",
                    f"RPOPLPUSH {key} {other}",
                    f"LMPOP 2 {key} {other} LEFT",
                    f"ZMPOP 2 {key} {other} MAX COUNT 2",
                    f"ZPOPMIN {key}",
                    f"DEL {key}",
                    f"DEL {key}",
                    f"SET {key} {value}",
                    f"RENAME {key} {other}",
                    f"COPY {key} {other} REPLACE",
                    f"LTRIM {key} 1 0",
                    f"GET {key}",
                    f"NOSUCH {key}",
                    f"BLPOP {key} -1",
                    f"PUBLISH {self._channel()} {value}",
                    "PUBSUB NUMSUB news nuts spam",
                    "PUBSUB NUMPAT",
                    "WATCH " + key,
                )
            )
        )


#: Schedules for particular cases. A step begins with the number of its client.
FIXED = {
    "first come, first served": "0 BLPOP a 0; 1 BRPOP a 0; 2 RPUSH a x y z; 2 LRANGE a 0 -1",
    "several keys": "0 BLPOP a b 0; 1 BLPOP b a 0; 2 MULTI; 2 RPUSH b x; 2 RPUSH a y; 2 EXEC",
    "the key that was ready first": "0 BLPOP a b 0; 2 MULTI; 2 RPUSH b x; 2 RPUSH a y; 2 EXEC",
    "gone again": "0 BLPOP a 0; 2 MULTI; 2 RPUSH a x; 2 DEL a; 2 EXEC; 2 RPUSH a y",
    "pushed and popped in a transaction": "0 BLPOP a 0; 2 MULTI; 2 RPUSH a x; 2 LPOP a; 2 EXEC",
    "the state at the end counts": "0 BLPOP a 0; 2 MULTI; 2 RPUSH a x; 2 LPUSH a y; 2 EXEC",
    "a chain": "0 BLMOVE a b LEFT LEFT 0; 1 BRPOPLPUSH b c 0; 2 RPUSH a x; 2 LRANGE c 0 -1",
    "a ring": "0 BLMOVE a b LEFT LEFT 0; 1 BLMOVE b a LEFT LEFT 0; 2 RPUSH a x; 2 LLEN a",
    "to itself": "0 BLMOVE a a LEFT RIGHT 0; 2 RPUSH a x y; 2 LRANGE a 0 -1",
    "a wrong target": "0 BLMOVE a s LEFT LEFT 0; 1 BLPOP a 0; 2 SET s v; 2 RPUSH a x",
    "another kind": "0 BLPOP a 0; 1 BZPOPMIN a 0; 2 SET a v; 2 DEL a; 2 ZADD a 1 m; 2 RPUSH a x",
    "renamed": "0 BLPOP a 0; 2 RPUSH b x; 2 RENAME b a; 2 EXISTS a b",
    "copied": "0 BLPOP a 0; 2 RPUSH b x; 2 COPY b a; 2 EXISTS a b",
    "moved": "0 BLPOP a 0; 2 RPUSH b x y; 2 LMOVE b a LEFT RIGHT; 2 LRANGE b 0 -1",
    "served by one that waits": "0 BLPOP b 0; 1 BLMOVE a b LEFT LEFT 0; 2 RPUSH a x",
    "many at once": "0 BLMPOP 0 2 a b LEFT COUNT 2; 1 BLMPOP 0 1 a RIGHT COUNT 9; 2 RPUSH a 1 2 3",
    "scores": "0 BZPOPMAX a b 0; 1 BZMPOP 0 1 a MIN COUNT 5; 2 ZADD a 1 x 2 y 3 z; 2 ZADD b 1 x",
    "a time limit": "0 BLPOP a 0.01; 0 BLMOVE a b LEFT LEFT 0.01; 0 BZMPOP 0.01 1 a MAX; 0 PING",
    "in a transaction": "0 MULTI; 0 BLPOP a 0; 0 RPUSH a x; 0 BLPOP a 0; 0 EXEC",
    "unblocked": "0 BLPOP a 0; 0 PING; 2 RPUSH b x; 1 BLPOP a 0; 2 RPUSH a x y",
    "watched": "1 WATCH a; 1 MULTI; 1 PING; 0 BLPOP a 0; 2 RPUSH a x; 1 EXEC",
    "names and patterns": "3 SUBSCRIBE news x; 3 PSUBSCRIBE n* s*; 4 PSUBSCRIBE ?ews;"
    " 0 PUBLISH news m; 4 PUBLISH news n; 3 UNSUBSCRIBE news; 0 PUBLISH news o;"
    " 3 PUNSUBSCRIBE; 0 PUBLISH x p",
    "what a subscriber may not": "3 SUBSCRIBE a; 3 GET a; 3 CONFIG GET x; 3 MULTI; 3 NOSUCH; 3 GET;"
    " 3 PING x; 3 RESET; 3 GET a; 4 SUBSCRIBE a; 4 GET a; 4 RESET; 4 PING",
    "subscribed to nothing": "3 UNSUBSCRIBE; 3 PUNSUBSCRIBE a b; 4 UNSUBSCRIBE; 4 PUNSUBSCRIBE a",
    "what MONITOR shows": "0 SET a 1; 0 GET; 0 LPUSH a x; 0 MULTI; 0 GET a; 0 INCR a; 0 EXEC;"
    " 0 AUTH x; 0 CONFIG GET save; 0 DBSIZE; 0 OBJECT ENCODING a;"
    " 1 BLPOP q 0; 0 RPUSH q x; 0 RESET",
    "pubsub commands": "3 SUBSCRIBE a b; 4 SUBSCRIBE a; 4 PSUBSCRIBE x*; 0 PUBSUB NUMPAT;"
    " 0 PUBSUB NUMSUB a b c; 0 PUBSUB CHANNELS b*; 0 PUBSUB NUMSUB; 0 PUBSUB HELP x",
}


def shown(step: Step) -> str:
    return f"{step[0]} {b' '.join(step[1]).decode('latin-1')}"


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class DifferentialLiveTests(unittest.TestCase):
    def setUp(self) -> None:
        self.redis = redis_address(self)
        server = ServerProcess()
        server.__enter__()
        self.addCleanup(server.close)
        self.pipecache = server.address

    def difference(self, steps: list[Step]) -> str:
        """Return a description of the difference between the servers, or an empty text."""
        servers = Server(self.redis), Server(self.pipecache)
        try:
            for number, step in enumerate(steps):
                theirs, ours = (each.carry_out(step) for each in servers)
                if theirs != ours:
                    lines = [*map(shown, steps[:number]), f"> {shown(step)}"]
                    return "\n".join([*lines, f"redis-server  {theirs}", f"pipecache     {ours}"])
            theirs, ours = (each.finish() for each in servers)
            if theirs != ours:
                lines = [*map(shown, steps), "> at the end"]
                return "\n".join([*lines, f"redis-server  {theirs}", f"pipecache     {ours}"])
            return ""
        finally:
            for each in servers:
                each.close()

    def shortened(self, steps: list[Step]) -> str:
        """Return the difference again, without the steps that it does not need."""
        for number in reversed(range(len(steps))):
            without = steps[:number] + steps[number + 1 :]
            if self.difference(without):
                steps = without
        return self.difference(steps)

    def test_fixed_schedules(self) -> None:
        for title, text in FIXED.items():
            with self.subTest(title):
                parts = [part.split() for part in text.encode().split(b";")]
                steps = [(int(number), tuple(words)) for number, *words in parts]
                difference = self.difference(steps)
                if difference:
                    self.fail(difference)

    def test_schedules_by_chance(self) -> None:
        seed = int(os.environ.get("PIPECACHE_SEED") or random.randrange(10**9))
        count = int(os.environ.get("PIPECACHE_SEQUENCES") or SCHEDULES)
        for each in range(seed, seed + count):
            steps = Schedule(each).steps
            if self.difference(steps):
                self.fail(f"PIPECACHE_SEED={each} PIPECACHE_SEQUENCES=1\n{self.shortened(steps)}")

    def test_events_of_every_family(self) -> None:
        seed = int(os.environ.get("PIPECACHE_SEED") or random.randrange(10**9))
        count = int(os.environ.get("PIPECACHE_SEQUENCES") or SCHEDULES)
        # Left out: events of random choices and of the clock, and a second database.
        left_out = {b"SPOP", b"SRANDMEMBER", b"HRANDFIELD", b"RANDOMKEY", b"RESET", b"DB", b"QUIT"}
        for each in range(seed, seed + count):
            steps = [
                (0, step.arguments)
                for step in Generator(each).steps
                if not left_out & {word.upper() for word in step.arguments}
            ]
            servers = Server(self.redis), Server(self.pipecache)
            try:
                for step in steps:
                    theirs, ours = (self.events(server, step) for server in servers)
                    if theirs != ours:
                        self.fail(
                            f"PIPECACHE_SEED={each}: {shown(step)}\n"
                            f"redis-server  {theirs}\npipecache     {ours}"
                        )
            finally:
                for server in servers:
                    server.close()

    def events(self, server: Server, step: Step) -> Outcome:
        """Return the events of a step, except those of keys that expire meanwhile."""
        return [
            (client, reply)
            for client, reply in server.carry_out(step)
            if client == OBSERVER and b"expired" not in str(reply).encode()
        ]


if __name__ == "__main__":
    unittest.main()
