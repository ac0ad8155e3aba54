#!/usr/bin/env python3
r"""A key-value cache and messaging server in one file.

Copy this file to a machine with Python 3.8 or newer and run ``python pipecache.py``. Every
program of the same user can then share values through the named pipe \\.\pipe\KeyValuePipe.
A message is one command in plain text:

    with open(r"\\.\pipe\KeyValuePipe", "r+b", buffering=0) as pipe:
        pipe.write(b"SET city dubai")
        print(pipe.read(4096))  # b'OK'

The pipe also speaks RESP, the protocol of Redis. On Linux and macOS a Unix domain socket
replaces the pipe. A Python program can run the server on background threads:

    from pipecache import Server

    with Server("KeyValuePipe") as server:
        input(f"Serving {server.address}. Press Enter to stop.")

The file imports only the standard library. By default the server opens no TCP port and
only programs of the user who started it can connect.

Sections, each of which uses only the sections above it:

    Limits and defaults, Exceptions and replies
    Wire protocol: parsing and encoding of text and RESP, without input or output
    Values, Keyspace, State, Persistence
    Commands: declaration and dispatch, argument parsing, strings, keys, lists, hashes,
        sets, sorted sets, transactions, publish/subscribe, connection, server
    Win32 API, Transports, Server, Command line

Locks: Keyspace.lock guards the keyspace and the state of all clients. Connection._lock guards
the handle and the output of one connection. Server._lock guards the workers and the sessions.
Take the keyspace lock or Server._lock (never both) before a connection's lock, never the
reverse. Hold none of these locks while waiting for a client or for another thread.

The path of three commands; the keyspace lock is held inside the brackets:

    GET: Session.run -> RequestParser.feed -> [execute -> encode_resp] -> Connection.send
    BLPOP: [execute -> BlockedClients.block] -> Connection.wait_for_input, until Session.wake
    PUBLISH: [execute -> PubSub.publish -> PubSub.flush -> Connection.push to each subscriber]

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
import importlib
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Tuple, TypeVar, Union

try:
    sqlite3: Any = importlib.import_module("sqlite3")
except ImportError:  # Some builds of Python have no sqlite3; only --db needs it.
    sqlite3 = None

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

__all__ = ["AddressInUse", "PersistenceError", "PipecacheError", "Server", "TransportError", "main"]
__version__ = "1.0.0"

log = logging.getLogger("pipecache")


# ----------------------------------------------------------------------------
# Limits and defaults
# ----------------------------------------------------------------------------

DEFAULT_PIPE = "KeyValuePipe"  #: The name of the pipe.
STOP_TIMEOUT = 5.0  #: Seconds that Server.stop() waits for its worker threads.
STOP_GRACE = 2.0  #: Seconds after which stop() also aborts writes to clients that do not read.
SPARE_LISTENERS = 8  #: Number of idle workers that are ready for new clients.
CHUNK_SIZE = 65536  #: Bytes of one read, and of the pipe's buffer in each direction.
MAX_WRITE = 1024 * 1024  #: Bytes of one WriteFile; Windows charges pending writes to nonpaged pool.
MAX_INBOX = 256 * 1024 * 1024  #: Bytes to buffer from a client that is blocked or not reading.
CHUNK_OVERHEAD = 100  #: Bytes of memory that a buffered chunk needs besides its data.
MAX_HEADER = 65536  #: Bytes of a RESP line that announces a length, as in Redis.
ARGUMENT_OVERHEAD = 48  #: Bytes of memory that a parsed argument needs besides its data.
REPLY_OVERHEAD = 6  #: Bytes of an encoded reply besides its data.
MEMORY_CHECK_THRESHOLD = 1024 * 1024  #: Bytes a client may buffer even when memory is full.
MAX_PARSED_REQUESTS = 1000  #: Number of requests to parse before they are executed.
MAX_UNAUTHENTICATED_ARGUMENTS = 10  #: Number of arguments of a command before AUTH, as in Redis.
MAX_UNAUTHENTICATED_BYTES = 16384  #: Bytes of one argument before AUTH, as in Redis.

#: Bytes of replies after which a session releases the keyspace lock, so that other clients are
#: served. A command counts as TURN_COMMAND_BYTES plus its reply.
TURN_BYTES = 1024 * 1024
TURN_COMMAND_BYTES = 4096
TURN_TIME = 0.005  #: Seconds after which the session releases the lock in any case.
TURN_CLOCK_BYTES = 8 * TURN_COMMAND_BYTES  #: Bytes between two checks of TURN_TIME.
EXPIRE_INTERVAL = 0.1  #: Seconds between two searches for expired keys.
KEYS_PER_CYCLE = 1000  #: Number of keys to expire or evict before the keyspace lock is released.
TIMEOUT_CHECK_INTERVAL = 0.5  #: Seconds between two searches for clients that timed out.

SAVE_INTERVAL = 0.75  #: Seconds between two writes to the file.
MAX_RETRY_DELAY = 10.0  #: Seconds; the longest time between two attempts while writes fail.
SAVE_AT_DIRTY_KEYS = 200_000  #: Number of changed keys at which SAVE_INTERVAL ends early.
DIRTY_CHECK_INTERVAL = 0.1  #: Seconds between two checks of the number of changed keys.
PROGRESS_INTERVAL = 1.0  #: Seconds between two log lines about loading or saving.
SAVE_TIMEOUT = 30.0  #: Seconds without progress after which stop() gives up saving.
FILE_LOCK_TIMEOUT = 5.0  #: Seconds to wait for another process to release the file.
MAX_ROW = 999_000_000  #: Bytes of a key and its value in the file; a row of SQLite holds 10**9.
#: Number of parameters of one SQL statement. SQLite before 3.32 allows 999, later versions 32766.
MAX_SQL_PARAMETERS = 999 if sqlite3 is None or sqlite3.sqlite_version_info < (3, 32) else 8000
BATCH_BYTES = 1024 * 1024  #: Bytes of values after which a statement takes no more rows.
SHORT_VALUE = 1024  #: Bytes of a short key or value. If all are short, BATCH_BYTES is not checked.
CACHED_STATEMENTS = 8  #: Number of prepared statements that SQLite caches.
WAL_CHECKPOINT_PAGES = 8000  #: Pages of 4 KB in the log at which SQLite copies it to the file.

MAX_SCAN = 10_000  #: Number of keys that one SCAN visits at most.
SCAN_ALL_BELOW = 128  #: Number of members up to which HSCAN, SSCAN and ZSCAN return all at once.
LRU_SAMPLES = 5  #: Number of keys from which an LRU policy evicts the least recently used one.
CLOCK_TOLERANCE = 500  #: Milliseconds; a larger jump of the wall clock means that it was set.
M_ARENA_MAX = -8  #: The number of a parameter of mallopt(3) in the GNU C library.
#: Bytes of one pattern, and of all patterns of one PSUBSCRIBE. Compiling them blocks all clients.
MAX_PATTERN, MAX_PATTERNS = 4096, 16384
MAX_NUMBER = 4000  #: Bytes of a decimal number that a command accepts.
MAX_NAME = 1024  #: Bytes of a client's name.
MAX_WAIT = 86400.0  #: Seconds of one wait; poll(2) accepts at most 2**31 - 1 milliseconds, 24 days.
MAX_SLEEP = 3600.0  #: Seconds that DEBUG SLEEP accepts at most.
ERROR_EXCERPT = 128  #: Bytes of a command that an error message repeats.
MONITOR_EXCERPT = 1024  #: Bytes of an argument that MONITOR shows.
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1  #: The range of integers in Redis.
REDIS_VERSION = "7.0.15"  #: The version of Redis that HELLO and INFO report.

#: The eviction policies, with Redis's names. "noeviction" returns an error instead of evicting.
#: "allkeys" policies evict any key, "volatile" policies only keys with a time to live: the least
#: recently used key ("lru"), a random key, or the key that expires first ("ttl").
POLICIES = ("noeviction", "allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl")

#: The letters of notify-keyspace-events, as in Redis. A stands for the next ten letters, of which t
#: (streams) and d (modules) have no events here. K and E choose the keyspace and the keyevent
#: channels. The event m is a read of a missing key, n is a new key.
EVENT_CLASSES = "Ag$lshzxetdKEmn"

#: The values of --access, and what the log says about them.
ACCESS_MODES = {
    "user": "this user's programs",
    "admins": "this user's programs and programs that run as administrator",
    "users": "all programs of all accounts on this machine",
}


def parse_size(text: str) -> int:
    """Return the number of bytes in a text such as ``65536``, ``64kb``, ``10mb`` or ``1gb``.

    :raises ValueError: for any other text.
    """
    match = re.fullmatch(r"(\d{1,19})\s*([kmg]?)b?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64kb, 10mb or 1gb")
    return int(match[1]) << 10 * " kmg".index(match[2] or " ")


def read_password_file(path: str) -> bytes:
    """Return the password in the first line of a file; UTF-16 is converted to UTF-8.

    :raises ValueError: if the file cannot be read or the line is empty.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_UNAUTHENTICATED_BYTES)
    except OSError as error:
        raise ValueError(f"cannot read the password file {path!r}: {error.strerror}") from error
    # Notepad and Windows PowerShell can begin a file with a byte order mark.
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = text.decode("utf-16", "replace").encode()
    if text.startswith(codecs.BOM_UTF8):
        text = text[len(codecs.BOM_UTF8) :]
    password = text.partition(b"\n")[0].rstrip(b"\r")
    if not password:
        raise ValueError(f"the password file {path!r} must have the password in its first line")
    return password


def _invalid(name: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{name} must be {expected}, not {value!r}")


class Limit(NamedTuple):
    """A limit. Its key in LIMITS is the option's name. The value 0, if allowed, means no limit."""

    parameter: str  #: The name in CONFIG SET, as in Redis if Redis has this limit.
    default: float
    minimum: float
    unit: str  #: ``"bytes"``, ``"seconds"``, or ``""`` for a plain number.
    description: str  #: The text of --help.

    def parse(self, text: str) -> float:
        """Return the value in a text, or raise ValueError if it is not allowed."""
        if self.unit == "bytes":
            return self.check(parse_size(text))
        is_float = self.unit == "seconds"
        if not re.fullmatch(r"\d{1,9}(\.\d{1,3})?" if is_float else r"\d{1,9}", text):
            return self.check(text)  # This raises, because a text is not a number.
        return self.check(float(text) if is_float else int(text))

    def check(self, value: object, name: str = "argument") -> float:
        """Return the value, or raise ValueError with the argument's name if it is not allowed."""
        if isinstance(value, (int, float)) and self.minimum <= value <= INTEGER_MAX:
            return value
        raise _invalid(name, value, f"{self.minimum:g} {self.unit}".rstrip() + " or more")

    def format(self, value: float) -> str:
        """Return the value as a text for parse()."""
        return f"{value:.12g}" if self.unit == "seconds" else str(int(value))


LIMITS: dict[str, Limit] = {
    "max_clients": Limit("maxclients", 1000, 1, "", "clients served at once; more clients wait"),
    "max_message": Limit("proto-max-bulk-len", 512 << 20, 1024, "bytes",
                         "longest value or text command"),
    "max_arguments": Limit("max-arguments", 1 << 20, 128, "", "most arguments of one command"),
    "max_command": Limit("client-query-buffer-limit", 1 << 30, 65536, "bytes",
                         "longest command, with all its arguments"),
    "max_reply": Limit("max-reply", 1 << 30, 65536, "bytes",
                       "longest reply; a longer reply becomes an error"),
    "max_memory": Limit("maxmemory", 0, 0, "bytes",
                        "memory for keys, values, buffered input and subscriptions"),
    "subscriber_buffer": Limit("subscriber-buffer", 8 << 20, 1, "bytes",
                               "unread bytes allowed per subscriber"),
    "idle_timeout": Limit("timeout", 0, 0, "seconds", "disconnect clients idle for this time"),
    "message_timeout": Limit("message-timeout", 60, 0, "seconds",
                             "time to finish a command after its first byte"),
    "reply_timeout": Limit("reply-timeout", 30, 0.1, "seconds",
                           "time in which a client must read some of its reply"),
}  # fmt: skip


class Settings:
    """The settings of one server. Each option except ``--log-*`` has an argument of the same name.

    :param pipe: the name of the pipe, see :func:`pipe_address`.
    :param access: a key of ACCESS_MODES or, on Windows, an SDDL string.
    :param max_memory_policy: one of POLICIES.
    :param notify_keyspace_events: letters of EVENT_CLASSES, as in Redis.
    :param tcp: a port of 127.0.0.1 to serve as well.
    :param password: the bytes that clients of the TCP port must send with AUTH.
    :param password_file: a file with the password in its first line.
    :param tcp_no_password: serve the TCP port, which every account can reach, without a password.
    :param db: the file to keep the data in; None keeps the data in memory only.
    :param policy: the old name of ``max_memory_policy``.
    :param limits: values of LIMITS in bytes, in seconds or as a number.
    :raises ValueError: for a value that is not allowed. An unknown name raises TypeError.
    """

    # Attributes for LIMITS; CONFIG SET changes all of them except max_clients.
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
        self, pipe: str = DEFAULT_PIPE, access: str = "user", max_memory_policy: str = "noeviction",
        notify_keyspace_events: str = "", tcp: int | None = None, password: bytes | None = None,
        tcp_no_password: bool = False, db: str | None = None, password_file: str | None = None,
        policy: str | None = None, **limits: float,
    ) -> None:  # fmt: skip
        if policy is not None:
            max_memory_policy = policy
        if not pipe.strip() or min(pipe) < " ":
            raise _invalid("pipe", pipe, "a name without control characters")
        if access not in ACCESS_MODES and (sys.platform != "win32" or ":" not in access):
            modes = ", ".join(ACCESS_MODES)
            raise _invalid("access", access, f"one of {modes} or, on Windows, an SDDL string")
        if max_memory_policy not in POLICIES:
            raise _invalid("max_memory_policy", max_memory_policy, f"one of {', '.join(POLICIES)}")
        if not set(notify_keyspace_events) <= set(EVENT_CLASSES):
            expected = f"made of the letters {EVENT_CLASSES}"
            raise _invalid("notify_keyspace_events", notify_keyspace_events, expected)
        if tcp is not None and tcp not in range(1, 65536):
            raise _invalid("tcp", tcp, "a port from 1 to 65535")
        choices = (password is not None) + (password_file is not None) + bool(tcp_no_password)
        if tcp is None and choices:
            raise ValueError("password, password_file and tcp_no_password need a tcp port")
        if tcp is not None and choices != 1:
            options = "exactly one of password, password_file and tcp_no_password"
            raise ValueError(f"tcp {tcp} is open to every account of this machine: give {options}")
        if password_file is not None:
            password = read_password_file(password_file)
        if password is not None and not (isinstance(password, bytes) and password):
            raise ValueError("password must be bytes and must not be empty")
        if db == "":
            raise _invalid("db", db, "the name of a file")
        if db is not None and sqlite3 is None:
            raise ValueError(f"db {db!r} needs a Python with the module sqlite3")
        self.pipe, self.access, self.max_memory_policy = pipe, access, max_memory_policy
        self.notify_keyspace_events = notify_keyspace_events
        self.tcp, self.password, self.db = tcp, password, db
        for name, limit in LIMITS.items():
            setattr(self, name, limit.check(limits.pop(name, limit.default), name))
        if limits:
            raise TypeError(f"unknown arguments: {', '.join(sorted(limits))}")


# ----------------------------------------------------------------------------
# Exceptions and replies
# ----------------------------------------------------------------------------


class PipecacheError(Exception):
    """The base class of the exceptions that this module defines."""


class TransportError(PipecacheError):
    """A failure to create the pipe or socket; the message gives the reason and what to do."""


class AddressInUse(TransportError):
    """An address that another program serves already."""


class PersistenceError(PipecacheError):
    """A failure to read or write the file; the message gives the reason and what to do."""


class ConnectionLost(PipecacheError):
    """A client that disconnected or did not read its reply in time."""


class ProtocolError(PipecacheError):
    """A violation of the protocol; the server sends this reply and disconnects the client."""


class CommandError(PipecacheError):
    """An error reply; ``str()`` returns its RESP text, which begins with a code such as ERR."""


def reply_too_long(limit: int) -> CommandError:
    """Return the error that replaces a reply of more than ``limit`` bytes."""
    return CommandError(f"ERR the reply is longer than max-reply ({limit} bytes); request less")


def wrong_arity(name: bytes) -> CommandError:
    """Return Redis's error for a wrong number of arguments."""
    return CommandError(f"ERR wrong number of arguments for '{_printable(name.lower())}' command")


class UnknownCommand(CommandError):
    """Redis's error for an unknown command; in text it is ``ERROR: Unknown command``."""

    def __init__(self, name: bytes, arguments: Sequence[bytes]) -> None:
        shown = ""
        for argument in arguments:
            if len(shown) >= ERROR_EXCERPT:
                break
            shown += f"'{_printable(argument[: ERROR_EXCERPT - len(shown)])}' "
        command = _printable(name[:ERROR_EXCERPT])
        super().__init__(f"ERR unknown command '{command}', with args beginning with: {shown}")


def _printable(data: bytes) -> str:
    # A line break would end the RESP error that contains it. Redis cuts the text at a NUL.
    return data.partition(b"\0")[0].decode("latin-1").replace("\r", " ").replace("\n", " ")


WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX_ERROR = "ERR syntax error"
NOT_A_FLOAT = "ERR value is not a valid float"
BAD_HASH_INTEGER = "ERR hash value is not an integer"
INTERNAL_ERROR = "ERR internal error, see the server's log"
OVERFLOW = "ERR increment or decrement would overflow"
OUT_OF_MEMORY = "OOM command not allowed when used memory > 'maxmemory'."


class Status(bytes):
    """A status such as ``OK``: a simple string in RESP."""


OK, PONG, QUEUED = Status(b"OK"), Status(b"PONG"), Status(b"QUEUED")


class Verbatim(bytes):
    """A text for people, such as the reply of INFO: a verbatim string in RESP3."""


class SetReply(List[bytes]):
    """The members of a set, in any order: a set in RESP3."""


class PairsReply(List[Any]):
    """Pairs of values: an array of pairs in RESP3, one flat array in RESP2."""


class Push(List[Any]):
    """A message that is not a reply: a push in RESP3, one line in text."""


class MultipleReplies(List[Any]):
    """Several replies to one command, such as SUBSCRIBE with several channels."""


class NullReply:
    """A null reply with its own encoding in RESP2; None is encoded as the null bulk string."""

    def __init__(self, resp2: bytes) -> None:
        self.resp2 = resp2


NULL_ARRAY = NullReply(b"*-1\r\n")
NO_REPLY = NullReply(b"")  #: No reply: CLIENT REPLY suppresses it, or the client is blocked.

#: The types of replies whose size is checked against max_reply before they are encoded.
_MEASURED_TYPES = frozenset({list, dict, SetReply, PairsReply, MultipleReplies, Verbatim})

#: The types that a command can return. None is a missing value, bytes are a bulk string.
Reply = Union[None, int, float, bytes, NullReply, PipecacheError, List[Any], Dict[bytes, Any]]


# ----------------------------------------------------------------------------
# Wire protocol
# ----------------------------------------------------------------------------

#: A parsed request is a pair: first the command (its name and arguments) or the error that parsing
#: raised, then the terminator of the text reply, or None if the reply is RESP.
Request = Tuple[Union[List[bytes], CommandError, ProtocolError], Union[bytes, None]]

#: Text commands that do not split their last argument, each with the number of words before it.
WORDS_BEFORE_VALUE = {
    b"ECHO": 1, b"SET": 2, b"SETNX": 2, b"GETSET": 2, b"APPEND": 2, b"PUBLISH": 2,
    b"SETEX": 3, b"PSETEX": 3,
}  # fmt: skip

# A word, with or without quotes. A quote inside a word (it's) is an ordinary character. A closing
# quote must be followed by a blank or by the end.
_WORD = re.compile(rb"""[ \t]*(?:"([^"]*)"(?![^ \t])|'([^']*)'(?![^ \t])|([^ \t"'][^ \t]*))""")


def parse_text_command(line: bytes, max_arguments: float = math.inf) -> list[bytes]:
    """Return the arguments of a text command; the line has no terminator.

    :raises CommandError: for an empty command, unbalanced quotes or too many arguments.
    """
    words: list[bytes] = []
    position, words_before_value = 0, math.inf
    while len(words) < words_before_value:
        if len(words) >= max_arguments:
            raise CommandError(f"ERR more arguments than --max-arguments ({max_arguments})")
        match = _WORD.match(line, position)
        if match is None:
            if line[position:].strip(b" \t"):
                raise CommandError("ERR Unbalanced quotes in the command")
            break
        words.append(match[match.lastindex or 0])
        position = match.end()
        if len(words) == 1:
            words_before_value = WORDS_BEFORE_VALUE.get(words[0].upper(), math.inf)
    else:
        if position < len(line):
            words.append(line[position + 1 :])  # One blank separates the value.
    if not words:
        raise CommandError("ERR Empty command")
    return words


def encode_double(number: float) -> bytes:
    """Return the decimal form of a float with 17 digits, which identify it exactly."""
    return b"%.17g" % number


def reply_size(reply: Reply) -> int:
    """Return the approximate size of a reply in bytes without encoding it."""
    if isinstance(reply, dict):
        return reply_size(list(reply)) + reply_size(list(reply.values()))
    if isinstance(reply, (list, tuple)):
        size = REPLY_OVERHEAD * (1 + len(reply))
        if reply and reply[0].__class__ is reply[-1].__class__ is bytes:
            # All elements are bytes, or some are None (MGET), for which len raises TypeError.
            with contextlib.suppress(TypeError):
                return size + sum(map(len, reply))
        return size + sum(map(reply_size, reply))
    return REPLY_OVERHEAD + (len(reply) if isinstance(reply, bytes) else 0)


def encode_text(reply: Reply, separator: bytes = b"\n") -> bytes:
    """Return the text form of a reply: bare values, one line per element, ``ERROR: ...``."""
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
        return separator.join(encode_text(element, separator) for element in reply)
    if isinstance(reply, UnknownCommand):
        return b"ERROR: Unknown command"
    return b"ERROR: " + str(reply).partition(" ")[2].encode("latin-1", "replace")


def encode_resp(reply: Reply, version: int = 2) -> bytes:
    """Return the form of a reply in version 2 or 3 of RESP."""
    if reply.__class__ is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)  # type: ignore[arg-type,str-format]
    if reply is OK:
        return b"+OK\r\n"
    if reply is None:
        return b"_\r\n" if version == 3 else b"$-1\r\n"
    if isinstance(reply, Status):
        return b"+%b\r\n" % reply
    if isinstance(reply, Verbatim) and version == 3:
        return b"=%d\r\ntxt:%b\r\n" % (len(reply) + 4, reply)
    if isinstance(reply, bytes):
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

# The header of a short argument by its length, and the number of CRLF-separated tokens of a
# command by its header. Looking them up is faster than formatting and parsing them.
_BULK_HEADERS = {length: b"$%d" % length for length in range(1025)}
_TOKENS_PER_COMMAND = {b"*%d" % size: 1 + 2 * size for size in range(1, 129)}

# The lengths that Redis accepts. int() also accepts 1_0, +3 and " 3".
_LENGTH = re.compile(rb"0|-?[1-9][0-9]{0,18}")


class RequestParser:
    """A parser that turns the chunks from one connection into requests.

    A text command ends with its message if ``message_mode`` is true, else with a line feed. A
    :class:`ProtocolError` is the last request; feed nothing more after it.
    """

    def __init__(self, message_mode: bool, limits: Settings) -> None:
        self._message_mode, self._limits = message_mode, limits
        # In message mode, feed() returns all requests, because feed(b"") would end the message.
        self._max_requests = math.inf if message_mode else MAX_PARSED_REQUESTS
        self._buffer = bytearray()
        self._searched = 0  # Bytes at the start of the buffer that contain no line feed.
        self._is_resp = False  # True if the last request was RESP.
        # The incomplete RESP command: its arguments so far, their bytes, the number of missing
        # arguments, and the length of the next argument (-1 before its header).
        self._arguments: list[bytes] = []
        self._arguments_size = self._arguments_left = 0
        self._bulk_length = -1
        #: True before AUTH: the limits are lower and feed() returns one request at a time.
        self.unauthenticated = False
        #: True if the buffer may contain more requests, which ``feed(b"")`` returns.
        self.has_more = False

    @property
    def buffered_bytes(self) -> int:
        """The bytes of memory that the incomplete request needs, 0 if there is none."""
        size = len(self._buffer)
        if self._arguments_left:
            size += 1 + self._arguments_size + len(self._arguments) * ARGUMENT_OVERHEAD
        return size

    def feed(self, chunk: bytes, end_of_message: bool = True) -> list[Request]:
        """Return the requests that a chunk completes, in order."""
        requests: list[Request] = []
        self.has_more, self._end_of_message = False, end_of_message
        try:
            if self._arguments_left or self._buffer:
                # Complete the first request only: the fast paths below can parse the others.
                self._buffer += chunk
                self._parse(requests, first_only=True)
                if not requests or not self._buffer or self.unauthenticated:
                    return requests
                chunk = bytes(self._buffer)
                self._buffer.clear()
            if chunk.startswith(b"*") and not self.unauthenticated:
                chunk = self._parse_pipeline(chunk, requests)
                if not chunk:
                    return requests
            elif self._is_text_command(chunk):
                self._parse_line(chunk, requests)
                return requests
            self._buffer += chunk
            self._parse(requests)
            self.has_more = bool(self._buffer) and len(requests) >= self._max_requests
        except ProtocolError as error:
            requests.append(self.protocol_error(error))
        return requests

    def protocol_error(self, error: ProtocolError) -> Request:
        """Discard the buffered input and return the request that carries this error."""
        self._buffer.clear()
        self._arguments_left = 0
        text_terminator = b"" if self._message_mode else b"\n"
        return error, None if self._is_resp else text_terminator

    def _parse_pipeline(self, chunk: bytes, requests: list[Request]) -> bytes:
        # The fast path for complete RESP commands with short arguments. Split the chunk at CRLF
        # and compare each argument with the length that precedes it. At the first command that
        # does not match, for example because of a CRLF in an argument, return the rest.
        self._is_resp = True
        tokens = chunk.split(b"\r\n")
        position, last = 0, len(tokens) - 1
        width = _TOKENS_PER_COMMAND.get(tokens[0], last)
        if width < last:
            # The commands of a pipeline usually have equal numbers of arguments: compare all
            # first arguments at once, then all second arguments, and so on.
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
            end = position + _TOKENS_PER_COMMAND.get(tokens[position], last + 1)
            if end > last:
                break
            arguments = tokens[position + 2 : end : 2]
            headers = [_BULK_HEADERS.get(len(argument)) for argument in arguments]
            if headers != tokens[position + 1 : end : 2]:
                break
            requests.append((arguments, None))
            position = end
        return tokens[-1] if position == last else b"\r\n".join(tokens[position:])

    def _parse(self, requests: list[Request], first_only: bool = False) -> None:
        # Each method called here returns the end of what it parsed, or None if input is missing.
        buffer, position = self._buffer, 0
        max_requests = 1 if first_only or self.unauthenticated else self._max_requests
        try:
            while position < len(buffer) and len(requests) < max_requests:
                if self._arguments_left:
                    end = self._parse_argument(position, requests)
                elif buffer.startswith(b"*", position):
                    end = self._parse_array_header(position)
                else:
                    end = self._parse_text(position, requests)
                if end is None:
                    break
                position = end
        finally:
            del buffer[:position]

    def _parse_header(self, position: int, kind: str) -> tuple[int | None, int] | None:
        # Return the length in a header such as $3 (None if it is invalid) and the header's end.
        end = self._buffer.find(b"\r\n", position, position + MAX_HEADER + 2)
        if end >= 0:
            header = bytes(self._buffer[position + 1 : end])
            return int(header) if _LENGTH.fullmatch(header) else None, end + 2
        if len(self._buffer) - position > MAX_HEADER:
            raise ProtocolError(f"ERR Protocol error: too big {kind} count string")
        return None

    def _parse_array_header(self, position: int) -> int | None:
        self._is_resp = True
        header = self._parse_header(position, "mbulk")
        if header is None:
            return None
        size, end = header
        if size is None or size > self._limits.max_arguments:
            raise ProtocolError("ERR Protocol error: invalid multibulk length")
        if self.unauthenticated and size > MAX_UNAUTHENTICATED_ARGUMENTS:
            raise ProtocolError("ERR Protocol error: unauthenticated multibulk length")
        self._arguments_left = max(size, 0)  # Redis ignores an empty and a null array.
        self._arguments, self._arguments_size = [], 0
        return end

    def _parse_argument(self, position: int, requests: list[Request]) -> int | None:
        buffer = self._buffer
        if self._bulk_length < 0:
            if buffer[position] != ord("$"):
                found = _printable(bytes(buffer[position : position + 1]))
                raise ProtocolError(f"ERR Protocol error: expected '$', got '{found}'")
            header = self._parse_header(position, "bulk")
            if header is None:
                return None
            size, end = header
            if size is None or not 0 <= size <= self._limits.max_message:
                raise ProtocolError("ERR Protocol error: invalid bulk length")
            limit = self._limits.max_command
            if self._arguments_size + size > limit:
                raise ProtocolError(f"ERR the command is longer than --max-command ({limit} bytes)")
            if self.unauthenticated and size > MAX_UNAUTHENTICATED_BYTES:
                raise ProtocolError("ERR Protocol error: unauthenticated bulk length")
            self._bulk_length = size
            return end
        end = position + self._bulk_length
        if len(buffer) < end + 2:
            return None
        if buffer[end : end + 2] != b"\r\n":
            raise ProtocolError("ERR Protocol error: expected CRLF after a bulk string")
        with memoryview(buffer) as view:  # bytes(buffer[...]) would copy the data twice.
            self._arguments.append(bytes(view[position:end]))
        self._arguments_size += self._bulk_length
        self._bulk_length = -1
        self._arguments_left -= 1
        if not self._arguments_left:
            requests.append((self._arguments, None))
        return end + 2

    def _parse_text(self, position: int, requests: list[Request]) -> int | None:
        buffer = self._buffer
        if self._message_mode:
            end, complete = len(buffer), self._end_of_message
        else:
            end = buffer.find(b"\n", max(position, self._searched)) + 1
            complete = end > 0
            end = end or len(buffer)
            self._searched = 0 if complete else end - position
        limit, name = self._limits.max_message, "--max-message"
        if self.unauthenticated:
            limit, name = MAX_UNAUTHENTICATED_BYTES, "the limit before AUTH"
        if end - position > limit + len(b"\r\n"):
            self._is_resp = False
            raise ProtocolError(f"ERR the command is longer than {name} ({limit} bytes)")
        if not complete:
            return None
        self._parse_line(bytes(buffer[position:end]), requests)
        return end

    def _is_text_command(self, chunk: bytes) -> bool:
        # Return True if the chunk is exactly one text command, which needs no buffer.
        if self.unauthenticated or len(chunk) > self._limits.max_message:
            return False
        if self._message_mode:
            return self._end_of_message
        return 0 <= chunk.find(b"\n") == len(chunk) - 1

    def _parse_line(self, line: bytes, requests: list[Request]) -> None:
        terminator = b""
        if line.endswith(b"\n"):
            terminator = b"\r\n" if line.endswith(b"\r\n") else b"\n"
            line = line[: -len(terminator)]
        if self._is_resp and not line:
            return  # Redis ignores empty lines between RESP commands.
        self._is_resp = False
        try:
            requests.append((parse_text_command(line, self._limits.max_arguments), terminator))
        except CommandError as error:
            # The traceback would keep the frames, and with them the line, in memory.
            requests.append((error.with_traceback(None), terminator))


# ----------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------

# Bytes of memory that CPython needs for an object besides its data; they count toward max_memory.
# Each collection type has its own: COST for the collection and ELEMENT_COST for each element.
KEY_COST = 88  #: A key and its entry in the dict.
DEADLINE_COST = 144  #: A time to live.
ACCESS_TIME_COST = 80  #: The time of the last access, which the LRU policies need.
OWNER_COST = 200  #: The owner of a key (SET with OWNED).
BYTES_COST = 40  #: A string value.
QUEUED_COST = 200  #: A command in a transaction.
WATCH_COST = 450  #: A key that a client watches or is blocked on.
SUBSCRIPTION_COST = 350  #: A channel or pattern that a client is subscribed to.


class ListValue(Deque[bytes]):
    """A list; push and pop take constant time at both ends."""

    __slots__ = ("accounted", "data_bytes")
    EVENT_CLASS = "l"  #: Here and below: the type's letter in EVENT_CLASSES.
    COST, ELEMENT_COST = 700, 45

    def __init__(self, elements: Iterable[bytes] = ()) -> None:
        super().__init__(elements)
        #: Bytes of all elements, and bytes that the keyspace has counted for this value.
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

    def pop_many(self, left: bool, count: int) -> list[bytes]:
        return [self.pop_end(left) for _ in range(min(count, len(self)))]

    def shrink(self) -> None:
        """Do nothing: a deque releases the memory of removed elements itself."""

    def to_parts(self) -> list[bytes]:
        """Return the contents as a list for from_parts()."""
        return list(self)

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> ListValue:
        """Return a new value with these contents. All types raise ValueError for invalid parts."""
        return cls(parts)


class ScannableDict(Dict[bytes, Any]):
    """A dict with the iteration of SCAN and a fast choice of a random key."""

    __slots__ = ("_draws_left", "_peak_size", "_sample", "_scan_keys")

    def __init__(self) -> None:
        super().__init__()
        self._scan_keys: list[bytes] | None = None
        self._sample: list[bytes] = []
        self._draws_left = self._peak_size = 0

    def shrink(self) -> None:
        """Release unused memory after most keys were removed; a dict itself never shrinks."""
        if len(self) > self._peak_size:
            self._peak_size = len(self)
        elif 4 * len(self) < self._peak_size:
            rest = dict(self)
            self.clear()
            self.update(rest)
            self._scan_keys, self._sample, self._draws_left = None, [], 0
            self._peak_size = len(self)

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Return the next cursor, 0 at the end, and up to ``count`` keys from this cursor on.

        As in Redis, an iteration returns every key that exists from its start to its end. It
        visits a list of the keys from last to first. If another iteration renews the list, keys
        can only have moved to lower positions, which this iteration still has to visit.
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
        """Return a random key; the dict must not be empty."""
        while True:
            # Listing all keys is slow, so one list serves for many calls.
            if not self._draws_left:
                self._sample, self._draws_left = list(self), 1 + len(self) // 8
            self._draws_left -= 1
            key = random.choice(self._sample)
            if key in self:
                return key


class Hash(ScannableDict):
    """A hash: a dict from fields to values."""

    __slots__ = ("accounted", "data_bytes")
    EVENT_CLASS = "h"
    COST, ELEMENT_COST = 260, 100

    def __init__(self) -> None:
        super().__init__()
        self.data_bytes = self.accounted = 0

    def put(self, field: bytes, value: bytes = b"") -> bool:
        """Set a field and return True if it is new."""
        old = self.get(field)
        self[field] = value
        self.data_bytes += len(value) + (len(field) if old is None else -len(old))
        return old is None

    def remove(self, field: bytes) -> bool:
        """Remove a field and return True if it existed."""
        value = self.pop(field, None)
        if value is None:
            return False
        self.data_bytes -= len(field) + len(value)
        return True

    def to_parts(self) -> list[bytes]:
        return list(itertools.chain.from_iterable(self.items()))

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> Any:
        value = cls()
        value.update(zip(parts[::2], parts[1::2]))
        if 2 * len(value) != len(parts):
            raise ValueError("duplicate element, or field without a value")
        value.data_bytes = sum(map(len, parts))
        return value


class Set(Hash):
    """A set: a hash whose fields are the members and whose values are empty."""

    __slots__ = ()
    EVENT_CLASS = "s"
    COST, ELEMENT_COST = 250, 66

    def to_parts(self) -> list[bytes]:
        return list(self)

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> Any:
        return super().from_parts([part for member in parts for part in (member, b"")])


def memory_cost(value: Any) -> int:
    """Return the bytes of memory that a value needs, without its key."""
    if value.__class__ is bytes:
        return BYTES_COST + len(value)
    return int(value.COST + value.data_bytes + len(value) * value.ELEMENT_COST)


def event_class(value: Any) -> str:
    """Return the letter of the value's type in EVENT_CLASSES."""
    return "$" if isinstance(value, bytes) else str(value.EVENT_CLASS)


class _LastMember:
    # An object that is greater than every member: the upper bound of a range of equal scores.
    def __gt__(self, other: object) -> bool:
        return True


LAST_MEMBER = _LastMember()


class SortedSet:
    """A sorted set: members ordered by score, and members with equal scores by their bytes."""

    __slots__ = ("_chunks", "accounted", "data_bytes", "scores")
    EVENT_CLASS = "z"
    COST, ELEMENT_COST = 440, 160
    MAX_CHUNK = 1000  #: Number of pairs in one chunk; an insertion moves the pairs of one chunk.

    def __init__(self) -> None:
        self.scores = ScannableDict()
        # All pairs of score and member in order, divided into sorted lists.
        self._chunks: list[list[tuple[float, bytes]]] = [[]]
        self.data_bytes = self.accounted = 0

    def __len__(self) -> int:
        return len(self.scores)

    def put(self, member: bytes, score: float) -> None:
        """Set the score of a member; an existing member keeps its position in a scan."""
        old = self.scores.get(member)
        if old is None:
            self.data_bytes += len(member)
        else:
            self._discard((old, member))
        self.scores[member] = score
        index = self._find_chunk((score, member))
        chunk = self._chunks[index]
        bisect.insort(chunk, (score, member))
        if len(chunk) > self.MAX_CHUNK:
            self._chunks.insert(index + 1, chunk[self.MAX_CHUNK // 2 :])
            del chunk[self.MAX_CHUNK // 2 :]

    def remove(self, member: bytes) -> bool:
        """Remove a member and return True if it existed."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        self.data_bytes -= len(member)
        self._discard((score, member))
        return True

    def _discard(self, pair: tuple[float, bytes]) -> None:
        index = self._find_chunk(pair)
        chunk = self._chunks[index]
        del chunk[bisect.bisect_left(chunk, pair)]
        if not chunk and len(self._chunks) > 1:
            del self._chunks[index]

    def rank(self, pair: tuple[Any, ...]) -> int:
        """Return the number of pairs before a pair of score and member, or before ``(score,)``."""
        index = self._find_chunk(pair)
        return sum(map(len, self._chunks[:index])) + bisect.bisect_left(self._chunks[index], pair)

    def slice(self, start: int, stop: int) -> list[tuple[float, bytes]]:
        """Return the pairs of score and member with ranks from start to stop - 1."""
        found: list[tuple[float, bytes]] = []
        for chunk in self._chunks:
            if stop <= 0:
                break
            if start < len(chunk):
                found += chunk[max(start, 0) : stop]
            start -= len(chunk)
            stop -= len(chunk)
        return found

    def members(self) -> list[bytes]:
        """Return all members in order."""
        return [member for _, member in self.slice(0, len(self))]

    def shrink(self) -> None:
        self.scores.shrink()

    def to_parts(self) -> list[bytes]:
        return [*self.scores, struct.pack(f"<{len(self)}d", *self.scores.values())]

    @classmethod
    def from_parts(cls, parts: list[bytes]) -> SortedSet:
        *members, packed = parts
        scores = [score for (score,) in struct.iter_unpack("<d", packed)]
        value = cls()
        value.scores.update(zip(members, scores))
        if not len(value) == len(members) == len(scores) or any(map(math.isnan, scores)):
            raise ValueError("duplicate member, or member without a score")
        pairs, half = sorted(zip(scores, members)), cls.MAX_CHUNK // 2
        value._chunks = [pairs[start : start + half] for start in range(0, len(pairs), half)]
        value.data_bytes = sum(map(len, members))
        return value

    def _find_chunk(self, pair: tuple[Any, ...]) -> int:
        # Return the index of the last chunk whose first pair is not after this pair, or else 0.
        # LAST_MEMBER makes the bound greater than a chunk that begins with this pair.
        bound: list[Any] = [pair, LAST_MEMBER]
        return max(bisect.bisect_left(self._chunks, bound) - 1, 0)


# ----------------------------------------------------------------------------
# Keyspace
# ----------------------------------------------------------------------------

Value = TypeVar("Value")

# An element of a Redis pattern: stars, a class such as [^a-z], or one character.
_GLOB = re.compile(rb"(?s)\*+|\[(?P<negated>\^?)(?P<members>(?:\\.|[^\]]-.|[^\]])*)\]?|\\?.")
# An element of a class: an escaped character, a range or one character.
_GLOB_MEMBER = re.compile(rb"(?s)\\(.)|(.)-(.)|(.)")


@functools.lru_cache(maxsize=256)
def compile_glob(pattern: bytes) -> Callable[[bytes], object]:
    r"""Return a function that tests if a key matches a pattern of Redis (``*?[a-z][^a]\x``).

    Each ``*`` takes the first match of the part behind it without backtracking, so that the time
    is at most proportional to the length of the key times the length of the pattern.

    :raises CommandError: if the pattern is longer than MAX_PATTERN.
    """
    if len(pattern) > MAX_PATTERN:
        raise CommandError(f"ERR the pattern is longer than {MAX_PATTERN} bytes")
    if not set(pattern) & set(b"?[\\"):
        first_literal, *literals = re.split(rb"\*+", pattern)
        if not literals:
            return pattern.__eq__
        return functools.partial(_match_literals, first_literal, literals[:-1], literals[-1])
    parts = [b""]  # The regular expressions of the parts between the stars.
    for match in _GLOB.finditer(pattern):
        if match[0].startswith(b"*"):  # Adjacent stars match the same as one star.
            parts.append(b"")
        elif match[0] == b"?":
            parts[-1] += b"."
        elif match["members"] is not None:
            parts[-1] += _glob_class(match["negated"], match["members"])
        else:
            parts[-1] += re.escape(match[0][-1:])
    expression = parts[0]
    for number, part in enumerate(parts[1:-1]):
        # (?=(?P<x>...))(?P=x) is an atomic group, for which Python has (?>...) only since 3.11.
        expression += b"(?=(?P<g%d>.*?%b))(?P=g%d)" % (number, part, number)
    if len(parts) > 1:
        expression += b".*" + parts[-1]
    return re.compile(expression, re.DOTALL).fullmatch


def _match_literals(first: bytes, middle: list[bytes], last: bytes, key: bytes) -> bool:
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
    """Sets by key. A set keeps the order of insertion, and is removed when it is empty."""

    def add(self, key: Any, member: Any) -> None:
        self.setdefault(key, {})[member] = None

    def discard(self, key: Any, member: Any) -> None:
        members = self.get(key, {})
        members.pop(member, None)
        if not members:
            self.pop(key, None)


class WallClockDeadline(int):
    """A deadline given as a wall-clock time (EXPIREAT): it moves when the wall clock is set."""

    __slots__ = ()


class Changes(NamedTuple):
    """The changes that :meth:`Keyspace.take_changes` returns."""

    cleared: bool  #: True if every key that is not listed was deleted.
    keys: list[bytes]  #: The changed keys in ascending order.
    values: list[Any]  #: A string, or (event class, parts) of a collection; None if deleted.
    deadlines: list[int | None]  #: The keys' deadlines; empty if no key of the keyspace has one.
    epoch: int  #: Milliseconds since 1970 at the time when the keyspace's clock was 0.


class Watch:
    """The keys that a client watches with WATCH."""

    def __init__(self) -> None:
        #: True once one of the keys was changed, so that EXEC must fail.
        self.broken = False
        self.keys: set[bytes] = set()

    def key_changed(self, key: bytes) -> None:
        """Record that a watched key was changed. The keyspace calls this."""
        self.broken = True


def ignore_event(event: bytes, key: bytes, value: Any) -> None:
    """Do nothing. :attr:`Keyspace.notify` is this function while keyspace events are off."""


class Keyspace:
    """All keys with their values, deadlines and owners, like one database of Redis.

    :param clock: returns seconds and never goes back, like :func:`time.monotonic`.
    :param wall_clock: returns seconds since 1970, like :func:`time.time`.

    Times are int milliseconds of ``clock`` (see :meth:`now`) unless stated otherwise.
    :attr:`lock` guards everything here. The caller acquires it, because the methods do not, so
    that several calls can be one atomic step.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.lock = threading.RLock()
        #: Number of keys that expired and that were evicted since the start.
        self.expired = self.evicted = 0
        #: Bytes of keys and values plus the bytes that reserve() counted, and the limit of the sum.
        self.used_memory = self._reserved = 0
        self.memory_limit = math.inf
        #: The function that receives each keyspace event: its name, the key, the changed value.
        self.notify: Callable[[bytes, bytes, Any], None] = ignore_event
        self._clock, self._wall_clock = clock, wall_clock
        # Milliseconds to add to now() to get the wall-clock time.
        self._offset = int(wall_clock() * 1000) - self.now()
        self._values, self._deadlines = ScannableDict(), ScannableDict()
        # A heap of (deadline, key). An entry whose deadline was changed or removed stays in the
        # heap until it reaches the top, or until _compact_deadline_heap() rebuilds the heap.
        self._deadline_heap: list[tuple[int, bytes]] = []
        self._watches = OrderedSets()  # by key
        # The owner of each key set with OWNED, and the keys of each owner.
        self._owners: dict[bytes, object] = {}
        self._owned = OrderedSets()
        self._policy = "noeviction"
        # When each key was last accessed. None unless the eviction policy is an LRU policy.
        self._access_times: dict[bytes, int] | None = None
        self._key_cost = KEY_COST
        # The keys changed since take_changes(), or None without persistence. _cleared is True if
        # all keys were deleted or mark_all_changed() was called since then.
        self._changed: set[bytes] | None = None
        self._cleared = False

    def __len__(self) -> int:
        return len(self._values)

    @property
    def expiring(self) -> int:
        """The number of keys that have a deadline."""
        return len(self._deadlines)

    def now(self) -> int:
        """Return the time of the keyspace's clock in milliseconds."""
        return int(self._clock() * 1000)

    def unix_time(self, time: int) -> int:
        """Return the milliseconds since 1970 for a time of :meth:`now`."""
        self._adjust_to_wall_clock()
        return time + self._offset

    def _adjust_to_wall_clock(self) -> None:
        # If the wall clock was set, move the deadlines that were given as wall-clock times. The
        # other deadlines follow elapsed time and stay.
        step = int(self._wall_clock() * 1000) - self.now() - self._offset
        if abs(step) > CLOCK_TOLERANCE:
            self._offset += step
            for key, deadline in self._deadlines.items():
                if deadline.__class__ is WallClockDeadline:
                    self._deadlines[key] = WallClockDeadline(deadline - step)
                    heapq.heappush(self._deadline_heap, (deadline - step, key))
                elif self._changed is not None:
                    # The file stores wall-clock times, so this row has to be written again.
                    self._changed.add(key)

    def read(self, key: bytes, value_type: type[Value]) -> Value | None:
        """Return the value of a key, or None, and update its access time.

        :raises CommandError: if the value is not of this type.
        """
        if self._deadlines:
            self._expire_if_due(key)
        value = self._values.get(key)
        if value is None:
            self.notify(b"keymiss", key, None)
            return None
        if self._access_times is not None:
            self._access_times[key] = self.now()
        if value.__class__ is value_type:
            return value  # type: ignore[no-any-return]
        raise CommandError(WRONG_TYPE)

    def read_for_write(self, key: bytes, value_type: type[Value]) -> Value | None:
        """Return the value like :meth:`read`, but without the keymiss event for a missing key."""
        return self.read(key, value_type) if key in self else None

    def read_strings(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the string of each key (MGET); None for a missing key or another type."""
        if self._deadlines or self._access_times is not None or self.notify is not ignore_event:
            for key in keys:
                self.lookup(key)
        values = map(self._values.get, keys)
        return [value if value.__class__ is bytes else None for value in values]

    def lookup(self, key: bytes, touch: bool = True) -> Any:
        """Return the value of a key of any type, or None; ``touch`` updates its access time."""
        value = self.peek(key)
        if value is None:
            self.notify(b"keymiss", key, None)
        elif touch and self._access_times is not None:
            self._access_times[key] = self.now()
        return value

    def peek(self, key: bytes) -> Any:
        """Return the value as :meth:`lookup` does; update no access time and publish no event."""
        return self._values[key] if key in self else None

    def __contains__(self, key: object) -> bool:
        return key in self._values and not (self._deadlines and self._expire_if_due(key))

    def write(self, key: bytes, value: Any, event: bytes) -> None:
        """Store the value of a key and keep its deadline and owner.

        Call this after each change of a collection; an empty collection is deleted.

        :param event: Redis's name of the keyspace event.
        """
        if self._deadlines:
            self._expire_if_due(key)
        if value.__class__ is bytes or value:
            if value.__class__ is not bytes:
                value.shrink()
            self._put(key, value)
            self.notify(event, key, value)
        elif key in self._values:
            self._remove(key)
            self.notify(event, key, value)
            self.notify(b"del", key, None)

    def replace(
        self, key: bytes, value: Any, deadline: int | None = None, event: bytes = b"set"
    ) -> None:
        """Store a key as SET does: with this deadline or none, and without an owner."""
        if self._owners:
            self.clear_owner(key)
        if self._deadlines:
            self._expire_if_due(key)
        self._put(key, value)
        self.notify(event, key, value)
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
            self._account(key, old, value)
        if self._watches:
            self._mark_changed(key)
        elif self._changed is not None:  # _mark_changed() without the cost of a call
            self._changed.add(key)
        if self._access_times is not None:
            self._access_times[key] = self.now()
        if old is None:
            self.notify(b"new", key, None)

    def _account(self, key: bytes, old: Any, value: Any) -> None:
        # Update used_memory. A collection may have been changed in place, so it stores the cost
        # that was counted for it.
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

    def _mark_changed(self, key: bytes) -> None:
        if self._changed is not None:
            self._changed.add(key)
        for watch in self._watches.get(key, ()):
            watch.key_changed(key)

    def memory_usage(self, key: bytes) -> int:
        """Return the bytes that an existing key and its value use (MEMORY USAGE)."""
        return self._key_cost + len(key) + memory_cost(self._values[key])

    def delete(self, key: bytes) -> bool:
        """Delete a key and return True if it existed."""
        existed = key in self
        self._remove(key)
        if existed:
            self.notify(b"del", key, None)
        return existed

    def rename(self, source: bytes, target: bytes) -> None:
        """Rename an existing key and overwrite the target, as RENAME does. The owner moves too."""
        if source != target:
            value, deadline = self._values[source], self._deadlines.get(source)
            owner = self._owners.get(source)
            self._remove(source)
            self._overwrite(target, value, deadline)
            if owner is not None:
                self.set_owner(target, owner)
            self.notify(b"rename_from", source, None)
            self.notify(b"rename_to", target, None)

    def copy(self, source: bytes, target: bytes) -> None:
        """Copy an existing key and overwrite the target, as COPY does. The owner is not copied."""
        value = self._values[source]
        copied = value if isinstance(value, bytes) else value.from_parts(value.to_parts())
        self._overwrite(target, copied, self._deadlines.get(source))
        self.notify(b"copy_to", target, None)

    def _overwrite(self, key: bytes, value: Any, deadline: int | None) -> None:
        # Redis deletes the old key first, so its event is "new". The old key is kept here, because
        # a SCAN in progress must still find the name.
        existed = key in self
        if self._owners:
            self.clear_owner(key)
        self._clear_deadline(key)
        self._put(key, value)
        if existed:
            self.notify(b"new", key, None)
        if deadline is not None:
            self._set_deadline(key, deadline)

    def set_owner(self, key: bytes, owner: object) -> None:
        """Give an existing key an owner, so that :meth:`delete_owned` deletes it (SET OWNED)."""
        self.clear_owner(key)
        self._owners[key] = owner
        self._owned.add(owner, key)
        self.used_memory += OWNER_COST

    def count_owned(self, owner: object) -> int:
        """Return the number of keys that belong to an owner."""
        return len(self._owned.get(owner, ()))

    def delete_owned(self, owner: object) -> None:
        """Delete every key that belongs to an owner."""
        for key in list(self._owned.get(owner, ())):
            self.delete(key)

    def clear_owner(self, key: bytes) -> None:
        """Remove the owner of a key, if it has one."""
        owner = self._owners.pop(key, None)
        if owner is not None:
            self.used_memory -= OWNER_COST
            self._owned.discard(owner, key)

    def set_deadline(self, key: bytes, deadline: int) -> None:
        """Set the deadline of an existing key; ``deadline`` is a time of :meth:`now`."""
        self._set_deadline(key, deadline)
        self._mark_changed(key)
        self.notify(b"expire", key, None)

    def _set_deadline(self, key: bytes, deadline: int) -> None:
        if key not in self._deadlines:
            self.used_memory += DEADLINE_COST
        self._deadlines[key] = deadline
        heapq.heappush(self._deadline_heap, (deadline, key))
        self._compact_deadline_heap()

    def expire(self, key: bytes, deadline: int) -> None:
        """Set the deadline of an existing key, or delete the key if the deadline has passed."""
        if deadline <= self.now():
            self.delete(key)
        else:
            self.set_deadline(key, deadline)

    def deadline(self, key: bytes) -> int | None:
        """Return the deadline of a key, or None."""
        return self._deadlines.get(key)

    def persist(self, key: bytes) -> bool:
        """Remove the deadline of a key and return True if it had one (PERSIST)."""
        if key not in self or not self._clear_deadline(key):
            return False
        self._mark_changed(key)
        self.notify(b"persist", key, None)
        return True

    def _clear_deadline(self, key: bytes) -> bool:
        if self._deadlines.pop(key, None) is None:
            return False
        self.used_memory -= DEADLINE_COST
        return True

    def keys(self) -> list[bytes]:
        """Return every key that has not expired."""
        self.remove_expired(len(self._deadline_heap))
        return list(self._values)

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Return the next cursor and some keys. See :meth:`ScannableDict.scan`."""
        cursor, keys = self._values.scan(cursor, count)
        return cursor, [key for key in keys if key in self]

    def random_key(self) -> bytes | None:
        """Return a random key, or None if the keyspace is empty."""
        while self._values:
            key = self._values.random_key()
            if key in self:
                return key
        return None

    def clear(self) -> None:
        """Delete every key (FLUSHDB)."""
        for key in self._watches:
            if key in self._values:
                self._mark_changed(key)
        self._values, self._deadlines = ScannableDict(), ScannableDict()
        self._deadline_heap.clear()
        self._owners.clear()
        self._owned.clear()
        if self._changed is not None:
            self.mark_all_changed()
        self.used_memory = self._reserved
        if self._access_times is not None:
            self._access_times.clear()

    def load(self, key: bytes, value: Any, deadline: int | None) -> None:
        """Add a key that was read from the file. Call this before :meth:`track_changes`."""
        self._put(key, value)
        if deadline is not None:
            self._set_deadline(key, deadline)

    def track_changes(self) -> None:
        """Record changed keys from now on, for :meth:`take_changes`."""
        self._changed = set()

    @property
    def dirty_keys(self) -> int:
        """The number of changes that :meth:`take_changes` has not returned yet."""
        return len(self._values) + 1 if self._cleared else len(self._changed or ())

    def take_changes(self) -> Changes:
        """Return the changes since the last call. An owned key counts as deleted.

        No client is served meanwhile, so this uses as few Python steps as possible.
        """
        # Rows in ascending order are the fastest for SQLite to write.
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
        """Add changes that could not be saved to those that the next take_changes() returns."""
        assert self._changed is not None
        # Keys that were created and deleted again would otherwise collect here without bound.
        many = len(self._changed) + len(changes.keys) > 2 * len(self) + 100_000
        if not (changes.cleared or many):
            with contextlib.suppress(MemoryError):
                self._changed.update(changes.keys)
                return
        self.mark_all_changed()

    def mark_all_changed(self) -> None:
        """Make the next take_changes() return every key."""
        self._changed, self._cleared = set(), True

    def watch(self, key: bytes, watch: Watch) -> None:
        """Call ``watch.key_changed`` whenever this key is changed."""
        self._expire_if_due(key)
        if key not in watch.keys:
            watch.keys.add(key)
            self._watches.add(key, watch)
            self.reserve(WATCH_COST + len(key))

    def unwatch(self, watch: Watch) -> None:
        """Remove a watch from its keys. A key that has expired meanwhile counts as changed."""
        for key in watch.keys:
            self._expire_if_due(key)
            self._watches.discard(key, watch)
            self.reserve(-WATCH_COST - len(key))

    def watchers(self, key: bytes) -> list[Watch]:
        """Return the watches of a key, the oldest first."""
        return list(self._watches.get(key, ()))

    @property
    def policy(self) -> str:
        """The eviction policy, one of POLICIES."""
        return self._policy

    @policy.setter
    def policy(self, policy: str) -> None:
        is_lru = policy.endswith("lru")
        if not is_lru:
            self._access_times = None
        elif self._access_times is None:
            self._access_times = dict.fromkeys(self._values, self.now())
        key_cost = KEY_COST + is_lru * ACCESS_TIME_COST
        self.used_memory += (key_cost - self._key_cost) * len(self)
        self._policy, self._key_cost = policy, key_cost

    def idle_time(self, key: bytes) -> int | None:
        """Return the milliseconds since the last access to a key; None without an LRU policy."""
        return None if self._access_times is None else self.now() - self._access_times[key]

    def reserve(self, size: int) -> None:
        """Count bytes that are used outside the keyspace; a negative size releases them."""
        self._reserved += size
        self.used_memory += size

    def free_memory(self, size: int = 0) -> None:
        """Remove expired keys and evict keys until ``size`` more bytes fit below the limit.

        This stops after KEYS_PER_CYCLE evictions; the background thread continues with
        :meth:`evict`.

        :raises CommandError: if the eviction policy allows no further eviction.
        """
        limit = self.memory_limit - size
        while self.used_memory > limit and self.remove_expired(KEYS_PER_CYCLE):
            pass
        if not self.evict(KEYS_PER_CYCLE, size) and self.used_memory > limit:
            raise CommandError(OUT_OF_MEMORY)

    def evict(self, count: int, size: int = 0) -> bool:
        """Evict at most ``count`` keys while ``size`` more bytes would exceed the limit.

        :returns: True if further keys have to be evicted.
        """
        limit = self.memory_limit - size
        for _ in range(count):
            key = self._choose_victim() if self.used_memory > limit else None
            if key is None:
                return False
            self._remove(key)
            self.evicted += 1
            self.notify(b"evicted", key, None)
        return self.used_memory > limit

    def _choose_victim(self) -> bytes | None:
        table = self._values if self._policy.startswith("allkeys") else self._deadlines
        if not table or self._policy == "noeviction":
            return None
        if self._policy == "allkeys-random":
            return table.random_key()
        if self._policy == "volatile-ttl":
            while self._deadlines.get(self._deadline_heap[0][1]) != self._deadline_heap[0][0]:
                heapq.heappop(self._deadline_heap)
            return self._deadline_heap[0][1]
        # Like Redis, evict the least recently used key of a small random sample.
        assert self._access_times is not None
        sample = (table.random_key() for _ in range(LRU_SAMPLES))
        return min(sample, key=self._access_times.__getitem__)

    def remove_expired(self, count: int) -> bool:
        """Remove at most ``count`` expired keys and return True if more may remain."""
        now = self.now()
        self._adjust_to_wall_clock()
        self._compact_deadline_heap()
        self._values.shrink()
        self._deadlines.shrink()
        for _ in range(count):
            if not self._deadline_heap or self._deadline_heap[0][0] > now:
                return False
            deadline, key = heapq.heappop(self._deadline_heap)
            if self._deadlines.get(key) == deadline:
                self._remove_as_expired(key)
        return True

    def _compact_deadline_heap(self) -> None:
        if len(self._deadline_heap) > len(self._deadlines) * 5 // 4 + 64:
            self._deadline_heap = [(deadline, key) for key, deadline in self._deadlines.items()]
            heapq.heapify(self._deadline_heap)

    def _expire_if_due(self, key: Any) -> bool:
        # Remove a key whose deadline has passed, and return True if it was removed.
        deadline = self._deadlines.get(key)
        if deadline is None or deadline > self.now():
            return False
        self._remove_as_expired(key)
        return True

    def _remove_as_expired(self, key: bytes) -> None:
        self._remove(key)
        self.expired += 1
        self.notify(b"expired", key, None)

    def _remove(self, key: bytes) -> None:
        value = self._values.pop(key, None)
        if value is None:
            return
        self._clear_deadline(key)
        if self._owners:
            self.clear_owner(key)
        self._account(key, value, None)
        self._mark_changed(key)
        if self._access_times is not None:
            self._access_times.pop(key, None)


# ----------------------------------------------------------------------------
# State: publish/subscribe, keyspace events, blocked clients, counters
# ----------------------------------------------------------------------------


class Transaction:
    """The commands of a client since MULTI."""

    def __init__(self) -> None:
        self.commands: list[tuple[Command, list[bytes]]] = []
        #: True if a command could not be queued, so that EXEC must fail.
        self.failed = False
        #: Bytes of memory that the queued commands use.
        self.size = 0


class Client:
    """A client, as commands and the other clients see it.

    :param password: what the client must send with AUTH before other commands, or None.

    The keyspace lock guards every attribute except close_reason and close_level, which any thread
    may set. :class:`Session` adds the connection and overrides the methods that need it; none of
    these methods waits for the client.
    """

    # CPython accesses slots faster than the entries of a dict with so many keys.
    __slots__ = (
        "address", "authenticated", "blocked", "can_block", "channels", "close_level",
        "close_reason", "connected_at", "id", "keyspace", "last_command", "last_command_at",
        "local_address", "names", "password", "patterns", "pending_bytes", "pending_output",
        "protocol", "reply_mode", "settings", "slow_path", "state", "terminator", "transaction",
        "watch",
    )  # fmt: skip

    def __init__(self, state: State, password: bytes | None = None) -> None:
        self.state, self.keyspace, self.settings = state, state.keyspace, state.settings
        self.address: str = ""
        self.local_address: str = ""
        #: The number that CLIENT ID returns; 0 before :meth:`State.add_client`.
        self.id: int = 0
        #: The names that CLIENT SETNAME ("name") and SETINFO ("lib-name", "lib-ver") have set.
        self.names: dict[str, str] = {}
        #: The RESP version that HELLO has chosen.
        self.protocol = 2
        #: The bytes that end the last text command and its reply; None if the command was RESP.
        self.terminator: bytes | None = None
        self.password = password
        self.authenticated = password is None
        #: The mode that CLIENT REPLY has set: ON, OFF, or SKIP, which becomes SKIP_THIS while the
        #: next command is executed.
        self.reply_mode = "ON"
        self.transaction: Transaction | None = None
        self.watch: Watch | None = None
        self.blocked: BlockedClient | None = None
        #: False while EXEC runs the commands of a transaction, in which no command may block.
        self.can_block = True
        #: The subscribed channels and patterns, in the order of subscription.
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        #: Encoded messages that PubSub.flush() will write, and their number of bytes.
        self.pending_output: list[bytes] = []
        self.pending_bytes = 0
        #: The reason to close the connection, "" while there is none, and its log level.
        self.close_reason, self.close_level = "", logging.DEBUG
        #: The name of the last command, as the client sent it.
        self.last_command = b""
        #: Times of time.monotonic().
        self.connected_at = self.last_command_at = time.monotonic()
        #: True if execute() has to use the slow path. Only the slow path itself sets this to False.
        self.slow_path = True

    @property
    def subscription_count(self) -> int:
        """The number of subscribed channels and patterns."""
        return len(self.channels) + len(self.patterns)

    def needs_slow_path(self) -> bool:
        """Return True if execute() has to check more than the name and arguments of a command.

        The result changes only in commands that always take the slow path, and when another
        client sends MONITOR, which sets :attr:`slow_path` of every client.
        """
        return (
            not self.authenticated
            or self.transaction is not None
            or self.reply_mode != "ON"
            or self.subscription_count > 0
            or bool(self.state.pubsub.monitors)
        )

    def end_transaction(self) -> bool:
        """Discard the transaction and the watch; return True if a watched key was changed."""
        if self.transaction is not None:
            self.keyspace.reserve(-self.transaction.size)
            self.transaction = None
        watch, self.watch = self.watch, None
        if watch is None:
            return False
        self.keyspace.unwatch(watch)
        return watch.broken

    def encode(self, reply: Reply) -> bytes:
        """Return a reply, or an error if the reply is too long, as bytes of RESP or text."""
        max_reply = self.settings.max_reply
        if reply.__class__ in _MEASURED_TYPES and reply_size(reply) > max_reply:
            reply = reply_too_long(max_reply)
        if self.terminator is None or reply is NO_REPLY:
            return encode_resp(reply, self.protocol)
        return encode_text(reply, self.terminator or b"\n") + self.terminator

    def close(self, reason: str, level: int = logging.DEBUG) -> None:
        """Close the connection after the current reply.

        :param reason: the text for the log. The first reason is kept.
        """
        if not self.close_reason:
            self.close_reason, self.close_level = reason, level

    def disconnect(self, reason: str) -> None:
        """Close the connection at once, even while its thread waits. Any thread may call this."""
        self.close(reason, logging.INFO)

    def expect_pushes(self) -> None:
        """Prepare the connection for messages from other threads."""

    def can_queue(self, size: int) -> bool:
        """Return True if ``size`` more bytes may be queued; otherwise disconnect the client."""
        return not self.close_reason

    def push(self, data: bytes, whole: bool) -> None:
        """Write queued messages to the connection.

        :param whole: True if the data is one text message, False if it is a part of a stream.
        """

    def wake(self) -> None:
        """Wake the thread that serves the client, because the client is no longer blocked."""

    def is_connected(self) -> bool:
        """Return True while the client's end of the connection is open."""
        return True

    def process(self) -> tuple[int, str]:
        """Return the client's process id and program path; 0 and "" if they are unknown."""
        return 0, ""

    def describe(self) -> str:
        """Return the process id and program, or else the address, for log lines."""
        process, program = self.process()
        program = program if program.isprintable() else ascii(program)
        return f"process {process}, {program or 'unknown program'}" if process else self.address


class PubSub:
    """The subscriptions of all clients and the messages queued for them.

    The keyspace lock guards everything here.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace  # for memory accounting
        #: The subscribed clients by channel and by pattern.
        self.channels, self.patterns = OrderedSets(), OrderedSets()
        self._matchers: dict[bytes, Callable[[bytes], object]] = {}  # by pattern
        self.monitors: dict[Client, None] = {}  # the clients that have sent MONITOR
        #: The clients for which messages are queued.
        self.pending_clients: list[Client] = []

    def subscribe(self, client: Client, name: bytes, is_pattern: bool) -> None:
        """Subscribe a client to a channel or a pattern (SUBSCRIBE, PSUBSCRIBE)."""
        clients, names = self._tables(client, is_pattern)
        if name not in names:
            if is_pattern:
                self._matchers[name] = compile_glob(name)
            names[name] = None
            clients.add(name, client)
            self._keyspace.reserve(SUBSCRIPTION_COST + len(name))
            client.expect_pushes()

    def unsubscribe(self, client: Client, name: bytes, is_pattern: bool) -> None:
        """Remove a subscription, if it exists (UNSUBSCRIBE, PUNSUBSCRIBE)."""
        clients, names = self._tables(client, is_pattern)
        if name in names:
            del names[name]
            clients.discard(name, client)
            if is_pattern and name not in clients:
                del self._matchers[name]
            self._keyspace.reserve(-SUBSCRIPTION_COST - len(name))

    def _tables(self, client: Client, is_pattern: bool) -> tuple[OrderedSets, dict[bytes, None]]:
        if is_pattern:
            return self.patterns, client.patterns
        return self.channels, client.channels

    def monitor(self, client: Client) -> None:
        """Send every command of every client to this client (MONITOR)."""
        self.monitors[client] = None
        client.expect_pushes()

    def remove(self, client: Client) -> None:
        """Remove every subscription of a client, and MONITOR."""
        self.monitors.pop(client, None)
        for name in list(client.channels):
            self.unsubscribe(client, name, False)
        for pattern in list(client.patterns):
            self.unsubscribe(client, pattern, True)

    def publish(self, channel: bytes, message: bytes) -> int:
        """Queue a message for each subscriber (PUBLISH) and return their number."""
        clients = self.channels.get(channel, {})
        count = len(clients)
        if clients:
            self.queue(Push([b"message", channel, message]), clients)
        for pattern, clients in self.patterns.items():
            if self._matchers[pattern](channel):
                count += len(clients)
                self.queue(Push([b"pmessage", pattern, channel, message]), clients)
        return count

    def queue(self, reply: Reply, clients: Iterable[Client]) -> None:
        """Queue a message for these clients."""
        # The message in each encoding, by the version of RESP or by the terminator of text.
        encoded: dict[int | bytes, bytes] = {}
        size = reply_size(reply)
        for client in clients:
            if not client.can_queue(size):
                continue
            reply_format = client.protocol if client.terminator is None else client.terminator
            data = encoded.get(reply_format)
            if data is None:
                data = encoded[reply_format] = client.encode(reply)
            if not client.pending_output:
                self.pending_clients.append(client)
            client.pending_output.append(data)
            client.pending_bytes += size

    def flush(self) -> None:
        """Write the queued messages, one push per client, before the lock is released."""
        clients, self.pending_clients = self.pending_clients, []
        last: list[bytes] = []
        data = b""
        for client in clients:
            messages = client.pending_output
            try:
                if client.terminator is not None:
                    for line in messages:
                        client.push(line, True)
                elif messages:
                    # Most clients receive the same messages, so join them once.
                    if messages != last:
                        last, data = messages[:], b"".join(messages)
                    client.push(data, False)
            except MemoryError:
                # The other clients must still receive their messages.
                client.disconnect("out of memory for its output buffer")
            messages.clear()
            client.pending_bytes = 0


class KeyspaceEvents:
    """Publishes keyspace events, as Redis's keyspace notifications do."""

    #: The event classes that the letter A stands for.
    ALL = "g$lshzxetd"
    #: The class of the events that do not depend on the type of the value.
    CLASSES: Mapping[bytes, str] = {
        b"copy_to": "g", b"del": "g", b"expire": "g", b"persist": "g", b"rename_from": "g",
        b"rename_to": "g", b"evicted": "e", b"expired": "x", b"keymiss": "m", b"new": "n",
    }  # fmt: skip

    def __init__(self, keyspace: Keyspace, pubsub: PubSub, letters: str) -> None:
        self._keyspace, self._pubsub = keyspace, pubsub
        self.configure(letters)

    def configure(self, letters: str) -> None:
        """Choose the published events by letters of EVENT_CLASSES."""
        self._classes = frozenset(letters.replace("A", self.ALL))
        enabled = self._classes - {"K", "E"} and self._classes & {"K", "E"}
        self._keyspace.notify = self._publish if enabled else ignore_event

    def __str__(self) -> str:
        letters = "".join(letter for letter in EVENT_CLASSES if letter in self._classes)
        return letters.replace(self.ALL, "A")

    def _publish(self, event: bytes, key: bytes, value: Any) -> None:
        if (self.CLASSES.get(event) or event_class(value)) in self._classes:
            if "K" in self._classes:
                self._pubsub.publish(b"__keyspace@0__:" + key, event)
            if "E" in self._classes:
                self._pubsub.publish(b"__keyevent@0__:" + event, key)


class BlockedClient(Watch):
    """A client that waits for a key (BLPOP), for the end of a save (SAVE) or for its deadline.

    :param value_type: the type of value that the client waits for; None if it waits for no key.
    :param take: called as ``take(client, key)``; removes elements from the key and returns the
        reply, or None if there is nothing to take.
    :param deadline: the end of the wait as a time of :func:`time.monotonic`, or None.
    """

    def __init__(
        self, client: Client, value_type: type | None = None,
        take: Callable[[Client, bytes], Reply] | None = None, deadline: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.client, self.value_type, self.take, self.deadline = client, value_type, take, deadline
        #: The reply. Until the wait is over, this is the reply to send if the wait times out.
        self.reply: Reply = NULL_ARRAY
        #: True once the wait is over. Set after ``reply``: the session reads this without a lock.
        self.done = False
        #: True if CLIENT REPLY suppresses the reply.
        self.suppress_reply = False

    def key_changed(self, key: bytes) -> None:
        self.client.state.blocked.ready_keys[key] = None


class BlockedClients:
    """The clients that are blocked by a command. The keyspace lock guards everything here."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self.clients: dict[BlockedClient, None] = {}
        #: The keys with blocked clients that were changed since serve_ready_keys().
        self.ready_keys: dict[bytes, None] = {}

    def block(self, blocked: BlockedClient, keys: Iterable[bytes] = ()) -> NullReply:
        """Block a client until one of the keys is ready, or until :meth:`unblock`.

        :returns: NO_REPLY, the reply while the client is blocked.
        """
        blocked.client.blocked = blocked
        self.clients[blocked] = None
        for key in keys:
            self._keyspace.watch(key, blocked)
        return NO_REPLY

    def unblock(self, blocked: BlockedClient, reply: Reply) -> None:
        """End the wait of a client with this reply, unless it has ended already."""
        if not blocked.done:
            blocked.reply = reply
            blocked.done = True
            del self.clients[blocked]
            self._keyspace.unwatch(blocked)
            blocked.client.wake()

    def serve_ready_keys(self) -> None:
        """Serve the clients that are blocked on changed keys, the longest-waiting client first.

        The session calls this after each command, so that no other command runs in between. The
        command of a served client can make another key ready (BLMOVE).
        """
        while self.ready_keys:
            key = next(iter(self.ready_keys))
            del self.ready_keys[key]
            for blocked in self._keyspace.watchers(key):
                value = self._keyspace.peek(key)
                if value is None:
                    break
                # Skip disconnected clients, so that no element is lost.
                if (
                    isinstance(blocked, BlockedClient)
                    and blocked.value_type is type(value)
                    and blocked.client.is_connected()
                ):
                    self._serve(blocked, key)

    def _serve(self, blocked: BlockedClient, key: bytes) -> None:
        assert blocked.take is not None
        try:
            reply = blocked.take(blocked.client, key)
        except CommandError as error:
            reply = error
        except Exception:
            log.exception("Internal error: cannot serve the client blocked on key %r", key)
            reply = CommandError(INTERNAL_ERROR)
        if reply is not None:
            self.unblock(blocked, reply)


class State:
    """The data that all clients of a server share. The keyspace lock guards everything here.

    :param keyspace: an empty keyspace; by default a new one.
    """

    def __init__(
        self, settings: Settings, address: str = "", keyspace: Keyspace | None = None
    ) -> None:
        self.settings, self.address = settings, address
        self.keyspace = Keyspace() if keyspace is None else keyspace
        self.keyspace.memory_limit = settings.max_memory or math.inf
        self.keyspace.policy = settings.max_memory_policy
        self.pubsub = PubSub(self.keyspace)
        letters = settings.notify_keyspace_events
        self.events = KeyspaceEvents(self.keyspace, self.pubsub, letters)
        self.blocked = BlockedClients(self.keyspace)
        #: None without --db.
        self.persistence: Persistence | None = None
        self.clients: dict[int, Client] = {}
        self.started_at = time.monotonic()
        #: Numbers of connections and of commands since the start.
        self.connections = self.commands = 0

    def add_client(self, client: Client) -> None:
        """Register a client that has connected, and set its id."""
        self.connections += 1
        client.id = self.connections
        self.clients[client.id] = client

    def remove_client(self, client: Client) -> None:
        """Remove a client that has disconnected, with everything that belongs to it."""
        del self.clients[client.id]
        client.end_transaction()
        if client.blocked is not None:
            self.blocked.unblock(client.blocked, NO_REPLY)
            client.blocked = None
        self.pubsub.remove(client)
        self.keyspace.delete_owned(client)
        self.pubsub.flush()


# ----------------------------------------------------------------------------
# Persistence: the values in a SQLite file
# ----------------------------------------------------------------------------

#: The application_id in the header of the SQLite file: it marks a pipecache file.
APPLICATION_ID = int.from_bytes(b"pipc", "big")
#: The user_version in the header of the SQLite file: the newest row format known to this program.
FILE_FORMAT = 1

# One row per key. kind is the event_class() of the value. value is a string, or a collection that
# pack_parts() encoded. expires is the deadline in milliseconds since 1970, or NULL. by_clock is 1
# if the deadline follows the wall clock (EXPIREAT), and 0 if it follows elapsed time (EXPIRE).
_SCHEMA = """CREATE TABLE keys (key BLOB PRIMARY KEY, kind TEXT NOT NULL, value BLOB NOT NULL,
    expires INTEGER, by_clock INTEGER NOT NULL) WITHOUT ROWID"""
# SQLite stores any type in any column, so _load() checks the types of key, value and expires.
_ROW_TYPES = {(bytes, bytes, type(None)), (bytes, bytes, int)}
_VALUE_TYPES: dict[str, Any] = {"l": ListValue, "h": Hash, "s": Set, "z": SortedSet}

# Advice for the user, by a regular expression for the errno's name or for SQLite's message.
# "malformed" is first, because its message contains a key that can match another expression.
_ADVICE = {
    "malformed": "the file is damaged and is left as it is: restore a copy or move the file away",
    "locked": "a program such as a second server uses the file: stop it or choose another file",
    "not a database": "the file belongs to another program and is unchanged: choose another file",
    "EACCES|EPERM|EROFS|readonly|unable to open": "make the file and its folder writable",
    "ENOENT|ENOTDIR": "the folder of the file does not exist: create it or choose another file",
    "ENAMETOOLONG": "choose a shorter name",
    "ENOSPC|full|disk I/O": "free some space on the disk, or replace a faulty disk",
    "too big": "a value is longer than this build of SQLite allows: delete or split the value",
    "MemoryError": "close other programs, or start the server with a lower --max-memory",
}

#: (device, inode) of each file that this process has open. _check_header() must not open such a
#: file again: when a process closes a file once, POSIX releases all locks of this process on it.
_OPEN_FILES: set[tuple[int, int] | None] = set()


def pack_parts(parts: list[bytes]) -> bytes:
    """Return parts as one value: their count and lengths (32-bit little-endian), then the parts."""
    return struct.pack(f"<{1 + len(parts)}I", len(parts), *map(len, parts)) + b"".join(parts)


def unpack_value(kind: str, data: bytes) -> Any:
    """Return the collection that :func:`pack_parts` encoded; ``kind`` is its event class.

    :raises ValueError: if the bytes are not a collection of this kind.
    """
    try:
        (count,) = struct.unpack_from("<I", data)
        lengths = struct.unpack_from(f"<{count}I", data, 4)
        ends = list(itertools.accumulate(lengths, initial=4 + 4 * count))
        parts = [data[start:end] for start, end in zip(ends, ends[1:])]
        value = _VALUE_TYPES[kind].from_parts(parts)
    except (KeyError, struct.error) as error:
        raise ValueError(f"the bytes are not a collection of kind {kind!r}") from error
    if ends[-1] != len(data) or not value:
        raise ValueError("the collection is empty or has the wrong length")
    return value


class Persistence:
    """A copy of the keyspace in a SQLite file, written by one background thread, the saver.

    The keyspace records which keys change. Every SAVE_INTERVAL seconds, and earlier after
    SAVE_AT_DIRTY_KEYS changes or a :meth:`request`, the saver copies the changes under the keyspace
    lock and then writes them without the lock. Commands therefore never wait for the disk.

    Promises: A change is in the file about one second after it was made, unless keys change faster
    than the disk can write. Each save is one transaction (WAL mode, synchronous=FULL): after a
    crash, the file has all changes of a save or none. EXEC holds the keyspace lock, so this is also
    true for all changes of a transaction. If a save fails, the next save writes its changes. A file
    that cannot be used is not changed.

    Locks: The keyspace lock guards the changes and ``_requests``. Only the saver writes the other
    attributes, except in :meth:`open`, :meth:`start` and :meth:`stop`; INFO reads the public ones.

    :raises PersistenceError: if the path is relative and the working directory does not exist.
    """

    def __init__(self, path: str, keyspace: Keyspace) -> None:
        try:
            self.path = os.path.realpath(path)
        except OSError as error:
            text = f"Cannot find {path!r}: {error.strerror} (give the absolute path of the file)"
            raise PersistenceError(text) from error
        self._keyspace = keyspace
        self._database: Any = None  # the sqlite3.Connection while the file is open
        # (device, inode) of the file, and of the WAL file while the file is open.
        self._inode: tuple[int, int] | None = None
        self._wal_inode: tuple[int, int] | None = None
        self._held_inode: tuple[int, int] | None = None  # the entry of this object in _OPEN_FILES
        #: The error of the last save, or "" if it succeeded.
        self.error = ""
        #: The keys that are too long to be saved, each with the bytes of key and value.
        self.refused: dict[bytes, int] = {}
        #: Numbers of keys loaded by open(), of keys expired before open(), and of completed saves.
        self.loaded = self.expired = self.saves = 0
        self.size = 0  #: Bytes of the file and the WAL file together.
        #: Unix time in seconds of the last save, and seconds that the last save or open() took.
        self.saved_at, self.duration = time.time(), 0.0
        #: time.monotonic() when the file last had all changes, and when the current save began.
        self.synced_at = time.monotonic()
        self.began: float | None = None
        # Numbers of changed keys in the current save, and of statements executed in all saves.
        self._saving_count = self._written = 0
        self._requests: list[Callable[[str], None]] = []  # callbacks for the end of the next save
        self._save_requested, self._ending = threading.Event(), False
        self._thread: threading.Thread | None = None

    @property
    def unsaved_changes(self) -> int:
        """The number of changed keys that are not in the file yet."""
        return self._keyspace.dirty_keys + self._saving_count

    def open(self) -> None:
        """Open or create the file and load its keys; call this before clients are served.

        If the file is locked, wait up to FILE_LOCK_TIMEOUT seconds: another server may be stopping.

        :raises PersistenceError: if the file cannot be used; the keyspace is empty then.
        """
        deadline, waiting = time.monotonic() + FILE_LOCK_TIMEOUT, False
        while True:
            try:
                self._connect()
                load_time = self._load()
                self._prepare_for_writing()
                if self.expired:
                    self._database.execute("DELETE FROM keys WHERE expires <= ?", (load_time,))
                self._keyspace.track_changes()
                details = self.display_path(), self.loaded, self.duration
                log.info("Opened %s: %d keys loaded in %.1f s, changes will be saved", *details)
                return
            except BaseException as error:
                self._disconnect()
                self._keyspace.clear()
                if not isinstance(error, (sqlite3.Error, OSError, ValueError)):
                    raise
                if str(error) != "database is locked" or time.monotonic() > deadline:
                    raise PersistenceError(self._describe_failure("use", error)) from error
            if not waiting:
                log.info("Waiting for %s: another program uses it", self.display_path())
                waiting = True
            time.sleep(0.1)

    def _connect(self) -> None:
        self._check_header()
        self._database = database = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False,
            cached_statements=CACHED_STATEMENTS,
        )  # fmt: skip
        # In this mode SQLite keeps its lock until the file is closed, so that no second server uses
        # the file. SQLite then needs no shared memory, which network drives do not support.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        (application_id,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application_id or tables:
            self._check_format(application_id, version)
        if not tables:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("BEGIN IMMEDIATE")
            database.execute(f"PRAGMA application_id={APPLICATION_ID}")
            database.execute(_SCHEMA)
            database.execute("COMMIT")

    def _prepare_for_writing(self) -> None:
        # Call this only for a file that was loaded or created, because this writes to the file.
        execute = self._database.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        # By default, SQLite may copy values to a temporary file in a folder that all users share.
        execute("PRAGMA temp_store=MEMORY")
        execute(f"PRAGMA wal_autocheckpoint={WAL_CHECKPOINT_PAGES}")
        execute(f"PRAGMA journal_size_limit={64 << 20}")
        execute(f"PRAGMA user_version={FILE_FORMAT}")
        self._inode, self._wal_inode = self._held_inode, _inode_of(self.path + "-wal")
        self._update_size()

    def _check_header(self) -> None:
        # Check before SQLite opens the file: even a query writes to a file that has a hot journal.
        if not os.path.exists(self.path):
            # Create the file here, because other users can read a file that SQLite creates.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._inode = _inode_of(self.path)
        if not os.path.isfile(self.path):
            raise OSError("not a regular file (choose another name)")
        inode = _inode_of(self.path)
        if inode in _OPEN_FILES:
            raise sqlite3.OperationalError("database is locked")
        self._held_inode = inode
        _OPEN_FILES.add(inode)
        with open(self.path, "r+b") as file:  # "r+b" fails if the file is read-only
            header = file.read(100)
        if header and (len(header) < 100 or not header.startswith(b"SQLite format 3\0")):
            raise sqlite3.DatabaseError("file is not a database")
        # application_id (byte 68) and user_version (byte 60) are 0 if only the WAL file has them.
        application_id = int.from_bytes(header[68:72], "big")
        if application_id:
            self._check_format(application_id, int.from_bytes(header[60:64], "big"))

    @staticmethod
    def _check_format(application_id: int, version: int) -> None:
        if application_id != APPLICATION_ID:
            raise sqlite3.DatabaseError("file is not a database of pipecache")
        if version > FILE_FORMAT:
            newer = f"the file has format {version}, and this program knows format {FILE_FORMAT}"
            raise sqlite3.DatabaseError(f"{newer} (update pipecache or choose another file)")

    def _load(self) -> int:
        # Load the keys. Return the Unix time in milliseconds that decided which keys have expired.
        self.loaded = self.expired = 0
        started = last_report = time.monotonic()
        keyspace = self._keyspace
        with keyspace.lock, contextlib.closing(self._database.cursor()) as rows:
            epoch, load = keyspace.unix_time(0), keyspace.load
            load_time = epoch + keyspace.now()
            (count,) = rows.execute("SELECT count(*) FROM keys").fetchone()
            # Fetch row by row: fetchall() would hold all keys in memory a second time.
            rows.execute("SELECT key, kind, value, expires, by_clock FROM keys")
            for number, (key, kind, value, expires, by_clock) in enumerate(rows, 1):
                try:
                    types = type(key), type(value), type(expires)
                    if types not in _ROW_TYPES:
                        raise ValueError(f"the types of key, value and expires are {types}")
                    if kind != "$":
                        value = unpack_value(kind, value)  # noqa: PLW2901
                except ValueError as error:
                    raise ValueError(f"malformed key {key!r:.{ERROR_EXCERPT}}: {error}") from error
                check_time = number % 1000 == 0 or len(value) > SHORT_VALUE
                if check_time and time.monotonic() > last_report + PROGRESS_INTERVAL:
                    last_report = time.monotonic()
                    log.info("Loading %s: %d of %d keys", self.display_path(), number, count)
                if expires is None:
                    load(key, value, None)
                elif expires > load_time:
                    load(key, value, (WallClockDeadline if by_clock else int)(expires - epoch))
                else:
                    self.expired += 1
        self.loaded = len(keyspace)
        self.duration = time.monotonic() - started
        return load_time

    def start(self) -> None:
        """Start the saver. If no thread can start, close the file and raise RuntimeError."""
        thread = threading.Thread(target=self._run, name="pipecache-saver", daemon=True)
        try:
            thread.start()
        except BaseException:
            self._disconnect()
            raise
        self._thread = thread
        if sys.platform != "win32":
            reference = weakref.ref(self)  # CPython never releases the registered function
            os.register_at_fork(after_in_child=lambda: _leak_in_child(reference()))

    def stop(self, timeout: float) -> bool:
        """Save all changes, end the saver and close the file; return True if all were saved.

        :param timeout: seconds without progress after which to give up.
        """
        self._ending = True
        self._save_requested.set()
        if self._thread is None:
            self._disconnect()
            return not self.unsaved_changes
        written, last_progress = self._written, time.monotonic()
        while True:
            self._thread.join(PROGRESS_INTERVAL)
            if not self._thread.is_alive():
                return not self.unsaved_changes
            details = self.display_path(), self.unsaved_changes
            if self._written != written:
                written, last_progress = self._written, time.monotonic()
                log.info("Saving to %s: %d keys to be written", *details)
            elif time.monotonic() > last_progress + timeout:
                text = "Stopped before everything was saved to %s (%d keys left): check the disk"
                log.error(text, *details)
                return False

    def request(self, callback: Callable[[str], None]) -> None:
        """Start a save with a checkpoint, so that the file is complete without the WAL file.

        The caller holds the keyspace lock. After the save, the saver calls ``callback`` under this
        lock with the text of the error, or with "" if the save succeeded.
        """
        self._requests.append(callback)
        self._save_requested.set()

    def _disconnect(self) -> None:
        # SQLite checkpoints and removes the WAL file when the database is closed.
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None
        _OPEN_FILES.discard(self._held_inode)
        self._held_inode = None

    def _run(self) -> None:
        started, delay = time.monotonic(), SAVE_INTERVAL
        while not self._ending:
            self._wait(started + delay)
            started = time.monotonic()
            # Each attempt copies all changes under the keyspace lock, so double the delay.
            retry_delay = min(2 * delay, MAX_RETRY_DELAY)
            self._save(retry_delay)
            delay = retry_delay if self.error else SAVE_INTERVAL
        self._save(retry_delay=0)
        if self.unsaved_changes:
            text = "%d changed keys were not saved to %s and are lost (see the error logged before)"
            log.error(text, self.unsaved_changes, self.display_path())
        self._disconnect()

    def _wait(self, deadline: float) -> None:
        # Block until the deadline, a request, or (while saving works) SAVE_AT_DIRTY_KEYS changes.
        remaining = deadline - time.monotonic()
        while remaining > 0 and not self._save_requested.wait(min(remaining, DIRTY_CHECK_INTERVAL)):
            if self._keyspace.dirty_keys >= SAVE_AT_DIRTY_KEYS and not self.error:
                break
            remaining = deadline - time.monotonic()
        self._save_requested.clear()

    def _save(self, retry_delay: float = SAVE_INTERVAL) -> None:
        with self._keyspace.lock:
            requests, self._requests = self._requests, []
        error = ""
        try:
            self._reopen_if_replaced()
            started = time.monotonic()
            if self._keyspace.dirty_keys or requests:
                self.began = started
                self._write_changes(checkpoint=bool(requests))
            self.synced_at = started
        except Exception as failure:  # no exception may end the saver thread
            error = self._describe_failure("save to", failure)
            if not isinstance(failure, (sqlite3.Error, OSError, PersistenceError, MemoryError)):
                log.exception("Internal error while saving to %s", self.display_path())
        self.began = None
        if error and error != self.error:
            next_step = f"Keeping changes in memory; will retry in {retry_delay:g} s"
            log.error("%s. %s", error, next_step if retry_delay else "This was the last attempt")
        elif self.error and not error:
            log.info("Saving to %s works again", self.display_path())
        self.error = error
        with self._keyspace.lock:
            for callback in requests:
                callback(error)

    def _reopen_if_replaced(self) -> None:
        # Reopen the file if an error closed it, or if the file or the WAL file was removed. Fail if
        # another file has its name.
        advice = "move that file away to save again, or restart the server to load that file"
        replaced = PersistenceError(f"another file was put in its place: {advice}")
        inode = _inode_of(self.path)
        if inode not in (None, self._inode):
            raise replaced
        if self._database and inode and _inode_of(self.path + "-wal") == self._wal_inode:
            return
        self._disconnect()
        try:
            self._connect()
            (has_keys,) = self._database.execute("SELECT EXISTS (SELECT 1 FROM keys)").fetchone()
            if inode is None and has_keys:  # another program was faster to create the file
                raise replaced
            self._prepare_for_writing()
        except BaseException:
            self._disconnect()
            raise
        reason = "the file or its WAL file was removed, or an earlier save failed"
        log.warning("Opened %s again and saving all keys: %s", self.display_path(), reason)
        with self._keyspace.lock:
            self._keyspace.mark_all_changed()

    def _write_changes(self, checkpoint: bool) -> None:
        execute, started = self._database.execute, time.monotonic()
        with self._keyspace.lock:
            save_time, changes = time.time(), self._keyspace.take_changes()
            self._saving_count = len(changes.keys) + changes.cleared
        try:
            execute("BEGIN IMMEDIATE")
            if changes.cleared:
                execute("DELETE FROM keys")
                self.refused.clear()
            deleted: list[bytes] = []
            for placeholders, batch in self._batches(changes, deleted):
                rows = ", ".join([placeholders] * (len(batch) // placeholders.count("?")))
                execute(f"INSERT OR REPLACE INTO keys VALUES {rows}", batch)
                self._written += 1
            keys = iter(deleted)
            while batch := list(itertools.islice(keys, MAX_SQL_PARAMETERS)):
                execute(f"DELETE FROM keys WHERE key IN ({', '.join('?' * len(batch))})", batch)
                self._written += 1
            execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                execute("ROLLBACK")
            if self._database.in_transaction:
                self._disconnect()
            with self._keyspace.lock:
                self._keyspace.restore_changes(changes)
            raise
        finally:
            self._saving_count = 0
        self.saves += 1
        self.saved_at, self.duration = save_time, time.monotonic() - started
        # CPython's prepared statement cache keeps the parameters of each statement in memory. Short
        # statements replace them in the cache.
        for number in range(CACHED_STATEMENTS):
            execute(f"SELECT {number}")
        if checkpoint:
            execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._update_size()

    def _batches(self, changes: Changes, deleted: list[bytes]) -> Iterator[tuple[str, list[Any]]]:
        # Yield the placeholders of one row and the parameters of many rows. One statement has many
        # rows, because CPython releases and acquires the GIL for each statement, but not more than
        # BATCH_BYTES, because SQLite copies the parameters. Append keys to delete to ``deleted``.
        if (  # the usual case, which needs no Python loop
            not self.refused
            and set(map(type, changes.values)) <= {bytes}
            and changes.deadlines.count(None) == len(changes.deadlines)
            and max(map(len, changes.values), default=0) <= SHORT_VALUE
            and max(map(len, changes.keys), default=0) <= SHORT_VALUE
        ):
            parameters = itertools.chain.from_iterable(zip(changes.keys, changes.values))
            while batch := list(itertools.islice(parameters, MAX_SQL_PARAMETERS // 2 * 2)):
                yield "(?, '$', ?, NULL, 0)", batch
            return
        placeholders, batch, size = "(?, ?, ?, ?, ?)", [], 0
        deadlines = changes.deadlines or itertools.repeat(None)
        for key, value, deadline in zip(changes.keys, changes.values, deadlines):
            kind, data = "$", value
            if value.__class__ is tuple:
                kind, data = value[0], pack_parts(value[1])
            refused_before = self.refused.pop(key, None)
            if data is not None and len(key) + len(data) > MAX_ROW:
                self.refused[key] = len(key) + len(data)
                if refused_before is None:
                    text = "Key %r takes %d bytes, more than the file can hold, and is not saved:"
                    details = key[:ERROR_EXCERPT], self.refused[key]
                    log.error(text + " divide its value among several keys", *details)
                data = None
            if data is None:
                deleted.append(key)
                continue
            expires = None if deadline is None else min(deadline + changes.epoch, INTEGER_MAX)
            batch += key, kind, data, expires, deadline.__class__ is WallClockDeadline
            size += len(data)
            if size > BATCH_BYTES or len(batch) + 5 > MAX_SQL_PARAMETERS:
                yield placeholders, batch
                batch, size = [], 0
        if batch:
            yield placeholders, batch

    def _update_size(self) -> None:
        paths = self.path, self.path + "-wal"
        self.size = sum(os.path.getsize(path) for path in paths if os.path.exists(path))

    def display_path(self) -> str:
        """Return the path as text without line breaks, for log lines and INFO."""
        return self.path if self.path.isprintable() else repr(self.path)

    def _describe_failure(self, action: str, error: BaseException) -> str:
        text = cause = str(error) or type(error).__name__
        if isinstance(error, OSError):
            text, cause = error.strerror or text, errno.errorcode.get(error.errno or 0, "")
        advice = next((hint for pattern, hint in _ADVICE.items() if re.search(pattern, cause)), "")
        return f"Cannot {action} {self.display_path()}: {text}" + (f" ({advice})" if advice else "")


def _inode_of(path: str) -> tuple[int, int] | None:
    # Return the (device, inode) of a file, or None if the file does not exist.
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def _leak_in_child(persistence: Persistence | None) -> None:
    # A forked child must not close the database, because SQLite would remove the WAL file that the
    # parent writes. A reference that is never released keeps CPython from closing the database.
    if persistence is not None and persistence._database is not None:
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(persistence._database))


# ----------------------------------------------------------------------------
# Commands: declaration and dispatch
# ----------------------------------------------------------------------------

#: The parsers of arguments and option values, by the names in a usage. Other values stay bytes.
PARSERS: dict[str, Callable[[bytes], Any]] = {}


class Options:
    """The options of a command, from a usage such as ``SET key value [NX|XX] [EX seconds]``.

    Only one option of each bracket may be given. If an option is repeated, the last value counts.
    The methods raise CommandError for arguments that break these rules.
    """

    #: Options that Redis does not allow to be repeated.
    NOT_REPEATABLE = frozenset({"async", "byscore", "rev", "sync", "withvalues"})

    def __init__(self, usage: str) -> None:
        self._options: dict[bytes, tuple[int, str, list[str]]] = {}
        for number, bracket in enumerate(re.findall(r"\[([A-Z][^\]]*)\]", usage)):
            for choice in bracket.split("|"):
                token, *values = choice.split()
                self._options[token.encode()] = number, token.lower(), values

    def __bool__(self) -> bool:
        return bool(self._options)

    def split(self, words: Sequence[bytes]) -> tuple[dict[str, Any], Sequence[bytes]]:
        """Return the leading options by name, and the remaining words.

        The value of an option that has no value in the usage is True.
        """
        found: dict[str, Any] = {}
        chosen: dict[int, str] = {}
        position = 0
        while position < len(words):
            option = self._options.get(words[position].upper())
            if option is None:
                break
            number, name, value_names = option
            position += 1
            values = words[position : position + len(value_names)]
            position += len(value_names)
            repeated = name in found and name in self.NOT_REPEATABLE
            excluded = chosen.setdefault(number, name) != name
            if repeated or excluded or len(values) < len(value_names):
                raise CommandError(SYNTAX_ERROR)
            parsed = [PARSERS.get(each, bytes)(value) for each, value in zip(value_names, values)]
            found[name] = parsed if len(parsed) > 1 else parsed[0] if parsed else True
        return found, words[position:]

    def parse(self, words: Sequence[bytes]) -> dict[str, Any]:
        """Return the options by name. Any other word is a syntax error."""
        found, rest = self.split(words)
        if rest:
            raise CommandError(SYNTAX_ERROR)
        return found


class Command:
    """An entry of the command table, built from a usage such as ``GETEX key [EX seconds]``.

    :param access: ``"reads"``; ``"writes"``; ``"grows"``, a write that may need more memory; or
        ``"controls"``, a command that changes the state of the client's connection.
    :param function: called with the client, the arguments, and the options as keywords.
    :param raw: True if the function parses all arguments itself.
    """

    #: Commands without options for which Redis calls too many arguments a syntax error.
    EXTRA_IS_SYNTAX_ERROR = frozenset(
        {"AUTH", "PUBSUB CHANNELS", "SPOP", "SRANDMEMBER", "ZPOPMAX", "ZPOPMIN"}
    )

    __slots__ = (
        "_options", "_pairs_only", "access", "function", "group", "grows", "key_positions",
        "max_arguments", "min_arguments", "name", "name_words", "simple_arguments", "summary",
        "usage", "usage_items",
    )  # fmt: skip

    def __init__(
        self, group: str, access: str, usage: str, summary: str, function: Callable[..., Reply],
        raw: bool = False,
    ) -> None:  # fmt: skip
        self.usage_items = items = re.findall(r"\[[^\]]*\]|\S+", usage)
        is_subcommand = len(items) > 1 and re.fullmatch("[A-Z]+", items[1]) is not None
        self.name_words = 2 if is_subcommand else 1
        self.name = " ".join(items[: self.name_words])
        self.group, self.access, self.usage, self.summary = group, access, usage, summary
        self.grows = access == "grows"
        positional = [item.strip("[]") for item in items if not re.match(r"\[[A-Z]", item)]
        unbounded = raw or "..." in usage
        options = Options(usage)
        has_options = (bool(options) or self.name in self.EXTRA_IS_SYNTAX_ERROR) and not unbounded
        self._options = options if has_options else None
        # True if the repeated arguments come in pairs, as in MSET.
        self._pairs_only = not raw and bool(re.fullmatch(r"[^\[]*\[[a-z]+ [a-z]+ \.\.\.\]", usage))
        #: Bounds of the number of arguments, the name included. If there are simple_arguments or
        #: fewer, none of them is an option.
        self.min_arguments = sum(not item.startswith("[") for item in items)
        self.max_arguments = sys.maxsize if unbounded or has_options else len(positional)
        self.simple_arguments = len(positional)
        if unbounded:
            self.simple_arguments = self.min_arguments if self._pairs_only else self.max_arguments
        # After an argument that can be repeated, no argument has a fixed position.
        fixed = itertools.takewhile(lambda name: "..." not in name, positional[self.name_words :])
        parsers = [PARSERS.get(name, bytes) for name in fixed]
        plain = raw or set(parsers) <= {bytes}
        self.function = function if plain else _with_parsers(function, parsers)
        self.key_positions = self._find_keys(usage.split())

    @staticmethod
    def _find_keys(words: list[str]) -> tuple[int, int, int]:
        # Return the positions of the keys as COMMAND does: the first, the last (negative: from the
        # end), and the step. All are 0 if the number of keys is an argument (numkeys).
        named = [words.index(word) for word in ("key", "source", "destination") if word in words]
        if not named or "numkeys" in words:
            return 0, 0, 0
        first = min(named)
        last = first + ("source" in words or "newkey" in words)
        if "[key" in words:
            last = -2 if words[-1] == "timeout" else -1
        step = 2 if words[first + 1 : first + 2] == ["value"] and "...]" in words else 1
        return first, last, step

    def call(self, client: Client, arguments: list[bytes]) -> Reply:
        """Parse the arguments, call the function and return its reply.

        :param arguments: the command with its name.
        :raises CommandError: for a wrong number of arguments, or raised by the function.
        """
        size, first = len(arguments), self.name_words
        if not self.min_arguments <= size <= self.max_arguments or (
            self._pairs_only and (size - self.min_arguments) % 2
        ):
            raise wrong_arity(b"|".join(arguments[:first]))
        if size <= self.simple_arguments or self._options is None:
            return self.function(client, *arguments[first:])
        options = self._options.parse(arguments[self.simple_arguments :])
        return self.function(client, *arguments[first : self.simple_arguments], **options)


def _with_parsers(function: Callable[..., Reply], parsers: list[Callable[[bytes], Any]]) -> Any:
    def parse_and_call(client: Client, *arguments: bytes, **options: Any) -> Reply:
        parsed = [parser(argument) for parser, argument in zip(parsers, arguments)]
        return function(client, *parsed, *arguments[len(parsed) :], **options)

    return parse_and_call


#: Every command of one word, by its name in upper case.
COMMANDS: dict[bytes, Command] = {}
#: The commands that do not change the state of the connection, by their names in upper and in
#: lower case, because clients send either. execute() sends all others to the slow path.
FAST_COMMANDS: dict[bytes, Command] = {}
#: Commands of two words, by both words in upper case. The command COMMAND, which has subcommands
#: and can also be called alone, has the key (b"COMMAND", b"").
SUBCOMMANDS: dict[tuple[bytes, bytes], Command] = {}
#: The first words of SUBCOMMANDS.
CONTAINERS: set[bytes] = set()

Declaration = Callable[[Callable[..., Reply]], Callable[..., Reply]]


class Family:
    """Declares a family of commands whose values have one type.

    Each decorator takes a usage and a summary. The functions of :meth:`reads`, :meth:`writes`,
    :meth:`grows` and :meth:`controls` (see :class:`Command`) are called with the client and the
    arguments. The functions of :meth:`views` and :meth:`edits` are called with the value of the
    key, which is empty for a missing key, instead of the client and the key. ``raw`` is that of
    :class:`Command`; other keywords are passed to the function.
    """

    def __init__(self, group: str, value_type: type = bytes) -> None:
        self._group = group
        self.value_type: Any = value_type
        self.reads = functools.partial(self._declare, "reads")
        self.writes = functools.partial(self._declare, "writes")
        self.grows = functools.partial(self._declare, "grows")
        self.controls = functools.partial(self._declare, "controls")

    def _declare(
        self, access: str, usage: str, summary: str, wrap: Callable[[Any], Any] | None = None,
        raw: bool = False, **fixed: Any,
    ) -> Declaration:  # fmt: skip
        def declare(function: Callable[..., Reply]) -> Callable[..., Reply]:
            run = functools.partial(function, **fixed) if fixed else function
            run = wrap(run) if wrap else run
            entry = Command(self._group, access, usage, summary, run, raw)
            name, *subcommand = entry.name.encode().split()
            if subcommand or name in CONTAINERS:
                if name not in CONTAINERS:
                    CONTAINERS.add(name)
                    help_usage = f"{name.decode()} HELP"
                    self.reads(help_usage, "Return the subcommands and their usage.")(
                        lambda client: help_(client, name)
                    )
                SUBCOMMANDS[name, b"".join(subcommand)] = entry
            else:
                COMMANDS[name] = entry
                if access != "controls":
                    FAST_COMMANDS[name] = FAST_COMMANDS[name.lower()] = entry
            return function

        return declare

    def views(self, usage: str, summary: str, **more: Any) -> Declaration:
        """Declare a command that reads one value."""
        return self._declare("reads", usage, summary, self._with_value, **more)

    def edits(
        self, usage: str, summary: str, access: str = "grows", always: bool = False,
        event: str = "", **more: Any,
    ) -> Declaration:  # fmt: skip
        """Declare a command that changes one value in place.

        :param always: True to store the value even if the reply is None, 0 or an empty list.
        :param event: the name of the keyspace event, if it is not the name of the command.
        """
        event = event or usage.split(maxsplit=1)[0].lower()
        wrap = functools.partial(self._with_edited_value, always=always, event=event.encode())
        return self._declare(access, usage, summary, wrap, **more)

    def _with_value(self, function: Callable[..., Reply]) -> Callable[..., Reply]:
        value_type = self.value_type

        def view(client: Client, key: bytes, *arguments: Any, **options: Any) -> Reply:
            value = client.keyspace.read(key, value_type)
            return function(value_type() if value is None else value, *arguments, **options)

        return view

    def _with_edited_value(
        self, function: Callable[..., Reply], always: bool, event: bytes
    ) -> Callable[..., Reply]:
        value_type = self.value_type

        def edit(client: Client, key: bytes, *arguments: Any, **options: Any) -> Reply:
            value = client.keyspace.read_for_write(key, value_type)
            if value is None:
                value = value_type()
            reply = function(value, *arguments, **options)
            if always or reply not in (None, 0, []):
                client.keyspace.write(key, value, event)
            return reply

        return edit


def ensure_memory(client: Client, names: Sequence[bytes], cost: int, existing: int = 0) -> None:
    """Raise CommandError unless the server can store these names for a client.

    Each name costs its length and ``cost`` bytes. Small amounts are accepted even when memory is
    short, so that every client can work.

    :param existing: the number of names that are stored for the client already.
    """
    keyspace = client.keyspace
    size = sum(map(len, names)) + cost * len(names)
    is_small = size + cost * existing <= MEMORY_CHECK_THRESHOLD
    if not is_small and keyspace.used_memory + size > keyspace.memory_limit:
        keyspace.free_memory(size)


def find_command(arguments: list[bytes]) -> Command:
    """Return the command table's entry for a command.

    :raises CommandError: if the command is unknown, or if its number of arguments fails the check
        that Redis makes before it queues a command. :meth:`Command.call` makes all checks.
    """
    name = arguments[0].upper()
    entry = COMMANDS.get(name)
    if name in CONTAINERS:
        subcommand = b"".join(arguments[1:2])
        entry = SUBCOMMANDS.get((name, subcommand.upper()))
        if entry is None and len(arguments) < 2:
            raise wrong_arity(name)
        if entry is None:
            excerpt = _printable(subcommand[:ERROR_EXCERPT])
            raise CommandError(f"ERR unknown subcommand '{excerpt}'. Try {_printable(name)} HELP.")
    if entry is None:
        raise UnknownCommand(arguments[0], arguments[1:])
    size = len(arguments)
    if size < entry.min_arguments or size > entry.max_arguments == entry.min_arguments:
        raise wrong_arity(b"|".join(arguments[: entry.name_words]))
    return entry


def execute(client: Client, arguments: Any) -> Reply:
    """Execute one command and return its reply or error; the caller holds the keyspace lock.

    :param arguments: the command with its name, or the error that the parser returned.
    """
    if arguments.__class__ is not list:
        if not isinstance(arguments, ProtocolError):
            return _execute_slow_path(client, arguments)
        client.close(str(arguments).partition(" ")[2], logging.WARNING)
        return arguments
    try:
        entry = FAST_COMMANDS.get(arguments[0])
        if entry is None or client.slow_path:
            return _execute_slow_path(client, arguments)
        if entry.grows and client.keyspace.used_memory > client.keyspace.memory_limit:
            find_command(arguments)  # do not evict keys for a command that fails anyway
            client.keyspace.free_memory()
        if entry.min_arguments <= len(arguments) <= entry.simple_arguments:
            return entry.function(client, *arguments[1:])
        return entry.call(client, arguments)
    except CommandError as error:
        return error
    except Exception:
        log.exception("Internal error in command %r", arguments[0])
        return CommandError(INTERNAL_ERROR)


#: Commands that an unauthenticated client may call, commands that MULTI does not queue, and
#: commands that fail in a transaction.
_ALLOWED_BEFORE_AUTH = frozenset({"AUTH", "HELLO", "QUIT", "RESET"})
_NEVER_QUEUED = frozenset({"DISCARD", "EXEC", "MULTI", "QUIT", "RESET", "WATCH"})
_NOT_IN_TRANSACTIONS = frozenset({"BGSAVE", "SAVE"})
#: Commands that a subscribed client may call in RESP2, which cannot tell messages from replies.
_ALLOWED_WHILE_SUBSCRIBED = frozenset(
    {"PING", "PSUBSCRIBE", "PUNSUBSCRIBE", "QUIT", "RESET", "SUBSCRIBE", "UNSUBSCRIBE"}
)
#: Commands that MONITOR does not show, as in Redis.
_HIDDEN_FROM_MONITOR = frozenset(
    {"BGSAVE", "CLIENT KILL", "CLIENT LIST", "CLIENT UNBLOCK", "CONFIG GET", "CONFIG SET",
     "DEBUG SLEEP", "MONITOR", "SAVE"}
)  # fmt: skip


def _execute_slow_path(client: Client, arguments: Any) -> Reply:
    if client.reply_mode == "SKIP":
        client.reply_mode = "SKIP_THIS"
    try:
        reply = check_and_queue(client, arguments)
    except CommandError as error:
        reply = error
    reply = apply_reply_mode(client, reply)
    client.slow_path = client.needs_slow_path()
    return reply


def apply_reply_mode(client: Client, reply: Reply) -> Reply:
    """Return the reply to a command, or NO_REPLY if CLIENT REPLY suppresses it."""
    suppress = client.reply_mode in ("OFF", "SKIP_THIS")
    if client.reply_mode == "SKIP_THIS":
        client.reply_mode = "ON"
    if client.blocked is not None:
        client.blocked.suppress_reply = suppress
    return NO_REPLY if suppress else reply


def check_and_queue(client: Client, arguments: Any) -> Reply:
    """Check whether a client may execute a command now, then queue it or call it.

    :param arguments: the command with its name, or the error that the parser returned.
    :raises CommandError: if the client may not execute it, or raised by the command.
    """
    transaction = client.transaction
    try:
        if isinstance(arguments, CommandError):
            raise arguments
        entry = find_command(arguments)
        if not client.authenticated and entry.name not in _ALLOWED_BEFORE_AUTH:
            raise CommandError("NOAUTH Authentication required.")
        subscribed = client.subscription_count > 0 and client.protocol == 2
        if subscribed and entry.name not in _ALLOWED_WHILE_SUBSCRIBED:
            name = entry.name.lower().replace(" ", "|")
            raise CommandError(
                f"ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT"
                " / RESET are allowed in this context"
            )
        if transaction is not None and entry.name in _NOT_IN_TRANSACTIONS:
            raise CommandError("ERR Command not allowed inside a transaction")
        if transaction is None:
            grows = entry.grows
        elif entry.name == "EXEC":
            grows = any(queued.grows for queued, _ in transaction.commands)
        else:
            grows = entry.name not in _NEVER_QUEUED  # the queue uses memory too
        if grows and client.keyspace.used_memory > client.keyspace.memory_limit:
            client.keyspace.free_memory()
    except CommandError as error:
        if transaction is not None:
            transaction.failed = True
        if not isinstance(arguments, CommandError) and arguments[0].upper() == b"EXEC":
            raise abort_transaction(client, error) from None
        raise
    if transaction is None or entry.name in _NEVER_QUEUED:
        return call_command(client, entry, arguments)
    transaction.commands.append((entry, arguments))
    size = QUEUED_COST + sum(map(memory_cost, arguments))
    transaction.size += size
    client.keyspace.reserve(size)
    return QUEUED


def call_command(client: Client, entry: Command, arguments: list[bytes]) -> Reply:
    """Call a command and show it to the clients of MONITOR."""
    pubsub = client.state.pubsub
    try:
        return entry.call(client, arguments)
    finally:
        if pubsub.monitors and entry.name not in _HIDDEN_FROM_MONITOR:
            pubsub.queue(_monitor_line(client, entry, arguments), pubsub.monitors)


_ESCAPES: dict[int, str] = {  # as MONITOR of Redis shows these bytes
    **{code: f"\\x{code:02x}" for code in range(256) if not 0x20 <= code < 0x7F},
    **{ord(char): "\\" + char for char in '\\"'},
    **{ord(char): "\\" + letter for char, letter in zip("\n\r\t\a\b", "nrtab")},
}


def _monitor_line(client: Client, entry: Command, arguments: list[bytes]) -> Status:
    # Long arguments are cut, because a copy for each monitoring client would need much memory.
    words = [
        word[:MONITOR_EXCERPT].decode("latin-1").translate(_ESCAPES)
        + "..." * (len(word) > MONITOR_EXCERPT)
        for word in arguments
    ]
    first_secret = 1 if entry.name == "AUTH" else len(words)
    if entry.name == "HELLO":
        first_secret = 1 + [*map(bytes.upper, arguments), b"AUTH"].index(b"AUTH")
    words[first_secret:] = ["(redacted)"] * (len(words) - first_secret)
    address = client.address
    address = f"unix:{address.rpartition(':')[0]}" if address.startswith("/") else address
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    quoted = " ".join(f'"{word}"' for word in words)
    line = f"{seconds}.{microseconds:06} [0 {address}] {quoted}"
    return Status(line.encode("utf-8", "replace"))


def abort_transaction(client: Client, error: CommandError) -> CommandError:
    """Discard the transaction and return the error reply of an EXEC that was itself rejected."""
    client.end_transaction()
    reason = re.sub("^ERR ", "", str(error))
    return CommandError(f"EXECABORT Transaction discarded because of: {reason}")


# ----------------------------------------------------------------------------
# Commands: argument parsing
# ----------------------------------------------------------------------------

# The functions of this section raise CommandError for an invalid argument, with Redis's text. A
# parameter ``error`` gives that text where it depends on the command.

_NOT_FINITE = "ERR increment would produce NaN or Infinity"
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_FLOAT = re.compile(rb"[+-]?(?:(\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,4})?|inf(?:inity)?)", re.IGNORECASE)


def parse_integer(
    argument: bytes, error: str = NOT_AN_INTEGER, minimum: int = INTEGER_MIN,
    maximum: int = INTEGER_MAX, range_error: str | None = None,
) -> int:  # fmt: skip
    """Return a 64-bit integer; as in Redis, blanks, a plus sign and leading zeros are errors.

    :param range_error: the text if the integer is out of range, by default ``error``.
    """
    number = int(argument) if _INTEGER.fullmatch(argument) else None
    if number is None or not INTEGER_MIN <= number <= INTEGER_MAX:
        raise CommandError(error)
    if not minimum <= number <= maximum:
        raise CommandError(range_error or error)
    return number


def add_integer(number: int, increment: int) -> int:
    """Return the sum; raise CommandError if it does not fit into 64 bits."""
    if not INTEGER_MIN <= number + increment <= INTEGER_MAX:
        raise CommandError(OVERFLOW)
    return number + increment


def match_number(argument: bytes, error: str = NOT_A_FLOAT) -> re.Match[bytes]:
    """Return the match for a decimal number; its group 1 is None if the number is infinite."""
    match = _FLOAT.fullmatch(argument) if len(argument) <= MAX_NUMBER else None
    if match is None:
        raise CommandError(error)
    return match


def parse_float(argument: bytes) -> float:
    """Return the argument as a float; overflow and underflow are errors, infinity is not."""
    digits, number = match_number(argument)[1], float(argument)
    if digits and (math.isinf(number) or (not number and digits.strip(b"0."))):
        raise CommandError(NOT_A_FLOAT)
    return number


def add_decimal(value: bytes, error: str, increment: bytes) -> bytes:
    """Return the sum of two decimal numbers, with at most 17 decimal places, as INCRBYFLOAT does.

    Redis calculates with C's long double, which has 64 significant bits and is infinite from
    2**16384; a Python float has 53 bits.

    :param error: the text for an invalid ``value``; for an invalid increment it is NOT_A_FLOAT.
    """
    numbers = [match_number(value, error)[0], match_number(increment)[0]]
    if any(b"i" in number.lower() for number in numbers):
        raise CommandError(_NOT_FINITE)
    first, second = (_round_to_64_bits(fractions.Fraction(number.decode())) for number in numbers)
    total = _round_to_64_bits(first + second)
    for number, text in ((first, error), (second, NOT_A_FLOAT), (total, _NOT_FINITE)):
        if abs(number) >= 2**16384:
            raise CommandError(text)
    scaled = round(abs(total) * 10**17)
    digits = f"{_format_integer(scaled // 10**17)}.{scaled % 10**17:017}".rstrip("0").rstrip(".")
    return f"-{digits}".encode() if total < 0 and scaled else digits.encode()


def _format_integer(number: int) -> str:
    # CPython refuses to format an integer of more than 4300 digits, so format it in two parts.
    high, low = divmod(number, 10**MAX_NUMBER)
    return f"{high}{low:0{MAX_NUMBER}}" if high else str(low)


def _round_to_64_bits(number: fractions.Fraction) -> fractions.Fraction:
    bits = abs(number.numerator).bit_length() - number.denominator.bit_length()
    unit = fractions.Fraction(2) ** (bits - 64)
    if abs(number) >= unit * 2**64:
        unit *= 2
    return round(number / unit) * unit


def _parse_decimal(argument: bytes) -> bytes:
    if match_number(argument)[1] is None:
        raise CommandError("ERR value is NaN or Infinity")
    return argument


def _parse_bounded(argument: bytes, minimum: int, maximum: int) -> int:
    range_error = f"ERR value is out of range, value must between {minimum} and {maximum}"
    return parse_integer(argument, NOT_AN_INTEGER, minimum, maximum, range_error)


def _parse_database(argument: bytes) -> int:
    if _parse_bounded(argument, -(2**31), 2**31 - 1) != 0:
        raise CommandError("ERR DB index is out of range")
    return 0


def _parse_rank(argument: bytes) -> int:
    rank = parse_integer(argument)
    if rank == 0:
        raise CommandError(
            "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ..."
            " or use negative to start from the end of the list"
        )
    # Redis before 7.2 cannot negate the smallest integer and treats this rank as -1.
    return -1 if rank == INTEGER_MIN else rank


def parse_bound(argument: bytes) -> tuple[float, bool]:
    """Return the score that bounds a range, and True if ``(`` before it excludes that score."""
    exclusive = argument.startswith(b"(")
    number = argument[exclusive:].lstrip() if argument[exclusive:] else b"0"  # as C's strtod()
    return float(match_number(number, "ERR min or max is not a float")[0]), exclusive


def _parse_choice(choices: str, argument: bytes) -> str:
    choice = argument.decode("latin-1").upper()
    if choice not in choices.split("|"):
        raise CommandError(SYNTAX_ERROR)
    return choice


for _name in ("LEFT|RIGHT", "BEFORE|AFTER", "ON|OFF|SKIP"):
    PARSERS[_name] = functools.partial(_parse_choice, _name)
for _name in ("decrement", "end", "increment", "occurrences", "offset", "size", "start", "stop"):
    PARSERS[_name] = parse_integer
PARSERS.update(
    {
        "count": lambda word: parse_integer(word, "ERR value is out of range, must be positive", 0),
        "database": _parse_database,
        "decimal": _parse_decimal,
        "len": lambda word: parse_integer(word, "ERR MAXLEN can't be negative", 0),
        "limit": lambda word: parse_integer(word, "ERR LIMIT can't be negative", 0),
        "max": parse_bound,
        "min": parse_bound,
        "num-matches": lambda word: parse_integer(word, "ERR COUNT can't be negative", 0),
        "page-size": lambda word: parse_integer(word, minimum=1, range_error=SYNTAX_ERROR),
        "rank": _parse_rank,
        "signed-count": lambda word: _parse_bounded(word, -INTEGER_MAX, INTEGER_MAX),
    }
)


def slice_bounds(start: int, stop: int, length: int) -> tuple[int, int]:
    """Return the bounds of a Python slice for a range as in LRANGE, which includes ``stop``."""
    first = max(start + length, 0) if start < 0 else start
    last = stop + length if stop < 0 else min(stop, length - 1)
    return (first, last + 1) if first <= last else (0, 0)


def parse_deadline(
    client: Client, command: str, form: str, argument: bytes, minimum: int = INTEGER_MIN
) -> int:
    """Return the deadline of a key, in milliseconds of the keyspace's clock.

    :param command: the name that the error text contains.
    :param form: a name such as ``ex`` or ``pexpireat``. A leading ``p`` means milliseconds and
        not seconds; a trailing ``at`` means since 1970 and not from now.
    """
    number, absolute = parse_integer(argument), form.endswith("at")
    duration = number if form.startswith("p") else number * 1000
    now, clock_start = client.keyspace.now(), client.keyspace.unix_time(0)
    latest = INTEGER_MAX if absolute else INTEGER_MAX - clock_start - now
    if number < minimum or not INTEGER_MIN <= duration <= latest:
        raise CommandError(f"ERR invalid expire time in '{command}' command")
    return WallClockDeadline(duration - clock_start) if absolute else duration + now


def parse_expiry(client: Client, command: str, options: dict[str, Any]) -> int | None:
    """Return the deadline that an option EX, PX, EXAT or PXAT gives, or None without one."""
    for form in ("ex", "px", "exat", "pxat"):
        if form in options:
            return parse_deadline(client, command, form, options[form], minimum=1)
    return None


def split_numkeys(numkeys: bytes, args: Sequence[bytes], error: str) -> tuple[Any, Sequence[bytes]]:
    """Return ``numkeys`` arguments and the rest; ``error`` is the text if there are fewer."""
    size = parse_integer(numkeys, "ERR numkeys should be greater than 0", 1)
    if size > len(args):
        raise CommandError(error)
    return args[:size], args[size:]


def pop_or_block(
    client: Client, keys: Sequence[bytes], value_type: type,
    take: Callable[[Client, bytes], Reply], timeout: bytes | None = None,
    empty_reply: Reply = NULL_ARRAY,
) -> Reply:  # fmt: skip
    """Return the reply of ``take`` for the first key that exists; if none does, block the client.

    :param value_type: the type that the value of each key must have.
    :param take: removes elements from an existing key and returns the reply. A blocked client
        stores this function, so to capture the client would create a reference cycle.
    :param timeout: the argument in seconds, 0 for no limit. With None, the client is not blocked.
    :param empty_reply: the reply if no key exists and the client may not block.
    """
    seconds = None if timeout is None else _parse_timeout(timeout)
    for key in keys:
        if client.keyspace.read_for_write(key, value_type) is not None:
            return take(client, key)
    if seconds is None or not client.can_block:
        return empty_reply
    deadline = time.monotonic() + seconds if seconds else None
    ensure_memory(client, keys, WATCH_COST)
    blocked = BlockedClient(client, value_type, take, deadline)
    return client.state.blocked.block(blocked, keys)


def mpop(
    client: Client, arguments: Sequence[bytes], blocks: bool, choices: str, value_type: type,
    take: Callable[..., Reply],
) -> Reply:  # fmt: skip
    """Execute LMPOP, ZMPOP, BLMPOP or BZMPOP; ``take`` gets ``where`` and ``count`` as well."""
    keys, rest = split_numkeys(arguments[blocks], arguments[blocks + 1 :], SYNTAX_ERROR)
    where = _parse_choice(choices, rest[0] if rest else b"")
    options, extra = Options("[COUNT number]").split(rest[1:3])
    count = parse_integer(options.get("count", b"1"), "ERR count should be greater than 0", 1)
    if extra or len(rest) > 3:
        raise CommandError(SYNTAX_ERROR)
    take_count = functools.partial(take, where=where, count=count)
    return pop_or_block(client, keys, value_type, take_count, arguments[0] if blocks else None)


def _parse_timeout(argument: bytes) -> float:
    seconds = float(match_number(argument, "ERR timeout is not a float or out of range")[0])
    # Redis sends this text also for a timeout whose milliseconds do not fit into 64 bits.
    if not 0 <= seconds * 1000 <= INTEGER_MAX:
        raise CommandError("ERR timeout is negative")
    return seconds


def parse_cursor(argument: bytes) -> int:
    """Return the cursor of SCAN, HSCAN, SSCAN or ZSCAN, as C's strtoul() reads it for Redis."""
    cursor = int(argument or b"0") if re.fullmatch(rb"[+-]?\d{1,21}|", argument) else 2**64
    if abs(cursor) >= 2**64:
        raise CommandError("ERR invalid cursor")
    return cursor % 2**64


def scan_page(
    scan: Callable[[int, int], tuple[int, list[bytes]]], cursor: int, options: dict[str, Any]
) -> tuple[bytes, list[bytes]]:
    """Return the next cursor and the matching keys of one page of :meth:`ScannableDict.scan`."""
    cursor, page = scan(cursor, min(options.get("count", 10), MAX_SCAN))
    pattern = options.get("match", b"*")
    return b"%d" % cursor, page if pattern == b"*" else list(filter(compile_glob(pattern), page))


def declare_scan(
    family: Family, name: str, contents: str, describe: Callable[[Any, bytes], tuple[bytes, ...]]
) -> None:
    """Declare HSCAN, SSCAN or ZSCAN; ``describe`` returns a member as elements of the reply."""
    usage = f"{name} key cursor [MATCH pattern] [COUNT page-size]"
    options = Options(usage)

    @family.reads(usage, f"Return some of the {contents}, and the next cursor.", raw=True)
    def scan_value(client: Client, key: bytes, cursor: bytes, *arguments: bytes) -> Reply:
        start = parse_cursor(cursor)
        value: Any = client.keyspace.read(key, family.value_type)
        if value is None:
            return [b"0", []]
        chosen = options.parse(arguments)
        is_zset = isinstance(value, SortedSet)
        table, members = (value.scores, value.members) if is_zset else (value, value.keys)
        # Redis returns all members of a small value at once.
        scan = table.scan if len(value) > SCAN_ALL_BELOW else lambda *_: (0, list(members()))
        next_cursor, page = scan_page(scan, start, chosen)
        return [next_cursor, [part for member in page for part in describe(value, member)]]


def random_members(table: ScannableDict, count: int) -> list[bytes]:
    """Return ``count`` different random members, or ``-count`` that may repeat."""
    # Redis accepts counts down to -2**62, whose replies would exhaust the memory.
    if -count > LIMITS["max_arguments"].default:
        raise CommandError("ERR value is out of range")
    if 4 * abs(count) > len(table):
        members = list(table)
        if count < 0:
            return random.choices(members, k=-count) if members else []
        return random.sample(members, min(count, len(members)))
    # Do not list all members of a large value to choose only a few of them.
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


@strings.reads("GET key", "Return the value of a key.")
@strings.reads("G key", "Return the value of a key; short form of GET.")
def get(client: Client, key: bytes) -> Reply:
    return client.keyspace.read(key, bytes)


@strings.grows(f"SET key value [NX|XX|IFEQ comparison-value] [GET] [{_EXPIRY}|KEEPTTL] [OWNED]",
               "Set a key; OWNED deletes the key when the client disconnects.")  # fmt: skip
@strings.grows("GETSET key value", "Set the value of a key and return its old value.", get=True)
def set_(client: Client, key: bytes, value: bytes, **options: Any) -> Reply:
    keyspace = client.keyspace
    if not options:
        keyspace.replace(key, value)
        return OK
    deadline = parse_expiry(client, "set", options)
    needs_string = "get" in options or "ifeq" in options
    old = keyspace.read(key, bytes) if needs_string else keyspace.peek(key)
    if "ifeq" in options:
        allowed = old == options["ifeq"]
    else:
        allowed = ("xx" if old is None else "nx") not in options
    if allowed:
        if "keepttl" in options:
            keyspace.clear_owner(key)
            keyspace.write(key, value, b"set")
        else:
            keyspace.replace(key, value, deadline)
        if "owned" in options:
            keyspace.set_owner(key, client)
    if "get" in options:
        return old
    return OK if allowed else None


strings.reads("MGET key [key ...]", "Return the values of several keys.")(
    lambda client, *keys: client.keyspace.read_strings(keys)
)
strings.views("STRLEN key", "Return the length of a value in bytes.")(len)
strings.grows("SETNX key value", "Set a key that does not exist; return 1 if set, else 0.")(
    lambda client, key, value: int(set_(client, key, value, nx=True) is OK)
)


@strings.grows("SETEX key seconds value", "Set a key and its time to live.", name="setex")
@strings.grows("PSETEX key milliseconds value", "Set a key and its time to live.", name="psetex")
def setex(client: Client, key: bytes, duration: bytes, value: bytes, name: str) -> Reply:
    client.keyspace.replace(key, value, parse_deadline(client, name, name, duration, minimum=1))
    return OK


@strings.writes("GETDEL key", "Delete a key and return its value.")
def getdel(client: Client, key: bytes) -> Reply:
    old = client.keyspace.read(key, bytes)
    client.keyspace.delete(key)
    return old


@strings.writes(f"GETEX key [{_EXPIRY}|PERSIST]", "Return a value and change its time to live.")
def getex(client: Client, key: bytes, **options: Any) -> Reply:
    value = client.keyspace.read(key, bytes)
    if value is not None:
        deadline = parse_expiry(client, "getex", options)
        if deadline is not None:
            client.keyspace.expire(key, deadline)
        elif options:
            client.keyspace.persist(key)
    return value


@strings.grows("APPEND key value", "Append to the value of a key and return the new length.")
def append(client: Client, key: bytes, value: bytes) -> Reply:
    value = (client.keyspace.read_for_write(key, bytes) or b"") + value
    _check_string_length(client, len(value))
    client.keyspace.write(key, value, b"append")
    return len(value)


@strings.grows("SETRANGE key offset value", "Overwrite part of a value; return the new length.")
def setrange(client: Client, key: bytes, offset: int, value: bytes) -> Reply:
    if offset < 0:
        raise CommandError("ERR offset is out of range")
    length, end = len(client.keyspace.read_for_write(key, bytes) or b""), offset + len(value)
    if not value:
        return length
    _check_string_length(client, end)
    # The padding can be much longer than the command, whose memory was counted on arrival.
    ensure_memory(client, [key], end - length)
    old = client.keyspace.read_for_write(key, bytes) or b""  # the key may have been evicted
    value = old[:offset].ljust(offset, b"\0") + value + old[end:]
    client.keyspace.write(key, value, b"setrange")
    return len(value)


def _check_string_length(client: Client, length: int) -> None:
    if length > client.settings.max_message:
        raise CommandError("ERR string exceeds maximum allowed size (proto-max-bulk-len)")


@strings.views("GETRANGE key start end", "Return the part of a value between two positions.")
def getrange(value: bytes, start: int, end: int) -> Reply:
    if end < 0 <= start or start <= end:
        return value[slice(*slice_bounds(start, max(end, -len(value)), len(value)))]
    return b""


@strings.grows("MSET key value [key value ...]", "Set the values of several keys.")
@strings.grows("MSETNX key value [key value ...]", "Set keys if none of them exist.", only_new=True)
def mset(client: Client, *pairs: bytes, only_new: bool = False) -> Reply:
    if only_new and any(key in client.keyspace for key in pairs[::2]):
        return 0
    for key, value in zip(pairs[::2], pairs[1::2]):
        client.keyspace.replace(key, value)
    return 1 if only_new else OK


@strings.grows("INCR key", "Add 1 to an integer and return the result.", sign=1)
@strings.grows("DECR key", "Subtract 1 from an integer and return the result.", sign=-1)
@strings.grows("INCRBY key increment", "Add to an integer and return the result.", sign=1)
@strings.grows("DECRBY key decrement", "Subtract from an integer and return the result.", sign=-1)
def incrby(client: Client, key: bytes, increment: int = 1, *, sign: int) -> Reply:
    if sign * increment > INTEGER_MAX:
        raise CommandError("ERR decrement would overflow")
    value = client.keyspace.read_for_write(key, bytes)
    number = add_integer(0 if value is None else parse_integer(value), sign * increment)
    client.keyspace.write(key, b"%d" % number, b"incrby")
    return number


@strings.grows("INCRBYFLOAT key number", "Add a number to a decimal value and return the result.")
def incrbyfloat(client: Client, key: bytes, increment: bytes) -> Reply:
    value = client.keyspace.read_for_write(key, bytes)
    total = add_decimal(b"0" if value is None else value, NOT_A_FLOAT, increment)
    client.keyspace.write(key, total, b"incrbyfloat")
    return total


# ----------------------------------------------------------------------------
# Commands: keys
# ----------------------------------------------------------------------------

generic = Family("generic")
_SCAN = "SCAN cursor [MATCH pattern] [COUNT page-size] [TYPE type]"
_EXPIRE = "[NX] [XX] [GT] [LT]"
_EXPIRE_OPTIONS = Options(_EXPIRE)
TYPE_NAMES = {type(None): b"none", bytes: b"string", ListValue: b"list", Hash: b"hash",
              Set: b"set", SortedSet: b"zset"}  # fmt: skip


@generic.writes("DEL key [key ...]", "Delete keys and return how many existed.")
@generic.writes("UNLINK key [key ...]", "Delete keys and return how many existed.")
def del_(client: Client, *keys: bytes) -> Reply:
    return sum(map(client.keyspace.delete, keys))


@generic.writes("DELEX key [IFEQ value|IFNE value]", "Delete a key if the condition is true.")
def delex(client: Client, key: bytes, **options: bytes) -> Reply:
    value = client.keyspace.peek(key)
    if options and value is not None and not isinstance(value, bytes):
        raise CommandError("ERR Key should be of string type if conditions are specified")
    if value is None or ("ifeq" in options and value != options["ifeq"]):
        return 0
    return int(value != options.get("ifne") and client.keyspace.delete(key))


generic.writes("DELIFEQ key value", "Delete a key if it has this value; return 1 if deleted.")(
    lambda client, key, value: int(
        client.keyspace.read_for_write(key, bytes) == value and client.keyspace.delete(key)
    )
)
generic.reads("EXISTS key [key ...]", "Return how many of the keys exist.")(
    lambda client, *keys: sum(client.keyspace.lookup(key, touch=False) is not None for key in keys)
)
generic.reads("TOUCH key [key ...]", "Mark keys as used now and return how many exist.")(
    lambda client, *keys: sum(client.keyspace.lookup(key) is not None for key in keys)
)
generic.reads("RANDOMKEY", "Return a random key.")(lambda client: client.keyspace.random_key())
generic.writes("PERSIST key", "Remove the time to live of a key; return 1 if it had one, else 0.")(
    lambda client, key: int(client.keyspace.persist(key))
)
generic.reads("TYPE key", "Return the type of a value: string, list, hash, set, zset or none.")(
    lambda client, key: Status(TYPE_NAMES[type(client.keyspace.lookup(key, touch=False))])
)


@generic.writes("RENAME key newkey", "Rename a key and replace any key that has the new name.")
@generic.writes("RENAMENX key newkey", "Rename a key if no key has the new name.", only_new=True)
def rename(client: Client, key: bytes, newkey: bytes, *, only_new: bool = False) -> Reply:
    if key not in client.keyspace:
        raise CommandError("ERR no such key")
    if only_new and newkey in client.keyspace:
        return 0
    client.keyspace.rename(key, newkey)
    return 1 if only_new else OK


@generic.grows("COPY source destination [DB database] [REPLACE]", "Copy a key; return 1 if copied.")
def copy(client: Client, source: bytes, target: bytes, **options: Any) -> Reply:
    if source == target:
        raise CommandError("ERR source and destination objects are the same")
    keyspace = client.keyspace
    if keyspace.lookup(source) is None or (target in keyspace and "replace" not in options):
        return 0
    keyspace.copy(source, target)
    return 1


@generic.reads("KEYS pattern", "Return the keys that match a pattern such as user:*.")
def keys_(client: Client, pattern: bytes) -> Reply:
    keys = client.keyspace.keys()
    return keys if pattern == b"*" else list(filter(compile_glob(pattern), keys))


@generic.reads(_SCAN, "Return the next cursor (0: the end) and some of the keys.", raw=True)
def scan(client: Client, cursor: bytes, *arguments: bytes) -> Reply:
    start, options = parse_cursor(cursor), Options(_SCAN).parse(arguments)
    next_cursor, keys = scan_page(client.keyspace.scan, start, options)
    if "type" in options:
        wanted, peek = options["type"].lower(), client.keyspace.peek
        keys = [key for key in keys if TYPE_NAMES[type(peek(key))] == wanted]
    return [next_cursor, keys]


@generic.writes(f"EXPIRE key seconds {_EXPIRE}", "Set the time to live of a key in seconds; return"
                " 1 if set, else 0.", raw=True, name="expire")  # fmt: skip
@generic.writes(f"PEXPIRE key milliseconds {_EXPIRE}", "Set the time to live of a key in"
                " milliseconds; return 1 if set, else 0.", raw=True, name="pexpire")  # fmt: skip
@generic.writes(f"EXPIREAT key unix-time-seconds {_EXPIRE}", "Set when a key expires, in seconds"
                " since 1970; return 1 if set, else 0.", raw=True, name="expireat")  # fmt: skip
@generic.writes(f"PEXPIREAT key unix-time-milliseconds {_EXPIRE}", "Set expiry, in milliseconds"
                " since 1970; return 1 if set, else 0.", raw=True, name="pexpireat")  # fmt: skip
def expire(client: Client, key: bytes, argument: bytes, *conditions: bytes, name: str) -> Reply:
    options, rest = _EXPIRE_OPTIONS.split(conditions)
    if rest:
        raise CommandError(f"ERR Unsupported option {_printable(rest[0])}")
    if "nx" in options and len(options) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {"gt", "lt"} <= options.keys():
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    deadline = parse_deadline(client, name, name, argument)
    if key not in client.keyspace:
        return 0
    current = client.keyspace.deadline(key)
    # Redis compares a key without a time to live as if the key expired after every other key.
    latest = math.inf if current is None else current
    if (
        ("nx" in options and current is not None)
        or ("xx" in options and current is None)
        or ("gt" in options and deadline <= latest)
        or ("lt" in options and deadline >= latest)
    ):
        return 0
    client.keyspace.expire(key, deadline)
    return 1


@generic.reads("TTL key", "Return the time to live in seconds; -1: none, -2: no key.", unit=1000)
@generic.reads("PTTL key", "Return the time to live in milliseconds; -1: none, -2: no key.", unit=1)
@generic.reads("EXPIRETIME key", "Return a key's expiry in seconds since 1970.", unit=1000, at=True)
@generic.reads("PEXPIRETIME key", "Return the expiry in milliseconds since 1970.", unit=1, at=True)
def ttl(client: Client, key: bytes, *, unit: int, at: bool = False) -> Reply:
    if client.keyspace.lookup(key, touch=False) is None:
        return -2
    deadline = client.keyspace.deadline(key)
    if deadline is None:
        return -1
    duration = client.keyspace.unix_time(deadline) if at else deadline - client.keyspace.now()
    return (duration + unit // 2) // unit


@generic.reads("OBJECT ENCODING key", "Return the encoding that Redis would choose for a value.")
def object_encoding(client: Client, key: bytes) -> Reply:
    value = client.keyspace.peek(key)
    if isinstance(value, bytes):
        integer = _INTEGER.fullmatch(value) and INTEGER_MIN <= int(value) <= INTEGER_MAX
        return b"int" if integer else b"embstr" if len(value) <= 44 else b"raw"
    if isinstance(value, Set):
        integers = len(value) <= 512 and all(map(_INTEGER.fullmatch, value))
        return b"intset" if integers else b"hashtable"
    if isinstance(value, (Hash, SortedSet)):
        table = value if isinstance(value, Hash) else value.scores
        limit, large = (512, b"hashtable") if isinstance(value, Hash) else (128, b"skiplist")
        texts = (each for pair in table.items() for each in pair if isinstance(each, bytes))
        small = len(table) <= limit and all(len(text) <= 64 for text in texts)
        return b"listpack" if small else large
    return None if value is None else b"quicklist"


@generic.reads("OBJECT IDLETIME key", "Return the seconds since a key was used (LRU policies).")
def object_idletime(client: Client, key: bytes) -> Reply:
    if key not in client.keyspace:
        return None
    idle = client.keyspace.idle_time(key)
    if idle is None:
        raise CommandError("ERR idle times are recorded only under an LRU maxmemory-policy")
    return idle // 1000


# ----------------------------------------------------------------------------
# Commands: lists
# ----------------------------------------------------------------------------

lists = Family("list", ListValue)
_LMOVE = "source destination LEFT|RIGHT LEFT|RIGHT"
_LMPOP = "numkeys key [key ...] LEFT|RIGHT [COUNT count]"


@lists.edits("LPUSH key element [element ...]", "Prepend to a list; return its length.", left=True)
@lists.edits("RPUSH key element [element ...]", "Append elements to a list; return its length.")
@lists.edits("LPUSHX key element [element ...]", "Prepend elements to an existing list; return its"
             " length, or 0.", event="lpush", left=True, create=False)  # fmt: skip
@lists.edits("RPUSHX key element [element ...]", "Append elements to an existing list; return its"
             " length, or 0.", event="rpush", create=False)  # fmt: skip
def push(value: ListValue, *elements: bytes, left: bool = False, create: bool = True) -> Reply:
    if value or create:
        value.push(elements, left)
    return len(value)


@lists.edits("LPOP key [count]", "Remove and return a list's first elements.", "writes", left=True)
@lists.edits("RPOP key [count]", "Remove and return a list's last elements.", "writes")
def pop(value: ListValue, count: int | None = None, *, left: bool = False) -> Reply:
    if not value:
        return None if count is None else NULL_ARRAY
    elements = value.pop_many(left, 1 if count is None else count)
    return elements[0] if count is None else elements


lists.views("LLEN key", "Return the length of a list.")(len)
lists.views("LRANGE key start stop", "Return the elements of a list between two positions.")(
    lambda value, start, stop: list(itertools.islice(value, *slice_bounds(start, stop, len(value))))
)


@lists.views("LINDEX key index", "Return the element of a list at a position.")
def lindex(value: ListValue, index: bytes) -> Reply:
    try:
        return value[parse_integer(index)] if value else None
    except IndexError:
        return None


@lists.edits("LSET key index element", "Replace the element of a list at a position.")
def lset(value: ListValue, index: bytes, element: bytes) -> Reply:
    if not value:
        raise CommandError("ERR no such key")
    position = parse_integer(index)
    try:
        value.data_bytes += len(element) - len(value[position])
    except IndexError:
        raise CommandError("ERR index out of range") from None
    value[position] = element
    return OK


@lists.grows("LINSERT key BEFORE|AFTER pivot element", "Insert an element before or after another.")
def linsert(client: Client, key: bytes, where: str, pivot: bytes, element: bytes) -> Reply:
    value = client.keyspace.read_for_write(key, ListValue)
    if value is None or pivot not in value:
        return 0 if value is None else -1
    value.insert(value.index(pivot) + (where == "AFTER"), element)
    value.data_bytes += len(element)
    client.keyspace.write(key, value, b"linsert")
    return len(value)


@lists.edits("LREM key occurrences element", "Remove equal elements, from the tail if occurrences"
             " is negative, and return how many.", "writes")  # fmt: skip
def lrem(value: ListValue, count: int, element: bytes) -> Reply:
    length = len(value)
    limit = abs(count) or length
    remaining = []
    for each in reversed(value) if count < 0 else value:
        if limit and each == element:
            limit -= 1
        else:
            remaining.append(each)
    if len(remaining) < length:
        value.clear()
        value.data_bytes = 0
        value.push(remaining, left=count < 0)
    return length - len(remaining)


@lists.edits("LTRIM key start stop", "Keep only the elements between two positions.", "writes")
def ltrim(value: ListValue, start: int, stop: int) -> Reply:
    first, last = slice_bounds(start, stop, len(value))
    # Pop at both ends, so that LTRIM after each push to a long list takes constant time.
    value.pop_many(False, len(value) - last)
    value.pop_many(True, first)
    return OK


@lists.views("LPOS key element [RANK rank] [COUNT num-matches] [MAXLEN len]",
             "Return the position of the first equal element, or several with COUNT.")  # fmt: skip
def lpos(
    value: ListValue, element: bytes, rank: int = 1, count: int | None = None, maxlen: int = 0
) -> Reply:
    length = len(value)
    pairs = enumerate(value) if rank > 0 else zip(range(length - 1, -1, -1), reversed(value))
    compared = itertools.islice(pairs, min(maxlen, length) or None)
    matches = (position for position, each in compared if each == element)
    skipped = min(abs(rank) - 1, length)
    limit = 1 if count is None else min(count or length, length)
    positions = list(itertools.islice(matches, skipped, skipped + limit))
    return positions if count is not None else positions[0] if positions else None


@lists.grows(f"LMOVE {_LMOVE}", "Move an element between the ends of two lists and return it.")
@lists.grows("RPOPLPUSH source destination", "Move the last element to the head of another list.")
@lists.grows(f"BLMOVE {_LMOVE} timeout", "Block until LMOVE can move an element.", blocks=True)
@lists.grows("BRPOPLPUSH source destination timeout", "Block until RPOPLPUSH can move an element.",
             blocks=True)  # fmt: skip
def lmove(client: Client, source: bytes, target: bytes, *rest: Any, blocks: bool = False) -> Reply:
    ends, timeout = (rest[:-1], rest[-1]) if blocks else (rest, None)
    from_end, to_end = ends or ("RIGHT", "LEFT")
    move = functools.partial(_move, target=target, from_end=from_end, to_end=to_end)
    return pop_or_block(client, [source], ListValue, move, timeout, empty_reply=None)


def _move(client: Client, source: bytes, target: bytes, from_end: str, to_end: str) -> Reply:
    keyspace = client.keyspace
    value: Any = keyspace.read_for_write(source, ListValue)
    other = value
    if source != target:
        other = keyspace.read_for_write(target, ListValue) or ListValue()
    element: bytes = value.pop_end(from_end == "LEFT")
    other.push([element], to_end == "LEFT")
    keyspace.write(target, other, b"lpush" if to_end == "LEFT" else b"rpush")
    keyspace.write(source, value, b"lpop" if from_end == "LEFT" else b"rpop")
    return element


@lists.writes("BLPOP key [key ...] timeout", "Remove and return the first element of the first list"
              " that has one; block until then.", where="LEFT")  # fmt: skip
@lists.writes("BRPOP key [key ...] timeout", "Remove and return the last element of the first list"
              " that has one; block until then.", where="RIGHT")  # fmt: skip
def blpop(client: Client, *arguments: bytes, where: str) -> Reply:
    take = functools.partial(_take_elements, where=where)
    return pop_or_block(client, arguments[:-1], ListValue, take, arguments[-1])


@lists.writes(f"LMPOP {_LMPOP}", "Remove and return elements of the first list that has some.")
@lists.writes(f"BLMPOP timeout {_LMPOP}", "Block until LMPOP can remove elements.", blocks=True)
def lmpop(client: Client, *arguments: bytes, blocks: bool = False) -> Reply:
    return mpop(client, arguments, blocks, "LEFT|RIGHT", ListValue, _take_elements)


def _take_elements(client: Client, key: bytes, where: str, count: int | None = None) -> Reply:
    value: Any = client.keyspace.read_for_write(key, ListValue)
    elements = value.pop_many(where == "LEFT", count or 1)
    client.keyspace.write(key, value, b"lpop" if where == "LEFT" else b"rpop")
    return [key, elements[0] if count is None else elements]


# ----------------------------------------------------------------------------
# Commands: hashes
# ----------------------------------------------------------------------------

hashes = Family("hash", Hash)


@hashes.edits("HSET key field value [field value ...]", "Set fields and return how many are new.",
              always=True)  # fmt: skip
@hashes.edits("HMSET key field value [field value ...]", "Set hash fields.", event="hset", reply=OK)
def hset(value: Hash, *pairs: bytes, reply: Reply = None) -> Reply:
    added = sum(map(value.put, pairs[::2], pairs[1::2]))
    return added if reply is None else reply


hashes.edits("HSETNX key field value", "Set a new field; return 1 if set, else 0.", event="hset")(
    lambda value, field, content: int(field not in value and value.put(field, content))
)
hashes.views("HGET key field", "Return a field's value.")(lambda value, field: value.get(field))
hashes.views("HMGET key field [field ...]", "Return the values of several fields.")(
    lambda value, *fields: list(map(value.get, fields))
)
hashes.views("HGETALL key", "Return all fields of a hash and their values.")(dict)
hashes.views("HKEYS key", "Return all fields of a hash.")(list)
hashes.views("HVALS key", "Return the values of all fields.")(lambda value: list(value.values()))
hashes.views("HLEN key", "Return the number of fields of a hash.")(len)
hashes.views("HEXISTS key field", "Return 1 if a field exists, else 0.")(operator.contains)
hashes.views("HSTRLEN key field", "Return the length of the value of a field in bytes.")(
    lambda value, field: len(value.get(field, b""))
)
hashes.edits("HDEL key field [field ...]", "Delete fields; return how many existed.", "writes")(
    lambda value, *fields: sum(map(value.remove, fields))
)


@hashes.edits("HINCRBY key field increment", "Add to an integer; return the result.", always=True)
def hincrby(value: Hash, field: bytes, increment: int) -> Reply:
    number = add_integer(parse_integer(value.get(field, b"0"), BAD_HASH_INTEGER), increment)
    value.put(field, b"%d" % number)
    return number


@hashes.edits("HINCRBYFLOAT key field decimal", "Add to a decimal value and return the result.")
def hincrbyfloat(value: Hash, field: bytes, increment: bytes) -> Reply:
    total = add_decimal(value.get(field, b"0"), "ERR hash value is not a float", increment)
    value.put(field, total)
    return total


@hashes.reads("HRANDFIELD key [count] [WITHVALUES]", "Return one or more random fields.", raw=True)
def hrandfield(client: Client, key: bytes, *arguments: bytes) -> Reply:
    count = PARSERS["signed-count"](arguments[0]) if arguments else 1
    options = Options("[WITHVALUES]").parse(arguments[1:])
    if options and abs(count) > INTEGER_MAX // 2:
        raise CommandError("ERR value is out of range")
    value = client.keyspace.read(key, Hash) or Hash()
    if not arguments:
        return value.random_key() if value else None
    fields = random_members(value, count)
    return PairsReply((field, value[field]) for field in fields) if options else fields


declare_scan(hashes, "HSCAN", "fields and values", lambda value, field: (field, value[field]))


# ----------------------------------------------------------------------------
# Commands: sets
# ----------------------------------------------------------------------------

sets = Family("set", Set)

sets.edits("SADD key member [member ...]", "Add members to a set and return how many are new.")(
    lambda value, *members: sum(map(value.put, members))
)
sets.edits("SREM key member [member ...]", "Remove members; return how many existed.", "writes")(
    lambda value, *members: sum(map(value.remove, members))
)
sets.views("SCARD key", "Return the number of members of a set.")(len)
sets.views("SISMEMBER key member", "Return 1 if a set has a member, else 0.")(operator.contains)
sets.views("SMISMEMBER key member [member ...]", "Return for each member 1 if it exists, else 0.")(
    lambda value, *members: [int(member in value) for member in members]
)
sets.views("SMEMBERS key", "Return all members of a set.")(SetReply)


@sets.writes("SMOVE source destination member", "Move a member to another set; return 1 if moved.")
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


@sets.edits("SPOP key [count]", "Remove and return random members.", "writes")
def spop(value: Set, count: int | None = None) -> Reply:
    if not value:
        return None if count is None else SetReply()
    members = [value.random_key()] if count in (None, 1) else random_members(value, count or 0)
    for member in members:
        value.remove(member)
    return members[0] if count is None else SetReply(members)


@sets.views("SRANDMEMBER key [signed-count]", "Return one or more random members.")
def srandmember(value: Set, count: int | None = None) -> Reply:
    if count is None:
        return value.random_key() if value else None
    return random_members(value, count)


@sets.reads("SINTER key [key ...]", "Return the members common to all sets.", combine=operator.and_)
@sets.reads("SUNION key [key ...]", "Return the members of any of the sets.", combine=operator.or_)
@sets.reads("SDIFF key [key ...]", "Return members in no set but the first.", combine=operator.sub)
def sinter(client: Client, *keys: bytes, combine: Callable[[Any, Any], Any]) -> Reply:
    values = [client.keyspace.read(key, Set) or Set() for key in keys]
    return SetReply(functools.reduce(combine, (value.keys() for value in values)))


@sets.grows("SINTERSTORE destination key [key ...]", "Store the members common to all sets;"
            " return how many.", combine=operator.and_, event=b"sinterstore")  # fmt: skip
@sets.grows("SUNIONSTORE destination key [key ...]", "Store the members of any of the sets;"
            " return how many.", combine=operator.or_, event=b"sunionstore")  # fmt: skip
@sets.grows("SDIFFSTORE destination key [key ...]", "Store the members in no set but the"
            " first; return how many.", combine=operator.sub, event=b"sdiffstore")  # fmt: skip
def sinterstore(client: Client, target: bytes, *keys: bytes, combine: Any, event: bytes) -> Reply:
    members: Any = sinter(client, *keys, combine=combine)
    value = Set.from_parts(members)
    if value:
        client.keyspace.replace(target, value, event=event)
    else:
        client.keyspace.delete(target)
    return len(value)


@sets.reads("SINTERCARD numkeys key [key ...] [LIMIT limit]", "Count members common to all sets.")
def sintercard(client: Client, numkeys: bytes, *arguments: bytes) -> Reply:
    error = "ERR Number of keys can't be greater than number of args"
    keys, rest = split_numkeys(numkeys, arguments, error)
    options = Options("[LIMIT limit]").parse(rest)
    members: Any = sinter(client, *keys, combine=operator.and_)
    return min(len(members), options.get("limit") or len(members))


declare_scan(sets, "SSCAN", "members", lambda value, member: (member,))


# ----------------------------------------------------------------------------
# Commands: sorted sets
# ----------------------------------------------------------------------------

zsets = Family("sorted-set", SortedSet)
_ZADD = "[NX] [XX] [GT] [LT] [CH] [INCR]"
_ZADD_OPTIONS = Options(_ZADD)
_ZMPOP = "numkeys key [key ...] MIN|MAX [COUNT count]"


@zsets.grows(f"ZADD key {_ZADD} score member [score member ...]", "Set the scores of members.")
def zadd(client: Client, key: bytes, *arguments: bytes) -> Reply:
    options, pairs = _ZADD_OPTIONS.split(arguments)
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
    added, changed, new, skipped = 0, 0, 0.0, False
    for score, member in zip(scores, pairs[1::2]):
        old = value.scores.get(member)
        if old is None:
            new, skipped = score, "xx" in options
        else:
            new = score + old if "incr" in options else score
            lower, higher = "gt" in options and new <= old, "lt" in options and new >= old
            skipped = "nx" in options or lower or higher
        if not skipped and math.isnan(new):
            raise CommandError("ERR resulting score is not a number (NaN)")
        if not skipped and new != old:
            value.put(member, new + 0.0)  # the sum turns -0.0 into 0.0
            added += old is None
            changed += 1
    if changed:
        client.keyspace.write(key, value, b"zincr" if "incr" in options else b"zadd")
    if "incr" in options:
        return None if skipped else new
    return changed if "ch" in options else added


zsets.grows("ZINCRBY key number member", "Add to the score of a member and return the result.")(
    lambda client, key, number, member: zadd(client, key, b"INCR", number, member)
)
zsets.views("ZSCORE key member", "Return the score of a member.")(
    lambda value, member: value.scores.get(member)
)
zsets.views("ZMSCORE key member [member ...]", "Return the scores of several members.")(
    lambda value, *members: list(map(value.scores.get, members))
)
zsets.views("ZCARD key", "Return the number of members of a sorted set.")(len)
zsets.edits("ZREM key member [member ...]", "Remove members; return how many existed.", "writes")(
    lambda value, *members: sum(map(value.remove, members))
)


@zsets.views("ZRANK key member", "Return the rank of a member by score, from 0 (lowest score).")
@zsets.views("ZREVRANK key member", "Return the rank from 0 (highest score).", reverse=True)
def zrank(value: SortedSet, member: bytes, *, reverse: bool = False) -> Reply:
    score = value.scores.get(member)
    if score is None:
        return None
    rank = value.rank((score, member))
    return len(value) - 1 - rank if reverse else rank


def _score_ranks(value: SortedSet, low: Any, high: Any) -> tuple[int, int]:
    # Return the first rank and the rank after the last one of bounds from parse_bound().
    first = value.rank((low[0], LAST_MEMBER) if low[1] else low[:1])
    return first, max(value.rank(high[:1] if high[1] else (high[0], LAST_MEMBER)), first)


@zsets.views("ZCOUNT key min max", "Return the number of members between two scores.")
def zcount(value: SortedSet, low: Any, high: Any) -> Reply:
    first, last = _score_ranks(value, low, high)
    return last - first


@zsets.reads("ZRANGE key low high [BYSCORE] [REV] [LIMIT offset size] [WITHSCORES]",
             "Return the members between two ranks, or with BYSCORE two scores.")  # fmt: skip
@zsets.reads("ZREVRANGE key low high [WITHSCORES]", "Return members by descending score.", rev=True)
@zsets.reads("ZRANGEBYSCORE key low high [WITHSCORES] [LIMIT offset size]",
             "Return the members between two scores.", byscore=True)  # fmt: skip
@zsets.reads("ZREVRANGEBYSCORE key high low [WITHSCORES] [LIMIT offset size]", "Return the members"
             " between two scores, from the highest down.", byscore=True, rev=True)  # fmt: skip
def zrange(client: Client, key: bytes, start: bytes, stop: bytes, **options: Any) -> Reply:
    byscore, rev, limit = "byscore" in options, "rev" in options, options.get("limit")
    if limit is not None and limit[1] != -1 and not byscore:
        reason = "LIMIT is only supported in combination with either BYSCORE or BYLEX"
        raise CommandError(f"{SYNTAX_ERROR}, {reason}")
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
    pairs = value.slice(first, first + size)
    if rev:
        pairs.reverse()
    if "withscores" in options:
        return PairsReply((member, score) for score, member in pairs)
    return [member for _, member in pairs]


def _remove_range(value: SortedSet, first: int, last: int) -> list[tuple[bytes, float]]:
    pairs = [(member, score) for score, member in value.slice(first, last)]
    for member, _ in pairs:
        value.remove(member)
    return pairs


def _pop_by_score(value: SortedSet, count: int, highest: bool) -> list[tuple[bytes, float]]:
    first = max(len(value) - count, 0) if highest else 0
    pairs = _remove_range(value, first, first + count)
    return pairs[::-1] if highest else pairs


@zsets.edits("ZPOPMIN key [count]", "Remove and return the members of lowest score.", "writes")
@zsets.edits("ZPOPMAX key [count]", "Remove and return the members of highest score.", "writes",
             highest=True)  # fmt: skip
def zpopmin(value: SortedSet, count: int | None = None, *, highest: bool = False) -> Reply:
    pairs = _pop_by_score(value, 1 if count is None else count, highest)
    return list(itertools.chain.from_iterable(pairs)) if count is None else PairsReply(pairs)


@zsets.writes("BZPOPMIN key [key ...] timeout", "Remove and return the member of lowest score;"
              " block until a sorted set has one.", where="MIN")  # fmt: skip
@zsets.writes("BZPOPMAX key [key ...] timeout", "Remove and return the member of highest score;"
              " block until a sorted set has one.", where="MAX")  # fmt: skip
def bzpopmin(client: Client, *arguments: bytes, where: str) -> Reply:
    take = functools.partial(_take_members, where=where)
    return pop_or_block(client, arguments[:-1], SortedSet, take, arguments[-1])


@zsets.writes(f"ZMPOP {_ZMPOP}", "Remove and return members of the first sorted set that has some.")
@zsets.writes(f"BZMPOP timeout {_ZMPOP}", "Block until ZMPOP can remove members.", blocks=True)
def zmpop(client: Client, *arguments: bytes, blocks: bool = False) -> Reply:
    return mpop(client, arguments, blocks, "MIN|MAX", SortedSet, _take_members)


def _take_members(client: Client, key: bytes, where: str, count: int | None = None) -> Reply:
    value: Any = client.keyspace.read_for_write(key, SortedSet)
    pairs = _pop_by_score(value, count or 1, where == "MAX")
    client.keyspace.write(key, value, b"zpopmax" if where == "MAX" else b"zpopmin")
    return [key, *pairs[0]] if count is None else [key, list(map(list, pairs))]


zsets.edits("ZREMRANGEBYRANK key start stop", "Remove members by rank; return how many.", "writes")(
    lambda value, start, stop: len(_remove_range(value, *slice_bounds(start, stop, len(value))))
)
zsets.edits("ZREMRANGEBYSCORE key min max", "Remove members by score; return how many.", "writes")(
    lambda value, low, high: len(_remove_range(value, *_score_ranks(value, low, high)))
)
declare_scan(zsets, "ZSCAN", "members with their scores", lambda value, member: (
    member, encode_double(value.scores[member])
))  # fmt: skip


# ----------------------------------------------------------------------------
# Commands: transactions
# ----------------------------------------------------------------------------

transactions = Family("transactions")


@transactions.controls("MULTI", "Start a transaction: queue the following commands until EXEC.")
def multi(client: Client) -> Reply:
    if client.transaction is not None:
        raise CommandError("ERR MULTI calls can not be nested")
    client.transaction = Transaction()
    return OK


@transactions.controls("EXEC", "Execute the queued commands and return their replies.", raw=True)
def exec_(client: Client, *words: bytes) -> Reply:
    if words:
        raise abort_transaction(client, wrong_arity(b"exec"))
    transaction = client.transaction
    if transaction is None:
        raise CommandError("ERR EXEC without MULTI")
    watch_broken = client.end_transaction()
    if transaction.failed:
        raise CommandError("EXECABORT Transaction discarded because of previous errors.")
    if watch_broken:
        return NULL_ARRAY
    replies: list[Reply] = []
    size, max_reply = 0, client.settings.max_reply
    client.can_block = False
    try:
        for entry, arguments in transaction.commands:
            try:
                replies.append(call_command(client, entry, arguments))
            except CommandError as error:
                replies.append(error)
            size += reply_size(replies[-1])
            if size > max_reply:
                # The reply will be an error, but every command must still be executed.
                replies.clear()
    finally:
        client.can_block = True
    return replies if size <= max_reply else reply_too_long(max_reply)


@transactions.controls("DISCARD", "Discard the queued commands and end the transaction.")
def discard(client: Client) -> Reply:
    if client.transaction is None:
        raise CommandError("ERR DISCARD without MULTI")
    client.end_transaction()
    return OK


@transactions.controls("WATCH key [key ...]", "Make the next EXEC fail if one of the keys changes.")
def watch(client: Client, *keys: bytes) -> Reply:
    if client.transaction is not None:
        raise CommandError("ERR WATCH inside MULTI is not allowed")
    if client.watch is None:
        client.watch = Watch()
    ensure_memory(client, keys, WATCH_COST, len(client.watch.keys))
    for key in keys:
        client.keyspace.watch(key, client.watch)
    return OK


@transactions.controls("UNWATCH", "Stop watching all keys.")
def unwatch(client: Client) -> Reply:
    if client.watch is not None:
        client.keyspace.unwatch(client.watch)
        client.watch = None
    return OK


# ----------------------------------------------------------------------------
# Commands: publish/subscribe
# ----------------------------------------------------------------------------

pubsub = Family("pubsub")


@pubsub.controls("SUBSCRIBE channel [channel ...]", "Receive the messages published to channels.")
@pubsub.controls("PSUBSCRIBE pattern [pattern ...]", "Receive the messages published to channels"
                 " that match a pattern.", is_pattern=True)  # fmt: skip
def subscribe(client: Client, *names: bytes, is_pattern: bool = False) -> Reply:
    ensure_memory(client, names, SUBSCRIPTION_COST, client.subscription_count)
    if is_pattern:
        if sum(map(len, names)) > MAX_PATTERNS:
            reason = f"the patterns are longer than {MAX_PATTERNS} bytes in total"
            raise CommandError(f"ERR {reason}; subscribe in several commands")
        # Reject an invalid pattern before the first subscription is made.
        for name in names:
            compile_glob(name)
    event, replies = b"psubscribe" if is_pattern else b"subscribe", MultipleReplies()
    for name in names:
        client.state.pubsub.subscribe(client, name, is_pattern)
        replies.append(Push([event, name, client.subscription_count]))
    return replies


@pubsub.controls("UNSUBSCRIBE [channel ...]", "Unsubscribe from the given channels, or from all.")
@pubsub.controls("PUNSUBSCRIBE [pattern ...]", "Unsubscribe from patterns or all.", is_pattern=True)
def unsubscribe(client: Client, *names: bytes, is_pattern: bool = False) -> Reply:
    subscribed = client.patterns if is_pattern else client.channels
    # Redis replies once, with a null name, if there is nothing to unsubscribe from.
    chosen: Any = names or tuple(subscribed) or (None,)
    event, replies = b"punsubscribe" if is_pattern else b"unsubscribe", MultipleReplies()
    for name in chosen:
        client.state.pubsub.unsubscribe(client, name, is_pattern)
        replies.append(Push([event, name, client.subscription_count]))
    return replies


pubsub.reads("PUBLISH channel message", "Send a message to the subscribers; return their number.")(
    lambda client, channel, message: client.state.pubsub.publish(channel, message)
)
pubsub.reads("PUBSUB NUMPAT", "Return the number of patterns that have subscribers.")(
    lambda client: len(client.state.pubsub.patterns)
)


@pubsub.reads("PUBSUB CHANNELS [pattern]", "Return the channels that have subscribers.")
def pubsub_channels(client: Client, pattern: bytes = b"*") -> Reply:
    return list(filter(compile_glob(pattern), client.state.pubsub.channels))


@pubsub.reads("PUBSUB NUMSUB [channel ...]", "Return the number of subscribers of each channel.")
def pubsub_numsub(client: Client, *names: bytes) -> Reply:
    channels = client.state.pubsub.channels
    return [each for name in names for each in (name, len(channels.get(name, ())))]


# ----------------------------------------------------------------------------
# Commands: connection
# ----------------------------------------------------------------------------

connection = Family("connection")


@connection.reads("PING [message]", "Return PONG, or the message.")
def ping(client: Client, message: bytes | None = None) -> Reply:
    if client.subscription_count and client.protocol == 2:
        return [b"pong", message or b""]
    return PONG if message is None else message


connection.reads("ECHO message", "Return the message.")(lambda _, message: message)
connection.reads("SELECT database", "Select a database. The only database is 0.")(
    lambda _, database: OK
)
connection.reads("CLIENT ID", "Return the id of this connection.")(lambda client: client.id)
connection.reads("CLIENT GETNAME", "Return the name of this connection.")(
    lambda client: client.names.get("name", "").encode() or None
)
connection.reads("CLIENT INFO", "Return the line of CLIENT LIST for this connection.")(
    lambda client: Verbatim(_client_line(client).encode())
)


@connection.controls("HELLO [protover] [AUTH username password] [SETNAME clientname]",
                     "Select version 2 or 3 of RESP; describe the server.", raw=True)  # fmt: skip
def hello(client: Client, *words: bytes) -> Reply:
    protocol = client.protocol
    if words:
        error = "ERR Protocol version is not an integer or out of range"
        protocol = parse_integer(words[0], error, 2, 3, "NOPROTO unsupported protocol version")
    options = iter(words[1:])
    for option in options:
        value_count = {b"AUTH": 2, b"SETNAME": 1}.get(option.upper(), 0)
        values = list(itertools.islice(options, value_count))
        if option.upper() == b"AUTH" and len(values) == 2:
            auth(client, *values)
        elif option.upper() == b"SETNAME" and values:
            # Redis sets the name even if a later option is wrong.
            client.names["name"] = _parse_client_name("Client names", values[0])
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{_printable(option)}'")
    if not client.authenticated:
        raise CommandError(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the"
            " HELLO AUTH <user> <pass> option can be used to authenticate the client and select"
            " the RESP protocol version at the same time"
        )
    client.protocol = protocol
    return {
        b"server": b"redis",
        b"version": REDIS_VERSION.encode(),
        b"proto": protocol,
        b"id": client.id,
        b"mode": b"standalone",
        b"role": b"master",
        b"modules": [],
    }


@connection.controls("AUTH [username] password", "Authenticate the connection.")
def auth(client: Client, *credentials: bytes) -> Reply:
    if client.password is None and len(credentials) == 1:
        raise CommandError(
            "ERR AUTH <password> called without any password configured for the default user."
            " Are you sure your configuration is correct?"
        )
    correct = client.password is None or hmac.compare_digest(client.password, credentials[-1])
    if not correct or credentials[:-1] not in ((), (b"default",)):
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
    client.authenticated = True
    return OK


@connection.controls("RESET", "Return the connection to the state it had when it was opened.")
def reset(client: Client) -> Reply:
    client.protocol = 2
    client.names.pop("name", None)
    client.reply_mode = "ON"
    client.authenticated = client.password is None
    client.end_transaction()
    client.state.pubsub.remove(client)
    return Status(b"RESET")


@connection.controls("QUIT", "Close the connection.", raw=True)
def quit_(client: Client, *words: bytes) -> Reply:
    client.close("QUIT")
    return OK


def _parse_client_name(label: str, name: bytes) -> str:
    if len(name) > MAX_NAME:
        raise CommandError(f"ERR {label} cannot be longer than {MAX_NAME} bytes.")
    if re.fullmatch(rb"[!-~]*", name) is None:
        raise CommandError(f"ERR {label} cannot contain spaces, newlines or special characters.")
    return name.decode("ascii")


def _client_line(client: Client) -> str:
    process, program = client.process()
    flags = {
        "O": client in client.state.pubsub.monitors,
        "P": client.subscription_count > 0,
        "x": client.transaction is not None,
        "b": client.blocked is not None and not client.blocked.done,
        "d": client.watch is not None and client.watch.broken,
        "U": client.address.startswith("/"),
    }
    known = client.last_command.upper() in COMMANDS.keys() | CONTAINERS
    transaction, now = client.transaction, time.monotonic()
    fields = {
        "id": client.id,
        "addr": client.address,
        "laddr": client.local_address,
        "name": client.names.get("name", ""),
        "age": int(now - client.connected_at),
        "idle": int(now - client.last_command_at),
        "flags": "".join(flag for flag, is_set in flags.items() if is_set) or "N",
        "db": 0,
        "sub": len(client.channels),
        "psub": len(client.patterns),
        # These sizes of Redis's buffers are not measured, but redis-py before 7 expects them.
        **dict.fromkeys(("qbuf", "qbuf-free", "argv-mem", "obl", "oll", "omem", "tot-mem"), 0),
        "multi": -1 if transaction is None else len(transaction.commands),
        "cmd": client.last_command.decode().lower() if known else "NULL",
        "user": "default",
        "resp": client.protocol,
        "lib-name": client.names.get("lib-name", ""),
        "lib-ver": client.names.get("lib-ver", ""),
        # Redis does not have the following fields.
        "owned": client.keyspace.count_owned(client),
        "pid": process,
        "program": re.sub(r"\s", "_", re.split(r"[\\/]", program)[-1]),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items()) + "\n"


@connection.reads("CLIENT SETNAME name", "Set the name of this connection.")
def client_setname(client: Client, name: bytes) -> Reply:
    client.names["name"] = _parse_client_name("Client names", name)
    return OK


@connection.reads("CLIENT SETINFO attribute value", "Set the client library's LIB-NAME or LIB-VER.")
def client_setinfo(client: Client, attribute: bytes, value: bytes) -> Reply:
    name = attribute.decode("latin-1").lower()
    if name not in ("lib-name", "lib-ver"):
        raise CommandError(f"ERR Unrecognized option '{_printable(attribute)}'")
    client.names[name] = _parse_client_name(name, value)
    return OK


def _has_type(client: Client, value: bytes) -> bool:
    if value.lower() not in (b"normal", b"master", b"replica", b"slave", b"pubsub"):
        raise CommandError(f"ERR Unknown client type '{_printable(value)}'")
    return value.lower() == (b"pubsub" if client.subscription_count else b"normal")


def _has_user(client: Client, value: bytes) -> bool:
    if value != b"default":
        raise CommandError(f"ERR No such user '{_printable(value)}'")
    return True


#: The filters of CLIENT KILL. Each returns True if the client matches the value.
CLIENT_FILTERS: dict[bytes, Callable[[Client, bytes], bool]] = {
    b"ID": lambda client, value: (
        client.id == parse_integer(value, "ERR client-id should be greater than 0", 1)
    ),
    b"ADDR": lambda client, value: client.address.encode() == value,
    b"LADDR": lambda client, value: client.local_address.encode() == value,
    b"TYPE": _has_type,
    b"USER": _has_user,
}


@connection.reads("CLIENT LIST [TYPE type|ID client-id ...]", "Return a line for each connection.")
def client_list(client: Client, *words: bytes) -> Reply:
    chosen = list(client.state.clients.values())
    option = words[0].upper() if words else b""
    if option == b"TYPE" and len(words) == 2:
        chosen = [each for each in chosen if _has_type(each, words[1])]
    elif option == b"ID" and len(words) > 1:
        ids = {parse_integer(word, "ERR Invalid client ID") for word in words[1:]}
        chosen = [each for each in chosen if each.id in ids]
    elif words:
        raise CommandError(SYNTAX_ERROR)
    return Verbatim("".join(map(_client_line, chosen)).encode())


@connection.reads("CLIENT KILL filter [value ...]", "Close connections by address, or by the"
                  " filters ID, ADDR, LADDR, TYPE, USER and SKIPME.")  # fmt: skip
def client_kill(client: Client, *words: bytes) -> Reply:
    old_form = len(words) == 1
    if old_form:
        words = (b"ADDR", words[0], b"SKIPME", b"no")
    filters = {word.upper(): value for word, value in zip(words[::2], words[1::2])}
    skip_me = filters.pop(b"SKIPME", b"yes").lower()
    known = filters.keys() <= CLIENT_FILTERS.keys()
    if len(words) % 2 or skip_me not in (b"yes", b"no") or not known:
        raise CommandError(SYNTAX_ERROR)
    chosen = []
    for each in client.state.clients.values():
        # Evaluate all filters, because each of them can raise an error.
        matches = [CLIENT_FILTERS[name](each, value) for name, value in filters.items()]
        if all(matches) and not (each is client and skip_me == b"yes"):
            chosen.append(each)
    if old_form and not chosen:
        raise CommandError("ERR No such client")
    for each in chosen:
        if each is client:
            client.close("CLIENT KILL", logging.INFO)  # the reply is still sent
        else:
            each.disconnect(f"CLIENT KILL by client {client.id}")
    return OK if old_form else len(chosen)


@connection.reads("CLIENT UNBLOCK client-id [TIMEOUT|ERROR]", "Unblock a blocked client.", raw=True)
def client_unblock(client: Client, client_id: bytes, *words: bytes) -> Reply:
    reason = words[0].upper() if words else b"TIMEOUT"
    if reason not in (b"TIMEOUT", b"ERROR") or len(words) > 1:
        raise CommandError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
    other = client.state.clients.get(parse_integer(client_id))
    if other is None or other.blocked is None or other.blocked.done:
        return 0
    error = CommandError("UNBLOCKED client unblocked via CLIENT UNBLOCK")
    client.state.blocked.unblock(other.blocked, error if reason == b"ERROR" else NULL_ARRAY)
    return 1


@connection.controls("CLIENT REPLY ON|OFF|SKIP", "Turn replies on or off, or skip the next reply.")
def client_reply(client: Client, mode: str) -> Reply:
    if mode != "SKIP" or client.reply_mode != "OFF":
        client.reply_mode = mode
    return OK if client.reply_mode == "ON" else NO_REPLY


# ----------------------------------------------------------------------------
# Commands: server
# ----------------------------------------------------------------------------

server = Family("server")

server.reads("DBSIZE", "Return the number of keys.")(lambda client: len(client.keyspace))


@server.writes("FLUSHALL [ASYNC|SYNC]", "Delete every key.")
@server.writes("FLUSHDB [ASYNC|SYNC]", "Delete every key.")
def flushall(client: Client, **mode: bool) -> Reply:
    client.keyspace.clear()
    return OK


def _require_persistence(client: Client) -> Persistence:
    if client.state.persistence is None:
        raise CommandError("ERR no file to save to; start the server with --db FILE")
    return client.state.persistence


@server.reads("SAVE", "Save all changes to the file of --db and wait for the end.")
def save(client: Client) -> Reply:
    blocked, unblock = BlockedClient(client), client.state.blocked.unblock
    _require_persistence(client).request(
        lambda error: unblock(blocked, CommandError(f"ERR {error}") if error else OK)
    )
    return client.state.blocked.block(blocked)


@server.reads("BGSAVE [SCHEDULE]", "Start to save all changes to the file of --db.")
def bgsave(client: Client, **when: bool) -> Reply:
    _require_persistence(client).request(lambda error: None)
    return Status(b"Background saving started")


@server.reads("LASTSAVE", "Return the time of the last save in seconds since 1970.")
def lastsave(client: Client) -> Reply:
    return int(_require_persistence(client).saved_at)


@server.reads("TIME", "Return the seconds since 1970 and the microseconds of the current second.")
def time_(client: Client) -> Reply:
    return [b"%d" % part for part in divmod(time.time_ns() // 1000, 1_000_000)]


@server.controls("MONITOR", "Receive every command that any client sends.")
def monitor(client: Client) -> Reply:
    client.state.pubsub.monitor(client)
    for each in client.state.clients.values():
        each.slow_path = True
    return OK


@server.reads("MEMORY USAGE key [SAMPLES size]", "Return the bytes that a key and its value use.")
def memory_usage(client: Client, key: bytes, *, samples: int = 0) -> Reply:
    if samples < 0:
        raise CommandError(SYNTAX_ERROR)
    return client.keyspace.memory_usage(key) if key in client.keyspace else None


@server.reads("DEBUG SLEEP seconds", "Delay the reply to this client, but not to other clients.")
def debug_sleep(client: Client, seconds: bytes) -> Reply:
    duration = parse_float(seconds)
    if not 0 <= duration <= MAX_SLEEP:
        raise CommandError(f"ERR the time to sleep must be from 0 to {MAX_SLEEP:g} seconds")
    if not client.can_block:
        raise CommandError("ERR DEBUG SLEEP is not allowed in a transaction")
    blocked = BlockedClient(client, deadline=time.monotonic() + duration)
    blocked.reply = OK
    return client.state.blocked.block(blocked)


#: The limits that CONFIG SET can change: their names in LIMITS, by parameter.
_CHANGEABLE_LIMITS = {
    limit.parameter: name for name, limit in LIMITS.items() if name != "max_clients"
}


def _parse_setting(parameter: str, text: str) -> Any:
    # Return the value in a text, or raise ValueError with Redis's text.
    if parameter == "notify-keyspace-events":
        if not set(text) <= set(EVENT_CLASSES):
            raise ValueError("Invalid event class character. Use 'Ag$lshzxeKEtmdn'.")
        return text
    if parameter == "maxmemory-policy":
        if text.lower() not in POLICIES:
            raise ValueError(f"argument(s) must be one of the following: {', '.join(POLICIES)}")
        return text.lower()
    if parameter not in _CHANGEABLE_LIMITS:
        raise ValueError("can't set immutable config")
    limit = LIMITS[_CHANGEABLE_LIMITS[parameter]]
    if limit.unit == "bytes":
        try:
            parse_size(text)
        except ValueError:
            raise ValueError("argument must be a memory value") from None
    return limit.parse(text)


def _change_setting(client: Client, parameter: str, value: Any) -> None:
    if parameter == "notify-keyspace-events":
        client.state.events.configure(value)
    elif parameter == "maxmemory-policy":
        client.keyspace.policy = value
    else:
        setattr(client.settings, _CHANGEABLE_LIMITS[parameter], value)
    if parameter == "maxmemory":
        client.keyspace.memory_limit = value or math.inf
        # Like Redis, evict keys at once. If that is not possible, later writes return an error.
        with contextlib.suppress(CommandError):
            client.keyspace.free_memory()


def _limit_parameters(client: Client) -> dict[str, object]:
    settings = client.settings
    return {each.parameter: each.format(getattr(settings, name)) for name, each in LIMITS.items()}


def _config_parameters(client: Client) -> dict[str, object]:
    return {
        "appendonly": "no",
        "bind": "127.0.0.1",
        "databases": 1,
        "dbfilename": client.settings.db or "",
        "maxmemory-policy": client.keyspace.policy,
        "maxmemory-samples": LRU_SAMPLES,
        "notify-keyspace-events": client.state.events,
        "port": client.settings.tcp or 0,
        "save": "1 1" if client.state.persistence else "",
        **_limit_parameters(client),
    }


@server.reads("CONFIG GET parameter [parameter ...]", "Return the settings that match a pattern.")
def config_get(client: Client, *patterns: bytes) -> Reply:
    matchers = [compile_glob(pattern.lower()) for pattern in patterns]
    return {
        name.encode(): str(value).encode("utf-8", "backslashreplace")
        for name, value in _config_parameters(client).items()
        if any(matches(name.encode()) for matches in matchers)
    }


@server.reads("CONFIG SET parameter value [parameter value ...]", "Change settings.", raw=True)
def config_set(client: Client, *words: bytes) -> Reply:
    if len(words) % 2:
        raise CommandError(SYNTAX_ERROR)
    known, changes = _config_parameters(client), {}
    for word, value in zip(words[::2], words[1::2]):
        name = _printable(word).lower()
        if name not in known:
            reason = "Unknown option or number of arguments for CONFIG SET"
            raise CommandError(f"ERR {reason} - '{name}'")
        try:
            if name in changes:
                raise ValueError("duplicate parameter")
            changes[name] = _parse_setting(name, _printable(value))
        except ValueError as error:
            reason = f"CONFIG SET failed (possibly related to argument '{name}')"
            raise CommandError(f"ERR {reason} - {error}") from None
    # All values are valid here, so either every setting changes or none.
    for name, changed in changes.items():
        _change_setting(client, name, changed)
    return OK


server.reads("COMMAND COUNT", "Return the number of commands.")(
    lambda client: len(_container_names())
)
server.reads("COMMAND", "Return the arity, flags and key positions of every command.")(
    lambda client: list(map(_command_facts, _container_names()))
)
server.reads("COMMAND LIST", "Return the names of all commands and subcommands.")(
    lambda client: list(dict.fromkeys([*_container_names(), *map(_redis_name, all_commands())]))
)


@server.reads("COMMAND DOCS [command ...]", "Return the documentation of commands.")
def command_docs(client: Client, *names: bytes) -> Reply:
    wanted = {name.lower() for name in names}
    chosen: dict[bytes, Any] = {}
    for entry in all_commands():
        name = _redis_name(entry)
        container, _, subcommand = name.partition(b"|")
        if name in wanted or not (wanted or subcommand):
            chosen.setdefault(name, {}).update(_docs(entry))
        if subcommand and (container in wanted or not wanted):
            top = {**_docs(entry), b"summary": b"See the subcommands."}
            del top[b"arguments"]
            chosen.setdefault(container, top).setdefault(b"subcommands", {})[name] = _docs(entry)
    return chosen


def all_commands() -> list[Command]:
    """Return the command table's entries in the order of declaration."""
    return [*COMMANDS.values(), *SUBCOMMANDS.values()]


def _redis_name(entry: Command) -> bytes:
    return entry.name.lower().replace(" ", "|").encode()


def _container_names() -> list[bytes]:
    return list(dict.fromkeys(_redis_name(entry).split(b"|")[0] for entry in all_commands()))


def _command_facts(name: bytes) -> Reply:
    entry = COMMANDS.get(name.upper())
    empty = SetReply()  # ACL categories, tips, key specifications
    if entry is None:
        return [name, -2, empty, 0, 0, 0, empty, empty, empty, []]
    access = b"write" if entry.access in ("writes", "grows") else b"readonly"
    flags = [b"pubsub" if entry.group == "pubsub" else access]
    flags += [b"denyoom"] * entry.grows + [b"blocking"] * ("timeout" in entry.usage)
    is_fixed = entry.max_arguments == entry.min_arguments
    arity = entry.min_arguments if is_fixed else -entry.min_arguments
    flag_set = SetReply(map(Status, flags))
    return [name, arity, flag_set, *entry.key_positions, empty, empty, empty, []]


def _docs(entry: Command) -> dict[bytes, Any]:
    arguments: list[dict[bytes, Any]] = []
    for item in entry.usage_items[entry.name_words :]:
        names = item.strip("[]").encode().split()
        repeated = arguments[len(arguments) - len(names) + 1 :]
        if names[-1] == b"..." and [each[b"name"] for each in repeated] == names[:-1]:
            # [value ...] repeats the arguments before it.
            block = {b"name": b"data", b"type": b"block", b"arguments": repeated}
            docs = repeated[0] if len(repeated) == 1 else block
            arguments[-len(repeated) :] = [{**docs, b"flags": SetReply([Status(b"multiple")])}]
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
        argument_type = "key" if name == "key" else "string" if words else "pure-token"
        docs = {b"name": name.encode(), b"type": argument_type.encode()}
        if token:
            docs[b"token"] = token.encode()
    flags = [b"optional"] * item.startswith("[") + [b"multiple"] * ("..." in item)
    return {**docs, b"flags": SetReply(map(Status, flags))} if flags else docs


@server.reads("INFO [section ...]", "Return the state of the server, or the given sections of it.")
def info(client: Client, *names: bytes) -> Reply:
    wanted = {name.decode("latin-1").lower() for name in names}
    everything = not wanted or wanted & {"all", "default", "everything"}
    blocks = [
        f"# {title}\r\n" + "".join(f"{name}:{value}\r\n" for name, value in fields.items())
        for title, fields in _info_sections(client).items()
        if everything or title.lower() in wanted
    ]
    return Verbatim("\r\n".join(blocks).encode("utf-8", "replace"))


def _info_sections(client: Client) -> dict[str, dict[str, object]]:
    state, keyspace, settings = client.state, client.keyspace, client.settings
    uptime, times = int(time.monotonic() - state.started_at), os.times()
    used, limit = keyspace.used_memory, settings.max_memory
    limits = _limit_parameters(client)
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
            "address": state.address,
            "uptime_in_seconds": uptime,
            "uptime_in_days": uptime // 86400,
        },
        "Clients": {
            "connected_clients": len(state.clients),
            "blocked_clients": len(state.blocked.clients),
            "maxclients": settings.max_clients,
        },
        "Limits": {name.replace("-", "_"): value for name, value in limits.items()},
        "Memory": {
            "used_memory": used,
            "used_memory_human": f"{used / 1024**2:.2f}M",
            "maxmemory": int(limit),
            "maxmemory_human": f"{limit / 1024**2:.2f}M",
            "maxmemory_policy": keyspace.policy,
        },
        "Persistence": _persistence_fields(state.persistence),
        "Stats": {
            "total_connections_received": state.connections,
            "total_commands_processed": state.commands,
            "expired_keys": keyspace.expired,
            "evicted_keys": keyspace.evicted,
            "pubsub_channels": len(state.pubsub.channels),
            "pubsub_patterns": len(state.pubsub.patterns),
        },
        "Replication": {"role": "master", "connected_slaves": 0},
        "CPU": {"used_cpu_sys": f"{times.system:.6f}", "used_cpu_user": f"{times.user:.6f}"},
        "Cluster": {"cluster_enabled": 0},
        "Keyspace": {"db0": f"keys={len(keyspace)},expires={keyspace.expiring}"}
        if len(keyspace)
        else {},
    }


def _persistence_fields(file: Persistence | None) -> dict[str, object]:
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


@server.reads("HELP [command]", "Return the usage of one command or of all commands.")
def help_(client: Client, name: bytes | None = None) -> Reply:
    chosen = all_commands()
    if name is not None:
        wanted = _printable(name[:ERROR_EXCERPT]).upper()
        chosen = [entry for entry in chosen if entry.name.split()[0] == wanted]
        if not chosen:
            raise CommandError(f"ERR unknown command '{wanted}'; HELP lists all commands")
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
    # to do so. Windows replaces the last two, GENERIC_WRITE and GENERIC_ALL; Wine keeps them.
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

    def _bind(library: Any, name: str, restype: Any, errcheck: Any, *argtypes: Any) -> Any:
        function = getattr(library, name)
        function.restype = restype
        if errcheck is not None:
            function.errcheck = errcheck
        function.argtypes = argtypes
        return function

    # ctypes calls an errcheck with the result of a function. After a failure, these raise the
    # OSError of GetLastError; the second one accepts that DisconnectNamedPipe finds no client.
    def _nonzero(result: int, function: Any, arguments: Any) -> int:
        if not result:
            raise ctypes.WinError(ctypes.get_last_error())
        return result

    def _nonzero_or_not_connected(result: int, function: Any, arguments: Any) -> int:
        not_connected = ctypes.get_last_error() == ERROR_PIPE_NOT_CONNECTED
        return result if not_connected else _nonzero(result, function, arguments)

    def _valid_handle(result: int, function: Any, arguments: Any) -> int:
        return _nonzero(0 if result == INVALID_HANDLE_VALUE else result, function, arguments)

    # Private library objects, because prototypes set on ctypes.windll apply to the whole process.
    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
    HANDLE, DWORD, BOOL, LPVOID = wintypes.HANDLE, wintypes.DWORD, wintypes.BOOL, wintypes.LPVOID
    LPDWORD, LPOVERLAPPED = wintypes.LPDWORD, ctypes.POINTER(OVERLAPPED)

    # The first line of a prototype has its result and its errcheck, the second one its arguments.
    # fmt: off
    CreateNamedPipeW = _bind(_kernel32, "CreateNamedPipeW", HANDLE, _valid_handle,
        wintypes.LPCWSTR, *[DWORD] * 6, ctypes.POINTER(SECURITY_ATTRIBUTES))
    DisconnectNamedPipe = _bind(_kernel32, "DisconnectNamedPipe", BOOL, _nonzero_or_not_connected,
        HANDLE)
    CreateEventW = _bind(_kernel32, "CreateEventW", HANDLE, _nonzero,
        LPVOID, BOOL, BOOL, wintypes.LPCWSTR)
    SetEvent = _bind(_kernel32, "SetEvent", BOOL, _nonzero, HANDLE)
    CloseHandle = _bind(_kernel32, "CloseHandle", BOOL, _nonzero, HANDLE)
    LocalFree = _bind(_kernel32, "LocalFree", wintypes.HLOCAL, None, wintypes.HLOCAL)
    GetCurrentProcess = _bind(_kernel32, "GetCurrentProcess", HANDLE, None)
    OpenProcessToken = _bind(_advapi32, "OpenProcessToken", BOOL, _nonzero,
        HANDLE, DWORD, ctypes.POINTER(HANDLE))
    GetTokenInformation = _bind(_advapi32, "GetTokenInformation", BOOL, _nonzero,
        HANDLE, ctypes.c_int, LPVOID, DWORD, LPDWORD)
    ConvertSidToStringSidW = _bind(_advapi32, "ConvertSidToStringSidW", BOOL, _nonzero,
        LPVOID, ctypes.POINTER(LPVOID))
    ConvertStringSecurityDescriptorToSecurityDescriptorW = _bind(
        _advapi32, "ConvertStringSecurityDescriptorToSecurityDescriptorW", BOOL, _nonzero,
        wintypes.LPCWSTR, DWORD, ctypes.POINTER(LPVOID), LPDWORD)
    ConvertSecurityDescriptorToStringSecurityDescriptorW = _bind(
        _advapi32, "ConvertSecurityDescriptorToStringSecurityDescriptorW", BOOL, _nonzero,
        LPVOID, DWORD, DWORD, ctypes.POINTER(LPVOID), LPDWORD)
    # The next functions have no errcheck, because they also fail in normal operation (pending I/O).
    GetSecurityInfo = _bind(_advapi32, "GetSecurityInfo", DWORD, None,
        HANDLE, ctypes.c_int, DWORD, LPVOID, LPVOID, LPVOID, LPVOID, ctypes.POINTER(LPVOID))
    WaitNamedPipeW = _bind(_kernel32, "WaitNamedPipeW", BOOL, None, wintypes.LPCWSTR, DWORD)
    ConnectNamedPipe = _bind(_kernel32, "ConnectNamedPipe", BOOL, None, HANDLE, LPOVERLAPPED)
    ReadFile = _bind(_kernel32, "ReadFile", BOOL, None,
        HANDLE, LPVOID, DWORD, LPDWORD, LPOVERLAPPED)
    WriteFile = _bind(_kernel32, "WriteFile", BOOL, None,
        HANDLE, wintypes.LPCVOID, DWORD, LPDWORD, LPOVERLAPPED)
    GetOverlappedResult = _bind(_kernel32, "GetOverlappedResult", BOOL, None,
        HANDLE, LPOVERLAPPED, LPDWORD, BOOL)
    GetNamedPipeClientProcessId = _bind(_kernel32, "GetNamedPipeClientProcessId", BOOL, None,
        HANDLE, wintypes.PULONG)
    OpenProcess = _bind(_kernel32, "OpenProcess", HANDLE, None, DWORD, BOOL, DWORD)
    QueryFullProcessImageNameW = _bind(_kernel32, "QueryFullProcessImageNameW", BOOL, None,
        HANDLE, DWORD, wintypes.LPWSTR, LPDWORD)
    PeekNamedPipe = _bind(_kernel32, "PeekNamedPipe", BOOL, None,
        HANDLE, LPVOID, DWORD, LPDWORD, LPDWORD, LPDWORD)
    CancelIoEx = _bind(_kernel32, "CancelIoEx", BOOL, None, HANDLE, LPOVERLAPPED)
    WaitForMultipleObjects = _bind(_kernel32, "WaitForMultipleObjects", DWORD, None,
        DWORD, LPVOID, BOOL, DWORD)
    HandlerRoutine = ctypes.WINFUNCTYPE(BOOL, DWORD)
    SetConsoleCtrlHandler = _bind(_kernel32, "SetConsoleCtrlHandler", BOOL, None,
        HandlerRoutine, BOOL)
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
        token = HANDLE()
        OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, ctypes.byref(token))
        try:
            # The buffer receives TOKEN_USER: a pointer to the SID, then the SID (up to 68 bytes).
            user = (ctypes.c_void_p * 32)()
            size = ctypes.byref(DWORD())
            GetTokenInformation(token, TOKEN_USER_CLASS, user, ctypes.sizeof(user), size)
            return string_sid(user[0])
        finally:
            CloseHandle(token)

    def security_attributes(sddl: str) -> SECURITY_ATTRIBUTES:
        """Return attributes with the security descriptor of an SDDL string.

        The caller frees the descriptor with LocalFree. An invalid string raises OSError.
        """
        descriptor = LPVOID()
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
            # Allow all accounts but no network logon; PIPE_REJECT_REMOTE_CLIENTS also rejects it.
            "users": f"(D;;GA;;;NU)(A;;{CLIENT_RIGHTS:#x};;;AU)",
        }
        if access not in client_entries:
            # Clients check the owner of the pipe, so Windows must not choose a default owner.
            has_owner = re.match("(G:[^:]*)?O:", access)
            return access if has_owner else f"O:{sid}{access}"
        # This account comes before the entry that denies network logons, because a server that is
        # started over SSH is itself a network logon.
        return f"O:{sid}G:{sid}D:P(A;;GA;;;SY)(A;;GA;;;{sid}){client_entries[access]}"

    def effective_access(handle: int) -> tuple[str, list[str]]:
        """Return a pipe's owner and ACL in SDDL, and the SIDs of other accounts that can serve it.

        These SIDs have any of SERVER_RIGHTS and are not this account, the owner, SYSTEM or
        Administrators. Raises OSError if Windows does not return the security descriptor.
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
        if acl is None:
            return [EVERYONE]  # a null ACL grants all rights to everyone
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
            QueryFullProcessImageNameW(handle, 0, path, ctypes.byref(DWORD(len(path))))
            return path.value  # "" if the call failed
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
    thread uses the outbox. push_mode, _interrupted and _write_error are set once; these three and
    outbox_bytes are read without ``_lock``. Only the own thread uses all other attributes. Lock
    order: the keyspace lock before a connection's lock, never the reverse.
    """

    #: True if each message is a text command; False if text commands end with a newline.
    message_mode = False
    #: True if the chunk that receive() returned last ends a message.
    end_of_message = True

    def __init__(self, client_address: str) -> None:
        self.client_address = client_address  #: The address that CLIENT LIST shows.
        self.push_mode = False
        # Input that arrived before receive() was called, each chunk with its end_of_message.
        self._inbox: collections.deque[tuple[bytes, bool]] = collections.deque()
        #: Bytes of memory that the inbox uses, and True if the inbox must not grow further.
        self.inbox_bytes, self.inbox_full = 0, False
        self._input_ended = False
        # Output that the system has not accepted yet, each part with its ``whole``.
        self._outbox: collections.deque[tuple[Any, bool]] = collections.deque()
        self.outbox_bytes = 0  #: Bytes of memory that unsent output uses; 0 if there is none.
        self._sent_at = 0.0  # time.monotonic() when the system last accepted output
        self._write_error: ConnectionLost | None = None  # the reason why nothing more can be sent
        self._lock = threading.Lock()
        self._closed = self._interrupted = False

    def receive(self) -> bytes | None:
        """Block until input arrives and return it; b"" is an empty message, None is the end."""
        if self._inbox:
            return self._next_buffered()
        while not self._interrupted:
            if self._wait(None):
                return self._read_available()
        return None

    def wait_for_input(self, timeout: float | None, may_buffer: Callable[[int], bool]) -> bool:
        """Block until input, wake() or the timeout in seconds, and put the input into the inbox.

        This method may return early. It returns False if the client has disconnected, the inbox is
        full, or interrupt() was called.
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

        Without this input, a client that sends many commands before it reads a reply would block.

        :param timeout: seconds without progress; each write that the system accepts is progress.
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
        """Return the client's process id and program path, or 0 and ""; fails after close()."""
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
        """Block; return True if input arrived, False after wake(), a timeout or a write."""
        raise NotImplementedError

    def _read_available(self) -> bytes | None:
        """Return the input that has arrived, or None at the end of input."""
        raise NotImplementedError

    def _fill_inbox(self, may_buffer: Callable[[int], bool]) -> bool:
        """Add the input that has arrived to the inbox; return False at the end of input."""
        chunk = self._read_available()
        if chunk is None:
            self._input_ended = True
            return False
        self.inbox_bytes += len(chunk) + CHUNK_OVERHEAD
        self.inbox_full = not may_buffer(self.inbox_bytes) or self.inbox_bytes > MAX_INBOX
        self._inbox.append((chunk, self.end_of_message))
        return True

    def _next_buffered(self) -> bytes:
        chunk, self.end_of_message = self._inbox.popleft()
        self.inbox_bytes -= len(chunk) + CHUNK_OVERHEAD
        self.inbox_full = False
        return chunk

    def _queue(self, data: Any, whole: bool, first: bool = False) -> None:
        (self._outbox.appendleft if first else self._outbox.append)((data, whole))
        self.outbox_bytes += len(data) + CHUNK_OVERHEAD

    def _dequeue(self) -> tuple[Any, bool]:
        """Remove the next output; join small parts, except messages that a pipe sends whole."""
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
    :raises TransportError: if the address cannot be served or, on Windows, its ACL cannot be read.
    """

    #: True if all accounts can connect; the word that error messages use for the address.
    open_to_all, address_word = False, "name"

    def __init__(self, address: str) -> None:
        self.address = address
        #: The security descriptor on Windows; the mode and owner of a Unix socket.
        self.access = ""
        #: SIDs of other accounts that can also serve the name (Windows).
        self.other_servers: list[str] = []
        #: Numbers of threads that accept and serve clients, and of those that wait for a client.
        #: Server._lock guards both.
        self.workers = self.spare_workers = 0

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
    """Block until a socket is ready or the wait times out; return the events of ready sockets."""
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
        # wake() writes to the second socket to end _wait(), which polls the first. Only _wait()
        # creates the pair, because most connections never need it: they wait in recv().
        self._waker: tuple[socket.socket, socket.socket] | None = None
        self._wake_sent = False

    def receive(self) -> bytes | None:
        # A blocking recv() is faster than _wait(), but wake() cannot end it.
        if self.push_mode or self._inbox or self._interrupted or not _DONTWAIT:
            return super().receive()
        try:
            return self._buffer[: self._socket.recv_into(self._buffer)] or None
        except OSError:  # after a reset, the next recv() finds the end of the input
            return self._read_available()

    def _read_available(self) -> bytes | None:
        try:
            return self._buffer[: self._socket.recv_into(self._buffer, 0, _DONTWAIT)] or None
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
            # Queue a view, because all subscribers of a channel share the bytes of a message.
            self._queue(memoryview(data)[sent:], whole)
        self.wake()

    def _send_now(self, data: bytes) -> int:
        """Send; return how many bytes were accepted, or all if the client has disconnected."""
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
                self._queue(memoryview(data)[sent:], whole, first=True)
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
        except BaseException as error:
            SocketListener.close(self)  # a subclass may not be ready for its own close()
            if not isinstance(error, OSError):
                raise
            # Windows reports a port that another program uses exclusively as WSAEACCES.
            denied = sys.platform == "win32" and isinstance(error, PermissionError)
            if denied or error.errno == errno.EADDRINUSE:
                raise self._address_in_use() from None
            raise self._cannot_serve(error) from error

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
            self.handle, self.wake_event = handle, None
            self.reading, self.writing = OVERLAPPED(), OVERLAPPED()
            try:
                self.reading.hEvent = CreateEventW(None, True, False, None)
                self.writing.hEvent = CreateEventW(None, True, False, None)
                self.wake_event = CreateEventW(None, False, False, None)
            except BaseException:
                self.close()
                raise

        def cancel(self, overlapped: OVERLAPPED) -> bool:
            """Cancel an operation and wait for its end; return True if it has succeeded anyway."""
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

        def _wait(self, timeout: float | None, reading: bool = True) -> bool:
            # While a write is pending, wait even if input has arrived, for _finish_write().
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
            """Call ReadFile unless a read is pending; return True if a result exists already."""
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
            # GetOverlappedResult reads the same two fields, but ctypes releases the GIL for each
            # call, and the thread can wait some milliseconds to acquire the GIL again.
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
                    self._queue(memoryview(data)[MAX_WRITE:], whole, first=True)
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

        :param access: a name of ACCESS_MODES, or an SDDL string.

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
            # WaitNamedPipeW is called first, which finds the instances of another server.
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
            """Read the security descriptor, and raise if no second instance can be created."""
            try:
                self.access, self.other_servers = effective_access(self._idle_instances[0].handle)
            except OSError as error:
                raise self._cannot_serve(f"cannot read its access list: {error}") from error
            try:
                # Windows checks the right to create instances only from the second instance on.
                CloseHandle(self._create_instance())
            except OSError as error:
                advice = "--access must give this account all rights (GA)"
                raise self._cannot_serve(f"cannot add an instance: {error}", advice) from error

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
            """Block until a client connects (True), or until interrupt() or a failure (False)."""
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
            if not disconnected:
                try:
                    handle = self._create_instance()  # before CloseHandle, to keep the name
                except OSError as error:
                    log.error("Cannot add an instance to %s, reusing one: %s", self.address, error)
                    disconnected = True  # unread data is lost, but the name keeps an instance
                else:
                    CloseHandle(instance.handle)
                    instance.handle = handle
            if disconnected:
                DisconnectNamedPipe(instance.handle)
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
                probe.settimeout(STOP_GRACE)  # connect() blocks while the queue is full
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
# Server: session, server, workers
# ----------------------------------------------------------------------------


def _is_http(request: Request) -> bool:
    # A web page can make a browser send an HTTP request to a TCP port, with commands in its body.
    words, terminator = request
    if terminator is None or not isinstance(words, list):
        return False
    return words[0].upper() in (b"POST", b"HOST:")


class Session(Client):
    """A client with its connection: reads requests, executes them and writes the replies.

    :param local_address: the address of the listener that accepted the connection.
    :param reject_http: True to close the connection if the client sends an HTTP request.

    Only the thread that serves the client calls :meth:`run` and uses _parser and _buffered_bytes.
    The keyspace lock guards the attributes of Client. command_started is read without a lock.
    """

    __slots__ = (
        "_buffered_bytes", "_parser", "_process", "_reject_http", "command_started", "connection",
    )  # fmt: skip

    def __init__(
        self, state: State, connection: Connection, local_address: str = "",
        password: bytes | None = None, reject_http: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(state, password)
        self.connection = connection
        self.address, self.local_address = connection.client_address, local_address
        self._reject_http = reject_http
        self._parser = RequestParser(connection.message_mode, state.settings)
        self._process = 0, ""
        #: The time.monotonic() when an incomplete command began to arrive; None if there is none.
        self.command_started: float | None = None
        self._buffered_bytes = 0  # bytes of unexecuted input that are counted as used memory

    def run(self) -> None:
        """Serve the client until the connection ends.

        :raises ConnectionLost: if a reply cannot be sent.
        """
        connection, parser = self.connection, self._parser
        receive, feed = connection.receive, parser.feed
        while not self.close_reason:
            chunk = receive()
            if chunk is None:
                return
            started, self.command_started = self.command_started, None
            parser.unauthenticated = not self.authenticated
            requests = feed(chunk, connection.end_of_message)
            if requests:
                started = None
            incomplete = parser.buffered_bytes
            if incomplete + connection.inbox_bytes != self._buffered_bytes:
                enough = self.may_buffer(connection.inbox_bytes)
                if not enough and incomplete > MEMORY_CHECK_THRESHOLD:
                    requests.append(parser.protocol_error(ProtocolError(OUT_OF_MEMORY)))
            while requests and not self.close_reason:
                if self._reject_http and any(map(_is_http, requests)):
                    self.close("HTTP request", logging.WARNING)
                    return
                self._execute_requests(requests)
                requests = []
                if parser.unauthenticated or parser.has_more:
                    # Parse the rest only now, because AUTH may have changed its limits.
                    parser.unauthenticated = not self.authenticated
                    requests = feed(b"")
                    incomplete = parser.buffered_bytes
            if incomplete:
                self.command_started = started or time.monotonic()

    def may_buffer(self, inbox_bytes: int) -> bool:
        """Count unexecuted input as used memory; return False if the memory limit is exceeded.

        :param inbox_bytes: bytes that the connection has received and the parser has not.
        """
        size, keyspace = self._parser.buffered_bytes + inbox_bytes, self.keyspace
        with keyspace.lock:
            keyspace.reserve(size - self._buffered_bytes)
            self._buffered_bytes = size
            if size > MEMORY_CHECK_THRESHOLD and keyspace.used_memory > keyspace.memory_limit:
                try:
                    keyspace.free_memory()
                except CommandError:
                    return False
        return True

    def release_input(self) -> None:
        """Stop counting unexecuted input as used memory, after run() has ended."""
        self.keyspace.reserve(-self._buffered_bytes)
        self._buffered_bytes = 0

    def _execute_requests(self, requests: list[Request]) -> None:
        state, connection = self.state, self.connection
        ready_keys, pending_output = state.blocked.ready_keys, self.pending_output
        unexecuted, more, terminator = iter(requests), True, self.terminator
        reply: Reply = NO_REPLY
        while more and not self.close_reason:
            output: list[bytes] = []
            size, next_clock_check = 0, TURN_CLOCK_BYTES
            more = stop = False
            # Acquire the lock once per turn, not once per command, and write all replies at once.
            with state.keyspace.lock:
                now = self.last_command_at = time.monotonic()
                for arguments, terminator in unexecuted:
                    reply = execute(self, arguments)
                    if reply.__class__ is bytes and terminator is None:
                        # The same bytes as from encode_resp(), without a call.
                        data = b"$%d\r\n%b\r\n" % (len(reply), reply)  # type: ignore[arg-type,str-format]
                    elif reply is OK and terminator is None and not self.close_reason:
                        data = b"+OK\r\n"
                    else:
                        self.terminator = terminator
                        data = self.encode(reply)
                        stop = bool(self.close_reason) or self.blocked is not None
                    if pending_output:
                        # Messages of this command to its own client come before its reply.
                        data = b"".join(pending_output) + data
                        pending_output.clear()
                        self.pending_bytes = 0
                    output.append(data)
                    if ready_keys:
                        state.blocked.serve_ready_keys()
                    size += len(data) + TURN_COMMAND_BYTES
                    if stop or size > next_clock_check:
                        if stop or size > TURN_BYTES or time.monotonic() > now + TURN_TIME:
                            more = True
                            break
                        next_clock_check += TURN_CLOCK_BYTES
                self.terminator = terminator
                state.commands += len(output)
                if arguments.__class__ is list and len(arguments[0]) < ERROR_EXCERPT:  # type: ignore[index]
                    self.last_command = arguments[0]  # type: ignore[index]
                # Suppressed replies send nothing, but an empty text reply is an empty message.
                has_output = output and (reply is not NO_REPLY or any(output))
                data = output[0] if len(output) == 1 else b"".join(output)
                push_mode = connection.push_mode
                if push_mode and has_output:
                    # Push while holding the lock, so that later messages come after these replies.
                    connection.push(data, terminator is not None)
                if state.pubsub.pending_clients:
                    state.pubsub.flush()
            if push_mode or (has_output and not connection.send(data, terminator is not None)):
                connection.flush(self.settings.reply_timeout, self.may_buffer)
            if self.blocked is not None:
                self._wait_while_blocked(self.blocked)

    def _wait_while_blocked(self, blocked: BlockedClient) -> None:
        # Wait for the reply of a blocking command, and send it.
        connection, blocked_clients = self.connection, self.state.blocked
        while not blocked.done:
            deadline = blocked.deadline
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                with self.keyspace.lock:
                    blocked_clients.unblock(blocked, blocked.reply)
            elif not connection.wait_for_input(remaining, self.may_buffer):
                if connection.inbox_full:
                    self.disconnect("sent more input than can be buffered while it was blocked")
                self.close("end of input while blocked")
                return
        data, whole = self.encode(blocked.reply), self.terminator is not None
        with self.keyspace.lock:
            self.blocked = None
            push_mode = connection.push_mode
            if push_mode and not blocked.suppress_reply:
                connection.push(data, whole)
        if push_mode or not (blocked.suppress_reply or connection.send(data, whole)):
            connection.flush(self.settings.reply_timeout, self.may_buffer)

    def timeout_reason(self, now: float) -> str:
        """Return the reason to disconnect the client if it has timed out, otherwise "".

        :param now: a time of :func:`time.monotonic`.
        """
        limit, started = self.settings.message_timeout, self.command_started
        if started is not None and 0 < limit < now - started:
            return f"incomplete command after --message-timeout ({limit:g} s)"
        limit = self.settings.idle_timeout
        # A client that is blocked, subscribed, or in the middle of a command or reply is not idle.
        busy = self.blocked is not None or started is not None or self.connection.outbox_bytes
        subscribed = self.subscription_count > 0 or self in self.state.pubsub.monitors
        if not (busy or subscribed) and 0 < limit < now - self.last_command_at:
            return f"idle for longer than --idle-timeout ({limit:g} s)"
        return ""

    def disconnect(self, reason: str) -> None:
        super().disconnect(reason)
        self.connection.abort()

    def expect_pushes(self) -> None:
        self.connection.expect_pushes()

    def can_queue(self, size: int) -> bool:
        unsent = self.connection.outbox_bytes + self.pending_bytes
        limit = self.settings.subscriber_buffer
        if unsent and unsent + size > limit:
            self.disconnect(f"output buffer exceeded --subscriber-buffer ({limit} bytes)")
        return not self.close_reason

    def push(self, data: bytes, whole: bool) -> None:
        self.connection.push(data, whole)

    def wake(self) -> None:
        self.connection.wake()

    def is_connected(self) -> bool:
        return self.connection.is_connected()

    def process(self) -> tuple[int, str]:
        if not self._process[1]:
            self._process = self.connection.process()
        return self._process


class Server:
    """A pipecache server inside this process.

    :param pipe: the name of the pipe, see :func:`pipe_address`.
    :param options: see :class:`Settings`.
    :raises ValueError: for an invalid option.

    As a context manager, it serves on background threads between :meth:`start` and :meth:`stop`.
    :meth:`serve_forever` calls both and blocks in between.

    ``_lock`` guards the sessions and the numbers of workers, including those in each listener.
    """

    def __init__(self, pipe: str = DEFAULT_PIPE, **options: Any) -> None:
        self._settings = Settings(pipe, **options)
        self.address = pipe_address(pipe)
        self._state = State(self._settings, self.address)
        if self._settings.db is not None:
            self._state.persistence = Persistence(self._settings.db, self._state.keyspace)
        self._listeners: list[Listener] = []
        # max_clients limits the clients of each listener.
        max_workers = self._settings.max_clients * (1 if self._settings.tcp is None else 2)
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers, "pipecache")
        self._process_id = self._workers = 0
        self._affinity: set[int] = set()
        self._lock = threading.Lock()
        self._worker_ended = threading.Condition(self._lock)
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._sessions: set[Session] = set()
        self._stopped_cleanly = False

    def start(self) -> None:
        """Open the pipe and serve it on background threads.

        :raises AddressInUse: if another program serves the name.
        :raises TransportError: if the pipe or port cannot be opened.
        :raises PersistenceError: if the file cannot be used.
        :raises RuntimeError: if the server was started before.
        """
        if self._listeners:
            raise RuntimeError("this Server was started before; create a new Server")
        self._process_id = os.getpid()
        if sys.platform == "linux":
            usable = sorted(os.sched_getaffinity(0))
            self._affinity = {usable[self._process_id % len(usable)]}
        keyspace, persistence = self._state.keyspace, self._state.persistence
        listeners: list[Listener] = [make_listener(self.address, self._settings.access)]
        try:
            if self._settings.tcp is not None:
                listeners.append(TCPListener(self._settings.tcp))
            if persistence is not None:
                persistence.open()  # clients that connect meanwhile wait to be accepted
                with keyspace.lock, contextlib.suppress(CommandError):
                    keyspace.free_memory()
                persistence.start()
        except BaseException:
            if persistence is not None:
                persistence.stop(0)
            for listener in listeners:
                listener.close()
            raise
        self._listeners = listeners
        # Since Python 3.9 the interpreter waits for the threads of a pool before it calls atexit
        # functions, so a host program that ends without stop() would hang.
        this = weakref.ref(self)
        getattr(threading, "_register_atexit", atexit.register)(lambda: _stop_at_exit(this()))
        self._log_start()
        thread = threading.Thread(None, self._run_housekeeping, "pipecache-cleaner", daemon=True)
        with self._lock:
            for listener in listeners:
                for _ in range(min(SPARE_LISTENERS, self._settings.max_clients)):
                    self._add_worker(listener)
            with contextlib.suppress(RuntimeError):
                thread.start()
            started = thread.is_alive() and all(listener.workers for listener in listeners)
        if not (started or self._stopping.is_set()):  # another thread may have called stop()
            self.stop()
            raise TransportError("Cannot start threads; end other programs or lower --max-clients")
        log.info("Ready to accept connections")

    def _log_start(self) -> None:
        facts = self.address, os.getpid(), __version__, *sys.version_info[:2]
        log.info("Serving %s (process %d, pipecache %s, Python %d.%d)", *facts)
        pipe, *ports = self._listeners
        accounts = ACCESS_MODES.get(self._settings.access, "the accounts of the SDDL string")
        log.info("Access: %s (%s)", accounts, pipe.access)
        for account in pipe.other_servers:
            log.warning(
                "Account %s has the right to serve this name too and could receive data that is"
                " meant for this server; grant it at most 0x12019b in --access", account,
            )  # fmt: skip
        password = "no password" if self._settings.password is None else "a password"
        for address in (port.address for port in ports):
            log.info("Serving %s, which every local account can reach, with %s", address, password)

    def stop(self) -> bool:
        """Let running commands finish, close every connection, save, and release the name.

        This takes at most STOP_TIMEOUT seconds, and then the time to save all changes; saving ends
        after SAVE_TIMEOUT seconds without progress.

        :returns: False if a command did not finish, so that its thread and the name are still in
            use, or if changes could not be saved.
        """
        # A forked child shares the sockets with its parent and must not close their connections.
        if not self._listeners or self._process_id != os.getpid():
            return True
        with self._lock:
            first = not self._stopping.is_set()
            self._stopping.set()
        if first:
            try:
                self._stop_workers()
                # Save before the name is released: the next server of this name needs the file.
                persistence = self._state.persistence
                saved = persistence is None or persistence.stop(SAVE_TIMEOUT)
                if self._workers:
                    log.error("%d commands still running after %g s", self._workers, STOP_TIMEOUT)
                else:
                    self._pool.shutdown()
                    for listener in self._listeners:
                        listener.close()
                    self._stopped_cleanly = saved
                    counts = self._state.commands, self._state.connections
                    log.info("Stopped after %d commands from %d clients", *counts)
            finally:
                self._stopped.set()
        while not self._stopped.wait(0.25):  # in slices, see serve_forever()
            pass
        return self._stopped_cleanly

    def _stop_workers(self) -> None:
        for listener in self._listeners:
            listener.interrupt()
        started = time.monotonic()
        with self._lock:
            # Repeat this, because a worker can begin to serve a client or to write at any time.
            while self._workers and time.monotonic() - started < STOP_TIMEOUT:
                late = time.monotonic() - started > STOP_GRACE
                for session in self._sessions:
                    (session.connection.abort if late else session.connection.interrupt)()
                self._worker_ended.wait(0.1)

    def serve_forever(self) -> None:
        """Start, block until stop() or an exception such as KeyboardInterrupt, and then stop.

        :raises AddressInUse: and other exceptions as :meth:`start` does.
        """
        try:
            self.start()
            # In slices, because on Windows Ctrl+C does not interrupt a longer wait.
            while not self._stopping.wait(0.25):
                pass
        finally:
            self.stop()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _add_worker(self, listener: Listener) -> None:
        # The caller holds self._lock, so the worker cannot end before it is counted.
        if self._stopping.is_set():
            return
        slot = [listener]
        try:
            self._pool.submit(self._work, slot)
        except RuntimeError as error:
            # The system cannot start a thread, but the task stays in the queue of the pool. The
            # empty slot makes the task return at once if another thread runs it later.
            slot.clear()
            log.error("Cannot start another worker thread: %s", error)
        else:
            self._workers += 1
            listener.workers += 1
            listener.spare_workers += 1

    def _work(self, slot: list[Listener]) -> None:
        # Accept a client, serve the client until it disconnects, and accept the next one.
        with self._lock:
            if not slot:
                return
            listener = slot[0]
        if sys.platform == "linux":
            # Threads that wait for CPython's GIL wake each other across processors, which takes
            # longer than most commands. So all workers run on one processor.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._affinity)
        try:
            while not self._stopping.is_set():
                self._serve_next(listener)
        finally:
            with self._lock:
                self._workers -= 1
                listener.workers -= 1
                listener.spare_workers -= 1
                self._worker_ended.notify_all()

    def _serve_next(self, listener: Listener) -> None:
        # A separate call, so that no local variable keeps the last session while the worker waits.
        try:
            connection = listener.accept()
        except (OSError, MemoryError) as error:
            log.error("Cannot accept a client, will retry in 0.5 s: %s", error)
            self._stopping.wait(0.5)
            return
        if connection is not None:
            try:
                self._serve(connection, listener)
            except Exception:
                log.exception("Internal error while serving a client")
            finally:
                connection.close()

    def _serve(self, connection: Connection, listener: Listener) -> None:
        # The system checks which accounts connect to the pipe. All accounts can reach a TCP port.
        is_open = listener.open_to_all
        password = self._settings.password if is_open else None
        session = Session(self._state, connection, listener.address, password, is_open)
        with self._lock:
            self._sessions.add(session)
            listener.spare_workers -= 1
            needs_worker = listener.spare_workers < SPARE_LISTENERS
            if needs_worker and listener.workers < self._settings.max_clients:
                self._add_worker(listener)
        with self._state.keyspace.lock:
            self._state.add_client(session)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("Client %d connected: %s", session.id, session.describe())
        try:
            session.run()
        except ConnectionLost as error:
            session.close(str(error), logging.INFO)
        finally:
            session.close("end of input")
            if log.isEnabledFor(session.close_level):
                facts = session.id, session.describe(), session.close_reason
                log.log(session.close_level, "Client %d (%s) disconnected: %s", *facts)
            with self._lock:
                self._sessions.discard(session)
                listener.spare_workers += 1
            with self._state.keyspace.lock:
                session.release_input()
                self._state.remove_client(session)

    def _run_housekeeping(self) -> None:
        # Remove expired keys, continue evictions and disconnect timed-out clients.
        last_check = time.monotonic()
        keyspace = self._state.keyspace
        while not self._stopping.wait(EXPIRE_INTERVAL):
            now = time.monotonic()
            try:
                if now - last_check > TIMEOUT_CHECK_INTERVAL:
                    last_check = now
                    self._disconnect_timed_out(now)
                more = True
                while more and not self._stopping.is_set():
                    with keyspace.lock:
                        more = keyspace.remove_expired(KEYS_PER_CYCLE)
                        more = more or keyspace.evict(KEYS_PER_CYCLE)
                        self._state.pubsub.flush()
            except Exception:
                # If this thread ended, keys would expire only when a client accesses them.
                log.exception("Internal error, or too little memory, in the housekeeping thread")

    def _disconnect_timed_out(self, now: float) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            reason = session.timeout_reason(now)
            if reason:
                session.disconnect(reason)


def _stop_at_exit(server: Server | None) -> None:
    if server is not None:
        server.stop()


# ----------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------


def _parse_option(limit: Limit, text: str) -> float:
    try:
        return limit.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).replace("argument ", "")) from None


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
        option("--" + name.replace("_", "-"), type=functools.partial(_parse_option, limit),
               metavar={"bytes": "SIZE", "seconds": "SECONDS"}.get(limit.unit, "N"),
               default=limit.default, help=f"{limit.description} (default: {_default_text(limit)})")
    option("--max-memory-policy", metavar="POLICY", default=POLICIES[0], choices=POLICIES,
           help="which keys to evict when --max-memory is reached:"
           f" {', '.join(POLICIES)} (default: %(default)s)")
    option("--access", metavar="ACCESS", default="user",
           help="accounts that can connect: user (this account), admins (this account and programs"
           " that run as administrator), users (all accounts of this machine), or an SDDL string on"
           " Windows (default: %(default)s)")
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
    except (ValueError, PersistenceError) as error:
        # The messages name the arguments of Server, such as password_file.
        names = "|".join(name for name in options if "_" in name)
        text = re.sub(rf"\b({names})\b", lambda name: "--" + name[0].replace("_", "-"), str(error))
        if sys.stderr is None:  # under pythonw.exe, where parser.error() prints nothing
            log.error("%s", text)
        parser.error(text)
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
    """Raise the limit on open files: a client uses up to three, and macOS allows only 256."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 3 * clients + 100
        if 0 <= soft < needed:  # RLIM_INFINITY is negative or very large
            needed = min(needed, hard) if hard >= 0 else needed
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _use_one_arena() -> None:
    # The GNU C library gives each thread an arena, and no thread uses the free memory of another
    # arena. The process would use up to twice the memory of its values.
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
    # Under pythonw.exe, which has no standard error, this handler discards the lines.
    handler = logging.StreamHandler()
    if file is not None:
        try:
            # FileHandler has the parameter ``errors`` only since Python 3.9.
            handler.stream = open(file, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"cannot write --log-file {file!r}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(log_level)


if __name__ == "__main__":
    sys.exit(main())
