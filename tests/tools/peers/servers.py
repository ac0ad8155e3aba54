"""Servers for comparison in benchmark.py that are not on PyPI.

``python -m tests.tools.peers.servers KIND ADDRESS`` serves in the foreground and
prints ``Ready to accept connections`` when clients can connect.

pywin32
    The design pipecache replaces: a message pipe of pywin32, a thread for each client, a plain
    dict, reads of 4096 bytes.
manager
    The dict of ``multiprocessing.managers.SyncManager``, over AF_PIPE or AF_UNIX.
pipe-echo, pipe-echo-overlapped
    The least that two processes can say to each other over a named pipe through ctypes, with
    blocking handles and with overlapped ones.
socket-echo
    The same over a Unix socket.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import threading
from multiprocessing.managers import DictProxy, SyncManager
from typing import Any, Callable

READY = "Ready to accept connections"
#: The key with which both ends of SyncManager authenticate. Here it is not secret.
AUTHKEY = b"benchmark"


def ready() -> None:
    print(READY, file=sys.stderr, flush=True)


def serve_pywin32(address: str) -> None:
    pywintypes: Any = importlib.import_module("pywintypes")
    win32file: Any = importlib.import_module("win32file")
    win32pipe: Any = importlib.import_module("win32pipe")
    data: dict[str, str] = {}

    def answer(message: str) -> str:
        words = message.split()
        if words[0] == "GET":
            return data.get(words[1], "")
        if words[0] == "SET":
            data[words[1]] = " ".join(words[2:])
            return "OK"
        return "ERROR: Unknown command"

    def serve(pipe: Any) -> None:
        try:
            while True:
                _, message = win32file.ReadFile(pipe, 4096)
                win32file.WriteFile(pipe, answer(message.decode()).encode())
        except pywintypes.error:
            pass  # the client has left
        finally:
            win32pipe.DisconnectNamedPipe(pipe)
            win32file.CloseHandle(pipe)

    first = True
    while True:
        pipe = win32pipe.CreateNamedPipe(
            address,
            win32pipe.PIPE_ACCESS_DUPLEX,
            win32pipe.PIPE_TYPE_MESSAGE | win32pipe.PIPE_READMODE_MESSAGE | win32pipe.PIPE_WAIT,
            win32pipe.PIPE_UNLIMITED_INSTANCES,
            65536,
            65536,
            0,
            None,
        )
        if first:
            ready()
            first = False
        try:
            win32pipe.ConnectNamedPipe(pipe, None)
        except pywintypes.error:  # the client left before this call
            win32file.CloseHandle(pipe)
            continue
        threading.Thread(target=serve, args=(pipe,), daemon=True).start()


class Manager(SyncManager):
    """A SyncManager whose ``shared`` is one dict for all clients."""


def serve_manager(address: str) -> None:
    shared: dict[str, str] = {}
    Manager.register("shared", callable=lambda: shared, proxytype=DictProxy)
    server = Manager(address=address, authkey=AUTHKEY).get_server()
    ready()
    server.serve_forever()


KINDS: dict[str, Callable[[str], None]] = {
    "pywin32": serve_pywin32,
    "manager": serve_manager,
}


if sys.platform == "win32":
    from tests.tools.peers.bare_pipe import ERROR_PIPE_CONNECTED, Pipe, create

    def serve_pipe_echo(address: str, overlapped: bool = False) -> None:
        def serve(pipe: Pipe) -> None:
            try:
                while True:
                    pipe.write(pipe.read())
            except OSError:
                pass  # the client has left
            finally:
                pipe.close()

        pipe = create(address, overlapped)
        ready()
        while True:
            try:
                pipe.connect()
            except OSError as error:
                if error.winerror != ERROR_PIPE_CONNECTED:
                    raise
            following = create(address, overlapped)
            threading.Thread(target=serve, args=(pipe,), daemon=True).start()
            pipe = following

    KINDS["pipe-echo"] = serve_pipe_echo
    KINDS["pipe-echo-overlapped"] = lambda address: serve_pipe_echo(address, overlapped=True)

else:

    def serve_socket_echo(address: str) -> None:
        def serve(connection: socket.socket) -> None:
            with connection:
                while True:
                    data = connection.recv(65536)
                    if not data:
                        return
                    connection.sendall(data)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(128)
            ready()
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    KINDS["socket-echo"] = serve_socket_echo


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        KINDS[sys.argv[1]](sys.argv[2])
