"""A coverage-guided fuzzer of the input of clients (atheris, on Linux).

    python tests/tools/fuzz_wire.py --seconds 600

An input is a conversation. Its first byte has flags for the connection and the server (see
``FRAMED`` and the others). Its second byte is the number of bytes after it that are the sizes of
the chunks into which the rest is cut. A session of the server receives the chunks from memory, on a
clock that stands still. For every cut:

- no exception escapes, and no command fails with an internal error;
- no input takes longer than a second;
- the parser keeps no more than it was fed, and its requests do not depend on the cut;
- the replies are well-formed RESP, one per command, and do not depend on the cut;
- a client without the password changes no key;
- at the end, nothing of the client is left, no collection is empty, and the counted memory is that
  of the keys.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import mmap
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pipecache
from pipecache import Connection, RequestParser, Session, Settings
from tests.support.internals import (
    ServedClient,
    SharedState,
    check_keyspace,
    every_command,
    expects_reply,
    new_keyspace,
)
from tests.tools import provision

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = ROOT / "tests" / "corpus" / "wire"
REQUIREMENT = "atheris==3.0.0" if sys.version_info >= (3, 11) else "atheris==2.3.0"

#: Flags in the first byte of an input: the connection has messages; a password is required; the
#: lines become commands in RESP; memory is short; the client may be a browser. The other bits are
#: the policy.
FRAMED, LOCKED, RESP, SHORT, SUSPICIOUS = 1, 2, 4, 8, 16
PASSWORD = b"secret"

#: Seconds of processor time that one input may take.
LONGEST = 1.0
#: Bytes by which the memory of the fuzzer may grow in the second half of its time.
GROWTH = 64 << 20
#: The exit status if the fuzzer cannot be set up.
NOT_SET_UP = 2

#: Commands whose effect depends on the chunks, so that outputs are not compared.
BY_THE_CUT = re.compile(rb"INFO|CLIENT|CONFIG", re.IGNORECASE)


class Clock:
    """The time of a conversation, which passes only while the client is blocked."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000 + self.now

    def time_ns(self) -> int:
        return int(self.time() * 1_000_000_000)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Memory(Connection):
    """A connection whose whole input has already arrived."""

    def __init__(self, framed: bool, chunks: list[tuple[bytes, bool]], clock: Clock) -> None:
        super().__init__("memory:0")
        self.message_mode = framed
        #: Ends the blocking command that the client has sent.
        self.end_block: Callable[[], object] | None = None
        self._clock = clock
        self._chunks = iter(chunks)
        self.output = bytearray()
        self._gone = False

    def receive(self) -> bytes | None:
        chunk, end_of_message = next(self._chunks, (None, True))
        # A stream has no messages, so each chunk counts as complete.
        self.end_of_message = end_of_message or not self.message_mode
        return None if self._gone else chunk

    def wait_for_input(self, timeout: float | None, may_buffer: Callable[[int], bool]) -> bool:
        assert self.end_block
        if timeout is None or timeout > pipecache.MAX_WAIT:
            self.end_block()
        else:
            self._clock.sleep(timeout)
        return not self._gone

    def send(self, data: bytes, whole: bool = True) -> bool:
        self.output += data
        return True

    def push(self, data: bytes, whole: bool = True) -> None:
        self.output += data

    def is_connected(self) -> bool:
        return not self._gone

    def flush(self, timeout: float, may_buffer: Callable[[int], bool]) -> None:
        pass

    def wake(self) -> None:
        pass

    def interrupt(self) -> None:
        self._gone = True

    abort = close = interrupt


class Complaints(logging.Handler):
    """A handler that records the errors that the server logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def check(self) -> None:
        for record in self.records:
            cause = record.exc_info[1] if record.exc_info else None
            raise AssertionError(f"{record.getMessage()}: {cause!r}") from cause


def chunks_of(data: bytes, sizes: bytes) -> list[tuple[bytes, bool]]:
    """Cut data into chunks of these sizes; an odd size ends a message.

    An empty message stands before each chunk of size 255, except before the first chunk, where it
    would be a text command.
    """
    found = []
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        turn += 1
        if size == 255 and position:
            found.append((b"", True))
        found.append((data[position : position + 1 + size], bool(size % 2)))
        position += 1 + size
    return found


def limits() -> Settings:
    """Return settings with the lowest limits, so that inputs reach them."""
    return Settings(max_message=1024, max_arguments=128, max_command=65536, max_reply=65536)


class Talk:
    """The output of the server for a conversation, and the number of expected replies."""

    def __init__(self, kind: int, chunks: list[tuple[bytes, bool]]) -> None:
        #: The number of replies to commands, and of messages to subscribers.
        self.replies = 0
        clock = Clock()
        keyspace = new_keyspace(clock.monotonic, clock.time)
        settings = limits()
        state = SharedState(keyspace, settings)
        if kind & SHORT:
            keyspace.memory_limit = 2048
            keyspace.policy = pipecache.POLICIES[(kind >> 5) % len(pipecache.POLICIES)]
        state.count_pushes(self.count)
        connection = Memory(bool(kind & FRAMED), chunks, clock)
        complaints = Complaints()
        pipecache.log.addHandler(complaints)
        random.seed(0)
        # The server takes the time from this clock.
        with mock.patch.multiple(pipecache, time=clock, execute=self.execute):
            password = PASSWORD if kind & LOCKED else None
            reject_http = bool(kind & SUSPICIOUS)
            session = Session(state.state, connection, "memory", password, reject_http)
            connection.end_block = lambda: state.end_block(session)
            try:
                state.register(session)
                with contextlib.suppress(pipecache.ConnectionLost):
                    session.run()
                session.release_input()
                state.disconnect(session)
            finally:
                pipecache.log.removeHandler(complaints)
        complaints.check()
        self.output = bytes(connection.output)
        assert not state.leftovers(), "the client has left something behind"
        check_keyspace(keyspace)
        self.keys = len(keyspace)

    def execute(self, client: ServedClient, arguments: Any) -> pipecache.Reply:
        """Run a command, and count its replies."""
        reply = EXECUTE(client, arguments)
        if reply is not pipecache.NO_REPLY or expects_reply(client):
            self.replies += len(reply) if isinstance(reply, pipecache.MultipleReplies) else 1
        return reply

    def count(self, messages: int) -> None:
        """Count messages to subscribers."""
        self.replies += messages


EXECUTE = pipecache.execute


#: The first bytes of replies in RESP2, and in RESP3.
KINDS, KINDS3 = b"$*+-:", b"$*+-:_,=~%>"


def read_line(data: bytes, position: int) -> tuple[bytes, bytes, int]:
    """Return the first byte of a line, the rest, and the position of the next line."""
    end = data.find(b"\r\n", position)
    assert end > position, f"no line at {position}"
    line = data[position + 1 : end]
    assert b"\r" not in line and b"\n" not in line, f"a line break in {line!r}"
    return data[position : position + 1], line, end + 2


def count_replies(data: bytes, kinds: bytes) -> int:
    """Return the number of replies, parsed strictly.

    :raises AssertionError: if a reply is not valid RESP, or incomplete.
    """
    count = position = 0
    while position < len(data):
        count += 1
        missing = 1
        while missing:
            missing -= 1
            kind, line, position = read_line(data, position)
            assert kind in kinds, f"not a type of reply: {kind!r}"
            if kind in b"$*" and line == b"-1":
                continue
            if kind in b"$=*~>%:":
                assert re.fullmatch(rb"0|-?[1-9]\d*", line), f"not an integer: {line!r}"
            if kind in b"$=*~>%":
                assert int(line) >= 0, f"negative length: {line!r}"
            if kind in b"$=":
                end = position + int(line)
                assert data[end : end + 2] == b"\r\n", "wrong length"
                assert kind != b"=" or data[position : position + 4] == b"txt:"
                position = end + 2
            elif kind in b"*~>":
                missing += int(line)
            elif kind == b"%":
                missing += 2 * int(line)
            elif kind == b",":
                float(line)
            elif kind == b"-":
                assert re.match(rb"[A-Z]+ \S", line), f"an error without a code: {line!r}"
            elif kind == b"_":
                assert not line
    return count


def parse(
    framed: bool, restricted: bool, chunks: list[tuple[bytes, bool]]
) -> Iterator[tuple[object, bytes | None]]:
    """Yield the requests that a parser returns; check that it keeps no more than it was fed."""
    settings = limits()
    parser = RequestParser(framed, settings)
    parser.unauthenticated = restricted
    fed = 0
    for chunk, end_of_message in chunks:
        fed += len(chunk)
        requests = parser.feed(chunk, end_of_message or not framed)
        while requests:
            for arguments, terminator in requests:
                if isinstance(arguments, list):
                    assert arguments, "a command without a name"
                    assert len(arguments) <= settings.max_arguments
                    assert max(map(len, arguments)) <= settings.max_message
                    yield arguments, terminator
                else:
                    yield (type(arguments), str(arguments)), terminator
                if isinstance(arguments, pipecache.ProtocolError):
                    assert not parser.buffered_bytes, "memory is counted after the end"
                    return
            requests = parser.feed(b"") if restricted else []
        kept = len(parser._buffer) + sum(map(len, parser._arguments)) * (parser._arguments_left > 0)
        counted = parser.buffered_bytes
        # An argument takes at least five bytes of the stream.
        assert kept <= fed and counted <= fed + fed // 5 * pipecache.ARGUMENT_OVERHEAD + 1
        assert kept <= counted, f"{kept} bytes are kept, {counted} are counted"
        assert sys.getsizeof(parser._buffer) <= 2 * fed + 1024, "the buffer is too large"


def check_parser(kind: int, stream: bytes, chunks: list[tuple[bytes, bool]]) -> None:
    """Check that a stream gives the same requests in one chunk, these, and small ones."""
    restricted = bool(kind & LOCKED)
    if kind & FRAMED:
        collections.deque(parse(True, restricted, chunks), 0)
    whole = list(parse(False, restricted, [(stream, True)]))
    step = 1 + len(stream) // 512  # one byte at a time, except for long streams
    small = [(stream[place : place + step], True) for place in range(0, len(stream), step)]
    for cut in (chunks, small):
        found = list(parse(False, restricted, cut))
        assert found == whole, f"{whole} in one chunk, but {found} in {len(cut)} chunks"


def in_resp(text: bytes) -> bytes:
    """Return the lines as commands in RESP."""
    commands = (line.split() for line in text.split(b"\n"))
    return b"".join(
        b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        for words in commands
        if words
    )


def check(data: bytes) -> None:
    """Test the server with one input.

    :raises AssertionError: if it finds something wrong.
    """
    if len(data) < 3:
        return
    kind, count = data[0], 1 + data[1] % 8
    sizes, stream = data[2 : 2 + count], data[2 + count :]
    if kind & RESP:
        stream = in_resp(stream)
    started = time.process_time()
    chunks = chunks_of(stream, sizes)
    check_parser(kind, stream, chunks)
    talk = Talk(kind, chunks)
    if kind & RESP:
        kinds = KINDS3 if b"HELLO" in stream.upper() else KINDS
        found = count_replies(talk.output, kinds)
        assert found == talk.replies, f"{found} replies instead of {talk.replies}"
    if kind & LOCKED and PASSWORD not in stream:
        assert not talk.keys, "a key was set without the password"
    compared = not kind & (SHORT | SUSPICIOUS) and not BY_THE_CUT.search(stream)
    if compared and kind & (RESP | FRAMED) != FRAMED:
        # The input is a stream, or RESP, in which message boundaries have no meaning.
        whole = Talk(kind & ~FRAMED, [(stream, True)]).output
        assert whole == talk.output, f"{whole!r} in one chunk, but {talk.output!r} in several"
    taken = time.process_time() - started
    assert taken < LONGEST, f"the input takes {taken:.1f} s"


def dictionary() -> str:
    """Return the words of inputs as a dictionary of libFuzzer."""
    entries = every_command()
    words = {word for entry in entries for word in entry.name.split()}
    words.update(word for entry in entries for word in re.findall(r"[A-Z]{2,}", entry.usage))
    words.update(limit.parameter for limit in pipecache.LIMITS.values())
    words.update(("notify-keyspace-events", "KEA", "maxmemory-policy", *pipecache.POLICIES))
    words.update(f"{kind}{size}\\x0d\\x0a" for kind in "*$" for size in (-1, 0, 1, 2, 3, 1024))
    words.update(("\\x0d\\x0a", "\\x0a", "\\x22", "'", "POST ", "Host:", PASSWORD.decode()))
    words.update(("-1", "0", "1", "inf", "-inf", "nan", "1e308", "0.5", "(1", "+inf", "*", "a*"))
    words.update(("9223372036854775807", "-9223372036854775808", "1024", "131072"))
    return "".join(f'"{word}"\n' for word in sorted(words))


#: The program of the fuzzing process. Only the server is instrumented, not this module.
START = """
import sys, atheris
with atheris.instrument_imports(include=["pipecache"]):
    import pipecache
from tests.tools import fuzz_wire
atheris.Setup(sys.argv, fuzz_wire.check)
atheris.Fuzz()
"""


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes, or 0 if it has ended."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    return 0


def run(python: Path, arguments: list[str], folder: Path) -> tuple[int, list[str], list[int]]:
    """Run libFuzzer; return its status, the end of its output, and its memory in each second."""
    process = subprocess.Popen(
        [str(python), "-c", START, f"-artifact_prefix={folder}/", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    levels: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(1):
            levels.append(resident(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    lines: collections.deque[str] = collections.deque(maxlen=60)
    try:
        assert process.stdout
        for line in process.stdout:
            lines.append(line.decode("utf-8", "replace").rstrip())
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        ended.set()
        sampler.join()
    return status, list(lines), [synced_at for synced_at in levels if synced_at]


def fuzz(python: Path, seconds: int, kept: str | None, folders: list[str]) -> bool:
    """Fuzz for a time, print the result, and return the exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = Path(kept) if kept else folder / "found"
        found.mkdir(exist_ok=True)
        words = folder / "words.dict"
        words.write_text(dictionary())
        options = [f"-max_total_time={seconds}", f"-dict={words}", "-max_len=4096", "-timeout=10"]
        options += ["-rss_limit_mb=1024", "-print_final_stats=1"]
        status, lines, levels = run(python, [*options, str(found), str(CORPUS), *folders], folder)
        if status:
            print("\n".join(lines))
            for crash in sorted(folder.glob("*-*")):
                print(f"{crash.name}: {crash.read_bytes()!r}")
    executed = re.findall(r"number_of_executed_units:\s*(\d+)", "\n".join(lines))
    if not executed:
        status = status or 1  # the fuzzer did not start
    # The memory that the fuzzer needs at its start is not growth.
    levels = levels[len(levels) // 10 :]
    if levels:
        first, middle, last = levels[0], max(levels[: len(levels) // 2 + 1]), levels[-1]
        shown = ", ".join(f"{level / 1e6:.0f} MB" for level in (first, middle, last))
        print(f"Memory at the beginning, in the middle, at the end: {shown}")
        if last > middle + GROWTH:
            print("The memory grows.")
            status = 1
    runs = "".join(executed) or "no"
    print(f"Fuzzing {'FAILED' if status else 'passed'}: {runs} inputs in {seconds} s", flush=True)
    return not status


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/tools/fuzz_wire.py", description="Fuzz the protocol."
    )
    parser.add_argument(
        "--seconds", type=int, default=600, metavar="N", help="seconds to fuzz (600)"
    )
    parser.add_argument("--keep", metavar="FOLDER", help="keep new inputs in this folder")
    parser.add_argument("folders", nargs="*", help="folders with more inputs to start with")
    options = parser.parse_args()
    folders = [str(Path(folder).resolve()) for folder in options.folders]
    try:
        if sys.platform != "linux":
            raise provision.Unavailable("the fuzzer needs atheris, which runs on Linux")
        python = provision.environment("fuzz", [REQUIREMENT])
    except provision.Unavailable as error:
        print(f"{provision.NOT_SET_UP}{error}", flush=True)
        return NOT_SET_UP
    kept = str(Path(options.keep).resolve()) if options.keep else None
    return 0 if fuzz(python, options.seconds, kept, folders) else 1


if __name__ == "__main__":
    sys.exit(main())
