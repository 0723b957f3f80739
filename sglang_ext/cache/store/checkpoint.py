"""Checkpoints: the columns of the index in one file, written and read as a whole."""

import os
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xxhash

from sglang_ext.cache.store.ancestry import Numbers, closed, with_ancestors
from sglang_ext.cache.store.disk import read_fully
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import BLOCK_BYTES, KEY_BYTES, CheckpointHeader
from sglang_ext.cache.store.index import NO_ROW, Index, bit_of
from sglang_ext.cache.store.segments import ROW_BYTES, Segments

__all__ = ["Columns", "load_index", "read_checkpoint", "write_checkpoint"]


@dataclass(frozen=True)
class Columns:
    """A copy of the index: all rows, free ones too, as raw bytes of its columns."""

    keys: bytes
    location: bytes
    parent: bytes
    depth: bytes
    time_us: bytes
    payload_bytes: bytes

    @classmethod
    def of(cls, index: Index) -> "Columns":
        """Copy the columns; about 15 ms for a million pages."""
        return cls(
            bytes(index.keys),
            index.location.tobytes(),
            index.parent.tobytes(),
            index.depth.tobytes(),
            index.time_us.tobytes(),
            index.payload_bytes.tobytes(),
        )

    def body(self) -> tuple[int, bytes]:
        """Number of pages, and the columns without free rows."""
        location = np.frombuffer(self.location, np.int64)
        live = np.flatnonzero(location >= 0)
        number = np.full(len(location) + 1, NO_ROW, np.int32)  # the last: parent -1 stays -1
        number[live] = np.arange(len(live), dtype=np.int32)
        keys = np.frombuffer(self.keys, np.dtype((np.void, KEY_BYTES)))
        parts = [
            keys[live],
            location[live],
            number[np.frombuffer(self.parent, np.int32)[live]],
            np.frombuffer(self.depth, np.uint32)[live],
            np.frombuffer(self.time_us, np.int64)[live],
            np.frombuffer(self.payload_bytes, np.uint32)[live],
        ]
        return len(live), b"".join(part.tobytes() for part in parts)


def write_checkpoint(
    folder: StoreFolder,
    columns: Columns,
    position: tuple[int, int],
    generation: int,
    *,
    clean: bool,
    written: tuple[int, bytes],
) -> None:
    """Write a checkpoint durably.

    Args:
        folder: where.
        columns: the index.
        position: generation of the journal that goes on, and its first record that counts.
        generation: number of the new checkpoint.
        clean: whether no journal follows.
        written: hour and bytes of the write budget.

    Raises:
        OSError: the disk did not take it; the older one stays.
    """
    rows, body = columns.body()
    header = CheckpointHeader(
        store=folder.store_id,
        generation=generation,
        journal=position[0],
        journal_record=position[1],
        clean=int(clean),
        rows=rows,
        body_bytes=len(body),
        write_hour=written[0],
        body_check=xxhash.xxh3_128_digest(body),
        written=written[1],
    )
    folder.write_file(folder.checkpoint_path(generation), header.pack() + body)


def read_checkpoint(
    folder: StoreFolder, generation: int
) -> tuple[CheckpointHeader, memoryview] | None:
    """Header and body of a checkpoint; None where it is damaged or another store's."""
    with folder.opened(folder.checkpoint_path(generation), os.O_RDONLY) as file:
        size = folder.disk.stat(file).st_size
        block = memoryview(bytearray(BLOCK_BYTES))
        got = read_fully(folder.disk, file, block, 0)
        header = CheckpointHeader.unpack(block[:got])
        if header is None or (header.store, header.generation) != (folder.store_id, generation):
            return None
        # Compared before memory is asked for: a file may have any length.
        if header.body_bytes != header.rows * ROW_BYTES:
            return None
        if header.body_bytes != size - BLOCK_BYTES:
            return None
        body = memoryview(bytearray(header.body_bytes))
        if read_fully(folder.disk, file, body, BLOCK_BYTES) != len(body):
            return None
    if xxhash.xxh3_128_digest(body) != header.body_check:
        return None
    return header, body


def load_index(rows: int, body: memoryview, segments: Segments) -> Index | None:
    """An index out of the body of a checkpoint, and its slots marked as used.

    Pages whose slot does not exist (any more) are left out, with all that descends from them.

    Returns:
        The index, or None where the columns contradict each other.
    """
    bounds = np.cumsum([0] + [width * rows for width in (KEY_BYTES, 8, 4, 4, 8, 4)])
    part = [body[start:end] for start, end in pairwise(bounds.tolist())]
    keys = np.frombuffer(part[0], np.dtype((np.void, KEY_BYTES)))
    location = np.frombuffer(part[1], np.int64)
    parent = np.frombuffer(part[2], np.int32)
    depth = np.frombuffer(part[3], np.uint32)
    time_us = np.frombuffer(part[4], np.int64)
    payload = np.frombuffer(part[5], np.uint32)
    if not _is_tree(parent, depth):
        return None
    kind, held = _in_segments(location, payload, segments)
    if not held.all():
        held = closed(parent, held)
        number = np.full(rows + 1, NO_ROW, np.int32)
        number[:-1][held] = np.arange(int(held.sum()), dtype=np.int32)
        parent = number[parent[held]]
        keys, location, depth = keys[held], location[held], depth[held]
        time_us, payload, kind = time_us[held], payload[held], kind[held]
    index = Index()
    index.rows = dict(zip(keys.tolist(), range(len(keys)), strict=True))
    if len(index.rows) != len(keys) or len(np.unique(location)) != len(location):
        return None
    index.keys = bytearray(keys.tobytes())
    for column, values in (
        (index.location, location),
        (index.parent, parent),
        (index.depth, depth),
        (index.time_us, time_us),
        (index.payload_bytes, payload),
        (index.kind, kind),
        (index.reach, _reach(parent, kind)),
    ):
        column.frombytes(values.tobytes())
    index.payload_total_bytes = int(payload.sum(dtype=np.int64))
    _link(index, parent)
    _queue(index, depth, time_us)
    _occupy(location, segments)
    return index


def slots_gone(rows: int, body: memoryview, segments: Segments) -> dict[int, int]:
    """How many pages of a checkpoint lie in slots that do not exist, by number of the segment."""
    begin = KEY_BYTES * rows
    location = np.frombuffer(body[begin : begin + 8 * rows], np.int64)
    begin += (8 + 4 + 4 + 8) * rows
    payload = np.frombuffer(body[begin : begin + 4 * rows], np.uint32)
    _, held = _in_segments(location, payload, segments)
    numbers, pages = np.unique(location[~held] >> 32, return_counts=True)
    return dict(zip(numbers.tolist(), pages.tolist(), strict=True))


def _is_tree(parent: Numbers, depth: Numbers) -> bool:
    """Whether each parent exists and is one level above; so there are no cycles."""
    if not len(parent):
        return True
    if parent.min() < NO_ROW or parent.max() >= len(parent):
        return False
    child = parent >= 0
    above = depth[parent[child]].astype(np.int64)
    return bool((depth[child] == above + 1).all() and not depth[~child].any())


def _in_segments(
    location: Numbers, payload: Numbers, segments: Segments
) -> tuple[Numbers, Numbers]:
    """Kinds of slots, and which rows are in a slot that exists and has the right size."""
    number, slot = location >> 32, location & 0xFFFFFFFF
    most = int(max([*segments.by_number, 0])) + 1
    slots = np.zeros(most + 1, np.int64)
    slot_bytes = np.zeros(most + 1, np.int64)
    kinds = np.zeros(most + 1, np.uint16)
    for segment in segments:
        slots[segment.number] = segment.slots
        slot_bytes[segment.number] = segment.slot_bytes
        kinds[segment.number] = segments.kind_of(segment.slot_bytes)
    number = np.where((number >= 0) & (number < most), number, most)
    needed = BLOCK_BYTES + -(-payload.astype(np.int64) // BLOCK_BYTES) * BLOCK_BYTES
    return kinds[number], (slot < slots[number]) & (needed == slot_bytes[number])


def _reach(parent: Numbers, kind: Numbers) -> Numbers:
    """Column ``reach``: bits of each row's kind and of the kinds above it."""
    bits = np.array([bit_of(number) for number in range(int(kind.max(initial=0)) + 1)], np.uint16)
    reach = bits[kind]
    if (kind == kind[:1]).all():  # nearly always: pages of one size
        return reach
    return with_ancestors(parent, reach)


def _link(index: Index, parent: Numbers) -> None:
    """First child and siblings from the parents."""
    rows = len(parent)
    child, after, before = (np.full(rows, NO_ROW, np.int32) for _ in range(3))
    order = np.argsort(parent, kind="stable").astype(np.int32)
    order = order[parent[order] >= 0]
    above = parent[order]
    same = above[1:] == above[:-1]
    after[order[:-1][same]] = order[1:][same]
    before[order[1:][same]] = order[:-1][same]
    first = np.ones(len(order), bool)
    first[1:] = ~same
    child[above[first]] = order[first]
    for column, values in ((index.child, child), (index.after, after), (index.before, before)):
        column.frombytes(values.tobytes())


def _queue(index: Index, depth: Numbers, time_us: Numbers) -> None:
    leaves = np.flatnonzero(np.frombuffer(index.child, np.int32) == NO_ROW)
    order = np.lexsort((-depth[leaves].astype(np.int64), time_us[leaves]))
    index.rebuild_queue(leaves[order].tolist())


def _occupy(location: Numbers, segments: Segments) -> None:
    """Mark the slots of all rows, and note their rows."""
    rows = np.arange(len(location), dtype=np.int32)
    number, slot = location >> 32, location & 0xFFFFFFFF
    order = np.argsort(number, kind="stable")
    number = number[order]
    for segment in list(segments):
        start, end = np.searchsorted(number, (segment.number, segment.number + 1))
        mine = order[start:end]
        np.frombuffer(segment.used, np.uint8)[slot[mine]] = 1
        np.frombuffer(segment.rows, np.int32)[slot[mine]] = rows[mine]
        segments.occupied(segment, len(mine))
