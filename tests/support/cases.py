"""Test cases with clients but without a server, on a clock that the test sets."""

from __future__ import annotations

import random
import unittest

from pipecache import Reply, encode_resp, execute
from tests.support.internals import (
    Recorder,
    ServedClient,
    SharedState,
    is_blocked,
    run_line,
    take_blocked_reply,
)


class ClientCase(unittest.TestCase):
    """A keyspace with one client; a test can connect more."""

    def setUp(self) -> None:
        random.seed(self.id())
        self.state = SharedState()
        self.clock, self.keyspace = self.state.clock, self.state.keyspace
        self.client = self.state.connect()

    def run_command(self, *arguments: bytes) -> Reply:
        return execute(self.client, list(arguments))

    def ask(self, line: bytes, client: ServedClient | None = None) -> bytes:
        """Return the reply to a command whose arguments hold no blanks, in RESP."""
        return run_line(client or self.client, line)

    def check(self, *conversation: tuple[bytes, bytes]) -> None:
        """Check the replies to commands."""
        for line, expected in conversation:
            with self.subTest(line=line):
                self.assertEqual(self.ask(line), expected)


class PushCase(ClientCase):
    """Several clients, each of which records the messages pushed to it."""

    def join(self) -> tuple[ServedClient, Recorder]:
        """Return a new client and its connection."""
        recorder = self.state.connect_recorder()
        return recorder, recorder

    def ask(self, line: bytes, client: ServedClient | None = None) -> bytes:
        """Return the reply to a command, after which blocked clients are served."""
        reply = super().ask(line, client)
        self.state.flush()
        return reply

    def block(self, client: ServedClient, line: bytes) -> None:
        """Send a command that blocks the client."""
        self.assertEqual(self.ask(line, client), b"")
        self.assertTrue(is_blocked(client))

    def served(self, client: ServedClient) -> bytes:
        """Return the reply for which a client was blocked; the client is then unblocked."""
        return encode_resp(take_blocked_reply(client))
