"""Structures on disk: a bit flipped anywhere is noticed, whatever the field."""

import pytest

from sglang_ext.cache.store import format as f

STRUCTURES = {
    "page": (
        f.PageHeader(3, b"n" * 32, b"k" * 32, b"p" * 32, 70_000, 1_700_000_000_000_000, b"c" * 16),
        f.PAGE_LAYOUT,
        f.PageHeader.unpack,
    ),
    "segment": (f.SegmentHeader(b"s" * 16, 7, 73_728), f.SEGMENT_LAYOUT, f.SegmentHeader.unpack),
    "journal": (f.JournalHeader(b"s" * 16, 9, 16384), f.JOURNAL_LAYOUT, f.JournalHeader.unpack),
    "checkpoint": (
        f.CheckpointHeader(b"s" * 16, 4, 9, 2, 1, 1000, 60_000, 480_000, b"c" * 16, b"w" * 192),
        f.CHECKPOINT_LAYOUT,
        f.CheckpointHeader.unpack,
    ),
}
RECORD = f.Record(f.RecordKind.PUT, b"k" * 32, b"p" * 32, 3, 1, 2, 70_000, 1_700_000_000_000_000)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_comes_back(name):
    value, layout, unpack = STRUCTURES[name]
    data = value.pack()
    assert unpack(data) == value
    assert unpack(memoryview(data.ljust(4096, b"\0"))) == value
    assert len(data) >= layout.size + 8


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_bit_flip_in_any_field_is_noticed(name):
    value, layout, unpack = STRUCTURES[name]
    data = value.pack()
    for position in range(layout.size + 8):  # the fields and their checksum
        for bit in range(8):
            broken = bytearray(data)
            broken[position] ^= 1 << bit
            assert unpack(bytes(broken)) is None, f"byte {position}, bit {bit}"


@pytest.mark.parametrize("name", STRUCTURES)
def test_truncation_at_every_boundary_is_noticed(name):
    value, layout, unpack = STRUCTURES[name]
    data = value.pack()
    for length in range(layout.size + 8):
        assert unpack(data[:length]) is None


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_whole_structure_of_another_version_or_kind_is_refused(name, monkeypatch):
    value, _, unpack = STRUCTURES[name]
    monkeypatch.setattr(f, "FORMAT_VERSION", f.FORMAT_VERSION + 1)
    newer = value.pack()
    monkeypatch.undo()
    assert unpack(newer) is None
    for other, (_, _, unpack_other) in STRUCTURES.items():
        if other != name:
            assert unpack_other(value.pack().ljust(4096, b"\0")) is None


def test_a_record_comes_back():
    data = RECORD.pack(17, 3)
    assert len(data) == f.RECORD_BYTES == 128
    assert f.Record.unpack(data, 17, 3) == RECORD


def test_a_bit_flip_in_any_byte_of_a_record_is_noticed():
    data = RECORD.pack(17, 3)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x10
        assert f.Record.unpack(bytes(broken), 17, 3) is None, f"byte {position}"


def test_a_record_is_bound_to_its_place_and_journal():
    data = RECORD.pack(17, 3)
    assert f.Record.unpack(data, 18, 3) is None
    assert f.Record.unpack(data, 17, 4) is None


def test_zeros_are_nothing():
    zeros = bytes(4096)
    assert all(unpack(zeros) is None for _, _, unpack in STRUCTURES.values())
    assert f.Record.unpack(zeros[:128], 0, 0) is None


@pytest.mark.parametrize(
    ("payload", "slot"), [(0, 4096), (1, 8192), (4096, 8192), (4097, 12288), (65536, 69632)]
)
def test_slots_are_whole_blocks(payload, slot):
    assert f.slot_bytes_of(payload) == slot
