"""Looks after the stores of the third tier while no server needs them: state, checks, cleaning.

Works on the folder of ``--ext-l3-dir`` and on a single store alike.

Pure: neither torch nor SGLang is imported.
"""

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_ext.cache.folder import (
    OVERHEAD_BYTES,
    ServerLock,
    abandoned,
    rank_folders,
    remove_store,
)
from sglang_ext.cache.store import Finding, PageStore, StoreOptions, verify_store
from sglang_ext.cache.store.disk import RealDisk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.index import Index
from sglang_ext.cache.store.segments import Segments
from sglang_ext.cache.store.survey import survey
from sglang_ext.errors import ConfigError, StoreError

__all__ = ["Cleaned", "Resident", "StoreState", "clean", "look", "resident", "stores_in", "verify"]

_MIB = 1 << 20
_SCAN_THREADS = 16
_LOOKS = 10

# (store, pages done, pages in all)
OnPage = Callable[[Path, int, int], None]


@dataclass(frozen=True)
class StoreState:
    """One store as it is now. ``problem`` says why it cannot be opened; empty where it can."""

    store: str
    pages: int = 0
    payload_bytes: int = 0
    disk_bytes: int = 0
    segments: int = 0
    in_use_by: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Resident:
    """The pages of a store, and where they lie."""

    index: Index
    segments: Segments


@dataclass
class Cleaned:
    """What was done to a folder."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # abandoned, and not ours alone
    dropped_pages: int = 0
    evicted_pages: int = 0
    freed_bytes: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


def stores_in(folder: Path) -> list[Path]:
    """The stores in the folder of a third tier, or the one that the folder is.

    Raises:
        ConfigError: there is none.
    """
    if (folder / "STORE").is_file():
        return [folder]
    found = [path for path in rank_folders(folder).values() if (path / "STORE").is_file()]
    if not found:
        raise ConfigError(f"{folder} holds no page store; give the folder of --ext-l3-dir")
    return found


def look(store: Path) -> StoreState:
    """The state of a store, which a server may be using."""
    holder = _holder(store)
    try:
        folder = StoreFolder(store, RealDisk(), writer=False)
        if not folder.load():
            return StoreState(store.name, problem=f"{store} holds no page store")
        pages = resident(folder, in_use=holder is not None)
        return StoreState(
            store.name,
            pages=len(pages.index),
            payload_bytes=pages.index.payload_total_bytes,
            disk_bytes=folder.allocated_bytes(),
            segments=len(pages.segments.by_number),
            in_use_by=holder,
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
                return Resident(found.recovered.index, found.segments)
        time.sleep(0.2)
    raise StoreError(f"{folder.path} is being written too fast to be looked at; try again")


def _holder(store: Path) -> int | None:
    """The process that writes to a store; None where there is none."""
    try:
        descriptor = os.open(store / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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

    Raises:
        StoreError: a server uses it, or it is none.
    """

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
        StoreError: a store cannot be used.
    """
    cleaned = Cleaned()
    stores = stores_in(folder)
    lock = ServerLock(folder) if stores != [folder] else None
    try:
        before = sum(map(_disk_bytes, stores))
        if ranks is not None:
            for path in abandoned(folder, ranks):
                (cleaned.removed if remove_store(path) else cleaned.kept).append(path.name)
            stores = [path for path in stores if (path / "STORE").exists()]
        share = None if size_bytes is None else (size_bytes - OVERHEAD_BYTES) // max(1, len(stores))
        for store in stores:
            _clean_store(store, share, cleaned, on_page)
        cleaned.freed_bytes = max(0, before - sum(map(_disk_bytes, stores)))
    finally:
        if lock is not None:
            lock.release()
    return cleaned


def _clean_store(
    store: Path, capacity_bytes: int | None, cleaned: Cleaned, on_page: OnPage | None
) -> None:
    findings = verify(store, on_page)
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
    except FileNotFoundError:
        return 0
