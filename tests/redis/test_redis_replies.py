"""Tables of exact replies that other servers than Redis get wrong.

Each table is a conversation on one connection to an empty server. It runs on pipecache and on
redis-server, which proves the table.
"""

from __future__ import annotations

import contextlib
import re
import unittest
from typing import Tuple

from tests.support import WINDOWS, ConversationCase, RawConnection, redis_address
from tests.support.wire import (
    EMPTY,
    EXPIRE_GT_LT,
    EXPIRE_NX,
    HELLO,
    NEGATIVE,
    NIL,
    NIL_ARRAY,
    NOT_A_FLOAT,
    NOT_A_NUMBER,
    NOT_AN_INTEGER,
    OK,
    OVERFLOW,
    PING,
    PONG,
    PROTOCOL_ERRORS,
    QUEUED,
    RESET,
    SYNTAX,
    WRONG_TYPE,
    Line,
    array,
    bulk,
    command,
    message,
    protocol_error,
    unknown_command,
    unknown_subcommand,
    wrong_arity,
)

#: Input, the output for it, and True if the connection stays open.
Exchange = Tuple[bytes, bytes, bool]


HUGE = b"9223372036854775807"
SMALL = b"-9223372036854775808"


def invalid_expire(name: bytes) -> bytes:
    return b"-ERR invalid expire time in '%b' command\r\n" % name


STRINGS: tuple[Line, ...] = (
    (b"SET k v NX XX", SYNTAX),
    (b"SET k v EX 10 PX 10", SYNTAX),
    (b"SET k v EX 10 EXAT 4000000000", SYNTAX),
    (b"SET k v EX 10 KEEPTTL", SYNTAX),
    (b"SET k v EX", SYNTAX),
    (b"SET k v FOO", SYNTAX),
    (b"SET k v EX 0", invalid_expire(b"set")),
    (b"SET k v EX -1", invalid_expire(b"set")),
    (b"SET k v PX 0", invalid_expire(b"set")),
    (b"SET k v PX -5", invalid_expire(b"set")),
    (b"SET k v EX " + HUGE, invalid_expire(b"set")),
    (b"SET k v PX " + HUGE, invalid_expire(b"set")),
    (b"SET k v EX 9223372036854775808", NOT_AN_INTEGER),
    (b"SET k v EX abc", NOT_AN_INTEGER),
    (b"SETEX k 0 v", invalid_expire(b"setex")),
    (b"SETEX k -1 v", invalid_expire(b"setex")),
    (b"SETEX k %b v" % HUGE, invalid_expire(b"setex")),
    (b"SETEX k abc v", NOT_AN_INTEGER),
    (b"PSETEX k 0 v", invalid_expire(b"psetex")),
    (b"PSETEX k %b v" % HUGE, invalid_expire(b"psetex")),
    (b"GETEX k EX 0", NIL),
    (b"GET k", NIL),
    (b"SET k v XX", NIL),
    (b"SET k one NX GET", NIL),
    (b"SET k two NX GET", bulk(b"one")),
    (b"SET k two NX", NIL),
    (b"GET k", bulk(b"one")),
    (b"SET k three XX GET", bulk(b"one")),
    (b"GETEX k EX 0", invalid_expire(b"getex")),
    (b"GET k", bulk(b"three")),
    (b"EXPIRE k 1.5", NOT_AN_INTEGER),
    (b"EXPIRE k " + HUGE, invalid_expire(b"expire")),
    (b"EXPIRE k -" + HUGE, invalid_expire(b"expire")),
    (b"PEXPIRE k " + HUGE, invalid_expire(b"pexpire")),
    (b"TTL k", b":-1\r\n"),
)

EXPIRY: tuple[Line, ...] = (
    (b"TTL k", b":-2\r\n"),
    (b"PTTL k", b":-2\r\n"),
    (b"EXPIRE k 100", b":0\r\n"),
    (b"SET k 5", OK),
    (b"TTL k", b":-1\r\n"),
    (b"EXPIRE k 1000", b":1\r\n"),
    (b"INCR k", b":6\r\n"),
    (b"TTL k", b":1000\r\n"),
    (b"APPEND k 0", b":2\r\n"),
    (b"RENAME k n", OK),
    (b"TTL n", b":1000\r\n"),
    (b"SET n 1 KEEPTTL", OK),
    (b"TTL n", b":1000\r\n"),
    (b"SET n 1", OK),
    (b"TTL n", b":-1\r\n"),
    (b"PSETEX k 100990 v", OK),
    (b"TTL k", b":101\r\n"),
    (b"PEXPIRE k 100490", b":1\r\n"),
    (b"TTL k", b":100\r\n"),
    (b"EXPIRE k 1000 NX", b":0\r\n"),
    (b"EXPIRE k 1000 XX", b":1\r\n"),
    (b"EXPIRE k 500 GT", b":0\r\n"),
    (b"EXPIRE k 500 LT", b":1\r\n"),
    (b"EXPIRE n 500 GT", b":0\r\n"),
    (b"EXPIRE n 500 LT", b":1\r\n"),
    (b"EXPIRE k 10 NX XX", EXPIRE_NX),
    (b"EXPIRE k 10 NX GT", EXPIRE_NX),
    (b"EXPIRE k 10 LT NX", EXPIRE_NX),
    (b"EXPIRE k 10 GT LT", EXPIRE_GT_LT),
    (b"EXPIRE k 10 FOO", b"-ERR Unsupported option FOO\r\n"),
    (b"EXPIRE k -1", b":1\r\n"),
    (b"EXISTS k", b":0\r\n"),
)

#: Values that look like integers, but are none for Redis.
NO_INTEGERS = (
    *(b"abc", b" 1", b"1 ", b"010", b"+1", b"1_0", b"-0", b"1.0", b"", b"9" * 5000),
    *("\u0663".encode(), b"9223372036854775808"),
)

COUNTERS: tuple[Line, ...] = (
    *(
        line
        for value in NO_INTEGERS
        for line in (
            ((b"SET", b"n", value), OK),
            (b"INCR n", NOT_AN_INTEGER),
            (b"GET n", bulk(value)),
            ((b"INCRBY", b"m", value), NOT_AN_INTEGER),
        )
    ),
    (b"SET n " + HUGE, OK),
    (b"INCR n", OVERFLOW),
    (b"INCRBY n 1", OVERFLOW),
    (b"DECRBY n -1", OVERFLOW),
    (b"GET n", bulk(HUGE)),
    (b"SET n " + SMALL, OK),
    (b"DECR n", OVERFLOW),
    (b"DECRBY n " + SMALL, b"-ERR decrement would overflow\r\n"),
    (b"HSET h f " + HUGE, b":1\r\n"),
    (b"HINCRBY h f 1", OVERFLOW),
    (b"HSET h f abc", b":0\r\n"),
    (b"HINCRBY h f 1", b"-ERR hash value is not an integer\r\n"),
    (b"HINCRBYFLOAT h f 1", b"-ERR hash value is not a float\r\n"),
    (b"SET n abc", OK),
    (b"INCRBYFLOAT n 1", NOT_A_FLOAT),
    (b"INCRBYFLOAT m abc", NOT_A_FLOAT),
    ((b"INCRBYFLOAT", b"m", b" 1"), NOT_A_FLOAT),
    (b"INCRBYFLOAT m inf", NOT_A_NUMBER),
    (b"SET n 10.50", OK),
    (b"INCRBYFLOAT n 0.1", bulk(b"10.6")),
    (b"SET n 5.0e3", OK),
    (b"INCRBYFLOAT n 2.0e2", bulk(b"5200")),
    (b"INCRBYFLOAT n -5200", bulk(b"0")),
    (b"HINCRBYFLOAT h g 10.50", bulk(b"10.5")),
)

ERRORS: tuple[Line, ...] = (
    (b"RPUSH l a", b":1\r\n"),
    (b"GET l", WRONG_TYPE),
    (b"INCR l", WRONG_TYPE),
    (b"HGET l f", WRONG_TYPE),
    (b"SADD l a", WRONG_TYPE),
    (b"ZADD l 1 a", WRONG_TYPE),
    (b"MGET l", array(NIL)),
    (b"SET l v XX GET", WRONG_TYPE),
    (b"GET", wrong_arity(b"get")),
    (b"gEt a b", wrong_arity(b"get")),
    (b"MSET a", wrong_arity(b"mset")),
    (b"MSET a 1 b", wrong_arity(b"mset")),
    (b"MGET", wrong_arity(b"mget")),
    (b"FLUSHALL now", SYNTAX),
    (b"HSET h f", wrong_arity(b"hset")),
    (b"FOO a b", unknown_command(b"FOO", b"a", b"b")),
    (b"foo", unknown_command(b"foo")),
    (b"CLIENT FOO", unknown_subcommand(b"CLIENT", b"FOO")),
    (b"client foo", unknown_subcommand(b"CLIENT", b"foo")),
    (b"OBJECT FOO", unknown_subcommand(b"OBJECT", b"FOO")),
    (b"CLIENT", wrong_arity(b"client")),
    (b"CLIENT GETNAME x", wrong_arity(b"client|getname")),
    ((b"CLIENT GETNAME", b"x"), unknown_command(b"CLIENT GETNAME", b"x")),
    (b"CLIENT GETNAME", NIL),
    (b"CLIENT SETNAME me", OK),
    (b"CLIENT GETNAME", bulk(b"me")),
    (
        (b"CLIENT", b"SETNAME", b"a b"),
        b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
    ),
    (b"SELECT 0", OK),
    (b"SELECT 1", b"-ERR DB index is out of range\r\n"),
    (b"SELECT -1", b"-ERR DB index is out of range\r\n"),
    (b"SELECT abc", NOT_AN_INTEGER),
    (b"RENAME none k", b"-ERR no such key\r\n"),
    (b"LSET none 0 v", b"-ERR no such key\r\n"),
    (b"LSET l 1 v", b"-ERR index out of range\r\n"),
    (b"HELLO 4", b"-NOPROTO unsupported protocol version\r\n"),
    (b"HELLO x", b"-ERR Protocol version is not an integer or out of range\r\n"),
    (b"HELLO 3 FOO", b"-ERR Syntax error in HELLO option 'FOO'\r\n"),
    (
        b"AUTH someone secret",
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    ),
)

LISTS: tuple[Line, ...] = (
    (b"LPOP none", NIL),
    (b"LPOP none 1", NIL_ARRAY),
    (b"LPOP none 0", NIL_ARRAY),
    (b"LPOP none -1", NEGATIVE),
    (b"RPUSH l a b c", b":3\r\n"),
    (b"LPOP l 0", EMPTY),
    (b"LPOP l -1", NEGATIVE),
    (b"LPOP l abc", NEGATIVE),
    (b"LPOP l", bulk(b"a")),
    (b"RPOP l 5", array(bulk(b"c"), bulk(b"b"))),
    (b"EXISTS l", b":0\r\n"),
    (b"TYPE l", b"+none\r\n"),
    (b"LRANGE l 0 -1", EMPTY),
    (b"LMPOP 1 l LEFT", NIL_ARRAY),
    (b"RPUSH l a b a", b":3\r\n"),
    (b"LPOS l a RANK -2", b":0\r\n"),
    (b"LPOS l a RANK %b COUNT 0" % SMALL, b"*2\r\n:2\r\n:0\r\n"),
    (b"LPOS l a RANK -" + HUGE, NIL),
    (b"DEL l", b":1\r\n"),
    (b"HSET h f v", b":1\r\n"),
    (b"HDEL h f", b":1\r\n"),
    (b"EXISTS h", b":0\r\n"),
    (b"SADD s m", b":1\r\n"),
    (b"SREM s m", b":1\r\n"),
    (b"EXISTS s", b":0\r\n"),
    (b"ZADD z 1 m", b":1\r\n"),
    (b"ZPOPMIN z", array(bulk(b"m"), bulk(b"1"))),
    (b"EXISTS z", b":0\r\n"),
)

WAITING: tuple[Line, ...] = (
    (b"BLPOP k 0.001", NIL_ARRAY),
    (b"BRPOP a b c 0.001", NIL_ARRAY),
    (b"BLMOVE a b LEFT RIGHT 0.001", NIL_ARRAY),
    (b"BRPOPLPUSH a b 0.001", NIL_ARRAY),
    (b"BLMPOP 0.001 1 a LEFT", NIL_ARRAY),
    (b"BZPOPMIN a 0.001", NIL_ARRAY),
    (b"BZMPOP 0.001 2 a b MAX COUNT 2", NIL_ARRAY),
    (b"BLPOP k", wrong_arity(b"blpop")),
    (b"BLPOP k -1", b"-ERR timeout is negative\r\n"),
    (b"BLPOP k abc", b"-ERR timeout is not a float or out of range\r\n"),
    (b"BLPOP k nan", b"-ERR timeout is not a float or out of range\r\n"),
    ((b"BLPOP", b"k", b""), b"-ERR timeout is not a float or out of range\r\n"),
    ((b"BLPOP", b"k", b" 1"), b"-ERR timeout is not a float or out of range\r\n"),
    (b"BLPOP k inf", b"-ERR timeout is negative\r\n"),
    (b"BLPOP k 99999999999999999", b"-ERR timeout is negative\r\n"),
    (b"BLMOVE a b UP DOWN -1", SYNTAX),
    (b"BLMPOP 0.001 0 a LEFT", b"-ERR numkeys should be greater than 0\r\n"),
    (b"BLMPOP 0.001 1 a LEFT COUNT 0", b"-ERR count should be greater than 0\r\n"),
    (b"BLMPOP 0.001 2 a LEFT", SYNTAX),
    (b"BZMPOP 0.001 1 a UP", SYNTAX),
    (b"RPUSH l a b c d", b":4\r\n"),
    (b"BLPOP none l 0", array(bulk(b"l"), bulk(b"a"))),
    (b"BRPOP l none 0", array(bulk(b"l"), bulk(b"d"))),
    (b"BLMOVE l m LEFT LEFT 0", bulk(b"b")),
    (b"BLMPOP 0 2 none l LEFT COUNT 9", array(bulk(b"l"), array(bulk(b"c")))),
    (b"EXISTS l", b":0\r\n"),
    (b"BRPOPLPUSH m m 0", bulk(b"b")),
    (b"ZADD z 1.5 a 2 b 3 c 4 d", b":4\r\n"),
    (b"BZPOPMIN none z 0", array(bulk(b"z"), bulk(b"a"), bulk(b"1.5"))),
    (b"BZPOPMAX z 0", array(bulk(b"z"), bulk(b"d"), bulk(b"4"))),
    (b"ZMPOP 1 z MIN", array(bulk(b"z"), array(array(bulk(b"b"), bulk(b"2"))))),
    (b"BZMPOP 0 1 z MAX", array(bulk(b"z"), array(array(bulk(b"c"), bulk(b"3"))))),
    (b"ZMPOP 1 z MIN", NIL_ARRAY),
    (b"SET s v", OK),
    (b"BLPOP none s 0", WRONG_TYPE),
    (b"BLMOVE m s LEFT LEFT 0", WRONG_TYPE),
    (b"BZPOPMIN s 0", WRONG_TYPE),
    (b"LRANGE m 0 -1", array(bulk(b"b"))),
    (b"MULTI", OK),
    (b"BLPOP none 0", QUEUED),
    (b"BLMOVE none m LEFT LEFT 0", QUEUED),
    (b"BLPOP m 0", QUEUED),
    (b"EXEC", array(NIL_ARRAY, NIL, array(bulk(b"m"), bulk(b"b")))),
    (b"ZADD zero -0 m", b":1\r\n"),
    (b"ZSCORE zero m", bulk(b"0")),
)


def forbidden(name: bytes) -> bytes:
    return (
        b"-ERR Can't execute '%b': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are"
        b" allowed in this context\r\n" % name
    )


CHANNELS: tuple[Line, ...] = (
    (b"UNSUBSCRIBE", message(b"unsubscribe", None, 0)),
    (b"PUNSUBSCRIBE", message(b"punsubscribe", None, 0)),
    (b"UNSUBSCRIBE none", message(b"unsubscribe", b"none", 0)),
    (b"PUBLISH c m", b":0\r\n"),
    (b"SUBSCRIBE", wrong_arity(b"subscribe")),
    (b"PUBLISH c", wrong_arity(b"publish")),
    (b"PUBSUB", wrong_arity(b"pubsub")),
    (b"PUBSUB NOPE", unknown_subcommand(b"PUBSUB", b"NOPE")),
    (b"PUBSUB NUMSUB c", array(bulk(b"c"), b":0\r\n")),
    (b"PUBSUB CHANNELS", EMPTY),
    (b"SUBSCRIBE c", message(b"subscribe", b"c", 1)),
    (b"SUBSCRIBE c", message(b"subscribe", b"c", 1)),
    (b"PSUBSCRIBE p*", message(b"psubscribe", b"p*", 2)),
    (b"PING", array(bulk(b"pong"), bulk(b""))),
    (b"PING x", array(bulk(b"pong"), bulk(b"x"))),
    (b"PING x y", wrong_arity(b"ping")),
    (b"GET k", forbidden(b"get")),
    (b"CONFIG GET x", forbidden(b"config|get")),
    (b"PUBLISH c m", forbidden(b"publish")),
    (b"MULTI", forbidden(b"multi")),
    (b"NOPE", unknown_command(b"NOPE")),
    (b"GET", wrong_arity(b"get")),
    (b"UNSUBSCRIBE none", message(b"unsubscribe", b"none", 2)),
    (b"UNSUBSCRIBE", message(b"unsubscribe", b"c", 1)),
    (b"PUNSUBSCRIBE", message(b"punsubscribe", b"p*", 0)),
    (b"GET k", NIL),
    (b"MULTI", OK),
    (b"SUBSCRIBE c", QUEUED),
    (b"EXEC", array(message(b"subscribe", b"c", 1))),
    (b"RESET", RESET),
    (b"PING", PONG),
    (b"HELLO 3", re.compile(b"%7\r\n" + HELLO % 3)),
    (b"SUBSCRIBE c", message(b"subscribe", b"c", 1, resp=b">")),
    (b"PING", PONG),
    (b"GET k", b"_\r\n"),
    (b"PUBLISH c m", message(b"message", b"c", b"m", resp=b">")),
    # From here on, each reply belongs to the line before it.
    (b"UNSUBSCRIBE", b":1\r\n"),
    (b"PUNSUBSCRIBE", message(b"unsubscribe", b"c", 0, resp=b">")),
    (b"PING", message(b"punsubscribe", None, 0, resp=b">").replace(NIL, b"_\r\n")),
)

SCANS: tuple[Line, ...] = (
    (b"SCAN 0", array(bulk(b"0"), EMPTY)),
    (b"SCAN abc", b"-ERR invalid cursor\r\n"),
    (b"SCAN 18446744073709551616", b"-ERR invalid cursor\r\n"),
    (b"SCAN 0 COUNT 0", SYNTAX),
    (b"SCAN 0 COUNT abc", NOT_AN_INTEGER),
    (b"SCAN 0 FOO", SYNTAX),
    (b"SET k v", OK),
    (b"SCAN 0", array(bulk(b"0"), array(bulk(b"k")))),
    (b"SCAN 0 MATCH x* COUNT 100", array(bulk(b"0"), EMPTY)),
    (b"SCAN 0 TYPE string", array(bulk(b"0"), array(bulk(b"k")))),
    (b"HSCAN none 0", array(bulk(b"0"), EMPTY)),
    (b"HSCAN none abc", b"-ERR invalid cursor\r\n"),
)

RESP3: tuple[Line, ...] = (
    (b"HELLO", re.compile(rb"\*14\r\n" + HELLO % 2)),
    (b"HELLO 3", re.compile(rb"%7\r\n" + HELLO % 3)),
    (b"GET none", b"_\r\n"),
    (b"MGET none", array(b"_\r\n")),
    (b"LPOP none 1", b"_\r\n"),
    (b"SET k v XX", b"_\r\n"),
    (b"HSET h f v", b":1\r\n"),
    (b"HGETALL h", b"%1\r\n" + bulk(b"f") + bulk(b"v")),
    (b"HGETALL none", b"%0\r\n"),
    (b"HRANDFIELD h 1 WITHVALUES", array(array(bulk(b"f"), bulk(b"v")))),
    (b"SADD s m", b":1\r\n"),
    (b"SMEMBERS s", b"~1\r\n" + bulk(b"m")),
    (b"SINTER s none", b"~0\r\n"),
    (b"ZADD z 1.5 m inf n", b":2\r\n"),
    (b"ZSCORE z m", b",1.5\r\n"),
    (b"ZSCORE z n", b",inf\r\n"),
    (b"ZSCORE z none", b"_\r\n"),
    (b"ZADD z INCR 1 m", b",2.5\r\n"),
    (b"ZMSCORE z m none", array(b",2.5\r\n", b"_\r\n")),
    (b"ZRANGE z 0 0 WITHSCORES", array(array(bulk(b"m"), b",2.5\r\n"))),
    (b"ZPOPMAX z", array(bulk(b"n"), b",inf\r\n")),
    (b"INCRBYFLOAT n 1.5", bulk(b"1.5")),
    (b"INFO keyspace", re.compile(rb"=\d+\r\ntxt:# Keyspace\r\ndb0:keys=4,expires=0.*\r\n\r\n")),
    (b"CLIENT GETNAME", b"_\r\n"),
    (b"HELLO 2", re.compile(rb"\*14\r\n" + HELLO % 2)),
    (b"GET none", NIL),
    (b"ZSCORE z m", bulk(b"2.5")),
    (b"HGETALL h", array(bulk(b"f"), bulk(b"v"))),
)

CONVERSATIONS = {
    "strings": STRINGS,
    "expiry": EXPIRY,
    "counters": COUNTERS,
    "errors": ERRORS,
    "lists": LISTS,
    "waiting": WAITING,
    "channels": CHANNELS,
    "scans": SCANS,
    "RESP3": RESP3,
}

PROTOCOL: tuple[Exchange, ...] = (
    (b"*0\r\n*-1\r\n" + PING, PONG, True),
    (PING + b"*-10\r\n" + PING + b"\r\n", PONG + PONG, True),
    (command(b"GET") + PING, wrong_arity(b"get") + PONG, True),
    (command(b"QUIT") + PING, OK, False),
)


class ReplyTableTests(ConversationCase):
    """The tables on pipecache."""

    def test_conversations(self) -> None:
        for title, lines in CONVERSATIONS.items():
            conversation = self.connect()
            self.assertEqual(conversation.ask(b"FLUSHALL"), OK)
            for number, (words, expected) in enumerate(lines):
                arguments = words.split() if isinstance(words, bytes) else words
                with self.subTest(title, number=number, words=words):
                    reply = conversation.ask(*arguments)
                    if isinstance(expected, bytes):
                        self.assertEqual(reply, expected)
                    else:
                        self.assertIsNotNone(expected.fullmatch(reply), reply)

    def test_protocol(self) -> None:
        for data, expected, goes_on in PROTOCOL:
            with self.subTest(data=data[:60]), RawConnection(self.name) as raw:
                raw.send(data)
                self.assertEqual(raw.read(len(expected)), expected)
                if goes_on:
                    self.assertEqual(raw.ask(PING), PONG)
                else:
                    self.assertTrue(raw.ended())

    def test_protocol_errors(self) -> None:
        for data, expected, redis_answers_so in PROTOCOL_ERRORS:
            if redis_answers_so:
                with self.subTest(data=data[:60]), RawConnection(self.name) as raw:
                    with contextlib.suppress(OSError):  # the server ends the connection first
                        raw.send(PING + data)
                    reply = PONG + protocol_error(expected)
                    self.assertEqual(raw.read(len(reply)), reply)
                    self.assertTrue(raw.ended())

    def test_a_scan_finds_what_was_there_throughout(self) -> None:
        """Keys are added and deleted between the pages; the cursor is a bulk string."""
        conversation = self.connect()
        keys = {b"key:%d" % number for number in range(500)}
        for key in keys:
            conversation.ask(b"SET", key, b"v")
        found: set[bytes] = set()
        cursor, page = b"0", 0
        while page == 0 or cursor != b"0":
            for number in range(page, page + 20):
                conversation.ask(b"SET", b"new:%d" % number, b"v")
                conversation.ask(b"DEL", b"new:%d" % (number - 20))
            reply = conversation.ask(b"SCAN", cursor, b"COUNT", b"10")
            header = re.match(rb"\*2\r\n\$\d+\r\n(\d+)\r\n\*\d+\r\n", reply)
            assert header, reply
            cursor = header[1]
            found.update(reply[header.end() :].split(b"\r\n")[1::2])
            page += 1
            self.assertLess(page, 1000)
        self.assertLessEqual(keys, found)


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class RedisReplyTableTests(ReplyTableTests):
    """The same tables on redis-server, which proves the tables."""

    def serve(self) -> str:
        return redis_address(self)


if __name__ == "__main__":
    unittest.main()
