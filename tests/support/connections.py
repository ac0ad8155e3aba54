"""Connections to a server that do not use client.py."""

from __future__ import annotations

import socket
import sys
import time

import pipecache
from tests.support.basics import DEADLINE
from tests.support.wire import command, end_of_reply

if sys.platform == "win32":
    import _winapi


class RawConnection:
    """A connection as a client in another language makes it.

    On a pipe, each send() is one message and each receive() is one ReadFile. Python's open() does
    not do this under Wine, whose C library takes an empty message for the end of the file.
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
            """Return the next bytes; b"" at the end, or for an empty message."""
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
            """Return the next bytes; b"" at the end."""
            try:
                return self._socket.recv(size)
            except ConnectionResetError:
                return b""

        def close(self) -> None:
            self._socket.close()

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes, or fewer if the connection ends."""
        chunks = []
        while size > 0:
            chunk = self.receive(min(size, 65536))
            if not chunk:
                break
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def ask(self, data: bytes) -> bytes:
        """Send one message and return the first bytes of the reply."""
        self.send(data)
        return self.receive()

    def ended(self) -> bool:
        """Return True if the server has closed the connection."""
        try:
            return self.receive() == b""
        except OSError:
            return True

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class TCPConnection(RawConnection):
    """A connection over TCP, whose name is the port."""

    def __init__(self, name: str) -> None:
        self._tcp = socket.create_connection(("127.0.0.1", int(name)), DEADLINE)
        #: The address and port of this end.
        self.local = "{}:{}".format(*self._tcp.getsockname())

    def send(self, data: bytes) -> None:
        self._tcp.sendall(data)

    def receive(self, size: int = 65536) -> bytes:
        try:
            return self._tcp.recv(size)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._tcp.close()


class Conversation:
    """A connection to pipecache or Redis that returns one reply at a time, as bytes."""

    def __init__(self, name: str) -> None:
        self.raw = RawConnection(name)
        self._unread = b""

    def ask(self, *arguments: bytes) -> bytes:
        """Return the reply to a command, or the part that arrived before the connection ended."""
        self.raw.send(command(*arguments))
        while True:
            end = end_of_reply(self._unread)
            chunk = b"" if end else self.raw.receive()
            self._unread += chunk
            if not chunk:
                reply = self._unread[:end]
                self._unread = self._unread[len(reply) :]
                return reply
