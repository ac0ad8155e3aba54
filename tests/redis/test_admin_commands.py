"""Tests of commands about clients, settings, the server and commands."""

from __future__ import annotations

import collections
import io
import re
import time
import unittest
from typing import Any, Pattern, Sequence, Tuple, Union

import pipecache
from pipecache import (
    NO_REPLY,
    NULL_ARRAY,
    CommandError,
    Connection,
)
from tests.support import (
    WINDOWS,
    ConversationCase,
    RawConnection,
    redis_address,
    wait_until,
)
from tests.support.cases import ClientCase
from tests.support.internals import (
    is_blocked,
    run_session,
    seconds_left,
    take_blocked_reply,
    takes_slow_path,
)
from tests.support.wire import (
    NIL,
    NO_MULTI,
    OK,
    PONG,
    RESET,
    SYNTAX,
    Reply,
    command,
    read_reply,
    unknown_subcommand,
    wrong_arity,
)

#: A command and the reply, or its pattern.
Line = Tuple[bytes, Union[bytes, Pattern[bytes]]]


def unknown_client_type(name: bytes) -> bytes:
    return b"-ERR Unknown client type '%b'\r\n" % name


def failed(name: bytes, reason: bytes) -> bytes:
    text = b"-ERR CONFIG SET failed (possibly related to argument '%b') - %b\r\n"
    return text % (name, reason)


CLIENTS: tuple[Line, ...] = (
    # A wrong filter is an error even if no client matches the others.
    (b"CLIENT KILL", wrong_arity(b"client|kill")),
    (b"CLIENT KILL 127.0.0.1:1", b"-ERR No such client\r\n"),
    (b"CLIENT KILL ID", b"-ERR No such client\r\n"),
    (b"CLIENT KILL ID x", b"-ERR client-id should be greater than 0\r\n"),
    (b"CLIENT KILL ID 0", b"-ERR client-id should be greater than 0\r\n"),
    (b"CLIENT KILL ID -1", b"-ERR client-id should be greater than 0\r\n"),
    (b"CLIENT KILL ID 99999", b":0\r\n"),
    (b"CLIENT KILL ID 99999 ID x", b"-ERR client-id should be greater than 0\r\n"),
    (b"CLIENT KILL ID 99999 TYPE", SYNTAX),
    (b"CLIENT KILL ID 99999 NOSUCH x", SYNTAX),
    (b"CLIENT KILL ID 99999 TYPE nosuch", unknown_client_type(b"nosuch")),
    (b"CLIENT KILL TYPE nosuch", unknown_client_type(b"nosuch")),
    *((b"CLIENT KILL TYPE " + kind, b":0\r\n") for kind in (b"pubsub", b"master", b"replica")),
    (b"CLIENT KILL TYPE slave", b":0\r\n"),
    (b"CLIENT KILL USER nosuch", b"-ERR No such user 'nosuch'\r\n"),
    (b"CLIENT KILL ID 99999 USER nosuch", b"-ERR No such user 'nosuch'\r\n"),
    (b"CLIENT KILL ADDR 127.0.0.1:1", b":0\r\n"),
    (b"CLIENT KILL LADDR 127.0.0.1:1", b":0\r\n"),
    (b"CLIENT KILL SKIPME nosuch", SYNTAX),
    (b"CLIENT KILL ID 99999 SKIPME no", b":0\r\n"),
    (b"CLIENT KILL id 99999 skipme NO", b":0\r\n"),
    (b"CLIENT KILL ID 99999 SKIPME YES", b":0\r\n"),
    (b"CLIENT LIST TYPE", SYNTAX),
    (b"CLIENT LIST TYPE nosuch", unknown_client_type(b"nosuch")),
    (b"CLIENT LIST TYPE pubsub", b"$0\r\n\r\n"),
    (b"CLIENT LIST TYPE normal x", SYNTAX),
    (b"CLIENT LIST ID", SYNTAX),
    (b"CLIENT LIST ID x", b"-ERR Invalid client ID\r\n"),
    (b"CLIENT LIST ID 99999", b"$0\r\n\r\n"),
    (b"CLIENT LIST ID 0 -1", b"$0\r\n\r\n"),
    (b"CLIENT LIST NOSUCH", SYNTAX),
    (b"CLIENT INFO x", wrong_arity(b"client|info")),
    (b"CLIENT ID", re.compile(rb":[1-9]\d*\r\n")),
    (b"CLIENT GETNAME", NIL),
    (b"CLIENT SETNAME worker:1", OK),
    (b"CLIENT GETNAME", b"$8\r\nworker:1\r\n"),
    (b"CLIENT SETNAME a\xffb", re.compile(rb"-ERR Client names cannot contain spaces, .*\r\n")),
    (b"CLIENT GETNAME", b"$8\r\nworker:1\r\n"),
    (b"CLIENT REPLY", wrong_arity(b"client|reply")),
    (b"CLIENT REPLY nosuch", SYNTAX),
    (b"CLIENT REPLY on", OK),
    (b"client reply ON", OK),
    (b"CLIENT NOSUCH", unknown_subcommand(b"CLIENT", b"NOSUCH")),
    (b"CLIENT HELP", re.compile(rb"\*\d+\r\n\+.*", re.DOTALL)),
    (b"CONFIG HELP", re.compile(rb"\*\d+\r\n\+.*", re.DOTALL)),
    (b"RESET", RESET),
    (b"CLIENT GETNAME", NIL),
    (b"RESET x", wrong_arity(b"reset")),
)

#: The beginning of an error, which Redis continues with its own sizes and names.
ONE_OF = re.compile(
    re.escape(failed(b"maxmemory-policy", b"argument(s) must be one of the following: ")[:-2])
    + rb".*allkeys-lru.*\r\n"
)

CONFIG: tuple[Line, ...] = (
    (b"CONFIG", wrong_arity(b"config")),
    (b"CONFIG GET", wrong_arity(b"config|get")),
    (b"CONFIG GET nosuch", b"*0\r\n"),
    (b"CONFIG GET maxmemory", b"*2\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n"),
    (b"CONFIG GET maxmemory maxmemory", b"*2\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n"),
    (b"CONFIG GET max*ory nosuch", b"*2\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n"),
    (b"CONFIG GET appendonly", b"*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"),
    (b"CONFIG GET databases", b"*2\r\n$9\r\ndatabases\r\n$1\r\n1\r\n"),
    (b"CONFIG GET save", b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
    (b"CONFIG SET maxmemory", wrong_arity(b"config|set")),
    (b"CONFIG SET maxmemory 1 port", SYNTAX),
    (
        b"CONFIG SET nosuch 1",
        b"-ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'\r\n",
    ),
    (b"CONFIG SET databases 4", failed(b"databases", b"can't set immutable config")),
    (b"CONFIG SET maxmemory many", failed(b"maxmemory", b"argument must be a memory value")),
    (b"CONFIG SET maxmemory -1", failed(b"maxmemory", b"argument must be a memory value")),
    (b"CONFIG SET maxmemory 1 maxmemory 2", failed(b"maxmemory", b"duplicate parameter")),
    (b"CONFIG SET maxmemory-policy nosuch", ONE_OF),
    # CONFIG SET changes all parameters or none.
    (b"CONFIG SET maxmemory 100mb maxmemory-policy nosuch", ONE_OF),
    (b"CONFIG GET maxmemory", b"*2\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n"),
    (
        b"CONFIG SET maxmemory 100mb nosuch 1",
        b"-ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'\r\n",
    ),
    (b"CONFIG GET maxmemory", b"*2\r\n$9\r\nmaxmemory\r\n$1\r\n0\r\n"),
    (b"CONFIG SET maxmemory 100mb MAXMEMORY-POLICY ALLKEYS-LRU", OK),
    (b"CONFIG GET maxmemory", b"*2\r\n$9\r\nmaxmemory\r\n$9\r\n104857600\r\n"),
    (b"CONFIG GET *-policy", b"*2\r\n$16\r\nmaxmemory-policy\r\n$11\r\nallkeys-lru\r\n"),
    (b"SET k v", OK),
    (b"OBJECT IDLETIME k", b":0\r\n"),
    (b"OBJECT IDLETIME none", NIL),
    (b"CONFIG SET maxmemory 0 maxmemory-policy noeviction", OK),
    (b"CONFIG NOSUCH", unknown_subcommand(b"CONFIG", b"NOSUCH")),
)

SERVER: tuple[Line, ...] = (
    (b"TIME", re.compile(rb"\*2\r\n\$10\r\n\d{10}\r\n\$\d\r\n\d{1,6}\r\n")),
    (b"TIME x", wrong_arity(b"time")),
    (b"DBSIZE x", wrong_arity(b"dbsize")),
    (b"INFO nosuch", b"$0\r\n\r\n"),
    (b"INFO keyspace", b"$12\r\n# Keyspace\r\n\r\n"),
    (b"MEMORY USAGE none", NIL),
    (b"MEMORY USAGE", wrong_arity(b"memory|usage")),
    (b"MEMORY USAGE none SAMPLES x", b"-ERR value is not an integer or out of range\r\n"),
    (b"MEMORY USAGE none SAMPLES -1", SYNTAX),
    (b"COMMAND NOSUCH", unknown_subcommand(b"COMMAND", b"NOSUCH")),
    (b"COMMAND COUNT", re.compile(rb":\d\d+\r\n")),
    (b"command count", re.compile(rb":\d\d+\r\n")),
    (b"Command Count", re.compile(rb":\d\d+\r\n")),
    (b"COMMAND COUNT x", wrong_arity(b"command|count")),
    (b"COMMAND DOCS nosuch", b"*0\r\n"),
)

#: The reply to the last command of each line.
END = b"$7\r\nthe end\r\n"

#: Commands separated by semicolons, and the output for all of them.
REPLIES: tuple[tuple[bytes, bytes], ...] = (
    (b"CLIENT REPLY OFF;PING;SET k v;NOSUCH;GET;CLIENT REPLY ON;GET k", OK + b"$1\r\nv\r\n"),
    (b"CLIENT REPLY OFF;CLIENT REPLY OFF;PING;CLIENT REPLY ON;PING", OK + PONG),
    (b"CLIENT REPLY OFF;CLIENT REPLY SKIP;PING;CLIENT REPLY ON;PING", OK + PONG),
    (b"CLIENT REPLY OFF;CLIENT REPLY nosuch;PING;CLIENT REPLY ON", OK),
    (b"CLIENT REPLY OFF;RESET;PING", RESET + PONG),
    (b"CLIENT REPLY OFF;HELLO 3;CLIENT REPLY ON;GET none", OK + b"_\r\n"),
    # Options before a wrong one take effect.
    (
        b"HELLO 2 SETNAME me FOO;CLIENT GETNAME",
        b"-ERR Syntax error in HELLO option 'FOO'\r\n$2\r\nme\r\n",
    ),
    (
        b"CLIENT REPLY OFF;MULTI;SET k w;GET k;EXEC;CLIENT REPLY ON;GET k",
        OK + b"$1\r\nw\r\n",
    ),
    (b"CLIENT REPLY SKIP;PING;PING", PONG),
    (b"CLIENT REPLY SKIP;NOSUCH;PING", PONG),
    (b"CLIENT REPLY SKIP;GET;PING", PONG),
    (b"CLIENT REPLY SKIP;CLIENT SETNAME me;CLIENT GETNAME", b"$2\r\nme\r\n"),
    (b"CLIENT REPLY SKIP;CLIENT REPLY SKIP;PING;PING", PONG),
    (b"CLIENT REPLY SKIP;CLIENT REPLY nosuch;PING", PONG),
    (b"CLIENT REPLY SKIP;CLIENT REPLY OFF;PING;CLIENT REPLY ON", OK),
    (b"CLIENT REPLY SKIP;CLIENT REPLY ON;PING", OK + PONG),
    (b"CLIENT REPLY SKIP;MULTI;PING;EXEC", b"+QUEUED\r\n*1\r\n" + PONG),
    (b"MULTI;CLIENT REPLY ON;PING;EXEC", OK + b"+QUEUED\r\n" * 2 + b"*2\r\n" + OK + PONG),
)

#: Fields that redis-py converts to numbers, and other fields that clients read.
NUMBERS = (
    *("id", "age", "idle", "db", "sub", "psub", "multi"),
    *("qbuf", "qbuf-free", "argv-mem", "obl", "oll", "omem", "tot-mem"),
)
FACTS = {*NUMBERS, "addr", "laddr", "name", "user", "resp"}

#: The first key, the last key and the step between keys, by COMMAND.
KEYS = {
    "get": (1, 1, 1),
    "mget": (1, -1, 1),
    "mset": (1, -1, 2),
    "msetnx": (1, -1, 2),
    "del": (1, -1, 1),
    "rename": (1, 2, 1),
    "copy": (1, 2, 1),
    "hset": (1, 1, 1),
    "lmove": (1, 2, 1),
    "smove": (1, 2, 1),
    "rpoplpush": (1, 2, 1),
    "sinter": (1, -1, 1),
    "sinterstore": (1, -1, 1),
    "sunionstore": (1, -1, 1),
    "sdiffstore": (1, -1, 1),
    "watch": (1, -1, 1),
    # An argument is the number of keys.
    "sintercard": (0, 0, 0),
    "lmpop": (0, 0, 0),
    "ping": (0, 0, 0),
    "scan": (0, 0, 0),
    "multi": (0, 0, 0),
}

#: The arity of some commands, and flags about their keys.
ARITIES = {
    "get": (2, {"readonly"}),
    "set": (-3, {"write", "denyoom"}),
    "del": (-2, {"write"}),
    "incr": (2, {"write", "denyoom"}),
    "lpop": (-2, {"write"}),
    "zadd": (-4, {"write", "denyoom"}),
    "exists": (-2, {"readonly"}),
    "hset": (-4, {"write", "denyoom"}),
    "expire": (-3, {"write"}),
    "zrange": (-4, {"readonly"}),
    "spop": (-2, {"write"}),
}


def parse(data: bytes) -> Reply:
    """Parse a reply."""
    return read_reply(io.BytesIO(data))


def pairs(reply: Reply) -> dict[str, Reply]:
    """Return the keys and values of a map."""
    kind, elements = reply
    if kind != "%":
        raise AssertionError(f"expected a map, found {reply}")
    return {key.decode(): value for (_, key), value in zip(elements[::2], elements[1::2])}


class ConversationTests(ConversationCase):
    """The tables, each on one connection."""

    def check(self, lines: Sequence[Line]) -> None:
        conversation = self.connect()
        for number, (line, expected) in enumerate(lines):
            with self.subTest(number=number, line=line):
                reply = conversation.ask(*line.split())
                if isinstance(expected, bytes):
                    self.assertEqual(reply, expected)
                else:
                    self.assertIsNotNone(expected.fullmatch(reply), reply)

    def test_clients(self) -> None:
        self.check(CLIENTS)

    def test_config(self) -> None:
        self.check(CONFIG)

    def test_server(self) -> None:
        self.check(SERVER)

    def test_client_reply(self) -> None:
        for line, expected in REPLIES:
            commands = [command(*each.split()) for each in line.split(b";")]
            commands.append(command(b"ECHO", b"the end"))
            for sent in (commands, [b"".join(commands)]):
                with self.subTest(line=line, pipelined=len(sent) == 1):
                    with RawConnection(self.name) as raw:
                        for data in sent:
                            raw.send(data)
                        received = b""
                        while not received.endswith(END):
                            chunk = raw.receive()
                            self.assertNotEqual(chunk, b"", received)
                            received += chunk
                        self.assertEqual(received, expected + END)

    def test_a_lower_limit_of_arguments_holds_at_once(self) -> None:
        """A new setting applies to connected clients, too."""
        one, other = self.connect(), self.connect()
        self.assertEqual(one.ask(b"PING"), PONG)
        self.assertEqual(other.ask(b"CONFIG", b"SET", b"proto-max-bulk-len", b"1mb"), OK)
        for size, refused in ((1024 * 1024, False), (1024 * 1024 + 1, True)):
            one.raw.send(b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % size)
            if refused:
                error = b"-ERR Protocol error: invalid bulk length\r\n"
                self.assertEqual(one.raw.read(len(error)), error)
                self.assertTrue(one.raw.ended())
            else:
                one.raw.send(b"x" * size + b"\r\n")
                reply = b"$%d\r\n" % size + b"x" * size + b"\r\n"
                self.assertEqual(one.raw.read(len(reply)), reply)

    def test_quit(self) -> None:
        for words in ((b"QUIT",), (b"quit", b"now")):
            conversation = self.connect()
            self.assertEqual(conversation.ask(*words), OK)
            self.assertTrue(conversation.raw.ended())

    def facts(self, reply: bytes) -> list[dict[str, str]]:
        """Parse CLIENT LIST or CLIENT INFO as redis-py does."""
        _, text = parse(reply)
        lines = text.decode().splitlines() if b"\r\n" not in text else None
        return [dict(token.split("=", 1) for token in line.split(" ")) for line in lines or ()]

    def test_client_list(self) -> None:
        one, other = self.connect(), self.connect()
        one.ask(b"CLIENT", b"SETNAME", b"worker")
        one.ask(b"HELLO", b"3")
        one.ask(b"HELLO", b"2")
        number = parse(one.ask(b"CLIENT", b"ID"))[1]
        (info,) = self.facts(one.ask(b"CLIENT", b"INFO"))
        self.assertLessEqual(FACTS, info.keys())
        for name in NUMBERS:
            int(info[name])
        told = (info["id"], info["name"], info["db"], info["multi"], info["user"], info["resp"])
        self.assertEqual(told, (str(number), "worker", "0", "-1", "default", "2"))
        address = pipecache.pipe_address(self.name)
        self.assertEqual((info["addr"], info["laddr"]), (f"{address}:0", self.local_address()))
        everybody = self.facts(other.ask(b"CLIENT", b"LIST"))
        self.assertEqual(len(everybody), 2)
        self.assertIn((str(number), "worker"), [(each["id"], each["name"]) for each in everybody])
        self.assertEqual(len(self.facts(other.ask(b"CLIENT", b"LIST", b"TYPE", b"NORMAL"))), 2)
        of_one = self.facts(other.ask(b"CLIENT", b"LIST", b"ID", b"99999", b"%d" % number))
        self.assertEqual([each["id"] for each in of_one], [str(number)])
        one.ask(b"MULTI")
        one.ask(b"PING")
        of_one = self.facts(other.ask(b"CLIENT", b"LIST", b"ID", b"%d" % number))
        self.assertEqual(of_one[0]["multi"], "1")

    def local_address(self) -> str:
        return pipecache.pipe_address(self.name)

    def test_client_kill(self) -> None:
        """Run CLIENT KILL in one of three clients, and check which of them end."""
        for line, expected, ended in (
            (b"ID {second}", b":1\r\n", (False, True, False)),
            (b"ID {own}", b":0\r\n", (False, False, False)),
            (b"ID {own} SKIPME no", b":1\r\n", (False, False, True)),
            (b"ID {second} ID {first}", b":1\r\n", (True, False, False)),
            (b"ID {second} ADDR {address}", b":1\r\n", (False, True, False)),
            (b"ADDR {address}", b":2\r\n", (True, True, False)),
            (b"ADDR {address} SKIPME no", b":3\r\n", (True, True, True)),
            (b"LADDR {local}", b":2\r\n", (True, True, False)),
            (b"TYPE normal", b":2\r\n", (True, True, False)),
            (b"TYPE NORMAL SKIPME no", b":3\r\n", (True, True, True)),
            (b"USER default", b":2\r\n", (True, True, False)),
            (b"SKIPME yes", b":2\r\n", (True, True, False)),
            (b"SKIPME no", b":3\r\n", (True, True, True)),
            # The old form kills all clients at an address, and pipe clients have the same one.
            (b"{address}", OK, (True, True, True)),
        ):
            clients = [self.connect() for _ in range(3)]
            first, second, own = (parse(each.ask(b"CLIENT", b"ID"))[1] for each in clients)
            (info,) = self.facts(clients[-1].ask(b"CLIENT", b"INFO"))
            places = {"first": first, "second": second, "own": own}
            places.update(address=info["addr"], local=info["laddr"])
            words = line.decode().format(**places).encode().split()
            with self.subTest(line=line):
                self.assertEqual(clients[-1].ask(b"CLIENT", b"KILL", *words), expected)
                for each, is_ended in zip(clients, ended):
                    if is_ended:
                        self.assertTrue(each.raw.ended())
                    else:
                        self.assertEqual(each.ask(b"PING"), PONG)
            for each in clients:
                each.raw.close()
            self.wait_until_alone()

    def wait_until_alone(self) -> None:
        last = self.connect()
        wait_until(
            lambda: last.ask(b"CLIENT", b"LIST").count(b" addr=") == 1, "the others have left"
        )
        last.raw.close()

    def test_a_killed_client_releases_its_keys_and_watches(self) -> None:
        one, other = self.connect(), self.connect()
        for line in (b"MULTI", b"SET k v"):
            one.ask(*line.split())
        self.assertEqual(other.ask(b"CLIENT", b"KILL", b"TYPE", b"normal"), b":1\r\n")
        self.assertTrue(one.raw.ended())
        self.assertEqual(other.ask(b"EXISTS", b"k"), b":0\r\n")

    def test_command_info(self) -> None:
        conversation = self.connect()
        conversation.ask(b"HELLO", b"3")
        kind, entries = parse(conversation.ask(b"COMMAND"))
        self.assertEqual(kind, "*")
        told: dict[str, list[Any]] = {}
        for kind, facts in entries:
            self.assertEqual(kind, "*")
            self.assertRegex("".join(kind for kind, _ in facts), r"^\$:~:::~~~[~*]$", facts)
            name, *values = (value for _, value in facts)
            told[name.decode()] = values
        for each, places in KEYS.items():
            with self.subTest(keys=each):
                self.assertEqual(tuple(told[each][2:5]), places)
        for each, (arity, flags) in ARITIES.items():
            with self.subTest(arity=each):
                given = {flag.decode() for _, flag in told[each][1]}
                given &= {"readonly", "write", "denyoom"}
                self.assertEqual((told[each][0], given), (arity, flags))
        self.assertEqual(parse(conversation.ask(b"COMMAND", b"COUNT")), (":", len(told)))
        kind, names = parse(conversation.ask(b"COMMAND", b"LIST"))
        self.assertEqual({kind for kind, _ in names}, {"$"})
        listed = {name.decode() for _, name in names}
        self.assertLessEqual({*told, "client|setname", "config|get"}, listed)
        # As in Redis, a command with subcommands counts as one.
        self.assertIn("client", told)
        self.assertNotIn("client|setname", told)

    def test_how_commands_are_used(self) -> None:
        conversation = self.connect()
        conversation.ask(b"HELLO", b"3")
        docs = pairs(parse(conversation.ask(b"COMMAND", b"DOCS", b"get", b"SET", b"nosuch")))
        self.assertEqual(docs.keys(), {"get", "set"})
        for each in docs.values():
            facts = pairs(each)
            self.assertLessEqual({"summary", "since", "group", "arguments"}, facts.keys())
            self.assertEqual(facts["group"], ("$", b"string"))
        arguments = [pairs(each) for each in pairs(docs["get"])["arguments"][1]]
        self.assertEqual([(each["name"], each["type"]) for each in arguments], [(KEY, KEY)])
        arguments = [pairs(each) for each in pairs(docs["set"])["arguments"][1]]
        _, value, condition, *_ = arguments
        self.assertEqual((value["name"], value["type"]), (("$", b"value"), ("$", b"string")))
        self.assertEqual(condition["type"], ("$", b"oneof"))
        self.assertEqual(condition["flags"], ("~", (("+", b"optional"),)))
        choice = pairs(condition["arguments"][1][0])
        token = {"name": ("$", b"nx"), "type": ("$", b"pure-token"), "token": ("$", b"NX")}
        self.assertEqual(choice, token)
        docs = pairs(parse(conversation.ask(b"COMMAND", b"DOCS", b"client", b"config|get")))
        self.assertEqual(docs.keys(), {"client", "config|get"})
        container = pairs(docs["client"])
        self.assertLessEqual({"summary", "since", "group", "subcommands"}, container.keys())
        inside = pairs(container["subcommands"])
        self.assertLessEqual({"client|id", "client|setname"}, inside.keys())
        self.assertEqual(pairs(inside["client|id"])["group"], ("$", b"connection"))
        everything = pairs(parse(conversation.ask(b"COMMAND", b"DOCS")))
        self.assertLessEqual({"get", "zadd", "client", "command"}, everything.keys())


KEY = ("$", b"key")


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class RedisConversationTests(ConversationTests):
    """The same tables on redis-server, which proves the tables."""

    def serve(self) -> str:
        return redis_address(self)

    def local_address(self) -> str:
        return f"{self.name}:0"


class RecordedConnection(Connection):
    """A connection that receives given messages and records what is sent."""

    message_mode = True

    def __init__(self, *messages: bytes) -> None:
        super().__init__("address")
        self.messages = collections.deque(messages)
        self.sent: list[bytes] = []

    def receive(self) -> bytes | None:
        return self.messages.popleft() if self.messages else None

    def send(self, data: bytes, whole: bool = True) -> bool:
        self.sent.append(data)
        return True


class MessageTests(unittest.TestCase):
    """No reply must not become an empty message, which some clients take for the end."""

    def sent(self, *messages: bytes) -> list[bytes]:
        connection = RecordedConnection(*messages)
        run_session(connection)
        return connection.sent

    def test_no_reply_is_no_message(self) -> None:
        off = command(b"CLIENT", b"REPLY", b"OFF")
        ping = command(b"PING")
        self.assertEqual(self.sent(off, ping, ping + ping, b"PING", b"GET none"), [])
        self.assertEqual(self.sent(off + ping, command(b"RESET")), [RESET])
        skip = command(b"CLIENT", b"REPLY", b"SKIP")
        self.assertEqual(self.sent(skip, ping, ping), [PONG])
        self.assertEqual(self.sent(b"CLIENT REPLY OFF", b"PING", b"CLIENT REPLY ON"), [b"OK"])

    def test_an_empty_reply_in_text_is_one(self) -> None:
        self.assertEqual(self.sent(b"GET none", b"PING"), [b"", b"PONG"])


class InformationTests(ClientCase):
    SECTIONS = (
        *("Server", "Clients", "Limits", "Memory", "Persistence", "Stats", "Replication"),
        *("CPU", "Cluster", "Keyspace"),
    )

    def info(self, *sections: bytes) -> dict[str, dict[str, str]]:
        """Return the fields of each section of INFO."""
        reply = self.run_command(b"INFO", *sections)
        assert isinstance(reply, bytes)
        blocks = [block.splitlines() for block in reply.decode().split("\r\n\r\n") if block]
        return {title[2:]: dict(line.split(":", 1) for line in lines) for title, *lines in blocks}

    def test_sections(self) -> None:
        for sections in ((), (b"all",), (b"default",), (b"everything",), (b"nosuch", b"ALL")):
            with self.subTest(sections=sections):
                self.assertEqual(tuple(self.info(*sections)), self.SECTIONS)
        self.assertEqual(tuple(self.info(b"memory", b"SERVER", b"memory")), ("Server", "Memory"))
        self.assertEqual(self.info(b"nosuch"), {})

    def test_facts(self) -> None:
        """The fields that clients and tools read; ioredis waits until ``loading`` is 0."""
        self.ask(b"SETEX k 100 v")
        self.ask(b"SETEX l 1 v")
        self.clock.now += 1
        self.ask(b"GET l")
        facts = {name: value for block in self.info().values() for name, value in block.items()}
        for name, value in {
            "redis_version": pipecache.REDIS_VERSION,
            "redis_mode": "standalone",
            "pipecache_version": pipecache.__version__,
            "tcp_port": "0",
            "connected_clients": "1",
            "blocked_clients": "0",
            "loading": "0",
            "role": "master",
            "connected_slaves": "0",
            "cluster_enabled": "0",
            "expired_keys": "1",
            "evicted_keys": "0",
            "db0": "keys=1,expires=1",
        }.items():
            with self.subTest(name=name):
                self.assertEqual(facts[name], value)
        for name in ("process_id", "uptime_in_seconds", "used_memory", "total_commands_processed"):
            self.assertTrue(facts[name].isdigit())
        self.state.connect()
        self.assertEqual(self.info(b"clients")["Clients"]["connected_clients"], "2")

    def test_time(self) -> None:
        reply: Any = self.run_command(b"TIME")
        seconds, microseconds = map(int, reply)
        self.assertLess(abs(seconds - time.time()), 10)
        self.assertTrue(0 <= microseconds < 1_000_000)

    def test_sleep(self) -> None:
        for words, expected in ((b"0", 0.0), (b"0.5", 0.5), (b"1e-3", 0.001)):
            self.ask(b"DEBUG SLEEP " + words)
            self.assertTrue(expected - 60 < seconds_left(self.client) < expected + 1e-6)
            self.state.end_block(self.client)
            self.assertIs(take_blocked_reply(self.client), pipecache.OK)
        for words in (b"-1", b"nan", b"inf", b"1e9", b"x", b"1 2", b""):
            with self.subTest(words=words):
                self.assertRegex(self.ask(b"DEBUG SLEEP " + words), b"^-ERR ")
        self.assertFalse(is_blocked(self.client))
        self.ask(b"MULTI")
        self.ask(b"DEBUG SLEEP 1000")
        self.assertIn(b"not allowed in a transaction", self.ask(b"EXEC"))

    def test_every_error_tells_of_what_there_is(self) -> None:
        """Each command with subcommands has HELP, which the error names."""
        for name in (b"CLIENT", b"COMMAND", b"CONFIG", b"DEBUG", b"MEMORY", b"OBJECT"):
            with self.subTest(name=name):
                self.assertIn(b"Try %b HELP." % name, self.ask(name + b" NOSUCH"))
                self.assertRegex(self.ask(name + b" HELP"), rb"^\*\d+\r\n\+")

    def test_reset(self) -> None:
        """RESET restores all settings of a client."""
        for line in (b"HELLO 3", b"CLIENT SETNAME me", b"WATCH k", b"MULTI", b"SET k v"):
            self.ask(line)
        self.assertEqual(self.ask(b"RESET"), RESET)
        self.assertEqual(self.client.protocol, 2)
        self.assertEqual(self.state.leftovers(), [])
        self.check(
            (b"CLIENT GETNAME", NIL),
            (b"EXEC", NO_MULTI),
            (b"GET k", NIL),
        )
        self.assertIs(self.run_command(b"CLIENT", b"REPLY", b"OFF"), NO_REPLY)
        self.assertEqual(self.run_command(b"RESET"), b"RESET")
        self.assertFalse(takes_slow_path(self.client))
        self.assertIs(self.run_command(b"LPOP", b"none", b"1"), NULL_ARRAY)
        self.assertIsInstance(self.run_command(b"NOSUCH"), CommandError)


if __name__ == "__main__":
    unittest.main()
