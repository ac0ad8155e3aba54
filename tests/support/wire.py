"""Commands and replies of RESP as bytes."""

from __future__ import annotations

from typing import Any, BinaryIO, Pattern, Tuple, Union

#: The arguments of a command, as words or one by one, and the exact reply or its pattern.
Line = Tuple[Union[bytes, Tuple[bytes, ...]], Union[bytes, Pattern[bytes]]]

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
RESET = b"+RESET\r\n"

QUEUED = b"+QUEUED\r\n"

NIL = b"$-1\r\n"

NIL_ARRAY = b"*-1\r\n"

EMPTY = b"*0\r\n"

SYNTAX = b"-ERR syntax error\r\n"

NOT_AN_INTEGER = b"-ERR value is not an integer or out of range\r\n"

NOT_A_FLOAT = b"-ERR value is not a valid float\r\n"

WRONG_TYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"

NEGATIVE = b"-ERR value is out of range, must be positive\r\n"

OVERFLOW = b"-ERR increment or decrement would overflow\r\n"

NOT_A_NUMBER = b"-ERR increment would produce NaN or Infinity\r\n"

EXPIRE_NX = b"-ERR NX and XX, GT or LT options at the same time are not compatible\r\n"

EXPIRE_GT_LT = b"-ERR GT and LT options at the same time are not compatible\r\n"

WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
NO_MULTI = b"-ERR EXEC without MULTI\r\n"
ABORTED = b"-EXECABORT Transaction discarded because of previous errors.\r\n"


#: A pattern of the elements of the reply to HELLO, for `%` and the version of RESP.
HELLO = (
    rb"\$6\r\nserver\r\n\$5\r\nredis\r\n\$7\r\nversion\r\n\$6\r\n7\.0\.15\r\n"
    rb"\$5\r\nproto\r\n:%d\r\n\$2\r\nid\r\n:\d+\r\n\$4\r\nmode\r\n\$10\r\nstandalone\r\n"
    rb"\$4\r\nrole\r\n\$6\r\nmaster\r\n\$7\r\nmodules\r\n\*0\r\n"
)


def command(*arguments: bytes) -> bytes:
    """Return a command in RESP."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def bulk(value: bytes) -> bytes:
    """Return a bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(*replies: bytes) -> bytes:
    """Return an array of replies."""
    return b"*%d\r\n%b" % (len(replies), b"".join(replies))


def message(kind: bytes, *parts: bytes | int | None, resp: bytes = b"*") -> bytes:
    """Return a message to a subscriber: bytes, then a number or None."""
    encoded = [NIL if part is None else b":%d\r\n" % part if isinstance(part, int) else bulk(part)
               for part in parts]  # fmt: skip
    return resp + array(bulk(kind), *encoded)[1:]


def wrong_arity(name: bytes) -> bytes:
    """Return the error for a command with too few or too many arguments."""
    return b"-ERR wrong number of arguments for '%b' command\r\n" % name


def unknown_command(name: bytes, *arguments: bytes) -> bytes:
    """Return the error for a command that does not exist."""
    shown = b"".join(b"'%b' " % argument for argument in arguments)
    return b"-ERR unknown command '%b', with args beginning with: %b\r\n" % (name, shown)


def unknown_subcommand(command_name: bytes, name: bytes) -> bytes:
    """Return the error for a subcommand that does not exist."""
    return b"-ERR unknown subcommand '%b'. Try %b HELP.\r\n" % (name, command_name)


def protocol_error(text: bytes) -> bytes:
    """Return the error after which the server ends a connection."""
    return b"-ERR Protocol error: %b\r\n" % text


def end_of_reply(data: bytes, start: int = 0) -> int | None:
    """Return the end of the reply that starts here, or None if a part of it is missing."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, end = data[start : start + 1], line_end + 2
    if kind in b"$=*~%>":
        size = int(data[start + 1 : line_end])
        if kind in b"$=":
            end += size + 2 if size >= 0 else 0
            return end if end <= len(data) else None
        for _ in range(2 * size if kind == b"%" else size):
            inner = end_of_reply(data, end)
            if inner is None:
                return None
            end = inner
    return end


#: A reply: the byte of its type, and bytes, int, None or a tuple of replies. In a map, keys and
#: values take turns.
Reply = Tuple[str, Any]


def read_reply(file: BinaryIO) -> Reply:
    """Read the next reply, in RESP2 or RESP3.

    :raises ConnectionError: if there is none, or if it is not whole.
    """
    line = file.readline()
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
        data = file.read(size + 2)
        if len(data) != size + 2 or not data.endswith(b"\r\n"):
            raise ConnectionError(f"a bulk string of {size} bytes ends in {data[-10:]!r}")
        return kind, data[:-2]
    size = 2 * size if kind == "%" else size
    return kind, tuple([read_reply(file) for _ in range(size)])


PING = command(b"PING")

#: Input that breaks the protocol and the error for it, which ends the connection; and True if
#: Redis 7.0 answers the same. Redis accepts longer arrays, does not look at the end of a value, and
#: stops looking for the end of a header at a NUL.
PROTOCOL_ERRORS: tuple[tuple[bytes, bytes, bool], ...] = (
    (b"*20000000000\r\n", b"invalid multibulk length", True),
    (b"*20000000\r\n", b"invalid multibulk length", False),
    (b"*abc\r\n", b"invalid multibulk length", True),
    (b"*\x00\r\n", b"invalid multibulk length", False),
    (b"*+1\r\n", b"invalid multibulk length", True),
    (b"*1_0\r\n", b"invalid multibulk length", True),
    (b"*\r\n", b"invalid multibulk length", True),
    (b"*1\r\nfoo\r\n", b"expected '$', got 'f'", True),
    (b"*1\r\nPING\r\n", b"expected '$', got 'P'", True),
    (b"*1\r\n$536870913\r\n", b"invalid bulk length", True),
    (b"*1\r\n$2000000000\r\n", b"invalid bulk length", True),
    (b"*1\r\n$9223372036854775807\r\n", b"invalid bulk length", True),
    (b"*1\r\n$-1\r\n", b"invalid bulk length", True),
    (b"*1\r\n$-10\r\n", b"invalid bulk length", True),
    (b"*1\r\n$blabla\r\n", b"invalid bulk length", True),
    (b"*1\r\n$1_0\r\n", b"invalid bulk length", True),
    (b"*1\r\n$+3\r\n", b"invalid bulk length", True),
    (b"*1\r\n$ 3\r\n", b"invalid bulk length", True),
    (b"*1\r\n$03\r\n", b"invalid bulk length", True),
    (b"*1\r\n$\xb2\r\n", b"invalid bulk length", True),
    (b"*1\r\n$4\r\nPINGxx", b"expected CRLF after a bulk string", False),
    (b"*" + b"1" * 70_000, b"too big mbulk count string", True),
    (b"*1\r\n$" + b"1" * 70_000, b"too big bulk count string", True),
    (b"*" + b"1" * 300_000, b"too big mbulk count string", True),
    (b"*1\r\n$" + b"1" * 300_000, b"too big bulk count string", True),
    (b"*1\r\n$" + b"1" * 300_000 + b"\r\n", b"too big bulk count string", True),
    (b"*\x00" + b"line " * 20_000, b"too big mbulk count string", True),
    # A NUL in a header, then lines: where a parser looks for the end of a C string, it goes on.
    (b"*\x00" + (b"x" * 1023 + b"\n") * 1000, b"too big mbulk count string", True),
    (b"*\x00" + (b"x" * 1022 + b"\r\n") * 1000, b"invalid multibulk length", False),
    (b"*1\r\n$\x00" + (b"x" * 1023 + b"\n") * 1000, b"too big bulk count string", True),
    (b"*1\r\n$\x00" + (b"x" * 1022 + b"\r\n") * 1000, b"invalid bulk length", False),
)
