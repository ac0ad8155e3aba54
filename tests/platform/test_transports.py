"""Tests of the contracts of Listener and Connection, on the transports of this system."""

from __future__ import annotations

import os
import socket
import stat
import sys
import tempfile
import unittest
from unittest import mock

import pipecache
from pipecache import AddressInUse, Connection, ConnectionLost, TransportError
from tests.support import (
    DEADLINE,
    WINDOWS,
    Background,
    RawConnection,
    TCPConnection,
    free_port,
    running_under_wine,
    unique_name,
    wait_until,
)


def may_buffer(size: int) -> bool:
    """Allow a connection to buffer all input, however little memory is left."""
    return True


def send(
    connection: Connection, data: bytes, whole: bool = True, timeout: float = DEADLINE
) -> None:
    """Send bytes as a session does: what the system does not accept at once is flushed."""
    if not connection.send(data, whole):
        connection.flush(timeout, may_buffer)


def flush(connection: Connection, timeout: float = DEADLINE) -> None:
    """Wait until the client has read everything that was pushed."""
    connection.flush(timeout, may_buffer)


def watch(connection: Connection, timeout: float | None) -> bool:
    """Wait for input, a wake-up or the time limit; return True if the client is connected."""
    return connection.wait_for_input(timeout, may_buffer)


class TransportCase(unittest.TestCase):
    """Tests with a new listener each."""

    def setUp(self) -> None:
        self.name = self.new_name()
        self.listener = self.listen(self.name)
        self.addCleanup(self.close_listener)

    def new_name(self) -> str:
        return unique_name()

    def listen(self, name: str) -> pipecache.Listener:
        return pipecache.make_listener(pipecache.pipe_address(name))

    def raw(self, name: str) -> RawConnection:
        return RawConnection(name)

    def close_listener(self) -> None:
        self.listener.interrupt()
        self.listener.close()

    def connect(self) -> tuple[RawConnection, Connection]:
        accepted = Background(self.listener.accept)
        raw = self.raw(self.name)
        self.addCleanup(raw.close)
        connection = accepted.wait()
        assert isinstance(connection, Connection)
        self.addCleanup(connection.close)
        return raw, connection

    def whole(self, connection: Connection, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = connection.receive()
            assert chunk is not None
            data += chunk
        return data


class ContractTests(TransportCase):
    """The contract that the server relies on, for every transport."""

    def test_messages_in_both_directions(self) -> None:
        raw, connection = self.connect()
        for message in (b"a", b"some more\n", bytes(range(256))):
            raw.send(message)
            self.assertEqual(connection.receive(), message)
            self.assertTrue(connection.end_of_message)
            send(connection, message * 2)
            self.assertEqual(raw.receive(), message * 2)

    def test_megabytes_in_both_directions(self) -> None:
        raw, connection = self.connect()
        data = os.urandom(1024) * 3000
        sending = Background(lambda: raw.send(data))
        self.assertEqual(self.whole(connection, len(data)), data)
        sending.wait()
        sending = Background(lambda: send(connection, data))
        self.assertEqual(raw.read(len(data)), data)
        sending.wait()

    def test_the_end(self) -> None:
        raw, connection = self.connect()
        raw.send(b"last")
        raw.close()
        self.assertEqual(connection.receive(), b"last")
        self.assertIsNone(connection.receive())
        self.assertIsNone(connection.receive())
        self.assertFalse(watch(connection, DEADLINE))

    def test_sending_to_a_client_that_has_left(self) -> None:
        raw, connection = self.connect()
        raw.close()
        with self.assertRaises(ConnectionLost):
            for _ in range(100):
                send(connection, b"x" * 1000)

    def test_sent_data_can_be_read_after_close(self) -> None:
        raw, connection = self.connect()
        raw.send(b"unread")
        send(connection, b"the last words")
        connection.close()
        self.assertEqual(raw.receive(), b"the last words")
        self.assertTrue(raw.ended())

    def test_watch_keeps_data_that_arrives(self) -> None:
        raw, connection = self.connect()
        self.assertTrue(watch(connection, 0))
        self.assertTrue(watch(connection, 0.01))
        raw.send(b"a")
        self.assertTrue(watch(connection, DEADLINE))
        raw.send(b"b")
        self.assertTrue(watch(connection, DEADLINE))
        self.assertTrue(watch(connection, 0))
        self.assertEqual(self.whole(connection, 2), b"ab")
        raw.send(b"c")
        self.assertEqual(connection.receive(), b"c")

    def test_watch_sees_the_end_after_data(self) -> None:
        raw, connection = self.connect()
        self.assertTrue(connection.is_connected())
        watching = Background(lambda: watch(connection, None) and watch(connection, None))
        raw.send(b"unread")
        raw.close()
        self.assertFalse(watching.wait())
        self.assertFalse(connection.is_connected())
        self.assertEqual(connection.receive(), b"unread")
        self.assertIsNone(connection.receive())

    def test_a_client_that_sends_too_much_during_watch_counts_as_gone(self) -> None:
        raw, connection = self.connect()
        with mock.patch.object(pipecache, "MAX_INBOX", 1000):
            raw.send(b"x" * 500)
            self.assertTrue(watch(connection, DEADLINE))
            raw.send(b"x" * 500)
            self.assertFalse(watch(connection, DEADLINE))

    def test_wake(self) -> None:
        raw, connection = self.connect()
        waking = Background(connection.wake)
        self.assertTrue(watch(connection, None))
        waking.wait()
        connection.wake()
        connection.wake()
        self.assertTrue(watch(connection, None))
        raw.send(b"still in order")
        self.assertTrue(watch(connection, None))
        self.assertEqual(connection.receive(), b"still in order")

    def test_many_wakes(self) -> None:
        _, connection = self.connect()
        for _ in range(1000):
            connection.wake()
            self.assertTrue(watch(connection, None))
        watching = Background(lambda: watch(connection, None))
        connection.wake()
        self.assertTrue(watching.wait())

    def test_push_reaches_a_client_while_its_thread_waits(self) -> None:
        raw, connection = self.connect()
        receiving = Background(connection.receive)
        for number in range(100):
            connection.push(b"message %2d" % number)
            self.assertEqual(raw.read(10), b"message %2d" % number)
        raw.send(b"a command")
        self.assertEqual(receiving.wait(), b"a command")
        flush(connection)
        send(connection, b"its reply")
        self.assertEqual(raw.receive(), b"its reply")

    def test_push_never_waits_and_keeps_the_order(self) -> None:
        raw, connection = self.connect()
        connection.push(b"%7d\n" % 0)
        receiving = Background(connection.receive)  # receive() also sends what is pending
        pieces = [b"%7d\n" % number * (1 + number % 2000) for number in range(1, 3000)]
        for piece in pieces:  # more than the buffers of the system hold
            connection.push(piece, whole=False)
        self.assertGreater(connection.outbox_bytes, 10_000_000)
        expected = b"%7d\n" % 0 + b"".join(pieces)
        self.assertEqual(raw.read(len(expected)), expected)
        raw.send(b"done")
        self.assertEqual(receiving.wait(), b"done")
        flush(connection)
        self.assertEqual(connection.outbox_bytes, 0)

    def test_flush_waits_for_pushed_data_and_keeps_input(self) -> None:
        raw, connection = self.connect()
        for _ in range(10):
            connection.push(b"x" * 1_000_000)
        raw.send(b"a command")
        flushing = Background(lambda: flush(connection))
        self.assertEqual(raw.read(10_000_000), b"x" * 10_000_000)
        flushing.wait()
        send(connection, b"y")
        self.assertEqual(raw.receive(), b"y")
        self.assertEqual(connection.receive(), b"a command")

    def test_flush_gives_up(self) -> None:
        _, connection = self.connect()
        connection.push(b"x" * 10_000_000)
        with self.assertRaisesRegex(ConnectionLost, "did not read its reply within 0.1 s"):
            flush(connection, 0.1)

    def test_pushing_to_a_client_that_has_left(self) -> None:
        raw, connection = self.connect()
        raw.close()
        for _ in range(100):
            connection.push(b"x" * 1000)
        self.assertIsNone(connection.receive())
        connection.close()
        connection.push(b"x")

    def test_wake_does_not_disturb_receive(self) -> None:
        raw, connection = self.connect()

        def disturb() -> None:
            for _ in range(100):
                connection.wake()
            raw.send(b"data")

        disturbing = Background(disturb)
        self.assertEqual(connection.receive(), b"data")
        disturbing.wait()

    def test_interrupt(self) -> None:
        for early in (False, True):
            with self.subTest(early=early):
                _, connection = self.connect()
                if early:
                    connection.interrupt()
                receiving = Background(connection.receive)
                connection.interrupt()
                self.assertIsNone(receiving.wait())
                self.assertIsNone(connection.receive())
                self.assertFalse(watch(connection, None))
                send(connection, b"a reply under way is still sent")

    def test_abort_ends_a_send_that_is_stuck(self) -> None:
        raw, connection = self.connect()
        sending = Background(lambda: send(connection, b"x" * 10_000_000))
        self.assertTrue(raw.receive(1))  # the write is pending
        connection.abort()
        with self.assertRaises(ConnectionLost):
            sending.wait()
        with self.assertRaises(ConnectionLost):
            send(connection, b"x")

    def test_a_reply_that_is_not_read(self) -> None:
        _, connection = self.connect()
        with self.assertRaisesRegex(ConnectionLost, "did not read its reply within 0.1 s"):
            send(connection, b"x" * 10_000_000, timeout=0.1)

    def test_a_long_stream_in_pieces(self) -> None:
        raw, connection = self.connect()
        data = os.urandom(1024) * 3000
        sending = Background(lambda: send(connection, data, whole=False))
        self.assertEqual(raw.read(len(data)), data)
        sending.wait()

    def test_input_is_kept_while_a_reply_is_not_read(self) -> None:
        raw, connection = self.connect()

        def pipeline() -> None:
            raw.read(1)
            for number in range(2000):
                raw.send(b"%9d\n" % number + b"x" * 990)
            raw.read(5_000_000 - 1)
            raw.send(b"next")

        client = Background(pipeline)
        send(connection, b"reply" * 1_000_000)
        data = self.whole(connection, 2_000_004)
        self.assertEqual([int(line[-9:]) for line in data.split(b"\n")[:-1]], list(range(2000)))
        self.assertTrue(data.endswith(b"next"))
        client.wait()

    def test_wake_and_interrupt_after_close_do_nothing(self) -> None:
        _, connection = self.connect()
        connection.close()
        connection.close()
        connection.wake()
        connection.interrupt()
        connection.abort()
        connection.push(b"x")
        self.assertFalse(connection.is_connected())

    def test_several_threads_accept(self) -> None:
        accepting = [Background(self.listener.accept) for _ in range(4)]
        raws = [self.raw(self.name) for _ in range(4)]
        for number, raw in enumerate(raws):
            self.addCleanup(raw.close)
            raw.send(b"%d" % number)
        connections = [each.wait() for each in accepting]
        received = set()
        for connection in connections:
            assert isinstance(connection, Connection)
            self.addCleanup(connection.close)
            received.add(connection.receive())
        self.assertEqual(received, {b"0", b"1", b"2", b"3"})

    def test_interrupting_accept(self) -> None:
        accepting = [Background(self.listener.accept) for _ in range(4)]
        self.listener.interrupt()
        self.assertEqual([each.wait() for each in accepting], [None] * 4)
        self.assertIsNone(self.listener.accept())

    def test_clients_that_come_and_leave(self) -> None:
        for _ in range(50):
            raw, connection = self.connect()
            raw.close()
            self.assertIsNone(connection.receive())
            connection.close()

    def test_the_name_is_taken(self) -> None:
        with self.assertRaisesRegex(AddressInUse, "served by another program"):
            self.listen(self.name)
        with self.raw(self.name) as raw:
            raw.send(b"a")
            received = None
            while received is None:  # the check for another server connects, too
                connection = Background(self.listener.accept).wait()
                assert isinstance(connection, Connection)
                self.addCleanup(connection.close)
                received = connection.receive()
            self.assertEqual(received, b"a")

    def test_the_name_is_free_again(self) -> None:
        name = self.new_name()
        for _ in range(3):
            listener = self.listen(name)
            listener.interrupt()
            listener.close()
        with self.assertRaises(OSError):
            self.raw(name)


class TCPTests(ContractTests):
    """The contract on a port of 127.0.0.1."""

    def new_name(self) -> str:
        return str(free_port())

    def listen(self, name: str) -> pipecache.Listener:
        return pipecache.TCPListener(int(name))

    def raw(self, name: str) -> RawConnection:
        return TCPConnection(name)

    def test_peer_address(self) -> None:
        raw, connection = self.connect()
        assert isinstance(raw, TCPConnection)
        self.assertEqual(connection.client_address, raw.local)
        self.assertTrue(self.listener.open_to_all)


@unittest.skipUnless(WINDOWS, "named pipes exist on Windows")
class PipeTests(TransportCase):
    """Tests of what only a pipe does."""

    def test_messages(self) -> None:
        raw, connection = self.connect()
        self.assertTrue(connection.message_mode)
        raw.send(b"one")
        raw.send(b"")
        raw.send(b"two")
        self.assertEqual([connection.receive() for _ in range(3)], [b"one", b"", b"two"])
        send(connection, b"")
        self.assertEqual(raw.receive(), b"")

    def test_a_long_message_comes_in_pieces(self) -> None:
        raw, connection = self.connect()
        data = b"x" * (2 * pipecache.CHUNK_SIZE + 1)
        sending = Background(lambda: raw.send(data))
        pieces: list[bytes] = []
        while not pieces or not connection.end_of_message:
            chunk = connection.receive()
            assert chunk is not None
            pieces.append(chunk)
        sending.wait()
        self.assertEqual([len(piece) for piece in pieces], [65536, 65536, 1])

    @unittest.skipIf(
        running_under_wine(), "Wine lets a second server take the name; see test_win32"
    )
    def test_invalid_addresses(self) -> None:
        with self.assertRaises(TransportError):
            pipecache.make_listener(pipecache.pipe_address("x" * 300))


if sys.platform != "win32":

    class UnixTests(unittest.TestCase):
        def setUp(self) -> None:
            folder = tempfile.TemporaryDirectory()
            self.addCleanup(folder.cleanup)
            self.path = os.path.join(folder.name, "socket")

        def listen(self) -> pipecache.Listener:
            return pipecache.make_listener(self.path)

        def close(self, listener: pipecache.Listener) -> None:
            listener.interrupt()
            listener.close()

        def test_the_address_is_the_one_of_dotnet(self) -> None:
            with mock.patch.dict(os.environ, {"TMPDIR": "/some/where/"}):
                self.assertEqual(pipecache.pipe_address("P"), "/some/where/CoreFxPipe_P")
            with mock.patch.dict(os.environ, {"TMPDIR": ""}):
                self.assertEqual(pipecache.pipe_address("P"), "/tmp/CoreFxPipe_P")
            self.assertEqual(pipecache.pipe_address("./P"), "./P")
            self.assertEqual(pipecache.pipe_address("\\\\.\\pipe\\P"), "/tmp/CoreFxPipe_P")

        def test_access(self) -> None:
            for access, mode in (("user", 0o600), ("admins", 0o600), ("users", 0o666)):
                with self.subTest(access=access):
                    with self.assertLogs("pipecache", "INFO") as logged:
                        with pipecache.Server(self.path, access=access):
                            self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), mode)
                    expected = f"mode {mode:04o}, owner {os.geteuid()}"
                    self.assertTrue(any(expected in line for line in logged.output))

        def test_the_socket_is_private_and_removed_at_the_end(self) -> None:
            listener = self.listen()
            self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
            self.close(listener)
            self.assertFalse(os.path.exists(self.path))

        def test_a_stale_socket_is_replaced(self) -> None:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(self.path)
            listener = self.listen()
            with RawConnection(self.path):
                pass
            self.close(listener)

        def test_a_file_is_never_touched(self) -> None:
            with open(self.path, "w", encoding="ascii") as file:
                file.write("precious")
            with self.assertRaisesRegex(AddressInUse, "is not a socket of this user"):
                self.listen()
            with open(self.path, encoding="ascii") as file:
                self.assertEqual(file.read(), "precious")

        def test_a_socket_of_another_user_is_never_touched(self) -> None:
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(self.path)
            with mock.patch("os.geteuid", return_value=os.geteuid() + 1):
                with self.assertRaisesRegex(AddressInUse, "is not a socket of this user"):
                    self.listen()
            self.assertTrue(os.path.exists(self.path))

        def test_the_socket_of_a_successor_is_not_removed(self) -> None:
            listener = self.listen()
            os.unlink(self.path)
            successor = self.listen()
            self.close(listener)
            with RawConnection(self.path):
                pass
            self.close(successor)

        def test_invalid_paths(self) -> None:
            for path in ("/nowhere/at/all/socket", "/tmp/" + "x" * 200):
                with self.subTest(path=path):
                    with self.assertRaisesRegex(TransportError, "^Cannot serve "):
                        pipecache.make_listener(path)

        def test_all_descriptors_are_closed(self) -> None:
            def descriptors() -> int:
                return len(os.listdir("/dev/fd"))

            before = descriptors()
            listener = self.listen()
            accepted = Background(listener.accept)
            raw = RawConnection(self.path)
            connection = accepted.wait()
            assert isinstance(connection, Connection)
            watch(connection, 0)
            connection.close()
            raw.close()
            self.close(listener)
            with self.assertRaises(TransportError):
                pipecache.make_listener("/nowhere/at/all/socket")
            wait_until(lambda: descriptors() == before, "all descriptors are closed")


if __name__ == "__main__":
    unittest.main()
