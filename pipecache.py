#!/usr/bin/env python3
r"""pipecache: a key-value cache and messaging server in one file.

Copy this file to any machine with Python 3.8 or newer and run it:

    python pipecache.py

Every program of the same user can now share values through the named pipe
\\.\pipe\KeyValuePipe, one message a command, in any language:

    with open(r"\\.\pipe\KeyValuePipe", "r+b", buffering=0) as pipe:
        pipe.write(b"SET city dubai")
        print(pipe.read(4096))              # b'OK'

The same pipe speaks RESP, the Redis protocol. Outside Windows a Unix domain
socket takes the place of the pipe. Inside another program:

    from pipecache import Server

    with Server("KeyValuePipe"):
        ...                                 # served on background threads

Nothing outside the standard library is imported, nothing listens on the
network, and only the user who started the server can connect to it.

SPDX-License-Identifier: MIT
"""

from __future__ import annotations

import argparse
import atexit
import collections
import concurrent.futures
import contextlib
import errno
import functools
import heapq
import itertools
import logging
import math
import os
import re
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
import weakref
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

__all__ = ["AddressInUse", "PipecacheError", "Server", "TransportError", "main"]
__version__ = "1.0.0"

log = logging.getLogger("pipecache")


# ----------------------------------------------------------------------------
# Limits and defaults
# ----------------------------------------------------------------------------

#: The name of the pipe when none is given.
DEFAULT_PIPE = "KeyValuePipe"

#: Clients served at once; one more waits until another leaves.
MAX_CLIENTS = 1000

#: The longest text command, and the longest argument of a RESP command, in bytes; and the least
#: that this can be set to.
MAX_MESSAGE = 512 * 1024 * 1024
MIN_MESSAGE = 1024

#: Seconds a client may leave its reply lying, without taking any of it, before it is dropped.
SEND_TIMEOUT = 30.0

#: Bytes written at once to a pipe, which Windows keeps in memory it has little of.
PIECE_SIZE = 1024 * 1024

#: Bytes of further commands kept while a client does not take its replies, and what each chunk of
#: them takes beside its own bytes.
BACKLOG = 256 * 1024 * 1024
CHUNK_OVERHEAD = 100

#: Seconds in which stop() returns, and after how many of them it stops waiting for replies.
STOP_TIMEOUT = 5.0
STOP_GRACE = 2.0

#: Workers kept waiting for clients, so that several can connect at the same moment.
SPARE_LISTENERS = 8

#: Bytes asked of the system at a time, and the quota of a pipe in each direction.
CHUNK_SIZE = 65536

#: Arguments of one command, and the length of the line that announces them in RESP.
MAX_ARGUMENTS = 1024 * 1024
MAX_HEADER = 65536

#: One client's commands and bytes of replies after which the others get a turn.
TURN_COMMANDS = 256
TURN_BYTES = 1024 * 1024

#: Seconds between two looks for expired keys, and keys taken away at a time.
SWEEP_INTERVAL = 0.1
SWEEP_KEYS = 1000

#: Bytes of a pattern: to prepare one takes time in which nobody is served.
MAX_PATTERN = 4096

#: Bytes of a command that an error message repeats.
ERROR_EXCERPT = 128

#: The range of Redis's integers.
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1


#: The Redis whose replies are the measure, as clients that ask for a version are told.
REDIS_VERSION = "7.0.15"


class Settings:
    """What one server is told when it is made.

    :param pipe: the pipe's name, see :func:`pipe_address`.
    :param max_clients: clients served at once.
    :param max_message: bytes of the longest text command or RESP argument.
    :raises ValueError: for a value that cannot be used.
    """

    __slots__ = ("max_clients", "max_message", "pipe")

    def __init__(
        self,
        pipe: str = DEFAULT_PIPE,
        max_clients: int = MAX_CLIENTS,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        if not pipe.strip() or any(char < " " for char in pipe):
            raise ValueError("the pipe needs a name, without control characters")
        if max_clients < 1:
            raise ValueError("max_clients must be 1 or more")
        if max_message < MIN_MESSAGE:
            raise ValueError(f"max_message must be {MIN_MESSAGE} bytes or more")
        self.pipe = pipe
        self.max_clients = max_clients
        self.max_message = max_message


# ----------------------------------------------------------------------------
# Exceptions
# ----------------------------------------------------------------------------


class PipecacheError(Exception):
    """The base of every exception this module raises of its own."""


class TransportError(PipecacheError):
    """The pipe or socket could not be made; the message says why and what to do."""


class AddressInUse(TransportError):
    """Another program serves the name already."""


class ConnectionLost(PipecacheError):
    """The client is gone, or did not take its reply in time."""


class ProtocolError(PipecacheError):
    """What a client sent is not in its protocol; the connection ends after this reply."""


class CommandError(PipecacheError):
    """An error reply. ``str()`` of it is the text as Redis sends it, code first."""


def wrong_arity(name: bytes) -> CommandError:
    """The error for too few or too many arguments."""
    return CommandError(f"ERR wrong number of arguments for '{_shown(name.lower())}' command")


class UnknownCommand(CommandError):
    """No command has this name; the text reply says just that."""

    def __init__(self, name: bytes, arguments: Sequence[bytes]) -> None:
        shown = ""
        for argument in arguments:
            if len(shown) >= ERROR_EXCERPT:
                break
            shown += f"'{_shown(argument[: ERROR_EXCERPT - len(shown)])}' "
        name = name[:ERROR_EXCERPT]
        super().__init__(f"ERR unknown command '{_shown(name)}', with args beginning with: {shown}")


def unknown_subcommand(name: bytes, subcommand: bytes) -> CommandError:
    """The error for ``CLIENT FOO``."""
    shown = _shown(subcommand[:ERROR_EXCERPT])
    return CommandError(f"ERR unknown subcommand '{shown}'. Try {_shown(name.upper())} HELP.")


def invalid_expire(name: str) -> CommandError:
    """The error for a time to live that is over, or beyond 64 bits."""
    return CommandError(f"ERR invalid expire time in '{name}' command")


def _shown(data: bytes) -> str:
    # A line break inside an error would end the RESP reply it stands in.
    return data.decode("latin-1").replace("\r", " ").replace("\n", " ")


WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX_ERROR = "ERR syntax error"
OVERFLOW = "ERR increment or decrement would overflow"


# ----------------------------------------------------------------------------
# Replies
# ----------------------------------------------------------------------------


class Status(bytes):
    """A status reply such as ``OK``: a simple string in RESP, bare in text."""

    __slots__ = ()


OK = Status(b"OK")
PONG = Status(b"PONG")


class Verbatim(bytes):
    """Text for a person to read, such as INFO's: RESP3 says so."""

    __slots__ = ()


#: What a command returns: bytes for a value, int, list or dict of replies, None for nothing there.
Reply = Union[None, int, bytes, Status, Verbatim, PipecacheError, List[Any], Dict[bytes, Any]]


# ----------------------------------------------------------------------------
# Wire protocol: text and RESP, without input or output
# ----------------------------------------------------------------------------


#: One command of a client: its arguments, the name first, or the error if it could not be read;
#: and what its text reply ends with, or None if the reply is to be RESP.
Request = Tuple[Union[List[bytes], CommandError, ProtocolError], Optional[bytes]]


#: Text commands that take the rest of the message as their last argument,
#: with the number of words before it.
RAW_VALUE_AFTER = {
    b"SET": 2,
    b"SETNX": 2,
    b"SETEX": 3,
    b"PSETEX": 3,
    b"GETSET": 2,
    b"APPEND": 2,
    b"ECHO": 1,
    b"PUBLISH": 2,
}

# One word: quoted, or bare. A quote counts at the start of a word only (it's is a word), and
# a closing quote only before a blank or the end.
_WORD = re.compile(rb"""[ \t]*(?:"([^"]*)"(?![^ \t])|'([^']*)'(?![^ \t])|([^ \t"'][^ \t]*))""")
_BLANKS = b" \t"


def split_text(line: bytes) -> list[bytes]:
    """Cut a text command (without its terminator) into its arguments.

    :raises CommandError: for an empty command and for unbalanced quotes.
    """
    words: list[bytes] = []
    position, end = 0, len(line)
    before_value = math.inf
    while len(words) < before_value:
        if len(words) >= MAX_ARGUMENTS:
            raise CommandError(f"ERR more than {MAX_ARGUMENTS} arguments")
        match = _WORD.match(line, position)
        if match is None:
            if line[position:].strip(_BLANKS):
                raise CommandError("ERR Unbalanced quotes in the command")
            break
        words.append(match[match.lastindex or 0])
        position = match.end()
        if len(words) == 1:
            before_value = RAW_VALUE_AFTER.get(words[0].upper(), math.inf)
    else:
        if position < end:
            words.append(line[position + 1 :])
    if not words:
        raise CommandError("ERR Empty command")
    return words


def encode_text(reply: Reply, terminator: bytes) -> bytes:
    """The text form of a reply: bare values, one list element a line, ``ERROR: ...``."""
    return _text_body(reply, terminator or b"\n") + terminator


def _text_body(reply: Reply, separator: bytes) -> bytes:
    if reply is None:
        return b""
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, int):
        return b"%d" % reply
    if isinstance(reply, dict):
        reply = list(itertools.chain.from_iterable(reply.items()))
    if isinstance(reply, list):
        return separator.join(_text_body(element, separator) for element in reply)
    if isinstance(reply, UnknownCommand):
        return b"ERROR: Unknown command"
    return b"ERROR: " + str(reply).partition(" ")[2].encode("latin-1", "replace")


def encode_resp(reply: Reply, version: int = 2) -> bytes:
    """The form of a reply in version 2 or 3 of RESP."""
    if type(reply) is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if reply is None:
        return b"_\r\n" if version == 3 else b"$-1\r\n"
    if isinstance(reply, Status):
        return b"+%b\r\n" % reply
    if isinstance(reply, Verbatim):
        if version == 3:
            return b"=%d\r\ntxt:%b\r\n" % (len(reply) + 4, reply)
        return encode_resp(bytes(reply))
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, dict):
        elements = list(itertools.chain.from_iterable(reply.items()))
        header = b"%%%d\r\n" % len(reply) if version == 3 else b"*%d\r\n" % len(elements)
        return header + b"".join([encode_resp(element, version) for element in elements])
    if isinstance(reply, list):
        elements = [encode_resp(element, version) for element in reply]
        return b"*%d\r\n%b" % (len(reply), b"".join(elements))
    return b"-%b\r\n" % str(reply).encode("latin-1", "replace")


# What must stand before an argument of so many bytes ("$3" before three), and how many tokens
# such a command has ("*2", then two for each argument): looked up, not formatted and parsed, for
# the short ones that nearly every command is made of.
_BULK_HEADERS = {length: b"$%d" % length for length in range(1025)}
_ARRAY_TOKENS = {b"*%d" % size: 1 + 2 * size for size in range(1, 129)}


def _parse_length(line: bytes) -> int | None:
    # int() would accept 1_0, +3 and " 3", and is slow to refuse a long row of digits.
    digits = line[1:] if line.startswith(b"-") else line
    if not digits.isdigit() or len(digits) > 19 or (len(line) > 1 and digits.startswith(b"0")):
        return None
    return int(line)


class RequestParser:
    """Cuts the chunks of one connection into requests.

    :param framed: whether a chunk's end can be a message's end (a pipe), so
        that a text command is one message; else it ends at a line feed.
    :param max_message: bytes of the longest text command or RESP argument.

    After a :class:`ProtocolError` has come out as the last request, nothing
    more may be fed.
    """

    def __init__(self, framed: bool, max_message: int = MAX_MESSAGE) -> None:
        self._framed = framed
        self._max_message = max_message
        self._buffer = bytearray()
        self._arguments: list[bytes] = []
        self._missing = 0  # arguments of the command half read
        self._bulk = -1  # the length of the argument under way, -1 before its header
        self._scanned = 0  # bytes of the buffer known to hold no line feed
        self._speaks_resp = False

    def feed(self, chunk: bytes, end_of_message: bool = True) -> list[Request]:
        """Take one chunk and return the requests it completes, in order."""
        requests: list[Request] = []
        if not self._missing and not self._buffer:
            if chunk.startswith(b"*"):
                chunk = self._split_pipeline(chunk, requests)
                if not chunk:
                    return requests
            elif self._is_line(chunk, end_of_message):
                self._take_line(chunk, requests)
                return requests
        self._buffer += chunk
        try:
            self._parse(requests, end_of_message)
        except ProtocolError as error:
            self._buffer.clear()
            text_terminator = b"" if self._framed else b"\n"
            requests.append((error, None if self._speaks_resp else text_terminator))
        return requests

    def _split_pipeline(self, chunk: bytes, requests: list[Request]) -> bytes:
        # The quick way for whole commands without line breaks in their arguments: one split at
        # CRLF, then each argument's length is compared with the one stated before it. At the
        # first command that does not fit, the rest is left to the exact parser.
        self._speaks_resp = True
        tokens = chunk.split(b"\r\n")
        position, last = 0, len(tokens) - 1
        while position < last:
            end = position + _ARRAY_TOKENS.get(tokens[position], last + 1)
            if end > last:
                break
            arguments = tokens[position + 2 : end : 2]
            headers = [_BULK_HEADERS.get(len(argument)) for argument in arguments]
            if headers != tokens[position + 1 : end : 2]:
                break
            requests.append((arguments, None))
            position = end
        return tokens[-1] if position == last else b"\r\n".join(tokens[position:])

    def _parse(self, requests: list[Request], end_of_message: bool) -> None:
        buffer = self._buffer
        position = 0
        try:
            while position < len(buffer):
                if self._missing:
                    taken = self._parse_argument(position, requests)
                elif buffer.startswith(b"*", position):
                    taken = self._parse_array_header(position)
                else:
                    taken = self._parse_text(position, requests, end_of_message)
                    if self._framed and taken is not None:
                        position = taken
                        break
                if taken is None:
                    break
                position = taken
        finally:
            del buffer[:position]

    def _header(self, position: int, what: str) -> tuple[bytes, int] | None:
        end = self._buffer.find(b"\r\n", position, position + MAX_HEADER + 2)
        if end < 0:
            if len(self._buffer) - position > MAX_HEADER:
                raise ProtocolError(f"ERR Protocol error: too big {what} count string")
            return None
        return bytes(self._buffer[position + 1 : end]), end + 2

    def _parse_array_header(self, position: int) -> int | None:
        self._speaks_resp = True
        header = self._header(position, "mbulk")
        if header is None:
            return None
        size = _parse_length(header[0])
        if size is None or size > MAX_ARGUMENTS:
            raise ProtocolError("ERR Protocol error: invalid multibulk length")
        self._missing = max(size, 0)
        self._arguments = []
        return header[1]

    def _parse_argument(self, position: int, requests: list[Request]) -> int | None:
        buffer = self._buffer
        if self._bulk < 0:
            if buffer[position] != ord("$"):
                found = _shown(buffer[position : position + 1])
                raise ProtocolError(f"ERR Protocol error: expected '$', got '{found}'")
            header = self._header(position, "bulk")
            if header is None:
                return None
            size = _parse_length(header[0])
            if size is None or not 0 <= size <= self._max_message:
                raise ProtocolError("ERR Protocol error: invalid bulk length")
            self._bulk = size
            return header[1]
        end = position + self._bulk
        if len(buffer) < end + 2:
            return None
        if buffer[end : end + 2] != b"\r\n":
            raise ProtocolError("ERR Protocol error: expected CRLF after a bulk string")
        with memoryview(buffer) as view:
            self._arguments.append(bytes(view[position:end]))
        self._bulk = -1
        self._missing -= 1
        if not self._missing:
            requests.append((self._arguments, None))
        return end + 2

    def _parse_text(
        self, position: int, requests: list[Request], end_of_message: bool
    ) -> int | None:
        buffer = self._buffer
        if self._framed:
            end = taken = len(buffer)
            complete = end_of_message
        else:
            end = buffer.find(b"\n", max(position, self._scanned))
            complete = end >= 0
            taken = end = end + 1 if complete else len(buffer)
            self._scanned = 0 if complete else end - position
        if end - position > self._max_message + 2:
            self._speaks_resp = False
            raise ProtocolError(
                f"ERR the command is longer than the limit of {self._max_message} bytes"
            )
        if not complete:
            return None
        self._take_line(bytes(buffer[position:end]), requests)
        return taken

    def _is_line(self, chunk: bytes, end_of_message: bool) -> bool:
        # Whether a chunk is one whole text command, as nearly all of them come.
        whole = end_of_message if self._framed else chunk.find(b"\n") == len(chunk) - 1 >= 0
        return whole and len(chunk) <= self._max_message

    def _take_line(self, line: bytes, requests: list[Request]) -> None:
        terminator = b""
        if line.endswith(b"\n"):
            terminator = b"\r\n" if line.endswith(b"\r\n") else b"\n"
            line = line[: -len(terminator)]
        if self._speaks_resp and not line:
            return
        self._speaks_resp = False
        try:
            requests.append((split_text(line), terminator))
        except CommandError as error:
            requests.append((error, terminator))


# ----------------------------------------------------------------------------
# Store: the values, their expiry, one lock
# ----------------------------------------------------------------------------

Value = TypeVar("Value")


@functools.lru_cache(maxsize=256)
def glob(pattern: bytes) -> Callable[[bytes], object]:
    r"""Compile a pattern of Redis (``*``, ``?``, ``[a-z]``, ``[^a]``, ``\x``) to a test of a key.

    The time a test takes grows with the key's length and the pattern's, not faster: each ``*``
    takes the first place where what follows it fits, and never looks for another.

    :raises CommandError: for a pattern longer than MAX_PATTERN.
    """
    if len(pattern) > MAX_PATTERN:
        raise CommandError(f"ERR the pattern is longer than {MAX_PATTERN} bytes")
    parts: list[bytes] = [b""]
    position = 0
    while position < len(pattern):
        char = pattern[position : position + 1]
        position += 1
        if char == b"*":
            parts.append(b"")
            continue
        if char == b"?":
            char = b"."
        elif char == b"[":
            char, position = _glob_class(pattern, position)
        else:
            if char == b"\\" and position < len(pattern):
                char = pattern[position : position + 1]
                position += 1
            char = re.escape(char)
        parts[-1] += char
    first, *others = parts
    if not others:
        return re.compile(first, re.DOTALL).fullmatch
    # (?=(?P<x>...))(?P=x) is an atomic group, which re has only since Python 3.11.
    middle = b"".join(
        b"(?=(?P<g%d>.*?%b))(?P=g%d)" % (number, part, number)
        for number, part in enumerate(others[:-1])
    )
    return re.compile(b"%b%b.*%b" % (first, middle, others[-1]), re.DOTALL).fullmatch


def _glob_class(pattern: bytes, position: int) -> tuple[bytes, int]:
    negated = pattern.startswith(b"^", position)
    position += negated
    members = b""
    while position < len(pattern) and pattern[position] != ord("]"):
        low = high = pattern[position]
        if low == ord("\\") and position + 1 < len(pattern):
            position += 1
            low = high = pattern[position]
        elif pattern.startswith(b"-", position + 1) and position + 2 < len(pattern):
            position += 2
            low, high = sorted((low, pattern[position]))
        members += b"\\x%02x-\\x%02x" % (low, high)
        position += 1
    if not members:
        return b"." if negated else b"(?!)", position + 1
    return b"[%b%b]" % (b"^" if negated else b"", members), position + 1


class Store:
    """Every value by its key, with expiry times beside them.

    :param clock: seconds that only ever go forward, as :func:`time.monotonic`.

    Use it under :attr:`lock`; the methods do not take it themselves, so that
    several can be one step.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.RLock()
        #: Keys that expired, since the start.
        self.expired = 0
        self._clock = clock
        self._values: dict[bytes, Any] = {}
        self._deadlines: dict[bytes, int] = {}
        # The deadlines in order. A deadline that was moved or taken away stays in the heap
        # until it comes up, or until such entries are the majority.
        self._queue: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._values)

    @property
    def expiring(self) -> int:
        """How many keys have a time to live."""
        return len(self._deadlines)

    def now(self) -> int:
        """The time on the store's clock in milliseconds."""
        return int(self._clock() * 1000)

    def read(self, key: bytes, kind: type[Value]) -> Value | None:
        """The value of a key, or None.

        :raises CommandError: if the value is not of this kind.
        """
        if self._deadlines and self._expire(key):
            return None
        value = self._values.get(key)
        if value is None or value.__class__ is kind:
            return value
        raise CommandError(WRONG_TYPE)

    def strings(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several keys, None where there is none or one of another kind."""
        if self._deadlines:
            for key in keys:
                self._expire(key)
        values = map(self._values.get, keys)
        return [value if value.__class__ is bytes else None for value in values]

    def __contains__(self, key: object) -> bool:
        return key in self._values and not (self._deadlines and self._expire(key))

    def write(self, key: bytes, value: object) -> None:
        """Put a value in place of the one the key has, which keeps its time to live."""
        if self._deadlines:
            self._expire(key)
        self._values[key] = value

    def replace(self, key: bytes, value: object, deadline: int | None = None) -> None:
        """Set a key afresh, to expire at a deadline in milliseconds of :meth:`now`, or never."""
        self._values[key] = value
        if deadline is not None:
            self.set_deadline(key, deadline)
        elif self._deadlines:
            self._deadlines.pop(key, None)

    def delete(self, key: bytes) -> bool:
        """Take a key away and tell whether it was there."""
        there = key in self
        self._remove(key)
        return there

    def set_deadline(self, key: bytes, deadline: int) -> None:
        """Let a key that exists expire at this millisecond of :meth:`now`."""
        self._deadlines[key] = deadline
        heapq.heappush(self._queue, (deadline, key))
        self._shorten_queue()

    def deadline(self, key: bytes) -> int | None:
        """When a key expires, or None."""
        return self._deadlines.get(key)

    def persist(self, key: bytes) -> bool:
        """Let a key stay, and tell whether it would have expired."""
        return key in self and self._deadlines.pop(key, None) is not None

    def keys(self) -> list[bytes]:
        """Every key that has not expired."""
        self.sweep(len(self._queue))
        return list(self._values)

    def clear(self) -> None:
        """Take every key away."""
        self._values.clear()
        self._deadlines.clear()
        self._queue.clear()

    def sweep(self, most: int) -> bool:
        """Take away up to so many expired keys and tell whether more may be left."""
        now = self.now()
        self._shorten_queue()
        for _ in range(most):
            if not self._queue or self._queue[0][0] > now:
                return False
            deadline, key = heapq.heappop(self._queue)
            if self._deadlines.get(key) == deadline:
                self._remove(key)
                self.expired += 1
        return True

    def _shorten_queue(self) -> None:
        if len(self._queue) > 2 * len(self._deadlines) + 64:
            self._queue = [(deadline, key) for key, deadline in self._deadlines.items()]
            heapq.heapify(self._queue)

    def _expire(self, key: Any) -> bool:
        deadline = self._deadlines.get(key)
        if deadline is None or deadline > self.now():
            return False
        self._remove(key)
        self.expired += 1
        return True

    def _remove(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._deadlines.pop(key, None)


# ----------------------------------------------------------------------------
# Commands: what a client can ask for
# ----------------------------------------------------------------------------


class Statistics:
    """What INFO tells of the running server; counted under the store's lock."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.started = time.monotonic()
        self.clients: dict[int, Context] = {}
        self.connections = 0
        self.commands = 0


class Context:
    """What a command may see and change beside its arguments; one for each client."""

    def __init__(self, store: Store, settings: Settings, statistics: Statistics) -> None:
        self.store = store
        self.settings = settings
        self.statistics = statistics
        #: Set by a command after whose reply the connection ends.
        self.closing = False
        #: The version of RESP the client has chosen by HELLO.
        self.protocol = 2
        #: What the client calls itself and its library.
        self.names: dict[str, str] = {}
        self.connected = time.monotonic()
        self.id = 0

    def register(self) -> None:
        """Enter the client in the statistics, under the next id."""
        self.statistics.connections += 1
        self.id = self.statistics.connections
        self.statistics.clients[self.id] = self

    def leave(self) -> None:
        """Take the client out of the statistics."""
        del self.statistics.clients[self.id]


class Command(NamedTuple):
    """One entry of the command table.

    ``fewest`` and ``most`` bound the number of arguments, the name included.
    """

    name: str
    run: Callable[..., Reply]
    fewest: int
    most: int
    usage: str
    summary: str


#: Every command by its name in upper case, and in lower case too: clients send either. A
#: subcommand is under both its words, which no client can send as one name.
COMMANDS: dict[bytes | tuple[bytes, ...], Command] = {}

Function = TypeVar("Function", bound=Callable[..., Reply])


def command(usage: str) -> Callable[[Function], Function]:
    """Declare a command by its usage, as in ``GETEX key [EX seconds]`` or ``DEL key [key ...]``.

    The number of arguments follows from it: words outside brackets must be
    there; each bracket adds its words, without end where there is a choice
    or a repetition in it.
    """

    def declare(function: Function) -> Function:
        name, *words = re.sub(r"\[[^\]]*\]", "", usage).split()
        if words and words[0].isupper():
            name = f"{name} {words.pop(0)}"  # a subcommand
        optional = re.findall(r"\[([^\]]*)\]", usage)
        fewest = len(name.split()) + len(words)
        open_ended = re.search(r"\||\.\.\.", usage)
        most = fewest + sum(len(words.split()) for words in optional)
        summary = (function.__doc__ or "").partition("\n")[0]
        entry = Command(name, function, fewest, sys.maxsize if open_ended else most, usage, summary)
        path = tuple(name.encode().split())
        if len(path) == 1:
            COMMANDS[path[0]] = COMMANDS[path[0].lower()] = entry
        else:
            COMMANDS[path] = entry
        return function

    return declare


def execute(context: Context, arguments: list[bytes]) -> Reply:
    """Carry out one command, under the store's lock, and return its reply, an error included."""
    name, *rest = arguments
    entry = COMMANDS.get(name) or COMMANDS.get(name.upper())
    if entry is None:
        if name.upper() not in _CONTAINERS:
            return UnknownCommand(name, rest)
        if not rest:
            return wrong_arity(name)
        subcommand, *rest = rest
        entry = COMMANDS.get((name.upper(), subcommand.upper()))
        if entry is None:
            return unknown_subcommand(name, subcommand)
        name = b"%b|%b" % (name, subcommand)
    if not entry.fewest <= len(arguments) <= entry.most:
        return wrong_arity(name)
    try:
        return entry.run(context, *rest)
    except CommandError as error:
        return error
    except Exception:
        # A fault of this program: the client is told, the log says where, everybody else goes on.
        log.exception("Command %r failed", name)
        return CommandError("ERR internal error, see the server's log")


#: Commands that are nothing without their subcommand.
_CONTAINERS = (b"CLIENT",)

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")


def parse_integer(argument: bytes) -> int:
    """An integer as Redis accepts it: no blanks, no plus, no leading zeros, 64 bits.

    :raises CommandError: for anything else.
    """
    if _INTEGER.fullmatch(argument):
        number = int(argument)
        if INTEGER_MIN <= number <= INTEGER_MAX:
            return number
    raise CommandError(NOT_AN_INTEGER)


def deadline_after(context: Context, name: str, argument: bytes, unit: int) -> int:
    """The deadline so many units (of ``unit`` milliseconds) from now.

    :raises CommandError: if the argument is no integer, or the deadline does not fit 64 bits.
    """
    duration = parse_integer(argument) * unit
    if not INTEGER_MIN <= duration <= INTEGER_MAX - context.store.now():
        raise invalid_expire(name)
    return context.store.now() + duration


def lifetime(context: Context, name: str, argument: bytes, unit: int) -> int:
    """The same for a value yet to be set, which must have a time to live."""
    if parse_integer(argument) <= 0:
        raise invalid_expire(name)
    return deadline_after(context, name, argument, unit)


# Strings


@command("GET key")
@command("G key")
def get(context: Context, key: bytes) -> Reply:
    """The value of a key."""
    return context.store.read(key, bytes)


@command("SET key value [NX|XX] [GET] [EX seconds|PX milliseconds|KEEPTTL]")
def set_(context: Context, key: bytes, value: bytes, *options: bytes) -> Reply:
    """Set a key; in text everything after the key is the value."""
    if not options:
        context.store.replace(key, value)
        return OK
    return _set_with_options(context, key, value, options)


def _set_with_options(
    context: Context, key: bytes, value: bytes, options: Sequence[bytes]
) -> Reply:
    store = context.store
    chosen: dict[bytes, bytes | None] = {}
    words = iter(options)
    for word in words:
        option = word.upper()
        slot = _SET_OPTIONS.get(option)
        if slot is None or chosen.get(slot, option) != option:
            raise CommandError(SYNTAX_ERROR)
        chosen[slot] = option
        if option in _LIFETIME_UNITS:
            chosen[option] = next(words, None)
            if chosen[option] is None:
                raise CommandError(SYNTAX_ERROR)
    kept = chosen.get(b"TTL") or b""
    deadline = None
    if kept in _LIFETIME_UNITS:
        deadline = lifetime(context, "set", chosen[kept] or b"", _LIFETIME_UNITS[kept])
    old = store.read(key, bytes) if b"GET" in chosen else None
    condition = chosen.get(b"IF")
    done = condition is None or (key in store) == (condition == b"XX")
    if done and kept == b"KEEPTTL":
        store.write(key, value)
    elif done:
        store.replace(key, value, deadline)
    if b"GET" in chosen:
        return old
    return OK if done else None


_SET_OPTIONS = {
    b"NX": b"IF",
    b"XX": b"IF",
    b"GET": b"GET",
    b"EX": b"TTL",
    b"PX": b"TTL",
    b"KEEPTTL": b"TTL",
}
_LIFETIME_UNITS = {b"EX": 1000, b"PX": 1}


@command("SETNX key value")
def setnx(context: Context, key: bytes, value: bytes) -> Reply:
    """Set a key that does not exist: 1 if set, 0 if it exists."""
    if key in context.store:
        return 0
    context.store.replace(key, value)
    return 1


@command("SETEX key seconds value")
def setex(context: Context, key: bytes, seconds: bytes, value: bytes) -> Reply:
    """Set a key with a time to live."""
    context.store.replace(key, value, lifetime(context, "setex", seconds, 1000))
    return OK


@command("PSETEX key milliseconds value")
def psetex(context: Context, key: bytes, milliseconds: bytes, value: bytes) -> Reply:
    """Set a key with a time to live in milliseconds."""
    context.store.replace(key, value, lifetime(context, "psetex", milliseconds, 1))
    return OK


@command("GETSET key value")
def getset(context: Context, key: bytes, value: bytes) -> Reply:
    """Set a key and return the value it had."""
    old = context.store.read(key, bytes)
    context.store.replace(key, value)
    return old


@command("GETDEL key")
def getdel(context: Context, key: bytes) -> Reply:
    """Delete a key and return the value it had."""
    old = context.store.read(key, bytes)
    context.store.delete(key)
    return old


@command("APPEND key value")
def append(context: Context, key: bytes, value: bytes) -> Reply:
    """Add to the end of a value and return its new length."""
    joined = (context.store.read(key, bytes) or b"") + value
    if len(joined) > context.settings.max_message:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    context.store.write(key, joined)
    return len(joined)


@command("STRLEN key")
def strlen(context: Context, key: bytes) -> Reply:
    """The length of a value in bytes."""
    return len(context.store.read(key, bytes) or b"")


@command("MGET key [key ...]")
def mget(context: Context, *keys: bytes) -> Reply:
    """The values of several keys."""
    return context.store.strings(keys)


@command("MSET key value [key value ...]")
def mset(context: Context, *pairs: bytes) -> Reply:
    """Set several keys at once."""
    if len(pairs) % 2:
        raise wrong_arity(b"mset")
    for key, value in zip(pairs[::2], pairs[1::2]):
        context.store.replace(key, value)
    return OK


def _increment(context: Context, key: bytes, by: int) -> Reply:
    value = context.store.read(key, bytes)
    number = (0 if value is None else parse_integer(value)) + by
    if not INTEGER_MIN <= number <= INTEGER_MAX:
        raise CommandError(OVERFLOW)
    context.store.write(key, b"%d" % number)
    return number


@command("INCR key")
def incr(context: Context, key: bytes) -> Reply:
    """Add 1 to a counter and return it."""
    return _increment(context, key, 1)


@command("DECR key")
def decr(context: Context, key: bytes) -> Reply:
    """Take 1 from a counter and return it."""
    return _increment(context, key, -1)


@command("INCRBY key increment")
def incrby(context: Context, key: bytes, increment: bytes) -> Reply:
    """Add to a counter and return it."""
    return _increment(context, key, parse_integer(increment))


@command("DECRBY key decrement")
def decrby(context: Context, key: bytes, decrement: bytes) -> Reply:
    """Take from a counter and return it."""
    by = parse_integer(decrement)
    if by == INTEGER_MIN:
        raise CommandError("ERR decrement would overflow")
    return _increment(context, key, -by)


# Keys


@command("DEL key [key ...]")
def del_(context: Context, *keys: bytes) -> Reply:
    """Delete keys and return how many there were."""
    return sum(map(context.store.delete, keys))


@command("EXISTS key [key ...]")
def exists(context: Context, *keys: bytes) -> Reply:
    """How many of the keys exist."""
    return sum(key in context.store for key in keys)


@command("KEYS pattern")
def keys(context: Context, pattern: bytes) -> Reply:
    """The keys that match a pattern such as user:*."""
    everything = context.store.keys()
    return everything if pattern == b"*" else list(filter(glob(pattern), everything))


@command("EXPIRE key seconds")
def expire(context: Context, key: bytes, seconds: bytes) -> Reply:
    """Give a key a time to live: 1 if done, 0 if there is no such key."""
    deadline = deadline_after(context, "expire", seconds, 1000)
    if key not in context.store:
        return 0
    if deadline <= context.store.now():
        context.store.delete(key)
    else:
        context.store.set_deadline(key, deadline)
    return 1


@command("TTL key")
def ttl(context: Context, key: bytes) -> Reply:
    """The seconds a key has left, -1 without a time to live, -2 without the key."""
    if key not in context.store:
        return -2
    deadline = context.store.deadline(key)
    return -1 if deadline is None else (deadline - context.store.now() + 500) // 1000


@command("PERSIST key")
def persist(context: Context, key: bytes) -> Reply:
    """Take away a key's time to live: 1 if it had one."""
    return int(context.store.persist(key))


# Server and connection


@command("PING [message]")
def ping(context: Context, message: bytes = PONG) -> Reply:
    """PONG, or the message."""
    return message


@command("ECHO message")
def echo(context: Context, message: bytes) -> Reply:
    """The message."""
    return message


@command("HELLO [protover] [AUTH username password] [SETNAME clientname]")
def hello(context: Context, *options: bytes) -> Reply:
    """Choose the version of RESP, 2 or 3, and be told about the server."""
    protocol, name = context.protocol, None
    if options:
        if not _INTEGER.fullmatch(options[0]):
            raise CommandError("ERR Protocol version is not an integer or out of range")
        protocol = int(options[0])
        if protocol not in (2, 3):
            raise CommandError("NOPROTO unsupported protocol version")
    words = iter(options[1:])
    for word in words:
        values = list(itertools.islice(words, {b"AUTH": 2, b"SETNAME": 1}.get(word.upper(), 0)))
        if word.upper() == b"AUTH" and len(values) == 2:
            auth(context, *values)
        elif word.upper() == b"SETNAME" and values:
            name = _client_name("Client names", values[0])
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{_shown(word)}'")
    context.protocol = protocol
    if name is not None:
        context.names["name"] = name
    return {
        b"server": b"redis",
        b"version": REDIS_VERSION.encode(),
        b"proto": protocol,
        b"id": context.id,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }


@command("AUTH [username] password")
def auth(context: Context, *credentials: bytes) -> Reply:
    """Give a password; there is none, so nobody but the user default needs to."""
    if len(credentials) == 1:
        raise CommandError(
            "ERR AUTH <password> called without any password configured for the default user."
            " Are you sure your configuration is correct?"
        )
    if credentials[0] != b"default":
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
    return OK


@command("SELECT index")
def select_(context: Context, index: bytes) -> Reply:
    """Choose a database; there is one, 0."""
    if parse_integer(index) != 0:
        raise CommandError("ERR DB index is out of range")
    return OK


@command("RESET")
def reset(context: Context) -> Reply:
    """Put the connection back as it was when it was opened."""
    context.protocol = 2
    context.names.pop("name", None)
    return Status(b"RESET")


def _client_name(what: str, name: bytes) -> str:
    if any(not 0x21 <= char <= 0x7E for char in name):
        raise CommandError(f"ERR {what} cannot contain spaces, newlines or special characters.")
    return name.decode("ascii")


def _describe(context: Context) -> str:
    facts = {
        "id": context.id,
        "name": context.names.get("name", ""),
        "age": int(time.monotonic() - context.connected),
        "db": 0,
        "user": "default",
        "resp": context.protocol,
        "lib-name": context.names.get("lib-name", ""),
        "lib-ver": context.names.get("lib-ver", ""),
    }
    return " ".join(f"{name}={value}" for name, value in facts.items()) + "\n"


@command("CLIENT ID")
def client_id(context: Context) -> Reply:
    """The number of this connection."""
    return context.id


@command("CLIENT GETNAME")
def client_getname(context: Context) -> Reply:
    """The name the client has given itself."""
    name = context.names.get("name")
    return name.encode() if name else None


@command("CLIENT SETNAME name")
def client_setname(context: Context, name: bytes) -> Reply:
    """Give the connection a name."""
    context.names["name"] = _client_name("Client names", name)
    return OK


@command("CLIENT SETINFO attribute value")
def client_setinfo(context: Context, attribute: bytes, value: bytes) -> Reply:
    """Name the library that is used, LIB-NAME or LIB-VER."""
    what = attribute.decode("latin-1").lower()
    if what not in ("lib-name", "lib-ver"):
        raise CommandError(f"ERR Unrecognized option '{_shown(attribute)}'")
    context.names[what] = _client_name(what, value)
    return OK


@command("CLIENT INFO")
def client_info(context: Context) -> Reply:
    """What is known of this connection."""
    return Verbatim(_describe(context).encode())


@command("CLIENT LIST")
def client_list(context: Context) -> Reply:
    """What is known of each connection, one a line."""
    return Verbatim("".join(map(_describe, context.statistics.clients.values())).encode())


@command("QUIT")
def quit_(context: Context) -> Reply:
    """End the connection."""
    context.closing = True
    return OK


@command("DBSIZE")
def dbsize(context: Context) -> Reply:
    """How many keys there are."""
    return len(context.store)


@command("FLUSHALL [ASYNC|SYNC]")
def flushall(context: Context, *mode: bytes) -> Reply:
    """Delete every key."""
    if len(mode) > 1 or (mode and mode[0].upper() not in (b"ASYNC", b"SYNC")):
        raise CommandError(SYNTAX_ERROR)
    context.store.clear()
    return OK


@command("INFO [section ...]")
def info(context: Context, *sections: bytes) -> Reply:
    """The state of the server, all of it or the sections named."""
    wanted = {section.decode("latin-1").lower() for section in sections}
    if not wanted or wanted & {"all", "default", "everything"}:
        wanted = {title.lower() for title, _ in _INFO_SECTIONS}
    blocks = []
    for title, facts in _INFO_SECTIONS:
        if title.lower() in wanted:
            lines = [f"{name}:{value}\r\n" for name, value in facts(context).items()]
            blocks.append(f"# {title}\r\n" + "".join(lines))
    return Verbatim("\r\n".join(blocks).encode("utf-8", "replace"))


def _server_facts(context: Context) -> dict[str, object]:
    uptime = int(time.monotonic() - context.statistics.started)
    return {
        "redis_version": REDIS_VERSION,
        "redis_mode": "standalone",
        "pipecache_version": __version__,
        "python_version": ".".join(map(str, sys.version_info[:3])),
        "os": sys.platform,
        "arch_bits": struct.calcsize("P") * 8,
        "process_id": os.getpid(),
        "address": context.statistics.address,
        "uptime_in_seconds": uptime,
        "uptime_in_days": uptime // 86400,
    }


def _client_facts(context: Context) -> dict[str, object]:
    return {
        "connected_clients": len(context.statistics.clients),
        "maxclients": context.settings.max_clients,
        "max_message_bytes": context.settings.max_message,
    }


def _stats_facts(context: Context) -> dict[str, object]:
    return {
        "total_connections_received": context.statistics.connections,
        "total_commands_processed": context.statistics.commands,
        "expired_keys": context.store.expired,
    }


def _keyspace_facts(context: Context) -> dict[str, object]:
    if not len(context.store):
        return {}
    return {"db0": f"keys={len(context.store)},expires={context.store.expiring}"}


_INFO_SECTIONS: tuple[tuple[str, Callable[[Context], dict[str, object]]], ...] = (
    ("Server", _server_facts),
    ("Clients", _client_facts),
    ("Stats", _stats_facts),
    ("Keyspace", _keyspace_facts),
)


@command("HELP [command]")
def help_(context: Context, name: bytes | None = None) -> Reply:
    """The commands, or how one is used."""
    chosen = list(dict.fromkeys(COMMANDS.values()))
    if name is not None:
        wanted = _shown(name[:ERROR_EXCERPT]).upper()
        chosen = [entry for entry in chosen if entry.name.split()[0] == wanted]
        if not chosen:
            raise CommandError(f"ERR no command '{wanted}'; HELP lists them all")
    return [Status(f"{entry.usage} - {entry.summary}".encode()) for entry in chosen]


# ----------------------------------------------------------------------------
# Win32 API
# ----------------------------------------------------------------------------

if sys.platform == "win32":
    ERROR_ACCESS_DENIED = 5
    ERROR_BROKEN_PIPE = 109
    ERROR_SEM_TIMEOUT = 121
    ERROR_NO_DATA = 232
    ERROR_PIPE_NOT_CONNECTED = 233
    ERROR_MORE_DATA = 234
    ERROR_PIPE_CONNECTED = 535
    ERROR_IO_PENDING = 997

    PIPE_ACCESS_DUPLEX = 0x00000003
    FILE_FLAG_FIRST_PIPE_INSTANCE = 0x00080000
    FILE_FLAG_OVERLAPPED = 0x40000000
    PIPE_TYPE_MESSAGE = 0x00000004
    PIPE_READMODE_MESSAGE = 0x00000002
    PIPE_REJECT_REMOTE_CLIENTS = 0x00000008
    PIPE_UNLIMITED_INSTANCES = 255
    NMPWAIT_NOWAIT = 0x00000001

    STATUS_SUCCESS = 0x00000000
    STATUS_BUFFER_OVERFLOW = 0x80000005
    WAIT_OBJECT_0 = 0x00000000
    INFINITE = 0xFFFFFFFF
    TOKEN_QUERY = 0x0008
    TOKEN_USER_CLASS = 1
    SDDL_REVISION_1 = 1
    INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value

    class OVERLAPPED(ctypes.Structure):
        _fields_ = (
            ("Internal", ctypes.c_size_t),
            ("InternalHigh", ctypes.c_size_t),
            ("Offset", wintypes.DWORD),
            ("OffsetHigh", wintypes.DWORD),
            ("hEvent", wintypes.HANDLE),
        )

    class SECURITY_ATTRIBUTES(ctypes.Structure):
        _fields_ = (
            ("nLength", wintypes.DWORD),
            ("lpSecurityDescriptor", wintypes.LPVOID),
            ("bInheritHandle", wintypes.BOOL),
        )

    def _true(result: int, function: Any, arguments: Any) -> int:
        if not result:
            raise ctypes.WinError(ctypes.get_last_error())
        return result

    def _valid_handle(result: int, function: Any, arguments: Any) -> int:
        if result == INVALID_HANDLE_VALUE:
            raise ctypes.WinError(ctypes.get_last_error())
        return result

    def _bind(library: Any, name: str, restype: Any, errcheck: Any, *argtypes: Any) -> Any:
        function = getattr(library, name)
        function.restype = restype
        if errcheck is not None:
            function.errcheck = errcheck
        function.argtypes = argtypes
        return function

    # Library objects of one's own: prototypes set on ctypes.windll are everybody's.
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)

    # Prototypes as Microsoft's pages give them. The functions of the second group end in the
    # ordinary course with ERROR_IO_PENDING, ERROR_MORE_DATA and the like, so their callers look at
    # the error themselves.
    HANDLE, DWORD, BOOL, LPVOID = wintypes.HANDLE, wintypes.DWORD, wintypes.BOOL, wintypes.LPVOID
    LPDWORD, LPOVERLAPPED = wintypes.LPDWORD, ctypes.POINTER(OVERLAPPED)

    # fmt: off
    CreateNamedPipeW = _bind(
        _kernel32, "CreateNamedPipeW", HANDLE, _valid_handle,
        wintypes.LPCWSTR,  # lpName
        DWORD,  # dwOpenMode
        DWORD,  # dwPipeMode
        DWORD,  # nMaxInstances
        DWORD,  # nOutBufferSize
        DWORD,  # nInBufferSize
        DWORD,  # nDefaultTimeOut
        ctypes.POINTER(SECURITY_ATTRIBUTES),  # lpSecurityAttributes
    )
    DisconnectNamedPipe = _bind(_kernel32, "DisconnectNamedPipe", BOOL, _true, HANDLE)
    CreateEventW = _bind(
        _kernel32, "CreateEventW", HANDLE, _true, LPVOID, BOOL, BOOL, wintypes.LPCWSTR
    )
    SetEvent = _bind(_kernel32, "SetEvent", BOOL, _true, HANDLE)
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
    ConvertStringSecurityDescriptorToSecurityDescriptorW = _bind(
        _advapi32, "ConvertStringSecurityDescriptorToSecurityDescriptorW", BOOL, _true,
        wintypes.LPCWSTR, DWORD, ctypes.POINTER(LPVOID), LPDWORD,
    )

    WaitNamedPipeW = _bind(_kernel32, "WaitNamedPipeW", BOOL, None, wintypes.LPCWSTR, DWORD)
    ConnectNamedPipe = _bind(_kernel32, "ConnectNamedPipe", BOOL, None, HANDLE, LPOVERLAPPED)
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
    WaitForMultipleObjects = _bind(
        _kernel32, "WaitForMultipleObjects", DWORD, None, DWORD, LPVOID, BOOL, DWORD
    )
    # fmt: on

    def current_user_sid() -> str:
        """The security identifier of the account this process runs as, ``S-1-5-...``.

        :raises OSError: if Windows does not tell.
        """
        token = wintypes.HANDLE()
        OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, ctypes.byref(token))
        try:
            # TOKEN_USER: a pointer to the SID, then the SID, which has 68 bytes at most.
            user = (ctypes.c_void_p * 32)()
            length = wintypes.DWORD()
            GetTokenInformation(
                token, TOKEN_USER_CLASS, user, ctypes.sizeof(user), ctypes.byref(length)
            )
            text = wintypes.LPVOID()
            ConvertSidToStringSidW(user[0], ctypes.byref(text))
            try:
                return ctypes.wstring_at(text.value or 0)
            finally:
                LocalFree(text)
        finally:
            CloseHandle(token)

    def security_attributes(sddl: str) -> SECURITY_ATTRIBUTES:
        """Attributes with the descriptor that an SDDL string describes; free it with LocalFree.

        :raises OSError: if the string is not one.
        """
        descriptor = wintypes.LPVOID()
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            sddl, SDDL_REVISION_1, ctypes.byref(descriptor), None
        )
        return SECURITY_ATTRIBUTES(ctypes.sizeof(SECURITY_ATTRIBUTES), descriptor, False)

    def milliseconds(timeout: float | None) -> int:
        """A time limit in seconds as Win32 takes it; None is none."""
        return INFINITE if timeout is None else min(math.ceil(max(timeout, 0) * 1000), INFINITE - 1)


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


class Connection:
    """One client, as seen by the thread that serves it.

    That thread alone calls :meth:`receive`, :meth:`wait`, :meth:`send` and
    :meth:`close`; the other methods may be called from any thread, at any
    time, and do nothing once the connection is closed. (Windows cancels what
    a thread has begun to read when that thread ends.)
    """

    #: Whether a text command is one message, rather than a line.
    framed = False
    #: Whether the chunk last received is, or ends, a message.
    end_of_message = True

    def __init__(self) -> None:
        # Chunks that came while a reply was not taken, each with its end_of_message.
        self._backlog: collections.deque[tuple[bytes, bool]] = collections.deque()
        self._backlog_size = 0
        self._lock = threading.Lock()
        self._closed = False

    def receive(self) -> bytes | None:
        """The next chunk; b"" for an empty message; None when no more will come."""
        raise NotImplementedError

    def wait(self, timeout: float | None) -> bool:
        """Wait until receive() would return at once (True), or wake() or the time-out (False)."""
        raise NotImplementedError

    def send(self, data: bytes, whole: bool = True) -> None:
        """Send bytes; on a pipe as one message, unless ``whole`` is false.

        While the client does not take it, what the client sends is kept for receive(), up to
        BACKLOG bytes: one that sends many commands before it reads a reply would else wait for
        the server, which waits for it.

        :raises ConnectionLost: if the client is gone, or does not take it within SEND_TIMEOUT.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the connection; what was sent can still be read by the client. Again is harmless."""
        raise NotImplementedError

    def wake(self) -> None:
        """End the wait() under way, or the next one."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Let the receive() under way, and every later one, return None."""
        raise NotImplementedError

    def abort(self) -> None:
        """Interrupt, and let a send() under way fail too."""
        raise NotImplementedError

    def _keep(self, chunk: bytes) -> None:
        self._backlog.append((chunk, self.end_of_message))
        self._backlog_size += len(chunk) + CHUNK_OVERHEAD

    def _kept(self) -> bytes:
        chunk, self.end_of_message = self._backlog.popleft()
        self._backlog_size -= len(chunk) + CHUNK_OVERHEAD
        return chunk


class Listener:
    """Where clients connect. accept() may be called by several threads at once."""

    def __init__(self, address: str) -> None:
        self.address = address

    def accept(self) -> Connection | None:
        """The next client, or None after interrupt().

        :raises OSError: if the system cannot give what a connection needs just now.
        """
        raise NotImplementedError

    def interrupt(self) -> None:
        """Let every accept(), under way or to come, return None. From any thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the name free. Only when no thread is in accept() any more."""
        raise NotImplementedError


def _reply_not_taken() -> str:
    return f"the client did not take its reply within {SEND_TIMEOUT:g} s"


def _in_use(address: str) -> str:
    return f"{address} is served by another program already; stop that one or choose another name"


if sys.platform == "win32":

    class _PipeInstance:
        # One server end of the pipe, with what its operations need: kept from client to client.

        def __init__(self, handle: int) -> None:
            self.handle = handle
            self.reading = OVERLAPPED()
            self.writing = OVERLAPPED()
            self.wake = None
            try:
                self.reading.hEvent = CreateEventW(None, True, False, None)
                self.writing.hEvent = CreateEventW(None, True, False, None)
                self.wake = CreateEventW(None, False, False, None)
            except BaseException:
                self.close()
                raise

        def cancel(self, overlapped: OVERLAPPED) -> bool:
            """End an operation, and tell whether it was done before that."""
            CancelIoEx(self.handle, ctypes.byref(overlapped))
            # Until this has returned, the system may write to the buffer and the structure.
            count = wintypes.DWORD()
            done = GetOverlappedResult(
                self.handle, ctypes.byref(overlapped), ctypes.byref(count), True
            )
            return bool(done)

        def close(self) -> None:
            for handle in (self.handle, self.reading.hEvent, self.writing.hEvent, self.wake):
                if handle:
                    CloseHandle(handle)

    class PipeConnection(Connection):
        """A client of a named pipe."""

        framed = True

        def __init__(self, instance: _PipeInstance, listener: PipeListener) -> None:
            super().__init__()
            self._instance = instance
            self._listener = listener
            self._handle = instance.handle
            self._reading = ctypes.byref(instance.reading)
            self._writing = ctypes.byref(instance.writing)
            self._read_or_wake = (wintypes.HANDLE * 2)(instance.reading.hEvent, instance.wake)
            self._write_or_read = (wintypes.HANDLE * 2)(
                instance.writing.hEvent, instance.reading.hEvent
            )
            self._counted = ctypes.byref(wintypes.DWORD())
            self._buffer = ctypes.create_string_buffer(CHUNK_SIZE)
            self._view = memoryview(self._buffer)
            self._begun = False  # a ReadFile was called whose outcome was not fetched yet
            self._gone = False
            self._interrupted = False
            self._aborted = False

        def receive(self) -> bytes | None:
            if self._backlog:
                return self._kept()
            while not self._wait(INFINITE):
                if self._interrupted:
                    return None
            return self._finish_read()

        def wait(self, timeout: float | None) -> bool:
            return bool(self._backlog) or self._wait(milliseconds(timeout)) or self._interrupted

        def _wait(self, timeout: int) -> bool:
            if self._interrupted:
                return False
            if self._begin_read():
                return True
            which = WaitForMultipleObjects(2, self._read_or_wake, False, timeout)
            return bool(which == WAIT_OBJECT_0)

        def _begin_read(self) -> bool:
            # Whether there is an outcome already.
            if self._begun or self._gone:
                return self._gone
            self._begun = True
            if ReadFile(self._handle, self._buffer, CHUNK_SIZE, None, self._reading):
                return True
            error = ctypes.get_last_error()
            if error == ERROR_IO_PENDING:
                return False
            self._gone = error != ERROR_MORE_DATA
            self._begun = not self._gone
            return True

        def _finish_read(self) -> bytes | None:
            if self._gone:
                return None
            self._begun = False
            # GetOverlappedResult looks at the same two fields, but as a foreign call it hands the
            # interpreter to another thread.
            operation = self._instance.reading
            status = operation.Internal & 0xFFFFFFFF
            self.end_of_message = status == STATUS_SUCCESS
            if status not in (STATUS_SUCCESS, STATUS_BUFFER_OVERFLOW):
                self._gone = True
                return None
            return self._view[: operation.InternalHigh].tobytes()

        def send(self, data: bytes, whole: bool = True) -> None:
            if whole or len(data) <= PIECE_SIZE:
                self._write(data)
            else:
                for start in range(0, len(data), PIECE_SIZE):
                    self._write(data[start : start + PIECE_SIZE])

        def _write(self, data: bytes) -> None:
            if self._aborted:
                raise ConnectionLost("the server is stopping")
            if WriteFile(self._handle, data, len(data), None, self._writing):
                return
            error = ctypes.get_last_error()
            if error == ERROR_IO_PENDING:
                self._wait_until_written()
                if GetOverlappedResult(self._handle, self._writing, self._counted, False):
                    return
                error = ctypes.get_last_error()
            self._gone = error in (ERROR_BROKEN_PIPE, ERROR_NO_DATA, ERROR_PIPE_NOT_CONNECTED)
            what = "the client is gone" if self._gone else f"a reply of {len(data)} bytes failed"
            raise ConnectionLost(f"{what}: {ctypes.FormatError(error).strip()}")

        def _wait_until_written(self) -> None:
            deadline = time.monotonic() + SEND_TIMEOUT
            while True:
                watched = 1
                if self._backlog_size < BACKLOG and not self._gone:
                    self._begin_read()
                    watched += not self._gone
                left = milliseconds(deadline - time.monotonic())
                which = WaitForMultipleObjects(watched, self._write_or_read, False, left)
                if which == WAIT_OBJECT_0:
                    return
                if which == WAIT_OBJECT_0 + 1:
                    chunk = self._finish_read()
                    if chunk is not None:
                        self._keep(chunk)
                elif self._instance.cancel(self._instance.writing):
                    return
                else:
                    raise ConnectionLost(_reply_not_taken())

        def close(self) -> None:
            with self._lock:
                if self._closed:
                    return
                self._closed = True
            if self._begun:
                self._instance.cancel(self._instance.reading)
            self._listener.take_back(self._instance, disconnected=self._gone)

        def wake(self) -> None:
            with self._lock:
                if not self._closed:
                    SetEvent(self._instance.wake)

        def interrupt(self) -> None:
            self._interrupted = True
            self.wake()

        def abort(self) -> None:
            self._aborted = True
            self.interrupt()
            with self._lock:
                if not self._closed:
                    CancelIoEx(self._handle, self._writing)

    class PipeListener(Listener):
        """A named pipe for one user's account and SYSTEM, on this machine alone.

        :raises AddressInUse: if another program serves this name.
        :raises TransportError: if the pipe cannot be made, or not be made safe.
        """

        def __init__(self, address: str) -> None:
            super().__init__(address)
            self._lock = threading.Lock()
            self._interrupted = False
            self._idle: list[_PipeInstance] = []
            try:
                sid = current_user_sid()
                self._security = security_attributes(
                    f"O:{sid}G:{sid}D:P(A;;GA;;;SY)(A;;GA;;;{sid})"
                )
            except OSError as error:
                raise TransportError(
                    f"Cannot restrict {address} to this user, so it is not opened: {error}"
                ) from error
            self._interruption = CreateEventW(None, True, False, None)
            try:
                self._idle.append(self._create_first())
            except BaseException:
                self.close()
                raise

        def _create_first(self) -> _PipeInstance:
            # FILE_FLAG_FIRST_PIPE_INSTANCE is the guard; Wine ignores it, so look first.
            taken = WaitNamedPipeW(self.address, NMPWAIT_NOWAIT)
            if taken or ctypes.get_last_error() == ERROR_SEM_TIMEOUT:
                raise AddressInUse(_in_use(self.address))
            try:
                return _PipeInstance(self._create(FILE_FLAG_FIRST_PIPE_INSTANCE))
            except OSError as error:
                if error.winerror == ERROR_ACCESS_DENIED:
                    raise AddressInUse(_in_use(self.address)) from None
                raise TransportError(f"Cannot serve {self.address}: {error}") from error

        def _create(self, first: int = 0) -> int:
            handle: int = CreateNamedPipeW(
                self.address,
                PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | first,
                PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | PIPE_REJECT_REMOTE_CLIENTS,
                PIPE_UNLIMITED_INSTANCES,
                CHUNK_SIZE,
                CHUNK_SIZE,
                0,
                ctypes.byref(self._security),
            )
            return handle

        def accept(self) -> Connection | None:
            while True:
                with self._lock:
                    if self._interrupted:
                        return None
                    instance = self._idle.pop() if self._idle else None
                if instance is None:
                    instance = _PipeInstance(self._create())
                if self._connect(instance):
                    return PipeConnection(instance, self)
                self.take_back(instance, disconnected=True)

        def _connect(self, instance: _PipeInstance) -> bool:
            overlapped = instance.reading
            if ConnectNamedPipe(instance.handle, ctypes.byref(overlapped)):
                return True
            error = ctypes.get_last_error()
            if error == ERROR_IO_PENDING:
                either = (wintypes.HANDLE * 2)(overlapped.hEvent, self._interruption)
                WaitForMultipleObjects(2, either, False, INFINITE)
                return instance.cancel(overlapped)
            # ERROR_NO_DATA: the client has left already.
            return bool(error == ERROR_PIPE_CONNECTED)

        def take_back(self, instance: _PipeInstance, *, disconnected: bool) -> None:
            """Make an instance ready for the next client.

            :param disconnected: whether the client has closed its end. While it has not, its
                handle must not be disconnected: that throws away what it has not read yet.
            """
            with self._lock:
                if self._interrupted:
                    instance.close()
                    return
            if disconnected:
                DisconnectNamedPipe(instance.handle)
            else:
                # The next instance before the last is closed: the name is never free for others.
                try:
                    fresh = self._create()
                except OSError:
                    instance.close()
                    raise
                CloseHandle(instance.handle)
                instance.handle = fresh
            with self._lock:
                self._idle.append(instance)

        def interrupt(self) -> None:
            with self._lock:
                self._interrupted = True
                idle, self._idle = self._idle, []
            SetEvent(self._interruption)
            for instance in idle:
                instance.close()

        def close(self) -> None:
            for instance in self._idle:
                instance.close()
            CloseHandle(self._interruption)
            LocalFree(self._security.lpSecurityDescriptor)

    make_listener: Callable[[str], Listener] = PipeListener

else:

    class UnixConnection(Connection):
        """A client of a Unix domain socket."""

        def __init__(self, client: socket.socket) -> None:
            super().__init__()
            self._socket = client
            self._woken = False
            self._ended = False  # the client sends no more
            self._waker: tuple[socket.socket, socket.socket] | None = None

        def receive(self) -> bytes | None:
            if self._backlog:
                return self._kept()
            try:
                return self._socket.recv(CHUNK_SIZE) or None
            except OSError as error:
                log.debug("Receiving failed: %s", error)
                return None

        def wait(self, timeout: float | None) -> bool:
            with self._lock:
                if self._waker is None:
                    self._waker = socket.socketpair()
                    if self._woken:
                        self._waker[1].send(b"\0")
                waker = self._waker[0]
            if self._backlog:
                return True
            ready = self._poll({self._socket: select.POLLIN, waker: select.POLLIN}, timeout)
            if waker in ready:
                with self._lock:
                    waker.recv(1)
                    self._woken = False
            return self._socket in ready

        def send(self, data: bytes, whole: bool = True) -> None:
            try:
                sent = self._socket.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise ConnectionLost(f"the client is gone: {error}") from error
            if sent < len(data):
                self._send_slowly(memoryview(data)[sent:])

        def _send_slowly(self, data: memoryview) -> None:
            deadline = time.monotonic() + SEND_TIMEOUT
            while data:
                events = select.POLLOUT
                if self._backlog_size < BACKLOG and not self._ended:
                    events |= select.POLLIN
                ready = self._poll({self._socket: events}, deadline - time.monotonic())
                if not ready:
                    raise ConnectionLost(_reply_not_taken())
                try:
                    if ready[self._socket] & events & select.POLLIN:
                        chunk = self._socket.recv(CHUNK_SIZE, socket.MSG_DONTWAIT)
                        self._ended = not chunk
                        if chunk:
                            self._keep(chunk)
                    if ready[self._socket] & ~select.POLLIN:
                        data = data[self._socket.send(data, socket.MSG_DONTWAIT) :]
                        deadline = time.monotonic() + SEND_TIMEOUT
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise ConnectionLost(f"the client is gone: {error}") from error

        def _poll(
            self, events: dict[socket.socket, int], timeout: float | None
        ) -> dict[socket.socket, int]:
            poll = select.poll()
            for each, mask in events.items():
                poll.register(each, mask)
            limit = None if timeout is None else math.ceil(max(timeout, 0) * 1000)
            happened = dict(poll.poll(limit))
            return {each: happened[each.fileno()] for each in events if each.fileno() in happened}

        def close(self) -> None:
            with self._lock:
                self._closed = True
                self._socket.close()
                for end in self._waker or ():
                    end.close()

        def wake(self) -> None:
            with self._lock:
                if self._closed or self._woken:
                    return
                self._woken = True
                if self._waker is not None:
                    self._waker[1].send(b"\0")

        def interrupt(self) -> None:
            self._shutdown(socket.SHUT_RD)

        def abort(self) -> None:
            self._shutdown(socket.SHUT_RDWR)

        def _shutdown(self, how: int) -> None:
            with self._lock, contextlib.suppress(OSError):  # not connected any more
                if not self._closed:
                    self._socket.shutdown(how)

    class UnixListener(Listener):
        """A Unix domain socket for the user alone.

        :raises AddressInUse: if another program serves this path.
        :raises TransportError: if the socket cannot be made there.
        """

        def __init__(self, address: str) -> None:
            super().__init__(address)
            self._accepting = threading.Lock()
            self._interrupted, self._interruptor = socket.socketpair()
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._inode = self._open()
            except BaseException:
                self._close_sockets()
                raise

        def _open(self) -> tuple[int, int]:
            self._remove_stale()
            try:
                self._socket.bind(self.address)
                # Nobody can connect between bind() and listen().
                os.chmod(self.address, 0o600)
                self._socket.listen(1024)
                self._socket.setblocking(False)
                made = os.lstat(self.address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUse(_in_use(self.address)) from None
                raise TransportError(f"Cannot serve {self.address}: {error}") from error
            return made.st_dev, made.st_ino

        def _remove_stale(self) -> None:
            # A server that was killed leaves its socket behind. Only one's own is removed, and only
            # when nobody answers there.
            try:
                found = os.lstat(self.address)
            except OSError:
                return
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
                raise AddressInUse(
                    f"{self.address} exists and is not a socket of this user; choose another name"
                )
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(STOP_GRACE)
                try:
                    probe.connect(self.address)
                except ConnectionRefusedError:
                    with contextlib.suppress(FileNotFoundError):
                        if os.path.samestat(found, os.lstat(self.address)):
                            os.unlink(self.address)
                    return
                except OSError as error:
                    log.debug("Probing %s: %s", self.address, error)
            raise AddressInUse(_in_use(self.address))

        def accept(self) -> Connection | None:
            # One thread at a time waits for the socket: were all of them to, each client would wake
            # them all.
            with self._accepting:
                poll = select.poll()
                poll.register(self._socket, select.POLLIN)
                poll.register(self._interrupted, select.POLLIN)
                while True:
                    if any(descriptor != self._socket.fileno() for descriptor, _ in poll.poll()):
                        return None
                    # A client may have left again since poll().
                    with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                        client, _ = self._socket.accept()
                        client.setblocking(True)
                        return UnixConnection(client)

        def interrupt(self) -> None:
            with contextlib.suppress(BlockingIOError):
                self._interruptor.setblocking(False)
                self._interruptor.send(b"\0")

        def close(self) -> None:
            self._close_sockets()
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(self.address)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.unlink(self.address)

        def _close_sockets(self) -> None:
            for end in (self._socket, self._interrupted, self._interruptor):
                end.close()

    make_listener = UnixListener


# ----------------------------------------------------------------------------
# Server: sessions, workers, start and stop
# ----------------------------------------------------------------------------


class Session:
    """One client from connecting to leaving: requests in, replies out."""

    def __init__(self, connection: Connection, context: Context) -> None:
        self.connection = connection
        self._context = context

    def run(self) -> None:
        """Serve the client until it, or the server, ends the connection.

        :raises ConnectionLost: if a reply could not be delivered.
        """
        connection = self.connection
        parser = RequestParser(connection.framed, self._context.settings.max_message)
        while not self._context.closing:
            chunk = connection.receive()
            if chunk is None:
                return
            requests = parser.feed(chunk, connection.end_of_message)
            if requests:
                self._answer(requests)

    def _answer(self, requests: list[Request]) -> None:
        context = self._context
        done = 0
        while done < len(requests) and not context.closing:
            output = []
            size = 0
            # The lock once a turn rather than once a command, and one message for all replies.
            with context.store.lock:
                for arguments, terminator in requests[done : done + TURN_COMMANDS]:
                    if isinstance(arguments, list):
                        reply = execute(context, arguments)
                    else:
                        reply = arguments
                        if isinstance(arguments, ProtocolError):
                            log.warning(
                                "Closing a connection: %s", str(arguments).partition(" ")[2]
                            )
                            context.closing = True
                    if terminator is None:
                        data = encode_resp(reply, context.protocol)
                    else:
                        data = encode_text(reply, terminator)
                    output.append(data)
                    size += len(data)
                    if size > TURN_BYTES or context.closing:
                        break
                context.statistics.commands += len(output)
            done += len(output)
            # Only RESP is a stream; a text client wants its reply in one message.
            data = output[0] if len(output) == 1 else b"".join(output)
            self.connection.send(data, whole=terminator is not None)


class Server:
    """A pipecache server inside this process.

    :param pipe: the name of the pipe, see :func:`pipe_address`.
    :param options: see :class:`Settings`.
    :raises ValueError: for an option that cannot be used.

    As a context manager it serves on background threads between
    :meth:`start` and :meth:`stop`; :meth:`serve_forever` does both and blocks
    in between.
    """

    def __init__(self, pipe: str = DEFAULT_PIPE, **options: Any) -> None:
        self._settings = Settings(pipe, **options)
        self.address = pipe_address(pipe)
        self._store = Store()
        self._statistics = Statistics(self.address)
        self._listener: Listener | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(
            self._settings.max_clients, thread_name_prefix="pipecache"
        )
        self._process = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._sessions: set[Session] = set()
        self._workers = 0
        self._spare = 0

    def start(self) -> None:
        """Open the pipe and serve it on background threads.

        :raises AddressInUse: if another program serves the name.
        :raises TransportError: if the pipe cannot be made.
        :raises RuntimeError: if it was started before.
        """
        if self._listener is not None:
            raise RuntimeError("a Server can be started once")
        self._process = os.getpid()
        self._listener = make_listener(self.address)
        # The interpreter waits for a pool's threads before it runs atexit functions (since
        # Python 3.9), so a host program that ends without stop() would hang there.
        this = weakref.ref(self)
        getattr(threading, "_register_atexit", atexit.register)(lambda: _stop_left(this()))
        log.info(
            "Serving %s (process %d, pipecache %s, Python %d.%d)",
            self.address,
            os.getpid(),
            __version__,
            *sys.version_info[:2],
        )
        with self._lock:
            for _ in range(min(SPARE_LISTENERS, self._settings.max_clients)):
                self._add_worker()
        if not self._workers:
            self.stop()
            raise TransportError("Cannot serve: the system gives no thread")
        threading.Thread(target=self._sweep, name="pipecache-sweeper", daemon=True).start()
        log.info("Ready to accept connections")

    def stop(self) -> bool:
        """Let running commands finish, end every connection, give the name free.

        Returns within STOP_TIMEOUT seconds, whatever the clients do; False if by then a command
        had not come to its end, so that its thread and the name are still in use.
        """
        # A forked child has none of the threads, but shares the sockets with those that need them.
        if self._listener is None or self._process != os.getpid():
            return True
        with self._lock:
            first = not self._stopping.is_set()
            self._stopping.set()
        if first:
            self._end_workers(self._listener)
            self._stopped.set()
        else:
            self._stopped.wait(STOP_TIMEOUT)
        return not self._workers

    def _end_workers(self, listener: Listener) -> None:
        listener.interrupt()
        started = time.monotonic()
        with self._lock:
            # Again and again: a worker may be on its way into the call that is to be ended.
            while self._workers and time.monotonic() - started < STOP_TIMEOUT:
                late = time.monotonic() - started > STOP_GRACE
                for session in self._sessions:
                    if late:
                        session.connection.abort()
                    else:
                        session.connection.interrupt()
                self._changed.wait(0.1)
        if self._workers:
            log.error("Stopped, but %d clients' commands did not end", self._workers)
            return
        self._pool.shutdown()
        listener.close()
        log.info(
            "Stopped after %d commands of %d clients",
            self._statistics.commands,
            self._statistics.connections,
        )

    def serve_forever(self) -> None:
        """Start, and serve until stop() is called by another thread or an exception such as
        KeyboardInterrupt ends the wait.

        :raises AddressInUse: see :meth:`start`.
        """
        try:
            self.start()
            # In slices, because Windows does not end a longer wait for Ctrl+C.
            while not self._stopping.wait(0.25):
                pass
        finally:
            self.stop()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _add_worker(self) -> None:
        # Under self._lock, so that the worker cannot count itself out before it is counted in.
        if self._stopping.is_set():
            return
        try:
            self._pool.submit(self._work)
        except RuntimeError as error:  # the system gives no further thread
            log.error("Cannot start another worker: %s", error)
        else:
            self._workers += 1
            self._spare += 1

    def _work(self) -> None:
        # One worker: accepts a client, serves it to the end, goes back to accepting.
        try:
            while True:
                connection = self._accept()
                if connection is None:
                    return
                try:
                    self._serve(connection)
                except Exception:
                    log.exception("A connection failed")
        finally:
            with self._lock:
                self._workers -= 1
                self._spare -= 1
                self._changed.notify_all()

    def _accept(self) -> Connection | None:
        while self._listener is not None and not self._stopping.is_set():
            try:
                return self._listener.accept()
            except (OSError, MemoryError) as error:
                log.error("Cannot accept a client, trying again: %s", error)
                self._stopping.wait(0.5)
        return None

    def _serve(self, connection: Connection) -> None:
        context = Context(self._store, self._settings, self._statistics)
        session = Session(connection, context)
        with self._lock:
            self._sessions.add(session)
            self._spare -= 1
            if self._spare < SPARE_LISTENERS and self._workers < self._settings.max_clients:
                self._add_worker()
        with self._store.lock:
            context.register()
        try:
            session.run()
        except ConnectionLost as error:
            log.info("A client was dropped: %s", error)
        finally:
            with self._lock:
                self._sessions.discard(session)
                self._spare += 1
            with self._store.lock:
                context.leave()
            connection.close()

    def _sweep(self) -> None:
        while not self._stopping.wait(SWEEP_INTERVAL):
            more = True
            while more and not self._stopping.is_set():
                with self._store.lock:
                    more = self._store.sweep(SWEEP_KEYS)


def _stop_left(server: Server | None) -> None:
    if server is not None:
        server.stop()


# ----------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """A number of bytes such as ``65536``, ``64kb``, ``10mb`` or ``1gb``, in steps of 1024.

    :raises ValueError: for anything else.
    """
    match = re.fullmatch(r"(\d+)\s*([kmg]?)b?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64kb, 10mb or 1gb")
    exponent: int = " kmg".index(match[2] or " ")
    return int(match[1]) * int(1024**exponent)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipecache.py",
        allow_abbrev=False,
        description="A key-value cache on a named pipe, for the programs of one user.",
    )
    parser.add_argument(
        "--pipe", metavar="NAME", default=DEFAULT_PIPE, help="name of the pipe (%(default)s)"
    )
    parser.add_argument(
        "--max-clients",
        metavar="N",
        type=int,
        default=MAX_CLIENTS,
        help="clients served at once; one more waits (%(default)s)",
    )
    parser.add_argument(
        "--max-message",
        metavar="SIZE",
        type=_size,
        default=MAX_MESSAGE,
        help="longest command or value, such as 10mb (512mb)",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        type=str.upper,
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="DEBUG, INFO, WARNING or ERROR (%(default)s)",
    )
    parser.add_argument("--log-file", metavar="FILE", help="log there, not to the console")
    parser.add_argument("--version", action="version", version=f"pipecache {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server in the foreground until Ctrl+C.

    :param arguments: the command line, ``sys.argv[1:]`` if None.
    :returns: the exit status: 0, or 1 if the server could not start.
    """
    parser = _argument_parser()
    options = parser.parse_args(arguments)
    try:
        server = Server(
            options.pipe, max_clients=options.max_clients, max_message=options.max_message
        )
        _log_to(options.log_file, options.log_level)
    except ValueError as error:
        parser.error(str(error))
    for number in _stop_signals():
        signal.signal(number, _stop_once)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    except TransportError as error:
        log.error("%s", error)
        return 1
    if not server.stop():
        # Or the interpreter would wait for the threads that are left.
        logging.shutdown()
        os._exit(0)
    return 0


def _stop_signals() -> list[int]:
    names = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _stop_once(number: int, frame: object) -> None:
    # A second Ctrl+C would interrupt the stopping itself.
    for each in _stop_signals():
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _log_to(file: str | None, level: str) -> None:
    handler: logging.Handler
    if file is not None:
        try:
            handler = logging.FileHandler(file, encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot write --log-file {file!r}: {error.strerror}") from error
    elif sys.stderr is not None:
        handler = logging.StreamHandler()
    else:  # pythonw.exe has no console
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
