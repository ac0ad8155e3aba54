"""Bad input to a server process: what it answers, what it costs, and that nobody else notices."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import unittest

from tests.support import DEADLINE, WINDOWS, RawConnection, start_server, wait_until
from tests.support.wire import PING, PONG, PROTOCOL_ERRORS, command, protocol_error

#: Bytes of the longest argument or text command, as the servers here are told.
LIMIT = 1024 * 1024

MEGABYTE = 1024 * 1024

#: In how many of them Linux counts a second.
TICKS = 100

#: The answer to a text command over the limit; its line would have ended in a line feed.
TOO_LONG = b"ERROR: the command is longer than the limit of %d bytes" % LIMIT
TOO_LONG += b"" if WINDOWS else b"\n"


class FaultCase(unittest.TestCase):
    """A server with something stored in it, and a client whom no fault may touch."""

    #: What the server is started with.
    OPTIONS: tuple[str, ...] = ("--max-message", str(LIMIT))

    def setUp(self) -> None:
        self.server = start_server(self, *self.OPTIONS)
        self.bystander = self.connect()
        self.assertEqual(self.bystander.ask(command(b"SET", b"stored", b"before")), b"+OK\r\n")
        self.addCleanup(self.check_bystander)

    def check_bystander(self) -> None:
        self.assertEqual(self.bystander.ask(command(b"GET", b"stored")), b"$6\r\nbefore\r\n")
        self.assertEqual(self.bystander.ask(command(b"DBSIZE")), b":1\r\n")

    def connect(self) -> RawConnection:
        raw = RawConnection(self.server.name)
        self.addCleanup(raw.close)
        return raw

    def refused(self, data: bytes, expected: bytes) -> None:
        """Check that data is answered with an error and the connection ended, sent or not."""
        raw = self.connect()

        def send() -> None:
            with contextlib.suppress(OSError):  # the server has had enough
                raw.send(data)

        sending = threading.Thread(target=send)
        sending.start()
        self.assertEqual(raw.read(len(expected)), expected)
        self.assertTrue(raw.ended())
        sending.join(DEADLINE)
        self.assertFalse(sending.is_alive())

    def measured(self, file: str) -> str:
        """What Linux tells of the server process; the test is skipped elsewhere."""
        if sys.platform != "linux":
            self.skipTest("what a process costs is measured on Linux")
        with open(f"/proc/{self.server.process.pid}/{file}", encoding="ascii") as lines:
            return lines.read()

    def peak(self) -> int:
        """The most memory the server has ever had, in bytes."""
        _, _, rest = self.measured("status").partition("VmHWM:")
        return int(rest.split(maxsplit=1)[0]) * 1024

    def processor_time(self) -> float:
        """Seconds the server has been computing."""
        fields = self.measured("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class RefusalTests(FaultCase):
    """Rows 3 to 10: a protocol error, and the connection ends."""

    def test_refusals(self) -> None:
        for data, expected, _ in PROTOCOL_ERRORS:
            with self.subTest(data=data[:20]):
                self.refused(PING + data, PONG + protocol_error(expected))

    def test_a_text_command_over_the_limit(self) -> None:
        """Row 11: in one message, or as a stream without a line feed."""
        for size in (LIMIT, 2 * LIMIT):
            self.refused(b"SET k " + b"x" * size, TOO_LONG)

    def test_a_value_over_the_limit(self) -> None:
        """Row 16."""
        for size in (LIMIT + 1, 2 * LIMIT):
            data = command(b"SET", b"k", b"x" * size)
            self.refused(PING + data, PONG + protocol_error(b"invalid bulk length"))

    def test_a_length_of_300_000_digits_costs_no_time(self) -> None:
        """Row 7: a number of so many digits takes int() 0.4 s."""
        before = self.processor_time()
        for _ in range(10):
            self.refused(b"*1\r\n$" + b"1" * 300_000, protocol_error(b"too big bulk count string"))
        self.assertLess(self.processor_time() - before, 2)


class MemoryTests(FaultCase):
    """Rows 10, 11, 16: what is refused takes no memory."""

    def test_a_long_text_command(self) -> None:
        """Row 11."""
        before = self.peak()
        self.refused(b"SET k " + b"x" * 64 * MEGABYTE, TOO_LONG)
        self.assertLess(self.peak() - before, 16 * MEGABYTE)

    def test_a_long_value(self) -> None:
        """Row 16: 64 MB against a limit of 1 MB."""
        before = self.peak()
        data = command(b"SET", b"k", b"x" * 64 * MEGABYTE)
        self.refused(data, protocol_error(b"invalid bulk length"))
        self.refused(
            b"*1000000\r\n" + b"*" * 64 * MEGABYTE, protocol_error(b"expected '$', got '*'")
        )
        self.assertLess(self.peak() - before, 16 * MEGABYTE)

    def test_headers_without_end(self) -> None:
        """Row 10: lines that never become a number."""
        before = self.peak()
        data = b"*1\r\n$\x00" + (b"x" * 1023 + b"\n") * 64 * 1024
        self.refused(data, protocol_error(b"too big bulk count string"))
        self.assertLess(self.peak() - before, 16 * MEGABYTE)


class PromiseTests(FaultCase):
    """Row 17: what clients only say they will send, at the usual limit."""

    OPTIONS = ()

    def test_two_hundred_clients_declare_512_megabytes(self) -> None:
        """Row 17, and row 3 for the arguments: memory is set aside for what has arrived."""
        before = self.peak()
        crowd = [self.connect() for _ in range(200)]
        for raw in crowd:
            raw.send(PING + b"*1000000\r\n$536870912\r\nabc")
        for raw in crowd:
            self.assertEqual(raw.read(len(PONG)), PONG)
        self.assertLess(self.peak() - before, 64 * MEGABYTE)


class PatienceTests(FaultCase):
    """Rows 14, 15, 25: much to do for one client, and time for the others."""

    def test_one_with_thousands_of_commands_does_not_starve_the_others(self) -> None:
        """Row 14: 10,000 commands in one message, again and again."""
        commands, rounds = 10_000, 20
        greedy = self.connect()
        received = []

        def flood() -> None:
            for _ in range(rounds):
                greedy.send(PING * commands)

        def take() -> None:
            received.append(greedy.read(len(PONG) * commands * rounds))

        threads = [threading.Thread(target=target) for target in (flood, take)]
        for thread in threads:
            thread.start()
        served = 0
        while threads[1].is_alive():
            self.assertEqual(self.bystander.ask(PING), PONG)
            served += 1
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual(received, [PONG * commands * rounds])
        self.assertGreater(served, 20)

    def test_ten_thousand_that_connect_and_leave(self) -> None:
        """Row 18: no thread is left of them, and where that is told no descriptor."""

        def come_and_go(count: int) -> None:
            for number in range(count):
                with RawConnection(self.server.name) as raw:
                    if number % 100 == 0:  # or the rest would only wait to be seen
                        self.assertEqual(raw.ask(PING), PONG)

        come_and_go(500)
        before = self.taken()
        come_and_go(9500)
        # A worker more for clients that came while the others were busy is no leak.
        wait_until(lambda: self.taken() < before + 100, "nothing is left")

    def taken(self) -> int:
        """The server's clients, and the threads and descriptors it has."""
        reply = self.bystander.ask(command(b"INFO", b"clients"))
        taken = int(reply.split(b"connected_clients:")[1].split()[0])
        if sys.platform == "linux":
            taken += len(os.listdir(f"/proc/{self.server.process.pid}/fd"))
            taken += len(os.listdir(f"/proc/{self.server.process.pid}/task"))
        return taken

    def test_empty_messages_by_the_thousand(self) -> None:
        """Row 15: of zero bytes on a pipe, empty lines elsewhere; RESP ignores them."""
        raw = self.connect()
        self.assertEqual(raw.ask(PING), PONG)
        for _ in range(5000):
            raw.send(b"" if WINDOWS else b"\r\n")
        self.assertEqual(raw.ask(PING), PONG)

    def test_no_spinning_after_empty_messages(self) -> None:
        """Row 15: a server that has nothing to do computes nothing."""
        self.processor_time()
        raw = self.connect()
        raw.send(PING + b"\r\n" * 1000)
        self.assertEqual(raw.receive(), PONG)
        before, started = self.processor_time(), time.monotonic()
        wait_until(lambda: time.monotonic() - started > 0.5, "some time has passed")
        self.assertLess(self.processor_time() - before, 0.25)

    def test_a_pattern_made_to_be_slow(self) -> None:
        """Row 25: under 50 ms, where one that tries every way to divide the key takes 0.9 s."""
        for key in (b"a" * 60, b"a" * 1000):
            self.assertEqual(self.bystander.ask(command(b"SET", key, b"v")), b"+OK\r\n")
            took = []
            for number in range(5):
                pattern = b"a*" * (7 + number) + b"b"
                started = time.monotonic()
                self.assertEqual(self.bystander.ask(command(b"KEYS", pattern)), b"*0\r\n")
                took.append(time.monotonic() - started)
            self.assertLess(min(took), 0.05)
            self.assertEqual(self.bystander.ask(command(b"DEL", key)), b":1\r\n")


class TextTests(FaultCase):
    """Rows 1, 2, 12, 13: an error or nothing at all, and the connection goes on."""

    def test_lines_with_nothing_in_them(self) -> None:
        """Rows 1, 2 and 12."""
        raw = self.connect()
        for line, reply in (
            (b"\r\n", b"ERROR: Empty command\r\n"),
            (b"\n", b"ERROR: Empty command\n"),
            (b" \n", b"ERROR: Empty command\n"),
            (b'GET "stored\n', b"ERROR: Unbalanced quotes in the command\n"),
            (b"GET stored\n", b"before\n"),
            (PING + b"\r\n", PONG),
            (b"*-10\r\n*0\r\n" + PING, PONG),
        ):
            with self.subTest(line=line):
                self.assertEqual(raw.ask(line), reply)

    def test_a_byte_a_message(self) -> None:
        """Row 13: cut inside a length, a CRLF, a value that looks like a command."""
        raw = self.connect()
        value = b"\r\n*1\r\n$4\r\nQUIT\r\n"
        for byte in command(b"SET", b"k", value) + command(b"GETDEL", b"k"):
            raw.send(bytes([byte]))
        expected = b"+OK\r\n$%d\r\n%b\r\n" % (len(value), value)
        self.assertEqual(raw.read(len(expected)), expected)


if __name__ == "__main__":
    unittest.main()
