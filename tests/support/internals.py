"""The inside of pipecache.py, as far as tests need it.

Everything else in the tests uses commands, replies, INFO and the public classes. When the inside
of the server changes, this is the module to change with it.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from typing import Any, Callable, Iterable, Iterator, Sequence
from unittest import mock

import pipecache
from pipecache import (
    DEADLINE_COST,
    OWNER_COST,
    Context,
    ListValue,
    Live,
    Peer,
    Persistence,
    Reply,
    Server,
    Session,
    Settings,
    SortedSet,
    Statistics,
    Store,
    encode_resp,
    execute,
)
from tests.support.basics import Clock

#: The class of a client as commands see it.
ServedClient = Context


def new_store(
    clock: Callable[[], float] | None = None, wall: Callable[[], float] | None = None
) -> Store:
    """Return an empty store.

    :param clock: returns seconds, instead of the system's clock for time that has passed.
    :param wall: returns seconds since 1970, instead of the system's clock.
    """
    clocks = {"clock": clock, "wall": wall}
    return Store(**{name: each for name, each in clocks.items() if each is not None})


class Recorder(Peer):
    """A connection that records the messages pushed to its client."""

    def __init__(self) -> None:
        #: Pushed bytes that :meth:`take` has not returned.
        self.pushed: list[bytes] = []
        #: False once the client's end of the connection is closed.
        self.connected = True
        #: How often the thread that serves the client was woken.
        self.woken = 0

    def push(self, data: bytes, line: bool) -> None:
        self.pushed.append(data)

    def wake(self) -> None:
        self.woken += 1

    def alive(self) -> bool:
        return self.connected

    def take(self) -> list[bytes]:
        """Return the messages pushed since the last call, each by itself."""
        pushed, self.pushed = self.pushed, []
        return [each for data in pushed for each in re.split(rb"(?<=\n)(?=[*>+])", data)]


class SharedState:
    """A store, and what else its clients share, without a server.

    :param store: the store; without it, an empty one on a clock that stands still.
    """

    def __init__(self, store: Store | None = None) -> None:
        #: The clock of a store that was not given.
        self.clock = Clock()
        self.store = new_store(self.clock) if store is None else store
        self._statistics = Statistics("address")
        self._live = Live(self.store)

    def connect(self, peer: Peer | None = None) -> ServedClient:
        """Return a new client, which CLIENT LIST shows."""
        client = self.new_client(peer)
        client.register()
        return client

    def new_client(
        self,
        peer: Peer | None = None,
        settings: Settings | None = None,
        password: bytes | None = None,
    ) -> ServedClient:
        """Return a client that CLIENT LIST does not show before its register() is called."""
        settings = settings or Settings()
        return Context(self.store, settings, self._statistics, self._live, peer, password)

    def flush(self) -> None:
        """Serve blocked clients and write pushed messages, as a session does after a command."""
        self._live.waiting.serve()
        self._live.channels.deliver()

    def messages(self) -> list[Any]:
        """Return what is to be written to subscribers by :meth:`flush`."""
        return list(self._live.channels.told)

    def leftovers(self) -> list[object]:
        """Return the shared tables that still hold something of a client."""
        channels, waiting = self._live.channels, self._live.waiting
        tables: list[dict[Any, Any]] = [
            *(self.store._watches, self.store._owners, self.store._owned),
            *(waiting.waiters, waiting.ready),
            *(channels.channels, channels.patterns, channels.monitors),
        ]
        return [table for table in tables if table]

    def end_block(self, client: ServedClient) -> None:
        """End the block of a client as its time limit does."""
        assert client.waiter is not None
        self._live.waiting.end(client.waiter, client.waiter.reply)

    def count_pushes(self, count: Callable[[int], None]) -> None:
        """Call ``count`` with the number of subscribers whenever a message goes to some."""
        tell = self._live.channels.tell

        def tell_and_count(reply: Reply, subscribers: Any) -> None:
            count(len(subscribers))
            tell(reply, subscribers)

        self._live.channels.tell = tell_and_count  # type: ignore[method-assign]

    def ready_keys(self) -> list[bytes]:
        """Return the keys whose blocked clients are still to be served."""
        return list(self._live.waiting.ready)

    def blocked_keys(self) -> list[tuple[bytes, ...]]:
        """Return the keys of each blocked client."""
        return [tuple(waiter.keys) for waiter in self._live.waiting.waiters]


def new_client_object(store: Store | None = None, settings: Settings | None = None) -> ServedClient:
    """Return a client without a connection, for which commands can be run."""
    store = new_store() if store is None else store
    return SharedState(store).new_client(settings=settings)


def run_line(client: ServedClient, line: bytes) -> bytes:
    """Run a command whose arguments hold no blanks, and return its reply in RESP."""
    return encode_resp(execute(client, line.split()), client.protocol)


class SilentClient:
    """A client that is connected and sends only what a test makes it send."""

    def __init__(self, settings: Settings) -> None:
        self._session = Session(pipecache.Connection("peer"), settings, "address", False)
        self.object = SharedState().new_client(self._session, settings)
        self._start = self.object.active

    def timeout_reason(self, seconds: float) -> str:
        """Return why the server drops the client after so many seconds, or "" if it does not."""
        return self._session.overdue(self.object, self._start + seconds)

    def sends_command(self, seconds: float) -> None:
        """Note that the client sends a command after so many seconds."""
        self.object.active = self._start + seconds

    def begins_command(self, seconds: float) -> None:
        """Note that the client sends the beginning of a command after so many seconds."""
        self._session.owing = self._start + seconds


def run_session(connection: pipecache.Connection) -> None:
    """Serve a client on this connection until it leaves."""
    session = Session(connection, Settings(), "address", False)
    session.run(SharedState().new_client(session))


# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------


def is_blocked(client: ServedClient) -> bool:
    """Return True while the client waits for a key."""
    return client.waiter is not None and not client.waiter.done


def take_blocked_reply(client: ServedClient) -> Reply:
    """Return the reply of a blocking command that was served; the client is blocked no longer.

    :raises AssertionError: if the command was not served.
    """
    waiter = client.waiter
    assert waiter is not None and waiter.done, "the client is still blocked"
    client.waiter, client.halted = None, False
    return waiter.reply


def is_closing(client: ServedClient) -> bool:
    """Return True if the server closes the connection after the current reply."""
    return client.closing


def set_last_command(client: ServedClient, name: bytes) -> None:
    """Note that this command is the last that the client has sent."""
    client.command = name


def seconds_left(client: ServedClient) -> float:
    """Return the seconds until the block of a client ends by itself."""
    assert client.waiter is not None
    seconds = client.waiter.left()
    assert seconds is not None
    return seconds


def expects_reply(client: ServedClient) -> bool:
    """Return True while the client is blocked and wants the reply."""
    return client.waiter is not None and not client.waiter.muted


def read_as_text(client: ServedClient) -> None:
    """Encode messages to this subscriber as text."""
    client.subscriber.form = b"\r\n"


def takes_slow_path(client: ServedClient) -> bool:
    """Return True if commands of the client need more checks than usual."""
    return client.guarded


def watched_keys(store: Store) -> dict[bytes, int]:
    """Return the watched keys, each with the number of its watches."""
    return {key: len(watches) for key, watches in store._watches.items()}


def is_watch_broken(client: ServedClient) -> bool:
    """Return True if a key that the client watches was changed."""
    assert client.watch is not None
    return client.watch.broken


def owned_keys(store: Store, client: ServedClient) -> set[bytes]:
    """Return the keys that the client owns; check that all tables agree on them."""
    owned = set(store._owned.get(client, ()))
    assert store.owned(client) == len(owned)
    assert {key for key, owner in store._owners.items() if owner is client} == owned
    return owned


# ---------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------


def payload(value: Any) -> int:
    """Return the number of bytes in a collection by looking at each member."""
    if isinstance(value, ListValue):
        return sum(map(len, value))
    if isinstance(value, SortedSet):
        return sum(map(len, value.scores))
    return sum(len(field) + len(content) for field, content in value.items())


def recount(store: Store) -> int:
    """Return the bytes of memory that the keys take, by looking at each value.

    :raises AssertionError: if a value is inconsistent.
    """
    for key, value in store._values.items():
        if isinstance(value, bytes):
            continue
        if not len(value):
            raise AssertionError(f"{key!r} is empty but still stored")
        if value.payload != payload(value):
            raise AssertionError(f"{key!r} counts {value.payload}, holds {payload(value)} bytes")
        if isinstance(value, SortedSet):
            ranked = sorted((score, member) for member, score in value.scores.items())
            if value.pairs(0, len(value)) != ranked:
                raise AssertionError(f"{key!r} is out of order")
    owned = len(store._owners) * OWNER_COST
    return sum(map(store.cost, store._values)) + store.expiring * DEADLINE_COST + owned


def check_store(store: Store, reserved: int = 0) -> None:
    """Check that the store is consistent, and that its memory is counted right.

    :param reserved: the bytes that transactions, watches and unfinished commands take.

    :raises AssertionError: if something is wrong.
    """
    used = recount(store) + reserved
    assert used == store.used, f"{used} bytes are used, {store.used} are counted"
    for key, value in store._values.items():
        if not isinstance(value, bytes):
            again = pipecache.unpack(pipecache.letter_of(value), pipecache.pack(value))
            assert again.parts() == value.parts() and again.payload == value.payload, key
    keys = set(store._values)
    assert set(store._deadlines) <= keys, "a time to live without a key"
    assert {(end, key) for key, end in store._deadlines.items()} <= set(store._queue)
    assert store._uses is None or set(store._uses) == keys, "uses of keys that are not stored"


def reserved(clients: Sequence[ServedClient], blocked: Iterable[tuple[bytes, ...]] = ()) -> int:
    """Return the bytes of memory that transactions, watches and blocked clients take."""
    queued = [words for client in clients for _, words in client.queue or []]
    size = sum(pipecache.cost_of(word) for words in queued for word in words)
    size += len(queued) * pipecache.QUEUED_COST
    watched = [client.watch.keys for client in clients if client.watch is not None]
    keys = [key for each in [*watched, *blocked] for key in each]
    return size + sum(pipecache.WATCH_COST + len(key) for key in keys)


def queued_deadlines(store: Store) -> int:
    """Return the length of the queue of deadlines, stale ones included."""
    return len(store._queue)


def peak_size(store: Store) -> int:
    """Return the largest number of keys in the store since its dict was last shrunk."""
    return store._values._peak


def parts_of(value: SortedSet) -> list[list[Any]]:
    """Return the sorted parts that a sorted set consists of."""
    return value._parts


# ---------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------


def store_of(server: Server) -> Store:
    """Return the store of a server."""
    return server._store


@contextlib.contextmanager
def store_locked(server: Server) -> Iterator[None]:
    """Hold the lock of the store, so that every command waits."""
    with server._store.lock:
        yield


def client_count(server: Server) -> int:
    """Return the number of clients that the server serves, without connecting to it."""
    return len(server._sessions)


def thread_count(server: Server) -> int:
    """Return the number of threads that serve clients or accept them."""
    return server._workers


def connection_count(server: Server) -> int:
    """Return the number of connections that the server has accepted since its start."""
    return server._statistics.connections


def command_count(server: Server) -> int:
    """Return the number of commands that the server has run since its start."""
    return server._statistics.commands


def listener_of(server: Server) -> pipecache.Listener:
    """Return the listener of the pipe or Unix socket."""
    return server._desks[0].listener


def is_quiet(server: Server) -> bool:
    """Return True if each thread waits for a client to accept."""
    return not server._sessions and server._desks[0].spare == server._workers


def is_inbox_full(server: Server) -> bool:
    """Return True if the server does not read on, because a client has sent too much ahead."""
    return any(session.connection.full for session in list(server._sessions))


def is_stopping(server: Server) -> bool:
    """Return True once stop() was called."""
    return server._stopping.is_set()


#: The name of the method with which a server looks for clients to drop.
DROP_OVERDUE = "_drop_overdue"


def settings_of(server: Server) -> Settings:
    """Return the settings of a server, which CONFIG SET changes."""
    return server._settings


def persistence_of(server: Server) -> Persistence:
    """Return the persistence of a server that was started with a file."""
    assert server._persistence is not None
    return server._persistence


# ---------------------------------------------------------------------------
# Persistence
# ---------------------------------------------------------------------------


def save(persistence: Persistence) -> None:
    """Write all changes to the file, as the thread of a server does now and then."""
    persistence._save()


def load(persistence: Persistence) -> None:
    """Read all keys of the file into the store."""
    persistence._load()


def close_file(persistence: Persistence) -> None:
    """Close the file as it is."""
    persistence._disconnect()


def fill_disk(persistence: Persistence, free: int | None = None) -> None:
    """Limit the size of the file, so that SQLite reports a full disk.

    :param free: the number of pages that can still be added.
    """
    (pages,) = persistence._database.execute("PRAGMA page_count").fetchone()
    persistence._database.execute(f"PRAGMA max_page_count={1 if free is None else pages + free}")


def empty_disk(persistence: Persistence) -> None:
    """Lift the limit of :func:`fill_disk`."""
    persistence._database.execute("PRAGMA max_page_count=1000000")


def while_writing(persistence: Persistence, call: Callable[[], object]) -> None:
    """Call a function again and again while SQLite writes."""

    def progress() -> int:
        call()
        return 0

    persistence._database.set_progress_handler(progress, 1)


def wait_for_changes(persistence: Persistence, until: float) -> None:
    """Wait for many changes, until this time of time.monotonic()."""
    persistence._wait(until)


def pauses_before_saves(persistence: Persistence, errors: Sequence[str]) -> list[float]:
    """Return the seconds that pass before each save, if the saves end with these errors."""
    pauses: list[float] = []

    def wait(until: float) -> None:
        pauses.append(until - time.monotonic())
        persistence.error = errors[len(pauses) - 1]
        persistence._ending = len(pauses) == len(errors)

    with mock.patch.multiple(persistence, _wait=wait, _save=mock.DEFAULT):
        persistence._run()
    return pauses


def replace_thread(persistence: Persistence, thread: threading.Thread) -> None:
    """Use this thread in place of the one that writes to the file."""
    persistence._thread = thread


def count_written_key(persistence: Persistence) -> None:
    """Note that one more key was written to the file."""
    persistence._written += 1


def refuse_changes(store: Store) -> None:
    """Raise MemoryError whenever the store notes that a key was changed."""
    changed = mock.Mock(wraps=set(), update=mock.Mock(side_effect=MemoryError))
    changed.__len__ = lambda _: 0
    store._changed = changed


def log_to(file: str | None) -> None:
    """Let the server log to a file, or to standard error, as its command line does."""
    pipecache._log_to(file, "INFO")


# ---------------------------------------------------------------------------
# The command line and the table of commands
# ---------------------------------------------------------------------------


def parse_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options that these arguments of the command line stand for."""
    return vars(pipecache._argument_parser().parse_args(arguments))


def every_command() -> Iterable[pipecache.Command]:
    """Return the commands and subcommands."""
    return pipecache._every_command()


if sys.platform == "win32":

    def idle_instances(listener: pipecache.PipeListener) -> list[Any]:
        """Return the instances of the pipe to which no client is connected."""
        return listener._idle
