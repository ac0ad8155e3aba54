"""redis-server, and connections that read its replies."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import tempfile
import unittest

import pipecache
from tests.support.basics import DEADLINE, wait_until
from tests.support.wire import Reply, command, read_reply
from tests.tools import provision

#: Seconds after which a missing reply counts as lost.
PATIENCE = 5.0


class Connection:
    """A connection to pipecache or Redis that returns replies in RESP2 or RESP3."""

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
        """Return the next reply.

        :raises OSError: if none comes.
        """
        return read_reply(self._file)

    def ask(self, *arguments: bytes) -> Reply:
        self.send(command(*arguments))
        return self.receive()

    def has_reply(self, seconds: float) -> bool:
        """Return True if a reply begins to arrive within this time."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class RedisServer:
    """A process of redis-server, on a Unix socket and with one database.

    :raises provision.Unavailable: if it is missing, or of another version than pipecache follows.
    """

    def __init__(self) -> None:
        program = provision.given("PIPECACHE_REDIS_SERVER")
        told = subprocess.run([program, "--version"], capture_output=True, check=False).stdout
        wanted = pipecache.REDIS_VERSION.rpartition(".")[0]
        if f"v={wanted}." not in told.decode():
            raise provision.Unavailable(f"{program} is not Redis {wanted}: install that version")
        self._folder = tempfile.TemporaryDirectory()
        folder = self._folder.name
        #: The path of the socket.
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
        """Wait until the server answers."""
        wait_until(self._answers, "redis-server answers")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait(DEADLINE)
        self._folder.cleanup()


def redis_address(test: unittest.TestCase | type[unittest.TestCase]) -> str:
    """Return the socket of a new redis-server, or skip the test if there is none.

    :param test: the test, or the class of tests, after which the server ends.
    """
    try:
        server = RedisServer()
    except provision.Unavailable as error:
        provision.skip(error)
    clean_up = test.addClassCleanup if isinstance(test, type) else test.addCleanup
    clean_up(server.close)
    server.wait()
    return server.address
