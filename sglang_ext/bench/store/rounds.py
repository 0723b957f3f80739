"""Who takes part in the rounds, and one pass of an engine over the data set, timed and checked."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sglang_ext.bench.store.engines import ENGINES, Engine
from sglang_ext.bench.store.figures import OPS, Op, Sample, percentile, row, speed
from sglang_ext.bench.store.fio import FIO, Fio, Setting
from sglang_ext.bench.store.load import CALL_PAGES, Batch, Load, PageMemory, keys_of
from sglang_ext.bench.store.machine import bytes_from_disk, cpu_seconds, drop_caches, own_folder

__all__ = ["EngineEntrant", "Entrant", "FioEntrant", "Outcome", "Stopwatch", "pass_over"]

Open = Callable[[Path, Load], Engine]


@dataclass
class Outcome:
    """Samples of both operations, and what was not as it should be, in words."""

    samples: dict[Op, Sample] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


class Stopwatch:
    """Wall time, CPU time and disk traffic from its making until `sample`, without a gap.

    An engine has threads of its own; whatever they do, they do on this time.
    """

    def __init__(self) -> None:
        self._calls_ms: list[float] = []
        self._from_disk = bytes_from_disk()
        self._cpu_s = cpu_seconds()
        self._begin = time.perf_counter()

    @contextmanager
    def call(self) -> Iterator[None]:
        """What happens inside is one call in the latencies."""
        begin = time.perf_counter()
        yield
        self._calls_ms.append((time.perf_counter() - begin) * 1000)

    def sample(self, op: Op, payload_bytes: int) -> Sample:
        """What was counted so far."""
        seconds = time.perf_counter() - self._begin
        cpu_s = cpu_seconds() - self._cpu_s
        from_disk = bytes_from_disk()
        return Sample(
            payload_bytes=payload_bytes,
            seconds=seconds,
            cpu_s=cpu_s,
            p50_ms=percentile(self._calls_ms, 50),
            p99_ms=percentile(self._calls_ms, 99),
            disk_bytes=None if op == "write" else _difference(from_disk, self._from_disk),
        )


def _is_cold(sample: Sample, read_bytes: int) -> bool:
    """Whether at least nine tenths of what was read came from the disk, as far as is known."""
    return sample.disk_bytes is None or sample.disk_bytes >= 0.9 * read_bytes


def _difference(later: int | None, earlier: int | None) -> int | None:
    return None if later is None or earlier is None else later - earlier


def pass_over(
    name: str, open_engine: Open, folder: Path, load: Load, memory: PageMemory, seed: int
) -> Outcome:
    """Write the whole data set, make it cold, read it back, and compare all of it.

    Args:
        name: of the engine, for findings.
        open_engine: opens the engine in ``folder``, which is empty at first.
        folder: a folder of this pass alone.
        load: the data set.
        memory: its pages.
        seed: decides in which order chains are read.
    """
    outcome = Outcome()
    chains = load.chains()
    memory.fill()
    with closing(open_engine(folder, load)) as engine:
        outcome.samples["write"], stored = _write(engine, chains, load, memory)
    drop_caches(folder)
    memory.wipe()
    order = np.random.default_rng(seed).permutation(len(chains))
    with closing(open_engine(folder, load)) as engine:
        shuffled = [chains[number] for number in order]
        outcome.samples["read"], found = _read(engine, shuffled, load, memory)
    wrong = memory.wrong() - (load.pages - found)
    if stored != load.pages:
        outcome.findings.append(f"{name} stored {stored} of {load.pages} pages")
    if found != load.pages:
        outcome.findings.append(f"{name} gave back {found} of {load.pages} pages")
    if not _is_cold(outcome.samples["read"], found * load.page_bytes):
        outcome.findings.append(f"{name} had less from the disk than it gave back: not cold")
    if wrong > 0:
        outcome.findings.append(f"{name} gave back {wrong} of {load.pages} pages wrong")
    return outcome


def _write(
    engine: Engine, chains: Sequence[Sequence[Batch]], load: Load, memory: PageMemory
) -> tuple[Sample, int]:
    """The sample, and how many pages the engine says it has stored."""
    batches = [(batch, memory.views(batch)) for chain in chains for batch in chain]
    stored = 0
    watch = Stopwatch()
    for batch, pages in batches:
        with watch.call():
            stored += engine.write(batch.parent, batch.keys, pages)
    engine.sync()
    return watch.sample("write", load.payload_bytes), stored


def _read(
    engine: Engine, chains: Sequence[Sequence[Batch]], load: Load, memory: PageMemory
) -> tuple[Sample, int]:
    """The sample, and how many pages the engine says it gave back.

    Chain by chain; whether a chain is there is asked while the one before it is still to be read.
    SGLang asks on one thread and reads on another, so under load its questions run ahead, too.
    """
    requests = [
        (keys_of(chain), [(batch, memory.views(batch)) for batch in chain]) for chain in chains
    ]
    found = 0
    watch = Stopwatch()
    engine.find(requests[0][0])
    for number, (_, batches) in enumerate(requests, start=1):
        if number < len(requests):
            engine.find(requests[number][0])
        for batch, targets in batches:
            with watch.call():
                found += engine.read(batch.keys, targets)
    return watch.sample("read", load.payload_bytes), found


class Entrant(Protocol):
    """Takes part in the rounds of one page size."""

    name: str
    findings: list[str]

    def enter(self, number: int) -> None:
        """One round: writes, then reads."""

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the result, once all rounds are over."""


class EngineEntrant:
    """An engine of `ENGINES`; each round is in a fresh folder."""

    def __init__(self, name: str, folder: Path, load: Load, memory: PageMemory) -> None:
        self.name = name
        self.findings: list[str] = []
        self._folder = folder
        self._load = load
        self._memory = memory
        self._samples: dict[Op, list[Sample]] = {op: [] for op in OPS}

    def enter(self, number: int) -> None:
        """One pass; its findings say in which round."""
        open_engine = ENGINES[self.name]
        with own_folder(self._folder, "engine") as folder:
            outcome = pass_over(
                self.name, open_engine, folder, self._load, self._memory, seed=number
            )
        for op, sample in outcome.samples.items():
            self._samples[op].append(sample)
        self.findings += [f"{finding} in round {number + 1}" for finding in outcome.findings]

    def rows(self) -> list[dict[str, Any]]:
        """One for each operation."""
        engine = ENGINES[self.name]
        return [
            {
                **row(self.name, op, self._load.page_bytes, samples),
                "latency_of": f"call of up to {CALL_PAGES} pages",
                "settings": engine.settings,
                **({"durable": engine.durable} if op == "write" else {}),
            }
            for op, samples in self._samples.items()
        ]


class FioEntrant:
    """fio with the settings that were fastest in a trial; the better one counts in the end."""

    name = FIO

    def __init__(self, fio: Fio) -> None:
        self.findings: list[str] = []
        self._fio = fio
        self._samples: dict[Op, dict[Setting, list[Sample]]] = {
            op: {setting: [] for setting in settings} for op, settings in fio.choose().items()
        }
        self._load = fio.load

    def enter(self, number: int) -> None:
        """Each finalist once."""
        for op, by_setting in self._samples.items():
            for setting, samples in by_setting.items():
                samples.append(self._fio.measure(op, setting))

    def rows(self) -> list[dict[str, Any]]:
        """One for each operation, of its better setting."""
        rows = []
        for op, by_setting in self._samples.items():
            setting, samples = max(by_setting.items(), key=lambda item: speed(item[1]))
            rows.append(
                {
                    **row(FIO, op, self._load.page_bytes, samples),
                    "latency_of": "block",
                    "settings": f"{setting}, direct=1",
                    **({"durable": "end_fsync=1"} if op == "write" else {}),
                }
            )
        return rows
