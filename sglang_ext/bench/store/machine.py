"""What ``bench store`` asks of the operating system: cold caches, syncing, accounting."""

import ctypes
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sglang_ext.errors import ConfigError

__all__ = ["bytes_from_disk", "check_folder", "cpu_seconds", "describe", "drop_caches", "sync_disk"]

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_ALIGNMENT = 4096


def check_folder(folder: Path, needed_bytes: int) -> None:
    """Make ``folder`` and check that a disk with room is behind it.

    Raises:
        ConfigError: its file system has no O_DIRECT, or less than ``needed_bytes`` are free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600))
    except OSError as error:
        raise ConfigError(
            f"{folder}: its file system refuses O_DIRECT ({error.strerror}), so nothing cold can "
            "be measured there; give --dir a folder on a local disk"
        ) from error
    finally:
        probe.unlink(missing_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ConfigError(
            f"{folder} has {free_bytes / 1e9:.1f} GB free and {needed_bytes / 1e9:.1f} GB are "
            "needed; give fewer --bytes or another --dir"
        )


def sync_disk(folder: Path) -> None:
    """Write everything of the file system of ``folder`` to its disk, and flush the disk's cache.

    Raises:
        OSError: the disk reported an error.
    """
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if library.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)


def drop_caches(folder: Path) -> str:
    """Make the files below ``folder`` cold; they must not be mapped by anybody.

    Returns:
        How it was done: root can drop the whole page cache with all directory entries, others
        can drop the pages of files alone.
    """
    sync_disk(folder)
    with suppress(OSError):
        _DROP_CACHES.write_text("3\n", encoding="ascii")
        return "drop_caches"
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    return "posix_fadvise"


def cpu_seconds() -> float:
    """CPU seconds of this process so far, user and kernel, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def bytes_from_disk() -> int | None:
    """Bytes that this process had from disks so far; None where the kernel does not count them.

    There is no such count of writes: the kernel counts bytes when they are made dirty.
    """
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def describe(folder: Path) -> dict[str, Any]:
    """The machine, as far as it bears on the figures."""
    kind, options = _mount(folder)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "file_system": kind,
        "mount_options": options,
        "device": _device(folder),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _mount(folder: Path) -> tuple[str, str]:
    """Type and options of the file system of ``folder``: the longest mount point above it."""
    best = ("", "unknown", "")
    place = str(folder.resolve())
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _, point, kind, options = line.split()[:4]
            inside = place == point or place.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, kind, options)
    return best[1], best[2]


def _device(folder: Path) -> dict[str, Any]:
    """Name and queue of the block device; empty where there is none behind the file system."""
    number = folder.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not node.exists():
        return {}
    queue = node / "queue" if (node / "queue").exists() else node.resolve().parent / "queue"
    found: dict[str, Any] = {"name": node.resolve().name}
    for name in ("rotational", "scheduler", "nr_requests", "write_cache", "logical_block_size"):
        with suppress(OSError):
            found[name] = (queue / name).read_text(encoding="ascii").strip()
    return found


@contextmanager
def own_folder(parent: Path, name: str) -> Iterator[Path]:
    """A fresh folder below ``parent``, gone afterwards with the space given back to the disk."""
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # Deleting goes on in the journal; the next engine must not pay for it.
        sync_disk(parent)
