"""A client process of benchmark.py.

It reads one JSON object a line from standard input (``{"do": "open", …}``), does it, and answers
with one JSON line on standard output: the result, or ``{"error": …}``.  The same process serves
all contenders of its half in turn, so that none has an interpreter in a better state than another.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from typing import Any, Callable, Sequence

from tests.tools.peers.clients import CLIENTS, PATIENCE, Session

#: Keys and values of 11 bytes, as in a small cache entry.
KEYS = [f"key:{number:07d}" for number in range(1000)]
VALUES = [f"val:{number:07d}" for number in range(1000)]
#: Commands sent before the first reply is read.
IN_FLIGHT = 100
#: The mixed load has one SET in this number of commands; the others are GETs.
SET_EVERY = 10

_session: Session | None = None


def session() -> Session:
    if _session is None:
        raise RuntimeError("nothing is open")
    return _session


def plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def check(what: str, found: Any, expected: Any) -> None:
    """A reply is wrong, so the measurement is void."""
    if found != expected:
        raise ValueError(f"{what} answered {found!r} instead of {expected!r}")


def timed(
    call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], seconds: float
) -> list[float]:
    """Return the time of each call during *seconds*, at least of one."""
    clock = time.perf_counter
    laps = []
    end = clock() + seconds
    for each in itertools.cycle(arguments):
        start = clock()
        call(*each)
        stop = clock()
        laps.append(stop - start)
        if stop >= end:
            break
    return laps


def do_open(client: str, address: str, options: dict[str, str]) -> dict[str, Any]:
    global _session  # noqa: PLW0603 - a worker holds one session
    _session = CLIENTS[client](address, **options)
    return {}


def do_close() -> dict[str, Any]:
    global _session  # noqa: PLW0603
    if _session is not None:
        _session.close()
        _session = None
    return {}


def do_set(key: str, value: str) -> dict[str, Any]:
    session().set(key, value)
    return {}


def do_trips(seconds: float, warm: float, only: Sequence[str]) -> dict[str, Any]:
    """Return the microseconds of GET, SET, and each of a hundred pipelined GETs, as far as the
    client supports these and they are in *only*."""
    it = session()
    pairs = list(zip(KEYS, VALUES))
    keys = [(key,) for key in KEYS]
    batches = [(KEYS[start : start + IN_FLIGHT],) for start in range(0, len(KEYS), IN_FLIGHT)]
    for pair in pairs:
        it.set(*pair)
    results: dict[str, Any] = {}
    if not it.echo:
        check("GET", plain(it.get(KEYS[7])), VALUES[7])
        for name, many in (("a pipeline", it.pipeline), ("MGET", it.mget)):
            if many is not None:
                check(name, [plain(v) for v in many(KEYS[:IN_FLIGHT])], VALUES[:IN_FLIGHT])
    for name, call, arguments, share in (
        ("get", it.get, keys, 1),
        ("set", it.set, pairs, 1),
        ("pipeline", it.pipeline, batches, IN_FLIGHT),
        ("mget", it.mget, batches, IN_FLIGHT),
    ):
        if call is not None and name in only:
            timed(call, arguments, warm)
            laps = timed(call, arguments, seconds)
            results[name] = statistics.median(laps) / share * 1e6
    return results


def do_load(begin: float, end: float) -> dict[str, Any]:
    """Send the mixed load from now on; count between *begin* and *end*, which are ``time.time()``,
    the same clock in all processes."""
    it = session()
    get, put, clock = it.get, it.set, time.time
    laps = []
    number = os.getpid()  # so that the clients use different keys at the same time
    stop = clock()
    while stop < end:
        number += 1
        key = KEYS[number % len(KEYS)]
        start = clock()
        if number % SET_EVERY:
            get(key)
        else:
            put(key, VALUES[number % len(VALUES)])
        stop = clock()
        if start >= begin and stop <= end:
            laps.append(stop - start)
    laps.sort()
    return {"count": len(laps), "p99": laps[int(len(laps) * 0.99)] if laps else end - begin}


def do_fill(count: int, batch: int = 1000) -> dict[str, Any]:
    """Store *count* small values, *batch* per command."""
    it = session()
    if it.fill is None:
        raise NotImplementedError("this client has no command for many values")
    started = time.perf_counter()
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        it.fill({f"key:{number:07d}": f"val:{number:07d}" for number in numbers})
    taken = time.perf_counter() - started
    check("the last GET", plain(it.get(f"key:{count - 1:07d}")), f"val:{count - 1:07d}")
    return {"seconds": taken}


def do_crowd(address: str, count: int) -> dict[str, Any]:
    """Return the seconds to connect *count* clients, and for a request of each of them.

    The clients use only the operating system to speak the text protocol, so that the time is
    mostly that of the server.
    """
    started = time.perf_counter()
    clients = [_connect(address) for _ in range(count)]
    connected = time.perf_counter()
    for client in clients:
        client.send(b"GET crowd\n")
    answers = [client.receive() for client in clients]
    answered = time.perf_counter()
    for client in clients:
        client.close()
    check("the crowd", {answer.rstrip(b"\n") for answer in answers}, {b"here"})
    return {"connect": connected - started, "answer": answered - connected}


def _subscribe(channel: str) -> tuple[Callable[[str, str], Any], Callable[[], str], Any]:
    # A function that publishes, one that waits for a message, and the subscriber.
    it = session()
    if it.publish is None or it.pubsub is None:
        raise NotImplementedError("this client has no channels")
    pubsub = it.pubsub()
    pubsub.subscribe(channel)
    check("SUBSCRIBE", plain(pubsub.get_message(timeout=PATIENCE)["channel"]), channel)
    return it.publish, lambda: str(plain(pubsub.get_message(timeout=PATIENCE)["data"])), pubsub


def do_return() -> dict[str, Any]:
    """Publish each message of "there" to "back", until an empty one."""
    publish, receive, pubsub = _subscribe("there")
    while not publish("back", "ready"):  # no client has subscribed yet
        time.sleep(0.001)
    value = receive()
    while value:
        publish("back", value)
        value = receive()
    pubsub.close()
    return {}


def do_delivery(seconds: float, warm: float) -> dict[str, Any]:
    """Microseconds from before a message is published until its one subscriber has it: half of the
    way to a subscriber in another process, which publishes it again, and back; the same for a
    subscriber in this process; and for a GET of the same client."""
    publish, receive, pubsub = _subscribe("back")
    check("the other process", receive(), "ready")

    def there_and_back(value: str) -> None:
        publish("there", value)
        check("the message", receive(), value)

    def alone(value: str) -> None:
        publish("back", value)
        check("the message", receive(), value)

    session().set(KEYS[0], VALUES[0])
    values = [(value,) for value in VALUES]
    results = {}
    for name, call, arguments, share in (
        ("delivery", there_and_back, values, 2),
        ("alone", alone, values, 1),
        ("get", session().get, [(KEYS[0],)], 1),
    ):
        timed(call, arguments, warm)
        results[name] = statistics.median(timed(call, arguments, seconds)) / share * 1e6
    publish("there", "")
    pubsub.close()
    return results


DO: dict[str, Callable[..., dict[str, Any]]] = {
    "open": do_open,
    "close": do_close,
    "set": do_set,
    "trips": do_trips,
    "load": do_load,
    "fill": do_fill,
    "crowd": do_crowd,
    "delivery": do_delivery,
    "return": do_return,
}


if sys.platform == "win32":
    from tests.tools.peers import bare_pipe

    class _Client:
        def __init__(self, address: str) -> None:
            self.pipe = bare_pipe.connect(address, patience=PATIENCE)
            self.send = self.pipe.write
            self.receive = self.pipe.read
            self.close = self.pipe.close

else:
    import selectors
    import socket

    class _Client:
        def __init__(self, address: str) -> None:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE)
            self.socket.connect(address)
            self.send = self.socket.sendall
            self.close = self.socket.close

        def receive(self) -> bytes:
            return self.socket.recv(4096)

    def do_shares(address: str, count: int, seconds: float, warm: float) -> dict[str, Any]:
        """Return the replies per second of the slowest and of the median of *count* clients, and
        the longest wait.

        One loop serves all clients, so that none of them is preferred. The clients speak RESP, so
        that Redis can be measured too.
        """
        clients = [_connect(address) for _ in range(count)]
        clients[0].send(b"*3\r\n$3\r\nSET\r\n$5\r\nshare\r\n$5\r\nvalue\r\n")
        check("SET", clients[0].receive(), b"+OK\r\n")
        counts = [0] * count
        clock = time.perf_counter
        longest = 0.0
        with selectors.DefaultSelector() as selector:
            for number, client in enumerate(clients):
                selector.register(client.socket, selectors.EVENT_READ, number)
            now = clock()
            asked = [now] * count
            begin = now + warm
            end = begin + seconds
            for client in clients:
                client.send(b"*2\r\n$3\r\nGET\r\n$5\r\nshare\r\n")
            while now < end:
                for key, _ in selector.select(PATIENCE):
                    number = key.data
                    client = clients[number]
                    check("GET", client.receive(), b"$5\r\nvalue\r\n")
                    now = clock()
                    if begin <= now < end:
                        counts[number] += 1
                        longest = max(longest, now - asked[number])
                    asked[number] = now
                    client.send(b"*2\r\n$3\r\nGET\r\n$5\r\nshare\r\n")
        longest = max(longest, now - min(asked))
        for client in clients:
            client.close()
        return {
            "least": min(counts) / seconds,
            "median": statistics.median(counts) / seconds,
            "longest": longest,
        }

    DO["shares"] = do_shares

    def do_fanout(address: str, count: int, under_way: int, seconds: float) -> dict[str, Any]:
        """Messages a second that reach *count* subscribers of one channel together, while so many
        commands that publish are under way; and the share of the time in which this loop had
        nothing to do, which says whether it is what is measured.
        """
        clock = time.perf_counter
        publish = b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n$11\r\nval:0000000\r\n" * under_way
        message = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$11\r\nval:0000000\r\n"
        replied = len(b":%d\r\n" % count) * under_way
        publisher, *subscribers = (_connect(address) for _ in range(count + 1))
        buffer = bytearray(1 << 20)
        received = turns = 0
        idle = 0.0
        with selectors.DefaultSelector() as selector:
            for subscriber in subscribers:
                subscriber.send(b"*2\r\n$9\r\nSUBSCRIBE\r\n$4\r\nnews\r\n")
                expected = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
                check("SUBSCRIBE", subscriber.receive(), expected)
                selector.register(subscriber.socket, selectors.EVENT_READ)
            begin = now = clock()
            while now < begin + seconds:
                publisher.send(publish)
                left = replied
                while left:
                    left -= len(publisher.receive())
                turns += under_way
                while received < turns * count * len(message):
                    before = clock()
                    ready = selector.select(PATIENCE)
                    idle += clock() - before
                    for key, _ in ready:
                        received += key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
                now = clock()
        check("what was received", received, turns * count * len(message))
        for client in (publisher, *subscribers):
            client.close()
        return {"rate": turns * count / (now - begin), "idle": idle / (now - begin)}

    DO["fanout"] = do_fanout

    _still: list[_Client] = []

    def _connect_instead(address: str, count: int) -> list[_Client]:
        # These clients replace the ones of the last call.
        for client in _still:
            client.close()
        _still[:] = [_connect(address) for _ in range(count)]
        return _still

    def do_wait(address: str, count: int) -> dict[str, Any]:
        """Block *count* clients in BLPOP; with 0, disconnect them."""
        for client in _connect_instead(address, count):
            client.send(b"*3\r\n$5\r\nBLPOP\r\n$5\r\nqueue\r\n$1\r\n0\r\n")
        asking = _connect(address)
        text = b""
        while b"blocked_clients:%d\r\n" % count not in text:
            asking.send(b"*2\r\n$4\r\nINFO\r\n$7\r\nclients\r\n")
            text = asking.receive()
        asking.close()
        return {}

    DO["wait"] = do_wait

    def do_idle(address: str, count: int) -> dict[str, Any]:
        """Connect *count* clients that send one request; with 0, disconnect them."""
        for client in _connect_instead(address, count):
            client.send(b"*1\r\n$4\r\nPING\r\n")
            client.receive()
        return {}

    DO["idle"] = do_idle


_connect = _Client


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = DO[request.pop("do")](**request)
        except Exception as error:  # the benchmark reports every error of a library
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
