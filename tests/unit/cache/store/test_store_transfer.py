"""Runs of adjacent slots, and what makes a page one that was not asked for."""

import pytest
import xxhash
from support.store_pages import NAMESPACE, OTHER_NAMESPACE, key_of, payload

from sglang_ext.cache.store.format import NO_KEY, PageHeader
from sglang_ext.cache.store.plan import Found
from sglang_ext.cache.store.segments import Segment, place
from sglang_ext.cache.store.staging import Staging
from sglang_ext.cache.store.transfer import ReadRun, mismatch, operation_bytes, runs

SLOT = 12288
SEGMENT = Segment(1, SLOT, 100, -1)
KEY = key_of("page")


def found(*slots, segment=1):
    return [Found(n, b"", n, place(segment, slot), SEGMENT, 8000) for n, slot in enumerate(slots)]


def slots_of(parts):
    return [[page.location & 0xFFFFFFFF for page in part] for part in parts]


def test_adjacent_slots_are_one_run_in_whatever_order_they_are_asked_for():
    assert slots_of(runs(found(3, 1, 2, 7, 8, 5), 1 << 20)) == [[1, 2, 3], [5], [7, 8]]


def test_a_run_has_a_bound_and_at_least_one_page():
    assert slots_of(runs(found(0, 1, 2, 3, 4), 2 * SLOT)) == [[0, 1], [2, 3], [4]]
    assert slots_of(runs(found(0, 1), 1)) == [[0], [1]]


def test_the_same_page_twice_is_read_twice():
    assert slots_of(runs(found(1, 1, 2), 1 << 20)) == [[1], [1, 2]]


def test_segments_are_not_adjacent():
    pages = found(99) + found(0, segment=2)
    assert len(runs(pages, 1 << 20)) == 2


def test_nothing_gives_no_runs():
    assert runs([], 1 << 20) == []
    assert operation_bytes([], 16, 1 << 22) == 512 * 1024


def test_operations_share_what_there_is_evenly():
    pages = found(*range(100))
    assert operation_bytes(pages, 2, 1 << 30) == 50 * SLOT
    assert operation_bytes(pages, 16, 1 << 30) == 512 * 1024
    assert operation_bytes(pages, 1, 1 << 20) == 1 << 20


def test_whoever_waits_for_a_run_is_told_whatever_happens_to_it():
    ended = []

    class Run(ReadRun):
        def is_cancelled(self):
            return True

        def ended(self):
            ended.append(True)

    run = Run(None, Staging(SLOT), found(1), lambda *what: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run()
    assert ended


@pytest.fixture
def slot():
    data = payload(KEY, 8000)
    check = xxhash.xxh3_128_digest(data)
    header = PageHeader(0, NAMESPACE, KEY, NO_KEY, 8000, 1, check).pack()
    return bytearray(header.ljust(4096, b"\0") + data.ljust(8192, b"\0"))


def test_a_page_as_it_was_written_matches(slot):
    assert mismatch(memoryview(slot), KEY, NAMESPACE, 8000) == ("", NAMESPACE)
    assert mismatch(memoryview(slot), KEY, None, 8000) == ("", NAMESPACE)


@pytest.mark.parametrize(
    ("key", "namespace", "size", "why"),
    [
        (key_of("other"), NAMESPACE, 8000, "key"),
        (KEY, OTHER_NAMESPACE, 8000, "namespace"),
        (KEY, NAMESPACE, 7999, "length"),
    ],
)
def test_what_was_not_asked_for_does_not_match(slot, key, namespace, size, why):
    assert mismatch(memoryview(slot), key, namespace, size)[0] == why


@pytest.mark.parametrize(("position", "why"), [(20, "header"), (4096, "payload")])
def test_a_flipped_bit_does_not_match(slot, position, why):
    slot[position] ^= 1
    assert mismatch(memoryview(slot), KEY, NAMESPACE, 8000)[0] == why


def test_a_bit_after_the_payload_is_nobodys(slot):
    slot[4096 + 8000] ^= 1
    assert mismatch(memoryview(slot), KEY, NAMESPACE, 8000)[0] == ""
