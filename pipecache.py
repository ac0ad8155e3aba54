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
import bisect
import codecs
import collections
import concurrent.futures
import contextlib
import errno
import fractions
import functools
import heapq
import hmac
import itertools
import logging
import math
import mmap
import operator
import os
import random
import re
import selectors
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
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)  # fmt: skip

try:
    import sqlite3
except ImportError:  # not every Python was built with it, and only --db needs it
    sqlite3 = None  # type: ignore[assignment]

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

__all__ = ["AddressInUse", "PersistenceError", "PipecacheError", "Server", "TransportError", "main"]
__version__ = "1.0.0"

log = logging.getLogger("pipecache")


# ----------------------------------------------------------------------------
# Limits and defaults
# ----------------------------------------------------------------------------

DEFAULT_PIPE = "KeyValuePipe"  #: The name of the pipe when none is given.
#: Seconds in which stop() returns, and after how many of them it stops waiting for replies.
STOP_TIMEOUT = 5.0
STOP_GRACE = 2.0
#: Workers kept waiting for clients, so that several can connect at the same moment.
SPARE_LISTENERS = 8

#: Bytes asked of the system at a time, and the quota of a pipe in each direction.
CHUNK_SIZE = 65536
#: Bytes written at once to a pipe, which Windows keeps in memory it has little of.
MAX_WRITE = 1024 * 1024
#: Bytes of further commands kept while a client waits or does not take its replies, and what each
#: chunk of them takes beside its own bytes.
MAX_INBOX = 256 * 1024 * 1024
CHUNK_OVERHEAD = 100

#: The length of the line that announces arguments in RESP, and what an argument takes beside its
#: own bytes; and what the least of replies takes.
MAX_HEADER = 65536
ARGUMENT_OVERHEAD = 48
REPLY_OVERHEAD = 6
#: Bytes of commands not carried out yet that are let in however little memory is left; and commands
#: beyond which no more are cut out of what was received until these are carried out.
MEMORY_CHECK_THRESHOLD = 1024 * 1024
MAX_PARSED_REQUESTS = 1000
#: Arguments of a command, and bytes of one, while a client has not given the password it must give.
MAX_UNAUTHENTICATED_ARGUMENTS = 10
MAX_UNAUTHENTICATED_BYTES = 16384
#: Bytes of one client's replies after which the others get a turn, and what each command counts
#: beside its reply.
TURN_BYTES = 1024 * 1024
TURN_COMMAND_BYTES = 4096
#: Seconds after which they get it in any case, and bytes after which there is a look at the clock.
TURN_TIME = 0.005
TURN_CLOCK_BYTES = 8 * TURN_COMMAND_BYTES

#: Seconds between two looks for expired keys, and keys taken away at a time.
EXPIRE_INTERVAL = 0.1
KEYS_PER_CYCLE = 1000
#: Seconds between two looks for clients whose time is over.
TIMEOUT_CHECK_INTERVAL = 0.5
#: Seconds between two writings of what was changed to the file, at most while they fail, and
#: between two looks at how much it is; and how many keys are too many to wait for longer.
SAVE_INTERVAL = 0.75
MAX_RETRY_DELAY = 10.0
DIRTY_CHECK_INTERVAL = 0.1
SAVE_AT_DIRTY_KEYS = 200_000
#: Seconds between two lines about loading or saving; after which to give up at the end, if nothing
#: more is written; and in which a file may be given up by a server that is to stop.
PROGRESS_INTERVAL = 1.0
SAVE_TIMEOUT = 30.0
FILE_LOCK_TIMEOUT = 5.0
#: Bytes of a key and its value together that the file can have.
MAX_ROW = 999_000_000
#: The values that a statement is given, and the bytes beyond which it is given no more rows;
#: bytes of what is written without a look at its size; how many statements are kept.
MAX_SQL_PARAMETERS = 999 if sqlite3 is None or sqlite3.sqlite_version_info < (3, 32) else 8000
BATCH_BYTES = 1024 * 1024
SHORT_VALUE = 1024
CACHED_STATEMENTS = 8
#: Pages of 4 KB of the log after which they go into the file: the more, the less often each of
#: them.
WAL_CHECKPOINT_PAGES = 8000
#: Keys looked at by one SCAN at most, and up to how many members HSCAN and its like give at once.
MAX_SCAN = 10_000
SCAN_ALL_BELOW = 128
LRU_SAMPLES = 5  #: Keys of which an LRU policy evicts the one not used for longest.
CLOCK_TOLERANCE = 500  #: Milliseconds by which the wall clock must be off to have been set.

M_ARENA_MAX = -8  #: Of mallopt(3).
#: Bytes of a pattern, and of those of one PSUBSCRIBE: to prepare them takes time in which nobody is
#: served.
MAX_PATTERN, MAX_PATTERNS = 4096, 16384
MAX_NUMBER = 4000  #: Bytes of a decimal number.
MAX_NAME = 1024  #: Bytes of the name that a client gives itself.
MAX_WAIT = 86400.0  #: Seconds after which a wait looks again; the system's own limit is 24 days.
MAX_SLEEP = 3600.0  #: Seconds that DEBUG SLEEP sleeps at most.
ERROR_EXCERPT = 128  #: Bytes of a command that an error message repeats.
MONITOR_EXCERPT = 1024  #: Bytes of an argument that MONITOR shows.
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1  #: The range of Redis's integers.

#: The Redis whose replies are the measure, as clients that ask for a version are told.
REDIS_VERSION = "7.0.15"

#: What gives way when memory is short: nothing, or keys (of all, or of those with a time to live)
#: that were not used for long, that chance chooses, or that expire first.
POLICIES = ("noeviction", "allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl")


#: The letters of notify-keyspace-events: A for all of the next nine; x is expired, e evicted; K and
#: E for which channels; n is a new key, m one that is asked for and missing. There are no streams
#: (t) and modules (d) here.
EVENT_CLASSES = "Ag$lshzxetdKEmn"


#: Who may connect, and how the log says it.
ACCESS_MODES = {
    "user": "this user's programs",
    "admins": "this user's programs, and those that run as administrator",
    "users": "the programs of every account of this machine",
}


def parse_size(text: str) -> int:
    """A number of bytes such as ``65536``, ``64kb``, ``10mb`` or ``1gb``, in steps of 1024.

    :raises ValueError: for anything else.
    """
    match = re.fullmatch(r"(\d{1,19})\s*([kmg]?)b?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64kb, 10mb or 1gb")
    return int(match[1]) << 10 * " kmg".index(match[2] or " ")


class Limit(NamedTuple):
    """A bound on what clients may take; ``0`` is none where the least is 0.

    The name of its entry in :data:`LIMITS` is its option and its setting.
    """

    parameter: str  #: Its name in CONFIG, Redis's where Redis has one.
    default: float
    minimum: float
    unit: str  #: ``"bytes"``, ``"seconds"``, or ``""`` for a number.
    description: str

    def parse(self, text: str) -> float:
        """The value that a text stands for.

        :raises ValueError: if there is none, or it is too small.
        """
        if self.unit == "bytes":
            value: float = parse_size(text)
        elif self.unit == "seconds":
            value = float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,3})?", text) else -1.0
        else:
            value = int(text) if re.fullmatch(r"\d{1,9}", text) else -1
        return self.check(value)

    def check(self, value: float) -> float:
        """The same value.

        :raises ValueError: if it is too small, or no number.
        """
        if not isinstance(value, (int, float)):
            raise ValueError(f"argument must be a number {f'of {self.unit}' if self.unit else ''}")
        if not self.minimum <= value <= INTEGER_MAX:
            raise ValueError(f"argument must be {self.minimum:g} or more {self.unit}".rstrip())
        return value

    def format(self, value: float) -> str:
        """As text that parse() takes."""
        return f"{value:.12g}" if self.unit == "seconds" else str(int(value))


LIMITS: dict[str, Limit] = {
    "max_clients": Limit("maxclients", 1000, 1, "", "clients served at once; one more waits"),
    "max_message": Limit(
        "proto-max-bulk-len", 512 << 20, 1024, "bytes", "longest value, or text command"
    ),
    "max_arguments": Limit("max-arguments", 1 << 20, 128, "", "arguments of one command"),
    "max_command": Limit(
        "client-query-buffer-limit", 1 << 30, 65536, "bytes", "one command, with all its arguments"
    ),
    "max_reply": Limit("max-reply", 1 << 30, 65536, "bytes", "one reply; a longer one is an error"),
    "max_memory": Limit(
        "maxmemory", 0, 0, "bytes", "keys, values, and what clients have sent and subscribed to"
    ),
    "subscriber_buffer": Limit(
        "subscriber-buffer", 8 << 20, 1, "bytes",
        "messages that a subscriber leaves lying before it is dropped",
    ),
    "idle_timeout": Limit("timeout", 0, 0, "seconds", "a client that asks for nothing is dropped"),
    "message_timeout": Limit(
        "message-timeout", 60, 0, "seconds", "to finish a command once it has begun"
    ),
    "reply_timeout": Limit(
        "reply-timeout", 30, 0.1, "seconds", "a client may leave its reply lying"
    ),
}  # fmt: skip


class Settings:
    """What one server is told when it is made.

    :param pipe: the pipe's name, see :func:`pipe_address`.
    :param access: who may connect to the pipe: one of ACCESS, or on Windows an SDDL string.
    :param policy: what happens beyond ``max_memory``, one of POLICIES.
    :param notify_keyspace_events: letters as Redis's setting of that name has them.
    :param tcp: a port of 127.0.0.1 to serve too, or None.
    :param password: what clients of that port must give by AUTH.
    :param tcp_no_password: serve that port without a password, to every account of this machine.
    :param db: the file in which everything is kept, or None: in memory alone.
    :param limits: by their names in LIMITS, in bytes, in seconds, or as a number.
    :raises ValueError: for a value that cannot be used.
    """

    # Those of LIMITS, which can be changed while the server runs, but for the first.
    max_clients: int
    max_message: int
    max_arguments: int
    max_command: int
    max_reply: int
    max_memory: int
    subscriber_buffer: int
    idle_timeout: float
    message_timeout: float
    reply_timeout: float

    def __init__(
        self, pipe: str = DEFAULT_PIPE, access: str = "user", policy: str = "noeviction",
        notify_keyspace_events: str = "", tcp: int | None = None, password: bytes | None = None,
        tcp_no_password: bool = False, db: str | None = None, **limits: float,
    ) -> None:  # fmt: skip
        for wrong, reason in (
            (
                not pipe.strip() or any(char < " " for char in pipe),
                "the pipe needs a name, without control characters",
            ),
            (
                access not in ACCESS_MODES and (sys.platform != "win32" or ":" not in access),
                f"access is for one of {', '.join(ACCESS_MODES)}, or on Windows an SDDL string",
            ),
            (policy not in POLICIES, f"the policy must be one of {', '.join(POLICIES)}"),
            (
                not set(notify_keyspace_events) <= set(EVENT_CLASSES),
                f"notify-keyspace-events is made of the letters {EVENT_CLASSES}",
            ),
            (tcp is not None and not 1 <= tcp <= 65535, "the TCP port must be from 1 to 65535"),
            (
                password is not None and (tcp is None or not password),
                "a password is for TCP, which needs a port, and cannot be empty",
            ),
            (
                tcp is not None and (password is None) != tcp_no_password,
                "every account of this machine can connect to a TCP port: it needs a password,"
                " or tcp_no_password=True",
            ),
            (db == "", "the file needs a name"),
            (db is not None and sqlite3 is None, "this Python has no sqlite3, which a file needs"),
        ):
            if wrong:
                raise ValueError(reason)
        self.pipe, self.access, self.policy = pipe, access, policy
        self.notify_keyspace_events = notify_keyspace_events
        self.tcp, self.password, self.db = tcp, password, db
        for name, value in limits.items():
            if name not in LIMITS:
                raise TypeError(f"there is no setting {name!r}")
            try:
                LIMITS[name].check(value)
            except ValueError as error:
                raise ValueError(str(error).replace("argument", name)) from None
        for name, limit in LIMITS.items():
            setattr(self, name, limits.get(name, limit.default))


# ----------------------------------------------------------------------------
# Exceptions
# ----------------------------------------------------------------------------


class PipecacheError(Exception):
    """The base of every exception this module raises of its own."""


class TransportError(PipecacheError):
    """The pipe or socket could not be made; the message says why and what to do."""


class AddressInUse(TransportError):
    """Another program serves the name already."""


class PersistenceError(PipecacheError):
    """The file cannot be read or written; the message says why and what to do."""


class ConnectionLost(PipecacheError):
    """The client is gone, or did not take its reply in time."""


class ProtocolError(PipecacheError):
    """What a client sent is not in its protocol; the connection ends after this reply."""


class CommandError(PipecacheError):
    """An error reply. ``str()`` of it is the text as Redis sends it, code first."""


def reply_too_long(most: int) -> CommandError:
    """The error in place of a reply that is longer than so many bytes."""
    reason = f"the reply is longer than max-reply, {most} bytes: ask for less at a time"
    return CommandError(f"ERR {reason}")


def wrong_arity(name: bytes) -> CommandError:
    """The error for too few or too many arguments."""
    return CommandError(f"ERR wrong number of arguments for '{_printable(name.lower())}' command")


class UnknownCommand(CommandError):
    """No command has this name; the text reply says just that."""

    def __init__(self, name: bytes, arguments: Sequence[bytes]) -> None:
        shown = ""
        for argument in arguments:
            if len(shown) >= ERROR_EXCERPT:
                break
            shown += f"'{_printable(argument[: ERROR_EXCERPT - len(shown)])}' "
        name = name[:ERROR_EXCERPT]
        super().__init__(
            f"ERR unknown command '{_printable(name)}', with args beginning with: {shown}"
        )


def invalid_expire(name: str) -> CommandError:
    """The error for a time to live that is over, or beyond 64 bits."""
    return CommandError(f"ERR invalid expire time in '{name}' command")


def _printable(data: bytes) -> str:
    # A line break inside an error would end the RESP reply it stands in. Redis stops at a NUL.
    return data.partition(b"\0")[0].decode("latin-1").replace("\r", " ").replace("\n", " ")


WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX_ERROR = "ERR syntax error"
NOT_A_FLOAT = "ERR value is not a valid float"
BAD_HASH_INTEGER = "ERR hash value is not an integer"
INTERNAL_ERROR = "ERR internal error, see the server's log"
OVERFLOW = "ERR increment or decrement would overflow"
OUT_OF_MEMORY = "OOM command not allowed when used memory > 'maxmemory'."


# ----------------------------------------------------------------------------
# Replies
# ----------------------------------------------------------------------------


class Status(bytes):
    """A status reply such as ``OK``: a simple string in RESP, bare in text."""


OK = Status(b"OK")
PONG = Status(b"PONG")
QUEUED = Status(b"QUEUED")


class Verbatim(bytes):
    """Text for a person to read, such as INFO's: RESP3 says so."""


class SetReply(List[bytes]):
    """The members of a set, in no order: RESP3 says so."""


class PairsReply(List[Any]):
    """Pairs, which RESP3 has as lists of two, and RESP2 one after the other."""


class Push(List[Any]):
    """What a client is told out of turn: RESP3 says so, and text has it in one line."""


class MultipleReplies(List[Any]):
    """Several replies to one command."""


class NullReply:
    """What is like None among replies, but not written so in RESP2."""

    def __init__(self, resp2: bytes) -> None:
        self.resp2 = resp2


#: No list where there could be one; and no reply at all, for CLIENT REPLY OFF.
NULL_ARRAY = NullReply(b"*-1\r\n")
NO_REPLY = NullReply(b"")

#: What a command returns: bytes for a value, int, float, list or dict of replies, None for
#: nothing there.
Reply = Union[
    None,
    int,
    float,
    bytes,
    Status,
    Verbatim,
    NullReply,
    PipecacheError,
    List[Any],
    Dict[bytes, Any],
]


# ----------------------------------------------------------------------------
# Wire protocol: text and RESP, without input or output
# ----------------------------------------------------------------------------


#: One command of a client: its arguments, the name first, or the error if it could not be read;
#: and what its text reply ends with, or None if the reply is to be RESP.
Request = Tuple[Union[List[bytes], CommandError, ProtocolError], Union[bytes, None]]


#: Text commands that take the rest of the message as their last argument,
#: with the number of words before it.
# fmt: off
RAW_VALUE_AFTER = {
    b"ECHO": 1, b"SET": 2, b"SETNX": 2, b"GETSET": 2, b"APPEND": 2, b"PUBLISH": 2,
    b"SETEX": 3, b"PSETEX": 3,
}
# fmt: on

# One word: quoted, or bare. A quote counts at the start of a word only (it's is a word), and
# a closing quote only before a blank or the end.
_WORD = re.compile(rb"""[ \t]*(?:"([^"]*)"(?![^ \t])|'([^']*)'(?![^ \t])|([^ \t"'][^ \t]*))""")
_BLANKS = b" \t"


def split_text(line: bytes, most: float = math.inf) -> list[bytes]:
    """Cut a text command (without its terminator) into its arguments.

    :param most: how many there may be.
    :raises CommandError: for an empty command, for unbalanced quotes, and for too many.
    """
    words: list[bytes] = []
    position, end = 0, len(line)
    before_value = math.inf
    while len(words) < before_value:
        if len(words) >= most:
            raise CommandError(f"ERR more than {most} arguments")
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


def encode_double(number: float) -> bytes:
    """A score, in as many digits as make it exact."""
    return b"%.17g" % number


def reply_size(reply: Reply) -> int:
    """The bytes that a reply takes, more or less: before it is encoded, and quickly."""
    if isinstance(reply, dict):
        return reply_size(list(reply)) + reply_size(list(reply.values()))
    if isinstance(reply, (list, tuple)):
        size = REPLY_OVERHEAD * (1 + len(reply))
        if reply and reply[0].__class__ is bytes:
            with contextlib.suppress(TypeError):
                return size + sum(map(len, reply))  # of bytes, as nearly always
        return size + sum(map(reply_size, reply))
    return REPLY_OVERHEAD + (len(reply) if isinstance(reply, bytes) else 0)


def encode_text(reply: Reply, terminator: bytes) -> bytes:
    """The text form of a reply: bare values, one list element a line, ``ERROR: ...``."""
    return _text_body(reply, terminator or b"\n") + terminator


def _text_body(reply: Reply, separator: bytes) -> bytes:
    if reply is None or isinstance(reply, NullReply):
        return b""
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, int):
        return b"%d" % reply
    if isinstance(reply, float):
        return encode_double(reply)
    if isinstance(reply, (dict, PairsReply)):
        pairs = reply.items() if isinstance(reply, dict) else reply
        reply = list(itertools.chain.from_iterable(pairs))
    if isinstance(reply, Push):
        separator = b" "
    if isinstance(reply, list):
        return separator.join(_text_body(element, separator) for element in reply)
    if isinstance(reply, UnknownCommand):
        return b"ERROR: Unknown command"
    return b"ERROR: " + str(reply).partition(" ")[2].encode("latin-1", "replace")


def encode_resp(reply: Reply, version: int = 2) -> bytes:
    """The form of a reply in version 2 or 3 of RESP."""
    if reply.__class__ is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)  # type: ignore[arg-type,str-format]
    if reply is OK:
        return b"+OK\r\n"
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
    if isinstance(reply, float):
        number = encode_double(reply)
        return b",%b\r\n" % number if version == 3 else encode_resp(number)
    if isinstance(reply, NullReply):
        return b"_\r\n" if version == 3 and reply.resp2 else reply.resp2
    if isinstance(reply, dict):
        elements = list(itertools.chain.from_iterable(reply.items()))
        header = b"%%%d\r\n" % len(reply) if version == 3 else b"*%d\r\n" % len(elements)
        return header + b"".join([encode_resp(element, version) for element in elements])
    if isinstance(reply, PairsReply):
        reply = list(map(list, reply) if version == 3 else itertools.chain.from_iterable(reply))
    if isinstance(reply, MultipleReplies):
        return b"".join([encode_resp(each, version) for each in reply])
    if isinstance(reply, list):
        elements = [
            b"$%d\r\n%b\r\n" % (len(element), element)
            if element.__class__ is bytes
            else encode_resp(element, version)
            for element in reply
        ]
        kind = _RESP3_LIST_TYPES.get(type(reply), b"*") if version == 3 else b"*"
        return b"%b%d\r\n%b" % (kind, len(reply), b"".join(elements))
    return b"-%b\r\n" % str(reply).encode("latin-1", "replace")


_RESP3_LIST_TYPES = {SetReply: b"~", Push: b">"}


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
    :param limits: what a command may take.

    After a :class:`ProtocolError` has come out as the last request, nothing
    more may be fed.
    """

    def __init__(self, message_mode: bool, limits: Settings) -> None:
        self._message_mode, self._limits = message_mode, limits
        # Commands cut out at a time. Of text, a message has one.
        self._most = math.inf if message_mode else MAX_PARSED_REQUESTS
        self._buffer = bytearray()
        self._arguments: list[bytes] = []
        self._arguments_left = 0  # arguments of the command half read
        self._bulk_length = -1  # the length of the argument under way, -1 before its header
        self._searched = 0  # bytes of the buffer known to hold no line feed
        self._speaks_resp = False
        self._size = 0  # bytes of the arguments of the command half read
        #: Bytes of memory that a command half read takes, 0 if there is none.
        self.held = 0
        #: Whether only what a password needs is read, because none was given yet.
        self.unauthenticated = False
        #: Whether there may be more in what was fed; feed nothing for that.
        self.more = False

    def feed(self, chunk: bytes, end_of_message: bool = True) -> list[Request]:
        """Take one chunk and return the requests it completes, in order."""
        requests: list[Request] = []
        self.more = False
        try:
            if self._arguments_left or self._buffer:
                # The command half read, and no further: what comes after it may go the quick way.
                self._buffer += chunk
                self._parse(requests, end_of_message, one=True)
                self._update_buffered_bytes()
                if not requests or not self._buffer or self.unauthenticated:
                    return requests
                chunk = bytes(self._buffer)
                self._buffer.clear()
                self.held = 0
            if chunk.startswith(b"*") and not self.unauthenticated:
                chunk = self._split_pipeline(chunk, requests)
                if not chunk:
                    return requests
            elif self._is_line(chunk, end_of_message):
                self._parse_line(chunk, requests)
                return requests
            self._buffer += chunk
            self._parse(requests, end_of_message)
            self._update_buffered_bytes()
            self.more = bool(self._buffer) and len(requests) >= self._most
        except ProtocolError as error:
            requests.append(self.refuse(error))
        return requests

    def refuse(self, error: ProtocolError) -> Request:
        """Give up what was read, and the request that ends in this error."""
        self._buffer.clear()
        self._arguments_left = self.held = 0
        text_terminator = b"" if self._message_mode else b"\n"
        return error, None if self._speaks_resp else text_terminator

    def _update_buffered_bytes(self) -> None:
        self.held = len(self._buffer) + (self._arguments_left > 0)
        if self._arguments_left:
            self.held += self._size + len(self._arguments) * ARGUMENT_OVERHEAD

    def _split_pipeline(self, chunk: bytes, requests: list[Request]) -> bytes:
        # The quick way for whole commands without line breaks in their arguments: one split at
        # CRLF, then each argument's length is compared with the one stated before it. At the
        # first command that does not fit, the rest is left to the exact parser.
        self._speaks_resp = True
        tokens = chunk.split(b"\r\n")
        position, last = 0, len(tokens) - 1
        width = _ARRAY_TOKENS.get(tokens[0], last)
        if width < last:
            # Nearly every pipeline is of commands with as many arguments each: all their first
            # arguments are compared at once, then all the second.
            whole = last - last % width
            columns = [tokens[first:whole:width] for first in range(2, width, 2)]
            if tokens[:whole:width] == tokens[:1] * (whole // width) and all(
                tokens[2 * number + 1 : whole : width]
                == list(map(_BULK_HEADERS.get, map(len, column)))
                for number, column in enumerate(columns)
            ):
                requests += [(list(arguments), None) for arguments in zip(*columns)]
                position = whole
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

    def _parse(self, requests: list[Request], end_of_message: bool, one: bool = False) -> None:
        buffer = self._buffer
        position = 0
        try:
            while position < len(buffer) and not (
                requests and (one or self.unauthenticated or len(requests) >= self._most)
            ):
                if self._arguments_left:
                    taken = self._parse_argument(position, requests)
                elif buffer.startswith(b"*", position):
                    taken = self._parse_array_header(position)
                else:
                    taken = self._parse_text(position, requests, end_of_message)
                    if self._message_mode and taken is not None:
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
        if size is None or size > self._limits.max_arguments:
            raise ProtocolError("ERR Protocol error: invalid multibulk length")
        if self.unauthenticated and size > MAX_UNAUTHENTICATED_ARGUMENTS:
            raise ProtocolError("ERR Protocol error: unauthenticated multibulk length")
        self._arguments_left = max(size, 0)
        self._arguments, self._size = [], 0
        return header[1]

    def _parse_argument(self, position: int, requests: list[Request]) -> int | None:
        buffer = self._buffer
        if self._bulk_length < 0:
            if buffer[position] != ord("$"):
                found = _printable(buffer[position : position + 1])
                raise ProtocolError(f"ERR Protocol error: expected '$', got '{found}'")
            header = self._header(position, "bulk")
            if header is None:
                return None
            size = _parse_length(header[0])
            if size is None or not 0 <= size <= self._limits.max_message:
                raise ProtocolError("ERR Protocol error: invalid bulk length")
            if self._size + size > self._limits.max_command:
                most = f"the limit of {self._limits.max_command} bytes"
                raise ProtocolError(f"ERR Protocol error: the command is longer than {most}")
            if self.unauthenticated and size > MAX_UNAUTHENTICATED_BYTES:
                raise ProtocolError("ERR Protocol error: unauthenticated bulk length")
            self._bulk_length = size
            return header[1]
        end = position + self._bulk_length
        if len(buffer) < end + 2:
            return None
        if buffer[end : end + 2] != b"\r\n":
            raise ProtocolError("ERR Protocol error: expected CRLF after a bulk string")
        with memoryview(buffer) as view:
            self._arguments.append(bytes(view[position:end]))
        self._size += self._bulk_length
        self._bulk_length = -1
        self._arguments_left -= 1
        if not self._arguments_left:
            requests.append((self._arguments, None))
        return end + 2

    def _parse_text(
        self, position: int, requests: list[Request], end_of_message: bool
    ) -> int | None:
        buffer = self._buffer
        if self._message_mode:
            end, complete = len(buffer), end_of_message
        else:
            end = buffer.find(b"\n", max(position, self._searched)) + 1
            complete = end > 0
            end = end or len(buffer)
            self._searched = 0 if complete else end - position
        limit = MAX_UNAUTHENTICATED_BYTES if self.unauthenticated else self._limits.max_message
        if end - position > limit + 2:
            self._speaks_resp = False
            raise ProtocolError(f"ERR the command is longer than the limit of {limit} bytes")
        if not complete:
            return None
        self._parse_line(bytes(buffer[position:end]), requests)
        return end

    def _is_line(self, chunk: bytes, end_of_message: bool) -> bool:
        # Whether a chunk is one whole text command, as nearly all of them come.
        whole = end_of_message if self._message_mode else chunk.find(b"\n") == len(chunk) - 1 >= 0
        return whole and len(chunk) <= self._limits.max_message and not self.unauthenticated

    def _parse_line(self, line: bytes, requests: list[Request]) -> None:
        terminator = b""
        if line.endswith(b"\n"):
            terminator = b"\r\n" if line.endswith(b"\r\n") else b"\n"
            line = line[: -len(terminator)]
        if self._speaks_resp and not line:
            return
        self._speaks_resp = False
        try:
            requests.append((split_text(line, self._limits.max_arguments), terminator))
        except CommandError as error:
            requests.append((error.with_traceback(None), terminator))


# ----------------------------------------------------------------------------
# Values: what a key can hold, beside bytes
# ----------------------------------------------------------------------------

# What CPython takes for things beside their bytes, to keep count of memory: a key with its place
# in the dict, a time to live, a time of use, a bytes object. The collections say what they take
# themselves, and each of their elements; and by which letter Redis tells of what happens to them.
KEY_COST = 88
DEADLINE_COST = 144
ACCESS_TIME_COST = 80
OWNER_COST = 200
BYTES_COST = 40
#: The same for a command in a transaction, a key that is watched or waited for, a subscription.
QUEUED_COST = 200
WATCH_COST = 450
SUBSCRIPTION_COST = 350


class ListValue(Deque[bytes]):
    """A list; a push or a pop at either end costs the same however long it is."""

    __slots__ = ("accounted", "data_bytes")
    EVENT_CLASS = "l"
    COST, ELEMENT_COST = 700, 45

    def __init__(self, elements: Iterable[bytes] = ()) -> None:
        super().__init__(elements)
        #: Bytes of the elements, and the cost the store has counted for this value.
        self.data_bytes = sum(map(len, self))
        self.accounted = 0

    def push(self, elements: Iterable[bytes], left: bool) -> None:
        for element in elements:
            (self.appendleft if left else self.append)(element)
            self.data_bytes += len(element)

    def pop_end(self, left: bool) -> bytes:
        element = self.popleft() if left else self.pop()
        self.data_bytes -= len(element)
        return element

    def pop_many(self, left: bool, most: int) -> list[bytes]:
        return [self.pop_end(left) for _ in range(min(most, len(self)))]

    def shrink(self) -> None:
        """Nothing is kept of what was taken away."""

    def replace_elements(self, elements: Iterable[bytes]) -> None:
        """Hold these elements instead."""
        elements = list(elements)
        self.clear()
        self.data_bytes = 0
        self.push(elements, left=False)

    def to_parts(self) -> list[bytes]:
        """What of() makes the same value from."""
        return list(self)

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> ListValue:
        """The value of such parts; here and below, ValueError if there is none."""
        return cls(parts)


class ScannableDict(Dict[bytes, Any]):
    """A dict that can be walked through in parts, and asked for any one of its keys."""

    __slots__ = ("_peak_size", "_sample", "_sample_draws", "_scan_keys")

    def __init__(self) -> None:
        super().__init__()
        self._scan_keys: list[bytes] | None = None
        self._sample: list[bytes] = []
        self._sample_draws = self._peak_size = 0

    def shrink(self) -> None:
        """Give up the memory of what was taken away, if that is most of what there was: a dict
        keeps its size however little is left in it."""
        if len(self) > self._peak_size:
            self._peak_size = len(self)
        elif 4 * len(self) < self._peak_size:
            rest = dict(self)
            self.clear()
            self.update(rest)
            self._scan_keys, self._sample, self._sample_draws = None, [], 0
            self._peak_size = len(self)

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """The next keys of a walk that begins and ends with cursor 0, and its next cursor.

        A key that is there throughout is among them. The walk goes from the last place to the
        first: a dict is in the order of insertion, so however often the places are numbered
        anew, a key only moves towards those still to be visited, and only new keys are behind.
        """
        if self._scan_keys is None or not cursor:
            self._scan_keys = list(self)
        end = min(cursor, len(self._scan_keys)) if cursor else len(self._scan_keys)
        start = max(end - count, 0)
        found = [key for key in reversed(self._scan_keys[start:end]) if key in self]
        if not start:
            self._scan_keys = None
        return start, found

    def random_key(self) -> bytes:
        """One of the keys, of which there must be one, by chance."""
        while True:
            # A list of them serves for an eighth as many draws: so long a new one may wait.
            if not self._sample_draws:
                self._sample, self._sample_draws = list(self), 1 + len(self) // 8
            self._sample_draws -= 1
            key = random.choice(self._sample)
            if key in self:
                return key


class Hash(ScannableDict):
    """A hash: values by their fields."""

    __slots__ = ("accounted", "data_bytes")
    EVENT_CLASS = "h"
    COST, ELEMENT_COST = 260, 100

    def __init__(self) -> None:
        super().__init__()
        self.data_bytes = self.accounted = 0

    def put(self, field: bytes, value: bytes = b"") -> bool:
        """Set a field and tell whether it is new."""
        old = self.get(field)
        self[field] = value
        self.data_bytes += len(value) + (len(field) if old is None else -len(old))
        return old is None

    def remove(self, field: bytes) -> bool:
        """Take a field away and tell whether it was there."""
        value = self.pop(field, None)
        if value is None:
            return False
        self.data_bytes -= len(field) + len(value)
        return True

    def copy(self) -> Any:
        duplicate = type(self)()
        duplicate.update(self)
        duplicate.data_bytes = self.data_bytes
        return duplicate

    def to_parts(self) -> list[bytes]:
        return list(itertools.chain.from_iterable(self.items()))

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> Hash:
        value = cls()
        value.update(zip(parts[::2], parts[1::2]))
        if 2 * len(value) != len(parts):
            raise ValueError("a field twice, or without a value")
        value.data_bytes = sum(map(len, parts))
        return value


class Set(Hash):
    """A set: its members are fields without a value."""

    __slots__ = ()
    EVENT_CLASS = "s"
    COST, ELEMENT_COST = 250, 66

    def to_parts(self) -> list[bytes]:
        return list(self)

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> Set:
        value = cls()
        value.update(dict.fromkeys(parts, b""))
        if len(value) != len(parts):
            raise ValueError("a member twice")
        value.data_bytes = sum(map(len, parts))
        return value


def memory_cost(value: Any) -> int:
    """The bytes that a value takes, without its key."""
    if value.__class__ is bytes:
        return BYTES_COST + len(value)
    return int(value.COST + value.data_bytes + len(value) * value.ELEMENT_COST)


def event_class(value: Any) -> str:
    """The letter by which Redis tells of what happens to values of this kind."""
    return "$" if isinstance(value, bytes) else str(value.EVENT_CLASS)


class _LastMember:
    # Greater than anything it is compared with.
    def __gt__(self, other: object) -> bool:
        return True


LAST_MEMBER = _LastMember()


class SortedSet:
    """Members in the order of their scores, and of their bytes where scores are equal."""

    __slots__ = ("_chunks", "accounted", "data_bytes", "scores")
    EVENT_CLASS = "z"
    COST, ELEMENT_COST = 440, 160
    #: Pairs in one part at most: to insert moves that many, to find a rank looks at each part.
    MAX_CHUNK = 1000

    def __init__(self) -> None:
        self.scores = ScannableDict()
        self._chunks: list[list[tuple[float, bytes]]] = [[]]
        self.data_bytes = self.accounted = 0

    def __len__(self) -> int:
        return len(self.scores)

    def put(self, member: bytes, score: float) -> None:
        """Set the score of a member, which keeps its place in a walk."""
        old = self.scores.get(member)
        if old is None:
            self.data_bytes += len(member)
        else:
            self._discard((old, member))
        self.scores[member] = score
        index = self._find_chunk((score, member))
        part = self._chunks[index]
        bisect.insort(part, (score, member))
        if len(part) > self.MAX_CHUNK:
            self._chunks.insert(index + 1, part[self.MAX_CHUNK // 2 :])
            del part[self.MAX_CHUNK // 2 :]

    def remove(self, member: bytes) -> bool:
        """Take a member away and tell whether it was there."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        self.data_bytes -= len(member)
        self._discard((score, member))
        return True

    def _discard(self, pair: tuple[float, bytes]) -> None:
        index = self._find_chunk(pair)
        part = self._chunks[index]
        del part[bisect.bisect_left(part, pair)]
        if not part and len(self._chunks) > 1:
            del self._chunks[index]

    def rank(self, pair: tuple[Any, ...]) -> int:
        """How many pairs of score and member come before this one, or before this score."""
        index = self._find_chunk(pair)
        return sum(map(len, self._chunks[:index])) + bisect.bisect_left(self._chunks[index], pair)

    def slice(self, start: int, stop: int) -> list[tuple[float, bytes]]:
        """The pairs of score and member whose ranks are from start to before stop."""
        found: list[tuple[float, bytes]] = []
        for part in self._chunks:
            if stop <= 0:
                break
            if start < len(part):
                found += part[max(start, 0) : stop]
            start -= len(part)
            stop -= len(part)
        return found

    def members(self) -> list[bytes]:
        """All of them, in their order."""
        return [member for _, member in self.slice(0, len(self))]

    def shrink(self) -> None:
        """See :meth:`Table.slim`."""
        self.scores.shrink()

    def copy(self) -> SortedSet:
        duplicate = SortedSet()
        duplicate.scores.update(self.scores)
        duplicate._chunks = [part[:] for part in self._chunks]
        duplicate.data_bytes = self.data_bytes
        return duplicate

    def to_parts(self) -> list[bytes]:
        return [*self.scores, struct.pack(f"<{len(self)}d", *self.scores.values())]

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> SortedSet:
        *members, packed = parts
        scores = [score for (score,) in struct.iter_unpack("<d", packed)]
        value = cls()
        value.scores.update(zip(members, scores))
        if not len(value) == len(members) == len(scores) or any(map(math.isnan, scores)):
            raise ValueError("a member twice, or without a score")
        pairs, half = sorted(zip(scores, members)), cls.MAX_CHUNK // 2
        value._chunks = [pairs[start : start + half] for start in range(0, len(pairs), half)]
        value.data_bytes = sum(map(len, members))
        return value

    def _find_chunk(self, pair: tuple[Any, ...]) -> int:
        # The first part that does not end before the pair, or the last one.
        low, high = 0, len(self._chunks) - 1
        while low < high:
            middle = (low + high) // 2
            if self._chunks[middle][-1] < pair:
                low = middle + 1
            else:
                high = middle
        return low


# ----------------------------------------------------------------------------
# Store: the values, their expiry, one lock
# ----------------------------------------------------------------------------

Value = TypeVar("Value")

# What a pattern of Redis is made of: a class such as [^a-z], or one character; and such a class.
_GLOB = re.compile(rb"\[(?P<negated>\^?)(?P<members>(?:\\.|[^\]]-.|[^\]])*)\]?|\\?.", re.DOTALL)
_GLOB_MEMBER = re.compile(rb"\\(.)|(.)-(.)|(.)", re.DOTALL)


@functools.lru_cache(maxsize=256)
def compile_glob(pattern: bytes) -> Callable[[bytes], object]:
    r"""Compile a pattern of Redis (``*``, ``?``, ``[a-z]``, ``[^a]``, ``\x``) to a test of a key.

    The time a test takes grows with the key's length and the pattern's, not faster: each ``*``
    takes the first place where what follows it fits, and never looks for another.

    :raises CommandError: for a pattern longer than MAX_PATTERN.
    """
    if len(pattern) > MAX_PATTERN:
        raise CommandError(f"ERR the pattern is longer than {MAX_PATTERN} bytes")
    # What stands between the stars, as regular expressions, and as it is while it is just that.
    parts, literals = [b""], [b""]
    literal = True
    for match in _GLOB.finditer(pattern):
        if match[0] == b"*":
            if parts[-1] or len(parts) == 1:  # several are as one
                parts.append(b"")
                literals.append(b"")
        elif match[0] == b"?":
            parts[-1] += b"."
            literal = False
        elif match["members"] is not None:
            parts[-1] += _glob_class(match["negated"], match["members"])
            literal = False
        else:
            parts[-1] += re.escape(match[0][-1:])
            literals[-1] += match[0][-1:]
    first, *others = parts
    if not others:
        return re.compile(first, re.DOTALL).fullmatch
    if literal:
        return functools.partial(_match_literals, literals[0], literals[1:-1], literals[-1])
    # (?=(?P<x>...))(?P=x) is an atomic group, which re has only since Python 3.11.
    middle = b"".join(
        b"(?=(?P<g%d>.*?%b))(?P=g%d)" % (number, part, number)
        for number, part in enumerate(others[:-1])
    )
    return re.compile(b"%b%b.*%b" % (first, middle, others[-1]), re.DOTALL).fullmatch


def _match_literals(first: bytes, middle: list[bytes], last: bytes, key: bytes) -> bool:
    # Whether a key is these, with anything in between.
    position, end = len(first), len(key) - len(last)
    if position > end or not (key.startswith(first) and key.endswith(last)):
        return False
    for part in middle:
        position = key.find(part, position, end) + len(part)
        if position < len(part):
            return False
    return True


def _glob_class(negated: bytes, members: bytes) -> bytes:
    ranges = b""
    for escaped, low, high, single in _GLOB_MEMBER.findall(members):
        first, last = sorted(((low or escaped or single)[0], (high or escaped or single)[0]))
        ranges += b"\\x%02x-\\x%02x" % (first, last)
    if not ranges:
        return b"." if negated else b"(?!)"
    return b"[%b%b]" % (negated, ranges)


class OrderedSets(Dict[Any, Dict[Any, None]]):
    """Members by group, in the order in which they came; a group without members is gone."""

    def add(self, group: Any, member: Any) -> None:
        self.setdefault(group, {})[member] = None

    def discard(self, group: Any, member: Any) -> None:
        members = self.get(group, {})
        members.pop(member, None)
        if not members:
            self.pop(group, None)


class WallClockDeadline(int):
    """A deadline that was given by the wall clock, and moves when that is set."""

    __slots__ = ()


class Changes(NamedTuple):
    """What happened to keys since the changes were last taken: see :meth:`Store.take_changes`."""

    cleared: bool  #: Whether every other key is gone.
    keys: list[bytes]  #: In order.
    values: list[Any]  #: Theirs: None if a key is gone, of a collection its letter and its parts.
    deadlines: list[int | None]  #: Theirs, as the store has them; empty if nothing has one.
    epoch: int  #: The milliseconds since 1970 at 0 of the store's clock.


class Watch:
    """What a client has asked to be told of: whether one of these keys was changed since."""

    __slots__ = ("broken", "keys")

    def __init__(self) -> None:
        self.broken = False
        self.keys: set[bytes] = set()

    def changed(self, key: bytes) -> None:
        """Hear that one of the keys was."""
        self.broken = True


class Keyspace:
    """Every value by its key, with expiry times beside them.

    :param clock: seconds that only ever go forward, as :func:`time.monotonic`.
    :param wall: seconds since 1970, as :func:`time.time`.

    Use it under :attr:`lock`; the methods do not take it themselves, so that
    several can be one step.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.lock = threading.RLock()
        #: Keys that expired, and that were evicted, since the start.
        self.expired = self.evicted = 0
        #: Bytes that the keys and values take; above the limit, make_room() evicts some.
        self.used_memory = self._reserved = 0
        self.memory_limit = math.inf
        self._clock, self._wall = clock, wall
        self._offset = int(wall() * 1000) - self.now()
        self._values, self._deadlines = ScannableDict(), ScannableDict()
        # The deadlines in order. A deadline that was moved or taken away stays in the heap
        # until it comes up, or until such entries are the majority.
        self._queue: list[tuple[int, bytes]] = []
        self._watches = OrderedSets()  # by key
        #: Is told of what happens to keys, while somebody wants to know: the letter that Redis has
        #: for such events, the event, the key.
        self.notify: Callable[[str, bytes, bytes], None] | None = None
        # To whom keys belong that end with him, and by owner.
        self._owners: dict[bytes, object] = {}
        self._owned = OrderedSets()
        self._policy = "noeviction"
        # When each key was last used, while the policy asks for that.
        self._access_times: dict[bytes, int] | None = None
        self._key_cost = KEY_COST
        # The keys that were changed, while somebody takes the changes; and whether all went.
        self._changed: set[bytes] | None = None
        self._cleared = False

    def __len__(self) -> int:
        return len(self._values)

    @property
    def expiring(self) -> int:
        """How many keys have a time to live."""
        return len(self._deadlines)

    def now(self) -> int:
        """The time on the store's clock in milliseconds."""
        return int(self._clock() * 1000)

    def unix_time(self, time: int) -> int:
        """The milliseconds since 1970 at this millisecond of :meth:`now`."""
        self._adjust_to_wall_clock()
        return time + self._offset

    def _adjust_to_wall_clock(self) -> None:
        # When it was set, what it gave the deadline for goes with it; elapsed time does not change.
        step = int(self._wall() * 1000) - self.now() - self._offset
        if abs(step) > CLOCK_TOLERANCE:
            self._offset += step
            for key, deadline in self._deadlines.items():
                if deadline.__class__ is WallClockDeadline:
                    self._deadlines[key] = WallClockDeadline(deadline - step)
                    heapq.heappush(self._queue, (deadline - step, key))
                elif self._changed is not None:  # in a file it stands by the clock
                    self._changed.add(key)

    def read(self, key: bytes, kind: type[Value]) -> Value | None:
        """The value of a key, or None.

        :raises CommandError: if the value is not of this kind.
        """
        if self._deadlines:
            self._expire(key)
        value = self._values.get(key)
        if value is None:
            self._notify_miss(key)
            return None
        if self._access_times is not None:
            self._access_times[key] = self.now()
        if value.__class__ is kind:
            return value  # type: ignore[no-any-return]
        raise CommandError(WRONG_TYPE)

    def read_for_write(self, key: bytes, kind: type[Value]) -> Value | None:
        """The same, for a command that changes it: to find nothing is no event."""
        return self.read(key, kind) if key in self else None

    def read_strings(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several keys, None where there is none or one of another kind."""
        if self._deadlines or self._access_times is not None or self.notify is not None:
            for key in keys:
                self.lookup(key)
        values = map(self._values.get, keys)
        return [value if value.__class__ is bytes else None for value in values]

    def lookup(self, key: bytes) -> Any:
        """The value of a key, of whatever kind, or None; counts as a use."""
        value = self.lookup_no_touch(key)
        if value is not None and self._access_times is not None:
            self._access_times[key] = self.now()
        return value

    def lookup_no_touch(self, key: bytes) -> Any:
        """The same; does not count as a use."""
        value = self.peek(key)
        if value is None:
            self._notify_miss(key)
        return value

    def peek(self, key: bytes) -> Any:
        """The same, for ourselves: nor is it an event to find nothing."""
        return self._values[key] if key in self else None

    def _notify_miss(self, key: bytes) -> None:
        if self.notify is not None:
            self.notify("m", b"keymiss", key)

    def __contains__(self, key: object) -> bool:
        return key in self._values and not (self._deadlines and self._expire(key))

    def write(self, key: bytes, value: Any, event: bytes) -> None:
        """Put a value in place of the one the key has, which keeps its time to live.

        A collection is put back so after every change of it, and goes when it is empty. The event
        is what Redis calls the change.
        """
        if self._deadlines:
            self._expire(key)
        if value.__class__ is bytes or value:
            if value.__class__ is not bytes:
                value.shrink()
            self._put(key, value)
            if self.notify is not None:
                self.notify(event_class(value), event, key)
        elif key in self._values:
            self._remove(key)
            if self.notify is not None:
                self.notify(event_class(value), event, key)
                self.notify("g", b"del", key)

    def replace(
        self, key: bytes, value: Any, deadline: int | None = None, event: bytes = b"set"
    ) -> None:
        """Set a key afresh, to expire at a deadline in milliseconds of :meth:`now`, or never."""
        if self._owners:
            self.clear_owner(key)
        if self._deadlines:
            self._expire(key)
        self._put(key, value)
        if self.notify is not None:
            self.notify(event_class(value), event, key)
        if deadline is not None:
            self.set_deadline(key, deadline)
        elif self._deadlines:
            self._clear_deadline(key)

    def _put(self, key: bytes, value: Any) -> None:
        old = self._values.get(key)
        self._values[key] = value
        if old.__class__ is bytes is value.__class__:
            self.used_memory += len(value) - len(old)  # type: ignore[arg-type]
        else:
            self._count(key, old, value)
        if self._watches:
            self._touch_watches(key)
        elif self._changed is not None:
            self._changed.add(key)
        if self._access_times is not None:
            self._access_times[key] = self.now()
        if old is None and self.notify is not None:
            self.notify("n", b"new", key)

    def _count(self, key: bytes, old: Any, value: Any) -> None:
        # A collection may be changed and put back, so what it had cost is kept with it.
        if old is None:
            self.used_memory += self._key_cost + len(key)
        elif old.__class__ is bytes:
            self.used_memory -= BYTES_COST + len(old)
        else:
            self.used_memory -= old.accounted
            old.accounted = 0
        if value is None:
            self.used_memory -= self._key_cost + len(key)
        elif value.__class__ is bytes:
            self.used_memory += BYTES_COST + len(value)
        else:
            value.accounted = memory_cost(value)
            self.used_memory += value.accounted

    def _touch_watches(self, key: bytes) -> None:
        if self._changed is not None:
            self._changed.add(key)
        for watch in self._watches.get(key, ()):
            watch.changed(key)

    def memory_usage(self, key: bytes) -> int:
        """The bytes a key takes with its value."""
        return self._key_cost + len(key) + memory_cost(self._values[key])

    def delete(self, key: bytes) -> bool:
        """Take a key away and tell whether it was there."""
        there = key in self
        self._remove(key)
        if there and self.notify is not None:
            self.notify("g", b"del", key)
        return there

    def rename(self, source: bytes, target: bytes) -> None:
        """Give a key that exists another name, in place of any other of that name."""
        if source != target:
            value, deadline = self._values[source], self._deadlines.get(source)
            owner = self._owners.get(source)
            self._remove(source)
            self._place(target, value, deadline)
            if owner is not None:
                self.set_owner(target, owner)
            if self.notify is not None:
                self.notify("g", b"rename_from", source)
                self.notify("g", b"rename_to", target)

    def copy(self, source: bytes, target: bytes) -> None:
        """Put a copy of a key that exists in place of any other of that name."""
        value = self._values[source]
        copied = value if isinstance(value, bytes) else value.copy()
        self._place(target, copied, self._deadlines.get(source))
        if self.notify is not None:
            self.notify("g", b"copy_to", target)

    def _place(self, key: bytes, value: Any, deadline: int | None) -> None:
        # What is there keeps its place in a walk; for Redis it goes, and the key is new.
        there = key in self
        if self._owners:
            self.clear_owner(key)
        self._clear_deadline(key)
        self._put(key, value)
        if there and self.notify is not None:
            self.notify("n", b"new", key)
        if deadline is not None:
            self._set_deadline(key, deadline)

    def set_owner(self, key: bytes, owner: object) -> None:
        """Let a key that exists go when its owner does: see :meth:`release`."""
        self.clear_owner(key)
        self._owners[key] = owner
        self._owned.add(owner, key)
        self.used_memory += OWNER_COST

    def count_owned(self, owner: object) -> int:
        """How many keys belong to an owner."""
        return len(self._owned.get(owner, ()))

    def delete_owned(self, owner: object) -> None:
        """Take away every key that belongs to an owner."""
        for key in list(self._owned.get(owner, ())):
            self.delete(key)

    def clear_owner(self, key: bytes) -> None:
        """Let a key belong to nobody."""
        owner = self._owners.pop(key, None)
        if owner is not None:
            self.used_memory -= OWNER_COST
            self._owned.discard(owner, key)

    def set_deadline(self, key: bytes, deadline: int) -> None:
        """Let a key that exists expire at this millisecond of :meth:`now`."""
        self._set_deadline(key, deadline)
        self._touch_watches(key)
        if self.notify is not None:
            self.notify("g", b"expire", key)

    def _set_deadline(self, key: bytes, deadline: int) -> None:
        if key not in self._deadlines:
            self.used_memory += DEADLINE_COST
        self._deadlines[key] = deadline
        heapq.heappush(self._queue, (deadline, key))
        self._compact_deadline_heap()

    def expire(self, key: bytes, deadline: int) -> None:
        """The same, at once if that has passed."""
        if deadline <= self.now():
            self.delete(key)
        else:
            self.set_deadline(key, deadline)

    def deadline(self, key: bytes) -> int | None:
        """When a key expires, or None."""
        return self._deadlines.get(key)

    def persist(self, key: bytes) -> bool:
        """Let a key stay, and tell whether it would have expired."""
        if key not in self or not self._clear_deadline(key):
            return False
        self._touch_watches(key)
        if self.notify is not None:
            self.notify("g", b"persist", key)
        return True

    def _clear_deadline(self, key: bytes) -> bool:
        if self._deadlines.pop(key, None) is None:
            return False
        self.used_memory -= DEADLINE_COST
        return True

    def keys(self) -> list[bytes]:
        """Every key that has not expired."""
        self.remove_expired(len(self._queue))
        return list(self._values)

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """See :meth:`Table.scan`."""
        cursor, keys = self._values.scan(cursor, count)
        return cursor, [key for key in keys if key in self]

    def random_key(self) -> bytes | None:
        """Any key, or None if there is none."""
        while self._values:
            key = self._values.random_key()
            if key in self:
                return key
        return None

    def clear(self) -> None:
        """Take every key away."""
        for key in self._watches:
            if key in self._values:
                self._touch_watches(key)
        self._values, self._deadlines = ScannableDict(), ScannableDict()
        self._queue.clear()
        self._owners.clear()
        self._owned.clear()
        if self._changed is not None:
            self._changed, self._cleared = set(), True
        self.used_memory = self._reserved
        if self._access_times is not None:
            self._access_times.clear()

    def load(self, key: bytes, value: Any, deadline: int | None) -> None:
        """Put in a key that was kept elsewhere: nobody is told."""
        self._put(key, value)
        if deadline is not None:
            self._set_deadline(key, deadline)

    def track_changes(self) -> None:
        """Keep the changes from now on, for :meth:`take_changes`."""
        self._changed = set()

    @property
    def dirty_keys(self) -> int:
        """The number of changes that were not taken."""
        return len(self._values) + 1 if self._cleared else len(self._changed or ())

    def take_changes(self) -> Changes:
        """What happened since the last time; a key that belongs to somebody is as one that is gone.

        It takes as few steps of Python as can be: nobody is served meanwhile.
        """
        # In their order, in which they are quickest written.
        keys = sorted(self._values if self._cleared else self._changed or ())
        values = list(map(self._values.get, keys))
        if not set(map(type, values)) <= {bytes, type(None)}:
            for index, value in enumerate(values):
                if value.__class__ is not bytes and value is not None:
                    values[index] = value.EVENT_CLASS, value.to_parts()
        if self._owners:
            values = [None if key in self._owners else value for key, value in zip(keys, values)]
        deadlines = list(map(self._deadlines.get, keys)) if self._deadlines else []
        changes = Changes(self._cleared, keys, values, deadlines, self.unix_time(0))
        self._changed, self._cleared = set(), False
        return changes

    def restore_changes(self, changes: Changes) -> None:
        """Let changes that were taken be taken again."""
        assert self._changed is not None
        many = len(self._changed) + len(changes.keys) > 2 * len(self) + 100_000
        if changes.cleared or many:  # of keys that came and went since
            self.mark_all_changed()
        elif not self._cleared:
            try:
                self._changed.update(changes.keys)
            except MemoryError:
                self.mark_all_changed()

    def mark_all_changed(self) -> None:
        """Let the next changes taken be the whole of what is here."""
        self._changed, self._cleared = set(), True

    def watch(self, key: bytes, watch: Watch) -> None:
        """Let a watch be told when this key is changed."""
        self._expire(key)
        if key not in watch.keys:
            watch.keys.add(key)
            self._watches.add(key, watch)
            self.reserve(WATCH_COST + len(key))

    def unwatch(self, watch: Watch) -> None:
        """End a watch; it is broken too by a key that has expired since."""
        for key in watch.keys:
            self._expire(key)
            self._watches.discard(key, watch)
            self.reserve(-WATCH_COST - len(key))

    def watchers(self, key: bytes) -> list[Watch]:
        """The watches of a key, the oldest first."""
        return list(self._watches.get(key, ()))

    @property
    def policy(self) -> str:
        """Which keys go when memory is short, one of POLICIES."""
        return self._policy

    @policy.setter
    def policy(self, policy: str) -> None:
        self._policy = policy
        if not policy.endswith("lru"):
            self._access_times = None
        elif self._access_times is None:
            self._access_times = dict.fromkeys(self._values, self.now())
        before, self._key_cost = (
            self._key_cost,
            KEY_COST + (self._access_times is not None) * ACCESS_TIME_COST,
        )
        self.used_memory += (self._key_cost - before) * len(self)

    def idle_time(self, key: bytes) -> int | None:
        """The milliseconds since a key was used, or None if the policy does not ask for that."""
        return None if self._access_times is None else self.now() - self._access_times[key]

    def reserve(self, size: int) -> None:
        """Count memory that is used for something else; what is given back is below 0."""
        self._reserved += size
        self.used_memory += size

    def free_memory(self, size: int = 0) -> None:
        """Evict keys until the limit is kept and there is room for so many bytes more; beyond so
        many keys the rest is left to :meth:`evict`.

        :raises CommandError: if the policy has none left to take.
        """
        limit = self.memory_limit - size
        while self.used_memory > limit and self.remove_expired(KEYS_PER_CYCLE):
            pass
        if not self.evict(KEYS_PER_CYCLE, size) and self.used_memory > limit:
            raise CommandError(OUT_OF_MEMORY)

    def evict(self, most: int, size: int = 0) -> bool:
        """Evict up to so many keys, as the limit asks, and tell whether more are to go."""
        limit = self.memory_limit - size
        for _ in range(most):
            key = self._choose_victim() if self.used_memory > limit else None
            if key is None:
                return False
            self._remove(key)
            self.evicted += 1
            if self.notify is not None:
                self.notify("e", b"evicted", key)
        return self.used_memory > limit

    def _choose_victim(self) -> bytes | None:
        table = self._values if self._policy.startswith("allkeys") else self._deadlines
        if not table or self._policy == "noeviction":
            return None
        if self._policy == "allkeys-random":
            return table.random_key()
        if self._policy == "volatile-ttl":
            while self._deadlines.get(self._queue[0][1]) != self._queue[0][0]:
                heapq.heappop(self._queue)
            return self._queue[0][1]
        # As Redis does it: the one of a few, taken by chance, that was not used for longest.
        assert self._access_times is not None
        return min(
            (table.random_key() for _ in range(LRU_SAMPLES)), key=self._access_times.__getitem__
        )

    def remove_expired(self, most: int) -> bool:
        """Take away up to so many expired keys and tell whether more may be left."""
        now = self.now()
        self._adjust_to_wall_clock()
        self._compact_deadline_heap()
        self._values.shrink()
        self._deadlines.shrink()
        for _ in range(most):
            if not self._queue or self._queue[0][0] > now:
                return False
            deadline, key = heapq.heappop(self._queue)
            if self._deadlines.get(key) == deadline:
                self._expired(key)
        return True

    def _compact_deadline_heap(self) -> None:
        if len(self._queue) > len(self._deadlines) * 5 // 4 + 64:
            self._queue = [(deadline, key) for key, deadline in self._deadlines.items()]
            heapq.heapify(self._queue)

    def _expire(self, key: Any) -> bool:
        deadline = self._deadlines.get(key)
        if deadline is None or deadline > self.now():
            return False
        self._expired(key)
        return True

    def _expired(self, key: bytes) -> None:
        self._remove(key)
        self.expired += 1
        if self.notify is not None:
            self.notify("x", b"expired", key)

    def _remove(self, key: bytes) -> None:
        value = self._values.pop(key, None)
        if value is None:
            return
        self._clear_deadline(key)
        if self._owners:
            self.clear_owner(key)
        self._count(key, value, None)
        self._touch_watches(key)
        if self._access_times is not None:
            self._access_times.pop(key, None)


# ----------------------------------------------------------------------------
# Live data: channels, events, blocked clients
# ----------------------------------------------------------------------------

#: How a client reads: the version of RESP, or what its lines of text end with.
Form = Union[int, bytes]


def encode(reply: Reply, form: Form) -> bytes:
    """A reply in the form that a client reads."""
    return encode_resp(reply, form) if isinstance(form, int) else encode_text(reply, form)


class Peer:
    """A client as the others reach it: the server has one for each that is more than this.

    Its methods do not wait for the client, and are called under the store's lock.
    """

    address = local_address = ""

    def push(self, data: bytes, line: bool) -> None:
        """Send it something out of turn; ``line``: one line of text."""

    def can_queue(self, pending: int, size: int) -> bool:
        """Whether it may be told so many bytes more, beside those pending; else it is dropped."""
        return True

    def wake(self) -> None:
        """Let it see that its wait is over."""

    def hang_up(self) -> None:
        """End its connection."""

    def is_connected(self) -> bool:
        """Whether it has not left."""
        return True

    def process(self) -> tuple[int, str]:
        """The id of its process and the path of its program; 0 and an empty one if not known."""
        return 0, ""

    def describe(self) -> str:
        """Who it is, for the log."""
        process, program = self.process()
        program = program if program.isprintable() else ascii(program)
        return f"process {process}, {program or 'program not known'}" if process else self.address


class Subscriber:
    """What one client has subscribed to."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.form: Form = 2
        #: Names of channels, and patterns, in the order in which they came.
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        #: Whether it sees every command, as MONITOR has it.
        self.monitors = False
        #: Whether any of these makes it one that is pushed to.
        self.listens = False
        #: What it was told and not sent yet, and the bytes of that.
        self.messages: list[bytes] = []
        self.pending = 0

    def count(self) -> int:
        """Of channels and patterns together."""
        return len(self.channels) + len(self.patterns)

    def forget(self) -> None:
        """Let it have been sent what it was told."""
        self.messages.clear()
        self.pending = 0


Subscribers = Dict[Subscriber, None]


class PubSub:
    """Who receives what. For everything here, hold the store's lock."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace  # which counts the memory
        #: The subscribers of each channel, and of each pattern.
        self.channels, self.patterns = OrderedSets(), OrderedSets()
        # The test of a channel that each pattern stands for.
        self._matchers: dict[bytes, Callable[[bytes], object]] = {}
        self.monitors: Subscribers = {}
        #: Those that were told something since deliver().
        self.pending_clients: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber, name: bytes) -> None:
        """See SUBSCRIBE."""
        self.channels.add(name, subscriber)
        self._note(subscriber.channels, name)
        subscriber.listens = True

    def subscribe_pattern(
        self, subscriber: Subscriber, pattern: bytes, test: Callable[[bytes], object]
    ) -> None:
        """See PSUBSCRIBE; ``test``: what glob() makes of the pattern."""
        self._matchers.setdefault(pattern, test)
        self.patterns.add(pattern, subscriber)
        self._note(subscriber.patterns, pattern)
        subscriber.listens = True

    def monitor(self, subscriber: Subscriber) -> None:
        """See MONITOR."""
        self.monitors[subscriber] = None
        subscriber.monitors = subscriber.listens = True

    def unsubscribe(self, subscriber: Subscriber, name: bytes) -> None:
        """See UNSUBSCRIBE; harmless when there is no such subscription."""
        self.channels.discard(name, subscriber)
        self._forget(subscriber.channels, name)
        subscriber.listens = subscriber.monitors or subscriber.count() > 0

    def unsubscribe_pattern(self, subscriber: Subscriber, pattern: bytes) -> None:
        """See PUNSUBSCRIBE; harmless when there is no such subscription."""
        self.patterns.discard(pattern, subscriber)
        if pattern not in self.patterns:
            self._matchers.pop(pattern, None)
        self._forget(subscriber.patterns, pattern)
        subscriber.listens = subscriber.monitors or subscriber.count() > 0

    def _note(self, names: dict[bytes, None], name: bytes) -> None:
        if name not in names:
            names[name] = None
            self._keyspace.reserve(SUBSCRIPTION_COST + len(name))

    def _forget(self, names: dict[bytes, None], name: bytes) -> None:
        if name in names:
            del names[name]
            self._keyspace.reserve(-SUBSCRIPTION_COST - len(name))

    def leave(self, subscriber: Subscriber) -> None:
        """End everything that a client has subscribed to."""
        self.monitors.pop(subscriber, None)
        subscriber.monitors = False
        for name in list(subscriber.channels):
            self.unsubscribe(subscriber, name)
        for pattern in list(subscriber.patterns):
            self.unsubscribe_pattern(subscriber, pattern)
        subscriber.listens = False

    def publish(self, channel: bytes, message: bytes) -> int:
        """See PUBLISH; how many received it."""
        subscribers = self.channels.get(channel, {})
        count = len(subscribers)
        if subscribers:
            self.tell(Push([b"message", channel, message]), subscribers)
        for pattern, subscribers in self.patterns.items():
            if self._matchers[pattern](channel):
                count += len(subscribers)
                self.tell(Push([b"pmessage", pattern, channel, message]), subscribers)
        return count

    def tell(self, reply: Reply, subscribers: Subscribers) -> None:
        """Let deliver() send all of them this, which is encoded once for those that read alike."""
        encoded: dict[Form, bytes] = {}
        size = reply_size(reply)
        for subscriber in subscribers:
            if not subscriber.peer.can_queue(subscriber.pending, size):
                continue
            form = subscriber.form
            data = encoded.get(form)
            if data is None:
                data = encoded[form] = encode(reply, form)
            if not subscriber.messages:
                self.pending_clients.append(subscriber)
            subscriber.messages.append(data)
            subscriber.pending += size

    def flush(self) -> None:
        """Send what was told: as few times as possible, and before the lock is given up."""
        pending_clients, self.pending_clients = self.pending_clients, []
        last: list[bytes] = []
        data = b""
        for subscriber in pending_clients:
            messages = subscriber.messages
            try:
                if isinstance(subscriber.form, bytes):
                    for line in messages:
                        subscriber.peer.push(line, True)
                elif messages:
                    if messages != last:  # which most have in common
                        last, data = messages[:], b"".join(messages)
                    subscriber.peer.push(data, False)
            except MemoryError:  # that of one is not to keep the others from theirs
                subscriber.peer.hang_up()
            subscriber.forget()


class KeyspaceEvents:
    """Keyspace notifications: what happens to keys, told in channels."""

    #: What the letter A stands for.
    ALL = "g$lshzxetd"

    def __init__(self, keyspace: Keyspace, channels: PubSub) -> None:
        self._keyspace, self._channels = keyspace, channels
        self._letters: frozenset[str] = frozenset()

    @staticmethod
    def check(letters: str) -> None:
        """Look whether these letters can be chosen.

        :raises ValueError: if one of them is none.
        """
        if not set(letters) <= set(EVENT_CLASSES):
            raise ValueError("Invalid event class character. Use 'Ag$lshzxeKEtmdn'.")

    def configure(self, letters: str) -> None:
        """See notify-keyspace-events."""
        self._letters = frozenset(letters.replace("A", self.ALL))
        pending_clients = self._letters - {"K", "E"} and self._letters & {"K", "E"}
        self._keyspace.notify = self._observe if pending_clients else None

    def __str__(self) -> str:
        letters = "".join(letter for letter in EVENT_CLASSES if letter in self._letters)
        return letters.replace(self.ALL, "A")

    def _observe(self, letter: str, event: bytes, key: bytes) -> None:
        if letter in self._letters:
            if "K" in self._letters:
                self._channels.publish(b"__keyspace@0__:" + key, event)
            if "E" in self._letters:
                self._channels.publish(b"__keyevent@0__:" + event, key)


class BlockedClient(Watch):
    """A client that waits until one of several keys has something for it.

    :param kind: of the value that it needs.
    :param attempt: takes it from a key; None if there is nothing.
    :param deadline: of :func:`time.monotonic`, or None.
    """

    __slots__ = ("_waiting", "attempt", "deadline", "done", "kind", "muted", "peer", "reply")

    def __init__(
        self, waiting: BlockedClients, peer: Peer, kind: type, attempt: Callable[[bytes], Reply],
        deadline: float | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._waiting, self.peer, self.kind, self.attempt = waiting, peer, kind, attempt
        self.deadline = deadline
        #: Whether the wait is over, and whether the client wants to know.
        self.done = self.muted = False
        #: What it ended in, or will if nothing happens until the deadline.
        self.reply: Reply = NULL_ARRAY

    def changed(self, key: bytes) -> None:
        self._waiting.ready[key] = None

    def left(self) -> float | None:
        """The seconds until the deadline, None if there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()


class BlockedClients:
    """The clients that wait. For everything here, hold the store's lock."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self.waiters: dict[BlockedClient, None] = {}
        #: The keys for which somebody waits, and which were changed since they were last served.
        self.ready: dict[bytes, None] = {}

    def add(self, waiter: BlockedClient, keys: Iterable[bytes]) -> None:
        """Let a client wait for these keys."""
        self.waiters[waiter] = None
        for key in keys:
            self._keyspace.watch(key, waiter)

    def end(self, waiter: BlockedClient, reply: Reply) -> None:
        """End a wait, which may be over, with a reply."""
        if not waiter.done:
            waiter.done, waiter.reply = True, reply
            del self.waiters[waiter]
            self._keyspace.unwatch(waiter)
            waiter.peer.wake()

    def serve(self) -> None:
        """Give the keys that are ready to those that wait for them: first come, first served.

        After each command, so that nobody comes in between; who is served may make others ready.
        """
        while self.ready:
            key = next(iter(self.ready))
            del self.ready[key]
            for waiter in self._keyspace.watchers(key):
                value = self._keyspace.peek(key)
                if value is None:
                    break
                # Who has died takes nothing with him.
                if (
                    isinstance(waiter, BlockedClient)
                    and waiter.kind is type(value)
                    and waiter.peer.is_connected()
                ):
                    self._serve(waiter, key)

    def _serve(self, waiter: BlockedClient, key: bytes) -> None:
        try:
            reply = waiter.attempt(key)
        except CommandError as error:
            reply = error
        except Exception:
            log.exception("A client that waited for %r could not be served", key)
            reply = CommandError(INTERNAL_ERROR)
        if reply is not None:
            self.end(waiter, reply)


class State:
    """What clients tell each other, beside the values."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.channels = PubSub(keyspace)
        self.events = KeyspaceEvents(keyspace, self.channels)
        self.waiting = BlockedClients(keyspace)


# ----------------------------------------------------------------------------
# Persistence: the values in a SQLite file
# ----------------------------------------------------------------------------

#: What marks a file as ours ("pipc" to SQLite and file(1)), and how its rows are to be read.
APPLICATION_ID = int.from_bytes(b"pipc", "big")
FILE_FORMAT = 1

# One row a key; kind is Redis's letter for it, value pack()'s bytes, expires in milliseconds since
# 1970, and by_clock whether the wall clock was what said so.
_SCHEMA = """CREATE TABLE keys (key BLOB PRIMARY KEY, kind TEXT NOT NULL, value BLOB NOT NULL,
    expires INTEGER, by_clock INTEGER NOT NULL) WITHOUT ROWID"""
_ROW_TYPES = {(bytes, bytes, type(None)), (bytes, bytes, int)}
_VALUE_TYPES: dict[str, Any] = {
    kind.EVENT_CLASS: kind for kind in (ListValue, Hash, Set, SortedSet)
}

#: What to do about what SQLite says, and about the system's errors.
_SQLITE_ADVICE = {
    "locked": "another program uses it, such as a second server: stop that one or choose another"
    " file",
    "readonly": "it, or its folder, may not be written: change that or choose another file",
    "unable to open": "it, or its folder, may not be written: change that or choose another file",
    "full": "make room on the disk",
    "too big": "make room, or use another disk",
    "not a database": "it is another program's, and is left as it is: choose another file",
    "malformed": "it is damaged, and is left as it is: put a copy of it in its place, or move it"
    " away to begin anew",
    "disk I/O": "look whether the disk is full or failing",
}
_SYSTEM_ADVICE = {
    errno.ENOENT: "its folder does not exist: make it, or choose another file",
    errno.ENOTDIR: "its folder is none: choose another file",
    errno.EACCES: "it may not be read and written: change that or choose another file",
    errno.EPERM: "it may not be read and written: change that or choose another file",
    errno.EROFS: "nothing can be written to this disk: choose another file",
    errno.ENOSPC: "make room on the disk",
    errno.ENAMETOOLONG: "choose a shorter name",
}

#: The files that this process has open, by their inodes. Off Windows locks are the process's: a
#: second one that opened a file would not be refused, and would give up the first one's lock.
_OPEN_FILES: set[tuple[int, int] | None] = set()


def pack_value(value: Any) -> bytes:
    """A value as bytes: a string as it is; else the number of its parts, their lengths, all of 32
    bits, the least byte first, and the parts."""
    return value if value.__class__ is bytes else _pack_parts(value.to_parts())


def _pack_parts(parts: list[bytes]) -> bytes:
    return struct.pack(f"<{1 + len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts)


def unpack_value(letter: str, data: bytes) -> Any:
    """The value that was packed so.

    :raises ValueError: if there is no such value.
    """
    if letter == "$":
        return data
    try:
        kind = _VALUE_TYPES[letter]
        (count,) = struct.unpack_from("<I", data)
        lengths = struct.unpack_from(f"<{count}I", data, 4)
        ends = list(itertools.accumulate(lengths, initial=4 + 4 * count))
        value = kind.from_parts([data[start:end] for start, end in zip(ends, ends[1:])])
    except (KeyError, struct.error) as error:
        raise ValueError(f"no value of kind {letter!r}") from error
    if ends[-1] != len(data) or not value:
        raise ValueError("bytes too many or too few")
    return value


class Persistence:
    """Keeps what a store holds in a file, written by a thread of its own.

    What was changed is written in one transaction, SAVE_INTERVAL seconds after the last, or sooner
    if it is much. While the file cannot be written, the changes are kept and tried again.

    :raises PersistenceError: if the path leads nowhere.
    """

    def __init__(self, path: str, keyspace: Keyspace) -> None:
        try:
            self.path = os.path.realpath(path)
        except OSError as error:
            raise PersistenceError(f"Cannot find {path!r}: {error.strerror}") from error
        self._keyspace = keyspace
        self._database: Any = None
        # Which file is in use; which file, and which log beside it, are ours, whoever comes.
        self._locked_inode: tuple[int, int] | None = None
        self._inode: tuple[int, int] | None = None
        self._wal_inode: tuple[int, int] | None = None
        #: Why the last attempt to write failed, "" if it did not.
        self.error = ""
        #: Keys that the file cannot take, because of their size.
        self.refused: dict[bytes, int] = {}
        self.loaded = self.expired = self.saves = 0
        #: The bytes of the file and of the log.
        self.size = 0
        #: When the file last was made to hold everything, and how long that took, or loading it.
        self.saved_at, self.duration = time.time(), 0.0
        #: When it did, and when the attempt under way began, if there is one, as time.monotonic().
        self.synced_at = time.monotonic()
        self.began: float | None = None
        # The changes that are being written, and how many of them, of all that were, are.
        self._saving_count = self._written = 0
        # Who wants to know when everything up to now is in the file.
        self._requests: list[Callable[[str], None]] = []
        self._save_requested, self._ending = threading.Event(), False
        self._thread: threading.Thread | None = None

    @property
    def unsaved_changes(self) -> int:
        """The number of changes that are not in the file."""
        return self._keyspace.dirty_keys + self._saving_count

    def open(self) -> None:
        """Open the file, or begin one, and put what it holds into the store.

        One that another program has is waited for, up to HANDOVER seconds: that may be a server
        that was just told to stop.

        :raises PersistenceError: if it cannot be read and written, or is not ours; it is left as
            it is.
        """
        deadline, pending_clients = time.monotonic() + FILE_LOCK_TIMEOUT, False
        while True:
            try:
                self._connect()
                self._load()
                self._prepare_for_writing()
                self._keyspace.track_changes()
                facts = self.display_path(), self.loaded, self.duration
                log.info("Keeping everything in %s: %d keys loaded in %.1f s", *facts)
                return
            except BaseException as error:
                self._disconnect()
                self._keyspace.clear()
                if not isinstance(error, (sqlite3.Error, OSError, ValueError)):
                    raise
                locked = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
                if not locked or time.monotonic() > deadline:
                    raise PersistenceError(self._describe_failure("use", error)) from error
            if not pending_clients:
                log.info("Waiting for %s, which another program uses", self.display_path())
                pending_clients = True
            time.sleep(0.1)

    def _connect(self) -> None:
        self._check_header()
        self._database = database = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False,
            cached_statements=CACHED_STATEMENTS,
        )  # fmt: skip
        # The lock is kept, so that no second server comes to use it; that also spares the shared
        # memory, which not every disk has.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        (mark,), (tables,) = (
            database.execute(query).fetchone()
            for query in ("PRAGMA application_id", "SELECT count(*) FROM sqlite_master")
        )
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if mark or tables:
            self._check(mark, version)
        if not tables:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("BEGIN IMMEDIATE")
            database.execute(f"PRAGMA application_id={APPLICATION_ID}")
            database.execute(_SCHEMA)
            database.execute("COMMIT")

    def _prepare_for_writing(self) -> None:
        # What has been read is to be relied on, so it may be written, and has to be.
        execute = self._database.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        # What was there before a statement is not to lie in a folder for everybody's files.
        execute("PRAGMA temp_store=MEMORY")
        execute(f"PRAGMA wal_autocheckpoint={WAL_CHECKPOINT_PAGES}")
        execute(f"PRAGMA journal_size_limit={64 << 20}")
        execute("BEGIN IMMEDIATE")
        execute(f"PRAGMA user_version={FILE_FORMAT}")
        if self.expired:
            execute("DELETE FROM keys WHERE expires <= ?", (int(time.time() * 1000),))
        execute("COMMIT")
        self._inode, self._wal_inode = self._locked_inode, _inode_of(self.path + "-wal")
        self._update_size()

    def _check_header(self) -> None:
        # Before SQLite, which may write to what it only reads: a journal that was left beside it.
        if not os.path.exists(self.path):
            # As what it will be: nobody else's to read.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._inode = _inode_of(self.path)
        if not os.path.isfile(self.path):
            raise OSError("it is not a file: choose another name")
        inode = _inode_of(self.path)
        if inode in _OPEN_FILES:
            raise sqlite3.OperationalError("database is locked")
        self._locked_inode = inode
        _OPEN_FILES.add(inode)
        with open(self.path, "r+b") as file:  # to read it alone will not do
            header = file.read(100)
        if not header:
            return
        if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
            raise sqlite3.DatabaseError("file is not a database")
        mark, version = (int.from_bytes(header[at : at + 4], "big") for at in (68, 60))
        if mark:  # or what is ours may be in the log alone
            self._check(mark, version)

    @staticmethod
    def _check(mark: int, version: int) -> None:
        if mark != APPLICATION_ID:
            raise sqlite3.DatabaseError("file is not a database of pipecache")
        if version > FILE_FORMAT:
            raise sqlite3.DatabaseError(
                f"a newer pipecache has written it, in format {version}, of which this one knows"
                f" {FILE_FORMAT}: use that one, or choose another file"
            )

    def _load(self) -> None:
        self.loaded = self.expired = 0
        started = pending_clients = time.monotonic()
        keyspace = self._keyspace
        with keyspace.lock, contextlib.closing(self._database.cursor()) as rows:
            epoch, now, load = keyspace.unix_time(0), keyspace.now(), keyspace.load
            (count,) = rows.execute("SELECT count(*) FROM keys").fetchone()
            # A row at a time: it is in memory twice meanwhile.
            rows.execute("SELECT key, kind, value, expires, by_clock FROM keys")
            for done, (key, kind, value, expires, by_clock) in enumerate(rows, 1):
                types = type(key), type(value), type(expires)
                if types not in _ROW_TYPES:
                    raise ValueError(f"malformed: the types of a row, {types}")
                if (done % 1000 == 0 or len(value) > SHORT_VALUE) and (
                    time.monotonic() > pending_clients + PROGRESS_INTERVAL
                ):
                    pending_clients = time.monotonic()
                    log.info("Loading %s: %d of %d keys", self.display_path(), done, count)
                if kind != "$":
                    try:
                        value = unpack_value(kind, value)  # noqa: PLW2901
                    except ValueError as error:
                        what = f"malformed: key {key[:ERROR_EXCERPT]!r}: {error}"
                        raise ValueError(what) from error
                if expires is None:
                    load(key, value, None)
                elif expires - epoch > now:
                    deadline = expires - epoch
                    load(key, value, WallClockDeadline(deadline) if by_clock else deadline)
                else:
                    self.expired += 1
        self.loaded = len(keyspace)
        self.duration = time.monotonic() - started

    def start(self) -> None:
        """Let the thread write from now on."""
        self._thread = threading.Thread(target=self._run, name="pipecache-saver", daemon=True)
        self._thread.start()
        if hasattr(os, "register_at_fork"):
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _leak_in_child(this()))

    def stop(self, patience: float) -> bool:
        """Write what is left, end the thread and close the file; False if the file does not take
        it.

        :param patience: the seconds after which to give up when nothing more is written.
        """
        self._ending = True
        self._save_requested.set()
        if self._thread is None:
            self._disconnect()
        else:
            written, progress = self._written, time.monotonic()
            self._thread.join(PROGRESS_INTERVAL)
            while self._thread.is_alive():
                if self._written != written:
                    written, progress = self._written, time.monotonic()
                    log.info(
                        "Saving to %s: %d keys to be written",
                        self.display_path(),
                        self.unsaved_changes,
                    )
                elif time.monotonic() > progress + patience:
                    log.error("Stopped before everything was saved to %s", self.display_path())
                    return False
                self._thread.join(PROGRESS_INTERVAL)
        return not self.unsaved_changes

    def request(self, done: Callable[[str], None]) -> None:
        """Let the file hold everything up to now, under the store's lock; ``done`` hears, under it
        too, what went wrong, or "" when that is so."""
        self._requests.append(done)
        self._save_requested.set()

    def _disconnect(self) -> None:
        # The last one to close the file takes the log into it.
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()
        _OPEN_FILES.discard(self._locked_inode)
        self._locked_inode = None

    def _run(self) -> None:
        started, pause = time.monotonic(), SAVE_INTERVAL
        while not self._ending:
            self._wait(started + pause)
            started = time.monotonic()
            self._save()
            # What has failed will do so again for a while, and to take all of it takes time.
            pause = min(2 * pause, MAX_RETRY_DELAY) if self.error else SAVE_INTERVAL
        self._save()
        if self.unsaved_changes:
            log.error(
                "%d changed keys were not saved to %s", self.unsaved_changes, self.display_path()
            )
        self._disconnect()

    def _wait(self, until: float) -> None:
        # Until then, or somebody asks, or there is so much that to take it will hold up the others.
        left = until - time.monotonic()
        while left > 0 and not self._save_requested.wait(min(left, DIRTY_CHECK_INTERVAL)):
            if self._keyspace.dirty_keys >= SAVE_AT_DIRTY_KEYS and not self.error:
                break
            left = until - time.monotonic()
        self._save_requested.clear()

    def _save(self) -> None:
        keyspace = self._keyspace
        with keyspace.lock:
            requests, self._requests = self._requests, []
        error = ""
        try:
            self._reopen_if_replaced()
            started = time.monotonic()
            if keyspace.dirty_keys or requests:
                self.began = started
                self._write_changes(checkpoint=bool(requests))
            self.synced_at = started
        except Exception as failure:  # this thread must not end: nothing would be saved any more
            error = self._describe_failure("save to", failure)
            if not isinstance(failure, (sqlite3.Error, OSError, PersistenceError, MemoryError)):
                log.exception("A fault of this program while saving")
        self.began = None
        self._update_size()
        if error and error != self.error:
            log.error("%s. Going on from memory, and trying again", error)
        elif self.error and not error:
            log.info("Saving to %s works again", self.display_path())
        self.error = error
        with keyspace.lock:
            for done in requests:
                done(error)

    def _reopen_if_replaced(self) -> None:
        # Whether the file and its log are there still, and ours.
        ours, found = self._database is not None, _inode_of(self.path)
        same_file = found == self._inode
        if ours and same_file and _inode_of(self.path + "-wal") == self._wal_inode:
            return
        replaced = "another file was put in its place: move that away, or start the server anew"
        if ours and not same_file and found is not None:
            raise PersistenceError(replaced)
        self._disconnect()
        try:
            self._connect()
            (foreign,) = self._database.execute("SELECT EXISTS (SELECT 1 FROM keys)").fetchone()
            if foreign and not same_file:
                raise PersistenceError(replaced)
            self._prepare_for_writing()
        except BaseException:
            self._disconnect()
            raise
        log.warning("%s, or its log, was taken away, and is begun anew", self.display_path())
        with self._keyspace.lock:
            self._keyspace.mark_all_changed()

    def _write_changes(self, checkpoint: bool) -> None:
        execute, started = self._database.execute, time.monotonic()
        changes = None
        execute("BEGIN IMMEDIATE")
        try:
            with self._keyspace.lock:
                now, changes = time.time(), self._keyspace.take_changes()
                self._saving_count = len(changes.keys) + changes.cleared
            if changes.cleared:
                execute("DELETE FROM keys")
                self.refused.clear()
            gone: list[bytes] = []
            for row, batch in self._batches(changes, gone):
                count = len(batch) // row.count("?")
                execute(f"INSERT OR REPLACE INTO keys VALUES {', '.join([row] * count)}", batch)
                self._written += count
            for batch in _batched(gone, MAX_SQL_PARAMETERS):
                marks = ", ".join("?" * len(batch))
                execute(f"DELETE FROM keys WHERE key IN ({marks})", batch)
                self._written += len(batch)
            execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if self._database.in_transaction:
                    execute("ROLLBACK")
            if self._database.in_transaction:
                self._disconnect()
            if changes is not None:
                with self._keyspace.lock:
                    self._keyspace.restore_changes(changes)
            raise
        finally:
            self._saving_count = 0
        self.saves += 1
        self.saved_at, self.duration = now, time.monotonic() - started
        # Statements are kept for the next time, with what they were given: let others come.
        for number in range(CACHED_STATEMENTS):
            execute(f"SELECT {number}")
        if checkpoint:
            execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _batches(self, changes: Changes, gone: list[bytes]) -> Iterator[tuple[str, list[Any]]]:
        # What is to be in the file, cut for statements: a row of each, and the values for so many
        # of them as can be. For each statement the interpreter is given up and has to be got back;
        # but all that it is given is in memory twice.
        if self._all_short_strings(changes):
            values = itertools.chain.from_iterable(zip(changes.keys, changes.values))
            for batch in _batched(values, MAX_SQL_PARAMETERS // 2 * 2):
                yield "(?, '$', ?, NULL, 0)", batch
            return
        row, batch, size = "(?, ?, ?, ?, ?)", [], 0
        for each in self._rows(changes, gone):
            batch += each
            size += len(each[2])
            if size > BATCH_BYTES or len(batch) + 5 > MAX_SQL_PARAMETERS:
                yield row, batch
                batch, size = [], 0
        if batch:
            yield row, batch

    def _all_short_strings(self, changes: Changes) -> bool:
        # Whether all are short strings without end, as is usual.
        return (
            not self.refused
            and set(map(type, changes.values)) <= {bytes}
            and changes.deadlines.count(None) == len(changes.deadlines)
            and max(map(len, changes.values), default=0) <= SHORT_VALUE
            and max(map(len, changes.keys), default=0) <= SHORT_VALUE
        )

    def _rows(self, changes: Changes, gone: list[bytes]) -> Iterator[tuple[Any, ...]]:
        # What is to be taken away goes into the list.
        deadlines = changes.deadlines or itertools.repeat(None)
        for key, value, deadline in zip(changes.keys, changes.values, deadlines):
            kind, data = "$", value
            if value.__class__ is tuple:
                kind, data = value[0], _pack_parts(value[1])
            if data is None or len(key) + len(data) > MAX_ROW:
                gone.append(key)
                self._refuse(key, data)
            else:
                self.refused.pop(key, None)
                expires = None if deadline is None else min(deadline + changes.epoch, INTEGER_MAX)
                yield key, kind, data, expires, deadline.__class__ is WallClockDeadline

    def _refuse(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.refused.pop(key, None)
            return
        size = len(key) + len(value)
        if key not in self.refused:
            what = "Key %r takes %d bytes, more than the file can have: it is not kept"
            log.error(what, key[:ERROR_EXCERPT], size)
        self.refused[key] = size

    def _update_size(self) -> None:
        self.size = 0
        for path in (self.path, self.path + "-wal"):
            with contextlib.suppress(OSError):
                self.size += os.path.getsize(path)

    def display_path(self) -> str:
        """The path, in one line."""
        return self.path if self.path.isprintable() else repr(self.path)

    def _describe_failure(self, what: str, error: BaseException) -> str:
        if isinstance(error, OSError):
            text = error.strerror or str(error)
            advice = _SYSTEM_ADVICE.get(error.errno or 0, "")
        else:
            text = str(error)
            advice = next((advice for word, advice in _SQLITE_ADVICE.items() if word in text), "")
        return f"Cannot {what} {self.display_path()}: {text}" + (f" ({advice})" if advice else "")


def _inode_of(path: str) -> tuple[int, int] | None:
    # Which file this is, or None if there is none.
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _batched(items: Iterable[Value], most: int) -> Iterator[list[Value]]:
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, most)), [])


def _leak_in_child(persistence: Persistence | None) -> None:
    # In a forked child: to close the file there would take the log away that the parent writes.
    if persistence is not None and persistence._database is not None:
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(persistence._database))


# ----------------------------------------------------------------------------
# Commands: how they are declared, found and carried out
# ----------------------------------------------------------------------------


class Statistics:
    """What INFO tells of the running server; counted under the store's lock."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.started = time.monotonic()
        self.clients: dict[int, Client] = {}
        self.connections = 0
        self.commands = 0


class Client:
    """What a command may see and change beside its arguments; one for each client.

    :param peer: the client, as others reach it.
    :param password: what the client must give by AUTH before anything else, or None.
    :param persistence: what keeps the store in a file, or None.
    """

    def __init__(
        self, keyspace: Keyspace, settings: Settings, statistics: Statistics, live: State,
        peer: Peer | None = None, password: bytes | None = None,
        persistence: Persistence | None = None,
    ) -> None:  # fmt: skip
        self.persistence = persistence
        self.keyspace, self.settings, self.statistics, self.live = (
            keyspace,
            settings,
            statistics,
            live,
        )
        self.password = password
        self.peer = peer or Peer()
        self.subscriber = Subscriber(self.peer)
        self.id = 0
        #: Set by close(): the connection ends after the reply.
        self.closing = False
        #: What the client waits for, or None; and whether it may wait at all.
        self.waiter: BlockedClient | None = None
        self.can_block = True
        #: Whether, for either, nothing more of what the client sent is to be carried out now.
        self.halted = False
        #: What the client did for which its connection is closed; for the log, which may have to
        #: be waited for, and so is not written under the lock.
        self.fault = ""
        #: The name of its last command.
        self.command = b""
        #: The version of RESP the client has chosen by HELLO.
        self.protocol = 2
        #: What the client calls itself ("name") and its library ("lib-name", "lib-ver").
        self.names: dict[str, str] = {}
        #: When the client came, and when it last asked for something.
        self.connected_at = self.last_command_at = time.monotonic()
        #: The commands since MULTI, or None; and whether one of them could not be accepted.
        self.queue: list[tuple[Command, list[bytes]]] | None = None
        self.spoiled = False
        #: The memory that they take.
        self.queued = 0
        self.watch: Watch | None = None
        #: How CLIENT REPLY wants it: "ON", "OFF", or "SKIP" and then "SKIPPING" for one reply.
        self.reply_mode = "ON"
        #: Whether only AUTH and the like are carried out, because no password was given yet.
        self.locked_out = password is not None
        #: Whether any of these asks for more than to carry out a command and reply.
        self.guarded = False

    def guard(self) -> None:
        """Find out anew what ``guarded`` is, after one of its grounds has changed."""
        self.guarded = (
            self.locked_out
            or self.queue is not None
            or self.reply_mode != "ON"
            or self.subscriber.count() > 0
            or bool(self.live.channels.monitors)
        )

    def guard_all(self) -> None:
        """The same for every client."""
        for client in self.statistics.clients.values():
            client.guard()

    def close(self) -> None:
        """Let the connection end after the reply to come."""
        self.closing = self.halted = True

    def register(self) -> None:
        """Enter the client in the statistics, under the next id."""
        self.statistics.connections += 1
        self.id = self.statistics.connections
        self.statistics.clients[self.id] = self
        self.guard()

    def leave(self) -> None:
        """Take the client out of the statistics, and give up what it holds."""
        del self.statistics.clients[self.id]
        self.end_transaction()
        if self.waiter is not None:
            self.live.waiting.end(self.waiter, NO_REPLY)
            self.waiter = None
        self.unsubscribe()
        self.keyspace.delete_owned(self)
        self.live.channels.flush()

    def unsubscribe(self) -> None:
        """End every subscription, and MONITOR."""
        monitored = self.subscriber.monitors
        self.live.channels.leave(self.subscriber)
        self.guard()
        if monitored:
            self.guard_all()

    def end_transaction(self) -> bool:
        """Forget the queue and the watch, and tell whether the watch was broken."""
        self.queue, self.spoiled = None, False
        self.keyspace.reserve(-self.queued)
        self.queued = 0
        self.guard()
        watch, self.watch = self.watch, None
        if watch is None:
            return False
        self.keyspace.unwatch(watch)
        return watch.broken


#: How the arguments and values of these names in a usage are read. The others stay bytes.
PARSERS: dict[str, Callable[[bytes], Any]] = {}


class Options:
    """The options a usage names in brackets, as in ``[NX|XX] [EX seconds|KEEPTTL] [GET]``.

    Of those in one bracket only one may be given; the last of several equal ones holds. The
    methods raise CommandError for words that break these rules.
    """

    #: Those that may not be repeated; Redis is not of one mind here.
    ONCE = frozenset({"async", "byscore", "rev", "sync", "withvalues"})

    def __init__(self, usage: str) -> None:
        self._options: dict[bytes, tuple[int, str, list[str]]] = {}
        for number, bracket in enumerate(re.findall(r"\[([A-Z][^\]]*)\]", usage)):
            for choice in bracket.split("|"):
                token, *values = choice.split()
                self._options[token.encode()] = number, token.lower(), values

    def __bool__(self) -> bool:
        return bool(self._options)

    def split(self, words: Sequence[bytes]) -> tuple[dict[str, Any], Sequence[bytes]]:
        """The options that words begin with, by name (True, if without value), and the rest."""
        found: dict[str, Any] = {}
        chosen: dict[int, str] = {}
        position = 0
        while position < len(words):
            option = self._options.get(words[position].upper())
            if option is None:
                break
            number, name, names = option
            position += 1
            values = words[position : position + len(names)]
            position += len(names)
            again = name in found and name in self.ONCE
            if again or chosen.setdefault(number, name) != name or len(values) < len(names):
                raise CommandError(SYNTAX_ERROR)
            parsed = [PARSERS.get(each, bytes)(value) for each, value in zip(names, values)]
            found[name] = parsed if len(parsed) > 1 else parsed[0] if parsed else True
        return found, words[position:]

    def parse(self, words: Sequence[bytes]) -> dict[str, Any]:
        """The options by name, when there is to be nothing else."""
        found, rest = self.split(words)
        if rest:
            raise CommandError(SYNTAX_ERROR)
        return found


class Command:
    """One entry of the command table, made from its usage, as in ``GETEX key [EX seconds]``.

    :param access: ``"reads"``, ``"writes"`` or ``"grows"``: may take more memory.
    :param run: takes the context and the arguments, options by keyword.
    :param raw: whether ``run`` takes every word as it is.
    :param loose: whether a word too many is a syntax error even without options.
    """

    __slots__ = (
        "_options",
        "_pairs_only",
        "group",
        "grows",
        "items",
        "key_positions",
        "min_arguments",
        "most",
        "name",
        "plain",
        "run",
        "summary",
        "usage",
        "words",
        "writes",
    )  # fmt: skip

    def __init__(
        self, group: str, access: str, usage: str, summary: str, run: Callable[..., Reply],
        raw: bool = False, extra_is_syntax_error: bool = False,
    ) -> None:  # fmt: skip
        self.items = items = re.findall(r"\[[^\]]*\]|\S+", usage)
        subcommand = len(items) > 1 and re.fullmatch("[A-Z]+", items[1]) is not None
        #: Words of the name, and the name.
        self.words = 2 if subcommand else 1
        self.name = " ".join(items[: self.words])
        self.group, self.usage, self.summary = group, usage, summary
        self.writes, self.grows = access != "reads", access == "grows"
        positional = [item.strip("[]") for item in items if not re.match(r"\[[A-Z]", item)]
        endless = raw or "..." in usage
        self._options = (
            Options(usage) if (Options(usage) or extra_is_syntax_error) and not endless else None
        )
        # Whether further arguments come in pairs only.
        self._pairs_only = not raw and bool(re.fullmatch(r"[^\[]*\[[a-z]+ [a-z]+ \.\.\.\]", usage))
        #: Bounds of the number of arguments, the name included: the fewest, the most that need
        #: no further look, the most of all.
        self.min_arguments = sum(not item.startswith("[") for item in items)
        self.most = sys.maxsize if endless or self._options is not None else len(positional)
        self.plain = (
            self.min_arguments if self._pairs_only else self.most if endless else len(positional)
        )
        # Behind what may be repeated no argument has a place of its own.
        placed = itertools.takewhile(lambda name: "..." not in name, positional[self.words :])
        parsers = [PARSERS.get(name, bytes) for name in placed]
        self.run = run if raw or set(parsers) <= {bytes} else _parsing(run, parsers)
        self.key_positions = self._places(usage.split())

    @staticmethod
    def _places(words: list[str]) -> tuple[int, int, int]:
        # Where the keys are, as COMMAND tells: the first, the last (from the end, if below 0), and
        # the step; none where a number says how many there are.
        named = [words.index(word) for word in ("key", "source", "destination") if word in words]
        if not named or "numkeys" in words:
            return 0, 0, 0
        first = min(named)
        last = first + ("source" in words or "newkey" in words)
        if "[key" in words:
            last = -2 if words[-1] == "timeout" else -1
        return (
            first,
            last,
            2 if words[first + 1 : first + 2] == ["value"] and "...]" in words else 1,
        )

    def call(self, client: Client, arguments: list[bytes]) -> Reply:
        """Carry it out.

        :raises CommandError: for a wrong number of arguments too.
        """
        size = len(arguments)
        if not self.min_arguments <= size <= self.most or (
            self._pairs_only and (size - self.min_arguments) % 2
        ):
            raise wrong_arity(b"|".join(arguments[: self.words]))
        if size <= self.plain or self._options is None:
            return self.run(client, *arguments[self.words :])
        options = self._options.parse(arguments[self.plain :])
        return self.run(client, *arguments[self.words : self.plain], **options)


def _parsing(run: Callable[..., Reply], parsers: list[Callable[[bytes], Any]]) -> Any:
    def parse_and_run(client: Client, *arguments: bytes, **options: Any) -> Reply:
        parsed = [parser(argument) for parser, argument in zip(parsers, arguments)]
        return run(client, *parsed, *arguments[len(parsed) :], **options)

    return parse_and_run


#: Every command by its name in upper case, and in lower case too: clients send either.
COMMANDS: dict[bytes, Command] = {}

#: Those of two words, by both in upper case; and COMMAND, which is one alone too, by b"".
SUBCOMMANDS: dict[tuple[bytes, bytes], Command] = {}
CONTAINERS: set[bytes] = set()

Declaration = Callable[[Callable[..., Reply]], Callable[..., Reply]]


class Family:
    """Declares the commands of a family, whose values are of one kind, by usage and summary.

    The functions of :meth:`reads`, :meth:`writes` and :meth:`grows` take the
    context and the arguments; those of :meth:`views` and :meth:`edits`, in
    place of the context and the key, the value of that key (an empty one if
    there is none). ``raw`` and ``loose`` are :class:`Command`'s; further
    keywords go to the function.
    """

    def __init__(self, group: str, kind: type = bytes) -> None:
        self._group = group
        #: The class of its values.
        self.kind: Any = kind
        self.reads = functools.partial(self._declare, "reads")
        self.writes = functools.partial(self._declare, "writes")
        self.grows = functools.partial(self._declare, "grows")

    def _declare(
        self, access: str, usage: str, summary: str, wrap: Callable[[Any], Any] | None = None,
        raw: bool = False, extra_is_syntax_error: bool = False, **fixed: Any,
    ) -> Declaration:  # fmt: skip
        def declare(function: Callable[..., Reply]) -> Callable[..., Reply]:
            run = functools.partial(function, **fixed) if fixed else function
            run = wrap(run) if wrap else run
            entry = Command(self._group, access, usage, summary, run, raw, extra_is_syntax_error)
            name, *subcommand = entry.name.encode().split()
            if subcommand or name in CONTAINERS:
                if name not in CONTAINERS:
                    CONTAINERS.add(name)
                    self.reads(f"{name.decode()} HELP", "How these are used.")(
                        lambda client: help_(client, name)
                    )
                SUBCOMMANDS[name, b"".join(subcommand)] = entry
            else:
                COMMANDS[name] = COMMANDS[name.lower()] = entry
            return function

        return declare

    def views(self, usage: str, summary: str, **more: Any) -> Declaration:
        """Declare a command that looks at one value."""
        return self._declare("reads", usage, summary, self._viewing, **more)

    def edits(
        self, usage: str, summary: str, access: str = "grows", always: bool = False,
        event: str = "", **more: Any,
    ) -> Declaration:  # fmt: skip
        """Declare a command that changes one value.

        :param always: whether it does so even when the reply is None, 0 or an empty list.
        :param event: what the change is called in events, if not by the name of the command.
        """
        event = event or usage.split(maxsplit=1)[0].lower()
        wrap = functools.partial(self._editing, always=always, event=event.encode())
        return self._declare(access, usage, summary, wrap, **more)

    def _viewing(self, function: Callable[..., Reply]) -> Callable[..., Reply]:
        kind = self.kind

        def view(client: Client, key: bytes, *arguments: Any, **options: Any) -> Reply:
            value = client.keyspace.read(key, kind)
            return function(kind() if value is None else value, *arguments, **options)

        return view

    def _editing(
        self, function: Callable[..., Reply], always: bool, event: bytes
    ) -> Callable[..., Reply]:
        kind = self.kind

        def read_for_write(client: Client, key: bytes, *arguments: Any, **options: Any) -> Reply:
            value = client.keyspace.read_for_write(key, kind)
            if value is None:
                value = kind()
            reply = function(value, *arguments, **options)
            if always or reply not in (None, 0, []):
                client.keyspace.write(key, value, event)
            return reply

        return read_for_write


def ensure_memory(client: Client, names: Sequence[bytes], cost: int, held: int = 0) -> None:
    """Look whether there is memory for names of keys or channels that a client has the server
    remember, at a cost each, ``held`` before: a little of it is let in however little is left.

    :raises CommandError: if there is not.
    """
    keyspace = client.keyspace
    size = sum(map(len, names)) + cost * len(names)
    if (
        size + cost * held > MEMORY_CHECK_THRESHOLD
        and keyspace.used_memory + size > keyspace.memory_limit
    ):
        keyspace.free_memory(size)


def find_command(arguments: list[bytes]) -> Command:
    """The entry for a command.

    :raises CommandError: if there is none, or the number of arguments cannot be right.
    """
    name = arguments[0].upper()
    entry = COMMANDS.get(name)
    if name in CONTAINERS:
        subcommand = b"".join(arguments[1:2])
        entry = SUBCOMMANDS.get((name, subcommand.upper()))
        if entry is None and len(arguments) < 2:
            raise wrong_arity(name)
        if entry is None:
            shown = f"'{_printable(subcommand[:ERROR_EXCERPT])}'. Try {_printable(name)} HELP."
            raise CommandError(f"ERR unknown subcommand {shown}")
    if entry is None:
        raise UnknownCommand(arguments[0], arguments[1:])
    # As far as Redis looks before it queues a command; call() does the rest.
    if len(arguments) < entry.min_arguments or len(arguments) > entry.most == entry.min_arguments:
        raise wrong_arity(b"|".join(arguments[: entry.words]))
    return entry


def execute(client: Client, arguments: Any) -> Reply:
    """Carry out one command, under the store's lock, and return its reply, an error included.

    :param arguments: the command's, or the error that reading it ended in.
    """
    if arguments.__class__ is not list:
        return _refuse(client, arguments)
    entry = COMMANDS.get(arguments[0])
    try:
        if entry is None or client.guarded:
            return _execute_guarded(client, arguments)
        if entry.grows and client.keyspace.used_memory > client.keyspace.memory_limit:
            find_command(arguments)  # what is wrong anyway frees nothing
            client.keyspace.free_memory()
        if entry.min_arguments <= len(arguments) <= entry.plain:
            return entry.run(client, *arguments[entry.words :])
        return entry.call(client, arguments)
    except CommandError as error:
        return error
    except Exception:
        # A fault of this program: the client is told, the log says where, everybody else goes on.
        log.exception("Command %r failed", arguments[0])
        return CommandError(INTERNAL_ERROR)


def _refuse(client: Client, error: Any) -> Reply:
    if isinstance(error, ProtocolError):
        client.fault = str(error).partition(" ")[2]
        client.close()
    elif client.guarded:

        def refuse() -> Reply:
            client.spoiled = client.queue is not None
            raise error

        return _muted(client, refuse)
    return error  # type: ignore[no-any-return]


#: What is carried out before a password is given, and what is not queued by MULTI.
_ALLOWED_BEFORE_AUTH = frozenset({"AUTH", "HELLO", "QUIT", "RESET"})
_NEVER_QUEUED = frozenset({"DISCARD", "EXEC", "MULTI", "QUIT", "RESET", "WATCH"})
_NOT_IN_TRANSACTIONS = frozenset({"BGSAVE", "SAVE"})
#: What a subscriber whose protocol does not tell messages from replies may ask for.
_ALLOWED_WHILE_SUBSCRIBED = frozenset(
    {"PING", "PSUBSCRIBE", "PUNSUBSCRIBE", "QUIT", "RESET", "SUBSCRIBE", "UNSUBSCRIBE"}
)
#: What MONITOR does not show, as Redis has it.
_HIDDEN_FROM_MONITOR = frozenset(
    {"BGSAVE", "CLIENT KILL", "CLIENT LIST", "CLIENT UNBLOCK", "CONFIG GET", "CONFIG SET",
     "DEBUG SLEEP", "MONITOR", "SAVE"}
)  # fmt: skip


def _execute_guarded(client: Client, arguments: list[bytes]) -> Reply:
    return _muted(client, functools.partial(_accept, client, arguments))


def _muted(client: Client, call_command: Callable[[], Reply]) -> Reply:
    # The reply, unless the client has said that it wants none.
    skipping = client.reply_mode == "SKIPPING"
    try:
        reply = call_command()
    except CommandError as error:
        reply = error
    muted = client.reply_mode == "OFF"
    if client.reply_mode == "SKIP":
        client.reply_mode = "SKIPPING"
    elif skipping and client.reply_mode == "SKIPPING":
        client.reply_mode = "ON"
        client.guard()
        muted = True
    if client.waiter is not None:
        client.waiter.muted = muted
    return NO_REPLY if muted else reply


def _accept(client: Client, arguments: list[bytes]) -> Reply:
    try:
        entry = find_command(arguments)
        if client.locked_out and entry.name not in _ALLOWED_BEFORE_AUTH:
            raise CommandError("NOAUTH Authentication required.")
        pushed_to = client.subscriber.count() > 0 and client.protocol == 2
        if pushed_to and entry.name not in _ALLOWED_WHILE_SUBSCRIBED:
            name = entry.name.lower().replace(" ", "|")
            raise CommandError(
                f"ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT"
                " / RESET are allowed in this context"
            )
        if client.queue is not None and entry.name in _NOT_IN_TRANSACTIONS:
            raise CommandError("ERR Command not allowed inside a transaction")
        if client.queue is None:
            grows = entry.grows
        elif entry.name == "EXEC":
            grows = any(each.grows for each, _ in client.queue)
        else:
            grows = entry.name not in _NEVER_QUEUED  # to be queued takes memory as well
        if grows and client.keyspace.used_memory > client.keyspace.memory_limit:
            client.keyspace.free_memory()
    except CommandError as error:
        client.spoiled = client.queue is not None
        if arguments[0].upper() == b"EXEC":
            raise abort_transaction(client, error) from None
        raise
    if client.queue is None or entry.name in _NEVER_QUEUED:
        return call_command(client, entry, arguments)
    client.queue.append((entry, arguments))
    size = QUEUED_COST + sum(map(memory_cost, arguments))
    client.queued += size
    client.keyspace.reserve(size)
    return QUEUED


def call_command(client: Client, entry: Command, arguments: list[bytes]) -> Reply:
    """Call a command, while somebody may want to know of it.

    :raises CommandError: as the command does.
    """
    channels = client.live.channels
    try:
        return entry.call(client, arguments)
    finally:
        if channels.monitors and entry.name not in _HIDDEN_FROM_MONITOR:
            channels.tell(_monitor_line(client, entry, arguments), channels.monitors)


_ESCAPES: dict[int, str] = {
    **{code: f"\\x{code:02x}" for code in range(256) if not 0x20 <= code < 0x7F},
    **{ord(char): "\\" + char for char in '\\"'},
    **{ord(char): "\\" + letter for char, letter in zip("\n\r\t\a\b", "nrtab")},
}


def _monitor_line(client: Client, entry: Command, arguments: list[bytes]) -> Status:
    # The line that MONITOR shows for a command.
    # Of a long argument the beginning: all of it would take long, and much memory.
    words = [
        word[:MONITOR_EXCERPT].decode("latin-1").translate(_ESCAPES)
        + "..." * (len(word) > MONITOR_EXCERPT)
        for word in arguments
    ]
    secret = 1 if entry.name == "AUTH" else len(words)
    if entry.name == "HELLO":
        secret = 1 + [*map(bytes.upper, arguments), b"AUTH"].index(b"AUTH")
    words[secret:] = ["(redacted)"] * (len(words) - secret)
    address = client.peer.address
    address = f"unix:{address.rpartition(':')[0]}" if address.startswith("/") else address
    seconds, rest = divmod(time.time_ns() // 1000, 1_000_000)
    shown = " ".join(f'"{word}"' for word in words)
    return Status(f"{seconds}.{rest:06} [0 {address}] {shown}".encode("utf-8", "replace"))


def abort_transaction(client: Client, error: CommandError) -> CommandError:
    """End the transaction; the error for an EXEC that was itself refused."""
    client.end_transaction()
    reason = re.sub("^ERR ", "", str(error))
    return CommandError(f"EXECABORT Transaction discarded because of: {reason}")


# ----------------------------------------------------------------------------
# Commands: what their arguments say
# ----------------------------------------------------------------------------

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_FLOAT = re.compile(rb"[+-]?(?:(\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,4})?|inf(?:inity)?)", re.IGNORECASE)


# Every function of this section raises CommandError for an argument that is not what it says,
# with the text given where one is.


def parse_integer(
    argument: bytes, error: str = NOT_AN_INTEGER, minimum: int = INTEGER_MIN,
    most: int = INTEGER_MAX, beyond: str | None = None,
) -> int:  # fmt: skip
    """An integer as Redis accepts it: no blanks, no plus, no leading zeros, 64 bits.

    :param beyond: the text for one that is not from ``least`` to ``most``, if another one.
    """
    number = int(argument) if _INTEGER.fullmatch(argument) else None
    if number is None or not INTEGER_MIN <= number <= INTEGER_MAX:
        raise CommandError(error)
    if not minimum <= number <= most:
        raise CommandError(beyond or error)
    return number


def add_integer(number: int, increment: int) -> int:
    """Their sum, which must fit 64 bits."""
    if not INTEGER_MIN <= number + increment <= INTEGER_MAX:
        raise CommandError(OVERFLOW)
    return number + increment


def match_number(argument: bytes, error: str = NOT_A_FLOAT) -> re.Match[bytes]:
    """A number in decimal, with or without an exponent; infinite ones too."""
    match = _FLOAT.fullmatch(argument) if len(argument) <= MAX_NUMBER else None
    if match is None:
        raise CommandError(error)
    return match


def parse_float(argument: bytes) -> float:
    """The same as a float, neither too great nor too small to be told from what it is not."""
    digits, number = match_number(argument)[1], float(argument)
    if digits and (math.isinf(number) or (not number and digits.strip(b"0."))):
        raise CommandError(NOT_A_FLOAT)
    return number


def add_decimal(value: bytes, error: str, increment: bytes) -> bytes:
    """The sum of two numbers, with 17 places after the point at most, none of them a last 0.

    Redis calculates with 64 significant bits, which are more than a Python float has. The error
    is for the first.
    """
    numbers = [match_number(value, error)[0], match_number(increment)[0]]
    if any(b"i" in number.lower() for number in numbers):
        raise CommandError("ERR increment would produce NaN or Infinity")
    one, other = (_round_to_64_bits(fractions.Fraction(number.decode())) for number in numbers)
    for number, what in ((one, error), (other, NOT_A_FLOAT), (one + other, NOT_A_FLOAT)):
        if abs(number) >= 2**16384:  # which is infinite to Redis
            raise CommandError(what)
    total = _round_to_64_bits(one + other)
    key_positions = round(abs(total) * 10**17)
    text = f"{_long_decimal(key_positions // 10**17)}.{key_positions % 10**17:017}".rstrip(
        "0"
    ).rstrip(".")
    return f"-{text}".encode() if total < 0 and key_positions else text.encode()


def _long_decimal(number: int) -> str:
    # Python has a limit to what it writes in decimal, and needs long for much.
    most = 10**MAX_NUMBER
    return str(number) if number < most else f"{number // most}{number % most:0{MAX_NUMBER}}"


def _parse_decimal(argument: bytes) -> bytes:
    if b"i" in match_number(argument)[0].lower():
        raise CommandError("ERR value is NaN or Infinity")
    return argument


def _round_to_64_bits(number: fractions.Fraction) -> fractions.Fraction:
    if not number:
        return number
    bits = abs(number.numerator).bit_length() - number.denominator.bit_length()
    unit = fractions.Fraction(2) ** (bits - 64)
    if abs(number) >= unit * 2**64:
        unit *= 2
    return round(number / unit) * unit


def _parse_bounded(argument: bytes, minimum: int, most: int) -> int:
    beyond = f"ERR value is out of range, value must between {minimum} and {most}"
    return parse_integer(argument, NOT_AN_INTEGER, minimum, most, beyond)


def _database(argument: bytes) -> int:
    if _parse_bounded(argument, -(2**31), 2**31 - 1) != 0:
        raise CommandError("ERR DB index is out of range")
    return 0


def _rank(argument: bytes) -> int:
    rank = parse_integer(argument)
    if rank == 0:
        raise CommandError(
            "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ..."
            " or use negative to start from the end of the list"
        )
    # The least integer has no opposite: Redis, until 7.2, takes it for -1.
    return -1 if rank == INTEGER_MIN else rank


def parse_bound(argument: bytes) -> tuple[float, bool]:
    """A score that bounds a range, and whether it is left out itself, as in ``(5``."""
    exclusive = argument.startswith(b"(")
    number = argument[exclusive:].lstrip() if argument[exclusive:] else b"0"
    return float(match_number(number, "ERR min or max is not a float")[0]), exclusive


def _choice(words: str, argument: bytes) -> str:
    word = argument.decode("latin-1").upper()
    if word not in words.split("|"):
        raise CommandError(SYNTAX_ERROR)
    return word


for _name in ("LEFT|RIGHT", "BEFORE|AFTER", "ON|OFF|SKIP"):
    PARSERS[_name] = functools.partial(_choice, _name)
for _name in ("decrement", "end", "increment", "occurrences", "offset", "size", "start", "stop"):
    PARSERS[_name] = parse_integer
PARSERS.update(
    {
        "count": lambda word: parse_integer(word, "ERR value is out of range, must be positive", 0),
        "database": _database,
        "decimal": _parse_decimal,
        "len": lambda word: parse_integer(word, "ERR MAXLEN can't be negative", 0),
        "limit": lambda word: parse_integer(word, "ERR LIMIT can't be negative", 0),
        "max": parse_bound,
        "min": parse_bound,
        "num-matches": lambda word: parse_integer(word, "ERR COUNT can't be negative", 0),
        "page-size": lambda word: parse_integer(word, minimum=1, beyond=SYNTAX_ERROR),
        "rank": _rank,
        "signed-count": lambda word: _parse_bounded(word, -INTEGER_MAX, INTEGER_MAX),
    }
)


def slice_bounds(start: int, stop: int, length: int) -> tuple[int, int]:
    """The range from ``start`` to ``stop`` of LRANGE and its like, as Python's slices have it."""
    first = max(start + length, 0) if start < 0 else start
    last = stop + length if stop < 0 else min(stop, length - 1)
    return (first, last + 1) if first <= last else (0, 0)


def parse_deadline(
    client: Client, name: str, argument: bytes, unit: int, absolute: bool,
    minimum: int = INTEGER_MIN,
) -> int:  # fmt: skip
    """The deadline so many units (of ``unit`` milliseconds) from now, or from 1970."""
    number = parse_integer(argument)
    duration = number * unit
    now, epoch = client.keyspace.now(), client.keyspace.unix_time(0)
    latest = INTEGER_MAX if absolute else INTEGER_MAX - epoch - now
    if number < minimum or not INTEGER_MIN <= duration <= latest:
        raise invalid_expire(name)
    return WallClockDeadline(duration - epoch) if absolute else duration + now


#: The options for a time to live: the unit in milliseconds, and whether it counts from 1970.
EXPIRY_OPTIONS = {"ex": (1000, False), "px": (1, False), "exat": (1000, True), "pxat": (1, True)}


def parse_expiry(client: Client, name: str, options: dict[str, Any]) -> int | None:
    """The deadline for a value yet to be set, by whichever of those options is given."""
    for option, (unit, absolute) in EXPIRY_OPTIONS.items():
        if option in options:
            return parse_deadline(client, name, options[option], unit, absolute, minimum=1)
    return None


def split_numkeys(numkeys: bytes, words: Sequence[bytes], many: str) -> tuple[Any, Sequence[bytes]]:
    """The keys that a number stands before, and what comes after them; ``many``: the error."""
    size = parse_integer(numkeys, "ERR numkeys should be greater than 0", 1)
    if size > len(words):
        raise CommandError(many)
    return words[:size], words[size:]


def parse_mpop_arguments(
    numkeys: bytes, words: Sequence[bytes], sides: str
) -> tuple[Sequence[bytes], str, int]:
    """The keys, the side, and the count of LMPOP and its like."""
    names, rest = split_numkeys(numkeys, words, SYNTAX_ERROR)
    if not rest:
        raise CommandError(SYNTAX_ERROR)
    side = _choice(sides, rest[0])
    options, more = Options("[COUNT number]").split(rest[1:3])
    count = parse_integer(options.get("count", b"1"), "ERR count should be greater than 0", 1)
    if more or len(rest) > 3:
        raise CommandError(SYNTAX_ERROR)
    return names, side, count


def pop_or_block(
    client: Client, names: Sequence[bytes], kind: type, attempt: Callable[[bytes], Reply],
    timeout: bytes | None = None, nothing: Reply = NULL_ARRAY,
) -> Reply:  # fmt: skip
    """Take something from the first of several keys that has it, or wait until one has.

    :param kind: what the keys hold.
    :param attempt: takes it from a key that holds such a value.
    :param timeout: the seconds to wait at most, 0 for no end; None: not to wait.
    :param nothing: the reply where a client must not wait.
    """
    seconds = None if timeout is None else _timeout(timeout)
    for key in names:
        if client.keyspace.read_for_write(key, kind) is not None:
            return attempt(key)
    if seconds is None or not client.can_block:
        return nothing
    deadline = time.monotonic() + seconds if seconds else None
    ensure_memory(client, names, WATCH_COST)
    return block_client(
        client, BlockedClient(client.live.waiting, client.peer, kind, attempt, deadline), names
    )


def block_client(client: Client, waiter: BlockedClient, names: Iterable[bytes]) -> Reply:
    """Let a client wait for these keys: its reply is yet to come."""
    client.waiter = waiter
    client.live.waiting.add(waiter, names)
    client.halted = True
    return NO_REPLY


def _timeout(argument: bytes) -> float:
    seconds = float(match_number(argument, "ERR timeout is not a float or out of range")[0])
    # Beyond 64 bits Redis says so as well.
    if not 0 <= seconds * 1000 <= INTEGER_MAX:
        raise CommandError("ERR timeout is negative")
    return seconds


def parse_cursor(argument: bytes) -> int:
    """The cursor of SCAN and its like."""
    # What strtoul() takes, which Redis leaves it to.
    fits = len(argument) <= 21 and re.fullmatch(rb"([+-]?\d+)?", argument)
    cursor = int(argument or b"0") if fits else 2**64
    if abs(cursor) >= 2**64:
        raise CommandError("ERR invalid cursor")
    return cursor % 2**64


def scan_page(
    walk: Callable[[int, int], tuple[int, list[bytes]]], cursor: int, options: dict[str, Any]
) -> tuple[bytes, list[bytes]]:
    """The next cursor of a walk, and the keys that match the options of SCAN and its like."""
    cursor, found = walk(cursor, min(options.get("count", 10), MAX_SCAN))
    pattern = options.get("match", b"*")
    return b"%d" % cursor, found if pattern == b"*" else list(filter(compile_glob(pattern), found))


def declare_scan(
    family: Family, name: str, what: str, pending_clients: Callable[[Any, bytes], Any]
) -> None:
    """Declare HSCAN, SSCAN or ZSCAN; ``told`` gives what is told of a member, as a tuple."""
    usage = f"{name} key cursor [MATCH pattern] [COUNT page-size]"
    options = Options(usage)

    @family.reads(usage, f"Some of the {what}, and the cursor for more.", raw=True)
    def scan_value(client: Client, key: bytes, cursor: bytes, *words: bytes) -> Reply:
        start = parse_cursor(cursor)
        value: Any = client.keyspace.read(key, family.kind)
        if value is None:
            return [b"0", []]
        chosen = options.parse(words)
        table: Any = value
        members: Any = list
        if isinstance(value, SortedSet):
            table, members = value.scores, SortedSet.members
        # As Redis does it, a short one comes whole.
        walk = table.scan if len(value) > SCAN_ALL_BELOW else lambda *_: (0, members(value))
        following, found = scan_page(walk, start, chosen)
        return [following, [each for member in found for each in pending_clients(value, member)]]


def random_members(table: ScannableDict, count: int) -> list[bytes]:
    """So many members by chance; of a negative number each may come more than once."""
    if -count > LIMITS["max_arguments"].default:
        raise CommandError("ERR value is out of range")
    if not table or 4 * abs(count) > len(table):
        members = list(table)
        if count >= 0:
            return random.sample(members, min(count, len(members)))
        return random.choices(members, k=-count) if members else []
    # Of many members few are drawn, or all would have to be listed for each.
    if count < 0:
        return [table.random_key() for _ in range(-count)]
    chosen: dict[bytes, None] = {}
    while len(chosen) < count:
        chosen[table.random_key()] = None
    return list(chosen)


# ----------------------------------------------------------------------------
# Commands: strings
# ----------------------------------------------------------------------------

strings = Family("string")
_EXPIRY = "EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds"


@strings.reads("GET key", "The value of a key.")
@strings.reads("G key", "The value of a key.")
def get(client: Client, key: bytes) -> Reply:
    return client.keyspace.read(key, bytes)


@strings.grows(f"SET key value [NX|XX|IFEQ comparison-value] [GET] [{_EXPIRY}|KEEPTTL] [OWNED]",
               "Set a key; in text everything after the key is the value. OWNED: until this"
               " connection ends.")  # fmt: skip
@strings.grows("GETSET key value", "Set a key and return the value it had.", get=True)
def set_(client: Client, key: bytes, value: bytes, **options: Any) -> Reply:
    keyspace = client.keyspace
    if not options:
        keyspace.replace(key, value)
        return OK
    deadline = parse_expiry(client, "set", options)
    compared = "get" in options or "ifeq" in options
    old = keyspace.read(key, bytes) if compared else keyspace.peek(key)
    if "ifeq" in options:
        done = old == options["ifeq"]
    else:
        done = not (("nx" in options and old is not None) or ("xx" in options and old is None))
    if done:
        if "keepttl" in options:
            keyspace.clear_owner(key)
            keyspace.write(key, value, b"set")
        else:
            keyspace.replace(key, value, deadline)
        if "owned" in options:
            keyspace.set_owner(key, client)
    if "get" in options:
        return old
    return OK if done else None


strings.grows("SETNX key value", "Set a key that does not exist: 1 if set, 0 if it exists.")(
    lambda client, key, value: int(set_(client, key, value, nx=True) is OK)
)


@strings.grows("SETEX key seconds value", "Set a key with a time to live.", unit="ex")
@strings.grows("PSETEX key milliseconds value", "SETEX in milliseconds.", unit="px")
def setex(client: Client, key: bytes, duration: bytes, value: bytes, unit: str) -> Reply:
    name = "setex" if unit == "ex" else "psetex"
    client.keyspace.replace(key, value, parse_expiry(client, name, {unit: duration}))
    return OK


@strings.writes("GETDEL key", "Delete a key and return the value it had.")
def getdel(client: Client, key: bytes) -> Reply:
    old = client.keyspace.read(key, bytes)
    client.keyspace.delete(key)
    return old


@strings.writes(f"GETEX key [{_EXPIRY}|PERSIST]", "The value of a key; changes its time to live.")
def getex(client: Client, key: bytes, **options: Any) -> Reply:
    value = client.keyspace.read(key, bytes)
    if value is not None:
        deadline = parse_expiry(client, "getex", options)
        if deadline is not None:
            client.keyspace.expire(key, deadline)
        elif options:
            client.keyspace.persist(key)
    return value


@strings.grows("APPEND key value", "Add to the end of a value and return its new length.")
def append(client: Client, key: bytes, value: bytes) -> Reply:
    return _write_checked(
        client, key, (client.keyspace.read_for_write(key, bytes) or b"") + value, b"append"
    )


@strings.grows("SETRANGE key offset value", "Overwrite part of a value; its new length.")
def setrange(client: Client, key: bytes, offset: int, value: bytes) -> Reply:
    if offset < 0:
        raise CommandError("ERR offset is out of range")
    length = len(client.keyspace.read_for_write(key, bytes) or b"")
    if not value:
        return length
    _check_length(client, offset + len(value), length)
    old = client.keyspace.read_for_write(key, bytes) or b""  # unless it had to give way
    before = old[:offset].ljust(offset, b"\0")
    after = old[offset + len(value) :]
    return _write_checked(client, key, before + value + after, b"setrange")


def _write_checked(client: Client, key: bytes, value: bytes, event: bytes) -> int:
    _check_length(client, len(value), len(value))
    client.keyspace.write(key, value, event)
    return len(value)


def _check_length(client: Client, length: int, old: int) -> None:
    # No longer than a client could have sent it; and if much of it was not sent, which would have
    # been counted, then than there is room for.
    if length > client.settings.max_message:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    keyspace, more = client.keyspace, length - old
    if more > MEMORY_CHECK_THRESHOLD and keyspace.used_memory + more > keyspace.memory_limit:
        keyspace.free_memory(more)


strings.views("STRLEN key", "The length of a value in bytes.")(len)


@strings.views("GETRANGE key start end", "The part of a value between two positions.")
def getrange(value: bytes, start: int, end: int) -> Reply:
    if end < 0 <= start or start <= end:
        first, last = slice_bounds(start, max(end, -len(value)), len(value))
        return value[first:last]
    return b""


strings.reads("MGET key [key ...]", "The values of several keys.")(
    lambda client, *names: client.keyspace.read_strings(names)
)


@strings.grows("MSET key value [key value ...]", "Set several keys at once.")
def mset(client: Client, *pairs: bytes) -> Reply:
    for key, value in zip(pairs[::2], pairs[1::2]):
        client.keyspace.replace(key, value)
    return OK


@strings.grows("MSETNX key value [key value ...]", "MSET, if none of the keys exists.")
def msetnx(client: Client, *pairs: bytes) -> Reply:
    if any(key in client.keyspace for key in pairs[::2]):
        return 0
    return int(mset(client, *pairs) is OK)


@strings.grows("INCR key", "Add 1 to a counter and return it.", sign=1)
@strings.grows("DECR key", "Take 1 from a counter and return it.", sign=-1)
@strings.grows("INCRBY key increment", "Add to a counter and return it.", sign=1)
@strings.grows("DECRBY key decrement", "Take from a counter and return it.", sign=-1)
def incrby(client: Client, key: bytes, increment: int = 1, *, sign: int) -> Reply:
    if sign * increment > INTEGER_MAX:
        raise CommandError("ERR decrement would overflow")
    value = client.keyspace.read_for_write(key, bytes)
    number = add_integer(0 if value is None else parse_integer(value), sign * increment)
    client.keyspace.write(key, b"%d" % number, b"incrby")
    return number


@strings.grows("INCRBYFLOAT key number", "Add a decimal number to a value; the sum.")
def incrbyfloat(client: Client, key: bytes, increment: bytes) -> Reply:
    value = client.keyspace.read_for_write(key, bytes)
    total = add_decimal(b"0" if value is None else value, NOT_A_FLOAT, increment)
    client.keyspace.write(key, total, b"incrbyfloat")
    return total


# ----------------------------------------------------------------------------
# Commands: keys
# ----------------------------------------------------------------------------

keys = Family("generic")


@keys.writes("DEL key [key ...]", "Delete keys and return how many there were.")
@keys.writes("UNLINK key [key ...]", "DEL by another name.")
def del_(client: Client, *names: bytes) -> Reply:
    return sum(map(client.keyspace.delete, names))


@keys.writes("DELEX key [IFEQ value|IFNE value]", "Delete a key if its value is this, or is not.")
def delex(client: Client, key: bytes, **options: bytes) -> Reply:
    value = client.keyspace.peek(key)
    if options and value is not None and not isinstance(value, bytes):
        raise CommandError("ERR Key should be of string type if conditions are specified")
    if value is None or ("ifeq" in options and value != options["ifeq"]):
        return 0
    return int(value != options.get("ifne") and client.keyspace.delete(key))


keys.reads("EXISTS key [key ...]", "How many of the keys exist.")(
    lambda client, *names: sum(client.keyspace.lookup_no_touch(key) is not None for key in names)
)
keys.reads("TOUCH key [key ...]", "EXISTS that counts as a use of the keys.")(
    lambda client, *names: sum(client.keyspace.lookup(key) is not None for key in names)
)
keys.reads("RANDOMKEY", "Any key.")(lambda client: client.keyspace.random_key())
keys.writes("PERSIST key", "Take away a key's time to live: 1 if it had one.")(
    lambda client, key: int(client.keyspace.persist(key))
)
keys.writes("DELIFEQ key value", "Delete a key if its value is this: 1 if deleted.")(
    lambda client, key, value: int(
        client.keyspace.read_for_write(key, bytes) == value and client.keyspace.delete(key)
    )
)

# fmt: off
TYPE_NAMES = {
    type(None): b"none", bytes: b"string", ListValue: b"list",
    Hash: b"hash", Set: b"set", SortedSet: b"zset",
}
# fmt: on
keys.reads("TYPE key", "The kind of a key's value: string, list, hash, set, zset or none.")(
    lambda client, key: Status(TYPE_NAMES[type(client.keyspace.lookup_no_touch(key))])
)


@keys.writes("RENAME key newkey", "Give a key another name.")
@keys.writes("RENAMENX key newkey", "RENAME, if there is no key of that name.", only_new=True)
def rename(client: Client, key: bytes, newkey: bytes, *, only_new: bool = False) -> Reply:
    if key not in client.keyspace:
        raise CommandError("ERR no such key")
    if only_new and newkey in client.keyspace:
        return 0
    client.keyspace.rename(key, newkey)
    return 1 if only_new else OK


@keys.grows("COPY source destination [DB database] [REPLACE]", "Copy a key: 1 if done.")
def copy(
    client: Client, source: bytes, target: bytes, *, db: int = 0, replace: bool = False
) -> Reply:
    if source == target:
        raise CommandError("ERR source and destination objects are the same")
    if client.keyspace.lookup(source) is None or (target in client.keyspace and not replace):
        return 0
    client.keyspace.copy(source, target)
    return 1


@keys.reads("KEYS pattern", "The keys that match a pattern such as user:*.")
def keys_(client: Client, pattern: bytes) -> Reply:
    everything = client.keyspace.keys()
    return everything if pattern == b"*" else list(filter(compile_glob(pattern), everything))


_SCAN = "SCAN cursor [MATCH pattern] [COUNT page-size] [TYPE type]"


@keys.reads(_SCAN, "Some of the keys, and the cursor for more; 0 begins and ends.", raw=True)
def scan(client: Client, cursor: bytes, *words: bytes) -> Reply:
    start, options = parse_cursor(cursor), Options(_SCAN).parse(words)
    following, found = scan_page(client.keyspace.scan, start, options)
    if "type" in options:
        wanted, peek = options["type"].lower(), client.keyspace.peek
        found = [key for key in found if TYPE_NAMES[type(peek(key))] == wanted]
    return [following, found]


_IF = "[NX] [XX] [GT] [LT]"


@keys.writes(
    f"EXPIRE key seconds {_IF}",
    "Let a key expire after so long: 1 if done.",
    raw=True,
    name="expire",
)
@keys.writes(f"PEXPIRE key milliseconds {_IF}", "EXPIRE in milliseconds.", raw=True, name="pexpire")
@keys.writes(f"EXPIREAT key unix-time-seconds {_IF}", "Let a key expire at a time, in seconds since"
             " 1970: 1 if done.", raw=True, name="expireat")  # fmt: skip
@keys.writes(f"PEXPIREAT key unix-time-milliseconds {_IF}", "EXPIREAT in milliseconds.",
             raw=True, name="pexpireat")  # fmt: skip
def expire(client: Client, key: bytes, time: bytes, *words: bytes, name: str) -> Reply:
    conditions = {word.upper() for word in words}
    for word in words:
        if word.upper() not in (b"NX", b"XX", b"GT", b"LT"):
            raise CommandError(f"ERR Unsupported option {_printable(word)}")
    if b"NX" in conditions and len(conditions) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= conditions:
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    unit = 1 if name.startswith("p") else 1000
    deadline = parse_deadline(client, name, time, unit, absolute=name.endswith("at"))
    if key not in client.keyspace:
        return 0
    # A key without a time to live has an endless one.
    current = client.keyspace.deadline(key)
    end = math.inf if current is None else current
    met = {
        b"NX": current is None,
        b"XX": current is not None,
        b"GT": deadline > end,
        b"LT": deadline < end,
    }
    if not all(met[condition] for condition in conditions):
        return 0
    client.keyspace.expire(key, deadline)
    return 1


@keys.reads("TTL key", "The seconds a key has left; -1: no end, -2: no key.", unit=1000)
@keys.reads("PTTL key", "TTL in milliseconds.", unit=1)
@keys.reads("EXPIRETIME key", "When a key expires, in seconds since 1970.", unit=1000, at=True)
@keys.reads("PEXPIRETIME key", "EXPIRETIME in milliseconds.", unit=1, at=True)
def ttl(client: Client, key: bytes, *, unit: int, at: bool = False) -> Reply:
    if client.keyspace.lookup_no_touch(key) is None:
        return -2
    deadline = client.keyspace.deadline(key)
    if deadline is None:
        return -1
    left = client.keyspace.unix_time(deadline) if at else deadline - client.keyspace.now()
    return (left + unit // 2) // unit


@keys.reads("OBJECT ENCODING key", "How Redis would hold a value such as this.")
def object_encoding(client: Client, key: bytes) -> Reply:
    value = client.keyspace.peek(key)
    if isinstance(value, bytes):
        number = _INTEGER.fullmatch(value) and INTEGER_MIN <= int(value) <= INTEGER_MAX
        return b"int" if number else b"embstr" if len(value) <= 44 else b"raw"
    if isinstance(value, Set):
        numbers = len(value) <= 512 and all(map(_INTEGER.fullmatch, value))
        return b"intset" if numbers else b"hashtable"
    if isinstance(value, (Hash, SortedSet)):
        members = value if isinstance(value, Hash) else value.scores
        most, long = (512, b"hashtable") if isinstance(value, Hash) else (128, b"skiplist")
        texts = (each for pair in members.items() for each in pair if isinstance(each, bytes))
        short = len(members) <= most and all(len(each) <= 64 for each in texts)
        return b"listpack" if short else long
    return None if value is None else b"quicklist"


@keys.reads("OBJECT IDLETIME key", "The seconds since a key was used, under an LRU policy.")
def object_idletime(client: Client, key: bytes) -> Reply:
    if key not in client.keyspace:
        return None
    idle = client.keyspace.idle_time(key)
    if idle is None:
        raise CommandError(
            "ERR the time of use is kept under an LRU policy only, as after"
            " CONFIG SET maxmemory-policy allkeys-lru"
        )
    return idle // 1000


# ----------------------------------------------------------------------------
# Commands: lists
# ----------------------------------------------------------------------------

lists = Family("list", ListValue)


@lists.edits("LPUSH key element [element ...]", "Add at the head; the length.", left=True)
@lists.edits("RPUSH key element [element ...]", "Add at the tail; the length.", left=False)
@lists.edits("LPUSHX key element [element ...]", "LPUSH to a list there is.", event="lpush",
             left=True, any=False)  # fmt: skip
@lists.edits("RPUSHX key element [element ...]", "RPUSH to a list there is.", event="rpush",
             left=False, any=False)  # fmt: skip
def push(value: ListValue, *elements: bytes, left: bool, any: bool = True) -> Reply:
    if value or any:
        value.push(elements, left)
    return len(value)


@lists.edits("LPOP key [count]", "Take from the head.", "writes", left=True)
@lists.edits("RPOP key [count]", "Take from the tail.", "writes", left=False)
def pop(value: ListValue, count: int | None = None, *, left: bool) -> Reply:
    if not value:
        return None if count is None else NULL_ARRAY
    taken = value.pop_many(left, 1 if count is None else count)
    return taken[0] if count is None else taken


lists.views("LLEN key", "The length of a list.")(len)


lists.views("LRANGE key start stop", "The elements between two positions.")(
    lambda value, start, stop: list(itertools.islice(value, *slice_bounds(start, stop, len(value))))
)


def _position(value: ListValue, index: bytes) -> int | None:
    position = parse_integer(index)
    return position if -len(value) <= position < len(value) else None


@lists.views("LINDEX key index", "The element at a position.")
def lindex(value: ListValue, index: bytes) -> Reply:
    position = _position(value, index) if value else None
    return None if position is None else value[position]


@lists.edits("LSET key index element", "Replace the element at a position.")
def lset(value: ListValue, index: bytes, element: bytes) -> Reply:
    if not value:
        raise CommandError("ERR no such key")
    position = _position(value, index)
    if position is None:
        raise CommandError("ERR index out of range")
    value.data_bytes += len(element) - len(value[position])
    value[position] = element
    return OK


@lists.grows("LINSERT key BEFORE|AFTER pivot element", "Add beside a pivot; the length, or -1.")
def linsert(client: Client, key: bytes, where: str, pivot: bytes, element: bytes) -> Reply:
    value = client.keyspace.read_for_write(key, ListValue)
    if value is None or pivot not in value:
        return 0 if value is None else -1
    value.insert(value.index(pivot) + (where == "AFTER"), element)
    value.data_bytes += len(element)
    client.keyspace.write(key, value, b"linsert")
    return len(value)


@lists.edits("LREM key occurrences element", "Delete equal ones; below 0: from the tail.", "writes")
def lrem(value: ListValue, count: int, element: bytes) -> Reply:
    before = len(value)
    most = abs(count) or before
    remaining = []
    for each in reversed(value) if count < 0 else value:
        if most and each == element:
            most -= 1
        else:
            remaining.append(each)
    if len(remaining) < before:
        value.replace_elements(reversed(remaining) if count < 0 else remaining)
    return before - len(remaining)


@lists.edits("LTRIM key start stop", "Keep only the elements between two positions.", "writes")
def ltrim(value: ListValue, start: int, stop: int) -> Reply:
    first, last = slice_bounds(start, stop, len(value))
    # From the ends, so that to keep a list short by this after each push costs no more.
    value.pop_many(False, len(value) - last)
    value.pop_many(True, first)
    return OK


@lists.views("LPOS key element [RANK rank] [COUNT num-matches] [MAXLEN len]",
             "The position of the first equal element, or of several with COUNT.")  # fmt: skip
def lpos(
    value: ListValue, element: bytes, rank: int = 1, count: int | None = None, maxlen: int = 0
) -> Reply:
    walk = enumerate(value) if rank > 0 else zip(range(len(value) - 1, -1, -1), reversed(value))
    first_ones = itertools.islice(walk, min(maxlen, len(value)) or None)
    matches = (position for position, each in first_ones if each == element)
    most = 1 if count is None else count or len(value)
    skipped = min(abs(rank) - 1, len(value))
    found = list(itertools.islice(matches, skipped, skipped + min(most, len(value))))
    return found if count is not None else found[0] if found else None


_MOVE = "source destination LEFT|RIGHT LEFT|RIGHT"


@lists.grows(f"LMOVE {_MOVE}", "Take from one list, add to another.", waits=False)
@lists.grows("RPOPLPUSH source destination", "LMOVE source destination RIGHT LEFT.", waits=False)
@lists.grows(f"BLMOVE {_MOVE} timeout", "LMOVE that waits.", waits=True)
@lists.grows("BRPOPLPUSH source destination timeout", "RPOPLPUSH that waits.", waits=True)
def lmove(client: Client, source: bytes, target: bytes, *words: Any, waits: bool) -> Reply:
    sides, timeout = (words[:-1], words[-1]) if waits else (words, None)
    taken, put = sides or ("RIGHT", "LEFT")

    def move(source: bytes) -> Reply:
        value: Any = client.keyspace.read_for_write(source, ListValue)
        other = (
            value
            if source == target
            else client.keyspace.read_for_write(target, ListValue) or ListValue()
        )
        element = value.pop_end(taken == "LEFT")
        other.push([element], put == "LEFT")
        client.keyspace.write(target, other, b"lpush" if put == "LEFT" else b"rpush")
        client.keyspace.write(source, value, b"lpop" if taken == "LEFT" else b"rpop")
        return element  # type: ignore[no-any-return]

    return pop_or_block(client, [source], ListValue, move, timeout, nothing=None)


@lists.writes("BLPOP key [key ...] timeout", "LPOP from the first list that has something, waits"
              " for that; its key and the element.", left=True)  # fmt: skip
@lists.writes("BRPOP key [key ...] timeout", "BLPOP from the tail.", left=False)
def blpop(client: Client, *words: bytes, left: bool) -> Reply:
    def take(key: bytes) -> Reply:
        return [key, *_pop_elements(client, key, left, 1)]

    return pop_or_block(client, words[:-1], ListValue, take, words[-1])


_MPOP = "numkeys key [key ...] LEFT|RIGHT [COUNT count]"


@lists.writes(f"LMPOP {_MPOP}", "LPOP from the first list that has something; its key and the"
              " elements.", waits=False)  # fmt: skip
@lists.writes(f"BLMPOP timeout {_MPOP}", "LMPOP that waits.", waits=True)
def lmpop(client: Client, *words: bytes, waits: bool) -> Reply:
    names, side, count = parse_mpop_arguments(words[waits], words[waits + 1 :], "LEFT|RIGHT")

    def take(key: bytes) -> Reply:
        return [key, _pop_elements(client, key, side == "LEFT", count)]

    return pop_or_block(client, names, ListValue, take, words[0] if waits else None)


def _pop_elements(client: Client, key: bytes, left: bool, most: int) -> list[bytes]:
    value: Any = client.keyspace.read_for_write(key, ListValue)
    taken = value.pop_many(left, most)
    client.keyspace.write(key, value, b"lpop" if left else b"rpop")
    return taken  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------
# Commands: hashes
# ----------------------------------------------------------------------------

hashes = Family("hash", Hash)


@hashes.edits("HSET key field value [field value ...]", "Set fields: how many new.", always=True)
def hset(value: Hash, *pairs: bytes) -> Reply:
    return sum(map(value.put, pairs[::2], pairs[1::2]))


@hashes.edits("HMSET key field value [field value ...]", "HSET that answers OK.", event="hset")
def hmset(value: Hash, *pairs: bytes) -> Reply:
    hset(value, *pairs)
    return OK


hashes.edits("HSETNX key field value", "Set a field that does not exist: 1 if set.", event="hset")(
    lambda value, field, content: int(field not in value and value.put(field, content))
)
hashes.views("HGET key field", "The value of a field.")(lambda value, field: value.get(field))
hashes.views("HMGET key field [field ...]", "The values of several fields.")(
    lambda value, *fields: list(map(value.get, fields))
)
hashes.views("HGETALL key", "Every field and its value.")(dict)
hashes.views("HKEYS key", "Every field.")(list)
hashes.views("HVALS key", "The value of every field.")(lambda value: list(value.values()))
hashes.views("HLEN key", "How many fields there are.")(len)
hashes.views("HEXISTS key field", "1 if it exists.")(lambda value, field: int(field in value))
hashes.views("HSTRLEN key field", "The length of a field's value in bytes.")(
    lambda value, field: len(value.get(field, b""))
)
hashes.edits("HDEL key field [field ...]", "Delete fields; how many there were.", "writes")(
    lambda value, *fields: sum(map(value.remove, fields))
)


@hashes.edits("HINCRBY key field increment", "Add to a counter in a field.", always=True)
def hincrby(value: Hash, field: bytes, increment: int) -> Reply:
    number = add_integer(parse_integer(value.get(field, b"0"), BAD_HASH_INTEGER), increment)
    value.put(field, b"%d" % number)
    return number


@hashes.edits("HINCRBYFLOAT key field decimal", "Add a decimal number to a field; the sum.")
def hincrbyfloat(value: Hash, field: bytes, increment: bytes) -> Reply:
    total = add_decimal(value.get(field, b"0"), "ERR hash value is not a float", increment)
    value.put(field, total)
    return total


@hashes.reads("HRANDFIELD key [count] [WITHVALUES]", "A field by chance, or several; different"
              " ones if the count is above 0.", raw=True)  # fmt: skip
def hrandfield(client: Client, key: bytes, *words: bytes) -> Reply:
    count = PARSERS["signed-count"](words[0]) if words else 1
    options = Options("[WITHVALUES]").parse(words[1:])
    if options and abs(count) > INTEGER_MAX // 2:
        raise CommandError("ERR value is out of range")
    value = client.keyspace.read(key, Hash) or Hash()
    if not words:
        return value.random_key() if value else None
    fields = random_members(value, count)
    return PairsReply((field, value[field]) for field in fields) if options else fields


declare_scan(
    hashes, "HSCAN", "fields with their values", lambda value, field: (field, value[field])
)


# ----------------------------------------------------------------------------
# Commands: sets
# ----------------------------------------------------------------------------

sets = Family("set", Set)

sets.edits("SADD key member [member ...]", "Add members; how many are new.")(
    lambda value, *members: sum(map(value.put, members))
)
sets.edits("SREM key member [member ...]", "Delete members; how many there were.", "writes")(
    lambda value, *members: sum(map(value.remove, members))
)
sets.views("SCARD key", "How many members there are.")(len)
sets.views("SISMEMBER key member", "1 if it is one.")(lambda value, member: int(member in value))
sets.views("SMISMEMBER key member [member ...]", "For each: 1 if it is a member.")(
    lambda value, *members: [int(member in value) for member in members]
)
sets.views("SMEMBERS key", "Every member.")(SetReply)


@sets.writes("SMOVE source destination member", "Move a member to another set: 1 if it was there.")
def smove(client: Client, source: bytes, target: bytes, member: bytes) -> Reply:
    value = client.keyspace.read_for_write(source, Set)
    if value is None:
        return 0
    other = client.keyspace.read_for_write(target, Set) or Set()
    if source == target or member not in value:
        return int(member in value)
    value.remove(member)
    client.keyspace.write(source, value, b"srem")
    if other.put(member):
        client.keyspace.write(target, other, b"sadd")
    return 1


@sets.edits(
    "SPOP key [count]",
    "Take a member, or several, by chance.",
    "writes",
    extra_is_syntax_error=True,
)
def spop(value: Set, count: int | None = None) -> Reply:
    if not value:
        return None if count is None else SetReply()
    taken = [value.random_key()] if count in (None, 1) else random_members(value, count or 0)
    for member in taken:
        value.remove(member)
    return taken[0] if count is None else SetReply(taken)


@sets.views("SRANDMEMBER key [signed-count]", "A member by chance, or several; different ones if"
            " the count is above 0.", extra_is_syntax_error=True)  # fmt: skip
def srandmember(value: Set, count: int | None = None) -> Reply:
    if count is None:
        return value.random_key() if value else None
    return random_members(value, count)


@sets.reads("SINTER key [key ...]", "The members common to all sets.", operation=operator.and_)
@sets.reads("SUNION key [key ...]", "The members of any of the sets.", operation=operator.or_)
@sets.reads("SDIFF key [key ...]", "The members of the first set alone.", operation=operator.sub)
def sinter(client: Client, *names: bytes, operation: Callable[[Any, Any], Any]) -> SetReply:
    values = [client.keyspace.read(key, Set) or Set() for key in names]
    return SetReply(functools.reduce(operation, (value.keys() for value in values)))


@sets.grows("SINTERSTORE destination key [key ...]", "Store SINTER.", operation=operator.and_,
            event=b"sinterstore")  # fmt: skip
@sets.grows("SUNIONSTORE destination key [key ...]", "Store SUNION.", operation=operator.or_,
            event=b"sunionstore")  # fmt: skip
@sets.grows("SDIFFSTORE destination key [key ...]", "Store SDIFF.", operation=operator.sub,
            event=b"sdiffstore")  # fmt: skip
def sinterstore(
    client: Client, target: bytes, *names: bytes, operation: Any, event: bytes
) -> Reply:
    value = Set()
    members: Any = sinter(client, *names, operation=operation)
    for member in members:
        value.put(member)
    if value:
        client.keyspace.replace(target, value, event=event)
    else:
        client.keyspace.delete(target)
    return len(value)


@sets.reads("SINTERCARD numkeys key [key ...] [LIMIT limit]", "How many SINTER has, to a limit.")
def sintercard(client: Client, numkeys: bytes, *words: bytes) -> Reply:
    many = "ERR Number of keys can't be greater than number of args"
    names, rest = split_numkeys(numkeys, words, many)
    options = Options("[LIMIT limit]").parse(rest)
    common: Any = sinter(client, *names, operation=operator.and_)
    return min(len(common), options.get("limit") or len(common))


declare_scan(sets, "SSCAN", "members", lambda value, member: (member,))


# ----------------------------------------------------------------------------
# Commands: sorted sets
# ----------------------------------------------------------------------------

zsets = Family("sorted-set", SortedSet)
_ZADD = "[NX] [XX] [GT] [LT] [CH] [INCR]"
_ZADD_OPTIONS = Options(_ZADD)


@zsets.grows(f"ZADD key {_ZADD} score member [score member ...]", "Set scores; how many"
              " members are new, or with CH new or changed.")  # fmt: skip
def zadd(client: Client, key: bytes, *words: bytes) -> Reply:
    options, pairs = _ZADD_OPTIONS.split(words)
    if not pairs or len(pairs) % 2:
        raise CommandError(SYNTAX_ERROR)
    if {"nx", "xx"} <= options.keys():
        raise CommandError("ERR XX and NX options at the same time are not compatible")
    if len({"gt", "lt", "nx"} & options.keys()) > 1:
        raise CommandError("ERR GT, LT, and/or NX options at the same time are not compatible")
    if "incr" in options and len(pairs) > 2:
        raise CommandError("ERR INCR option supports a single increment-element pair")
    scores = list(map(parse_float, pairs[::2]))
    value = client.keyspace.read_for_write(key, SortedSet) or SortedSet()
    added = changed = 0
    for score, member in zip(scores, pairs[1::2]):
        old = value.scores.get(member)
        new = score + old if "incr" in options and old is not None else score
        if ("nx" in options and old is not None) or ("xx" in options and old is None):
            new = None
        elif math.isnan(new):
            raise CommandError("ERR resulting score is not a number (NaN)")
        elif old is not None and (
            ("gt" in options and new <= old) or ("lt" in options and new >= old)
        ):
            new = None
        if new is not None and new != old:
            value.put(member, new + 0.0)  # not -0
            added += old is None
            changed += 1
    if changed:
        client.keyspace.write(key, value, b"zincr" if "incr" in options else b"zadd")
    if "incr" in options:
        return new
    return changed if "ch" in options else added


zsets.grows("ZINCRBY key number member", "Add to a member's score and return it.")(
    lambda client, key, number, member: zadd(client, key, b"INCR", number, member)
)
zsets.views("ZSCORE key member", "The score of a member.")(
    lambda value, member: value.scores.get(member)
)
zsets.views("ZMSCORE key member [member ...]", "The scores of several members.")(
    lambda value, *members: list(map(value.scores.get, members))
)
zsets.views("ZCARD key", "How many members there are.")(len)
zsets.edits("ZREM key member [member ...]", "Delete members; how many there were.", "writes")(
    lambda value, *members: sum(map(value.remove, members))
)


@zsets.views("ZRANK key member", "A member's place; 0 has the lowest score.", reverse=False)
@zsets.views("ZREVRANK key member", "A member's place; 0 has the highest score.", reverse=True)
def zrank(value: SortedSet, member: bytes, *, reverse: bool) -> Reply:
    score = value.scores.get(member)
    if score is None:
        return None
    rank = value.rank((score, member))
    return len(value) - 1 - rank if reverse else rank


def _score_ranks(value: SortedSet, low: Any, high: Any) -> tuple[int, int]:
    # The ranks from the first score not below low to before the first one above high.
    first = value.rank((low[0], LAST_MEMBER) if low[1] else low[:1])
    return first, max(value.rank(high[:1] if high[1] else (high[0], LAST_MEMBER)), first)


@zsets.views("ZCOUNT key min max", "How many members have scores between these.")
def zcount(value: SortedSet, low: Any, high: Any) -> Reply:
    first, last = _score_ranks(value, low, high)
    return last - first


@zsets.reads("ZRANGE key low high [BYSCORE] [REV] [LIMIT offset size] [WITHSCORES]",
             "The members between two places, or between two scores.")  # fmt: skip
@zsets.reads("ZREVRANGE key low high [WITHSCORES]", "ZRANGE with REV.", rev=True)
@zsets.reads("ZRANGEBYSCORE key low high [WITHSCORES] [LIMIT offset size]",
             "ZRANGE with BYSCORE.", byscore=True)  # fmt: skip
@zsets.reads("ZREVRANGEBYSCORE key high low [WITHSCORES] [LIMIT offset size]",
             "ZRANGE with BYSCORE and REV.", byscore=True, rev=True)  # fmt: skip
def zrange(
    client: Client, key: bytes, start: bytes, stop: bytes, byscore: bool = False,
    rev: bool = False, limit: Sequence[int] | None = None, withscores: bool = False,
) -> Reply:  # fmt: skip
    if limit is not None and limit[1] != -1 and not byscore:
        raise CommandError(
            "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX"
        )
    low, high = (stop, start) if rev and byscore else (start, stop)
    bounds: Any = list(map(parse_bound if byscore else parse_integer, (low, high)))
    value = client.keyspace.read(key, SortedSet) or SortedSet()
    if byscore:
        first, last = _score_ranks(value, *bounds)
    else:
        first, last = slice_bounds(bounds[0], bounds[1], len(value))
        if rev:
            first, last = len(value) - last, len(value) - first
    offset, count = limit if limit and byscore else (0, -1)
    size = max(last - first - offset, 0) if offset >= 0 else 0
    size = size if count < 0 else min(size, count)
    first = last - offset - size if rev else first + offset
    found = value.slice(first, first + size)
    if rev:
        found.reverse()
    if withscores:
        return PairsReply((member, score) for score, member in found)
    return [member for _, member in found]


def _remove(value: SortedSet, first: int, last: int) -> list[tuple[bytes, float]]:
    found = [(member, score) for score, member in value.slice(first, last)]
    for member, _ in found:
        value.remove(member)
    return found


def pop_by_score(value: SortedSet, most: int, highest: bool) -> list[tuple[bytes, float]]:
    """Take so many of the highest or lowest away, with their scores."""
    if highest:
        return _remove(value, max(len(value) - most, 0), len(value))[::-1]
    return _remove(value, 0, most)


@zsets.edits("ZPOPMIN key [count]", "Take the members with the lowest scores.", "writes",
             extra_is_syntax_error=True, highest=False)  # fmt: skip
@zsets.edits("ZPOPMAX key [count]", "Take the members with the highest scores.", "writes",
             extra_is_syntax_error=True, highest=True)  # fmt: skip
def zpopmin(value: SortedSet, count: int | None = None, *, highest: bool) -> Reply:
    found = pop_by_score(value, 1 if count is None else count, highest)
    return list(itertools.chain.from_iterable(found)) if count is None else PairsReply(found)


def _pop_from_zset(client: Client, key: bytes, highest: bool, most: int) -> list[Any]:
    value: Any = client.keyspace.read_for_write(key, SortedSet)
    found = pop_by_score(value, most, highest)
    client.keyspace.write(key, value, b"zpopmax" if highest else b"zpopmin")
    return found


@zsets.writes("BZPOPMIN key [key ...] timeout", "ZPOPMIN from the first sorted set that has"
              " something, waits for that; its key, the member, the score.",
              highest=False)  # fmt: skip
@zsets.writes("BZPOPMAX key [key ...] timeout", "BZPOPMIN for the highest score.", highest=True)
def bzpopmin(client: Client, *words: bytes, highest: bool) -> Reply:
    def take(key: bytes) -> Reply:
        return [key, *_pop_from_zset(client, key, highest, 1)[0]]

    return pop_or_block(client, words[:-1], SortedSet, take, words[-1])


_ZMPOP = "numkeys key [key ...] MIN|MAX [COUNT count]"


@zsets.writes(f"ZMPOP {_ZMPOP}", "ZPOPMIN or ZPOPMAX from the first sorted set that has something;"
              " its key, and the members with their scores.", waits=False)  # fmt: skip
@zsets.writes(f"BZMPOP timeout {_ZMPOP}", "ZMPOP that waits.", waits=True)
def zmpop(client: Client, *words: bytes, waits: bool) -> Reply:
    names, side, count = parse_mpop_arguments(words[waits], words[waits + 1 :], "MIN|MAX")

    def take(key: bytes) -> Reply:
        return [key, list(map(list, _pop_from_zset(client, key, side == "MAX", count)))]

    return pop_or_block(client, names, SortedSet, take, words[0] if waits else None)


zsets.edits("ZREMRANGEBYRANK key start stop", "Delete members between two places.", "writes")(
    lambda value, start, stop: len(_remove(value, *slice_bounds(start, stop, len(value))))
)
zsets.edits("ZREMRANGEBYSCORE key min max", "Delete members between two scores.", "writes")(
    lambda value, low, high: len(_remove(value, *_score_ranks(value, low, high)))
)
declare_scan(zsets, "ZSCAN", "members with their scores", lambda value, member: (
    member, encode_double(value.scores[member])
))  # fmt: skip


# ----------------------------------------------------------------------------
# Commands: transactions
# ----------------------------------------------------------------------------

transactions = Family("transactions")


@transactions.reads("MULTI", "Queue the commands from here on, for EXEC.")
def multi(client: Client) -> Reply:
    if client.queue is not None:
        raise CommandError("ERR MULTI calls can not be nested")
    client.queue = []
    client.guard()
    return OK


@transactions.reads("EXEC", "Carry out the queue as one step, if no watch is broken.", raw=True)
def exec_(client: Client, *words: bytes) -> Reply:
    if words:
        raise abort_transaction(client, wrong_arity(b"exec"))
    if client.queue is None:
        raise CommandError("ERR EXEC without MULTI")
    queue, spoiled = client.queue, client.spoiled
    broken = client.end_transaction()
    if spoiled:
        raise CommandError("EXECABORT Transaction discarded because of previous errors.")
    if broken:
        return NULL_ARRAY
    replies: list[Reply] = []
    size, most = 0, client.settings.max_reply
    client.can_block = False
    try:
        for entry, arguments in queue:
            try:
                replies.append(call_command(client, entry, arguments))
            except CommandError as error:
                replies.append(error)
            size += reply_size(replies[-1])
            if size > most:  # nobody will see them, but the rest is carried out as well
                replies.clear()
    finally:
        client.can_block = True
    return replies if size <= most else reply_too_long(most)


@transactions.reads("DISCARD", "Forget the queued commands.")
def discard(client: Client) -> Reply:
    if client.queue is None:
        raise CommandError("ERR DISCARD without MULTI")
    client.end_transaction()
    return OK


@transactions.reads("WATCH key [key ...]", "Let EXEC do nothing if one of the keys is changed.")
def watch(client: Client, *names: bytes) -> Reply:
    if client.queue is not None:
        raise CommandError("ERR WATCH inside MULTI is not allowed")
    if client.watch is None:
        client.watch = Watch()
    ensure_memory(client, names, WATCH_COST, len(client.watch.keys))
    for key in names:
        client.keyspace.watch(key, client.watch)
    return OK


@transactions.reads("UNWATCH", "Watch no key any more.")
def unwatch(client: Client) -> Reply:
    if client.watch is not None:
        client.keyspace.unwatch(client.watch)
        client.watch = None
    return OK


# ----------------------------------------------------------------------------
# Commands: channels
# ----------------------------------------------------------------------------

pubsub = Family("pubsub")


@pubsub.reads("SUBSCRIBE channel [channel ...]", "Receive what is published in channels.")
def subscribe(client: Client, *names: bytes) -> Reply:
    ensure_memory(client, names, SUBSCRIPTION_COST, client.subscriber.count())
    return _tell_each(client, b"subscribe", names, client.live.channels.subscribe)


@pubsub.reads("PSUBSCRIBE pattern [pattern ...]", "SUBSCRIBE to all channels that match.")
def psubscribe(client: Client, *patterns: bytes) -> Reply:
    ensure_memory(client, patterns, SUBSCRIPTION_COST, client.subscriber.count())
    if sum(map(len, patterns)) > MAX_PATTERNS:
        raise CommandError(f"ERR the patterns together are longer than {MAX_PATTERNS} bytes")
    # All of them, or, after an error, none.
    tests = dict(zip(patterns, map(compile_glob, patterns)))
    subscribe = client.live.channels.subscribe_pattern
    return _tell_each(
        client, b"psubscribe", patterns,
        lambda subscriber, name: subscribe(subscriber, name, tests[name]),
    )  # fmt: skip


@pubsub.reads("UNSUBSCRIBE [channel ...]", "End subscriptions, all if none is named.")
def unsubscribe(client: Client, *names: bytes) -> Reply:
    chosen = names or tuple(client.subscriber.channels) or (None,)
    return _tell_each(client, b"unsubscribe", chosen, client.live.channels.unsubscribe)


@pubsub.reads("PUNSUBSCRIBE [pattern ...]", "UNSUBSCRIBE from patterns.")
def punsubscribe(client: Client, *patterns: bytes) -> Reply:
    chosen = patterns or tuple(client.subscriber.patterns) or (None,)
    return _tell_each(client, b"punsubscribe", chosen, client.live.channels.unsubscribe_pattern)


def _tell_each(
    client: Client, what: bytes, names: Iterable[Any], change: Callable[[Subscriber, Any], None]
) -> Reply:
    replies = MultipleReplies()
    for name in names:
        change(client.subscriber, name)
        replies.append(Push([what, name, client.subscriber.count()]))
    client.guard()
    return replies


pubsub.reads("PUBLISH channel message", "Send to all that have subscribed; how many received it.")(
    lambda client, channel, message: client.live.channels.publish(channel, message)
)
pubsub.reads("PUBSUB NUMPAT", "How many patterns are subscribed to.")(
    lambda client: len(client.live.channels.patterns)
)


@pubsub.reads(
    "PUBSUB CHANNELS [pattern]", "The channels that have subscribers.", extra_is_syntax_error=True
)
def pubsub_channels(client: Client, pattern: bytes = b"*") -> Reply:
    return list(filter(compile_glob(pattern), client.live.channels.channels))


@pubsub.reads("PUBSUB NUMSUB [channel ...]", "The channels, and how many subscribers each has.")
def pubsub_numsub(client: Client, *names: bytes) -> Reply:
    known = client.live.channels.channels
    return [each for name in names for each in (name, len(known.get(name, ())))]


# ----------------------------------------------------------------------------
# Commands: the connection
# ----------------------------------------------------------------------------

connection = Family("connection")


@connection.reads("PING [message]", "PONG, or the message.")
def ping(client: Client, message: bytes | None = None) -> Reply:
    if client.subscriber.count() and client.protocol == 2:
        return [b"pong", message or b""]
    return PONG if message is None else message


connection.reads("ECHO message", "The message.")(lambda _, message: message)
connection.reads("SELECT database", "Choose a database; there is one, 0.")(lambda _, database: OK)
connection.reads("CLIENT ID", "The number of this connection.")(lambda client: client.id)
connection.reads("CLIENT GETNAME", "The name the client has given itself.")(
    lambda client: client.names.get("name", "").encode() or None
)
connection.reads("CLIENT INFO", "What is known of this connection.")(
    lambda client: Verbatim(_client_line(client).encode())
)


@connection.reads("HELLO [protover] [AUTH username password] [SETNAME clientname]", "Choose the"
                  " version of RESP, 2 or 3, and be told about the server.", raw=True)  # fmt: skip
def hello(client: Client, *options: bytes) -> Reply:
    protocol = client.protocol
    if options:
        error = "ERR Protocol version is not an integer or out of range"
        protocol = parse_integer(options[0], error, 2, 3, "NOPROTO unsupported protocol version")
    words = iter(options[1:])
    for word in words:
        values = list(itertools.islice(words, {b"AUTH": 2, b"SETNAME": 1}.get(word.upper(), 0)))
        if word.upper() == b"AUTH" and len(values) == 2:
            auth(client, *values)
        elif word.upper() == b"SETNAME" and values:
            # At once, as Redis does it, whatever comes behind.
            client.names["name"] = _client_name("Client names", values[0])
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{_printable(word)}'")
    if client.locked_out:
        raise CommandError(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the"
            " HELLO AUTH <user> <pass> option can be used to authenticate the client and select"
            " the RESP protocol version at the same time"
        )
    client.protocol = client.subscriber.form = protocol
    client.guard()
    return {
        b"server": b"redis",
        b"version": REDIS_VERSION.encode(),
        b"proto": protocol,
        b"id": client.id,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }


@connection.reads("AUTH [username] password", "Give the password.", extra_is_syntax_error=True)
def auth(client: Client, *credentials: bytes) -> Reply:
    if client.password is None and len(credentials) == 1:
        raise CommandError(
            "ERR AUTH <password> called without any password configured for the default user."
            " Are you sure your configuration is correct?"
        )
    right = client.password is None or hmac.compare_digest(client.password, credentials[-1])
    if not right or credentials[:-1] not in ((), (b"default",)):
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
    client.locked_out = False
    client.guard()
    return OK


@connection.reads("RESET", "Put the connection back as it was when it was opened.")
def reset(client: Client) -> Reply:
    client.protocol = 2
    client.names.pop("name", None)
    client.reply_mode = "ON"
    client.locked_out = client.password is not None
    client.end_transaction()
    client.unsubscribe()
    return Status(b"RESET")


@connection.reads("QUIT", "End the connection.", raw=True)
def quit_(client: Client, *words: bytes) -> Reply:
    client.close()
    return OK


def _client_name(what: str, name: bytes) -> str:
    if len(name) > MAX_NAME:
        raise CommandError(f"ERR {what} cannot be longer than {MAX_NAME} bytes.")
    if re.fullmatch(rb"[!-~]*", name) is None:
        raise CommandError(f"ERR {what} cannot contain spaces, newlines or special characters.")
    return name.decode("ascii")


def _client_line(client: Client) -> str:
    subscriber, (process, program) = client.subscriber, client.peer.process()
    known = COMMANDS.keys() | CONTAINERS
    flags = {
        "O": subscriber.monitors,
        "P": subscriber.count() > 0,
        "x": client.queue is not None,
        "b": client.waiter is not None and not client.waiter.done,
        "d": client.watch is not None and client.watch.broken,
        "U": client.peer.address.startswith("/"),
    }
    facts = {
        "id": client.id,
        "addr": client.peer.address,
        "laddr": client.peer.local_address,
        "name": client.names.get("name", ""),
        "age": int(time.monotonic() - client.connected_at),
        "idle": int(time.monotonic() - client.last_command_at),
        "flags": "".join(flag for flag, is_so in flags.items() if is_so) or "N",
        "db": 0,
        "sub": len(subscriber.channels),
        "psub": len(subscriber.patterns),
        # Sizes of buffers, which are not kept count of, but which redis-py before 7 looks for.
        **dict.fromkeys(("qbuf", "qbuf-free", "argv-mem", "obl", "oll", "omem", "tot-mem"), 0),
        "multi": -1 if client.queue is None else len(client.queue),
        "cmd": client.command.decode().lower() if client.command.upper() in known else "NULL",
        "user": "default",
        "resp": client.protocol,
        "lib-name": client.names.get("lib-name", ""),
        "lib-ver": client.names.get("lib-ver", ""),
        # What no Redis has.
        "owned": client.keyspace.count_owned(client),
        "pid": process,
        "program": re.sub(r"\s", "_", re.split(r"[\\/]", program)[-1]),
    }
    return " ".join(f"{name}={value}" for name, value in facts.items()) + "\n"


@connection.reads("CLIENT SETNAME name", "Give the connection a name.")
def client_setname(client: Client, name: bytes) -> Reply:
    client.names["name"] = _client_name("Client names", name)
    return OK


@connection.reads("CLIENT SETINFO attribute value", "Name the library, LIB-NAME or LIB-VER.")
def client_setinfo(client: Client, attribute: bytes, value: bytes) -> Reply:
    what = attribute.decode("latin-1").lower()
    if what not in ("lib-name", "lib-ver"):
        raise CommandError(f"ERR Unrecognized option '{_printable(attribute)}'")
    client.names[what] = _client_name(what, value)
    return OK


def _is_type(client: Client, value: bytes) -> bool:
    if value.lower() not in (b"normal", b"master", b"replica", b"slave", b"pubsub"):
        raise CommandError(f"ERR Unknown client type '{_printable(value)}'")
    kind = b"pubsub" if client.subscriber.count() else b"normal"
    return value.lower() == kind


def _is_user(client: Client, value: bytes) -> bool:
    if value != b"default":
        raise CommandError(f"ERR No such user '{_printable(value)}'")
    return True


#: What CLIENT KILL chooses connections by.
CLIENT_FILTERS: dict[bytes, Callable[[Client, bytes], bool]] = {
    b"ID": lambda client, value: (
        client.id == parse_integer(value, "ERR client-id should be greater than 0", 1)
    ),
    b"ADDR": lambda client, value: client.peer.address.encode() == value,
    b"LADDR": lambda client, value: client.peer.local_address.encode() == value,
    b"TYPE": _is_type,
    b"USER": _is_user,
}


@connection.reads("CLIENT LIST [TYPE type|ID client-id ...]", "The connections, one a line.")
def client_list(client: Client, *words: bytes) -> Reply:
    chosen = list(client.statistics.clients.values())
    what = words[0].upper() if words else b""
    if what == b"TYPE" and len(words) == 2:
        chosen = [other for other in chosen if _is_type(other, words[1])]
    elif what == b"ID" and len(words) > 1:
        numbers = {parse_integer(word, "ERR Invalid client ID") for word in words[1:]}
        chosen = [other for other in chosen if other.id in numbers]
    elif words:
        raise CommandError(SYNTAX_ERROR)
    return Verbatim("".join(map(_client_line, chosen)).encode())


@connection.reads("CLIENT KILL filter [value ...]", "End connections: by address, or by ID, ADDR,"
                  " LADDR, TYPE, USER, and SKIPME no.")  # fmt: skip
def client_kill(client: Client, *words: bytes) -> Reply:
    alone = len(words) == 1
    if alone:
        words = (b"ADDR", words[0], b"SKIPME", b"no")
    filters = {word.upper(): value for word, value in zip(words[::2], words[1::2])}
    skip_me = filters.pop(b"SKIPME", b"yes").lower()
    known = filters.keys() <= CLIENT_FILTERS.keys()
    if len(words) % 2 or skip_me not in (b"yes", b"no") or not known:
        raise CommandError(SYNTAX_ERROR)
    chosen = []
    for other in client.statistics.clients.values():
        # Each is asked, as each may raise an error.
        answers = [CLIENT_FILTERS[name](other, value) for name, value in filters.items()]
        if all(answers) and not (other is client and skip_me == b"yes"):
            chosen.append(other)
    if alone and not chosen:
        raise CommandError("ERR No such client")
    for other in chosen:
        if other is client:
            client.close()  # after this reply
        else:
            other.peer.hang_up()
    return OK if alone else len(chosen)


@connection.reads("CLIENT UNBLOCK client-id [TIMEOUT|ERROR]", "End the wait of a client: 1 if it"
                  " waited.", raw=True)  # fmt: skip
def client_unblock(client: Client, number: bytes, *words: bytes) -> Reply:
    how = words[0].upper() if words else b"TIMEOUT"
    if how not in (b"TIMEOUT", b"ERROR") or len(words) > 1:
        raise CommandError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    other = client.statistics.clients.get(parse_integer(number))
    if other is None or other.waiter is None or other.waiter.done:
        return 0
    unblocked = CommandError("UNBLOCKED client unblocked via CLIENT UNBLOCK")
    client.live.waiting.end(other.waiter, unblocked if how == b"ERROR" else NULL_ARRAY)
    return 1


@connection.reads("CLIENT REPLY ON|OFF|SKIP", "Whether commands are answered; SKIP: the next one.")
def client_reply(client: Client, mode: str) -> Reply:
    if mode != "SKIP" or client.reply_mode != "OFF":
        client.reply_mode = mode
    client.guard()
    return OK if client.reply_mode == "ON" else NO_REPLY


# ----------------------------------------------------------------------------
# Commands: the server
# ----------------------------------------------------------------------------

server = Family("server")

server.reads("DBSIZE", "How many keys there are.")(lambda client: len(client.keyspace))


@server.writes("FLUSHALL [ASYNC|SYNC]", "Delete every key.")
@server.writes("FLUSHDB [ASYNC|SYNC]", "Delete every key.")
def flushall(client: Client, **mode: bool) -> Reply:
    client.keyspace.clear()
    return OK


def _persistence(client: Client) -> Persistence:
    if client.persistence is None:
        raise CommandError("ERR there is no file to save to: start the server with --db FILE")
    return client.persistence


@server.reads("SAVE", "Write everything to the file and wait until it is there.")
def save(client: Client) -> Reply:
    waiter = BlockedClient(client.live.waiting, client.peer, bytes, lambda key: None, None)

    def saved(error: str) -> None:
        client.live.waiting.end(waiter, CommandError(f"ERR {error}") if error else OK)

    _persistence(client).request(saved)
    return block_client(client, waiter, [])


@server.reads("BGSAVE [SCHEDULE]", "Write everything to the file now.")
def bgsave(client: Client, **when: bool) -> Reply:
    _persistence(client).request(lambda error: None)
    return Status(b"Background saving started")


@server.reads("LASTSAVE", "When everything was last written, in seconds since 1970.")
def lastsave(client: Client) -> Reply:
    return int(_persistence(client).saved_at)


@server.reads("TIME", "The seconds since 1970, and the microseconds beyond.")
def time_(client: Client) -> Reply:
    return [b"%d" % part for part in divmod(time.time_ns() // 1000, 1_000_000)]


@server.reads("MONITOR", "Show every command of every client, as it happens.")
def monitor(client: Client) -> Reply:
    client.live.channels.monitor(client.subscriber)
    client.guard_all()
    return OK


@server.reads("MEMORY USAGE key [SAMPLES size]", "The bytes a key takes with its value.")
def memory_usage(client: Client, key: bytes, *, samples: int = 0) -> Reply:
    if samples < 0:
        raise CommandError(SYNTAX_ERROR)
    return client.keyspace.memory_usage(key) if key in client.keyspace else None


@server.reads("DEBUG SLEEP seconds", "Answer this client only after so long.")
def debug_sleep(client: Client, seconds: bytes) -> Reply:
    # In Redis, nobody; which it lets no client do unless it is told to.
    duration = parse_float(seconds)
    if not 0 <= duration <= MAX_SLEEP:
        raise CommandError(f"ERR the time to sleep must be from 0 to {MAX_SLEEP:g} seconds")
    if not client.can_block:
        raise CommandError("ERR DEBUG SLEEP is not for transactions")
    deadline = time.monotonic() + duration
    waiter = BlockedClient(client.live.waiting, client.peer, bytes, lambda key: None, deadline)
    waiter.reply = OK
    return block_client(client, waiter, [])


def _set_memory_limit(client: Client, size: int) -> None:
    client.keyspace.memory_limit = size or math.inf
    # As Redis does it, beginning at once; if none can be evicted, commands that write are refused.
    with contextlib.suppress(CommandError):
        client.keyspace.free_memory()


def _policy(text: str) -> str:
    if text.lower() not in POLICIES:
        raise ValueError(f"argument(s) must be one of the following: {', '.join(POLICIES)}")
    return text.lower()


def _letters(text: str) -> str:
    KeyspaceEvents.check(text)
    return text


def _read_limit(limit: Limit, text: str) -> float:
    if limit.unit == "bytes":
        try:
            parse_size(text)
        except ValueError:  # as Redis says it
            raise ValueError("argument must be a memory value") from None
    return limit.parse(text)


def _set_limit(name: str, client: Client, value: float) -> None:
    setattr(client.settings, name, value)
    if name == "max_memory":
        _set_memory_limit(client, int(value))


#: What CONFIG SET can change: how its value is read, and how it is set.
_CONFIG_SETTERS: dict[str, tuple[Callable[[str], Any], Callable[[Client, Any], None]]] = {
    "maxmemory-policy": (_policy, lambda client, policy: setattr(client.keyspace, "policy", policy)),
    "notify-keyspace-events": (
        _letters, lambda client, letters: client.live.events.configure(letters)
    ),
    **{
        limit.parameter: (
            functools.partial(_read_limit, limit), functools.partial(_set_limit, name)
        )
        for name, limit in LIMITS.items() if name != "max_clients"
    },
}  # fmt: skip


def _limits(client: Client) -> dict[str, object]:
    settings = client.settings
    return {each.parameter: each.format(getattr(settings, name)) for name, each in LIMITS.items()}


def _parameters(client: Client) -> dict[str, object]:
    return {
        "appendonly": "no",
        "bind": "127.0.0.1",
        "databases": 1,
        "dbfilename": client.settings.db or "",
        "maxmemory-policy": client.keyspace.policy,
        "maxmemory-samples": LRU_SAMPLES,
        "notify-keyspace-events": client.live.events,
        "port": client.settings.tcp or 0,
        "save": "1 1" if client.persistence else "",
        **_limits(client),
    }


def _config_limit(limit: float) -> int:
    return 0 if limit == math.inf else int(limit)


@server.reads("CONFIG GET parameter [parameter ...]", "The settings that match a pattern.")
def config_get(client: Client, *patterns: bytes) -> Reply:
    tests = [compile_glob(pattern.lower()) for pattern in patterns]
    facts = {
        name.encode(): str(value).encode("utf-8", "backslashreplace")
        for name, value in _parameters(client).items()
    }
    return {name: value for name, value in facts.items() if any(test(name) for test in tests)}


@server.reads("CONFIG SET parameter value [parameter value ...]", "Change settings.", raw=True)
def config_set(client: Client, *words: bytes) -> Reply:
    if len(words) % 2:
        raise CommandError(SYNTAX_ERROR)
    known, changes = _parameters(client), {}
    for word, value in zip(words[::2], words[1::2]):
        name = _printable(word).lower()
        if name not in known:
            what = "Unknown option or number of arguments for CONFIG SET"
            raise CommandError(f"ERR {what} - '{name}'")
        try:
            if name not in _CONFIG_SETTERS:
                raise ValueError("can't set immutable config")
            if name in changes:
                raise ValueError("duplicate parameter")
            read, _ = _CONFIG_SETTERS[name]
            changes[name] = read(_printable(value))
        except ValueError as error:
            what = f"CONFIG SET failed (possibly related to argument '{name}')"
            raise CommandError(f"ERR {what} - {error}") from None
    # All of them, or, after an error, none.
    for name, changed in changes.items():
        _CONFIG_SETTERS[name][1](client, changed)
    return OK


server.reads("COMMAND COUNT", "How many commands there are.")(lambda client: len(_reply_names()))
server.reads("COMMAND", "Every command: arity, flags, and where its keys are.")(
    lambda client: list(map(_command_facts, _reply_names()))
)
server.reads("COMMAND LIST", "The names of the commands.")(
    lambda client: list(dict.fromkeys([*_reply_names(), *map(_reply_name, all_commands())]))
)


@server.reads("COMMAND DOCS [command ...]", "How commands are used.")
def command_docs(client: Client, *names: bytes) -> Reply:
    wanted = {name.lower() for name in names}
    chosen: dict[bytes, Any] = {}
    for entry in all_commands():
        name = _reply_name(entry)
        container, _, subcommand = name.partition(b"|")
        if name in wanted:
            chosen[name] = {**_docs(entry), **chosen.get(name, {})}
        elif wanted and container not in wanted:
            continue
        elif subcommand:
            top = {**_docs(entry), b"summary": b"See its subcommands."}
            del top[b"arguments"]
            chosen.setdefault(container, top).setdefault(b"subcommands", {})[name] = _docs(entry)
        else:
            chosen[container] = {**_docs(entry), **chosen.get(container, {})}
    return chosen


def all_commands() -> list[Command]:
    return [*dict.fromkeys(COMMANDS.values()), *SUBCOMMANDS.values()]


def _reply_name(entry: Command) -> bytes:
    return entry.name.lower().replace(" ", "|").encode()


def _reply_names() -> list[bytes]:
    return list(dict.fromkeys(_reply_name(entry).split(b"|")[0] for entry in all_commands()))


def _command_facts(name: bytes) -> Reply:
    entry = COMMANDS.get(name)
    nothing = SetReply()  # ACL categories, tips, key specifications
    if entry is None:
        return [name, -2, nothing, 0, 0, 0, nothing, nothing, nothing, []]
    flags = [b"write" if entry.writes else b"pubsub" if entry.group == "pubsub" else b"readonly"]
    flags += [b"denyoom"] * entry.grows + [b"blocking"] * ("timeout" in entry.usage)
    arity = entry.min_arguments if entry.most == entry.min_arguments else -entry.min_arguments
    return [
        name,
        arity,
        SetReply(map(Status, flags)),
        *entry.key_positions,
        nothing,
        nothing,
        nothing,
        [],
    ]


def _docs(entry: Command) -> dict[bytes, Any]:
    arguments: list[dict[bytes, Any]] = []
    for item in entry.items[entry.words :]:
        names = item.strip("[]").encode().split()
        again = arguments[len(arguments) - len(names) + 1 :]
        if names[-1] == b"..." and [each[b"name"] for each in again] == names[:-1]:
            # What has just been told of can be repeated.
            block = {b"name": b"data", b"type": b"block", b"arguments": again}
            repeated = again[0] if len(again) == 1 else block
            arguments[-len(again) :] = [{**repeated, b"flags": SetReply([Status(b"multiple")])}]
        else:
            arguments.append(_argument_docs(item))
    return {
        b"summary": entry.summary.encode(),
        b"since": __version__.encode(),
        b"group": entry.group.encode(),
        b"arguments": arguments,
    }


def _argument_docs(item: str) -> dict[bytes, Any]:
    choices = item.strip("[]").split("|")
    if len(choices) > 1:
        docs: dict[bytes, Any] = {b"name": b"choice", b"type": b"oneof"}
        docs[b"arguments"] = list(map(_argument_docs, choices))
    else:
        words = choices[0].replace("...", "").split()
        token = words.pop(0) if words[0].isupper() else None
        name = " ".join(words) or (token or "").lower()
        kind = "key" if name == "key" else "string" if words else "pure-token"
        docs = {b"name": name.encode(), b"type": kind.encode()}
        if token:
            docs[b"token"] = token.encode()
    flags = [b"optional"] * item.startswith("[") + [b"multiple"] * ("..." in item)
    return {**docs, b"flags": SetReply(map(Status, flags))} if flags else docs


@server.reads("INFO [section ...]", "The state of the server, all of it or the sections named.")
def info(client: Client, *names: bytes) -> Reply:
    sections = _sections(client)
    wanted = {name.decode("latin-1").lower() for name in names}
    everything = not wanted or wanted & {"all", "default", "everything"}
    blocks = [
        f"# {title}\r\n" + "".join(f"{name}:{value}\r\n" for name, value in facts.items())
        for title, facts in sections.items()
        if everything or title.lower() in wanted
    ]
    return Verbatim("\r\n".join(blocks).encode("utf-8", "replace"))


def _sections(client: Client) -> dict[str, dict[str, object]]:
    keyspace, settings, statistics = client.keyspace, client.settings, client.statistics
    uptime, times = int(time.monotonic() - statistics.started), os.times()
    return {
        "Server": {
            "redis_version": REDIS_VERSION,
            "redis_mode": "standalone",
            "pipecache_version": __version__,
            "python_version": ".".join(map(str, sys.version_info[:3])),
            "os": sys.platform,
            "arch_bits": struct.calcsize("P") * 8,
            "process_id": os.getpid(),
            "tcp_port": settings.tcp or 0,
            "address": statistics.address,
            "uptime_in_seconds": uptime,
            "uptime_in_days": uptime // 86400,
        },
        "Clients": {
            "connected_clients": len(statistics.clients),
            "blocked_clients": len(client.live.waiting.waiters),
            "maxclients": settings.max_clients,
        },
        "Limits": {name.replace("-", "_"): value for name, value in _limits(client).items()},
        "Memory": {
            "used_memory": keyspace.used_memory,
            "used_memory_human": f"{keyspace.used_memory / 1024**2:.2f}M",
            "maxmemory": _config_limit(keyspace.memory_limit),
            "maxmemory_human": f"{_config_limit(keyspace.memory_limit) / 1024**2:.2f}M",
            "maxmemory_policy": keyspace.policy,
        },
        "Persistence": _persistence_facts(client.persistence),
        "Stats": {
            "total_connections_received": statistics.connections,
            "total_commands_processed": statistics.commands,
            "expired_keys": keyspace.expired,
            "evicted_keys": keyspace.evicted,
            "pubsub_channels": len(client.live.channels.channels),
            "pubsub_patterns": len(client.live.channels.patterns),
        },
        "Replication": {"role": "master", "connected_slaves": 0},
        "CPU": {"used_cpu_sys": f"{times.system:.6f}", "used_cpu_user": f"{times.user:.6f}"},
        "Cluster": {"cluster_enabled": 0},
        "Keyspace": {"db0": f"keys={len(keyspace)},expires={keyspace.expiring}"}
        if len(keyspace)
        else {},
    }


def _persistence_facts(file: Persistence | None) -> dict[str, object]:
    if file is None:
        return {"loading": 0}
    now, began = time.monotonic(), file.began
    return {
        "loading": 0,
        "rdb_changes_since_last_save": file.unsaved_changes,
        "rdb_bgsave_in_progress": int(began is not None),
        "rdb_last_save_time": int(file.saved_at),
        "rdb_last_bgsave_status": "err" if file.error else "ok",
        "rdb_last_bgsave_time_sec": math.ceil(file.duration),
        "rdb_current_bgsave_time_sec": -1 if began is None else int(now - began),
        "rdb_saves": file.saves,
        "rdb_last_load_keys_expired": file.expired,
        "rdb_last_load_keys_loaded": file.loaded,
        "db_file": file.display_path(),
        "db_file_bytes": file.size,
        "db_seconds_behind": f"{now - file.synced_at if file.unsaved_changes else 0:.1f}",
        "db_keys_too_large": len(file.refused),
        "db_last_error": file.error,
    }


@server.reads("HELP [command]", "The commands, or how one is used.")
def help_(client: Client, name: bytes | None = None) -> Reply:
    chosen = all_commands()
    if name is not None:
        wanted = _printable(name[:ERROR_EXCERPT]).upper()
        chosen = [entry for entry in chosen if entry.name.split()[0] == wanted]
        if not chosen:
            raise CommandError(f"ERR no command '{wanted}'; HELP lists them all")
    return [Status(f"{entry.usage} - {entry.summary}".encode()) for entry in chosen]


# ----------------------------------------------------------------------------
# Win32 API
# ----------------------------------------------------------------------------

if sys.platform == "win32":
    # Error codes of GetLastError
    ERROR_ACCESS_DENIED = 5
    ERROR_SEM_TIMEOUT = 121
    ERROR_PIPE_BUSY = 231
    ERROR_PIPE_NOT_CONNECTED = 233
    ERROR_MORE_DATA = 234
    ERROR_PIPE_CONNECTED = 535
    ERROR_IO_PENDING = 997

    # CreateNamedPipeW and WaitNamedPipeW
    PIPE_ACCESS_DUPLEX = 0x00000003
    FILE_FLAG_FIRST_PIPE_INSTANCE = 0x00080000
    FILE_FLAG_OVERLAPPED = 0x40000000
    PIPE_TYPE_MESSAGE = 0x00000004
    PIPE_READMODE_MESSAGE = 0x00000002
    PIPE_REJECT_REMOTE_CLIENTS = 0x00000008
    PIPE_UNLIMITED_INSTANCES = 255
    NMPWAIT_NOWAIT = 0x00000001
    INVALID_HANDLE_VALUE = ctypes.c_void_p(-1).value

    # Overlapped I/O (OVERLAPPED.Internal) and waits (WaitForMultipleObjects)
    STATUS_SUCCESS = 0x00000000
    STATUS_BUFFER_OVERFLOW = 0x80000005
    WAIT_OBJECT_0 = 0x00000000
    INFINITE = 0xFFFFFFFF

    # Tokens, processes and console events
    TOKEN_QUERY = 0x0008
    TOKEN_USER_CLASS = 1  # TokenUser of TOKEN_INFORMATION_CLASS
    PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
    CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT = 2, 5, 6

    # Security descriptors and their access control entries (ACEs)
    SDDL_REVISION_1 = 1
    SE_KERNEL_OBJECT = 6
    OWNER_SECURITY_INFORMATION = 0x00000001
    DACL_SECURITY_INFORMATION = 0x00000004
    ACCESS_ALLOWED_ACE_TYPE = 0x00
    ACCESS_ALLOWED_CALLBACK_ACE_TYPE = 0x09
    INHERIT_ONLY_ACE = 0x08
    FILE_CREATE_PIPE_INSTANCE = 0x00000004
    WRITE_DAC, WRITE_OWNER = 0x00040000, 0x00080000
    # The rights of a client: FILE_GENERIC_READ and FILE_GENERIC_WRITE, without the right to create
    # another instance of the pipe, which only a server needs.
    CLIENT_RIGHTS = 0x0012019F & ~FILE_CREATE_PIPE_INSTANCE
    # Each of these rights lets an account create an instance of the pipe, or grant itself the right
    # to do so. Windows replaces GENERIC_WRITE and GENERIC_ALL, the last two; Wine keeps them.
    SERVER_RIGHTS = FILE_CREATE_PIPE_INSTANCE | WRITE_DAC | WRITE_OWNER | 0x40000000 | 0x10000000
    # Well-known SIDs. SYSTEM and Administrators can replace any server even without these rights.
    SYSTEM, ADMINISTRATORS = "S-1-5-18", "S-1-5-32-544"
    OWNER_RIGHTS, EVERYONE = "S-1-3-4", "S-1-1-0"

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

    def _nonzero(result: int, function: Any, arguments: Any) -> int:
        """Raise the OSError of GetLastError if a function returned 0 (an errcheck of ctypes)."""
        if not result:
            raise ctypes.WinError(ctypes.get_last_error())
        return result

    def _nonzero_or_not_connected(result: int, function: Any, arguments: Any) -> int:
        """Raise as _nonzero() does, except for a pipe instance that has no client."""
        not_connected = ctypes.get_last_error() == ERROR_PIPE_NOT_CONNECTED
        return result if not_connected else _nonzero(result, function, arguments)

    def _valid_handle(result: int, function: Any, arguments: Any) -> int:
        """Raise the OSError of GetLastError if a function returned INVALID_HANDLE_VALUE."""
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

    # Own library objects: prototypes set on ctypes.windll would apply to the whole process.
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)

    HANDLE, DWORD, BOOL, LPVOID = wintypes.HANDLE, wintypes.DWORD, wintypes.BOOL, wintypes.LPVOID
    LPDWORD, LPOVERLAPPED = wintypes.LPDWORD, ctypes.POINTER(OVERLAPPED)

    # fmt: off
    # Functions that raise OSError, and functions without an error code
    CreateNamedPipeW = _bind(
        _kernel32, "CreateNamedPipeW", HANDLE, _valid_handle,
        wintypes.LPCWSTR, DWORD, DWORD, DWORD, DWORD, DWORD, DWORD,
        ctypes.POINTER(SECURITY_ATTRIBUTES),
    )
    DisconnectNamedPipe = _bind(
        _kernel32, "DisconnectNamedPipe", BOOL, _nonzero_or_not_connected, HANDLE
    )
    CreateEventW = _bind(
        _kernel32, "CreateEventW", HANDLE, _nonzero, LPVOID, BOOL, BOOL, wintypes.LPCWSTR
    )
    SetEvent = _bind(_kernel32, "SetEvent", BOOL, _nonzero, HANDLE)
    CloseHandle = _bind(_kernel32, "CloseHandle", BOOL, _nonzero, HANDLE)
    LocalFree = _bind(_kernel32, "LocalFree", wintypes.HLOCAL, None, wintypes.HLOCAL)
    GetCurrentProcess = _bind(_kernel32, "GetCurrentProcess", HANDLE, None)
    OpenProcessToken = _bind(
        _advapi32, "OpenProcessToken", BOOL, _nonzero, HANDLE, DWORD, ctypes.POINTER(HANDLE)
    )
    GetTokenInformation = _bind(
        _advapi32, "GetTokenInformation", BOOL, _nonzero,
        HANDLE, ctypes.c_int, LPVOID, DWORD, LPDWORD,
    )
    ConvertSidToStringSidW = _bind(
        _advapi32, "ConvertSidToStringSidW", BOOL, _nonzero, LPVOID, ctypes.POINTER(LPVOID)
    )
    ConvertStringSecurityDescriptorToSecurityDescriptorW = _bind(
        _advapi32, "ConvertStringSecurityDescriptorToSecurityDescriptorW", BOOL, _nonzero,
        wintypes.LPCWSTR, DWORD, ctypes.POINTER(LPVOID), LPDWORD,
    )
    ConvertSecurityDescriptorToStringSecurityDescriptorW = _bind(
        _advapi32, "ConvertSecurityDescriptorToStringSecurityDescriptorW", BOOL, _nonzero,
        LPVOID, DWORD, DWORD, ctypes.POINTER(LPVOID), LPDWORD,
    )
    GetSecurityInfo = _bind(
        _advapi32, "GetSecurityInfo", DWORD, None,
        HANDLE, ctypes.c_int, DWORD, LPVOID, LPVOID, LPVOID, LPVOID, ctypes.POINTER(LPVOID),
    )

    # Functions whose callers check the result: pending I/O, for example, is not an error
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
    GetNamedPipeClientProcessId = _bind(
        _kernel32, "GetNamedPipeClientProcessId", BOOL, None, HANDLE, wintypes.PULONG
    )
    OpenProcess = _bind(_kernel32, "OpenProcess", HANDLE, None, DWORD, BOOL, DWORD)
    QueryFullProcessImageNameW = _bind(
        _kernel32, "QueryFullProcessImageNameW", BOOL, None, HANDLE, DWORD, wintypes.LPWSTR, LPDWORD
    )
    PeekNamedPipe = _bind(
        _kernel32, "PeekNamedPipe", BOOL, None, HANDLE, LPVOID, DWORD, LPDWORD, LPDWORD, LPDWORD
    )
    CancelIoEx = _bind(_kernel32, "CancelIoEx", BOOL, None, HANDLE, LPOVERLAPPED)
    WaitForMultipleObjects = _bind(
        _kernel32, "WaitForMultipleObjects", DWORD, None, DWORD, LPVOID, BOOL, DWORD
    )
    HandlerRoutine = ctypes.WINFUNCTYPE(BOOL, DWORD)
    SetConsoleCtrlHandler = _bind(
        _kernel32, "SetConsoleCtrlHandler", BOOL, None, HandlerRoutine, BOOL
    )
    # fmt: on

    def string_sid(sid: Any) -> str:
        """Return the SID at an address as text, ``S-1-5-...`` (ConvertSidToStringSidW)."""
        text = LPVOID()
        ConvertSidToStringSidW(sid, ctypes.byref(text))
        try:
            return ctypes.wstring_at(text.value or 0)
        finally:
            LocalFree(text)

    def current_user_sid() -> str:
        """Return this process's account as a SID (OpenProcessToken, GetTokenInformation)."""
        token = wintypes.HANDLE()
        OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, ctypes.byref(token))
        try:
            # TOKEN_USER: a pointer to the SID and attributes; then the SID, at most 68 bytes.
            user = (ctypes.c_void_p * 32)()
            length = wintypes.DWORD()
            GetTokenInformation(
                token, TOKEN_USER_CLASS, user, ctypes.sizeof(user), ctypes.byref(length)
            )
            return string_sid(user[0])
        finally:
            CloseHandle(token)

    def security_attributes(sddl: str) -> SECURITY_ATTRIBUTES:
        """Return attributes with the descriptor of an SDDL string; LocalFree frees the descriptor.

        ConvertStringSecurityDescriptorToSecurityDescriptorW raises OSError for an invalid string.
        """
        descriptor = wintypes.LPVOID()
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            sddl, SDDL_REVISION_1, ctypes.byref(descriptor), None
        )
        return SECURITY_ATTRIBUTES(ctypes.sizeof(SECURITY_ATTRIBUTES), descriptor, False)

    def sddl_for(access: str) -> str:
        """Return SDDL for a name of ACCESS_MODES; add an owner to an SDDL string that has none."""
        sid = current_user_sid()
        client_entries = {
            "user": "",
            "admins": f"(A;;{CLIENT_RIGHTS:#x};;;BA)",
            # All accounts but no network logons, which PIPE_REJECT_REMOTE_CLIENTS also rejects.
            "users": f"(D;;GA;;;NU)(A;;{CLIENT_RIGHTS:#x};;;AU)",
        }
        if access not in client_entries:
            # Clients verify the owner of the pipe, so Windows must not choose a default.
            has_owner = re.match("(G:[^:]*)?O:", access)
            return access if has_owner else f"O:{sid}{access}"
        # This account comes before the entry that denies network logons, because a server that is
        # started over SSH is itself a network logon.
        return f"O:{sid}G:{sid}D:P(A;;GA;;;SY)(A;;GA;;;{sid}){client_entries[access]}"

    def effective_access(handle: int) -> tuple[str, list[str]]:
        """Return the owner and access list of a pipe in SDDL, and the SIDs with SERVER_RIGHTS.

        This account, the owner, SYSTEM and Administrators are left out. Raises OSError if
        GetSecurityInfo or ConvertSecurityDescriptorToStringSecurityDescriptorW fails.
        """
        descriptor, text, acl = LPVOID(), LPVOID(), LPVOID()
        requested = OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION
        error = GetSecurityInfo(
            handle, SE_KERNEL_OBJECT, requested, None, None, ctypes.byref(acl), None,
            ctypes.byref(descriptor),
        )  # fmt: skip
        if error:
            raise ctypes.WinError(error)
        try:
            ConvertSecurityDescriptorToStringSecurityDescriptorW(
                descriptor, SDDL_REVISION_1, requested, ctypes.byref(text), None
            )
            servers = _sids_with_rights(acl.value, SERVER_RIGHTS)
            trusted = current_user_sid(), OWNER_RIGHTS, SYSTEM, ADMINISTRATORS
            return ctypes.wstring_at(text.value or 0), [s for s in servers if s not in trusted]
        finally:
            LocalFree(text)
            LocalFree(descriptor)

    def _sids_with_rights(acl: int | None, rights: int) -> list[str]:
        """Return the SIDs to which the ACL at an address grants any of the rights."""
        if acl is None:  # a null ACL grants all rights to everyone
            return [EVERYONE]
        # ACL: AclRevision, Sbz1, AclSize, AceCount, Sbz2; then the entries.
        # Entry: AceType, AceFlags, AceSize, Mask; then the SID.
        count = struct.unpack("<BxHHxx", ctypes.string_at(acl, 8))[2]
        sids, entry = [], acl + 8
        for _ in range(count):
            kind, flags, size, mask = struct.unpack("<BBHI", ctypes.string_at(entry, 8))
            allows = kind in (ACCESS_ALLOWED_ACE_TYPE, ACCESS_ALLOWED_CALLBACK_ACE_TYPE)
            if allows and not flags & INHERIT_ONLY_ACE and mask & rights:
                sids.append(string_sid(entry + 8))
            entry += size
        return sids

    def program_path(process: int) -> str:
        """Return the program path of a process or "" (OpenProcess, QueryFullProcessImageNameW)."""
        handle = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, False, process)
        if not handle:
            return ""
        try:
            path = ctypes.create_unicode_buffer(32768)
            size = wintypes.DWORD(len(path))
            found = QueryFullProcessImageNameW(handle, 0, path, ctypes.byref(size))
            return path.value if found else ""
        finally:
            CloseHandle(handle)


# ----------------------------------------------------------------------------
# Transports: named pipes on Windows, Unix domain sockets elsewhere
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


class Connection:
    """A connection to one client, with the same interface on sockets and named pipes.

    The thread that serves the client is the connection's own thread. Only this thread calls
    receive(), wait_for_input(), send(), flush() and close(): Windows cancels a pending read when
    the thread that started it ends. Any thread may call the other methods at any time.

    Output goes through send() until the first expect_pushes() or push(). From then on push_mode is
    true, and all output goes through push() and flush(), so that replies and pushed messages keep
    their order. With ``whole``, a named pipe sends the bytes as one message, as text replies need.

    ``may_buffer`` is called, without ``_lock``, before input is added to the inbox, with the bytes
    that the inbox will use. If it returns False, inbox_full is set; the input is still added.

    ``_lock`` guards the outbox, outbox_bytes and _closed; until push_mode is on, only the own
    thread uses the outbox. push_mode, _interrupted and _write_error are set once and read without
    ``_lock``. Only the own thread uses all other attributes. Lock order: the keyspace lock before a
    connection's lock, never the reverse.
    """

    #: True if each message is a text command; False if text commands end with a newline.
    message_mode = False
    #: True if the chunk that receive() returned last ends a message.
    end_of_message = True

    def __init__(self, client_address: str) -> None:
        self.client_address = client_address  #: As CLIENT LIST shows it.
        self.push_mode = False
        # Input that arrived before receive() was called, each chunk with its end_of_message.
        self._inbox: collections.deque[tuple[bytes, bool]] = collections.deque()
        #: Bytes of memory that the inbox uses; True if it must not grow further.
        self.inbox_bytes, self.inbox_full = 0, False
        self._input_ended = False
        # Output that the system has not accepted yet, each part with its ``whole``.
        self._outbox: collections.deque[tuple[Any, bool]] = collections.deque()
        #: Bytes of memory that unsent output uses; 0 if there is none.
        self.outbox_bytes = 0
        self._sent_at = 0.0  # time.monotonic() when the system last accepted output
        self._write_error: ConnectionLost | None = None  # why nothing more can be sent
        self._lock = threading.Lock()
        self._closed = self._interrupted = False

    def receive(self) -> bytes | None:
        """Block until input arrives and return it; b"" is an empty message, None is the end."""
        raise NotImplementedError

    def wait_for_input(self, timeout: float | None, may_buffer: Callable[[int], bool]) -> bool:
        """Block until input, wake() or the timeout in seconds, and put the input into the inbox.

        May return early. Returns False if the client has disconnected, the inbox is full, or
        interrupt() was called.
        """
        if self._interrupted or not self._wait(timeout):
            return not self._interrupted
        return self._fill_inbox(may_buffer) and not self.inbox_full

    def send(self, data: bytes, whole: bool = True) -> bool:
        """Send without blocking; return False if flush() must follow. May raise ConnectionLost."""
        raise NotImplementedError

    def push(self, data: bytes, whole: bool = True) -> None:
        """Send without blocking; the own thread sends the rest whenever it waits."""
        raise NotImplementedError

    def flush(self, timeout: float, may_buffer: Callable[[int], bool]) -> None:
        """Block until all output is sent, and put input that arrives meanwhile into the inbox.

        Otherwise a client that writes many commands before it reads a reply would block for ever.

        :param timeout: seconds; each part of the output that the client accepts restarts them.
        :raises ConnectionLost: after the timeout, or if the client has disconnected.
        """
        self._sent_at = time.monotonic()
        while self.outbox_bytes:
            remaining = self._sent_at + timeout - time.monotonic()
            if remaining <= 0:
                raise ConnectionLost(f"the client did not read its reply within {timeout:g} s")
            if self._wait(remaining, not (self.inbox_full or self._input_ended)):
                self._fill_inbox(may_buffer)
        if self._write_error is not None:
            raise self._write_error

    def expect_pushes(self) -> None:
        """Turn push_mode on, so that push() can wake the own thread in its next receive()."""
        self.push_mode = True

    def is_connected(self) -> bool:
        """Return True while the client has its end open."""
        raise NotImplementedError

    def process(self) -> tuple[int, str]:
        """Return the client's process id and program path, or 0 and "". Not after close()."""
        return 0, ""

    def wake(self) -> None:
        """End the wait_for_input() in progress, or the next wait of the own thread."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Make receive() return None, now and later, once the inbox is empty."""
        self._interrupted = True
        self.wake()

    def abort(self) -> None:
        """Interrupt, and make send() and flush() raise ConnectionLost, now and later."""
        self._write_error = self._write_error or ConnectionLost("aborted by the server")
        self.interrupt()

    def close(self) -> None:
        """Close the connection; the client can still read what was sent. May be called twice."""
        raise NotImplementedError

    def _wait(self, timeout: float | None, reading: bool = True) -> bool:
        """Block until input arrives (True), or until wake(), the timeout or a send (False)."""
        raise NotImplementedError

    def _read_available(self) -> bytes | None:
        """Return the input that has arrived, or None at its end."""
        raise NotImplementedError

    def _fill_inbox(self, may_buffer: Callable[[int], bool]) -> bool:
        """Add the input that has arrived to the inbox; return False at its end."""
        chunk = self._read_available()
        if chunk is None:
            self._input_ended = True
            return False
        self.inbox_bytes += len(chunk) + CHUNK_OVERHEAD
        allowed = may_buffer(self.inbox_bytes)
        self.inbox_full = self.inbox_bytes > MAX_INBOX or not allowed
        self._inbox.append((chunk, self.end_of_message))
        return True

    def _next_buffered(self) -> bytes:
        chunk, self.end_of_message = self._inbox.popleft()
        self.inbox_bytes -= len(chunk) + CHUNK_OVERHEAD
        self.inbox_full = False
        return chunk

    def _queue(self, data: Any, whole: bool) -> None:
        self._outbox.append((data, whole))
        self.outbox_bytes += len(data) + CHUNK_OVERHEAD

    def _requeue(self, data: Any, whole: bool) -> None:
        self._outbox.appendleft((data, whole))
        self.outbox_bytes += len(data) + CHUNK_OVERHEAD

    def _dequeue(self) -> tuple[Any, bool]:
        """Remove the next output; join small pieces, but no whole messages of a pipe."""
        data, whole = self._outbox.popleft()
        parts, size = [data], len(data)
        while self._outbox and not (self.message_mode and (whole or self._outbox[0][1])):
            size += len(self._outbox[0][0])
            if size > CHUNK_SIZE:
                break
            parts.append(self._outbox.popleft()[0])
        self.outbox_bytes -= sum(len(part) + CHUNK_OVERHEAD for part in parts)
        return (b"".join(parts) if len(parts) > 1 else data), whole


class Listener:
    """The server's end of an address. Several threads may call accept() at once.

    :raises AddressInUse: if another program serves the address.
    :raises TransportError: if the address cannot be served, or not be protected (Windows).
    """

    #: True if all accounts of this machine can connect; the word for the address in messages.
    open_to_all, address_word = False, "name"

    def __init__(self, address: str) -> None:
        self.address = address
        #: The security descriptor on Windows; the mode and owner of a Unix socket.
        self.access = ""
        #: SIDs of other accounts that can also serve the name (Windows).
        self.other_servers: list[str] = []

    def accept(self) -> Connection | None:
        """Block until a client connects, or return None after interrupt(); may raise OSError."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Make accept() return None, now and later, in all threads."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the address. No thread may still be in accept()."""
        raise NotImplementedError

    def _address_in_use(self) -> AddressInUse:
        advice = f"stop it or choose another {self.address_word}"
        return AddressInUse(f"{self.address} is already served by another program; {advice}")

    def _cannot_serve(self, reason: object, advice: str = "") -> TransportError:
        advice = advice or f"choose another {self.address_word}"
        return TransportError(f"Cannot serve {self.address} ({reason}); {advice}")


# The flag for one non-blocking call. Windows has none, so sockets are always non-blocking there.
_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


def _ready(wanted: dict[socket.socket, int], timeout: float | None) -> dict[socket.socket, int]:
    """Block until a socket is ready or the timeout is over; return the events of ready sockets."""
    with _Selector() as selector:
        for each, events in wanted.items():
            selector.register(each, events)
        limit = timeout if timeout is None else min(timeout, MAX_WAIT)
        return {key.fileobj: events for key, events in selector.select(limit)}  # type: ignore[misc]


class SocketConnection(Connection):
    """A client of a Unix domain socket or of a TCP port.

    ``_lock`` also guards _waker and _wake_sent. Only the own thread uses _buffer.
    """

    def __init__(self, client: socket.socket, client_address: str) -> None:
        super().__init__(client_address)
        self._socket = client
        self._socket.setblocking(bool(_DONTWAIT))
        # One buffer for all reads: to allocate CHUNK_SIZE for each read and keep a few bytes of it
        # would fragment the memory. Pages of the mapping that were never written use no memory.
        self._buffer = mmap.mmap(-1, CHUNK_SIZE)
        # wake() writes to the second socket to end _wait(), which polls the first. _wait() creates
        # them, because most threads only wait in recv().
        self._waker: tuple[socket.socket, socket.socket] | None = None
        self._wake_sent = False

    def receive(self) -> bytes | None:
        if self._inbox:
            return self._next_buffered()
        while not self._interrupted:
            if _DONTWAIT and not self.push_mode:
                return self._read_available(0)
            if self._wait(None):  # unlike recv(), this ends at wake()
                return self._read_available()
        return None

    def _read_available(self, flags: int = _DONTWAIT) -> bytes | None:
        try:
            return self._buffer[: self._socket.recv_into(self._buffer, 0, flags)] or None
        except BlockingIOError:
            return b""
        except OSError as error:
            log.debug("Cannot receive from %s: %s", self.client_address, error)
            return None

    def _wait(self, timeout: float | None, reading: bool = True) -> bool:
        with self._lock:
            if self._waker is None:
                self._waker = socket.socketpair()
                if self._wake_sent:
                    self._waker[1].send(b"\0")
            waker = self._waker[0]
            wanted = selectors.EVENT_READ if reading else 0
            wanted |= selectors.EVENT_WRITE if self._outbox else 0
        ready = _ready({self._socket: wanted, waker: selectors.EVENT_READ}, timeout)
        events = ready.get(self._socket, 0)
        if waker in ready or events & selectors.EVENT_WRITE:
            with self._lock:
                if waker in ready:
                    waker.recv(1)
                    self._wake_sent = False
                self._send_queued()
        return bool(events & selectors.EVENT_READ)

    def is_connected(self) -> bool:
        with self._lock:
            try:
                peek = socket.MSG_PEEK | _DONTWAIT
                return not self._closed and bool(self._socket.recv(1, peek))
            except BlockingIOError:
                return True
            except OSError:
                return False

    def process(self) -> tuple[int, str]:
        if sys.platform != "linux" or self._socket.family != socket.AF_UNIX:
            return 0, ""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        process: int = struct.unpack("3i", credentials)[0]
        try:
            return process, os.readlink(f"/proc/{process}/exe")
        except OSError:  # the process has ended, or belongs to another user
            return process, ""

    def send(self, data: bytes, whole: bool = True) -> bool:
        sent = self._send_now(data)
        if self._write_error is not None:
            raise self._write_error
        if sent == len(data):
            return True
        with self._lock:
            self._queue(memoryview(data)[sent:], whole)
        return False

    def push(self, data: bytes, whole: bool = True) -> None:
        with self._lock:
            self.push_mode = True
            if self._closed:
                return
            sent = 0 if self._outbox else self._send_now(data)
            if sent == len(data):
                return
            # A view, because all subscribers of a channel share the bytes of a message.
            self._queue(memoryview(data)[sent:], whole)
        self.wake()

    def _send_now(self, data: bytes) -> int:
        """Return how many bytes the system accepts now; all if the client has disconnected."""
        try:
            return self._socket.send(data, _DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._write_error = self._write_error or ConnectionLost(error.strerror or str(error))
            return len(data)

    def _send_queued(self) -> None:
        while self._outbox:
            data, whole = self._dequeue()
            sent = self._send_now(data)
            if sent:
                self._sent_at = time.monotonic()
            if sent < len(data):
                self._requeue(memoryview(data)[sent:], whole)
                break

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._socket.close()
            self._buffer.close()
            for end in self._waker or ():
                end.close()

    def wake(self) -> None:
        with self._lock:
            if not self._closed and not self._wake_sent:
                self._wake_sent = True
                if self._waker is not None:
                    self._waker[1].send(b"\0")

    def interrupt(self) -> None:
        super().interrupt()
        self._shut_down(socket.SHUT_RD)

    def abort(self) -> None:
        super().abort()
        self._shut_down(socket.SHUT_RDWR)

    def _shut_down(self, how: int) -> None:
        with self._lock, contextlib.suppress(OSError):  # the client has disconnected
            if not self._closed:
                self._socket.shutdown(how)


class SocketListener(Listener):
    """A listening socket; a subclass binds it."""

    def __init__(self, address: str, listening_socket: socket.socket) -> None:
        super().__init__(address)
        self._accept_lock = threading.Lock()
        self._socket = listening_socket
        self._interrupt_reader, self._interrupt_writer = socket.socketpair()
        try:
            self._bind_socket()
            self._socket.listen(1024)
            self._socket.setblocking(False)
        except OSError as error:
            SocketListener.close(self)
            # Windows reports a port that another program uses exclusively as WSAEACCES.
            denied = sys.platform == "win32" and isinstance(error, PermissionError)
            if denied or error.errno == errno.EADDRINUSE:
                raise self._address_in_use() from None
            raise self._cannot_serve(error) from error
        except BaseException:
            SocketListener.close(self)
            raise

    def _bind_socket(self) -> None:
        raise NotImplementedError

    def accept(self) -> Connection | None:
        # Only one thread waits for the socket; otherwise each new client would wake all threads.
        with self._accept_lock:
            while True:
                both = dict.fromkeys((self._socket, self._interrupt_reader), selectors.EVENT_READ)
                if self._interrupt_reader in _ready(both, None):
                    return None
                # The client may have disconnected before accept().
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    client, peer = self._socket.accept()
                    host, port = peer if isinstance(peer, tuple) else (self.address, 0)
                    return SocketConnection(client, f"{host}:{port}")

    def interrupt(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._interrupt_writer.setblocking(False)
            self._interrupt_writer.send(b"\0")

    def close(self) -> None:
        for each in (self._socket, self._interrupt_reader, self._interrupt_writer):
            each.close()


class TCPListener(SocketListener):
    """A port of 127.0.0.1, which all accounts of this machine can connect to."""

    open_to_all, address_word = True, "port"

    def __init__(self, port: int) -> None:
        self._port = port
        super().__init__(f"127.0.0.1:{port}", socket.socket(socket.AF_INET))

    def _bind_socket(self) -> None:
        # SO_REUSEADDR allows a restart while old connections are in TIME_WAIT; on Windows it would
        # also let another program bind the same port.
        option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
        self._socket.setsockopt(socket.SOL_SOCKET, option, 1)
        self._socket.bind(("127.0.0.1", self._port))


if sys.platform == "win32":

    class _PipeInstance:
        """A server handle of the pipe and the events of its operations, reused for many clients."""

        def __init__(self, handle: int) -> None:
            self.handle = handle
            self.reading, self.writing = OVERLAPPED(), OVERLAPPED()
            self.wake_event = None
            try:
                self.reading.hEvent = CreateEventW(None, True, False, None)
                self.writing.hEvent = CreateEventW(None, True, False, None)
                self.wake_event = CreateEventW(None, False, False, None)
            except BaseException:
                self.close()
                raise

        def cancel(self, overlapped: OVERLAPPED) -> bool:
            """Cancel an operation and wait for its end; return True if it succeeded before."""
            CancelIoEx(self.handle, ctypes.byref(overlapped))
            # Windows may write to the buffer and the structure until GetOverlappedResult returns.
            operation, count = ctypes.byref(overlapped), ctypes.byref(wintypes.DWORD())
            return bool(GetOverlappedResult(self.handle, operation, count, True))

        def close(self) -> None:
            for handle in (self.handle, self.reading.hEvent, self.writing.hEvent, self.wake_event):
                if handle:
                    CloseHandle(handle)

    class PipeConnection(Connection):
        """A client of a named pipe.

        ``_lock`` also guards _pending_write; until push_mode is on, only the own thread writes.
        Only the own thread uses _buffer, _read_pending and _disconnected.
        """

        message_mode = True

        def __init__(self, instance: _PipeInstance, listener: PipeListener) -> None:
            super().__init__(f"{listener.address}:0")
            self._instance, self._listener, self._handle = instance, listener, instance.handle
            self._reading = ctypes.byref(instance.reading)
            self._writing = ctypes.byref(instance.writing)
            # _wait() skips the first event if no write is pending, and the last to ignore input.
            written, read = instance.writing.hEvent, instance.reading.hEvent
            self._events = (wintypes.HANDLE * 3)(written, instance.wake_event, read)
            self._transferred = ctypes.byref(wintypes.DWORD())
            self._buffer = ctypes.create_string_buffer(CHUNK_SIZE)
            self._view = memoryview(self._buffer)
            self._read_pending = False  # ReadFile was called, and its result was not used yet
            self._pending_write: bytes | None = None  # the data of a WriteFile in progress
            self._disconnected = False

        def receive(self) -> bytes | None:
            if self._inbox:
                return self._next_buffered()
            while not self._interrupted:
                if self._wait(None):
                    return self._read_available()
            return None

        def _wait(self, timeout: float | None, reading: bool = True) -> bool:
            # If a write is pending, wait even when input is there, to see the end of the write.
            if reading and self._start_read() and self._pending_write is None:
                return True
            first = 1 if self._pending_write is None else 0
            count = (3 if reading else 2) - first
            events = ctypes.byref(self._events, first * ctypes.sizeof(wintypes.HANDLE))
            limit = INFINITE
            if timeout is not None:
                limit = math.ceil(min(max(timeout, 0), MAX_WAIT) * 1000)
            result = WaitForMultipleObjects(count, events, False, limit)
            signaled = first + result - WAIT_OBJECT_0
            if signaled == 0:
                self._finish_write()
            return bool(signaled == 2)

        def _start_read(self) -> bool:
            """Call ReadFile unless a read is pending; return True if it has a result at once."""
            if self._read_pending or self._disconnected:
                return self._disconnected
            self._read_pending = True
            if ReadFile(self._handle, self._buffer, CHUNK_SIZE, None, self._reading):
                return True
            error = ctypes.get_last_error()
            if error == ERROR_IO_PENDING:
                return False
            self._disconnected = error != ERROR_MORE_DATA
            self._read_pending = not self._disconnected
            return True

        def _read_available(self) -> bytes | None:
            if self._disconnected:
                return None
            self._read_pending = False
            # GetOverlappedResult reads the same two fields, but ctypes releases the GIL for a call
            # of it, and the thread may wait some milliseconds to get the GIL back.
            status = self._instance.reading.Internal & 0xFFFFFFFF
            self.end_of_message = status == STATUS_SUCCESS
            if status not in (STATUS_SUCCESS, STATUS_BUFFER_OVERFLOW):
                self._disconnected = True
                return None
            return self._view[: self._instance.reading.InternalHigh].tobytes()

        def is_connected(self) -> bool:
            with self._lock:
                if self._closed:
                    return False
                return bool(PeekNamedPipe(self._handle, None, 0, None, None, None))

        def process(self) -> tuple[int, str]:
            process = wintypes.ULONG()
            if not GetNamedPipeClientProcessId(self._handle, ctypes.byref(process)):
                return 0, ""
            return process.value, program_path(process.value)

        def send(self, data: bytes, whole: bool = True) -> bool:
            if self._write_error is None:
                if whole or len(data) <= MAX_WRITE:
                    self._write(data)
                else:
                    with self._lock:
                        self._queue(data, whole)
                        self._write_queued()
            if self._write_error is not None:
                raise self._write_error
            return self._pending_write is None

        def push(self, data: bytes, whole: bool = True) -> None:
            with self._lock:
                self.push_mode = True
                if self._closed or self._write_error is not None:
                    return
                self._queue(data, whole)
                self._write_queued()
                if self._pending_write is None and self._write_error is None:
                    return
            self.wake()

        def _write_queued(self) -> None:
            """Write from the outbox until a write is pending. The caller holds the lock."""
            while self._outbox and self._pending_write is None:
                data, whole = self._dequeue()
                if len(data) > MAX_WRITE and not whole:
                    self._requeue(memoryview(data)[MAX_WRITE:], whole)
                    data = data[:MAX_WRITE]
                self._write(bytes(data))

        def _write(self, data: bytes) -> None:
            if not WriteFile(self._handle, data, len(data), None, self._writing):
                error = ctypes.get_last_error()
                if error == ERROR_IO_PENDING:
                    self._pending_write = data
                    self.outbox_bytes += len(data) + CHUNK_OVERHEAD
                else:
                    self._fail_writes(error)

        def _finish_write(self) -> None:
            """Check the result of the write that has ended, then write from the outbox."""
            with self._lock:
                self.outbox_bytes -= len(self._pending_write or b"") + CHUNK_OVERHEAD
                self._pending_write = None
                if GetOverlappedResult(self._handle, self._writing, self._transferred, False):
                    self._sent_at = time.monotonic()
                    self._write_queued()
                else:
                    self._fail_writes(ctypes.get_last_error())

        def _fail_writes(self, error: int) -> None:
            """Discard the output and end the input, because part of a message may be lost."""
            self._outbox.clear()
            self.outbox_bytes = 0
            reason = f"cannot write: {ctypes.FormatError(error).strip()}"
            self._write_error = self._write_error or ConnectionLost(reason)
            self._interrupted = True

        def close(self) -> None:
            with self._lock:
                if self._closed:
                    return
                self._closed = True
            if self._read_pending:
                self._instance.cancel(self._instance.reading)
            if self._pending_write is not None:
                self._instance.cancel(self._instance.writing)
            self._listener.recycle(self._instance, disconnected=self._disconnected)

        def wake(self) -> None:
            with self._lock:
                if not self._closed:
                    SetEvent(self._instance.wake_event)

        def abort(self) -> None:
            super().abort()
            with self._lock:
                if not self._closed:
                    CancelIoEx(self._handle, self._writing)

    class PipeListener(Listener):
        """A named pipe, for clients of this machine only.

        :param access: who can connect: a name of ACCESS_MODES, or an SDDL string.

        At least one instance always exists, so that no other program can create a pipe of the same
        name. ``_lock`` guards _interrupted and _idle_instances, and no other lock is acquired while
        it is held.
        """

        def __init__(self, address: str, access: str = "user") -> None:
            super().__init__(address)
            self._lock = threading.Lock()
            self._interrupted = False
            self._idle_instances: list[_PipeInstance] = []
            try:
                self._security = security_attributes(sddl_for(access))
            except OSError as error:
                advice = f"use one of {', '.join(ACCESS_MODES)}, or a valid SDDL string"
                raise self._cannot_serve(f"access {access!r}: {error}", advice) from error
            self._interrupt_event = CreateEventW(None, True, False, None)
            try:
                self._idle_instances.append(self._create_first_instance())
                self._check_access()
            except BaseException:
                self.close()
                raise

        def _create_first_instance(self) -> _PipeInstance:
            # FILE_FLAG_FIRST_PIPE_INSTANCE fails if the name is in use. Wine ignores the flag, so
            # WaitNamedPipeW looks for the name first.
            found = WaitNamedPipeW(self.address, NMPWAIT_NOWAIT)
            if found or ctypes.get_last_error() == ERROR_SEM_TIMEOUT:
                raise self._address_in_use()
            try:
                return _PipeInstance(self._create_instance(FILE_FLAG_FIRST_PIPE_INSTANCE))
            except OSError as error:
                if error.winerror in (ERROR_ACCESS_DENIED, ERROR_PIPE_BUSY):
                    raise self._address_in_use() from None
                raise self._cannot_serve(error) from error

        def _check_access(self) -> None:
            """Read the effective descriptor, and raise unless a second instance can be created."""
            try:
                self.access, self.other_servers = effective_access(self._idle_instances[0].handle)
            except OSError as error:
                raise self._cannot_serve(f"cannot read its access list: {error}") from error
            try:
                CloseHandle(self._create_instance())
            except OSError as error:
                # Windows checks the right to create instances only from the second instance on.
                advice = "--access must give this account all rights (GA)"
                raise self._cannot_serve(f"no second instance: {error}", advice) from error

        def _create_instance(self, flags: int = 0) -> int:
            handle: int = CreateNamedPipeW(
                self.address,
                PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | flags,
                PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE | PIPE_REJECT_REMOTE_CLIENTS,
                PIPE_UNLIMITED_INSTANCES, CHUNK_SIZE, CHUNK_SIZE, 0, ctypes.byref(self._security),
            )  # fmt: skip
            return handle

        def accept(self) -> Connection | None:
            while True:
                with self._lock:
                    if self._interrupted:
                        return None
                    instance = self._idle_instances.pop() if self._idle_instances else None
                if instance is None:
                    instance = _PipeInstance(self._create_instance())
                if self._connect(instance):
                    return PipeConnection(instance, self)
                self.recycle(instance, disconnected=True)

        def _connect(self, instance: _PipeInstance) -> bool:
            """Block until a client connects or interrupt(); return True if a client is there."""
            if ConnectNamedPipe(instance.handle, ctypes.byref(instance.reading)):
                return True
            error = ctypes.get_last_error()
            if error == ERROR_IO_PENDING:
                events = (wintypes.HANDLE * 2)(instance.reading.hEvent, self._interrupt_event)
                WaitForMultipleObjects(2, events, False, INFINITE)
                return instance.cancel(instance.reading)
            # Otherwise ERROR_NO_DATA: a client connected and has disconnected already.
            return bool(error == ERROR_PIPE_CONNECTED)

        def recycle(self, instance: _PipeInstance, *, disconnected: bool) -> None:
            """Make an instance ready for the next client.

            :param disconnected: True if the client has closed its end. Otherwise a new instance
                takes its place, because DisconnectNamedPipe discards what the client has not read.
            """
            with self._lock:
                if self._interrupted:
                    instance.close()
                    return
            if disconnected:
                DisconnectNamedPipe(instance.handle)
            else:
                try:
                    handle = self._create_instance()  # before CloseHandle, so that the name stays
                except OSError as error:
                    # DisconnectNamedPipe discards unread data, but the name keeps an instance.
                    log.error("Cannot add an instance to %s, reusing one: %s", self.address, error)
                    DisconnectNamedPipe(instance.handle)
                else:
                    CloseHandle(instance.handle)
                    instance.handle = handle
            with self._lock:
                self._idle_instances.append(instance)

        def interrupt(self) -> None:
            with self._lock:
                self._interrupted = True
                idle, self._idle_instances = self._idle_instances, []
            SetEvent(self._interrupt_event)
            for instance in idle:
                instance.close()

        def close(self) -> None:
            for instance in self._idle_instances:
                instance.close()
            CloseHandle(self._interrupt_event)
            LocalFree(self._security.lpSecurityDescriptor)

    make_listener: Callable[..., Listener] = PipeListener

else:

    class UnixListener(SocketListener):
        """A Unix domain socket, of mode 0666 for the access "users" and of mode 0600 otherwise."""

        def __init__(self, address: str, access: str = "user") -> None:
            self._mode = 0o666 if access == "users" else 0o600
            super().__init__(address, socket.socket(socket.AF_UNIX))

        def _bind_socket(self) -> None:
            self._remove_stale_socket()
            self._socket.bind(self.address)
            # No client can connect between bind() and listen(), so the mode is set in time.
            os.chmod(self.address, self._mode)
            self._status = os.lstat(self.address)
            mode = stat.S_IMODE(self._status.st_mode)
            self.access = f"mode {mode:04o}, owner {self._status.st_uid}"

        def _remove_stale_socket(self) -> None:
            """Remove the socket of a killed server; raise AddressInUse for anything else."""
            try:
                found = os.lstat(self.address)
            except OSError:
                return
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
                reason = "exists and is not a socket of this user; choose another name"
                raise AddressInUse(f"{self.address} {reason}")
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(STOP_GRACE)
                try:
                    probe.connect(self.address)
                except (ConnectionRefusedError, FileNotFoundError):  # no process listens
                    with contextlib.suppress(FileNotFoundError):
                        if os.path.samestat(found, os.lstat(self.address)):
                            os.unlink(self.address)
                    return
                except OSError as error:
                    log.debug("Cannot connect to %s: %s", self.address, error)
            raise self._address_in_use()

        def close(self) -> None:
            super().close()
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._status, os.lstat(self.address)):
                    os.unlink(self.address)

    make_listener = UnixListener


# ----------------------------------------------------------------------------
# Server: sessions, workers, start and stop
# ----------------------------------------------------------------------------


def _is_http(request: Request) -> bool:
    # A web page can make a browser send a form to a port, with commands in it.
    words, terminator = request
    if terminator is None or not isinstance(words, list):
        return False
    return words[0].upper() in (b"POST", b"HOST:")


#: The replies that can be longer than what there is in the store.
_MEASURED_TYPES = frozenset({list, dict, SetReply, PairsReply, MultipleReplies, Verbatim})


class Session(Peer):
    """One client from connecting to leaving: requests in, replies out, messages in between.

    :param local_address: where the client came to.
    :param suspicious: whether it may be a browser that was sent here.
    """

    def __init__(
        self, connection: Connection, settings: Settings, local_address: str, suspicious: bool
    ) -> None:
        self.connection, self._settings, self._suspicious = connection, settings, suspicious
        connection.limits = settings
        self.address, self.local_address = connection.peer, local_address
        #: Why the server has hung up, if so.
        self.dropped = ""
        self._process = 0, ""
        self._listened = False
        #: Since when the client owes us the rest of a command, while it is waited for.
        self.owing: float | None = None
        # The memory that is counted for it.
        self._held = 0

    def run(self, client: Client) -> None:
        """Serve the client until it, or the server, ends the connection.

        :raises ConnectionLost: if a reply could not be delivered.
        """
        connection = self.connection
        parser = RequestParser(connection.message_mode, client.settings)
        receive, feed, answer = connection.receive, parser.feed, self._answer
        connection.room = lambda inbox_bytes: self.hold(client, parser.held + inbox_bytes)
        while not client.closing:
            chunk = receive()
            if chunk is None:
                return
            since, self.owing = self.owing, None
            parser.unauthenticated = client.locked_out
            requests = feed(chunk, connection.end_of_message)
            if requests:
                since = None
            held = parser.held + connection.inbox_bytes
            enough = held == self._held or self.hold(client, held)
            if not enough and parser.held > MEMORY_CHECK_THRESHOLD:
                requests.append(parser.refuse(ProtocolError(OUT_OF_MEMORY)))
            while requests and not client.closing:
                if self._suspicious and any(map(_is_http, requests)):
                    log.warning("Closing client %d (%s): HTTP", client.id, self.describe())
                    return
                answer(client, requests)
                requests = []
                if (
                    parser.unauthenticated or parser.more
                ):  # the rest: by now the client may be let in
                    parser.unauthenticated = client.locked_out
                    requests = feed(b"")
            if parser.held:
                self.owing = since or time.monotonic()

    def hold(self, client: Client, size: int) -> bool:
        """Count the memory that what is read and not carried out takes, and tell whether there is
        so much."""
        keyspace = client.keyspace
        with keyspace.lock:
            keyspace.reserve(size - self._held)
            self._held = size
            if size > MEMORY_CHECK_THRESHOLD and keyspace.used_memory > keyspace.memory_limit:
                try:
                    keyspace.free_memory()
                except CommandError:
                    return False
        return True

    def end(self, client: Client) -> None:
        """Give up what is held, under the store's lock, when run() has ended."""
        self.hold(client, 0)
        self.connection.room = None  # by which the connection holds what holds it

    def _answer(self, client: Client, requests: list[Request]) -> None:
        client.last_command_at = time.monotonic()
        channels, waiting = client.live.channels, client.live.waiting
        subscriber = client.subscriber
        ready, messages = waiting.ready, subscriber.messages
        pending = iter(requests)
        more = True
        while more and not client.closing:
            output: list[bytes] = []
            size, more, next_check = 0, False, TURN_CLOCK_BYTES
            # The lock once a turn rather than once a command, and one message for all replies.
            with client.keyspace.lock:
                end = time.monotonic() + TURN_TIME
                for arguments, terminator in pending:
                    reply = execute(client, arguments)
                    if reply.__class__ is bytes and terminator is None:
                        # As encode_resp() does it, without the call.
                        data = b"$%d\r\n%b\r\n" % (len(reply), reply)  # type: ignore[arg-type,str-format]
                    else:
                        if (
                            reply.__class__ in _MEASURED_TYPES
                            and reply_size(reply) > self._settings.max_reply
                        ):
                            reply = reply_too_long(self._settings.max_reply)
                        if subscriber.listens:  # from this command on, perhaps
                            subscriber.form = client.protocol if terminator is None else terminator
                        if terminator is None or reply is NO_REPLY:
                            data = encode_resp(reply, client.protocol)
                        else:
                            data = encode_text(reply, terminator)
                    if messages:  # in order with the replies to what it does itself
                        data = b"".join(messages) + data
                        subscriber.forget()
                    output.append(data)
                    if ready:
                        waiting.serve()
                    size += len(data) + TURN_COMMAND_BYTES
                    if size > next_check or client.halted:
                        if size > TURN_BYTES or client.halted or time.monotonic() > end:
                            more = True
                            break
                        next_check += TURN_CLOCK_BYTES
                client.statistics.commands += len(output)
                if arguments.__class__ is list and len(arguments[0]) < ERROR_EXCERPT:  # type: ignore[index]
                    client.command = arguments[0]  # type: ignore[index]
                # Only RESP is a stream; a text client wants its reply in one message.
                answered = output and (reply is not NO_REPLY or any(output))
                data = output[0] if len(output) == 1 else b"".join(output)
                listens = self._listened or subscriber.listens
                if listens:
                    # In order with what others send it from now on.
                    self._listened = subscriber.listens
                    subscriber.form = client.protocol if terminator is None else terminator
                    if answered:
                        self.connection.push(data, terminator is not None)
                    else:
                        self.connection.expect_pushes()
                if channels.pending_clients:
                    channels.flush()
            if listens:
                self.connection.flush()
            elif answered:
                self.connection.send(data, terminator is not None)
            if client.waiter is not None:
                self._wait(client, client.waiter, terminator)

    def _wait(self, client: Client, waiter: BlockedClient, terminator: bytes | None) -> None:
        # Until the client has what it waits for, or its time is over, or it is gone.
        while not waiter.done:
            left = waiter.left()
            if left is not None and left <= 0:
                with client.keyspace.lock:
                    client.live.waiting.end(waiter, waiter.reply)
            elif not self.connection.watch(left):
                if self.connection.inbox_full:
                    self.drop("it sent more than can be kept while it waited")
                client.close()
                return
        form = client.protocol if terminator is None else terminator
        data = encode(waiter.reply, form)
        with client.keyspace.lock:
            client.waiter, client.halted = None, client.closing
            if self._listened and not waiter.muted:
                self.connection.push(data, terminator is not None)
        if self._listened:
            self.connection.flush()
        elif not waiter.muted:
            self.connection.send(data, terminator is not None)

    def push(self, data: bytes, line: bool) -> None:
        self.connection.push(data, line)

    def can_queue(self, pending: int, size: int) -> bool:
        lying, most = self.connection.outbox_bytes + pending, self._settings.subscriber_buffer
        if not self.dropped and lying and lying + size > most:
            self.drop(f"it left more than {most} bytes of what it subscribed to lying")
        return not self.dropped

    def overdue(self, client: Client, now: float) -> str:
        """Why a client is to be dropped at this time, or ""."""
        limits = self._settings
        owing, longest = self.owing, limits.message_timeout
        if owing is not None and 0 < longest < now - owing:
            return f"it did not finish a command within {longest:g} s"
        # Who waits, listens, or has not all of its reply or its command through yet is not idle.
        busy = client.waiter is not None or owing is not None or self.connection.outbox_bytes
        if (
            not (busy or client.subscriber.listens)
            and 0 < limits.idle_timeout < now - client.last_command_at
        ):
            return f"it asked for nothing for {limits.idle_timeout:g} s"
        return ""

    def drop(self, reason: str) -> None:
        """End the connection, and say why in the log."""
        self.dropped = self.dropped or reason
        self.connection.abort()

    def wake(self) -> None:
        self.connection.wake()

    def hang_up(self) -> None:
        self.connection.abort()

    def is_connected(self) -> bool:
        return self.connection.is_connected()

    def process(self) -> tuple[int, str]:
        if not self._process[1]:
            self._process = self.connection.process()
        return self._process


class _Endpoint:
    # A listener, with the number of workers it has and of those that wait for a client.

    def __init__(self, listener: Listener) -> None:
        self.listener, self.workers, self.spare = listener, 0, 0


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
        self._keyspace = Keyspace()
        self._keyspace.memory_limit = self._settings.max_memory or math.inf
        self._keyspace.policy = self._settings.policy
        self._statistics = Statistics(self.address)
        self._live = State(self._keyspace)
        db = self._settings.db
        self._persistence = None if db is None else Persistence(db, self._keyspace)
        self._live.events.configure(self._settings.notify_keyspace_events)
        self._endpoints: list[_Endpoint] = []
        most = self._settings.max_clients * (1 if self._settings.tcp is None else 2)
        self._pool = concurrent.futures.ThreadPoolExecutor(most, "pipecache")
        self._process = self._workers = 0
        self._affinity: set[int] = set()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._sessions: set[Session] = set()
        self._saved = True

    def start(self) -> None:
        """Open the pipe and serve it on background threads.

        :raises AddressInUse: if another program serves the name.
        :raises TransportError: if the pipe cannot be made.
        :raises PersistenceError: if the file cannot be used.
        :raises RuntimeError: if it was started before.
        """
        if self._endpoints:
            raise RuntimeError("a Server can be started once")
        self._process = os.getpid()
        if sys.platform == "linux":
            usable = sorted(os.sched_getaffinity(0))
            self._affinity = {usable[self._process % len(usable)]}
        endpoints = [_Endpoint(make_listener(self.address, self._settings.access))]
        try:
            if self._settings.tcp is not None:
                endpoints.append(_Endpoint(TCPListener(self._settings.tcp)))
            if self._persistence is not None:
                self._persistence.open()  # those who connect meanwhile wait
                with self._keyspace.lock, contextlib.suppress(CommandError):
                    self._keyspace.free_memory()
                self._persistence.start()
        except BaseException:
            for endpoint in endpoints:
                endpoint.listener.close()
            raise
        self._endpoints = endpoints
        # The interpreter waits for a pool's threads before it runs atexit functions (since
        # Python 3.9), so a host program that ends without stop() would hang there.
        this = weakref.ref(self)
        getattr(threading, "_register_atexit", atexit.register)(lambda: _stop_at_exit(this()))
        facts = (self.address, os.getpid(), __version__, *sys.version_info[:2])
        log.info("Serving %s (process %d, pipecache %s, Python %d.%d)", *facts)
        who = ACCESS_MODES.get(self._settings.access, "whom it names")
        log.info("Open to %s (%s)", who, endpoints[0].listener.access)
        for rival in endpoints[0].listener.other_servers:
            what = "%s can serve this name too, and so be sent what is meant for this server"
            log.warning(f"{what}: give it 0x12019b at most", rival)
        for endpoint in endpoints[1:]:
            asked = "no password" if self._settings.password is None else "a password"
            log.info("Serving %s, to any account here, with %s", endpoint.listener.address, asked)
        with self._lock:
            for endpoint in endpoints:
                for _ in range(min(SPARE_LISTENERS, self._settings.max_clients)):
                    self._add_worker(endpoint)
        if not all(endpoint.workers for endpoint in endpoints):
            self.stop()
            raise TransportError("Cannot serve: the system gives no thread")
        threading.Thread(
            target=self._run_housekeeping, name="pipecache-sweeper", daemon=True
        ).start()
        log.info("Ready to accept connections")

    def stop(self) -> bool:
        """Let running commands finish, end every connection, give the name free.

        Returns within STOP_TIMEOUT seconds, whatever the clients do, and once everything is saved;
        False if by then a command had not come to its end, so that its thread and the name are
        still in use, or the file did not take everything, or no more of it for SAVE_TIMEOUT.
        """
        # A forked child has none of the threads, but shares the sockets with those that need them.
        if not self._endpoints or self._process != os.getpid():
            return True
        with self._lock:
            first = not self._stopping.is_set()
            self._stopping.set()
        if first:
            try:
                self._stop_workers()
                # Who finds the name free finds the file free, too.
                if self._persistence is not None:
                    self._saved = self._persistence.stop(SAVE_TIMEOUT)
                self._close()
            finally:
                self._stopped.set()
        while not self._stopped.wait(0.25):  # in slices, see serve_forever()
            pass
        return self._saved and not self._workers

    def _stop_workers(self) -> None:
        for endpoint in self._endpoints:
            endpoint.listener.interrupt()
        started = time.monotonic()
        with self._lock:
            # Again and again: a worker may be on its way into the call that is to be ended.
            while self._workers and time.monotonic() - started < STOP_TIMEOUT:
                late = time.monotonic() - started > STOP_GRACE
                for session in self._sessions:
                    (session.connection.abort if late else session.connection.interrupt)()
                self._changed.wait(0.1)

    def _close(self) -> None:
        if self._workers:
            log.error("Stopped, but %d clients' commands did not end", self._workers)
            return
        self._pool.shutdown()
        for endpoint in self._endpoints:
            endpoint.listener.close()
        counts = self._statistics.commands, self._statistics.connections
        log.info("Stopped after %d commands of %d clients", *counts)

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

    def _add_worker(self, endpoint: _Endpoint) -> None:
        # Under self._lock, so that the worker cannot count itself out before it is counted in.
        if self._stopping.is_set():
            return
        place = [endpoint]
        try:
            self._pool.submit(self._work, place)
        except RuntimeError as error:
            # The system gives no further thread; but the pool keeps what it could not start.
            place.clear()
            log.error("Cannot start another worker: %s", error)
        else:
            self._workers += 1
            endpoint.workers += 1
            endpoint.spare += 1

    def _work(self, place: list[_Endpoint]) -> None:
        # One worker: accepts a client, serves it to the end, goes back to accepting.
        with self._lock:
            if not place:
                return
            (endpoint,) = place
        if sys.platform == "linux":
            # The interpreter runs one thread at a time. On several processors those that wait for
            # their turn wake each other across them, which takes longer than the commands do.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._affinity)
        try:
            while self._serve_next(endpoint):
                pass
        finally:
            with self._lock:
                self._workers -= 1
                endpoint.workers -= 1
                endpoint.spare -= 1
                self._changed.notify_all()

    def _serve_next(self, endpoint: _Endpoint) -> bool:
        # A call for each, so that nothing of one is kept until the next has come.
        connection = self._accept(endpoint.listener)
        if connection is None:
            return False
        try:
            self._serve(connection, endpoint)
        except Exception:
            log.exception("A connection failed")
        return True

    def _accept(self, listener: Listener) -> Connection | None:
        while not self._stopping.is_set():
            try:
                return listener.accept()
            except (OSError, MemoryError) as error:
                log.error("Cannot accept a client, trying again: %s", error)
                self._stopping.wait(0.5)
        return None

    def _serve(self, connection: Connection, endpoint: _Endpoint) -> None:
        open_to_all = endpoint.listener.open_to_all
        session = Session(connection, self._settings, endpoint.listener.address, open_to_all)
        password = self._settings.password if open_to_all else None
        client = Client(
            self._keyspace, self._settings, self._statistics, self._live, session, password,
            self._persistence,
        )  # fmt: skip
        with self._lock:
            self._sessions.add(session)
            endpoint.spare -= 1
            if endpoint.spare < SPARE_LISTENERS and endpoint.workers < self._settings.max_clients:
                self._add_worker(endpoint)
        with self._keyspace.lock:
            client.register()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("Client %d has connected: %s", client.id, session.describe())
        try:
            session.run(client)
        except ConnectionLost as error:
            session.dropped = session.dropped or str(error)
        finally:
            if client.fault:
                who = client.id, session.describe()
                log.warning("Closing client %d (%s): %s", *who, client.fault)
            if session.dropped:
                who = client.id, session.describe()
                log.info("Client %d (%s) was dropped: %s", *who, session.dropped)
            with self._lock:
                self._sessions.discard(session)
                endpoint.spare += 1
            try:
                with self._keyspace.lock:
                    session.end(client)
                    client.leave()
            finally:
                connection.close()

    def _run_housekeeping(self) -> None:
        looked = time.monotonic()
        while not self._stopping.wait(EXPIRE_INTERVAL):
            now = time.monotonic()
            try:
                if now - looked > TIMEOUT_CHECK_INTERVAL:
                    looked = now
                    self._disconnect_timed_out(now)
                more = True
                while more and not self._stopping.is_set():
                    with self._keyspace.lock:
                        more = self._keyspace.remove_expired(
                            KEYS_PER_CYCLE
                        ) or self._keyspace.evict(KEYS_PER_CYCLE)
                        self._live.channels.flush()
            except Exception:  # this thread must not end: nothing would expire unasked
                log.exception("A fault of this program, or too little memory, while sweeping")

    def _disconnect_timed_out(self, now: float) -> None:
        with self._keyspace.lock:
            clients = list(self._statistics.clients.values())
        for client in clients:
            session = client.peer
            reason = session.overdue(client, now) if isinstance(session, Session) else ""
            if reason:
                session.drop(reason)  # type: ignore[attr-defined]


def _stop_at_exit(server: Server | None) -> None:
    if server is not None:
        server.stop()


# ----------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------


def _limit_parser(limit: Limit) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return limit.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).replace("argument ", "")) from None

    return parse


def _default_text(limit: Limit) -> str:
    if not limit.default:
        return "no limit"
    if limit.unit != "bytes":
        return f"{limit.default:.12g} {limit.unit}".rstrip()
    power = int(math.log(limit.default, 1024))
    return f"{limit.default / 1024**power:g}{('', 'kb', 'mb', 'gb')[power]}"


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipecache.py",
        usage="pipecache.py [--pipe NAME] [--db FILE] [OPTION ...]; --help lists the options",
        allow_abbrev=False,
        description="A key-value cache and messaging server on a named pipe.",
    )
    option = parser.add_argument
    # fmt: off
    option("--pipe", metavar="NAME", default=DEFAULT_PIPE,
           help="name of the pipe (default: %(default)s)")
    for name, limit in LIMITS.items():
        option("--" + name.replace("_", "-"), type=_limit_parser(limit), default=limit.default,
               metavar={"bytes": "SIZE", "seconds": "SECONDS"}.get(limit.unit, "N"),
               help=f"{limit.description} (default: {_default_text(limit)})")
    option("--max-memory-policy", metavar="POLICY", default=POLICIES[0], choices=POLICIES,
           help="which keys to evict when --max-memory is reached:"
           f" {', '.join(POLICIES)} (default: %(default)s)")
    option("--access", metavar="ACCESS", default="user",
           help="accounts that can connect: user (this account), admins (this account and elevated"
           " administrators), users (all accounts of this machine), or an SDDL string on Windows"
           " (default: %(default)s)")
    option("--notify-keyspace-events", metavar="CLASSES", default="",
           help="key events to publish, as letters of Redis's setting of the same name; KEA selects"
           " all (default: none)")
    option("--db", metavar="FILE",
           help="SQLite file that keeps the data across restarts (default: memory only)")
    option("--tcp", metavar="PORT", type=int,
           help="port of 127.0.0.1 to serve too; all accounts of this machine can connect to it")
    option("--password-file", metavar="FILE",
           help="file whose first line is the password for --tcp")
    option("--tcp-no-password", action="store_true", help="serve --tcp without a password")
    option("--log-level", metavar="LEVEL", type=str.upper, default="INFO",
           choices=["DEBUG", "INFO", "WARNING", "ERROR"],
           help="lowest level to log: DEBUG, INFO, WARNING or ERROR (default: %(default)s)")
    option("--log-file", metavar="FILE", help="file to append the log to (default: standard error)")
    option("--version", action="version", version=f"pipecache {__version__}")
    # fmt: on
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server in the foreground until Ctrl+C.

    :param arguments: the options; ``sys.argv[1:]`` if None. Wrong options exit with status 2.
    :returns: the exit status: 0, or 1 if the server could not start. If the server cannot stop
        cleanly, the process exits here with status 1.
    """
    parser = _argument_parser()
    options = vars(parser.parse_args(arguments))
    log_file, log_level = options.pop("log_file"), options.pop("log_level")
    try:
        _log_to(log_file, log_level)
        server = Server(**options)
    except ValueError as error:
        if sys.stderr is None:
            log.error("%s", error)
        parser.error(str(error))
    _handle_stop_signals(_stop_once)
    _stop_on_console_close(server)
    _raise_descriptor_limit(options["max_clients"] * (1 if options["tcp"] is None else 2))
    _use_one_arena()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    except (TransportError, PersistenceError) as error:
        log.error("%s", error)
        return 1
    if not server.stop():
        # A normal exit would wait for the threads that are still running.
        logging.shutdown()
        os._exit(1)
    return 0


def _raise_descriptor_limit(clients: int) -> None:
    """Raise the limit of open files: a client uses up to three, and macOS allows only 256."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 3 * clients + 100
        if soft not in (resource.RLIM_INFINITY, -1) and soft < needed:
            needed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _use_one_arena() -> None:
    # The GNU C library gives each thread an arena, and no thread uses the free memory of another
    # arena: with values that come and go, the process used twice the memory of the values.
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, AttributeError, OSError):  # another C library
            import ctypes

            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _handle_stop_signals(handler: Any) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def _stop_once(number: int, frame: object) -> None:
    """Raise KeyboardInterrupt, and ignore later signals, which would interrupt stop()."""
    _handle_stop_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop_on_console_close(server: Server) -> None:
    """Stop the server when the console closes or the user logs off (SetConsoleCtrlHandler)."""
    if sys.platform == "win32":

        def handle_event(event: int) -> bool:
            # Windows ends the process as soon as the handler returns.
            closing = event in (CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT)
            if closing:
                server.stop()
            return closing

        handler = HandlerRoutine(handle_event)
        SetConsoleCtrlHandler(handler, True)
        # The registration also keeps a reference to the handler, which Windows does not.
        atexit.register(SetConsoleCtrlHandler, handler, False)


def _log_to(file: str | None, log_level: str) -> None:
    handler: logging.Handler
    if file is not None:
        try:
            # FileHandler has the parameter ``errors`` only since Python 3.9.
            stream = open(file, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"cannot write --log-file {file!r}: {error.strerror}") from error
        handler = logging.StreamHandler(stream)
    elif sys.stderr is not None:
        handler = logging.StreamHandler()
    else:  # pythonw.exe has no console
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(log_level)


if __name__ == "__main__":
    sys.exit(main())
