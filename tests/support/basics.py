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

#: Seconds after which a wait has failed. Nothing depends on how much of it is used.
DEADLINE = 30.0

WINDOWS = sys.platform == "win32"

_numbers = itertools.count(1)


def unique_name() -> str:
    """A pipe's name nobody else uses, now or in another run."""
    return f"pipecache-test-{os.getpid()}-{next(_numbers)}"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody serves."""
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
            raise AssertionError(f"waited {DEADLINE:g} s in vain: {what}")
        time.sleep(0.005)


def running_under_wine() -> bool:
    """Whether this Windows is Wine, which does not enforce everything Windows does."""
    if sys.platform != "win32":
        return False
    import ctypes

    return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


class Clock:
    """Seconds that go forward when told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Background:
    """A call on another thread, and what became of it."""

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
        assert self.done, "still running"
        if self.error is not None:
            raise self.error
        return self.result
