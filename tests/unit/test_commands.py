"""Tests of the commands in text, where each line has one reply. Replies in RESP: tests/redis."""

from __future__ import annotations

import itertools
import unittest
from typing import Any

import pipecache
from pipecache import (
    COMMANDS,
    OK,
    SUBCOMMANDS,
    Settings,
    encode_resp,
    encode_text,
    execute,
    parse_text_command,
)
from tests.support.cases import ClientCase
from tests.support.internals import SharedState, is_closing, new_client_object, new_keyspace

ARITY = "ERROR: wrong number of arguments for '{}' command"
NOT_AN_INTEGER = "ERROR: value is not an integer or out of range"
SYNTAX = "ERROR: syntax error"


class CommandTests(unittest.TestCase):
    def setUp(self) -> None:
        self.state = SharedState()
        self.clock = self.state.clock
        self.client = self.state.new_client()

    def run_text(self, line: str) -> str:
        reply = execute(self.client, parse_text_command(line.encode()))
        return encode_text(reply).decode()

    def run_resp(self, *arguments: bytes) -> bytes:
        return encode_resp(execute(self.client, list(arguments)))

    def converse(self, *conversation: tuple[str, str]) -> None:
        """Check the reply to each line. The line ``+1.5`` lets 1.5 seconds pass instead."""
        for line, expected in conversation:
            with self.subTest(line=line):
                if line.startswith("+"):
                    self.clock.now += float(line)
                else:
                    self.assertEqual(self.run_text(line), expected)

    def test_the_first_three(self) -> None:
        self.converse(
            ("GET city", ""),
            ("SET city dubai", "OK"),
            ("GET city", "dubai"),
            ("G city", "dubai"),
            ("g city", "dubai"),
            ("SET city new  york", "OK"),
            ("get city", "new  york"),
            ("Get City", ""),
            ("SET city", ARITY.format("set")),
            ("SET", ARITY.format("set")),
            ("GET", ARITY.format("get")),
            ("GET a b", ARITY.format("get")),
            ("FOO bar", "ERROR: Unknown command"),
        )

    def test_setnx_getset_getdel(self) -> None:
        self.converse(
            ("SETNX k one", "1"),
            ("SETNX k two", "0"),
            ("GET k", "one"),
            ("GETSET k three", "one"),
            ("GETSET new four", ""),
            ("GETDEL k", "three"),
            ("GETDEL k", ""),
            ("EXISTS k", "0"),
            ("SETEX k 1 v", "OK"),
            ("+2", ""),
            ("SETNX k again", "1"),
            ("TTL k", "-1"),
        )

    def test_append_strlen(self) -> None:
        self.converse(
            ("APPEND k ab", "2"),
            ("APPEND k  c", "4"),
            ("GET k", "ab c"),
            ("STRLEN k", "4"),
            ("STRLEN none", "0"),
            ("APPEND k \u00e9", "6"),
            ("EXPIRE k 10", "1"),
            ("APPEND k x", "7"),
            ("TTL k", "10"),
        )

    def test_append_over_the_limit(self) -> None:
        self.client.settings.max_message = 4
        self.converse(
            ("APPEND k abcd", "4"),
            ("APPEND k e", "ERROR: string exceeds maximum allowed size (proto-max-bulk-len)"),
            ("GET k", "abcd"),
        )

    def test_counters(self) -> None:
        self.converse(
            ("INCR n", "1"),
            ("INCRBY n 41", "42"),
            ("DECR n", "41"),
            ("DECRBY n 50", "-9"),
            ("DECRBY n -9", "0"),
            ("GET n", "0"),
        )

    def test_mget_mset(self) -> None:
        self.converse(
            ("MSET a 1 b '2 3'", "OK"),
            ("MGET a none b", "1\n\n2 3"),
            ("SETEX c 1 v", "OK"),
            ("+1", ""),
            ("MGET a c", "1\n"),
        )

    def test_keys(self) -> None:
        self.converse(
            ("MSET user:1 a user:2 b other c", "OK"),
            ("KEYS user:*", "user:1\nuser:2"),
            ("KEYS *", "user:1\nuser:2\nother"),
            ("KEYS nothing*", ""),
            ("EXISTS user:1 user:1 none", "2"),
            ("DEL user:1 none user:2 user:2", "2"),
            ("DBSIZE", "1"),
            ("FLUSHALL", "OK"),
            ("DBSIZE", "0"),
            ("FLUSHALL async", "OK"),
            ("SETEX k 1 v", "OK"),
            ("+1", ""),
            ("KEYS *", ""),
            ("DEL k", "0"),
        )

    def test_patterns(self) -> None:
        self.converse(
            ("MSET a 1 b 2 - 3 ] 4", "OK"),
            ("KEYS [^a]", "b\n-\n]"),
            ("KEYS [^\\]]", "a\nb\n-"),
            ("KEYS [^]", "a\nb\n-\n]"),
            (f"KEYS {'*a' * 3000}", "ERROR: the pattern is longer than 4096 bytes"),
            (f"KEYS {'[^a]' * 1000}", ""),
        )

    def test_a_short_time_to_live_and_a_slow_clock(self) -> None:
        now = itertools.count(1000)
        client = new_client_object(new_keyspace(lambda: float(next(now))))
        self.assertIs(execute(client, [b"SET", b"k", b"v", b"PX", b"1"]), OK)
        self.assertIs(execute(client, [b"PSETEX", b"k", b"1", b"v"]), OK)

    def test_expiry(self) -> None:
        self.converse(
            ("SETEX k 10 some value", "OK"),
            ("GET k", "some value"),
            ("TTL k", "10"),
            ("+0.4", ""),
            ("TTL k", "10"),
            ("+0.2", ""),
            ("TTL k", "9"),
            ("+9.3", ""),
            ("GET k", "some value"),
            ("+0.1", ""),
            ("GET k", ""),
            ("TTL k", "-2"),
            ("SET k v", "OK"),
            ("TTL k", "-1"),
            ("PERSIST k", "0"),
            ("EXPIRE k 5", "1"),
            ("PERSIST k", "1"),
            ("TTL k", "-1"),
            ("EXPIRE none 5", "0"),
            ("EXPIRE k -1", "1"),
            ("EXISTS k", "0"),
            ("SET k v", "OK"),
            ("EXPIRE k 0", "1"),
            ("EXISTS k", "0"),
            ("PSETEX k 1500 v", "OK"),
            ("TTL k", "2"),
            ("SET k v", "OK"),
            ("+2", ""),
            ("GET k", "v"),
        )

    def test_set_with_options_in_resp(self) -> None:
        conversation = (
            (b"GET k", b"$-1\r\n"),
            (b"SET k v XX", b"$-1\r\n"),
            (b"SET k v nx ex 10", b"+OK\r\n"),
            (b"SET k w NX", b"$-1\r\n"),
            (b"SET k w NX GET", b"$1\r\nv\r\n"),
            (b"TTL k", b":10\r\n"),
            (b"SET k w XX KEEPTTL", b"+OK\r\n"),
            (b"TTL k", b":10\r\n"),
            (b"SET k x GET PX 2500", b"$1\r\nw\r\n"),
            (b"TTL k", b":3\r\n"),
            (b"SET short v PX 1", b"+OK\r\n"),
            (b"+1", b""),
            (b"SET short v KEEPTTL", b"+OK\r\n"),
            (b"TTL short", b":-1\r\n"),
            (b"SET k y", b"+OK\r\n"),
            (b"TTL k", b":-1\r\n"),
            (b"SET none z GET", b"$-1\r\n"),
            (b"GET none", b"$1\r\nz\r\n"),
        )
        for line, expected in conversation:
            with self.subTest(line=line):
                if line.startswith(b"+"):
                    self.clock.now += float(line)
                else:
                    self.assertEqual(self.run_resp(*line.split()), expected)

    def test_text_set_takes_options_as_the_value(self) -> None:
        self.converse(("SET k v EX 10", "OK"), ("GET k", "v EX 10"), ("TTL k", "-1"))

    def test_connection(self) -> None:
        self.converse(
            ("PING", "PONG"),
            ("PING hello", "hello"),
            ("PING a b", ARITY.format("ping")),
            ("ECHO  hello  world", " hello  world"),
            ("QUIT", "OK"),
        )
        self.assertTrue(is_closing(self.client))

    def test_info(self) -> None:
        self.run_text("SETEX k 10 v")
        facts = dict(
            line.split(":", 1) for line in self.run_text("INFO").splitlines() if ":" in line
        )
        self.assertEqual(facts["pipecache_version"], pipecache.__version__)
        self.assertEqual(facts["db0"], "keys=1,expires=1")
        for name in ("redis_version", "process_id", "connected_clients", "maxclients"):
            self.assertIn(name, facts)
        self.assertEqual(self.run_text("INFO keyspace"), "# Keyspace\r\ndb0:keys=1,expires=1\r\n")
        self.assertEqual(self.run_text("INFO nothing"), "")

    def test_help_lists_every_command(self) -> None:
        lines = self.run_text("HELP").split("\n")
        entries = {*COMMANDS.values(), *SUBCOMMANDS.values()}
        self.assertEqual(set(lines), {f"{entry.usage} - {entry.summary}" for entry in entries})
        for line in lines:
            with self.subTest(line=line):
                self.assertRegex(line, r"^[A-Z]+.* - [A-Z1-].{3,}\.$")
        self.assertEqual(self.run_text("HELP get"), "GET key - Return the value of a key.")
        self.assertEqual(len(self.run_text("HELP client").split("\n")), 10)
        self.assertTrue(
            self.run_text("HELP nothing").startswith("ERROR: unknown command 'NOTHING'")
        )

    def test_an_internal_error_is_replied_and_logged(self) -> None:
        self.state.keyspace.read = None  # type: ignore[method-assign, assignment]
        with self.assertLogs("pipecache", "ERROR") as logged:
            self.assertEqual(self.run_text("GET k"), "ERROR: internal error, see the server's log")
        self.assertIn("Traceback", logged.output[0])

    def test_invalid_settings(self) -> None:
        for options in ({"pipe": ""}, {"max_clients": 0}, {"max_message": 0}, {"pipe": "a\0b"}):
            with self.subTest(options=options), self.assertRaises(ValueError):
                Settings(**options)


class RegressionTests(ClientCase):
    """Faults that were found while the server was rewritten. Redis gives the same replies."""

    def test_nested_elements_count_for_the_limit_of_a_reply(self) -> None:
        elements = [b"x" * 1000] * 100
        for reply in ([b"0", elements], [b"key", elements], [elements, b"key"]):
            with self.subTest(reply=str(reply)[:20]):
                self.assertGreater(pipecache.reply_size(reply), 100_000)

    def test_a_sum_beyond_a_long_double(self) -> None:
        error = b"-ERR increment would produce NaN or Infinity\r\n"
        self.check(
            (b"SET k 1.18e4932", b"+OK\r\n"),
            (b"INCRBYFLOAT k 1.18e4932", error),
            (b"HSET h f 1.18e4932", b":1\r\n"),
            (b"HINCRBYFLOAT h f 1.18e4932", error),
        )

    def test_setrange_inside_a_value_longer_than_the_limit(self) -> None:
        self.run_command(b"SET", b"k", b"x" * 5000)
        self.client.settings.max_message = 2000
        self.check(
            (b"SETRANGE k 0 y", b":5000\r\n"),
            (
                b"SETRANGE k 2000 y",
                b"-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n",
            ),
        )

    def test_docs_of_a_container_and_of_its_subcommand(self) -> None:
        docs: Any = self.run_command(b"COMMAND", b"DOCS", b"config", b"config|get")
        self.assertIn(b"config|get", docs[b"config"][b"subcommands"])
        docs = self.run_command(b"COMMAND", b"DOCS", b"command")
        self.assertNotEqual(docs[b"command"][b"summary"], b"See the subcommands.")


if __name__ == "__main__":
    unittest.main()
