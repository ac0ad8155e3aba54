"""Tests of unmodified Redis clients: libraries, redis-cli and redis-benchmark."""

from __future__ import annotations

import importlib
import json
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from tests.support import (
    DEADLINE,
    ROOT,
    WINDOWS,
    ServerCase,
    ServerProcess,
    free_port,
    required,
    run_javascript,
    run_program,
    running_under_wine,
    start_server,
)
from tests.support.wire import HELLO, NIL, OK, command
from tests.tools import provision

CLIENTS = ROOT / "tests" / "clients"

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"

#: The messages to a subscriber of a channel and of a pattern that matches, for two PUBLISH.
HEARD = ("news: hello", "n* news: hello", "news: good bye", "n* news: good bye")

#: The output of redis_clients.js with each package.
JAVASCRIPT = {
    "info": True,
    "name": "me",
    "set": ["OK", "dubai", None],
    "options": [None, "dubai"],
    "expiry": [60, 1, -1],
    "many": ["OK", ["1", None, "2"], 1],
    "counters": [1, 10, "0.1"],
    "hash": [2, {"a": "1", "b": "two"}, None],
    "list": [3, ["a", "b", "c"], "a"],
    "members": [2, 1, 2],
    "scores": [2, ["a", "b"], 2],
    "multi": [11, "oslo", {"a": "1", "b": "two"}, WRONG_TYPE],
    "watch": ["OK", "OK", None, "lima"],
    "errors": [WRONG_TYPE, "ERR unknown command 'NOSUCH', with args beginning with: 'a' "],
    "pipeline": 500,
    "together": True,
    "scan": 500,
    "channels": [2, 2, *HEARD],
    "wait": [["queue", "job"], 1],
    "binary": ["OK", True],
    "megabyte": ["OK", True],
    "quit": ["OK", "OK"],
}

#: The output of redis_client.go.
GO = f"""\
set city dubai ex 60: OK
get city: dubai
get none: redis: nil
ttl city: 1m0s
incr n: 1
incrby n 9: 10
incrbyfloat f 0.5: 0.5
incr city: ERR value is not an integer or out of range
hset h a 1: true
hget h none: redis: nil
hgetall h: map[a:1]
rpush l a b: 2
lrange l 0 -1: [a b]
lpop l: a
rpush city x: {WRONG_TYPE}
sadd s a b a: 2
sismember s a: true
scard s: 2
zadd z 2.5 b 1 a: 2
zrange z 0 -1 withscores: [{{1 a}} {{2.5 b}}]
incr n: 11
get city: dubai
transaction: <nil>
broken transaction: redis: transaction failed
get city: lima
pipeline: 500 <nil>
scan: 500
subscribed: <nil>
PUBLISH news hello: 1
received: news hello <nil>
rpush queue job: 1
blpop none queue 60: [queue job]
megabyte: <nil>
the same: true <nil>
close: <nil>
"""

#: Arguments of redis-cli, its standard input, and its output.
REDIS_CLI: tuple[tuple[str, str, str], ...] = (
    ("SET city dubai EX 60", "", "OK\n"),
    ("GET city", "", "dubai\n"),
    ("--no-raw GET city", "", '"dubai"\n'),
    ("--no-raw GET none", "", "(nil)\n"),
    ("--no-raw TTL city", "", "(integer) 60\n"),
    ("LPUSH city x", "", f"{WRONG_TYPE}\n\n"),
    ("NOSUCH a", "", "ERR unknown command 'NOSUCH', with args beginning with: 'a' \n\n"),
    ("-x SET poem", "two\nlines", "OK\n"),
    ("GET poem", "", "two\nlines\n"),
    ("-r 3 INCR n", "", "1\n2\n3\n"),
    ("RPUSH l a b", "", "2\n"),
    ("LRANGE l 0 -1", "", "a\nb\n"),
    ("--csv LRANGE l 0 -1", "", '"a","b"\n'),
    ("HSET h a 1", "", "1\n"),
    ("-3 --no-raw HGETALL h", "", '1# "a" => "1"\n'),
    ("--json HGETALL h", "", '{"a":"1"}\n'),
    ("--no-raw ZADD z 1.5 a", "", "(integer) 1\n"),
    ("-3 --no-raw ZSCORE z a", "", "(double) 1.5\n"),
    ("", "MULTI\nINCR n\nGET city\nEXEC\n", "OK\nQUEUED\nQUEUED\n4\ndubai\n"),
    ("--scan --pattern c*", "", "city\n"),
    ("DBSIZE", "", "6\n"),
)

#: The tests of redis-benchmark that run here.
BENCHMARK = "get,set,incr,lpush,rpush,lpop,rpop,sadd,hset,spop,zadd,zpopmin,lrange,mset"


class HandshakeTests(ServerCase):
    """The first commands of clients, and the replies."""

    def setUp(self) -> None:
        self.serve()

    def test_client_setinfo(self) -> None:
        """Redis 7.0 does not have this command, but newer clients send it first."""
        names = b"-ERR lib-name cannot contain spaces, newlines or special characters.\r\n"
        raw = self.raw()
        for arguments, expected in (
            ((b"CLIENT", b"SETINFO", b"LIB-NAME", b"test"), OK),
            ((b"client", b"setinfo", b"lib-ver", b"1.0"), OK),
            ((b"CLIENT", b"SETINFO", b"LIB-NAME", b"a b"), names),
            ((b"CLIENT", b"SETINFO", b"NO", b"a"), b"-ERR Unrecognized option 'NO'\r\n"),
        ):
            with self.subTest(arguments=arguments):
                self.assertEqual(raw.ask(command(*arguments)), expected)

    def test_hello(self) -> None:
        raw = self.raw()
        hello = command(b"HELLO", b"3", b"AUTH", b"default", b"x", b"SETNAME", b"me")
        self.assertRegex(raw.ask(hello), b"^%7\r\n" + HELLO % 3 + b"$")
        self.assertEqual(raw.ask(command(b"MGET", b"none")), b"*1\r\n_\r\n")
        self.assertRegex(
            raw.ask(command(b"CLIENT", b"INFO")), rb"=\d+\r\ntxt:id=1 .*name=me .*resp=3"
        )
        self.assertEqual(raw.ask(b"GET none\n"), b"\n")
        self.assertRegex(raw.ask(command(b"HELLO", b"2")), rb"^\*14\r\n" + HELLO % 2 + b"$")
        self.assertEqual(raw.ask(command(b"GET", b"none")), NIL)


class RealClientCase(unittest.TestCase):
    maxDiff = None

    def setUp(self) -> None:
        self.server = self.serve()

    def serve(self, *options: str) -> ServerProcess:
        return start_server(self, *options)

    def serve_tcp(self, password: str | None) -> str:
        """Start a server with a free port and return the number of the port."""
        if running_under_wine():
            self.skipTest("Wine lacks the keep-alive options that redis-py sets on a TCP socket")
        port = str(free_port())
        options = ["--tcp-no-password"]
        if password is not None:
            folder = tempfile.TemporaryDirectory()
            self.addCleanup(folder.cleanup)
            file = Path(folder.name, "password")
            file.write_text(password, encoding="utf-8")
            options = ["--password-file", str(file)]
        self.serve("--tcp", port, *options)
        return port


class LibraryTests(RealClientCase):
    """Libraries, each in a program that prints the replies."""

    def check_redis_py(self, *arguments: str) -> None:
        env = {"PYTHONPATH": required("PIPECACHE_REDIS_PY"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = run_program([sys.executable, CLIENTS / "redis_py_client.py", *arguments], env)
        self.assertEqual((done.stdout.split(), done.stderr.decode()), ([b"fine"], ""))

    def test_redis_py(self) -> None:
        self.check_redis_py(self.server.address)

    def test_redis_py_over_tcp(self) -> None:
        self.check_redis_py(self.serve_tcp(None))

    def test_redis_py_over_tcp_with_a_password(self) -> None:
        self.check_redis_py(self.serve_tcp("secret"), "secret")

    def check_npm(self, package: str) -> None:
        modules = required("PIPECACHE_NODE_MODULES")
        if not WINDOWS and not shutil.which("node"):
            provision.skip(provision.Unavailable("Node is not installed: put it on PATH"))
        with mock.patch.dict(os.environ, {"NODE_PATH": modules}):
            done = run_javascript(CLIENTS / "redis_clients.js", self.server.address, package)
        self.assertEqual((done.returncode, done.stderr), (0, b""), done)
        self.assertEqual(json.loads(done.stdout), JAVASCRIPT)

    def test_ioredis_5(self) -> None:
        self.check_npm("ioredis")

    def test_ioredis_6(self) -> None:
        self.check_npm("ioredis6")

    def test_node_redis_4(self) -> None:
        self.check_npm("redis")

    def test_node_redis_6(self) -> None:
        self.check_npm("redis6")

    @unittest.skipUnless(
        WINDOWS, "redis_client.go is compiled for Windows: 'python tests' runs it under Wine"
    )
    def test_go_redis(self) -> None:
        if not running_under_wine():
            self.skipTest("go-redis comes from Debian: 'python tests' runs it under Wine")
        done = run_program([required("PIPECACHE_GO_REDIS"), self.server.address])
        self.assertEqual((done.stdout.decode(), done.stderr.decode()), (GO, ""))


class Terminal:
    """A program on a pseudo-terminal, with which a test types and reads."""

    def __init__(self, *args: str) -> None:
        # Windows has none of these modules.
        fcntl, pty, termios = map(importlib.import_module, ("fcntl", "pty", "termios"))
        self._screen, keyboard = pty.openpty()
        try:
            fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
            self.process = subprocess.Popen(
                args,
                stdin=keyboard,
                stdout=keyboard,
                stderr=keyboard,
                start_new_session=True,
                env={**os.environ, "TERM": "xterm", "REDISCLI_HISTFILE": os.devnull},
            )
        except BaseException:
            os.close(self._screen)
            raise
        finally:
            os.close(keyboard)
        self._text = ""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def expect(self, pattern: str) -> None:
        """Read until the pattern appears after the text that the last call has found."""
        deadline = time.monotonic() + DEADLINE
        while True:
            found = re.search(pattern, self._text)
            if found:
                self._text = self._text[found.end() :]
                return
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._screen], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} in {self._text!r}")
            text = self._text + os.read(self._screen, 65536).decode("utf-8", "replace")
            self._text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)  # colours, cursor

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        os.close(self._screen)


@unittest.skipUnless(
    sys.platform == "linux", "the tests use redis-cli and redis-benchmark of Linux"
)
class ToolTests(RealClientCase):
    """Tests of redis-cli and redis-benchmark."""

    def run_tool(self, *args: str, stdin: str = "") -> tuple[int, str, str]:
        """Run redis-cli; return the exit status, standard output and standard error."""
        done = subprocess.run(
            args, input=stdin, capture_output=True, text=True, timeout=DEADLINE, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def test_redis_cli(self) -> None:
        program = required("PIPECACHE_REDIS_CLI")
        for arguments, stdin, expected in REDIS_CLI:
            with self.subTest(arguments):
                args = (program, "-s", self.server.address, *arguments.split())
                self.assertEqual(self.run_tool(*args, stdin=stdin), (0, expected, ""))

    def test_redis_cli_exit_status(self) -> None:
        args = (required("PIPECACHE_REDIS_CLI"), "-s", self.server.address, "-e", "GET")
        error = "ERR wrong number of arguments for 'get' command\n"
        self.assertEqual(self.run_tool(*args), (1, "", error))

    def test_redis_cli_over_tcp(self) -> None:
        program = required("PIPECACHE_REDIS_CLI")
        port = self.serve_tcp("secret")
        no_auth = "NOAUTH Authentication required.\n"
        wrong = "WRONGPASS invalid username-password pair or user is disabled."
        for arguments, stdout, stderr in (
            ("PING", f"{no_auth}\n", ""),
            ("-a secret --no-auth-warning PING", "PONG\n", ""),
            ("-a secret --user default --no-auth-warning -3 PING", "PONG\n", ""),
            ("-a wrong --no-auth-warning PING", f"{no_auth}\n", f"AUTH failed: {wrong}\n"),
        ):
            with self.subTest(arguments):
                args = (program, "-p", port, *arguments.split())
                self.assertEqual(self.run_tool(*args), (0, stdout, stderr))
        args = (program, "-p", self.serve_tcp(None), "PING")
        self.assertEqual(self.run_tool(*args), (0, "PONG\n", ""))

    def test_redis_cli_loads_and_looks_through(self) -> None:
        program = (required("PIPECACHE_REDIS_CLI"), "-s", self.server.address)
        sets = "".join(f"SET key:{number} {number}\n" for number in range(1000))
        self.assertEqual(self.run_tool(*program, stdin=sets), (0, "OK\n" * 1000, ""))
        ping = "*1\r\n$4\r\nPING\r\n"
        status, stdout, stderr = self.run_tool(*program, "--pipe", stdin=ping * 1000)
        self.assertEqual((status, stderr), (0, ""))
        self.assertIn("errors: 0, replies: 1000\n", stdout)
        status, stdout, stderr = self.run_tool(*program, "--bigkeys")
        self.assertEqual((status, stderr), (0, ""))
        self.assertIn("1000 strings with 2890 bytes (100.00% of keys", stdout)

    def test_redis_cli_at_a_terminal(self) -> None:
        # redis-cli makes its hints and its help from the reply to COMMAND DOCS.
        with Terminal(required("PIPECACHE_REDIS_CLI"), "-s", self.server.address) as terminal:
            # redis-cli ignores input before its prompt.
            for typed, pattern in (
                ("", "> "),
                ("set city dubai\r", "OK\r\n[^>]*> "),
                ("lpush ", r"key element \[element \.\.\.\]"),
                ("city x\r", r"\(error\) WRONGTYPE[^>]*> "),
                ("help lpush\r", r"LPUSH key element[^>]*summary: [A-Z][^>]*> "),
            ):
                terminal.type(typed)
                terminal.expect(pattern)
            terminal.type("quit\r")
            self.assertEqual(terminal.process.wait(DEADLINE), 0)
        with Terminal(required("PIPECACHE_REDIS_CLI"), "-s", self.server.address, "--stat") as stat:
            stat.expect("keys +mem +clients")
            stat.expect(r"\n1 +\d[\d.]*[BKM] +1 +0 +\d+ \(\+\d+\) +\d")

    def test_redis_cli_watches_and_listens(self) -> None:
        cli = required("PIPECACHE_REDIS_CLI"), "-s", self.server.address

        def do(arguments: str) -> None:
            self.assertEqual(self.run_tool(*cli, *arguments.split())[0], 0)

        with Terminal(*cli, "MONITOR") as watching, Terminal(*cli) as listening:
            watching.expect("OK")
            listening.expect("> ")
            listening.type("subscribe news\r")
            listening.expect(r'1\) "subscribe"\r\n2\) "news"\r\n3\) \(integer\) 1')
            watching.expect(r'\d{10}\.\d{6} \[0 unix:[^\]]+\] "subscribe" "news"\r\n')
            do("PUBLISH news hello")
            listening.expect(r'1\) "message"\r\n2\) "news"\r\n3\) "hello"')
            watching.expect(r'\] "PUBLISH" "news" "hello"\r\n')
            do("SET city dubai")
            watching.expect(r'\] "SET" "city" "dubai"\r\n')
        with Terminal(*cli, "PSUBSCRIBE", "n*") as listening:
            listening.expect("psubscribe")
            do("PUBLISH news again")
            listening.expect('4\\) "again"')
        with Terminal(*cli, "BLPOP", "queue", "0") as waiting:
            do("RPUSH queue job")
            waiting.expect(r'1\) "queue"\r\n2\) "job"')
            self.assertEqual(waiting.process.wait(DEADLINE), 0)

    def test_redis_benchmark(self) -> None:
        program = required("PIPECACHE_REDIS_BENCHMARK")
        port = self.serve_tcp("secret")
        for arguments in (
            f"-s {self.server.address} -n 2000 -t {BENCHMARK}",
            f"-s {self.server.address} -n 20000 -t get,set,incr -P 16 -c 50",
            f"-s {self.server.address} -n 2000 -t get,set -3",
            f"-h 127.0.0.1 -p {port} -a secret -n 2000 -t get,set",
        ):
            with self.subTest(arguments):
                status, stdout, stderr = self.run_tool(program, *arguments.split(), "--csv")
                self.assertEqual((status, stderr), (0, ""), stdout)
                names = re.findall(r'^"(\w+)[^"]*","[1-9]', stdout, re.M)
                wanted = arguments.split(" -t ")[1].split()[0].upper().split(",")
                self.assertEqual({name.split("_")[0] for name in names}, set(wanted))


if __name__ == "__main__":
    unittest.main()
