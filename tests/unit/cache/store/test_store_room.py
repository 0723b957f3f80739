"""Which segment gives its room up: to a smaller capacity, or to pages of another size."""

from functools import partial

import pytest
from support.store_crash import crash
from support.store_pages import chain, options, read, reopened, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.admission import WriteHours
from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.options import MIB
from sglang_ext.cache.store.segments import Segment, Segments, Space, place


def catalog_of(*sizes):
    """A catalog with a segment of four slots for each of ``sizes``; records are kept."""
    segments, records = Segments(Space(1 << 40)), []
    for number, slot_bytes in enumerate(sizes, 1):
        segments.insert(Segment(number, slot_bytes, 4, -1), 4096 + 4 * slot_bytes)
    return Catalog(Index(), segments, WriteHours(None), records.append), records


def put(catalog, name, segment, slot, parent=NO_ROW, time_us=1):
    found = catalog.segments.by_number[segment]
    catalog.segments.claim(found, slot)
    kind = catalog.segments.kind_of(found.slot_bytes)
    row = catalog.index.add(
        name.encode().ljust(32, b"."), parent, place(segment, slot), 100, kind, time_us
    )
    found.rows[slot] = row
    return row


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(("pages", "left"), [(3000, 0.9), (400, 1.0), (1000, 1.0)])
def test_shrinking_below_a_segment_keeps_what_fits(tmp_path, pages, left, clean):
    """Segments of 64 MiB with pages of 12 KiB, cut to 20 MB."""
    capacity_bytes = 20_000_000
    store = PageStore(tmp_path / "s", options(1 << 30))
    keys = [chain(number, 20) for number in range(pages // 20)]
    for some in keys:
        assert all(write(store, some))
    (store.close if clean else partial(crash, store))()
    fits = min(pages, capacity_bytes // 12_288)
    with PageStore(tmp_path / "s", options(capacity_bytes)) as store:
        store.check_integrity()
        assert left * fits <= store.stats().pages <= fits
        assert sum(sum(read(store, some)) for some in keys) == store.stats().pages
        assert all(write(store, chain("more", 20)))
        assert all(read(store, chain("more", 20)))
        assert store.stats().pages >= left * min(fits, pages)
        pages = store.stats().pages
        crash(store)
    store = reopened(tmp_path / "s", "journal", capacity_bytes=capacity_bytes)
    assert store.stats().pages == pages
    store.close()


def test_room_that_no_page_is_in_goes_before_any_page(tmp_path):
    with PageStore(tmp_path / "s", options(8 * MIB)) as store:
        assert all(write(store, chain("old", 30)))
        big = chain("new", 1)
        assert all(write(store, big, size=50_000))  # in a segment of its own size
        assert store.stats().segments >= 2
    with PageStore(tmp_path / "s", options(MIB)) as store:
        store.check_integrity()
        assert store.stats().pages == 31
        assert all(read(store, chain("old", 30)))


def test_shrinking_keeps_what_hot_pages_descend_from(tmp_path):
    with PageStore(tmp_path / "s", options(8 * MIB)) as store:
        prompt = chain("system prompt", 10)
        write(store, prompt)
        for number in range(50):
            write(store, chain(number, 10), parent=prompt[-1])
        for number in range(50):
            read(store, prompt + chain(number, 10))
        before = store.stats()
    with PageStore(tmp_path / "s", options(5 * MIB)) as store:
        after = store.stats()
        assert after.segments < before.segments
        assert store.prefix(prompt) == 10
        # All pages were used alike, so what went cost little more than itself.
        assert after.pages / before.pages > 0.9 * 5 * MIB / before.used_bytes
        store.check_integrity()


def test_a_segment_is_as_new_as_what_descends_from_its_pages():
    catalog, _ = catalog_of(8192, 8192, 8192)
    root = put(catalog, "root", 1, 0, time_us=1)
    put(catalog, "hot", 2, 0, put(catalog, "between", 2, 1, root, time_us=2), time_us=9)
    put(catalog, "cold", 3, 0, time_us=5)
    assert [segment.number for segment in catalog.stalest_segments(NO_ROW)] == [3, 1, 2]
    assert catalog.stalest_segments(8192) == []


def test_a_segment_that_is_being_synced_may_go_and_one_in_use_may_not():
    catalog, _ = catalog_of(8192, 8192, 8192)
    for number in (1, 2):
        row = put(catalog, str(number), number, 0)
        catalog.segments.by_number[number].dirty = True
    assert len(catalog.take_dirty()) == 2
    catalog.segments.claim(catalog.segments.by_number[3], 0)  # a page is being written
    catalog.index.pin(row)  # a page of segment 2 is being read
    assert [segment.number for segment in catalog.stalest_segments(NO_ROW)] == [1]


def test_a_segment_that_somebody_else_retired_is_left_alone():
    catalog, records = catalog_of(8192)
    [segment] = catalog.stalest_segments(NO_ROW)
    assert catalog.retire(segment) is True
    catalog.insert_segment(Segment(1, 4096, 4, -1), 5 * 4096)
    row = put(catalog, "new", 1, 0)
    before = len(records)
    assert catalog.retire(segment) is None
    assert catalog.index.location[row] == place(1, 0)
    assert 1 in catalog.segments.by_number
    assert len(records) == before
    catalog.check_integrity()


def test_old_segments_go_to_the_size_that_most_is_evicted_for(tmp_path):
    """Another size's pages are all older than what is evicted: they give their room, in time."""
    settings = options(4 * MIB, sync_interval_s=0.01)
    with PageStore(tmp_path / "s", settings) as store:
        for number in range(40):
            write(store, chain(("old", number), 10), 8000)
        for number in range(300):
            assert all(write(store, chain(("new", number), 10), 3000))
        large = [s for s in store._catalog.segments if s.slot_bytes == 12288]
        assert len(large) < 3
        store.check_integrity()
