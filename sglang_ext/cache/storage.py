"""SGLang's storage interface on top of the page store: the third tier of ``--ext-cache``.

SGLang makes one `PageStorage` in each scheduler process and calls it from threads of its own: one
asks what is there, one reads, one writes. Nothing that goes wrong here reaches them: a fault is a
miss, is counted, and is logged at most once a minute.

Source: ``sglang/srt/mem_cache/hicache_storage.py``, release 0.5.23.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolTransfer,
    PoolTransferResult,
)
from sglang.srt.observability.metrics_collector import StorageMetrics

from sglang_ext.cache.disk_order import DiskAdvice
from sglang_ext.cache.disk_tier import KV, DiskTier, TierPool
from sglang_ext.cache.faults import Faults
from sglang_ext.cache.hooks import opening, set_disk_tier
from sglang_ext.cache.host_pages import host_pages
from sglang_ext.cache.identity import pool_identity, rank_identity, ranks_of, updated_weights
from sglang_ext.cache.namespace import KeySpace, namespace_digest
from sglang_ext.cache.opening import open_store
from sglang_ext.cache.placement import place
from sglang_ext.cache.pool_transfers import link, look_up
from sglang_ext.cache.quiet import RepeatFilter
from sglang_ext.cache.refresh import Refresher
from sglang_ext.cache.store.format import slot_bytes_of
from sglang_ext.cache.store.segments import slots_that_fit
from sglang_ext.cache.traffic import Traffic
from sglang_ext.errors import ConfigError, StoreError

__all__ = ["PageStorage"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_Move = Callable[[DiskTier, str, list[str], Any], list[bool]]


class PageStorage(HiCacheStorage):
    """One rank's part of the third tier."""

    def __init__(self, storage_config: HiCacheStorageConfig, _kwargs: dict[str, Any]) -> None:
        """Open this rank's store.

        Args:
            storage_config: SGLang's; our settings are its ``extra_config["sglang_ext"]``.
            _kwargs: what SGLang hands to every backend of this kind; empty in 0.5.23.

        Raises:
            ConfigError: the settings are missing.
            StoreError: the store cannot be used; the message says why and what to do.
        """
        settings = (storage_config.extra_config or {}).get("sglang_ext")
        if not settings:
            raise ConfigError(
                "the disk tier was attached without its settings; use the "
                "hicache_storage_backend_extra_config that /server_info shows of a server that was "
                "started with --ext-l3-dir"
            )
        self._settings: dict[str, Any] = settings
        self._faults = Faults()
        self._pools: dict[str, Any] = {}
        self._reads, self._writes = Traffic(), Traffic()
        self._page_bytes = 0
        self._updates = 0  # of the weights
        self.moved: dict[str, int] = {}  # pages written and evicted, as of the latest write
        self._shared = bool(storage_config.is_mla_model and storage_config.tp_size > 1)
        self._tp_rank = storage_config.tp_rank
        self._placement = place(ranks_of(storage_config))
        self._identity = rank_identity(storage_config, self._settings["identity"])
        # Reasons for which pages are turned down on purpose; what follows one is an orphan.
        rules = self._settings["admission"] != "all" or self._settings["write_limit_bytes_per_day"]
        self._purposes = ("admission", "budget", "orphan") if rules else ()
        self._off = ""  # why the tier does nothing; empty while it works
        self._closed = False
        self._tier: DiskTier | None = None
        missing = opening()
        self._store = open_store(self._settings, self._placement)
        if missing:
            self._end(f"without {', '.join(missing)} a page could be wrong")
            logger.error("Disk tier is off: %s", self._off)
        else:
            self._begin()
        self._refresher = Refresher(self._touch, also=self._advise)
        self.advice = DiskAdvice(self._refresher.wake)
        _quieten_sglang()
        set_disk_tier(self)

    def _begin(self) -> None:
        """Start to serve, with the pools that are known, under the present identity."""
        tier = DiskTier(self._store, namespace_digest(self._identity))
        for name, pool in self._pools.items():
            self._add(tier, name, pool)
        self._off, self._tier = "", tier

    def _end(self, why: str) -> None:
        self._tier, self._off = None, why

    def close(self) -> None:
        """Give the store back; what was written is durable then. Idempotent."""
        if self._closed:
            return
        self._closed = True
        set_disk_tier(None)
        logger.info("Disk tier closes: %s", self.describe())
        self._end("closed")
        self._refresher.close()
        try:
            self._store.close()
        except Exception as error:
            self._faults.failed("close", error)

    def clear(self) -> None:
        """Forget all pages; files of others in the folder stay. Done by the rank that writes.

        Blocks SGLang's scheduler, for the store's ``stall_s`` at most.

        Raises:
            StoreError: the disk fails or hangs. SGLang logs it and tells of it where it asks for
                what came of clearing.
        """
        if not self._placement.writes:
            return
        try:
            self._store.clear()
        except StoreError as error:
            self._faults.count(f"clear: {type(error).__name__}")
            raise

    # --- host pools

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """SGLang's pool of keys and values."""
        super().register_mem_pool_host(mem_pool_host)
        self._register(KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """A pool beside it, or the same one again under its name."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._register(str(host_pool_name), host_pool)

    def _register(self, name: str, pool: Any) -> None:
        self._pools[name] = pool
        self._ask(f"pool {name}", None, lambda tier: self._add(tier, name, pool))

    def _add(self, tier: DiskTier, name: str, pool: Any) -> None:
        pages, pieces = host_pages(pool)
        identity = pool_identity(name, pool, pieces, shared=self._shared, tp_rank=self._tp_rank)
        tier.add_pool(TierPool(name, KeySpace(tier.namespace, identity), pages))
        if name == KV:
            self._page_bytes = sum(pieces)

    # --- SGLang's calls; see HiCacheStorage

    def batch_exists(
        self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> int:
        """How many leading pages are there; starts to read them."""
        return self._ask("look-up", 0, lambda tier: tier.prefix(keys))

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: Any,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Pages of keys and values into host memory."""
        missing = [False] * len(keys)
        return self._ask("read", missing, lambda tier: self._read(tier, keys, host_indices))

    def _read(self, tier: DiskTier, keys: list[str], host_indices: Any) -> list[bool]:
        moved = self._reads.measure(self._page_bytes, lambda: tier.read(KV, keys, host_indices))
        return list(moved)

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: Any,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        """Pages of keys and values from host memory."""
        refused = [False] * len(keys)
        before = None if extra_info is None else extra_info.prefix_keys
        if before is None:  # a page is kept only behind the pages that it follows
            return self._refuse("write without the pages before", refused)
        parent = before[-1] if before else None
        return self._ask(
            "write", refused, lambda tier: self._write(tier, parent, keys, host_indices)
        )

    def _write(
        self, tier: DiskTier, parent: str | None, keys: list[str], host_indices: Any
    ) -> list[bool]:
        """Write; pages that are turned down on purpose count as taken.

        For SGLang a page that is not taken is a failure: it says so in the log, and does not
        offer what follows in the prompt, which a rule of admission wants to have seen.
        """
        before = self._turned_down()
        done = list(
            self._writes.measure(self._page_bytes, lambda: tier.write(parent, keys, host_indices))
        )
        stats = self._store.stats()
        self.moved = {"written": stats.written_pages, "evicted": stats.evicted}
        failed = done.count(False)
        if failed and self._turned_down() - before >= failed:
            return [True] * len(done)
        return done

    def _turned_down(self) -> int:
        if not self._purposes:
            return 0
        refused = self._store.stats().refused
        return sum(refused.get(reason, 0) for reason in self._purposes)

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """How much of a prefix can be used when several pools have pages of it."""
        transfers = pool_transfers or []
        return self._ask(
            "look-up", PoolTransferResult(0, {}, []), lambda tier: look_up(tier, keys, transfers)
        )

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Pages of several pools into host memory."""
        return self._each("read", transfers, DiskTier.read)

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        """Pages of several pools from host memory."""
        self._ask("write", None, lambda tier: link(tier, transfers))
        return self._each("write", transfers, DiskTier.offer)

    def _each(
        self, what: str, transfers: Sequence[PoolTransfer], move: _Move
    ) -> dict[str, list[bool]]:
        return {transfer.name: self._move(what, transfer, move) for transfer in transfers}

    def _move(self, what: str, transfer: PoolTransfer, move: _Move) -> list[bool]:
        keys, indices, name = transfer.keys or [], transfer.host_indices, str(transfer.name)
        failed = [False] * len(keys)
        page_tokens = getattr(self._pools.get(name), "page_size", 1) or 1
        if indices is None or indices.numel() != len(keys) * page_tokens:
            return self._refuse(f"{what} of pages without memory", failed)
        return self._ask(what, failed, lambda tier: move(tier, name, keys, indices))

    def get_stats(self) -> StorageMetrics:
        """What moved since SGLang asked last; for ``--enable-metrics``."""
        reads, read_speeds = self._reads.take()
        writes, write_speeds = self._writes.take()
        return StorageMetrics(reads, writes, read_speeds, write_speeds)

    def exists(self, key: str) -> bool:
        """Whether one page is there."""
        return self.batch_exists([key]) == 1

    # The calls below belong to backends that do not take addresses; SGLang makes none of them here.

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> None:
        """Not used with ``interface_v1``: always a miss."""

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[None]:
        """Not used with ``interface_v1``: always misses."""
        return [None] * len(keys)

    def set(
        self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
    ) -> bool:
        """Not used with ``interface_v1``: refused."""
        return False

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Not used with ``interface_v1``: refused."""
        return False

    # --- what our hooks call

    def operation(self, run: Callable[[], _Result]) -> _Result:
        """Run one of SGLang's writes; see `DiskTier.operation`."""
        tier = self._tier
        return run() if tier is None else tier.operation(run)

    def hit(self, last_page: str, pages: Callable[[], Sequence[str]]) -> None:
        """A prefix was found in device or host memory; returns at once."""
        if self._tier is not None:
            self._refresher.hit(last_page, pages)

    def weights_change(self) -> None:
        """Weights are about to change: nothing is served or taken until `weights_changed`."""
        if not self._closed:
            self._end("the weights were changed and the caches were not flushed")

    def weights_changed(self, *, flushed: bool) -> None:
        """Weights have changed.

        Args:
            flushed: nothing that the old weights computed is left in device and host memory, and
                none of it waits to be written. Without that the tier stays off.
        """
        if self._closed or not flushed:
            return
        self._updates += 1
        weights = updated_weights(self._settings["identity"]["session"], self._updates)
        self._identity = {**self._identity, "weights": weights}
        self._try("new weights", self._begin)

    def describe(self) -> dict[str, Any]:
        """State, counters and gauges as plain values."""
        refresher = self._refresher
        try:
            store = self._store.stats().to_json()
        except Exception as error:
            self._faults.failed("statistics", error)
            store = {}
        return {
            "store": self._placement.owner,
            "stores": self._placement.owners,
            "writes": self._placement.writes,
            "off": self._off,
            "faults": self._faults.describe(),
            "refreshed": {"hits": refresher.refreshed, "absent": refresher.absent},
            **store,
        }

    def capacity_tokens(self, page_tokens: int) -> int:
        """Tokens that the tier holds at most; 0 before SGLang's pool is known."""
        if not self._page_bytes:
            return 0
        slots = slots_that_fit(self._store.stats().capacity_bytes, slot_bytes_of(self._page_bytes))
        return slots * page_tokens

    def _advise(self) -> None:
        tier = self._tier
        if tier is not None and self._placement.writes:
            self.advice.work(tier)

    def _touch(self, page_hash: str) -> bool:
        return self._ask("refresh", True, lambda tier: tier.touch(page_hash))

    # --- faults

    def _ask(self, what: str, otherwise: _Result, call: Callable[[DiskTier], _Result]) -> _Result:
        """What ``call`` returns; ``otherwise`` where the tier is off or something goes wrong."""
        tier = self._tier
        if tier is None:
            return otherwise
        try:
            return call(tier)
        except Exception as error:
            # SGLang's threads end on an exception, and its scheduler waits for them for ever.
            self._faults.failed(what, error)
            return otherwise

    def _try(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._faults.failed(what, error)

    def _refuse(self, cause: str, refused: _Result) -> _Result:
        self._faults.refused(cause)
        return refused


def _quieten_sglang() -> None:
    """SGLang logs every page that a backend does not take or give; once a minute is enough."""
    controller = logging.getLogger("sglang.srt.managers.cache_controller")
    if not any(isinstance(each, RepeatFilter) for each in controller.filters):
        controller.addFilter(RepeatFilter("Write page to storage:", "Prefetch operation"))
