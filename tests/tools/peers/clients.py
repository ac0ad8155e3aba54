"""The clients of the contenders of benchmark.py, behind one interface.

A library's own bound methods are handed out wherever its arguments allow, so that no contender
pays for a wrapper that another is spared.  Each client is used as its manual shows it: its own
defaults, replies in the type it answers in (``str`` or ``bytes``).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import socket
import sqlite3
import sys
from dataclasses import dataclass
from typing import Any, Callable, Sequence

from tests.tools.peers.servers import AUTHKEY, Manager

#: Seconds that a client may wait for a server or a lock before the benchmark fails.
PATIENCE = 30.0


@dataclass
class Session:
    """An open connection. Methods that a contender does not support are None."""

    get: Callable[[str], Any]
    set: Callable[[str, str], Any]
    close: Callable[[], Any]
    #: A GET for each key, all sent before the first reply is read.
    pipeline: Callable[[Sequence[str]], Any] | None = None
    #: One command with many keys, which returns the values in that order.
    mget: Callable[[Sequence[str]], Any] | None = None
    #: Store many pairs in the fastest way of the client.
    fill: Callable[[dict[str, str]], Any] | None = None
    #: Publish a message; and subscribe as with redis-py.
    publish: Callable[[str, str], Any] | None = None
    pubsub: Callable[[], Any] | None = None
    #: True for an echo server, which returns the request.
    echo: bool = False


def load_project(folder: str) -> Any:
    """Return the ``client`` module of a checkout; two checkouts can be compared."""
    name = f"client_of_{folder}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "client.py"))
        if spec is None or spec.loader is None:
            raise ImportError(f"no client.py in {folder}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def open_pipecache(address: str, project: str) -> Session:
    client = load_project(project).Client(pipe=address)

    def pipeline(keys: Sequence[str]) -> Any:
        commands = client.pipeline(transaction=False)
        for key in keys:
            commands.get(key)
        return commands.execute()

    many = hasattr(client, "mget")
    return Session(
        client.get,
        client.set,
        client.close,
        pipeline if hasattr(client, "pipeline") else None,
        client.mget if many else None,
        client.mset if many else None,
        getattr(client, "publish", None),
        getattr(client, "pubsub", None),
    )


def open_pipecache_per_command(address: str, project: str) -> Session:
    send = load_project(project).send_command
    return Session(
        lambda key: send(f"GET {key}", pipe=address),
        lambda key, value: send(f"SET {key} {value}", pipe=address),
        lambda: None,
    )


def import_redis(hiredis: bool) -> Any:
    """Return redis-py without hiredis or with it; one process can use both."""
    name = "redis with hiredis" if hiredis else "redis without hiredis"
    if name not in sys.modules:
        parts = ("redis", "hiredis")
        for module in [m for m in sys.modules if m.partition(".")[0] in parts]:
            del sys.modules[module]
        if not hiredis:
            sys.modules["hiredis"] = None  # type: ignore[assignment]  # an import of it fails
        redis = importlib.import_module("redis")
        found = importlib.import_module("redis.utils").HIREDIS_AVAILABLE
        if found is not hiredis:
            raise ImportError(f"redis-py says HIREDIS_AVAILABLE is {found}")
        sys.modules[name] = redis
    return sys.modules[name]


def open_redis(address: str, hiredis: str = "no", single: str = "no") -> Session:
    redis = import_redis(hiredis == "yes")
    where: dict[str, Any] = {"unix_socket_path": address}
    if address.startswith("tcp:"):
        where = {"host": "127.0.0.1", "port": int(address[len("tcp:") :])}
    client = redis.Redis(single_connection_client=single == "yes", **where)

    def pipeline(keys: Sequence[str]) -> Any:
        commands = client.pipeline(transaction=False)
        for key in keys:
            commands.get(key)
        return commands.execute()

    several = pipeline, client.mget, client.mset
    return Session(client.get, client.set, client.close, *several, client.publish, client.pubsub)


def open_memcached(address: str) -> Session:
    pymemcache: Any = importlib.import_module("pymemcache")
    # Otherwise pymemcache does not wait for the reply to a SET.
    client = pymemcache.Client(address, default_noreply=False)

    def mget(keys: Sequence[str]) -> list[Any]:
        found = client.get_many(keys)
        return [found.get(key) for key in keys]

    return Session(client.get, client.set, client.close, None, mget)


def open_manager(address: str) -> Session:
    Manager.register("shared")
    manager = Manager(address=address, authkey=AUTHKEY)
    manager.connect()
    shared: Any = getattr(manager, "shared")()  # noqa: B009 - made by register()
    return Session(shared.get, shared.__setitem__, lambda: None)


def open_diskcache(address: str) -> Session:
    diskcache: Any = importlib.import_module("diskcache")
    cache = diskcache.Cache(address)
    return Session(cache.get, cache.set, cache.close)


def open_sqlite(address: str) -> Session:
    """Open a database with one row per key and one transaction per SET; WAL without a sync for
    each commit, because a cache need not survive a power failure."""
    database = sqlite3.connect(address, timeout=PATIENCE, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE IF NOT EXISTS cache (key TEXT PRIMARY KEY, value TEXT)")
    execute = database.execute

    def get(key: str) -> str | None:
        row = execute("SELECT value FROM cache WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(key: str, value: str) -> None:
        execute("INSERT OR REPLACE INTO cache VALUES (?, ?)", (key, value))

    def mget(keys: Sequence[str]) -> list[Any]:
        marks = ",".join("?" * len(keys))
        found = dict(execute(f"SELECT key, value FROM cache WHERE key IN ({marks})", keys))
        return [found.get(key) for key in keys]

    return Session(get, put, database.close, None, mget)


CLIENTS: dict[str, Callable[..., Session]] = {
    "pipecache": open_pipecache,
    "pipecache-per-command": open_pipecache_per_command,
    "redis": open_redis,
    "memcached": open_memcached,
    "manager": open_manager,
    "diskcache": open_diskcache,
    "sqlite": open_sqlite,
}


if sys.platform == "win32":
    from tests.tools.peers import bare_pipe

    def open_pipe_echo(address: str, overlapped: str = "no") -> Session:
        pipe = bare_pipe.connect(address, overlapped == "yes")

        def get(key: str) -> bytes:
            pipe.write(b"GET " + key.encode())
            return pipe.read()

        def put(key: str, value: str) -> bytes:
            pipe.write(b"SET " + key.encode() + b" " + value.encode())
            return pipe.read()

        def pipeline(keys: Sequence[str]) -> bytes:
            pipe.write(b"".join([b"GET " + key.encode() for key in keys]))
            return pipe.read()

        return Session(get, put, pipe.close, pipeline, echo=True)

    def open_pywin32(address: str, connect: str = "once") -> Session:
        """Return a client as in scripts: CreateFile, WriteFile, ReadFile of 4096 bytes."""
        pywintypes: Any = importlib.import_module("pywintypes")
        win32file: Any = importlib.import_module("win32file")
        win32pipe: Any = importlib.import_module("win32pipe")

        def open_pipe() -> Any:
            while True:
                try:
                    pipe = win32file.CreateFile(
                        address,
                        win32file.GENERIC_READ | win32file.GENERIC_WRITE,
                        0,
                        None,
                        win32file.OPEN_EXISTING,
                        0,
                        None,
                    )
                except pywintypes.error as error:
                    # The replaced server has no instance for a moment between two clients.
                    missing = (bare_pipe.ERROR_FILE_NOT_FOUND, bare_pipe.ERROR_PIPE_BUSY)
                    if error.winerror not in missing:
                        raise
                    with contextlib.suppress(pywintypes.error):
                        win32pipe.WaitNamedPipe(address, 100)
                else:
                    win32pipe.SetNamedPipeHandleState(
                        pipe, win32pipe.PIPE_READMODE_MESSAGE, None, None
                    )
                    return pipe

        def ask(pipe: Any, message: str) -> str:
            win32file.WriteFile(pipe, message.encode())
            return str(win32file.ReadFile(pipe, 4096)[1].decode())

        if connect == "once":
            pipe = open_pipe()
            return Session(
                lambda key: ask(pipe, f"GET {key}"),
                lambda key, value: ask(pipe, f"SET {key} {value}"),
                lambda: win32file.CloseHandle(pipe),
            )

        def ask_once(message: str) -> str:
            pipe = open_pipe()
            try:
                return ask(pipe, message)
            finally:
                win32file.CloseHandle(pipe)

        return Session(
            lambda key: ask_once(f"GET {key}"),
            lambda key, value: ask_once(f"SET {key} {value}"),
            lambda: None,
        )

    CLIENTS["pipe-echo"] = open_pipe_echo
    CLIENTS["pywin32"] = open_pywin32

else:

    def open_socket_echo(address: str) -> Session:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)

        def get(key: str) -> bytes:
            connection.sendall(b"GET " + key.encode())
            return connection.recv(65536)

        def put(key: str, value: str) -> bytes:
            connection.sendall(b"SET " + key.encode() + b" " + value.encode())
            return connection.recv(65536)

        def pipeline(keys: Sequence[str]) -> bytes:
            request = b"".join([b"GET " + key.encode() for key in keys])
            connection.sendall(request)
            reply = b""
            while len(reply) < len(request):
                reply += connection.recv(65536)
            return reply

        return Session(get, put, connection.close, pipeline, echo=True)

    CLIENTS["socket-echo"] = open_socket_echo
