"""Tests of the check for the server's owner, and of ``client.py doctor``."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import sys
import unittest
from typing import Any, Iterator
from unittest import mock

import client
import pipecache
from tests.support import WINDOWS, Background, ServerProcess, new_client, unique_name
from tests.support.internals import command_count

if sys.platform == "win32":
    import ctypes


@contextlib.contextmanager
def a_stranger() -> Any:
    """Make every server look like one of another account."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(client, "current_user", lambda: "S-1-5-21-1-2-3-4"))
        stack.enter_context(mock.patch.object(client, "TRUSTED_SIDS", ()))
        yield


class OwnerTests(unittest.TestCase):
    def setUp(self) -> None:
        self.name = unique_name()

    def serve(self, **options: Any) -> pipecache.Server:
        server = pipecache.Server(self.name, **options)
        server.start()
        self.addCleanup(server.stop)
        return server

    def test_a_server_of_this_account(self) -> None:
        self.serve()
        self.assertTrue(new_client(self.name).ping())

    def test_a_server_of_another_account_receives_nothing(self) -> None:
        server = self.serve()
        with a_stranger():
            with self.assertRaisesRegex(client.UntrustedServer, "another user.*trust_any_owner"):
                new_client(self.name).set("secret", "1")
            with self.assertRaises(client.UntrustedServer):
                client.send_command("SET secret 1", self.name)
            with self.assertRaises(ConnectionError):
                new_client(self.name).pubsub().subscribe("news")
            with self.assertRaises(client.UntrustedServer), new_client(self.name).monitor():
                pass
            self.assertEqual(command_count(server), 0)
            with new_client(self.name, trust_any_owner=True) as cache:
                self.assertTrue(cache.ping())
            self.assertEqual(client.send_command("PING", self.name, trust_any_owner=True), "PONG")

    def test_administrators_are_trusted(self) -> None:
        self.serve()
        with a_stranger():
            with mock.patch.object(client, "TRUSTED_SIDS", (self.owner(),)):
                self.assertTrue(new_client(self.name).ping())

    def owner(self) -> str:
        transport = client.Transport(pipecache.pipe_address(self.name), 5.0, 5.0)
        with contextlib.closing(transport):
            return transport.owner()

    def test_the_owner_is_the_account_of_the_server(self) -> None:
        self.serve()
        if sys.platform == "win32":
            self.assertEqual(self.owner(), pipecache.current_user_sid())
        else:
            self.assertEqual(self.owner(), str(os.geteuid()))
        self.assertEqual(self.owner(), client.current_user())
        self.assertNotIn("S-1-5", client.account_name(self.owner()))

    def test_another_user(self) -> None:
        if sys.platform == "win32" or os.geteuid() != 0:
            self.skipTest("only root can change the user")
        os.seteuid(65534)
        try:
            server = self.serve(access="users")
        finally:
            os.seteuid(0)
        self.assertEqual(self.owner(), "65534")
        with self.assertRaisesRegex(client.UntrustedServer, "served by another user"):
            new_client(self.name).ping()
        self.assertEqual(command_count(server), 0)
        self.assertTrue(new_client(self.name, trust_any_owner=True).ping())

    def test_an_unknown_owner(self) -> None:
        self.serve()
        with mock.patch.object(client.Transport, "owner", side_effect=OSError(errno.EPERM, "no")):
            with self.assertRaisesRegex(client.UntrustedServer, "Cannot read the owner of"):
                new_client(self.name).ping()

    def test_the_command_line(self) -> None:
        self.serve()
        with a_stranger():
            for arguments, status, expected in (
                (["PING"], 2, "another user"),
                (["--trust-any-owner", "PING"], 0, "PONG"),
            ):
                with self.subTest(arguments=arguments):
                    found, out = run("--pipe", self.name, *arguments)
                    self.assertEqual(found, status)
                    self.assertIn(expected, out)


def run(*arguments: str) -> tuple[int, str]:
    """Run client.py in this process; return the exit status and the output."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            return client.main(arguments), out.getvalue()
        except SystemExit as error:
            return int(error.code or 0), out.getvalue()


class DoctorTests(unittest.TestCase):
    def examine(self, name: str, status: int, *expected: str, more: tuple[str, ...] = ()) -> str:
        found, out = run("--pipe", name, *more, "doctor")
        for each in expected:
            self.assertRegex(out, each)
        self.assertEqual(found, status, out)
        return out

    def test_all_is_well(self) -> None:
        with ServerProcess() as server:
            out = self.examine(
                server.name, 0, r"is served by process \d+, .*python", "which is you",
                "Allowed to connect: .*",
                f"pipecache {pipecache.__version__} on Python .*, running for \\d+ s",
                r"A round trip takes \d+ µs; 99 of 100 take \d+ µs or less",
                "The server answers text commands", r"\] 1 of 1000 clients connected",
                r"\d+ bytes of memory used \(no limit\)",
                "No persistence .*--db FILE", "No problems found.$",
            )  # fmt: skip
            if not WINDOWS:
                self.assertIn(f"process {server.process.pid},", out)
                self.assertIn("its owner (mode 0600)", out)
            else:
                self.assertRegex(out, r"SYSTEM, .* \(D:P")
            self.assertNotIn("[warn]", out)

    def test_limits_that_are_near(self) -> None:
        with ServerProcess("--max-clients", "5", "--max-memory", "20kb") as server:
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(new_client(server.name)) for _ in range(3)]
                for each in clients:
                    each.ping()
                clients[0].set("key", "x" * 18_000)
                self.examine(
                    server.name, 1, "4 of 5 clients connected, which is close to the limit",
                    "of 20480 bytes of memory used, which is close to the limit: delete keys",
                    "Working, with warnings.$",
                )  # fmt: skip

    def test_an_owner_or_access_list_that_the_system_does_not_report(self) -> None:
        with ServerProcess() as server:
            for method in ("owner", "access"):
                error = OSError(errno.EPERM, "no")
                with mock.patch.object(client.Transport, method, side_effect=error):
                    self.examine(server.name, 2, r"\[FAIL\] \[Errno 1\] no", "Not usable")

    def test_the_file(self) -> None:
        facts = {"db_file": "F", "rdb_last_bgsave_status": "ok", "rdb_changes_since_last_save": 3}
        for status, expected in (
            ("ok", "[ ok ] Data is saved in F; 3 "),
            ("err", "[warn] Ca"),
        ):
            facts.update(rdb_last_bgsave_status=status, db_last_error="Cannot save to F: full")
            ((severity, text),) = client._check_persistence(facts)
            self.assertIn(expected, f"{client._MARKS[severity]} {text}")

    def test_no_server(self) -> None:
        self.examine(
            unique_name(), 2, "no program serves", "Error 2, FILE_NOT_FOUND: no program serves a "
            "pipe of this name. Advice: start pipecache.py", "Not usable; see the lines above.$",
        )  # fmt: skip

    def test_examining_a_server_of_another_account(self) -> None:
        with ServerProcess() as server, a_stranger():
            out = self.examine(server.name, 2, "Not usable", "is served by another user")
            self.assertNotIn("round trip", out)
            more = ("--trust-any-owner",)
            self.examine(server.name, 1, "is not you, but is trusted", "round trip", more=more)

    if sys.platform != "win32":

        @contextlib.contextmanager
        def stand_in(self) -> Iterator[tuple[str, socket.socket]]:
            """Bind a socket to a new name; yield both."""
            name = unique_name()
            address = client.pipe_address(name)
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(address)
                try:
                    yield name, listening
                finally:
                    os.unlink(address)

        def test_examining_another_program(self) -> None:
            with self.stand_in() as (name, listening):
                self.examine(
                    name, 2, f"Error {errno.ECONNREFUSED}, ECONNREFUSED: the socket exists"
                )
                listening.listen()

                def answer() -> None:
                    accepted, _ = listening.accept()
                    with accepted:
                        accepted.recv(1000)
                        accepted.sendall(b"what?\r\n")

                answering = Background(answer)
                self.examine(name, 2, "FAIL", "Not usable")
                answering.wait()

        def test_examining_a_server_that_never_answers(self) -> None:
            with self.stand_in() as (name, listening):
                listening.listen()
                with mock.patch.object(client, "TIMEOUT", 0.1):
                    self.examine(name, 2, "No reply from .* within 0.1 s")

    if sys.platform == "win32":

        def test_errors_of_windows_are_explained(self) -> None:
            for function, error in (("CreateFileW", 5), ("CreateFileW", 231), ("ReadFile", 109)):
                with self.subTest(error=error), ServerProcess() as server:

                    def failing(*arguments: Any, error: int = error) -> Any:
                        ctypes.set_last_error(error)
                        return client.INVALID_HANDLE_VALUE if error != 109 else 0

                    with mock.patch.object(client, function, failing):
                        with mock.patch.object(client, "CONNECT_TIMEOUT", 0.0):
                            self.examine(server.name, 2, rf"FAIL\] Error {error}, .*Advice: ")

    def test_error_numbers(self) -> None:
        for number in (2, 5, 109, 121, 231, 232, 233, 234, 995):
            with self.subTest(number=number):
                status, out = run("doctor", str(number))
                self.assertEqual(status, 0)
                self.assertRegex(out, rf"^Error {number}, [A-Z_]+: .*Advice: .*\.$")
        status, out = run("doctor", "231", "109")
        self.assertEqual((status, len(out.splitlines())), (0, 2))
        status, out = run("doctor", "4711")
        self.assertEqual(status, 2)
        self.assertIn("not an error of pipes", out)
        status, out = run("doctor", "please")
        self.assertEqual(status, 2)
        self.assertIn("'please' is not an error number", out)

    def test_access_in_words(self) -> None:
        for access, words in (
            ("0600", "its owner"), ("0666", "all accounts"),
            ("D:P(A;;GA;;;SY)(A;;0x12019b;;;AU)", "SYSTEM, all accounts of this machine"),
            ("D:P(D;;GA;;;NU)(A;;FA;;;BA)",
             "not programs on other machines, programs that run as administrator"),
            ("D:P", "no account"), ("D:P(A;OICIIO;GA;;;WD)", "no account"),
            ("D:NO_ACCESS_CONTROL", "everyone, including anonymous users"),
            ("D:(XA;;GA;;;WD;(a==1))", "everyone, including anonymous users"),
        ):  # fmt: skip
            self.assertEqual(
                client._describe_access(access),
                f"{words} ({'mode ' if access[0] == '0' else ''}{access})",
            )


if __name__ == "__main__":
    unittest.main()
