# ruff: noqa: D102 - the methods of a disk are described by the protocol
"""Every file operation of the store, behind one small protocol.

The real disk is a thin layer over ``os``. Tests put one there that fails, stalls, or forgets what
was not synced.
"""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["OPEN_FLAGS", "Disk", "RealDisk", "read_fully", "write_fully", "write_pieces"]

# A link in place of a file of ours is refused, no child process inherits a descriptor, and opening
# a pipe does not wait for its other end; on regular files the last has no effect.
OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_SECTOR_BYTES = 512
# Linux takes no more pieces in one operation (UIO_MAXIOV).
_MOST_PIECES = 1024


class Disk(Protocol):
    """What the store asks of a disk. Every method may block and may raise ``OSError``."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file with `OPEN_FLAGS`; one that is created gets mode 0600."""

    def close(self, file: int) -> None:
        """Close a descriptor."""

    def read(self, file: int, buffer: memoryview, offset: int) -> int:
        """Read into ``buffer``; may read less, 0 at the end of the file."""

    def write(self, file: int, pieces: Sequence[memoryview | bytes], offset: int) -> int:
        """Write ``pieces`` one after another; may write less."""

    def allocate(self, file: int, size_bytes: int) -> None:
        """Give the file ``size_bytes`` of blocks that read as zeros."""

    def truncate(self, file: int, size_bytes: int) -> None:
        """Cut the end of the file off and give its blocks back."""

    def sync(self, file: int) -> None:
        """Make data of the file durable, and its size."""

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""

    def rename(self, old: Path, new: Path) -> None:
        """Replace ``new`` by ``old``."""

    def remove(self, path: Path) -> None:
        """Remove a file."""

    def list(self, path: Path) -> list[str]:
        """Names in a folder."""

    def stat(self, file: int) -> os.stat_result:
        """Status of an open file."""

    def free_bytes(self, path: Path) -> int:
        """What the file system of a folder has left for this user."""

    def lock(self, file: int, *, shared: bool = False) -> bool:
        """Take the lock of an open file, for itself or shared; False where somebody has it."""


class RealDisk:
    """The operating system's files."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | OPEN_FLAGS, 0o600)

    def close(self, file: int) -> None:
        os.close(file)

    def read(self, file: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(file, [buffer], offset)

    def write(self, file: int, pieces: Sequence[memoryview | bytes], offset: int) -> int:
        return os.pwritev(file, pieces, offset)

    def allocate(self, file: int, size_bytes: int) -> None:
        os.posix_fallocate(file, 0, size_bytes)

    def truncate(self, file: int, size_bytes: int) -> None:
        os.ftruncate(file, size_bytes)

    def sync(self, file: int) -> None:
        os.fdatasync(file)

    def sync_folder(self, path: Path) -> None:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def list(self, path: Path) -> list[str]:
        return os.listdir(path)

    def stat(self, file: int) -> os.stat_result:
        return os.fstat(file)

    def free_bytes(self, path: Path) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def lock(self, file: int, *, shared: bool = False) -> bool:
        # flock and not lockf: a second store in the same process has to be refused as well.
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def read_fully(disk: Disk, file: int, buffer: memoryview, offset: int) -> int:
    """Read until ``buffer`` is full or the file ends; returns the number of bytes read."""
    done = 0
    while done < len(buffer):
        got = disk.read(file, buffer[done:], offset + done)
        done += got
        # A direct read that stops inside a sector has met the end of the file, and going on from
        # there would not be aligned.
        if not got or got % _SECTOR_BYTES:
            break
    return done


def write_fully(disk: Disk, file: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``, however often the disk takes only a part of it."""
    write_pieces(disk, file, [data], offset)


def write_pieces(disk: Disk, file: int, pieces: Sequence[memoryview], offset: int) -> None:
    """Write all ``pieces`` one after another, in as few operations as there can be."""
    left = list(pieces)
    first = 0
    while first < len(left):
        done = disk.write(file, left[first : first + _MOST_PIECES], offset)
        offset += done
        while first < len(left) and len(left[first]) <= done:
            done -= len(left[first])
            first += 1
        if done:
            left[first] = left[first][done:]
