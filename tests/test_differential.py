r"""Random commands to a real redis-server and to this server: the replies must be equal.

Each row of TABLE declares a command and what its arguments are drawn from. A sequence of such
commands, some of them damaged, goes to both servers; every reply is compared, its RESP type and
the text of an error included, and at the end what the two hold. Left out of the comparison is
what no two Redis servers agree on: the order in a set or hash, random choices, times to the
millisecond, connection ids.

The number of a sequence is the seed it is made from. Both are printed, so that

    PIPECACHE_SEED=12345 PIPECACHE_SEQUENCES=1 python tests --only native -k Differential

repeats one, and a larger PIPECACHE_SEQUENCES looks further. Without a time limit:

    PIPECACHE_REDIS_SERVER=redis-server PIPECACHE_SEQUENCES=100000 \
        python -m unittest tests.test_differential
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import socket
import subprocess
import tempfile
import time
import unittest
from collections import Counter
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence, Tuple

import pipecache
from tests import provision
from tests.support import DEADLINE, WINDOWS, ServerProcess, wait_until
from tests.test_wire import command

#: Sequences in a run, and commands in a sequence, roughly.
SEQUENCES = 3000
LENGTH = 20

#: Commands whose differences a run reports; and sequences it shrinks to find so many.
REPORTS = 10
SHRINKS = 30

#: Seconds that may go into making a sequence shorter.
SHRINK_TIME = 5.0

#: Seconds without a reply after which a server is taken to have lost it.
PATIENCE = 5.0

#: Milliseconds that may lie between the times at which the two servers carry out a command.
TOLERANCE = 2000

#: A reply: the byte that stands for its type, and bytes, int, None or a tuple of replies.
Reply = Tuple[str, Any]

Arguments = Tuple[bytes, ...]


# ---------------------------------------------------------------------------
# The servers
# ---------------------------------------------------------------------------


class Connection:
    """A connection to either server, and what comes back in RESP2 or RESP3."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(getattr(socket, "AF_UNIX", -1))
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Reply:
        """The next reply.

        :raises OSError: if none comes.
        """
        line = self._file.readline()
        kind, rest = line[:1].decode("latin-1"), line[1:-2]
        if not line.endswith(b"\r\n"):
            raise ConnectionError(f"the connection ended after {line!r}")
        if kind in "+-,#(_":
            return kind, rest
        if kind == ":":
            return kind, int(rest)
        if kind not in "$=*~%>":
            raise ConnectionError(f"{line!r} is no reply")
        size = int(rest)
        if size < 0:
            return kind, None
        if kind in "$=":
            data = self._file.read(size + 2)
            if len(data) != size + 2 or not data.endswith(b"\r\n"):
                raise ConnectionError(f"a bulk string of {size} bytes ends in {data[-10:]!r}")
            return kind, data[:-2]
        size = 2 * size if kind == "%" else size
        return kind, tuple([self.receive() for _ in range(size)])

    def ask(self, *arguments: bytes) -> Reply:
        self.send(command(*arguments))
        return self.receive()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class RedisServer:
    """redis-server as a process of its own, on a Unix socket and with one database.

    :raises provision.Unavailable: if there is none, or another version than the one to be like.
    """

    def __init__(self) -> None:
        program = provision.given("PIPECACHE_REDIS_SERVER")
        told = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
        wanted = pipecache.REDIS_VERSION.rpartition(".")[0]
        if f"v={wanted}." not in told.decode():
            raise provision.Unavailable(f"{program} is not Redis {wanted}: install that version")
        self._folder = tempfile.TemporaryDirectory()
        folder = self._folder.name
        #: Its socket.
        self.address = os.path.join(folder, "socket")
        options = f"--port 0 --unixsocket {self.address} --dir {folder} --databases 1"
        self._process = subprocess.Popen(
            [program, *options.split(), "--save", ""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"redis-server ended with status {self._process.returncode}")
        with contextlib.suppress(OSError):
            connection = Connection(self.address)
            try:
                return connection.ask(b"PING") == ("+", b"PONG")
            finally:
                connection.close()
        return False

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, "redis-server answers")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(DEADLINE)
        self._folder.cleanup()


def redis_address(test: unittest.TestCase) -> str:
    """The socket of a redis-server for one test, which is skipped where there is none."""
    try:
        server = RedisServer()
    except provision.Unavailable as error:
        provision.skip(error)
    test.addCleanup(server.close)
    server.wait()
    return server.address


# ---------------------------------------------------------------------------
# The commands
# ---------------------------------------------------------------------------

#: A lower-case word is drawn by the method of Generator with its name. A|B is one of them, [...]
#: may be there or not, (...)+ is there several times, and of {...} any number is, in any order;
#: A:b is the option A and its argument.
TABLE = {
    "string": """
        SET key value {NX XX GET KEEPTTL EX:ttl PX:ttl EXAT:seconds PXAT:milliseconds}
        SET key number
        GET key
        GETEX key {PERSIST EX:ttl PX:ttl EXAT:seconds PXAT:milliseconds}
        GETDEL key
        GETSET key value
        GETRANGE key index index
        SETRANGE key offset value
        APPEND key value
        STRLEN key
        SETNX key value
        SETEX key ttl value
        PSETEX key ttl value
        MGET (key)+
        MSET (key value)+
        MSETNX (key value)+
        INCR key
        DECR key
        INCRBY key integer
        DECRBY key integer
        INCRBYFLOAT key real
    """,
    "keys": """
        DEL (key)+
        UNLINK (key)+
        EXISTS (key)+
        TYPE key
        RENAME key key
        RENAMENX key key
        COPY key key {REPLACE DB:database}
        RANDOMKEY
        TOUCH (key)+
        KEYS pattern
        SCAN cursor {MATCH:pattern COUNT:count TYPE:kind}
        EXPIRE key ttl {NX XX GT LT}
        PEXPIRE key ttl {NX XX GT LT}
        EXPIREAT key seconds {NX XX GT LT}
        PEXPIREAT key milliseconds {NX XX GT LT}
        TTL key
        PTTL key
        EXPIRETIME key
        PEXPIRETIME key
        PERSIST key
        OBJECT ENCODING key
    """,
    "list": """
        LPUSH key (element)+
        RPUSH key (element)+
        LPUSHX key (element)+
        RPUSHX key (element)+
        LPOP key [count]
        RPOP key [count]
        LLEN key
        LRANGE key index index
        LINDEX key index
        LSET key index element
        LINSERT key BEFORE|AFTER element element
        LREM key index element
        LTRIM key index index
        LPOS key element {RANK:index COUNT:count MAXLEN:count}
        LMOVE key key LEFT|RIGHT LEFT|RIGHT
        RPOPLPUSH key key
        LMPOP keys LEFT|RIGHT {COUNT:count}
    """,
    "hash": """
        HSET key (field value)+
        HSET key (field number)+
        HMSET key (field value)+
        HSETNX key field value
        HGET key field
        HMGET key (field)+
        HGETALL key
        HDEL key (field)+
        HLEN key
        HEXISTS key field
        HSTRLEN key field
        HKEYS key
        HVALS key
        HINCRBY key field integer
        HINCRBYFLOAT key field real
        HRANDFIELD key [choices [WITHVALUES]]
        HSCAN key cursor {MATCH:pattern COUNT:count}
    """,
    "set": """
        SADD key (member)+
        SREM key (member)+
        SCARD key
        SISMEMBER key member
        SMISMEMBER key (member)+
        SMEMBERS key
        SMOVE key key member
        SPOP key [count]
        SRANDMEMBER key [choices]
        SINTER (key)+
        SUNION (key)+
        SDIFF (key)+
        SINTERSTORE key (key)+
        SUNIONSTORE key (key)+
        SDIFFSTORE key (key)+
        SINTERCARD keys {LIMIT:count}
        SSCAN key cursor {MATCH:pattern COUNT:count}
    """,
    "sorted set": """
        ZADD key (score member)+
        ZADD key {NX XX GT LT CH INCR} (score member)+
        ZADD key {NX XX GT LT CH INCR} score member
        ZINCRBY key score member
        ZSCORE key member
        ZMSCORE key (member)+
        ZREM key (member)+
        ZCARD key
        ZCOUNT key bound bound
        ZRANK key member
        ZREVRANK key member
        ZRANGE key index index {REV WITHSCORES}
        ZRANGE key bound bound BYSCORE {REV WITHSCORES LIMIT:index:index}
        ZRANGE key index index {BYSCORE REV WITHSCORES LIMIT:index:index}
        ZREVRANGE key index index [WITHSCORES]
        ZRANGEBYSCORE key bound bound {WITHSCORES LIMIT:index:index}
        ZREVRANGEBYSCORE key bound bound {WITHSCORES LIMIT:index:index}
        ZPOPMIN key [count]
        ZPOPMAX key [count]
        ZMPOP keys MIN|MAX {COUNT:count}
        ZREMRANGEBYRANK key index index
        ZREMRANGEBYSCORE key bound bound
        ZSCAN key cursor {MATCH:pattern COUNT:count}
    """,
    "transactions": """
        MULTI
        EXEC
        DISCARD
        WATCH (key)+
        UNWATCH
    """,
    "connection": """
        PING [value]
        ECHO value
        SELECT database
        HELLO
        HELLO protocol {SETNAME:name}
        RESET
        CLIENT GETNAME
        CLIENT SETNAME name
        CLIENT ID
        CLIENT NOSUCH [value]
        OBJECT NOSUCH [value]
        CONFIG NOSUCH [value]
        CLIENT
        OBJECT
        DBSIZE
        FLUSHDB [ASYNC|SYNC]
        FLUSHALL [ASYNC|SYNC]
        stranger
        stranger (value)+
    """,
}

#: Commands that give a key something to hold, so that the others find something.
FILLS = {
    "string": ("SET key value", "SET key number"),
    "list": ("RPUSH key (element)+",),
    "hash": ("HSET key (field value)+", "HSET key (field number)+"),
    "set": ("SADD key (member)+", "SADD key (integer)+"),
    "sorted set": ("ZADD key (score member)+",),
}

#: What the families above work on. The last key is the one no family calls its own.
KEYS = (b"a", b"b", b"c", b"key:1", b"\r\n", b"other")

#: Arguments that a toy server takes for what they are not, or not for what they are. There is no
#: small positive number among them: as a time to live it would make a race of the test. Nor is
#: there a length that a server would set aside memory for, or a large negative number that it
#: would take for so many random choices.
ODD = (
    *(b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808"),
    *(b"-9223372036854775809", b"18446744073709551616", b"0", b"-0", b"-1", b"+1", b"010"),
    *(b" 1", b"1 ", b"1_0", b"\xd9\xa3", b"10.50", b"1e3", b"-1.5E+2", b"1.", b".5"),
    *(b"1e400", b"1e-400", b"inf", b"-inf", b"+inf", b"Infinity", b"nan", b"-nan", b"", b" "),
    *(b"abc", b"(1", b"*", b"a\r\nb", b"\xff\x00", b"NX", b"LIMIT", b"x" * 200),
)

#: What is read beside a command, to judge its reply by: before it and after it, with the key it
#: names. After SPOP the key goes, because the two servers hold different sets by then.
AROUND: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "SPOP": (["SMEMBERS"], ["SMEMBERS", "DEL"]),
    "SRANDMEMBER": (["SMEMBERS"], []),
    "HRANDFIELD": (["HGETALL"], []),
    "RANDOMKEY": (["KEYS"], []),
    # Redis counts a key that has expired until somebody looks for it.
    "DBSIZE": (["EXISTS"], []),
}

Node = Tuple[str, Any]

_TOKEN = re.compile(r"\)\+|[(\[\]{}]|[^\s()\[\]{}]+")


@functools.lru_cache(maxsize=None)
def parse_usage(usage: str) -> list[Node]:
    """The tree of a row of the table: words, and brackets with what is in them."""
    tokens = iter(_TOKEN.findall(usage))

    def parse(end: str) -> list[Node]:
        nodes: list[Node] = []
        for token in tokens:
            if token == end:
                break
            closing = {"(": ")+", "[": "]", "{": "}"}.get(token)
            nodes.append((token, parse(closing)) if closing else ("word", token))
        return nodes

    return parse("")


def command_name(usage: str) -> str:
    """What a row is called in reports: its leading words in upper case."""
    name = re.match(r"[A-Z]+( [A-Z]+(?![A-Z|]))?", usage)
    return name[0] if name else usage.split(maxsplit=1)[0]


class Step(NamedTuple):
    """One command with those around it, which stay together."""

    name: str
    arguments: Arguments
    connection: int = 0
    #: Whether replies are awaited before it is sent.
    pause: bool = False

    @property
    def commands(self) -> list[Arguments]:
        """The command among those around it, as they are sent."""
        before, after = AROUND.get(self.name, ([], []))
        return [*map(self._beside, before), self.arguments, *map(self._beside, after)]

    @property
    def place(self) -> int:
        """The place of the command itself among them."""
        return len(AROUND.get(self.name, ([], []))[0])

    def _beside(self, name: str) -> Arguments:
        if name == "KEYS":
            return b"KEYS", b"*"
        if name == "EXISTS":
            return (b"EXISTS", *KEYS, *ODD)
        return name.encode(), self.arguments[1] if len(self.arguments) > 1 else KEYS[0]


class Generator:
    """Makes the sequence of a seed.

    Two families share out the keys, so that most commands find what they are for, and enough
    of them do not.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        first, second = self.random.sample(list(FILLS), 2)
        keys = list(KEYS[:-1])
        self.random.shuffle(keys)
        self._homes = {first: keys[:3], second: keys[3:]}
        self._families = [first, second]
        self._family = first
        self._fewest = 1
        self._unhurried = self.random.random() < 0.3
        self._multi = False
        #: The version of RESP.
        self.version = self.random.choice([2, 3])
        self.steps = self._sequence()

    def _sequence(self) -> list[Step]:
        steps: list[Step] = []
        self._fewest = 4
        for family in self._families * 2:
            steps += self._draw(family, self.random.choice(FILLS[family]))
        self._fewest = 1
        while len(steps) < LENGTH:
            kind = self.random.random()
            if self._multi and kind < 0.2:
                steps += self._draw("transactions", "EXEC")
            elif kind < 0.03:
                steps += self._transaction()
            elif kind < 0.04:
                steps += self._encoding()
            else:
                steps += self._any(self._multi)
        return steps

    def _any(self, inside: bool = False, connection: int | None = None) -> list[Step]:
        """Any command; inside a transaction none that would change what its replies are."""
        families = [*self._families, "keys", *FILLS, "connection", "transactions"]
        family = self.random.choices(families, [20, 20, 10, 2, 2, 2, 2, 2, 3, 1])[0]
        usage = self.random.choice(rows(family))
        if connection is None:
            connection = int(self.random.random() < 0.02)
        if (inside and usage.startswith("HELLO")) or (connection and usage == "MULTI"):
            usage = "EXEC"
        return self._draw(family, usage, connection)

    def _draw(self, family: str, usage: str, connection: int = 0) -> list[Step]:
        self._family = family
        arguments = self._damaged(self._fill(parse_usage(usage)))
        pause = self._unhurried and self.random.random() < 0.5
        name = command_name(usage)
        if not connection and len(arguments) == 1 and name in ("MULTI", "EXEC", "DISCARD"):
            self._multi = name == "MULTI"
        return [Step(name, arguments, connection, pause)]

    def _transaction(self) -> list[Step]:
        steps: list[Step] = []
        if self.random.random() < 0.6:
            steps += self._draw("transactions", "WATCH (key)+")
            if self.random.random() < 0.6:
                steps += self._any(connection=self.random.choice([0, 1, 1, 1]))
        steps += self._draw("transactions", "MULTI")
        if not self._multi:
            return steps
        for _ in range(self.random.randint(0, 4)):
            steps += self._any(inside=True, connection=int(self.random.random() < 0.1))
        end = self.random.choice(["EXEC", "EXEC", "EXEC", "EXEC", "DISCARD"])
        return steps + self._draw("transactions", end)

    def _encoding(self) -> list[Step]:
        # The encoding follows from the value only where that has no history.
        key, family = self.key(), self.random.choice(list(FILLS))
        name = FILLS[family][0].split()[0]
        arguments = [name.encode(), key]
        if family == "string":
            arguments.append(self.value())
        else:
            prefix = self.random.choice((b"", b"", b"m", b"x" * 62))
            for number in range(self.random.choice([1, 3, 128, 129, 512, 513])):
                member = b"%b%d" % (prefix, number)
                arguments += {"hash": [member, b"v"], "sorted set": [b"1", member]}.get(
                    family, [member]
                )
        return [
            Step("DEL", (b"DEL", key)),
            Step(name, tuple(arguments)),
            Step("encoding", (b"OBJECT", b"ENCODING", key)),
        ]

    def _fill(self, nodes: Iterable[Node]) -> list[bytes]:
        arguments: list[bytes] = []
        for kind, value in nodes:
            if kind == "word":
                for word in value.split(":"):
                    arguments += self._word(word)
            elif kind == "(":
                for _ in range(self._fewest + self.random.choice([0, 0, 1, 1, 2, 3])):
                    arguments += self._fill(value)
            elif kind == "[":
                if self.random.random() < 0.6:
                    arguments += self._fill(value)
            else:
                count = self.random.choices([0, 1, 2, 3, 5], [40, 36, 16, 6, 2])[0]
                for option in self.random.choices(value, k=count):
                    arguments += self._fill([option])
        return arguments

    def _word(self, word: str) -> list[bytes]:
        if word.islower():
            drawn = getattr(self, word)()
            return [drawn] if isinstance(drawn, bytes) else drawn
        word = self.random.choice(word.split("|"))
        kind = self.random.random()
        if kind < 0.15:
            word = word.lower()
        elif kind < 0.2:
            word = "".join(self.random.choice([char, char.lower()]) for char in word)
        return [word.encode()]

    def _damaged(self, arguments: list[bytes]) -> Arguments:
        kind = self.random.random()
        place = self.random.randrange(1, len(arguments) + 1)
        if kind < 0.05:
            del arguments[place : place + 1]
        elif kind < 0.07:
            del arguments[place:]
        elif kind < 0.1:
            arguments.insert(place, self.random.choice(ODD))
        elif kind < 0.12:
            arguments.append(arguments[-1])
        elif kind < 0.16:
            arguments[place : place + 1] = [self.random.choice(ODD)]
        return tuple(arguments)

    # What arguments are drawn from

    def _either(self, usual: bytes | int, odd: Sequence[bytes] = ODD, share: float = 0.12) -> bytes:
        if self.random.random() < share:
            return self.random.choice(odd)
        return usual if isinstance(usual, bytes) else b"%d" % usual

    def key(self) -> bytes:
        home = self._homes.get(self._family, KEYS)
        return self.random.choice(home if self.random.random() < 0.8 else KEYS)

    def keys(self) -> list[bytes]:
        keys = [self.key() for _ in range(self.random.choice([1, 1, 2, 2, 3]))]
        return [self._either(len(keys), (*ODD, b"1", b"2", b"3", b"100"), 0.15), *keys]

    def value(self) -> bytes:
        words = (b"", b"a", b"hello", b"hello world", b"new\r\nline", b"\x00\xff\x7f")
        long = b"x" * self.random.choice([44, 45, 64, 65, 130])
        return self._either(self.random.choice([*words, self.number(), long]), share=0.2)

    def number(self) -> bytes:
        return self._either(self.random.randint(-20, 200), (*FLOATS, *LIMITS))

    def integer(self) -> bytes:
        return self._either(self.random.randint(-20, 20), (*ODD, *LIMITS, *LIMITS), 0.16)

    def real(self) -> bytes:
        return self._either(self.random.choice(FLOATS))

    def element(self) -> bytes:
        return self.random.choice((b"a", b"b", b"c", b"1", b"2", b"", b"\x00\r\n"))

    def member(self) -> bytes:
        return self.random.choice((b"a", b"b", b"c", b"aa", b"1", b"2", b"3", b"07", b"", b"\xff"))

    def field(self) -> bytes:
        return self.member()

    def index(self) -> bytes:
        return self._either(self.random.randint(-6, 6), share=0.08)

    def offset(self) -> bytes:
        return self._either(self.random.randint(0, 20), share=0.08)

    def count(self) -> bytes:
        return self._either(self.random.choice([0, 1, 1, 2, 2, 3, 4, 10, 100]), share=0.08)

    def choices(self) -> bytes:
        return self._either(self.random.randint(-6, 6), share=0.08)

    def score(self) -> bytes:
        usual = b"%d" % self.random.randint(-3, 6)
        # To Redis -0 is 0 in a short sorted set, but not in one with a long member.
        odd = tuple(each for each in ODD if each != b"-0")
        return self._either(self.random.choice((usual, usual, b"inf", b"-inf", *FLOATS[:6])), odd)

    def bound(self) -> bytes:
        bound = self.random.choice((b"", b"", b"(")) + self.score()
        return self.random.choice((bound, bound, bound, b"-inf", b"+inf", b"inf", b"(inf"))

    def pattern(self) -> bytes:
        return self._either(self.random.choice(PATTERNS))

    def cursor(self) -> bytes:
        return self._either(0, (*ODD, b"5", b"17"))

    def kind(self) -> bytes:
        return self._either(self.random.choice((b"string", b"list", b"hash", b"SET", b"zset")))

    def ttl(self) -> bytes:
        odd = (*ODD, b"-100", b"9223372036854775", b"9223372036854776")
        return self._either(self.random.randint(10**5, 10**9), odd)

    def seconds(self) -> bytes:
        usual = self.random.choice((1, 1_500_000_000, 4_000_000_000, 4_100_000_000, 4_200_000_000))
        return self._either(usual, (*ODD, b"9223372036854775", b"9223372036854776"))

    def milliseconds(self) -> bytes:
        return self._either(self.random.choice((1, 1_500_000_000_000, 4_000_000_000_000)))

    def database(self) -> bytes:
        return self._either(0, (*ODD, b"1", b"16", b"99999999999"), 0.3)

    def protocol(self) -> bytes:
        return self._either(self.random.choice((2, 3)), (*ODD, b"1", b"4"))

    def name(self) -> bytes:
        return self._either(b"me", share=0.2)

    def stranger(self) -> bytes:
        return self.random.choice((b"NOSUCH", b"foo", b"GETT", b"a\r\nb", b"\x00\xff", b"x" * 200))


LIMITS = (
    *(b"9223372036854775807", b"-9223372036854775808", b"9223372036854775800"),
    *(b"-9223372036854775807", b"9007199254740993", b"-4611686018427387904"),
)

FLOATS = (
    *(b"0", b"1", b"-2", b"0.1", b"-0.5", b"10.50", b"3.14", b"2.25", b"1e3", b"5.0e3", b"1e-5"),
    *(b"0.30000000000000004", b"123456789.987654321", b"1e17", b"1e20", b"-1e-10", b"1e308"),
)

PATTERNS = (
    *(b"*", b"*", b"?", b"a*", b"*a", b"[a-c]", b"[^a]", b"[c-a]*", b"key:?", b"\\*", b"[\\r-z]"),
    *(b"", b"\r*", b"[", b"[a", b"a\\", b"*\xff*", b"[]", b"[^]", b"[a-]", b"k*:[0-9]"),
)


@functools.lru_cache(maxsize=None)
def rows(family: str) -> list[str]:
    """The rows of a family."""
    return [line.strip() for line in TABLE[family].strip().splitlines()]


# ---------------------------------------------------------------------------
# When replies agree
# ---------------------------------------------------------------------------

#: Tells whether the replies of both servers to the commands of a step agree.
Check = Callable[[Step, Sequence[Reply], Sequence[Reply]], bool]


def elements(reply: Reply) -> list[Reply]:
    """The replies inside an array or a set, and in a map one after the other."""
    return list(reply[1]) if isinstance(reply[1], tuple) else []


def pairs(reply: Reply) -> list[tuple[Reply, ...]]:
    """The pairs of a map, of an array of pairs, or of an array of what would be in them."""
    inside = elements(reply)
    if inside and isinstance(inside[0][1], tuple):
        return [tuple(elements(each)) for each in inside]
    return list(zip(inside[::2], inside[1::2]))


def shape(reply: Reply) -> object:
    """A reply without the values in it; but an error is an error."""
    if isinstance(reply[1], tuple):
        return reply[0], [shape(each) for each in reply[1]]
    return reply if reply[0] == "-" else (reply[0], reply[1] is None)


def without_order(reply: Reply) -> object:
    """A reply whose elements may come in any order."""
    return (reply[0], Counter(elements(reply))) if elements(reply) else reply


def pairs_without_order(reply: Reply) -> object:
    """A reply whose pairs may come in any order."""
    inside = elements(reply)
    return (reply[0], len(inside), Counter(pairs(reply))) if inside else reply


def without_id(reply: Reply) -> object:
    """What HELLO answers, but for the id of the connection."""
    inside = elements(reply)
    return (reply[0], inside[:7], inside[8:]) if len(inside) == 14 else reply


def page(reply: Reply) -> object:
    """All of a SCAN; of a single page of it only what it is made of."""
    inside = elements(reply)
    return (reply[0], [kind for kind, _ in inside]) if inside else reply


def by(normal: Callable[[Reply], object]) -> Check:
    """Replies agree when they are equal in this form."""

    def check(step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]) -> bool:
        return [normal(reply) for reply in theirs] == [normal(reply) for reply in ours]

    return check


def near(tolerance: int) -> Check:
    """Replies agree when they are times no further apart than this."""

    def check(step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]) -> bool:
        ((kind, one),), ((other_kind, other),) = theirs, ours
        if kind == other_kind == ":" and one >= 0 and other >= 0:
            return bool(abs(one - other) <= tolerance)
        return theirs == ours

    return check


def check_choice(step: Step, theirs: Sequence[Reply], ours: Sequence[Reply]) -> bool:
    """A random choice: as many on both sides, from what was there, and no one twice.

    A negative count allows the same one several times. What SPOP chose must be gone afterwards.
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
    # It tells of the past of a value as well: one APPEND, and Redis keeps 1 as a raw string.
    "OBJECT ENCODING": by(shape),
}
EXACT = by(lambda reply: reply)


# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------

QUEUED = ("+", b"QUEUED")

#: What stands for a reply that does not come.
NO_REPLY = "no reply: "

#: The commands that come in pages, and where their cursor stands.
CURSORS = {"SCAN": 1, "HSCAN": 2, "SSCAN": 2, "ZSCAN": 2}

#: What shows all that a key of a type holds.
CONTENTS = {
    b"string": "GET",
    b"list": "LRANGE 0 -1",
    b"hash": "HGETALL",
    b"set": "SMEMBERS",
    b"zset": "ZRANGE 0 -1 WITHSCORES",
}

#: The connection over which the state is looked at, and what a difference in it is called.
OBSERVER = 2
LEFT = "what is left"


class Side:
    """One of the two servers, with the connections of a sequence."""

    def __init__(self, title: str, address: str) -> None:
        self.title = title
        self._address = address
        self._connections: list[Connection] = []

    def begin(self, version: int) -> None:
        """Take every key away, and bring the connections to a version of RESP."""
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
        with contextlib.suppress(OSError):  # the replies will be missed
            self._connections[connection].send(b"".join(commands))

    def receive(self, step: Step) -> list[Reply]:
        """The replies to the commands of a step."""
        return [self._receive(step.connection) for _ in step.commands]

    def _receive(self, connection: int) -> Reply:
        try:
            return self._connections[connection].receive()
        except (OSError, ValueError) as error:
            return NO_REPLY, str(error)

    def scan(self, step: Step, reply: Reply) -> Reply:
        """What is in all the pages of a SCAN that has begun with this one."""
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
        """End the connections; the next sequence has new ones."""
        for connection in self._connections:
            connection.close()
        self._connections = []


class Difference(NamedTuple):
    """Where two servers parted."""

    #: What this is a difference in.
    name: str
    #: How many steps of the sequence it took; more than there are if it is in what was left.
    length: int
    step: Step
    theirs: Sequence[Reply]
    ours: Sequence[Reply]


class Comparison:
    """Two servers that are asked the same.

    :param theirs: the one that is right.
    """

    def __init__(self, theirs: Side, ours: Side) -> None:
        self.sides = (theirs, ours)
        #: For each command how many replies were values, and how many errors.
        self.good: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self._queued: list[list[Step]] = []

    def run(self, version: int, steps: Sequence[Step]) -> Difference | None:
        """Run a sequence on both and return where they part, if they do."""
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
        """The command that the replies differ in; for EXEC the one inside the transaction."""
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
        """Whether both hold the same now."""

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
    """The steps that can be sent at once."""
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
    """Leave out all that the difference does not need, or what can be found out in time."""
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
    """An argument as a person would type it."""
    text = repr(argument)[1:]
    return text[1:-1] if re.fullmatch(rb"[!-~]+", argument) and "\\" not in text else text


def show_reply(reply: Reply) -> str:
    """A reply with the byte of its RESP type."""
    kind, value = reply
    if isinstance(value, tuple):
        return f"{kind}{len(value)} [{', '.join(map(show_reply, value))}]"
    if isinstance(value, bytes):
        return f"{kind}{value.decode('latin-1') if kind in '+-,' else repr(value)[1:]}"
    return f"{kind}{'-1' if value is None else value}"


def show_step(step: Step) -> Iterator[str]:
    """The commands of a step, one a line."""
    for arguments in step.commands:
        line = " ".join(map(show_argument, arguments))
        yield f"{'other client> ' * step.connection}{line}"


def describe(
    comparison: Comparison, seed: int, version: int, steps: Sequence[Step], found: Difference
) -> str:
    """What a developer needs to see of a difference."""
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
    """Run the sequences from a seed on, and describe one difference of each command."""
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
            # Nothing in a sequence depends on chance or time, unless the machine stood still.
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
        if lost:  # it has hung or gone, and will the next time
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
    """An array, set or map of the words as bulk strings."""
    return kind, tuple(("$", value.encode()) for value in values.split())


class CheckTests(unittest.TestCase):
    """What agrees where Redis leaves a choice: replies to a line and those around it."""

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


@unittest.skipIf(WINDOWS, "redis-server has no Windows version")
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
        """Were it not so, or did most commands fail, the other test would say little."""
        comparison, reports = self.differences(self.redis(), 1000)
        if reports:
            self.fail("\n\n".join(["the test itself is wrong", *reports]))
        good, bad = comparison.good, comparison.bad
        if sum(good.values()) < 10_000:
            return  # some sequence alone, repeated
        names = {command_name(row) for family in TABLE for row in rows(family)}
        names -= {name for name in names if name.endswith("NOSUCH")}
        names -= {"CLIENT", "OBJECT", "stranger"}
        self.assertEqual({name for name in names if good[name] < 5}, set())
        share = sum(bad.values()) / sum((good + bad).values())
        self.assertTrue(0.2 < share < 0.4, f"{share:.0%} errors")


if __name__ == "__main__":
    unittest.main()
