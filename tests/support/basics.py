"""Names, ports, clocks and waiting for a condition."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Callable

#: The folder of pipecache.py and client.py.
ROOT = Path(__file__).resolve().parent.parent.parent

#: Seconds after which a wait fails. No test waits that long to pass.
DEADLINE = 30.0

WINDOWS = sys.platform == "win32"

_numbers = itertools.count(1)


def unique_name() -> str:
    """Return the name of a pipe that no other test and no other run uses."""
    return f"pipecache-test-{os.getpid()}-{next(_numbers)}"


def free_port() -> int:
    """Return a port of 127.0.0.1 that no program listens on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition is met.

    :raises AssertionError: after DEADLINE seconds.
    """
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {DEADLINE:g} s still not true: {what}")
        time.sleep(0.005)


def running_under_wine() -> bool:
    """Return True under Wine, which does not enforce all that Windows enforces."""
    if sys.platform != "win32":
        return False
    import ctypes

    return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Background:
    """A call on another thread, and its result."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> object:
        self._thread.join(DEADLINE)
        assert self.done, "the call has not ended"
        if self.error is not None:
            raise self.error
        return self.result
