"""The one test command: ``python tests``, on any system.

It runs the suite on this interpreter and then, where this is not Windows, on Windows
CPython 3.8 and 3.13 under Wine, fetching what is missing (see ``provision.py``). The
last line is ``N passed, N failed, N skipped``, all runs added up; the exit status is 0
or 1. What cannot be set up is said aloud and counts as skipped, or as failed where `CI`
is set in the environment.
"""

from __future__ import annotations

import os
import sys

# Python puts this folder first on the path, where tests/platform would hide the module platform.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import contextlib
import faulthandler
import json
import platform
import signal
import subprocess
import threading
import time
import unittest
from collections import Counter
from pathlib import Path
from typing import IO, Any, Callable, Iterator, Mapping, NamedTuple

from tests.tools import provision

ROOT = Path(__file__).resolve().parent.parent

#: Seconds that one test may take, and one run of the suite.
TEST_LIMIT = 120
TIME_LIMIT = 600
#: Seconds that the fuzzer runs here, and its exit status where it cannot.
FUZZING = 30
NOT_SET_UP = 2

#: The Debian packages of go-redis and of go-winio's pipe.
GO_REDIS = ("golang-gopkg-redis.v5-dev", "golang-golang.zx2c4-wireguard-dev")

#: Comes before the result of a run in its output, and in nothing else that it prints.
MARK = b"\x1e"


class Result(NamedTuple):
    """What came out of one run, or of several."""

    passed: int
    failed: int
    skipped: Counter[str]

    def __str__(self) -> str:
        skipped = sum(self.skipped.values())
        return f"{self.passed} passed, {self.failed} failed, {skipped} skipped"


# ---------------------------------------------------------------------------
# The suite, inside the interpreter under test
# ---------------------------------------------------------------------------


class TestResult(unittest.TextTestResult):
    """Counts each test once, however many of its subtests failed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.passed: set[str] = set()

    def startTest(self, test: unittest.TestCase) -> None:
        # One that hangs is seen in the tracebacks of all threads, and ends the run.
        faulthandler.dump_traceback_later(TEST_LIMIT, exit=True)
        super().startTest(test)

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self.passed.add(test.id())

    def counts(self) -> Result:
        """Passed, failed, and the reasons of the skipped ones."""

        def name(test: Any) -> str:
            return str(getattr(test, "test_case", test).id())

        failed = {name(test) for test, _ in [*self.failures, *self.errors]}
        failed.update(name(test) for test in self.unexpectedSuccesses)
        reasons = {name(test): reason for test, reason in self.skipped}
        skipped = Counter(reasons[test] for test in reasons.keys() - failed)
        return Result(len(self.passed - failed - reasons.keys()), len(failed), skipped)


def run_suite(pattern: str | None, verbosity: int) -> int:
    """Run the suite here and print the result as JSON behind a mark."""
    faulthandler.enable()
    loader = unittest.TestLoader()
    if pattern:
        loader.testNamePatterns = [pattern if "*" in pattern else f"*{pattern}*"]
    suite = loader.discover(str(ROOT / "tests"), "test_*.py", str(ROOT))
    runner = unittest.TextTestRunner(verbosity=verbosity, resultclass=TestResult)
    result = runner.run(suite)
    faulthandler.cancel_dump_traceback_later()
    assert isinstance(result, TestResult)
    counts = result.counts()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout.buffer.write(MARK + json.dumps(counts).encode() + b"\n")
    sys.stdout.flush()
    return int(counts.failed > 0)


# ---------------------------------------------------------------------------
# The runs
# ---------------------------------------------------------------------------


def say(text: str = "") -> None:
    print(text, flush=True)


def unavailable(reason: str) -> Result:
    """The result of a run that could not be set up."""
    say(reason)
    return Result(0, 0, Counter([provision.NOT_SET_UP + reason]))


def copy_output(source: IO[bytes], report: list[bytes]) -> None:
    """Show what a run prints as it comes, up to the mark; the rest is its report."""
    marked = False
    while True:
        chunk = os.read(source.fileno(), 65536)
        if not chunk:
            return
        if not marked:
            shown, mark, chunk = chunk.partition(MARK)
            marked = bool(mark)
            sys.stdout.buffer.write(shown.replace(b"\r\n", b"\n"))
            sys.stdout.flush()
        report.append(chunk)


def finish(process: subprocess.Popen[bytes]) -> Result:
    """Show the output of a run until it ends, and return its result.

    A run that crashes, or does not end in time, is one failure.
    """
    report: list[bytes] = []
    assert process.stdout
    reader = threading.Thread(target=copy_output, args=(process.stdout, report), daemon=True)
    reader.start()
    try:
        process.wait(TIME_LIMIT)
    except subprocess.TimeoutExpired:
        say(f"\nThe run was still going on after {TIME_LIMIT} s and was ended.")
        return Result(0, 1, Counter())
    # A program that the run left behind may keep the pipe open.
    reader.join(5)
    try:
        passed, failed, skipped = json.loads(b"".join(report))
    except ValueError:
        say(f"\nThe run ended early, with exit status {process.returncode}.")
        return Result(0, 1, Counter())
    return Result(passed, failed, Counter(skipped))


def suite_arguments(options: argparse.Namespace) -> list[str]:
    arguments = ["--suite"]
    if options.k:
        arguments += ["-k", options.k]
    if options.verbose:
        arguments += ["-v"]
    return arguments


def clients(python: str, path: Callable[[Path], str]) -> Iterator[tuple[str, str]]:
    """The environment variables through which Windows tests find programs nobody here wrote.

    `path` turns a path of this system into one of the system the tests run on.
    """
    sources = ROOT / "tests" / "clients"
    wanted: Mapping[str, Callable[[], Path]] = {
        "PIPECACHE_PYWIN32": lambda: provision.pywin32(python),
        "PIPECACHE_NODE": provision.windows_node,
        "PIPECACHE_C_CLIENT": lambda: provision.c_program(sources / "pipe.c"),
        "PIPECACHE_GO_CLIENT": lambda: provision.go_program(sources / "pipe.go"),
        "PIPECACHE_GO_REDIS": lambda: provision.go_program(sources / "redis_client.go", GO_REDIS),
        "PIPECACHE_NODE_MODULES": node_modules,
        "PIPECACHE_HYPOTHESIS": lambda: provision.hypothesis(python),
        "PIPECACHE_REDIS_PY": lambda: provision.redis_py(python),
        "PIPECACHE_EMBEDDABLE": lambda: embeddable_package(python),
    }
    return provided(wanted, path)


def provided(
    wanted: Mapping[str, Callable[[], Path]], path: Callable[[Path], str]
) -> Iterator[tuple[str, str]]:
    """Each variable with what it is to hold, or with the reason why it holds nothing."""
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
    """The npm clients of Redis: an older and the newest of either."""
    ioredis = ["ioredis@5.9.2", "ioredis6@npm:ioredis@6.0.0"]
    node_redis = ["redis@4.7.0", "redis6@npm:redis@6.3.1"]
    return provision.npm("redis", ioredis + node_redis) / "node_modules"


def run_native(options: argparse.Namespace) -> Result:
    """The suite on this interpreter."""
    version = "{}.{}".format(*sys.version_info)
    if sys.platform == "win32":
        extra = dict(clients(version, str))
    else:
        wanted = {
            "PIPECACHE_HYPOTHESIS": lambda: provision.hypothesis(version),
            "PIPECACHE_NODE_MODULES": node_modules,
            "PIPECACHE_REDIS_BENCHMARK": lambda: Path(provision.redis_benchmark()),
            "PIPECACHE_REDIS_CLI": lambda: Path(provision.redis_cli()),
            "PIPECACHE_REDIS_PY": lambda: provision.redis_py(version),
            "PIPECACHE_REDIS_SERVER": lambda: Path(provision.redis_server()),
        }
        extra = dict(provided(wanted, str))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests"), *suite_arguments(options)],
        cwd=ROOT,
        env={**os.environ, **extra},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return finish(process)
    finally:
        process.kill()
        if sys.platform != "win32":
            # With it goes whatever its tests started and left behind.
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_under_wine(version: str, options: argparse.Namespace) -> Result:
    """The suite on a Windows CPython, in a Windows of its own."""
    try:
        with provision.Wine() as wine:
            python = wine.python(version)
            process = wine.popen(
                [python, wine.path(ROOT / "tests"), *suite_arguments(options)],
                env=dict(clients(version, wine.path)),
                cwd=ROOT,
                stderr=subprocess.STDOUT,
            )
            try:
                return finish(process)
            finally:
                process.kill()
                process.wait()
    except provision.Unavailable as error:
        return unavailable(str(error))


def run_fuzzer(options: argparse.Namespace) -> Result:
    """The fuzzer of the wire protocol, for a short time; with -k, which names tests, not at all."""
    if options.k:
        return Result(0, 0, Counter())
    command = [
        sys.executable,
        str(ROOT / "tests" / "tools" / "fuzz_wire.py"),
        "--seconds",
        str(FUZZING),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == NOT_SET_UP:
        return unavailable("the fuzzer could not be set up")
    return Result(int(done.returncode == 0), int(done.returncode != 0), Counter())


def main() -> int:
    runs: Mapping[str, Callable[[argparse.Namespace], Result]] = {"native": run_native}
    if sys.platform == "linux":
        runs = {**runs, "fuzz": run_fuzzer}
    if sys.platform != "win32":
        runs = {
            **runs,
            "3.8": lambda options: run_under_wine("3.8", options),
            "3.13": lambda options: run_under_wine("3.13", options),
        }
    parser = argparse.ArgumentParser(prog="python tests", description=__doc__.split("\n\n")[1])
    parser.add_argument("--only", choices=list(runs), help="one run instead of all of them")
    parser.add_argument("-k", metavar="PATTERN", help="only tests whose name contains this")
    parser.add_argument("-v", "--verbose", action="store_true", help="name each test")
    parser.add_argument("--suite", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.suite:
        return run_suite(options.k, 2 if options.verbose else 1)

    results = {}
    for name in [options.only] if options.only else runs:
        title = f"Windows CPython {name} under Wine"
        if name == "fuzz":
            title = f"fuzzing the protocol for {FUZZING} s"
        if name == "native":
            title = f"this Python, {platform.python_version()} on {sys.platform}"
        say(f"\n===== {title} =====")
        start = time.monotonic()
        results[name] = runs[name](options)
        if not any(results[name]) and not options.k:
            say("No test was found.")
            results[name] = Result(0, 1, Counter())
        say(f"----- {title}: {results[name]} ({time.monotonic() - start:.0f} s) -----")
    return conclude(results)


def conclude(results: Mapping[str, Result]) -> int:
    """Say why tests were skipped and how it all ended; the exit status."""
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
        # There everything can be set up, so a test that is skipped for that is a lost test.
        for reason in [reason for reason in skipped if reason.startswith(provision.NOT_SET_UP)]:
            failed += skipped.pop(reason)
    total = Result(sum(result.passed for result in results.values()), failed, skipped)
    say(f"\n{total}")
    return int(failed > 0 or not (total.passed or skipped))


if __name__ == "__main__":
    sys.exit(main())
