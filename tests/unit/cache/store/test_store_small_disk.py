"""A disk that is smaller than the capacity: smaller segments, and what is said without any."""

import logging

import pytest
from support.store_disks import SmallDisk
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.options import MIB


@pytest.mark.parametrize("capacity_bytes", [64 * MIB, 1 << 30, 1 << 40])
def test_a_disk_without_room_for_a_whole_segment_gets_a_smaller_one(tmp_path, capacity_bytes):
    disk = SmallDisk(30 * MIB)
    with PageStore(tmp_path / "s", options(capacity_bytes), disk=disk) as store:
        keys = chain("a", 100)
        assert all(write(store, keys))
        assert all(read(store, keys))
        for number in range(30):
            assert all(write(store, chain(number, 100))), "the journal's room is left to it"
        assert store.stats().healthy
        assert store.stats().used_bytes > 2 * MIB
        store.check_integrity()
    with PageStore(tmp_path / "s", options(capacity_bytes), disk=disk) as store:
        assert all(read(store, chain(29, 100)))


def test_a_disk_without_room_for_any_segment_is_told_of(tmp_path, caplog):
    disk = SmallDisk(18 * MIB)
    with PageStore(tmp_path / "s", options(1 << 40), disk=disk) as store:
        disk.room_bytes = sum(disk.taken.values()) + 20_000
        with caplog.at_level(logging.WARNING):
            assert not any(write(store, chain("a", 10)))
        assert "nothing is kept" in caplog.text
        assert "older pages go" not in caplog.text
        assert not store.stats().healthy
        assert store.stats().errors["ENOSPC"] == 1
        disk.room_bytes = 40 * MIB
        store._writing._until = 0.0  # the pause is over
        assert all(write(store, chain("a", 10)))
        assert store.stats().healthy
