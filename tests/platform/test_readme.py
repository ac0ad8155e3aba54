"""What the README shows is what the tests run."""

from __future__ import annotations

import re
import unittest

from pipecache import COMMANDS, SUBCOMMANDS, _argument_parser
from tests.support import ROOT


class ReadmeTests(unittest.TestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "README.md").read_text(encoding="utf-8")

    def test_the_clients_are_the_files(self) -> None:
        for name in (
            "powershell.ps1",
            "csharp.cs",
            "python_client.py",
            "redis_pipe.py",
            "node.js",
            "pipe.c",
            "pipe.go",
        ):
            with self.subTest(name=name):
                program = (ROOT / "tests" / "clients" / name).read_text(encoding="utf-8")
                self.assertTrue(f"\n{program}```" in self.text, "the README shows another text")

    def test_every_command_is_named(self) -> None:
        for entry in {*COMMANDS.values(), *SUBCOMMANDS.values()}:
            name = entry.name.replace(" HELP", "")  # which each group of subcommands has
            self.assertTrue(re.search(rf"\b{name}\b", self.text), name)

    def test_every_option_is_named(self) -> None:
        for action in _argument_parser()._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help", "--version"):
                    self.assertTrue(re.search(f"`{option}[ `]", self.text), option)


if __name__ == "__main__":
    unittest.main()
