"""What a store is opened with, and what it tells about itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, TypeAlias

from sglang_ext.cache.store.format import KEY_BYTES
from sglang_ext.errors import ConfigError

__all__ = [
    "MIB",
    "Buffer",
    "Page",
    "StoreOptions",
    "StoreStats",
    "check_keys",
    "check_namespace",
]

MIB = 1 << 20
# Below this the fixed files would take most of what was given.
_LEAST_CAPACITY_BYTES = 512 * 1024

Buffer: TypeAlias = memoryview | bytearray | bytes
"""Anything contiguous with the buffer protocol, numpy arrays too; writable for reads."""


@dataclass(frozen=True)
class StoreOptions:
    """How a store behaves; nothing of it is kept on disk.

    Attributes:
        capacity_bytes: exact bound on what all files of the store take on disk (``st_blocks``).
        io_threads: operations in flight; while reads are about, writes take at most half of them.
            Default 16: an NVMe disk is busy with 16 reads of 1 MiB. Cost: a thread each, asleep
            while the disk works.
        staging_bytes: aligned memory between disk and caller. Default 256 MiB; cost: that much
            memory from the start.
        read_ahead_bytes: how much of the staging memory read-ahead may hold. Default 128 MiB.
        operation_bytes: pages that lie together are moved in operations of up to this. Default
            1.125 MiB: larger ones leave the disk idle at the end of each call (4 MiB: 1,237 instead
            of 1,826 MB/s at pages of 1 MiB). Cost: ``io_threads`` times this in staging.
        sync_interval_s: how often what was written is made durable against power loss.
        stall_s: how long a call waits for the disk before it counts misses.
        read_ahead_s: how long a page that was read ahead is held for somebody to take it.
        write_limit_bytes_per_day: payload and headers written in any 24 hours (whole hours);
            None: no limit.
        admission: ``all``, or ``second`` to write only what is offered for the second time.
        direct: ask for O_DIRECT; where the file system has none, the page cache is used.
    """

    capacity_bytes: int
    io_threads: int = 16
    staging_bytes: int = 256 * MIB
    read_ahead_bytes: int = 128 * MIB
    operation_bytes: int = 1152 * 1024
    sync_interval_s: float = 1.0
    stall_s: float = 10.0
    read_ahead_s: float = 10.0
    write_limit_bytes_per_day: int | None = None
    admission: Literal["all", "second"] = "all"
    direct: bool = True

    def __post_init__(self) -> None:
        if self.capacity_bytes < _LEAST_CAPACITY_BYTES:
            raise ConfigError(
                f"a page store of {self.capacity_bytes} bytes holds nothing; give it at least "
                f"{_LEAST_CAPACITY_BYTES}"
            )
        if self.io_threads < 2:
            raise ConfigError(
                f"io_threads={self.io_threads}; at least 2 are needed, so that reads pass writes"
            )
        if self.operation_bytes < 4096 or self.operation_bytes % 4096:
            raise ConfigError(
                f"operation_bytes={self.operation_bytes}; expected a multiple of 4096"
            )
        if self.read_ahead_bytes + 2 * self.operation_bytes > self.staging_bytes:
            raise ConfigError(
                f"staging_bytes={self.staging_bytes} does not hold read_ahead_bytes="
                f"{self.read_ahead_bytes} and two operations of {self.operation_bytes} bytes; "
                "raise the first or lower one of the others"
            )
        for name in ("sync_interval_s", "stall_s", "read_ahead_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}; expected a positive number")
        if self.write_limit_bytes_per_day is not None and self.write_limit_bytes_per_day < 0:
            raise ConfigError(
                f"write_limit_bytes_per_day={self.write_limit_bytes_per_day}; expected 0 or more"
            )
        if self.admission not in ("all", "second"):
            raise ConfigError(f"admission={self.admission!r}; expected 'all' or 'second'")


class Page(NamedTuple):
    """A page to be written.

    Attributes:
        key: 32 bytes, unique over all namespaces.
        parent: key of the page before it in its chain; None at a root.
        buffers: the payload in pieces; nobody may change them until ``write`` has returned.
    """

    key: bytes
    parent: bytes | None
    buffers: Sequence[Buffer]


@dataclass(frozen=True)
class StoreStats:
    """Counters since the store was opened, and gauges of this moment.

    ``refused`` counts pages that were not written, by reason: ``admission``, ``budget``,
    ``orphan`` (the parent is not resident), ``space`` (nothing could be evicted), ``disk``.
    ``dropped`` counts resident pages that did not match on disk, by what did not match.
    ``errors`` counts failed operations by the name of the errno, and ``STALL``.
    ``uncopied_pages`` counts pages that went from the caller's memory to the disk without a copy.
    """

    pages: int
    payload_bytes: int
    used_bytes: int
    capacity_bytes: int
    segments: int
    direct: bool
    writer: bool
    hits: int
    misses: int
    read_bytes: int
    written_pages: int
    written_bytes: int
    uncopied_pages: int
    duplicates: int
    evicted: int
    refused: dict[str, int]
    dropped: dict[str, int]
    errors: dict[str, int]
    read_ahead_pages: int
    read_ahead_used: int
    operations: int
    syncs: int
    checkpoints: int
    written_today_bytes: int
    healthy: bool
    recovery: str
    open_s: float

    def to_json(self) -> dict[str, object]:
        """The same as plain values for ``json.dumps``."""
        return asdict(self)


def check_namespace(namespace: bytes) -> None:
    """Raise ``ValueError`` where that cannot be a namespace."""
    if len(namespace) != KEY_BYTES:
        raise ValueError(f"a namespace has {KEY_BYTES} bytes; this one has {len(namespace)}")


def check_keys(keys: Sequence[bytes]) -> None:
    """Raise ``ValueError`` where one of them cannot be a key."""
    for key in keys:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes; this one has {len(key)}")
