"""A real redis-server, and connections that read its replies."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import unittest
from typing import Any, Tuple

import pipecache
from tests.support.basics import DEADLINE, wait_until
from tests.support.wire import command
from tests.tools import provision

#: Seconds without a reply after which a server is taken to have lost it.
PATIENCE = 5.0

#: A reply: the byte that stands for its type, and bytes, int, None or a tuple of replies.
Reply = Tuple[str, Any]


class Connection:
    """A connection to either server, and what comes back in RESP2 or RESP3."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(getattr(socket, "AF_UNIX", -1))
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Reply:
        """The next reply.

        :raises OSError: if none comes.
        """
        line = self._file.readline()
        kind, rest = line[:1].decode("latin-1"), line[1:-2]
        if not line.endswith(b"\r\n"):
            raise ConnectionError(f"the connection ended after {line!r}")
        if kind in "+-,#(_":
            return kind, rest
        if kind == ":":
            return kind, int(rest)
        if kind not in "$=*~%>":
            raise ConnectionError(f"{line!r} is no reply")
        size = int(rest)
        if size < 0:
            return kind, None
        if kind in "$=":
            data = self._file.read(size + 2)
            if len(data) != size + 2 or not data.endswith(b"\r\n"):
                raise ConnectionError(f"a bulk string of {size} bytes ends in {data[-10:]!r}")
            return kind, data[:-2]
        size = 2 * size if kind == "%" else size
        return kind, tuple([self.receive() for _ in range(size)])

    def ask(self, *arguments: bytes) -> Reply:
        self.send(command(*arguments))
        return self.receive()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class RedisServer:
    """redis-server as a process of its own, on a Unix socket and with one database.

    :raises provision.Unavailable: if there is none, or another version than the one to be like.
    """

    def __init__(self) -> None:
        program = provision.given("PIPECACHE_REDIS_SERVER")
        told = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
        wanted = pipecache.REDIS_VERSION.rpartition(".")[0]
        if f"v={wanted}." not in told.decode():
            raise provision.Unavailable(f"{program} is not Redis {wanted}: install that version")
        self._folder = tempfile.TemporaryDirectory()
        folder = self._folder.name
        #: Its socket.
        self.address = os.path.join(folder, "socket")
        options = f"--port 0 --unixsocket {self.address} --dir {folder} --databases 1"
        self._process = subprocess.Popen(
            [program, *options.split(), "--save", ""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"redis-server ended with status {self._process.returncode}")
        with contextlib.suppress(OSError):
            connection = Connection(self.address)
            try:
                return connection.ask(b"PING") == ("+", b"PONG")
            finally:
                connection.close()
        return False

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self._answers, "redis-server answers")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(DEADLINE)
        self._folder.cleanup()


def redis_address(test: unittest.TestCase) -> str:
    """The socket of a redis-server for one test, which is skipped where there is none."""
    try:
        server = RedisServer()
    except provision.Unavailable as error:
        provision.skip(error)
    test.addCleanup(server.close)
    server.wait()
    return server.address
