"""The stores that ``bench store`` drives, behind one small protocol.

Rivals are set up as somebody would who wants them to be fast, and where it is in doubt in their
favour: the settings stand in each class and in the result.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from sglang_ext.bench.store.load import Load
from sglang_ext.bench.store.machine import sync_disk
from sglang_ext.errors import ConfigError

__all__ = ["ENGINES", "Engine", "check_packages"]

Pages = Sequence[memoryview]

# What the parallel engines may keep in flight, ours included.
_THREADS = 16


class Engine(Protocol):
    """A store of pages, opened by its constructor; all calls come from one thread."""

    settings: ClassVar[str]
    durable: ClassVar[str]  # when a written page counts as durable

    def __init__(self, folder: Path, load: Load) -> None: ...

    def find(self, keys: Sequence[bytes]) -> int:
        """How many leading ``keys`` are there; the engine may begin to read them."""

    def write(self, parent: bytes | None, keys: Sequence[bytes], pages: Pages) -> int:
        """Store pages that follow ``parent``; returns how many of them are stored."""

    def sync(self) -> None:
        """Come back when all that was written is durable."""

    def read(self, keys: Sequence[bytes], targets: Pages) -> int:
        """Read pages into ``targets``; returns how many leading ones are there."""

    def close(self) -> None:
        """Give up all files, mappings and threads."""


class Ext:
    """Our page store."""

    settings: ClassVar[str] = f"PageStore, O_DIRECT, {_THREADS} threads, checksums verified"
    durable: ClassVar[str] = "flush()"
    _NAMESPACE = bytes(32)

    def __init__(self, folder: Path, load: Load, capacity_bytes: int | None = None) -> None:
        from sglang_ext.cache.store import Page, PageStore, StoreOptions

        self._page = Page
        # Room for headers, index and journal: this is about speed, not about eviction.
        capacity = capacity_bytes or load.payload_bytes * 5 // 4 + (256 << 20)
        self._store = PageStore(
            folder / "ext", StoreOptions(capacity_bytes=capacity, io_threads=_THREADS)
        )

    def find(self, keys: Sequence[bytes]) -> int:
        """Asks the index and starts the read-ahead."""
        return int(self._store.prefix(keys, read_ahead=True))

    def write(self, parent: bytes | None, keys: Sequence[bytes], pages: Pages) -> int:
        """One call of ``PageStore.write``."""
        parents = [parent, *keys[:-1]]
        batch = [
            self._page(key=key, parent=above, buffers=(page,))
            for key, above, page in zip(keys, parents, pages, strict=True)
        ]
        return sum(self._store.write(self._NAMESPACE, batch))

    def sync(self) -> None:
        """Pages, then the journal."""
        self._store.flush()

    def read(self, keys: Sequence[bytes], targets: Pages) -> int:
        """One call of ``PageStore.read``."""
        return _leading(self._store.read(self._NAMESPACE, keys, [(page,) for page in targets]))

    def close(self) -> None:
        """Writes the checkpoint, too."""
        self._store.close()


class StockFile:
    """SGLang's ``HiCacheFile``, the class itself: a file a page, a page after the other.

    Driven without the copy that SGLang makes of each page around it, and without its size bound,
    whose accounting costs a little.
    """

    settings: ClassVar[str] = "HiCacheFile as SGLang calls it, no size bound"
    durable: ClassVar[str] = "one syncfs() after all pages; the class itself never syncs"

    def __init__(self, folder: Path, load: Load, max_size_bytes: int = 0) -> None:
        import torch
        from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig

        self._torch = torch
        self._folder = folder / "file"
        self._store = HiCacheFile(
            HiCacheStorageConfig(
                tp_rank=0,
                tp_size=1,
                pp_rank=0,
                pp_size=1,
                attn_cp_rank=0,
                attn_cp_size=1,
                is_mla_model=False,
                enable_storage_metrics=False,
                is_page_first_layout=True,
                model_name="bench",
                extra_config={"file_storage_path": str(self._folder), "max_size": max_size_bytes},
            )
        )
        if Path(self._store.file_path) != self._folder:
            raise ConfigError(
                f"SGLang puts its files into {self._store.file_path} instead of {self._folder}; "
                "unset SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR"
            )

    def find(self, keys: Sequence[bytes]) -> int:
        """A look at the folder for each key."""
        return int(self._store.batch_exists([key.hex() for key in keys]))

    def write(self, parent: bytes | None, keys: Sequence[bytes], pages: Pages) -> int:
        """``batch_set``: buffered writes to a temporary file, then a rename."""
        names = [key.hex() for key in keys]
        return len(keys) if self._store.batch_set(names, [self._tensor(p) for p in pages]) else 0

    def sync(self) -> None:
        """Cheaper than an fsync for each file, so in the rival's favour."""
        sync_disk(self._folder)

    def read(self, keys: Sequence[bytes], targets: Pages) -> int:
        """``batch_get``: buffered reads."""
        got = self._store.batch_get(
            [key.hex() for key in keys], [self._tensor(page) for page in targets]
        )
        return _leading([page is not None for page in got])

    def close(self) -> None:
        """Nothing is held open."""

    def _tensor(self, page: memoryview) -> Any:
        return self._torch.frombuffer(page, dtype=self._torch.uint8)


class Lmdb:
    """LMDB: a B-tree in one mapped file; a transaction a call; reads by threads."""

    settings: ClassVar[str] = f"a transaction a call, no metasync, readers in {_THREADS} threads"
    durable: ClassVar[str] = "each commit but the last, which a sync() at the end makes durable"

    def __init__(self, folder: Path, load: Load) -> None:
        import lmdb

        self._environment = lmdb.open(
            str(folder / "lmdb"),
            map_size=load.payload_bytes * 3 // 2 + (256 << 20),
            max_readers=_THREADS + 2,
            # Saves a sync a commit and keeps the tree whole whatever happens. Without any sync it
            # is faster still, and a power loss can ruin all of it.
            metasync=False,
        )
        self._threads = ThreadPoolExecutor(_THREADS)

    def find(self, keys: Sequence[bytes]) -> int:
        """A look into the tree for each key; values are not touched."""
        with self._environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            return _leading([cursor.set_key(key) for key in keys])

    def write(self, parent: bytes | None, keys: Sequence[bytes], pages: Pages) -> int:
        """One transaction."""
        with self._environment.begin(write=True) as transaction:
            return sum(transaction.put(key, page) for key, page in zip(keys, pages, strict=True))

    def sync(self) -> None:
        """What the last commit left to do."""
        self._environment.sync(True)

    def read(self, keys: Sequence[bytes], targets: Pages) -> int:
        """Copies out of the mapping, which is where the disk is read."""
        return _leading(list(self._threads.map(self._copy, keys, targets)))

    def _copy(self, key: bytes, target: memoryview) -> bool:
        with self._environment.begin(buffers=True) as transaction:
            value = transaction.get(key)
            if value is None:
                return False
            # numpy copies without the interpreter's lock, so page faults overlap.
            np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(value, np.uint8))
            return True

    def close(self) -> None:
        """Unmaps, without which its pages would stay warm."""
        self._threads.shutdown()
        self._environment.close()


class RocksDb:
    """RocksDB with blob files: values beside the tree; no compression, no write-ahead log."""

    settings: ClassVar[str] = (
        f"blob files of 256 MiB, no WAL, direct I/O, gets in {_THREADS} threads"
    )
    durable: ClassVar[str] = (
        "a flush of the memtables after all pages (no write-ahead log, in its favour)"
    )

    def __init__(self, folder: Path, load: Load) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_enable_blob_files(True)
        options.set_min_blob_size(0)
        options.set_blob_file_size(256 << 20)
        options.set_blob_compression_type(rocksdict.DBCompressionType.none())
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_write_buffer_size(256 << 20)
        options.set_max_write_buffer_number(4)
        options.increase_parallelism(2)
        table = rocksdict.BlockBasedOptions()
        table.set_bloom_filter(20, False)
        options.set_block_based_table_factory(table)
        options.set_use_direct_reads(True)
        options.set_use_direct_io_for_flush_and_compaction(True)
        self._batch = rocksdict.WriteBatch
        self._no_log = rocksdict.WriteOptions()
        self._no_log.disable_wal = True
        self._store = rocksdict.Rdict(str(folder / "rocksdb"), options)
        self._threads = ThreadPoolExecutor(_THREADS)

    def find(self, keys: Sequence[bytes]) -> int:
        """A look into memtables and Bloom filters for each key; values are not read."""
        return _leading([self._store.key_may_exist(key) for key in keys])

    def write(self, parent: bytes | None, keys: Sequence[bytes], pages: Pages) -> int:
        """One write batch; the binding takes nothing but ``bytes``."""
        batch = self._batch(raw_mode=True)
        for key, page in zip(keys, pages, strict=True):
            batch.put(key, bytes(page))
        self._store.write(batch, self._no_log)
        return len(keys)

    def sync(self) -> None:
        """Memtables to blob files, which RocksDB syncs."""
        self._store.flush()

    def read(self, keys: Sequence[bytes], targets: Pages) -> int:
        """A get for each page."""
        return _leading(list(self._threads.map(self._copy, keys, targets)))

    def _copy(self, key: bytes, target: memoryview) -> bool:
        value = self._store.get(key)
        if value is None:
            return False
        target[:] = value
        return True

    def close(self) -> None:
        """Ends its background threads."""
        self._threads.shutdown()
        self._store.close()


ENGINES: dict[str, type[Engine]] = {
    "ext": Ext,
    "file": StockFile,
    "lmdb": Lmdb,
    "rocksdb": RocksDb,
}

# Engine -> what has to be importable, and how to get it.
_PACKAGES = {
    "file": ("sglang", "run: make setup"),
    "lmdb": ("lmdb", "run: pip install -r requirements/bench.txt -c requirements/constraints.txt"),
    "rocksdb": (
        "rocksdict",
        "run: pip install -r requirements/bench.txt -c requirements/constraints.txt",
    ),
}


def check_packages(engines: Sequence[str]) -> None:
    """Check that what ``engines`` need is installed.

    Raises:
        ConfigError: a package is missing; says how to install it.
    """
    missing = list(_missing(engines))
    if missing:
        raise ConfigError("; ".join(missing) + "; or leave them out with --engines")


def _missing(engines: Sequence[str]) -> Iterator[str]:
    for engine in engines:
        package, fix = _PACKAGES.get(engine, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            yield f"the engine {engine} needs the package {package}, which is not installed; {fix}"


def _leading(found: Sequence[bool]) -> int:
    with suppress(ValueError):
        return list(found).index(False)
    return len(found)
