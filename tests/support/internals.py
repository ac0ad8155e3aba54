"""The inside of pipecache.py, as far as tests need it.

Everything else in the tests uses commands, replies, INFO and the public classes. When the inside
of the server changes, this is the module to change with it.
"""

from __future__ import annotations

import contextlib
import math
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
    Client,
    Keyspace,
    ListValue,
    Persistence,
    Reply,
    Server,
    Session,
    Settings,
    SortedSet,
    State,
    encode_resp,
    execute,
)
from tests.support.basics import Clock

#: The class of a client as commands see it.
ServedClient = Client


def new_keyspace(
    clock: Callable[[], float] | None = None, wall_clock: Callable[[], float] | None = None
) -> Keyspace:
    """Return an empty keyspace.

    :param clock: returns seconds, instead of the system's clock for elapsed time.
    :param wall_clock: returns seconds since 1970, instead of the system's clock.
    """
    clocks = {"clock": clock, "wall_clock": wall_clock}
    return Keyspace(**{name: each for name, each in clocks.items() if each is not None})


class Recorder(Client):
    """A client without a connection that records the messages pushed to it."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        #: Pushed bytes that :meth:`take` has not returned.
        self.pushed: list[bytes] = []
        #: False once the client's end of the connection is closed.
        self.connected = True
        #: How often the thread that serves the client was woken.
        self.woken = 0

    def push(self, data: bytes, whole: bool) -> None:
        self.pushed.append(data)

    def wake(self) -> None:
        self.woken += 1

    def is_connected(self) -> bool:
        return self.connected

    def take(self) -> list[bytes]:
        """Return the messages pushed since the last call, each by itself."""
        pushed, self.pushed = self.pushed, []
        return [each for data in pushed for each in re.split(rb"(?<=\n)(?=[*>+])", data)]


class SharedState:
    """The state that clients share, without a server.

    :param keyspace: the keyspace; without it, an empty one on a clock that stands still.
    :param settings: without them, the keyspace keeps its limit of memory and its policy.
    """

    def __init__(self, keyspace: Keyspace | None = None, settings: Settings | None = None) -> None:
        #: The clock of a keyspace that was not given.
        self.clock = Clock()
        self.keyspace = new_keyspace(self.clock) if keyspace is None else keyspace
        if settings is None:
            limit = self.keyspace.memory_limit
            max_memory = 0 if limit == math.inf else int(limit)
            settings = Settings(max_memory=max_memory, max_memory_policy=self.keyspace.policy)
        self.state = State(settings, "address", self.keyspace)

    def connect(self) -> ServedClient:
        """Return a new client, which CLIENT LIST shows."""
        return self.register(self.new_client())

    def connect_recorder(self) -> Recorder:
        """Return a new client that records messages, and which CLIENT LIST shows."""
        recorder = Recorder(self.state)
        self.register(recorder)
        return recorder

    def register(self, client: ServedClient) -> ServedClient:
        """Let CLIENT LIST show a client."""
        self.state.add_client(client)
        return client

    def disconnect(self, client: ServedClient) -> None:
        """Remove a client as its session does at its end."""
        self.state.remove_client(client)

    def new_client(self, password: bytes | None = None) -> ServedClient:
        """Return a client that CLIENT LIST does not show."""
        return Client(self.state, password)

    def flush(self) -> None:
        """Serve blocked clients and write pushed messages, as a session does after a command."""
        self.state.blocked.serve_ready_keys()
        self.state.pubsub.flush()

    def messages(self) -> list[Any]:
        """Return what is to be written to subscribers by :meth:`flush`."""
        return list(self.state.pubsub.pending_clients)

    def leftovers(self) -> list[object]:
        """Return the shared tables that still hold something of a client."""
        pubsub, blocked = self.state.pubsub, self.state.blocked
        tables: list[dict[Any, Any]] = [
            *(self.keyspace._watches, self.keyspace._owners, self.keyspace._owned),
            *(blocked.clients, blocked.ready_keys),
            *(pubsub.channels, pubsub.patterns, pubsub.monitors),
        ]
        return [table for table in tables if table]

    def end_block(self, client: ServedClient) -> None:
        """End the block of a client as its time limit does."""
        assert client.blocked is not None
        self.state.blocked.unblock(client.blocked, client.blocked.reply)

    def count_pushes(self, count: Callable[[int], None]) -> None:
        """Call ``count`` with the number of subscribers whenever a message goes to some."""
        queue = self.state.pubsub.queue

        def queue_and_count(reply: Reply, clients: Any) -> None:
            count(len(clients))
            queue(reply, clients)

        self.state.pubsub.queue = queue_and_count  # type: ignore[method-assign]

    def ready_keys(self) -> list[bytes]:
        """Return the keys whose blocked clients are still to be served."""
        return list(self.state.blocked.ready_keys)

    def blocked_keys(self) -> list[tuple[bytes, ...]]:
        """Return the keys of each blocked client."""
        return [tuple(blocked.keys) for blocked in self.state.blocked.clients]


def new_client_object(
    keyspace: Keyspace | None = None, settings: Settings | None = None
) -> ServedClient:
    """Return a client without a connection, for which commands can be run."""
    keyspace = new_keyspace() if keyspace is None else keyspace
    return SharedState(keyspace, settings).new_client()


def run_line(client: ServedClient, line: bytes) -> bytes:
    """Run a command whose arguments hold no blanks, and return its reply in RESP."""
    return encode_resp(execute(client, line.split()), client.protocol)


class SilentClient:
    """A client that is connected and sends only what a test makes it send."""

    def __init__(self, settings: Settings) -> None:
        state = SharedState(settings=settings).state
        self.object = Session(state, pipecache.Connection("peer"))
        self._start = self.object.last_command_at

    def timeout_reason(self, seconds: float) -> str:
        """Return why the server disconnects the client after so many seconds, or ""."""
        return self.object.timeout_reason(self._start + seconds)

    def sends_command(self, seconds: float) -> None:
        """Note that the client sends a command after so many seconds."""
        self.object.last_command_at = self._start + seconds

    def begins_command(self, seconds: float) -> None:
        """Note that the client sends the beginning of a command after so many seconds."""
        self.object.command_started = self._start + seconds


def run_session(connection: pipecache.Connection) -> None:
    """Serve a client on this connection until it disconnects."""
    Session(SharedState().state, connection).run()


# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------


def is_blocked(client: ServedClient) -> bool:
    """Return True while the client waits for a key."""
    return client.blocked is not None and not client.blocked.done


def take_blocked_reply(client: ServedClient) -> Reply:
    """Return the reply of a blocking command that was served; the client is blocked no longer.

    :raises AssertionError: if the command was not served.
    """
    blocked = client.blocked
    assert blocked is not None and blocked.done, "the client is still blocked"
    client.blocked = None
    return blocked.reply


def is_closing(client: ServedClient) -> bool:
    """Return True if the server closes the connection after the current reply."""
    return bool(client.close_reason)


def set_last_command(client: ServedClient, name: bytes) -> None:
    """Note that this command is the last that the client has sent."""
    client.last_command = name


def seconds_left(client: ServedClient) -> float:
    """Return the seconds until the block of a client ends by itself."""
    assert client.blocked is not None and client.blocked.deadline is not None
    return client.blocked.deadline - time.monotonic()


def expects_reply(client: ServedClient) -> bool:
    """Return True while the client is blocked and wants the reply."""
    return client.blocked is not None and not client.blocked.suppress_reply


def read_as_text(client: ServedClient) -> None:
    """Encode messages to this subscriber as text."""
    client.terminator = b"\r\n"


def takes_slow_path(client: ServedClient) -> bool:
    """Return True if commands of the client need more checks than usual."""
    return client.slow_path


def watched_keys(keyspace: Keyspace) -> dict[bytes, int]:
    """Return the watched keys, each with the number of its watches."""
    return {key: len(watches) for key, watches in keyspace._watches.items()}


def is_watch_broken(client: ServedClient) -> bool:
    """Return True if a key that the client watches was changed."""
    assert client.watch is not None
    return client.watch.broken


def owned_keys(keyspace: Keyspace, client: ServedClient) -> set[bytes]:
    """Return the keys that the client owns; check that all tables agree on them."""
    owned = set(keyspace._owned.get(client, ()))
    assert keyspace.count_owned(client) == len(owned)
    assert {key for key, owner in keyspace._owners.items() if owner is client} == owned
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


def recount(keyspace: Keyspace) -> int:
    """Return the bytes of memory that the keys take, by looking at each value.

    :raises AssertionError: if a value is inconsistent.
    """
    for key, value in keyspace._values.items():
        if isinstance(value, bytes):
            continue
        if not len(value):
            raise AssertionError(f"{key!r} is empty but still stored")
        if value.data_bytes != payload(value):
            raise AssertionError(f"{key!r} counts {value.data_bytes}, holds {payload(value)} bytes")
        if isinstance(value, SortedSet):
            ranked = sorted((score, member) for member, score in value.scores.items())
            if value.slice(0, len(value)) != ranked:
                raise AssertionError(f"{key!r} is out of order")
    owned = len(keyspace._owners) * OWNER_COST
    expiring = keyspace.expiring * DEADLINE_COST
    return sum(map(keyspace.memory_usage, keyspace._values)) + expiring + owned


def unpacked(value: Any) -> Any:
    """Return a copy of a collection as it comes back from the file."""
    packed = pipecache.pack_parts(value.to_parts())
    return pipecache.unpack_value(pipecache.event_class(value), packed)


def check_keyspace(keyspace: Keyspace, reserved: int = 0) -> None:
    """Check that the keyspace is consistent, and that its memory is counted right.

    :param reserved: the bytes that transactions, watches and unfinished commands take.

    :raises AssertionError: if something is wrong.
    """
    used = recount(keyspace) + reserved
    assert used == keyspace.used_memory, (
        f"{used} bytes are used, {keyspace.used_memory} are counted"
    )
    for key, value in keyspace._values.items():
        if not isinstance(value, bytes):
            again = unpacked(value)
            assert again.to_parts() == value.to_parts() and again.data_bytes == value.data_bytes, (
                key
            )
    keys = set(keyspace._values)
    assert set(keyspace._deadlines) <= keys, "a time to live without a key"
    assert {(end, key) for key, end in keyspace._deadlines.items()} <= set(keyspace._deadline_heap)
    assert keyspace._access_times is None or set(keyspace._access_times) == keys, (
        "uses of keys that are not stored"
    )


def reserved(clients: Sequence[ServedClient], blocked: Iterable[tuple[bytes, ...]] = ()) -> int:
    """Return the bytes of memory that transactions, watches and blocked clients take."""
    queued = [
        words
        for client in clients
        for _, words in (client.transaction.commands if client.transaction else ())
    ]
    size = sum(pipecache.memory_cost(word) for words in queued for word in words)
    size += len(queued) * pipecache.QUEUED_COST
    watched = [client.watch.keys for client in clients if client.watch is not None]
    keys = [key for each in [*watched, *blocked] for key in each]
    return size + sum(pipecache.WATCH_COST + len(key) for key in keys)


def unsubscribing_fails(error: type[BaseException]) -> Any:
    """Let this error happen when the subscriptions of a client that disconnects are removed."""
    return mock.patch.object(pipecache.PubSub, "remove", side_effect=error)


def queued_deadlines(keyspace: Keyspace) -> int:
    """Return the length of the queue of deadlines, stale ones included."""
    return len(keyspace._deadline_heap)


def peak_size(keyspace: Keyspace) -> int:
    """Return the largest number of keys in the keyspace since its dict was last shrunk."""
    return keyspace._values._peak_size


def parts_of(value: SortedSet) -> list[list[Any]]:
    """Return the sorted parts that a sorted set consists of."""
    return value._chunks


# ---------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------


def keyspace_of(server: Server) -> Keyspace:
    """Return the keyspace of a server."""
    return server._state.keyspace


@contextlib.contextmanager
def keyspace_locked(server: Server) -> Iterator[None]:
    """Hold the lock of the keyspace, so that every command waits."""
    with server._state.keyspace.lock:
        yield


def client_count(server: Server) -> int:
    """Return the number of clients that the server serves, without connecting to it."""
    return len(server._sessions)


def thread_count(server: Server) -> int:
    """Return the number of threads that serve clients or accept them."""
    return server._workers


def connection_count(server: Server) -> int:
    """Return the number of connections that the server has accepted since its start."""
    return server._state.connections


def command_count(server: Server) -> int:
    """Return the number of commands that the server has run since its start."""
    return server._state.commands


def listener_of(server: Server) -> pipecache.Listener:
    """Return the listener of the pipe or Unix socket."""
    return server._listeners[0]


def is_quiet(server: Server) -> bool:
    """Return True if each thread waits for a client to accept."""
    return not server._sessions and server._listeners[0].spare_workers == server._workers


def is_inbox_full(server: Server) -> bool:
    """Return True if the server does not read on, because a client has sent too much ahead."""
    return any(session.connection.inbox_full for session in list(server._sessions))


def is_stopping(server: Server) -> bool:
    """Return True once stop() was called."""
    return server._stopping.is_set()


#: The name of the method with which a server looks for clients to drop.
DROP_OVERDUE = "_disconnect_timed_out"


def settings_of(server: Server) -> Settings:
    """Return the settings of a server, which CONFIG SET changes."""
    return server._settings


def persistence_of(server: Server) -> Persistence:
    """Return the persistence of a server that was started with a file."""
    assert server._state.persistence is not None
    return server._state.persistence


# ---------------------------------------------------------------------------
# Persistence
# ---------------------------------------------------------------------------


def save(persistence: Persistence) -> None:
    """Write all changes to the file, as the thread of a server does now and then."""
    persistence._save()


def load(persistence: Persistence) -> None:
    """Read all keys of the file into the keyspace."""
    persistence._load()


def close_file(persistence: Persistence) -> None:
    """Close the file as it is."""
    persistence._disconnect()


def preparing_fails(persistence: Persistence, error: Exception) -> Any:
    """Let this error happen when an opened file is prepared for writing."""
    return mock.patch.object(persistence, "_prepare_for_writing", side_effect=error)


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


def refuse_changes(keyspace: Keyspace) -> None:
    """Raise MemoryError whenever the keyspace notes that a key was changed."""
    changed = mock.Mock(wraps=set(), update=mock.Mock(side_effect=MemoryError))
    changed.__len__ = lambda _: 0
    keyspace._changed = changed


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
    return pipecache.all_commands()


if sys.platform == "win32":

    def idle_instances(listener: pipecache.PipeListener) -> list[Any]:
        """Return the instances of the pipe to which no client is connected."""
        return listener._idle_instances
