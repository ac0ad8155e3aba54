"""Random sequences of commands, drawn from a table of the arguments of each command."""

from __future__ import annotations

import functools
import random
import re
from typing import Any, Iterable, NamedTuple, Sequence, Tuple

#: The approximate number of commands in a sequence.
LENGTH = 20

Arguments = Tuple[bytes, ...]

#: Each row is a command. A lower-case word is drawn by the method of Generator with that name.
#: A|B is one of the words, [...] may be left out, (...)+ is repeated, {...} stands for any number
#: of its parts in any order, A:b is the option A with an argument.
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

#: Commands that create a key of each type, so that other commands find one.
FILLS = {
    "string": ("SET key value", "SET key number"),
    "list": ("RPUSH key (element)+",),
    "hash": ("HSET key (field value)+", "HSET key (field number)+"),
    "set": ("SADD key (member)+", "SADD key (integer)+"),
    "sorted set": ("ZADD key (score member)+",),
}

#: The keys. The last one belongs to no family.
KEYS = (b"a", b"b", b"c", b"key:1", b"\r\n", b"other")

#: Arguments that a careless server misreads. A small positive number is not among them, because as
#: a time to live it would be a race; nor a length for which a server allocates memory; nor a large
#: negative number, which is the number of random choices to return.
ODD = (
    *(b"9223372036854775807", b"-9223372036854775808", b"9223372036854775808"),
    *(b"-9223372036854775809", b"18446744073709551616", b"0", b"-0", b"-1", b"+1", b"010"),
    *(b" 1", b"1 ", b"1_0", b"\xd9\xa3", b"10.50", b"1e3", b"-1.5E+2", b"1.", b".5"),
    *(b"1e400", b"1e-400", b"inf", b"-inf", b"+inf", b"Infinity", b"nan", b"-nan", b"", b" "),
    *(b"abc", b"(1", b"*", b"a\r\nb", b"\xff\x00", b"NX", b"LIMIT", b"x" * 200),
)

#: Commands that are sent before and after a command, with its key, to judge its reply by. After
#: SPOP the key is deleted, because the two servers then hold different sets.
AROUND: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "SPOP": (["SMEMBERS"], ["SMEMBERS", "DEL"]),
    "SRANDMEMBER": (["SMEMBERS"], []),
    "HRANDFIELD": (["HGETALL"], []),
    "RANDOMKEY": (["KEYS"], []),
    # Redis counts an expired key until a command looks for it.
    "DBSIZE": (["EXISTS"], []),
}

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

Node = Tuple[str, Any]

_TOKEN = re.compile(r"\)\+|[(\[\]{}]|[^\s()\[\]{}]+")


@functools.lru_cache(maxsize=None)
def parse_usage(usage: str) -> list[Node]:
    """Return a row of the table as a tree of words and brackets."""
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
    """Return the name of a row in reports: its leading words in upper case."""
    name = re.match(r"[A-Z]+( [A-Z]+(?![A-Z|]))?", usage)
    return name[0] if name else usage.split(maxsplit=1)[0]


@functools.lru_cache(maxsize=None)
def rows(family: str) -> list[str]:
    """Return the rows of a family."""
    return [line.strip() for line in TABLE[family].strip().splitlines()]


class Step(NamedTuple):
    """A command with the commands around it, which are sent together."""

    name: str
    arguments: Arguments
    connection: int = 0
    #: True to wait for all replies before this step is sent.
    pause: bool = False

    @property
    def commands(self) -> list[Arguments]:
        """Return the commands of the step in the order in which they are sent."""
        before, after = AROUND.get(self.name, ([], []))
        return [*map(self._beside, before), self.arguments, *map(self._beside, after)]

    @property
    def place(self) -> int:
        """Return the index of the command itself among :attr:`commands`."""
        return len(AROUND.get(self.name, ([], []))[0])

    def _beside(self, name: str) -> Arguments:
        if name == "KEYS":
            return b"KEYS", b"*"
        if name == "EXISTS":
            return (b"EXISTS", *KEYS, *ODD)
        return name.encode(), self.arguments[1] if len(self.arguments) > 1 else KEYS[0]


class Generator:
    """The generator of the sequence that belongs to a seed.

    Two families of commands divide the keys between them, so that most commands find a value of
    their type, and some do not.
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
        #: The version of RESP that the connections use.
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
        """Return any command; inside a transaction, none that changes the form of replies."""
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
        # The encoding depends on the value alone only if the value was never changed.
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

    # The methods that draw arguments

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
        # Redis keeps -0 as 0 in a short sorted set, but not in one with a long member.
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
