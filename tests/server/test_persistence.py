"""Tests of --db: saving and loading, errors of the file and the disk, commands."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import random
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import unittest
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import client
import pipecache
from pipecache import (
    Hash,
    Keyspace,
    ListValue,
    Persistence,
    PersistenceError,
    Set,
    SortedSet,
    execute,
    pack_parts,
    unpack_value,
)
from tests.support import (
    DEADLINE,
    ROOT,
    WINDOWS,
    Background,
    Clock,
    RawConnection,
    ServerProcess,
    log_restored,
    new_client,
    running_under_wine,
    unique_name,
    wait_until,
)
from tests.support.internals import (
    close_file,
    count_written_key,
    empty_disk,
    fill_disk,
    load,
    log_to,
    new_client_object,
    new_keyspace,
    pauses_before_saves,
    persistence_of,
    preparing_fails,
    refuse_changes,
    replace_thread,
    save,
    wait_for_changes,
    while_writing,
)


def contents(keyspace: Keyspace) -> dict[bytes, tuple[Any, int | None, bool]]:
    """Return what a store holds: for each key the value and the time at which it expires."""
    found = {}
    keys = keyspace.keys()
    for key in keys:
        value, deadline = keyspace.peek(key), keyspace.deadline(key)
        whole = value if isinstance(value, bytes) else (type(value).__name__, value.to_parts())
        when = None if deadline is None else keyspace.unix_time(deadline)
        found[key] = whole, when, isinstance(deadline, pipecache.WallClockDeadline)
    return found


VALUES = (
    b"",
    b"\0text\xff",
    ListValue([b"a", b"", b"c" * 70_000]),
    Hash.from_parts([b"field", b"value", b"", b""]),
    Set.from_parts([b"m", b"n\r\n"]),
    SortedSet.from_parts([b"a", b"b", b"c", struct.pack("<3d", 1.5, -math.inf, 0.1)]),
)


def packed(value: Any) -> bytes:
    """Return a collection as it stands in the file."""
    return pipecache.pack_parts(value.to_parts())


class PackTest(unittest.TestCase):
    def test_each_type_is_restored(self) -> None:
        for value in VALUES[2:]:
            with self.subTest(value=value):
                letter = pipecache.event_class(value)
                again = unpack_value(letter, packed(value))
                self.assertIs(type(again), type(value))
                if not isinstance(value, bytes):
                    self.assertEqual(again.to_parts(), value.to_parts())
                    self.assertEqual(again.data_bytes, value.data_bytes)
                    self.assertEqual(pipecache.memory_cost(again), pipecache.memory_cost(value))

    def test_a_sorted_set_is_in_order_again(self) -> None:
        value = SortedSet()
        for number in range(5000):
            value.put(b"%d" % number, random.Random(number).random())
        again = unpack_value("z", packed(value))
        self.assertEqual(again.slice(0, 5000), value.slice(0, 5000))
        again.put(b"17", 2.0)
        self.assertEqual(again.rank((2.0, b"17")), 4999)

    def test_damaged_values(self) -> None:
        for value in VALUES[2:]:
            letter, data = pipecache.event_class(value), packed(value)
            for wrong in (
                b"", data[:3], data[:-1], data + b"x", b"\xff" * 4 + data[4:],
                (0).to_bytes(4, "little"),
            ):  # fmt: skip
                with self.subTest(kind=letter, wrong=wrong[:20]), self.assertRaises(ValueError):
                    unpack_value(letter, wrong)
        twice = ListValue([b"m", b"m"])
        nan = ListValue([b"m", struct.pack("<d", math.nan)])
        for letter, value in (("s", twice), ("h", ListValue([b"f"])), ("z", nan), ("?", twice)):
            with self.subTest(kind=letter), self.assertRaises(ValueError):
                unpack_value(letter, packed(value))


class FileCase(unittest.TestCase):
    """Tests with a new folder each, and stores that are kept in a file there."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.path = self.folder / "pipecache.db"
        self.clock, self.wall = Clock(1000.0), Clock(1_600_000_000.0)
        # Tests do not wait for a file in use.
        patched = mock.patch.object(pipecache, "FILE_LOCK_TIMEOUT", 0.0)
        patched.start()
        self.addCleanup(patched.stop)

    def open(self, keyspace: Keyspace | None = None) -> tuple[Keyspace, Persistence]:
        keyspace = new_keyspace(self.clock, self.wall) if keyspace is None else keyspace
        persistence = Persistence(str(self.path), keyspace)
        with mock.patch("time.time", self.wall):
            persistence.open()
        self.addCleanup(close_file, persistence)
        return keyspace, persistence

    def reopened(self) -> dict[bytes, tuple[Any, int | None, bool]]:
        """Load the file into a new store with another clock, and return its contents."""
        keyspace, persistence = self.open(new_keyspace(Clock(5.0), self.wall))
        persistence.stop(DEADLINE)
        return contents(keyspace)


class KeepingTest(FileCase):
    def test_all_keys_are_restored(self) -> None:
        keyspace, persistence = self.open()
        for number, value in enumerate(VALUES):
            keyspace.replace(b"key%d" % number, value)
        keyspace.replace(b"\xff\0", b"1", keyspace.now() + 60_000)
        keyspace.replace(b"moment", b"1", pipecache.WallClockDeadline(keyspace.now() + 60_000))
        kept = contents(keyspace)
        save(persistence)
        persistence.stop(DEADLINE)
        self.assertEqual(self.reopened(), kept)
        self.assertEqual(len(kept), 8)
        self.assertEqual(os.listdir(self.folder), [self.path.name])

    def test_only_its_user_can_read_it(self) -> None:
        self.open()
        if not WINDOWS:
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_expired_keys_are_not_loaded(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"short", b"1", keyspace.now() + 1000)
        keyspace.replace(b"long", b"1", keyspace.now() + 3000)
        save(persistence)
        persistence.stop(DEADLINE)
        self.wall.now += 2
        keyspace, persistence = self.open(new_keyspace(Clock(5.0), self.wall))
        self.assertEqual(keyspace.keys(), [b"long"])
        self.assertEqual(keyspace.deadline(b"long"), 6000)
        self.assertEqual((persistence.loaded, persistence.expired), (1, 1))
        persistence.stop(DEADLINE)
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            self.assertEqual(database.execute("SELECT key FROM keys").fetchall(), [(b"long",)])

    def test_owned_keys_are_not_saved(self) -> None:
        keyspace, persistence = self.open()
        for key in (b"plain", b"taken", b"later"):
            keyspace.replace(key, b"1")
        keyspace.set_owner(b"taken", "owner")
        save(persistence)
        keyspace.replace(b"later", b"2")
        keyspace.set_owner(b"later", "owner")
        keyspace.rename(b"taken", b"renamed")
        save(persistence)
        keyspace.replace(b"taken", b"3")
        save(persistence)
        persistence.stop(DEADLINE)
        self.assertEqual(set(self.reopened()), {b"plain", b"taken"})

    def test_each_change_is_written(self) -> None:
        # After random commands, the file holds what the store holds.
        chance = random.Random(20)
        commands = (
            b"SET %k %v", b"SET %k %v PX 50000", b"APPEND %k x", b"DEL %k", b"PERSIST %k",
            b"EXPIRE %k 100", b"PEXPIREAT %k 1600000100000", b"RPUSH %k a b", b"LPOP %k",
            b"HSET %k f %v", b"HDEL %k f", b"SADD %k %v", b"SPOP %k", b"ZADD %k 1 %v",
            b"ZPOPMIN %k", b"RENAME %k %l", b"COPY %k %l REPLACE", b"LMOVE %k %l LEFT RIGHT",
            b"INCR %k", b"GETDEL %k", b"SETRANGE %k 3 x", b"SINTERSTORE %k %l %l",
            b"MSET %k 1 %l 2",
            b"GETEX %k PERSIST", b"ZADD %k INCR 2 m", b"HINCRBY %k n 1", b"LTRIM %k 0 0",
            b"FLUSHALL", b"SWEEP",
        )  # fmt: skip
        weights = [10] * (len(commands) - 2) + [1, 5]
        keyspace, persistence = self.open()
        client = new_client_object(keyspace)
        for turn in range(30):
            for _ in range(chance.randrange(60)):
                line = chance.choices(commands, weights)[0]
                for placeholder, most in ((b"%k", 8), (b"%l", 8), (b"%v", 4)):
                    line = line.replace(placeholder, b"%d" % chance.randrange(most))
                if line == b"SWEEP":
                    self.clock.now += 20
                    self.wall.now += 20
                    keyspace.remove_expired(100)
                else:
                    execute(client, line.split())
            save(persistence)
            self.assertFalse(persistence.error)
            persistence.stop(DEADLINE)
            kept = contents(keyspace)
            self.assertEqual(self.reopened(), kept, turn)
            # Continue with a store that was loaded from the file.
            self.clock = Clock(chance.randrange(10_000))
            keyspace, persistence = self.open()
            client = new_client_object(keyspace)
            self.assertEqual(contents(keyspace), kept)

    def test_a_key_the_file_cannot_take(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"key", b"small")
        save(persistence)
        with mock.patch.multiple(pipecache, MAX_ROW=100, SHORT_VALUE=10):
            keyspace.replace(b"key", b"x" * 98)
            keyspace.replace(b"other", b"1")
            with self.assertLogs("pipecache", "ERROR") as logged:
                save(persistence)
            self.assertRegex(logged.output[0], "b'key' takes 101 bytes, more than the file can")
            self.assertEqual(persistence.refused, {b"key": 101})
            # The old value in the file is removed.
            keyspace.replace(b"key", b"small again")
            save(persistence)
        self.assertEqual(persistence.refused, {})
        persistence.stop(DEADLINE)
        self.assertEqual(self.reopened()[b"key"][0], b"small again")

    @unittest.skipUnless(sys.platform == "linux", "only Linux has /proc")
    def test_nothing_is_written_elsewhere(self) -> None:
        keyspace, persistence = self.open()
        for turn in range(2):
            for number in range(300):
                keyspace.replace(b"%d" % number, b"%d" % turn * 3000)
            save(persistence)
        files = (os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd"))
        opened = [file for file in files if "/" in file and str(self.folder) not in file]
        self.assertFalse([file for file in opened if "etilqs" in file], opened)

    @unittest.skipUnless(sys.platform == "linux", "only Linux has /proc")
    def test_written_values_are_not_kept_in_memory(self) -> None:
        script = (
            "import random, sys, pipecache\n"
            "from tests.support.internals import save\n"
            "def memory(): return 4096 * int(open('/proc/self/statm').read().split()[1])\n"
            "keyspace, chance = pipecache.Keyspace(), random.Random(1)\n"
            "kept = pipecache.Persistence(sys.argv[1], keyspace)\n"
            "kept.open()\n"
            "for turn in range(100):\n"
            "    for _ in range(chance.randrange(1, 120)):\n"
            "        keyspace.replace(b'%d' % chance.randrange(200), b'x' * 100_000)\n"
            "    save(kept)\n"
            "    before = before if turn else memory()\n"
            "print(memory() - before)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.path)],
            cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=DEADLINE,
        )  # fmt: skip
        self.assertLess(int(done.stdout), 60_000_000)

    def test_long_values(self) -> None:
        keyspace, persistence = self.open()
        for number in range(40):
            keyspace.replace(b"%d" % number, os.urandom(100_000))
        keyspace.replace(b"short", b"1")
        kept = contents(keyspace)
        save(persistence)
        persistence.stop(DEADLINE)
        self.assertEqual(self.reopened(), kept)

    def test_progress(self) -> None:
        keyspace, persistence = self.open()
        for number in range(2500):
            keyspace.replace(b"%04d" % number, b"")
        keyspace.replace(b"long", b"x" * 10_000)
        save(persistence)
        persistence.stop(DEADLINE)
        with mock.patch.object(pipecache, "PROGRESS_INTERVAL", -1):
            with self.assertLogs("pipecache", "INFO") as logged:
                self.reopened()
        told = [line.rpartition(": ")[2] for line in logged.output]
        expected = ["1000 of 2501 keys", "2000 of 2501 keys", "2501 of 2501 keys"]
        self.assertEqual(told[:-1], expected)
        self.assertRegex(told[-1], "^2501 keys loaded in")

    def test_saving_and_loading_take_little_memory(self) -> None:
        keyspace, persistence = self.open()
        for number in range(30):
            members = [b"%d %d " % (number, n) + b"x" * 1000 for n in range(1000)]
            keyspace.replace(b"%d" % number, Set.from_parts(members))
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        whole = sum(len(pack_parts(keyspace.peek(key))) for key in [*keyspace.keys()])
        for take in (save, load):
            with self.subTest(take=take.__name__):
                if take == load:
                    keyspace.clear()
                tracemalloc.clear_traces()
                take(persistence)
                rest, peak = tracemalloc.get_traced_memory()
                self.assertLess(peak - rest, whole // 5)
        self.assertEqual(persistence.loaded, 30)

    def test_a_deadline_beyond_what_the_file_can_have(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"far", b"1", pipecache.INTEGER_MAX - keyspace.unix_time(0))
        self.wall.now += 3600
        keyspace.remove_expired(1)
        save(persistence)
        self.assertEqual(persistence.error, "")
        persistence.stop(DEADLINE)
        self.assertEqual(set(self.reopened()), {b"far"})

    def test_changes_that_are_being_written_are_not_saved_yet(self) -> None:
        keyspace, persistence = self.open()
        told: list[int] = []
        keyspace.replace(b"key", b"1")
        while_writing(persistence, lambda: told.append(persistence.unsaved_changes))
        save(persistence)
        self.assertEqual(told, sorted(told, reverse=True))  # the number falls until all is written
        self.assertEqual((told[0], persistence.unsaved_changes), (1, 0))

    def test_many_changes_are_written_sooner(self) -> None:
        keyspace, persistence = self.open()
        for many in (False, True):
            with mock.patch.object(pipecache, "SAVE_AT_DIRTY_KEYS", 3 if many else 4):
                for key in (b"a", b"b", b"c"):
                    keyspace.replace(key, b"1")
                began = time.monotonic()
                wait_for_changes(
                    persistence, began + 2 * pipecache.DIRTY_CHECK_INTERVAL + many * DEADLINE
                )
                self.assertLess(time.monotonic() - began, DEADLINE)

    def test_a_failure_is_tried_again_less_often(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"key", b"1")
        pauses = pauses_before_saves(persistence, [*["full"] * 7, "", "full", "full"])
        least, most = pipecache.SAVE_INTERVAL, pipecache.MAX_RETRY_DELAY
        for found, expected in zip(pauses, [least, 2 * least, 4 * least, 8 * least, *[most] * 4]):
            self.assertAlmostEqual(found, expected, delta=least / 2)
        self.assertAlmostEqual(pauses[8], least, delta=least / 2)

    def test_commands_do_not_wait_for_the_disk(self) -> None:
        keyspace, persistence = self.open()
        writing, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def pause() -> None:
            writing.set()
            go_on.wait(DEADLINE)

        keyspace.replace(b"key", b"1")
        while_writing(persistence, pause)
        persistence.start()
        with keyspace.lock:
            persistence.request(lambda error: None)
        self.assertTrue(writing.wait(DEADLINE))
        self.assertTrue(keyspace.lock.acquire(timeout=DEADLINE))
        keyspace.replace(b"key", b"2")
        keyspace.lock.release()
        go_on.set()
        self.assertTrue(persistence.stop(DEADLINE))
        self.assertEqual(self.reopened()[b"key"][0], b"2")


class TroubleTest(FileCase):
    """A file that cannot be used is reported in one line and not changed."""

    def refused(self, pattern: str) -> None:
        before = self.digest()
        with self.assertRaisesRegex(PersistenceError, pattern) as raised:
            self.open()
        self.assertNotIn("\n", str(raised.exception))
        self.assertIn(str(self.path), str(raised.exception))
        self.assertEqual(self.digest(), before)
        # A second attempt fails in the same way: the first one holds no lock.
        with self.assertRaisesRegex(PersistenceError, pattern):
            self.open()

    def digest(self) -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.iterdir()
            if path.is_file() and path.stat().st_size
        }

    def kept(self, count: int = 1000) -> None:
        """Create a file with keys."""
        keyspace, persistence = self.open()
        for number in range(count):
            keyspace.replace(b"key%d" % number, b"x" * 100)
        save(persistence)
        persistence.stop(DEADLINE)

    def database(self) -> Any:
        return contextlib.closing(sqlite3.connect(self.path, isolation_level=None))

    def test_another_programs_file(self) -> None:
        for content in (b"hello", b"x" * 5000, b"SQLite format 3\0"):
            with self.subTest(content=content[:20]):
                self.path.write_bytes(content)
                self.refused(
                    "not a database.*another program and is unchanged: choose another file"
                )

    def test_another_programs_database(self) -> None:
        for make in ("CREATE TABLE theirs (x)", "PRAGMA application_id=77"):
            with self.subTest(make=make):
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()
                with self.database() as database:
                    database.execute(make)
                    database.execute("PRAGMA user_version=1")
                self.refused(
                    "not a database of pipecache.*another program and is unchanged: choose another"
                )

    def test_a_newer_format(self) -> None:
        self.kept()
        with self.database() as database:
            database.execute("PRAGMA user_version=2")
        self.refused("the file has format 2, and this program knows format 1 .update pipecache or")

    def test_a_newer_format_that_is_in_the_log_alone(self) -> None:
        self.kept()
        script = (
            "import sqlite3, os, sys\n"
            "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "database.execute('PRAGMA user_version=2')\n"
            "os._exit(0)\n"
        )
        subprocess.run([sys.executable, "-c", script, str(self.path)], check=True, timeout=DEADLINE)
        with self.assertRaisesRegex(
            PersistenceError, "has format 2, and this program knows format 1"
        ):
            self.open()

    def test_a_damaged_file(self) -> None:
        self.kept()
        whole = self.path.read_bytes()
        for wrong in (whole[: len(whole) // 2], whole[:4096] + b"\xff" * 8192 + whole[12288:]):
            with self.subTest(size=len(wrong)):
                self.path.write_bytes(wrong)
                self.refused("malformed.*damaged and is left as it is")

    def test_a_damaged_row(self) -> None:
        for change in (
            "UPDATE keys SET kind='h' WHERE key=x'6b657930'",
            "UPDATE keys SET kind='?' WHERE key=x'6b657930'",
            "UPDATE keys SET value='text' WHERE key=x'6b657930'",
            "UPDATE keys SET value=5 WHERE key=x'6b657930'",
            "UPDATE keys SET expires='soon' WHERE key=x'6b657930'",
            "UPDATE keys SET key='key0' WHERE key=x'6b657930'",
        ):
            with self.subTest(change=change):
                self.kept()
                with self.database() as database:
                    database.execute(change)
                self.refused(
                    "malformed key b?'key0': the (bytes|types).*damaged and is left as it is"
                )
                self.path.unlink()

    def test_a_file_in_use(self) -> None:
        self.open()
        with self.assertRaisesRegex(
            PersistenceError, "locked .a program such as a second server uses the file"
        ):
            self.open()

    def test_no_folder(self) -> None:
        self.path = self.folder / "missing" / "file.db"
        with self.assertRaisesRegex(
            PersistenceError,
            "missing.*: No such file or directory .the folder of the file does not",
        ):
            self.open()

    def test_a_folder(self) -> None:
        self.path.mkdir()
        with self.assertRaises(PersistenceError):
            self.open()

    @unittest.skipIf(running_under_wine(), "under Wine, root can write every file")
    def test_a_file_that_cannot_be_written(self) -> None:
        self.kept()
        os.chmod(self.path, stat.S_IREAD)
        self.addCleanup(os.chmod, self.path, stat.S_IREAD | stat.S_IWRITE)
        with self.as_another_user():
            self.refused("Permission denied .make the file and its folder writable")

    @contextlib.contextmanager
    def as_another_user(self) -> Iterator[None]:
        """Run as another user than root, who can write every file."""
        if sys.platform == "win32" or os.geteuid() != 0:
            yield
            return
        for path in (self.folder, self.path):
            os.chown(path, 65534, 65534)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    def test_the_disk_is_full_and_then_is_not(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"before", b"1")
        save(persistence)
        fill_disk(persistence, free=2)
        for number in range(1000):
            keyspace.replace(b"key%d" % number, b"x" * 100)
        keyspace.delete(b"before")
        outcomes: list[str] = []
        for _ in range(3):
            persistence.request(outcomes.append)
            with self.assertLogs("pipecache", "DEBUG") as logged:
                pipecache.log.debug("attempt")
                save(persistence)
            said, reason = "Keeping changes in memory; will retry in", "is full.*free some space"
            self.assertEqual(len(logged.output), 1 if outcomes[1:] else 2)  # logged only once
            self.assertRegex(outcomes[-1], reason)
            if not outcomes[1:]:
                self.assertRegex(logged.output[1], f"{reason}.*{said}")
            self.assertEqual(keyspace.dirty_keys, 1001)
            keyspace.replace(b"key0", b"changed meanwhile")
        self.assertEqual((persistence.error, persistence.saves), (outcomes[-1], 1))
        empty_disk(persistence)
        kept = contents(keyspace)
        with self.assertLogs("pipecache", "INFO") as logged:
            save(persistence)
        self.assertIn("works again", logged.output[0])
        self.assertEqual((persistence.error, keyspace.dirty_keys), ("", 0))
        persistence.stop(DEADLINE)
        self.assertEqual(self.reopened(), kept)

    def test_a_fault_while_saving_ends_nothing(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"key", ListValue([b"element"]))
        with mock.patch.object(pipecache, "pack_parts", side_effect=TypeError("a fault")):
            with self.assertLogs("pipecache", "ERROR") as logged:
                save(persistence)
        self.assertIn("Traceback", logged.output[0])
        self.assertIn("a fault", persistence.error)
        save(persistence)
        self.assertEqual((persistence.error, keyspace.dirty_keys), ("", 0))
        persistence.stop(DEADLINE)
        self.assertEqual(set(self.reopened()), {b"key"})

    def test_the_changes_of_a_full_disk_do_not_pile_up(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"stays", b"x" * 1_000_000)
        fill_disk(persistence)
        for turn in range(3):
            for number in range(60_000):
                keyspace.replace(b"%d %d" % (turn, number), b"")
                keyspace.delete(b"%d %d" % (turn, number))
            with contextlib.suppress(AssertionError), self.assertLogs("pipecache"):
                save(persistence)
        self.assertTrue(persistence.error)
        self.assertLess(keyspace.dirty_keys, 100_000)
        empty_disk(persistence)
        save(persistence)
        persistence.stop(DEADLINE)
        self.assertEqual(set(self.reopened()), {b"stays"})

    def test_everything_was_deleted_while_the_disk_was_full(self) -> None:
        keyspace, persistence = self.open()
        for number in range(100):
            keyspace.replace(b"key%d" % number, b"x" * 1000)
        save(persistence)
        fill_disk(persistence)
        keyspace.replace(b"big", b"x" * 1_000_000)
        save(persistence)
        self.assertTrue(persistence.error)
        keyspace.clear()
        keyspace.replace(b"after", b"1")
        empty_disk(persistence)
        save(persistence)
        self.assertEqual(persistence.error, "")
        persistence.stop(DEADLINE)
        self.assertEqual(set(self.reopened()), {b"after"})

    @unittest.skipIf(WINDOWS, "Windows does not delete an open file")
    def test_the_file_or_its_log_was_deleted(self) -> None:
        for path, changed in itertools.product(
            (self.path, Path(f"{self.path}-wal")), (True, False)
        ):
            with self.subTest(path=path.name, changed=changed):
                keyspace, persistence = self.open()
                keyspace.clear()
                keyspace.replace(b"old", b"1")
                save(persistence)
                path.unlink()
                if changed:
                    keyspace.replace(b"new", b"1")
                with self.assertLogs("pipecache", "WARNING") as logged:
                    save(persistence)
                self.assertIn("the file or its WAL file was removed", logged.output[0])
                # A copy of the folder is what SQLite would find after a crash.
                shutil.copytree(self.folder, self.folder / "copy")
                with contextlib.closing(
                    sqlite3.connect(self.folder / "copy" / self.path.name)
                ) as database:
                    rows = database.execute("SELECT key FROM keys ORDER BY key").fetchall()
                self.assertEqual(rows, [(b"new",), (b"old",)] if changed else [(b"old",)])
                shutil.rmtree(self.folder / "copy")
                persistence.stop(DEADLINE)

    @unittest.skipIf(WINDOWS, "Windows does not delete an open file")
    def test_a_new_file_cannot_be_created_at_first(self) -> None:
        for path in (self.path, Path(f"{self.path}-wal")):
            with self.subTest(path=path.name):
                keyspace, persistence = self.open()
                keyspace.replace(b"key", b"1")
                save(persistence)
                path.unlink()
                full = sqlite3.OperationalError("database or disk is full")
                for _ in range(2):
                    with preparing_fails(persistence, full):
                        save(persistence)
                    self.assertRegex(persistence.error, "is full.*free some space")
                save(persistence)
                self.assertEqual(persistence.error, "")
                persistence.stop(DEADLINE)
                self.assertEqual(set(self.reopened()), {b"key"})

    @unittest.skipIf(WINDOWS, "Windows does not delete an open file")
    def test_another_pipecache_file_was_put_in_its_place(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"theirs", b"1")
        save(persistence)
        persistence.stop(DEADLINE)
        shutil.copy(self.path, self.folder / "backup.db")
        keyspace, persistence = self.open()
        keyspace.replace(b"ours", b"1")
        self.path.unlink()
        full = sqlite3.OperationalError("database or disk is full")
        with preparing_fails(persistence, full):
            save(persistence)
        os.replace(self.folder / "backup.db", self.path)
        for _ in range(2):
            save(persistence)
            self.assertIn("another file was put in its place", persistence.error)
        persistence.stop(DEADLINE)
        self.assertEqual(set(self.reopened()), {b"theirs"})

    @unittest.skipIf(WINDOWS, "Windows lets nobody take a file away that is in use")
    def test_another_program_creates_the_file_first(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"theirs", b"1")
        save(persistence)
        persistence.stop(DEADLINE)
        shutil.copy(self.path, self.folder / "backup.db")
        keyspace, persistence = self.open()
        keyspace.replace(b"ours", b"1")
        self.path.unlink()

        def create_after_the_look(path: str) -> Any:
            looked.stop()
            os.replace(self.folder / "backup.db", self.path)

        looked = mock.patch.object(pipecache, "_inode_of", create_after_the_look)
        looked.start()
        for _ in range(2):
            save(persistence)
            self.assertIn("another file was put in its place", persistence.error)
        persistence.stop(DEADLINE)
        self.assertIn(b"theirs", self.reopened())
        self.assertNotIn(b"ours", self.reopened())

    def test_memory_is_short_while_changes_are_put_back(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"key", b"1")

        fill_disk(persistence)
        keyspace.replace(b"big", b"x" * 1_000_000)
        taken = keyspace.take_changes()
        refuse_changes(keyspace)
        keyspace.restore_changes(taken)
        self.assertEqual(keyspace.dirty_keys, 3)
        empty_disk(persistence)
        save(persistence)
        persistence.stop(DEADLINE)
        self.assertEqual(set(self.reopened()), {b"key", b"big"})

    def test_a_file_that_is_given_up(self) -> None:
        keyspace, persistence = self.open()
        keyspace.replace(b"key", b"1")
        save(persistence)
        with mock.patch.object(pipecache, "FILE_LOCK_TIMEOUT", DEADLINE):
            with self.assertLogs("pipecache", "INFO") as logged:
                second = Background(self.reopened)
                wait_until(lambda: logged.output, "the second server waits")
                persistence.stop(DEADLINE)
                self.assertEqual(list(second.wait()), [b"key"])  # type: ignore[call-overload]
        waiting = [line for line in logged.output if "Waiting for" in line]
        self.assertEqual(len(waiting), 1)

    def test_a_refused_second_open_keeps_the_lock(self) -> None:
        # On POSIX, closing one descriptor of a file releases all locks of the process on it.
        self.open()
        with self.assertRaisesRegex(PersistenceError, "locked"):
            self.open()
        script = (
            "import sys, pipecache\n"
            "pipecache.FILE_LOCK_TIMEOUT = 0\n"
            "pipecache.Persistence(sys.argv[1], pipecache.Keyspace()).open()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.path)],
            cwd=ROOT, stderr=subprocess.PIPE, check=False, timeout=DEADLINE,
        )  # fmt: skip
        self.assertIn(b"database is locked", done.stderr)

    def test_a_failed_load_leaves_the_store_empty(self) -> None:
        self.kept()
        with self.database() as database:
            database.execute("UPDATE keys SET kind='?' WHERE key=x'6b6579393939'")
        keyspace = new_keyspace(self.clock, self.wall)
        with self.assertRaisesRegex(PersistenceError, "malformed"):
            self.open(keyspace)
        self.assertEqual((len(keyspace), keyspace.used_memory), (0, 0))

    def test_the_stop_waits_while_something_is_written(self) -> None:
        _, persistence = self.open()
        now = Clock(0.0)

        class Slow(threading.Thread):
            """A thread that needs ten seconds for each key, and stops after some keys."""

            turns = 0

            def join(self, timeout: float | None = None) -> None:
                now.now += 10
                self.turns += 1
                if self.turns < 10:
                    count_written_key(persistence)

            def is_alive(self) -> bool:
                return self.turns < 10 or not ends

        for ends in (True, False):
            replace_thread(persistence, Slow())
            with mock.patch.object(pipecache, "time", mock.Mock(monotonic=now)):
                with self.assertLogs("pipecache", "INFO") as logged:
                    self.assertEqual(persistence.stop(30.0), ends)
            self.assertIn("keys to be written", logged.output[0])
            self.assertEqual("Stopped before" in logged.output[-1], not ends)

    @unittest.skipIf(WINDOWS, "Windows has other rules for names, and no FIFOs")
    def test_the_advice_depends_on_the_error(self) -> None:
        for name, pattern in (
            (
                "unlocked/full.db",
                r"No such file or directory \(the folder of the file does not exist",
            ),
            ("file/x.db", r"Not a directory \(the folder of the file does not exist"),
            ("x" * 300, r"File name too long \(choose a shorter"),
            (".", r"not a regular file \(choose another name\)$"),
            ("two\nlines/x.db", r"lines/x.db': No such file"),
        ):
            with self.subTest(name=name):
                (self.folder / "file").touch()
                self.path = self.folder / name
                with self.assertRaisesRegex(PersistenceError, pattern) as raised:
                    self.open()
                self.assertNotIn("\n", str(raised.exception))
        self.path = self.folder / "pipe"
        os.mkfifo(self.path)  # type: ignore[attr-defined,unused-ignore]
        with self.assertRaisesRegex(PersistenceError, "not a regular file"):
            self.open()

    @unittest.skipIf(WINDOWS, "Windows does not delete an open file")
    def test_another_file_was_put_in_its_place(self) -> None:
        keyspace, persistence = self.open()
        self.path.unlink()
        self.path.write_bytes(b"another program's data")
        keyspace.replace(b"new", b"1")
        with self.assertLogs("pipecache", "ERROR") as logged:
            save(persistence)
        self.assertIn("another file was put in its place: move that file away", logged.output[0])
        self.assertEqual(self.path.read_bytes(), b"another program's data")
        self.path.unlink()
        save(persistence)
        self.assertEqual(persistence.error, "")
        persistence.stop(DEADLINE)
        self.assertEqual(self.path.read_bytes()[:6], b"SQLite")
        self.assertEqual(set(self.reopened()), {b"new"})


class ServingTest(FileCase):
    """Tests of persistence with a server."""

    @contextlib.contextmanager
    def server(self, *options: str) -> Iterator[tuple[ServerProcess, client.Client]]:
        with ServerProcess("--db", str(self.path), *options) as server:
            with new_client(server.name) as connected:
                yield server, connected

    def keys(self) -> dict[Any, Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as database:
            self.assertEqual(database.execute("PRAGMA quick_check").fetchone(), ("ok",))
            return dict(database.execute("SELECT key, value FROM keys"))

    def test_a_clean_stop_saves_everything(self) -> None:
        with self.server() as (server, connected):
            connected.set("city", "dubai")
            server.interrupt()
            self.assertEqual(server.wait(), 0)
        self.assertEqual(self.keys(), {b"city": b"dubai"})
        with self.server() as (server, connected):
            self.assertEqual(connected.get("city"), "dubai")
            loaded = [line for line in server.lines if "1 keys loaded" in line]
            self.assertEqual(len(loaded), 1, server.lines)

    def test_saved_data_survives_a_kill(self) -> None:
        expected: dict[bytes, bytes] = {}
        for turn in range(5):
            with self.server() as (server, connected):
                self.assertEqual(connected.dbsize(), len(expected))
                with connected.pipeline(transaction=False) as pipeline:
                    for number in range(500):
                        pipeline.set(f"{turn}:{number}", "x" * number)
                        expected[f"{turn}:{number}".encode()] = b"x" * number
                    pipeline.execute()
                self.assertIn(connected.execute_command("SAVE"), (True, "OK"))
                connected.set(f"{turn}:0", "")  # this command is running when the server ends
                server.process.kill()
                server.process.wait(DEADLINE)
        self.assertEqual(self.keys(), expected)

    def test_changes_are_saved_without_commands(self) -> None:
        with self.server() as (server, connected):
            connected.set("key", "value")
            facts = connected.info("persistence")
            wait_until(
                lambda: connected.info("persistence")["rdb_changes_since_last_save"] == 0,
                "the key is saved",
            )
            self.assertEqual(facts["rdb_last_bgsave_status"], "ok")
            server.process.kill()
            server.process.wait(DEADLINE)
        self.assertEqual(self.keys(), {b"key": b"value"})

    def test_commands(self) -> None:
        with self.server() as (_, connected):
            before = connected.lastsave()
            self.assertLessEqual(abs(before.timestamp() - time.time()), DEADLINE)
            connected.rpush("list", "a")
            self.assertIs(connected.bgsave(), True)
            self.assertIs(connected.save(), True)
            facts = connected.info("persistence")
            self.assertEqual(facts["db_file"], str(self.path.resolve()))
            self.assertGreater(facts["db_file_bytes"], 4096)
            self.assertEqual(facts["rdb_changes_since_last_save"], 0)
            self.assertGreaterEqual(connected.lastsave(), before)
            self.assertEqual(connected.config_get("dbfilename"), {"dbfilename": str(self.path)})
            # After SAVE the file is complete, and can be copied while the server uses it.
            shutil.copyfile(self.path, self.folder / "copy.db")
            with contextlib.closing(sqlite3.connect(self.folder / "copy.db")) as database:
                rows = database.execute("SELECT key, kind FROM keys").fetchall()
            self.assertEqual(rows, [(b"list", "l")])
            for name in ("SAVE", "BGSAVE"):
                connected.execute_command("MULTI")
                with self.assertRaisesRegex(client.ResponseError, "not allowed inside a transac"):
                    connected.execute_command(name)
                with self.assertRaises(client.ExecAbortError):
                    connected.execute_command("EXEC")

    def test_text(self) -> None:
        with self.server() as (server, _), RawConnection(server.name) as raw:
            self.assertEqual(raw.ask(b"SAVE\r\n"), b"OK\r\n")

    def test_without_a_file(self) -> None:
        with ServerProcess() as server, new_client(server.name) as connected:
            for name in ("SAVE", "BGSAVE", "LASTSAVE"):
                with self.assertRaisesRegex(
                    client.ResponseError, "start the server with --db FILE"
                ):
                    connected.execute_command(name)
            self.assertEqual(connected.info("persistence"), {"loading": 0})

    def test_a_file_in_use_or_not_ours_ends_the_program(self) -> None:
        foreign = self.folder / "foreign"
        foreign.write_text("precious")
        with self.server() as (_, connected):
            for path, pattern in ((self.path, "locked"), (foreign, "belongs to another program")):
                server = ServerProcess("--db", str(path))
                self.addCleanup(server.close)
                self.assertEqual(server.wait(), 1)
                *waiting, last = server.lines
                self.assertEqual(len(waiting), pattern == "locked", server.lines)
                self.assertRegex(last, f"ERROR Cannot use .*{pattern}")
            self.assertTrue(connected.ping())
        self.assertEqual(foreign.read_text(), "precious")

    def test_the_pipe_is_checked_before_the_file(self) -> None:
        with self.server() as (first, _):
            second = ServerProcess("--db", str(self.folder / "other.db"), name=first.name)
            self.addCleanup(second.close)
            self.assertEqual(second.wait(), 1)
            self.assertIn("is already served by another program", second.lines[-1])
        self.assertFalse((self.folder / "other.db").exists())

    def test_the_memory_limit_holds_for_what_is_loaded(self) -> None:
        with self.server() as (server, connected):
            for number in range(100):
                connected.set(f"key{number}", "x" * 1000)
            server.interrupt()
            server.wait()
        options = "--max-memory", "50kb", "--max-memory-policy", "allkeys-lru"
        with self.server(*options) as (_, connected):
            self.assertLess(connected.info("memory")["used_memory"], 51200)
            self.assertTrue(0 < connected.dbsize() < 50)

    @unittest.skipIf(WINDOWS, "Windows has no fork")
    def test_a_forked_child_leaves_the_file_alone(self) -> None:
        script = (
            "import os, sys, pipecache\n"
            "from tests.support import new_client\n"
            "with pipecache.Server(sys.argv[1], db=sys.argv[2]) as server:\n"
            "    connected = new_client(sys.argv[1])\n"
            "    connected.set('before', '1')\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        sys.exit(0)\n"
            "    assert os.waitpid(child, 0)[1] == 0\n"
            "    connected.set('after', '1')\n"
            "    connected.save()\n"
            "    os._exit(0)\n"
        )
        subprocess.run(
            [sys.executable, "-c", script, unique_name(), str(self.path)],
            check=True, timeout=DEADLINE, cwd=ROOT,
        )  # fmt: skip
        self.assertEqual(self.keys(), {b"before": b"1", b"after": b"1"})

    @unittest.skipUnless(sys.platform == "linux", "other systems have only names that are text")
    def test_a_file_name_that_is_not_utf_8(self) -> None:
        self.path = Path(os.fsdecode(os.fsencode(self.folder) + b"/a=b,c caf\xe9.db"))
        with self.server() as (_, connected):
            self.assertIsInstance(connected.info("persistence")["db_file"], str)
            self.assertEqual(
                connected.config_get("dbfilename")["dbfilename"][-12:], "caf\\udce9.db"
            )
            connected.set("key", "1")
            self.assertTrue(connected.save())
        with log_restored():
            log_to(str(self.folder / "log"))
            pipecache.log.info("%s", self.path)
        self.assertIn("caf\\udce9.db", (self.folder / "log").read_text(encoding="utf-8"))

    def test_inside_a_program(self) -> None:
        for _ in range(2):
            with pipecache.Server(unique_name(), db=str(self.path)) as server:
                with new_client(server.address) as connected:
                    connected.incr("starts")
        self.assertEqual(self.keys(), {b"starts": b"2"})
        with self.assertRaisesRegex(ValueError, "db must be the name of a file, not ''"):
            pipecache.Server(unique_name(), db="")

    def test_a_start_after_a_failed_start(self) -> None:
        self.path.write_text("not ours")
        name = unique_name()
        with self.assertRaises(PersistenceError):
            pipecache.Server(name, db=str(self.path)).start()
        self.path.unlink()
        with pipecache.Server(name, db=str(self.path)):
            pass

    def test_the_disk_is_full_while_it_serves(self) -> None:
        server = pipecache.Server(unique_name(), db=str(self.path))
        with server, new_client(server.address) as connected:
            connected.execute_command("SAVE")
            fill_disk(persistence_of(server))
            with self.assertLogs("pipecache", "ERROR"):
                connected.set("key", "x" * 100_000)
                with self.assertRaisesRegex(client.ResponseError, "is full"):
                    connected.execute_command("SAVE")
            self.assertEqual(len(connected.get("key")), 100_000)
            facts = connected.info("persistence")
            self.assertEqual(facts["rdb_last_bgsave_status"], "err")
            # The text of the error does not depend on commas.
            self.assertRegex(facts["db_last_error"], "Cannot save to .*is full.*free some space")
            empty_disk(persistence_of(server))
            connected.execute_command("SAVE")
            self.assertEqual(connected.info("persistence")["rdb_last_bgsave_status"], "ok")

    def test_the_disk_is_full_at_the_end(self) -> None:
        server = pipecache.Server(unique_name(), db=str(self.path))
        server.start()
        with new_client(server.address) as connected:
            connected.execute_command("SAVE")
            fill_disk(persistence_of(server))
            with self.assertLogs("pipecache", "ERROR") as logs:
                connected.set("key", "x" * 100_000)
                self.assertFalse(server.stop())
        self.assertIn("1 changed keys were not saved", logs.output[-1])

    @unittest.skipIf(WINDOWS, "Windows does not delete the folder of an open file")
    def test_unsaved_changes_are_an_exit_status(self) -> None:
        self.path = self.folder / "inside" / "file.db"
        self.path.parent.mkdir()
        with ServerProcess("--db", str(self.path)) as server:
            with new_client(server.name) as connected:
                shutil.rmtree(self.path.parent)
                connected.set("key", "value")
            server.interrupt()
            self.assertEqual(server.wait(), 1)
            self.assertEqual(
                sum("1 changed keys were not saved" in line for line in server.lines), 1
            )
            self.assertEqual(sum("Cannot save" in line for line in server.lines), 1)


class ClockTest(FileCase):
    """A time to live follows elapsed time; EXPIREAT follows the wall clock."""

    def test_the_wall_clock_is_set_while_a_file_is_kept(self) -> None:
        for step in (3600, -3600):
            with self.subTest(step=step):
                keyspace, persistence = self.open()
                keyspace.clear()
                keyspace.replace(b"elapsed", b"1", keyspace.now() + 1_800_000)
                moment = keyspace.now() + 7_200_000
                keyspace.replace(b"moment", b"1", pipecache.WallClockDeadline(moment))
                save(persistence)
                self.wall.now += step
                keyspace.remove_expired(10)
                save(persistence)
                kept = contents(keyspace)
                persistence.stop(DEADLINE)
                self.assertEqual(self.reopened(), kept)
                keyspace, persistence = self.open(new_keyspace(Clock(5.0), self.wall))
                self.assertEqual(keyspace.deadline(b"elapsed"), 5000 + 1_800_000)
                self.assertEqual(keyspace.deadline(b"moment"), 5000 + 7_200_000 - 1000 * step)
                persistence.stop(DEADLINE)
                self.wall.now -= step

    def test_the_wall_clock_is_set(self) -> None:
        clock, wall = Clock(100.0), Clock(1_600_000_000.0)
        keyspace = new_keyspace(clock, wall)
        client = new_client_object(keyspace)
        for line in (
            b"SET elapsed 1 EX 60", b"SET moment 1 EXAT 1600000060", b"SET later 1",
            b"EXPIREAT later 1600007200",
        ):  # fmt: skip
            self.assertEqual(execute(client, line.split()) or b"OK", b"OK" if b"SET" in line else 1)
        wall.now += 3600  # forward
        keyspace.remove_expired(10)
        self.assertEqual(keyspace.keys(), [b"elapsed", b"later"])
        self.assertEqual(execute(client, [b"TTL", b"elapsed"]), 60)
        self.assertEqual(execute(client, [b"TTL", b"later"]), 3600)
        wall.now -= 7200  # back
        keyspace.remove_expired(10)
        self.assertEqual(execute(client, [b"TTL", b"elapsed"]), 60)
        self.assertEqual(execute(client, [b"TTL", b"later"]), 10800)
        self.assertEqual(execute(client, [b"EXPIRETIME", b"later"]), 1600007200)
        clock.now += 60
        wall.now += 60
        keyspace.remove_expired(10)
        self.assertEqual(keyspace.keys(), [b"later"])
        clock.now += 10740
        wall.now += 10740
        keyspace.remove_expired(10)
        self.assertEqual(keyspace.keys(), [])


if __name__ == "__main__":
    unittest.main()
