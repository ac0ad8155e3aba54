"""What the tests share: names, server processes, raw connections, waiting for a condition."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

import client
import pipecache
from tests import provision

if sys.platform == "win32":
    import _winapi

#: The folder of pipecache.py and client.py.
ROOT = Path(__file__).resolve().parent.parent

#: Seconds after which a wait has failed. Nothing depends on how much of it is used.
DEADLINE = 30.0

WINDOWS = sys.platform == "win32"

# What servers inside the tests have to say is looked for by assertLogs(), and else not shown.
pipecache.log.addHandler(logging.NullHandler())

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


class RawConnection:
    """A connection as a client in another language makes it, without client.py.

    On a pipe each send() is one message and each receive() returns what one ReadFile gives.
    Python's open() would do, but for Wine's C library: it takes an empty message for the end.
    """

    def __init__(self, name: str) -> None:
        self.address = pipecache.pipe_address(name)
        if sys.platform == "win32":
            self._handle = self._open()
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(DEADLINE)
            try:
                self._socket.connect(self.address)
            except OSError:
                self._socket.close()
                raise

    if sys.platform == "win32":

        def _open(self) -> int:
            deadline = time.monotonic() + DEADLINE
            access = _winapi.GENERIC_READ | _winapi.GENERIC_WRITE
            while True:
                try:
                    return _winapi.CreateFile(
                        self.address,
                        access,
                        0,
                        _winapi.NULL,
                        _winapi.OPEN_EXISTING,
                        _winapi.FILE_FLAG_OVERLAPPED,
                        _winapi.NULL,
                    )
                except OSError as error:
                    if error.winerror != _winapi.ERROR_PIPE_BUSY or time.monotonic() > deadline:
                        raise
                    _winapi.WaitNamedPipe(self.address, int(DEADLINE * 1000))

        def send(self, data: bytes) -> None:
            """Send one message."""
            operation, _ = _winapi.WriteFile(self._handle, data, overlapped=True)
            _, error = operation.GetOverlappedResult(True)
            if error:
                raise OSError(None, "WriteFile", None, error)

        def receive(self, size: int = 65536) -> bytes:
            """What comes next; b"" at the end (or for an empty message)."""
            try:
                operation, _ = _winapi.ReadFile(self._handle, size, overlapped=True)
                operation.GetOverlappedResult(True)
            except BrokenPipeError:
                return b""
            return bytes(operation.getbuffer() or b"")

        def close(self) -> None:
            if self._handle:
                _winapi.CloseHandle(self._handle)
                self._handle = 0

    else:

        def send(self, data: bytes) -> None:
            """Send one message."""
            self._socket.sendall(data)

        def receive(self, size: int = 65536) -> bytes:
            """What comes next; b"" at the end."""
            try:
                return self._socket.recv(size)
            except ConnectionResetError:
                return b""

        def close(self) -> None:
            self._socket.close()

    def read(self, size: int) -> bytes:
        """Exactly so many bytes, or fewer at the end."""
        chunks = []
        while size > 0:
            chunk = self.receive(min(size, 65536))
            if not chunk:
                break
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def ask(self, data: bytes) -> bytes:
        """Send one message and return what comes back first."""
        self.send(data)
        return self.receive()

    def ended(self) -> bool:
        """Whether the server has ended the connection."""
        try:
            return self.receive() == b""
        except OSError:
            return True

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ServerProcess:
    """``python pipecache.py`` as a process of its own.

    :param options: further arguments of the command line.
    :param name: the pipe's name, one of its own if None.

    As a context manager it is ready to accept connections, and ended afterwards.
    """

    def __init__(self, *options: str, name: str | None = None) -> None:
        self.name = name or unique_name()
        self.address = pipecache.pipe_address(self.name)
        #: What it has printed on stderr so far.
        self.lines: list[str] = []
        self._printed: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "pipecache.py"), "--pipe", self.name, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            creationflags=provision.OWN_CONSOLE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self._printed.put(line.decode().rstrip())
        self._printed.put(None)

    def wait_for(self, pattern: str) -> str:
        """The first line from here on that the pattern is found in.

        :raises AssertionError: if the program ends, or DEADLINE passes, without one.
        """
        while True:
            line = self._printed.get(timeout=DEADLINE)
            if line is None:
                raise AssertionError(f"no line with {pattern!r} in {self.lines}")
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def wait(self) -> int:
        """Wait for the program to end and return its exit status; its output is in lines then."""
        status = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        while True:
            line = self._printed.get(timeout=DEADLINE)
            if line is None:
                self._printed.put(None)
                return status
            self.lines.append(line)

    def interrupt(self) -> None:
        """Press Ctrl+C."""
        provision.interrupt(self.process, self.name)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if not WINDOWS:  # a server that was killed leaves its socket behind
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address)

    def __enter__(self) -> ServerProcess:
        try:
            self.wait_for("Ready to accept connections")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def new_client(name: str, **options: Any) -> client.Client:
    """A client with time limits no test should run into."""
    return client.Client(name, **{"timeout": DEADLINE, "connect_timeout": DEADLINE, **options})
