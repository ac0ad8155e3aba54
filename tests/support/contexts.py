"""A store on a clock that stands still, and its clients, without a server."""

from __future__ import annotations

import random
import re
import unittest
from typing import Any

from pipecache import (
    DEADLINE_COST,
    OWNER_COST,
    Context,
    ListValue,
    Live,
    Peer,
    Reply,
    Settings,
    SortedSet,
    Statistics,
    Store,
    encode_resp,
    execute,
)
from tests.support.basics import Clock


class ContextCase(unittest.TestCase):
    """A store on a clock that stands still, and its clients, without a server."""

    def setUp(self) -> None:
        random.seed(self.id())
        self.clock = Clock()
        self.store = Store(self.clock)
        self.statistics = Statistics("address")
        self.live = Live(self.store)
        self.context = self.connect()

    def connect(self) -> Context:
        """One more client."""
        context = Context(self.store, Settings(), self.statistics, self.live)
        context.register()
        return context

    def run_command(self, *arguments: bytes) -> Reply:
        return execute(self.context, list(arguments))

    def ask(self, line: bytes, context: Context | None = None) -> bytes:
        """The reply to a command whose arguments hold no blanks, in RESP."""
        return encode_resp(execute(context or self.context, line.split()))

    def check(self, *conversation: tuple[bytes, bytes]) -> None:
        """Check the replies to commands."""
        for line, expected in conversation:
            with self.subTest(line=line):
                self.assertEqual(self.ask(line), expected)


class Recorder(Peer):
    """A client that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.lives = True
        self.woken = 0

    def push(self, data: bytes, line: bool) -> None:
        self.told.append(data)

    def wake(self) -> None:
        self.woken += 1

    def alive(self) -> bool:
        return self.lives

    def take(self) -> list[bytes]:
        """What it was told since it was last asked, each message by itself."""
        told, self.told = self.told, []
        return [each for data in told for each in re.split(rb"(?<=\n)(?=[*>+])", data)]


class LiveCase(ContextCase):
    """Several clients of a store on a clock that stands still, without a server."""

    def join(self) -> tuple[Context, Recorder]:
        """One more client, and what it is told."""
        peer = Recorder()
        context = Context(self.store, Settings(), self.statistics, self.live, peer)
        context.register()
        return context, peer

    def ask(self, line: bytes, context: Context | None = None) -> bytes:
        """The reply to a command, after which those that wait are served as a session does it."""
        client = context or self.context
        reply = encode_resp(execute(client, line.split()), client.protocol)
        self.live.waiting.serve()
        self.live.channels.deliver()
        return reply

    def waits(self, context: Context, line: bytes) -> None:
        """Let a client send a command that has to wait."""
        self.assertEqual(self.ask(line, context), b"")
        assert context.waiter is not None
        self.assertFalse(context.waiter.done)

    def served(self, context: Context) -> bytes:
        """The reply that a client has waited for; it can go on then."""
        waiter = context.waiter
        assert waiter is not None and waiter.done, "still waiting"
        context.waiter, context.halted = None, False
        return encode_resp(waiter.reply)


def payload(value: Any) -> int:
    """The bytes in a collection, counted anew."""
    if isinstance(value, ListValue):
        return sum(map(len, value))
    if isinstance(value, SortedSet):
        return sum(map(len, value.scores))
    return sum(len(field) + len(content) for field, content in value.items())


def recount(store: Store) -> int:
    """What ``used`` is to be, after a look at every value.

    :raises AssertionError: for a value that is not as it should be.
    """
    for key, value in store._values.items():
        if isinstance(value, bytes):
            continue
        if not len(value):
            raise AssertionError(f"{key!r} is empty, and still there")
        if value.payload != payload(value):
            raise AssertionError(f"{key!r} counts {value.payload}, holds {payload(value)} bytes")
        if isinstance(value, SortedSet):
            ranked = sorted((score, member) for member, score in value.scores.items())
            if value.pairs(0, len(value)) != ranked:
                raise AssertionError(f"{key!r} is out of order")
    owned = len(store._owners) * OWNER_COST
    return sum(map(store.cost, store._values)) + store.expiring * DEADLINE_COST + owned
