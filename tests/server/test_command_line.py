"""Tests of ``python pipecache.py`` and ``python client.py`` as processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import pipecache
from tests.support import (
    DEADLINE,
    ROOT,
    WINDOWS,
    RawConnection,
    ServerProcess,
    log_restored,
    new_client,
    running_under_wine,
    unique_name,
    usage_error,
)
from tests.support.internals import log_to
from tests.tools import provision

STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


def run(*arguments: str, file: str = "pipecache.py") -> tuple[int, str, str]:
    """Run a program; return the exit status, standard output and standard error."""
    argv = [sys.executable, str(ROOT / file), *arguments]
    done = provision.start_once_more(
        lambda: subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False
        )
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class ServerTests(unittest.TestCase):
    def test_the_banner(self) -> None:
        with ServerProcess() as server:
            banner, access, ready = server.lines
            self.assertRegex(banner, STAMP + "INFO Serving ")
            self.assertIn(server.address, banner)
            if not running_under_wine():  # Wine has its own process ids
                self.assertIn(f"(process {server.process.pid}, ", banner)
            self.assertRegex(access, STAMP + r"INFO Access: this user's programs \(.*\)$")
            self.assertRegex(ready, STAMP + "INFO Ready to accept connections$")

    def test_a_conversation(self) -> None:
        with ServerProcess() as server, RawConnection(server.name) as raw:
            self.assertEqual(raw.ask(b"SET city dubai\n"), b"OK\n")
            self.assertEqual(raw.ask(b"GET city\n"), b"dubai\n")

    def test_ctrl_c(self) -> None:
        with ServerProcess() as server, RawConnection(server.name) as raw:
            raw.ask(b"PING\n")
            server.interrupt()
            self.assertEqual(server.wait(), 0)
            self.assertRegex(server.lines[-1], "INFO Stopped after 1 commands from 1 clients$")
            self.assertTrue(raw.ended())

    def test_ctrl_c_with_a_hundred_clients_of_every_kind(self) -> None:
        with ServerProcess() as server:
            crowd = [RawConnection(server.name) for _ in range(100)]
            crowd[0].send(b"SET big " + b"x" * 5_000_000 + b"\n")
            self.assertEqual(crowd[0].receive(), b"OK\n")
            crowd[1].send(b"GET big\n")  # the client does not read the reply
            self.assertEqual(crowd[1].receive(1), b"x")
            crowd[2].send(b"*2\r\n$3\r\nGE")
            server.interrupt()
            self.assertEqual(server.process.wait(pipecache.STOP_TIMEOUT), 0)
            server.wait()
            self.assertRegex(server.lines[-1], "INFO Stopped after ")
            for raw in crowd:
                raw.close()

    def test_a_second_server(self) -> None:
        with ServerProcess() as first:
            status, out, err = run("--pipe", first.name)
            self.assertEqual((status, out), (1, ""))
            (line,) = err.splitlines()
            self.assertRegex(line, STAMP + "ERROR .* is already served by another program; ")
            self.assertTrue(line.endswith("; stop it or choose another name"), line)
            with new_client(first.name) as cache:
                self.assertIs(cache.ping(), True)

    def test_a_server_after_one_that_was_killed(self) -> None:
        name = unique_name()
        with ServerProcess(name=name) as first, RawConnection(name) as raw:
            raw.ask(b"PING\n")
            first.process.kill()
            first.process.wait(DEADLINE)
        with ServerProcess(name=name), new_client(name) as cache:
            self.assertIs(cache.ping(), True)

    @unittest.skipIf(WINDOWS, "Windows has no SIGTERM")
    def test_terminate(self) -> None:
        with ServerProcess() as server:
            server.process.terminate()
            self.assertEqual(server.wait(), 0)
            self.assertFalse(os.path.exists(server.address))

    def test_a_log_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "log.txt")
            name = unique_name()
            server = ServerProcess("--log-file", path, "--log-level", "debug", name=name)
            try:
                with new_client(name) as cache:
                    while True:
                        try:
                            cache.ping()
                            break
                        except ConnectionError:
                            self.assertIsNone(server.process.poll())
                server.interrupt()
                self.assertEqual((server.wait(), server.lines), (0, []))
            finally:
                server.close()
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
            self.assertRegex(lines[0], "Serving ")
            self.assertRegex(lines[-1], "Stopped ")

    def test_wrong_options(self) -> None:
        for arguments, expected in (
            (["--max-clients", "0"], "argument --max-clients: must be 1 or more, not 0"),
            (["--max-clients", "many"], "argument --max-clients: must be 1 or more, not 'many'"),
            (["--max-message", "huge"], "'huge' is not a size such as 64kb, 10mb or 1gb"),
            (
                ["--max-message", "100"],
                "argument --max-message: must be 1024 bytes or more, not 100",
            ),
            (["--access", "everybody"], "access must be one of user, admins, users or, on Windows"),
            (["--log-level", "LOUD"], "invalid choice: 'LOUD'"),
            (["--log-file", str(ROOT / "nowhere" / "log")], "cannot write --log-file"),
            (["--pip", "name"], "unrecognized arguments: --pip"),
            (["--pipe", ""], "pipe must be a name without control characters, not ''"),
            (["--nonsense"], "unrecognized arguments: --nonsense"),
        ):
            with self.subTest(arguments=arguments):
                self.assertIn(expected, usage_error(*arguments))
        status, out, err = run("--max-clients", "0")
        self.assertEqual((status, out), (2, ""))
        self.assertIn(usage_error("--max-clients", "0").partition(": ")[2], err.splitlines()[-1])
        self.assertNotIn("Traceback", err)

    def test_help_and_version(self) -> None:
        status, out, _ = run("--help")
        self.assertEqual(status, 0)
        for option in ("--pipe", "--max-clients", "--max-message", "--log-level", "--log-file"):
            self.assertIn(option, out)
        self.assertEqual(
            run("--version")[:2], (0, f"pipecache {pipecache.__version__}{os.linesep}")
        )

    def test_without_a_console(self) -> None:
        # pythonw.exe has no console.
        with mock.patch.object(sys, "stderr", None):
            with log_restored():
                log_to(None)
                pipecache.log.info("nobody sees this")


class ClientTests(unittest.TestCase):
    def test_the_exit_status(self) -> None:
        with ServerProcess() as server:
            pipe = ("--pipe", server.name)
            ok = (0, f"OK{os.linesep}", "")
            self.assertEqual(run(*pipe, "SET", "city", "dubai", file="client.py"), ok)
            value = (0, f"dubai{os.linesep}", "")
            self.assertEqual(run(*pipe, "GET", "city", file="client.py"), value)
            status, out, _ = run(*pipe, "NOSUCH", file="client.py")
            self.assertEqual(status, 1)
            self.assertRegex(out, "^ERROR: unknown command 'NOSUCH'")
        status, out, err = run(*pipe, "GET", "city", file="client.py")
        self.assertEqual((status, out), (2, ""))
        self.assertRegex(err, "^Error: Cache server not running: ")

    def test_output_to_a_pipe_is_the_stored_bytes(self) -> None:
        value = "\u00fc\u20ac\U0001f600".encode() + b"\xff\r\n"
        with ServerProcess() as server, new_client(server.name, decode_responses=False) as cache:
            cache.set("k", value)
            client = [sys.executable, str(ROOT / "client.py"), "--pipe", server.name]
            for arguments, given in (
                (["GET", "k"], b""),
                ([], b"GET k\nSET \xc3\xbc \xe2\x82\xac\n"),
            ):
                done = subprocess.run(
                    [*client, *arguments],
                    input=given,
                    capture_output=True,
                    timeout=DEADLINE,
                    check=True,
                )
                self.assertEqual(done.stdout[: len(value)], value)
            self.assertEqual(cache.get("\u00fc"), "\u20ac".encode())

    @unittest.skipIf(WINDOWS, "the test uses sh")
    def test_a_closed_standard_output(self) -> None:
        with ServerProcess() as server:
            done = subprocess.run(
                f"'{sys.executable}' client.py --pipe {server.name} HELP | head -0",
                shell=True,
                cwd=ROOT,
                capture_output=True,
                timeout=DEADLINE,
                check=False,
            )
            self.assertEqual(done.stderr, b"")

    def test_an_invalid_name(self) -> None:
        for name in ("", " ", "a\nb"):
            status, out, err = run("--pipe", name, "PING", file="client.py")
            self.assertEqual((status, out), (2, ""))
            self.assertRegex(err.splitlines()[-1], "the pipe needs a name")


class SizeTests(unittest.TestCase):
    def test_sizes(self) -> None:
        for text, expected in (
            ("1", 1),
            ("64kb", 65536),
            ("10MB", 10 * 1024**2),
            ("10 m", 10 * 1024**2),
            ("1gb", 1024**3),
            ("100b", 100),
        ):
            with self.subTest(text=text):
                self.assertEqual(pipecache.parse_size(text), expected)
        for text in ("", "kb", "-1", "1.5mb", "1tb", "1 2"):
            with self.subTest(text=text), self.assertRaises(ValueError):
                pipecache.parse_size(text)


if __name__ == "__main__":
    unittest.main()
