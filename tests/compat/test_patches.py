"""The committed series, on the installed SGLang."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ext.patching import source
from sglang_ext.patching.series import find_patches, read_series
from sglang_ext.upstream.releases import TESTED_RELEASES

GIT = shutil.which("git") or "git"
RELEASE = TESTED_RELEASES[-1]


@pytest.fixture(scope="module")
def touched() -> list[Path]:
    """The installed files that the series changes."""
    _, package = source.installed_release()
    files = {file for patch in read_series(find_patches(None), RELEASE) for file in patch.files}
    paths = [package.parent / file.removeprefix("python/") for file in sorted(files)]
    return [path for path in paths if path.is_file()]


def test_every_patch_is_proved_and_the_installed_package_is_untouched(tmp_path, touched):
    before = [hashlib.sha256(path.read_bytes()).digest() for path in touched]
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "sglang_ext.cli", "patches", "check", "--json", str(report)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["ok"] is True
    series = read_series(find_patches(None), RELEASE)
    assert [patch["patch"] for patch in found["patches"]] == [patch.name for patch in series]
    for patch in found["patches"]:
        assert patch["applies"]
        assert patch["fails_without"]
        assert patch["passes_with"]
        assert patch["failed_without"]
    assert before == [hashlib.sha256(path.read_bytes()).digest() for path in touched]


def test_a_maintainer_can_git_am_the_series(tmp_path, touched):
    _, package = source.installed_release()
    clone = tmp_path / "clone"
    for path in touched:
        copy = clone / "python" / path.relative_to(package.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    series = read_series(find_patches(None), RELEASE)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        ["commit", "-q", "-m", "base"],
        ["am", "-q", *(str(patch.path.resolve()) for patch in series)],
    ):
        done = subprocess.run(
            [GIT, *identity, *arguments], cwd=clone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    log = subprocess.run(
        [GIT, "log", "--format=%s", "--reverse"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert log.stdout.splitlines()[1:] == [patch.subject for patch in series]
