"""Looks after the stores of the third tier while no server needs them: state, checks, cleaning.

Works on the folder of ``--ext-l3-dir`` and on a single store alike.

Pure: neither torch nor SGLang is imported.
"""

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_ext.cache.folder import (
    ServerLock,
    abandoned,
    named_folders,
    overhead_bytes,
    remove_store,
)
from sglang_ext.cache.store import Finding, PageStore, StoreOptions, verify_store
from sglang_ext.cache.store.disk import OPEN_FLAGS, RealDisk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.index import Index
from sglang_ext.cache.store.segment_files import UNFINISHED
from sglang_ext.cache.store.segments import Segments
from sglang_ext.cache.store.survey import survey
from sglang_ext.errors import ConfigError, StoreError

__all__ = ["Cleaned", "Resident", "StoreState", "clean", "look", "resident", "stores_in", "verify"]

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_LEFT_OVER = re.compile(r"(policy\.state|secret)\.\d+\.new")
_SCAN_THREADS = 16
_LOOKS = 10

# (store, pages done, pages in all)
OnPage = Callable[[Path, int, int], None]


@dataclass(frozen=True)
class StoreState:
    """One store as it is now. ``problem`` says what is wrong with it; empty where nothing is."""

    store: str
    pages: int = 0
    payload_bytes: int = 0
    disk_bytes: int = 0
    segments: int = 0
    in_use_by: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Resident:
    """The pages of a store, and where they lie; ``unusable`` names segments and why they are."""

    index: Index
    segments: Segments
    unusable: list[str]


@dataclass
class Cleaned:
    """What was done to a folder."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # abandoned, and not ours alone
    errors: list[dict[str, str]] = field(default_factory=list)  # stores that cannot be used
    dropped_pages: int = 0
    evicted_pages: int = 0
    freed_bytes: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


def stores_in(folder: Path) -> list[Path]:
    """The stores in the folder of a third tier, or the one that the folder is.

    Raises:
        ConfigError: there is none.
    """
    if _is_store(folder):
        return [folder]
    found = [path for path in named_folders(folder).values() if _is_store(path, named=True)]
    if not found:
        raise ConfigError(
            f"{folder} holds no page store",
            fix="give the folder of --ext-l3-dir; a server makes its stores when it starts",
        )
    return found


def _is_store(folder: Path, *, named: bool = False) -> bool:
    """Whether there are files of a store, with or without its superblock.

    Args:
        folder: any.
        named: as a store is: then something that must not be used counts as one, and whoever opens
            it says why.
    """
    try:
        store = StoreFolder(folder, RealDisk(), writer=False)
    except FileNotFoundError:
        return (folder / "STORE").is_file()
    except StoreError:
        return named or any((folder / name).exists() for name in ("STORE", "segments"))
    return any(path.name != "lock" for path in store.own_files())


def look(store: Path) -> StoreState:
    """The state of a store, which a server may be using."""
    holder = _holder(store)
    try:
        folder = StoreFolder(store, RealDisk(), writer=False)
        if not folder.load():
            folder.check_empty()
            return StoreState(store.name, problem=f"{store} holds no page store")
        pages = resident(folder, in_use=holder is not None)
        return StoreState(
            store.name,
            pages=len(pages.index),
            payload_bytes=pages.index.payload_total_bytes,
            disk_bytes=folder.allocated_bytes(),
            segments=len(pages.segments.by_number),
            in_use_by=holder,
            problem="; ".join(pages.unusable),
        )
    except (StoreError, OSError) as error:
        return StoreState(store.name, in_use_by=holder, problem=str(error))


def resident(folder: StoreFolder, *, in_use: bool) -> Resident:
    """The pages of a store and where they lie, read from its checkpoint and journal.

    Args:
        folder: of the store, loaded.
        in_use: a server goes on writing meanwhile. Its checkpoint may be replaced just now; then
            this looks again, and does not read the whole store instead.

    Raises:
        StoreError: it did not stand still for long enough, or cannot be used.
    """
    for _ in range(_LOOKS):
        with survey(folder, direct=False, threads=0 if in_use else _SCAN_THREADS) as found:
            if not in_use or found.recovered.how in ("journal", "clean", "new"):
                gone = found.recovered.gone
                unusable = [
                    f"{folder.segment_path(number)}: {why}"
                    for number, why in found.unusable
                    if why != UNFINISHED or number in gone
                ]
                return Resident(found.recovered.index, found.segments, unusable)
        time.sleep(0.2)
    raise StoreError(f"{folder.path} is being written too fast to be looked at; try again")


def _holder(store: Path) -> int | None:
    """The process that writes to a store, 0 where that is not known; None where there is none."""
    for name in ("lock", "STORE"):
        holder = _holder_of(store / name)
        if holder is not None:
            return holder
    return None


def _holder_of(file: Path) -> int | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | OPEN_FLAGS)
    except OSError:
        return None
    try:
        # Shared, and given back at once: whoever wants to write tries again.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def verify(store: Path, on_page: OnPage | None = None) -> list[Finding]:
    """Read every page of a store and compare it; nothing is changed.

    Returns:
        What is damaged. What a server that was killed explains is logged.

    Raises:
        StoreError: a server uses it, or it is none.
    """
    findings = _findings(store, on_page)
    damaged = [finding for finding in findings if not finding.explained]
    explained = [finding for finding in findings if finding.explained]
    if pages := sum(bool(finding.key) for finding in explained):
        logger.warning(
            "%s: %d pages were evicted and overwritten while the server was killed; they are "
            "misses, and no sign of a bad disk",
            store,
            pages,
        )
    for finding in explained:
        if not finding.key:
            logger.warning("%s: %s: %s", store, finding.file, finding.what)
    return damaged


def _findings(store: Path, on_page: OnPage | None) -> list[Finding]:
    def tell(done: int, pages: int) -> None:
        if on_page is not None:
            on_page(store, done, pages)

    return list(verify_store(store, tell))


def clean(
    folder: Path,
    *,
    size_bytes: int | None = None,
    ranks: int | None = None,
    on_page: OnPage | None = None,
) -> Cleaned:
    """Give space back: what nobody uses, what was left over, and what does not match.

    Args:
        folder: of a third tier, or a store.
        size_bytes: bound on all stores together; pages that were used least recently go.
        ranks: number of stores that are used; the others are removed.
        on_page: told of each page that was checked.

    Raises:
        ConfigError: a server uses the folder, or it holds no store.
    """
    cleaned = Cleaned()
    stores = stores_in(folder)
    kept = [path for path in stores if path not in abandoned(folder, ranks)] if ranks else stores
    share = None if size_bytes is None else _share(size_bytes, folder, kept)
    lock = ServerLock(folder) if stores != [folder] else None
    try:
        before = sum(map(_disk_bytes, stores))
        if ranks is not None:
            for path in abandoned(folder, ranks):
                (cleaned.removed if remove_store(path) else cleaned.kept).append(path.name)
            stores = kept
        if stores != [folder]:
            _remove_left_over(folder)
        for store in stores:
            try:
                _clean_store(store, share, cleaned, on_page)
            except (StoreError, OSError) as error:
                cleaned.errors.append({"store": store.name, "error": str(error)})
        cleaned.freed_bytes = max(0, before - sum(map(_disk_bytes, stores)))
    finally:
        if lock is not None:
            lock.release()
    return cleaned


def _share(size_bytes: int, folder: Path, stores: list[Path]) -> int:
    """What each of the stores may take.

    Raises:
        ConfigError: that is too little for a store.
    """
    overhead = overhead_bytes(size_bytes) if stores != [folder] else 0
    share = (size_bytes - overhead) // max(1, len(stores))
    try:
        StoreOptions(share)
    except ConfigError as error:
        raise ConfigError(
            f"--size: {size_bytes} bytes are too few for {len(stores)} stores: {error}"
        ) from None
    return share


def _remove_left_over(folder: Path) -> None:
    """Remove what a server that was killed was just making in the folder itself."""
    for path in folder.iterdir():
        if _LEFT_OVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def _clean_store(
    store: Path, capacity_bytes: int | None, cleaned: Cleaned, on_page: OnPage | None
) -> None:
    findings = _findings(store, on_page)
    cleaned.findings += [{"store": store.name, **finding.to_json()} for finding in findings]
    if capacity_bytes is None:
        # Room enough that nothing has to go; the files that grow with it stay small.
        capacity_bytes = 2 * _disk_bytes(store) + 64 * _MIB
    # Opening it removes what was left over, and shrinks it where it has to be smaller.
    with PageStore(store, StoreOptions(capacity_bytes)) as opened:
        before = opened.stats().pages
        for finding in findings:
            if finding.key:
                opened.drop(bytes.fromhex(finding.key))
        cleaned.dropped_pages += before - opened.stats().pages
        cleaned.evicted_pages += opened.stats().evicted
        opened.flush()


def _disk_bytes(store: Path) -> int:
    try:
        return StoreFolder(store, RealDisk(), writer=False).allocated_bytes()
    except (StoreError, OSError):  # not there, or not to be used
        return 0
