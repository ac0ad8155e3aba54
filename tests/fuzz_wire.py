"""A coverage-guided fuzzer for what clients can send (atheris, on Linux).

    python tests/fuzz_wire.py --seconds 600

An input is a conversation: its first byte says whether the connection has messages, whether a
password is needed, and which protocol is spoken; its second how the rest is cut into chunks.  A
session of the server takes them from memory.  However they are cut:

- no exception escapes, and no command fails with an internal error;
- nothing takes longer than a second;
- the replies are well-formed, and of a stream the same for every cut;
- afterwards nothing is left of the client, no collection is empty, and the memory counted for the
  keys is what they take.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pipecache
from pipecache import Connection, Context, Live, Session, Settings, Statistics, Store
from tests import provision

CORPUS = Path(__file__).resolve().parent / "corpus"
REQUIREMENT = "atheris==3.0.0" if sys.version_info >= (3, 11) else "atheris==2.3.0"

#: Seconds of a processor that one input may take.
LONGEST = 1.0
#: Bytes by which the fuzzer may have grown in the second half of its time.
GROWTH = 64 << 20
#: What answers by the clock, by chance of its own, or by the cut: not compared.
UNLIKE = re.compile(
    rb"TIME|INFO|CLIENT|MONITOR|LASTSAVE|COMMAND|CONFIG|HELP|RAND|SPOP|SCAN|HELLO", re.IGNORECASE
)


class Memory(Connection):
    """A client whose whole conversation is there already, and who leaves when it waits."""

    def __init__(self, framed: bool, chunks: list[tuple[bytes, bool]]) -> None:
        super().__init__("memory:0")
        self.framed = framed
        self._chunks = iter(chunks)
        self.output = bytearray()
        self._gone = False

    def receive(self) -> bytes | None:
        chunk, self.end_of_message = next(self._chunks, (None, True))
        return None if self._gone else chunk

    def watch(self, timeout: float | None) -> bool:
        return False

    def send(self, data: bytes, whole: bool = True) -> None:
        self.output += data

    push = send

    def flush(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def interrupt(self) -> None:
        self._gone = True

    abort = close = interrupt


class Complaints(logging.Handler):
    """Keeps what a server logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def chunks_of(data: bytes, sizes: bytes) -> list[tuple[bytes, bool]]:
    """Cut data where the sizes say, of which an odd one ends a message."""
    found = []
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        turn += 1
        found.append((data[position : position + 1 + size], bool(size % 2)))
        position += 1 + size
    return found


def talk(framed: bool, locked: bool, chunks: list[tuple[bytes, bool]]) -> bytes:
    """What the server answers to a conversation."""
    settings = Settings()
    settings.max_message, settings.max_arguments, settings.max_memory = 4096, 128, 1 << 20
    settings.max_command = settings.max_reply = 65536
    clock = [1000.0]
    store = Store(lambda: clock[0], lambda: 1_700_000_000 + clock[0])
    store.limit = settings.max_memory
    statistics, live = Statistics("memory"), Live(store)
    connection = Memory(framed, chunks)
    session = Session(connection, settings, "memory", suspicious=False)
    password = b"secret" if locked else None
    context = Context(store, settings, statistics, live, session, password)
    complaints = Complaints()
    pipecache.log.addHandler(complaints)
    random.seed(0)
    try:
        context.register()
        with contextlib.suppress(pipecache.ConnectionLost):
            session.run(context)
        session.release(store)
        context.leave()
    finally:
        pipecache.log.removeHandler(complaints)
    assert not complaints.records, complaints.records[0].getMessage()
    assert not (live.waiting.waiters or live.channels.channels or live.channels.patterns)
    assert not (live.channels.monitors or store._watches or store._owners)
    check_store(store)
    return bytes(connection.output)


def check_store(store: Store) -> None:
    """No collection is empty, and what is counted is what there is."""
    used = store.expiring * pipecache.DEADLINE_COST
    for key in list(store._values):
        value = store._values[key]
        assert isinstance(value, bytes) or value, key
        used += store.cost(key)
        if not isinstance(value, bytes):
            again = pipecache.unpack(pipecache.letter_of(value), pipecache.pack(value))
            assert again.parts() == value.parts() and again.payload == value.payload, key
    assert used == store.used, (used, store.used)


def check_replies(data: bytes) -> None:
    """Look whether these are whole replies in RESP."""
    position = missing = 0
    while position < len(data) or missing:
        end = data.index(b"\r\n", position)
        kind, line = data[position : position + 1], data[position + 1 : end]
        position = end + 2
        missing -= missing > 0
        if kind in b"$=" and line != b"-1":
            position += int(line) + 2
            assert data[position - 2 : position] == b"\r\n", "a length that is wrong"
        elif kind in b"*~>%" and line != b"-1":
            missing += int(line) * (1 + (kind == b"%"))
        else:
            assert kind in b"$*+-:,_", f"no kind of reply: {kind!r}"


def check(data: bytes) -> None:
    """Put one input to the test.

    :raises AssertionError: if it finds something wrong.
    """
    if len(data) < 3:
        return
    framed, locked, resp = (bool(data[0] & bit) for bit in (1, 2, 4))
    count = 1 + data[1] % 8
    sizes, stream = data[2 : 2 + count], data[2 + count :]
    if not sizes:
        return
    if resp and not framed:  # nothing but RESP: each line of the stream is a command
        lines = [line.split() for line in stream.split(b"\n")]
        stream = b"".join(
            b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)
            for words in lines if words
        )  # fmt: skip
    started = time.process_time()  # what else this machine does is not to count
    with mock.patch("time.sleep"):
        output = talk(framed, locked, chunks_of(stream, sizes))
        if not framed and not UNLIKE.search(stream):
            whole = talk(framed, locked, [(stream, True)])
            assert whole == output, f"{whole!r} at once, but {output!r} in parts"
        if resp and not framed:
            check_replies(output)
    taken = time.process_time() - started
    assert taken < LONGEST, f"it takes {taken:.1f} s"


def dictionary() -> str:
    """What inputs are made of, as libFuzzer reads it."""
    words = {entry.name.split()[0] for entry in pipecache._every_command()}
    words.update(re.findall(r"[A-Z]{2,}", " ".join(e.usage for e in pipecache._every_command())))
    words.update(("*1\\x0d\\x0a", "*2\\x0d\\x0a", "*3\\x0d\\x0a", "$1\\x0d\\x0a", "$3\\x0d\\x0a"))
    words.update(("-1", "0", "inf", "nan", "1e308", "9223372036854775807", "(1", "[a", "secret"))
    return "".join(f'"{word}"\n' for word in sorted(words))


def fuzz(seconds: int, folders: list[str]) -> None:
    """Run the fuzzer in this process, which it ends."""
    atheris: Any = __import__("atheris")
    atheris.instrument_all()
    with tempfile.NamedTemporaryFile("w", suffix=".dict", delete=False) as file:
        file.write(dictionary())
    options = (f"-max_total_time={seconds}", f"-dict={file.name}", "-max_len=2048", "-timeout=10")
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", *folders], check)
    atheris.Fuzz()


def memory_of(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/fuzz_wire.py", description="Fuzz the protocol.")
    parser.add_argument("--seconds", type=int, default=600, metavar="N", help="how long (600)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", help="further inputs to begin with")
    options = parser.parse_args()
    if options.here:
        fuzz(options.seconds, options.folders)
        return 0
    try:
        python = provision.environment("fuzz", [REQUIREMENT])
    except provision.Unavailable as error:
        print(f"{provision.NOT_SET_UP}{error}")
        return 2
    with tempfile.TemporaryDirectory() as found:
        command = [str(python), str(Path(__file__).resolve()), "--here"]
        process = subprocess.Popen(
            [*command, "--seconds", str(options.seconds), found, str(CORPUS), *options.folders],
            cwd=found, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(CORPUS.parent.parent)},
        )  # fmt: skip
        levels: list[int] = []
        lines: list[str] = []
        for raw in process.stdout or ():
            line = raw.decode("utf-8", "replace").rstrip()
            lines.append(line)
            if re.match(r"#\d+\s", line):
                levels.append(memory_of(process.pid))
        status = process.wait()
        if status:
            print("\n".join(lines[-40:]))
            for crash in Path(found).glob("*-*"):
                if re.match("crash|timeout|oom", crash.name):
                    print(f"{crash.name}: {crash.read_bytes()!r}")
    runs = next((line for line in lines if "number_of_executed_units" in line), "no run").split()[
        -1
    ]
    if len(levels) > 4:
        first, middle, last = levels[len(levels) // 10], levels[len(levels) // 2], levels[-1]
        print("memory: " + ", ".join(f"{level / 1e6:.0f} MB" for level in (first, middle, last)))
        if last > middle + GROWTH:
            print("the memory grows")
            status = 1
    print(f"Fuzzing {'FAILED' if status else 'passed'}: {runs} inputs in {options.seconds} s")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
