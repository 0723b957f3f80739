"""The folder of the third tier: one server at a time, and a subfolder for each store in it.

::

    DIR/                 --ext-l3-dir, mode 0700
      server.lock        held by the server's first process for as long as it lives
      secret             keys what names prompts and sessions (`sglang_ext.cache.secret`)
      policy.state       what the policy has learned (`sglang_ext.cache.learned_file`)
      policy.state.damaged  what was in its place and was no state, once there was
      rank-0/ rank-1/ …  one page store each (`sglang_ext.cache.store`)

Everything else in it is somebody else's and is left alone.

Pure: neither torch nor SGLang is imported.
"""

import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path

from sglang_ext.cache.store.disk import RealDisk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.segment_files import FOREIGN, SegmentFiles
from sglang_ext.errors import ConfigError, StoreError, StoreFolderError, StoreInUseError

__all__ = [
    "ServerLock",
    "abandoned",
    "check_stores",
    "hold",
    "named_folders",
    "overhead_bytes",
    "rank_folders",
    "remove_store",
    "state_bytes",
]

_RANK = re.compile(r"rank-(0|[1-9]\d{0,5})")

# Blocks of the lock, of the secret and of each subfolder.
_SMALL_FILES_BYTES = 64 * 1024
# Longest state of the policy, and the part of the tier that it may take. A full one has 6 MB.
_MOST_STATE_BYTES, _STATE_PART = 8 << 20, 32

# How long the processes of a server that was killed may take to let go of their stores.
_LET_GO_S = 30.0


class ServerLock:
    """The right to be the one server of a folder; given back when the process ends, however."""

    def __init__(self, folder: Path, node: int = 0) -> None:
        """Take it.

        Args:
            folder: an existing folder of ours.
            node: number of this machine, where one server runs on several that share the folder.

        Raises:
            ConfigError: another server has it, or the lock's file is not an ordinary one of ours.
        """
        path = folder / ("server.lock" if not node else f"server-{node}.lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise ConfigError(
                f"--ext-l3-dir: cannot open {path}: {error.strerror}", fix=_way_out(error)
            ) from None
        try:
            self._take(folder, path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, folder: Path, path: Path) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise ConfigError(f"--ext-l3-dir: {path} is not an ordinary file; remove it")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise ConfigError(
                    f"--ext-l3-dir: the file system of {folder} cannot lock files "
                    f"({error.strerror}); give a folder on a local disk"
                ) from None
            raise ConfigError(
                f"--ext-l3-dir: {folder} is in use by the server with process id "
                f"{self._holder()}; stop it, or give this server a folder of its own"
            ) from None
        held = os.pread(self._descriptor, 32, 0).strip()
        if held and not held.isdigit():
            raise ConfigError(
                f"--ext-l3-dir: {path} is not the lock of a server",
                fix="give the server a folder of its own, or remove that file if it is nobody's",
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _holder(self) -> str:
        text = os.pread(self._descriptor, 16, 0).decode("ascii", "replace").strip()
        return text if text.isdigit() else "unknown"

    def release(self) -> None:
        """Give it back; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def state_bytes(size_bytes: int) -> int:
    """How long the policy's state may be in a tier of that size."""
    return min(_MOST_STATE_BYTES, size_bytes // _STATE_PART)


def overhead_bytes(size_bytes: int) -> int:
    """What a tier of that size costs beside its stores; a state is there twice while written."""
    return _SMALL_FILES_BYTES + 2 * state_bytes(size_bytes)


_held: dict[tuple[str, int], ServerLock] = {}


def _way_out(error: OSError) -> str:
    if error.errno == errno.EROFS:
        return "mount that file system for writing, or give a folder on another one"
    if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
        return "remove it: it is no ordinary file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on that disk"
    return "see to that path, or give another folder"


def hold(folder: Path, node: int = 0) -> None:
    """Take the folder's lock for as long as this process lives; idempotent within it.

    Raises:
        ConfigError: see `ServerLock`.
    """
    place = (str(folder.resolve()), node)
    if place not in _held:
        _held[place] = ServerLock(folder, node)


def named_folders(folder: Path) -> dict[int, Path]:
    """What bears the name of a store's subfolder, whatever it is, by number."""
    found = ((_RANK.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match.group(1)), path) for match, path in found if match))


def rank_folders(folder: Path) -> dict[int, Path]:
    """The subfolders of stores by number; links are not followed."""
    return {
        number: path
        for number, path in named_folders(folder).items()
        if path.is_dir() and not path.is_symlink()
    }


def abandoned(folder: Path, owners: int) -> list[Path]:
    """Stores that a server with ``owners`` stores does not use: those of an earlier geometry."""
    return [path for number, path in rank_folders(folder).items() if number >= owners]


def check_stores(folder: Path, wait_s: float = _LET_GO_S) -> None:
    """Look at the stores that there are, so that a server learns of trouble before it starts.

    Args:
        folder: held by this process.
        wait_s: how long a store may still be in use, as by the rest of a server that was killed.

    Raises:
        StoreError: one is in use, of a newer format, damaged at its root, or not ours alone.
    """
    deadline = time.monotonic() + wait_s
    for path in named_folders(folder).values():
        store = _store_in(path)
        while store is not None:
            try:
                store.claim()
            except StoreInUseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                try:
                    _check_segments(store)
                finally:
                    store.release()
                break


def _check_segments(store: StoreFolder) -> None:
    files = SegmentFiles(store, direct=False, read_only=True)
    good, bad = files.open_all()
    files.close_all(segment for segment, _ in good)
    for number, why in bad:
        if why == FOREIGN:
            raise StoreFolderError(
                f"{store.segment_path(number)} belongs to another page store; move it back, or "
                "remove it"
            )


def _store_in(folder: Path) -> StoreFolder | None:
    """The store in a folder, as far as it has been made; None where there is none.

    Raises:
        StoreError: what is there is no store of ours, or its root is damaged or gone.
    """
    try:
        store = StoreFolder(folder, RealDisk(), writer=False)
    except FileNotFoundError:
        return None
    if store.load():
        return store
    store.check_empty()
    return None


def remove_store(folder: Path) -> bool:
    """Remove a store's files, and its folder if nothing else is in it.

    Returns:
        Whether the folder is gone; False where a server uses the store, it is no store of ours, or
        files of others stay.
    """
    try:
        store = _store_in(folder)
        if store is None:
            return False
        store.claim()
        try:
            # Its root last: what is left after a crash in between is still known as ours.
            for path in sorted(store.own_files(), key=lambda path: path.name == "STORE"):
                path.unlink(missing_ok=True)
            for path in (store.segments, folder):
                if not any(path.iterdir()):
                    path.rmdir()
        finally:
            store.release()
    except (OSError, StoreError):
        return False
    return not folder.exists()
