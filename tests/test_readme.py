"""What the README shows is what the tests run."""

from __future__ import annotations

import unittest

from pipecache import COMMANDS, _argument_parser
from tests.support import ROOT


class ReadmeTests(unittest.TestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "README.md").read_text(encoding="utf-8")

    def test_the_clients_are_the_files(self) -> None:
        for name in (
            "powershell.ps1",
            "csharp.cs",
            "python_client.py",
            "node.js",
            "pipe.c",
            "pipe.go",
        ):
            with self.subTest(name=name):
                program = (ROOT / "tests" / "clients" / name).read_text(encoding="utf-8")
                self.assertIn(f"\n{program}```", self.text)

    def test_every_command_is_named(self) -> None:
        for entry in COMMANDS.values():
            self.assertRegex(self.text, rf"\b{entry.name}\b")

    def test_every_option_is_named(self) -> None:
        for action in _argument_parser()._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help", "--version"):
                    self.assertIn(f"`{option} ", self.text)


if __name__ == "__main__":
    unittest.main()
