"""Opening a rank's store in the folder of a tier."""

import logging
import threading

import pytest

from sglang_ext.cache.opening import open_store
from sglang_ext.cache.placement import Placement
from sglang_ext.cache.store import Page
from sglang_ext.errors import StoreInUseError

NAMESPACE = b"n" * 32
ALONE = Placement(0, 1, writes=True)


@pytest.fixture
def settings(tmp_path):
    return {
        "folder": str(tmp_path),
        "capacity_bytes": 20_000_000,
        "write_limit_bytes_per_day": 1_000_000,
        "admission": "all",
    }


def test_shares_of_size_and_limit(settings):
    page = [bytes(100_000)]
    with (
        open_store(settings, Placement(0, 2, writes=True)) as first,
        open_store(settings, Placement(1, 2, writes=True)) as second,
    ):
        for store in (first, second):
            assert store.stats().capacity_bytes < 10_000_000
            pages = [Page(bytes([n]) * 32, None, page) for n in range(1, 11)]
            written = sum(store.write(NAMESPACE, pages))
            assert written == 4  # with their headers, half of the day's limit


def test_a_rank_that_only_reads_may_come_first(settings):
    with (
        open_store(settings, Placement(0, 1, writes=False)) as reader,
        open_store(settings, ALONE) as writer,
    ):
        writer.write(NAMESPACE, [Page(b"k" * 32, None, [b"bytes"])])
        deadline = threading.Event()
        while not reader.prefix([b"k" * 32]):
            assert not deadline.wait(0.05)
        assert not reader.stats().writer


def test_waiting_for_somebody_who_lets_go(settings):
    holder = open_store(settings, ALONE)
    with pytest.raises(StoreInUseError):
        open_store(settings, ALONE, wait_s=0.2)
    end = threading.Timer(0.3, holder.close)
    end.start()
    open_store(settings, ALONE, wait_s=30).close()
    end.join()


def test_stores_of_more_ranks_go_and_files_of_others_stay(settings, tmp_path, caplog):
    for owner in range(3):
        open_store(settings, Placement(owner, 3, writes=True)).close()
    (tmp_path / "rank-2" / "mine").write_text("mine")
    with caplog.at_level(logging.INFO):
        open_store(settings, Placement(0, 1, writes=False)).close()
        assert (tmp_path / "rank-1").exists()  # who only reads removes nothing
        open_store(settings, ALONE).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0", "rank-2"]
    assert "rank-2 is of an earlier number of ranks" in caplog.text
