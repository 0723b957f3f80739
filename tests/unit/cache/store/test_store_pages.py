"""The store as its callers see it: reads, writes, arguments, threads."""

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.store_pages import (
    NAMESPACE,
    OTHER_NAMESPACE,
    chain,
    key_of,
    options,
    pages_of,
    read,
    write,
)

from sglang_ext.cache.store import Page, PageStore
from sglang_ext.cache.store.options import MIB
from sglang_ext.errors import ConfigError

KEYS = chain("a", 20)


def test_what_was_written_is_read(store):
    assert store.prefix(KEYS) == 0
    assert all(write(store, KEYS))
    assert store.prefix(KEYS) == 20
    assert all(read(store, KEYS))
    stats = store.stats()
    assert (stats.pages, stats.hits, stats.misses) == (20, 20, 0)
    assert stats.payload_bytes == 20 * 8000


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000, MIB])
@pytest.mark.parametrize("pieces", [1, 3])
def test_pages_of_any_size_and_number_of_pieces(store, size, pieces):
    keys = chain(size, 2)
    assert all(store.write(NAMESPACE, pages_of(keys, size, pieces=pieces)))
    assert all(read(store, keys, size))


def test_numpy_arrays_are_buffers(store):
    data = np.arange(3000, dtype=np.float32).reshape(2, 1500)
    assert store.write(NAMESPACE, [Page(KEYS[0], None, [data[0], data[1]])]) == [True]
    target = np.zeros_like(data)
    assert store.read(NAMESPACE, KEYS[:1], [[target[0], target[1]]]) == [True]
    assert (target == data).all()


def test_the_prefix_ends_at_the_first_page_that_is_missing(store):
    write(store, KEYS[:5])
    assert store.prefix([*KEYS[:5], key_of("no"), *KEYS[:5]]) == 5
    assert store.prefix([]) == 0


def test_what_is_resident_may_be_asked_for_pages_of_any_chain(store):
    write(store, KEYS[:5])
    assert store.resident([KEYS[4], key_of("no"), KEYS[0]]) == [True, False, True]
    assert store.resident([]) == []


def test_reading_goes_on_after_a_miss(store):
    write(store, KEYS[:5])
    keys = [KEYS[0], key_of("no"), KEYS[1]]
    assert read(store, keys) == [True, False, True]
    assert store.stats().misses == 1


def test_the_same_page_twice_in_a_call(store):
    pages = pages_of(KEYS[:2])
    assert store.write(NAMESPACE, [pages[0], pages[0], pages[1]]) == [True] * 3
    assert read(store, [KEYS[0], KEYS[0], KEYS[1]]) == [True] * 3
    assert store.stats().written_pages == 2


def test_a_duplicate_is_true_and_writes_nothing(store):
    write(store, KEYS)
    operations = store.stats().operations
    assert all(write(store, KEYS))
    assert store.stats().operations == operations
    assert store.stats().duplicates == 20


def test_a_page_without_its_parent_is_refused(store):
    assert write(store, KEYS[3:5], parent=KEYS[2]) == [False, False]
    assert store.stats().refused == {"orphan": 2}
    write(store, KEYS[:3])
    assert write(store, KEYS[3:5], parent=KEYS[2]) == [True, True]


def test_a_child_before_its_parent_is_refused(store):
    pages = pages_of(KEYS[:2])
    assert store.write(NAMESPACE, [pages[1], pages[0]]) == [False, True]


def test_another_namespace_is_a_miss(store):
    write(store, KEYS[:2])
    assert read(store, KEYS[:1], namespace=OTHER_NAMESPACE) == [False]
    assert store.stats().dropped == {"namespace": 2}


def test_another_length_is_a_miss(store):
    write(store, KEYS[:1])
    assert store.read(NAMESPACE, KEYS[:1], [[bytearray(7999)]]) == [False]
    assert store.stats().dropped == {"length": 1}


@pytest.mark.parametrize("read_ahead", [False, True])
def test_another_namespace_is_a_miss_when_read_ahead(store, read_ahead):
    write(store, KEYS)
    store.prefix(KEYS, read_ahead=True)
    time.sleep(0.2)
    assert not any(read(store, KEYS, namespace=OTHER_NAMESPACE))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.prefix([b"short"]),
        lambda store: store.resident([b"short"]),
        lambda store: store.touch(b""),
        lambda store: store.read(b"short", [], []),
        lambda store: store.read(NAMESPACE, KEYS[:2], [[bytearray(8000)]]),
        lambda store: store.read(NAMESPACE, KEYS[:1], [[b"not writable"]]),
        lambda store: store.read(NAMESPACE, KEYS[:1], [[np.zeros((4, 4), np.uint8)[:, 1]]]),
        lambda store: store.write(b"short", []),
        lambda store: store.write(NAMESPACE, [Page(b"short", None, [])]),
        lambda store: store.write(NAMESPACE, [Page(KEYS[0], b"short", [])]),
        lambda store: store.write(NAMESPACE, [Page(KEYS[0], None, [bytes(3 * MIB)])]),
    ],
)
def test_wrong_arguments_raise(store, call):
    with pytest.raises(ValueError, match=r"\w"):
        call(store)


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity_bytes": 1000},
        {"io_threads": 1},
        {"staging_bytes": MIB},
        {"operation_bytes": 5000},
        {"stall_s": 0},
        {"admission": "third"},
        {"write_limit_bytes_per_day": -1},
    ],
)
def test_wrong_options_raise(wrong):
    with pytest.raises(ConfigError):
        options(**wrong)


def test_a_closed_store_answers_with_misses(tmp_path):
    store = PageStore(tmp_path / "s", options())
    write(store, KEYS)
    store.close()
    store.close()
    assert store.prefix(KEYS) == 0
    assert not any(store.resident(KEYS))
    assert not any(read(store, KEYS))
    assert not any(write(store, KEYS))
    store.touch(KEYS[0])
    store.flush()


def test_without_direct_io(tmp_path):
    with PageStore(tmp_path / "s", options(direct=False)) as store:
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))
        assert not store.stats().direct


def test_a_file_system_without_direct_io_is_noted(tmp_path, disk, caplog):
    opened = disk.open

    def no_direct(path, flags):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return opened(path, flags)

    disk.open = no_direct
    with PageStore(tmp_path / "s", options(), disk=disk) as store:
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))
        assert not store.stats().direct
    assert "O_DIRECT" in caplog.text


def test_many_threads(tmp_path):
    failures = []

    def work(store, name):
        try:
            for number in range(15):
                keys = chain((name, number % 4), 8)
                write(store, keys)
                store.prefix(keys, read_ahead=number % 2 == 0)
                read(store, keys)
                store.touch(keys[-1])
        except Exception as error:
            failures.append(error)

    with PageStore(tmp_path / "s", options(2 * MIB, sync_interval_s=0.01)) as store:
        threads = [threading.Thread(target=work, args=(store, name)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        store.check_integrity()
        assert not store.stats().dropped


def test_a_key_of_zeros_is_refused(store):
    for page in (Page(bytes(32), None, [b"x"]), Page(KEYS[0], bytes(32), [b"x"])):
        with pytest.raises(ValueError, match="zeros"):
            store.write(NAMESPACE, [page])


def test_a_relative_folder_is_the_one_that_it_was(tmp_path, monkeypatch):
    """Though the process goes to another folder, where there is a store of the same name."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with PageStore(tmp_path / "there/s", options()) as other:
        assert all(write(other, chain("other", 5)))
    monkeypatch.chdir(tmp_path / "here")
    with PageStore(Path("s"), options()) as store:
        assert all(write(store, chain("a", 5)))
        view = PageStore.follow(Path("s"), options())
        monkeypatch.chdir(tmp_path / "there")
        assert all(write(store, chain("b", 5), 30_000))
        store.flush()
        assert view.prefix(chain("b", 5)) == 5
        view.close()
    for name, keys in (("here", ["a", "b"]), ("there", ["other"])):
        with PageStore(tmp_path / name / "s", options()) as store:
            assert store.stats().recovery == "clean"
            assert [store.prefix(chain(key, 5)) for key in keys] == [5] * len(keys)
