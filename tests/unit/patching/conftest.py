"""A clone of the stand-in for SGLang, the package a wheel would install, and patches."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.patching_tree import GOOD_TEST, HEADERS, MODULE, PLAIN, TEST, git, write


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A clone of "SGLang" at the tag v1.0."""
    clone = tmp_path / "clone"
    write(clone, {"python/sglang/__init__.py": "", MODULE: PLAIN})
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "base")
    git(clone, "tag", "v1.0")
    return clone


@pytest.fixture
def package(upstream: Path, tmp_path: Path) -> Path:
    """The package as a wheel would install it."""
    installed = tmp_path / "site-packages" / "sglang"
    write(installed, {"__init__.py": "", "answers.py": PLAIN})
    return installed


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    folder = tmp_path / "patches"
    write(folder, {"1.0/series": "# in order\n"})
    return folder


@pytest.fixture
def add_patch(upstream: Path, patches: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a patch of files and puts it at the end of the series."""
    work = tmp_path / "work"

    def add(name: str, files: dict[str, str], headers: str = HEADERS) -> Path:
        if not work.exists():
            git(tmp_path, "clone", "-q", str(upstream), str(work))
        write(work, files)
        git(work, "add", "-A")
        git(work, "commit", "-qm", f"Answer a question\n\nWhy it is asked.\n\n{headers}")
        made = git(work, "format-patch", "--no-signature", "--stdout", "HEAD~1")
        path = patches / "1.0" / name
        path.write_text(made)
        with (patches / "1.0" / "series").open("a") as series:
            series.write(f"{name}\n")
        return path

    return add


@pytest.fixture
def good_patch(add_patch: Callable[..., Path]) -> Path:
    return add_patch("0001-answer.patch", {MODULE: PLAIN.replace("41", "42"), TEST: GOOD_TEST})
