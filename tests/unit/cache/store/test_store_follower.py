"""A view beside a writer: it finds what the writer wrote, and never a wrong byte."""

import time

import pytest
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store import follower as follower_module
from sglang_ext.cache.store.options import MIB
from sglang_ext.errors import StoreFolderError

KEYS = chain("a", 20)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(follower_module, "_LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(follower_module, "_WAIT_S", 20.0)  # however busy the machine is


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def test_it_finds_what_the_writer_writes(folder):
    with PageStore(folder, options()) as writer, PageStore.follow(folder, options()) as view:
        assert view.prefix(KEYS) == 0
        write(writer, KEYS[:5])
        assert view.prefix(KEYS) == 5
        write(writer, KEYS[5:], parent=KEYS[4])
        assert all(read(view, KEYS))
        view.check_integrity()


def test_it_may_come_before_the_writer(folder):
    with PageStore.follow(folder, options()) as view:
        assert view.prefix(KEYS) == 0
        with PageStore(folder, options()) as writer:
            write(writer, KEYS)
            assert all(read(view, KEYS))


def test_it_finds_what_is_in_a_checkpoint(folder):
    with PageStore(folder, options()) as writer:
        write(writer, KEYS)
    with PageStore(folder, options()), PageStore.follow(folder, options()) as view:
        assert all(read(view, KEYS))


def test_it_reads_what_a_closed_store_holds(folder):
    with PageStore(folder, options()) as writer:
        write(writer, KEYS[:10])
    with PageStore.follow(folder, options()) as view:
        assert view.stats().pages == 10
        assert all(read(view, KEYS[:10]))
        with PageStore(folder, options()) as writer:
            write(writer, KEYS[10:], parent=KEYS[9])
            assert any(view.prefix(KEYS) == 20 for _ in range(5))
            assert all(read(view, KEYS))
        assert any(view.prefix(KEYS) == 20 for _ in range(5))


def test_a_folder_that_must_not_be_used_is_told_at_the_start_and_is_a_miss_later(folder):
    with PageStore(folder, options()) as writer:
        write(writer, KEYS)
        view = PageStore.follow(folder, options())
    folder.chmod(0o755)
    with pytest.raises(StoreFolderError):
        PageStore.follow(folder, options())
    view.prefix(KEYS)
    read(view, KEYS)
    view.close()


def test_it_writes_nothing(folder):
    with PageStore(folder, options()), PageStore.follow(folder, options()) as view:
        assert not any(write(view, KEYS))
        view.clear()
        view.flush()
        view.touch(KEYS[0])
        assert not view.stats().writer


def test_it_follows_through_journals_checkpoints_and_evictions(folder):
    small = options(MIB, sync_interval_s=0.01)
    with PageStore(folder, small) as writer, PageStore.follow(folder, small) as view:
        for number in range(150):
            keys = chain(number, 8)
            write(writer, keys)
            if number % 3 == 0:
                count = view.prefix(keys)
                assert count == writer.prefix(keys)
                assert all(read(view, keys[:count]))
        assert writer.stats().checkpoints > 3
        view.check_integrity()
        for number in range(150):
            keys = chain(number, 8)
            assert view.prefix(keys) == writer.prefix(keys)
            read(view, keys)


def test_it_catches_up_after_it_was_too_slow(folder, monkeypatch):
    small = options(MIB, sync_interval_s=0.01)
    # The view does not look by itself in between.
    with PageStore(folder, small) as writer, PageStore.follow(folder, options(MIB)) as view:
        write(writer, KEYS)
        assert view.prefix(KEYS) == 20
        detached, detach = [], view._follower._detach
        monkeypatch.setattr(view._follower, "_detach", lambda: detached.append(detach()))
        for number in range(200):
            write(writer, chain(number, 8))
        keys = chain(199, 8)
        assert any(view.prefix(keys) == 8 for _ in range(5))
        assert all(read(view, keys))
        assert detached


def test_it_keeps_up_while_nobody_asks(folder):
    with (
        PageStore(folder, options()) as writer,
        PageStore.follow(folder, options(sync_interval_s=0.02)) as view,
    ):
        assert view.prefix(KEYS) == 0
        write(writer, KEYS)
        deadline = time.monotonic() + 20
        while view.stats().pages < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert view.stats().pages == 20


def test_it_survives_a_clear_and_another_slot_size(folder):
    with PageStore(folder, options()) as writer, PageStore.follow(folder, options()) as view:
        write(writer, KEYS)
        assert all(read(view, KEYS))
        writer.clear()
        assert view.prefix(KEYS) == 0
        write(writer, KEYS, 30_000)
        assert all(read(view, KEYS, 30_000))
        view.check_integrity()


def test_it_survives_a_restart_of_the_writer(folder):
    with PageStore.follow(folder, options()) as view:
        with PageStore(folder, options()) as writer:
            write(writer, KEYS[:5])
            assert view.prefix(KEYS) == 5
        with PageStore(folder, options()) as writer:
            write(writer, KEYS[5:], parent=KEYS[4])
            assert any(view.prefix(KEYS) == 20 for _ in range(5))
            assert all(read(view, KEYS))


def test_a_page_that_is_being_read_when_the_view_starts_anew(folder):
    with PageStore(folder, options()) as writer, PageStore.follow(folder, options()) as view:
        write(writer, KEYS)
        assert view.prefix(KEYS) == 20
        pages = view._catalog.find(KEYS, range(20))
        view._follower._detach()
        assert view._catalog.release(pages, [(pages[-1], "key")]) == [pages[0].segment]
        view._disk.close(pages[0].segment.file)
        assert view.stats().dropped == {}
        assert all(read(view, KEYS))


def test_a_slot_that_is_larger_than_the_staging_memory_is_a_miss(folder):
    small = {"staging_bytes": MIB, "read_ahead_bytes": 65536, "operation_bytes": 65536}
    with (
        PageStore(folder, options(16 * MIB)) as writer,
        PageStore.follow(folder, options(16 * MIB, **small)) as view,
    ):
        assert all(write(writer, KEYS[:1], 3 * MIB // 2))
        assert read(view, KEYS[:1], 3 * MIB // 2) == [False]
        assert view.stats().errors == {}
        assert view.prefix(KEYS) == 1
