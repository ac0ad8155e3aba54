"""Servers under test: in processes, and inside the test process."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import unittest
from typing import Any, Iterator
from unittest import mock

import client
import pipecache
from pipecache import Server
from tests.support.basics import DEADLINE, ROOT, WINDOWS, unique_name
from tests.support.connections import Conversation, RawConnection
from tests.tools import provision

# Without a handler, logging prints warnings of servers inside the tests to standard error.
pipecache.log.addHandler(logging.NullHandler())


class ServerProcess:
    """A process of ``python pipecache.py``.

    :param options: further arguments of the command line.
    :param name: the name of the pipe, by default a new one.

    As a context manager, the server is ready at the beginning and has ended at the end.
    """

    def __init__(self, *options: str, name: str | None = None) -> None:
        self.name = name or unique_name()
        self.address = pipecache.pipe_address(self.name)
        #: The lines of standard error that were read so far.
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
        """Return the next line that contains the pattern.

        :raises AssertionError: if the program ends, or DEADLINE passes, before such a line.
        """
        while True:
            line = self._printed.get(timeout=DEADLINE)
            if line is None:
                raise AssertionError(f"no line with {pattern!r} in {self.lines}")
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def wait(self) -> int:
        """Wait until the program ends and return its exit status; `lines` is then complete."""
        status = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        while True:
            line = self._printed.get(timeout=DEADLINE)
            if line is None:
                self._printed.put(None)
                return status
            self.lines.append(line)

    def interrupt(self) -> None:
        """Send Ctrl+C to the server."""
        provision.interrupt(self.process, self.name)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if not WINDOWS:  # a killed server does not remove its socket
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


@contextlib.contextmanager
def log_restored() -> Iterator[None]:
    """Undo what is changed about the server's log in the context."""
    handlers, level = list(pipecache.log.handlers), pipecache.log.level
    try:
        yield
    finally:
        for handler in set(pipecache.log.handlers) - set(handlers):
            pipecache.log.removeHandler(handler)
            stream = getattr(handler, "stream", None)
            if isinstance(stream, io.TextIOWrapper) and stream is not sys.stderr:
                stream.close()
        pipecache.log.setLevel(level)


def usage_error(*options: str) -> str:
    """Return what ``python pipecache.py`` says about wrong options, without a process.

    :raises AssertionError: if the options are accepted.
    """
    printed = io.StringIO()
    accepted = mock.Mock(side_effect=AssertionError(f"{options} are accepted"))
    with contextlib.redirect_stderr(printed), log_restored():
        with mock.patch.object(Server, "serve_forever", accepted):
            try:
                pipecache.main(options)
            except SystemExit as error:
                assert error.code == 2, error.code
    return printed.getvalue().splitlines()[-1]


def options_of_server(*options: str) -> dict[str, Any]:
    """Return the options that ``python pipecache.py`` gives to the server, which is not started."""
    made = mock.Mock(side_effect=InterruptedError)
    with log_restored(), mock.patch.object(pipecache, "Server", made):
        with contextlib.suppress(InterruptedError):
            pipecache.main(options)
    return dict(made.call_args[1])


def new_client(name: str, **options: Any) -> client.Client:
    """Return a client whose time limits are so long that no test reaches them."""
    return client.Client(name, **{"timeout": DEADLINE, "connect_timeout": DEADLINE, **options})


def start_server(test: unittest.TestCase, *options: str) -> ServerProcess:
    """Return a server process that accepts connections until the test ends."""
    server = ServerProcess(*options)
    test.addCleanup(server.close)
    return server.__enter__()


class ServerCase(unittest.TestCase):
    """Tests with a server inside the test process."""

    def serve(self, **options: Any) -> Server:
        self.name = unique_name()
        server = Server(self.name, **options)
        server.start()
        self.addCleanup(server.stop)
        return server

    def raw(self) -> RawConnection:
        connection = RawConnection(self.name)
        self.addCleanup(connection.close)
        return connection

    def info(self, name: str) -> int:
        with new_client(self.name) as cache:
            return int(cache.info()[name])


class ConversationCase(unittest.TestCase):
    """Tests with a server process each, and connections to it."""

    def setUp(self) -> None:
        self.name = self.serve()

    def serve(self) -> str:
        """Start a server and return its name."""
        return start_server(self).name

    def connect(self) -> Conversation:
        conversation = Conversation(self.name)
        self.addCleanup(conversation.raw.close)
        return conversation
