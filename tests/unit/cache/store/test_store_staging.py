"""Staging memory: aligned, reused, bounded."""

import threading
from itertools import pairwise

import numpy as np
import pytest

from sglang_ext.cache.store.staging import Staging, copy_in, copy_out, flat


def test_blocks_are_aligned_and_apart():
    staging = Staging(1 << 20)
    blocks = [staging.take(5000) for _ in range(10)]
    ranges = sorted((block.start, block.start + block.size) for block in blocks)
    assert all(start % 4096 == 0 for start, _ in ranges)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    assert blocks[0].array.ctypes.data % 4096 == 0


def test_what_is_given_back_is_whole_again():
    staging = Staging(1 << 20)
    blocks = [staging.take(4096 * n) for n in (1, 5, 2, 9, 3)]
    for number in (3, 0, 2, 4, 1):
        blocks[number].free()
    assert staging.free_bytes() == 1 << 20
    assert staging.take(1 << 20) is not None


def test_who_asks_for_too_much_waits_until_there_is_room():
    staging = Staging(16384)
    first = staging.take(16384)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(staging.take(4096)))
    thread.start()
    thread.join(0.05)
    assert not taken
    first.free()
    thread.join(5)
    assert taken[0].size == 4096


def test_closing_wakes_who_waits():
    staging = Staging(4096)
    staging.take(4096)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(staging.take(4096)))
    thread.start()
    staging.close()
    thread.join(5)
    assert taken == [None]


@pytest.mark.parametrize(
    "buffer",
    [b"abcdef", bytearray(b"abcdef"), memoryview(b"abcdef"), np.arange(6, dtype=np.uint8)],
)
def test_any_contiguous_buffer_is_taken_without_a_copy(buffer):
    assert len(flat(buffer)) == 6
    assert np.shares_memory(flat(buffer), np.frombuffer(buffer, np.uint8))


def test_wider_items_are_bytes():
    assert len(flat(np.zeros((3, 5), np.float32))) == 60


def test_a_buffer_with_holes_is_refused():
    with pytest.raises(ValueError, match="contiguous"):
        flat(np.zeros((4, 4), np.uint8)[:, ::2])


def test_copies_go_piece_by_piece_and_the_rest_is_zeros():
    target = np.full(10, 7, np.uint8)
    copy_in(target, [flat(b"abc"), flat(b""), flat(b"de")])
    assert target.tobytes() == b"abcde\0\0\0\0\0"
    pieces = [flat(bytearray(2)), flat(bytearray(3))]
    copy_out(pieces, target[:5])
    assert b"".join(piece.tobytes() for piece in pieces) == b"abcde"


def flags_of_mapping(address):
    """What the kernel says of the mapping at ``address``."""
    inside = False
    with open("/proc/self/smaps", encoding="ascii") as lines:
        for line in lines:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                start, end = (int(part, 16) for part in head.split("-"))
                inside = start <= address < end
            elif inside and head == "VmFlags:":
                return line.split()[1:]
    return []


def test_staging_is_private_and_not_inherited_by_children():
    """A fork while the disk writes into it would leave the parent with another copy."""
    staging = Staging(1 << 22)
    flags = flags_of_mapping(staging.array.ctypes.data)
    assert "dc" in flags  # do not copy on fork
    assert "sh" not in flags  # shared memory gets no huge pages
