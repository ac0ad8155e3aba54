"""Tests of --tcp: the port, the password, and requests of browsers."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import unittest
from typing import Any, Pattern, Tuple, Union

import pipecache
from pipecache import AddressInUse, Server, Settings
from tests.support import (
    DEADLINE,
    WINDOWS,
    Conversation,
    RawConnection,
    ServerProcess,
    TCPConnection,
    free_port,
    new_client,
    options_of_server,
    redis_address,
    start_server,
    unique_name,
    usage_error,
    wait_until,
)
from tests.support.internals import client_count
from tests.support.wire import (
    NIL,
    OK,
    RESET,
    SYNTAX,
    WRONGPASS,
    command,
    unknown_command,
    unknown_subcommand,
    wrong_arity,
)

NOAUTH = b"-NOAUTH Authentication required.\r\n"

#: The password, and the longest argument in bytes that is accepted before it.
PASSWORD = b"open sesame"
LONGEST = 16384

#: A command as words or as arguments, and the exact reply or its pattern.
Line = Tuple[Union[bytes, Tuple[bytes, ...]], Union[bytes, Pattern[bytes]]]

#: The replies of HELLO before and after authentication.
STRANGER = re.compile(
    rb"-NOAUTH HELLO must be called with the client already authenticated, .*\r\n"
)
WELCOME = re.compile(rb"%7\r\n\$6\r\nserver\r\n.*", re.DOTALL)

BEFORE: tuple[Line, ...] = (
    *((line, NOAUTH) for line in (b"GET k", b"SET k v", b"FLUSHALL", b"PING", b"ECHO x")),
    *((line, NOAUTH) for line in (b"MULTI", b"DISCARD", b"WATCH k", b"UNWATCH")),
    (b"EXEC", b"-EXECABORT Transaction discarded because of: " + NOAUTH[1:]),
    *((line, NOAUTH) for line in (b"INFO", b"COMMAND", b"DBSIZE", b"CLIENT ID", b"CLIENT LIST")),
    *((line, NOAUTH) for line in (b"CLIENT KILL TYPE normal", b"CLIENT REPLY OFF", b"TIME")),
    *((line, NOAUTH) for line in (b"CONFIG GET *", b"CONFIG SET maxmemory 1", b"SELECT 0")),
    # As in Redis, a wrong command gets its own error, which tells an unknown client nothing.
    (b"NOSUCH", unknown_command(b"NOSUCH")),
    (b"GET", wrong_arity(b"get")),
    (b"CLIENT NOSUCH", unknown_subcommand(b"CLIENT", b"NOSUCH")),
    (b"HELLO", STRANGER),
    (b"HELLO 3", STRANGER),
    (b"HELLO 3 SETNAME me", STRANGER),
    (b"HELLO 4", b"-NOPROTO unsupported protocol version\r\n"),
    (b"HELLO 3 AUTH default", b"-ERR Syntax error in HELLO option 'AUTH'\r\n"),
    (b"HELLO 3 AUTH default wrong", WRONGPASS),
    ((b"HELLO", b"3", b"AUTH", b"someone", PASSWORD), WRONGPASS),
    (b"AUTH", wrong_arity(b"auth")),
    (b"AUTH a b c", SYNTAX),
    (b"AUTH wrong", WRONGPASS),
    (b"AUTH default wrong", WRONGPASS),
    ((b"AUTH", b""), WRONGPASS),
    ((b"AUTH", PASSWORD + b" "), WRONGPASS),
    ((b"AUTH", PASSWORD[:-1]), WRONGPASS),
    ((b"AUTH", b"someone", PASSWORD), WRONGPASS),
    ((b"AUTH", PASSWORD, b"default"), WRONGPASS),
    ((b"AUTH", b"x" * LONGEST), WRONGPASS),
    (b"RESET", RESET),
    (b"GET k", NOAUTH),
)

AFTER: tuple[Line, ...] = (
    ((b"AUTH", PASSWORD), OK),
    (b"GET k", NIL),
    # After authentication, a wrong password changes nothing.
    (b"AUTH wrong", WRONGPASS),
    (b"HELLO 3 AUTH default wrong", WRONGPASS),
    (b"GET k", NIL),
    ((b"AUTH", b"default", PASSWORD), OK),
    (b"MSET " + b"k v " * 20, OK),
    (b"GET k", b"$1\r\nv\r\n"),
    (b"DEL k", b":1\r\n"),
    # After RESET the client has to authenticate again.
    (b"RESET", RESET),
    (b"GET k", NOAUTH),
    ((b"HELLO", b"3", b"AUTH", b"default", PASSWORD, b"SETNAME", b"me"), WELCOME),
    (b"CLIENT GETNAME", b"$2\r\nme\r\n"),
    (b"GET k", b"_\r\n"),
)

#: Input without a password, and the output before the server ends the connection.
LIMITS = (
    (b"*11\r\n", b"-ERR Protocol error: unauthenticated multibulk length\r\n"),
    (b"*1000000\r\n", b"-ERR Protocol error: unauthenticated multibulk length\r\n"),
    (b"*2\r\n$16385\r\n", b"-ERR Protocol error: unauthenticated bulk length\r\n"),
    (
        b"*2\r\n$4\r\nAUTH\r\n$536870912\r\n",
        b"-ERR Protocol error: unauthenticated bulk length\r\n",
    ),
    (
        command(b"AUTH", b"wrong") + command(b"MSET", *[b"x"] * 20),
        WRONGPASS + b"-ERR Protocol error: unauthenticated multibulk length\r\n",
    ),
)


class TCPConversation(Conversation):
    """A conversation over TCP."""

    def __init__(self, port: int) -> None:
        self.raw = TCPConnection(str(port))
        self._unread = b""


class PasswordTests(unittest.TestCase):
    """The commands that a client may use before and after authentication."""

    def setUp(self) -> None:
        self.serve()

    def serve(self) -> None:
        self.port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "password.txt")
            with open(path, "wb") as file:
                file.write(PASSWORD)
            start_server(self, "--tcp", str(self.port), "--password-file", path)

    def connect(self) -> Conversation:
        conversation = TCPConversation(self.port)
        self.addCleanup(conversation.raw.close)
        return conversation

    def check(self, conversation: Conversation, lines: tuple[Line, ...]) -> None:
        for number, (words, expected) in enumerate(lines):
            with self.subTest(number=number, words=words):
                arguments = words.split() if isinstance(words, bytes) else words
                reply = conversation.ask(*arguments)
                if isinstance(expected, bytes):
                    self.assertEqual(reply, expected)
                else:
                    self.assertIsNotNone(expected.fullmatch(reply), reply)

    def test_before_and_after(self) -> None:
        conversation = self.connect()
        self.check(conversation, BEFORE)
        self.check(conversation, AFTER)

    def test_quit(self) -> None:
        conversation = self.connect()
        self.assertEqual(conversation.ask(b"QUIT"), OK)
        self.assertTrue(conversation.raw.ended())

    def test_limits(self) -> None:
        for data, expected in LIMITS:
            with self.subTest(data=data[:40]):
                raw = self.connect().raw
                raw.send(data)
                self.assertEqual(raw.read(len(expected)), expected)
                while raw.receive():  # read until the end
                    pass

    def test_input_within_the_limits(self) -> None:
        conversation = self.connect()
        ten = [b"NOSUCH", *[b"x" * LONGEST] * 9]
        reply = conversation.ask(*ten)
        self.assertRegex(reply, b"^-ERR unknown command 'NOSUCH'")
        self.assertEqual(conversation.ask(b"AUTH", PASSWORD), OK)
        self.assertEqual(conversation.ask(b"SET", b"k", b"x" * LONGEST * 10), OK)

    def test_a_command_in_pieces(self) -> None:
        """The limits hold after a complete command, too."""
        for whole, reply in ((b"PING", NOAUTH), (b"AUTH wrong", WRONGPASS), (b"RESET", RESET)):
            for text in (command(b"AUTH", PASSWORD), b'AUTH "%b"\r\n' % PASSWORD):
                for cut in (1, 3, len(text) - 1):
                    raw = self.connect().raw
                    raw.send(command(*whole.split()) + text[:cut])
                    self.assertEqual(raw.read(len(reply)), reply)
                    raw.send(text[cut:])
                    self.assertIn(b"OK", raw.receive())

    def test_commands_right_after_the_password(self) -> None:
        """A client can send commands without waiting for the reply to AUTH."""
        for sent in (
            command(b"MSET", *[b"x"] * 20),
            command(b"SET", b"k", b"x" * (LONGEST + 1)),
        ):
            with self.subTest(sent=sent[:20]):
                raw = self.connect().raw
                raw.send(command(b"AUTH", PASSWORD) + sent)
                self.assertEqual(raw.read(2 * len(OK)), OK + OK)


@unittest.skipIf(WINDOWS, "redis-server does not run on Windows")
class RedisPasswordTests(PasswordTests):
    """The same tables on redis-server, which proves the tables."""

    def serve(self) -> None:
        self.name = redis_address(self)
        with contextlib.closing(Conversation(self.name).raw) as raw:
            self.assertEqual(raw.ask(command(b"CONFIG", b"SET", b"requirepass", PASSWORD)), OK)

    def connect(self) -> Conversation:
        conversation = Conversation(self.name)
        self.addCleanup(conversation.raw.close)
        return conversation


class BothDoorsTests(unittest.TestCase):
    """One server with a pipe and a port."""

    def serve(self, **options: Any) -> Server:
        self.port, self.name = free_port(), unique_name()
        alone = {"tcp_no_password": "password" not in options}
        server = Server(self.name, tcp=self.port, **alone, **options)
        server.start()
        self.addCleanup(server.stop)
        return server

    def tcp(self) -> TCPConnection:
        connection = TCPConnection(str(self.port))
        self.addCleanup(connection.close)
        return connection

    def pipe(self) -> RawConnection:
        connection = RawConnection(self.name)
        self.addCleanup(connection.close)
        return connection

    def test_the_pipe_and_the_port_share_the_keys(self) -> None:
        self.serve(password=PASSWORD)
        tcp, pipe = self.tcp(), self.pipe()
        self.assertEqual(tcp.ask(command(b"AUTH", PASSWORD)), OK)
        self.assertEqual(tcp.ask(command(b"SET", b"k", b"from tcp")), OK)
        # The pipe needs no password, because only the user can open it.
        self.assertEqual(pipe.ask(b"GET k\n"), b"from tcp\n")
        self.assertEqual(pipe.ask(b"SET k from the pipe\n"), b"OK\n")
        self.assertEqual(tcp.ask(b"GET k\n"), b"from the pipe\n")
        no_password = b"-ERR AUTH <password> called without any password configured "
        self.assertTrue(pipe.ask(command(b"AUTH", PASSWORD)).startswith(no_password))
        self.assertEqual(pipe.ask(command(b"RESET")), RESET)
        self.assertEqual(pipe.ask(b"GET k\n"), b"from the pipe\n")

    def test_in_text(self) -> None:
        self.serve(password=PASSWORD)
        tcp = self.tcp()
        for line, reply in (
            (b"GET k\n", b"ERROR: Authentication required.\n"),
            (b"\r\n", b"ERROR: Empty command\r\n"),
            (b"AUTH wrong\r\n", b"ERROR: invalid username-password pair or user is disabled.\r\n"),
            (b'AUTH "%b"\n' % PASSWORD, b"OK\n"),
            (b"GET k\n", b"\n"),
            (b"SET k " + b"x" * LONGEST + b"\n", b"OK\n"),
        ):
            with self.subTest(line=line[:40]):
                self.assertEqual(tcp.ask(line), reply)

    def test_the_limit_in_text(self) -> None:
        self.serve(password=PASSWORD)
        for ending in (b"", b"\n"):
            tcp = self.tcp()
            with self.assertLogs("pipecache", "WARNING"):
                tcp.send(b"AUTH " + b"x" * (LONGEST + 1) + ending)
                expected = (
                    b"ERROR: the command is longer than the limit before AUTH (16384 bytes)\n"
                )
                self.assertEqual(tcp.read(len(expected)), expected)
                self.assertTrue(tcp.ended())

    def test_without_a_password(self) -> None:
        with self.assertLogs("pipecache", "INFO") as logged:
            self.serve()
        expected = (
            f"Serving 127.0.0.1:{self.port}, which every local account can reach, with no password"
        )
        self.assertIn(expected, "\n".join(logged.output))
        tcp = self.tcp()
        self.assertEqual(tcp.ask(b"SET k v\n"), b"OK\n")
        self.assertEqual(tcp.ask(b"GET k\n"), b"v\n")
        self.assertRegex(tcp.ask(command(b"AUTH", b"x")), b"^-ERR AUTH <password> called without")

    def test_where_clients_are(self) -> None:
        self.serve()
        tcp, pipe = self.tcp(), self.pipe()
        tcp.ask(command(b"CLIENT", b"SETNAME", b"tcp"))
        pipe.ask(command(b"CLIENT", b"SETNAME", b"pipe"))
        listed = pipe.ask(command(b"CLIENT", b"LIST")).decode()
        client = tcp.local
        address = pipecache.pipe_address(self.name)
        self.assertEqual(
            set(re.findall(r" addr=(\S+) laddr=(\S+) .*name=(\S+) age", listed)),
            {(client, f"127.0.0.1:{self.port}", "tcp"), (f"{address}:0", address, "pipe")},
        )
        killed = pipe.ask(command(b"CLIENT", b"KILL", b"ADDR", client.encode()))
        self.assertEqual(killed, b":1\r\n")
        self.assertTrue(tcp.ended())
        self.assertEqual(pipe.ask(b"PING\n"), b"PONG\n")

    def test_clients_of_the_port_leave_room_for_the_pipe(self) -> None:
        self.serve(max_clients=1)
        tcp, pipe = self.tcp(), self.pipe()
        self.assertEqual(tcp.ask(b"PING\n"), b"PONG\n")
        self.assertEqual(pipe.ask(b"PING\n"), b"PONG\n")

    def test_other_addresses_are_not_served(self) -> None:
        """The port is bound to 127.0.0.1, not to all addresses of the machine."""
        self.serve()
        self.assertEqual(self.tcp().ask(b"PING\n"), b"PONG\n")
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.2", self.port), timeout=DEADLINE).close()

    def test_a_long_value_and_a_long_pipeline(self) -> None:
        self.serve()
        tcp = self.tcp()
        value = os.urandom(5_000_000)
        tcp.send(command(b"SET", b"k", value))
        self.assertEqual(tcp.read(len(OK)), OK)
        tcp.send(command(b"GET", b"k"))
        reply = b"$%d\r\n%b\r\n" % (len(value), value)
        self.assertEqual(tcp.read(len(reply)), reply)
        tcp.send(command(b"INCR", b"n") * 5000)
        replies = b"".join(b":%d\r\n" % number for number in range(1, 5001))
        self.assertEqual(tcp.read(len(replies)), replies)

    def test_stopping(self) -> None:
        server = self.serve()
        tcp, idle = self.tcp(), self.tcp()
        self.assertEqual(tcp.ask(b"PING\n"), b"PONG\n")
        server.stop()
        self.assertEqual((tcp.ended(), idle.ended()), (True, True))
        with self.assertRaises(OSError):
            TCPConnection(str(self.port))
        if not WINDOWS:  # Windows can hold a port for a while
            with Server(unique_name(), tcp=self.port, tcp_no_password=True):
                self.assertEqual(self.tcp().ask(b"PING\n"), b"PONG\n")

    def test_a_port_needs_a_password_option(self) -> None:
        for options in (
            {},
            {"password": b"secret", "tcp_no_password": True},
            {"password": b"", "tcp_no_password": False},
        ):
            with self.subTest(options=options), self.assertRaises(ValueError):
                Server(unique_name(), tcp=free_port(), **options)

    def test_a_port_that_is_taken(self) -> None:
        self.serve()
        name = unique_name()
        second = Server(name, tcp=self.port, tcp_no_password=True)
        with self.assertRaisesRegex(
            AddressInUse, rf"^127\.0\.0\.1:{self.port} is already served by "
        ):
            second.start()
        second.stop()
        self.assertEqual(self.tcp().ask(b"PING\n"), b"PONG\n")
        # The server has also released the pipe.
        with Server(name):
            pass

    def test_invalid_settings(self) -> None:
        for options in (
            {"tcp": 0},
            {"tcp": -1},
            {"tcp": 65536},
            {"password": PASSWORD},
            {"tcp": 1, "password": b""},
        ):
            with self.subTest(options=options), self.assertRaises(ValueError):
                Server(unique_name(), **options)


class BrowserTests(unittest.TestCase):
    """A web page can send a form to a local port. The server must not run any of it."""

    REQUESTS: tuple[tuple[bytes, ...], ...] = (
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET evil 1\r\nFLUSHALL\r\n",),
        (b"POST /\r\n", b"SET evil 1\r\n"),
        (b"post / http/1.1\r\nSET evil 1\r\n",),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nSET evil 1\r\n\r\n",),
        (b"GET / HTTP/1.1\r\n", b"Host: localhost\r\nSET evil 1\r\n"),
        (b"PUT / HTTP/1.1\r\nhost: localhost\r\n", b"SET evil 1\r\n"),
        (b"OPTIONS * HTTP/1.1\nHOST: localhost\nSET evil 1\n",),
        (b"Host: localhost\r\n", b"SET evil 1\r\n"),
        (b"PO", b"ST / HTTP/1.1\r\nHo", b"st: localhost\r\n\r\nSET evil 1\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n*3\r\n$3\r\nSET\r\n$4\r\nevil\r\n$1\r\n1\r\n",),
    )

    def test_without_a_password(self) -> None:
        self.check(None)

    def test_with_a_password(self) -> None:
        self.check(PASSWORD)

    def check(self, password: bytes | None) -> None:
        port, name = free_port(), unique_name()
        with Server(name, tcp=port, password=password, tcp_no_password=password is None) as server:
            with new_client(name) as cache:
                cache.set("stored", "before")
                for pieces in self.REQUESTS:
                    with self.subTest(pieces=pieces):
                        self.refused(port, pieces)
                        self.assertEqual(cache.mget("stored", "evil"), ["before", None])
                wait_until(lambda: client_count(server) == 1, "the browsers are disconnected")
            # A browser cannot reach the pipe, where these are ordinary words.
            with RawConnection(name) as raw:
                self.assertEqual(raw.ask(b"POST / HTTP/1.1\n"), b"ERROR: Unknown command\n")
                self.assertEqual(raw.ask(b"Host: localhost\n"), b"ERROR: Unknown command\n")

    def refused(self, port: int, pieces: tuple[bytes, ...]) -> None:
        browser = TCPConnection(str(port))
        with browser, self.assertLogs("pipecache", "WARNING") as logged:
            address = browser.local
            with contextlib.suppress(OSError):  # the server may close before the last piece
                for piece in pieces:
                    browser.send(piece)
            received = chunk = browser.receive()
            while chunk:
                chunk = browser.receive()
                received += chunk
            self.assertNotIn(b"OK", received)
        self.assertEqual(len(logged.output), 1)
        self.assertIn(address, logged.output[0])
        self.assertIn("HTTP", logged.output[0])


class CommandLineTests(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.port = free_port()

    def file(self, content: bytes) -> str:
        path = os.path.join(self.folder, "password.txt")
        with open(path, "wb") as file:
            file.write(content)
        return path

    def test_wrong_options(self) -> None:
        port = ("--tcp", str(self.port))
        missing = os.path.join(self.folder, "missing.txt")
        content = self.file(b"x")
        empty, blank = (os.path.join(self.folder, name) for name in ("empty", "blank"))
        for path, data in ((empty, b""), (blank, b"\r\nsecond line\r\n")):
            with open(path, "wb") as file:
                file.write(data)
        about = "password, --password-file and --tcp-no-password need a tcp port"
        either = "give exactly one of password, --password-file and --tcp-no-password"
        for options, expected in (
            (port, either),
            ((*port, "--password-file", content, "--tcp-no-password"), either),
            (("--password-file", content), about),
            (("--tcp-no-password",), about),
            ((*port, "--password-file", missing), f"cannot read the password file {missing!r}: "),
            (
                (*port, "--password-file", self.folder),
                f"cannot read the password file {self.folder!r}: ",
            ),
            (
                (*port, "--password-file", empty),
                f"the password file {empty!r} must have the password in",
            ),
            (
                (*port, "--password-file", blank),
                f"the password file {blank!r} must have the password in",
            ),
            (("--tcp", "0", "--tcp-no-password"), "tcp must be a port from 1 to 65535, not 0"),
            (
                ("--tcp", "65536", "--tcp-no-password"),
                "tcp must be a port from 1 to 65535, not 65536",
            ),
            (("--tcp", "http", "--tcp-no-password"), "invalid int value: 'http'"),
        ):
            with self.subTest(options=options):
                self.assertIn(expected, usage_error(*options))

    @unittest.skipIf(getattr(os, "getuid", int)() == 0, "root can read every file")
    def test_a_file_that_must_not_be_read(self) -> None:
        path = self.file(b"secret")
        os.chmod(path, 0)
        error = usage_error("--tcp", str(self.port), "--password-file", path)
        self.assertIn(f"cannot read the password file {path!r}: ", error)

    def test_a_port_that_is_taken(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", self.port))
            other.listen(1)
            server = ServerProcess("--tcp", str(self.port), "--tcp-no-password")
            self.addCleanup(server.close)
            self.assertEqual(server.wait(), 1)
        (printed,) = server.lines
        expected = rf"ERROR 127\.0\.0\.1:{self.port} is already served by another program; "
        self.assertRegex(printed, expected)
        self.assertNotIn("name", printed)  # which the user need not change

    def test_the_first_line_of_the_file_is_the_password(self) -> None:
        for content, password in (
            (b"secret", b"secret"),
            (b"secret\n", b"secret"),
            (b"secret\r\n", b"secret"),
            (b" two words \nsecond line\n", b" two words "),
            ("d\u00fcb\u00e4i\r\n".encode(), "d\u00fcb\u00e4i".encode()),
            # Notepad and the operator > of PowerShell write such files.
            (b"\xef\xbb\xbfsecret\r\n", b"secret"),
            ("secret\r\nsecond line\r\n".encode("utf-16"), b"secret"),
        ):
            with self.subTest(content=content):
                options = options_of_server(*self.options(content))
                self.assertEqual(Settings(**options).password, password)

    def test_a_password(self) -> None:
        password = b" two words "
        with ServerProcess(*self.options(password)) as server:
            with TCPConnection(str(self.port)) as raw:
                self.assertEqual(raw.ask(command(b"GET", b"k")), NOAUTH)
                self.assertEqual(raw.ask(command(b"AUTH", password + b"x")), WRONGPASS)
                self.assertEqual(raw.ask(command(b"AUTH", password)), OK)
                self.assertEqual(raw.ask(command(b"SET", b"k", b"v")), OK)
            with new_client(server.name) as cache:
                self.assertEqual(cache.get("k"), "v")
            server.interrupt()
            self.assertEqual(server.wait(), 0)
            self.assertNotIn(password.decode(), "\n".join(server.lines))

    def options(self, content: bytes) -> list[str]:
        """Return the options for a port whose password file has this content."""
        return ["--tcp", str(self.port), "--password-file", self.file(content)]

    def test_the_banner(self) -> None:
        with ServerProcess(*self.options(b"secret")) as server:
            pipe, _, tcp, ready = server.lines
            self.assertIn(server.address, pipe)
            served = f"Serving 127.0.0.1:{self.port}, which every local account can reach"
            self.assertTrue(tcp.endswith(f"{served}, with a password"), tcp)
            self.assertTrue(ready.endswith("Ready to accept connections"))
            with new_client(server.name) as cache:
                self.assertEqual(cache.info()["tcp_port"], self.port)
        with ServerProcess("--tcp", str(self.port), "--tcp-no-password") as server:
            self.assertTrue(server.lines[2].endswith("with no password"))
            with TCPConnection(str(self.port)) as raw:
                self.assertEqual(raw.ask(b"PING\n"), b"PONG\n")


if __name__ == "__main__":
    unittest.main()
