#!/usr/bin/env python3
r"""The client of pipecache, in one file of the standard library.

    from client import Client

    cache = Client()                        # \\.\pipe\KeyValuePipe
    cache.set("city", "dubai", ex=60)
    cache.get("city")                       # 'dubai'

Methods and arguments are named as in redis-py, so that a script that outgrows
one machine changes its import. From a shell:

    python client.py GET city
    python client.py                        # a prompt

SPDX-License-Identifier: MIT
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import socket
import struct
import sys
import time
import weakref
from typing import Any, Callable, Iterator, Mapping, Sequence, Union

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

__all__ = [
    "CacheError",
    "CacheTimeout",
    "Client",
    "ConnectionLost",
    "DataError",
    "Pipeline",
    "ProtocolError",
    "ResponseError",
    "ServerNotRunning",
    "send_command",
]
__version__ = "1.0.0"


# ----------------------------------------------------------------------------
# Limits and defaults
# ----------------------------------------------------------------------------

#: The name of the pipe when none is given.
DEFAULT_PIPE = "KeyValuePipe"

#: Seconds to wait for a pipe all of whose instances are busy.
CONNECT_TIMEOUT = 5.0

#: Seconds to wait for a reply.
TIMEOUT = 30.0

#: Bytes asked of the system at a time.
CHUNK_SIZE = 65536

#: Bytes written at once to a pipe, which Windows keeps in memory it has little of.
PIECE_SIZE = 1024 * 1024

#: The longest wait, in seconds, in which Windows does not see Ctrl+C.
SLICE = 0.25

#: Bytes of a pipeline sent before its replies are read.
PIPELINE_BYTES = 256 * 1024

#: Bytes that a key or a value can be given as; numbers are sent in decimal.
Argument = Union[str, bytes, bytearray, memoryview, int, float]


# ----------------------------------------------------------------------------
# Exceptions
# ----------------------------------------------------------------------------


class CacheError(Exception):
    """The base of every exception this module raises of its own."""


class ServerNotRunning(CacheError, ConnectionError):
    """Nobody serves the pipe, or it may not be opened; the message says which."""


class ConnectionLost(CacheError, ConnectionError):
    """The server ended the connection. The command may have run; the next call reconnects."""


class CacheTimeout(CacheError, TimeoutError):
    """No free instance of the pipe, or no reply, within the time limit."""


class ProtocolError(CacheError):
    """What came back is not RESP: another program serves the pipe."""


class DataError(CacheError, TypeError):
    """An argument that cannot be sent."""


class ResponseError(CacheError):
    """The server answered with an error."""


# ----------------------------------------------------------------------------
# Wire protocol: RESP commands and replies
# ----------------------------------------------------------------------------


def encode_command(arguments: Sequence[Argument]) -> bytes:
    """One command as the server reads it; str is sent as UTF-8.

    :raises DataError: for an argument of another type; None and bool among them.
    """
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument.encode() if type(argument) is str else _encode_argument(argument)
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _encode_argument(argument: Argument) -> bytes:
    if isinstance(argument, (bytes, bytearray, memoryview)):
        return bytes(argument)
    if isinstance(argument, str):
        return argument.encode()
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return repr(argument).encode()
    raise DataError(
        f"cannot send {argument!r}: convert {type(argument).__name__} to str, bytes, int or float"
    )


PLUS, MINUS, COLON, DOLLAR, ASTERISK = b"+-:$*"


class ReplyReader:
    """Reads replies off one connection.

    :param receive: gives the next chunk, never an empty one.
    """

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._buffer = b""
        self._position = 0

    def feed(self, chunk: bytes) -> None:
        """Take the first chunk of the next replies, when those before are all read."""
        self._buffer = chunk
        self._position = 0

    def read(self, decode: bool) -> Any:
        """One reply: bytes (str if decode), int, list, None or a ResponseError, which is returned.

        :raises ProtocolError: if it is not RESP.
        """
        buffer, start = self._buffer, self._position
        end = buffer.find(b"\r\n", start)
        if end < 0:
            buffer, start, end = self._wait_for_line()
        self._position = end + 2
        kind = buffer[start]
        if kind == PLUS:
            line = buffer[start + 1 : end]
            return line.decode() if decode else line
        if kind == MINUS:
            return ResponseError(buffer[start + 1 : end].decode("utf-8", "replace"))
        try:
            number = int(buffer[start + 1 : end])
        except ValueError:
            kind = 0
        if kind == DOLLAR:
            if number < 0:
                return None
            stop = end + 2 + number
            data = buffer[end + 2 : stop] if stop + 2 <= len(buffer) else self._wait_for(number)
            self._position += number + 2
            return data.decode() if decode else data
        if kind == COLON:
            return number
        if kind == ASTERISK:
            return None if number < 0 else [self.read(decode) for _ in range(number)]
        raise ProtocolError(
            f"the reply {buffer[start : start + 64]!r} is not RESP; is this a pipecache server?"
        )

    def _wait_for_line(self) -> tuple[bytes, int, int]:
        while True:
            self._buffer = self._buffer[self._position :] + self._receive()
            self._position = 0
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                return self._buffer, 0, end

    def _wait_for(self, size: int) -> bytes:
        chunks = [self._buffer[self._position :]]
        missing = size + 2 - len(chunks[0])
        while missing > 0:
            chunks.append(self._receive())
            missing -= len(chunks[-1])
        self._buffer = b"".join(chunks)
        self._position = 0
        return self._buffer[:size]


# ----------------------------------------------------------------------------
# Transports: named pipes on Windows, Unix domain sockets elsewhere
# ----------------------------------------------------------------------------


def pipe_address(name: str) -> str:
    r"""Where a pipe of this name is: ``\\.\pipe\NAME``, or .NET's socket of the same name.

    The name may be given with ``\\.\pipe\`` before it. Outside Windows one that
    holds a ``/`` is the path itself.
    """
    prefix = "\\\\.\\pipe\\"
    name = name[len(prefix) :] if name.startswith(prefix) else name
    if sys.platform == "win32":
        return prefix + name
    if "/" in name:
        return name
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", "CoreFxPipe_" + name)


class Transport:
    """An open connection to the server, for one thread at a time.

    Every method raises :class:`ConnectionLost` if the server is gone and
    :class:`CacheTimeout` when the time limit passes; after either the
    connection can only be closed.
    """

    def exchange(self, data: bytes) -> bytes:
        """Send one message and return the first chunk of what comes back."""
        raise NotImplementedError

    def receive(self) -> bytes:
        """The next chunk."""
        raise NotImplementedError

    def ask(self, text: bytes) -> bytes:
        """Send one text command and return its whole reply. Nothing may follow it."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def _lost(address: str) -> ConnectionLost:
    return ConnectionLost(f"The server at {address} ended the connection")


def _too_slow(address: str, timeout: float | None) -> CacheTimeout:
    return CacheTimeout(f"No reply from {address} within {timeout:g} s")


def _not_running(address: str) -> ServerNotRunning:
    return ServerNotRunning(
        f"Cache server not running: nobody serves {address}; start pipecache.py with that --pipe"
    )


if sys.platform == "win32":
    ERROR_FILE_NOT_FOUND = 2
    ERROR_ACCESS_DENIED = 5
    ERROR_PIPE_BUSY = 231
    ERROR_MORE_DATA = 234
    ERROR_IO_PENDING = 997

    GENERIC_READ = 0x80000000
    GENERIC_WRITE = 0x40000000
    OPEN_EXISTING = 3
    FILE_FLAG_OVERLAPPED = 0x40000000
    SECURITY_SQOS_PRESENT = 0x00100000
    SECURITY_IDENTIFICATION = 0x00010000
    PIPE_READMODE_MESSAGE = 0x00000002

    WAIT_OBJECT_0 = 0x00000000
    INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value

    class OVERLAPPED(ctypes.Structure):
        _fields_ = (
            ("Internal", ctypes.c_size_t),
            ("InternalHigh", ctypes.c_size_t),
            ("Offset", wintypes.DWORD),
            ("OffsetHigh", wintypes.DWORD),
            ("hEvent", wintypes.HANDLE),
        )

    def _bind(library: Any, name: str, restype: Any, errcheck: Any, *argtypes: Any) -> Any:
        function = getattr(library, name)
        function.restype = restype
        if errcheck is not None:
            function.errcheck = errcheck
        function.argtypes = argtypes
        return function

    def _true(result: int, function: Any, arguments: Any) -> int:
        if not result:
            raise ctypes.WinError(ctypes.get_last_error())
        return result

    # A library object of one's own: prototypes set on ctypes.windll are everybody's.
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    HANDLE, DWORD, BOOL, LPVOID = wintypes.HANDLE, wintypes.DWORD, wintypes.BOOL, wintypes.LPVOID
    LPDWORD, LPOVERLAPPED = wintypes.LPDWORD, ctypes.POINTER(OVERLAPPED)

    # fmt: off
    CreateFileW = _bind(
        _kernel32, "CreateFileW", HANDLE, None,
        wintypes.LPCWSTR,  # lpFileName
        DWORD,  # dwDesiredAccess
        DWORD,  # dwShareMode
        LPVOID,  # lpSecurityAttributes
        DWORD,  # dwCreationDisposition
        DWORD,  # dwFlagsAndAttributes
        HANDLE,  # hTemplateFile
    )
    SetNamedPipeHandleState = _bind(
        _kernel32, "SetNamedPipeHandleState", BOOL, _true, HANDLE, LPDWORD, LPDWORD, LPDWORD
    )
    CreateEventW = _bind(
        _kernel32, "CreateEventW", HANDLE, _true, LPVOID, BOOL, BOOL, wintypes.LPCWSTR
    )
    CloseHandle = _bind(_kernel32, "CloseHandle", BOOL, _true, HANDLE)

    WaitNamedPipeW = _bind(_kernel32, "WaitNamedPipeW", BOOL, None, wintypes.LPCWSTR, DWORD)
    ReadFile = _bind(
        _kernel32, "ReadFile", BOOL, None, HANDLE, LPVOID, DWORD, LPDWORD, LPOVERLAPPED
    )
    WriteFile = _bind(
        _kernel32, "WriteFile", BOOL, None, HANDLE, wintypes.LPCVOID, DWORD, LPDWORD, LPOVERLAPPED
    )
    GetOverlappedResult = _bind(
        _kernel32, "GetOverlappedResult", BOOL, None, HANDLE, LPOVERLAPPED, LPDWORD, BOOL
    )
    CancelIoEx = _bind(_kernel32, "CancelIoEx", BOOL, None, HANDLE, LPOVERLAPPED)
    WaitForSingleObject = _bind(_kernel32, "WaitForSingleObject", DWORD, None, HANDLE, DWORD)
    # fmt: on

    class PipeTransport(Transport):
        """A connection to a named pipe, in message mode."""

        def __init__(self, address: str, connect_timeout: float, timeout: float | None) -> None:
            self._address = address
            self._timeout = timeout
            self._handle: int | None = None
            self._event: int | None = None
            self._open(time.monotonic() + connect_timeout, connect_timeout)
            try:
                mode = DWORD(PIPE_READMODE_MESSAGE)
                SetNamedPipeHandleState(self._handle, ctypes.byref(mode), None, None)
                self._event = CreateEventW(None, True, False, None)
            except OSError as error:
                self.close()
                raise ServerNotRunning(f"Cannot use {address}: {error}") from error
            self._operation = OVERLAPPED(hEvent=self._event)
            self._overlapped = ctypes.byref(self._operation)
            self._buffer = ctypes.create_string_buffer(CHUNK_SIZE)
            self._view = memoryview(self._buffer)
            self._count = DWORD()
            self._counted = ctypes.byref(self._count)
            self._more = False

        def _open(self, deadline: float, timeout: float) -> None:
            while True:
                # At the identification level a false server cannot act as this user.
                handle: int = CreateFileW(
                    self._address,
                    GENERIC_READ | GENERIC_WRITE,
                    0,
                    None,
                    OPEN_EXISTING,
                    FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION,
                    None,
                )
                if handle != INVALID_HANDLE_VALUE:
                    self._handle = handle
                    return
                error = ctypes.get_last_error()
                left = deadline - time.monotonic()
                if error == ERROR_PIPE_BUSY and left > 0:
                    # Only a hint, even when it succeeds: another client may be quicker.
                    WaitNamedPipeW(self._address, math.ceil(min(left, SLICE) * 1000))
                    continue
                if error == ERROR_FILE_NOT_FOUND:
                    raise _not_running(self._address)
                if error == ERROR_PIPE_BUSY:
                    raise CacheTimeout(
                        f"Every instance of {self._address} was busy for {timeout:g} s;"
                        " start the server with a higher --max-clients"
                    )
                if error == ERROR_ACCESS_DENIED:
                    raise ServerNotRunning(
                        f"{self._address} belongs to another user, or to a program that runs as"
                        " administrator"
                    )
                raise ServerNotRunning(f"Cannot open {self._address}: {ctypes.WinError(error)}")

        def exchange(self, data: bytes) -> bytes:
            # Not TransactNamedPipe, which would do both at once: under Wine it is slower, and it
            # fails when something is left to read.
            try:
                if len(data) <= PIECE_SIZE:
                    self._write(data)
                else:
                    for start in range(0, len(data), PIECE_SIZE):
                        self._write(data[start : start + PIECE_SIZE])
            except ConnectionLost:
                return self.receive()  # what the server said before it hung up
            return self.receive()

        def _write(self, data: bytes) -> None:
            if not WriteFile(self._handle, data, len(data), None, self._overlapped):
                self._finish()

        def receive(self) -> bytes:
            self._more = False
            if not ReadFile(
                self._handle, self._buffer, CHUNK_SIZE, self._counted, self._overlapped
            ):
                self._finish()
            return self._view[: self._count.value].tobytes()

        def ask(self, text: bytes) -> bytes:
            self._write(text)
            chunks = [self.receive()]
            while self._more:
                chunks.append(self.receive())
            return b"".join(chunks)

        def _finish(self) -> None:
            # After a call that has answered FALSE: wait for its outcome, if it has none yet.
            error = ctypes.get_last_error()
            if error == ERROR_IO_PENDING:
                try:
                    self._wait()
                except BaseException:
                    self._cancel()
                    raise
                if GetOverlappedResult(self._handle, self._overlapped, self._counted, False):
                    return
                error = ctypes.get_last_error()
            elif error == ERROR_MORE_DATA:
                self._count.value = CHUNK_SIZE
            if error != ERROR_MORE_DATA:
                raise _lost(self._address)
            self._more = True

        def _wait(self) -> None:
            deadline = math.inf if self._timeout is None else time.monotonic() + self._timeout
            limit = SLICE if self._timeout is None else min(SLICE, self._timeout)
            while WaitForSingleObject(self._event, math.ceil(limit * 1000)) != WAIT_OBJECT_0:
                limit = min(SLICE, deadline - time.monotonic())
                if limit <= 0:
                    raise _too_slow(self._address, self._timeout)

        def _cancel(self) -> None:
            # Until GetOverlappedResult has returned, the system may write to the buffer.
            CancelIoEx(self._handle, self._overlapped)
            GetOverlappedResult(self._handle, self._overlapped, self._counted, True)

        def close(self) -> None:
            handles, self._handle, self._event = (self._handle, self._event), None, None
            for handle in handles:
                if handle is not None:
                    CloseHandle(handle)

    make_transport: Callable[[str, float, float | None], Transport] = PipeTransport

else:

    class UnixTransport(Transport):
        """A connection to a Unix domain socket."""

        def __init__(self, address: str, connect_timeout: float, timeout: float | None) -> None:
            self._address = address
            self._timeout = timeout
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._set_limits(connect_timeout)
                self._socket.connect(address)
                self._set_limits(timeout)
            except BlockingIOError:
                self._socket.close()
                raise CacheTimeout(f"{address} was busy for {connect_timeout:g} s") from None
            except (ConnectionRefusedError, FileNotFoundError):
                self._socket.close()
                raise _not_running(address) from None
            except OSError as error:
                self._socket.close()
                raise ServerNotRunning(f"Cannot open {address}: {error}") from error

        def _set_limits(self, seconds: float | None) -> None:
            # Limits the kernel keeps cost nothing; settimeout() would poll before every call.
            limit = struct.pack("ll", int(seconds or 0), int((seconds or 0) % 1 * 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

        def exchange(self, data: bytes) -> bytes:
            try:
                self._send(data)
            except ConnectionLost:
                return self.receive()  # what the server said before it hung up
            return self.receive()

        def _send(self, data: bytes) -> None:
            try:
                self._socket.sendall(data)
            except BlockingIOError:
                raise _too_slow(self._address, self._timeout) from None
            except OSError:
                raise _lost(self._address) from None

        def receive(self) -> bytes:
            try:
                chunk = self._socket.recv(CHUNK_SIZE)
            except BlockingIOError:
                raise _too_slow(self._address, self._timeout) from None
            except OSError:
                raise _lost(self._address) from None
            if not chunk:
                raise _lost(self._address)
            return chunk

        def ask(self, text: bytes) -> bytes:
            # On a stream a command ends at the line feed, and its reply, which may hold line
            # feeds, where the server has nothing more to say.
            if b"\n" in text:
                raise DataError(
                    "a text command holds no line break outside Windows; use Client instead"
                )
            self._send(text + b"\n")
            with contextlib.suppress(OSError):  # gone already, which receive() will find
                self._socket.shutdown(socket.SHUT_WR)
            chunks = [self.receive()]
            with contextlib.suppress(ConnectionLost):
                while True:
                    chunks.append(self.receive())
            reply = b"".join(chunks)
            if not reply.endswith(b"\n"):
                raise _lost(self._address)
            return reply[:-1]

        def close(self) -> None:
            self._socket.close()

    make_transport = UnixTransport


# ----------------------------------------------------------------------------
# Client
# ----------------------------------------------------------------------------


def _is_ok(reply: Any) -> Any:
    return True if reply in ("OK", b"OK") else reply


def _parse_info(reply: Any) -> dict[str, str | int | float]:
    text = reply if isinstance(reply, str) else reply.decode()
    facts: dict[str, str | int | float] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            number = re.fullmatch(r"-?\d+(\.\d+)?", value)
            facts[name] = value if number is None else float(value) if number[1] else int(value)
    return facts


#: How the replies to some commands are given to the caller, as redis-py gives them.
CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "SET": _is_ok,
    "SETEX": _is_ok,
    "PSETEX": _is_ok,
    "MSET": _is_ok,
    "FLUSHALL": _is_ok,
    "SETNX": bool,
    "EXPIRE": bool,
    "PERSIST": bool,
    "PING": lambda reply: True if reply in ("PONG", b"PONG") else reply,
    "INFO": _parse_info,
}


class Commands:
    """The commands as methods, for :class:`Client` and :class:`Pipeline`."""

    def execute_command(self, *arguments: Argument) -> Any:
        """Carry out any command, given as its name and arguments.

        :returns: str (bytes with ``decode_responses=False``), int, list or None, or what the
            method for this command returns.
        :raises ResponseError: if the server answers with an error.
        :raises ServerNotRunning, ConnectionLost, CacheTimeout: if it does not answer.
        :raises DataError: for an argument that cannot be sent.
        """
        raise NotImplementedError

    def get(self, name: Argument) -> Any:
        """The value of a key, or None."""
        return self.execute_command("GET", name)

    def set(
        self,
        name: Argument,
        value: Argument,
        ex: int | None = None,
        px: int | None = None,
        nx: bool = False,
        xx: bool = False,
        keepttl: bool = False,
        get: bool = False,
    ) -> Any:
        """Set a key, to expire after ``ex`` seconds or ``px`` milliseconds if given.

        :param nx: only if it does not exist.
        :param xx: only if it exists.
        :param keepttl: keep the time to live it has.
        :param get: return the value it had.
        :returns: True, or None if ``nx`` or ``xx`` was not met.
        """
        # In bytes the name is not looked up for a conversion: with get, "OK" is an old value.
        arguments: list[Argument] = [b"SET" if get else "SET", name, value]
        for option, number in (("EX", ex), ("PX", px)):
            if number is not None:
                arguments += (option, number)
        for option, wanted in (("NX", nx), ("XX", xx), ("KEEPTTL", keepttl), ("GET", get)):
            if wanted:
                arguments.append(option)
        return self.execute_command(*arguments)

    def setnx(self, name: Argument, value: Argument) -> Any:
        """Set a key that does not exist: True if set."""
        return self.execute_command("SETNX", name, value)

    def setex(self, name: Argument, time: int, value: Argument) -> Any:
        """Set a key to expire after so many seconds."""
        return self.execute_command("SETEX", name, time, value)

    def psetex(self, name: Argument, time_ms: int, value: Argument) -> Any:
        """Set a key to expire after so many milliseconds."""
        return self.execute_command("PSETEX", name, time_ms, value)

    def getset(self, name: Argument, value: Argument) -> Any:
        """Set a key and return the value it had."""
        return self.execute_command("GETSET", name, value)

    def getdel(self, name: Argument) -> Any:
        """Delete a key and return the value it had."""
        return self.execute_command("GETDEL", name)

    def append(self, key: Argument, value: Argument) -> Any:
        """Add to the end of a value and return its new length in bytes."""
        return self.execute_command("APPEND", key, value)

    def strlen(self, name: Argument) -> Any:
        """The length of a value in bytes."""
        return self.execute_command("STRLEN", name)

    def mget(self, keys: Argument | Sequence[Argument], *args: Argument) -> Any:
        """The values of several keys, given as a list or one by one; None for a missing one."""
        return self.execute_command("MGET", *_listed(keys, args))

    def mset(self, mapping: Mapping[Any, Argument]) -> Any:
        """Set several keys at once."""
        return self.execute_command("MSET", *(part for pair in mapping.items() for part in pair))

    def incr(self, name: Argument, amount: int = 1) -> Any:
        """Add to a counter and return it."""
        return self.execute_command("INCRBY", name, amount)

    incrby = incr

    def decr(self, name: Argument, amount: int = 1) -> Any:
        """Take from a counter and return it."""
        return self.execute_command("DECRBY", name, amount)

    decrby = decr

    def delete(self, *names: Argument) -> Any:
        """Delete keys and return how many there were."""
        return self.execute_command("DEL", *names)

    def exists(self, *names: Argument) -> Any:
        """How many of the keys exist."""
        return self.execute_command("EXISTS", *names)

    def keys(self, pattern: Argument = "*") -> Any:
        """The keys that match a pattern such as ``user:*``."""
        return self.execute_command("KEYS", pattern)

    def expire(self, name: Argument, time: int) -> Any:
        """Let a key expire after so many seconds: False if there is none."""
        return self.execute_command("EXPIRE", name, time)

    def ttl(self, name: Argument) -> Any:
        """The seconds a key has left, -1 without a time to live, -2 without the key."""
        return self.execute_command("TTL", name)

    def persist(self, name: Argument) -> Any:
        """Take away a key's time to live: True if it had one."""
        return self.execute_command("PERSIST", name)

    def ping(self) -> Any:
        """True if the server answers."""
        return self.execute_command("PING")

    def echo(self, value: Argument) -> Any:
        """The value, as the server got it."""
        return self.execute_command("ECHO", value)

    def dbsize(self) -> Any:
        """How many keys there are."""
        return self.execute_command("DBSIZE")

    def flushall(self) -> Any:
        """Delete every key."""
        return self.execute_command("FLUSHALL")

    def info(self, section: str | None = None) -> Any:
        """The state of the server as a dict."""
        return self.execute_command("INFO", *([] if section is None else [section]))


def _listed(keys: Any, more: Sequence[Argument]) -> list[Argument]:
    if isinstance(keys, (str, bytes, bytearray, memoryview, int, float)):
        return [keys, *more]
    return [*keys, *more]


class _Connection:
    # A transport with the reader of its replies.
    __slots__ = ("reader", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.reader = ReplyReader(transport.receive)


class Client(Commands):
    """A client of one server; threads may share it.

    :param pipe: the name of the pipe.
    :param timeout: seconds to wait for a reply (for more of it, once begun), or None for no limit.
    :param connect_timeout: seconds to wait while every instance of the pipe is busy.
    :param decode_responses: whether values come back as str (from UTF-8) or as bytes.
    :raises ValueError: for a name or a time limit that cannot be.

    Nothing is opened before the first command. Each thread that has a command
    under way uses a connection of its own; they are kept for the next ones.
    """

    def __init__(
        self,
        pipe: str = DEFAULT_PIPE,
        *,
        timeout: float | None = TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT,
        decode_responses: bool = True,
    ) -> None:
        # append() and pop() are atomic, so threads need no lock around them.
        self._idle: list[_Connection] = []
        if not pipe.strip() or any(char < " " for char in pipe):
            raise ValueError("the pipe needs a name, without control characters")
        if connect_timeout < 0 or (timeout is not None and timeout <= 0):
            raise ValueError("a time limit must be more than 0 seconds; None is no limit")
        self.address = pipe_address(pipe)
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._decode = decode_responses
        _clients.add(self)

    def execute_command(self, *arguments: Argument) -> Any:
        # As _converse() does it, but without a list of one: nearly every call comes through here.
        data = encode_command(arguments)
        connection = self._take()
        try:
            reader = connection.reader
            reader.feed(connection.transport.exchange(data))
            reply = reader.read(self._decode)
        except BaseException:
            self._drop(connection)
            raise
        self._keep(connection, reply)
        return _convert(arguments[0], reply)

    def pipeline(self, transaction: bool = False) -> Pipeline:
        """Commands that are sent together; see :class:`Pipeline`.

        :param transaction: not served yet.
        :raises NotImplementedError: for a transaction.
        """
        if transaction:
            raise NotImplementedError("transactions are not served yet; leave transaction=False")
        return Pipeline(self)

    def close(self) -> None:
        """Close the connections that are not in use; the next command opens a new one."""
        with contextlib.suppress(IndexError):  # other threads may take some meanwhile
            while True:
                self._idle.pop().transport.close()

    #: A pipe's handle, unlike a socket, would stay open until the process ends.
    __del__ = close

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _converse(self, data: bytes, replies: int) -> list[Any]:
        # Send these commands and return their replies, errors among them.
        connection = self._take()
        try:
            reader = connection.reader
            reader.feed(connection.transport.exchange(data))
            result = [reader.read(self._decode) for _ in range(replies)]
        except BaseException:
            self._drop(connection)
            raise
        self._keep(connection, result[-1])
        return result

    def _take(self) -> _Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return _Connection(make_transport(self.address, self._connect_timeout, self._timeout))

    def _keep(self, connection: _Connection, last_reply: Any) -> None:
        if type(last_reply) is ResponseError and str(last_reply).startswith("ERR Protocol error"):
            connection.transport.close()  # as the server does after this reply
        else:
            self._idle.append(connection)

    def _drop(self, connection: _Connection) -> None:
        connection.transport.close()
        # The other idle connections were to the same server, which may be gone.
        self.close()


#: Every client there is, for a forked child: it must not talk on its parent's connections.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _close_inherited() -> None:
    for client in _clients:
        client.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _convert(name: Argument, reply: Any) -> Any:
    if isinstance(reply, ResponseError):
        raise reply
    converter = CONVERTERS.get(name) if isinstance(name, str) else None
    return reply if converter is None or reply is None else converter(reply)


class Pipeline(Commands):
    """Commands collected here and sent together by :meth:`execute`.

    Each method returns the pipeline itself.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._commands: list[Sequence[Argument]] = []

    def __len__(self) -> int:
        return len(self._commands)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._commands.clear()

    def execute_command(self, *arguments: Argument) -> Any:
        self._commands.append(arguments)
        return self

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the commands, and return their results in order.

        :param raise_on_error: raise the first error after all have run, rather than return
            errors in their places.
        """
        commands, self._commands = self._commands, []
        results: list[Any] = []
        batch: list[bytes] = []
        size = 0
        for command in commands:
            batch.append(encode_command(command))
            size += len(batch[-1])
            # In parts, so that the server is not waiting for its replies to be read while this
            # side is waiting for its commands to be.
            if size > PIPELINE_BYTES:
                results += self._client._converse(b"".join(batch), len(batch))
                batch, size = [], 0
        if batch:
            results += self._client._converse(b"".join(batch), len(batch))
        for number, (command, reply) in enumerate(zip(commands, results), 1):
            if not isinstance(reply, ResponseError):
                results[number - 1] = _convert(command[0], reply)
            elif raise_on_error:
                raise type(reply)(f"Command {number} ({command[0]!r}) of the pipeline: {reply}")
        return results


def send_command(command: str, pipe: str = DEFAULT_PIPE) -> str:
    """Send one text command on a connection of its own and return the reply.

    :param command: as in ``SET city dubai``; everything after the key is the value.
    :returns: the reply, ``ERROR: ...`` from the server included, or
        ``Error: Cache server not running``.
    :raises ConnectionLost, CacheTimeout: if the server goes away or does not answer.
    """
    try:
        transport = make_transport(pipe_address(pipe), CONNECT_TIMEOUT, TIMEOUT)
    except ServerNotRunning:
        return "Error: Cache server not running"
    try:
        return transport.ask(command.encode("utf-8", "surrogateescape")).decode(
            "utf-8", "surrogateescape"
        )
    finally:
        transport.close()


# ----------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------


def _show(reply: Any, missing: bytes) -> bytes:
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, list):
        return b"\n".join([_show(element, missing) for element in reply])
    if isinstance(reply, ResponseError):
        return b"ERROR: " + str(reply).partition(" ")[2].rstrip().encode()
    return missing if reply is None else str(reply).encode()


def _print(data: bytes) -> None:
    # To a program or a file as it is; to a person in characters the console has.
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        encoding = sys.stdout.encoding or "utf-8"
        print(data.decode("utf-8", "replace").encode(encoding, "replace").decode(encoding))
    else:
        sys.stdout.buffer.write(data + os.linesep.encode())
        sys.stdout.buffer.flush()


# One word: quoted, or bare. As in the server's text commands a quote counts at the start of a word
# only (it's is a word), and a backslash is a character like any other.
_WORD = re.compile(rb"""[ \t]*(?:"([^"]*)"(?![^ \t])|'([^']*)'(?![^ \t])|([^ \t"'][^ \t]*))""")


def _split(line: bytes) -> list[bytes]:
    words: list[bytes] = []
    position = 0
    while True:
        match = _WORD.match(line, position)
        if match is None:
            break
        words.append(match[match.lastindex or 0])
        position = match.end()
    if line[position:].strip():
        raise ValueError("Unbalanced quotes in the command")
    return words


def _run(cache: Client, arguments: Sequence[bytes], missing: bytes) -> int:
    """Carry out one command, print its reply, and return the exit status."""
    try:
        # The name is in bytes, so that the reply comes as it is.
        _print(_show(cache.execute_command(*arguments), missing))
    except ResponseError as error:
        _print(_show(error, missing))
        return 1
    except (ServerNotRunning, ConnectionLost, CacheTimeout, ProtocolError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _lines(prompt: str) -> Iterator[bytes]:
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # line editing, where there is such a thing
            import readline  # noqa: F401
        with contextlib.suppress(EOFError):
            while True:
                yield input(prompt).encode("utf-8", "surrogateescape")
    elif hasattr(sys.stdin, "buffer"):
        # As bytes, which another program means as UTF-8 whatever the console's characters are.
        yield from (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    else:
        yield from (line.rstrip("\n").encode() for line in sys.stdin)


def _prompt(cache: Client, name: str) -> int:
    status = 0
    if sys.stdin.isatty():
        print(f"{cache.address}: HELP lists the commands, QUIT ends")
    for line in _lines(f"{name}> "):
        try:
            arguments = _split(line)
        except ValueError as error:
            print(f"ERROR: {error}")
            status = max(status, 1)
            continue
        if arguments and arguments[0].upper() in (b"QUIT", b"EXIT"):
            break
        if arguments:
            status = max(status, _run(cache, arguments, b"(nil)"))
    return 0 if sys.stdin.isatty() else status


def main(arguments: Sequence[str] | None = None) -> int:
    """Send one command, or prompt for them.

    :param arguments: the command line, ``sys.argv[1:]`` if None.
    :returns: the exit status: 0, 1 for an error reply, 2 when no server answers.
    """
    parser = argparse.ArgumentParser(
        prog="client.py",
        usage="client.py [-h] [--version] [--pipe NAME] [COMMAND [ARGUMENT ...]]",
        description="Send a command to a pipecache server, or prompt for commands.",
        epilog='Example: client.py SET greeting "hello world"',
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pipe", metavar="NAME", default=DEFAULT_PIPE, help="name of the pipe (%(default)s)"
    )
    parser.add_argument("--version", action="version", version=f"client {__version__}")
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="a command and its arguments, after the options; none for a prompt",
    )
    options = parser.parse_args(arguments)
    if not options.command and sys.stdin is None:
        parser.error("a command is needed, as there is no input to read commands from")
    try:
        cache = Client(options.pipe, decode_responses=False)
    except ValueError as error:
        parser.error(str(error))
    with cache:
        try:
            if options.command:
                return _run(cache, [_argument(each) for each in options.command], b"")
            return _prompt(cache, options.pipe)
        except KeyboardInterrupt:
            print()
            return 130
        except BrokenPipeError:
            # Nobody reads the output any more; nor is it to be flushed at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            print(f"Error: cannot write the reply: {error}", file=sys.stderr)
            return 1


def _argument(text: str) -> bytes:
    # Off Windows a file's name, say, as the shell gave it.
    return text.encode("utf-8", "surrogatepass") if os.name == "nt" else os.fsencode(text)


if __name__ == "__main__":
    sys.exit(main())
