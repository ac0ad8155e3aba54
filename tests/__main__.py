"""The one test command: ``python tests``, on any system.

Run the suite on this interpreter and, unless this is Windows, on Windows CPython 3.8 and
3.13 under Wine. On Linux, fuzz the protocol too. As many runs as there are processors, and at
least two, work at the same time. Each run downloads what is missing (see tools/provision.py).
The last line is "N passed, N failed, N skipped", the sum of all runs; the exit status is 0 if
no test failed, else 1. Tests that cannot be set up are reported and counted as skipped, or as
failed if CI is set in the environment.
"""

from __future__ import annotations

import os
import sys

# Python puts this folder first on the path, where tests/platform would hide the module platform.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import concurrent.futures
import contextlib
import faulthandler
import json
import platform
import re
import signal
import subprocess
import threading
import time
import traceback
import unittest
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

from tests.tools import provision

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = ROOT / "tests" / "clients"
CSHARP = CLIENTS / "csharp.cs"

#: Seconds that one test may take, and one run of the suite.
TEST_LIMIT = 120
TIME_LIMIT = 600
#: Seconds that the fuzzer runs here, and the exit status with which it reports that it cannot.
FUZZING = 30
NOT_SET_UP = 2
#: Seconds between two lines about the progress of the runs.
PROGRESS = 20

#: The Debian packages of go-redis and of go-winio's pipe.
GO_REDIS = ("golang-gopkg-redis.v5-dev", "golang-golang.zx2c4-wireguard-dev")

#: The byte that begins a message of a run to this program; a line feed ends the message.
#: No test prints it.
MARK = b"\x1e"
MESSAGE = re.compile(MARK + rb"([^\n]*)\n")


class Result(NamedTuple):
    """The outcome of one run, or of several."""

    passed: int
    failed: int
    skipped: Counter[str]

    def __str__(self) -> str:
        skipped = sum(self.skipped.values())
        return f"{self.passed} passed, {self.failed} failed, {skipped} skipped"


# ---------------------------------------------------------------------------
# The suite, inside the interpreter under test
# ---------------------------------------------------------------------------


def send_message(**message: object) -> None:
    """Send a message to the program that started this run."""
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout.buffer.write(MARK + json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


class TestResult(unittest.TextTestResult):
    """A result that counts each test once, however many of its subtests failed."""

    #: The number of tests that are to be run.
    total = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.passed: set[str] = set()
        self._reported = 0.0

    def startTest(self, test: unittest.TestCase) -> None:
        # A test that hangs prints the tracebacks of all threads and ends the run.
        faulthandler.dump_traceback_later(TEST_LIMIT, exit=True)
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        now = time.monotonic()
        if now - self._reported > 1:
            self._reported = now
            failed = len(self.failures) + len(self.errors)
            send_message(done=self.testsRun, total=self.total, failed=failed)

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.passed.add(test.id())

    def counts(self) -> Result:
        """Return the number of passed and of failed tests, and the reasons of skipped ones."""

        def name(test: Any) -> str:
            return str(getattr(test, "test_case", test).id())

        failed = {name(test) for test, _ in [*self.failures, *self.errors]}
        failed.update(name(test) for test in self.unexpectedSuccesses)
        reasons = {name(test): reason for test, reason in self.skipped}
        skipped = Counter(reasons[test] for test in reasons.keys() - failed)
        return Result(len(self.passed - failed - reasons.keys()), len(failed), skipped)


def run_suite(pattern: str | None, verbosity: int) -> int:
    """Run the suite here and send its result as a message."""
    faulthandler.enable()
    loader = unittest.TestLoader()
    if pattern:
        loader.testNamePatterns = [pattern if "*" in pattern else f"*{pattern}*"]
    suite = loader.discover(str(ROOT / "tests"), "test_*.py", str(ROOT))
    TestResult.total = suite.countTestCases()
    runner = unittest.TextTestRunner(verbosity=verbosity, resultclass=TestResult)
    result = runner.run(suite)
    faulthandler.cancel_dump_traceback_later()
    assert isinstance(result, TestResult)
    counts = result.counts()
    send_message(result=counts)
    return int(counts.failed > 0)


# ---------------------------------------------------------------------------
# The runs
# ---------------------------------------------------------------------------


class RunFailed(Exception):
    """A run has no result; the message says why."""


class Run:
    """A run of tests in a separate process, whose output is kept or shown.

    :param shown: True to show the output as it arrives, False to keep it in `output`.

    Subclasses define `title` and `execute`.
    """

    title = ""

    def __init__(self, options: argparse.Namespace, shown: bool) -> None:
        self.options = options
        self.output = bytearray()
        self.seconds = 0.0
        #: The state of the run, for lines about the progress.
        self.state = "waiting"
        self._shown = shown
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._report: Any = None

    def execute(self) -> Result:
        """Set the run up, run it and return its result."""
        raise NotImplementedError

    def run(self) -> Result:
        """Return the result of the run; an exception is one failure."""
        start = time.monotonic()
        self.state = "being set up"
        try:
            result = self.execute()
        except provision.Unavailable as error:
            self.say(str(error))
            result = Result(0, 0, Counter([f"{provision.NOT_SET_UP}{error}"]))
        except RunFailed as error:
            self.say(f"\n{error}")
            result = Result(0, 1, Counter())
        except Exception:
            self.say(traceback.format_exc())
            result = Result(0, 1, Counter())
        if not any(result) and not self.options.k:
            self.say("No test was found.")
            result = Result(0, 1, Counter())
        self.seconds = time.monotonic() - start
        return result

    def say(self, text: str) -> None:
        """Add a line to the output."""
        self._print(text.encode() + b"\n")

    def stop(self) -> None:
        """End the process of the run, now or as soon as it has started."""
        self._stopped = True
        if self._process:
            self._process.kill()

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        """Copy the output of a process until the process ends, and return its exit status.

        :raises RunFailed: if the process does not end in time.
        """
        self._process = process
        if self._stopped:
            process.kill()
        self.state = "running"
        reader = threading.Thread(target=self._copy, args=(process,), daemon=True)
        reader.start()
        try:
            status = process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"The run did not end within {TIME_LIMIT} s.") from None
        # A program that the run left behind may keep the pipe open.
        reader.join(5)
        return status

    def finish_suite(self, process: subprocess.Popen[bytes]) -> Result:
        """Return the result that a process with the suite has sent.

        :raises RunFailed: if the process ends without one.
        """
        status = self.finish(process)
        if self._report is None:
            raise RunFailed(f"The run ended early, with exit status {status}.")
        passed, failed, skipped = self._report
        return Result(passed, failed, Counter(skipped))

    def _copy(self, process: subprocess.Popen[bytes]) -> None:
        """Copy the output of a process, except for its messages, which are evaluated."""
        assert process.stdout
        rest = b""
        while True:
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            rest = MESSAGE.sub(self._receive, rest + chunk)
            shown, mark, message = rest.partition(MARK)
            rest = mark + message
            self._print(shown.replace(b"\r\n", b"\n"))
        self._print(rest)

    def _receive(self, match: re.Match[bytes]) -> bytes:
        message = json.loads(match[1])
        if "result" in message:
            self._report = message["result"]
        else:
            self.state = "{done} of {total} tests".format_map(message)
            if message["failed"]:
                self.state += " ({failed} failed)".format_map(message)
        return b""

    def _print(self, data: bytes) -> None:
        if self._shown:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            self.output += data


def say(text: str = "") -> None:
    print(text, flush=True)


def suite_arguments(options: argparse.Namespace) -> list[str]:
    arguments = ["--suite"]
    if options.k:
        arguments += ["-k", options.k]
    if options.verbose:
        arguments += ["-v"]
    return arguments


def clients(python: str, path: Callable[[Path], str]) -> Iterator[tuple[str, str]]:
    """Yield the environment variables by which the tests on Windows find foreign programs.

    `path` turns a path of this system into one of the system the tests run on.
    """
    wanted: Mapping[str, Callable[[], Path]] = {
        "PIPECACHE_PYWIN32": lambda: provision.pywin32(python),
        "PIPECACHE_NODE": provision.windows_node,
        "PIPECACHE_C_CLIENT": lambda: provision.c_program(CLIENTS / "pipe.c"),
        "PIPECACHE_GO_CLIENT": lambda: provision.go_program(CLIENTS / "pipe.go"),
        "PIPECACHE_GO_REDIS": lambda: provision.go_program(CLIENTS / "redis_client.go", GO_REDIS),
        "PIPECACHE_DOTNET": lambda: provision.dotnet(windows=True),
        "PIPECACHE_CSHARP_CLIENT": lambda: provision.csharp_program(CSHARP, windows=True),
        "PIPECACHE_NODE_MODULES": node_modules,
        "PIPECACHE_HYPOTHESIS": lambda: provision.hypothesis(python),
        "PIPECACHE_REDIS_PY": lambda: provision.redis_py(python),
        "PIPECACHE_EMBEDDABLE": lambda: embeddable_package(python),
    }
    return provided(wanted, path)


def provided(
    wanted: Mapping[str, Callable[[], Path]], path: Callable[[Path], str]
) -> Iterator[tuple[str, str]]:
    """Yield each variable with its value, or its `_UNAVAILABLE` with the reason for having none."""
    for name, provide in wanted.items():
        try:
            yield name, path(provide())
        except (provision.Unavailable, FileNotFoundError) as error:
            yield f"{name}_UNAVAILABLE", str(error)


def embeddable_package(python: str) -> Path:
    """Return the folder of the embeddable package of this Python version, or else of 3.13."""
    version = python if python in provision.WINDOWS_PYTHONS else "3.13"
    return provision.embeddable_python(version).parent


def node_modules() -> Path:
    """Return the folder of the npm clients of Redis: an older and the newest version of each."""
    ioredis = ["ioredis@5.9.2", "ioredis6@npm:ioredis@6.0.0"]
    node_redis = ["redis@4.7.0", "redis6@npm:redis@6.3.1"]
    return provision.npm("redis", ioredis + node_redis) / "node_modules"


class NativeRun(Run):
    """The suite on this interpreter."""

    title = f"this Python, {platform.python_version()} on {sys.platform}"

    def execute(self) -> Result:
        version = "{}.{}".format(*sys.version_info)
        if sys.platform == "win32":
            extra = dict(clients(version, str))
        else:
            wanted: Mapping[str, Callable[[], Path]] = {
                "PIPECACHE_CSHARP_CLIENT": lambda: provision.csharp_program(CSHARP),
                "PIPECACHE_DOTNET": provision.dotnet,
                "PIPECACHE_HYPOTHESIS": lambda: provision.hypothesis(version),
                "PIPECACHE_NODE_MODULES": node_modules,
                "PIPECACHE_REDIS_BENCHMARK": lambda: Path(provision.redis_benchmark()),
                "PIPECACHE_REDIS_CLI": lambda: Path(provision.redis_cli()),
                "PIPECACHE_REDIS_PY": lambda: provision.redis_py(version),
                "PIPECACHE_REDIS_SERVER": lambda: Path(provision.redis_server()),
            }
            extra = dict(provided(wanted, str))
        process = self.start([str(ROOT / "tests"), *suite_arguments(self.options)], extra)
        try:
            return self.finish_suite(process)
        finally:
            self.end(process)

    @staticmethod
    def start(arguments: Sequence[str], extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start this Python in a new session."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **extra},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        """End a process and whatever its tests started and left behind."""
        process.kill()
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class FuzzRun(NativeRun):
    """The fuzzer of the protocol, for a short time."""

    title = f"fuzzing the protocol for {FUZZING} s"

    def execute(self) -> Result:
        program = ROOT / "tests" / "tools" / "fuzz_wire.py"
        process = self.start([str(program), "--seconds", str(FUZZING)], {})
        try:
            status = self.finish(process)
        finally:
            self.end(process)
        if status == NOT_SET_UP:
            raise provision.Unavailable("the fuzzer could not be set up")
        return Result(int(status == 0), int(status != 0), Counter())


class WineRun(Run):
    """The suite on a Windows CPython, in a separate Windows."""

    version = ""

    def execute(self) -> Result:
        with provision.Wine() as wine:
            python = wine.python(self.version)
            process = wine.popen(
                [python, wine.path(ROOT / "tests"), *suite_arguments(self.options)],
                env=dict(clients(self.version, wine.path)),
                cwd=ROOT,
                stderr=subprocess.STDOUT,
            )
            try:
                return self.finish_suite(process)
            finally:
                process.kill()
                process.wait()


class WineRun38(WineRun):
    version = "3.8"
    title = f"Windows CPython {version} under Wine"


class WineRun313(WineRun):
    version = "3.13"
    title = f"Windows CPython {version} under Wine"


def run_all(runs: Mapping[str, Run]) -> dict[str, Result]:
    """Return the result of each run; as many as there are processors go on at the same time.

    :raises KeyboardInterrupt: after all runs have ended.
    """
    results = {}
    start = time.monotonic()
    next_line = start + PROGRESS
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        futures = {pool.submit(run.run): name for name, run in runs.items()}
        pending = set(futures)
        try:
            while pending:
                # Windows sees Ctrl+C only between waits.
                done, pending = concurrent.futures.wait(
                    pending, 0.25, concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    name = futures[future]
                    results[name] = future.result()
                    show(runs[name], str(results[name]))
                if time.monotonic() > next_line and len(runs) > 1:
                    next_line += PROGRESS
                    states = sorted(
                        f"{futures[each]} {runs[futures[each]].state}" for each in pending
                    )
                    say(f"[{time.monotonic() - start:.0f} s] {', '.join(states)}")
        except BaseException:
            for future, name in futures.items():
                future.cancel()
                runs[name].stop()
            raise
    return {name: results[name] for name in runs}


def show(run: Run, result: str) -> None:
    """Print the output of a run, and its result."""
    if run.output:
        say(f"\n===== {run.title} =====")
        sys.stdout.buffer.write(run.output)
        if not run.output.endswith(b"\n"):
            say()
        run.output.clear()
    say(f"----- {run.title}: {result} ({run.seconds:.0f} s) -----")


def main() -> int:
    kinds: dict[str, type[Run]] = {"native": NativeRun}
    if sys.platform != "win32":
        # The runs that take longest start first.
        kinds = {"3.8": WineRun38, "native": NativeRun, "3.13": WineRun313}
    if sys.platform == "linux":
        kinds["fuzz"] = FuzzRun
    parser = argparse.ArgumentParser(prog="python tests", description=__doc__.split("\n\n")[1])
    parser.add_argument("--only", choices=list(kinds), help="do only this run (default: all)")
    parser.add_argument("-k", metavar="PATTERN", help="run only tests whose name contains this")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the name of each test")
    parser.add_argument("--suite", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.suite:
        return run_suite(options.k, 2 if options.verbose else 1)

    if options.only:
        kinds = {options.only: kinds[options.only]}
    elif options.k:  # it names tests, which the fuzzer has none of
        kinds.pop("fuzz", None)
    runs = {name: kind(options, shown=len(kinds) == 1) for name, kind in kinds.items()}
    say("Running " + "; ".join(run.title for run in runs.values()) + ".")
    try:
        return conclude(run_all(runs))
    except KeyboardInterrupt:
        for run in runs.values():
            if run.output:
                show(run, run.state)
        return 1


def conclude(results: Mapping[str, Result]) -> int:
    """Print the reasons of skipped tests and the sum of all results; return the exit status."""
    skipped: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for name, result in results.items():
        skipped.update(result.skipped)
        for reason in result.skipped:
            where.setdefault(reason, []).append(name)
    if skipped:
        say("\nSkipped:")
    for reason, count in skipped.most_common():
        say(f"  {count:4} {reason} ({', '.join(where[reason])})")
    failed = sum(result.failed for result in results.values())
    if os.environ.get("CI"):
        # Everything can be set up there, so a test skipped for want of set-up is a lost test.
        for reason in [reason for reason in skipped if reason.startswith(provision.NOT_SET_UP)]:
            failed += skipped.pop(reason)
    total = Result(sum(result.passed for result in results.values()), failed, skipped)
    say(f"\n{total}")
    return int(failed > 0 or not (total.passed or skipped))


if __name__ == "__main__":
    sys.exit(main())
