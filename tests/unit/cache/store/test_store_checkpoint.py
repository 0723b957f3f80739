"""Columns of a checkpoint: what is loaded is what was saved, or nothing."""

import random

import numpy as np
import pytest
from support.store_pages import key_of

from sglang_ext.cache.store.checkpoint import Columns, load_index
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.segments import Segment, Segments, Space, place


def random_index(rows, seed=1):
    """Columns of chains of 100, and segments that hold them."""
    chance = random.Random(seed)
    segments = Segments(Space(1 << 45))
    segments.insert(Segment(1, 8192, rows // 2, -1), 4096 + rows // 2 * 8192)
    segments.insert(Segment(3, 8192, rows, -1), 4096 + rows * 8192)
    index = Index()
    parent = NO_ROW
    for row in range(rows):
        if row % 100 == 0:
            parent = NO_ROW if chance.random() < 0.5 or not row else chance.randrange(row)
        slot = place(1, row) if row < rows // 2 else place(3, row - rows // 2)
        parent = index.add(key_of(row), parent, slot, 4000, 0, chance.randrange(100))
    return index, segments


def parent_key(index, key):
    parent = index.parent[index.rows[key]]
    return None if parent == NO_ROW else index.key_of(parent)


def test_a_loaded_index_is_the_saved_one():
    index, segments = random_index(1000)
    for row in (5, 250, 251, 999):
        if index.location[row] >= 0:
            index.remove_tree(row)
    rows, body = Columns.of(index).body()
    segments.kind_of(8192)
    loaded = load_index(rows, memoryview(body), segments)
    loaded.check_integrity()
    assert set(loaded.rows) == set(index.rows)
    for key, row in index.rows.items():
        other = loaded.rows[key]
        assert loaded.location[other] == index.location[row]
        assert parent_key(loaded, key) == parent_key(index, key)
        assert loaded.time_us[other] == index.time_us[row]
    order = [key for key, _ in loaded.evict(0, 2000)]
    assert set(order) == set(index.rows)


def test_loading_leaves_out_what_has_no_slot_any_more():
    index, segments = random_index(1000)
    rows, body = Columns.of(index).body()
    segments.remove(segments.by_number[1])
    segments.kind_of(8192)
    loaded = load_index(rows, memoryview(body), segments)
    loaded.check_integrity()
    assert all(location >> 32 == 3 for location in loaded.location)
    assert all(parent_key(index, key) in {None, *loaded.rows} for key in loaded.rows)


@pytest.mark.parametrize("column", range(6))
def test_columns_that_contradict_each_other_are_refused(column):
    index, segments = random_index(100)
    segments.kind_of(8192)
    rows, body = Columns.of(index).body()
    starts = np.cumsum([0, 32, 8, 4, 4, 8])[column] * rows
    data = bytearray(body)
    width = (32, 8, 4, 4, 8, 4)[column]
    data[starts + 7 * width : starts + 8 * width] = data[starts + 9 * width : starts + 10 * width]
    loaded = load_index(rows, memoryview(bytes(data)), segments)
    if column in (4, 5):  # times and lengths may be equal
        loaded.check_integrity()
    else:
        assert loaded is None
