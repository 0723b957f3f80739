"""``bench store``: our page store, its rivals and the disk itself, in one run.

Each round goes through all engines, beginning with another one each time; an engine writes the
whole data set into an empty folder, is closed and made cold, is opened again, and reads the chains
in random order. Every page that comes back is compared, outside the timing.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext.bench.store import reachable
from sglang_ext.bench.store.engines import ENGINES, check_packages
from sglang_ext.bench.store.figures import goals
from sglang_ext.bench.store.fio import FIO, Fio, find_fio
from sglang_ext.bench.store.load import Load, PageMemory
from sglang_ext.bench.store.machine import check_folder, describe, drop_caches, own_folder
from sglang_ext.bench.store.rounds import EngineEntrant, Entrant, FioEntrant
from sglang_ext.errors import ConfigError

__all__ = ["ENGINE_NAMES", "PAGE_BYTES", "OnStep", "StoreBench", "bench_store"]

ENGINE_NAMES = (*ENGINES, FIO)
PAGE_BYTES = tuple(kib * 1024 for kib in (64, 128, 360, 1024, 4096))

OnStep = Callable[[str, int], None]


@dataclass(frozen=True)
class StoreBench:
    """What to measure.

    Args:
        folder: where; decides which disk is measured. Everything made there is removed again.
        data_bytes: size of the data set of each page size. The disk holds it twice at a time
            (an engine's and fio's), memory once.
        rounds: rounds; medians are reported.
        engines: names of `ENGINE_NAMES`.
        page_sizes: bytes a page.

    Raises:
        ConfigError: no rounds, an unknown engine, or a page size that does not work.
    """

    folder: Path
    data_bytes: int = 1 << 30
    rounds: int = 5
    engines: tuple[str, ...] = ENGINE_NAMES
    page_sizes: tuple[int, ...] = PAGE_BYTES

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.engines or not self.page_sizes:
            raise ConfigError("expected at least one round, one engine and one page size")
        unknown = [name for name in self.engines if name not in ENGINE_NAMES]
        if unknown:
            raise ConfigError(
                f"no engine is called {', '.join(unknown)}; there are {', '.join(ENGINE_NAMES)}"
            )
        for page_bytes in self.page_sizes:
            Load(page_bytes, self.data_bytes)

    @property
    def steps(self) -> int:
        """How many steps a run has, for a progress bar."""
        per_size = self.rounds * len(self.engines) + (FIO in self.engines)
        return len(self.page_sizes) * per_size + len(self.evicting)

    @property
    def evicting(self) -> tuple[str, ...]:
        """Engines that have a bound and evict: those whose reachable share is asked for."""
        return tuple(name for name in self.engines if name in reachable.EVICTING)


def bench_store(bench: StoreBench, on_step: OnStep = lambda _step, _done: None) -> dict[str, Any]:
    """Measure, round by round.

    Args:
        bench: what to measure.
        on_step: called before each step: what it is, and how many are done.

    Returns:
        The object that ``--json`` writes; documented in ``docs/bench.md``.

    Raises:
        ConfigError: a program or package is missing, or the folder cannot be used.
        BenchError: fio failed.
    """
    check_packages(bench.engines)
    if FIO in bench.engines:
        find_fio()
    # An engine's data set with what LMDB and RocksDB need on top, and fio's own.
    check_folder(bench.folder, 3 * bench.data_bytes + (1 << 30))
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=bench.folder) as name:
        return _Run(bench, Path(name), on_step).run()


class _Run:
    """One run in a folder of its own."""

    def __init__(self, bench: StoreBench, folder: Path, on_step: OnStep) -> None:
        self._bench = bench
        self._folder = folder
        self._on_step = on_step
        self._done = 0
        self._findings: list[str] = []

    def run(self) -> dict[str, Any]:
        cold = drop_caches(self._folder)
        machine = describe(self._folder)
        rows = [one for size in self._bench.page_sizes for one in self._page_size(size)]
        shares = {}
        for name in self._bench.evicting:
            self._step(f"{name}: what is reachable in a full store")
            with own_folder(self._folder, "reachable") as folder:
                shares[name] = round(reachable.measure(name, folder), 4)
        return {
            "rows": rows,
            "reachable": shares,
            "goals": [goal.to_json() for goal in goals(rows, shares)],
            "findings": self._findings + _unreachable(shares),
            "rounds": self._bench.rounds,
            "data_bytes": self._bench.data_bytes,
            "cold": cold,
            "machine": machine,
        }

    def _step(self, what: str) -> None:
        self._on_step(what, self._done)
        self._done += 1

    def _page_size(self, page_bytes: int) -> list[dict[str, Any]]:
        load = Load(page_bytes, self._bench.data_bytes)
        memory = PageMemory(load)
        size = f"{page_bytes // 1024} KiB"
        with own_folder(self._folder, FIO) as fio_folder:
            entrants: list[Entrant] = []
            for name in self._bench.engines:
                if name != FIO:
                    entrants.append(EngineEntrant(name, self._folder, load, memory))
                    continue
                self._step(f"{size}: fio, looking for its best setting")
                entrants.append(FioEntrant(Fio(fio_folder, load)))
            for number in range(self._bench.rounds):
                for entrant in _rotated(entrants, number):
                    self._step(
                        f"{size}, round {number + 1} of {self._bench.rounds}: {entrant.name}"
                    )
                    entrant.enter(number)
        for entrant in entrants:
            self._findings += [f"{size}: {finding}" for finding in entrant.findings]
        return [row for entrant in entrants for row in entrant.rows()]


def _rotated(entrants: Sequence[Entrant], by: int) -> list[Entrant]:
    """Everybody follows somebody else in each round, as far as the number of rounds goes."""
    by %= len(entrants)
    return [*entrants[by:], *entrants[:by]]


def _unreachable(shares: Mapping[str, float]) -> list[str]:
    ours = shares.get("ext", 1.0)
    return [] if ours == 1.0 else [f"{1 - ours:.1%} of what our full store keeps is unreachable"]
