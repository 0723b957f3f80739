"""A process that uses a store until it is killed, noting what it knows before and after each act.

The notes are the expected state: ``state KEY …`` with what is resident after each act, and ``gone
KEY …`` for pages that the store removes, before the disk learns of it. They go out by single
unbuffered writes, as SIGKILL loses nothing that was handed to the kernel.
"""

import os
import random
import sys
from pathlib import Path

from sglang_ext.cache.store import PageStore
from support.store_pages import NAMESPACE, chain, options, pages_of

NAMES = 40
LENGTH = 12


def size_of(name, mixed):
    return 9216 if mixed and name % 2 else 3072


def main(folder, notes, seed, capacity, mixed):
    chance = random.Random(seed)
    log = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(*words):
        os.write(log, (" ".join(words) + "\n").encode())

    note("opening")
    interval = chance.choice((0.005, 0.05, 1.0))
    store = PageStore(Path(folder), options(capacity, sync_interval_s=interval))

    index = store._catalog.index
    remove_tree = index.remove_tree

    def noted(row):
        gone = remove_tree(row)
        note("gone", *(key.hex() for key, _ in gone))
        return gone

    index.remove_tree = noted

    def state():
        with store._catalog.lock:  # others remove pages as well, and note it
            note("state", *(key.hex() for key in index.rows))

    state()
    for _ in range(chance.randrange(1, 300)):
        act(store, chance, mixed)
        state()
    store.close()
    note("closed")


def act(store, chance, mixed):
    name, count = chance.randrange(NAMES), chance.randrange(1, LENGTH + 1)
    size = size_of(name, mixed)
    keys = chain(name, count)
    what = chance.random()
    if what < 0.7:
        store.write(NAMESPACE, pages_of(keys, size))
    elif what < 0.85:
        store.prefix(keys, read_ahead=chance.random() < 0.5)
        store.read(NAMESPACE, keys, [[bytearray(size)] for _ in keys])
    elif what < 0.95:
        store.flush()
    else:
        store.touch(keys[-1])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "mixed")
