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
import errno
import functools
import json
import math
import os
import re
import select
import socket
import stat
import struct
import sys
import threading
import time
import weakref
from collections import deque
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, Sequence, Union

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

__all__ = [
    "AuthenticationError",
    "CacheError",
    "CacheTimeout",
    "Client",
    "ConnectionLost",
    "DataError",
    "ExecAbortError",
    "Lock",
    "LockError",
    "LockNotOwnedError",
    "Monitor",
    "OutOfMemoryError",
    "Pipeline",
    "ProtocolError",
    "PubSub",
    "PubSubError",
    "PubSubWorkerThread",
    "ResponseError",
    "ServerNotRunning",
    "UntrustedServer",
    "WatchError",
    "WrongTypeError",
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

#: What a key or a value can be given as; numbers are sent in decimal.
Argument = Union[str, bytes, bytearray, memoryview, int, float]

#: One of them, or several.
Arguments = Union[Argument, Iterable[Argument]]

#: How a reply is given to the caller.
Converter = Callable[[Any], Any]


# ----------------------------------------------------------------------------
# Exceptions
# ----------------------------------------------------------------------------


class CacheError(Exception):
    """The base of every exception this module raises of its own."""


class ServerNotRunning(CacheError, ConnectionError):
    """Nobody serves the pipe, or it may not be opened; the message says which."""


class UntrustedServer(CacheError, ConnectionError):
    """Somebody else's program serves the pipe; nothing was sent to it."""


class ConnectionLost(CacheError, ConnectionError):
    """The server ended the connection. The command may have run; the next call reconnects."""


class CacheTimeout(CacheError, TimeoutError):
    """No free instance of the pipe, or no reply, within the time limit."""


class ProtocolError(CacheError):
    """What came back is not RESP: another program serves the pipe."""


class DataError(CacheError, TypeError):
    """An argument that cannot be sent."""


class ResponseError(CacheError):
    """The server answered with an error.

    :ivar status_code: the word it began with, such as ERR. As in redis-py, that word is no part
        of the message if it is ERR or has an exception of its own there.
    """

    status_code = "ERR"


class WrongTypeError(ResponseError):
    """The key holds another type of value than the command is for."""


class OutOfMemoryError(ResponseError):
    """The server holds as much as it may, and the command would add to it."""


class AuthenticationError(ResponseError):
    """The server asks for a password, or this is not it."""


class ExecAbortError(ResponseError):
    """A transaction was discarded, as one of its commands could not be queued."""


class WatchError(CacheError):
    """A watched key has changed, or can be watched no longer: the transaction has not run."""


class LockError(CacheError, ValueError):
    """A lock was not got in time, or is not held."""


class LockNotOwnedError(LockError):
    """A lock that was held has run out, and may be held by somebody else."""


class PubSubError(CacheError):
    """A channel has no handler, and nobody would get its messages."""


_ERRORS = {
    "ERR": ResponseError,
    "OOM": OutOfMemoryError,
    "NOAUTH": AuthenticationError,
    "WRONGPASS": AuthenticationError,
    "EXECABORT": ExecAbortError,
}


def _response_error(line: str) -> ResponseError:
    code, _, message = line.partition(" ")
    if code in _ERRORS:
        error = _ERRORS[code](message)
    else:
        error = (WrongTypeError if code == "WRONGTYPE" else ResponseError)(line)
    error.status_code = code
    return error


# ----------------------------------------------------------------------------
# Wire protocol: RESP commands and replies
# ----------------------------------------------------------------------------


class _Headers(Dict[int, str]):
    # What stands before an array of so many elements ("*2") or a string of so many bytes ("$3"):
    # looked up, not formatted, for the small ones that nearly everything is made of.
    def __init__(self, kind: str, limit: int) -> None:
        super().__init__((size, f"{kind}{size}") for size in range(limit))
        self._kind = kind

    def __missing__(self, size: int) -> str:
        return f"{self._kind}{size}"


_ARRAY_OF = _Headers("*", 129)
_STRING_OF = _Headers("$", 1025)


def encode_commands(commands: Iterable[Sequence[Argument]]) -> bytes:
    """Commands as the server reads them; str is sent as UTF-8.

    :raises DataError: for an argument of another type; None and bool among them.
    """
    # Put together as text whose characters are the bytes (latin-1), which takes half as long as
    # bytes do, since nearly every argument is text; but for long data, to copy it no more.
    parts: list[bytes] = []
    lines: list[str] = []
    for arguments in commands:
        lines.append(_ARRAY_OF[len(arguments)])
        for argument in arguments:
            if type(argument) is not str or not argument.isascii():
                data = _encode_argument(argument)
                if len(data) > CHUNK_SIZE:
                    lines += (_STRING_OF[len(data)], "")
                    parts += ("\r\n".join(lines).encode("latin-1"), data)
                    lines = [""]
                    continue
                argument = data.decode("latin-1")  # noqa: PLW2901
            lines.append(_STRING_OF[len(argument)])
            lines.append(argument)
    lines.append("")
    parts.append("\r\n".join(lines).encode("latin-1"))
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
        self._exact = False  # whether _split() has met something in the buffer that is not for it

    def feed(self, chunk: bytes) -> None:
        """Take the first chunk of the next replies, when those before are all read."""
        self._buffer = chunk
        self._position = 0
        self._exact = False

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
            return _response_error(buffer[start + 1 : end].decode("utf-8", "replace"))
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
            return None if number < 0 else self.read_all(number, decode)
        raise ProtocolError(
            f"the reply {buffer[start : start + 64]!r} is not RESP; is this a pipecache server?"
        )

    @property
    def empty(self) -> bool:
        """Whether everything received has been read."""
        return self._position == len(self._buffer)

    def read_some(self) -> list[Any]:
        """The replies that are there, as bytes, or else the next one."""
        if self.empty:
            self.feed(self._receive())
        replies = [] if self._exact else self._split(len(self._buffer), False)
        return replies or [self.read(False)]

    def read_all(self, count: int, decode: bool) -> list[Any]:
        """So many replies, each as :meth:`read` gives it."""
        replies: list[Any] = []
        while len(replies) < count:
            buffer, start = self._buffer, self._position
            # A string of four digits' length, which splitting would have to search.
            long = buffer.startswith(b"$", start) and buffer.find(b"\r\n", start, start + 6) < 0
            if long or self._exact:
                replies.append(self.read(decode))
            else:
                replies += self._split(count - len(replies), decode)
        return replies

    def _split(self, count: int, decode: bool) -> list[Any]:
        # The quick way, for whole replies without line breaks in their strings: one split at CRLF,
        # then each string's length is compared with the one stated before it. At the first that
        # does not fit, the rest is left to read().
        rest = self._buffer[self._position :] if self._position else self._buffer
        tokens = rest.decode("latin-1").split("\r\n")
        text = _as_bytes if not decode else None if rest.isascii() else _as_text
        try:
            replies, used = _parse(tokens, 0, count, text)
        except ValueError:  # no number, or no UTF-8, of which read() makes the right exception
            replies, used = [], 0
        self._exact = len(replies) < count
        self._position += sum(map(len, tokens[:used])) + 2 * used
        return replies

    def _wait_for_line(self) -> tuple[bytes, int, int]:
        while True:
            self.feed(self._buffer[self._position :] + self._receive())
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                return self._buffer, 0, end

    def _wait_for(self, size: int) -> bytes:
        chunks = [self._buffer[self._position :]]
        missing = size + 2 - len(chunks[0])
        while missing > 0:
            chunks.append(self._receive())
            missing -= len(chunks[-1])
        self.feed(b"".join(chunks))
        return self._buffer[:size]


def _as_bytes(token: str) -> bytes:
    return token.encode("latin-1")


def _as_text(token: str) -> str:
    return token.encode("latin-1").decode()


def _parse(
    tokens: list[str], position: int, count: int, text: Converter | None
) -> tuple[list[Any], int]:
    # So many replies, or those before the first that is cut short or an error; and what is next.
    end, last = position + 2 * count, len(tokens) - 1
    if end <= last and tokens[position][:1] == "$":
        strings = tokens[position + 1 : end : 2]
        if [_STRING_OF[len(string)] for string in strings] == tokens[position:end:2]:
            return strings if text is None else list(map(text, strings)), end
    replies: list[Any] = []
    while len(replies) < count and position < last:
        header = tokens[position]
        position += 1
        kind = header[:1]
        if kind == "$" and position < last and header == _STRING_OF[len(tokens[position])]:
            replies.append(tokens[position] if text is None else text(tokens[position]))
            position += 1
        elif header in ("$-1", "*-1"):
            replies.append(None)
        elif kind == ":":
            replies.append(int(header[1:]))
        elif kind == "+":
            replies.append(header[1:] if text is None else text(header[1:]))
        elif kind == "*":
            size = int(header[1:])
            elements, after = _parse(tokens, position, size, text)
            if len(elements) != size:
                return replies, position - 1
            replies.append(elements)
            position = after
        else:
            return replies, position - 1
    return replies, position


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

    _address: str

    def exchange(self, data: bytes) -> bytes:
        """Send one message and return the first chunk of what comes back."""
        raise NotImplementedError

    def exchange_within(self, limit: float | None, data: bytes) -> bytes:
        """As :meth:`exchange`, with another time limit for what comes back; None is none."""
        with contextlib.suppress(ConnectionLost):  # what the server said before it hung up
            self.send(data)
        if not self.wait(limit):
            raise _too_slow(self._address, limit)
        return self.receive()

    def send(self, data: bytes) -> None:
        """Send one message; another thread may be waiting or receiving meanwhile."""
        raise NotImplementedError

    def receive(self) -> bytes:
        """The next chunk."""
        raise NotImplementedError

    def wait(self, timeout: float | None) -> bool:
        """Whether there is something to receive within so many seconds; None is no limit.

        Ctrl+C ends the wait, and so does the end of the connection, which receive() then finds.
        """
        raise NotImplementedError

    def interrupt(self) -> None:
        """Have another thread that waits or receives find the connection lost."""
        raise NotImplementedError

    def ask(self, text: bytes) -> bytes:
        """Send one text command and return its whole reply. Nothing may follow it."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def owner(self) -> str:
        """Whose the server's end is: a SID on Windows, elsewhere the number of a user.

        :raises OSError: if the system does not tell.
        """
        raise NotImplementedError

    def process(self) -> tuple[int, str]:
        """The server's process id and the path of its program; 0 and "" where it is not told."""
        return 0, ""

    def access(self) -> str:
        """Who may connect, as the system has it: SDDL on Windows, elsewhere the socket's mode.

        :raises OSError: if the system does not tell.
        """
        raise NotImplementedError


def _lost(address: str) -> ConnectionLost:
    return ConnectionLost(f"The server at {address} ended the connection")


def _too_slow(address: str, timeout: float | None) -> CacheTimeout:
    return CacheTimeout(f"No reply from {address} within {timeout:g} s")


def _not_running(address: str) -> ServerNotRunning:
    how = "" if address == pipe_address(DEFAULT_PIPE) else " with that --pipe"
    what = f"nobody serves {address}; start pipecache.py{how}"
    return ServerNotRunning(f"Cache server not running: {what}")


if sys.platform == "win32":
    ERROR_FILE_NOT_FOUND = 2
    ERROR_ACCESS_DENIED = 5
    ERROR_PIPE_BUSY = 231
    ERROR_MORE_DATA = 234
    ERROR_OPERATION_ABORTED = 995
    ERROR_IO_PENDING = 997

    TOKEN_QUERY = 0x0008
    TOKEN_USER_CLASS = 1
    SDDL_REVISION_1 = 1
    SE_KERNEL_OBJECT = 6
    OWNER_SECURITY_INFORMATION = 0x00000001
    DACL_SECURITY_INFORMATION = 0x00000004
    PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
    #: Whose programs could do what this user's can anyway: SYSTEM and Administrators.
    POWERFUL = ("S-1-5-18", "S-1-5-32-544")

    GENERIC_READ = 0x80000000
    GENERIC_WRITE = 0x40000000
    OPEN_EXISTING = 3
    FILE_FLAG_OVERLAPPED = 0x40000000
    SECURITY_SQOS_PRESENT = 0x00100000
    SECURITY_IDENTIFICATION = 0x00010000
    PIPE_READMODE_MESSAGE = 0x00000002

    WAIT_OBJECT_0 = 0x00000000
    WAIT_TIMEOUT = 258
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
    _advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
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
    LocalFree = _bind(_kernel32, "LocalFree", wintypes.HLOCAL, None, wintypes.HLOCAL)
    GetCurrentProcess = _bind(_kernel32, "GetCurrentProcess", HANDLE, None)
    OpenProcessToken = _bind(
        _advapi32, "OpenProcessToken", BOOL, _true, HANDLE, DWORD, ctypes.POINTER(HANDLE)
    )
    GetTokenInformation = _bind(
        _advapi32, "GetTokenInformation", BOOL, _true, HANDLE, ctypes.c_int, LPVOID, DWORD, LPDWORD
    )
    ConvertSidToStringSidW = _bind(
        _advapi32, "ConvertSidToStringSidW", BOOL, _true, LPVOID, ctypes.POINTER(LPVOID)
    )
    ConvertStringSidToSidW = _bind(
        _advapi32, "ConvertStringSidToSidW", BOOL, _true, wintypes.LPCWSTR, ctypes.POINTER(LPVOID)
    )
    ConvertSecurityDescriptorToStringSecurityDescriptorW = _bind(
        _advapi32, "ConvertSecurityDescriptorToStringSecurityDescriptorW", BOOL, _true,
        LPVOID, DWORD, DWORD, ctypes.POINTER(LPVOID), LPDWORD,
    )
    GetSecurityInfo = _bind(
        _advapi32, "GetSecurityInfo", DWORD, None,
        HANDLE, ctypes.c_int, DWORD, LPVOID, LPVOID, LPVOID, LPVOID, ctypes.POINTER(LPVOID),
    )
    LookupAccountSidW = _bind(
        _advapi32, "LookupAccountSidW", BOOL, _true,
        wintypes.LPCWSTR, LPVOID, wintypes.LPWSTR, LPDWORD, wintypes.LPWSTR, LPDWORD, LPDWORD,
    )

    GetNamedPipeServerProcessId = _bind(
        _kernel32, "GetNamedPipeServerProcessId", BOOL, None, HANDLE, wintypes.PULONG
    )
    OpenProcess = _bind(_kernel32, "OpenProcess", HANDLE, None, DWORD, BOOL, DWORD)
    QueryFullProcessImageNameW = _bind(
        _kernel32, "QueryFullProcessImageNameW", BOOL, None, HANDLE, DWORD, wintypes.LPWSTR, LPDWORD
    )
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

    def _string_of(sid: Any) -> str:
        text = LPVOID()
        ConvertSidToStringSidW(sid, ctypes.byref(text))
        try:
            return ctypes.wstring_at(text.value or 0)
        finally:
            LocalFree(text)

    @functools.lru_cache(maxsize=None)
    def this_account() -> str:
        """The SID of the account this process runs as; OSError if Windows does not tell."""
        token = HANDLE()
        OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, ctypes.byref(token))
        try:
            # TOKEN_USER: a pointer to the SID, then the SID, which has 68 bytes at most.
            user = (ctypes.c_void_p * 32)()
            size = DWORD()
            GetTokenInformation(
                token, TOKEN_USER_CLASS, user, ctypes.sizeof(user), ctypes.byref(size)
            )
            return _string_of(user[0])
        finally:
            CloseHandle(token)

    def account_name(account: str) -> str:
        """What people call the account with this SID; the SID itself if nobody knows it."""
        sid = LPVOID()
        name, domain = (ctypes.create_unicode_buffer(256) for _ in range(2))
        try:
            ConvertStringSidToSidW(account, ctypes.byref(sid))
            sizes = [ctypes.byref(DWORD(256)) for _ in range(2)]
            kind = ctypes.byref(DWORD())
            LookupAccountSidW(None, sid, name, sizes[0], domain, sizes[1], kind)
        except OSError:
            return account
        finally:
            LocalFree(sid)
        return f"{domain.value}\\{name.value}" if domain.value else name.value

    class PipeTransport(Transport):
        """A connection to a named pipe, in message mode."""

        def __init__(self, address: str, connect_timeout: float, timeout: float | None) -> None:
            self._address = address
            self._timeout = timeout
            self._handle: int | None = None
            self._events: list[int] = []
            self._interrupted = False
            self._pending = False  # whether wait() has begun to read
            self._chunk: bytes | None = None  # what wait() has read
            self._open(time.monotonic() + connect_timeout, connect_timeout)
            try:
                mode = DWORD(PIPE_READMODE_MESSAGE)
                SetNamedPipeHandleState(self._handle, ctypes.byref(mode), None, None)
                for _ in range(2):
                    self._events.append(CreateEventW(None, True, False, None))
            except OSError as error:
                self.close()
                raise ServerNotRunning(f"Cannot use {address}: {error}") from error
            # One for each direction, for a message may be sent while another is awaited.
            self._reading, self._writing = (OVERLAPPED(hEvent=each) for each in self._events)
            self._read_overlapped = ctypes.byref(self._reading)
            self._write_overlapped = ctypes.byref(self._writing)
            self._buffer = ctypes.create_string_buffer(CHUNK_SIZE)
            self._view = memoryview(self._buffer)
            self._count = DWORD()
            self._counted = ctypes.byref(self._count)
            self._written = DWORD()
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
                raise self._refused(error, timeout) from ctypes.WinError(error)

        def _refused(self, error: int, timeout: float) -> CacheError:
            if error == ERROR_FILE_NOT_FOUND:
                return _not_running(self._address)
            if error == ERROR_PIPE_BUSY:
                return CacheTimeout(
                    f"Every instance of {self._address} was busy for {timeout:g} s;"
                    " start the server with a higher --max-clients"
                )
            if error == ERROR_ACCESS_DENIED:
                return ServerNotRunning(
                    f"{self._address} belongs to another account, and does not let this one connect"
                )
            return ServerNotRunning(f"Cannot open {self._address}: {ctypes.WinError(error)}")

        def exchange(self, data: bytes) -> bytes:
            # Not TransactNamedPipe, which would do both at once: under Wine it is slower, and it
            # fails when something is left to read.
            try:
                if len(data) <= PIECE_SIZE:
                    self._write(data)
                else:
                    self.send(data)
            except ConnectionLost:
                return self.receive()  # what the server said before it hung up
            return self.receive()

        def send(self, data: bytes) -> None:
            for start in range(0, len(data), PIECE_SIZE):
                self._write(data[start : start + PIECE_SIZE])

        def _write(self, data: bytes) -> None:
            if not WriteFile(self._handle, data, len(data), None, self._write_overlapped):
                error = ctypes.get_last_error()
                if error == ERROR_IO_PENDING:
                    error = self._outcome(self._writing, self._written)
                if error:
                    raise _lost(self._address) from ctypes.WinError(error)

        def receive(self) -> bytes:
            if self._pending or self._chunk is not None:
                if not self.wait(self._timeout):
                    raise _too_slow(self._address, self._timeout)
                chunk, self._chunk = self._chunk, None
                return chunk or b""
            if ReadFile(
                self._handle, self._buffer, CHUNK_SIZE, self._counted, self._read_overlapped
            ):
                self._more = False
            else:
                error = ctypes.get_last_error()
                if error == ERROR_IO_PENDING:
                    error = self._outcome(self._reading, self._count)
                self._check(error)
            return self._view[: self._count.value].tobytes()

        def wait(self, timeout: float | None) -> bool:
            # By a read that is left to go on when the time is up: what it takes is not lost.
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            while self._chunk is None:
                error = 0
                if not self._pending and not ReadFile(
                    self._handle, self._buffer, CHUNK_SIZE, self._counted, self._read_overlapped
                ):
                    error = ctypes.get_last_error()
                    self._pending = error == ERROR_IO_PENDING
                if self._pending:
                    if not self._signalled(self._reading, deadline):
                        return False
                    self._pending = False
                    error = self._result(self._reading, self._count)
                    if error == ERROR_OPERATION_ABORTED and not self._interrupted:
                        continue  # Windows cancels what a thread has begun when that ends
                self._check(error)
                self._chunk = self._view[: self._count.value].tobytes()
            return True

        def ask(self, text: bytes) -> bytes:
            self._write(text)
            chunks = [self.receive()]
            while self._more:
                chunks.append(self.receive())
            return b"".join(chunks)

        def _check(self, error: int) -> None:
            if error == ERROR_MORE_DATA:
                self._count.value = CHUNK_SIZE
            elif error:
                raise _lost(self._address) from ctypes.WinError(error)
            self._more = error == ERROR_MORE_DATA

        def _outcome(self, operation: OVERLAPPED, count: wintypes.DWORD) -> int:
            # The error, or 0, of an operation that goes on.
            timeout = math.inf if self._timeout is None else self._timeout
            try:
                if not self._signalled(operation, time.monotonic() + timeout):
                    raise _too_slow(self._address, self._timeout)
            except BaseException:
                self._cancel(operation, count)
                raise
            return self._result(operation, count)

        def _result(self, operation: OVERLAPPED, count: wintypes.DWORD) -> int:
            done = GetOverlappedResult(
                self._handle, ctypes.byref(operation), ctypes.byref(count), False
            )
            return 0 if done else ctypes.get_last_error()

        def _signalled(self, operation: OVERLAPPED, deadline: float) -> bool:
            # The one place that waits: in slices, or Ctrl+C is not seen.
            left = deadline - time.monotonic()
            while True:
                milliseconds = math.ceil(min(SLICE, max(left, 0)) * 1000)
                outcome = WaitForSingleObject(operation.hEvent, milliseconds)
                if outcome == WAIT_OBJECT_0:
                    return True
                if self._interrupted or outcome != WAIT_TIMEOUT:
                    raise _lost(self._address)
                left = deadline - time.monotonic()
                if left <= 0:
                    return False

        def _cancel(self, operation: OVERLAPPED, count: wintypes.DWORD) -> None:
            # Until GetOverlappedResult has returned, the system may write to the buffer.
            CancelIoEx(self._handle, ctypes.byref(operation))
            GetOverlappedResult(self._handle, ctypes.byref(operation), ctypes.byref(count), True)

        def interrupt(self) -> None:
            # A thread that is just about to read sees the flag when its slice is over.
            self._interrupted = True
            CancelIoEx(self._handle, self._read_overlapped)

        def close(self) -> None:
            if self._pending:
                self._pending = False
                self._cancel(self._reading, self._count)
            handles, self._events = self._events, []
            if self._handle is not None:
                handles.append(self._handle)
                self._handle = None
            for handle in handles:
                CloseHandle(handle)

        def owner(self) -> str:
            sid = LPVOID()
            descriptor = self._descriptor(OWNER_SECURITY_INFORMATION, ctypes.byref(sid))
            try:
                return _string_of(sid)
            finally:
                LocalFree(descriptor)

        def access(self) -> str:
            wanted, text = DACL_SECURITY_INFORMATION, LPVOID()
            descriptor = self._descriptor(wanted, None)
            try:
                ConvertSecurityDescriptorToStringSecurityDescriptorW(
                    descriptor, SDDL_REVISION_1, wanted, ctypes.byref(text), None
                )
                return ctypes.wstring_at(text.value or 0)
            finally:
                LocalFree(text)
                LocalFree(descriptor)

        def _descriptor(self, wanted: int, owner: Any) -> Any:
            # What GetSecurityInfo tells of the pipe, to be freed; the owner points into it.
            descriptor = LPVOID()
            error = GetSecurityInfo(
                self._handle, SE_KERNEL_OBJECT, wanted, owner, None, None, None,
                ctypes.byref(descriptor),
            )  # fmt: skip
            if error:
                raise ctypes.WinError(error)
            return descriptor

        def process(self) -> tuple[int, str]:
            process = wintypes.ULONG()
            if not GetNamedPipeServerProcessId(self._handle, ctypes.byref(process)):
                return 0, ""
            handle = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, False, process.value)
            if not handle:
                return process.value, ""
            try:
                path = ctypes.create_unicode_buffer(32768)
                size = DWORD(len(path))
                found = QueryFullProcessImageNameW(handle, 0, path, ctypes.byref(size))
                return process.value, path.value if found else ""
            finally:
                CloseHandle(handle)

    make_transport: Callable[[str, float, float | None], Transport] = PipeTransport

else:
    #: Whose programs could do what this user's can anyway: root.
    POWERFUL = ("0",)

    def this_account() -> str:
        """The number of the user this process runs as."""
        return str(os.geteuid())

    def account_name(account: str) -> str:
        """What people call the user with this number; the number itself if nobody knows it."""
        import pwd

        try:
            return pwd.getpwuid(int(account)).pw_name
        except KeyError:
            return f"user {account}"

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
                self.send(data)
            except ConnectionLost:
                return self.receive()  # what the server said before it hung up
            return self.receive()

        def send(self, data: bytes) -> None:
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

        def wait(self, timeout: float | None) -> bool:
            poll = select.poll()
            try:
                poll.register(self._socket, select.POLLIN)
            except ValueError:  # closed, in a child that was forked
                raise _lost(self._address) from None
            # The longest that poll() takes is 24 days.
            limit = None if timeout is None else min(math.ceil(max(timeout, 0) * 1000), 2**31 - 1)
            return bool(poll.poll(limit))

        def interrupt(self) -> None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

        def ask(self, text: bytes) -> bytes:
            # On a stream a command ends at the line feed, and its reply, which may hold line
            # feeds, where the server has nothing more to say.
            if b"\n" in text:
                raise DataError(
                    "a text command holds no line break outside Windows; use Client instead"
                )
            self.send(text + b"\n")
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

        def owner(self) -> str:
            credentials = self._credentials()
            return str(os.stat(self._address).st_uid if credentials is None else credentials[1])

        def access(self) -> str:
            return f"{stat.S_IMODE(os.stat(self._address).st_mode):04o}"

        def _credentials(self) -> tuple[int, ...] | None:
            # Process, user and group of the one that listens, where the system tells that.
            if not hasattr(socket, "SO_PEERCRED"):
                return None
            size = struct.calcsize("3i")
            option = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            return struct.unpack("3i", option)

        def process(self) -> tuple[int, str]:
            process = (self._credentials() or (0,))[0]
            try:
                return process, os.readlink(f"/proc/{process}/exe")
            except OSError:
                return process, ""

    make_transport = UnixTransport


def connect(
    address: str, connect_timeout: float, timeout: float | None, trust_any_owner: bool
) -> Transport:
    """Open a connection to a server that is this user's own, or SYSTEM's or an administrator's.

    A false server that was quicker to take the name would else be told what is meant for the own.

    :param connect_timeout: in seconds, as ``timeout``, which is that of replies.
    :param trust_any_owner: whether it may be anybody's.
    :raises UntrustedServer: if it is somebody else's.
    """
    transport = make_transport(address, connect_timeout, timeout)
    if not trust_any_owner:
        try:
            owner = transport.owner()
            if owner != this_account() and owner not in POWERFUL:
                raise UntrustedServer(
                    f"{address} is served by another user, {account_name(owner)}, and was told"
                    " nothing: if you trust it, say trust_any_owner=True (--trust-any-owner)"
                )
        except OSError as error:
            transport.close()
            if isinstance(error, UntrustedServer):
                raise
            raise UntrustedServer(f"{address} does not tell whose it is: {error}") from error
    return transport


# ----------------------------------------------------------------------------
# Replies as redis-py gives them to the caller
# ----------------------------------------------------------------------------


def _text(reply: Any) -> str:
    return reply if isinstance(reply, str) else reply.decode("utf-8", "replace")


def _as_it_is(reply: Any) -> Any:
    return reply


def _is_ok(reply: Any) -> Any:
    return True if reply in ("OK", b"OK") else reply


def _mapping(reply: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(reply[::2], reply[1::2]))


def _scored(score_cast_func: Converter = float) -> Converter:
    # Members with their scores, which come as text that, for one, int() does not take: "1e+20".
    def score(text: Any) -> Any:
        try:
            return score_cast_func(text)
        except (TypeError, ValueError):
            return score_cast_func(float(text))

    return lambda reply: list(zip(reply[::2], map(score, reply[1::2])))


def _page(convert: Converter) -> Converter:
    return lambda reply: (int(reply[0]), convert(reply[1]))


def _facts(line: str) -> dict[str, str]:
    # "id=1 addr=/a file:0 name=", in which a value may have blanks in it, or be missing.
    return dict(re.findall(r"([^ =]+)=(.*?)(?= [^ =]+=|$)", line))


def _client_list(reply: Any) -> list[dict[str, str]]:
    return [_facts(line) for line in _text(reply).splitlines()]


def _client_info(reply: Any) -> dict[str, str | int]:
    numbers = " id age idle db sub psub multi qbuf qbuf-free obl argv-mem oll omem tot-mem "
    facts = _facts(_text(reply).strip())
    return {name: int(fact) if f" {name} " in numbers else fact for name, fact in facts.items()}


def _info(reply: Any) -> dict[str, Any]:
    lines = [line.partition(":") for line in _text(reply).splitlines() if line[:1] != "#"]
    return {
        name: value if name in _INFO_TEXTS else _info_value(value)
        for name, colon, value in lines
        if colon
    }


#: What INFO tells in words, or as the name of a file, which Redis does not.
_INFO_TEXTS = ("address", "db_file", "db_last_error")


def _info_value(value: str) -> Any:
    if "=" in value:  # keys=1,expires=0
        pairs = [item.rpartition("=") for item in value.split(",")]
        return {name: _info_value(number) for name, _, number in pairs}
    if "," in value:
        return [_info_value(item) for item in value.split(",") if item]
    try:
        return float(value) if "." in value else int(value)
    except ValueError:
        return value


#: The converters of commands; where it depends on the call, the call brings its own.
CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(
        (
            "FLUSHALL",
            "FLUSHDB",
            "LSET",
            "LTRIM",
            "MSET",
            "RENAME",
            "SAVE",
            "SET",
            "UNWATCH",
            "WATCH",
        ),
        _is_ok,
    ),
    "BGSAVE": lambda reply: True,
    "LASTSAVE": datetime.fromtimestamp,
    **dict.fromkeys(("COPY", "HEXISTS", "PERSIST", "RENAMENX", "SMOVE"), bool),
    **dict.fromkeys(("EXPIRE", "EXPIREAT", "PEXPIRE", "PEXPIREAT"), bool),
    **dict.fromkeys(("HMSET", "MSETNX", "PSETEX", "SETEX", "SETNX"), bool),
    **dict.fromkeys(("HINCRBYFLOAT", "INCRBYFLOAT", "ZINCRBY", "ZSCORE"), float),
    **dict.fromkeys(("SDIFF", "SINTER", "SMEMBERS", "SUNION"), set),
    **dict.fromkeys(("SCAN", "SSCAN"), _page(list)),
    **dict.fromkeys(("BLPOP", "BRPOP"), tuple),
    **dict.fromkeys(("BZPOPMAX", "BZPOPMIN"), lambda reply: (*reply[:2], float(reply[2]))),
    **dict.fromkeys(("ZPOPMAX", "ZPOPMIN"), _scored()),
    "HGETALL": _mapping,
    "HSCAN": _page(_mapping),
    "INFO": _info,
    "PING": lambda reply: True if reply in ("PONG", b"PONG") else reply,
    "TIME": lambda reply: (int(reply[0]), int(reply[1])),
    "ZMSCORE": lambda reply: [None if score is None else float(score) for score in reply],
}


#: The commands that wait, and which of their arguments says how long.
WAITING = {
    **dict.fromkeys(("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMAX", "BZPOPMIN"), -1),
    **dict.fromkeys(("BLMPOP", "BZMPOP"), 1),
}

# ----------------------------------------------------------------------------
# Commands
# ----------------------------------------------------------------------------


def _listed(keys: Arguments, more: Sequence[Argument] = ()) -> list[Argument]:
    if isinstance(keys, (str, bytes, bytearray, memoryview, int, float)):
        return [keys, *more]
    return [*keys, *more]


def _items(mapping: Mapping[Any, Argument]) -> list[Argument]:
    return [part for pair in mapping.items() for part in pair]


def _present(*arguments: Any) -> list[Argument]:
    return [argument for argument in arguments if argument is not None]


def _flags(**flags: bool) -> list[Argument]:
    return [name for name, wanted in flags.items() if wanted]


def _options(**options: Any) -> list[Argument]:
    arguments: list[Argument] = []
    for name, value in options.items():
        if value is not None:
            arguments += (name, value if type(value) is int else _time(name, value))
    return arguments


def _time(name: str, time: Any) -> Any:
    # A time as this command or option takes it: (P)EXPIRE, (P)EXPIREAT, EX, PX, EXAT, PXAT.
    unit = 1000 if name.startswith("P") else 1
    if isinstance(time, datetime) and name.endswith("AT"):
        return int(time.timestamp() * unit)
    if isinstance(time, timedelta) and not name.endswith("AT"):
        return int(time.total_seconds() * unit)
    return time


def _pages(scan: Callable[[int], Any]) -> Iterator[Any]:
    # Everything that a scan command comes across, from page to page until the cursor is 0 again.
    cursor = 0
    while True:
        cursor, page = scan(cursor)
        yield from page.items() if isinstance(page, dict) else page
        if cursor == 0:
            return


class Commands:
    """The commands as methods, for :class:`Client` and :class:`Pipeline`.

    What a command does is in Redis's documentation, and what a method takes and returns in
    redis-py's: keys and values are given as str, bytes or numbers, and come back as str (bytes
    with ``decode_responses=False``). Options that exclude each other, or are out of range, are
    refused by the server, with a :class:`ResponseError`.
    """

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        """Carry out any command, given as its name, in capitals, and arguments.

        :param convert: makes of a reply that is not None what is returned; without it the reply
            is returned as by the method for this command, if there is one.
        :returns: str (bytes with ``decode_responses=False``), int, list or None, or what the
            conversion makes of it.
        :raises ResponseError: if the server answers with an error.
        :raises ServerNotRunning, ConnectionLost, CacheTimeout: if it does not answer.
        :raises DataError: for an argument that cannot be sent.
        """
        raise NotImplementedError

    # -- Strings --

    def get(self, name: Argument) -> Any:
        """The value of a key, or None."""
        return self.execute_command("GET", name)

    def set(
        self,
        name: Argument,
        value: Argument,
        ex: int | timedelta | None = None,
        px: int | timedelta | None = None,
        nx: bool = False,
        xx: bool = False,
        keepttl: bool = False,
        get: bool = False,
        exat: int | datetime | None = None,
        pxat: int | datetime | None = None,
        ifeq: Argument | None = None,
        owned: bool = False,
    ) -> Any:
        """Set a key, to expire after ``ex`` seconds or ``px`` milliseconds if given.

        :param nx: only if it does not exist.
        :param xx: only if it exists.
        :param keepttl: keep the time to live it has.
        :param get: return the value it had.
        :param exat, pxat: when it is to expire, in seconds or milliseconds since 1970.
        :param ifeq: only if it has this value.
        :param owned: delete it when the connection that set it ends, at the latest when the
            program does; an addition to Redis. Which connection a client uses, and when it drops
            it, is its own affair: a :class:`Lock` that is to be owned has one for itself.
        :returns: True, or None if ``nx``, ``xx`` or ``ifeq`` was not met.
        """
        options: list[Argument] = []
        if not (ex is px is exat is pxat is ifeq is None):
            options += _options(EX=ex, PX=px, EXAT=exat, PXAT=pxat, IFEQ=ifeq)
        if nx or xx or keepttl or get or owned:
            options += _flags(NX=nx, XX=xx, KEEPTTL=keepttl, GET=get, OWNED=owned)
        convert = _as_it_is if get else None  # with get, "OK" is an old value
        return self.execute_command("SET", name, value, *options, convert=convert)

    def getex(
        self,
        name: Argument,
        ex: int | timedelta | None = None,
        px: int | timedelta | None = None,
        exat: int | datetime | None = None,
        pxat: int | datetime | None = None,
        persist: bool = False,
    ) -> Any:
        """The value of a key, whose time to live is set as by :meth:`set`, or taken away."""
        options = _options(EX=ex, PX=px, EXAT=exat, PXAT=pxat)
        return self.execute_command("GETEX", name, *options, *_flags(PERSIST=persist))

    def getdel(self, name: Argument) -> Any:
        """Delete a key and return the value it had."""
        return self.execute_command("GETDEL", name)

    def getset(self, name: Argument, value: Argument) -> Any:
        """Set a key and return the value it had."""
        return self.execute_command("GETSET", name, value)

    def getrange(self, key: Argument, start: int, end: int) -> Any:
        """The bytes of a value from start to end, both included."""
        return self.execute_command("GETRANGE", key, start, end)

    def setrange(self, name: Argument, offset: int, value: Argument) -> Any:
        """Overwrite a value from an offset on and return its new length in bytes."""
        return self.execute_command("SETRANGE", name, offset, value)

    def append(self, key: Argument, value: Argument) -> Any:
        """Add to the end of a value and return its new length in bytes."""
        return self.execute_command("APPEND", key, value)

    def strlen(self, name: Argument) -> Any:
        """The length of a value in bytes."""
        return self.execute_command("STRLEN", name)

    def setnx(self, name: Argument, value: Argument) -> Any:
        """Set a key that does not exist: True if set."""
        return self.execute_command("SETNX", name, value)

    def setex(self, name: Argument, time: int | timedelta, value: Argument) -> Any:
        """Set a key to expire after so many seconds."""
        return self.execute_command("SETEX", name, _time("EX", time), value)

    def psetex(self, name: Argument, time_ms: int | timedelta, value: Argument) -> Any:
        """Set a key to expire after so many milliseconds."""
        return self.execute_command("PSETEX", name, _time("PX", time_ms), value)

    def mget(self, keys: Arguments, *args: Argument) -> Any:
        """The values of several keys, given as a list or one by one; None for a missing one."""
        names = _listed(keys, args)
        if not names:  # which the server would refuse
            return self.execute_command("PING", convert=lambda reply: [])
        return self.execute_command("MGET", *names)

    def mset(self, mapping: Mapping[Any, Argument]) -> Any:
        """Set several keys at once."""
        return self.execute_command("MSET", *_items(mapping))

    def msetnx(self, mapping: Mapping[Any, Argument]) -> Any:
        """Set several keys at once if none of them exists: True if set."""
        return self.execute_command("MSETNX", *_items(mapping))

    def incr(self, name: Argument, amount: int = 1) -> Any:
        """Add to a counter and return it."""
        return self.execute_command("INCRBY", name, amount)

    incrby = incr

    def decr(self, name: Argument, amount: int = 1) -> Any:
        """Take from a counter and return it."""
        return self.execute_command("DECRBY", name, amount)

    decrby = decr

    def incrbyfloat(self, name: Argument, amount: float = 1.0) -> Any:
        """Add to a number and return it as a float."""
        return self.execute_command("INCRBYFLOAT", name, amount)

    # -- Compare and set, as in Redis 8.4 and Valkey 9 --

    def delex(self, name: Argument, ifeq: Argument | None = None) -> Any:
        """Delete a key if it has this value: 1 if it did, else 0."""
        return self.execute_command("DELEX", name, *_options(IFEQ=ifeq))

    def delifeq(self, name: Argument, value: Argument) -> Any:
        """Delete a key if it has this value: 1 if it did, else 0."""
        return self.execute_command("DELIFEQ", name, value)

    # -- Keys --

    def delete(self, *names: Argument) -> Any:
        """Delete keys and return how many there were."""
        return self.execute_command("DEL", *names)

    def unlink(self, *names: Argument) -> Any:
        """Delete keys and return how many there were."""
        return self.execute_command("UNLINK", *names)

    def exists(self, *names: Argument) -> Any:
        """How many of the keys exist."""
        return self.execute_command("EXISTS", *names)

    def type(self, name: Argument) -> Any:
        """What a key holds: string, list, hash, set, zset, or none."""
        return self.execute_command("TYPE", name)

    def rename(self, src: Argument, dst: Argument) -> Any:
        """Give a key another name, which may be taken."""
        return self.execute_command("RENAME", src, dst)

    def renamenx(self, src: Argument, dst: Argument) -> Any:
        """Give a key another name if that is not taken: True if renamed."""
        return self.execute_command("RENAMENX", src, dst)

    def copy(
        self,
        source: Argument,
        destination: Argument,
        destination_db: int | None = None,
        replace: bool = False,
    ) -> Any:
        """Copy a key: False if there is none, or the destination exists and is not replaced."""
        options = [*_options(DB=destination_db), *_flags(REPLACE=replace)]
        return self.execute_command("COPY", source, destination, *options)

    def randomkey(self) -> Any:
        """A key picked at random, or None if there is none."""
        return self.execute_command("RANDOMKEY")

    def touch(self, *args: Argument) -> Any:
        """Count as used now, and return how many of the keys exist."""
        return self.execute_command("TOUCH", *args)

    def keys(self, pattern: Argument = "*") -> Any:
        """The keys that match a pattern such as ``user:*``."""
        return self.execute_command("KEYS", pattern)

    def scan(
        self,
        cursor: Argument = 0,
        match: Argument | None = None,
        count: int | None = None,
        _type: str | None = None,
    ) -> Any:
        """A page of the keys, and the cursor of the next page, 0 after the last."""
        options = _options(MATCH=match, COUNT=count, TYPE=_type)
        return self.execute_command("SCAN", cursor, *options)

    def scan_iter(
        self, match: Argument | None = None, count: int | None = None, _type: str | None = None
    ) -> Iterator[Any]:
        """The keys, page by page; one that is there all the while may come more than once."""
        return _pages(lambda cursor: self.scan(cursor, match, count, _type))

    def object(self, infotype: str, key: Argument) -> Any:
        """How a key is kept: its ``"encoding"``, its ``"idletime"`` in seconds."""
        return self.execute_command("OBJECT", infotype, key)

    # -- Expiry --

    def expire(
        self,
        name: Argument,
        time: int | timedelta,
        nx: bool = False,
        xx: bool = False,
        gt: bool = False,
        lt: bool = False,
    ) -> Any:
        """Let a key expire after so many seconds: False if there is none.

        :param nx: only if it has no time to live.
        :param xx: only if it has one.
        :param gt: only if that makes it later.
        :param lt: only if that makes it earlier.
        """
        return self._expire("EXPIRE", name, time, nx, xx, gt, lt)

    def pexpire(
        self,
        name: Argument,
        time: int | timedelta,
        nx: bool = False,
        xx: bool = False,
        gt: bool = False,
        lt: bool = False,
    ) -> Any:
        """As :meth:`expire`, in milliseconds."""
        return self._expire("PEXPIRE", name, time, nx, xx, gt, lt)

    def expireat(
        self,
        name: Argument,
        when: int | datetime,
        nx: bool = False,
        xx: bool = False,
        gt: bool = False,
        lt: bool = False,
    ) -> Any:
        """As :meth:`expire`, at a time in seconds since 1970."""
        return self._expire("EXPIREAT", name, when, nx, xx, gt, lt)

    def pexpireat(
        self,
        name: Argument,
        when: int | datetime,
        nx: bool = False,
        xx: bool = False,
        gt: bool = False,
        lt: bool = False,
    ) -> Any:
        """As :meth:`expire`, at a time in milliseconds since 1970."""
        return self._expire("PEXPIREAT", name, when, nx, xx, gt, lt)

    def _expire(
        self, command: str, name: Argument, time: Any, nx: bool, xx: bool, gt: bool, lt: bool
    ) -> Any:
        flags = _flags(NX=nx, XX=xx, GT=gt, LT=lt)
        return self.execute_command(command, name, _time(command, time), *flags)

    def ttl(self, name: Argument) -> Any:
        """The seconds a key has left, -1 without a time to live, -2 without the key."""
        return self.execute_command("TTL", name)

    def pttl(self, name: Argument) -> Any:
        """As :meth:`ttl`, in milliseconds."""
        return self.execute_command("PTTL", name)

    def expiretime(self, key: Argument) -> Any:
        """When a key expires, in seconds since 1970; -1 and -2 as :meth:`ttl`."""
        return self.execute_command("EXPIRETIME", key)

    def pexpiretime(self, key: Argument) -> Any:
        """As :meth:`expiretime`, in milliseconds."""
        return self.execute_command("PEXPIRETIME", key)

    def persist(self, name: Argument) -> Any:
        """Take away a key's time to live: True if it had one."""
        return self.execute_command("PERSIST", name)

    # -- Lists --

    def lpush(self, name: Argument, *values: Argument) -> Any:
        """Put elements, one after the other, at the head, and return the new length."""
        return self.execute_command("LPUSH", name, *values)

    def rpush(self, name: Argument, *values: Argument) -> Any:
        """Put elements at the tail, and return the new length."""
        return self.execute_command("RPUSH", name, *values)

    def lpushx(self, name: Argument, *values: Argument) -> Any:
        """As :meth:`lpush`, if the list exists; else 0."""
        return self.execute_command("LPUSHX", name, *values)

    def rpushx(self, name: Argument, *values: Argument) -> Any:
        """As :meth:`rpush`, if the list exists; else 0."""
        return self.execute_command("RPUSHX", name, *values)

    def lpop(self, name: Argument, count: int | None = None) -> Any:
        """Take the element at the head, or a list of so many; None without the list."""
        return self.execute_command("LPOP", name, *_present(count))

    def rpop(self, name: Argument, count: int | None = None) -> Any:
        """Take the element at the tail, or a list of so many; None without the list."""
        return self.execute_command("RPOP", name, *_present(count))

    def llen(self, name: Argument) -> Any:
        """The length of a list."""
        return self.execute_command("LLEN", name)

    def lrange(self, name: Argument, start: int, end: int) -> Any:
        """The elements from start to end, both included; -1 is the last."""
        return self.execute_command("LRANGE", name, start, end)

    def lindex(self, name: Argument, index: int) -> Any:
        """The element at an index, or None."""
        return self.execute_command("LINDEX", name, index)

    def lset(self, name: Argument, index: int, value: Argument) -> Any:
        """Replace the element at an index."""
        return self.execute_command("LSET", name, index, value)

    def linsert(self, name: Argument, where: str, refvalue: Argument, value: Argument) -> Any:
        """Put an element ``BEFORE`` or ``AFTER`` another: the new length, or -1 without that."""
        return self.execute_command("LINSERT", name, where, refvalue, value)

    def lrem(self, name: Argument, count: int, value: Argument) -> Any:
        """Delete elements equal to the value: the first, the last (count < 0) or all (0)."""
        return self.execute_command("LREM", name, count, value)

    def ltrim(self, name: Argument, start: int, end: int) -> Any:
        """Delete every element outside of start to end."""
        return self.execute_command("LTRIM", name, start, end)

    def lpos(
        self,
        name: Argument,
        value: Argument,
        rank: int | None = None,
        count: int | None = None,
        maxlen: int | None = None,
    ) -> Any:
        """The index of an element equal to the value, or None; a list of them with ``count``.

        :param rank: which of them comes first: 2 is the second, -1 the last.
        :param maxlen: how many elements to look at.
        """
        options = _options(RANK=rank, COUNT=count, MAXLEN=maxlen)
        return self.execute_command("LPOS", name, value, *options)

    def lmove(
        self, first_list: Argument, second_list: Argument, src: str = "LEFT", dest: str = "RIGHT"
    ) -> Any:
        """Move an element from an end of one list to an end of another, and return it."""
        return self.execute_command("LMOVE", first_list, second_list, src, dest)

    def rpoplpush(self, src: Argument, dst: Argument) -> Any:
        """Move an element from the tail of one list to the head of another, and return it."""
        return self.execute_command("RPOPLPUSH", src, dst)

    def lmpop(self, num_keys: int, *args: Argument, direction: str, count: int = 1) -> Any:
        """Take elements from the first list that has any: its name and a list of them, or None.

        :param direction: ``LEFT`` or ``RIGHT``.
        """
        return self.execute_command("LMPOP", num_keys, *args, direction, "COUNT", count)

    def blpop(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """Take the element at the head of the first list that has any: the list's name and it.

        If none has, wait until one is pushed, in the order in which clients came.

        :param timeout: seconds after which the result is None; 0 or None for no limit. The
            client's own time limit counts from then on.
        :raises ConnectionLost: also while it waits. It is not sent again, as an element may have
            been taken.

        In a transaction it does not wait.
        """
        return self.execute_command("BLPOP", *_listed(keys), timeout or 0)

    def brpop(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """As :meth:`blpop`, at the tail."""
        return self.execute_command("BRPOP", *_listed(keys), timeout or 0)

    def blmove(
        self,
        first_list: Argument,
        second_list: Argument,
        timeout: float,
        src: str = "LEFT",
        dest: str = "RIGHT",
    ) -> Any:
        """As :meth:`lmove`, waiting for an element as :meth:`blpop` does."""
        return self.execute_command("BLMOVE", first_list, second_list, src, dest, timeout or 0)

    def brpoplpush(self, src: Argument, dst: Argument, timeout: float | None = 0) -> Any:
        """As :meth:`rpoplpush`, waiting for an element as :meth:`blpop` does."""
        return self.execute_command("BRPOPLPUSH", src, dst, timeout or 0)

    def blmpop(
        self,
        timeout: float,
        numkeys: int,
        *args: Argument,
        direction: str,
        count: int | None = 1,
    ) -> Any:
        """As :meth:`lmpop`, waiting for an element as :meth:`blpop` does."""
        options = _options(COUNT=count)
        return self.execute_command("BLMPOP", timeout or 0, numkeys, *args, direction, *options)

    # -- Hashes --

    def hset(
        self,
        name: Argument,
        key: Argument | None = None,
        value: Argument | None = None,
        mapping: Mapping[Any, Argument] | None = None,
        items: Sequence[Argument] | None = None,
    ) -> Any:
        """Set fields: one, those of a mapping, and a flat list; returns how many are new."""
        pairs = [*(items or ()), *_present(key, value), *_items(mapping or {})]
        return self.execute_command("HSET", name, *pairs)

    def hmset(self, name: Argument, mapping: Mapping[Any, Argument]) -> Any:
        """Set the fields of a mapping."""
        return self.execute_command("HMSET", name, *_items(mapping))

    def hsetnx(self, name: Argument, key: Argument, value: Argument) -> Any:
        """Set a field that does not exist: 1 if set, else 0."""
        return self.execute_command("HSETNX", name, key, value)

    def hget(self, name: Argument, key: Argument) -> Any:
        """The value of a field, or None."""
        return self.execute_command("HGET", name, key)

    def hmget(self, name: Argument, keys: Arguments, *args: Argument) -> Any:
        """The values of several fields, given as a list or one by one; None for a missing one."""
        return self.execute_command("HMGET", name, *_listed(keys, args))

    def hgetall(self, name: Argument) -> Any:
        """The fields and their values as a dict."""
        return self.execute_command("HGETALL", name)

    def hdel(self, name: Argument, *keys: Argument) -> Any:
        """Delete fields and return how many there were."""
        return self.execute_command("HDEL", name, *keys)

    def hlen(self, name: Argument) -> Any:
        """How many fields there are."""
        return self.execute_command("HLEN", name)

    def hexists(self, name: Argument, key: Argument) -> Any:
        """Whether a field exists."""
        return self.execute_command("HEXISTS", name, key)

    def hstrlen(self, name: Argument, key: Argument) -> Any:
        """The length of a field's value in bytes."""
        return self.execute_command("HSTRLEN", name, key)

    def hkeys(self, name: Argument) -> Any:
        """The fields as a list."""
        return self.execute_command("HKEYS", name)

    def hvals(self, name: Argument) -> Any:
        """The values as a list."""
        return self.execute_command("HVALS", name)

    def hincrby(self, name: Argument, key: Argument, amount: int = 1) -> Any:
        """Add to a field and return it."""
        return self.execute_command("HINCRBY", name, key, amount)

    def hincrbyfloat(self, name: Argument, key: Argument, amount: float = 1.0) -> Any:
        """Add to a field and return it as a float."""
        return self.execute_command("HINCRBYFLOAT", name, key, amount)

    def hrandfield(self, key: Argument, count: int | None = None, withvalues: bool = False) -> Any:
        """A field picked at random, or a list of so many, each followed by its value if asked."""
        flags = _flags(WITHVALUES=withvalues)
        return self.execute_command("HRANDFIELD", key, *_present(count), *flags)

    def hscan(
        self,
        name: Argument,
        cursor: Argument = 0,
        match: Argument | None = None,
        count: int | None = None,
    ) -> Any:
        """The cursor of the next page, and a page of the fields and values as a dict."""
        return self.execute_command("HSCAN", name, cursor, *_options(MATCH=match, COUNT=count))

    def hscan_iter(
        self, name: Argument, match: Argument | None = None, count: int | None = None
    ) -> Iterator[Any]:
        """The pairs of field and value, page by page."""
        return _pages(lambda cursor: self.hscan(name, cursor, match, count))

    # -- Sets --

    def sadd(self, name: Argument, *values: Argument) -> Any:
        """Add members and return how many are new."""
        return self.execute_command("SADD", name, *values)

    def srem(self, name: Argument, *values: Argument) -> Any:
        """Delete members and return how many there were."""
        return self.execute_command("SREM", name, *values)

    def scard(self, name: Argument) -> Any:
        """How many members there are."""
        return self.execute_command("SCARD", name)

    def sismember(self, name: Argument, value: Argument) -> Any:
        """1 for a member, else 0."""
        return self.execute_command("SISMEMBER", name, value)

    def smismember(self, name: Argument, values: Arguments, *args: Argument) -> Any:
        """1 or 0 for each of several values, given as a list or one by one."""
        return self.execute_command("SMISMEMBER", name, *_listed(values, args))

    def smembers(self, name: Argument) -> Any:
        """The members as a set."""
        return self.execute_command("SMEMBERS", name)

    def smove(self, src: Argument, dst: Argument, value: Argument) -> Any:
        """Move a member from one set to another: False if it is none."""
        return self.execute_command("SMOVE", src, dst, value)

    def spop(self, name: Argument, count: int | None = None) -> Any:
        """Take a member at random, or a list of so many; None without the set."""
        return self.execute_command("SPOP", name, *_present(count))

    def srandmember(self, name: Argument, number: int | None = None) -> Any:
        """A member picked at random, or a list of so many (< 0: with repeats)."""
        return self.execute_command("SRANDMEMBER", name, *_present(number))

    def sinter(self, keys: Arguments, *args: Argument) -> Any:
        """The members that all the sets have, as a set."""
        return self.execute_command("SINTER", *_listed(keys, args))

    def sunion(self, keys: Arguments, *args: Argument) -> Any:
        """The members that any of the sets has, as a set."""
        return self.execute_command("SUNION", *_listed(keys, args))

    def sdiff(self, keys: Arguments, *args: Argument) -> Any:
        """The members of the first set that no other has, as a set."""
        return self.execute_command("SDIFF", *_listed(keys, args))

    def sinterstore(self, dest: Argument, keys: Arguments, *args: Argument) -> Any:
        """As :meth:`sinter`, kept in a key: how many they are."""
        return self.execute_command("SINTERSTORE", dest, *_listed(keys, args))

    def sunionstore(self, dest: Argument, keys: Arguments, *args: Argument) -> Any:
        """As :meth:`sunion`, kept in a key: how many they are."""
        return self.execute_command("SUNIONSTORE", dest, *_listed(keys, args))

    def sdiffstore(self, dest: Argument, keys: Arguments, *args: Argument) -> Any:
        """As :meth:`sdiff`, kept in a key: how many they are."""
        return self.execute_command("SDIFFSTORE", dest, *_listed(keys, args))

    def sintercard(self, numkeys: int, keys: Sequence[Argument], limit: int = 0) -> Any:
        """How many members all the sets have, counted up to the limit if it is not 0."""
        return self.execute_command("SINTERCARD", numkeys, *keys, "LIMIT", limit)

    def sscan(
        self,
        name: Argument,
        cursor: Argument = 0,
        match: Argument | None = None,
        count: int | None = None,
    ) -> Any:
        """The cursor of the next page, and a page of the members."""
        return self.execute_command("SSCAN", name, cursor, *_options(MATCH=match, COUNT=count))

    def sscan_iter(
        self, name: Argument, match: Argument | None = None, count: int | None = None
    ) -> Iterator[Any]:
        """The members, page by page."""
        return _pages(lambda cursor: self.sscan(name, cursor, match, count))

    # -- Sorted sets --

    def zadd(
        self,
        name: Argument,
        mapping: Mapping[Any, Argument],
        nx: bool = False,
        xx: bool = False,
        ch: bool = False,
        incr: bool = False,
        gt: bool = False,
        lt: bool = False,
    ) -> Any:
        """Set the scores of members and return how many are new.

        :param nx: only of those that are new.
        :param xx: only of those that are not.
        :param gt: of those that are not, only if that makes it higher.
        :param lt: only if that makes it lower.
        :param ch: return how many are new or changed.
        :param incr: add to the score of the one member, and return it, or None if it was not set.
        """
        flags = _flags(NX=nx, XX=xx, CH=ch, INCR=incr, GT=gt, LT=lt)
        pairs = [part for member, score in mapping.items() for part in (score, member)]
        return self.execute_command("ZADD", name, *flags, *pairs, convert=float if incr else None)

    def zincrby(self, name: Argument, amount: float, value: Argument) -> Any:
        """Add to the score of a member and return it."""
        return self.execute_command("ZINCRBY", name, amount, value)

    def zscore(self, name: Argument, value: Argument) -> Any:
        """The score of a member as a float, or None."""
        return self.execute_command("ZSCORE", name, value)

    def zmscore(self, key: Argument, members: Sequence[Argument]) -> Any:
        """The scores of several members; None for one that is none."""
        return self.execute_command("ZMSCORE", key, *members)

    def zrem(self, name: Argument, *values: Argument) -> Any:
        """Delete members and return how many there were."""
        return self.execute_command("ZREM", name, *values)

    def zcard(self, name: Argument) -> Any:
        """How many members there are."""
        return self.execute_command("ZCARD", name)

    def zcount(self, name: Argument, min: Argument, max: Argument) -> Any:
        """How many members have a score from min to max; ``"(1"`` is without 1 itself."""
        return self.execute_command("ZCOUNT", name, min, max)

    def zrank(self, name: Argument, value: Argument) -> Any:
        """How many members have a lower score than this one; None if it is none."""
        return self.execute_command("ZRANK", name, value)

    def zrevrank(self, name: Argument, value: Argument) -> Any:
        """How many members have a higher score than this one; None if it is none."""
        return self.execute_command("ZREVRANK", name, value)

    def zrange(
        self,
        name: Argument,
        start: Argument,
        end: Argument,
        desc: bool = False,
        withscores: bool = False,
        score_cast_func: Converter = float,
        byscore: bool = False,
        offset: int | None = None,
        num: int | None = None,
    ) -> Any:
        """The members from start to end, both included, in the order of their scores.

        :param desc: the highest first; then start is the higher one with ``byscore``.
        :param withscores: each in a tuple with its score.
        :param score_cast_func: makes the score from text.
        :param byscore: start and end are scores, as in :meth:`zcount`.
        :param offset, num: how many to leave out, and how many to return, with ``byscore``.
        """
        flags = _flags(BYSCORE=byscore, REV=desc)
        return self._zrange(
            ("ZRANGE", name, start, end, *flags), offset, num, withscores, score_cast_func
        )

    def zrevrange(
        self,
        name: Argument,
        start: int,
        end: int,
        withscores: bool = False,
        score_cast_func: Converter = float,
    ) -> Any:
        """The members from start to end, both included, the highest score first."""
        return self._zrange(
            ("ZREVRANGE", name, start, end), None, None, withscores, score_cast_func
        )

    def zrangebyscore(
        self,
        name: Argument,
        min: Argument,
        max: Argument,
        start: int | None = None,
        num: int | None = None,
        withscores: bool = False,
        score_cast_func: Converter = float,
    ) -> Any:
        """The members with a score from min to max, less the first ``start``, at most ``num``."""
        return self._zrange(
            ("ZRANGEBYSCORE", name, min, max), start, num, withscores, score_cast_func
        )

    def zrevrangebyscore(
        self,
        name: Argument,
        max: Argument,
        min: Argument,
        start: int | None = None,
        num: int | None = None,
        withscores: bool = False,
        score_cast_func: Converter = float,
    ) -> Any:
        """As :meth:`zrangebyscore`, the highest score first."""
        return self._zrange(
            ("ZREVRANGEBYSCORE", name, max, min), start, num, withscores, score_cast_func
        )

    def _zrange(
        self,
        command: tuple[Argument, ...],
        offset: int | None,
        num: int | None,
        withscores: bool,
        score_cast_func: Converter,
    ) -> Any:
        limit: Sequence[Any] = () if offset is None and num is None else ("LIMIT", offset, num)
        flags = _flags(WITHSCORES=withscores)
        convert = _scored(score_cast_func) if withscores else None
        return self.execute_command(*command, *limit, *flags, convert=convert)

    def zpopmin(self, name: Argument, count: int | None = None) -> Any:
        """Take the members with the lowest scores: a list of tuples of member and score."""
        return self.execute_command("ZPOPMIN", name, *_present(count))

    def zpopmax(self, name: Argument, count: int | None = None) -> Any:
        """Take the members with the highest scores: a list of tuples of member and score."""
        return self.execute_command("ZPOPMAX", name, *_present(count))

    def zmpop(
        self,
        num_keys: int,
        keys: Sequence[Argument],
        min: bool | None = False,
        max: bool | None = False,
        count: int | None = 1,
    ) -> Any:
        """Take members from the first sorted set that has any: its name and a list, or None.

        :param min: those with the lowest scores; each is a list of member and score, as text.
        :param max: those with the highest.
        """
        options = [*_flags(MIN=bool(min), MAX=bool(max)), *_options(COUNT=count)]
        return self.execute_command("ZMPOP", num_keys, *keys, *options)

    def bzpopmin(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """Take the member with the lowest score of the first sorted set that has any.

        Waits for one as :meth:`blpop` does.

        :returns: a tuple of the sorted set's name, the member and its score, or None.
        """
        return self.execute_command("BZPOPMIN", *_listed(keys), timeout or 0)

    def bzpopmax(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """As :meth:`bzpopmin`, with the highest score."""
        return self.execute_command("BZPOPMAX", *_listed(keys), timeout or 0)

    def bzmpop(
        self,
        timeout: float,
        numkeys: int,
        keys: Sequence[Argument],
        min: bool | None = False,
        max: bool | None = False,
        count: int | None = 1,
    ) -> Any:
        """As :meth:`zmpop`, waiting for a member as :meth:`blpop` does."""
        options = [*_flags(MIN=bool(min), MAX=bool(max)), *_options(COUNT=count)]
        return self.execute_command("BZMPOP", timeout or 0, numkeys, *keys, *options)

    def zremrangebyrank(self, name: Argument, min: int, max: int) -> Any:
        """Delete the members from one place to another, and return how many."""
        return self.execute_command("ZREMRANGEBYRANK", name, min, max)

    def zremrangebyscore(self, name: Argument, min: Argument, max: Argument) -> Any:
        """Delete the members with a score from min to max, and return how many."""
        return self.execute_command("ZREMRANGEBYSCORE", name, min, max)

    def zscan(
        self,
        name: Argument,
        cursor: Argument = 0,
        match: Argument | None = None,
        count: int | None = None,
        score_cast_func: Converter = float,
    ) -> Any:
        """The cursor of the next page, and a page of tuples of member and score."""
        options = _options(MATCH=match, COUNT=count)
        convert = _page(_scored(score_cast_func))
        return self.execute_command("ZSCAN", name, cursor, *options, convert=convert)

    def zscan_iter(
        self,
        name: Argument,
        match: Argument | None = None,
        count: int | None = None,
        score_cast_func: Converter = float,
    ) -> Iterator[Any]:
        """The tuples of member and score, page by page."""
        return _pages(lambda cursor: self.zscan(name, cursor, match, count, score_cast_func))

    # -- Channels --

    def publish(self, channel: Argument, message: Argument) -> Any:
        """Send a message to who has subscribed to the channel, and return how many got it."""
        return self.execute_command("PUBLISH", channel, message)

    def pubsub_channels(self, pattern: Argument = "*") -> Any:
        """The channels that match a pattern and have been subscribed to by name."""
        return self.execute_command("PUBSUB", "CHANNELS", pattern)

    def pubsub_numsub(self, *args: Argument) -> Any:
        """Each of the channels in a tuple with how many have subscribed to it by name."""
        return self.execute_command(
            "PUBSUB", "NUMSUB", *args, convert=lambda reply: [*_mapping(reply).items()]
        )

    def pubsub_numpat(self) -> Any:
        """How many patterns have been subscribed to."""
        return self.execute_command("PUBSUB", "NUMPAT")

    # -- Server --

    def ping(self) -> Any:
        """True if the server answers."""
        return self.execute_command("PING")

    def echo(self, value: Argument) -> Any:
        """The value, as the server got it."""
        return self.execute_command("ECHO", value)

    def dbsize(self) -> Any:
        """How many keys there are."""
        return self.execute_command("DBSIZE")

    def flushdb(self, asynchronous: bool = False) -> Any:
        """Delete every key."""
        return self.execute_command("FLUSHDB", *_flags(ASYNC=asynchronous))

    def flushall(self, asynchronous: bool = False) -> Any:
        """Delete every key."""
        return self.execute_command("FLUSHALL", *_flags(ASYNC=asynchronous))

    def save(self) -> Any:
        """Wait until everything up to now is in the server's file."""
        return self.execute_command("SAVE")

    def bgsave(self, schedule: bool = True) -> Any:
        """Let the server write everything to its file, and do not wait."""
        return self.execute_command("BGSAVE", *_flags(SCHEDULE=schedule))

    def lastsave(self) -> Any:
        """When everything was last written to the server's file, as a datetime."""
        return self.execute_command("LASTSAVE")

    def info(self, section: str | None = None, *args: str) -> Any:
        """The state of the server, or these sections of it, as a dict."""
        return self.execute_command("INFO", *_present(section), *args)

    def time(self) -> Any:
        """The server's clock: a tuple of seconds since 1970 and microseconds."""
        return self.execute_command("TIME")

    def client_id(self) -> Any:
        """The number of a connection of this client; each thread may have its own."""
        return self.execute_command("CLIENT", "ID")

    def client_list(self, _type: str | None = None, client_id: Sequence[int] = ()) -> Any:
        """The connections of the server, of one type or with these numbers, as dicts of str."""
        options = [*_options(TYPE=_type), *_flags(ID=bool(client_id)), *client_id]
        return self.execute_command("CLIENT", "LIST", *options, convert=_client_list)

    def client_info(self) -> Any:
        """What :meth:`client_list` says of this connection, counts and sizes as int."""
        return self.execute_command("CLIENT", "INFO", convert=_client_info)

    def client_setname(self, name: Argument) -> Any:
        """Name this connection in :meth:`client_list`."""
        return self.execute_command("CLIENT", "SETNAME", name, convert=_is_ok)

    def client_getname(self) -> Any:
        """The name of this connection, or None."""
        return self.execute_command("CLIENT", "GETNAME", convert=_text)

    def client_kill(self, address: str) -> Any:
        """End the connection with this ``addr`` in :meth:`client_list`."""
        return self.execute_command("CLIENT", "KILL", address, convert=_is_ok)

    def client_kill_filter(
        self,
        _id: int | None = None,
        _type: str | None = None,
        addr: str | None = None,
        skipme: bool | None = None,
        laddr: str | None = None,
        user: str | None = None,
    ) -> Any:
        """End the connections of which all this holds, and return how many."""
        skip = None if skipme is None else "YES" if skipme else "NO"
        options = _options(TYPE=_type, SKIPME=skip, ID=_id, ADDR=addr, LADDR=laddr, USER=user)
        return self.execute_command("CLIENT", "KILL", *options)

    def command_count(self) -> Any:
        """How many commands the server knows."""
        return self.execute_command("COMMAND", "COUNT")

    def config_get(self, pattern: str = "*", *args: str) -> Any:
        """The settings that match a pattern such as ``max*``, as a dict of str."""
        return self.execute_command(
            "CONFIG", "GET", pattern, *args, convert=lambda reply: _mapping([*map(_text, reply)])
        )

    def config_set(self, name: str, value: Argument, *args: Argument) -> Any:
        """Change a setting, or several."""
        return self.execute_command("CONFIG", "SET", name, value, *args, convert=_is_ok)

    def memory_usage(self, key: Argument, samples: int | None = None) -> Any:
        """The bytes that a key and its value take in memory, or None."""
        return self.execute_command("MEMORY", "USAGE", key, *_options(SAMPLES=samples))


# ----------------------------------------------------------------------------
# Client
# ----------------------------------------------------------------------------


class _Connection:
    # A transport with the reader of its replies.
    __slots__ = ("__weakref__", "reader", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.reader = ReplyReader(transport.receive)

    def __del__(self) -> None:
        # A pipe's handle, unlike a socket, would stay open until the process ends.
        self.transport.close()


class Client(Commands):
    """A client of one server; threads may share it.

    :param pipe: the name of the pipe.
    :param timeout: seconds to wait for a reply (for more of it, once begun), or None for no limit.
    :param connect_timeout: seconds to wait while every instance of the pipe is busy.
    :param decode_responses: whether values come back as str (from UTF-8) or as bytes.
    :param trust_any_owner: whether the server may be another user's, see :class:`UntrustedServer`.
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
        trust_any_owner: bool = False,
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
        self._trusting = trust_any_owner
        _clients.add(self)

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        # As _converse() does it, but without lists of one: nearly every call comes through here.
        data = encode_commands((arguments,))
        connection = self._take()
        try:
            reader, name = connection.reader, arguments[0]
            if type(name) is str and name in WAITING:
                limit = self._limit(arguments)
                reader.feed(connection.transport.exchange_within(limit, data))
            else:
                reader.feed(connection.transport.exchange(data))
            reply = reader.read(self._decode)
        except BaseException:
            self._drop(connection)
            raise
        self._keep(connection, reply)
        return _convert(name, reply, convert)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Commands that are sent together; see :class:`Pipeline`.

        :param transaction: whether they are also carried out together (MULTI and EXEC), with
            nobody else's command between them.
        """
        return Pipeline(self, transaction)

    def transaction(
        self,
        func: Callable[[Pipeline], Any],
        *watches: Argument,
        value_from_callable: bool = False,
        watch_delay: float | None = None,
    ) -> Any:
        """Carry out a transaction again and again until no watched key changes meanwhile.

        :param func: is given a pipeline that watches the keys: it reads what it needs, calls
            ``multi()`` and then the commands of the transaction.
        :param value_from_callable: return what ``func`` returns, not the commands' results.
        :param watch_delay: seconds to wait before it is tried again.
        """
        with self.pipeline() as pipe:
            while True:
                try:
                    if watches:
                        pipe.watch(*watches)
                    value = func(pipe)
                    results = pipe.execute()
                    return value if value_from_callable else results
                except WatchError:
                    time.sleep(watch_delay or 0)

    def lock(
        self,
        name: Argument,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
        owned: bool = False,
    ) -> Lock:
        """A lock that is this key; see :class:`Lock`."""
        return Lock(self, name, timeout, sleep, blocking, blocking_timeout, thread_local, owned)

    def pubsub(self, ignore_subscribe_messages: bool = False) -> PubSub:
        """Channels to subscribe to; see :class:`PubSub`."""
        return PubSub(self, ignore_subscribe_messages)

    def monitor(self) -> Monitor:
        """What all clients ask of the server, as they do; see :class:`Monitor`."""
        return Monitor(self)

    def cached(
        self,
        ttl: float | timedelta,
        key: Callable[..., str] | None = None,
        prefix: str = "cached:",
        dumps: Callable[[Any], str | bytes] = json.dumps,
        loads: Callable[[bytes], Any] = json.loads,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Have the server keep what a function returns, None too, for calls with equal arguments.

            @cache.cached(ttl=60)
            def price(article: str) -> float: ...

        :param ttl: seconds that a result is kept.
        :param key: makes the key, after the prefix, from the arguments. Without it the key is the
            function's module and name and the arguments as JSON, so that they must be of JSON's
            types (a method's ``self`` is not), and ``f(1)`` is another call than ``f(x=1)``.
        :param dumps, loads: make str or bytes of a result, and a result of bytes. With JSON a
            tuple comes back as a list. Pickle would keep it, but runs what others have written
            into the key.
        :raises ValueError: for a ttl that cannot be.

        An exception is not kept. Programs that call at the same time may each run the function.
        So does each call while there is no server, or it fails: the logger ``pipecache.client``
        says so. The function's ``invalidate()`` deletes the result for its arguments.
        """
        px = int((ttl.total_seconds() if isinstance(ttl, timedelta) else ttl) * 1000)
        if px <= 0:
            raise ValueError("a result must be kept for a millisecond at least")

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            def name(*args: Any, **kwargs: Any) -> str:
                if key is not None:
                    return prefix + key(*args, **kwargs)
                arguments = json.dumps([args, kwargs], sort_keys=True)
                return f"{prefix}{function.__module__}.{function.__qualname__}:{arguments}"

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                at = name(*args, **kwargs)
                kept = self._attempt("GET", at)
                if kept is not None:
                    return loads(kept)
                result = function(*args, **kwargs)
                self._attempt("SET", at, dumps(result), "PX", px)
                return result

            def invalidate(*args: Any, **kwargs: Any) -> Any:
                return self.delete(name(*args, **kwargs))

            wrapper.invalidate = invalidate  # type: ignore[attr-defined]
            return wrapper

        return decorate

    def _attempt(self, *command: Argument) -> Any:
        # For cached(): the reply in bytes, or None where the server does not give it.
        try:
            connection = self._take()
            reply = self._converse(connection, [(encode_commands([command]), 1)], False)[0]
            self._keep(connection, reply)
            return _convert(command[0], reply, _as_it_is)
        except DataError:
            raise
        except CacheError as error:
            import logging  # which most programs that use this file need not load

            level = logging.DEBUG if isinstance(error, ServerNotRunning) else logging.WARNING
            logging.getLogger("pipecache.client").log(level, "%s %s: %s", *command[:2], error)
            return None

    def close(self) -> None:
        """Close the connections that are not in use; the next command opens a new one.

        Those of a lock that is held, a :class:`PubSub` and a :class:`Monitor` are in use.
        """
        with contextlib.suppress(IndexError):  # other threads may take some meanwhile
            while True:
                self._idle.pop().transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _limit(self, command: Sequence[Any]) -> float | None:
        # How long to wait for the reply of a command that waits.
        with contextlib.suppress(IndexError, TypeError, ValueError):  # the server says what it is
            seconds = float(command[WAITING[command[0].upper()]])
            if seconds == 0 or self._timeout is None:
                return None
            return self._timeout + max(seconds, 0)
        return self._timeout

    def _converse(
        self,
        connection: _Connection,
        parts: Sequence[tuple[bytes, int]],
        decode: bool | None = None,
    ) -> list[Any]:
        # Send commands, each part with the number of them, and return their replies, errors too.
        decode = self._decode if decode is None else decode
        replies: list[Any] = []
        try:
            reader = connection.reader
            for data, count in parts:
                reader.feed(connection.transport.exchange(data))
                replies += reader.read_all(count, decode)
        except BaseException:
            self._drop(connection)
            raise
        return replies

    def _take(self) -> _Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _connect(self) -> _Connection:
        limits = self._connect_timeout, self._timeout
        return _Connection(connect(self.address, *limits, self._trusting))

    def _keep(self, connection: _Connection, last_reply: Any) -> None:
        if type(last_reply) is ResponseError and str(last_reply).startswith("Protocol error"):
            connection.transport.close()  # as the server does after this reply
        else:
            self._idle.append(connection)

    def _drop(self, connection: _Connection) -> None:
        connection.transport.close()
        # The other idle connections were to the same server, which may be gone.
        self.close()


#: Every client there is, for a forked child: it must not talk on its parent's connections.
_clients: weakref.WeakSet[Client] = weakref.WeakSet()

#: The connections that are not for the next command of any thread, for the same reason; an owned
#: key would also outlive the parent as long as its child.
_reserved: weakref.WeakSet[_Connection] = weakref.WeakSet()


def _close_inherited() -> None:
    for client in _clients:
        client.close()
    for connection in _reserved:
        connection.transport.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _convert(name: Argument, reply: Any, convert: Converter | None) -> Any:
    if isinstance(reply, ResponseError):
        raise reply
    if convert is None and type(name) is str:
        convert = CONVERTERS.get(name)
    return reply if convert is None or reply is None else convert(reply)


class Pipeline(Commands):
    """Commands collected here and sent together by :meth:`execute`; for one thread.

    Each method returns the pipeline itself. Only between :meth:`watch` and :meth:`multi` a command
    is carried out at once, on the connection that the keys are watched on, and returns its
    result. If that connection is lost there, a :class:`WatchError` says so; then, as after any
    exception that is no :class:`ResponseError` or :class:`DataError`, no key is watched any more.

    :ivar transaction: whether the commands are also carried out together.
    """

    def __init__(self, client: Client, transaction: bool = True) -> None:
        self.transaction = transaction
        self._client = client
        self._watching: _Connection | None = None
        self._after_multi = False
        self._commands: list[Sequence[Argument]] = []
        self._converters: dict[int, Converter] = {}  # brought by calls, by the command's place

    def __len__(self) -> int:
        return len(self._commands)

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reset()

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        if self._watching is not None and not self._after_multi:
            return _convert(arguments[0], self._ask(*arguments), convert)
        if convert is not None:
            self._converters[len(self._commands)] = convert
        self._commands.append(arguments)
        return self

    def watch(self, *names: Argument) -> Any:
        """Have :meth:`execute` carry out nothing if one of these keys changes from now on."""
        if self._after_multi:
            raise CacheError("Cannot issue a WATCH after a MULTI")
        return _convert("WATCH", self._ask("WATCH", *names), None)

    def unwatch(self) -> Any:
        """Watch no key any longer."""
        if self._watching is not None:
            reply = self._ask("UNWATCH")
            connection, self._watching = self._watching, None
            self._client._keep(connection, reply)
        return True

    def multi(self) -> None:
        """Collect commands again, after :meth:`watch`, for a transaction."""
        if self._after_multi:
            raise CacheError("Cannot issue nested calls to MULTI")
        if self._commands:
            raise CacheError("Commands without an initial WATCH have already been issued")
        self._after_multi = True

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the commands, and return their results in order.

        :param raise_on_error: raise the first error after all have run, rather than return
            errors in their places.
        :raises WatchError: if a watched key has changed: none has run.
        :raises ResponseError: also if a command of a transaction could not be queued: none has run.
        :raises ConnectionLost, CacheTimeout: they may have run, whether or not keys are watched.
        """
        try:
            if self.transaction or self._after_multi or self._watching is not None:
                replies = self._transact()
            else:
                replies = self._send(self._commands)
            return self._results(replies, raise_on_error)
        finally:
            self.reset()

    def reset(self) -> None:
        """Forget the commands, and watch no key any longer."""
        if self._watching is not None:
            self._watching.transport.close()  # which ends the watch, and waits for nothing
            self._watching = None
        self._after_multi = False
        self._commands = []
        self._converters = {}

    __del__ = reset

    def _ask(self, *command: Argument) -> Any:
        # Carry out one command at once and return its reply, an error too. From here on, keys
        # may be watched on the connection.
        parts = [(encode_commands([command]), 1)]
        watching = self._watching is not None
        self._watching = self._watching or self._client._take()
        try:
            return self._client._converse(self._watching, parts)[0]
        except BaseException as error:
            self.reset()
            if watching and isinstance(error, (ConnectionLost, CacheTimeout)):
                name = type(error).__name__
                raise WatchError(f"A {name} occurred while watching one or more keys") from error
            raise

    def _send(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if not commands:
            return []
        parts = list(_parts(commands))
        connection, self._watching = self._watching or self._client._take(), None
        replies = self._client._converse(connection, parts)
        self._client._keep(connection, replies[-1])
        return replies

    def _transact(self) -> Any:
        if not self._commands and self._watching is None:
            return []
        opened, *queued, results = self._send([("MULTI",), *self._commands, ("EXEC",)])
        for number, reply in enumerate(queued):
            if isinstance(reply, ResponseError):
                raise self._annotated(reply, number)
        for reply in (opened, results):
            if isinstance(reply, ResponseError):
                raise reply
        if results is None:
            raise WatchError("Watched variable changed.")
        return results

    def _results(self, replies: list[Any], raise_on_error: bool) -> list[Any]:
        names = [command[0] if type(command[0]) is str else "" for command in self._commands]
        kinds = set(map(type, replies))
        errors = any(issubclass(kind, ResponseError) for kind in kinds)
        if not errors and not self._converters and CONVERTERS.keys().isdisjoint(names):
            return replies  # as they are, the most frequent case by far
        for number, (reply, name) in enumerate(zip(replies, names)):
            convert = self._converters.get(number) or CONVERTERS.get(name)
            if isinstance(reply, ResponseError):
                if raise_on_error:
                    raise self._annotated(reply, number)
            elif convert is not None and reply is not None:
                replies[number] = convert(reply)
        return replies

    def _annotated(self, error: ResponseError, number: int) -> ResponseError:
        command = " ".join(
            str(_text(part) if isinstance(part, (bytes, bytearray)) else part)
            for part in self._commands[number]
        )
        if len(command) > 100:
            command = command[:97] + "..."
        error.args = (f"Command # {number + 1} ({command}) of pipeline caused error: {error}",)
        return error


def _parts(commands: Sequence[Sequence[Argument]]) -> Iterator[tuple[bytes, int]]:
    # A pipeline encoded, in parts, each with the number of its commands: the server must not wait
    # for its replies to be read while this side is waiting for its commands to be.
    data = encode_commands(commands)
    if len(data) <= PIPELINE_BYTES or len(commands) == 1:
        yield data, len(commands)
        return
    step = len(commands) * PIPELINE_BYTES // len(data) or 1
    for start in range(0, len(commands), step):
        yield from _parts(commands[start : start + step])


class _Session(Commands):
    # The commands on a connection taken from a client, for as long as keys belong to it.
    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._connection: _Connection | None = client._take()
        _reserved.add(self._connection)

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is None:
                raise _lost(self._client.address)
            reply = self._client._converse(connection, [(encode_commands([arguments]), 1)])[0]
            self._connection = connection
        return _convert(arguments[0], reply, convert)

    def give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _reserved.discard(connection)
            self._client._keep(connection, None)


class Lock:
    """A lock that threads and programs share: a key that has its holder's token in it.

    :param name: the key.
    :param timeout: seconds after which it is free again, whatever the holder does; None for never.
    :param sleep: seconds between attempts to get it.
    :param blocking: whether :meth:`acquire` waits until it is free.
    :param blocking_timeout: seconds it waits at most; None for no limit.
    :param thread_local: whether it is held by the thread that got it alone; if not, another one
        may give it back.
    :param owned: whether it is free again when its holder is gone: the key is OWNED by a
        connection that the lock keeps for itself while it is held. So it needs no timeout, nor
        can a crash, however hard, leave it held. It is lost with that connection, but not by the
        client's :meth:`Client.close`. With ``thread_local`` it is free when the thread is gone.

    As a context manager it is held inside. It is got by SET with NX and PX, and given back and
    prolonged, as long as its token is in the key, by DELIFEQ and SET with IFEQ. A forked child
    does not hold its parent's lock.
    """

    def __init__(
        self,
        client: Client,
        name: Argument,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
        owned: bool = False,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.sleep = sleep
        self.blocking = blocking
        self.blocking_timeout = blocking_timeout
        self.local: Any = threading.local() if thread_local else SimpleNamespace()
        self._client = client
        self._owned = owned

    def __enter__(self) -> Lock:
        if not self.acquire():
            raise LockError("Unable to acquire lock within the time specified")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def acquire(
        self,
        sleep: float | None = None,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Get the lock: True, or False if it was not to be had in time.

        :param sleep, blocking, blocking_timeout: for this once, instead of the lock's own.
        :param token: what the key is to hold, instead of something nobody else knows.
        """
        sleep = self.sleep if sleep is None else sleep
        blocking = self.blocking if blocking is None else blocking
        limit = self.blocking_timeout if blocking_timeout is None else blocking_timeout
        deadline = math.inf if limit is None else time.monotonic() + limit
        mine = _encode_argument(os.urandom(16).hex() if token is None else token)
        px = int(self.timeout * 1000) if self.timeout else None
        session = _Session(self._client) if self._owned else None
        commands, held = session or self._client, False
        try:
            while not commands.set(self.name, mine, nx=True, px=px, owned=self._owned):
                if not blocking or time.monotonic() + sleep > deadline:
                    return False
                time.sleep(sleep)
            held = True
        finally:
            if session is not None and not held:
                session.give_back()
        self.local.token, self.local.session = mine, session
        return True

    def release(self) -> None:
        """Give the lock back.

        :raises LockError: if this thread does not hold it.
        :raises LockNotOwnedError: if it has run out meanwhile.
        """
        token = self._token("release")
        session = self.local.session
        try:
            with self._still("release") as commands:
                self.local.token = self.local.session = None
                if not commands.delifeq(self.name, token):
                    raise LockNotOwnedError("Cannot release a lock that's no longer owned")
        finally:
            if session is not None:
                session.give_back()

    def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """Hold the lock for so many seconds more, or from now on with ``replace_ttl``: True.

        :raises LockError, LockNotOwnedError: as :meth:`release`; also if it never runs out.
        """
        token = self._token("extend", self.timeout)
        with self._still("extend") as commands:
            left = 0 if replace_ttl else max(commands.pttl(self.name), 0)
            return self._prolong("extend", token, left + int(additional_time * 1000))

    def reacquire(self) -> bool:
        """Hold the lock for its whole time again, from now on: True; raises as :meth:`extend`."""
        token = self._token("reacquire", self.timeout)
        return self._prolong("reacquire", token, int((self.timeout or 0) * 1000))

    def locked(self) -> bool:
        """Whether anybody holds the lock."""
        return bool(self._client.exists(self.name))

    def owned(self) -> bool:
        """Whether this thread holds the lock."""
        token = getattr(self.local, "token", None)
        try:
            with self._still("own") as commands:
                held_by = commands.get(self.name)
        except LockNotOwnedError:
            return False
        return token is not None and held_by is not None and _encode_argument(held_by) == token

    def _token(self, verb: str, timeout: float | None = 0) -> bytes:
        token: bytes | None = getattr(self.local, "token", None)
        if token is None:
            raise LockError(f"Cannot {verb} a lock that's not owned or is already unlocked")
        if timeout is None:
            raise LockError(f"Cannot {verb} a lock with no timeout")
        return token

    def _prolong(self, verb: str, token: bytes, milliseconds: int) -> bool:
        with self._still(verb) as commands:
            if commands.set(self.name, token, px=milliseconds, ifeq=token, owned=self._owned):
                return True
        raise LockNotOwnedError(f"Cannot {verb} a lock that's no longer owned")

    @contextlib.contextmanager
    def _still(self, verb: str) -> Iterator[Commands]:
        # The commands, on the connection that the key belongs to if it does to one.
        session = getattr(self.local, "session", None)
        try:
            yield session or self._client
        except ConnectionLost as error:
            if session is None:
                raise
            raise LockNotOwnedError(f"Cannot {verb} a lock that's no longer owned") from error


# ----------------------------------------------------------------------------
# Live data: channels, and what others ask of the server
# ----------------------------------------------------------------------------


class PubSub:
    """Channels of one client's server, on a connection of its own.

    :param ignore_subscribe_messages: whether messages that only confirm what was subscribed to
        or unsubscribed from are left out.
    :ivar channels, patterns: what is subscribed to, each with its handler or None.

    A message is a dict: its ``type`` (message, pmessage; subscribe, psubscribe, unsubscribe,
    punsubscribe; pong), ``pattern``, ``channel`` and ``data``, which is the number of
    subscriptions where it only confirms one. A handler, given as ``name=handler``, is called
    with the messages of its channel or pattern, which are then returned by no method.

    When the connection is lost it connects again, waiting for the server as long as the client's
    ``connect_timeout``, and subscribes to the same; what was published meanwhile is missing. One
    thread at a time may receive, and others subscribe, unsubscribe and close meanwhile.
    """

    def __init__(self, client: Client, ignore_subscribe_messages: bool = False) -> None:
        self.ignore_subscribe_messages = ignore_subscribe_messages
        self.channels: dict[Any, Callable[[dict[str, Any]], object] | None] = {}
        self.patterns: dict[Any, Callable[[dict[str, Any]], object] | None] = {}
        self._client = client
        self._leaving: set[tuple[str, Any]] = set()
        self._inbox: deque[Any] = deque()
        self._subscribed = threading.Event()
        self._lock = threading.RLock()  # for all that is here but the inbox
        self._connection: _Connection | None = None
        self._busy: _Connection | None = None  # the one that a thread is receiving on

    def __enter__(self) -> PubSub:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reset()

    @property
    def subscribed(self) -> bool:
        """Whether messages can come: until the last channel's unsubscribe message is read."""
        return self._subscribed.is_set()

    def subscribe(self, *args: Any, **kwargs: Callable[[dict[str, Any]], object]) -> None:
        """Receive what is published to these channels; a keyword gives one its handler.

        :raises ServerNotRunning, CacheTimeout: as any command.
        """
        self._subscribe("SUBSCRIBE", self.channels, args, kwargs)

    def psubscribe(self, *args: Any, **kwargs: Callable[[dict[str, Any]], object]) -> None:
        """As :meth:`subscribe`, for all channels that match patterns such as ``news.*``."""
        self._subscribe("PSUBSCRIBE", self.patterns, args, kwargs)

    def unsubscribe(self, *args: Any) -> None:
        """Receive no more of these channels, or of any that was subscribed to by name."""
        self._unsubscribe("UNSUBSCRIBE", self.channels, args)

    def punsubscribe(self, *args: Any) -> None:
        """Receive no more by these patterns, or by any."""
        self._unsubscribe("PUNSUBSCRIBE", self.patterns, args)

    def ping(self, message: Argument | None = None) -> None:
        """Ask for a message of type ``pong``."""
        self._send("PING", *_present(message))

    def get_message(
        self, ignore_subscribe_messages: bool = False, timeout: float | None = 0.0
    ) -> dict[str, Any] | None:
        """The next message, or None if none has come within so many seconds (None: no limit).

        None too for one that a handler has taken, or that is to be ignored.

        :raises ServerNotRunning, ConnectionLost, CacheTimeout: if the server is gone, or hangs up
            again and again. The next call tries once more.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self._subscribed.is_set():
            left = deadline - time.monotonic()
            # In slices, or Windows does not see Ctrl+C.
            if not self._subscribed.wait(max(0, min(left, SLICE))) and left <= SLICE:
                return None
        reply = self._next(deadline)
        return None if reply is None else self._handle(reply, ignore_subscribe_messages)

    def listen(self) -> Iterator[dict[str, Any]]:
        """The messages as they come, until nothing is subscribed to any more."""
        while self.subscribed:
            reply = self._next(math.inf)
            message = None if reply is None else self._handle(reply, False)
            if message is not None:
                yield message

    __iter__ = listen

    def run_in_thread(
        self,
        sleep_time: float = 0.0,
        daemon: bool = False,
        exception_handler: Callable[[BaseException, PubSub, PubSubWorkerThread], object]
        | None = None,
    ) -> PubSubWorkerThread:
        """Have a thread call the handlers, until its ``stop()`` is called.

        :param sleep_time: seconds between looks at whether it is to stop, if it has no connection.
        :param exception_handler: is called with an exception, this object and the thread, which
            then goes on; without it the exception ends the thread.
        :raises PubSubError: if a channel or pattern has no handler.
        """
        for kind, handlers in (("Channel", self.channels), ("Pattern", self.patterns)):
            for name, handler in handlers.items():
                if handler is None:
                    raise PubSubError(f"{kind}: '{name}' has no handler registered")
        thread = PubSubWorkerThread(self, sleep_time, daemon, exception_handler)
        thread.start()
        return thread

    def reset(self) -> None:
        """Subscribe to nothing any more, and give the connection up."""
        with self._lock:
            self._disconnect()
            self.channels.clear()
            self.patterns.clear()
            self._inbox.clear()
            self._subscribed.clear()

    close = reset

    def _name(self, name: Argument) -> Any:
        data = _encode_argument(name)
        return data.decode() if self._client._decode else data

    def _subscribe(self, command: str, known: dict[Any, Any], args: Any, kwargs: Any) -> None:
        names = _listed(args[0], args[1:]) if args else []
        handlers = {
            **dict.fromkeys(map(self._name, names)),
            **{self._name(n): kwargs[n] for n in kwargs},
        }
        with self._lock:
            self._send(command, *handlers)
            known.update(handlers)
            self._leaving.difference_update((command, name) for name in handlers)
            self._subscribed.set()

    def _unsubscribe(self, command: str, known: dict[Any, Any], args: Any) -> None:
        names = _listed(args[0], args[1:]) if args else []
        with self._lock:
            self._send(command, *names)
            leaving = [*map(self._name, names)] if args else [*known]
            self._leaving.update((command.replace("UN", ""), name) for name in leaving)

    def _send(self, *command: Argument) -> None:
        data = encode_commands([command])
        with self._lock:
            try:
                self._connected().transport.send(data)
            except ConnectionLost:  # what was sent is lost with it, or can be sent twice
                self._disconnect()
                self._connected().transport.send(data)
            except BaseException:  # in the middle of a command
                self._disconnect()
                raise

    def _connected(self) -> _Connection:
        if self._connection is None:
            for command, name in self._leaving:
                (self.patterns if command == "PSUBSCRIBE" else self.channels).pop(name, None)
            self._leaving.clear()
            connection = self._client._connect()
            _reserved.add(connection)
            if not self.channels and not self.patterns:
                self._subscribed.clear()
            for names in (("SUBSCRIBE", *self.channels), ("PSUBSCRIBE", *self.patterns)):
                if len(names) > 1:
                    connection.transport.send(encode_commands([names]))
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        # Its handle may be closed only when no other thread is inside a call with it.
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.interrupt()
            if connection is not self._busy:
                connection.transport.close()

    def _next(self, deadline: float) -> Any:
        # The next reply; None when the time is up, or another thread has unsubscribed from all.
        give_up = None
        while not self._inbox:
            try:
                with self._lock:
                    connection = self._connected() if self.subscribed else None
                    if connection is None or not self.subscribed:
                        return None
                    self._busy = connection
                if not self._receive(connection, deadline):
                    return None
                give_up = None
            except (ConnectionLost, ServerNotRunning):
                # The first time it is tried again at once; one that accepts may hang up again.
                now = time.monotonic()
                if give_up is None:
                    give_up = now + self._client._connect_timeout
                elif now > give_up:
                    raise
                else:
                    time.sleep(SLICE / 5)
        with contextlib.suppress(IndexError):  # another thread may have reset it just now
            return self._inbox.popleft()
        return None

    def _receive(self, connection: _Connection, deadline: float) -> bool:
        replies: list[Any] = []
        whole = False  # whether the stream is between two replies
        try:
            if connection.reader.empty:
                left = None if deadline == math.inf else deadline - time.monotonic()
                try:
                    if not connection.transport.wait(left):
                        whole = True
                        return False
                except KeyboardInterrupt:
                    whole = True
                    raise
            replies = connection.reader.read_some()
            whole = True
        finally:
            with self._lock:
                self._busy = None
                if connection is not self._connection:
                    connection.transport.close()
                elif whole:
                    self._inbox.extend(replies)
                else:
                    self._disconnect()
        return True

    def _handle(self, reply: Any, ignore: bool) -> dict[str, Any] | None:
        if isinstance(reply, ResponseError):
            raise reply
        # PING is answered in another way while nothing is subscribed to.
        parts = reply if isinstance(reply, list) else [b"pong", b"" if reply == b"PONG" else reply]
        kind, *rest = parts
        kind = kind.decode()
        if self._client._decode:
            rest = [part.decode() if isinstance(part, bytes) else part for part in rest]
        pattern = rest.pop(0) if kind == "pmessage" else None
        channel = rest.pop(0) if len(rest) > 1 else None
        message = {"type": kind, "pattern": pattern, "channel": channel, "data": rest[0]}
        if kind in ("message", "pmessage"):
            handlers, name = (
                (self.channels, channel) if kind == "message" else (self.patterns, pattern)
            )
            handler = handlers.get(name)
            if handler is None:
                return message
            handler(message)
            return None
        if kind in ("unsubscribe", "punsubscribe"):
            with self._lock:
                left = (kind.replace("un", "").upper(), channel)
                if left in self._leaving:
                    self._leaving.remove(left)
                    (self.channels if kind == "unsubscribe" else self.patterns).pop(channel, None)
                if not self.channels and not self.patterns:
                    self._subscribed.clear()
        ignore = (ignore or self.ignore_subscribe_messages) and kind != "pong"
        return None if ignore else message


class PubSubWorkerThread(threading.Thread):
    """A thread that calls the handlers of a :class:`PubSub`, see its ``run_in_thread``."""

    def __init__(
        self,
        pubsub: PubSub,
        sleep_time: float,
        daemon: bool = False,
        exception_handler: Callable[[BaseException, PubSub, PubSubWorkerThread], object]
        | None = None,
    ) -> None:
        super().__init__(daemon=daemon)
        self.pubsub = pubsub
        self.sleep_time = sleep_time
        self.exception_handler = exception_handler
        self._running = threading.Event()
        self._running.set()

    def run(self) -> None:
        while self._running.is_set():
            try:
                self.pubsub.get_message(True, max(self.sleep_time, SLICE))
            except BaseException as error:
                if self.exception_handler is None:
                    raise
                self.exception_handler(error, self.pubsub, self)
        self.pubsub.close()

    def stop(self) -> None:
        """Subscribe to nothing any more, which ends the thread; a handler may call it too."""
        self._running.clear()
        self.pubsub.close()


class Monitor:
    """The commands of all clients as the server carries them out, while inside ``with``.

    On a connection of its own. Each is a dict: ``time`` (in seconds since 1970), ``db``,
    ``client_address``, ``client_port``, ``client_type`` (unix, tcp, or pipe) and ``command``,
    its words with blanks between. MONITOR costs the server time.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._connection: _Connection | None = None
        self._inbox: deque[Any] = deque()

    def __enter__(self) -> Monitor:
        self._connection = self._client._connect()
        _reserved.add(self._connection)
        data = encode_commands([("MONITOR",)])
        self._connection.reader.feed(self._connection.transport.exchange(data))
        _convert("MONITOR", self._connection.reader.read(True), None)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._connection is not None:
            self._connection.transport.close()
            self._connection = None
        self._inbox.clear()

    def next_command(self) -> dict[str, Any]:
        """Wait for a command and return it.

        :raises ConnectionLost: if the server is gone.
        """
        if self._connection is None:
            raise CacheError("A monitor is to be used inside 'with'")
        while not self._inbox:
            self._inbox.extend(_receive_some(self._connection))
        moment, _, rest = _text(self._inbox.popleft()).partition(" [")
        place, _, command = rest.partition("] ")
        db, _, client = place.partition(" ")
        address, _, port = client.rpartition(":")
        kind = "tcp"
        if client.startswith("\\\\"):
            kind, port = "pipe", ""
        elif client.startswith("unix:"):
            address, kind, port = "unix", "unix", client[5:]
        words = " ".join(re.findall(r'"(.*?)(?<!\\)"', command)).replace('\\"', '"')
        return {
            "time": float(moment),
            "db": int(db),
            "client_address": address,
            "client_port": port,
            "client_type": kind,
            "command": words,
        }

    def listen(self) -> Iterator[dict[str, Any]]:
        """The commands as they come."""
        while True:
            yield self.next_command()


def _receive_some(connection: _Connection) -> list[Any]:
    # What has come, or comes next, however long that takes.
    if connection.reader.empty:
        connection.transport.wait(None)
    return connection.reader.read_some()


def send_command(command: str, pipe: str = DEFAULT_PIPE, trust_any_owner: bool = False) -> str:
    """Send one text command on a connection of its own and return the reply.

    :param command: as in ``SET city dubai``; everything after the key is the value.
    :param trust_any_owner: whether the server may be another user's.
    :returns: the reply, ``ERROR: ...`` from the server included, or
        ``Error: Cache server not running``.
    :raises ConnectionLost, CacheTimeout: if the server goes away or does not answer.
    :raises UntrustedServer: if it is another user's.
    """
    try:
        transport = connect(pipe_address(pipe), CONNECT_TIMEOUT, TIMEOUT, trust_any_owner)
    except ServerNotRunning:
        return "Error: Cache server not running"
    try:
        return transport.ask(command.encode("utf-8", "surrogateescape")).decode(
            "utf-8", "surrogateescape"
        )
    finally:
        transport.close()


# ----------------------------------------------------------------------------
# Doctor: what is the matter, in words
# ----------------------------------------------------------------------------

#: Numbers of errors that have to do with pipes, what they mean here, and what to do.
EXPLANATIONS = {
    2: ("FILE_NOT_FOUND: nobody serves a pipe of this name",
        "start pipecache.py; look whether both sides were given the same --pipe, and whether the"
        " server said 'Ready to accept connections'"),
    5: ("ACCESS_DENIED: the pipe is another account's, as that of a server which was started as"
        " administrator can be, and does not let this one connect",
        "start the server as the same user, or with --access users (with --access admins, what"
        " connects must run as administrator); for a server that says this when it starts, the"
        " name is taken: choose another --pipe"),
    109: ("BROKEN_PIPE: the other side has closed the connection, or has ended",
          "look into the server's log: it says whom it dropped and why; then connect again"),
    121: ("SEM_TIMEOUT: no instance of the pipe came free in time",
          "as for 231: try again, or start the server with a higher --max-clients"),
    231: ("PIPE_BUSY: every instance of the pipe is taken just now",
          "wait with WaitNamedPipe and try again (client.py does); if it stays so, clients are not"
          " closed: look at CLIENT LIST, or start the server with --idle-timeout or a higher"
          " --max-clients"),
    232: ("NO_DATA: the pipe is being closed",
          "the other side has left: connect again"),
    233: ("PIPE_NOT_CONNECTED: nobody is at the other end any more",
          "the server has hung up, or was ended: look into its log, then connect again"),
    234: ("MORE_DATA: the message is longer than what was read; this is no failure",
          "read again, as often as it says so: the message is all of it together"),
    995: ("OPERATION_ABORTED: what was under way has been cancelled",
          "a time limit has passed, or the thread that began it has ended: try again"),
    errno.ECONNREFUSED: ("ECONNREFUSED: the socket is there, but no server listens",
          "a server that was killed leaves its socket: start pipecache.py again, it clears up"),
    errno.EACCES: ("EACCES: the socket is another user's",
          "start the server as the same user, or with --access users"),
}  # fmt: skip

#: Who is meant by what stands in an entry of a pipe's access list.
_EVERYBODY = "everybody, even without a name"
_TRUSTEES = {
    "SY": "SYSTEM", "BA": "administrators (what runs as administrator)",
    "AU": "every account of this machine", "BU": "every account of this machine",
    "WD": _EVERYBODY, "AN": _EVERYBODY, "NU": "programs of other machines",
}  # fmt: skip


def explain(number: int) -> str:
    """What an error number means for a client or a server of a pipe, and what to do about it."""
    if number not in EXPLANATIONS:
        return f"Error {number} has nothing to do with pipes that is known here"
    meaning, advice = EXPLANATIONS[number]
    return f"Error {number}, {meaning}. What to do: {advice}."


def _who_may_connect(access: str) -> str:
    if re.fullmatch("[0-7]{4}", access):
        everybody = int(access, 8) & 0o006
        return f"{'every account' if everybody else 'its owner'} (mode {access})"
    if not access.startswith("D:") or "NO_ACCESS_CONTROL" in access:
        return f"{_EVERYBODY} ({access or 'no access list'})"
    allowed = []
    # Each entry: kind, flags (IO: not for the pipe itself), rights, two of other objects, account.
    entry = r"\(X?(A|D);([^;]*);[^;]*;[^;]*;[^;]*;([^;)]*)"
    for kind, flags, trustee in re.findall(entry, access):
        if "IO" not in flags:
            name = _TRUSTEES.get(trustee) or account_name(trustee)
            allowed.append(f"not {name}" if kind == "D" else name)
    return f"{', '.join(dict.fromkeys(allowed)) or 'nobody'} ({access})"


class _Examination:
    """Says what it finds, line by line, and remembers the worst of it."""

    def __init__(self) -> None:
        self.status = 0

    def say(self, mark: str, text: str, status: int = 0) -> None:
        self.status = max(self.status, status)
        _print(f"[{mark}] {text}".encode())

    def well(self, text: str) -> None:
        self.say(" ok ", text)

    def warn(self, text: str) -> None:
        self.say("look", text, 1)

    def fail(self, text: str) -> None:
        self.say("FAIL", text, 2)


def examine(pipe: str, arguments: Sequence[str] = (), trust_any_owner: bool = False) -> int:
    """Print what there is to say about a server, or about the errors of these numbers.

    :returns: 0 if all is well, 1 if something should be seen to, 2 if no server answers.
    """
    if arguments:
        if not all(re.fullmatch(r"\d{1,9}", each) for each in arguments):
            print("Error: doctor takes numbers of errors, such as 231, or nothing", file=sys.stderr)
            return 2
        for each in arguments:
            _print(explain(int(each)).encode())
        return 0 if all(int(each) in EXPLANATIONS for each in arguments) else 2
    patient = _Examination()
    try:
        _examine(patient, pipe, trust_any_owner)
    except (CacheError, ConnectionError) as error:
        patient.fail(str(error))
        cause: Any = error.__cause__ or error.__context__
        number = getattr(cause, "winerror", None) or getattr(cause, "errno", None)
        if number in EXPLANATIONS:
            patient.fail(explain(number))
    verdict = ("All is well.", "It works; see to what is marked.", "It cannot be used like this.")
    _print(verdict[patient.status].encode())
    return patient.status


def _examine(patient: _Examination, pipe: str, trust_any_owner: bool) -> None:
    address = pipe_address(pipe)
    transport = connect(address, CONNECT_TIMEOUT, TIMEOUT, True)
    try:
        process, program = transport.process()
        owner, access = transport.owner(), transport.access()
    finally:
        transport.close()
    whose = f"process {process}, {program or 'program not known'}" if process else "not told"
    patient.well(f"{address} is served by {whose}")
    said = f"It belongs to {account_name(owner)}"
    if owner == this_account():
        patient.well(f"{said}, which is you")
    elif owner in POWERFUL or trust_any_owner:
        patient.warn(f"{said}, which is not you, but is trusted")
    who = _who_may_connect(access)
    (patient.warn if _EVERYBODY in who else patient.well)(f"Who may connect: {who}")
    with Client(pipe, trust_any_owner=trust_any_owner) as cache:
        facts = cache.info()
        version, uptime = facts.get("pipecache_version"), facts.get("uptime_in_seconds")
        if version is None:
            patient.warn("It answers as Redis does, but is not pipecache")
            return
        patient.well(f"pipecache {version}, for {uptime} s, Python {facts['python_version']}")
        laps = []
        for _ in range(1000):
            started = time.perf_counter()
            cache.get("pipecache:doctor")
            laps.append((time.perf_counter() - started) * 1e6)
        laps.sort()
        patient.well(
            f"A round trip takes {laps[500]:.0f} µs; 99 of 100 take {laps[990]:.0f} at most"
        )
    if send_command("PING", pipe, trust_any_owner) == "PONG":
        patient.well("Text commands are answered")
    else:
        patient.warn("Text commands are not answered")
    _examine_limits(patient, facts)
    _examine_file(patient, facts)


def _examine_limits(patient: _Examination, facts: dict[str, Any]) -> None:
    for name, used, most, advice in (
        ("clients", "connected_clients", "maxclients",
         "start it with a higher --max-clients, or with --idle-timeout"),
        ("bytes of memory", "used_memory", "maxmemory",
         "delete keys, let them expire, or start it with a higher --max-memory"),
    ):  # fmt: skip
        amount, limit = facts[used], facts[most]
        if not limit:
            patient.well(f"{amount} {name}, without a limit")
        elif amount >= limit * 0.8:
            patient.warn(f"{amount} {name} of {limit}, which is near the limit: {advice}")
        else:
            patient.well(f"{amount} {name} of {limit}")


def _examine_file(patient: _Examination, facts: dict[str, Any]) -> None:
    if "db_file" not in facts:
        patient.well("Everything is in memory alone: it was started without --db")
    elif facts["rdb_last_bgsave_status"] == "ok":
        behind = facts["rdb_changes_since_last_save"]
        patient.well(f"Everything is kept in {facts['db_file']}; {behind} changes to be written")
    else:
        patient.warn(str(facts["db_last_error"]))


# ----------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------


def _show(reply: Any, missing: bytes) -> bytes:
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, list):
        return b"\n".join([_show(element, missing) for element in reply])
    if isinstance(reply, ResponseError):
        text, code = str(reply), f"{reply.status_code} "
        text = text[len(code) :] if text.startswith(code) else text
        return b"ERROR: " + text.rstrip().encode()
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


#: The commands after which lines come until Ctrl+C.
_STREAMS = ("SUBSCRIBE", "PSUBSCRIBE", "MONITOR")


def _stream(cache: Client, arguments: Sequence[Argument]) -> None:
    connection = cache._connect()
    try:
        connection.transport.send(encode_commands([arguments]))
        while True:
            for reply in _receive_some(connection):
                if isinstance(reply, ResponseError):
                    raise reply
                elements = reply if isinstance(reply, list) else [reply]
                _print(b" ".join([_show(element, b"") for element in elements]))
    except KeyboardInterrupt:
        return
    finally:
        connection.transport.close()


def _run(cache: Client, arguments: Sequence[bytes], missing: bytes) -> int:
    """Carry out one command, print its reply, and return the exit status."""
    name = arguments[0].decode("latin-1").upper()
    try:
        if name in _STREAMS:
            _stream(cache, arguments)
            return 0
        command: Sequence[Argument] = [name, *arguments[1:]] if name in WAITING else arguments
        _print(_show(cache.execute_command(*command, convert=_as_it_is), missing))
    except ResponseError as error:
        _print(_show(error, missing))
        return 1
    except (
        ServerNotRunning, UntrustedServer, ConnectionLost, CacheTimeout, ProtocolError
    ) as error:  # fmt: skip
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
        usage="client.py [-h] [--version] [--pipe NAME] [--trust-any-owner]"
        " [COMMAND [ARGUMENT ...]]",
        description="Send a command to a pipecache server, or prompt for commands.",
        epilog='Example: client.py SET greeting "hello world". "client.py doctor" looks whether'
        ' all is well with the server, "client.py doctor 231" says what an error number means.',
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pipe", metavar="NAME", default=DEFAULT_PIPE, help="name of the pipe (%(default)s)"
    )
    parser.add_argument(
        "--trust-any-owner", action="store_true", help="talk to a server of another user, too"
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
        trusting = options.trust_any_owner
        cache = Client(options.pipe, decode_responses=False, trust_any_owner=trusting)
    except ValueError as error:
        parser.error(str(error))
    with cache:
        try:
            if options.command[:1] == ["doctor"]:
                return examine(options.pipe, options.command[1:], trusting)
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
