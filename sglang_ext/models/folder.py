"""A model's folder: written beside its place, renamed when finished, recognised later.

A folder is one of ours when it holds :data:`MARKER`, which is written last and lists every other
file. Only such a folder (or an empty one) is ever replaced or removed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext import __version__
from sglang_ext.errors import ConfigError, ModelError

__all__ = ["MARKER", "Made", "Recipe", "make_folder", "write_json"]

MARKER = "sglang-ext-model.json"
_FORMAT = 1
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """What to make.

    Attributes:
        name: Name of the model.
        options: Everything that the bytes depend on; JSON values. A finished folder with the same
            name and options is not made again.
        build: Writes the model's files into the (empty, private) folder it is given.
    """

    name: str
    options: dict[str, Any]
    build: Callable[[Path], None]


@dataclass(frozen=True)
class Made:
    """A finished model.

    Attributes:
        path: Its folder.
        name: Name of the model.
        options: The options it was made with.
        fresh: True when it was made now, False when it was there already.
        bytes: Size of its files.
        seconds: Time this call took.
    """

    path: Path
    name: str
    options: dict[str, Any]
    fresh: bool
    bytes: int
    seconds: float


def make_folder(recipe: Recipe, out: Path, *, force: bool = False) -> Made:
    """Make the model of ``recipe`` in ``out``, or find that it is there already.

    Blocks while another process makes the same folder, then uses what that process made. A process
    that dies half way leaves ``.NAME.partial`` beside ``out``; the next call removes it.

    Args:
        recipe: What to make.
        out: The folder; its parents are created.
        force: Make it again even when it is there. Only a folder of ours is replaced.

    Raises:
        ConfigError: ``out`` is something else, or was made with other options.
        ModelError: The files could not be written.
    """
    started = time.monotonic()
    out = out.expanduser().resolve()
    # Before anything is created: a refused call leaves nothing behind.
    fresh = not _is_finished(recipe, out, force=force)
    if fresh:
        try:
            out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _lock(out.parent / f".{out.name}.lock"):
                # Another process may have finished it while this one waited.
                fresh = not _is_finished(recipe, out, force=force)
                if fresh:
                    _write(recipe, out)
        except OSError as error:
            raise ModelError(
                f"could not write the model {recipe.name} to {out}: {error.strerror or error}; "
                "choose a folder that can be written, with enough space, using --out"
            ) from error
    size = sum(entry["bytes"] for entry in _read_marker(out)["files"].values())
    return Made(out, recipe.name, recipe.options, fresh, size, time.monotonic() - started)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` with sorted keys, so that equal values give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _is_finished(recipe: Recipe, out: Path, *, force: bool) -> bool:
    """Whether ``out`` is this very model; False when it has to be made.

    Raises:
        ConfigError: ``out`` must not be touched.
    """
    if not os.path.lexists(out):
        return False
    if not out.is_dir():
        raise ConfigError(f"{out} exists and is not a folder; give another --out")
    marker = _read_marker(out)
    if not marker:
        if any(out.iterdir()):
            raise ConfigError(
                f"{out} exists and is not a model made by sglang-ext (it has no valid {MARKER}); "
                "it is left alone, with --force too: give another --out or remove it yourself"
            )
        return False
    if force:
        return False
    found = {"model": marker["model"], **marker["options"]}
    wanted = {"model": recipe.name, **recipe.options}
    if found != wanted:
        keys = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        differences = ", ".join(f"{k} {found.get(k)} instead of {wanted.get(k)}" for k in keys)
        raise ConfigError(
            f"{out} holds a model made with {differences}; give another --out, or --force to "
            "replace it"
        )
    damaged = _damaged(out, marker)
    if damaged:
        raise ConfigError(f"{out} is damaged: {damaged}; --force makes it again")
    return True


def _read_marker(folder: Path) -> dict[str, Any]:
    """The marker of ``folder``; empty when it has none that can be understood."""
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    keys = {"format": int, "model": str, "options": dict, "files": dict}
    if not isinstance(marker, dict) or any(
        not isinstance(marker.get(key), kind) for key, kind in keys.items()
    ):
        return {}
    return marker if marker["format"] == _FORMAT else {}


def _damaged(folder: Path, marker: dict[str, Any]) -> str:
    """What is wrong with the files of a finished model, by name and size; empty when nothing."""
    for name, entry in marker["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
    return ""


def _write(recipe: Recipe, out: Path) -> None:
    """Build into a private folder and rename it to ``out``. The lock is held."""
    partial = out.with_name(f".{out.name}.partial")
    replaced = out.with_name(f".{out.name}.replaced")
    for leftover in (partial, replaced):  # of a process that was killed; we hold the lock
        if os.path.lexists(leftover):
            shutil.rmtree(leftover)
    partial.mkdir(mode=0o700)
    try:
        recipe.build(partial)
        _finish(recipe, partial)
        if out.exists():  # ours, or empty: checked under the same lock
            out.rename(replaced)
        partial.rename(out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _finish(recipe: Recipe, folder: Path) -> None:
    """Write the marker and bring every file to the disk, so that a rename means finished."""
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    marker = {
        "format": _FORMAT,
        "model": recipe.name,
        "options": recipe.options,
        "made_by": f"sglang-ext {__version__}",
        "files": files,
    }
    write_json(folder / MARKER, marker)
    for path in folder.iterdir():
        path.chmod(0o600)  # safetensors does so for its file; the others follow
        _sync(path)
    _sync(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock between processes and threads; the file is removed afterwards."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The holder before us has removed the file that we locked: then it guards nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
