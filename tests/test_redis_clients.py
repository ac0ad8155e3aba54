"""Clients of Redis, unmodified, on this server."""

from __future__ import annotations

import json
import os
import subprocess
import unittest
from unittest import mock

from tests import provision
from tests.support import DEADLINE, ROOT, WINDOWS, ServerProcess
from tests.test_real_clients import run_javascript
from tests.test_server import ServerCase
from tests.test_wire import command

REDIS_PY = """
import sys, redis
for options in ({}, {"protocol": 3}, {"protocol": 2}):
    r = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True, **options)
    assert r.ping() is True
    assert r.set("city", "dubai", ex=60) is True
    assert r.get("city") == "dubai" and r.get("none") is None and r.ttl("city") == 60
    assert r.mget("city", "none") == ["dubai", None]
    assert r.info()["redis_mode"] == "standalone"
    r.client_setname("me")
    assert r.client_getname() == "me"
    assert r.client_info()["name"] == "me" and len(r.client_list()) == 1
    pipe = r.pipeline(transaction=False)
    for number in range(1000):
        pipe.set(number, "x" * 1000)
    assert pipe.execute() == [True] * 1000
    try:
        r.incr("city")
    except redis.ResponseError as error:
        assert str(error) == "value is not an integer or out of range"
    r.close()
print("fine")
"""


class HandshakeTests(ServerCase):
    """What clients send first, and the exact replies."""

    def setUp(self) -> None:
        self.serve()

    def test_conversations(self) -> None:
        names = "cannot contain spaces, newlines or special characters."
        for arguments, expected in (
            ((b"CLIENT", b"SETINFO", b"LIB-NAME", b"test"), b"+OK\r\n"),
            ((b"client", b"setinfo", b"lib-ver", b"1.0"), b"+OK\r\n"),
            ((b"CLIENT", b"SETINFO", b"LIB-NAME", b"a b"), f"-ERR lib-name {names}\r\n".encode()),
            ((b"CLIENT", b"SETINFO", b"NO", b"a"), b"-ERR Unrecognized option 'NO'\r\n"),
            ((b"CLIENT", b"GETNAME"), b"$-1\r\n"),
            ((b"CLIENT", b"SETNAME", b"me"), b"+OK\r\n"),
            ((b"CLIENT", b"GETNAME"), b"$2\r\nme\r\n"),
            ((b"CLIENT", b"SETNAME", b"a b"), f"-ERR Client names {names}\r\n".encode()),
            ((b"CLIENT", b"FOO"), b"-ERR unknown subcommand 'FOO'. Try CLIENT HELP.\r\n"),
            ((b"CLIENT",), b"-ERR wrong number of arguments for 'client' command\r\n"),
            (
                (b"CLIENT", b"GETNAME", b"x"),
                b"-ERR wrong number of arguments for 'client|getname' command\r\n",
            ),
            (
                (b"CLIENT GETNAME", b"x"),
                b"-ERR unknown command 'CLIENT GETNAME', with args beginning with: 'x' \r\n",
            ),
            ((b"SELECT", b"0"), b"+OK\r\n"),
            ((b"SELECT", b"1"), b"-ERR DB index is out of range\r\n"),
            (
                (b"AUTH", b"someone", b"secret"),
                b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
            ),
            ((b"HELLO", b"4"), b"-NOPROTO unsupported protocol version\r\n"),
            (
                (b"HELLO", b"x"),
                b"-ERR Protocol version is not an integer or out of range\r\n",
            ),
            ((b"HELLO", b"3", b"FOO"), b"-ERR Syntax error in HELLO option 'FOO'\r\n"),
            ((b"GET", b"none"), b"$-1\r\n"),
            ((b"RESET",), b"+RESET\r\n"),
            ((b"CLIENT", b"GETNAME"), b"$-1\r\n"),
        ):
            raw = getattr(self, "connection", None) or self.raw()
            self.connection = raw
            with self.subTest(arguments=arguments):
                self.assertEqual(raw.ask(command(*arguments)), expected)

    def test_hello(self) -> None:
        raw = self.raw()
        fields = (
            b"$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:%d\r\n"
            b"$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
            b"$7\r\nmodules\r\n*0\r\n"
        )
        self.assertEqual(raw.ask(command(b"HELLO")), b"*14\r\n" + fields % 2)
        self.assertEqual(
            raw.ask(command(b"HELLO", b"3", b"AUTH", b"default", b"x", b"SETNAME", b"me")),
            b"%7\r\n" + fields % 3,
        )
        self.assertEqual(raw.ask(command(b"GET", b"none")), b"_\r\n")
        self.assertEqual(raw.ask(command(b"MGET", b"none")), b"*1\r\n_\r\n")
        info = raw.ask(command(b"INFO", b"keyspace"))
        self.assertEqual(info, b"=16\r\ntxt:# Keyspace\r\n\r\n")
        self.assertRegex(
            raw.ask(command(b"CLIENT", b"INFO")), rb"=\d+\r\ntxt:id=1 name=me .*resp=3"
        )
        self.assertEqual(raw.ask(b"GET none\n"), b"\n")
        self.assertEqual(raw.ask(command(b"HELLO", b"2")), b"*14\r\n" + fields % 2)
        self.assertEqual(raw.ask(command(b"GET", b"none")), b"$-1\r\n")


class RealClientTests(unittest.TestCase):
    @unittest.skipIf(WINDOWS, "a socket's path is for other systems")
    def test_redis_py(self) -> None:
        try:
            python = provision.given("PIPECACHE_REDIS_PY")
        except provision.Unavailable as error:
            provision.skip(error)
        with ServerProcess() as server:
            done = subprocess.run(
                [python, "-c", REDIS_PY, server.address],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=DEADLINE,
                check=False,
            )
            self.assertEqual((done.stdout, done.stderr), (b"fine\n", b""))

    def check_npm(self, client: str) -> None:
        try:
            modules = provision.given("PIPECACHE_NODE_MODULES")
        except provision.Unavailable as error:
            provision.skip(error)
        with ServerProcess() as server:
            script = ROOT / "tests" / "clients" / "redis_clients.js"
            with mock.patch.dict(os.environ, {"NODE_PATH": modules}):
                done = run_javascript(script, server.address, client)
            self.assertEqual(done.returncode, 0, done)
            dubai, one, none, (two, again) = json.loads(done.stdout)
            self.assertEqual((dubai, one, none), ("dubai", 1, None))
            self.assertIn([two, again], ([2, "dubai"], [[None, 2], [None, "dubai"]]))

    def test_ioredis(self) -> None:
        self.check_npm("ioredis")

    def test_node_redis(self) -> None:
        self.check_npm("nodeRedis")


if __name__ == "__main__":
    unittest.main()
