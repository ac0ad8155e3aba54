"""The documentation agrees with the program, and its examples work as it says."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Iterator

import client
from pipecache import COMMANDS, DEFAULT_PIPE, SUBCOMMANDS, _argument_parser
from tests.support import DEADLINE, ROOT, WINDOWS, wait_until
from tests.tools import provision

README = (ROOT / "README.md").read_text(encoding="utf-8")

#: The documents, by their path from the root.
DOCUMENTS = ("README.md", "tests/README.md", "tests/BENCHMARKS.md", "tests/clients/README.md")

#: The error that the README names for the embeddable package.
NOT_FOUND = "ModuleNotFoundError: No module named 'client'"


def blocks(language: str = "") -> list[str]:
    """Return the code blocks of the README that are marked with this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def anchors(document: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", document, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


class ReadmeTests(unittest.TestCase):
    def test_length(self) -> None:
        self.assertLessEqual(len(README.splitlines()), 400)

    def test_the_powershell_client_is_the_file(self) -> None:
        program = (ROOT / "tests" / "clients" / "powershell.ps1").read_text(encoding="utf-8")
        self.assertIn(program, blocks("powershell"))

    def test_every_python_example_compiles(self) -> None:
        for number, block in enumerate(blocks("python"), 1):
            with self.subTest(number=number):
                compile(block, f"README.md, Python block {number}", "exec")

    def test_links(self) -> None:
        for name in DOCUMENTS:
            text = (ROOT / name).read_text(encoding="utf-8")
            for link in re.findall(r"\]\(([^)\s]+)\)", text):
                with self.subTest(document=name, link=link):
                    path, _, anchor = link.partition("#")
                    target = (ROOT / name).parent / path if path else ROOT / name
                    self.assertTrue(target.exists(), "the file does not exist")
                    if anchor:
                        self.assertIn(anchor, anchors(target.read_text(encoding="utf-8")))

    def test_every_client_is_listed(self) -> None:
        folder = ROOT / "tests" / "clients"
        text = (folder / "README.md").read_text(encoding="utf-8")
        for file in folder.iterdir():
            if file.is_file() and file.name != "README.md":
                self.assertIn(f"({file.name})", text)

    def test_every_folder_of_tests_is_listed(self) -> None:
        text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
        for folder in (ROOT / "tests").iterdir():
            if folder.is_dir() and folder.name != "__pycache__":
                self.assertIn(f"| `{folder.name}/` |", text)

    def test_every_command_is_named(self) -> None:
        for entry in {*COMMANDS.values(), *SUBCOMMANDS.values()}:
            name = entry.name.replace(" HELP", "")  # each group of subcommands has one
            self.assertTrue(re.search(rf"\b{name}\b", README), name)

    def test_every_option_is_named(self) -> None:
        for action in _argument_parser()._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help", "--version"):
                    shown = f"{option} {action.metavar}" if action.metavar else option
                    self.assertTrue(f"`{shown}`" in README, shown)


class ExampleTests(unittest.TestCase):
    """The README's first example, in a new folder that holds only copies of the two files."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name) / "work"
        self.folder.mkdir()
        for name in ("pipecache.py", "client.py"):
            shutil.copy(ROOT / name, self.folder)
        # Settings such as PYTHONPATH would let Python find client.py where a user has none.
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
        }
        self.address = DEFAULT_PIPE
        if not WINDOWS:  # where TMPDIR gives the default name to this test alone
            self.env["TMPDIR"] = temporary.name
            self.address = str(Path(temporary.name) / f"CoreFxPipe_{DEFAULT_PIPE}")

    def run_python(self, python: Path, *args: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(python), *args],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )

    def answers(self) -> bool:
        """Return True if a server answers on the default pipe."""
        with contextlib.suppress(client.ServerNotRunning):
            with client.Client(self.address) as cache:
                return bool(cache.ping())
        return False

    @contextlib.contextmanager
    def server(self, python: Path) -> Iterator[None]:
        """Run ``python pipecache.py`` in the folder, as the README does."""
        if self.answers():
            self.skipTest("a server of this user has the default pipe")
        process = subprocess.Popen(
            [str(python), "pipecache.py"],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            creationflags=provision.OWN_CONSOLE,
        )
        try:
            wait_until(self.answers, "the server to be ready")
            yield
        finally:
            process.kill()
            process.communicate(timeout=DEADLINE)

    def check_commands(self, python: Path) -> None:
        """Run the commands of the README's first transcript that the client sends."""
        transcript = next(block for block in blocks() if "client.py SET" in block)
        steps = re.findall(r"^> python (.*)\n(.*)$", transcript, re.MULTILINE)
        self.assertEqual(len(steps), 2)
        for command, reply in steps:
            done = self.run_python(python, *command.split())
            self.assertEqual((done.returncode, done.stdout.decode().rstrip()), (0, reply), done)

    def check_example(self, python: Path) -> None:
        """Run the README's first Python program and compare what it prints."""
        example = blocks("python")[0]
        (self.folder / "example.py").write_text(example, encoding="utf-8")
        expected = re.findall(r"# prints: (.*)$", example, re.MULTILINE)
        for _ in range(2):  # the output does not depend on earlier runs
            done = self.run_python(python, "example.py")
            self.assertEqual((done.returncode, done.stderr), (0, b""), done)
            self.assertEqual(done.stdout.decode().splitlines(), expected)

    def test_this_python(self) -> None:
        python = Path(sys.executable)
        with self.server(python):
            self.check_commands(python)
            self.check_example(python)

    def embeddable(self) -> Path:
        """Return the python.exe of a copy of the embeddable package."""
        if not WINDOWS:
            self.skipTest("the embeddable package is for Windows: 'python tests' runs it on Wine")
        try:
            package = Path(provision.given("PIPECACHE_EMBEDDABLE"))
        except provision.Unavailable as error:
            provision.skip(error)
        copy = self.folder.parent / "python"
        # The default, copy2, calls CopyFile2 since Python 3.13, which Wine 8 does not have.
        shutil.copytree(package, copy, copy_function=shutil.copyfile)
        self.assertEqual(len(list(copy.glob("python3*._pth"))), 1)
        return copy / "python.exe"

    def test_the_embeddable_package_as_it_is(self) -> None:
        self.assertIn(NOT_FOUND, " ".join(README.split()))
        python = self.embeddable()
        with self.server(python):
            self.check_commands(python)
            (self.folder / "example.py").write_text(blocks("python")[0], encoding="utf-8")
            done = self.run_python(python, "example.py")
            self.assertEqual(done.returncode, 1)
            self.assertIn(NOT_FOUND, done.stderr.decode())

    def test_the_embeddable_package_with_client_py_beside_python(self) -> None:
        python = self.embeddable()
        shutil.copy(ROOT / "client.py", python.parent)
        with self.server(python):
            self.check_commands(python)
            self.check_example(python)

    def test_the_embeddable_package_with_a_line_in_its_path_file(self) -> None:
        python = self.embeddable()
        (path_file,) = python.parent.glob("python3*._pth")
        with open(path_file, "a", encoding="utf-8") as file:
            file.write(f"\n{self.folder}\n")
        with self.server(python):
            self.check_commands(python)
            self.check_example(python)


if __name__ == "__main__":
    unittest.main()
