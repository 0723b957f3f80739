"""The write side of a store: slots for a batch, its bytes to disk, then the commit."""

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.engine import Batch, Engine, EngineClosedError, Operation
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.keeper import Keeper
from sglang_ext.cache.store.options import StoreOptions
from sglang_ext.cache.store.outgoing import Alignment, WriteJob, WriteRun
from sglang_ext.cache.store.plan import Offer, Plan, Planned
from sglang_ext.cache.store.staging import Bytes, Staging
from sglang_ext.cache.store.transfer import operation_bytes, runs

__all__ = ["Writer"]


class Writer:
    """Writes pages for callers, one call at a time.

    Args:
        keeper: makes room and commits.
        engine, disk, staging: write.
        options: of the store.
        health: is asked before, and told of faults.
    """

    def __init__(
        self,
        keeper: Keeper,
        engine: Engine,
        disk: Disk,
        staging: Staging,
        options: StoreOptions,
        health: Health,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._keeper = keeper
        self._catalog = keeper.catalog
        self._engine = engine
        self._disk = disk
        self._staging = staging
        self._options = options
        self._health = health
        self._alignment = Alignment()

    def write(
        self, namespace: bytes, offers: Sequence[Offer], sources: list[list[Bytes]]
    ) -> set[int]:
        """Write what is offered, parents first, no key twice; numbers of what is resident then."""
        deadline = time.monotonic() + self._options.stall_s
        if not self._health.allows() or not self._keeper.turn.acquire(
            timeout=self._options.stall_s
        ):
            self._catalog.refuse(len(offers), "disk")
            return set()
        try:
            return self._write(namespace, offers, sources, deadline)
        except EngineClosedError:  # by another thread, since this call began
            self._catalog.refuse(len(offers), "disk")
            return set()
        finally:
            self._keeper.turn.release()

    def _write(
        self,
        namespace: bytes,
        offers: Sequence[Offer],
        sources: list[list[Bytes]],
        deadline: float,
    ) -> set[int]:
        if not self._catch_up(deadline):
            self._catalog.refuse(len(offers), "disk")
            return set()
        plan = self._catalog.plan(offers)
        try:
            return self._carry_out(plan, namespace, sources, deadline)
        except EngineClosedError:
            self._keeper.give_up(plan)
            return set()

    def _carry_out(
        self, plan: Plan, namespace: bytes, sources: list[list[Bytes]], deadline: float
    ) -> set[int]:
        resident = set(plan.resident)
        self._make_room(plan, deadline)
        if not plan.accepted:
            self._keeper.give_up(plan)
            return resident
        committed: list[Planned] = []

        def commit(written: Sequence[Planned]) -> None:
            committed.extend(self._keeper.commit(plan, written))

        # As many operations as writes may be in flight while reads are about.
        most = operation_bytes(
            plan.accepted, self._options.io_threads // 2, self._options.operation_bytes
        )
        parts = runs(plan.accepted, most)
        job = WriteJob(
            namespace,
            plan,
            sources,
            Batch(1),
            partial(self._keeper.enter, plan),
            commit,
            self._health.failed,
            len(parts),
        )
        operations: list[Operation] = [
            WriteRun(self._disk, self._staging, part, job, self._alignment) for part in parts
        ]
        # First: behind the operations it would begin when the last of them is under way.
        self._prepare(plan.accepted[0].segment.slot_bytes, len(plan.accepted))
        self._engine.submit(operations, "write")
        if not job.batch.wait(deadline):
            job.batch.abandon()
            self._health.failed(None)
            return resident
        if committed:
            self._health.succeeded()
            written = [page.offer for page in committed]
            self.counts["pages"] += len(written)
            self.counts["uncopied"] += job.uncopied
            self.counts["bytes"] += sum([offer.payload_bytes for offer in written])
            resident.update([offer.number for offer in written])
        return resident

    def _catch_up(self, deadline: float) -> bool:
        """Have the journal written where an earlier call could not; a worker does it."""
        if not self._keeper.journal.waits:
            return True
        done: list[bool] = []
        if not self._engine.call(lambda: done.append(self._keeper.catch_up()), "write", deadline):
            self._health.failed(None)
        return done == [True]

    def _prepare(self, slot_bytes: int, slots: int) -> None:
        """Have segments made for the next call while this one is written: it will be as large."""
        if self._catalog.can_prepare(slot_bytes, slots):
            self._engine.start(partial(self._keeper.prepare, slot_bytes, slots), "write")

    def _make_room(self, plan: Plan, deadline: float) -> None:
        """Segments for what has no slot; where none can be made, other pages go."""
        catalog = self._catalog
        slots = catalog.segments.slots
        catalog.extend(plan)  # a segment may have been made since the batch was planned
        while plan.waiting:
            before = len(plan.waiting), slots, catalog.may_grow
            grow = partial(self._keeper.grow, plan.waiting[0][0].slot_bytes, slots)
            if not self._engine.call(grow, "write", deadline):
                self._health.failed(None)
                return
            slots = catalog.segments.slots
            catalog.extend(plan)
            if before == (len(plan.waiting), slots, catalog.may_grow):
                return  # all that could go is in use
            if not slots:
                return  # the disk has no room for any
