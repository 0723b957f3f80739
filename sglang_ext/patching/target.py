"""Applies a series to a source tree of upstream: all of it, or nothing."""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sglang_ext.errors import ConfigError, PatchError
from sglang_ext.patching import git
from sglang_ext.patching.series import Patch

__all__ = ["Applied", "apply_series"]

_INSTALLED = ("site-packages", "dist-packages")
_TEMPORARY = ".sglang-ext-new"


@dataclass(frozen=True)
class Applied:
    """What was done to a tree: the patches it had already, and those it got now."""

    already: tuple[str, ...]
    now: tuple[str, ...]
    files: tuple[str, ...]


def apply_series(
    target: Path, series: list[Patch], release: str, *, any_release: bool = False
) -> Applied:
    """Bring a checkout of the SGLang repository to the end of a series.

    Everything is tried on copies of the touched files first. The results are then written beside
    their targets and renamed over them, so a patch that does not apply changes nothing.

    Args:
        target: root of the source tree; the package is in ``target/python/sglang``.
        series: the patches in order; a tree that has the first ones already gets the others.
        release: the release that the series is made for.
        any_release: go on although the tree is of another release, or does not tell.

    Raises:
        ConfigError: if the tree is not such a source tree, is an installed package, or is of
            another release.
        PatchError: if the series does not apply; nothing was written.
    """
    _check_target(target)
    if not any_release:
        _check_release(target, release)
    files = sorted({file for patch in series for file in patch.files})
    _check_links(target, files)
    with tempfile.TemporaryDirectory(prefix="sglang-ext-apply-") as folder:
        for count in range(len(series), -1, -1):
            tree = Path(folder) / str(count)
            _copy_files(target, tree, files)
            if _advance(tree, series, count, last_try=count == 0):
                _write_back(tree, target, files)
                break
    names = tuple(patch.name for patch in series)
    changed = {file for patch in series[count:] for file in patch.files}
    return Applied(names[:count], names[count:], tuple(sorted(changed)))


def _check_target(target: Path) -> None:
    package = target / "python" / "sglang"
    for path in (target, package):
        parts = path.resolve().parts
        if any(name in parts for name in _INSTALLED) or any(path.parent.glob("sglang-*.dist-info")):
            raise ConfigError(
                f"--target {target}: is an installed package, which a reinstall would silently "
                "undo; give the root of a source tree, for example a git clone of sglang"
            )
    if not (package / "__init__.py").is_file():
        raise ConfigError(
            f"--target {target}: has no python/sglang/__init__.py; give the root of a clone of "
            "the SGLang repository"
        )


def _check_release(target: Path, release: str) -> None:
    found = _release_of(target)
    if found != release:
        state = f"is SGLang {found}" if found else "does not tell its release"
        raise ConfigError(
            f"--target {target}: {state}, and the series is for {release}; check out the tag "
            f"v{release}, or pass --any-release to try"
        )


def _release_of(target: Path) -> str | None:
    """The release that a build has written down, or else the one of git's tag."""
    written = target / "python" / "sglang" / "_version.py"
    if written.is_file():
        found = re.search(r"^__version__ = (?:version = )?'([^']+)'", written.read_text(), re.M)
        if found:
            return found[1]
    if not (target / ".git").exists():
        return None
    done = subprocess.run(  # noqa: S603 - git, in the folder that the user named
        [git.require_git(), "-C", str(target), "describe", "--tags", "--match", "v*"],
        capture_output=True,
        text=True,
        check=False,
    )
    # "v0.5.23", or "v0.5.23-2-gabc1234" with two commits (such as these patches) on top
    found = re.match(r"v([^-\s]+)", done.stdout)
    return found[1] if found else None


def _check_links(target: Path, files: list[str]) -> None:
    root = target.resolve()
    for file in files:
        path = target / file
        if path.is_symlink() or not path.resolve().is_relative_to(root):
            raise ConfigError(f"{path} is a link or lies outside of {target}; it is not written")


def _copy_files(target: Path, tree: Path, files: list[str]) -> None:
    tree.mkdir()
    for file in files:
        if (target / file).is_file():
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target / file, tree / file)


def _advance(tree: Path, series: list[Patch], count: int, *, last_try: bool) -> bool:
    """Whether the first ``count`` patches are in the tree; it then gets the others."""
    try:
        for patch in reversed(series[:count]):
            git.apply(tree, patch.path, reverse=True)
        for patch in series:
            git.apply(tree, patch.path)
    except PatchError:
        if last_try:
            raise
        return False
    return True


def _write_back(tree: Path, target: Path, files: list[str]) -> None:
    changed = [file for file in files if _bytes(tree / file) != _bytes(target / file)]
    kept = [file for file in changed if (tree / file).is_file()]
    try:
        for file in kept:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / file, target / (file + _TEMPORARY))
        for file in kept:
            os.replace(target / (file + _TEMPORARY), target / file)
    finally:
        for file in kept:
            (target / (file + _TEMPORARY)).unlink(missing_ok=True)
    for file in set(changed) - set(kept):
        (target / file).unlink()


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
