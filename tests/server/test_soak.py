"""Tests of tests/tools/soak.py, which runs for some seconds here."""

from __future__ import annotations

import subprocess
import sys
import unittest

from tests.support import DEADLINE, ROOT


class SoakTests(unittest.TestCase):
    def soak(self, *arguments: str) -> str:
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / "tests" / "tools" / "soak.py"),
                "--clients",
                "2",
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=4 * DEADLINE,
            check=False,
        )
        out = done.stdout.decode()
        self.assertEqual(done.returncode, 0, out)
        self.assertIn("Soak passed: 0 wrong answers", out)
        return out

    def test_kills(self) -> None:
        self.assertIn("2 servers killed", self.soak("--kills", "2", "--seed", "1"))

    def test_minutes(self) -> None:
        self.assertRegex(
            self.soak("--minutes", "0.05", "--seed", "1"), r"handles: [\d,]+ at the beg"
        )


if __name__ == "__main__":
    unittest.main()
