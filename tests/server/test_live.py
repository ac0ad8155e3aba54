"""Tests of what happens between clients: blocking, messages, events, MONITOR, owned keys."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

import pipecache
from pipecache import CommandError, ListValue, Settings, execute
from tests.support import (
    DEADLINE,
    ROOT,
    WINDOWS,
    Background,
    RawConnection,
    ServerCase,
    ServerProcess,
    usage_error,
    wait_until,
)
from tests.support.cases import PushCase
from tests.support.internals import (
    is_blocked,
    is_watch_broken,
    owned_keys,
    read_as_text,
    recount,
    takes_slow_path,
)
from tests.support.wire import NIL_ARRAY, OK, WRONG_TYPE, array, bulk, command, message


class WaitingTests(PushCase):
    def setUp(self) -> None:
        super().setUp()
        (self.one, self.first), (self.two, self.second) = self.join(), self.join()

    def test_first_come_first_served(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        self.block(self.two, b"BRPOP k 0")
        self.assertEqual(self.ask(b"RPUSH k a b c"), b":3\r\n")
        self.assertEqual(self.served(self.one), array(bulk(b"k"), bulk(b"a")))
        self.assertEqual(self.served(self.two), array(bulk(b"k"), bulk(b"c")))
        self.assertEqual((self.first.woken, self.second.woken), (1, 1))
        self.assertEqual(self.ask(b"LRANGE k 0 -1"), array(bulk(b"b")))

    def test_everything_that_makes_a_key_ready(self) -> None:
        for preparation, line in (
            (b"PING", b"LPUSH k v"),
            (b"PING", b"RPUSH k v"),
            (b"RPUSH other v", b"RENAME other k"),
            (b"RPUSH other v", b"RENAMENX other k"),
            (b"RPUSH other v", b"COPY other k"),
            (b"RPUSH other v", b"LMOVE other k LEFT RIGHT"),
            (b"RPUSH other v", b"RPOPLPUSH other k"),
            (b"RPUSH other v", b"BLMOVE other k LEFT RIGHT 0"),
        ):
            for queued in (False, True):
                with self.subTest(line=line, queued=queued):
                    self.ask(b"FLUSHALL")
                    self.ask(preparation)
                    self.block(self.one, b"BLPOP k 0")
                    if queued:
                        self.ask(b"MULTI")
                        self.ask(line)
                        self.assertEqual(self.state.ready_keys(), [])
                    self.ask(b"EXEC" if queued else line)
                    self.assertEqual(self.served(self.one), array(bulk(b"k"), bulk(b"v")))
                    self.assertEqual(self.state.leftovers(), [])

    def test_a_transaction_is_over_before_anybody_is_served(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        for line in (b"MULTI", b"RPUSH k a", b"LPUSH k b", b"LLEN k", b"EXEC"):
            reply = self.ask(line)
        self.assertEqual(reply, array(b":1\r\n", b":2\r\n", b":2\r\n"))
        self.assertEqual(self.served(self.one), array(bulk(b"k"), bulk(b"b")))
        self.block(self.one, b"BLPOP none 0")
        for line in (b"MULTI", b"RPUSH none a", b"DEL none", b"EXEC"):
            self.ask(line)
        self.assertEqual(self.first.woken, 1)

    def test_a_served_client_can_serve_another(self) -> None:
        self.block(self.one, b"BLMOVE a b LEFT RIGHT 0")
        self.block(self.two, b"BRPOPLPUSH b c 0")
        self.ask(b"RPUSH a v")
        self.assertEqual(self.served(self.one), bulk(b"v"))
        self.assertEqual(self.served(self.two), bulk(b"v"))
        self.assertEqual(self.ask(b"LPOP c"), bulk(b"v"))

    def test_a_value_of_another_type_serves_no_client(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        self.block(self.two, b"BZPOPMIN k 0")
        self.ask(b"SET k v")
        self.ask(b"DEL k")
        self.ask(b"ZADD k 1 m")
        self.assertEqual(self.first.woken, 0)
        self.assertEqual(self.served(self.two), array(bulk(b"k"), bulk(b"m"), bulk(b"1")))
        self.ask(b"RPUSH k v")
        self.assertEqual(self.served(self.one), array(bulk(b"k"), bulk(b"v")))

    def test_an_error_takes_nothing(self) -> None:
        self.block(self.one, b"BLMOVE k wrong LEFT RIGHT 0")
        self.block(self.two, b"BLPOP k 0")
        self.ask(b"SET wrong v")
        self.ask(b"RPUSH k a")
        self.assertEqual(self.served(self.one), WRONG_TYPE)
        self.assertEqual(self.served(self.two), array(bulk(b"k"), bulk(b"a")))

    def test_disconnected_clients_take_nothing(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        self.block(self.two, b"BLPOP k 0")
        self.first.connected = False
        self.ask(b"RPUSH k a")
        self.assertEqual(self.served(self.two), array(bulk(b"k"), bulk(b"a")))
        self.assertEqual(self.ask(b"EXISTS k"), b":0\r\n")
        self.state.disconnect(self.one)
        self.assertEqual(self.state.leftovers(), [])

    def test_an_internal_error_is_the_reply_of_the_blocked_client(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        with mock.patch.object(ListValue, "pop_many", side_effect=ZeroDivisionError):
            with self.assertLogs("pipecache", "ERROR"):
                self.assertEqual(self.ask(b"RPUSH k a"), b":1\r\n")
        self.assertIn(b"internal error", self.served(self.one))

    def test_commands_never_block_in_a_transaction(self) -> None:
        for line in (
            b"MULTI",
            b"BLPOP k 0",
            b"BLMOVE k l LEFT RIGHT 0",
            b"RPUSH k a",
            b"BLPOP k 0",
        ):
            self.ask(line)
        expected = array(NIL_ARRAY, b"$-1\r\n", b":1\r\n", array(bulk(b"k"), bulk(b"a")))
        self.assertEqual(self.ask(b"EXEC"), expected)
        self.assertFalse(is_blocked(self.client))

    def test_client_unblock(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        self.assertEqual(self.ask(b"CLIENT UNBLOCK %d" % self.one.id), b":1\r\n")
        self.assertEqual(self.ask(b"CLIENT UNBLOCK %d" % self.one.id), b":0\r\n")
        self.assertEqual(self.served(self.one), NIL_ARRAY)
        self.block(self.one, b"BLPOP k 0")
        self.assertEqual(self.ask(b"CLIENT UNBLOCK %d ERROR" % self.one.id), b":1\r\n")
        self.assertTrue(self.served(self.one).startswith(b"-UNBLOCKED "))

    def test_blocked_clients_in_info_and_client_list(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        self.assertIn(b"\r\nblocked_clients:1\r\n", self.ask(b"INFO clients"))
        self.assertIn(b" flags=b ", self.ask(b"CLIENT LIST ID %d" % self.one.id))
        self.ask(b"RPUSH k v")
        self.assertIn(b"\r\nblocked_clients:0\r\n", self.ask(b"INFO clients"))

    def test_a_watch_and_a_blocked_client_for_one_key(self) -> None:
        self.ask(b"WATCH k", self.two)
        self.ask(b"MULTI", self.two)
        self.block(self.one, b"BLPOP k 0")
        self.ask(b"RPUSH k v")
        self.served(self.one)
        self.assertEqual(self.ask(b"EXEC", self.two), NIL_ARRAY)

    def test_memory_short(self) -> None:
        self.block(self.one, b"BLPOP k 0")
        self.keyspace.memory_limit = self.keyspace.used_memory
        self.ask(b"RPUSH k v")  # the last command that is accepted
        self.served(self.one)
        self.assertEqual(self.ask(b"BLMOVE a b LEFT LEFT 0", self.two)[:4], b"")


class ChannelTests(PushCase):
    def setUp(self) -> None:
        super().setUp()
        self.reader, self.peer = self.join()

    def test_names_and_patterns(self) -> None:
        told = message(b"subscribe", b"news", 1) + message(b"subscribe", b"spam", 2)
        self.assertEqual(self.ask(b"SUBSCRIBE news spam", self.reader), told)
        told = message(b"psubscribe", b"n?ws", 3) + message(b"psubscribe", b"n*", 4)
        self.assertEqual(self.ask(b"PSUBSCRIBE n?ws n*", self.reader), told)
        self.assertEqual(self.ask(b"PUBLISH news hello"), b":3\r\n")
        expected = [
            message(b"message", b"news", b"hello"),
            message(b"pmessage", b"n?ws", b"news", b"hello"),
            message(b"pmessage", b"n*", b"news", b"hello"),
        ]
        self.assertEqual(self.peer.take(), expected)
        self.assertEqual(self.ask(b"PUBLISH other hello"), b":0\r\n")
        self.assertEqual(self.peer.take(), [])
        self.ask(b"RESET", self.reader)
        self.assertEqual(self.ask(b"PUBLISH news hello"), b":0\r\n")

    def test_each_subscriber_has_its_own_format(self) -> None:
        new, lines, peers = *self.join(), self.join()
        self.ask(b"HELLO 3", new)
        for client in (self.reader, new, peers[0]):
            self.ask(b"SUBSCRIBE news", client)
        read_as_text(peers[0])
        self.assertEqual(self.ask(b"PUBLISH news hello"), b":3\r\n")
        self.assertEqual(self.peer.take(), [message(b"message", b"news", b"hello")])
        self.assertEqual(lines.take(), [message(b"message", b"news", b"hello", resp=b">")])
        self.assertEqual(peers[1].take(), [b"message news hello\r\n"])

    def test_a_client_that_leaves_is_removed_completely(self) -> None:
        self.ask(b"SUBSCRIBE a b", self.reader)
        self.ask(b"PSUBSCRIBE a*", self.reader)
        self.ask(b"MONITOR", self.reader)
        self.state.disconnect(self.reader)
        self.assertEqual(self.state.leftovers(), [])
        self.ask(b"PING")
        self.assertFalse(takes_slow_path(self.client))

    def test_a_pattern_that_is_too_long_subscribes_to_nothing(self) -> None:
        reply = self.ask(b"PSUBSCRIBE a " + b"x" * (pipecache.MAX_PATTERN + 1), self.reader)
        self.assertTrue(reply.startswith(b"-ERR the pattern is longer"))
        self.assertEqual(self.ask(b"PUBSUB NUMPAT"), b":0\r\n")

    def test_pubsub_and_info(self) -> None:
        self.ask(b"SUBSCRIBE news spam", self.reader)
        self.ask(b"PSUBSCRIBE x*", self.reader)
        self.assertEqual(self.ask(b"PUBSUB CHANNELS"), array(bulk(b"news"), bulk(b"spam")))
        self.assertEqual(self.ask(b"PUBSUB CHANNELS n*"), array(bulk(b"news")))
        self.assertEqual(
            self.ask(b"PUBSUB NUMSUB spam no"), b"*4\r\n$4\r\nspam\r\n:1\r\n$2\r\nno\r\n:0\r\n"
        )
        self.assertEqual(self.ask(b"PUBSUB NUMPAT"), b":1\r\n")
        self.assertIn(b"pubsub_channels:2\r\npubsub_patterns:1\r\n", self.ask(b"INFO stats"))
        self.assertIn(b" flags=P db=0 sub=2 psub=1 ", self.ask(b"CLIENT LIST TYPE pubsub"))
        self.assertNotIn(b"flags=P", self.ask(b"CLIENT LIST TYPE normal"))


class EventTests(PushCase):
    def setUp(self) -> None:
        super().setUp()
        self.notify, self.peer = self.join()
        self.ask(b"PSUBSCRIBE __key*", self.notify)

    def events(self) -> list[tuple[bytes, ...]]:
        """Return the messages to the observer, as pairs of channel and message."""
        return [tuple(told.split(b"\r\n")[6:9:2]) for told in self.peer.take()]

    def test_letters(self) -> None:
        for letters, kept, told in (
            (b"KEA", b"AKE", [b"keyspace:k set", b"keyevent:set k"]),
            (b"K$", b"$K", [b"keyspace:k set"]),
            (b"E$l", b"$lE", [b"keyevent:set k"]),
            (b"El", b"lE", []),
            (b"$", b"$", []),
            (b"KE", b"KE", []),
            (b"g$lshzxetdEmn", b"AEmn", [b"keyevent:set k"]),
        ):
            with self.subTest(letters=letters):
                self.peer.take()
                self.assertEqual(self.ask(b"CONFIG SET notify-keyspace-events " + letters), OK)
                reply = self.ask(b"CONFIG GET notify-keyspace-events")
                self.assertEqual(reply, array(bulk(b"notify-keyspace-events"), bulk(kept)))
                self.ask(b"SET k v")
                found = [b" ".join(event).replace(b"@0__", b"")[2:] for event in self.events()]
                self.assertEqual(found, told)

    def test_a_wrong_letter_changes_nothing(self) -> None:
        self.ask(b"CONFIG SET notify-keyspace-events KA")
        reply = self.ask(b"CONFIG SET notify-keyspace-events Kq maxmemory 1mb")
        self.assertIn(b"Invalid event class character. Use 'Ag$lshzxeKEtmdn'.", reply)
        self.assertIn(b"AK", self.ask(b"CONFIG GET notify-keyspace-events"))
        self.assertIn(bulk(b"0"), self.ask(b"CONFIG GET maxmemory"))

    def test_expiry(self) -> None:
        self.ask(b"CONFIG SET notify-keyspace-events Ex")
        self.ask(b"SET asked v PX 10")
        self.ask(b"SET swept v PX 10")
        self.clock.now += 0.02
        self.ask(b"GET asked")
        self.assertEqual(self.events(), [(b"__keyevent@0__:expired", b"asked")])
        self.keyspace.remove_expired(10)
        self.state.flush()
        self.assertEqual(self.events(), [(b"__keyevent@0__:expired", b"swept")])

    def test_eviction(self) -> None:
        self.ask(b"CONFIG SET notify-keyspace-events Ee maxmemory-policy allkeys-random")
        self.ask(b"SET k v")
        self.ask(b"CONFIG SET maxmemory 1")
        self.assertEqual(self.events(), [(b"__keyevent@0__:evicted", b"k")])

    def test_misses(self) -> None:
        self.ask(b"CONFIG SET notify-keyspace-events Em")
        self.ask(b"SET k v")
        self.ask(b"GET none")
        self.ask(b"GET k")
        self.ask(b"MGET k a b")
        self.ask(b"DEL none")
        missed = [key for _, key in self.events()]
        self.assertEqual(missed, [b"none", b"a", b"b"])

    def test_letters_as_an_option(self) -> None:
        with self.assertRaisesRegex(ValueError, "must be made of the letters Ag"):
            Settings(notify_keyspace_events="Kq")
        self.assertEqual(Settings(notify_keyspace_events="KEA").notify_keyspace_events, "KEA")


class MonitorTests(PushCase):
    def test_every_command_as_redis_shows_it(self) -> None:
        watcher, peer = self.join()
        self.ask(b"PING")
        self.assertFalse(takes_slow_path(self.client))
        self.assertEqual(self.ask(b"MONITOR", watcher), OK)
        self.assertTrue(takes_slow_path(self.client))
        execute(self.client, [b"set", b'a "b"\\\n', b"\x00\xff\t\x07"])
        for line in (b"GET", b"NOPE", b"LPUSH a x", b"CONFIG GET save", b"AUTH user secret"):
            self.ask(line)
        for line in (b"MULTI", b"GET a", b"EXEC", b"HELLO 2 AUTH user secret SETNAME n"):
            self.ask(line)
        lines = [line.partition(b"] ")[2] for line in peer.take()]
        expected = [
            rb'"set" "a \"b\"\\\n" "\x00\xff\t\a"',
            b'"LPUSH" "a" "x"',
            b'"AUTH" "(redacted)" "(redacted)"',
            b'"MULTI"',
            b'"GET" "a"',
            b'"EXEC"',
            b'"HELLO" "2" "AUTH" "(redacted)" "(redacted)" "(redacted)" "(redacted)"',
        ]
        self.assertEqual(lines, [line + b"\r\n" for line in expected])

    def test_a_line(self) -> None:
        watcher, peer = self.join()
        self.ask(b"MONITOR", watcher)
        other, connection = self.join()
        connection.address = "/run/x:0"
        self.ask(b"PING", other)
        self.assertRegex(peer.take()[0], rb'^\+\d{10}\.\d{6} \[0 unix:/run/x\] "PING"\r\n$')

    def test_commands_are_fast_again_after_monitor(self) -> None:
        watcher, _ = self.join()
        self.ask(b"MONITOR", watcher)
        later, _ = self.join()
        self.ask(b"PING", later)
        self.assertTrue(takes_slow_path(later))
        self.ask(b"RESET", watcher)
        self.ask(b"PING")
        self.ask(b"PING", later)
        self.assertFalse(takes_slow_path(self.client) or takes_slow_path(later))


class OwnedTests(PushCase):
    def setUp(self) -> None:
        super().setUp()
        self.owner, _ = self.join()

    def check_owned(self, *keys: bytes) -> None:
        """Check which keys the owner owns."""
        self.assertEqual(owned_keys(self.keyspace, self.owner), set(keys))

    def test_an_owned_key_is_deleted_with_its_owner(self) -> None:
        notify, peer = self.join()
        self.ask(b"CONFIG SET notify-keyspace-events Eg")
        self.ask(b"PSUBSCRIBE __*", notify)
        self.ask(b"WATCH lock", self.client)
        before = self.keyspace.used_memory
        self.assertEqual(self.ask(b"SET lock me OWNED", self.owner), OK)
        self.ask(b"SET other v")
        self.assertIn(b" owned=1 ", self.ask(b"CLIENT LIST ID %d" % self.owner.id))
        self.state.disconnect(self.owner)
        self.assertEqual(self.ask(b"EXISTS lock other"), b":1\r\n")
        self.assertEqual([b"del" in told and b"lock" in told for told in peer.take()], [True])
        self.assertTrue(is_watch_broken(self.client))
        self.ask(b"DEL other")
        self.assertEqual(self.keyspace.used_memory, before)

    def test_with_every_other_option(self) -> None:
        for line, reply in (
            (b"SET k v NX OWNED", OK),
            (b"SET k w NX OWNED", b"$-1\r\n"),
            (b"SET k w IFEQ v GET OWNED", bulk(b"v")),
            (b"SET k x XX PX 5000 OWNED", OK),
            (b"SET k x KEEPTTL OWNED", OK),
        ):
            with self.subTest(line=line):
                self.assertEqual(self.ask(line, self.owner), reply)
                self.check_owned(b"k")
        self.assertEqual(self.ask(b"PTTL k"), b":5000\r\n")
        self.assertEqual(self.ask(b"SET k v NX OWNED"), b"$-1\r\n")
        self.check_owned(b"k")
        self.assertEqual(self.ask(b"SET k v OWNED"), OK)  # now the other client owns the key
        self.assertEqual(self.keyspace.count_owned(self.owner), 0)
        self.state.disconnect(self.owner)
        self.assertEqual(self.ask(b"GET k"), bulk(b"v"))

    def test_in_a_transaction(self) -> None:
        for line in (b"MULTI", b"SET k v OWNED"):
            self.ask(line, self.owner)
        self.check_owned()
        self.ask(b"EXEC", self.owner)
        self.check_owned(b"k")

    def test_commands_that_end_ownership(self) -> None:
        for line, owned in (
            (b"SET k w", ()),
            (b"SET k w KEEPTTL", ()),
            (b"GETSET k w", ()),
            (b"SETEX k 10 w", ()),
            (b"MSET a 1 k w", ()),
            (b"RENAME other k", ()),
            (b"COPY other k REPLACE", ()),
            (b"SUNIONSTORE k set", ()),
            (b"DEL k", ()),
            (b"GETDEL k", ()),
            (b"FLUSHALL", ()),
            (b"PEXPIRE k -1", ()),
            (b"RENAME k new", (b"new",)),
            (b"RENAME k other", (b"other",)),
            (b"COPY k new", (b"k",)),
            (b"APPEND k w", (b"k",)),
            (b"INCR k", (b"k",)),
            (b"EXPIRE k 100", (b"k",)),
            (b"PERSIST k", (b"k",)),
            (b"SET k w NX", (b"k",)),
        ):
            with self.subTest(line=line):
                self.ask(b"FLUSHALL")
                self.ask(b"SET other v")
                self.ask(b"SADD set m")
                self.ask(b"SET k 1 OWNED", self.owner)
                self.ask(line)
                self.check_owned(*owned)
                self.assertEqual(self.keyspace.used_memory, recount(self.keyspace))

    def test_an_owned_key_can_expire(self) -> None:
        self.ask(b"SET k v PX 10 OWNED", self.owner)
        self.clock.now += 0.02
        self.keyspace.remove_expired(10)
        self.check_owned()

    def test_owned_is_only_an_option_of_set_in_resp(self) -> None:
        self.assertIsInstance(execute(self.owner, [b"GETEX", b"k", b"OWNED"]), CommandError)
        self.assertEqual(pipecache.parse_text_command(b"SET k v OWNED"), [b"SET", b"k", b"v OWNED"])


class ServedTests(ServerCase):
    """Several clients with connections to one server."""

    def read(self, raw: RawConnection, expected: bytes) -> None:
        self.assertEqual(raw.read(len(expected)), expected)

    def blocked(self, count: int, raw: RawConnection) -> None:
        """Wait until ``count`` clients are blocked."""
        text = b"blocked_clients:%d\r\n" % count
        wait_until(lambda: text in raw.ask(b"INFO clients\r\n"), f"{count} clients are blocked")

    def test_commands_after_a_blocking_one(self) -> None:
        self.serve()
        waiting, other = self.raw(), self.raw()
        waiting.send(command(b"SET", b"a", b"1") + command(b"BLPOP", b"k", b"0"))
        self.read(waiting, OK)
        self.blocked(1, other)
        waiting.send(command(b"GET", b"a") + command(b"BLPOP", b"k", b"0") + command(b"PING"))
        other.ask(command(b"SET", b"a", b"2"))
        other.ask(command(b"RPUSH", b"k", b"x", b"y"))
        served = array(bulk(b"k"), bulk(b"x")), array(bulk(b"k"), bulk(b"y"))
        self.read(waiting, served[0] + bulk(b"2") + served[1] + b"+PONG\r\n")

    def test_a_time_limit(self) -> None:
        self.serve()
        raw = self.raw()
        begin = time.monotonic()
        raw.send(command(b"BLPOP", b"k", b"0.05"))
        self.read(raw, NIL_ARRAY)
        self.assertGreaterEqual(time.monotonic() - begin, 0.05)
        raw.send(command(b"HELLO", b"3") + command(b"BLPOP", b"k", b"0.01"))
        self.assertTrue(raw.receive().startswith(b"%7"))
        self.read(raw, b"_\r\n")

    def test_text(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        self.assertEqual(raw.ask(b"BLPOP k 0.01\n"), b"\n")
        raw.send(b"BLPOP k 0\n")
        self.blocked(1, other)
        other.ask(b"RPUSH k v\n")
        self.assertEqual(raw.receive(), b"k\nv\n")

    def test_a_blocked_subscriber_in_text(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        raw.ask(b"HELLO 3\n")
        raw.ask(b"SUBSCRIBE c\n")
        raw.send(b"BLPOP k 0\n")
        self.blocked(1, other)
        other.ask(b"RPUSH k v\n")
        self.assertEqual(raw.receive(), b"k\nv\n")

    def test_a_blocked_client_that_leaves_takes_nothing(self) -> None:
        self.serve()
        leaving, behind, other = self.raw(), self.raw(), self.raw()
        leaving.send(command(b"BLPOP", b"k", b"0"))
        self.blocked(1, other)
        behind.send(command(b"BLPOP", b"k", b"0") + command(b"PING"))
        self.blocked(2, other)
        leaving.close()
        other.ask(command(b"RPUSH", b"k", b"v"))  # the server may not have noticed yet
        self.read(behind, array(bulk(b"k"), bulk(b"v")) + b"+PONG\r\n")
        self.blocked(0, other)
        self.assertEqual(other.ask(command(b"EXISTS", b"k")), b":0\r\n")

    def test_a_blocked_client_that_is_killed(self) -> None:
        self.serve()
        script = (
            "import sys\nfrom tests.support import RawConnection\n"
            f"raw = RawConnection({self.name!r})\n"
            "raw.send(b'BLPOP k 0\\n')\nprint('sent', flush=True)\nraw.receive()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(process.communicate)
        assert process.stdout is not None
        process.stdout.readline()
        other = self.raw()
        self.blocked(1, other)
        process.kill()
        process.wait(DEADLINE)
        self.blocked(0, other)
        other.ask(command(b"RPUSH", b"k", b"v"))
        self.assertEqual(other.ask(command(b"LLEN", b"k")), b":1\r\n")

    def test_client_unblock_over_connections(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        raw.send(command(b"CLIENT", b"ID"))
        number = raw.receive()[1:-2]
        raw.send(command(b"BLPOP", b"k", b"0"))
        self.blocked(1, other)
        self.assertEqual(other.ask(command(b"CLIENT", b"UNBLOCK", number)), b":1\r\n")
        self.read(raw, NIL_ARRAY)
        raw.send(command(b"BLPOP", b"k", b"0"))
        self.blocked(1, other)
        self.assertEqual(other.ask(command(b"CLIENT", b"KILL", b"ID", number)), b":1\r\n")
        self.assertTrue(raw.ended())
        self.blocked(0, other)

    def test_a_reply_that_is_not_wanted(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        raw.send(command(b"CLIENT", b"REPLY", b"SKIP") + command(b"BLPOP", b"k", b"0"))
        self.blocked(1, other)
        other.ask(command(b"RPUSH", b"k", b"v"))
        raw.send(command(b"PING"))
        self.read(raw, b"+PONG\r\n")

    def test_stop_with_blocked_clients(self) -> None:
        server = self.serve()
        raws = [self.raw() for _ in range(100)]
        for raw in raws:
            raw.send(command(b"BLPOP", b"k", b"0"))
        self.blocked(100, self.raw())
        self.assertTrue(server.stop())
        self.assertTrue(all(raw.ended() for raw in raws))

    @unittest.skipIf(WINDOWS, "on a pipe, a message is one text command")
    def test_messages_after_subscribe_in_the_same_chunk_are_text(self) -> None:
        self.serve()
        raw = self.raw()
        self.assertIn(b"proto\n3\n", raw.ask(b"HELLO 3\n"))  # a subscriber may publish in RESP3
        raw.send(b"SUBSCRIBE a\nPUBLISH a x\n")
        expected = b"subscribe a 1\nmessage a x\n1\n"
        self.assertEqual(raw.read(len(expected)), expected)
        raw = self.raw()
        raw.send(b"MONITOR\nPING\n")
        self.assertRegex(raw.receive(), rb'^OK\n\d+\.\d+ .*"PING"\nPONG\n$')

    def test_a_text_subscriber(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        self.assertEqual(raw.ask(b"SUBSCRIBE news\r\n"), b"subscribe news 1\r\n")
        self.assertEqual(other.ask(b"PUBLISH news hello world\n"), b"1\n")
        self.assertEqual(raw.receive(), b"message news hello world\r\n")
        self.assertRegex(raw.ask(b"GET k\r\n"), b"^ERROR: Can't execute 'get'")
        self.assertEqual(raw.ask(b"UNSUBSCRIBE\r\n"), b"unsubscribe news 0\r\n")
        self.assertEqual(raw.ask(b"GET k\r\n"), b"\r\n")

    @unittest.skipUnless(WINDOWS, "only a pipe has messages")
    def test_one_message_a_message(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        self.assertEqual(raw.ask(b"PSUBSCRIBE n*"), b"psubscribe n* 1")
        for text in (b"one", b"", b"two\nlines"):
            self.assertEqual(other.ask(b"PUBLISH news " + text), b"1")
            self.assertEqual(raw.receive(), b"pmessage n* news " + text)

    def test_messages_and_replies_in_one_order(self) -> None:
        self.serve()
        raw, other = self.raw(), self.raw()
        raw.send(command(b"HELLO", b"3"))
        raw.receive()
        raw.send(
            command(b"SET", b"a", b"1") + command(b"SUBSCRIBE", b"c") + command(b"GET", b"a")
            + command(b"PUBLISH", b"c", b"own") + command(b"GET", b"a")
        )  # fmt: skip
        own = message(b"message", b"c", b"own", resp=b">")
        subscribed = message(b"subscribe", b"c", 1, resp=b">")
        self.read(raw, OK + subscribed + bulk(b"1") + own + b":1\r\n" + bulk(b"1"))
        other.ask(command(b"PUBLISH", b"c", b"x"))
        self.read(raw, message(b"message", b"c", b"x", resp=b">"))
        raw.send(command(b"BLPOP", b"k", b"0"))
        self.blocked(1, other)
        other.ask(command(b"PUBLISH", b"c", b"y"))
        self.read(raw, message(b"message", b"c", b"y", resp=b">"))
        other.ask(command(b"RPUSH", b"k", b"v"))
        self.read(raw, array(bulk(b"k"), bulk(b"v")))
        raw.send(command(b"UNSUBSCRIBE") + command(b"GET", b"a"))
        self.read(raw, message(b"unsubscribe", b"c", 0, resp=b">") + bulk(b"1"))

    def test_a_hundred_thousand_messages_of_four_publishers(self) -> None:
        self.serve(subscriber_buffer=1 << 30)
        raw = self.raw()
        raw.ask(command(b"SUBSCRIBE", b"c"))
        size = len(message(b"message", b"c", b"1 000000"))

        def publish(publisher: int) -> None:
            with RawConnection(self.name) as connection:
                for begin in range(0, 25_000, 100):
                    numbers = range(begin, begin + 100)
                    texts = [b"%d %06d" % (publisher, number) for number in numbers]
                    connection.send(b"".join([command(b"PUBLISH", b"c", text) for text in texts]))
                    connection.read(400)

        publishers = [Background(functools.partial(publish, each)) for each in range(4)]
        received = raw.read(100_000 * size)
        for each in publishers:
            each.wait()
        texts = [
            received[start + size - 10 : start + size - 2]
            for start in range(0, len(received), size)
        ]
        for number in range(4):
            numbers = [int(text[2:]) for text in texts if text.startswith(b"%d " % number)]
            self.assertEqual(numbers, list(range(25_000)))

    def test_a_subscriber_that_never_reads_is_dropped(self) -> None:
        self.serve(subscriber_buffer=100_000)
        lazy, good, publisher = self.raw(), self.raw(), self.raw()
        lazy.ask(command(b"SUBSCRIBE", b"c"))
        good.ask(command(b"SUBSCRIBE", b"c"))
        text = b"x" * 10_000
        told = message(b"message", b"c", text)
        with self.assertLogs("pipecache", "INFO") as logs:
            for _ in range(1000):
                reply = publisher.ask(command(b"PUBLISH", b"c", text))
                self.read(good, told)
                if reply == b":1\r\n":
                    break
            wait_until(lambda: len(logs.output) > 0, "a line is logged")
        self.assertEqual(reply, b":1\r\n")
        expected = (
            r"\(process \d+, .*python.*\) disconnected: output buffer exceeded --subscriber-buff"
        )
        self.assertRegex(logs.output[0], expected)

    def test_a_monitor_that_never_reads_is_dropped_too(self) -> None:
        self.serve(subscriber_buffer=100_000)
        lazy, other = self.raw(), self.raw()
        lazy.ask(command(b"MONITOR"))

        def watched() -> bool:
            other.ask(command(b"ECHO", b"x" * 60_000))
            return b"flags=O" in other.ask(command(b"CLIENT", b"LIST"))

        self.assertTrue(watched())
        with self.assertLogs("pipecache", "INFO"):
            wait_until(lambda: not watched(), "the monitor is gone")

    def test_one_message_may_be_longer_than_the_limit(self) -> None:
        self.serve(subscriber_buffer=1000)
        raw = self.raw()
        raw.ask(command(b"SUBSCRIBE", b"c"))
        text = os.urandom(1024) * 3000
        publishing = Background(lambda: self.raw().ask(command(b"PUBLISH", b"c", text)))
        self.read(raw, message(b"message", b"c", text))
        self.assertEqual(publishing.wait(), b":1\r\n")

    def test_expiry_events_without_commands(self) -> None:
        self.serve(notify_keyspace_events="Ex")
        raw = self.raw()
        raw.ask(command(b"SUBSCRIBE", b"__keyevent@0__:expired"))
        self.raw().ask(command(b"SET", b"k", b"v", b"PX", b"20"))
        self.read(raw, message(b"message", b"__keyevent@0__:expired", b"k"))

    def test_an_owner_that_is_killed(self) -> None:
        self.serve(notify_keyspace_events="Eg")
        script = (
            "from tests.support import RawConnection\n"
            "from tests.support.wire import command\n"
            f"raw = RawConnection({self.name!r})\n"
            "print(raw.ask(command(b'SET', b'lock', b'me', b'NX', b'OWNED')), flush=True)\n"
            "raw.receive()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.addCleanup(process.communicate)
        assert process.stdout is not None
        self.assertIn(b"+OK", process.stdout.readline())
        raw, other = self.raw(), self.raw()
        raw.ask(command(b"SUBSCRIBE", b"__keyevent@0__:del"))
        self.assertEqual(other.ask(command(b"EXISTS", b"lock")), b":1\r\n")
        process.kill()
        self.read(raw, message(b"message", b"__keyevent@0__:del", b"lock"))
        self.assertEqual(other.ask(command(b"EXISTS", b"lock")), b":0\r\n")

    def test_client_list_over_connections(self) -> None:
        self.serve()
        raw = self.raw()
        reply = raw.ask(b"CLIENT INFO\n").decode()
        facts = dict(pair.split("=", 1) for pair in reply.split())
        self.assertEqual(list(facts)[-3:], ["owned", "pid", "program"])
        self.assertEqual(facts["pid"], str(os.getpid()))
        program = os.path.basename(os.path.realpath(sys.executable))
        self.assertEqual(facts["program"].lower(), program.lower())
        self.assertEqual((facts["cmd"], facts["flags"][0]), ("NULL", "N" if WINDOWS else "U"))
        self.assertIn(" cmd=client ", raw.ask(b"CLIENT INFO\n").decode())

    def test_the_log_names_clients(self) -> None:
        with self.assertLogs("pipecache", "DEBUG") as logs:
            self.serve()
            self.raw().ask(b"PING\n")
        found = [line for line in logs.output if " connected: " in line]
        self.assertRegex(found[0], rf"Client 1 connected: process {os.getpid()}, .*python")

    def test_subscribers_that_come_and_go_while_others_publish(self) -> None:
        self.serve()
        stop = threading.Event()

        def publish() -> None:
            with RawConnection(self.name) as connection:
                while not stop.is_set():
                    connection.ask(command(b"PUBLISH", b"c", b"x" * 100))

        publishing = [Background(publish) for _ in range(2)]
        subscribed = message(b"subscribe", b"c", 1)
        told = message(b"message", b"c", b"x" * 100)
        for _ in range(100):
            with RawConnection(self.name) as raw:
                raw.send(command(b"SUBSCRIBE", b"c"))
                self.read(raw, subscribed + told)
                raw.send(command(b"UNSUBSCRIBE", b"c") + command(b"ECHO", b"done"))
                text = b""
                while not text.endswith(bulk(b"done")):
                    text += raw.receive()
                self.assertEqual(
                    text.replace(told, b""), message(b"unsubscribe", b"c", 0) + bulk(b"done")
                )
        stop.set()
        for each in publishing:
            each.wait()
        other = self.raw()
        wait_until(
            lambda: other.ask(command(b"PUBLISH", b"c", b"x")) == b":0\r\n", "no subscriber is left"
        )


class ProcessTests(unittest.TestCase):
    """Tests with a server process."""

    def test_ctrl_c_with_a_hundred_blocked_clients(self) -> None:
        with ServerProcess() as server:
            raws = [RawConnection(server.name) for _ in range(100)]
            for raw in raws:
                self.addCleanup(raw.close)
                raw.send(command(b"BLPOP", b"k", b"0"))
            with RawConnection(server.name) as other:
                wait_until(
                    lambda: b"blocked_clients:100\r\n" in other.ask(b"INFO clients\r\n"),
                    "all are blocked",
                )
                begin = time.monotonic()
                server.interrupt()
                self.assertEqual(server.wait(), 0)
                self.assertLess(time.monotonic() - begin, pipecache.STOP_TIMEOUT)

    def test_options(self) -> None:
        with ServerProcess(
            "--subscriber-buffer", "1mb", "--notify-keyspace-events", "KEA"
        ) as server:
            with RawConnection(server.name) as raw:
                self.assertEqual(raw.ask(b"CONFIG GET subscriber-buffer\n").split()[1], b"1048576")
                self.assertEqual(raw.ask(b"CONFIG GET notify-*\n").split()[1], b"AKE")
                self.assertEqual(raw.ask(b"CONFIG SET subscriber-buffer 2mb\n"), b"OK\n")
                self.assertEqual(raw.ask(b"CONFIG GET subscriber-buffer\n").split()[1], b"2097152")
                self.assertIn(
                    b"must be 1 bytes or more", raw.ask(b"CONFIG SET subscriber-buffer 0\n")
                )

    def test_wrong_options(self) -> None:
        for options, text in (
            (
                ("--subscriber-buffer", "0"),
                "argument --subscriber-buffer: must be 1 bytes or more, not 0",
            ),
            (
                ("--notify-keyspace-events", "Q"),
                "--notify-keyspace-events must be made of the letters Ag",
            ),
        ):
            with self.subTest(options=options):
                self.assertIn(text, usage_error(*options))
