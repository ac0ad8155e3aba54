"""Tests of the parser and the encoder for text and RESP, without a connection."""

from __future__ import annotations

import tracemalloc
import unittest
from typing import Any

from pipecache import (
    OK,
    CommandError,
    PipecacheError,
    ProtocolError,
    RequestParser,
    Settings,
    Status,
    UnknownCommand,
    encode_resp,
    encode_text,
    parse_text_command,
    wrong_arity,
)
from tests.support.wire import PROTOCOL_ERRORS, command


def limited(**limits: float) -> Settings:
    """Return settings with limits below what an option accepts."""
    settings = Settings()
    for name, value in limits.items():
        setattr(settings, name, value)
    return settings


def parse(
    data: bytes, size: int = 0, framed: bool = False, limit: int = 1024 * 1024
) -> list[tuple[Any, bytes | None]]:
    """Return the requests in a stream that arrives ``size`` bytes at a time; errors are texts."""
    parser = RequestParser(framed, limited(max_message=limit))
    requests = []
    for start in range(0, len(data), size or len(data)):
        requests += parser.feed(data[start : start + (size or len(data))])
        if requests and isinstance(requests[-1][0], ProtocolError):
            break
    return [
        (str(arguments) if isinstance(arguments, PipecacheError) else arguments, terminator)
        for arguments, terminator in requests
    ]


class SplitTextTests(unittest.TestCase):
    """Text rule 3: words, quotes, and values that take the rest."""

    GOOD = (
        (b"GET city", [b"GET", b"city"]),
        (b"G city", [b"G", b"city"]),
        (b"  GET\t city  ", [b"GET", b"city"]),
        (b"PING", [b"PING"]),
        (b"G", [b"G"]),
        (b"SET city dubai", [b"SET", b"city", b"dubai"]),
        (b"set city new  york ", [b"set", b"city", b"new  york "]),
        (b"SET city  dubai", [b"SET", b"city", b" dubai"]),
        (b"SET   city\tdubai", [b"SET", b"city", b"dubai"]),
        (b"SET city ", [b"SET", b"city", b""]),
        (b"SET city", [b"SET", b"city"]),
        (b"SET city EX 10", [b"SET", b"city", b"EX 10"]),
        (b'SET city "dubai"', [b"SET", b"city", b'"dubai"']),
        (b"SET k line\nline\r\n", [b"SET", b"k", b"line\nline\r\n"]),
        (b"SET k \xff\x00\xc3\xa9", [b"SET", b"k", b"\xff\x00\xc3\xa9"]),
        (b'SET "my city" dubai', [b"SET", b"my city", b"dubai"]),
        (b'GET "my city"', [b"GET", b"my city"]),
        (b"GET 'my city'", [b"GET", b"my city"]),
        (b"GET it's", [b"GET", b"it's"]),
        (b'GET C:\\temp\\"new"', [b"GET", b'C:\\temp\\"new"']),
        (b'GET ""', [b"GET", b""]),
        (b"MSET a '1 2' b \"it's\"", [b"MSET", b"a", b"1 2", b"b", b"it's"]),
        (b"SETEX k 10 some value", [b"SETEX", b"k", b"10", b"some value"]),
        (b"PSETEX k 10  v", [b"PSETEX", b"k", b"10", b" v"]),
        (b"SETNX k a b", [b"SETNX", b"k", b"a b"]),
        (b"GETSET k a b", [b"GETSET", b"k", b"a b"]),
        (b"APPEND k  b", [b"APPEND", b"k", b" b"]),
        (b"ECHO  hello world", [b"ECHO", b" hello world"]),
        (b"PUBLISH news it is late", [b"PUBLISH", b"news", b"it is late"]),
    )
    BAD = (
        (b"", "ERR Empty command"),
        (b" \t ", "ERR Empty command"),
        (b'GET "city', "ERR Unbalanced quotes in the command"),
        (b"GET 'city\"", "ERR Unbalanced quotes in the command"),
        (b'GET "ci"ty', "ERR Unbalanced quotes in the command"),
        (b'SET "city dubai', "ERR Unbalanced quotes in the command"),
    )

    def test_good(self) -> None:
        for line, expected in self.GOOD:
            with self.subTest(line=line):
                self.assertEqual(parse_text_command(line), expected)

    def test_bad(self) -> None:
        for line, expected in self.BAD:
            with self.subTest(line=line):
                with self.assertRaises(CommandError) as caught:
                    parse_text_command(line)
                self.assertEqual(str(caught.exception), expected)


class EncodeTests(unittest.TestCase):
    """Replies in text and in RESP."""

    REPLIES: tuple[tuple[Any, bytes, bytes], ...] = (
        (b"dubai", b"dubai", b"$5\r\ndubai\r\n"),
        (b"", b"", b"$0\r\n\r\n"),
        (None, b"", b"$-1\r\n"),
        (OK, b"OK", b"+OK\r\n"),
        (Status(b"PONG"), b"PONG", b"+PONG\r\n"),
        (42, b"42", b":42\r\n"),
        (-2, b"-2", b":-2\r\n"),
        ([], b"", b"*0\r\n"),
        ([b"a", None, 3], b"a\n\n3", b"*3\r\n$1\r\na\r\n$-1\r\n:3\r\n"),
        ([b"a", [b"b"]], b"a\nb", b"*2\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n"),
        (
            CommandError("WRONGTYPE Operation against a key"),
            b"ERROR: Operation against a key",
            b"-WRONGTYPE Operation against a key\r\n",
        ),
        (
            UnknownCommand(b"FOO", [b"a", b"b"]),
            b"ERROR: Unknown command",
            b"-ERR unknown command 'FOO', with args beginning with: 'a' 'b' \r\n",
        ),
        (
            wrong_arity(b"GeT"),
            b"ERROR: wrong number of arguments for 'get' command",
            b"-ERR wrong number of arguments for 'get' command\r\n",
        ),
    )

    def test_replies(self) -> None:
        for reply, text, resp in self.REPLIES:
            with self.subTest(reply=reply):
                self.assertEqual(encode_text(reply), text)
                self.assertEqual(encode_resp(reply), resp)

    def test_a_list_has_the_line_ends_of_the_request(self) -> None:
        self.assertEqual(encode_text([b"a", b"b"], b"\r\n"), b"a\r\nb")

    def test_an_error_never_breaks_its_line(self) -> None:
        reply = UnknownCommand(b"a\r\nb", [b"\n+OK\r\n", b"x" * 1000, b"y"])
        encoded = encode_resp(reply)
        self.assertEqual(encoded.count(b"\n"), 1)
        self.assertLess(len(encoded), 400)


class TextRequestTests(unittest.TestCase):
    """Text rules 1 and 2: the end of a command, and of its reply."""

    STREAM: tuple[tuple[bytes, list[tuple[Any, bytes | None]]], ...] = (
        (b"GET a\n", [([b"GET", b"a"], b"\n")]),
        (b"GET a\r\n", [([b"GET", b"a"], b"\r\n")]),
        (b"GET a", []),
        (b"GET a\nGET b\r\nGET c", [([b"GET", b"a"], b"\n"), ([b"GET", b"b"], b"\r\n")]),
        (b"\n", [("ERR Empty command", b"\n")]),
        (b"\r\n", [("ERR Empty command", b"\r\n")]),
        (b'GET "a\nPING\n', [("ERR Unbalanced quotes in the command", b"\n"), ([b"PING"], b"\n")]),
        (b"PING\n" + command(b"GET", b"a"), [([b"PING"], b"\n"), ([b"GET", b"a"], None)]),
        (command(b"GET", b"a") + b"PING\n", [([b"GET", b"a"], None), ([b"PING"], b"\n")]),
        (command(b"PING") + b"\r\n" + command(b"PING"), [([b"PING"], None), ([b"PING"], None)]),
    )
    MESSAGES = (
        ([b"GET a"], [([b"GET", b"a"], b"")]),
        ([b"GET a\n"], [([b"GET", b"a"], b"\n")]),
        ([b"GET a\r\n"], [([b"GET", b"a"], b"\r\n")]),
        ([b"SET a b\nc"], [([b"SET", b"a", b"b\nc"], b"")]),
        ([b"SET a b\n\r\n"], [([b"SET", b"a", b"b\n"], b"\r\n")]),
        ([b""], [("ERR Empty command", b"")]),
        ([b"\r\n"], [("ERR Empty command", b"\r\n")]),
        ([b"PING", b"", b"PING"], [([b"PING"], b""), ("ERR Empty command", b""), ([b"PING"], b"")]),
        ([command(b"PING"), b"", b"\r\n"], [([b"PING"], None)]),
        ([command(b"PING")[:4], b"", command(b"PING")[4:]], [([b"PING"], None)]),
        ([command(b"PING") + b"GET a\nb"], [([b"PING"], None), ([b"GET", b"a\nb"], b"")]),
        ([b"GET a", command(b"PING")], [([b"GET", b"a"], b""), ([b"PING"], None)]),
    )

    def test_a_stream(self) -> None:
        for data, expected in self.STREAM:
            for size in (0, 1, 2, 5):
                with self.subTest(data=data, size=size):
                    self.assertEqual(parse(data, size), expected)

    def test_messages(self) -> None:
        for messages, expected in self.MESSAGES:
            with self.subTest(messages=messages):
                parser = RequestParser(True, Settings())
                requests = [request for each in messages for request in parser.feed(each)]
                shown = [
                    (str(arguments) if isinstance(arguments, CommandError) else arguments, end)
                    for arguments, end in requests
                ]
                self.assertEqual(shown, expected)

    def test_a_message_in_pieces(self) -> None:
        parser = RequestParser(True, Settings())
        self.assertEqual(parser.feed(b"SET k a\nb", end_of_message=False), [])
        self.assertEqual(parser.feed(b"\nc", end_of_message=False), [])
        self.assertEqual(parser.feed(b"d\n"), [([b"SET", b"k", b"a\nb\ncd"], b"\n")])

    def test_a_message_over_the_limit(self) -> None:
        expected = "ERR the command is longer than --max-message (100 bytes)"
        parser = RequestParser(True, limited(max_message=100))
        self.assertEqual(parser.feed(b"x" * 60, end_of_message=False), [])
        ((error, terminator),) = parser.feed(b"x" * 60, end_of_message=False)
        self.assertEqual((str(error), terminator), (expected, b""))
        self.assertEqual(parse(b"x" * 200, 10, limit=100), [(expected, b"\n")])
        self.assertEqual(parse(b"x" * 200 + b"\n", limit=100), [(expected, b"\n")])

    def test_a_long_line_in_small_chunks(self) -> None:
        (request,) = parse(b"SET k " + b"x" * 500_000 + b"\n", 50)
        self.assertEqual(len(request[0][2]), 500_000)


class RespRequestTests(unittest.TestCase):
    """RESP is a stream: wherever it is cut, the commands are the same."""

    STREAMS = (
        command(b"PING"),
        command(b"SET", b"key", b"value") + command(b"GET", b"key"),
        command(b"SET", b"k", b"two\r\nlines") + command(b"GET", b"k"),
        command(b"SET", b"k", b"\r\n") + command(b"SET", b"", b""),
        command(b"SET", b"k", b"$3\r\nabc\r\n*1\r\n"),
        command(b"SET", b"k", b"x" * 1024) + command(b"SET", b"k", b"x" * 1025),
        command(b"MSET", *[b"%d" % number for number in range(200)]),
        command(*[b"%d" % number for number in range(130)]),
        b"".join(command(b"INCR", b"n") for _ in range(300)),
    )

    def commands_of(self, stream: bytes) -> list[list[bytes]]:
        """Return the commands of a stream, found in the simplest way."""
        commands = []
        while stream:
            header, _, stream = stream.partition(b"\r\n")
            arguments = []
            for _ in range(int(header[1:])):
                length, _, stream = stream.partition(b"\r\n")
                arguments.append(stream[: int(length[1:])])
                stream = stream[int(length[1:]) + 2 :]
            commands.append(arguments)
        return commands

    def test_any_cut(self) -> None:
        for stream in self.STREAMS:
            expected = [(arguments, None) for arguments in self.commands_of(stream)]
            for framed in (False, True):
                for size in (0, 1, 2, 3, 5, 7, 64, len(stream) - 1):
                    with self.subTest(stream=stream[:40], size=size, framed=framed):
                        self.assertEqual(parse(stream, size, framed), expected)

    def test_every_cut_in_two(self) -> None:
        stream = command(b"SET", b"k", b"a\r\nb") + command(b"GET", b"k") + b"*0\r\n"
        expected = [(arguments, None) for arguments in self.commands_of(stream)[:-1]]
        for cut in range(len(stream)):
            parser = RequestParser(False, Settings())
            requests = parser.feed(stream[:cut]) + parser.feed(stream[cut:])
            with self.subTest(cut=cut):
                self.assertEqual(requests, expected)

    def test_empty_arrays_are_ignored(self) -> None:
        for stream in (b"*0\r\n", b"*-1\r\n", b"*-10\r\n"):
            with self.subTest(stream=stream):
                ping = command(b"PING")
                self.assertEqual(parse(stream + ping + stream + ping), [([b"PING"], None)] * 2)

    def test_protocol_errors(self) -> None:
        for data, expected, _ in PROTOCOL_ERRORS:
            for size in (0, 1000, 7):
                with self.subTest(data=data[:40], size=size):
                    stream = command(b"PING") + data
                    error = (f"ERR Protocol error: {expected.decode()}", None)
                    self.assertEqual(parse(stream, size), [([b"PING"], None), error])

    def test_a_command_over_its_limit(self) -> None:
        # Only bytes count, in however many chunks the command arrives.
        limits = limited(max_command=65536)
        for size, whole in ((516, True), (517, False)):
            stream = command(b"DEL", *[b"k" * size] * 127)
            for cut in (0, 10, 40_000):
                with self.subTest(size=size, cut=cut):
                    parser = RequestParser(False, limits)
                    requests = [
                        *parser.feed(stream[:cut]), *parser.feed(stream[cut:65536]),
                        *parser.feed(stream[65536:]),
                    ]  # fmt: skip
                    ((arguments, _),) = requests
                    self.assertEqual(isinstance(arguments, list), whole, arguments)

    def test_an_argument_over_the_limit(self) -> None:
        error = ("ERR Protocol error: invalid bulk length", None)
        self.assertEqual(parse(b"*1\r\n$101\r\n", limit=100), [error])

    def test_memory_follows_what_has_arrived(self) -> None:
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        parsers = [RequestParser(False, Settings()) for _ in range(200)]
        for parser in parsers:
            self.assertEqual(parser.feed(b"*1000000\r\n$536870912\r\nabc"), [])
        self.assertLess(tracemalloc.get_traced_memory()[1], 1_000_000)


if __name__ == "__main__":
    unittest.main()
