"""Segments are made and removed one at a time, also by a disk that hangs."""

import logging
import threading
import time

import pytest
from support.store_disks import FaultyDisk
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore

KEYS = chain("a", 10)


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


@pytest.fixture
def disk():
    disk = FaultyDisk()
    yield disk
    disk.resume()


def test_a_segment_that_goes_late_does_not_take_a_new_one_with_it(tmp_path, disk):
    with PageStore(tmp_path / "s", options(), disk=disk) as store:
        assert all(write(store, KEYS))
        room, file = store._keeper._room, tmp_path / "s/segments/000001.seg"
        disk.hang(lambda what, path: what == "remove" and path == file)
        removals = disk.calls.count(("remove", file.name))
        clearing = threading.Thread(target=store.clear)
        clearing.start()
        until(lambda: disk.calls.count(("remove", file.name)) > removals)
        slots = store._catalog.segments.slots
        growing = threading.Thread(target=room.grow, args=(12288, slots), daemon=True)
        growing.start()
        growing.join(5)
        assert not growing.is_alive(), "nobody waits for what hangs"
        disk.resume()
        clearing.join()
        assert not file.exists()
        assert all(write(store, KEYS))
        assert file.exists()
        assert all(read(store, KEYS))
        store.check_integrity()


def test_making_a_segment_waits_for_one_that_goes(tmp_path):
    with PageStore(tmp_path / "s", options()) as store:
        room = store._keeper._room
        assert room._one.acquire(blocking=False)
        end = threading.Timer(0.2, room._one.release)  # as somebody who removes a segment
        end.start()
        assert all(write(store, KEYS))
        end.join()


def test_what_fails_each_second_is_logged_once(tmp_path, monkeypatch, caplog):
    with PageStore(tmp_path / "s", options(sync_interval_s=0.01)) as store:
        tried = []

        def fail():
            tried.append(1)
            raise RuntimeError("unforeseen")

        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
            patch.setattr(store._keeper.catalog, "record_touches", fail)
            until(lambda: len(tried) > 2)  # after pauses of 0.5 and 1 s
        lines = [r for r in caplog.records if "unforeseen way" in r.getMessage()]
        assert len(lines) == 1
        until(lambda: store.stats().syncs > 0)
