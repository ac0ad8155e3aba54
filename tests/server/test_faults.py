"""Tests of bad input to a server process: its replies, its cost, its effect on other clients.

The rows are those of tests/unit/test_fault_table.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import unittest

from tests.support import DEADLINE, WINDOWS, RawConnection, start_server, wait_until
from tests.support.wire import PING, PONG, PROTOCOL_ERRORS, command, protocol_error

#: Bytes of the longest argument or text command that the servers here accept.
LIMIT = 1024 * 1024

MEGABYTE = 1024 * 1024

#: The units per second in which Linux counts processor time.
TICKS = 100

#: The reply to a text command over the limit. A line gets a line feed.
TOO_LONG = b"ERROR: the command is longer than --max-message (%d bytes)" % LIMIT
TOO_LONG += b"" if WINDOWS else b"\n"


class FaultCase(unittest.TestCase):
    """A server with a stored value, and a bystander whom no fault may affect."""

    #: The options of the server.
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
        """Check that the server replies with an error and closes, even before all data is sent."""
        raw = self.connect()

        def send() -> None:
            with contextlib.suppress(OSError):  # the server has closed the connection
                raw.send(data)

        sending = threading.Thread(target=send)
        sending.start()
        self.assertEqual(raw.read(len(expected)), expected)
        self.assertTrue(raw.ended())
        sending.join(DEADLINE)
        self.assertFalse(sending.is_alive())

    def measured(self, file: str) -> str:
        """Return a file of Linux about the server process, or skip the test."""
        if sys.platform != "linux":
            self.skipTest("only Linux has /proc")
        with open(f"/proc/{self.server.process.pid}/{file}", encoding="ascii") as lines:
            return lines.read()

    def peak(self) -> int:
        """Return the peak memory of the server in bytes."""
        _, _, rest = self.measured("status").partition("VmHWM:")
        return int(rest.split(maxsplit=1)[0]) * 1024

    def processor_time(self) -> float:
        """Return the seconds of processor time of the server."""
        fields = self.measured("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class RefusalTests(FaultCase):
    """Rows 3 to 10: the server reports a protocol error and closes the connection."""

    def test_refusals(self) -> None:
        for data, expected, _ in PROTOCOL_ERRORS:
            with self.subTest(data=data[:20]):
                self.refused(PING + data, PONG + protocol_error(expected))

    def test_a_text_command_over_the_limit(self) -> None:
        """Row 11: the command is one message, or a stream without a line feed."""
        for size in (LIMIT, 2 * LIMIT):
            self.refused(b"SET k " + b"x" * size, TOO_LONG)

    def test_a_value_over_the_limit(self) -> None:
        """Row 16: the value is over the limit of an argument."""
        for size in (LIMIT + 1, 2 * LIMIT):
            data = command(b"SET", b"k", b"x" * size)
            self.refused(PING + data, PONG + protocol_error(b"invalid bulk length"))

    def test_a_length_of_300_000_digits_costs_no_time(self) -> None:
        """Row 7: int() takes 0.4 s for a number of that length."""
        before = self.processor_time()
        for _ in range(10):
            self.refused(b"*1\r\n$" + b"1" * 300_000, protocol_error(b"too big bulk count string"))
        self.assertLess(self.processor_time() - before, 2)


class MemoryTests(FaultCase):
    """Rows 10, 11, 16: refused input takes no memory."""

    def test_a_long_text_command(self) -> None:
        """Row 11: 64 MB against a limit of 1 MB."""
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
        """Row 10: the header of a value never ends."""
        before = self.peak()
        data = b"*1\r\n$\x00" + (b"x" * 1023 + b"\n") * 64 * 1024
        self.refused(data, protocol_error(b"too big bulk count string"))
        self.assertLess(self.peak() - before, 16 * MEGABYTE)


class PromiseTests(FaultCase):
    """Row 17: clients announce long values, with the usual limits."""

    OPTIONS = ()

    def test_two_hundred_clients_declare_512_megabytes(self) -> None:
        """Rows 17 and 3: the server allocates memory only for bytes that have arrived."""
        before = self.peak()
        crowd = [self.connect() for _ in range(200)]
        for raw in crowd:
            raw.send(PING + b"*1000000\r\n$536870912\r\nabc")
        for raw in crowd:
            self.assertEqual(raw.read(len(PONG)), PONG)
        self.assertLess(self.peak() - before, 64 * MEGABYTE)


class PatienceTests(FaultCase):
    """Rows 14, 15, 18, 25: much work for one client does not delay the others."""

    def test_thousands_of_commands_of_one_client_do_not_delay_others(self) -> None:
        """Row 14: one client sends messages of 10,000 commands without a pause."""
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

    def test_ten_thousand_clients_connect_and_leave(self) -> None:
        """Row 18: the server ends their threads and closes their descriptors."""

        def come_and_go(count: int) -> None:
            for number in range(count):
                with RawConnection(self.server.name) as raw:
                    if number % 100 == 0:  # so that the server accepts all of them in the meantime
                        self.assertEqual(raw.ask(PING), PONG)

        come_and_go(500)
        before = self.taken()
        come_and_go(9500)
        # A few more threads, for clients that came while others were served, are no leak.
        wait_until(lambda: self.taken() < before + 100, "threads and descriptors are released")

    def taken(self) -> int:
        """Return the sum of the server's clients, threads and descriptors."""
        reply = self.bystander.ask(command(b"INFO", b"clients"))
        taken = int(reply.split(b"connected_clients:")[1].split()[0])
        if sys.platform == "linux":
            taken += len(os.listdir(f"/proc/{self.server.process.pid}/fd"))
            taken += len(os.listdir(f"/proc/{self.server.process.pid}/task"))
        return taken

    def test_empty_messages_by_the_thousand(self) -> None:
        """Row 15: messages of zero bytes on a pipe, else empty lines; RESP ignores both."""
        raw = self.connect()
        self.assertEqual(raw.ask(PING), PONG)
        for _ in range(5000):
            raw.send(b"" if WINDOWS else b"\r\n")
        self.assertEqual(raw.ask(PING), PONG)

    def test_no_spinning_after_empty_messages(self) -> None:
        """Row 15: the server uses no processor time while it has nothing to do."""
        self.processor_time()
        raw = self.connect()
        raw.send(PING + b"\r\n" * 1000)
        self.assertEqual(raw.receive(), PONG)
        before, started = self.processor_time(), time.monotonic()
        wait_until(lambda: time.monotonic() - started > 0.5, "half a second has passed")
        self.assertLess(self.processor_time() - before, 0.25)

    def test_a_pattern_made_to_be_slow(self) -> None:
        """Row 25: under 50 ms. A matcher that tries every division of the key takes 0.9 s."""
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
    """Rows 1, 2, 12, 13: an error or no reply, and the connection stays open."""

    def test_empty_lines_and_arrays(self) -> None:
        """Rows 1, 2 and 12: the errors, and the input that is ignored."""
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
        """Row 13: the cuts are inside lengths, CRLFs, and a value that looks like a command."""
        raw = self.connect()
        value = b"\r\n*1\r\n$4\r\nQUIT\r\n"
        for byte in command(b"SET", b"k", value) + command(b"GETDEL", b"k"):
            raw.send(bytes([byte]))
        expected = b"+OK\r\n$%d\r\n%b\r\n" % (len(value), value)
        self.assertEqual(raw.read(len(expected)), expected)


if __name__ == "__main__":
    unittest.main()
