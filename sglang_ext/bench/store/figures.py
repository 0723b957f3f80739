"""Statistics of ``bench store`` and the goals it is held against; pure.

One pass of one engine over the data set is a `Sample`; a row is what the rounds say together:
medians, and the fastest and slowest round beside them.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["GB", "MB", "OPS", "Goal", "Op", "Sample", "goals", "percentile", "row", "speed"]

Op = Literal["read", "write"]
OPS: tuple[Op, ...] = ("write", "read")  # the order in which a round does them

MB = 10**6
GB = 10**9


@dataclass(frozen=True)
class Sample:
    """One pass over the data set.

    Attributes:
        payload_bytes: bytes of pages; headers and padding do not count.
        seconds: wall time, for writes until they are durable.
        cpu_s: CPU seconds of user and kernel, all threads.
        p50_ms: median latency of one call (fio: of one block).
        p99_ms: its 99th percentile.
        disk_bytes: bytes that a read had from the disk; None where unknown.
    """

    payload_bytes: int
    seconds: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
    disk_bytes: int | None = None

    @property
    def mb_s(self) -> float:
        """Decimal megabytes of payload a second."""
        return self.payload_bytes / MB / self.seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` % of ``values`` do not exceed.

    Raises:
        ValueError: ``values`` is empty, or ``percent`` is not in (0, 100].
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def speed(samples: Sequence[Sample]) -> float:
    """Median of the rounds, MB/s."""
    return statistics.median(sample.mb_s for sample in samples)


def row(engine: str, op: Op, page_bytes: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """One row of the result; see ``docs/bench.md`` for its fields."""
    speeds = [sample.mb_s for sample in samples]
    from_disk = [
        sample.disk_bytes / sample.payload_bytes
        for sample in samples
        if sample.disk_bytes is not None
    ]
    return {
        "engine": engine,
        "op": op,
        "page_bytes": page_bytes,
        "mb_s": round(statistics.median(speeds), 1),
        "p50_ms": round(statistics.median(sample.p50_ms for sample in samples), 3),
        "p99_ms": round(statistics.median(sample.p99_ms for sample in samples), 3),
        "cpu_s_per_gb": round(
            statistics.median(sample.cpu_s * GB / sample.payload_bytes for sample in samples), 3
        ),
        "mb_s_spread": [round(min(speeds), 1), round(max(speeds), 1)],
        "rounds": len(samples),
        **({"disk_bytes_per_byte": round(statistics.median(from_disk), 3)} if from_disk else {}),
    }


@dataclass(frozen=True)
class Goal:
    """A figure we want to reach, with what was found; missing a goal is told, not an error."""

    what: str
    target: float
    found: float

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.found >= self.target

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "what": self.what,
            "target": self.target,
            "found": round(self.found, 3),
            "met": self.met,
        }


# Share of fio's best that our store is held to, by operation and page size in KiB.
_SHARES_OF_FIO: Mapping[tuple[Op, int], float] = {
    ("read", 1024): 0.95,
    ("write", 1024): 0.90,
    ("read", 64): 0.70,
    ("write", 64): 0.70,
}


def goals(rows: Sequence[Mapping[str, Any]], reachable: Mapping[str, float]) -> list[Goal]:
    """The goals that ``rows`` can decide: shares of fio's best, the stock class, `reachable`."""
    mb_s = {(one["engine"], one["op"], one["page_bytes"]): float(one["mb_s"]) for one in rows}
    found = []
    for (engine, op, page_bytes), ours in sorted(mb_s.items(), key=lambda item: item[0][1:]):
        if engine != "ext":
            continue
        kib = page_bytes // 1024
        fio, stock = (mb_s.get((rival, op, page_bytes)) for rival in ("fio", "file"))
        share = _SHARES_OF_FIO.get((op, kib))
        if fio and share:
            found.append(Goal(f"{op} at {kib} KiB, share of fio's best", share, ours / fio))
        if stock:
            found.append(Goal(f"{op} at {kib} KiB, times the stock class", 1.0, ours / stock))
    if "ext" in reachable:
        found.append(Goal("reachable share of what is stored", 1.0, reachable["ext"]))
    return found
