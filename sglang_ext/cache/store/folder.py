"""The folder of a store: its names, who owns them, the superblock and the writer's lock.

Only files with these names are ever opened, written or removed::

    STORE                  JSON: what the folder is, format version, random id
    lock                   held by the writer (flock), as STORE is; its process id inside
    index-G.ckpt           checkpoint of the index
    journal-G.log          what happened since
    segments/NNNNNN.seg    pages
"""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import xxhash

from sglang_ext.cache.store.disk import Disk, read_fully, write_fully
from sglang_ext.cache.store.format import FORMAT_VERSION
from sglang_ext.errors import StoreError, StoreFolderError, StoreFormatError, StoreInUseError

__all__ = ["STORE_ID_BYTES", "StoreFolder"]

STORE_ID_BYTES = 16
_FORMAT_NAME = "sglang-ext page store"
_MOST_SUPERBLOCK_BYTES = 4096
# As we write them, and not more than fits a field of 64 bits: other names are not ours.
_GENERATION = r"([1-9]\d{0,17})"
_CHECKPOINT = re.compile(rf"index-{_GENERATION}\.ckpt")
_JOURNAL = re.compile(rf"journal-{_GENERATION}\.log")
_SEGMENT = re.compile(r"(\d{6})\.seg")
# What was being written under another name when the process ended.
_PARTIAL = re.compile(rf"(STORE|index-{_GENERATION}\.ckpt|journal-{_GENERATION}\.log)\.partial")


class StoreFolder:
    """Names and rights in one folder.

    Args:
        path: the folder; made with mode 0700 where it is missing and ``writer`` is true.
        disk: who does the file operations.
        writer: whether this process will write.

    Raises:
        StoreFolderError: the folder is a link, not a folder, somebody else's, or open to others.
    """

    def __init__(self, path: Path, disk: Disk, *, writer: bool) -> None:
        self.path = path
        self.disk = disk
        self.writer = writer
        self.store_id = bytes(STORE_ID_BYTES)
        self._locks: list[int] = []
        if writer:
            self._make(path)
            self._make(self.segments)
        _check_folder(path)
        _check_folder(self.segments)

    @property
    def segments(self) -> Path:
        """Folder of the segments."""
        return self.path / "segments"

    def checkpoint_path(self, generation: int) -> Path:
        """Path of a checkpoint."""
        return self.path / f"index-{generation}.ckpt"

    def journal_path(self, generation: int) -> Path:
        """Path of a journal."""
        return self.path / f"journal-{generation}.log"

    def segment_path(self, number: int) -> Path:
        """Path of a segment."""
        return self.segments / f"{number:06d}.seg"

    def partial(self, path: Path) -> Path:
        """The name of a file of ours until it is whole."""
        return path.with_name(path.name + ".partial")

    def checkpoints(self) -> list[int]:
        """Generations of the checkpoints, oldest first."""
        return self._numbers(self.path, _CHECKPOINT)

    def journals(self) -> list[int]:
        """Generations of the journals, oldest first."""
        return self._numbers(self.path, _JOURNAL)

    def segment_numbers(self) -> list[int]:
        """Numbers of the segments, smallest first."""
        return self._numbers(self.segments, _SEGMENT)

    def open(self, path: Path, flags: int) -> int:
        """Open one of our files; the caller closes it.

        Raises:
            StoreFolderError: it is a link, no regular file, somebody else's, or open to others.
            OSError: it cannot be opened.
        """
        try:
            file = self.disk.open(path, flags)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise StoreFolderError(
                    f"{path} is a symbolic link; the store follows none. Remove it"
                ) from error
            if error.errno in (errno.EISDIR, errno.ENXIO):  # a folder; a pipe or a socket
                raise StoreFolderError(f"{path} is not a regular file; remove it") from error
            raise
        try:
            _check_file(path, self.disk.stat(file))
        except BaseException:
            self.disk.close(file)
            raise
        return file

    @contextlib.contextmanager
    def opened(self, path: Path, flags: int) -> Iterator[int]:
        """Open one of our files for the time of a ``with``."""
        file = self.open(path, flags)
        try:
            yield file
        finally:
            self.disk.close(file)

    def write_file(self, path: Path, data: memoryview | bytes) -> None:
        """Replace one of our files durably: another name, fsync, rename, fsync of the folder.

        Raises:
            OSError: the disk did not take it; the file is as it was, and nothing else is left.
        """
        partial = self.partial(path)
        self._remove(partial)
        try:
            with self.opened(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                # All blocks at once: a full disk is told of before anything is written, and the
                # file takes as few extents as it can.
                self.disk.allocate(file, len(data))
                write_fully(self.disk, file, memoryview(data), 0)
                self.disk.sync(file)
            self.disk.rename(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):  # it goes when the next one is written
                self._remove(partial)
            raise
        self.disk.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Remove one of our files; one that is not there is no error."""
        self._remove(path)

    def claim(self, *, shared: bool = False) -> None:
        """Take the writer's lock; it is held until ``release`` or the end of the process.

        That is two locks: somebody may remove the file ``lock``.

        Args:
            shared: only keep writers away; nothing is written.

        Raises:
            StoreInUseError: somebody holds it.
        """
        try:
            if not shared:
                file = self._hold("lock", os.O_RDWR | os.O_CREAT)
                write_fully(self.disk, file, memoryview(f"{os.getpid():<20}\n".encode()), 0)
            elif "lock" in self.disk.list(self.path):  # else no writer was here
                self._hold("lock", os.O_RDONLY, shared=True)
            self._hold_root(shared=shared)
        except BaseException:
            self.release()
            raise

    def _hold_root(self, *, shared: bool) -> None:
        with contextlib.suppress(FileNotFoundError):  # it is held when it is made
            self._hold("STORE", os.O_RDONLY if shared else os.O_RDWR, shared=shared)

    def _hold(self, name: str, flags: int, *, shared: bool = False) -> int:
        file = self.open(self.path / name, flags)
        self._locks.append(file)
        if self.disk.lock(file, shared=shared):
            return file
        holder = bytearray(32)
        length = 0 if name != "lock" else read_fully(self.disk, file, memoryview(holder), 0)
        pid = holder[:length].decode("ascii", "replace").strip() or "unknown"
        way_out = "give this server a folder of its own, or end that process"
        raise StoreInUseError(
            f"the page store {self.path} is in use by process {pid}; "
            f"{'end that process first' if shared else way_out}"
        )

    def release(self) -> None:
        """Give the writer's lock back; idempotent."""
        files, self._locks = self._locks, []
        for file in files:
            self.disk.close(file)

    def load(self) -> bool:
        """Read the superblock; False where the folder has none and holds no store.

        Raises:
            StoreFormatError: a newer release wrote it.
            StoreError: it is damaged.
        """
        path = self.path / "STORE"
        buffer = bytearray(_MOST_SUPERBLOCK_BYTES)
        try:
            with self.opened(path, os.O_RDONLY) as file:
                length = read_fully(self.disk, file, memoryview(buffer), 0)
        except FileNotFoundError:
            return False
        self.store_id = _parse(path, bytes(buffer[:length]))
        return True

    def create(self) -> None:
        """Write a superblock with a new id.

        Raises:
            StoreError: there are files with our names, and no superblock that says they are ours.
        """
        self.remove_partial()
        self.check_empty()
        self.store_id = secrets.token_bytes(STORE_ID_BYTES)
        store_id = self.store_id.hex()
        text = {"format": _FORMAT_NAME, "version": FORMAT_VERSION, "id": store_id}
        text["check"] = _check_of(store_id)
        self.write_file(self.path / "STORE", (json.dumps(text) + "\n").encode())
        if self._locks:
            self._hold_root(shared=False)

    def check_empty(self) -> None:
        """Look whether a folder without a superblock holds nothing of a store.

        Raises:
            StoreFolderError: there are files with our names that nothing says are ours.
        """
        strange = [path for path in self.own_files() if path.name != "lock"]
        if strange:
            raise StoreFolderError(
                f"{self.path} has no superblock (STORE), yet it holds {strange[0].name}; if that "
                "was left by a page store, remove the folder, else give the store another one"
            )

    def remove_partial(self) -> None:
        """Remove files whose writing was not finished."""
        for name in self.disk.list(self.path):
            if _PARTIAL.fullmatch(name):
                self._remove(self.path / name)

    def own_files(self) -> list[Path]:
        """Every file of the store that exists."""
        top = [
            self.path / name
            for name in self.disk.list(self.path)
            if name in ("STORE", "lock")
            or any(p.fullmatch(name) for p in (_CHECKPOINT, _JOURNAL, _PARTIAL))
        ]
        return top + [self.segment_path(number) for number in self.segment_numbers()]

    def allocated_bytes(self) -> int:
        """Blocks that the files of the store take on disk."""
        total = 0
        for path in self.own_files():
            with contextlib.suppress(FileNotFoundError):  # a checkpoint was replaced just now
                total += os.lstat(path).st_blocks * 512
        return total

    def _make(self, path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StoreFolderError(
                f"{path} is not a folder; give the page store a folder of its own"
            ) from error

    def _numbers(self, path: Path, pattern: re.Pattern[str]) -> list[int]:
        found = (pattern.fullmatch(name) for name in self.disk.list(path))
        return sorted(int(match[1]) for match in found if match)

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.disk.remove(path)


def _check_of(store_id: str) -> str:
    return xxhash.xxh3_64_hexdigest(store_id.encode())


def _parse(path: Path, data: bytes) -> bytes:
    """The store's id out of a superblock."""
    damaged = StoreError(
        f"{path} is not the superblock of a page store; if the folder holds nothing else, remove "
        "the folder and start again"
    )
    try:
        text = json.loads(data)
        version, store_id = text["version"], bytes.fromhex(text["id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged from error
    if text.get("format") != _FORMAT_NAME or len(store_id) != STORE_ID_BYTES:
        raise damaged
    if type(version) is not int:
        raise damaged
    if version != FORMAT_VERSION:
        raise StoreFormatError(
            f"{path.parent} holds a page store of format {version}; this release knows format "
            f"{FORMAT_VERSION}. Use the release that wrote it, or give this one another folder"
        )
    # Without: a store of before there was one.
    if text.get("check", _check_of(text["id"])) != _check_of(text["id"]):
        raise StoreError(
            f"{path} is damaged: its id does not match its checksum. Remove the folder and start "
            "again, or put the id right: it is in bytes 13 to 28 of each segment as well"
        )
    return store_id


def _check_folder(path: Path) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise StoreFolderError(f"{path} is not a folder but a link or a file; remove it")
    _check_rights(path, status, 0o700)


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreFolderError(f"{path} is not a regular file; remove it")
    if status.st_nlink > 1:
        raise StoreFolderError(f"{path} has a second name (hard link); remove one of them")
    _check_rights(path, status, 0o600)


def _check_rights(path: Path, status: os.stat_result, mode: int) -> None:
    if status.st_uid != os.geteuid():
        raise StoreFolderError(
            f"{path} belongs to user id {status.st_uid}, and this process runs as "
            f"{os.geteuid()}; give the page store a folder of its own"
        )
    if stat.S_IMODE(status.st_mode) & ~mode:
        raise StoreFolderError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}; pages are nobody else's "
            f"business: chmod {mode:o} {path}"
        )
