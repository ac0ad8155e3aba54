"""Tests of clients in several languages with a server process.

The clients do not use client.py. Each opens the pipe with the means of its language: Python's
open(), pywin32, Node's net, Win32 from C, os.OpenFile of Go, and .NET.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Iterator, Sequence

from tests.support import (
    CLIENTS,
    DEADLINE,
    WINDOWS,
    RawConnection,
    run_javascript,
    run_program,
    running_under_wine,
    start_server,
    wait_until,
)
from tests.support.programs import on_path
from tests.support.wire import command
from tests.tools.provision import Unavailable, given, skip

#: Random bytes. The last one is fixed, because a line feed would be a terminator.
TEN_MEGABYTES = random.Random(10).getrandbits(80_000_000).to_bytes(10_000_000, "big") + b"."

#: Values that are returned unchanged, whether a command is a message or a line.
VALUES = {
    "one word": b"dubai",
    "blanks inside": b"a  b   c",
    "blanks around": b"  padded\t ",
    "blanks alone": b"   ",
    "empty": b"",
    "quotes": b"""it's "so" 'called' """,
    "an open quote": b'"never closed',
    "not ASCII": "Größe 東京 🜁".encode(),
    "not UTF-8": bytes(range(0x80, 0x100)),
    "UTF-16": "Größe".encode("utf-16"),
    "zero bytes": b"\0\0a\0",
    "a carriage return": b"one\rtwo",
    "4096 bytes": b"x" * 4096,
    "4097 bytes": b"x" * 4097,
    "a command of 65,536 bytes": b"x" * (65536 - len(b"SET key ")),
    "a command of 65,537 bytes": b"x" * (65537 - len(b"SET key ")),
    "200,000 bytes": bytes(range(0x20, 0x7F)) * 2105,
}

#: Values that text commands can have only on a pipe, where a command is a message.
VALUES_OF_LINES = {
    "a line feed": b"one\ntwo",
    "several lines": b"\none\r\ntwo\n\n three",
    "each byte": bytes(range(256)),
    "a command in RESP": b"*1\r\n$4\r\nPING",
}


@contextlib.contextmanager
def suspended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Suspend a process, so that data sent to it is not read yet."""
    if sys.platform == "win32":
        import ctypes
        from ctypes import wintypes

        ntdll = ctypes.WinDLL("ntdll")
        handle = wintypes.HANDLE(int(process._handle))  # type: ignore[attr-defined]
        if ntdll.NtSuspendProcess(handle) != 0:
            raise OSError("NtSuspendProcess failed")
        try:
            yield
        finally:
            ntdll.NtResumeProcess(handle)
    else:
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)


class RealClientCase(unittest.TestCase):
    """Tests with a server process each, which must stay alive and log no error."""

    def setUp(self) -> None:
        self.server = start_server(self)

    def tearDown(self) -> None:
        self.assertIsNone(self.server.process.poll(), "the server has ended")
        if running_under_wine():  # there, sending Ctrl+C starts two more programs
            self.server.process.kill()
            self.server.wait()
        else:
            self.server.interrupt()
            self.assertEqual(self.server.wait(), 0, self.server.lines)
        for line in self.server.lines:
            self.assertNotRegex(line, "WARNING|ERROR|CRITICAL|Traceback")

    def connect(self) -> RawConnection:
        connection = RawConnection(self.server.name)
        self.addCleanup(connection.close)
        return connection

    def temporary_folder(self) -> Path:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return Path(folder.name)

    def wait_for_clients(self, number: int) -> None:
        """Wait until ``number`` clients are connected, besides the one that asks."""
        with self.connect() as connection:
            expected = b"connected_clients:%d" % (number + 1)
            wait_until(
                lambda: expected in connection.ask(b"INFO clients\n").split(),
                f"{number} clients are connected",
            )


class ProgramTests(RealClientCase):
    """The programs of the README, unmodified."""

    def check(self, done: subprocess.CompletedProcess[bytes]) -> None:
        output = done.stdout.decode("utf-8", "replace")
        errors = done.stderr.decode("utf-8", "replace")
        self.assertEqual((done.returncode, output.split("\n")[-1]), (0, ""), output + errors)
        self.assertEqual(output.splitlines(), ["OK", "dubai"], errors)
        with self.connect() as connection:
            self.assertEqual(connection.ask(b"GET city\n"), b"dubai\n")

    def test_python(self) -> None:
        self.check(run_program([sys.executable, CLIENTS / "python_client.py", self.server.name]))

    def test_pywin32(self) -> None:
        folder = pywin32_folder()
        env = {"PYTHONPATH": folder} if folder else {}
        program = CLIENTS / "pywin32_client.py"
        self.check(run_program([sys.executable, program, self.server.name], env))

    def test_node(self) -> None:
        self.check(run_javascript(CLIENTS / "node.js", self.server.name))

    def test_c(self) -> None:
        self.check(run_program([self.c_client(), self.server.name]))

    def test_c_killed_before_its_reply(self) -> None:
        client = self.c_client()
        with suspended(self.server.process):
            process = subprocess.Popen(
                [client, self.server.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            process.kill()
            process.wait(DEADLINE)
        self.wait_for_clients(0)
        self.check(run_program([client, self.server.name]))

    def c_client(self) -> str:
        if not WINDOWS:
            self.skipTest("pipe.c uses Win32: 'python tests' runs it under Wine")
        try:
            return given("PIPECACHE_C_CLIENT")
        except Unavailable as error:
            if running_under_wine():
                skip(error)
        program = self.temporary_folder() / "pipe.exe"
        source = CLIENTS / "pipe.c"
        output = {"gcc": ["-o", str(program)], "cl": [f"/Fe{program}", f"/Fo{program}.obj"]}
        for compiler, options in output.items():
            found = shutil.which(compiler)
            if found:
                done = run_program([found, *options, source])
                self.assertEqual(done.returncode, 0, done)
                return str(program)
        raise unittest.SkipTest("neither gcc nor cl is on PATH")

    def test_go(self) -> None:
        if not WINDOWS:
            self.skipTest("os.OpenFile cannot open a socket: 'python tests' runs pipe.go on Wine")
        try:
            program: list[str | Path] = [given("PIPECACHE_GO_CLIENT")]
        except Unavailable as error:
            if running_under_wine() or not shutil.which("go"):
                skip(error)
            program = ["go", "run", CLIENTS / "pipe.go"]
        self.check(run_program([*program, self.server.name]))

    def test_windows_powershell(self) -> None:
        if not WINDOWS:
            self.skipTest("Windows PowerShell is part of Windows")
        self.check(self.powershell(on_path("powershell")))

    def test_powershell(self) -> None:
        self.check(self.powershell(on_path("pwsh")))

    def powershell(self, program: str) -> subprocess.CompletedProcess[bytes]:
        policy = ["-ExecutionPolicy", "Bypass"] if WINDOWS else []
        script = CLIENTS / "powershell.ps1"
        return run_program([program, "-NoProfile", *policy, "-File", script, self.server.name])

    def test_csharp_of_the_net_framework(self) -> None:
        if not WINDOWS:
            self.skipTest("the .NET Framework is part of Windows")
        if running_under_wine():
            self.skipTest("csc: run by the workflow on windows-latest")
        framework = Path(os.environ["WINDIR"], "Microsoft.NET", "Framework64", "v4.0.30319")
        compiler = shutil.which("csc", path=os.fspath(framework)) or on_path("csc")
        program = self.temporary_folder() / "client.exe"
        done = run_program([compiler, "/nologo", f"/out:{program}", CLIENTS / "csharp.cs"])
        self.assertEqual(done.returncode, 0, done)
        self.check(run_program([program, self.server.name]))

    def test_csharp_of_dotnet_core(self) -> None:
        try:
            program = [given("PIPECACHE_DOTNET"), given("PIPECACHE_CSHARP_CLIENT")]
        except Unavailable as error:
            if sys.platform == "linux" or running_under_wine():
                skip(error)
            self.skipTest(".NET Core 3.1 runs on Linux and under Wine; here the .NET SDK is used")
        self.check(run_program([*program, self.server.name]))

    def test_csharp_of_dotnet(self) -> None:
        dotnet = on_path("dotnet")
        folder = self.temporary_folder()
        env = {
            # The first run must not change the user's account.
            "DOTNET_CLI_HOME": str(folder),
            "DOTNET_ADD_GLOBAL_TOOLS_TO_PATH": "false",
            "DOTNET_GENERATE_ASPNET_CERTIFICATE": "false",
            "DOTNET_CLI_TELEMETRY_OPTOUT": "1",
            "DOTNET_NOLOGO": "1",
            # Otherwise the compiler keeps running and holds the pipes of its output open.
            "MSBUILDDISABLENODEREUSE": "1",
        }
        version = run_program([dotnet, "--version"], env)
        if version.returncode:
            self.skipTest("dotnet is installed without the SDK, which has the compiler")
        release = version.stdout.decode().split(".")[0]
        (folder / "client.csproj").write_text(PROJECT.format(release=release), encoding="utf-8")
        shutil.copy(CLIENTS / "csharp.cs", folder)
        output = folder / "out"
        options = ["--output", str(output), "-p:UseSharedCompilation=false"]
        done = run_program([dotnet, "build", folder, *options], env)
        self.assertEqual(done.returncode, 0, done)
        self.check(run_program([dotnet, output / "client.dll", self.server.name], env))


#: Without a host program, the build downloads nothing.
PROJECT = """\
<Project Sdk="Microsoft.NET.Sdk">
  <PropertyGroup>
    <OutputType>Exe</OutputType>
    <TargetFramework>net{release}.0</TargetFramework>
    <UseAppHost>false</UseAppHost>
    <InvariantGlobalization>true</InvariantGlobalization>
  </PropertyGroup>
</Project>
"""


class PythonOpenTests(RealClientCase):
    r"""Tests of ``open(r"\\.\pipe\NAME", "r+b", buffering=0)``; elsewhere, of lines on a socket."""

    # On a Unix socket, a command without a terminator has no end.
    terminators = (b"", b"\n", b"\r\n") if WINDOWS else (b"\n", b"\r\n")

    def open(self) -> io.RawIOBase:
        pipe = self.open_pipe(self.server.address)
        self.addCleanup(pipe.close)
        return pipe

    @staticmethod
    def open_pipe(address: str) -> io.RawIOBase:
        if sys.platform == "win32":
            return open(address, "r+b", buffering=0)
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(address)
            return server.makefile("rwb", buffering=0)

    def read(self, pipe: io.RawIOBase, size: int) -> bytes:
        reply = bytearray()
        while len(reply) < size:
            part = pipe.read(size - len(reply))
            self.assertTrue(part, f"the end after {bytes(reply[:200])!r}")
            reply += part or b""
        return bytes(reply)

    def check(self, pipe: io.RawIOBase, command: bytes, reply: bytes) -> None:
        """Write one message and read its reply, which is not empty."""
        self.assertEqual(pipe.write(command), len(command))
        found = self.read(pipe, len(reply))
        # assertEqual would take minutes to show a difference of megabytes.
        self.assertTrue(found == reply, f"{found[:200]!r} for {reply[:200]!r}")

    def check_empty(self, pipe: io.RawIOBase, command: bytes) -> io.RawIOBase:
        """Check that the reply is an empty message; return the pipe to use after that."""
        pipe.write(command)
        self.assertEqual(pipe.read(65536), b"")
        if running_under_wine():  # its C library takes the message for the end of the file
            pipe.close()
            return self.open()
        return pipe

    def test_values(self) -> None:
        values = {**VALUES, **VALUES_OF_LINES} if WINDOWS else VALUES
        pipe = self.open()
        for title, value in values.items():
            for terminator in self.terminators:
                with self.subTest(title, terminator=terminator):
                    self.check(pipe, b"SET key " + value + terminator, b"OK" + terminator)
                    if value + terminator:
                        self.check(pipe, b"GET key" + terminator, value + terminator)
                    else:
                        pipe = self.check_empty(pipe, b"GET key")

    def test_a_missing_key_gives_an_empty_reply(self) -> None:
        pipe = self.open()
        for terminator in self.terminators:
            with self.subTest(terminator=terminator):
                if terminator:
                    self.check(pipe, b"GET missing" + terminator, terminator)
                else:
                    pipe = self.check_empty(pipe, b"GET missing")
                self.check(pipe, b"PING" + terminator, b"PONG" + terminator)

    def test_several_commands_on_one_connection(self) -> None:
        pipe = self.open()
        for number in range(1, 201):
            self.check(pipe, b"INCR counter\n", b"%d\n" % number)
        self.check(pipe, b"NONSENSE\n", b"ERROR: Unknown command\n")
        self.check(pipe, b"\n", b"ERROR: Empty command\n")
        self.check(pipe, b"G counter\n", b"200\n")

    def test_a_connection_for_each_command(self) -> None:
        for number in range(1, 201):
            with self.open() as pipe:
                self.check(pipe, b"INCR counter\n", b"%d\n" % number)
        self.wait_for_clients(0)

    def test_ten_megabytes(self) -> None:
        value = TEN_MEGABYTES if WINDOWS else TEN_MEGABYTES.replace(b"\n", b" ")
        pipe = self.open()
        self.check(pipe, b"SET big " + value + b"\r\n", b"OK\r\n")
        self.check(pipe, b"GET big\r\n", value + b"\r\n")
        self.check(pipe, b"STRLEN big\n", b"%d\n" % len(value))

    def test_ten_megabytes_between_text_and_resp(self) -> None:
        pipe = self.open()
        bulk = b"$%d\r\n%b\r\n" % (len(TEN_MEGABYTES), TEN_MEGABYTES)
        commands = command(b"SET", b"big", TEN_MEGABYTES) + command(b"GET", b"big")
        self.check(pipe, commands, b"+OK\r\n" + bulk)
        self.check(pipe, b"GET big\n", TEN_MEGABYTES + b"\n")


#: A client that opens the pipe as in the README, does something, and waits to be killed.
DYING_CLIENT = r"""
import socket, sys, threading
if sys.platform == "win32":
    pipe = open(sys.argv[1], "r+b", buffering=0)
else:
    server = socket.socket(socket.AF_UNIX)
    server.connect(sys.argv[1])
    pipe = server.makefile("rwb", buffering=0)
def ready():
    print("ready", flush=True)
def stay():
    threading.Event().wait()
"""


class KilledClientTests(RealClientCase):
    """Tests with a client that is killed; the next client must not notice."""

    def kill_after(self, action: str) -> None:
        """Run a client until it reports that it is ready, and kill it."""
        process = subprocess.Popen(
            [sys.executable, "-c", DYING_CLIENT + action, self.server.address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stdout and process.stderr
            too_late = threading.Timer(DEADLINE, process.kill)
            too_late.start()
            try:
                ready = process.stdout.readline().strip()
            finally:
                too_late.cancel()
                process.kill()
            self.assertEqual(ready, b"ready", process.stderr.read())

    def check_another_client(self) -> None:
        self.wait_for_clients(0)
        connection = self.connect()
        self.assertEqual(connection.ask(b"GET half\n"), b"\n")
        self.assertEqual(connection.ask(b"SET city dubai\n"), b"OK\n")
        self.assertEqual(connection.ask(b"GET city\n"), b"dubai\n")

    def test_in_the_middle_of_a_message(self) -> None:
        bystander = self.connect()
        self.assertEqual(bystander.ask(b"PING\n"), b"PONG\n")
        with suspended(self.server.process):
            self.kill_after("ready(); pipe.write(b'SET half ' + bytes(10_000_000))")
        bystander.close()
        self.check_another_client()

    def test_in_the_middle_of_a_resp_command(self) -> None:
        begun = command(b"SET", b"half", b"").replace(b"$0\r\n\r\n", b"$100000\r\n")
        self.kill_after(f"pipe.write({begun!r} + b'x' * 50_000); ready(); stay()")
        self.check_another_client()

    def test_in_the_middle_of_its_reply(self) -> None:
        with self.connect() as connection:
            connection.send(command(b"SET", b"big", TEN_MEGABYTES))
            self.assertEqual(connection.receive(), b"+OK\r\n")
        self.kill_after("pipe.write(b'GET big\\n'); pipe.read(1); ready(); stay()")
        self.check_another_client()


def pywin32_folder() -> str | None:
    """Return the folder of pywin32, or None if it is installed; skip the test if it is missing."""
    if not WINDOWS:
        raise unittest.SkipTest("pywin32 is for Windows: 'python tests' runs it under Wine")
    try:
        importlib.import_module("win32file")
        return None
    except ImportError:
        pass
    try:
        return given("PIPECACHE_PYWIN32")
    except Unavailable as error:
        skip(error)


class Pywin32Tests(RealClientCase):
    """Tests of win32file and win32pipe in message mode, as Windows scripts use them."""

    file: Any
    pipe: Any

    @classmethod
    def setUpClass(cls) -> None:
        folder = pywin32_folder()
        if folder and folder not in sys.path:
            sys.path.append(folder)
        cls.file = importlib.import_module("win32file")
        cls.pipe = importlib.import_module("win32pipe")

    def open(self) -> Any:
        access = self.file.GENERIC_READ | self.file.GENERIC_WRITE
        while True:
            try:
                handle = self.file.CreateFile(
                    self.server.address, access, 0, None, self.file.OPEN_EXISTING, 0, None
                )
                break
            except self.file.error as error:
                if error.winerror != 231:  # ERROR_PIPE_BUSY
                    raise
                self.pipe.WaitNamedPipe(self.server.address, int(DEADLINE * 1000))
        self.addCleanup(handle.Close)
        self.pipe.SetNamedPipeHandleState(handle, self.pipe.PIPE_READMODE_MESSAGE, None, None)
        return handle

    def read(self, handle: Any) -> bytes:
        """Read one message, in as many parts as necessary."""
        reply = b""
        while True:
            error, part = self.file.ReadFile(handle, 65536)
            reply += bytes(part)
            if error != 234:  # ERROR_MORE_DATA
                self.assertEqual(error, 0)
                return reply

    def ask(self, handle: Any, command: bytes) -> bytes:
        self.file.WriteFile(handle, command)
        return self.read(handle)

    def test_values(self) -> None:
        values = {**VALUES, **VALUES_OF_LINES}
        kept = self.open()
        for title, value in values.items():
            with self.subTest(title):
                handle = self.open()
                self.assertEqual(self.ask(handle, b"SET key " + value), b"OK")
                self.file.CloseHandle(handle)
                handle = self.open()
                self.assertEqual(self.ask(handle, b"GET key"), value)
                self.file.CloseHandle(handle)
                self.assertEqual(self.ask(kept, b"GET key\r\n"), value + b"\r\n")

    def test_a_missing_key_gives_an_empty_message(self) -> None:
        handle = self.open()
        self.assertEqual(self.ask(handle, b"GET missing"), b"")
        self.assertEqual(self.ask(handle, b"PING"), b"PONG")

    def test_ten_megabytes(self) -> None:
        handle = self.open()
        self.assertEqual(self.ask(handle, b"SET big " + TEN_MEGABYTES), b"OK")
        self.assertTrue(self.ask(handle, b"GET big") == TEN_MEGABYTES)

    def test_several_commands_on_one_connection(self) -> None:
        handle = self.open()
        for number in range(1, 201):
            self.assertEqual(self.ask(handle, b"INCR counter"), b"%d" % number)

    def test_messages_written_before_a_reply_is_read(self) -> None:
        handle = self.open()
        for number in range(100):
            self.file.WriteFile(handle, b"ECHO %d" % number)
        for number in range(100):
            self.assertEqual(self.read(handle), b"%d" % number)

    def test_a_connection_for_each_command(self) -> None:
        for number in range(1, 201):
            handle = self.open()
            self.assertEqual(self.ask(handle, b"INCR counter"), b"%d" % number)
            self.file.CloseHandle(handle)
        self.wait_for_clients(0)

    def test_transact_named_pipe(self) -> None:
        handle = self.open()
        for message, reply in ((b"SET city dubai", b"OK"), (b"GET city", b"dubai")):
            error, part = self.pipe.TransactNamedPipe(handle, message, 65536, None)
            self.assertEqual((error, bytes(part)), (0, reply))

    def test_call_named_pipe(self) -> None:
        for message, reply in ((b"SET city dubai", b"OK"), (b"GET city", b"dubai")):
            found = self.pipe.CallNamedPipe(self.server.address, message, 65536, 5000)
            self.assertEqual(bytes(found), reply)


#: A program that writes each chunk after the one before, and stores a given length of output.
EXCHANGE = """\
const fs = require("fs");
const [address, file, length] = process.argv.slice(2);
const chunks = JSON.parse(fs.readFileSync(file)).map((chunk) => Buffer.from(chunk, "base64"));
const replies = [];
let missing = Number(length);
const pipe = require("net").connect(address, function next() {
  if (chunks.length) pipe.write(chunks.shift(), next);
});
pipe.on("data", (reply) => {
  replies.push(reply);
  missing -= reply.length;
  if (missing <= 0) pipe.destroy();
});
pipe.on("close", () => fs.writeFileSync(file, Buffer.concat(replies)));
"""


class NodeTests(RealClientCase):
    """Tests of net.connect of Node."""

    def exchange(self, chunks: Sequence[bytes], length: int) -> bytes:
        """Write the chunks one by one; return a given length of output, or less at the end."""
        folder = self.temporary_folder()
        script, file = folder / "exchange.js", folder / "data"
        script.write_text(EXCHANGE, encoding="utf-8")
        encoded = [base64.b64encode(chunk).decode() for chunk in chunks]
        file.write_text(json.dumps(encoded), encoding="utf-8")
        done = run_javascript(script, self.server.address, file, str(length))
        self.assertEqual((done.returncode, done.stdout), (0, b""), done)
        return file.read_bytes()

    def check(self, chunks: Sequence[bytes], expected: bytes) -> None:
        # assertEqual would take minutes to show a difference of megabytes.
        found = self.exchange(chunks, len(expected))
        self.assertTrue(found == expected, f"{found[:200]!r} for {expected[:200]!r}")

    def test_several_commands_as_separate_messages(self) -> None:
        commands = [b"SET city dubai\n", b"GET city\n", b"INCR n\n", b"INCR n\n", b"GET none\n"]
        self.check(commands, b"OK\ndubai\n1\n2\n\n")

    def test_values(self) -> None:
        values = {**VALUES, **VALUES_OF_LINES} if WINDOWS else VALUES
        commands = []
        expected = b""
        for value in values.values():
            commands += [b"SET key " + value + b"\n", b"GET key\n"]
            expected += b"OK\n" + value + b"\n"
        self.check(commands, expected)

    def test_resp_in_one_write(self) -> None:
        commands = (
            command(b"SET", b"key", b"a\r\n b") + command(b"GET", b"key") + command(b"GET", b"none")
        )
        self.check([commands * 100], b"+OK\r\n$5\r\na\r\n b\r\n$-1\r\n" * 100)

    def test_resp_a_few_bytes_at_a_time(self) -> None:
        commands = command(b"SET", b"key", b"a\r\n b") + command(b"GET", b"key")
        chunks = [commands[start : start + 3] for start in range(0, len(commands), 3)]
        self.check([*chunks, b"PING\n"], b"+OK\r\n$5\r\na\r\n b\r\nPONG\n")

    def test_ten_megabytes(self) -> None:
        commands = command(b"SET", b"big", TEN_MEGABYTES) + command(b"GET", b"big")
        size = len(TEN_MEGABYTES)
        self.check([commands], b"+OK\r\n$%d\r\n%b\r\n" % (size, TEN_MEGABYTES))
