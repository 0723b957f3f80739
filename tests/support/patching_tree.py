"""A small stand-in for SGLang's source, and the git that makes patches against it."""

import os
import shutil
import subprocess
from pathlib import Path

GIT = shutil.which("git") or "git"
HEADERS = """Description: answers 42
Origin: vendor, sglang-ext
Bug: none filed
Forwarded: no
Applied-Upstream: no
Last-Update: 2026-01-31
Remove-When: upstream answers 42
"""
MODULE = "python/sglang/answers.py"
PLAIN = "def answer():\n    return 41\n\n\n# the end\n"
TEST = "test/registered/unit/test_answers.py"
GOOD_TEST = """import unittest

from sglang import answers


class TestAnswers(unittest.TestCase):
    def test_new(self):
        self.assertEqual(answers.answer(), 42)

    def test_kept(self):
        self.assertTrue(callable(answers.answer))
"""


def git(folder: Path, *command: str) -> str:
    environment = os.environ | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.invalid",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.invalid",
    }
    return subprocess.run(
        [GIT, *command], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
