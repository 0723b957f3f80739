"""What a store knows when it is opened: checkpoint, journal, and, where they fail, the pages.

Nothing here writes. Whatever order the disk kept or lost unsynced writes in, the result is an index
whose pages are verified on every read; what is at stake is hits, never bytes.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from sglang_ext.cache.store.admission import WriteHours
from sglang_ext.cache.store.checkpoint import load_index, read_checkpoint, slots_gone
from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import (
    BLOCK_BYTES,
    NO_KEY,
    CheckpointHeader,
    PageHeader,
    Record,
    RecordKind,
    slot_bytes_of,
)
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.journal import JournalReader
from sglang_ext.cache.store.segments import Segment, Segments, place
from sglang_ext.cache.store.staging import aligned_block
from sglang_ext.errors import StoreError, StoreFolderError

__all__ = ["Recovered", "Replay", "recover"]

logger = logging.getLogger(__name__)


@dataclass
class Recovered:
    """What was found.

    Attributes:
        index: the pages.
        how: ``new``, ``clean`` (a checkpoint was enough), ``journal`` or ``scan``.
        checkpoint: generation of the newest checkpoint file; 0: none.
        used: generation of the checkpoint that was good; 0: none.
        journal: generation that the next journal may have.
        position: generation and number of the record after the last one that was read.
        damage: what did not match, for people.
        gone: pages of the checkpoint whose slots are gone though no record says so, by number of
            the segment, which was cut or removed by somebody else.
    """

    index: Index
    how: str = "new"
    checkpoint: int = 0
    used: int = 0
    journal: int = 1
    position: tuple[int, int] = (1, 0)
    damage: list[tuple[str, str]] = field(default_factory=list)
    gone: dict[int, int] = field(default_factory=dict)


class Replay:
    """Applies records to an index and its slots.

    Args:
        index: changed in place.
        segments: changed in place.
        hours: gets what was written in which hour.
        on_segment: called with number and slot size of a segment that is made or (0) goes; with
            number 0 after all went, those included whose files are not there.
    """

    def __init__(
        self,
        index: Index,
        segments: Segments,
        hours: WriteHours,
        on_segment: Callable[[int, int], None] | None = None,
    ) -> None:
        self.index = index
        self.segments = segments
        self._hours = hours
        self._on_segment = on_segment
        self._does: dict[int, Callable[[Record], None]] = {
            RecordKind.PUT: self._put,
            RecordKind.DROP: self._drop,
            RecordKind.SEGMENT: self._segment,
            RecordKind.CLEAR: self._clear,
            RecordKind.TOUCH: self._touch,
            RecordKind.WRITTEN: self._written,
        }

    def apply(self, record: Record) -> None:
        """Apply one record; one that does not fit what is there is passed over."""
        does = self._does.get(record.kind)
        if does is not None:
            does(record)

    def remove(self, row: int) -> None:
        """Remove a page with its descendants, and free their slots."""
        for _, location in self.index.remove_tree(row):
            self.segments.give(location)

    def add(self, record: Record) -> bool:
        """Add a page where its slot and its parent exist; False where they do not."""
        index, segment = self.index, self.segments.by_number.get(record.segment)
        if segment is None or record.slot >= segment.slots:
            return False
        if slot_bytes_of(record.size) != segment.slot_bytes:
            return False
        parent = NO_ROW
        if record.parent != NO_KEY:
            parent = index.rows.get(record.parent, NO_ROW)
            if parent == NO_ROW or index.depth[parent] + 1 != record.depth:
                return False
        elif record.depth:
            return False
        location = place(record.segment, record.slot)
        self.segments.claim(segment, record.slot)
        row = index.add(
            record.key,
            parent,
            location,
            record.size,
            self.segments.kind_of(segment.slot_bytes),
            record.time_us,
        )
        segment.rows[record.slot] = row
        return True

    def _put(self, record: Record) -> None:
        row = self.index.rows.get(record.key, NO_ROW)
        if row != NO_ROW:
            if self.index.location[row] == place(record.segment, record.slot):
                self.index.touch(row, record.time_us)
                return
            self.remove(row)
        segment = self.segments.by_number.get(record.segment)
        if segment is not None and record.slot < segment.slots:
            occupant = segment.rows[record.slot]
            if occupant != NO_ROW:
                self.remove(occupant)
        self.add(record)

    def _drop(self, record: Record) -> None:
        row = self.index.rows.get(record.key, NO_ROW)
        if row != NO_ROW:
            self.remove(row)

    def _segment(self, record: Record) -> None:
        segment = self.segments.by_number.get(record.segment)
        if segment is not None:
            self.empty(segment)
        if self._on_segment is not None:
            self._on_segment(record.segment, record.size)

    def empty(self, segment: Segment) -> None:
        """Remove every page of a segment, with its descendants."""
        for slot in range(segment.slots):
            if segment.rows[slot] != NO_ROW:
                self.remove(segment.rows[slot])

    def _clear(self, record: Record) -> None:
        for segment in list(self.segments):
            self.empty(segment)
            if self._on_segment is not None:
                self._on_segment(segment.number, 0)
        if self._on_segment is not None:
            self._on_segment(0, 0)

    def _touch(self, record: Record) -> None:
        row = self.index.rows.get(record.key, NO_ROW)
        if row != NO_ROW:
            self.index.touch(row, record.time_us)

    def _written(self, record: Record) -> None:
        self._hours.restore_hour(record.time_us, record.size)


def recover(
    folder: StoreFolder,
    segments: Segments,
    hours: WriteHours,
    *,
    threads: int,
    on_segment: Callable[[int, int], None] | None = None,
) -> Recovered:
    """The index of a store, as far as the disk still has it. Blocks; reads only.

    Args:
        folder: the store; its superblock was read.
        segments: all segments that were opened, empty; slots in use are marked.
        hours: gets what was written in the last day.
        threads: operations in flight where pages have to be looked for; 0: they are not looked
            for, and ``how`` is ``damaged``.
        on_segment: as for `Replay`.

    Raises:
        StoreFolderError: a file is a link, somebody else's, or open to others.
        OSError: pages have to be looked for, and most slots cannot be read.
    """
    recovered, header = _from_checkpoint(folder, segments)
    start = (header.journal, header.journal_record) if header else (1, 0)
    if header:
        hours.unpack(header.write_hour, header.written)
    journals = [number for number in folder.journals() if number >= start[0]]
    recovered.journal = max([*folder.journals(), start[0] - 1]) + 1
    recovered.position = start
    if _is_whole(folder, header, journals, start[0]):
        if not journals:
            recovered.how = "clean" if header else "new"
            return recovered
        replay = Replay(
            recovered.index, segments, hours, partial(_changed, recovered.gone, on_segment)
        )
        if _replay(folder, journals, start[1], replay, recovered):
            recovered.how = "journal"
            return recovered
    else:
        recovered.damage.append(("journal", "a checkpoint or the journal that follows it is gone"))
    if not threads:
        recovered.how = "damaged"
        return recovered
    logger.warning(
        "page store %s: checkpoint or journal is damaged; looking at every page", folder.path
    )
    recovered.index = _scan(folder.disk, segments, hours, threads)
    recovered.how = "scan"
    return recovered


def _changed(
    gone: dict[int, int], tell: Callable[[int, int], None] | None, number: int, slot_bytes: int
) -> None:
    """A record says that a segment was made or removed, so its pages were dropped knowingly."""
    gone.pop(number, None)
    if not number:
        gone.clear()
    if tell is not None:
        tell(number, slot_bytes)


def _from_checkpoint(
    folder: StoreFolder, segments: Segments
) -> tuple[Recovered, CheckpointHeader | None]:
    recovered = Recovered(Index())
    generations = folder.checkpoints()
    recovered.checkpoint = generations[-1] if generations else 0
    for generation in reversed(generations):
        name = folder.checkpoint_path(generation).name
        try:
            read = read_checkpoint(folder, generation)
        except OSError as error:
            recovered.damage.append((name, f"cannot be read: {error.strerror}"))
            continue
        index = load_index(read[0].rows, read[1], segments) if read else None
        if read and index is not None:
            recovered.index = index
            recovered.used = generation
            recovered.gone = slots_gone(read[0].rows, read[1], segments)
            return recovered, read[0]
        recovered.damage.append((name, "is damaged"))
    return recovered, None


def _is_whole(
    folder: StoreFolder, header: CheckpointHeader | None, journals: list[int], first: int
) -> bool:
    """Whether the journals there are follow from the checkpoint without a gap."""
    if not journals:
        if header is not None:
            return bool(header.clean)
        return not folder.checkpoints() and not folder.segment_numbers()
    if header is None and folder.checkpoints():
        return False
    return journals == list(range(first, first + len(journals)))


def _replay(
    folder: StoreFolder,
    journals: list[int],
    first: int,
    replay: Replay,
    recovered: Recovered,
) -> bool:
    """Replay journals; False where records are damaged that were once durable."""
    for generation in journals:
        try:
            reader = JournalReader(folder, generation)
        except StoreFolderError:
            raise  # a link, or somebody else's: not to be removed as a damaged one is
        except (StoreError, OSError) as error:
            recovered.damage.append((folder.journal_path(generation).name, str(error)))
            return False
        try:
            last = _replay_one(reader.records(first), generation, replay)
        except OSError as error:
            recovered.damage.append((folder.journal_path(generation).name, str(error)))
            return False
        finally:
            reader.close()
        if last is None:
            name = folder.journal_path(generation).name
            recovered.damage.append((name, "records that were durable are damaged"))
            return False
        recovered.position = (generation, max(last, first))
        first = 0
    return True


def _replay_one(
    records: Iterable[tuple[int, Record | None]], generation: int, replay: Replay
) -> int | None:
    """Number after the last record; None where one is missing that was durable.

    Records after a missing one are applied all the same: after a power loss sectors are missing in
    any order, and a page that is not where a record says is found out when it is read.
    """
    hole: int | None = None
    last = 0
    for number, record in records:
        if record is None:
            hole = number if hole is None else hole
            continue
        last = number + 1
        durable = record.kind == RecordKind.SYNCED and record.time_us == generation
        if durable and hole is not None and hole < record.size:
            return None
        replay.apply(record)
    return last


def _scan(disk: Disk, segments: Segments, hours: WriteHours, threads: int) -> Index:
    """An index out of the headers of all pages. A bad spot costs its page.

    Raises:
        OSError: most slots cannot be read: those are no bad spots, and the pages may well be there.
    """
    for segment in list(segments):
        segments.reset(segment)
    found: list[Record] = []
    failures: list[OSError] = []
    with ThreadPoolExecutor(threads) as pool:
        for records, failed in pool.map(lambda part: _headers(disk, *part), _parts(segments)):
            found.extend(records)
            failures.extend(failed)
    if failures:
        logger.warning("page store: %d slots cannot be read: %s", len(failures), failures[0])
        if 2 * len(failures) > segments.slots:
            raise failures[0]
    # Parents first; of two with the same key the one that was written last.
    found.sort(key=lambda record: (record.depth, -record.time_us))
    replay = Replay(Index(), segments, hours)
    for record in found:
        if record.key not in replay.index.rows:
            replay.add(record)
    return replay.index


def _parts(segments: Segments) -> Iterable[tuple[Segment, int, int]]:
    for segment in list(segments):
        for start in range(0, segment.slots, 256):
            yield segment, start, min(start + 256, segment.slots)


def _headers(
    disk: Disk, segment: Segment, start: int, end: int
) -> tuple[list[Record], list[OSError]]:
    """Headers of slots, and what failed; a slot that cannot be read is tried twice."""
    block = aligned_block()
    found: list[Record] = []
    failures: list[OSError] = []
    for slot in range(start, end):
        offset = segment.offset_of(slot)
        try:
            try:
                got = disk.read(segment.file, block, offset)
            except OSError:
                got = disk.read(segment.file, block, offset)
        except OSError as error:
            failures.append(error)
            continue
        header = PageHeader.unpack(block[:BLOCK_BYTES]) if got == BLOCK_BYTES else None
        if header is not None:
            found.append(
                Record(
                    RecordKind.PUT,
                    header.key,
                    header.parent,
                    header.depth,
                    segment.number,
                    slot,
                    header.payload_bytes,
                    header.written_us,
                )
            )
    return found, failures
