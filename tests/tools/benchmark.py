"""Benchmark of pipecache and comparable programs: ``python tests/tools/benchmark.py``.

One run measures every contender in rounds, each round in another order, and reports medians over
the rounds. A ratio is taken within a round, between measurements a second or two apart, and the
report has the median of the ratios: on a busy machine the figures vary, but the ratios hardly do.
The measurements:

trips
    One client process with one connection: the round trip of GET and of SET (keys and values of
    11 bytes, a thousand keys), a hundred GETs sent before the first reply is read, and MGET of a
    hundred keys, as far as the client supports these.
together, apart
    GET and SET again with client and server on one processor, and on two. In trips the placement
    by the system has a larger effect than the programs: on a virtual machine, waking an idle
    processor takes longer than most of these servers take to reply, and the time depends on how
    long the processor was idle, so the faster program can look slower. On one processor there is
    no wake-up, and the figures show the cost of the programs.
clients
    1, 8 and 32 clients at the same time, each in its own process, as scripts on one machine are;
    threads would share one interpreter lock. Nine GETs to one SET. All clients start before the
    measurement and continue until after its end.
memory
    Growth of the server's resident memory by a million keys, which the client stores.
startup
    The time from the start of the server process until clients can connect, minus the time in
    which the same interpreter with the same flags reaches its first statement.
crowd
    1,000 clients connected at the same time; all send a request before the first reads its reply.
bench1, bench50, bench50x16
    redis-benchmark of the package redis-tools with its defaults (one key, values of 3 bytes), SET
    and then GET: 1 client, 50 clients, and 50 clients with 16 commands in flight each. The clients
    are one loop in C, so the servers determine the result.
shares
    The fairness among 50 clients, which redis-benchmark does not show: the clients are one loop
    over sockets, each asks again as soon as it has its reply, and after a second the replies of
    the client with the fewest replies are compared with those of the median client.

delivery
    The time from before PUBLISH until the only subscriber, another program, has the message: half
    of the way to a program that publishes it again, and back. The same with both in one process,
    which reads the reply to its PUBLISH before the message; and a GET.
fanout
    Messages per second that reach 100 subscribers of one channel in total, with one PUBLISH in
    flight and with ten. The subscribers are one loop over sockets that counts bytes; its idle time
    shows whether the loop itself limits the result.
idle
    Server memory per client for 1,000 clients that have sent one request and are idle.
kept
    redis-benchmark, SET of 100,000 random keys, with a server with --db FILE and one without, in
    turns: the remaining part of the rate with 1 client, 50, and 50 with 16 in flight each.
load
    A file of a million keys: the time to load it into the server, and that of a plain SELECT of
    the same rows into a dict, each in its own process.
waiting
    200 clients blocked in BLPOP: the server memory that they add, and the processor time of the
    server meanwhile.

The same worker processes (``peers/worker.py``) are the clients of all contenders of a half. The
servers run side by side and are idle while others are measured. Each measurement begins with a
warm-up, and the replies are checked. Clients have their defaults, except that pymemcache waits for
the reply to a SET, and SQLite does not sync each commit. The garbage collector is not changed. The
other programs are installed into an environment outside the tree.

Targets are only reported: the exit status is 0 whatever the results are.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import (
    Any,
    Callable,
    Iterator,
    Mapping,
    Sequence,
    cast,
)

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tests.tools import provision  # noqa: E402 - found by the path set above
from tests.tools.peers import chart  # noqa: E402

REQUIREMENTS = ("redis==8.1.0", "hiredis==3.5.0", "pymemcache==4.0.0", "diskcache==5.6.3")
WINDOWS_PYTHON = "3.13"
READY = "Ready to accept connections"
#: Seconds that a server may take until it is ready, and a worker until it replies.
PATIENCE = 60.0
CLIENT_COUNTS = (1, 8, 32)
FILL = 1_000_000
CROWD = 1000
#: The number of clients that share a server, and the share of the median client's replies below
#: which a client counts as starved.
SHARERS = 50
STARVED = 0.25
#: The numbers of subscribers of one channel, and of blocked clients.
SUBSCRIBERS = 100
WAITERS = 200
#: Bytes by which a server's memory may still vary when it is read.
STILL = 65536


# ------------------------------------------------------------------------------------------
# Metrics, contenders and targets
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number that a measurement returns."""

    title: str
    unit: str
    more_is_better: bool = False

    @property
    def head(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title


#: The arguments of redis-benchmark.
BENCHES = ("bench1", "bench50", "bench50x16")

METRICS: dict[str, Metric] = {
    "get": Metric("GET", "µs"),
    "set": Metric("SET", "µs"),
    "pipeline": Metric("100 at once, each", "µs"),
    "mget": Metric("MGET of 100, each", "µs"),
    "together_get": Metric("GET", "µs"),
    "together_set": Metric("SET", "µs"),
    "apart_get": Metric("GET", "µs"),
    "apart_set": Metric("SET", "µs"),
    **{
        name: metric
        for count in CLIENT_COUNTS
        for name, metric in (
            (f"rate{count}", Metric(f"{count} client{'s' * (count > 1)}", "1/s", True)),
            (f"p99_{count}", Metric(f"{count}: 99 % within", "µs")),
        )
    },
    "memory": Metric("a million keys", "MB"),
    "fill": Metric("loading them", "s"),
    "ready": Metric("ready after", "s"),
    "bare": Metric("bare interpreter", "s"),
    "startup": Metric("more than bare", "s"),
    "connect": Metric(f"{CROWD} connect", "s"),
    "answer": Metric(f"{CROWD} are answered", "s"),
    **{
        f"{bench}_{name}": metric
        for bench in BENCHES
        for name, metric in (
            ("get", Metric("GET", "1/s", True)),
            ("set", Metric("SET", "1/s", True)),
            ("get_p99", Metric("GET: 99 % within", "µs")),
            ("set_p99", Metric("SET: 99 % within", "µs")),
            ("longest", Metric("longest", "µs")),
        )
    },
    "delivery": Metric("publish to received", "µs"),
    "delivery_alone": Metric("the same in one process", "µs"),
    "delivery_get": Metric("GET", "µs"),
    "fanout1": Metric("1 under way", "1/s", True),
    "fanout1_idle": Metric("receiver idle", "", True),
    "fanout10": Metric("10 under way", "1/s", True),
    "fanout10_idle": Metric("receiver idle", "", True),
    "idle_memory": Metric("a client", "kB"),
    "kept1": Metric("1 client", "", True),
    "kept50": Metric("50 clients", "", True),
    "kept50x16": Metric("50 x 16", "", True),
    "load": Metric("loading", "s"),
    "load_bare": Metric("bare SELECT", "s"),
    "load_ratio": Metric("ratio", ""),
    "waiting_memory": Metric("memory", "MB"),
    "waiting_processor": Metric("of a processor", "%"),
    "shares_least": Metric("least served", "1/s", True),
    "shares_median": Metric("median client", "1/s", True),
    "shares_ratio": Metric("least / median", "", True),
    "shares_longest": Metric("longest wait", "µs"),
}


#: The measurements of a contender with a server, of a server without a client of its own, of this
#: project, and of a contender without a server.
SERVED = ("trips", "together", "apart", "clients")
ASKED = (*BENCHES, "shares", "fanout", "waiting")
MINE = (*SERVED, "memory", "startup", "crowd", "delivery", *ASKED, "idle", "kept", "load")
FILE = ("trips", "clients")


@dataclass(frozen=True)
class Contender:
    """A program or a library that is measured.

    *client* names a way of opening in ``peers/clients.py`` (nothing for a server that only other
    programs ask) and *options* go to it; *service* names what its half starts for it (nothing for
    a file); *via* is how it is reached.
    """

    name: str
    title: str
    client: str
    service: str = ""
    via: str = "pipe"
    options: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[str, ...] = SERVED


@dataclass(frozen=True)
class Target:
    """The median over rounds of ``ours / peer`` for *metric* is to be at most *bound*, or at least
    *bound* where more of the metric is better.

    With several *peers* the best of them in each round counts; with none, *metric* itself.
    *ours* is the contender held against them.  *over* is the metric of the peers, or with none of
    *ours* itself, where it is to be another than *metric*.
    """

    half: str
    metric: str
    bound: float
    title: str
    peers: tuple[str, ...] = ()
    ours: str = "pipecache"
    over: str = ""

    @property
    def at_least(self) -> bool:
        return METRICS[self.metric].more_is_better

    @property
    def text(self) -> str:
        title = METRICS[self.metric].title
        return f"{title}, of {self.title}" if self.peers or self.over else self.title

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


REDIS = ("redis-server",)
TARGETS = (
    Target("wine", "get", 0.60, "pywin32 server and client", ("pywin32",)),
    Target(
        "wine",
        "get",
        0.60,
        "the same, both connecting for each command",
        ("pywin32-per-command",),
        "pipecache-per-command",
    ),
    Target("wine", "get", 0.55, "SyncManager over AF_PIPE", ("manager",)),
    Target("wine", "get", 1.15, "bare pipe echo", ("pipe-echo", "pipe-echo-overlapped")),
    Target("wine", "pipeline", 0.06, "a GET round trip", over="get"),
    Target("linux", "get", 0.45, "redis-py on redis-server, Unix socket", ("redis-unix",)),
    Target("linux", "get", 1.50, "bare socket echo", ("socket-echo",)),
    Target("linux", "pipeline", 0.60, "redis-py with hiredis", ("redis-unix-hiredis",)),
    Target("linux", "mget", 1.50, "redis-py with hiredis", ("redis-unix-hiredis",)),
    Target("linux", "mget", 1.50, "redis-py without", ("redis-unix",)),
    Target("linux", "memory", 1.60, "redis-server", ("redis-unix-hiredis",)),
    Target("linux", "startup", 0.15, "seconds more than a bare interpreter"),
    Target("linux", "bench1_get", 1.00, "redis-server's rate, 1 client", REDIS),
    Target("linux", "bench1_set", 1.00, "redis-server's rate, 1 client", REDIS),
    Target("linux", "bench50_get", 0.45, "redis-server's rate, 50 clients", REDIS),
    Target("linux", "bench50_set", 0.45, "redis-server's rate, 50 clients", REDIS),
    Target("linux", "bench50_get_p99", 12.0, "redis-server's time, 50 clients", REDIS),
    Target("linux", "bench50_set_p99", 12.0, "redis-server's time, 50 clients", REDIS),
    Target("linux", "bench50x16_get", 0.20, "redis-server's rate, 50 clients x 16", REDIS),
    Target("linux", "bench50x16_set", 0.20, "redis-server's rate, 50 clients x 16", REDIS),
    Target("linux", "delivery", 0.80, "redis-py on redis-server", ("redis-unix",)),
    Target("linux", "delivery_alone", 0.80, "redis-py on redis-server", ("redis-unix",)),
    Target("wine", "delivery", 1.20, "a GET round trip", over="delivery_get"),
    Target("wine", "delivery_alone", 1.20, "a GET round trip", over="delivery_get"),
    Target("linux", "fanout1", 0.30, "redis-server's rate, 100 subscribers", REDIS),
    Target("linux", "fanout10", 0.30, "redis-server's rate, 100 subscribers", REDIS),
    Target("linux", "idle_memory", 100.0, "kB for each idle client"),
    Target("linux", "kept1", 0.70, "of the rate without --db, 1 client"),
    Target("linux", "kept50", 0.70, "of the rate without --db, 50 clients"),
    Target("linux", "kept50x16", 0.70, "of the rate without --db, 50 clients x 16"),
    Target("linux", "load_ratio", 3.0, "times a bare SELECT of a million keys"),
    Target("linux", "waiting_processor", 2.0, "% that 200 waiting clients take"),
    Target("linux", "waiting_memory", 20.0, "MB that 200 waiting clients add"),
    Target("linux", "shares_ratio", STARVED, f"least served of {SHARERS} clients, of the median"),
)


class Results:
    """Samples by half, contender and metric, one per round (None if a measurement failed)."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str, str], list[float | None]] = {}
        #: The reasons for failed measurements, by half, contender and measurement.
        self.failures: dict[tuple[str, str, str], str] = {}
        #: The reasons why a half could not be set up.
        self.skipped: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        #: The titles of contenders, by half and name, in the order of the tables.
        self.titles: dict[tuple[str, str], str] = {}

    def add(self, half: str, contender: str, metric: str, round_: int, value: float) -> None:
        samples = self.samples.setdefault((half, contender, metric), [])
        samples.extend([None] * (round_ + 1 - len(samples)))
        samples[round_] = value

    def values(self, half: str, contender: str, metric: str) -> list[float]:
        return [v for v in self.samples.get((half, contender, metric), []) if v is not None]

    def median(self, half: str, contender: str, metric: str) -> float | None:
        values = self.values(half, contender, metric)
        return statistics.median(values) if values else None

    def ratios(
        self, half: str, metric: str, peers: Sequence[str], ours: str = "pipecache", over: str = ""
    ) -> list[float]:
        """Return ``ours / best of peers`` for each round that has both. *over* is the metric of the
        peers if it differs."""
        over = over or metric
        better = max if METRICS[over].more_is_better else min
        mine = self.samples.get((half, ours, metric), [])
        theirs = [self.samples.get((half, peer, over), []) for peer in peers]
        found = []
        for own, *others in itertools.zip_longest(mine, *theirs):
            present = [other for other in others if other is not None]
            if own is not None and present:
                found.append(own / better(present))
        return found

    def reached(self, target: Target) -> list[float]:
        if target.peers or target.over:
            peers = target.peers or (target.ours,)
            return self.ratios(target.half, target.metric, peers, target.ours, target.over)
        return self.values(target.half, target.ours, target.metric)

    def held(self, target: Target, layout: str) -> float | None:
        """Return the ratios with the processes placed by *layout*, "together" or "apart"."""
        metric = f"{layout}_{target.metric}"
        if metric not in METRICS:
            found = []
        else:
            found = self.ratios(target.half, metric, target.peers, target.ours)
        return statistics.median(found) if found else None


# ------------------------------------------------------------------------------------------
# Programs
# ------------------------------------------------------------------------------------------


class Failure(Exception):
    """A contender cannot be measured; the others are not affected."""


class Program:
    """A process whose output is read by a thread."""

    def __init__(self, process: subprocess.Popen[str], socket_file: str = "") -> None:
        self.process = process
        #: For a server that prints nothing: the file that exists when it is ready.
        self.socket_file = socket_file
        self.tail: deque[str] = deque(maxlen=20)
        self._changed = threading.Condition()
        self._ready_at: float | None = None
        self._over = 0
        self._streams = [s for s in (process.stdout, process.stderr) if s is not None]
        for stream in self._streams:
            threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            now = time.perf_counter()
            with self._changed:
                self.tail.append(line.rstrip())
                if READY.lower() in line.lower() and self._ready_at is None:
                    self._ready_at = now
                self._changed.notify_all()
        with self._changed:
            self._over += 1
            self._changed.notify_all()

    def wait_ready(self) -> float:
        """Return the ``time.perf_counter()`` at which the program printed that it is ready."""
        if self.socket_file:
            deadline = time.monotonic() + PATIENCE
            while not os.path.exists(self.socket_file):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failure("".join(list(self.tail)[-1:]) or "was not ready")
                time.sleep(0.02)
            return time.perf_counter()
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready_at is not None or self._over == len(self._streams), PATIENCE
            )
            if self._ready_at is None:
                raise Failure("".join(list(self.tail)[-1:]) or "said nothing and was not ready")
            return self._ready_at

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


class Worker:
    """A client process; see ``peers/worker.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._complaint: deque[str] = deque(maxlen=5)
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_complaints, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _read_complaints(self) -> None:
        for line in self.process.stderr or ():
            self._complaint.append(line.rstrip())

    def send(self, do: str, **arguments: Any) -> None:
        if self.process.stdin is None:
            raise Failure("a worker without standard input")
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise Failure("".join(list(self._complaint)[-1:]) or "the worker has ended") from None

    def receive(self) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._over, PATIENCE)
            if not self._lines:
                raise Failure("".join(list(self._complaint)[-1:]) or "the worker does not answer")
            reply: dict[str, Any] = json.loads(self._lines.popleft())
        if "error" in reply:
            raise Failure(reply["error"])
        return reply

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.send(do, **arguments)
        return self.receive()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def ask_all(workers: Sequence[Worker], do: str, **arguments: Any) -> list[dict[str, Any]]:
    """Send requests to all workers, then read all replies, even if one is an error."""
    for worker in workers:
        worker.send(do, **arguments)
    replies, failure = [], None
    for worker in workers:
        try:
            replies.append(worker.receive())
        except Failure as error:
            failure = error
    if failure is not None:
        raise failure
    return replies


# ------------------------------------------------------------------------------------------
# The two halves: the platforms and their contenders
# ------------------------------------------------------------------------------------------


class Half:
    """One platform: its interpreter, its servers (started at first use) and workers.

    A subclass says how a Python program is started there, what an address and a file look like,
    and which services and contenders it has.
    """

    name = ""
    title = ""
    contenders: tuple[Contender, ...] = ()
    #: The measurements that this platform supports.
    possible: tuple[str, ...] = ()
    #: The path of that program, where it can reach the servers.
    redis_benchmark = ""

    def __init__(self, rivals: Sequence[Path]) -> None:
        #: Checkouts by service name: this one, and others to compare with.
        self.projects: dict[str, Path] = {"pipecache": ROOT}
        for number, folder in enumerate(rivals, 1):
            name = f"rival{number}"
            self.projects[name] = folder
            title = f"pipecache in {folder.name}"
            self.contenders += (Contender(name, title, "pipecache", name, measured=MINE),)
        self.folder = Path(tempfile.mkdtemp(prefix="bench"))
        self.exits = contextlib.ExitStack()
        self.exits.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.workers: list[Worker] = []
        self.services: dict[str, Program] = {}

    def __enter__(self) -> Half:
        try:
            self.set_up()
        except BaseException:
            self.exits.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.dismiss()
            for program in self.services.values():
                program.stop()
        finally:
            self.exits.close()

    # Methods for subclasses to override

    def set_up(self) -> None:
        """Fetch and start the programs; raise `provision.Unavailable` if one is missing."""
        raise NotImplementedError

    def popen(self, *arguments: str, worker: bool = False) -> subprocess.Popen[str]:
        """Start the Python of this half with *arguments*; both outputs are captured."""
        raise NotImplementedError

    def path(self, path: Path) -> str:
        """Return the path of a file on this platform."""
        raise NotImplementedError

    def pipe(self, name: str) -> str:
        """Return the address of the pipe of a service."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """Return the contenders by name."""
        raise NotImplementedError

    # Methods for the measurements

    def start(self, service: str, address: str, *options: str) -> Program:
        """Start a new process of *service*; the options are for pipecache."""
        if service in self.projects:
            script = self.path(self.projects[service] / "pipecache.py")
            return Program(self.popen(script, "--pipe", address, *options))
        return Program(self.popen("-m", "tests.tools.peers.servers", service, address))

    def start_bare(self) -> Program:
        """Return an interpreter that at once prints the line of a server that is ready."""
        return Program(self.popen("-c", f"import sys; sys.stderr.write({READY + chr(10)!r})"))

    def carriers(self, server: int) -> list[int]:
        """Return the processes that a message passes on a round trip."""
        return [server]

    def address(self, contender: Contender) -> str:
        if contender.via == "file":
            return self.path(self.folder / contender.name)
        return self.pipe(contender.service)

    def serve(self, contender: Contender) -> str:
        """Return the address of *contender*, whose server is started if necessary."""
        address = self.address(contender)
        if contender.service and contender.service not in self.services:
            program = self.start(contender.service, self.pipe(contender.service))
            self.services[contender.service] = program
            program.wait_ready()
        elif contender.service and self.services[contender.service].process.poll() is not None:
            tail = list(self.services[contender.service].tail)[-1:]
            raise Failure("its server has ended: " + "".join(tail))
        return address

    def opening(self, contender: Contender, address: str) -> dict[str, Any]:
        """Return the arguments of a worker's ``open``."""
        options = dict(contender.options)
        if contender.client.startswith("pipecache"):
            options["project"] = self.path(self.projects[contender.service])
        return {"client": contender.client, "address": address, "options": options}

    def crew(self, count: int) -> list[Worker]:
        """Return *count* idle client processes."""
        missing = range(len(self.workers), count)
        fresh = [Worker(self.popen("-m", "tests.tools.peers.worker", worker=True)) for _ in missing]
        self.workers += fresh
        ask_all(fresh, "close")
        return self.workers[:count]

    def dismiss(self) -> None:
        """End all workers, whose state is unknown after a failure."""
        for worker in self.workers:
            worker.stop()
        self.workers.clear()


class Linux(Half):
    name = "linux"
    title = "Linux, natively"
    contenders = (
        Contender("pipecache", "pipecache, Unix socket", "pipecache", "pipecache", measured=MINE),
        Contender(
            "pipecache-per-command",
            "pipecache, a connection each command",
            "pipecache-per-command",
            "pipecache",
            measured=("trips",),
        ),
        Contender(
            "redis-unix",
            "redis-server, redis-py, Unix socket",
            "redis",
            "redis-server",
            measured=(*SERVED, "delivery"),
        ),
        Contender(
            "redis-unix-hiredis",
            "redis-server, redis-py + hiredis, Unix socket",
            "redis",
            "redis-server",
            options={"hiredis": "yes"},
            measured=(*SERVED, "memory", "startup"),
        ),
        Contender(
            "redis-unix-single",
            "redis-server, redis-py + hiredis, single connection",
            "redis",
            "redis-server",
            options={"hiredis": "yes", "single": "yes"},
        ),
        Contender("redis-tcp", "redis-server, redis-py, TCP", "redis", "redis-server", "tcp"),
        Contender(
            "redis-tcp-hiredis",
            "redis-server, redis-py + hiredis, TCP",
            "redis",
            "redis-server",
            "tcp",
            {"hiredis": "yes"},
        ),
        Contender("redis-server", "redis-server, Unix socket", "", "redis-server", measured=ASKED),
        Contender("memcached", "memcached, pymemcache, Unix socket", "memcached", "memcached"),
        Contender("manager", "SyncManager, AF_UNIX", "manager", "manager"),
        Contender("diskcache", "diskcache", "diskcache", via="file", measured=FILE),
        Contender("sqlite", "sqlite3 in a file, WAL", "sqlite", via="file", measured=FILE),
        Contender("socket-echo", "bare socket echo (floor)", "socket-echo", "socket-echo"),
    )

    possible = MINE

    def set_up(self) -> None:
        self.python = str(provision.environment("benchmark", REQUIREMENTS))
        self.redis_server = str(provision.redis_server())
        self.redis_benchmark = str(provision.redis_benchmark())
        self.memcached = str(provision.memcached())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def _popen(self, argv: Sequence[str], worker: bool = False) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if worker else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            cwd=ROOT,
        )

    def popen(self, *arguments: str, worker: bool = False) -> subprocess.Popen[str]:
        return self._popen([self.python, *arguments], worker)

    def path(self, path: Path) -> str:
        return str(path)

    def pipe(self, name: str) -> str:
        return str(self.folder / f"{name}.sock")

    def address(self, contender: Contender) -> str:
        return f"tcp:{self.port}" if contender.via == "tcp" else super().address(contender)

    def start(self, service: str, address: str, *options: str) -> Program:
        if service == "redis-server":
            port = self.port if address == self.pipe(service) else 0
            ports = f"--bind 127.0.0.1 --port {port} --appendonly no --daemonize no"
            more = ["--save", "", "--dir", str(self.folder), "--unixsocket", address]
            return Program(self._popen([self.redis_server, *ports.split(), *more]))
        if service == "memcached":
            user = ["-u", "root"] if os.geteuid() == 0 else []
            argv = [self.memcached, "-s", address, "-m", "256", *user]
            return Program(self._popen(argv), socket_file=address)
        return super().start(service, address, *options)

    def versions(self) -> dict[str, str]:
        names = [requirement.partition("==")[0] for requirement in REQUIREMENTS]
        versions = installed(self.popen("-c", INSTALLED, *names))
        for title, program in (("redis-server", self.redis_server), ("memcached", self.memcached)):
            words = subprocess.run(
                [program, "--version"], stdout=subprocess.PIPE, text=True, check=True
            )
            versions[title] = re.findall(r"\d+(?:\.\d+)+", words.stdout)[0]
        return versions


class Windows(Half):
    """Windows CPython under Wine."""

    name = "wine"
    title = "Windows CPython under Wine"
    contenders = (
        Contender("pipecache", "pipecache, named pipe", "pipecache", "pipecache", measured=MINE),
        Contender(
            "pipecache-per-command",
            "pipecache, a connection each command",
            "pipecache-per-command",
            "pipecache",
            measured=("trips",),
        ),
        Contender(
            "pywin32",
            "pywin32 server and client",
            "pywin32",
            "pywin32",
            measured=(*SERVED, "crowd"),
        ),
        Contender(
            "pywin32-per-command",
            "pywin32, a connection each command",
            "pywin32",
            "pywin32",
            options={"connect": "each"},
            measured=("trips",),
        ),
        Contender("manager", "SyncManager, AF_PIPE", "manager", "manager"),
        Contender("sqlite", "sqlite3 in a file, WAL", "sqlite", via="file", measured=FILE),
        Contender("pipe-echo", "bare pipe echo, blocking (floor)", "pipe-echo", "pipe-echo"),
        Contender(
            "pipe-echo-overlapped",
            "bare pipe echo, overlapped (floor)",
            "pipe-echo",
            "pipe-echo-overlapped",
            options={"overlapped": "yes"},
        ),
    )

    possible = (*SERVED, "startup", "crowd", "delivery")

    def set_up(self) -> None:
        self.python = provision.windows_python(WINDOWS_PYTHON)
        self.packages = {"PYTHONPATH": "Z:" + str(provision.pywin32(WINDOWS_PYTHON))}
        self.wine = self.exits.enter_context(provision.Wine())

    def popen(self, *arguments: str, worker: bool = False) -> subprocess.Popen[str]:
        process: Any = self.wine.popen(
            [self.python, *arguments],
            stdin=subprocess.PIPE if worker else subprocess.DEVNULL,
            env=self.packages,
            encoding="utf-8",
            errors="replace",
            cwd=ROOT,
        )
        return cast("subprocess.Popen[str]", process)

    def path(self, path: Path) -> str:
        return "Z:" + str(path).replace("/", "\\")

    def pipe(self, name: str) -> str:
        return rf"\\.\pipe\{self.folder.name}-{name}"

    def carriers(self, server: int) -> list[int]:
        """Include wineserver, which passes messages between the processes."""

        def prefix(process: str) -> str:
            environ = Path(f"/proc/{process}/environ").read_bytes()
            return os.fsdecode(environ.partition(b"WINEPREFIX=")[2].partition(b"\0")[0])

        found = [server]
        for process in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8")
                if name.startswith("wineserver") and prefix(process) == prefix(str(server)):
                    found.append(int(process))
        return found

    def versions(self) -> dict[str, str]:
        return installed(self.popen("-c", INSTALLED))


#: A program that prints the versions of the interpreter and of distributions.
INSTALLED = """
import importlib.metadata, json, platform, sqlite3, sys
found = {"CPython": platform.python_version(), "SQLite": sqlite3.sqlite_version}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def installed(process: subprocess.Popen[str]) -> dict[str, str]:
    output, complaint = process.communicate()
    if process.returncode:
        raise Failure(complaint.strip().rpartition("\n")[2])
    found: dict[str, str] = json.loads(output)
    return found


# ------------------------------------------------------------------------------------------
# The measurements
# ------------------------------------------------------------------------------------------


class Measurement:
    """A measurement of one contender in one round.

    To add one: a subclass with a ``visit``, its numbers in METRICS, its name in the ``measured`` of
    the contenders that take part and in MEASUREMENTS; a ratio to be reached goes into TARGETS.
    """

    name = ""
    title = ""
    #: The number of rounds as a share of ``--rounds``.
    share = 1.0
    #: The metrics of the table.
    columns: tuple[str, ...] = ()
    #: The metric whose ratio to that of this project the table shows.
    compared = ""
    #: A note for the reader of the table.
    note = ""

    def __init__(self, quick: bool) -> None:
        self.quick = quick

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        """Measure once; return the metrics that this contender has."""
        raise NotImplementedError


class Trips(Measurement):
    name = "trips"
    title = "one client: round trips, and many commands at once"
    columns: tuple[str, ...] = ("get", "set", "pipeline", "mget")
    compared = "get"
    note = "much of this is where the system puts the processes: see one processor, two processors"
    #: The metrics that the worker measures.
    only: tuple[str, ...] = columns

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.serve(contender)
        (worker,) = half.crew(1)
        worker.ask("open", **half.opening(contender, address))
        seconds = 0.1 if self.quick else 0.2
        # After this reply, all threads of a round trip exist.
        worker.ask("set", key="ready", value="now")
        with self.placed(half, contender, worker):
            found = worker.ask("trips", seconds=seconds, warm=seconds / 4, only=self.only)
        worker.ask("close")
        return found

    def placed(
        self, half: Half, contender: Contender, worker: Worker
    ) -> contextlib.AbstractContextManager[None]:
        """Place the processes; here the system decides."""
        return contextlib.nullcontext()


class Together(Trips):
    name = "together"
    title = "one client and its server on one processor"
    share = 0.4
    columns = ("together_get", "together_set")
    compared = "together_get"
    note = ""
    only = ("get", "set")

    def processors(self) -> tuple[set[int], set[int]]:
        """Return the threads of the client and of the server."""
        last = {max(os.sched_getaffinity(0))}
        return last, last

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        found = super().visit(half, contender)
        return {f"{self.name}_{metric}": value for metric, value in found.items()}

    @contextlib.contextmanager
    def placed(self, half: Half, contender: Contender, worker: Worker) -> Iterator[None]:
        client = [worker.process.pid]
        server = half.carriers(half.services[contender.service].process.pid)
        everywhere = os.sched_getaffinity(0)
        before: dict[int, set[int]] = {}
        try:
            for programs, processors in zip((client, server), self.processors()):
                for thread in self._threads(programs):
                    with contextlib.suppress(ProcessLookupError):
                        before[thread] = os.sched_getaffinity(thread)
                        os.sched_setaffinity(thread, processors)
            yield
        finally:
            # A server may have placed its threads itself.
            for thread in self._threads([*client, *server]):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, before.get(thread, everywhere))

    def _threads(self, programs: Sequence[int]) -> list[int]:
        # Each thread is placed; later threads inherit the place.
        found: list[int] = []
        for program in programs:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, os.listdir(f"/proc/{program}/task"))
        return found


class Apart(Together):
    name = "apart"
    title = "one client on a processor, its server on another"
    columns = ("apart_get", "apart_set")
    compared = "apart_get"

    def processors(self) -> tuple[set[int], set[int]]:
        usable = os.sched_getaffinity(0)
        return {min(usable)}, {max(usable)}


class Clients(Measurement):
    name = "clients"
    title = "1, 8 and 32 clients at once, nine GETs to one SET"
    share = 0.3
    columns = (*(f"rate{count}" for count in CLIENT_COUNTS), f"p99_{CLIENT_COUNTS[-1]}")
    compared = f"rate{CLIENT_COUNTS[-1]}"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.serve(contender)
        found: dict[str, float] = {}
        for count in CLIENT_COUNTS:
            workers = half.crew(count)
            ask_all(workers, "open", **half.opening(contender, address))
            begin = time.time() + 0.2 + count * 0.005
            end = begin + (0.4 if self.quick else 0.7)
            replies = ask_all(workers, "load", begin=begin, end=end)
            ask_all(workers, "close")
            found[f"rate{count}"] = sum(reply["count"] for reply in replies) / (end - begin)
            found[f"p99_{count}"] = statistics.median(reply["p99"] for reply in replies) * 1e6
        return found


class Memory(Measurement):
    name = "memory"
    title = "a million keys and values of 11 bytes"
    share = 0.2
    columns: tuple[str, ...] = ("memory", "fill")
    compared = "memory"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        with self._server(half, contender) as (address, pid, worker):
            worker.ask("open", **half.opening(contender, address))
            before = self._settled(pid)
            taken = worker.ask("fill", count=FILL)
            after = self._settled(pid)
            worker.ask("close")
        return {"memory": (after - before) / 1e6, "fill": taken["seconds"]}

    @contextlib.contextmanager
    def _server(self, half: Half, contender: Contender) -> Iterator[tuple[str, int, Worker]]:
        """Return the address and the process of a new server, and a worker. A server that was used
        before would already have free memory."""
        address = half.pipe(f"{contender.service}-{self.name}")
        program = half.start(contender.service, address)
        try:
            program.wait_ready()
            (worker,) = half.crew(1)
            yield address, program.process.pid, worker
        finally:
            program.stop()

    def _settled(self, pid: int) -> int:
        """Return the resident bytes after they were stable for a second (redis-server moves its
        table for a while after the last command)."""
        deadline = time.monotonic() + 15
        sizes: deque[int] = deque(maxlen=6)
        while time.monotonic() < deadline:
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            sizes.append(int(status.partition("VmRSS:")[2].split()[0]) * 1024)
            if len(sizes) == sizes.maxlen and max(sizes) - min(sizes) < STILL:
                break
            time.sleep(0.2)
        return sizes[-1]


class Startup(Measurement):
    name = "startup"
    title = "from start to ready"
    columns = ("ready", "bare", "startup")

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.pipe(f"{contender.service}-startup")
        ready = self._time(lambda: half.start(contender.service, address))
        if contender.service not in half.projects:
            return {"ready": ready}
        bare = self._time(half.start_bare)
        return {"ready": ready, "bare": bare, "startup": ready - bare}

    def _time(self, start: Callable[[], Program]) -> float:
        started = time.perf_counter()
        program = start()
        try:
            return program.wait_ready() - started
        finally:
            program.stop()


class Crowd(Measurement):
    name = "crowd"
    title = f"{CROWD} clients connected at once, each with a command under way"
    share = 0.3
    columns = ("connect", "answer")
    compared = "answer"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.serve(contender)
        (worker,) = half.crew(1)
        worker.ask("open", **half.opening(contender, address))
        worker.ask("set", key="crowd", value="here")
        worker.ask("close")
        found = worker.ask("crowd", address=address, count=CROWD)
        return found


class Bench1(Measurement):
    """redis-benchmark with one client; subclasses use more clients."""

    name = "bench1"
    title = "redis-benchmark, 1 client"
    clients = 1
    #: Commands of one client in flight.
    in_flight = 1
    #: Commands of a test, which takes more than half a second.
    requests = 25_000

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.columns = tuple(metric for metric in METRICS if metric.startswith(f"{self.name}_"))
        self.compared = f"{self.name}_get"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.serve(contender)
        requests = self.requests // 2 if self.quick else self.requests
        self._run(half, address, requests // 10)
        tests = self._run(half, address, requests)
        found = {"longest": max(float(test["max_latency_ms"]) * 1e3 for test in tests.values())}
        for name, test in tests.items():
            found[name] = float(test["rps"])
            found[f"{name}_p99"] = float(test["p99_latency_ms"]) * 1e3
        return {f"{self.name}_{metric}": value for metric, value in found.items()}

    def _run(self, half: Half, address: str, requests: int) -> dict[str, dict[str, str]]:
        """Return the output for each test. redis-benchmark checks only for errors."""
        argv = [half.redis_benchmark, "-s", address, "-t", "set,get", "--csv"]
        argv += ["-c", str(self.clients), "-P", str(self.in_flight), "-n", str(requests)]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failure("redis-benchmark does not come to its end") from None
        tests = {row["test"].lower(): row for row in csv.DictReader(done.stdout.splitlines())}
        if done.returncode or set(tests) != {"set", "get"}:
            # redis-benchmark warns if it cannot read CONFIG.
            raise Failure("redis-benchmark: " + (done.stderr.strip() or "?").rpartition("\n")[2])
        return tests


class Bench50(Bench1):
    name = "bench50"
    title = "redis-benchmark, 50 clients"
    clients = 50
    requests = 40_000


class Bench50x16(Bench50):
    name = "bench50x16"
    title = "redis-benchmark, 50 clients with 16 commands under way each"
    in_flight = 16
    requests = 300_000


class Shares(Measurement):
    name = "shares"
    title = f"{SHARERS} clients in one loop, and what each of them gets"
    share = 0.6
    columns = ("shares_least", "shares_median", "shares_ratio", "shares_longest")
    compared = "shares_median"
    note = f"starved: less than {STARVED} of what the median client gets"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.serve(contender)
        (worker,) = half.crew(1)
        seconds = 0.5 if self.quick else 1.0
        found = worker.ask(
            "shares", address=address, count=SHARERS, seconds=seconds, warm=seconds / 4
        )
        if not found["median"]:
            raise Failure("most of the clients got no reply")
        return {
            "shares_least": found["least"],
            "shares_median": found["median"],
            "shares_ratio": found["least"] / found["median"],
            "shares_longest": found["longest"] * 1e6,
        }


class Delivery(Measurement):
    name = "delivery"
    title = "a message to one subscriber"
    columns = ("delivery", "delivery_alone", "delivery_get")
    compared = "delivery"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.serve(contender)
        workers = half.crew(2)
        ask_all(workers, "open", **half.opening(contender, address))
        seconds = 0.1 if self.quick else 0.3
        workers[0].send("delivery", seconds=seconds, warm=seconds / 4)
        workers[1].send("return")
        found, _ = (worker.receive() for worker in workers)
        ask_all(workers, "close")
        return {
            "delivery": found["delivery"],
            "delivery_alone": found["alone"],
            "delivery_get": found["get"],
        }


class Fanout(Measurement):
    name = "fanout"
    title = f"{SUBSCRIBERS} subscribers of one channel"
    share = 0.6
    columns = ("fanout1", "fanout1_idle", "fanout10", "fanout10_idle")
    compared = "fanout1"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        address = half.serve(contender)
        (worker,) = half.crew(1)
        results = {}
        for count in (1, 10):
            seconds = 0.3 if self.quick else 1.0
            asked = {"address": address, "count": SUBSCRIBERS, "under_way": count}
            found = worker.ask("fanout", seconds=seconds, **asked)
            results[f"fanout{count}"] = found["rate"]
            results[f"fanout{count}_idle"] = found["idle"]
        return results


class Waiting(Memory):
    name = "waiting"
    title = f"{WAITERS} clients that wait in BLPOP"
    columns = ("waiting_memory", "waiting_processor")
    compared = "waiting_memory"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        with self._server(half, contender) as (address, pid, worker):
            worker.ask("wait", address=address, count=1)
            before = self._settled(pid)
            worker.ask("wait", address=address, count=WAITERS)
            after = self._settled(pid)
            started, used = time.monotonic(), self._processor_time(pid)
            time.sleep(1.0 if self.quick else 3.0)
            used = self._processor_time(pid) - used
            taken = time.monotonic() - started
            worker.ask("wait", address=address, count=0)
        return {
            "waiting_memory": (after - before) / 1e6,
            "waiting_processor": 100 * used / taken,
        }

    def _processor_time(self, pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Idle(Memory):
    name = "idle"
    title = f"{CROWD} clients that are connected and idle"
    share = 0.3
    columns = ("idle_memory",)
    compared = "idle_memory"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        with self._server(half, contender) as (address, pid, worker):
            worker.ask("idle", address=address, count=1)
            before = self._settled(pid)
            worker.ask("idle", address=address, count=CROWD)
            after = self._settled(pid)
            worker.ask("idle", address=address, count=0)
        return {"idle_memory": (after - before) / 1e3 / CROWD}


class Kept(Measurement):
    name = "kept"
    title = "SET with --db, of the rate without it"
    share = 0.6
    columns = ("kept1", "kept50", "kept50x16")
    compared = "kept50"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        if contender.service not in half.projects:
            return {}
        results = {}
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            addresses = []
            for options in ((), ("--db", os.path.join(folder, "kept.db"))):
                addresses.append(half.pipe(f"{contender.service}-kept{len(options)}"))
                program = half.start(contender.service, addresses[-1], *options)
                stack.callback(program.stop)
                program.wait_ready()
            for column, clients, in_flight, requests in (
                ("kept1", 1, 1, 25_000), ("kept50", 50, 1, 60_000), ("kept50x16", 50, 16, 300_000),
            ):  # fmt: skip
                plain, kept = (
                    self._rate(half, each, clients, in_flight, requests) for each in addresses
                )
                results[column] = kept / plain
        return results

    def _rate(self, half: Half, address: str, clients: int, in_flight: int, requests: int) -> float:
        argv = [half.redis_benchmark, "-s", address, "-t", "set", "-r", "100000", "--csv"]
        argv += ["-c", str(clients), "-P", str(in_flight), "-n", str(requests)]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
            check=True,
        )  # fmt: skip
        (row,) = csv.DictReader(done.stdout.splitlines())
        return float(row["rps"])


LOADING = """
import sys, time
sys.path.insert(0, {project!r})
import pipecache
keyspace = getattr(pipecache, "Keyspace", None) or pipecache.Store
store = keyspace()
kept = pipecache.Persistence({path!r}, store)
started = time.perf_counter()
kept.open()
print(time.perf_counter() - started)
if not len(store):
    for number in range({count}):
        store.replace(b"key:%07d" % number, b"val:%07d" % number)
    kept._save()
kept.stop(30)
"""
SELECTING = """
import sqlite3, time
database = sqlite3.connect({path!r})
started = time.perf_counter()
rows = {{key: rest for key, *rest in database.execute("SELECT * FROM keys")}}
print(time.perf_counter() - started)
assert len(rows) == {count}
"""


class Load(Measurement):
    name = "load"
    title = "a file of a million keys"
    share = 0.3
    columns = ("load", "load_bare", "load_ratio")
    compared = "load"

    def visit(self, half: Half, contender: Contender) -> dict[str, float]:
        if contender.service not in half.projects:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            facts = {
                "project": str(half.projects[contender.service]),
                "path": os.path.join(folder, "load.db"),
                "count": FILL,
            }
            self._time(half, LOADING.format(**facts))  # this fills the file cache
            bare = self._time(half, SELECTING.format(**facts))
            load = self._time(half, LOADING.format(**facts))
        return {"load": load, "load_bare": bare, "load_ratio": load / bare}

    def _time(self, half: Half, code: str) -> float:
        process = half.popen("-c", code)
        out, error = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise Failure(error.strip().rpartition("\n")[2])
        return float(out)


MEASUREMENTS: tuple[type[Measurement], ...] = (
    Trips,
    Together,
    Apart,
    Clients,
    Bench1,
    Bench50,
    Bench50x16,
    Shares,
    Delivery,
    Fanout,
    Waiting,
    Idle,
    Kept,
    Load,
    Startup,
    Crowd,
    Memory,
)
HALVES: tuple[type[Half], ...] = (Linux, Windows)


# ------------------------------------------------------------------------------------------
# A run
# ------------------------------------------------------------------------------------------


class Progress:
    """A line that is overwritten on a terminal; elsewhere one line every ten seconds."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self._again = 0.0

    def show(self, round_: str, contender: str) -> None:
        share = self.done / self.steps if self.steps else 1.0
        text = f"[{share:4.0%}] {round_}"
        if self.live:
            text = f"{text}: {contender}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() > self._again:
            taken = time.monotonic() - self.started
            print(f"{text} ({taken:.0f} s)", file=sys.stderr, flush=True)
            self._again = time.monotonic() + 10

    def say(self, text: str) -> None:
        clear = "\r\x1b[K" if self.live else ""
        print(clear + text, file=sys.stderr, flush=True)


@dataclass
class Plan:
    """The measurements of one run."""

    halves: Sequence[type[Half]]
    measurements: Sequence[Measurement]
    rounds: int
    rivals: Sequence[Path]

    def rounds_of(self, measurement: Measurement) -> int:
        return max(1, round(self.rounds * measurement.share))

    def entrants(self, half: Half | type[Half], measurement: Measurement) -> list[Contender]:
        return [
            one
            for one in half.contenders
            if measurement.name in one.measured and measurement.name in half.possible
        ]

    def steps(self) -> int:
        """Return the number of measurements in all rounds."""
        return sum(
            (len(self.entrants(half, one)) + len(self.rivals)) * self.rounds_of(one)
            for half in self.halves
            for one in self.measurements
            if self.entrants(half, one)
        )


def run(plan: Plan, results: Results) -> None:
    progress = Progress(plan.steps())
    for kind in plan.halves:
        progress.say(f"{kind.title}: setting up")
        try:
            with kind(plan.rivals) as half:
                results.versions[kind.name] = half.versions()
                results.titles.update({(kind.name, one.name): one.title for one in half.contenders})
                for measurement in plan.measurements:
                    measure(plan, half, measurement, results, progress)
        except provision.Unavailable as error:
            results.skipped[kind.name] = str(error)
            progress.say(f"{kind.title}: SKIPPED, {error}")
    progress.say(f"measured in {time.monotonic() - progress.started:.0f} s")


def measure(
    plan: Plan, half: Half, measurement: Measurement, results: Results, progress: Progress
) -> None:
    """Run all rounds of one measurement; each round begins with another contender."""
    entrants = plan.entrants(half, measurement)
    rounds = plan.rounds_of(measurement)
    for number in range(rounds):
        start = number * len(entrants) // rounds
        for contender in entrants[start:] + entrants[:start]:
            progress.show(
                f"{half.title}: {measurement.title}, round {number + 1} of {rounds}",
                contender.title,
            )
            progress.done += 1
            where = (half.name, contender.name, measurement.name)
            if where in results.failures:
                continue
            try:
                for metric, value in measurement.visit(half, contender).items():
                    results.add(half.name, contender.name, metric, number, value)
            except Failure as error:
                results.failures[where] = str(error)
                progress.say(f"{half.title}: {contender.title}: {measurement.name}: {error}")
                half.dismiss()


# ------------------------------------------------------------------------------------------
# The report
# ------------------------------------------------------------------------------------------


def number_text(value: float | None) -> str:
    """Return a number with three significant digits."""
    if value is None:
        return "-"
    for bound, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if abs(value) >= bound:
            return f"{value:,.{digits}f}"
    return f"{value:.3f}"


def middle(values: Sequence[float]) -> tuple[float, float]:
    """Return the quartiles."""
    several = values if len(values) > 1 else [*values, *values]
    low, _, high = statistics.quantiles(several, n=4, method="inclusive")
    return low, high


def grid(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Return aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:])]
        yield "  ".join([f"  {first:<{widths[0]}}", *cells]).rstrip()


def table(half: type[Half], measurement: Measurement, results: Results) -> Iterator[str]:
    """Return the lines of one measurement of one half; no lines without results."""
    titles = {name: title for (where, name), title in results.titles.items() if where == half.name}
    columns = [
        metric
        for metric in measurement.columns
        if any(results.values(half.name, name, metric) for name in titles)
    ]
    if not columns:
        return
    compared = measurement.compared if measurement.compared in columns else ""
    heads = [METRICS[metric].head for metric in columns]
    rows = [["", *heads, *(["ours / this"] if compared else [])]]
    for name, title in titles.items():
        medians = [results.median(half.name, name, metric) for metric in columns]
        if any(median is not None for median in medians):
            row = [title, *map(number_text, medians)]
            if compared:
                ratios = results.ratios(half.name, compared, (name,))
                row.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
            rows.append(row)
    rounds = max(len(results.samples.get((half.name, name, columns[0]), ())) for name in titles)
    yield f"{half.title}: {measurement.title} (rounds: {rounds})"
    yield from grid(rows)
    if compared:
        better = "more" if METRICS[compared].more_is_better else "less"
        yield f"  ours / this: {METRICS[compared].title}, median of the rounds; {better} is better"
    if measurement.note:
        yield f"  {measurement.note}"
    for (where, name, what), failure in results.failures.items():
        if (where, what) == (half.name, measurement.name):
            yield f"  NOT MEASURED: {titles[name]}: {failure}"
    yield ""


def targets_table(results: Results) -> Iterator[str]:
    titles = {half.name: half.title for half in HALVES}
    rows = [["", "target", "reached", "middle half", "", "one processor", "two processors"]]
    for target in TARGETS:
        sign = ">=" if target.at_least else "<="
        row = [f"{titles[target.half]}: {target.text}", f"{sign} {target.bound:.2f}"]
        reached = results.reached(target)
        if reached:
            median = statistics.median(reached)
            low, high = middle(reached)
            verdict = "yes" if target.met(median) else "NO"
            row += [f"{median:.3f}", f"{low:.3f} to {high:.3f}", verdict]
        else:
            row += ["-", "-", "not measured"]
        row += [number_text(results.held(target, layout)) for layout in ("together", "apart")]
        rows.append(row)
    yield "Targets (medians; ratios are pipecache / the other, taken in each round)"
    yield from grid(rows)


def report(plan: Plan, results: Results) -> str:
    lines: list[str] = [""]
    for half in plan.halves:
        if half.name in results.skipped:
            lines += [f"{half.title}: SKIPPED, {results.skipped[half.name]}", ""]
        for measurement in plan.measurements:
            lines += table(half, measurement, results)
        versions = results.versions.get(half.name, {})
        if versions:
            lines += [", ".join(f"{name} {version}" for name, version in versions.items()), ""]
    lines += targets_table(results)
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
    }


def as_json(plan: Plan, results: Results) -> dict[str, Any]:
    """Return all results, including the samples."""
    found: dict[str, Any] = {}
    for (half, contender, metric), samples in results.samples.items():
        values = results.values(half, contender, metric)
        low, high = middle(values)
        found.setdefault(half, {}).setdefault(contender, {})[metric] = {
            "unit": METRICS[metric].unit,
            "median": statistics.median(values),
            "middle_half": [low, high],
            "samples": samples,
        }
    targets = []
    for target in TARGETS:
        reached = results.reached(target)
        median = statistics.median(reached) if reached else None
        targets.append(
            {
                "half": target.half,
                "metric": target.metric,
                "of": list(target.peers),
                "over": target.over or None,
                "at_least" if target.at_least else "at_most": target.bound,
                "reached": median,
                "met": None if median is None else target.met(median),
                "on_one_processor": results.held(target, "together"),
                "on_two_processors": results.held(target, "apart"),
            }
        )
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": results.versions,
        "rounds": plan.rounds,
        "results": found,
        "targets": targets,
        "not_measured": {" ".join(where): why for where, why in results.failures.items()},
        "skipped": results.skipped,
    }


#: The panels of the chart: half, metric, heading.
PANELS = (
    ("wine", "get", "One client, GET round trip, Windows CPython under Wine"),
    ("linux", "get", "One client, GET round trip, Linux"),
    ("wine", "rate8", "8 clients at once, Windows CPython under Wine"),
    ("linux", "rate8", "8 clients at once, Linux"),
    ("linux", "bench50_get", "redis-benchmark, GET, 50 clients, Linux"),
    ("linux", "bench50x16_get", "The same, each with 16 commands under way, Linux"),
    ("linux", "memory", "Memory for a million small keys, Linux"),
)


def panels(results: Results) -> Iterator[chart.Panel]:
    for half, metric, title in PANELS:
        bars = []
        for (where, name, what), _ in results.samples.items():
            if (where, what) == (half, metric):
                median = results.median(half, name, metric)
                low, high = middle(results.values(half, name, metric))
                if median is not None:
                    ours = name == "pipecache"
                    label = results.titles[half, name]
                    bars.append(chart.Bar(label, median, number_text(median), low, high, ours))
        if bars:
            more = METRICS[metric].more_is_better
            bars.sort(key=lambda bar: bar.value, reverse=more)
            unit = METRICS[metric].unit.replace("1/s", "requests a second")
            yield chart.Panel(title, f"{unit}, {'more' if more else 'less'} is better", bars)


def main(argv: Sequence[str] | None = None) -> int:
    kinds = [*(half.name for half in HALVES), *(one.name for one in MEASUREMENTS)]
    parser = argparse.ArgumentParser(
        description="Measure pipecache and comparable programs in one run.",
        epilog="The docstring of this file describes each measurement.",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="number of rounds (10, with --quick 3)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure for about 4 minutes instead of 13"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=kinds,
        default=[],
        help="run only on these platforms (linux, wine) or only these measurements (default: all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write all results to")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="file to write a bar chart to")
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of another checkout of this project to compare with",
    )
    options = parser.parse_args(argv)
    plan = Plan(
        [one for one in HALVES if one.name in options.only] or HALVES,
        [
            one(options.quick)
            for one in MEASUREMENTS
            if one.name in options.only or not {m.name for m in MEASUREMENTS} & {*options.only}
        ],
        options.rounds or (3 if options.quick else 10),
        [folder.resolve() for folder in options.against],
    )
    results = Results()
    try:
        run(plan, results)
    except KeyboardInterrupt:
        print("\ninterrupted: results so far", file=sys.stderr)
    print(report(plan, results))
    if options.json:
        text = json.dumps(as_json(plan, results), indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(chart.svg(list(panels(results))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
