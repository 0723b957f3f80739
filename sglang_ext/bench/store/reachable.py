"""How much of what a full store holds can still be used.

A page helps only if all pages before it are there. Four conversations that share a prefix are
stored into a capacity that holds most of them; then every page is asked for. Pages of usable
prefixes, divided by pages stored: 1.0 where the store evicts suffixes first, 0 where the shared
prefix, being the oldest, goes first.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from sglang_ext.bench.store.engines import Engine, Ext, StockFile
from sglang_ext.bench.store.load import CALL_PAGES, Load

__all__ = ["CAPACITY_PAGES", "EVICTING", "conversations", "measure", "reachable_share"]

CAPACITY_PAGES = 350
_SHARED_PAGES = 20
_OWN_PAGES = 100
_CONVERSATIONS = 4
_PAGE_BYTES = 360 * 1024


def _bounded_ext(folder: Path, load: Load) -> Engine:
    return Ext(folder, load, capacity_bytes=CAPACITY_PAGES * load.page_bytes)


def _bounded_file(folder: Path, load: Load) -> Engine:
    return StockFile(folder, load, max_size_bytes=CAPACITY_PAGES * load.page_bytes)


# The engines that have a bound and evict; both get the same number of bytes.
EVICTING: dict[str, Callable[[Path, Load], Engine]] = {"ext": _bounded_ext, "file": _bounded_file}


def conversations() -> list[list[bytes]]:
    """Keys of each conversation, the shared ones first."""
    shared = [_key(f"shared/{number}") for number in range(_SHARED_PAGES)]
    return [
        shared + [_key(f"{conversation}/{number}") for number in range(_OWN_PAGES)]
        for conversation in range(_CONVERSATIONS)
    ]


def measure(engine_name: str, folder: Path) -> float:
    """Store all conversations into an empty store in ``folder`` and ask for every page.

    The shared prefix is written once, with the first conversation: SGLang finds it in its upper
    tiers with the others, and backs up only what is new.
    """
    load = Load(_PAGE_BYTES, (len(set().union(*conversations())) * _PAGE_BYTES))
    page = memoryview(bytearray(_PAGE_BYTES))
    with closing(EVICTING[engine_name](folder, load)) as engine:
        written: set[bytes] = set()
        for chain in conversations():
            new = [key for key in chain if key not in written]
            parent = chain[-len(new) - 1] if len(new) < len(chain) else None
            for start in range(0, len(new), CALL_PAGES):
                keys = new[start : start + CALL_PAGES]
                engine.write(parent, keys, [page] * len(keys))
                parent = keys[-1]
            written.update(new)
        engine.sync()
        return reachable_share(
            conversations(),
            # Only what is said to be there is read: the stock class warns of every miss.
            lambda key: engine.find([key]) == 1 and engine.read([key], [page]) == 1,
        )


def reachable_share(chains: Sequence[Sequence[bytes]], resident: Callable[[bytes], bool]) -> float:
    """Pages of usable prefixes divided by pages stored; 0 where nothing is stored.

    Args:
        chains: keys of each conversation.
        resident: whether a page is stored; asked once for each different key.
    """
    stored = {
        key for key in dict.fromkeys(key for chain in chains for key in chain) if resident(key)
    }
    usable: set[bytes] = set()
    for chain in chains:
        for key in chain:
            if key not in stored:
                break
            usable.add(key)
    return len(usable) / len(stored) if stored else 0.0


def _key(name: str) -> bytes:
    return hashlib.sha256(f"reachable/{name}".encode()).digest()
