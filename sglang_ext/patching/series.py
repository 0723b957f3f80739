"""Reads ``patches/<release>/series`` and the headers of the patches it names.

A patch is in ``git format-patch`` form. The last paragraph of its message holds DEP-3 headers
(https://dep-team.pages.debian.net/deps/dep3/) and ours, ``Remove-When``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sglang_ext.errors import ConfigError, PatchError

__all__ = ["HEADERS", "Patch", "find_patches", "read_patch", "read_series"]

# Every patch has each of these; `Remove-When` is ours, the others are DEP-3's.
HEADERS = (
    "Description",
    "Origin",
    "Bug",
    "Forwarded",
    "Applied-Upstream",
    "Last-Update",
    "Remove-When",
)
_NAME = re.compile(r"\d{4}-[a-z0-9][a-z0-9-]*\.patch")
_HEADER = re.compile(r"(?P<name>[A-Z][A-Za-z-]*): (?P<value>.+)")
_DIFF = re.compile(r'diff --git a/(?P<old>[^\s"]+) b/(?P<new>[^\s"]+)')
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_SOURCE, _TEST = "python/sglang/", "test/"


@dataclass(frozen=True)
class Patch:
    """One patch of a series.

    Paths are those of the upstream repository, relative to its root, with forward slashes.
    """

    path: Path
    subject: str
    headers: dict[str, str]
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """File name of the patch."""
        return self.path.name

    @property
    def tests(self) -> tuple[str, ...]:
        """Test files that the patch adds or changes."""
        return tuple(
            file for file in self.files if file.startswith(_TEST) and Path(file).match("test_*.py")
        )


def find_patches(folder: Path | None) -> Path:
    """The folder that holds a sub-folder for each release.

    ``patches/`` is a part of the repository and not of the wheel, so it is looked for beside the
    package, which is where it lies in a checkout (installed editable or not at all).

    Raises:
        ConfigError: if there is no such folder.
    """
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"--patches {folder}: no such folder")
        return folder
    beside = Path(__file__).resolve().parents[2] / "patches"
    if beside.is_dir():
        return beside
    raise ConfigError(
        f"no folder {beside}: the patches are in the source repository of sglang-ext and not in "
        "its wheel; clone the repository and pass --patches CLONE/patches"
    )


def read_series(patches: Path, release: str) -> list[Patch]:
    """The patches for one release, in the order in which they are applied.

    Raises:
        ConfigError: if there is no series for the release.
        PatchError: if the series names a file that is not there, twice, or not at all, or a
            patch is not in the form that `read_patch` asks for.
    """
    folder = patches / release
    series = folder / "series"
    if not series.is_file():
        known = sorted(path.parent.name for path in patches.glob("*/series"))
        raise ConfigError(
            f"--release {release}: no file {series}; there is a series for "
            f"{', '.join(known) or 'no release'}"
        )
    names = [name for name in map(_strip_comment, series.read_text().splitlines()) if name]
    for name in names:
        if not _NAME.fullmatch(name):
            raise PatchError(f"{series}: {name!r} is not of the form NNNN-topic.patch")
        if names.count(name) > 1:
            raise PatchError(f"{series}: {name} is listed twice; remove one of the lines")
        if not (folder / name).is_file():
            raise PatchError(f"{series}: {name} is listed, but there is no such file in {folder}")
    unlisted = sorted({path.name for path in folder.glob("*.patch")} - set(names))
    if unlisted:
        raise PatchError(
            f"{series}: {', '.join(unlisted)} in {folder} is not listed; list it or remove the file"
        )
    return [read_patch(folder / name) for name in names]


def _strip_comment(line: str) -> str:
    return line.partition("#")[0].strip()


def read_patch(path: Path) -> Patch:
    """Read one patch file.

    Raises:
        PatchError: if it is not a ``git format-patch`` file, a header is missing or empty,
            ``Last-Update`` is no date, it has no test, or it touches a file outside of the
            package and the tests of upstream.
    """
    text = path.read_text()
    message, separator, diff = text.partition("\n---\n")
    if not text.startswith("From ") or not separator:
        raise PatchError(f"{path}: not a patch made by `git format-patch`")
    patch = Patch(
        path=path,
        subject=_subject(path, message),
        headers=_headers(path, message),
        files=tuple(dict.fromkeys(_files(diff))),
    )
    foreign = [file for file in patch.files if not file.startswith((_SOURCE, _TEST))]
    if foreign or any(".." in Path(file).parts for file in patch.files):
        raise PatchError(
            f"{path}: touches {', '.join(foreign) or 'a path with ..'}; only files below "
            f"{_SOURCE} and {_TEST} of the upstream repository can be checked"
        )
    if not patch.tests:
        raise PatchError(f"{path}: has no test; add a file {_TEST}registered/…/test_….py to it")
    return patch


def _subject(path: Path, message: str) -> str:
    # A long subject is folded: its next lines begin with a blank.
    found = re.search(r"^Subject: (.+(?:\n .+)*)", message, re.MULTILINE)
    if not found:
        raise PatchError(f"{path}: has no Subject line; make it with `git format-patch`")
    return re.sub(r"^\[PATCH[^]]*\] ", "", " ".join(found[1].split()))


def _headers(path: Path, message: str) -> dict[str, str]:
    last_paragraph = message.rstrip().rpartition("\n\n")[2]
    found = {m["name"]: m["value"].strip() for m in _HEADER.finditer(last_paragraph)}
    missing = [name for name in HEADERS if not found.get(name)]
    if missing:
        raise PatchError(
            f"{path}: the last paragraph of the message lacks {', '.join(missing)}; add a line "
            "`Name: value` for each"
        )
    if not _DATE.fullmatch(found["Last-Update"]):
        raise PatchError(
            f"{path}: Last-Update is {found['Last-Update']!r}; expected a date such as 2026-01-31"
        )
    return {name: found[name] for name in HEADERS}


def _files(diff: str) -> Iterator[str]:
    for line in diff.splitlines():
        if line.startswith("diff --git "):
            found = _DIFF.fullmatch(line)
            if not found:
                raise PatchError(f"cannot read the file names of the line {line!r}")
            yield from (found["old"], found["new"])
