"""Kill servers and clients at random, and check that no acknowledged write is lost.

    python tests/tools/soak.py --minutes 10  # two servers, one of which is killed again and again
    python tests/tools/soak.py --kills 100   # a server is killed 100 times while clients write
    python tests/tools/soak.py --minutes 1 --wine

Several worker processes send a mixed load, each to its own keys. Each writes to a file what it
sent, what was acknowledged, and when. After a kill, the file of the server must hold everything
that was acknowledged more than 1.2 seconds before the kill, and nothing that was never sent; each
transaction completely or not at all; and no owned key. ``PRAGMA quick_check`` must succeed. After a
clean stop nothing may be missing. The other server is never killed, but its clients are: at the end
its handles, threads and memory must be those of the beginning.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import client
import pipecache
from tests.support import DEADLINE, ROOT, ServerProcess, new_client, wait_until
from tests.tools import provision

#: Seconds. Writes that were acknowledged longer than this before a kill must be in the file.
PROMISED = 1.2
#: Seconds within which the keys of a killed client must be deleted.
RELEASED = 1.0
#: Growth that is allowed in the server that is never killed, after its first load.
MORE_HANDLES, MORE_THREADS, MORE_MEMORY = 4, 4, 10_000_000

GROUP = ("string", "counter", "list", "hash", "zset", "set")


# ----------------------------------------------------------------------------
# A worker process
# ----------------------------------------------------------------------------


class Wrong(Exception):
    """A reply that is wrong."""


class Worker:
    """A worker that sends commands until its standard input ends, and records them."""

    def __init__(self, name: str, pipe: str, notes: str, seed: int) -> None:
        self.prefix, self.pipe = f"{name}:", pipe
        self.notes = open(notes, "a", buffering=1, encoding="ascii")  # noqa: SIM115
        self.chance = random.Random(seed)
        self.number = 0

    def note(self, what: str, number: int = 0) -> None:
        self.notes.write(f"{what} {number} {time.monotonic():.6f}\n")

    def run(self) -> None:
        while True:
            try:
                with new_client(self.pipe, connect_timeout=1.0, timeout=10.0) as cache:
                    self.check_group(cache)
                    cache.set(self.prefix + "alive", "1", owned=True)
                    self.server = cache.info("server")["process_id"]
                    with cache.pubsub(ignore_subscribe_messages=False) as news:
                        news.subscribe(self.prefix + "news")
                        self.expect(
                            (news.get_message(timeout=10.0) or {}).get("type"), "subscribe", "type"
                        )
                        while True:
                            self.turn(cache, news)
            except (ConnectionError, client.CacheTimeout):
                time.sleep(0.02)  # the server was killed and is restarted

    def turn(self, cache: client.Client, news: Any) -> None:
        turns = (self.write, self.write, self.read, self.wait, self.tell, self.lock, self.text)
        self.chance.choice(turns)(cache, news)
        self.note("op")

    def expect(self, found: Any, expected: Any, what: str) -> None:
        if found != expected:
            raise Wrong(f"{self.prefix}{what}: expected {expected!r}, found {found!r}")

    def write(self, cache: client.Client, news: Any) -> None:
        """Set all keys of the group to the next number, in one transaction."""
        self.number += 1
        number, key = self.number, self.prefix
        self.note("sent", number)
        with cache.pipeline() as pipe:
            pipe.set(key + "string", f"{number} " + "x" * self.chance.choice((0, 10, 5000)))
            pipe.set(key + "counter", number - 1).incr(key + "counter")
            pipe.rpush(key + "list", number).ltrim(key + "list", -20, -1)
            pipe.hset(key + "hash", mapping={"number": number, f"field{number % 30}": "x"})
            pipe.zadd(key + "zset", {"number": number, f"member{number % 30}": 0})
            pipe.delete(key + "set").sadd(key + "set", number)
            pipe.set(f"{key}short{number % 10}", number, px=self.chance.randrange(1, 300))
            replies = pipe.execute()
        self.expect(replies[2], number, "INCR")
        self.note("acknowledged", number)

    def check_group(self, cache: client.Client) -> None:
        """Check that all keys of the group have the same number, and that it was sent."""
        key = self.prefix
        with cache.pipeline() as pipe:
            pipe.get(key + "string").get(key + "counter").lrange(key + "list", -1, -1)
            pipe.hget(key + "hash", "number").zscore(key + "zset", "number").smembers(key + "set")
            found = pipe.execute()
        if found[0] is None:
            self.expect(found, [None, None, [], None, None, set()], "group")
            return
        number = int(found[0].split()[0])
        text = str(number)
        self.expect(found[1:], [text, [text], text, float(number), {text}], "group")
        if number > self.number:
            raise Wrong(f"{key}group: {number} was never sent")

    def read(self, cache: client.Client, news: Any) -> None:
        if self.number:
            self.check_group(cache)

    def wait(self, cache: client.Client, news: Any) -> None:
        key = self.prefix + "queue"
        cache.delete(key)
        cache.rpush(key, "a", "b")
        self.expect(cache.blpop([key], timeout=5), (key, "a"), "BLPOP")
        self.expect(cache.brpop([key], timeout=5), (key, "b"), "BRPOP")

    def tell(self, cache: client.Client, news: Any) -> None:
        try:
            for number in range(20):
                self.expect(cache.publish(self.prefix + "news", number), 1, "PUBLISH")
            for number in range(20):
                message = news.get_message(timeout=10.0) or {}
                self.expect(message.get("data"), str(number), "message")
        except Wrong:
            self.look_for_another_server(cache)
            raise

    def look_for_another_server(self, cache: client.Client) -> None:
        """Raise ConnectionError if the server is ending. It disconnects its clients one by one,
        and the next server has no subscribers yet."""
        for _ in range(20):
            if cache.info("server")["process_id"] != self.server:
                raise ConnectionError("the server is another")
            time.sleep(0.1)  # a server needs a moment to end

    def lock(self, cache: client.Client, news: Any) -> None:
        try:
            with cache.lock("lock", owned=True, blocking_timeout=2.0):
                cache.set("holder", self.prefix)
                time.sleep(0.001)  # so that a second holder would be noticed
                self.expect(cache.get("holder"), self.prefix, "holder of the lock")
        except client.LockError:
            pass  # other clients hold the lock, or the server has ended

    def text(self, cache: client.Client, news: Any) -> None:
        for line, expected in (
            (f"SET {self.prefix}text it's  text", "OK"),
            (f"G {self.prefix}text", "it's  text"),
        ):
            reply = client.send_command(line, self.pipe)
            if reply == "Error: Cache server not running":
                raise ConnectionError(reply)
            self.expect(reply, expected, line)


def work(arguments: list[str]) -> int:
    name, notes, seed = arguments
    worker = Worker(name, os.environ["PIPECACHE_SOAK_PIPE"], notes, int(seed))
    try:
        worker.run()
    except (Wrong, client.CacheError) as error:
        worker.note(f"{type(error).__name__}: {error}")
    return 1


# ----------------------------------------------------------------------------
# The soak
# ----------------------------------------------------------------------------


class Hand:
    """A worker process, seen from its parent."""

    def __init__(self, name: str, pipe: str, folder: Path, seed: int) -> None:
        self.name, self.notes = name, folder / f"{name}.notes"
        self.notes.touch()
        arguments = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        self.process = subprocess.Popen(
            [*arguments, name, str(self.notes), str(seed)],
            # The name is not an argument, by which Ctrl+C finds the server under Wine.
            env={**os.environ, "PIPECACHE_SOAK_PIPE": pipe},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            creationflags=provision.OWN_CONSOLE,
        )  # fmt: skip

        self._read = 0
        self.operations = self.sent = 0
        self.complaints: list[str] = []
        # Acknowledged numbers with their times; the number that must be in the file; since when.
        self._acknowledged: collections.deque[tuple[float, int]] = collections.deque()
        self._least, self._since = 0, 0.0

    def read_on(self) -> None:
        """Read what the worker has recorded since the last call."""
        with self.notes.open(encoding="ascii") as file:
            file.seek(self._read)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break
                self._read = file.tell()
                what, number, at = line.rstrip("\n").rsplit(" ", 2)
                if what == "op":
                    self.operations += 1
                elif what == "sent":
                    self.sent = int(number)
                elif what == "acknowledged":
                    if float(at) > self._since:
                        self._acknowledged.append((float(at), int(number)))
                else:
                    self.complaints.append(f"{self.name}: {what}")

    def bounds(self, until: float) -> tuple[int, int]:
        """Return the lowest number that must be in the file, and the highest that may be."""
        self.read_on()
        while self._acknowledged and self._acknowledged[0][0] <= until:
            self._least = self._acknowledged.popleft()[1]
        return self._least, self.sent

    def go_on_from(self, number: int) -> None:
        """Note that the server was restarted with this number."""
        self.read_on()
        self._acknowledged.clear()
        self._least, self._since = number, time.monotonic()

    def wrong(self) -> list[str]:
        """Return the wrong replies of the worker, and its end if it was not expected."""
        self.read_on()
        if self.process.poll() is not None and not self.complaints and self.process.stderr:
            what = self.process.stderr.read().decode().strip() or "it ended unasked"
            self.complaints.append(f"{self.name}: {what}")
        return self.complaints

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        if self.process.stderr is not None:
            self.process.stderr.close()


def list_of_the_system(what: int) -> bytes:
    """Return the list of NtQuerySystemInformation as structures of 64-bit Windows."""
    import ctypes

    room = ctypes.create_string_buffer(32 << 20)
    ntdll = ctypes.WinDLL("ntdll")  # type: ignore[attr-defined,unused-ignore]
    status = ntdll.NtQuerySystemInformation(what, room, len(room), None)
    if status:
        raise OSError(f"NtQuerySystemInformation({what}): {status & 0xFFFFFFFF:#x}")
    return room.raw


def usage(pid: int) -> tuple[int, int, int]:
    """Return the numbers of handles and threads and the bytes of memory of a process."""
    if sys.platform == "win32":
        # Wine reports the size of the handle table of a process, so the handles are counted.
        handles = list_of_the_system(64)  # SystemExtendedHandleInformation
        (count,) = struct.unpack_from("<Q", handles)
        owners = [struct.unpack_from("<Q", handles, 24 + 40 * index)[0] for index in range(count)]
        processes = list_of_the_system(5)  # SystemProcessInformation
        at = following = 0
        while True:
            at += following
            following, threads = struct.unpack_from("<II", processes, at)
            (number,) = struct.unpack_from("<Q", processes, at + 80)
            if number == pid:
                (working_set,) = struct.unpack_from("<Q", processes, at + 144)
                return owners.count(pid), threads, working_set
            if not following:
                raise ProcessLookupError(pid)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    facts = dict(line.split(":", 1) for line in status.splitlines())
    memory = int(facts["VmRSS"].split()[0]) * 1024
    return len(os.listdir(f"/proc/{pid}/fd")), int(facts["Threads"]), memory


class Soak:
    """The servers and the workers of a soak test."""

    def __init__(self, clients: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="pipecache-soak-"))
        self.path = self.folder / "soak.db"
        self.clients = clients
        self.count = itertools.count()
        self.failures: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.longest = 0.0
        self.mortal = ServerProcess("--db", str(self.path)).__enter__()
        self.name = self.mortal.name
        self.steady: ServerProcess | None = None
        #: The workers of each server, and the workers whose keys may be in the file.
        self.hands: dict[str, list[Hand]] = {self.name: []}
        self.known: dict[str, Hand] = {}
        self.saved: dict[str, int] = {}

    def hire(self, pipe: str, count: int) -> None:
        for _ in range(count):
            seed = self.chance.randrange(1 << 30)
            hand = Hand(f"w{next(self.count)}", pipe, self.folder, seed)
            self.hands[pipe].append(hand)
            if pipe == self.name:
                self.known[hand.name] = hand

    def fail(self, what: str) -> None:
        self.failures.append(what)
        print(f"WRONG: {what}", flush=True)

    def look_after_the_workers(self) -> None:
        """Report workers that have ended because of a wrong reply."""
        for pipe, hands in self.hands.items():
            for hand in [hand for hand in hands if hand.process.poll() is not None]:
                for what in hand.wrong():
                    self.fail(what)
                hands.remove(hand)
                self.hire(pipe, 1)

    def kill_a_client(self) -> None:
        """Kill a worker, check that its owned keys are deleted soon, and start another."""
        pipe = self.chance.choice(list(self.hands))
        hand = self.chance.choice(self.hands[pipe])
        with new_client(pipe) as cache:
            wait_until(lambda: cache.exists(f"{hand.name}:alive"), "a worker has begun")
            hand.kill()
            killed = time.monotonic()
            wait_until(lambda: not cache.exists(f"{hand.name}:alive"), "its key is gone")
            taken = time.monotonic() - killed
            self.longest = max(self.longest, taken)
            if taken > RELEASED:
                self.fail(f"the key of {hand.name} was gone only after {taken:.2f} s")
            if pipe != self.name:  # remaining keys would look like a leak
                cache.delete(hand.name, *cache.scan_iter(f"{hand.name}:*"))
        hand.read_on()
        self.counts["operations"] += hand.operations
        self.hands[pipe].remove(hand)
        self.counts["clients killed"] += 1
        self.hire(pipe, 1)

    def end_the_server(self, kill: bool) -> None:
        """End the server with a file, check the file, and start the server again."""
        began = time.monotonic()
        if kill:
            self.mortal.process.kill()
        else:
            self.mortal.interrupt()
        self.mortal.process.wait(DEADLINE)
        self.mortal.close()
        self.check_file(began - PROMISED if kill else began)
        self.counts["servers killed" if kill else "servers stopped"] += 1
        for hand in self.known.values():
            hand.go_on_from(self.saved[hand.name])
        self.mortal = ServerProcess("--db", str(self.path), name=self.name).__enter__()
        self.look_after_the_workers()

    def check_file(self, acknowledged_until: float) -> None:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for path in self.folder.glob("soak.db*"):
            shutil.copy(path, copy)
        with contextlib.closing(sqlite3.connect(copy / "soak.db")) as database:
            if database.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                self.fail("quick_check finds the file damaged")
            query = "SELECT key, kind, value FROM keys"
            rows = {
                key.decode(): value if kind == "$" else pipecache.unpack_value(kind, value)
                for key, kind, value in database.execute(query)
            }
        groups: dict[str, dict[str, int]] = collections.defaultdict(dict)
        for key, value in rows.items():
            worker, _, name = key.partition(":")
            if name in GROUP:
                groups[worker][name] = self.number_of(name, value)
            elif name == "alive" or key == "lock":
                self.fail(f"{key} belonged to a client, and is in the file")
            elif worker not in self.known and key != "holder":
                self.fail(f"{key} was never set")
        for hand in self.known.values():
            self.check_group(hand, groups.get(hand.name, {}), acknowledged_until)

    @staticmethod
    def number_of(name: str, value: Any) -> int:
        if isinstance(value, pipecache.SortedSet):
            return int(value.scores[b"number"])
        if isinstance(value, pipecache.ListValue):
            return int(value[-1])
        if name == "hash":
            return int(value[b"number"])
        return int(next(iter(value)) if isinstance(value, pipecache.Set) else value.split()[0])

    def check_group(self, hand: Hand, group: dict[str, int], until: float) -> None:
        least, sent = hand.bounds(until)
        numbers = {group.get(name, 0) for name in GROUP}
        if len(numbers) > 1:
            self.fail(f"{hand.name}: half of a transaction is in the file: {group}")
        elif not least <= min(numbers) <= sent:
            found = f"{min(numbers)} is in the file, {least} was acknowledged, {sent} sent"
            self.fail(f"{hand.name}: {found}")
        self.saved[hand.name] = min(numbers)
        self.counts["groups looked at"] += 1

    # -- the two modes ------------------------------------------------------------

    def run_kills(self, kills: int) -> None:
        self.hire(self.name, self.clients)
        for number in range(kills):
            with new_client(self.name) as cache:
                names = [hand.name for hand in self.hands[self.name]]
                wait_until(functools.partial(self.begun, cache, names), "all have begun")
            time.sleep(self.chance.uniform(0.0, 2.5))  # the kill comes at a random moment
            self.end_the_server(kill=True)
            if number % 5 == 4:
                print(f"{number + 1} kills, {len(self.failures)} wrong", flush=True)

    @staticmethod
    def begun(cache: client.Client, names: list[str]) -> bool:
        return bool(cache.exists(*(f"{name}:alive" for name in names)) == len(names))

    def run_minutes(self, minutes: float) -> None:
        self.steady = ServerProcess("--db", str(self.folder / "steady.db")).__enter__()
        self.hands[self.steady.name] = []
        before = self.load_and_leave(self.steady, 3.0)
        for pipe in self.hands:
            self.hire(pipe, self.clients)
        started = time.monotonic()
        told = next_client = next_server = started
        while time.monotonic() < started + minutes * 60:
            now = time.monotonic()
            if now >= next_client:
                next_client = now + self.chance.uniform(0.2, 2.0)
                self.kill_a_client()
            if now >= next_server:
                next_server = now + self.chance.uniform(2.0, 8.0)
                self.end_the_server(kill=self.chance.random() < 0.8)
            self.look_after_the_workers()
            if now > told + 10:
                told = now
                self.tell_progress(now - started)
            time.sleep(0.05)
        for hand in self.hands.pop(self.steady.name):
            hand.kill()
        after = self.load_and_leave(self.steady, 0.0)
        self.compare(before, after)

    def load_and_leave(self, server: ServerProcess, seconds: float) -> tuple[int, int, int]:
        """Return the resources of the server after this load, when all clients are gone."""
        with new_client(server.name) as cache:
            pid = int(cache.info("server")["process_id"])
            if seconds:
                self.hire(server.name, self.clients + 2)
                names = [hand.name for hand in self.hands[server.name]]
                wait_until(lambda: self.begun(cache, names), "all have begun")
                time.sleep(seconds)  # the duration of the load
                for hand in self.hands[server.name]:
                    hand.kill()
                self.hands[server.name].clear()
            wait_until(
                lambda: cache.info("clients")["connected_clients"] == 1, "its clients are gone"
            )
            cache.flushall()
        return usage(pid)

    def compare(self, before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
        for what, old, new, more in zip(
            ("handles", "threads", "bytes of memory"), before, after,
            (MORE_HANDLES, MORE_THREADS, MORE_MEMORY),
        ):  # fmt: skip
            print(f"{what}: {old:,} at the beginning, {new:,} at the end")
            if new > old + more:
                self.fail(f"the server has {new - old:,} {what} more than at the beginning")

    def tell_progress(self, seconds: float) -> None:
        assert self.steady is not None
        with new_client(self.steady.name) as cache:
            handles, threads, memory = usage(int(cache.info("server")["process_id"]))
        print(
            f"{seconds:4.0f} s: {self.counts['clients killed']} clients and"
            f" {self.counts['servers killed']} servers killed, {self.counts['servers stopped']}"
            f" stopped, {len(self.failures)} wrong; {handles} handles, {threads} threads,"
            f" {memory / 1e6:.0f} MB", flush=True,
        )  # fmt: skip

    def close(self) -> None:
        for hands in self.hands.values():
            for hand in hands:
                for what in hand.wrong() if hand.process.poll() is not None else []:
                    self.fail(what)
                hand.read_on()
                self.counts["operations"] += hand.operations
                hand.kill()
        for server in (self.mortal, self.steady):
            if server is not None:
                server.close()
        if self.failures:
            print(f"The files are kept in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def verdict(self) -> int:
        counted = ", ".join(f"{number:,} {what}" for what, number in sorted(self.counts.items()))
        print(f"{counted}; keys of killed clients were deleted within {self.longest:.2f} s")
        outcome = "passed" if not self.failures else "FAILED"
        print(f"Soak {outcome}: {len(self.failures)} wrong answers")
        return 1 if self.failures else 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--worker"]:
        return work(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="tests/tools/soak.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="run for N minutes, or use --kills"
    )
    parser.add_argument("--kills", type=int, metavar="K", help="kill a server this many times")
    parser.add_argument(
        "--clients", type=int, default=4, metavar="N", help="clients per server (default: 4)"
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), metavar="N",
        help="seed of the random numbers (default: the time)",
    )  # fmt: skip
    parser.add_argument("--wine", action="store_true", help="run on Windows Python under Wine")
    options = parser.parse_args(arguments)
    if (options.minutes is None) == (options.kills is None):
        parser.error("give either --minutes N or --kills K")
    if options.wine:
        return under_wine([each for each in arguments if each != "--wine"])
    print(f"seed {options.seed}, {options.clients} clients for each server", flush=True)
    soak = Soak(options.clients, options.seed)
    try:
        if options.kills is not None:
            soak.run_kills(options.kills)
        else:
            soak.run_minutes(options.minutes)
    except KeyboardInterrupt:
        print("interrupted")
    except AssertionError as error:
        soak.fail(str(error))
    finally:
        soak.close()
    return soak.verdict()


def under_wine(arguments: list[str]) -> int:
    with provision.Wine() as wine:
        script = wine.path(Path(__file__).resolve())
        process = wine.popen(
            [wine.python("3.13"), script, *arguments], cwd=ROOT, stderr=subprocess.STDOUT
        )
        try:
            for line in process.stdout or ():
                print(line.decode("utf-8", "replace").rstrip(), flush=True)
            return int(process.wait())
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
