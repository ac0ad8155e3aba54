#!/usr/bin/env python3
r"""Client of pipecache, a key-value server on Windows named pipes (elsewhere: Unix sockets).

    from client import Client

    cache = Client()                        # \\.\pipe\KeyValuePipe
    cache.set("city", "dubai", ex=60)       # the key expires after 60 seconds
    print(cache.get("city"))                # dubai

The methods and arguments have the names that redis-py gives them, so that only the import
line of a script changes when the script moves to Redis. From a shell:

    python client.py GET city               # send one command
    python client.py                        # prompt for commands
    python client.py doctor                 # check the server

The file needs only the standard library of Python 3.8 or newer. It has these sections;
each uses only the sections above it:

    Limits and defaults
    Exceptions
    Wire protocol: RESP commands and replies
    Win32 API
    Transports: named pipes on Windows, Unix sockets elsewhere
    Reply conversion: from RESP types to the types that redis-py returns
    Commands as methods
    Connections of a client
    Pipelines and transactions
    Locks
    Publish/subscribe and MONITOR
    Client
    Doctor: check a server, explain Windows error numbers
    Command line

SPDX-License-Identifier: MIT
"""

from __future__ import annotations

import argparse
import contextlib
import copy
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

#: The name of the pipe that a client opens if none is given.
DEFAULT_PIPE = "KeyValuePipe"

#: Seconds to wait for a free instance of the pipe.
CONNECT_TIMEOUT = 5.0

#: Seconds to wait for a reply.
TIMEOUT = 30.0

#: Bytes to read per system call.
CHUNK_SIZE = 65536

#: Bytes to write to a pipe per call. Windows charges pending writes to nonpaged pool, which is
#: small, so longer data is written in pieces.
MAX_WRITE = 1024 * 1024

#: Seconds of the longest single wait. Python on Windows handles Ctrl+C only between two waits.
WAIT_INTERVAL = 0.25

#: Bytes of a pipeline that are sent before its replies are read.
PIPELINE_BYTES = 256 * 1024

#: The types that a key or a value may have. Numbers are sent in decimal.
Argument = Union[str, bytes, bytearray, memoryview, int, float]

#: One key or value, or several.
Arguments = Union[Argument, Iterable[Argument]]

#: A function that converts a reply to the result that a method returns.
Converter = Callable[[Any], Any]


# ----------------------------------------------------------------------------
# Exceptions
# ----------------------------------------------------------------------------


class CacheError(Exception):
    """The base class of all exceptions that this module defines."""


class ServerNotRunning(CacheError, ConnectionError):
    """No server serves the pipe, or this user may not open it; the message says which."""


class UntrustedServer(CacheError, ConnectionError):
    """A program of another user serves the pipe. The client sent nothing to it."""


class ConnectionLost(CacheError, ConnectionError):
    """The server ended the connection. The command may have run. The next command reconnects."""


class CacheTimeout(CacheError, TimeoutError):
    """No instance of the pipe became free, or no reply arrived, within the time limit."""


class ProtocolError(CacheError):
    """The reply is not RESP, so the program that serves the pipe is not pipecache."""


class DataError(CacheError, TypeError):
    """An argument has a type that cannot be sent."""


class ResponseError(CacheError):
    """The server answered the command with an error.

    :ivar status_code: the first word of the server's error, such as ``ERR``. As in redis-py, the
        message leaves this word out if it is ``ERR`` or if the error has its own class.
    """

    status_code = "ERR"


class WrongTypeError(ResponseError):
    """The key holds a value of another type than the command needs."""


class OutOfMemoryError(ResponseError):
    """The server has reached its memory limit, and the command would need more memory."""


class AuthenticationError(ResponseError):
    """The server requires a password, or the password is wrong."""


class ExecAbortError(ResponseError):
    """The server discarded the transaction, because one of its commands could not be queued."""


class WatchError(CacheError):
    """The transaction did not run: a watched key changed, or the watching connection was lost."""


class LockError(CacheError, ValueError):
    """The lock could not be acquired in time, or this thread does not hold it."""


class LockNotOwnedError(LockError):
    """The lock was held, but has expired since. Another client may hold it now."""


class PubSubError(CacheError):
    """A channel or a pattern has no handler, so its messages would be lost."""


#: The class of an error by its first word. As in redis-py, the message leaves this word out.
_ERROR_CLASSES = {
    "ERR": ResponseError,
    "OOM": OutOfMemoryError,
    "NOAUTH": AuthenticationError,
    "WRONGPASS": AuthenticationError,
    "EXECABORT": ExecAbortError,
}


def _response_error(line: str) -> ResponseError:
    code, _, message = line.partition(" ")
    if code in _ERROR_CLASSES:
        error = _ERROR_CLASSES[code](message)
    else:
        error = (WrongTypeError if code == "WRONGTYPE" else ResponseError)(line)
    error.status_code = code
    return error


# ----------------------------------------------------------------------------
# Wire protocol: RESP commands and replies
# ----------------------------------------------------------------------------


class _HeaderCache(Dict[int, str]):
    # The RESP header for each length or count, such as "$3" or "*2". Nearly all strings and arrays
    # are short, and a dictionary lookup is faster than formatting.
    def __init__(self, prefix: str, limit: int) -> None:
        super().__init__((size, f"{prefix}{size}") for size in range(limit))
        self._prefix = prefix

    def __missing__(self, size: int) -> str:
        return f"{self._prefix}{size}"


_ARRAY_HEADER = _HeaderCache("*", 129)
_STRING_HEADER = _HeaderCache("$", 1025)


def encode_commands(commands: Iterable[Sequence[Argument]]) -> bytes:
    """Return commands as RESP; str is encoded as UTF-8.

    :raises DataError: for an argument of another type, such as None or bool.
    """
    # The commands are joined as latin-1 text, in which each character is one byte. That takes half
    # the time of joining bytes, because most arguments are text. Long data is joined as bytes, so
    # that it is copied only once.
    parts: list[bytes] = []
    lines: list[str] = []
    for arguments in commands:
        lines.append(_ARRAY_HEADER[len(arguments)])
        for argument in arguments:
            if type(argument) is not str or not argument.isascii():
                data = _encode_argument(argument)
                if len(data) > CHUNK_SIZE:
                    lines += (_STRING_HEADER[len(data)], "")
                    parts += ("\r\n".join(lines).encode("latin-1"), data)
                    lines = [""]
                    continue
                argument = data.decode("latin-1")  # noqa: PLW2901
            lines.append(_STRING_HEADER[len(argument)])
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


#: The first byte of each type of reply.
SIMPLE_STRING, SIMPLE_ERROR, INTEGER, BULK_STRING, ARRAY = b"+-:$*"


class ReplyReader:
    """A parser for the replies that arrive on one connection.

    :param receive: a function that returns the next chunk of bytes, which is never empty.
    """

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._buffer = b""
        self._position = 0
        # True once _read_fast() has met a reply in the buffer that only read() can parse.
        self._use_slow_path = False

    def feed(self, chunk: bytes) -> None:
        """Replace the buffer by the next chunk. All replies in the old buffer have been read."""
        self._buffer = chunk
        self._position = 0
        self._use_slow_path = False

    def read_first(self, chunk: bytes, decode: bool) -> Any:
        """Return the reply that begins with this chunk; see :meth:`read`."""
        header, _, data = chunk.partition(b"\r\n")
        if header == b"$%d" % (len(data) - 2):  # The usual case: one complete string.
            return data[:-2].decode() if decode else data[:-2]
        self.feed(chunk)
        return self.read(decode)

    def read(self, decode: bool) -> Any:
        """Return the next reply.

        :param decode: if true, strings are returned as str (decoded from UTF-8), else as bytes.
        :returns: a string, int, list or None. An error reply is returned, not raised, as a
            :class:`ResponseError`.
        :raises ProtocolError: if the data is not RESP.
        """
        buffer, start = self._buffer, self._position
        end = buffer.find(b"\r\n", start)
        if end < 0:
            buffer, start, end = self._receive_line()
        self._position = end + 2
        kind = buffer[start]
        if kind == SIMPLE_STRING:
            line = buffer[start + 1 : end]
            return line.decode() if decode else line
        if kind == SIMPLE_ERROR:
            return _response_error(buffer[start + 1 : end].decode("utf-8", "replace"))
        if kind not in (INTEGER, BULK_STRING, ARRAY):
            raise _protocol_error(buffer[start:end])
        try:
            number = int(buffer[start + 1 : end])
        except ValueError:
            raise _protocol_error(buffer[start:end]) from None
        if kind == BULK_STRING:
            if number < 0:
                return None
            stop = end + 2 + number
            complete = stop + 2 <= len(buffer)
            data = buffer[end + 2 : stop] if complete else self._receive_string(number)
            self._position += number + 2
            return data.decode() if decode else data
        if kind == INTEGER:
            return number
        return None if number < 0 else self.read_many(number, decode)

    @property
    def empty(self) -> bool:
        """True if everything that was received has been read."""
        return self._position == len(self._buffer)

    def read_available(self) -> list[Any]:
        """Return all received replies, strings as bytes. If there is none, wait for the next."""
        if self.empty:
            self.feed(self._receive())
        replies = [] if self._use_slow_path else self._read_fast(len(self._buffer), False)
        return replies or [self.read(False)]

    def read_many(self, count: int, decode: bool) -> list[Any]:
        """Return this number of replies, each as :meth:`read` returns it."""
        replies: list[Any] = []
        while len(replies) < count:
            buffer, start = self._buffer, self._position
            # read() does not search a string of 1000 or more bytes for CRLF; _read_fast() would.
            long = buffer.startswith(b"$", start) and buffer.find(b"\r\n", start, start + 6) < 0
            if long or self._use_slow_path:
                replies.append(self.read(decode))
            else:
                replies += self._read_fast(count - len(replies), decode)
        return replies

    def _read_fast(self, count: int, decode: bool) -> list[Any]:
        # Return up to `count` replies. This parser splits the buffer at CRLF once and compares the
        # length of each string with its header. A reply that is incomplete, is an error, or has a
        # string with CRLF in it does not fit, and read() parses the rest of the buffer.
        rest = self._buffer[self._position :] if self._position else self._buffer
        tokens = rest.decode("latin-1").split("\r\n")
        convert: Converter | None = _token_to_bytes
        if decode:
            convert = None if rest.isascii() else _token_to_str
        try:
            replies, used = _parse_tokens(tokens, 0, count, convert)
        except ValueError:  # A wrong number or wrong UTF-8: read() raises the right exception.
            replies, used = [], 0
        self._use_slow_path = len(replies) < count
        self._position += sum(map(len, tokens[:used])) + 2 * used
        return replies

    def _receive_line(self) -> tuple[bytes, int, int]:
        # Return the buffer with a complete first line, its start (0) and its end.
        while True:
            self.feed(self._buffer[self._position :] + self._receive())
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                return self._buffer, 0, end

    def _receive_string(self, size: int) -> bytes:
        # Return the next `size` bytes. The buffer then begins with them and the CRLF after them.
        chunks = [self._buffer[self._position :]]
        missing = size + 2 - len(chunks[0])
        while missing > 0:
            chunks.append(self._receive())
            missing -= len(chunks[-1])
        self.feed(b"".join(chunks))
        return self._buffer[:size]


def _protocol_error(line: bytes) -> ProtocolError:
    return ProtocolError(
        f"the reply {line[:64]!r} is not RESP; check that pipecache serves the pipe"
    )


def _token_to_bytes(token: str) -> bytes:
    return token.encode("latin-1")


def _token_to_str(token: str) -> str:
    return token.encode("latin-1").decode()


def _parse_tokens(
    tokens: list[str], position: int, count: int, convert: Converter | None
) -> tuple[list[Any], int]:
    # Return up to `count` replies and the position of the next token. Parsing stops before the
    # first reply that is incomplete or is an error. `convert` converts each string; None keeps it.
    end, last = position + 2 * count, len(tokens) - 1
    if end <= last and tokens[position][:1] == "$":
        strings = tokens[position + 1 : end : 2]
        if [_STRING_HEADER[len(string)] for string in strings] == tokens[position:end:2]:
            return strings if convert is None else list(map(convert, strings)), end
    replies: list[Any] = []
    while len(replies) < count and position < last:
        header = tokens[position]
        position += 1
        kind = header[:1]
        if kind == "$" and position < last and header == _STRING_HEADER[len(tokens[position])]:
            replies.append(tokens[position] if convert is None else convert(tokens[position]))
            position += 1
        elif header in ("$-1", "*-1"):
            replies.append(None)
        elif kind == ":":
            replies.append(int(header[1:]))
        elif kind == "+":
            replies.append(header[1:] if convert is None else convert(header[1:]))
        elif kind == "*":
            size = int(header[1:])
            elements, after = _parse_tokens(tokens, position, size, convert)
            if len(elements) != size:
                return replies, position - 1
            replies.append(elements)
            position = after
        else:
            return replies, position - 1
    return replies, position


# ----------------------------------------------------------------------------
# Win32 API
# ----------------------------------------------------------------------------

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
    #: SYSTEM and Administrators: programs with these SIDs have full control of the machine anyway.
    TRUSTED_SIDS = ("S-1-5-18", "S-1-5-32-544")

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

    def _nonzero(result: int, function: Any, arguments: Any) -> int:
        if not result:
            raise ctypes.WinError(ctypes.get_last_error())
        return result

    # These objects are private: prototypes set on ctypes.windll apply to the whole process.
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
    HANDLE, DWORD, BOOL, LPVOID = wintypes.HANDLE, wintypes.DWORD, wintypes.BOOL, wintypes.LPVOID
    LPDWORD, LPOVERLAPPED = wintypes.LPDWORD, ctypes.POINTER(OVERLAPPED)

    # The first line of a prototype has its result and its errcheck, the second one its arguments.
    # fmt: off
    CreateFileW = _bind(_kernel32, "CreateFileW", HANDLE, None,
        wintypes.LPCWSTR, DWORD, DWORD, LPVOID, DWORD, DWORD, HANDLE)
    SetNamedPipeHandleState = _bind(_kernel32, "SetNamedPipeHandleState", BOOL, _nonzero,
        HANDLE, LPDWORD, LPDWORD, LPDWORD)
    CreateEventW = _bind(_kernel32, "CreateEventW", HANDLE, _nonzero,
        LPVOID, BOOL, BOOL, wintypes.LPCWSTR)
    CloseHandle = _bind(_kernel32, "CloseHandle", BOOL, _nonzero, HANDLE)
    LocalFree = _bind(_kernel32, "LocalFree", wintypes.HLOCAL, None, wintypes.HLOCAL)
    GetCurrentProcess = _bind(_kernel32, "GetCurrentProcess", HANDLE, None)
    OpenProcessToken = _bind(_advapi32, "OpenProcessToken", BOOL, _nonzero,
        HANDLE, DWORD, ctypes.POINTER(HANDLE))
    GetTokenInformation = _bind(_advapi32, "GetTokenInformation", BOOL, _nonzero,
        HANDLE, ctypes.c_int, LPVOID, DWORD, LPDWORD)
    ConvertSidToStringSidW = _bind(_advapi32, "ConvertSidToStringSidW", BOOL, _nonzero,
        LPVOID, ctypes.POINTER(LPVOID))
    ConvertStringSidToSidW = _bind(_advapi32, "ConvertStringSidToSidW", BOOL, _nonzero,
        wintypes.LPCWSTR, ctypes.POINTER(LPVOID))
    ConvertSecurityDescriptorToStringSecurityDescriptorW = _bind(
        _advapi32, "ConvertSecurityDescriptorToStringSecurityDescriptorW", BOOL, _nonzero,
        LPVOID, DWORD, DWORD, ctypes.POINTER(LPVOID), LPDWORD)
    GetSecurityInfo = _bind(_advapi32, "GetSecurityInfo", DWORD, None,
        HANDLE, ctypes.c_int, DWORD, LPVOID, LPVOID, LPVOID, LPVOID, ctypes.POINTER(LPVOID))
    LookupAccountSidW = _bind(_advapi32, "LookupAccountSidW", BOOL, _nonzero,
        wintypes.LPCWSTR, LPVOID, wintypes.LPWSTR, LPDWORD, wintypes.LPWSTR, LPDWORD, LPDWORD)
    GetNamedPipeServerProcessId = _bind(_kernel32, "GetNamedPipeServerProcessId", BOOL, None,
        HANDLE, wintypes.PULONG)
    OpenProcess = _bind(_kernel32, "OpenProcess", HANDLE, None, DWORD, BOOL, DWORD)
    QueryFullProcessImageNameW = _bind(_kernel32, "QueryFullProcessImageNameW", BOOL, None,
        HANDLE, DWORD, wintypes.LPWSTR, LPDWORD)
    WaitNamedPipeW = _bind(_kernel32, "WaitNamedPipeW", BOOL, None, wintypes.LPCWSTR, DWORD)
    ReadFile = _bind(_kernel32, "ReadFile", BOOL, None,
        HANDLE, LPVOID, DWORD, LPDWORD, LPOVERLAPPED)
    WriteFile = _bind(_kernel32, "WriteFile", BOOL, None,
        HANDLE, wintypes.LPCVOID, DWORD, LPDWORD, LPOVERLAPPED)
    GetOverlappedResult = _bind(_kernel32, "GetOverlappedResult", BOOL, None,
        HANDLE, LPOVERLAPPED, LPDWORD, BOOL)
    CancelIoEx = _bind(_kernel32, "CancelIoEx", BOOL, None, HANDLE, LPOVERLAPPED)
    WaitForSingleObject = _bind(_kernel32, "WaitForSingleObject", DWORD, None, HANDLE, DWORD)
    # fmt: on

    def _sid_to_string(sid: Any) -> str:
        text = LPVOID()
        ConvertSidToStringSidW(sid, ctypes.byref(text))
        try:
            return ctypes.wstring_at(text.value or 0)
        finally:
            LocalFree(text)

    @functools.lru_cache(maxsize=None)
    def current_user() -> str:
        """Return the SID of the account that this process runs as."""
        token = HANDLE()
        OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, ctypes.byref(token))
        try:
            # The buffer receives TOKEN_USER: a pointer to the SID, then the SID (up to 68 bytes).
            user = (ctypes.c_void_p * 32)()
            size = DWORD()
            GetTokenInformation(
                token, TOKEN_USER_CLASS, user, ctypes.sizeof(user), ctypes.byref(size)
            )
            return _sid_to_string(user[0])
        finally:
            CloseHandle(token)

    def account_name(account: str) -> str:
        r"""Return the name (DOMAIN\user) of the account with this SID, or the SID if unknown."""
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


# ----------------------------------------------------------------------------
# Transports: named pipes on Windows, Unix sockets elsewhere
# ----------------------------------------------------------------------------


def pipe_address(name: str) -> str:
    r"""Return the address of a pipe: ``\\.\pipe\NAME``, or outside Windows the path of a socket.

    The socket has the name that .NET gives it: ``CoreFxPipe_NAME`` in the directory for
    temporary files. The name may include the prefix ``\\.\pipe\``. Outside Windows a name that
    contains a ``/`` is used as the path.
    """
    prefix = "\\\\.\\pipe\\"
    name = name[len(prefix) :] if name.startswith(prefix) else name
    if sys.platform == "win32":
        return prefix + name
    if "/" in name:
        return name
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", "CoreFxPipe_" + name)


def _connection_lost(address: str) -> ConnectionLost:
    return ConnectionLost(
        f"The server at {address} ended the connection; read its log for the reason"
    )


def _timed_out(address: str, timeout: float | None) -> CacheTimeout:
    return CacheTimeout(
        f"No reply from {address} within {timeout:g} s; try again, or set a longer timeout"
    )


def _server_not_running(address: str) -> ServerNotRunning:
    option = "" if address == pipe_address(DEFAULT_PIPE) else " with the same --pipe"
    return ServerNotRunning(
        f"Cache server not running: no program serves {address}; start pipecache.py{option}"
    )


# A transport is an open connection to the server. Both classes have these methods:
#   exchange(data)          send data and return the first chunk of the reply
#   send(data)              send data; another thread may wait or receive at the same time
#   receive()               wait for the next chunk of bytes and return it
#   wait(timeout)           return True as soon as receive() would not block, and False after
#                           this number of seconds (None: no limit); Ctrl+C interrupts the wait
#   interrupt()             make wait() and receive() in another thread raise ConnectionLost
#   exchange_text(command)  send one text command, return its whole reply; then only close()
#   close()                 close the connection, if it is open
#   owner()                 return the server's owner: a SID, outside Windows a user id
#   process()               return the server's process id and program, or 0 and ""
#   access()                return the access list: SDDL, outside Windows the socket's octal mode
# Methods raise ConnectionLost if the server has ended the connection, and CacheTimeout after the
# time limit; then only close() may be called. owner() and access() raise OSError if the system
# does not report them.

if sys.platform == "win32":

    class PipeTransport:
        """A connection to a named pipe in message mode, with overlapped I/O."""

        def __init__(self, address: str, connect_timeout: float, timeout: float | None) -> None:
            self.address = address
            self._timeout = timeout
            self._handle: int | None = None
            self._events: list[int] = []
            self._interrupted = False
            self._read_pending = False  # True while a read that wait() began is not finished.
            self._received: bytes | None = None  # The chunk that wait() has read.
            self._message_incomplete = False
            self._open(time.monotonic() + connect_timeout, connect_timeout)
            try:
                mode = DWORD(PIPE_READMODE_MESSAGE)
                SetNamedPipeHandleState(self._handle, ctypes.byref(mode), None, None)
                for _ in range(2):
                    self._events.append(CreateEventW(None, True, False, None))
            except OSError as error:
                self.close()
                raise ServerNotRunning(f"Cannot use {address}: {error}; try again") from error
            # One OVERLAPPED for each direction: one thread may send while another one receives.
            self._read, self._write = (OVERLAPPED(hEvent=event) for event in self._events)
            self._read_ref, self._write_ref = ctypes.byref(self._read), ctypes.byref(self._write)
            self._buffer = ctypes.create_string_buffer(CHUNK_SIZE)
            self._view = memoryview(self._buffer)
            self._read_count, self._write_count = DWORD(), DWORD()
            self._read_count_ref = ctypes.byref(self._read_count)

        def _open(self, deadline: float, timeout: float) -> None:
            # At the identification level, an untrusted server cannot impersonate this user.
            flags = FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION
            while True:
                handle: int = CreateFileW(
                    self.address, GENERIC_READ | GENERIC_WRITE, 0, None, OPEN_EXISTING, flags, None
                )
                if handle != INVALID_HANDLE_VALUE:
                    self._handle = handle
                    return
                error = ctypes.get_last_error()
                remaining = deadline - time.monotonic()
                if error == ERROR_PIPE_BUSY and remaining > 0:
                    # Even if the wait succeeds, another client may open the free instance first.
                    WaitNamedPipeW(self.address, math.ceil(min(remaining, WAIT_INTERVAL) * 1000))
                    continue
                raise self._open_error(error, timeout) from ctypes.WinError(error)

        def _open_error(self, error: int, timeout: float) -> CacheError:
            if error == ERROR_FILE_NOT_FOUND:
                return _server_not_running(self.address)
            if error == ERROR_PIPE_BUSY:
                return CacheTimeout(
                    f"Every instance of {self.address} was busy for {timeout:g} s;"
                    " start the server with a higher --max-clients"
                )
            if error == ERROR_ACCESS_DENIED:
                return ServerNotRunning(
                    f"Cannot open {self.address}: the pipe belongs to another account, which does"
                    " not allow this one to connect; start the server with --access users"
                )
            return ServerNotRunning(
                f"Cannot open {self.address}: {ctypes.WinError(error)}; check the name of the pipe"
            )

        def exchange(self, data: bytes) -> bytes:
            # TransactNamedPipe does both in one call, but is slower under Wine.
            with contextlib.suppress(ConnectionLost):  # The server's last reply is still readable.
                self.send(data)
            return self.receive()

        def send(self, data: bytes) -> None:
            for start in range(0, len(data), MAX_WRITE):
                self._write_message(data[start : start + MAX_WRITE])

        def _write_message(self, data: bytes) -> None:
            if WriteFile(self._handle, data, len(data), None, self._write_ref):
                return
            error = ctypes.get_last_error()
            if error == ERROR_IO_PENDING:
                timeout = math.inf if self._timeout is None else self._timeout
                try:
                    if not self._wait_for_event(self._write, time.monotonic() + timeout):
                        raise _timed_out(self.address, self._timeout)
                except BaseException:
                    self._cancel(self._write, self._write_count)
                    raise
                error = self._get_result(self._write, self._write_count)
            if error:
                raise _connection_lost(self.address) from ctypes.WinError(error)

        def receive(self) -> bytes:
            if not self.wait(self._timeout):
                raise _timed_out(self.address, self._timeout)
            chunk, self._received = self._received, None
            return chunk or b""

        def wait(self, timeout: float | None) -> bool:
            # wait() begins a read. When the time is up, the read stays pending, so that no bytes
            # are lost; the next wait() or receive() continues it, or close() cancels it.
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            while self._received is None:
                error = 0
                if not self._read_pending and not ReadFile(
                    self._handle, self._buffer, CHUNK_SIZE, self._read_count_ref, self._read_ref
                ):
                    error = ctypes.get_last_error()
                    self._read_pending = error == ERROR_IO_PENDING
                if self._read_pending:
                    if not self._wait_for_event(self._read, deadline):
                        return False
                    self._read_pending = False
                    error = self._get_result(self._read, self._read_count)
                    if error == ERROR_OPERATION_ABORTED and not self._interrupted:
                        continue  # Windows cancels a pending read if the thread that began it ends.
                self._message_incomplete = error == ERROR_MORE_DATA
                if error == ERROR_MORE_DATA:
                    self._read_count.value = CHUNK_SIZE
                elif error:
                    raise _connection_lost(self.address) from ctypes.WinError(error)
                self._received = self._view[: self._read_count.value].tobytes()
            return True

        def exchange_text(self, command: bytes) -> bytes:
            self._write_message(command)
            chunks = [self.receive()]
            while self._message_incomplete:
                chunks.append(self.receive())
            return b"".join(chunks)

        def _get_result(self, operation: OVERLAPPED, count: wintypes.DWORD) -> int:
            done = GetOverlappedResult(
                self._handle, ctypes.byref(operation), ctypes.byref(count), False
            )
            return 0 if done else ctypes.get_last_error()

        def _wait_for_event(self, operation: OVERLAPPED, deadline: float) -> bool:
            # Python on Windows handles Ctrl+C only between two waits, so no wait is long.
            remaining = deadline - time.monotonic()
            while True:
                milliseconds = math.ceil(min(WAIT_INTERVAL, max(remaining, 0)) * 1000)
                outcome = WaitForSingleObject(operation.hEvent, milliseconds)
                if outcome == WAIT_OBJECT_0:
                    return True
                if self._interrupted or outcome != WAIT_TIMEOUT:
                    raise _connection_lost(self.address)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False

        def _cancel(self, operation: OVERLAPPED, count: wintypes.DWORD) -> None:
            # Windows may write to the buffer until GetOverlappedResult has returned.
            CancelIoEx(self._handle, ctypes.byref(operation))
            GetOverlappedResult(self._handle, ctypes.byref(operation), ctypes.byref(count), True)

        def interrupt(self) -> None:
            # CancelIoEx has no effect on a thread that has not begun its read yet. That thread
            # checks the flag after WAIT_INTERVAL.
            self._interrupted = True
            CancelIoEx(self._handle, self._read_ref)

        def close(self) -> None:
            if self._read_pending:
                self._read_pending = False
                self._cancel(self._read, self._read_count)
            handles, self._events = self._events, []
            if self._handle is not None:
                handles.append(self._handle)
                self._handle = None
            for handle in handles:
                CloseHandle(handle)

        def owner(self) -> str:
            sid = LPVOID()
            descriptor = self._security_descriptor(OWNER_SECURITY_INFORMATION, ctypes.byref(sid))
            try:
                return _sid_to_string(sid)
            finally:
                LocalFree(descriptor)

        def access(self) -> str:
            requested, text = DACL_SECURITY_INFORMATION, LPVOID()
            descriptor = self._security_descriptor(requested, None)
            try:
                ConvertSecurityDescriptorToStringSecurityDescriptorW(
                    descriptor, SDDL_REVISION_1, requested, ctypes.byref(text), None
                )
                return ctypes.wstring_at(text.value or 0)
            finally:
                LocalFree(text)
                LocalFree(descriptor)

        def _security_descriptor(self, requested: int, owner: Any) -> Any:
            # The caller frees the result with LocalFree. `owner` points into the result.
            descriptor = LPVOID()
            error = GetSecurityInfo(
                self._handle, SE_KERNEL_OBJECT, requested, owner, None, None, None,
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

    Transport = PipeTransport

else:
    #: The user id of root, whose programs have full control of the machine anyway. The name is
    #: that of Windows, so that check_owner() is the same on both systems.
    TRUSTED_SIDS = ("0",)

    def current_user() -> str:
        """Return the id of the user that this process runs as."""
        return str(os.geteuid())

    def account_name(account: str) -> str:
        """Return the name of the user with this id, or "user" and the id if unknown."""
        import pwd

        try:
            return pwd.getpwuid(int(account)).pw_name
        except KeyError:
            return f"user {account}"

    class UnixTransport:
        """A connection to a Unix domain socket."""

        def __init__(self, address: str, connect_timeout: float, timeout: float | None) -> None:
            self.address = address
            self._timeout = timeout
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket_sendall, self._socket_recv = self._socket.sendall, self._socket.recv
            try:
                self._set_timeouts(connect_timeout)
                self._socket.connect(address)
                self._set_timeouts(timeout)
            except BlockingIOError:
                self._socket.close()
                raise CacheTimeout(
                    f"The server at {address} accepted no connection within {connect_timeout:g} s;"
                    " start it with a higher --max-clients"
                ) from None
            except (ConnectionRefusedError, FileNotFoundError):
                self._socket.close()
                raise _server_not_running(address) from None
            except OSError as error:
                self._socket.close()
                raise ServerNotRunning(
                    f"Cannot open {address}: {error}; check the name of the pipe and the server's"
                    " --access"
                ) from error

        def _set_timeouts(self, seconds: float | None) -> None:
            # The kernel applies these limits at no cost. With socket.settimeout(), Python would
            # call poll() before every call. The kernel takes 0 as no limit, so the minimum is 1 µs.
            microseconds = 0 if seconds is None else max(math.ceil(seconds * 1_000_000), 1)
            limit = struct.pack("ll", *divmod(microseconds, 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

        def exchange(self, data: bytes) -> bytes:
            # The bodies of send() and receive() are repeated here, for speed.
            try:
                self._socket_sendall(data)
                chunk = self._socket_recv(CHUNK_SIZE)
            except BlockingIOError:
                raise _timed_out(self.address, self._timeout) from None
            except OSError:
                return self.receive()  # The server's last reply, or ConnectionLost.
            if not chunk:
                raise _connection_lost(self.address)
            return chunk

        def send(self, data: bytes) -> None:
            try:
                self._socket.sendall(data)
            except BlockingIOError:
                raise _timed_out(self.address, self._timeout) from None
            except OSError:
                raise _connection_lost(self.address) from None

        def receive(self) -> bytes:
            try:
                chunk = self._socket.recv(CHUNK_SIZE)
            except BlockingIOError:
                raise _timed_out(self.address, self._timeout) from None
            except OSError:
                raise _connection_lost(self.address) from None
            if not chunk:
                raise _connection_lost(self.address)
            return chunk

        def wait(self, timeout: float | None) -> bool:
            poll = select.poll()
            try:
                poll.register(self._socket, select.POLLIN)
            except ValueError:  # The socket was closed, as in a forked child.
                raise _connection_lost(self.address) from None
            # poll() takes at most 2**31 - 1 milliseconds, which is 24 days.
            limit = None if timeout is None else min(math.ceil(max(timeout, 0) * 1000), 2**31 - 1)
            return bool(poll.poll(limit))

        def interrupt(self) -> None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

        def exchange_text(self, command: bytes) -> bytes:
            # On a byte stream a text command ends at the line feed. The reply may contain line
            # feeds, so its end is found by closing the sending direction: the server then sends
            # the reply and closes the connection.
            if b"\n" in command:
                raise DataError(
                    "a text command cannot contain a line break outside Windows; use Client instead"
                )
            self.send(command + b"\n")
            with contextlib.suppress(OSError):  # receive() reports a lost connection.
                self._socket.shutdown(socket.SHUT_WR)
            chunks = [self.receive()]
            with contextlib.suppress(ConnectionLost):
                while True:
                    chunks.append(self.receive())
            reply = b"".join(chunks)
            if not reply.endswith(b"\n"):
                raise _connection_lost(self.address)
            return reply[:-1]

        def close(self) -> None:
            self._socket.close()

        def owner(self) -> str:
            credentials = self._peer_credentials()
            return str(os.stat(self.address).st_uid if credentials is None else credentials[1])

        def access(self) -> str:
            return f"{stat.S_IMODE(os.stat(self.address).st_mode):04o}"

        def _peer_credentials(self) -> tuple[int, ...] | None:
            # Return the server's process id, user id and group id, or None if the system (such as
            # macOS) does not report them.
            if not hasattr(socket, "SO_PEERCRED"):
                return None
            size = struct.calcsize("3i")
            option = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            return struct.unpack("3i", option)

        def process(self) -> tuple[int, str]:
            process = (self._peer_credentials() or (0,))[0]
            try:
                return process, os.readlink(f"/proc/{process}/exe")
            except OSError:
                return process, ""

    Transport = UnixTransport


def _exchange_blocking(transport: Transport, data: bytes, timeout: float | None) -> bytes:
    # Do what exchange() does, with another time limit in seconds (None: no limit).
    with contextlib.suppress(ConnectionLost):  # The server's last reply is still readable.
        transport.send(data)
    if not transport.wait(timeout):
        raise _timed_out(transport.address, timeout)
    return transport.receive()


def connect(
    address: str, connect_timeout: float, timeout: float | None, trust_any_owner: bool
) -> Transport:
    """Open a connection to a server of this user, of SYSTEM, of an administrator, or of root.

    Without this check, a program of another user that took the name of the pipe first would
    receive the data that is meant for this user's server.

    :param connect_timeout: seconds to wait for a free instance of the pipe.
    :param timeout: seconds to wait for each chunk of a reply; None: no limit.
    :raises UntrustedServer: if the server belongs to another user and ``trust_any_owner`` is false.
    """
    transport = Transport(address, connect_timeout, timeout)
    try:
        if not trust_any_owner:
            check_owner(transport)
    except BaseException:
        transport.close()
        raise
    return transport


def check_owner(transport: Transport) -> None:
    """Raise :class:`UntrustedServer` if :func:`connect` does not accept the server's owner."""
    try:
        owner = transport.owner()
        trusted = owner == current_user() or owner in TRUSTED_SIDS
    except OSError as error:
        raise UntrustedServer(
            f"Cannot read the owner of {transport.address}: {error}; nothing was sent."
            " To connect without this check, pass trust_any_owner=True (--trust-any-owner)"
        ) from error
    if not trusted:
        raise UntrustedServer(
            f"{transport.address} is served by another user, {account_name(owner)}; nothing was"
            " sent. To trust that user, pass trust_any_owner=True (--trust-any-owner)"
        )


# ----------------------------------------------------------------------------
# Reply conversion: from RESP types to the types that redis-py returns
# ----------------------------------------------------------------------------


def _to_str(reply: Any) -> str:
    return reply if isinstance(reply, str) else reply.decode("utf-8", "replace")


def _unchanged(reply: Any) -> Any:
    return reply


def _ok_to_true(reply: Any) -> Any:
    return True if reply in ("OK", b"OK") else reply


def _to_dict(reply: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(reply[::2], reply[1::2]))


def _score_pairs(score_cast_func: Converter = float) -> Converter:
    # Convert a flat list of members and scores to tuples. A score arrives as text; int() does not
    # accept text such as "1e+20", so the text then becomes a float first.
    def score(text: Any) -> Any:
        try:
            return score_cast_func(text)
        except (TypeError, ValueError):
            return score_cast_func(float(text))

    return lambda reply: list(zip(reply[::2], map(score, reply[1::2])))


def _scan_page(convert: Converter) -> Converter:
    return lambda reply: (int(reply[0]), convert(reply[1]))


def _parse_fields(line: str) -> dict[str, str]:
    # Parse "id=1 addr=/a file:0 name=". A value may be empty or contain blanks.
    return dict(re.findall(r"([^ =]+)=(.*?)(?= [^ =]+=|$)", line))


def _parse_client_list(reply: Any) -> list[dict[str, str]]:
    return [_parse_fields(line) for line in _to_str(reply).splitlines()]


def _parse_client_info(reply: Any) -> dict[str, str | int]:
    numbers = " id age idle db sub psub multi qbuf qbuf-free obl argv-mem oll omem tot-mem "
    fields = _parse_fields(_to_str(reply).strip())
    return {name: int(value) if f" {name} " in numbers else value for name, value in fields.items()}


def _parse_info(reply: Any) -> dict[str, Any]:
    lines = [line.partition(":") for line in _to_str(reply).splitlines() if line[:1] != "#"]
    return {
        name: value if name in _INFO_STRINGS else _parse_info_value(value)
        for name, colon, value in lines
        if colon
    }


#: Fields of INFO that Redis does not have. Their values are names or sentences, never numbers.
_INFO_STRINGS = ("address", "db_file", "db_last_error")


def _parse_info_value(value: str) -> Any:
    if "=" in value:  # For example: keys=1,expires=0
        pairs = [item.rpartition("=") for item in value.split(",")]
        return {name: _parse_info_value(number) for name, _, number in pairs}
    if "," in value:
        return [_parse_info_value(item) for item in value.split(",") if item]
    try:
        return float(value) if "." in value else int(value)
    except ValueError:
        return value


#: The converter of each command. A method whose conversion depends on its arguments passes its
#: own converter to execute_command().
CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(("FLUSHALL", "FLUSHDB", "LSET", "LTRIM", "MSET"), _ok_to_true),
    **dict.fromkeys(("RENAME", "SAVE", "SET", "UNWATCH", "WATCH"), _ok_to_true),
    "BGSAVE": lambda reply: True,
    "LASTSAVE": datetime.fromtimestamp,
    **dict.fromkeys(("COPY", "HEXISTS", "PERSIST", "RENAMENX", "SMOVE"), bool),
    **dict.fromkeys(("EXPIRE", "EXPIREAT", "PEXPIRE", "PEXPIREAT"), bool),
    **dict.fromkeys(("HMSET", "MSETNX", "PSETEX", "SETEX", "SETNX"), bool),
    **dict.fromkeys(("HINCRBYFLOAT", "INCRBYFLOAT", "ZINCRBY", "ZSCORE"), float),
    **dict.fromkeys(("SDIFF", "SINTER", "SMEMBERS", "SUNION"), set),
    **dict.fromkeys(("SCAN", "SSCAN"), _scan_page(list)),
    **dict.fromkeys(("BLPOP", "BRPOP"), tuple),
    **dict.fromkeys(("BZPOPMAX", "BZPOPMIN"), lambda reply: (*reply[:2], float(reply[2]))),
    **dict.fromkeys(("ZPOPMAX", "ZPOPMIN"), _score_pairs()),
    "HGETALL": _to_dict,
    "HSCAN": _scan_page(_to_dict),
    "INFO": _parse_info,
    "PING": lambda reply: True if reply in ("PONG", b"PONG") else reply,
    "TIME": lambda reply: (int(reply[0]), int(reply[1])),
    "ZMSCORE": lambda reply: [None if score is None else float(score) for score in reply],
}


def _convert(name: Argument, reply: Any, convert: Converter | None) -> Any:
    # Return what execute_command() returns for a reply. None is never converted.
    if isinstance(reply, ResponseError):
        raise reply
    if convert is None and type(name) is str:
        convert = CONVERTERS.get(name)
    return reply if convert is None or reply is None else convert(reply)


#: The blocking commands, and the position of the argument that is the timeout in seconds.
BLOCKING_COMMANDS = {
    **dict.fromkeys(("BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMAX", "BZPOPMIN"), -1),
    **dict.fromkeys(("BLMPOP", "BZMPOP"), 1),
}


# ----------------------------------------------------------------------------
# Commands as methods
# ----------------------------------------------------------------------------


def _list_or_args(keys: Any, args: Sequence[Argument] = ()) -> list[Argument]:
    if isinstance(keys, (str, bytes, bytearray, memoryview, int, float)):
        return [keys, *args]
    return [*keys, *args]


def _flatten(mapping: Mapping[Any, Argument]) -> list[Argument]:
    return [part for pair in mapping.items() for part in pair]


def _not_none(*arguments: Any) -> list[Argument]:
    return [argument for argument in arguments if argument is not None]


def _flags(**flags: bool | None) -> list[Argument]:
    return [name for name, is_set in flags.items() if is_set]


def _options(**options: Any) -> list[Argument]:
    arguments: list[Argument] = []
    for name, value in options.items():
        if value is not None:
            arguments += (name, value if type(value) is int else _to_expiry(name, value))
    return arguments


def _to_expiry(name: str, value: Any) -> Any:
    # Convert a datetime or timedelta to the unit of a command or option: milliseconds for PEXPIRE,
    # PEXPIREAT, PX and PXAT, else seconds. Other values stay as they are.
    unit = 1000 if name.startswith("P") else 1
    if isinstance(value, datetime) and name.endswith("AT"):
        return int(value.timestamp() * unit)
    if isinstance(value, timedelta) and not name.endswith("AT"):
        return int(value.total_seconds() * unit)
    return value


def _scan_all(scan: Callable[[int], Any]) -> Iterator[Any]:
    # Yield the elements of all pages. The server returns the cursor 0 with the last page.
    cursor = 0
    while True:
        cursor, page = scan(cursor)
        yield from page.items() if isinstance(page, dict) else page
        if cursor == 0:
            return


class Commands:
    """The commands as methods, for :class:`Client` and :class:`Pipeline`.

    The methods are in this order: strings, compare-and-set (as in Redis 8.4 and Valkey 9), keys,
    expiry, lists, hashes, sets, sorted sets, publish/subscribe, server.

    Each method sends the Redis command that it is named after, whose documentation applies, and
    returns the type that redis-py returns. Keys and values are given as str (sent as UTF-8),
    bytes or numbers and are returned as str, or as bytes with ``decode_responses=False``. All
    methods raise the exceptions of :meth:`execute_command`. The server checks options that
    exclude each other or are out of range, so these raise a :class:`ResponseError`.
    """

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        """Send any command, given as its name in capitals and its arguments, and return the result.

        :param convert: a function that converts a reply other than None; without it, the reply is
            converted as by the method for this command, if there is one.
        :returns: str (bytes with ``decode_responses=False``), int, list or None, or the result of
            the conversion.
        :raises ResponseError: if the server answers with an error.
        :raises ServerNotRunning, UntrustedServer: if the client cannot connect.
        :raises ConnectionLost, CacheTimeout: if no reply arrives; the command may have run.
        :raises DataError: if an argument has a type that cannot be sent.
        """
        raise NotImplementedError

    def get(self, name: Argument) -> Any:
        """Return the value of a key, or None if the key does not exist."""
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
        """Set a key to a value.

        :param ex, px: expire the key after this many seconds or milliseconds.
        :param nx, xx: set the key only if it does not exist, or only if it exists.
        :param keepttl: keep the time to live of the key.
        :param get: return the old value of the key, or None.
        :param exat, pxat: expire the key at this time, in seconds or milliseconds since 1970.
        :param ifeq: set the key only if it has this value.
        :param owned: delete the key when the connection that set it ends, and so at the latest when
            the program ends. Redis has no such option. A client closes idle connections after an
            error, so use a :class:`Lock` with ``owned`` to hold a key for longer.
        :returns: True, or None if the condition ``nx``, ``xx`` or ``ifeq`` was not met.
        """
        if ex is px is exat is pxat is ifeq is None and not (nx or xx or keepttl or get or owned):
            return self.execute_command("SET", name, value)
        options = _options(EX=ex, PX=px, EXAT=exat, PXAT=pxat, IFEQ=ifeq)
        flags = _flags(NX=nx, XX=xx, KEEPTTL=keepttl, GET=get, OWNED=owned)
        convert = _unchanged if get else None  # With get, "OK" may be an old value.
        return self.execute_command("SET", name, value, *options, *flags, convert=convert)

    def getex(
        self, name: Argument, ex: int | timedelta | None = None, px: int | timedelta | None = None,
        exat: int | datetime | None = None, pxat: int | datetime | None = None,
        persist: bool = False,
    ) -> Any:  # fmt: skip
        """Return the value of a key and set its time to live, or remove it (``persist``)."""
        options = _options(EX=ex, PX=px, EXAT=exat, PXAT=pxat)
        return self.execute_command("GETEX", name, *options, *_flags(PERSIST=persist))

    def getdel(self, name: Argument) -> Any:
        """Delete a key and return its value, or None if it did not exist."""
        return self.execute_command("GETDEL", name)

    def getset(self, name: Argument, value: Argument) -> Any:
        """Set a key and return its old value, or None."""
        return self.execute_command("GETSET", name, value)

    def getrange(self, key: Argument, start: int, end: int) -> Any:
        """Return the part of a value from byte start to byte end, both included."""
        return self.execute_command("GETRANGE", key, start, end)

    def setrange(self, name: Argument, offset: int, value: Argument) -> Any:
        """Overwrite a value from an offset on and return its new length in bytes."""
        return self.execute_command("SETRANGE", name, offset, value)

    def append(self, key: Argument, value: Argument) -> Any:
        """Append to a value and return its new length in bytes."""
        return self.execute_command("APPEND", key, value)

    def strlen(self, name: Argument) -> Any:
        """Return the length of a value in bytes."""
        return self.execute_command("STRLEN", name)

    def setnx(self, name: Argument, value: Argument) -> Any:
        """Set a key if it does not exist. Return True if it was set."""
        return self.execute_command("SETNX", name, value)

    def setex(self, name: Argument, time: int | timedelta, value: Argument) -> Any:
        """Set a key that expires after this many seconds."""
        return self.execute_command("SETEX", name, _to_expiry("EX", time), value)

    def psetex(self, name: Argument, time_ms: int | timedelta, value: Argument) -> Any:
        """Set a key that expires after this many milliseconds."""
        return self.execute_command("PSETEX", name, _to_expiry("PX", time_ms), value)

    def mget(self, keys: Arguments, *args: Argument) -> Any:
        """Return the values of keys, given as a list or one by one; None for a missing key."""
        names = _list_or_args(keys, args)
        if not names:  # MGET without keys is an error, but redis-py returns [].
            return self.execute_command("PING", convert=lambda reply: [])
        return self.execute_command("MGET", *names)

    def mset(self, mapping: Mapping[Any, Argument]) -> Any:
        """Set several keys in one step."""
        return self.execute_command("MSET", *_flatten(mapping))

    def msetnx(self, mapping: Mapping[Any, Argument]) -> Any:
        """Set several keys in one step if none of them exists. Return True if set."""
        return self.execute_command("MSETNX", *_flatten(mapping))

    def incr(self, name: Argument, amount: int = 1) -> Any:
        """Add to the integer in a key and return the sum."""
        return self.execute_command("INCRBY", name, amount)

    incrby = incr

    def decr(self, name: Argument, amount: int = 1) -> Any:
        """Subtract from the integer in a key and return the difference."""
        return self.execute_command("DECRBY", name, amount)

    decrby = decr

    def incrbyfloat(self, name: Argument, amount: float = 1.0) -> Any:
        """Add to the number in a key and return the sum as a float."""
        return self.execute_command("INCRBYFLOAT", name, amount)

    def delex(self, name: Argument, ifeq: Argument | None = None) -> Any:
        """Delete a key, with ``ifeq`` only if it has this value. Return 1 if deleted, else 0."""
        return self.execute_command("DELEX", name, *_options(IFEQ=ifeq))

    def delifeq(self, name: Argument, value: Argument) -> Any:
        """Delete a key if it has this value (Valkey 9). Return 1 if deleted, else 0."""
        return self.execute_command("DELIFEQ", name, value)

    def delete(self, *names: Argument) -> Any:
        """Delete keys and return how many existed."""
        return self.execute_command("DEL", *names)

    def unlink(self, *names: Argument) -> Any:
        """Delete keys and return how many existed."""
        return self.execute_command("UNLINK", *names)

    def exists(self, *names: Argument) -> Any:
        """Return how many of the keys exist."""
        return self.execute_command("EXISTS", *names)

    def type(self, name: Argument) -> Any:
        """Return the type of a key's value: string, list, hash, set, zset, or none."""
        return self.execute_command("TYPE", name)

    def rename(self, src: Argument, dst: Argument) -> Any:
        """Rename a key. If the new name exists, replace it."""
        return self.execute_command("RENAME", src, dst)

    def renamenx(self, src: Argument, dst: Argument) -> Any:
        """Rename a key if the new name does not exist. Return True if renamed."""
        return self.execute_command("RENAMENX", src, dst)

    def copy(
        self, source: Argument, destination: Argument, destination_db: int | None = None,
        replace: bool = False,
    ) -> Any:  # fmt: skip
        """Copy a key. Return False if the source is missing or the destination exists already."""
        options = [*_options(DB=destination_db), *_flags(REPLACE=replace)]
        return self.execute_command("COPY", source, destination, *options)

    def randomkey(self) -> Any:
        """Return a random key, or None if the server holds no keys."""
        return self.execute_command("RANDOMKEY")

    def touch(self, *args: Argument) -> Any:
        """Mark keys as used now and return how many of them exist."""
        return self.execute_command("TOUCH", *args)

    def keys(self, pattern: Argument = "*") -> Any:
        """Return the keys that match a pattern such as ``user:*``, as a list."""
        return self.execute_command("KEYS", pattern)

    def scan(
        self, cursor: Argument = 0, match: Argument | None = None, count: int | None = None,
        _type: str | None = None,
    ) -> Any:  # fmt: skip
        """Return the cursor of the next page (0 after the last page) and a list of keys."""
        return self.execute_command("SCAN", cursor, *_options(MATCH=match, COUNT=count, TYPE=_type))

    def scan_iter(
        self, match: Argument | None = None, count: int | None = None, _type: str | None = None
    ) -> Iterator[Any]:
        """Yield the keys, page by page. A key may be repeated if keys change meanwhile."""
        return _scan_all(lambda cursor: self.scan(cursor, match, count, _type))

    def object(self, infotype: str, key: Argument) -> Any:
        """Return how a key is stored: its ``"encoding"``, or its ``"idletime"`` in seconds."""
        return self.execute_command("OBJECT", infotype, key)

    def expire(
        self, name: Argument, time: int | timedelta, nx: bool = False, xx: bool = False,
        gt: bool = False, lt: bool = False,
    ) -> Any:  # fmt: skip
        """Expire a key after this many seconds. Return True if its time to live was set.

        :param nx, xx: set it only if the key has no time to live, or only if the key has one.
        :param gt, lt: set it only if the key then expires later, or only if it expires earlier.
        """
        return self._expire("EXPIRE", name, time, nx, xx, gt, lt)

    def pexpire(
        self, name: Argument, time: int | timedelta, nx: bool = False, xx: bool = False,
        gt: bool = False, lt: bool = False,
    ) -> Any:  # fmt: skip
        """Do the same as :meth:`expire`, in milliseconds."""
        return self._expire("PEXPIRE", name, time, nx, xx, gt, lt)

    def expireat(
        self, name: Argument, when: int | datetime, nx: bool = False, xx: bool = False,
        gt: bool = False, lt: bool = False,
    ) -> Any:  # fmt: skip
        """Do the same as :meth:`expire`, at a time in seconds since 1970."""
        return self._expire("EXPIREAT", name, when, nx, xx, gt, lt)

    def pexpireat(
        self, name: Argument, when: int | datetime, nx: bool = False, xx: bool = False,
        gt: bool = False, lt: bool = False,
    ) -> Any:  # fmt: skip
        """Do the same as :meth:`expire`, at a time in milliseconds since 1970."""
        return self._expire("PEXPIREAT", name, when, nx, xx, gt, lt)

    def _expire(
        self, command: str, name: Argument, time: Any, nx: bool, xx: bool, gt: bool, lt: bool
    ) -> Any:
        flags = _flags(NX=nx, XX=xx, GT=gt, LT=lt)
        return self.execute_command(command, name, _to_expiry(command, time), *flags)

    def ttl(self, name: Argument) -> Any:
        """Return the remaining seconds of a key; -1 if it never expires, -2 if it is missing."""
        return self.execute_command("TTL", name)

    def pttl(self, name: Argument) -> Any:
        """Do the same as :meth:`ttl`, in milliseconds."""
        return self.execute_command("PTTL", name)

    def expiretime(self, key: Argument) -> Any:
        """Return when a key expires, in seconds since 1970; -1 and -2 as in :meth:`ttl`."""
        return self.execute_command("EXPIRETIME", key)

    def pexpiretime(self, key: Argument) -> Any:
        """Do the same as :meth:`expiretime`, in milliseconds."""
        return self.execute_command("PEXPIRETIME", key)

    def persist(self, name: Argument) -> Any:
        """Remove the time to live of a key. Return True if it had one."""
        return self.execute_command("PERSIST", name)

    def lpush(self, name: Argument, *values: Argument) -> Any:
        """Insert elements, one after the other, at the head and return the new length."""
        return self.execute_command("LPUSH", name, *values)

    def rpush(self, name: Argument, *values: Argument) -> Any:
        """Append elements at the tail and return the new length."""
        return self.execute_command("RPUSH", name, *values)

    def lpushx(self, name: Argument, *values: Argument) -> Any:
        """Insert elements at the head only if the list exists. Return the length, or 0."""
        return self.execute_command("LPUSHX", name, *values)

    def rpushx(self, name: Argument, *values: Argument) -> Any:
        """Append elements only if the list exists. Return the length, or 0."""
        return self.execute_command("RPUSHX", name, *values)

    def lpop(self, name: Argument, count: int | None = None) -> Any:
        """Remove and return the element at the head, or a list of ``count`` elements, or None."""
        return self.execute_command("LPOP", name, *_not_none(count))

    def rpop(self, name: Argument, count: int | None = None) -> Any:
        """Remove and return the element at the tail, or a list of ``count`` elements, or None."""
        return self.execute_command("RPOP", name, *_not_none(count))

    def llen(self, name: Argument) -> Any:
        """Return the length of a list."""
        return self.execute_command("LLEN", name)

    def lrange(self, name: Argument, start: int, end: int) -> Any:
        """Return the elements from start to end, both included; -1 is the last element."""
        return self.execute_command("LRANGE", name, start, end)

    def lindex(self, name: Argument, index: int) -> Any:
        """Return the element at an index, or None."""
        return self.execute_command("LINDEX", name, index)

    def lset(self, name: Argument, index: int, value: Argument) -> Any:
        """Replace the element at an index."""
        return self.execute_command("LSET", name, index, value)

    def linsert(self, name: Argument, where: str, refvalue: Argument, value: Argument) -> Any:
        """Insert ``BEFORE`` or ``AFTER`` an element. Return the length; -1 if not found."""
        return self.execute_command("LINSERT", name, where, refvalue, value)

    def lrem(self, name: Argument, count: int, value: Argument) -> Any:
        """Remove ``count`` elements equal to a value, from the tail if count < 0, or all if 0."""
        return self.execute_command("LREM", name, count, value)

    def ltrim(self, name: Argument, start: int, end: int) -> Any:
        """Remove all elements that are not between start and end."""
        return self.execute_command("LTRIM", name, start, end)

    def lpos(
        self, name: Argument, value: Argument, rank: int | None = None, count: int | None = None,
        maxlen: int | None = None,
    ) -> Any:  # fmt: skip
        """Return the index of the first element equal to a value, or None; with ``count`` a list.

        :param rank: which match comes first: 2 is the second match, -1 the last one.
        :param maxlen: compare only this many elements.
        """
        options = _options(RANK=rank, COUNT=count, MAXLEN=maxlen)
        return self.execute_command("LPOS", name, value, *options)

    def lmove(
        self, first_list: Argument, second_list: Argument, src: str = "LEFT", dest: str = "RIGHT"
    ) -> Any:
        """Move an element from one end of a list to one end of another list, and return it."""
        return self.execute_command("LMOVE", first_list, second_list, src, dest)

    def rpoplpush(self, src: Argument, dst: Argument) -> Any:
        """Move an element from the tail of a list to the head of another, and return it."""
        return self.execute_command("RPOPLPUSH", src, dst)

    def lmpop(self, num_keys: int, *args: Argument, direction: str, count: int = 1) -> Any:
        """Remove elements from the first list that is not empty.

        :param direction: ``LEFT`` or ``RIGHT``.
        :returns: the name of the list and the list of elements, or None.
        """
        return self.execute_command("LMPOP", num_keys, *args, direction, "COUNT", count)

    def blpop(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """Remove the first element of the first list that is not empty. If all are empty, block.

        The server serves blocked clients in the order in which they blocked. In a transaction the
        command does not block.

        :param timeout: seconds to block; 0 or None for no limit. The client's own time limit for
            the reply begins after these seconds.
        :returns: the name of the list and the element as a tuple, or None after the timeout.
        :raises ConnectionLost: also if the server stops while the command blocks. The client does
            not send the command again, because the server may already have removed an element.
        """
        return self.execute_command("BLPOP", *_list_or_args(keys), timeout or 0)

    def brpop(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """Do the same as :meth:`blpop`, at the tail."""
        return self.execute_command("BRPOP", *_list_or_args(keys), timeout or 0)

    def blmove(
        self, first_list: Argument, second_list: Argument, timeout: float, src: str = "LEFT",
        dest: str = "RIGHT",
    ) -> Any:  # fmt: skip
        """Do the same as :meth:`lmove`, but block as :meth:`blpop` does."""
        return self.execute_command("BLMOVE", first_list, second_list, src, dest, timeout or 0)

    def brpoplpush(self, src: Argument, dst: Argument, timeout: float | None = 0) -> Any:
        """Do the same as :meth:`rpoplpush`, but block as :meth:`blpop` does."""
        return self.execute_command("BRPOPLPUSH", src, dst, timeout or 0)

    def blmpop(
        self, timeout: float, numkeys: int, *args: Argument, direction: str, count: int | None = 1
    ) -> Any:
        """Do the same as :meth:`lmpop`, but block as :meth:`blpop` does."""
        options = _options(COUNT=count)
        return self.execute_command("BLMPOP", timeout or 0, numkeys, *args, direction, *options)

    def hset(
        self, name: Argument, key: Argument | None = None, value: Argument | None = None,
        mapping: Mapping[Any, Argument] | None = None, items: Sequence[Argument] | None = None,
    ) -> Any:  # fmt: skip
        """Set one field, those of a mapping, and those of a flat list. Return how many are new."""
        pairs = [*(items or ()), *_not_none(key, value), *_flatten(mapping or {})]
        return self.execute_command("HSET", name, *pairs)

    def hmset(self, name: Argument, mapping: Mapping[Any, Argument]) -> Any:
        """Set the fields of a mapping."""
        return self.execute_command("HMSET", name, *_flatten(mapping))

    def hsetnx(self, name: Argument, key: Argument, value: Argument) -> Any:
        """Set a field if it does not exist. Return 1 if it was set, else 0."""
        return self.execute_command("HSETNX", name, key, value)

    def hget(self, name: Argument, key: Argument) -> Any:
        """Return the value of a field, or None."""
        return self.execute_command("HGET", name, key)

    def hmget(self, name: Argument, keys: Arguments, *args: Argument) -> Any:
        """Return the values of fields, given as a list or one by one; None if missing."""
        return self.execute_command("HMGET", name, *_list_or_args(keys, args))

    def hgetall(self, name: Argument) -> Any:
        """Return the fields and their values as a dict."""
        return self.execute_command("HGETALL", name)

    def hdel(self, name: Argument, *keys: Argument) -> Any:
        """Delete fields and return how many existed."""
        return self.execute_command("HDEL", name, *keys)

    def hlen(self, name: Argument) -> Any:
        """Return the number of fields."""
        return self.execute_command("HLEN", name)

    def hexists(self, name: Argument, key: Argument) -> Any:
        """Return True if the field exists."""
        return self.execute_command("HEXISTS", name, key)

    def hstrlen(self, name: Argument, key: Argument) -> Any:
        """Return the length of a field's value in bytes."""
        return self.execute_command("HSTRLEN", name, key)

    def hkeys(self, name: Argument) -> Any:
        """Return the fields as a list."""
        return self.execute_command("HKEYS", name)

    def hvals(self, name: Argument) -> Any:
        """Return the values as a list."""
        return self.execute_command("HVALS", name)

    def hincrby(self, name: Argument, key: Argument, amount: int = 1) -> Any:
        """Add to the integer in a field and return the sum."""
        return self.execute_command("HINCRBY", name, key, amount)

    def hincrbyfloat(self, name: Argument, key: Argument, amount: float = 1.0) -> Any:
        """Add to the number in a field and return the sum as a float."""
        return self.execute_command("HINCRBYFLOAT", name, key, amount)

    def hrandfield(self, key: Argument, count: int | None = None, withvalues: bool = False) -> Any:
        """Return a random field, or ``count`` fields; ``withvalues`` adds the value after each."""
        flags = _flags(WITHVALUES=withvalues)
        return self.execute_command("HRANDFIELD", key, *_not_none(count), *flags)

    def hscan(
        self, name: Argument, cursor: Argument = 0, match: Argument | None = None,
        count: int | None = None,
    ) -> Any:  # fmt: skip
        """Return the cursor of the next page, and a dict of fields and values."""
        return self.execute_command("HSCAN", name, cursor, *_options(MATCH=match, COUNT=count))

    def hscan_iter(
        self, name: Argument, match: Argument | None = None, count: int | None = None
    ) -> Iterator[Any]:
        """Yield the pairs of field and value, page by page."""
        return _scan_all(lambda cursor: self.hscan(name, cursor, match, count))

    def sadd(self, name: Argument, *values: Argument) -> Any:
        """Add members and return how many are new."""
        return self.execute_command("SADD", name, *values)

    def srem(self, name: Argument, *values: Argument) -> Any:
        """Remove members and return how many existed."""
        return self.execute_command("SREM", name, *values)

    def scard(self, name: Argument) -> Any:
        """Return the number of members."""
        return self.execute_command("SCARD", name)

    def sismember(self, name: Argument, value: Argument) -> Any:
        """Return 1 if the value is a member, else 0."""
        return self.execute_command("SISMEMBER", name, value)

    def smismember(self, name: Argument, values: Arguments, *args: Argument) -> Any:
        """Return 1 or 0 for each of several values, given as a list or one by one."""
        return self.execute_command("SMISMEMBER", name, *_list_or_args(values, args))

    def smembers(self, name: Argument) -> Any:
        """Return the members as a set."""
        return self.execute_command("SMEMBERS", name)

    def smove(self, src: Argument, dst: Argument, value: Argument) -> Any:
        """Move a member to another set. Return False if it is not a member."""
        return self.execute_command("SMOVE", src, dst, value)

    def spop(self, name: Argument, count: int | None = None) -> Any:
        """Remove and return a random member, or a list of ``count`` members, or None."""
        return self.execute_command("SPOP", name, *_not_none(count))

    def srandmember(self, name: Argument, number: int | None = None) -> Any:
        """Return a random member, or a list of ``number`` members (if < 0, with repeats)."""
        return self.execute_command("SRANDMEMBER", name, *_not_none(number))

    def sinter(self, keys: Arguments, *args: Argument) -> Any:
        """Return the set of members that are in all of the sets."""
        return self.execute_command("SINTER", *_list_or_args(keys, args))

    def sunion(self, keys: Arguments, *args: Argument) -> Any:
        """Return the set of members that are in any of the sets."""
        return self.execute_command("SUNION", *_list_or_args(keys, args))

    def sdiff(self, keys: Arguments, *args: Argument) -> Any:
        """Return the set of members that are in the first set only."""
        return self.execute_command("SDIFF", *_list_or_args(keys, args))

    def sinterstore(self, dest: Argument, keys: Arguments, *args: Argument) -> Any:
        """Store the result of :meth:`sinter` in a key and return its size."""
        return self.execute_command("SINTERSTORE", dest, *_list_or_args(keys, args))

    def sunionstore(self, dest: Argument, keys: Arguments, *args: Argument) -> Any:
        """Store the result of :meth:`sunion` in a key and return its size."""
        return self.execute_command("SUNIONSTORE", dest, *_list_or_args(keys, args))

    def sdiffstore(self, dest: Argument, keys: Arguments, *args: Argument) -> Any:
        """Store the result of :meth:`sdiff` in a key and return its size."""
        return self.execute_command("SDIFFSTORE", dest, *_list_or_args(keys, args))

    def sintercard(self, numkeys: int, keys: Sequence[Argument], limit: int = 0) -> Any:
        """Return the size of the intersection, counted up to the limit (0: no limit)."""
        return self.execute_command("SINTERCARD", numkeys, *keys, "LIMIT", limit)

    def sscan(
        self, name: Argument, cursor: Argument = 0, match: Argument | None = None,
        count: int | None = None,
    ) -> Any:  # fmt: skip
        """Return the cursor of the next page, and a list of members."""
        return self.execute_command("SSCAN", name, cursor, *_options(MATCH=match, COUNT=count))

    def sscan_iter(
        self, name: Argument, match: Argument | None = None, count: int | None = None
    ) -> Iterator[Any]:
        """Yield the members, page by page."""
        return _scan_all(lambda cursor: self.sscan(name, cursor, match, count))

    def zadd(
        self, name: Argument, mapping: Mapping[Any, Argument], nx: bool = False, xx: bool = False,
        ch: bool = False, incr: bool = False, gt: bool = False, lt: bool = False,
    ) -> Any:  # fmt: skip
        """Set the scores of members and return how many members are new.

        :param nx, xx: only add new members, or only update existing members.
        :param gt, lt: update a member only if its score then rises, or only if it then falls.
        :param ch: return how many members are new or changed.
        :param incr: add to the score of the one member; return the sum, or None if it was not set.
        """
        flags = _flags(NX=nx, XX=xx, CH=ch, INCR=incr, GT=gt, LT=lt)
        pairs = [part for member, score in mapping.items() for part in (score, member)]
        return self.execute_command("ZADD", name, *flags, *pairs, convert=float if incr else None)

    def zincrby(self, name: Argument, amount: float, value: Argument) -> Any:
        """Add to the score of a member and return the sum."""
        return self.execute_command("ZINCRBY", name, amount, value)

    def zscore(self, name: Argument, value: Argument) -> Any:
        """Return the score of a member as a float, or None."""
        return self.execute_command("ZSCORE", name, value)

    def zmscore(self, key: Argument, members: Sequence[Argument]) -> Any:
        """Return the scores of several members; None for a value that is not a member."""
        return self.execute_command("ZMSCORE", key, *members)

    def zrem(self, name: Argument, *values: Argument) -> Any:
        """Remove members and return how many existed."""
        return self.execute_command("ZREM", name, *values)

    def zcard(self, name: Argument) -> Any:
        """Return the number of members."""
        return self.execute_command("ZCARD", name)

    def zcount(self, name: Argument, min: Argument, max: Argument) -> Any:
        """Return how many members have a score from min to max; ``"(1"`` excludes 1 itself."""
        return self.execute_command("ZCOUNT", name, min, max)

    def zrank(self, name: Argument, value: Argument) -> Any:
        """Return how many members have a lower score than this member, or None if missing."""
        return self.execute_command("ZRANK", name, value)

    def zrevrank(self, name: Argument, value: Argument) -> Any:
        """Return how many members have a higher score than this member, or None."""
        return self.execute_command("ZREVRANK", name, value)

    def zrange(
        self, name: Argument, start: Argument, end: Argument, desc: bool = False,
        withscores: bool = False, score_cast_func: Converter = float, byscore: bool = False,
        offset: int | None = None, num: int | None = None,
    ) -> Any:  # fmt: skip
        """Return the members from start to end, both included, in the order of their scores.

        :param desc: if true, the highest score comes first.
        :param withscores: if true, return a list of tuples of member and score.
        :param score_cast_func: a function that makes a score from text.
        :param byscore: if true, start and end are scores as in :meth:`zcount`; with ``desc`` start
            is the higher one.
        :param offset, num: skip ``offset`` members and return at most ``num``; with ``byscore``.
        """
        command = ("ZRANGE", name, start, end, *_flags(BYSCORE=byscore, REV=desc))
        return self._zrange(command, offset, num, withscores, score_cast_func)

    def zrevrange(
        self, name: Argument, start: int, end: int, withscores: bool = False,
        score_cast_func: Converter = float,
    ) -> Any:  # fmt: skip
        """Do the same as :meth:`zrange`, with the highest score first."""
        command = ("ZREVRANGE", name, start, end)
        return self._zrange(command, None, None, withscores, score_cast_func)

    def zrangebyscore(
        self, name: Argument, min: Argument, max: Argument, start: int | None = None,
        num: int | None = None, withscores: bool = False, score_cast_func: Converter = float,
    ) -> Any:  # fmt: skip
        """Return members with a score from min to max: skip ``start``, return at most ``num``."""
        command = ("ZRANGEBYSCORE", name, min, max)
        return self._zrange(command, start, num, withscores, score_cast_func)

    def zrevrangebyscore(
        self, name: Argument, max: Argument, min: Argument, start: int | None = None,
        num: int | None = None, withscores: bool = False, score_cast_func: Converter = float,
    ) -> Any:  # fmt: skip
        """Do the same as :meth:`zrangebyscore`, with the highest score first."""
        command = ("ZREVRANGEBYSCORE", name, max, min)
        return self._zrange(command, start, num, withscores, score_cast_func)

    def _zrange(
        self, command: Any, offset: Any, num: Any, withscores: bool, score_cast_func: Converter
    ) -> Any:
        if not (offset is num is None):
            command = (*command, "LIMIT", offset, num)
        if not withscores:
            return self.execute_command(*command)
        return self.execute_command(*command, "WITHSCORES", convert=_score_pairs(score_cast_func))

    def zpopmin(self, name: Argument, count: int | None = None) -> Any:
        """Remove the members with the lowest scores; return tuples of member and score."""
        return self.execute_command("ZPOPMIN", name, *_not_none(count))

    def zpopmax(self, name: Argument, count: int | None = None) -> Any:
        """Remove the members with the highest scores; return tuples of member and score."""
        return self.execute_command("ZPOPMAX", name, *_not_none(count))

    def zmpop(
        self, num_keys: int, keys: Sequence[Argument], min: bool | None = False,
        max: bool | None = False, count: int | None = 1,
    ) -> Any:  # fmt: skip
        """Remove members from the first sorted set that is not empty.

        :param min, max: set one to True, to remove the members with the lowest or highest scores.
        :returns: the name of the sorted set and a list of [member, score as text], or None.
        """
        options = [*_flags(MIN=min, MAX=max), *_options(COUNT=count)]
        return self.execute_command("ZMPOP", num_keys, *keys, *options)

    def bzpopmin(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """Remove the member with the lowest score from the first sorted set that is not empty.

        If all are empty, block as :meth:`blpop` does.

        :returns: a tuple of the name of the sorted set, the member and its score, or None.
        """
        return self.execute_command("BZPOPMIN", *_list_or_args(keys), timeout or 0)

    def bzpopmax(self, keys: Arguments, timeout: float | None = 0) -> Any:
        """Do the same as :meth:`bzpopmin`, with the highest score."""
        return self.execute_command("BZPOPMAX", *_list_or_args(keys), timeout or 0)

    def bzmpop(
        self, timeout: float, numkeys: int, keys: Sequence[Argument], min: bool | None = False,
        max: bool | None = False, count: int | None = 1,
    ) -> Any:  # fmt: skip
        """Do the same as :meth:`zmpop`, but block as :meth:`blpop` does."""
        options = [*_flags(MIN=min, MAX=max), *_options(COUNT=count)]
        return self.execute_command("BZMPOP", timeout or 0, numkeys, *keys, *options)

    def zremrangebyrank(self, name: Argument, min: int, max: int) -> Any:
        """Remove the members from rank min to rank max, and return how many."""
        return self.execute_command("ZREMRANGEBYRANK", name, min, max)

    def zremrangebyscore(self, name: Argument, min: Argument, max: Argument) -> Any:
        """Remove the members with a score from min to max, and return how many."""
        return self.execute_command("ZREMRANGEBYSCORE", name, min, max)

    def zscan(
        self, name: Argument, cursor: Argument = 0, match: Argument | None = None,
        count: int | None = None, score_cast_func: Converter = float,
    ) -> Any:  # fmt: skip
        """Return the cursor of the next page, and a list of tuples of member and score."""
        options = _options(MATCH=match, COUNT=count)
        convert = _scan_page(_score_pairs(score_cast_func))
        return self.execute_command("ZSCAN", name, cursor, *options, convert=convert)

    def zscan_iter(
        self, name: Argument, match: Argument | None = None, count: int | None = None,
        score_cast_func: Converter = float,
    ) -> Iterator[Any]:  # fmt: skip
        """Yield tuples of member and score, page by page."""
        return _scan_all(lambda cursor: self.zscan(name, cursor, match, count, score_cast_func))

    def publish(self, channel: Argument, message: Argument) -> Any:
        """Send a message to the subscribers of a channel and return how many received it."""
        return self.execute_command("PUBLISH", channel, message)

    def pubsub_channels(self, pattern: Argument = "*") -> Any:
        """Return the channels that have subscribers and match a pattern."""
        return self.execute_command("PUBSUB", "CHANNELS", pattern)

    def pubsub_numsub(self, *args: Argument) -> Any:
        """Return tuples of channel and number of subscribers (patterns not counted)."""
        return self.execute_command(
            "PUBSUB", "NUMSUB", *args, convert=lambda reply: [*_to_dict(reply).items()]
        )

    def pubsub_numpat(self) -> Any:
        """Return the number of patterns that clients have subscribed to."""
        return self.execute_command("PUBSUB", "NUMPAT")

    def ping(self) -> Any:
        """Return True if the server answers."""
        return self.execute_command("PING")

    def echo(self, value: Argument) -> Any:
        """Return the value as the server received it."""
        return self.execute_command("ECHO", value)

    def dbsize(self) -> Any:
        """Return the number of keys."""
        return self.execute_command("DBSIZE")

    def flushdb(self, asynchronous: bool = False) -> Any:
        """Delete all keys."""
        return self.execute_command("FLUSHDB", *_flags(ASYNC=asynchronous))

    def flushall(self, asynchronous: bool = False) -> Any:
        """Delete all keys."""
        return self.execute_command("FLUSHALL", *_flags(ASYNC=asynchronous))

    def save(self) -> Any:
        """Block until the server has written all changes to its file."""
        return self.execute_command("SAVE")

    def bgsave(self, schedule: bool = True) -> Any:
        """Start writing all changes to the server's file, without waiting for the end."""
        return self.execute_command("BGSAVE", *_flags(SCHEDULE=schedule))

    def lastsave(self) -> Any:
        """Return when the server last wrote all changes to its file, as a datetime."""
        return self.execute_command("LASTSAVE")

    def info(self, section: str | None = None, *args: str) -> Any:
        """Return the state of the server, or these sections of it, as a dict."""
        return self.execute_command("INFO", *_not_none(section), *args)

    def time(self) -> Any:
        """Return the server's clock: a tuple of seconds since 1970 and microseconds."""
        return self.execute_command("TIME")

    def client_id(self) -> Any:
        """Return the id of the connection that sent this; each thread may have its own."""
        return self.execute_command("CLIENT", "ID")

    def client_list(self, _type: str | None = None, client_id: Sequence[int] = ()) -> Any:
        """Return the server's connections, of one type or with these ids, as dicts of str."""
        options = [*_options(TYPE=_type), *_flags(ID=bool(client_id)), *client_id]
        return self.execute_command("CLIENT", "LIST", *options, convert=_parse_client_list)

    def client_info(self) -> Any:
        """Return the entry of this connection in :meth:`client_list`, numbers as int."""
        return self.execute_command("CLIENT", "INFO", convert=_parse_client_info)

    def client_setname(self, name: Argument) -> Any:
        """Set the name of this connection in :meth:`client_list`."""
        return self.execute_command("CLIENT", "SETNAME", name, convert=_ok_to_true)

    def client_getname(self) -> Any:
        """Return the name of this connection, or None."""
        return self.execute_command("CLIENT", "GETNAME", convert=_to_str)

    def client_kill(self, address: str) -> Any:
        """Close the connection that has this ``addr`` in :meth:`client_list`."""
        return self.execute_command("CLIENT", "KILL", address, convert=_ok_to_true)

    def client_kill_filter(
        self, _id: int | None = None, _type: str | None = None, addr: str | None = None,
        skipme: bool | None = None, laddr: str | None = None, user: str | None = None,
    ) -> Any:  # fmt: skip
        """Close the connections that match all given filters; return how many."""
        skip = None if skipme is None else ("NO", "YES")[bool(skipme)]
        options = _options(TYPE=_type, SKIPME=skip, ID=_id, ADDR=addr, LADDR=laddr, USER=user)
        return self.execute_command("CLIENT", "KILL", *options)

    def command_count(self) -> Any:
        """Return the number of commands that the server has."""
        return self.execute_command("COMMAND", "COUNT")

    def config_get(self, pattern: str = "*", *args: str) -> Any:
        """Return the settings that match a pattern such as ``max*``, as a dict of str."""
        return self.execute_command(
            "CONFIG", "GET", pattern, *args, convert=lambda reply: _to_dict([*map(_to_str, reply)])
        )

    def config_set(self, name: str, value: Argument, *args: Argument) -> Any:
        """Change a setting, or several."""
        return self.execute_command("CONFIG", "SET", name, value, *args, convert=_ok_to_true)

    def memory_usage(self, key: Argument, samples: int | None = None) -> Any:
        """Return the bytes that a key and its value use in memory, or None."""
        return self.execute_command("MEMORY", "USAGE", key, *_options(SAMPLES=samples))


# ----------------------------------------------------------------------------
# Connections of a client
# ----------------------------------------------------------------------------


class _Connection:
    # A transport and the parser of the replies that arrive on it.
    __slots__ = ("__weakref__", "reader", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.reader = ReplyReader(transport.receive)
        _connections.add(self)

    def __del__(self) -> None:
        # When Python deletes the object, it closes a socket by itself, but not a Win32 handle.
        self.transport.close()


class BaseClient(Commands):
    """The part of :class:`Client` that owns the connections and sends the commands."""

    def __init__(
        self, pipe: str = DEFAULT_PIPE, *, timeout: float | None = TIMEOUT,
        connect_timeout: float = CONNECT_TIMEOUT, decode_responses: bool = True,
        trust_any_owner: bool = False,
    ) -> None:  # fmt: skip
        # list.append() and list.pop() are atomic in CPython, so the list needs no lock.
        self._idle: list[_Connection] = []
        if not pipe.strip() or any(char < " " for char in pipe):
            raise ValueError(f"the pipe needs a name without control characters, not {pipe!r}")
        if connect_timeout < 0 or (timeout is not None and timeout <= 0):
            raise ValueError(
                f"timeout={timeout} must be more than 0 seconds (or None: no limit),"
                f" and connect_timeout={connect_timeout} at least 0"
            )
        self.address = pipe_address(pipe)
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._decode = decode_responses
        self._trust_any_owner = trust_any_owner
        _clients.add(self)

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        # Nearly all commands are sent here. A method call takes a measurable part of the time, so
        # the bodies of _acquire(), _exchange() and _convert() are repeated.
        name, data = arguments[0], encode_commands((arguments,))
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            if type(name) is str and name in BLOCKING_COMMANDS:
                timeout = self._blocking_timeout(arguments)
                chunk = _exchange_blocking(connection.transport, data, timeout)
            else:
                chunk = connection.transport.exchange(data)
            reply = connection.reader.read_first(chunk, self._decode)
        except BaseException:
            self._discard(connection)
            raise
        if isinstance(reply, ResponseError):
            self._release(connection, reply)
            raise reply
        self._idle.append(connection)
        if convert is None and type(name) is str:
            convert = CONVERTERS.get(name)
        return reply if convert is None or reply is None else convert(reply)

    def close(self) -> None:
        """Close the idle connections. The next command opens a new one.

        The connection of a held owned lock, of a :class:`PubSub` or a :class:`Monitor` stays open.
        """
        with contextlib.suppress(IndexError):  # Another thread may take a connection meanwhile.
            while True:
                self._idle.pop().transport.close()

    def _blocking_timeout(self, command: Sequence[Any]) -> float | None:
        # Return the seconds to wait for the reply of a blocking command; None: no limit.
        # The server reports a wrong argument, so it is ignored here.
        with contextlib.suppress(IndexError, TypeError, ValueError):
            seconds = float(command[BLOCKING_COMMANDS[command[0]]])
            if seconds == 0 or self._timeout is None:
                return None
            return self._timeout + max(seconds, 0)
        return self._timeout

    def _exchange(self, connection: _Connection, parts: Iterable[tuple[bytes, int]]) -> Any:
        # Send parts of encoded commands, each with its number of commands. Return all replies.
        replies: list[Any] = []
        try:
            for data, count in parts:
                connection.reader.feed(connection.transport.exchange(data))
                replies += connection.reader.read_many(count, self._decode)
        except BaseException:
            self._discard(connection)
            raise
        return replies

    def _acquire(self) -> _Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _connect(self) -> _Connection:
        limits = self._connect_timeout, self._timeout
        return _Connection(connect(self.address, *limits, self._trust_any_owner))

    def _release(self, connection: _Connection, last_reply: Any) -> None:
        if type(last_reply) is ResponseError and str(last_reply).startswith("Protocol error"):
            connection.transport.close()  # The server closes its end after this reply.
        else:
            self._idle.append(connection)

    def _discard(self, connection: _Connection) -> None:
        # Close all idle connections too: if the server was restarted, all of them are lost.
        connection.transport.close()
        self.close()


#: All clients and all connections. A forked child closes its copies: it must not write to the
#: connections of its parent, and as long as a copy is open, the server does not notice that the
#: parent has ended.
_clients: weakref.WeakSet[BaseClient] = weakref.WeakSet()
_connections: weakref.WeakSet[_Connection] = weakref.WeakSet()


def _close_inherited_connections() -> None:
    for client in _clients:
        client.close()
    for connection in _connections:
        connection.transport.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_inherited_connections)


# ----------------------------------------------------------------------------
# Pipelines and transactions
# ----------------------------------------------------------------------------


class Pipeline(Commands):
    """A queue of commands that :meth:`execute` sends together. Only one thread may use it.

    Each method queues its command and returns the pipeline. Between :meth:`watch` and
    :meth:`multi`, a method instead sends its command at once, on the connection that watches the
    keys, and returns the result. If that connection is lost, the method raises a
    :class:`WatchError`. After this or any other exception except :class:`ResponseError` and
    :class:`DataError`, the pipeline watches no keys any longer.

    :ivar transaction: if true, the server runs the commands as one transaction.
    """

    def __init__(self, client: BaseClient, transaction: bool = True) -> None:
        self.transaction = transaction
        self._client = client
        self._watch_connection: _Connection | None = None
        self._explicit_transaction = False  # True between multi() and execute().
        self._commands: list[Sequence[Argument]] = []
        # The converters that were passed with a command, by the position of the command.
        self._converters: dict[int, Converter] = {}

    def __len__(self) -> int:
        return len(self._commands)

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reset()

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        if self._watch_connection is not None and not self._explicit_transaction:
            return _convert(arguments[0], self._execute_now(arguments), convert)
        if convert is not None:
            self._converters[len(self._commands)] = convert
        self._commands.append(arguments)
        return self

    def watch(self, *names: Argument) -> Any:
        """Watch keys: if one of them changes before :meth:`execute`, the transaction fails."""
        if self._explicit_transaction:
            raise CacheError("Cannot issue a WATCH after a MULTI")
        return _convert("WATCH", self._execute_now(("WATCH", *names)), None)

    def unwatch(self) -> Any:
        """Stop watching all keys."""
        if self._watch_connection is not None:
            reply = self._execute_now(("UNWATCH",))
            connection, self._watch_connection = self._watch_connection, None
            self._client._release(connection, reply)
        return True

    def multi(self) -> None:
        """Begin a transaction after :meth:`watch`: queue the commands that follow."""
        if self._explicit_transaction:
            raise CacheError("Cannot issue nested calls to MULTI")
        if self._commands:
            raise CacheError("Commands without an initial WATCH have already been issued")
        self._explicit_transaction = True

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the queued commands and return their results in order.

        :param raise_on_error: if true, raise the first error after all commands have run; if not,
            return each error in the place of its result.
        :raises WatchError: if a watched key has changed. No command has run.
        :raises ResponseError: also if a command of a transaction could not be queued. No command
            has run.
        :raises ConnectionLost, CacheTimeout: if no reply arrives. The commands may have run.
        """
        try:
            watching = self._watch_connection is not None
            if self.transaction or self._explicit_transaction or watching:
                replies = self._execute_transaction()
            else:
                replies = self._execute_all(self._commands)
            return self._convert_replies(replies, raise_on_error)
        finally:
            self.reset()

    def reset(self) -> None:
        """Discard the queued commands and stop watching all keys."""
        if self._watch_connection is not None:
            self._watch_connection.transport.close()  # The server then forgets the watched keys.
            self._watch_connection = None
        self._explicit_transaction = False
        self._commands = []
        self._converters = {}

    __del__ = reset

    def _execute_now(self, command: Sequence[Argument]) -> Any:
        # Send one command and return its reply, which may be a ResponseError. From now on the
        # pipeline keeps the connection, because keys may be watched on it.
        data = encode_commands([command])
        watching = self._watch_connection is not None
        self._watch_connection = self._watch_connection or self._client._acquire()
        try:
            return self._client._exchange(self._watch_connection, [(data, 1)])[0]
        except BaseException as error:
            self.reset()
            if watching and isinstance(error, (ConnectionLost, CacheTimeout)):
                name = type(error).__name__
                raise WatchError(f"A {name} occurred while watching one or more keys") from error
            raise

    def _execute_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if not commands:
            return []
        parts = list(_encode_parts(commands))
        connection, self._watch_connection = self._watch_connection, None
        connection = connection or self._client._acquire()
        replies: list[Any] = self._client._exchange(connection, parts)
        self._client._release(connection, replies[-1])
        return replies

    def _execute_transaction(self) -> Any:
        if not self._commands and self._watch_connection is None:
            return []
        multi, *queued, results = self._execute_all([("MULTI",), *self._commands, ("EXEC",)])
        for number, reply in enumerate(queued):
            if isinstance(reply, ResponseError):
                raise self._annotate_error(reply, number)
        for reply in (multi, results):
            if isinstance(reply, ResponseError):
                raise reply
        if results is None:
            raise WatchError("Watched variable changed.")
        return results

    def _convert_replies(self, replies: list[Any], raise_on_error: bool) -> list[Any]:
        names = [command[0] if type(command[0]) is str else "" for command in self._commands]
        kinds = set(map(type, replies))
        errors = any(issubclass(kind, ResponseError) for kind in kinds)
        if not errors and not self._converters and CONVERTERS.keys().isdisjoint(names):
            return replies  # The most frequent case, such as many GETs: nothing to convert.
        for number, (reply, name) in enumerate(zip(replies, names)):
            convert = self._converters.get(number) or CONVERTERS.get(name)
            if isinstance(reply, ResponseError):
                if raise_on_error:
                    raise self._annotate_error(reply, number)
            elif convert is not None and reply is not None:
                replies[number] = convert(reply)
        return replies

    def _annotate_error(self, error: ResponseError, number: int) -> ResponseError:
        command = " ".join(
            str(_to_str(part) if isinstance(part, (bytes, bytearray)) else part)
            for part in self._commands[number]
        )
        if len(command) > 100:
            command = command[:97] + "..."
        error.args = (f"Command # {number + 1} ({command}) of pipeline caused error: {error}",)
        return error


def _encode_parts(commands: Sequence[Sequence[Argument]]) -> Iterator[tuple[bytes, int]]:
    # Yield a pipeline in encoded parts, each with its number of commands. The replies to one part
    # are read before the next part is sent: otherwise a deadlock is possible, in which the server
    # cannot send more replies and the client cannot send more commands.
    data = encode_commands(commands)
    if len(data) <= PIPELINE_BYTES or len(commands) == 1:
        yield data, len(commands)
        return
    step = len(commands) * PIPELINE_BYTES // len(data) or 1
    for start in range(0, len(commands), step):
        yield from _encode_parts(commands[start : start + step])


# ----------------------------------------------------------------------------
# Locks
# ----------------------------------------------------------------------------


class _ReservedClient(BaseClient):
    # A client with one connection of another client, to which the OWNED key of a lock belongs.
    # This client does not reconnect: when the connection ends, the server deletes the key.
    def __init__(self, client: BaseClient) -> None:
        self.__dict__.update(client.__dict__)
        self._idle = [client._acquire()]
        self._lock = threading.Lock()
        _clients.add(self)

    def execute_command(self, *arguments: Argument, convert: Converter | None = None) -> Any:
        with self._lock:  # With thread_local=False, several threads may use the lock.
            return super().execute_command(*arguments, convert=convert)

    def _connect(self) -> _Connection:
        raise _connection_lost(self.address)


class Lock:
    """A lock that threads and programs share: a key whose value is the token of its holder.

    :param name: the key.
    :param timeout: seconds after which the lock expires, even if it is still held; None: never.
    :param sleep: seconds between attempts to acquire the lock.
    :param blocking: if true, :meth:`acquire` waits until the lock is free.
    :param blocking_timeout: seconds that :meth:`acquire` waits at most; None: no limit.
    :param thread_local: if true, only the thread that acquired the lock holds it; if not, any
        thread may release it.
    :param owned: if true, the lock is released when its holder ends, even if it crashes, so that
        it needs no timeout. The key is OWNED by a connection that is reserved for the lock; the
        lock is lost if this connection is lost. :meth:`Client.close` does not close this
        connection. With ``thread_local``, the end of the thread releases the lock, too.

    A ``with`` statement acquires and releases the lock. SET NX PX acquires it; DELIFEQ releases it
    and SET IFEQ extends it, if the key still has this token. A forked child does not hold the
    lock of its parent.
    """

    def __init__(
        self, client: BaseClient, name: Argument, timeout: float | None = None, sleep: float = 0.1,
        blocking: bool = True, blocking_timeout: float | None = None, thread_local: bool = True,
        owned: bool = False,
    ) -> None:  # fmt: skip
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
        self, sleep: float | None = None, blocking: bool | None = None,
        blocking_timeout: float | None = None, token: str | bytes | None = None,
    ) -> bool:  # fmt: skip
        """Acquire the lock. Return True, or False if it was not free in time.

        :param sleep, blocking, blocking_timeout: replace the values of the lock for this call.
        :param token: the value of the key; by default a random one that only this lock knows.
        """
        sleep = self.sleep if sleep is None else sleep
        blocking = self.blocking if blocking is None else blocking
        limit = self.blocking_timeout if blocking_timeout is None else blocking_timeout
        deadline = math.inf if limit is None else time.monotonic() + limit
        value = _encode_argument(os.urandom(16).hex() if token is None else token)
        px = int(self.timeout * 1000) if self.timeout else None
        reserved = _ReservedClient(self._client) if self._owned else None
        commands, acquired = reserved or self._client, False
        try:
            while not commands.set(self.name, value, nx=True, px=px, owned=self._owned):
                if not blocking or time.monotonic() + sleep > deadline:
                    return False
                time.sleep(sleep)
            acquired = True
        finally:
            if reserved is not None and not acquired:
                self._client._idle += reserved._idle
        self.local.token, self.local.reserved = value, reserved
        return True

    def release(self) -> None:
        """Release the lock.

        :raises LockError: if this thread does not hold the lock.
        :raises LockNotOwnedError: if the lock has expired or was lost.
        """
        token = self._held_token("release")
        reserved = self.local.reserved
        try:
            with self._owned_commands("release") as commands:
                self.local.token = self.local.reserved = None
                if not commands.delifeq(self.name, token):
                    raise LockNotOwnedError("Cannot release a lock that's no longer owned")
        finally:
            if reserved is not None:
                self._client._idle += reserved._idle

    def extend(self, additional_time: float, replace_ttl: bool = False) -> bool:
        """Add seconds to the remaining time, or replace it (``replace_ttl``). Return True.

        :raises LockError: if this thread does not hold the lock, or the lock has no timeout.
        :raises LockNotOwnedError: if the lock has expired or was lost.
        """
        return self._extend("extend", additional_time, replace_ttl)

    def reacquire(self) -> bool:
        """Set the remaining time to the timeout and return True. Raise what extend() raises."""
        return self._extend("reacquire", self.timeout or 0, True)

    def locked(self) -> bool:
        """Return True if any client holds the lock."""
        return bool(self._client.exists(self.name))

    def owned(self) -> bool:
        """Return True if this thread holds the lock."""
        token = getattr(self.local, "token", None)
        try:
            with self._owned_commands("own") as commands:
                value = commands.get(self.name)
        except LockNotOwnedError:
            return False
        return token is not None and value is not None and _encode_argument(value) == token

    def _held_token(self, verb: str) -> bytes:
        token: bytes | None = getattr(self.local, "token", None)
        if token is None:
            raise LockError(f"Cannot {verb} a lock that's not owned or is already unlocked")
        return token

    def _extend(self, verb: str, seconds: float, replace_ttl: bool) -> bool:
        token = self._held_token(verb)
        if self.timeout is None:
            raise LockError(f"Cannot {verb} a lock with no timeout")
        with self._owned_commands(verb) as commands:
            remaining_ms = 0 if replace_ttl else max(commands.pttl(self.name), 0)
            px = remaining_ms + int(seconds * 1000)
            if commands.set(self.name, token, px=px, ifeq=token, owned=self._owned):
                return True
        raise LockNotOwnedError(f"Cannot {verb} a lock that's no longer owned")

    @contextlib.contextmanager
    def _owned_commands(self, verb: str) -> Iterator[Commands]:
        # Yield the commands on the connection that owns the key, or else those of the client.
        # If the owning connection was lost, the lock was lost too.
        reserved = getattr(self.local, "reserved", None)
        try:
            yield reserved or self._client
        except ConnectionLost as error:
            if reserved is None:
                raise
            raise LockNotOwnedError(f"Cannot {verb} a lock that's no longer owned") from error


# ----------------------------------------------------------------------------
# Publish/subscribe and MONITOR
# ----------------------------------------------------------------------------

#: A function that is called with each message of a channel or pattern.
MessageHandler = Callable[[Dict[str, Any]], object]

#: A function that is called with an exception, its PubSub and its thread; or None.
ErrorHandler = Union[Callable[[BaseException, "PubSub", "PubSubWorkerThread"], object], None]


def _receive_replies(connection: _Connection) -> list[Any]:
    # Return the replies that have arrived. If there are none, wait for them without a time limit.
    if connection.reader.empty:
        connection.transport.wait(None)
    return connection.reader.read_available()


class PubSub:
    """Subscriptions to channels and patterns, on a connection of their own.

    :param ignore_subscribe_messages: if true, messages that confirm SUBSCRIBE, UNSUBSCRIBE,
        PSUBSCRIBE or PUNSUBSCRIBE are not returned.
    :ivar channels, patterns: dicts of the subscriptions, with the handler of each or None.

    A message is a dict with the keys ``type`` (message, pmessage, subscribe, psubscribe,
    unsubscribe, punsubscribe or pong), ``pattern``, ``channel`` and ``data``; in a confirmation,
    ``data`` is the number of subscriptions. A handler, given as ``name=handler``, is called with
    the messages of its channel or pattern; no method returns these messages.

    When the connection is lost, the object reconnects, for as long as the client's
    ``connect_timeout``, and subscribes again; messages published meanwhile are lost. One thread
    may receive while other threads subscribe, unsubscribe and close.
    """

    def __init__(self, client: BaseClient, ignore_subscribe_messages: bool = False) -> None:
        self.ignore_subscribe_messages = ignore_subscribe_messages
        self.channels: dict[Any, MessageHandler | None] = {}
        self.patterns: dict[Any, MessageHandler | None] = {}
        self._client = client
        # The commands and names whose unsubscribe message has not been read yet.
        self._pending_unsubscribes: set[tuple[str, Any]] = set()
        self._inbox: deque[Any] = deque()
        self._subscribed = threading.Event()
        # Guards the connection and changes of the subscriptions. The inbox needs no lock, because
        # the operations of a deque are atomic.
        self._lock = threading.RLock()
        self._connection: _Connection | None = None
        self._receiving_on: _Connection | None = None  # The connection that a thread reads from.

    def __enter__(self) -> PubSub:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reset()

    @property
    def subscribed(self) -> bool:
        """True until the unsubscribe message of the last channel or pattern has been read."""
        return self._subscribed.is_set()

    def subscribe(self, *args: Any, **kwargs: MessageHandler) -> None:
        """Subscribe to channels; a keyword argument sets the handler of its channel.

        :raises ServerNotRunning, UntrustedServer, CacheTimeout: if the client cannot connect.
        """
        self._subscribe("SUBSCRIBE", self.channels, args, kwargs)

    def psubscribe(self, *args: Any, **kwargs: MessageHandler) -> None:
        """Subscribe to all channels that match patterns such as ``news.*``."""
        self._subscribe("PSUBSCRIBE", self.patterns, args, kwargs)

    def unsubscribe(self, *args: Any) -> None:
        """Unsubscribe from channels; without arguments from all."""
        self._unsubscribe("UNSUBSCRIBE", self.channels, args)

    def punsubscribe(self, *args: Any) -> None:
        """Unsubscribe from patterns; without arguments from all."""
        self._unsubscribe("PUNSUBSCRIBE", self.patterns, args)

    def ping(self, message: Argument | None = None) -> None:
        """Send PING. The server answers with a message of type ``pong``."""
        self._send("PING", *_not_none(message))

    def get_message(
        self, ignore_subscribe_messages: bool = False, timeout: float | None = 0.0
    ) -> dict[str, Any] | None:
        """Return the next message, or None after ``timeout`` seconds (None: no limit).

        The result is also None if a handler received the message or if the message is ignored.

        :raises ServerNotRunning, ConnectionLost, CacheTimeout: if no server answers, or if the
            server repeatedly ends the connection. The next call tries to connect again.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self._subscribed.is_set():
            remaining = deadline - time.monotonic()
            # Python on Windows handles Ctrl+C only between two waits, so no wait is long.
            waited = self._subscribed.wait(max(0, min(remaining, WAIT_INTERVAL)))
            if not waited and remaining <= WAIT_INTERVAL:
                return None
        reply = self._next_reply(deadline)
        return None if reply is None else self._handle_reply(reply, ignore_subscribe_messages)

    def listen(self) -> Iterator[dict[str, Any]]:
        """Yield messages until the last channel and pattern are unsubscribed."""
        while self.subscribed:
            reply = self._next_reply(math.inf)
            message = None if reply is None else self._handle_reply(reply, False)
            if message is not None:
                yield message

    __iter__ = listen

    def run_in_thread(
        self, sleep_time: float = 0.0, daemon: bool = False, exception_handler: ErrorHandler = None
    ) -> PubSubWorkerThread:
        """Start a thread that calls the handlers until its ``stop()`` is called.

        :param sleep_time: seconds that the thread waits for a message before it checks again
            that it was not stopped; at least 0.25.
        :param exception_handler: a function that is called with an exception, this object and
            the thread, which then continues. Without it, the exception ends the thread.
        :raises PubSubError: if a channel or a pattern has no handler.
        """
        for kind, handlers in (("Channel", self.channels), ("Pattern", self.patterns)):
            for name, handler in handlers.items():
                if handler is None:
                    raise PubSubError(f"{kind}: '{name}' has no handler registered")
        thread = PubSubWorkerThread(self, sleep_time, daemon, exception_handler)
        thread.start()
        return thread

    def reset(self) -> None:
        """Forget all subscriptions and close the connection."""
        with self._lock:
            self._disconnect()
            self.channels.clear()
            self.patterns.clear()
            self._inbox.clear()
            self._subscribed.clear()

    close = reset

    def _normalize(self, name: Argument) -> Any:
        # Return a name as messages contain it: as str, or as bytes if the client does not decode.
        data = _encode_argument(name)
        return data.decode() if self._client._decode else data

    def _subscribe(self, command: str, known: dict[Any, Any], args: Any, kwargs: Any) -> None:
        names = _list_or_args(args[0], args[1:]) if args else []
        handlers = {
            **dict.fromkeys(map(self._normalize, names)),
            **{self._normalize(name): handler for name, handler in kwargs.items()},
        }
        with self._lock:
            self._send(command, *handlers)
            known.update(handlers)
            self._pending_unsubscribes.difference_update((command, name) for name in handlers)
            self._subscribed.set()

    def _unsubscribe(self, command: str, known: dict[Any, Any], args: Any) -> None:
        names = _list_or_args(args[0], args[1:]) if args else []
        with self._lock:
            self._send(command, *names)
            normalized = [*map(self._normalize, names)] if args else [*known]
            subscribe = command.replace("UN", "")
            self._pending_unsubscribes.update((subscribe, name) for name in normalized)

    def _send(self, *command: Argument) -> None:
        data = encode_commands([command])
        with self._lock:
            try:
                self._get_connection().transport.send(data)
            except ConnectionLost:
                # The server forgot the command with the connection, so it can be sent again.
                self._disconnect()
                self._get_connection().transport.send(data)
            except BaseException:  # A part of the command may have been sent.
                self._disconnect()
                raise

    def _get_connection(self) -> _Connection:
        # Return the connection. If there is none, connect and subscribe again.
        if self._connection is None:
            for command, name in self._pending_unsubscribes:
                (self.patterns if command == "PSUBSCRIBE" else self.channels).pop(name, None)
            self._pending_unsubscribes.clear()
            connection = self._client._connect()
            if not self.channels and not self.patterns:
                self._subscribed.clear()
            for names in (("SUBSCRIBE", *self.channels), ("PSUBSCRIBE", *self.patterns)):
                if len(names) > 1:
                    connection.transport.send(encode_commands([names]))
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        # The handle must not be closed while another thread reads from the connection. That thread
        # is interrupted and closes the connection itself; see _receive().
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.transport.interrupt()
            if connection is not self._receiving_on:
                connection.transport.close()

    def _next_reply(self, deadline: float) -> Any:
        # Return the next reply, or None after the deadline or if nothing is subscribed any longer.
        give_up_at = None
        while not self._inbox:
            try:
                with self._lock:
                    connection = self._get_connection() if self.subscribed else None
                    if connection is None or not self.subscribed:
                        return None
                    self._receiving_on = connection
                if not self._receive(connection, deadline):
                    return None
                give_up_at = None
            except (ConnectionLost, ServerNotRunning):
                # The first attempt to reconnect follows at once. Later attempts are delayed, since
                # a server may accept each connection and end it again.
                now = time.monotonic()
                if give_up_at is None:
                    give_up_at = now + self._client._connect_timeout
                elif now > give_up_at:
                    raise
                else:
                    time.sleep(WAIT_INTERVAL / 5)
        with contextlib.suppress(IndexError):  # Another thread may have called reset().
            return self._inbox.popleft()
        return None

    def _receive(self, connection: _Connection, deadline: float) -> bool:
        # Put the next replies into the inbox. Return False after the deadline.
        replies: list[Any] = []
        between_replies = False  # If False at the end, the rest of a reply was not received.
        try:
            if connection.reader.empty:
                remaining = None if deadline == math.inf else deadline - time.monotonic()
                try:
                    if not connection.transport.wait(remaining):
                        between_replies = True
                        return False
                except KeyboardInterrupt:
                    between_replies = True
                    raise
            replies = connection.reader.read_available()
            between_replies = True
        finally:
            with self._lock:
                self._receiving_on = None
                if connection is not self._connection:
                    connection.transport.close()
                elif between_replies:
                    self._inbox.extend(replies)
                else:
                    self._disconnect()
        return True

    def _handle_reply(self, reply: Any, ignore: bool) -> dict[str, Any] | None:
        # Return the message, or None if a handler received it or it is ignored.
        if isinstance(reply, ResponseError):
            raise reply
        # While nothing is subscribed, the server answers PING with a string and not with a list.
        parts = reply if isinstance(reply, list) else [b"pong", b"" if reply == b"PONG" else reply]
        kind, *rest = parts
        kind = kind.decode()
        if self._client._decode:
            rest = [part.decode() if isinstance(part, bytes) else part for part in rest]
        pattern = rest.pop(0) if kind == "pmessage" else None
        channel = rest.pop(0) if len(rest) > 1 else None
        message = {"type": kind, "pattern": pattern, "channel": channel, "data": rest[0]}
        if kind in ("message", "pmessage"):
            handler = self.channels.get(channel) if pattern is None else self.patterns.get(pattern)
            if handler is None:
                return message
            handler(message)
            return None
        if kind in ("unsubscribe", "punsubscribe"):
            with self._lock:
                unsubscribed = (kind.replace("un", "").upper(), channel)
                if unsubscribed in self._pending_unsubscribes:
                    self._pending_unsubscribes.remove(unsubscribed)
                    (self.channels if kind == "unsubscribe" else self.patterns).pop(channel, None)
                if not self.channels and not self.patterns:
                    self._subscribed.clear()
        ignore = (ignore or self.ignore_subscribe_messages) and kind != "pong"
        return None if ignore else message


class PubSubWorkerThread(threading.Thread):
    """A thread that calls the handlers of a :class:`PubSub`; see :meth:`PubSub.run_in_thread`."""

    def __init__(
        self, pubsub: PubSub, sleep_time: float, daemon: bool = False,
        exception_handler: ErrorHandler = None,
    ) -> None:  # fmt: skip
        super().__init__(daemon=daemon)
        self.pubsub = pubsub
        self.sleep_time = sleep_time
        self.exception_handler = exception_handler
        self._running = threading.Event()
        self._running.set()

    def run(self) -> None:
        """Receive messages until :meth:`stop` is called."""
        while self._running.is_set():
            try:
                self.pubsub.get_message(True, max(self.sleep_time, WAIT_INTERVAL))
            except BaseException as error:
                if self.exception_handler is None:
                    raise
                self.exception_handler(error, self.pubsub, self)
        self.pubsub.close()

    def stop(self) -> None:
        """End the thread and its subscriptions. A handler may call this method too."""
        self._running.clear()
        self.pubsub.close()


class Monitor:
    """A stream of the commands of all clients (MONITOR), for use in a ``with`` statement.

    The monitor has a connection of its own. A command is a dict with the keys ``time`` (seconds
    since 1970), ``db``, ``client_address``, ``client_port``, ``client_type`` (unix, tcp or pipe)
    and ``command`` (its words, separated by blanks). MONITOR makes the server slower.
    """

    def __init__(self, client: BaseClient) -> None:
        self._client = client
        self._connection: _Connection | None = None
        self._inbox: deque[Any] = deque()

    def __enter__(self) -> Monitor:
        self._connection = self._client._connect()
        chunk = self._connection.transport.exchange(encode_commands([("MONITOR",)]))
        _convert("MONITOR", self._connection.reader.read_first(chunk, True), None)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._connection is not None:
            self._connection.transport.close()
            self._connection = None
        self._inbox.clear()

    def next_command(self) -> dict[str, Any]:
        """Wait for the next command, without a time limit, and return it.

        :raises ConnectionLost: if the server ends the connection.
        """
        if self._connection is None:
            raise CacheError("the monitor is closed; use it inside 'with cache.monitor()'")
        while not self._inbox:
            self._inbox.extend(_receive_replies(self._connection))
        # For example: 1714130000.123456 [0 127.0.0.1:50000] "GET" "city"
        timestamp, _, rest = _to_str(self._inbox.popleft()).partition(" [")
        source, _, command = rest.partition("] ")
        db, _, client = source.partition(" ")
        address, _, port = client.rpartition(":")
        kind = "tcp"
        if client.startswith("\\\\"):
            kind, port = "pipe", ""
        elif client.startswith("unix:"):
            address, kind, port = "unix", "unix", client[5:]
        words = " ".join(re.findall(r'"(.*?)(?<!\\)"', command)).replace('\\"', '"')
        return {
            "time": float(timestamp),
            "db": int(db),
            "client_address": address,
            "client_port": port,
            "client_type": kind,
            "command": words,
        }

    def listen(self) -> Iterator[dict[str, Any]]:
        """Yield the commands of all clients, without end."""
        while True:
            yield self.next_command()


# ----------------------------------------------------------------------------
# Client
# ----------------------------------------------------------------------------


class Client(BaseClient):
    """A client of one server. Several threads may share it.

    :param pipe: the name of the pipe.
    :param timeout: seconds to wait for each chunk of a reply; None: no limit.
    :param connect_timeout: seconds to wait for a free instance of the pipe.
    :param decode_responses: if true, values are returned as str (decoded from UTF-8), else as
        bytes.
    :param trust_any_owner: if true, accept a server of another user; see :class:`UntrustedServer`.
    :raises ValueError: if the name or a time limit is not valid.
    :ivar address: the address of the server: the pipe, or outside Windows the path of the socket.

    The client connects when the first command is sent. Each command uses a connection that no
    other thread uses at the time. Idle connections are kept and used again.
    """

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Return a queue of commands that are sent together; see :class:`Pipeline`.

        :param transaction: if true, the server runs the commands as one transaction (MULTI,
            EXEC), so that no command of another client runs between them.
        """
        return Pipeline(self, transaction)

    def transaction(
        self, func: Callable[[Pipeline], Any], *watches: Argument,
        value_from_callable: bool = False, watch_delay: float | None = None,
    ) -> Any:  # fmt: skip
        """Run a transaction, and repeat it until no watched key changes while it runs.

        :param func: a function that receives a pipeline that watches the keys. The function
            reads values, calls ``multi()`` and then queues the commands of the transaction.
        :param watches: the keys to watch.
        :param value_from_callable: if true, return the result of ``func``; if not, return the
            results of the commands.
        :param watch_delay: seconds to wait before the transaction is repeated.
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
        self, name: Argument, timeout: float | None = None, sleep: float = 0.1,
        blocking: bool = True, blocking_timeout: float | None = None, thread_local: bool = True,
        owned: bool = False,
    ) -> Lock:  # fmt: skip
        """Return a lock that threads and programs share; see :class:`Lock`."""
        return Lock(self, name, timeout, sleep, blocking, blocking_timeout, thread_local, owned)

    def pubsub(self, ignore_subscribe_messages: bool = False) -> PubSub:
        """Return an object that subscribes to channels; see :class:`PubSub`."""
        return PubSub(self, ignore_subscribe_messages)

    def monitor(self) -> Monitor:
        """Return an object that receives the commands of all clients; see :class:`Monitor`."""
        return Monitor(self)

    def cached(
        self, ttl: float | timedelta, key: Callable[..., str] | None = None,
        prefix: str = "cached:", dumps: Callable[[Any], str | bytes] = json.dumps,
        loads: Callable[[bytes], Any] = json.loads,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
        """Return a decorator that stores the results of a function on the server.

            @cache.cached(ttl=60)
            def price(article: str) -> float: ...

        A call whose arguments are equal to those of an earlier call returns the stored result,
        even if it is None. An exception is not stored. Two programs that call at the same time
        may both run the function. If the server cannot be reached, each call runs the function,
        and the logger ``pipecache.client`` reports the error. The function's method
        ``invalidate()`` deletes the result for the arguments that it is called with.

        :param ttl: seconds after which a result expires.
        :param key: a function that makes the key, without the prefix, from the arguments. The
            default is the module and name of the function and the arguments as JSON, so the
            arguments must be serializable as JSON (``self`` of a method is not), and ``f(1)`` and
            ``f(x=1)`` have different keys.
        :param dumps, loads: functions that convert a result to str or bytes, and bytes to a
            result. JSON turns a tuple into a list. Pickle does not, but ``pickle.loads`` runs any
            code that another program has stored in the key.
        :raises ValueError: if ``ttl`` is less than a millisecond.
        """
        px = int((ttl.total_seconds() if isinstance(ttl, timedelta) else ttl) * 1000)
        if px <= 0:
            raise ValueError(f"ttl={ttl!r} is less than a millisecond; give it in seconds")
        # This client shares the connections, but returns strings as bytes, as loads() needs them.
        cache = copy.copy(self)
        cache._decode = False

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            def make_key(*args: Any, **kwargs: Any) -> str:
                if key is not None:
                    return prefix + key(*args, **kwargs)
                arguments = json.dumps([args, kwargs], sort_keys=True)
                return f"{prefix}{function.__module__}.{function.__qualname__}:{arguments}"

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                name = make_key(*args, **kwargs)
                stored = cache._execute_or_log("GET", name)
                if stored is not None:
                    return loads(stored)
                result = function(*args, **kwargs)
                cache._execute_or_log("SET", name, dumps(result), "PX", px)
                return result

            def invalidate(*args: Any, **kwargs: Any) -> Any:
                return self.delete(make_key(*args, **kwargs))

            wrapper.invalidate = invalidate  # type: ignore[attr-defined]
            return wrapper

        return decorate

    def _execute_or_log(self, *command: Argument) -> Any:
        # Return the result. If the command fails, log the error and return None.
        try:
            return self.execute_command(*command)
        except DataError:
            raise
        except CacheError as error:
            import logging  # Most programs that use this file do not need to load it.

            level = logging.DEBUG if isinstance(error, ServerNotRunning) else logging.WARNING
            log = logging.getLogger("pipecache.client")
            log.log(level, "%s %s failed: %s", *command[:2], error)
            return None


def send_command(command: str, pipe: str = DEFAULT_PIPE, trust_any_owner: bool = False) -> str:
    """Send one text command on a connection of its own and return the reply.

    :param command: a command such as ``SET city dubai``, sent as UTF-8. All text after the key is
        the value.
    :param trust_any_owner: if true, accept a server of another user.
    :returns: the reply; ``ERROR: ...`` if the server answers with an error; or
        ``Error: Cache server not running``.
    :raises ConnectionLost, CacheTimeout: if the server ends the connection or does not answer.
    :raises UntrustedServer: if the server belongs to another user.
    """
    try:
        transport = connect(pipe_address(pipe), CONNECT_TIMEOUT, TIMEOUT, trust_any_owner)
    except ServerNotRunning:
        return "Error: Cache server not running"
    try:
        reply = transport.exchange_text(command.encode("utf-8", "surrogateescape"))
        return reply.decode("utf-8", "surrogateescape")
    finally:
        transport.close()


# ----------------------------------------------------------------------------
# Doctor: check a server, explain Windows error numbers
# ----------------------------------------------------------------------------


def _print(data: bytes) -> None:
    # Write the bytes unchanged to a file or another program. For a console, replace the characters
    # that its encoding does not have.
    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        encoding = sys.stdout.encoding or "utf-8"
        print(data.decode("utf-8", "replace").encode(encoding, "replace").decode(encoding))
    else:
        sys.stdout.buffer.write(data + os.linesep.encode())
        sys.stdout.buffer.flush()


#: Error numbers of pipes and sockets, their meaning, and advice.
EXPLANATIONS = {
    2: ("FILE_NOT_FOUND: no program serves a pipe of this name",
        "start pipecache.py; check that the server and the client use the same --pipe, and that"
        " the server printed 'Ready to accept connections'"),
    5: ("ACCESS_DENIED: the pipe belongs to another account (or to a program that runs as"
        " administrator), which does not allow this program to connect",
        "start the server as the same user, or with --access users; with --access admins, run the"
        " client as administrator; if the server reports this error at its start, another program"
        " has taken the name: choose another --pipe"),
    109: ("BROKEN_PIPE: the other end has closed the connection or has exited",
          "read the server's log for the reason, then connect again"),
    121: ("SEM_TIMEOUT: no instance of the pipe became free in time",
          "try again, or start the server with a higher --max-clients"),
    231: ("PIPE_BUSY: all instances of the pipe are in use",
          "wait with WaitNamedPipe and try again, as client.py does; if the error persists, find"
          " programs that do not disconnect with CLIENT LIST, or start the server with"
          " --idle-timeout or a higher --max-clients"),
    232: ("NO_DATA: the other end is closing the pipe", "connect again"),
    233: ("PIPE_NOT_CONNECTED: no program is connected to the other end",
          "read the server's log for the reason, then connect again"),
    234: ("MORE_DATA: the message is longer than the read buffer; this is not a failure",
          "read again until this error no longer occurs, and join the parts"),
    995: ("OPERATION_ABORTED: the operation was cancelled",
          "try again; a time limit has passed, or the thread that began the operation has ended"),
    errno.ECONNREFUSED: ("ECONNREFUSED: the socket exists, but no server accepts connections",
          "start pipecache.py; it replaces the socket of a server that was killed"),
    errno.EACCES: ("EACCES: the socket belongs to another user",
          "start the server as the same user, or with --access users"),
}  # fmt: skip

#: The names of the trustees in a security descriptor (SDDL) that stand for many accounts.
_EVERYONE = "everyone, including anonymous users"
_TRUSTEES = {
    "SY": "SYSTEM", "BA": "programs that run as administrator",
    "AU": "all accounts of this machine", "BU": "all accounts of this machine",
    "WD": _EVERYONE, "AN": _EVERYONE, "NU": "programs on other machines",
}  # fmt: skip


def explain(number: int) -> str:
    """Return the meaning of an error number for a pipe, and advice."""
    if number not in EXPLANATIONS:
        return (
            f"Error {number} is not an error of pipes that this program knows;"
            f" enter 'net helpmsg {number}' on Windows to see the description"
        )
    meaning, advice = EXPLANATIONS[number]
    return f"Error {number}, {meaning}. Advice: {advice}."


def _describe_access(access: str) -> str:
    # Return the accounts that an access list allows to connect, then the list itself.
    if re.fullmatch("[0-7]{4}", access):
        is_public = int(access, 8) & 0o006
        return f"{'all accounts' if is_public else 'its owner'} (mode {access})"
    if not access.startswith("D:") or "NO_ACCESS_CONTROL" in access:
        return f"{_EVERYONE} ({access or 'no access list'})"
    names = []
    # An entry is (type;flags;rights;object;object;trustee). With the flag IO, it applies to
    # objects that inherit it, and not to the pipe.
    entry = r"\(X?(A|D);([^;]*);[^;]*;[^;]*;[^;]*;([^;)]*)"
    for kind, flags, trustee in re.findall(entry, access):
        if "IO" not in flags:
            name = _TRUSTEES.get(trustee) or account_name(trustee)
            names.append(f"not {name}" if kind == "D" else name)
    return f"{', '.join(dict.fromkeys(names)) or 'no account'} ({access})"


#: The severities of a finding, which are also the exit statuses, and the marks of its line.
OK, WARNING, FAILURE = 0, 1, 2
_MARKS = ("[ ok ]", "[warn]", "[FAIL]")


def run_doctor(pipe: str, arguments: Sequence[str] = (), trust_any_owner: bool = False) -> int:
    """Check a server and print the findings, or explain the given error numbers.

    :returns: 0 if there is no problem, 1 after a warning, 2 if the server cannot be used or a
        number is not known.
    """
    if arguments:
        wrong = [each for each in arguments if not re.fullmatch(r"\d{1,9}", each)]
        if wrong:
            advice = "enter a number such as 231, or only 'doctor' to check the server"
            print(f"Error: {wrong[0]!r} is not an error number; {advice}", file=sys.stderr)
            return 2
        numbers = [int(each) for each in arguments]
        for number in numbers:
            _print(explain(number).encode())
        return 0 if EXPLANATIONS.keys() >= set(numbers) else 2
    status = OK
    for severity, text in _findings(pipe, trust_any_owner):
        _print(f"{_MARKS[severity]} {text}".encode())
        status = max(status, severity)
    results = ("No problems found.", "Working, with warnings.", "Not usable; see the lines above.")
    _print(results[status].encode())
    return status


def _findings(pipe: str, trust_any_owner: bool) -> Iterator[tuple[int, str]]:
    # Yield the severity and the text of each finding.
    try:
        yield from _check_server(pipe, trust_any_owner)
    except (CacheError, OSError) as error:
        yield FAILURE, str(error)
        cause: Any = error.__cause__ or error.__context__
        number = getattr(cause, "winerror", None) or getattr(cause, "errno", None)
        if number in EXPLANATIONS:
            yield FAILURE, explain(number)


def _check_server(pipe: str, trust_any_owner: bool) -> Iterator[tuple[int, str]]:
    # The checks before that of text commands use one connection, so that INFO does not count
    # another one whose end the server has not noticed yet.
    transport = connect(pipe_address(pipe), CONNECT_TIMEOUT, TIMEOUT, True)
    with Client(pipe, trust_any_owner=trust_any_owner) as cache:
        cache._idle.append(_Connection(transport))
        process, program = transport.process()
        owner, access = transport.owner(), transport.access()
        served_by = f"process {process}, {program or 'an unknown program'}"
        yield OK, f"{cache.address} is served by {served_by if process else 'an unknown process'}"
        name = account_name(owner)
        if owner == current_user():
            yield OK, f"The server belongs to {name}, which is you"
        elif owner in TRUSTED_SIDS or trust_any_owner:
            yield WARNING, f"The server belongs to {name}, which is not you, but is trusted"
        accounts = _describe_access(access)
        yield WARNING if _EVERYONE in accounts else OK, f"Allowed to connect: {accounts}"
        if not trust_any_owner:
            check_owner(transport)
        info = cache.info()
        version, uptime = info.get("pipecache_version"), info.get("uptime_in_seconds")
        if version is None:
            yield WARNING, "The server uses the Redis protocol, but is not pipecache; check --pipe"
            return
        yield OK, f"pipecache {version} on Python {info['python_version']}, running for {uptime} s"
        times = []
        for _ in range(1000):
            started = time.perf_counter()
            cache.get("pipecache:doctor")
            times.append((time.perf_counter() - started) * 1e6)
        times.sort()
        slow = f"99 of 100 take {times[990]:.0f} µs or less"
        yield OK, f"A round trip takes {times[500]:.0f} µs; {slow}"
    if send_command("PING", pipe, trust_any_owner) == "PONG":
        yield OK, "The server answers text commands"
    else:
        yield WARNING, "The server does not answer text commands"
    yield from _check_limits(info)
    yield from _check_persistence(info)


def _check_limits(info: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for unit, used_field, limit_field, advice in (
        ("clients connected", "connected_clients", "maxclients",
         "start the server with a higher --max-clients, or with --idle-timeout"),
        ("bytes of memory used", "used_memory", "maxmemory",
         "delete keys, let them expire, or start the server with a higher --max-memory"),
    ):  # fmt: skip
        amount, limit = info[used_field], info[limit_field]
        if not limit:
            yield OK, f"{amount} {unit} (no limit)"
        elif amount >= limit * 0.8:
            yield WARNING, f"{amount} of {limit} {unit}, which is close to the limit: {advice}"
        else:
            yield OK, f"{amount} of {limit} {unit}"


def _check_persistence(info: dict[str, Any]) -> Iterator[tuple[int, str]]:
    if "db_file" not in info:
        yield OK, "No persistence (start the server with --db FILE to keep data)"
    elif info["rdb_last_bgsave_status"] == "ok":
        unsaved = info["rdb_changes_since_last_save"]
        yield OK, f"Data is saved in {info['db_file']}; {unsaved} changes are not written yet"
    else:
        yield WARNING, str(info["db_last_error"])


# ----------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------


def _format_reply(reply: Any, missing: bytes) -> bytes:
    # Return a reply as text commands show it; `missing` stands for None.
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, list):
        return b"\n".join([_format_reply(element, missing) for element in reply])
    if isinstance(reply, ResponseError):
        text, code = str(reply), f"{reply.status_code} "
        text = text[len(code) :] if text.startswith(code) else text
        return b"ERROR: " + text.rstrip().encode()
    return missing if reply is None else str(reply).encode()


# One word, quoted or not. As in the server's text commands, a quote has a meaning only at the
# start of a word ("it's" is a word), and a backslash is an ordinary character.
_WORD = re.compile(rb"""[ \t]*(?:"([^"]*)"(?![^ \t])|'([^']*)'(?![^ \t])|([^ \t"'][^ \t]*))""")


def _split_words(line: bytes) -> list[bytes]:
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


#: Commands after which the server sends replies until the connection ends.
_STREAMING_COMMANDS = ("SUBSCRIBE", "PSUBSCRIBE", "MONITOR")


def _print_stream(cache: Client, arguments: Sequence[Argument]) -> None:
    # Send a streaming command and print one line per reply, until Ctrl+C.
    connection = cache._connect()
    try:
        connection.transport.send(encode_commands([arguments]))
        while True:
            for reply in _receive_replies(connection):
                if isinstance(reply, ResponseError):
                    raise reply
                elements = reply if isinstance(reply, list) else [reply]
                _print(b" ".join([_format_reply(element, b"") for element in elements]))
    except KeyboardInterrupt:
        return
    finally:
        connection.transport.close()


def _run_command(cache: Client, arguments: Sequence[bytes], missing: bytes) -> int:
    # Send one command, print its reply, and return the exit status.
    name = arguments[0].decode("latin-1").upper()
    try:
        if name in _STREAMING_COMMANDS:
            _print_stream(cache, arguments)
            return 0
        blocking = name in BLOCKING_COMMANDS
        command: Sequence[Argument] = [name, *arguments[1:]] if blocking else arguments
        _print(_format_reply(cache.execute_command(*command, convert=_unchanged), missing))
    except ResponseError as error:
        _print(_format_reply(error, missing))
        return 1
    except CacheError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _read_lines(prompt: str) -> Iterator[bytes]:
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has no readline module.
            import readline  # noqa: F401
        with contextlib.suppress(EOFError):
            while True:
                yield input(prompt).encode("utf-8", "surrogateescape")
    elif hasattr(sys.stdin, "buffer"):
        # Bytes from another program are UTF-8, whatever the encoding of the console is.
        yield from (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    else:
        yield from (line.rstrip("\n").encode() for line in sys.stdin)


def _run_prompt(cache: Client, name: str) -> int:
    # Run the commands on standard input. Return the highest exit status; for a console, return 0.
    status = 0
    if sys.stdin.isatty():
        print(f"{cache.address}: enter HELP to list the commands, QUIT to leave")
    for line in _read_lines(f"{name}> "):
        try:
            arguments = _split_words(line)
        except ValueError as error:
            print(f"ERROR: {error}")
            status = max(status, 1)
            continue
        if arguments and arguments[0].upper() in (b"QUIT", b"EXIT"):
            break
        if arguments:
            status = max(status, _run_command(cache, arguments, b"(nil)"))
    return 0 if sys.stdin.isatty() else status


def main(arguments: Sequence[str] | None = None) -> int:
    """Send one command to a server, or prompt for commands.

    :param arguments: the arguments of the program; None: those in ``sys.argv``.
    :returns: the exit status: 0, 1 for an error reply, 2 if no server answers, 130 after Ctrl+C;
        for the command ``doctor``, that of :func:`run_doctor`.
    """
    parser = argparse.ArgumentParser(
        prog="client.py",
        usage="client.py [-h] [--version] [--pipe NAME] [--trust-any-owner]"
        " [COMMAND [ARGUMENT ...]]",
        description="Send a command to a pipecache server, or prompt for commands.",
        epilog='Example: client.py SET greeting "hello world". "client.py doctor" checks the'
        ' server; "client.py doctor 231" explains an error number.',
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pipe",
        metavar="NAME",
        default=DEFAULT_PIPE,
        help="name of the pipe (default: %(default)s)",
    )
    parser.add_argument(
        "--trust-any-owner",
        action="store_true",
        help="connect even if the server belongs to another user",
    )
    parser.add_argument("--version", action="version", version=f"client {__version__}")
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="command and its arguments, after the options (default: prompt for commands)",
    )
    options = parser.parse_args(arguments)
    if not options.command and sys.stdin is None:
        parser.error("there is no standard input to read commands from; give a command")
    try:
        trust_any_owner = options.trust_any_owner
        cache = Client(options.pipe, decode_responses=False, trust_any_owner=trust_any_owner)
    except ValueError as error:
        parser.error(str(error))
    with cache:
        try:
            if options.command[:1] == ["doctor"]:
                return run_doctor(options.pipe, options.command[1:], trust_any_owner)
            if options.command:
                return _run_command(cache, [_encode_word(word) for word in options.command], b"")
            return _run_prompt(cache, options.pipe)
        except KeyboardInterrupt:
            print()
            return 130
        except BrokenPipeError:
            # The program that read the output has exited. Without dup2(), Python would report
            # this again when it flushes standard output at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            print(f"Error: cannot write to standard output: {error}", file=sys.stderr)
            return 1


def _encode_word(text: str) -> bytes:
    # Return a word of the command line as bytes. Outside Windows it may be a file name that is
    # not UTF-8; os.fsencode() returns the bytes that the shell passed.
    return text.encode("utf-8", "surrogatepass") if os.name == "nt" else os.fsencode(text)


if __name__ == "__main__":
    sys.exit(main())
