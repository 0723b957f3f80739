"""Every structure that the store has on disk: little endian, versioned, checksummed.

Each structure ends with a checksum (xxh3) of what stands before it. ``unpack`` returns None for
bytes that are not a whole and undamaged structure of this version; it never raises.
"""

import struct
from enum import IntEnum
from typing import Any, NamedTuple

import xxhash

__all__ = [
    "BLOCK_BYTES",
    "CHECKPOINT_LAYOUT",
    "DAY_HOURS",
    "FORMAT_VERSION",
    "JOURNAL_HEADER_BYTES",
    "JOURNAL_LAYOUT",
    "KEY_BYTES",
    "NO_KEY",
    "PAGE_LAYOUT",
    "RECORD_BYTES",
    "RECORD_LAYOUT",
    "SEGMENT_LAYOUT",
    "SEGMENT_MAGIC",
    "CheckpointHeader",
    "JournalHeader",
    "PageHeader",
    "Record",
    "RecordKind",
    "SegmentHeader",
    "slot_bytes_of",
]

# A store of another version is refused, with the way out (docs/design/store.md).
FORMAT_VERSION = 1
# What O_DIRECT is aligned to: right for disks with 512 and with 4096 byte sectors.
BLOCK_BYTES = 4096
KEY_BYTES = 32
NO_KEY = bytes(KEY_BYTES)

_CHECK = struct.Struct("<Q")
# magic and version, then the fields of the class of that name, in their order
PAGE_LAYOUT = struct.Struct("<8sII32s32s32sQQ16s")
SEGMENT_LAYOUT = struct.Struct("<8sI16sII")
JOURNAL_LAYOUT = struct.Struct("<8sI16sQQ")
CHECKPOINT_LAYOUT = struct.Struct("<8sI16sQQIIQQQ16s192s")
RECORD_LAYOUT = struct.Struct("<II32s32sIIIQQ20x")
_PAGE_MAGIC = b"SGXPAGE\x00"
SEGMENT_MAGIC = b"SGXSEGM\x00"
_JOURNAL_MAGIC = b"SGXJOUR\x00"
_CHECKPOINT_MAGIC = b"SGXCKPT\x00"

RECORD_BYTES = RECORD_LAYOUT.size + _CHECK.size
# The journal's header takes whole records, so that a record never lies across two sectors.
JOURNAL_HEADER_BYTES = 512
DAY_HOURS = 24


def slot_bytes_of(payload_bytes: int) -> int:
    """Size of a slot that holds a page header and a payload, in whole blocks."""
    return BLOCK_BYTES + -(-payload_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _seal(layout: struct.Struct, magic: bytes, fields: tuple[object, ...]) -> bytes:
    body = layout.pack(magic, FORMAT_VERSION, *fields)
    return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))


def _open(layout: struct.Struct, magic: bytes, data: memoryview | bytes) -> tuple[Any, ...] | None:
    """The fields of a sealed structure at the start of ``data``, or None."""
    if len(data) < layout.size + _CHECK.size:
        return None
    (check,) = _CHECK.unpack_from(data, layout.size)
    if xxhash.xxh3_64_intdigest(data[: layout.size]) != check:
        return None
    fields = layout.unpack_from(data)
    if fields[0] != magic or fields[1] != FORMAT_VERSION:
        return None
    return fields[2:]


class PageHeader(NamedTuple):
    """First block of a slot; the payload follows in the next block.

    Attributes:
        depth: pages before it in its chain; 0 at a root.
        namespace: digest of what the payload depends on besides tokens.
        key: the page's own key.
        parent: key of the page before it; zeros at a root.
        payload_bytes: length of the payload.
        written_us: when it was written, microseconds since 1970; its recency after a scan.
        payload_check: xxh3-128 of the payload.
    """

    depth: int
    namespace: bytes
    key: bytes
    parent: bytes
    payload_bytes: int
    written_us: int
    payload_check: bytes

    def pack(self) -> bytes:
        """The bytes on disk; the rest of the block is zeros."""
        return _seal(PAGE_LAYOUT, _PAGE_MAGIC, self)

    @classmethod
    def unpack(cls, data: memoryview | bytes) -> "PageHeader | None":
        """The header at the start of ``data``, or None."""
        fields = _open(PAGE_LAYOUT, _PAGE_MAGIC, data)
        return None if fields is None else cls(*fields)


class SegmentHeader(NamedTuple):
    """First block of a segment; its slots follow.

    Attributes:
        store: random id of the store, so that a segment of another one is not taken for ours.
        segment: number of the segment, as in its name.
        slot_bytes: size of each of its slots.
    """

    store: bytes
    segment: int
    slot_bytes: int

    def pack(self) -> bytes:
        """The bytes on disk; the rest of the block is zeros."""
        return _seal(SEGMENT_LAYOUT, SEGMENT_MAGIC, self)

    @classmethod
    def unpack(cls, data: memoryview | bytes) -> "SegmentHeader | None":
        """The header at the start of ``data``, or None."""
        fields = _open(SEGMENT_LAYOUT, SEGMENT_MAGIC, data)
        return None if fields is None else cls(*fields)

    @staticmethod
    def remains(data: memoryview | bytes) -> int:
        """The slot size in a header that may be damaged."""
        return int(SEGMENT_LAYOUT.unpack_from(data)[-1])


class JournalHeader(NamedTuple):
    """First `JOURNAL_HEADER_BYTES` of a journal; records follow.

    Attributes:
        store: random id of the store.
        generation: number of the journal, as in its name.
        file_bytes: length of the file, all of it allocated before the first record.
    """

    store: bytes
    generation: int
    file_bytes: int

    def pack(self) -> bytes:
        """The bytes on disk, padded with zeros."""
        return _seal(JOURNAL_LAYOUT, _JOURNAL_MAGIC, self).ljust(JOURNAL_HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: memoryview | bytes) -> "JournalHeader | None":
        """The header at the start of ``data``, or None."""
        fields = _open(JOURNAL_LAYOUT, _JOURNAL_MAGIC, data)
        return None if fields is None else cls(*fields)


class CheckpointHeader(NamedTuple):
    """First block of a checkpoint; the columns of the index follow.

    Attributes:
        store: random id of the store.
        generation: number of the checkpoint, as in its name.
        journal: generation of the journal that goes on from here.
        journal_record: first record there that is not in the checkpoint.
        clean: 1 where the store was closed and no journal follows, 0 where one does.
        rows: number of pages.
        body_bytes: length of what follows.
        body_check: xxh3-128 of it.
        write_hour: hour since 1970 of the last entry of ``written``.
        written: bytes written in each of the last 24 hours, as 24 numbers of 8 bytes.
    """

    store: bytes
    generation: int
    journal: int
    journal_record: int
    clean: int
    rows: int
    body_bytes: int
    write_hour: int
    body_check: bytes
    written: bytes

    def pack(self) -> bytes:
        """The bytes on disk, one block."""
        return _seal(CHECKPOINT_LAYOUT, _CHECKPOINT_MAGIC, self).ljust(BLOCK_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: memoryview | bytes) -> "CheckpointHeader | None":
        """The header at the start of ``data``, or None."""
        fields = _open(CHECKPOINT_LAYOUT, _CHECKPOINT_MAGIC, data)
        return None if fields is None else cls(*fields)


class RecordKind(IntEnum):
    """What a record of the journal says."""

    PUT = 1
    """``key`` is at ``segment``/``slot``, after ``parent``."""
    DROP = 2
    """``key`` and all that descends from it is gone."""
    SEGMENT = 3
    """``segment`` is empty and has slots of ``size`` bytes; 0: it is gone."""
    CLEAR = 4
    """Everything is gone."""
    TOUCH = 5
    """``key`` was used at ``time_us``."""
    WRITTEN = 6
    """``size`` bytes were written in the hour ``time_us``, in all."""
    SYNCED = 7
    """All records before this one were durable."""
    NEXT = 8
    """The journal goes on in the file of generation ``time_us``."""


class Record(NamedTuple):
    """One entry of the journal; fields that its kind does not use are zero."""

    kind: int
    key: bytes = NO_KEY
    parent: bytes = NO_KEY
    depth: int = 0
    segment: int = 0
    slot: int = 0
    size: int = 0
    time_us: int = 0

    def pack(self, number: int, generation: int) -> bytes:
        """The bytes on disk of record ``number`` of the journal ``generation``."""
        body = RECORD_LAYOUT.pack(
            number,
            self.kind,
            self.key,
            self.parent,
            self.depth,
            self.segment,
            self.slot,
            self.size,
            self.time_us,
        )
        return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body, generation))

    @classmethod
    def unpack(cls, data: memoryview | bytes, number: int, generation: int) -> "Record | None":
        """Record ``number`` of the journal ``generation``; None where it is not whole."""
        (check,) = _CHECK.unpack_from(data, RECORD_LAYOUT.size)
        if xxhash.xxh3_64_intdigest(data[: RECORD_LAYOUT.size], generation) != check:
            return None
        fields = RECORD_LAYOUT.unpack_from(data)
        return cls(*fields[1:]) if fields[0] == number else None
