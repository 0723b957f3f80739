"""Opens the store of one rank in the folder of the third tier.

Pure: neither torch nor SGLang is imported.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sglang_ext.cache.folder import abandoned, overhead_bytes, remove_store
from sglang_ext.cache.placement import Placement
from sglang_ext.cache.store import PageStore, StoreOptions
from sglang_ext.errors import StoreInUseError

__all__ = ["open_store"]

logger = logging.getLogger(__name__)

# How long somebody may take to let go of a store. Default 30 s: the processes of a server that was
# killed notice it within seconds.
_WAIT_S = 30.0


def open_store(
    settings: Mapping[str, Any], placement: Placement, wait_s: float = _WAIT_S
) -> PageStore:
    """The store of a rank; it may still be in use for a moment.

    Args:
        settings: ``folder``, ``capacity_bytes`` and ``write_limit_bytes_per_day`` of the whole
            server, ``admission``.
        placement: which store, and whether this process writes to it.
        wait_s: how long to wait for somebody to let go of it.

    Raises:
        StoreError: it cannot be used; the message says why and what to do.
    """
    size_bytes, limit = settings["capacity_bytes"], settings["write_limit_bytes_per_day"]
    options = StoreOptions(
        capacity_bytes=placement.share(size_bytes - overhead_bytes(size_bytes)),
        write_limit_bytes_per_day=None if limit is None else placement.share(limit),
        admission=settings["admission"],
    )
    root = Path(settings["folder"])
    if placement.writes and placement.owner == 0:
        _remove_abandoned(root, placement.owners)
    folder = root / placement.folder
    make = PageStore if placement.writes else PageStore.follow
    store = _when_free(lambda: make(folder, options), wait_s)
    stats = store.stats()
    logger.info(
        "Disk tier: store %d of %d in %s (%s): %d pages, %.1f of %.1f MB, opened in %.2f s",
        *(placement.owner + 1, placement.owners, folder),
        "written by this rank" if placement.writes else "written by another rank",
        *(stats.pages, stats.used_bytes / 1e6, stats.capacity_bytes / 1e6, stats.open_s),
    )
    return store


def _when_free(make: Callable[[], PageStore], wait_s: float) -> PageStore:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return make()
        except StoreInUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _remove_abandoned(root: Path, owners: int) -> None:
    """Remove the stores of an earlier, larger number of ranks; they count beside the bound."""
    for folder in abandoned(root, owners):
        if remove_store(folder):
            logger.info("Disk tier: removed %s, which no rank of %d uses", folder, owners)
        else:
            logger.warning(
                "Disk tier: %s is of an earlier number of ranks and counts beside --ext-l3-size, "
                "and it cannot be removed; remove it",
                folder,
            )
