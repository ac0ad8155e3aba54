"""Programs in other languages that tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import unittest
from pathlib import Path
from typing import Mapping, Sequence

from tests.support.basics import ROOT, WINDOWS, running_under_wine
from tests.tools.provision import Unavailable, given, run_node, skip

CLIENTS = ROOT / "tests" / "clients"

#: Seconds that a program may take, which perhaps compiles or starts a runtime on a busy machine.
TIME_LIMIT = 180.0


def run_program(
    args: Sequence[str | Path], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program and wait until it ends."""
    return subprocess.run(
        [str(arg) for arg in args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIME_LIMIT,
        env={**os.environ, **(env or {})},
        check=False,
    )


def run_javascript(*args: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a file with Node, or skip the test if Node is missing."""
    if WINDOWS:
        found = shutil.which("node")
        try:
            node = given("PIPECACHE_NODE")
        except Unavailable as error:
            if not found or running_under_wine():
                skip(error)
            node = found
        return run_node(node, args, timeout=TIME_LIMIT)
    return run_program([on_path("node"), *args])


def required(name: str) -> str:
    """Return what ``python tests`` provides under this name, or skip the test."""
    try:
        return given(name)
    except Unavailable as error:
        skip(error)


def on_path(program: str) -> str:
    """Return the path of a program, or skip the test if the program is missing."""
    if running_under_wine():
        raise unittest.SkipTest(f"{program}: run by the workflow on windows-latest")
    found = shutil.which(program)
    if not found:
        raise unittest.SkipTest(f"{program} is not on PATH")
    return found
