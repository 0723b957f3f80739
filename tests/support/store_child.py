"""A process that uses a store until it is killed, noting what it knows before and after each act.

The notes are the expected state: ``begin N`` before an act that may evict up to N pages, and after
it ``state KEY …`` with what is resident then. They go out by single unbuffered writes, as SIGKILL
loses nothing that was handed to the kernel.
"""

import os
import random
import sys
from pathlib import Path

from sglang_ext.cache.store import PageStore
from support.store_pages import NAMESPACE, chain, options, pages_of

NAMES = 40
LENGTH = 12
ANY = 10**6


def size_of(name, mixed):
    return 9000 if mixed and name % 2 else 3000


def main(folder, notes, seed, capacity, mixed):
    chance = random.Random(seed)
    log = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(*words):
        os.write(log, (" ".join(words) + "\n").encode())

    note("opening")
    interval = chance.choice((0.005, 0.05, 1.0))
    store = PageStore(Path(folder), options(capacity, sync_interval_s=interval))

    def state():
        note("state", *(key.hex() for key in store._catalog.index.rows))

    state()
    for _ in range(chance.randrange(1, 300)):
        act(store, chance, note, mixed)
        state()
    note("begin", "0")
    store.close()
    note("closed")


def act(store, chance, note, mixed):
    name, count = chance.randrange(NAMES), chance.randrange(1, LENGTH + 1)
    size = size_of(name, mixed)
    keys = chain(name, count)
    what = chance.random()
    if what < 0.7:
        # Another slot size may take a whole segment, with what descends from it.
        # A store of up to 8 MiB evicts up to 8 pages ahead of need.
        note("begin", str(ANY if mixed else count + 8))
        store.write(NAMESPACE, pages_of(keys, size))
        return
    note("begin", "0")
    if what < 0.85:
        store.prefix(keys, read_ahead=chance.random() < 0.5)
        store.read(NAMESPACE, keys, [[bytearray(size)] for _ in keys])
    elif what < 0.95:
        store.flush()
    else:
        store.touch(keys[-1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "mixed")
