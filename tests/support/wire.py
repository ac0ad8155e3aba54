"""Commands and replies of RESP as bytes."""

from __future__ import annotations

from typing import Pattern, Tuple, Union

#: The arguments of a command, as words or each by itself; and the exact reply, or its pattern.
Line = Tuple[Union[bytes, Tuple[bytes, ...]], Union[bytes, Pattern[bytes]]]

OK = b"+OK\r\n"

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

ABORTED = b"-EXECABORT Transaction discarded because of previous errors.\r\n"


def command(*arguments: bytes) -> bytes:
    """A command in RESP."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def bulk(value: bytes) -> bytes:
    """A bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(*replies: bytes) -> bytes:
    """An array of replies."""
    return b"*%d\r\n%b" % (len(replies), b"".join(replies))


def message(kind: bytes, *parts: bytes | int | None, resp: bytes = b"*") -> bytes:
    """What a subscriber is told: bytes, then a number or None."""
    told = [NIL if part is None else b":%d\r\n" % part if isinstance(part, int) else bulk(part)
            for part in parts]  # fmt: skip
    return resp + array(bulk(kind), *told)[1:]


def wrong_arity(name: bytes) -> bytes:
    return b"-ERR wrong number of arguments for '%b' command\r\n" % name


def protocol_error(text: bytes) -> bytes:
    return b"-ERR Protocol error: %b\r\n" % text


def end_of_reply(data: bytes, start: int = 0) -> int | None:
    """Where the reply ends that starts here, or None if it is not all there."""
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
