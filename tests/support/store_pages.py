"""Pages whose bytes follow from their key, so that anybody can tell a wrong byte."""

import hashlib
import mmap
import time

from sglang_ext.cache.store import Page, PageStore, StoreOptions
from sglang_ext.cache.store.options import MIB

NAMESPACE = hashlib.sha256(b"namespace").digest()
OTHER_NAMESPACE = hashlib.sha256(b"another").digest()


def options(capacity_bytes=4 * MIB, **changes):
    """Options of a small store whose background thread stays out of the way."""
    settings = {
        "capacity_bytes": capacity_bytes,
        "io_threads": 4,
        "staging_bytes": 8 * MIB,
        "read_ahead_bytes": MIB,
        "operation_bytes": MIB,
        "sync_interval_s": 3600.0,
        "stall_s": 10.0,
    }
    return StoreOptions(**{**settings, **changes})


def key_of(*name):
    return hashlib.sha256(repr(name).encode()).digest()


def chain(name, count):
    """Keys of a chain."""
    return [key_of(name, number) for number in range(count)]


def payload(key, size):
    return hashlib.shake_128(key).digest(size)


def pages_of(keys, size=8000, parent=None, pieces=2):
    """Pages of a chain that begins below ``parent``.

    Where the size allows, every other chain lies in memory that can be written without a copy.
    """
    pages = []
    step = max(1, -(-size // pieces))
    fits = size > 0 and step % 512 == 0 == size % step
    is_aligned = fits and bool(keys) and sum(keys[0]) % 2 == 0
    for key in keys:
        data = payload(key, size)
        if is_aligned:
            data = aligned(data)
        buffers = [data[at : at + step] for at in range(0, size, step)] or [b""]
        pages.append(Page(key, parent, buffers))
        parent = key
    return pages


def aligned(data):
    """A copy of ``data`` that begins at a page of the machine."""
    memory = memoryview(mmap.mmap(-1, len(data)))
    memory[:] = data
    return memory


def read(store, keys, size=8000, namespace=NAMESPACE):
    """Read keys; for each whether it was a hit. A hit with wrong bytes fails the test."""
    half = size // 2
    targets = [[bytearray(half), bytearray(size - half)] for _ in keys]
    hits = store.read(namespace, keys, targets)
    for key, target, hit in zip(keys, targets, hits, strict=True):
        if hit:
            assert b"".join(target) == payload(key, size), f"wrong bytes for {key.hex()}"
        else:
            assert not any(target[0]), "a miss touched the caller's memory"
    return hits


def write(store, keys, size=8000, parent=None, namespace=NAMESPACE):
    return store.write(namespace, pages_of(keys, size, parent))


def healthy_again(store, act):
    """Whether ``act`` succeeds within ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if act():
            return True
        time.sleep(0.05)
    return False


def reopened(folder, how, **changes):
    """A store that was opened ``how``: from a checkpoint (clean), a journal, or a scan."""
    store = PageStore(folder, options(**changes))
    assert store.stats().recovery == how
    store.check_integrity()
    return store
