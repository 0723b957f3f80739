"""Stores in the states that several files of tests begin with."""

import pytest
from support.store_crash import crash
from support.store_disks import FaultyDisk
from support.store_pages import chain, options, write

from sglang_ext.cache.store import PageStore


@pytest.fixture
def store(tmp_path):
    with PageStore(tmp_path / "store", options()) as store:
        yield store
        store.check_integrity()


@pytest.fixture
def disk():
    return FaultyDisk()


@pytest.fixture
def faulty(tmp_path, disk):
    """A store on a disk that can fail; calls give up after half a second."""
    store = PageStore(tmp_path / "store", options(stall_s=0.5), disk=disk)
    yield store
    disk.fault = lambda *what: 0
    disk.resume()
    store.close()


@pytest.fixture
def crashed(tmp_path):
    """A store of 40 pages that was killed: no checkpoint, a journal."""
    store = PageStore(tmp_path / "store", options())
    assert all(write(store, chain("a", 40)))
    store.flush()
    crash(store)
    return tmp_path / "store"


@pytest.fixture
def closed(tmp_path):
    """A store of 40 pages that was closed: a checkpoint, no journal."""
    with PageStore(tmp_path / "store", options()) as store:
        assert all(write(store, chain("a", 40)))
    return tmp_path / "store"
