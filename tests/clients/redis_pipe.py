from __future__ import annotations

import _winapi
import contextlib
import errno
import socket
import sys
import time

import redis  # type: ignore[import-untyped]

assert sys.platform == "win32"  # elsewhere: redis.Redis(unix_socket_path=...)

ACCESS = _winapi.GENERIC_READ | _winapi.GENERIC_WRITE
# 0x110000: the server may see who the client is, but not act as that user.
FLAGS = _winapi.FILE_FLAG_OVERLAPPED | 0x110000


class PipeConnection(redis.UnixDomainSocketConnection):  # type: ignore[misc]
    def _connect(self) -> PipeSocket:
        pipe = PipeSocket(self.path, self.socket_connect_timeout or 60)
        pipe.settimeout(self.socket_timeout)
        return pipe


class PipeSocket:
    """The methods of a socket that redis-py uses, on a named pipe."""

    def __init__(self, path: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._pipe = _winapi.CreateFile(path, ACCESS, 0, 0, _winapi.OPEN_EXISTING, FLAGS, 0)
                return
            except OSError as error:
                if error.winerror != _winapi.ERROR_PIPE_BUSY or time.monotonic() > deadline:
                    raise
            with contextlib.suppress(OSError):
                _winapi.WaitNamedPipe(path, 100)

    def settimeout(self, timeout: float | None) -> None:
        self._wait = _winapi.INFINITE if timeout is None else int(1000 * timeout)

    def sendall(self, data: bytes) -> None:
        self._finish(_winapi.WriteFile(self._pipe, data, overlapped=True)[0])

    def recv(self, size: int) -> bytes:
        try:
            operation, _ = _winapi.ReadFile(self._pipe, size, overlapped=True)
            self._finish(operation)
        except BrokenPipeError:
            return b""
        return operation.getbuffer() or b""

    def _finish(self, operation: _winapi.Overlapped) -> None:
        ended = None
        try:
            ended = _winapi.WaitForMultipleObjects([operation.event], False, self._wait)
        finally:
            if ended != _winapi.WAIT_OBJECT_0:
                operation.cancel()
            _, error = operation.GetOverlappedResult(True)
        if error == _winapi.ERROR_OPERATION_ABORTED:
            if self._wait == 0:
                raise BlockingIOError(errno.EWOULDBLOCK, "nothing to read yet")
            raise socket.timeout("timed out")

    def shutdown(self, how: int) -> None:
        pass

    def close(self) -> None:
        _winapi.CloseHandle(self._pipe)
