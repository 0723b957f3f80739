"""Disks that fail, hang, or forget what was not synced."""

import errno
import os
import threading
from pathlib import Path

from sglang_ext.cache.store.disk import RealDisk

SECTOR_BYTES = 512


class FaultyDisk(RealDisk):
    """The real disk until ``fault(operation, path, offset)`` gives an errno to fail with.

    Between ``hang`` and ``resume`` no operation comes back, whatever file it is on.
    """

    def __init__(self):
        self.fault = lambda operation, path, offset: 0
        self.running = threading.Event()
        self.running.set()
        self.hangs = _everything
        self.calls = []
        self.paths = {}

    def hang(self, hangs=None):
        """``hangs(operation, path)``: whether that does not come back; all of it by default."""
        self.hangs = hangs or _everything
        self.running.clear()

    def resume(self):
        self.running.set()

    def _check(self, operation, path, offset=0):
        path = Path(path)
        self.calls.append((operation, path.name))
        code = self.fault(operation, path, offset)
        if code:
            raise OSError(code, os.strerror(code), str(path))
        if self.hangs(operation, path):
            self.running.wait()

    def open(self, path, flags):
        self._check("open", path)
        file = super().open(path, flags)
        self.paths[file] = Path(path)
        return file

    def read(self, file, buffer, offset):
        self._check("read", self.paths[file], offset)
        return super().read(file, buffer, offset)

    def write(self, file, pieces, offset):
        self._check("write", self.paths[file], offset)
        return super().write(file, pieces, offset)

    def allocate(self, file, size_bytes):
        self._check("allocate", self.paths[file])
        super().allocate(file, size_bytes)

    def truncate(self, file, size_bytes):
        self._check("truncate", self.paths[file])
        super().truncate(file, size_bytes)

    def sync(self, file):
        self._check("sync", self.paths[file])
        super().sync(file)

    def sync_folder(self, path):
        self._check("sync_folder", path)
        super().sync_folder(path)

    def rename(self, old, new):
        self._check("rename", new)
        super().rename(old, new)
        self.paths.update({file: Path(new) for file, path in self.paths.items() if path == old})

    def remove(self, path):
        self._check("remove", path)
        super().remove(path)


class SmallDisk(FaultyDisk):
    """A disk that has room for ``room_bytes`` of allocated files."""

    def __init__(self, room_bytes):
        super().__init__()
        self.room_bytes = room_bytes
        self.taken = {}

    def free_bytes(self, path):
        return self.room_bytes - sum(self.taken.values())

    def allocate(self, file, size_bytes):
        if size_bytes > self.free_bytes(None):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.paths[file]))
        super().allocate(file, size_bytes)
        self.taken[self.paths[file]] = size_bytes

    def rename(self, old, new):
        super().rename(old, new)
        self.taken[Path(new)] = self.taken.pop(Path(old), 0)

    def remove(self, path):
        super().remove(path)
        self.taken.pop(Path(path), None)


def _everything(operation, path):
    return True


def fail_all(code, *operations):
    """A fault of all given operations on segments and journals."""
    return lambda operation, path, offset: code if operation in operations else 0


class _Inode:
    """A file: what a power loss leaves of it for certain, and what it may leave."""

    def __init__(self, data=b""):
        self.data = bytearray(data)
        self.size = len(self.data)
        self.writes = []


class PowerLossDisk(RealDisk):
    """The real disk, which also knows what each file would be after a power loss.

    Unsynced writes are lost or kept sector by sector, in any order; sectors may be torn. Changes of
    names in a folder that was not synced are kept up to any moment, as a journaling file system
    does, or each by itself.
    ``on_operation`` is called before each operation, with its name: to take an image there.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.on_operation = lambda operation: None
        self.lock_all = threading.RLock()
        self.inodes = {}  # by descriptor
        self.names = {}  # now
        self.durable = {}  # names that a power loss leaves for certain
        self.changes = []  # (folder, action) since

    def load(self):
        """Take what is in the folder as durable."""
        with self.lock_all:
            for path in self.folder.rglob("*"):
                if path.is_file():
                    self.names[path] = self.durable[path] = _Inode(path.read_bytes())

    def open(self, path, flags):
        with self.lock_all:
            self.on_operation("open")
            path = Path(path)
            file = super().open(path, flags)
            if path not in self.names:
                inode = self.names[path] = _Inode()
                self.changes.append((path.parent, lambda names: names.__setitem__(path, inode)))
            self.inodes[file] = self.names[path]
            return file

    def close(self, file):
        with self.lock_all:
            self.inodes.pop(file, None)
            super().close(file)

    def write(self, file, pieces, offset):
        with self.lock_all:
            self.on_operation("write")
            data = b"".join(bytes(piece) for piece in pieces)
            done = super().write(file, pieces, offset)
            self.inodes[file].writes.append((offset, data[:done]))
            return done

    def allocate(self, file, size_bytes):
        with self.lock_all:
            self.on_operation("allocate")
            super().allocate(file, size_bytes)
            self.inodes[file].size = max(self.inodes[file].size, size_bytes)

    def truncate(self, file, size_bytes):
        with self.lock_all:
            self.on_operation("truncate")
            super().truncate(file, size_bytes)
            inode = self.inodes[file]  # metadata: durable at once here
            del inode.data[size_bytes:]
            inode.size = size_bytes
            inode.writes = [(at, data) for at, data in inode.writes if at < size_bytes]

    def sync(self, file):
        with self.lock_all:
            self.on_operation("sync")
            super().sync(file)
            inode = self.inodes[file]
            _extend(inode.data, inode.size)
            for offset, data in inode.writes:
                _put(inode.data, offset, data)
            inode.writes.clear()

    def sync_folder(self, path):
        with self.lock_all:
            self.on_operation("sync_folder")
            super().sync_folder(path)
            # Metadata is journaled in order: what is synced takes with it all that came before.
            last = max((n for n, (f, _) in enumerate(self.changes) if f == Path(path)), default=-1)
            for _, action in self.changes[: last + 1]:
                action(self.durable)
            del self.changes[: last + 1]

    def rename(self, old, new):
        with self.lock_all:
            self.on_operation("rename")
            super().rename(old, new)
            old, new = Path(old), Path(new)
            self.names[new] = self.names.pop(old)
            self.changes.append((new.parent, lambda names: _rename(names, old, new)))

    def remove(self, path):
        with self.lock_all:
            self.on_operation("remove")
            super().remove(path)
            path = Path(path)
            self.names.pop(path, None)
            self.changes.append((path.parent, lambda names: names.pop(path, None)))

    def image(self, target, chance):
        """Write into ``target`` what a power loss at this moment may leave."""
        with self.lock_all:
            names = dict(self.durable)
            kept = self.changes[: chance.randint(0, len(self.changes))]
            if chance.random() < 0.5:
                kept = [change for change in self.changes if chance.random() < 0.5]
            for _, action in kept:
                action(names)
            kept = chance.choice((0.0, 0.5, 0.9, 1.0, chance.random()))
            for path, inode in names.items():
                data = _after_power_loss(inode, kept, chance)
                copy = Path(target) / path.relative_to(self.folder)
                copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                copy.write_bytes(data)
                copy.chmod(0o600)
            (Path(target) / "segments").mkdir(mode=0o700, exist_ok=True)


def _after_power_loss(inode, kept, chance):
    data = bytearray(inode.data)
    if chance.random() < kept:
        _extend(data, inode.size)
    for offset, written in inode.writes:
        for start in range(0, len(written), SECTOR_BYTES):
            sector = written[start : start + SECTOR_BYTES]
            if chance.random() >= kept:
                continue
            if chance.random() < 0.02:  # torn: the beginning is new, the rest is not
                sector = sector[: chance.randrange(len(sector))]
            _put(data, offset + start, sector)
    return bytes(data)


def _rename(names, old, new):
    if old in names:
        names[new] = names.pop(old)


def _extend(data, size):
    data.extend(bytes(max(0, size - len(data))))


def _put(data, offset, piece):
    _extend(data, offset + len(piece))
    data[offset : offset + len(piece)] = piece


ENOSPC, EIO, EROFS = errno.ENOSPC, errno.EIO, errno.EROFS
