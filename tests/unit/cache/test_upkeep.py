"""State, checks and cleaning of stores."""

import os

import pytest
from support.stored_pages import stored

from sglang_ext.cache import upkeep
from sglang_ext.cache.folder import ServerLock
from sglang_ext.cache.store import Page, PageStore, StoreOptions
from sglang_ext.errors import ConfigError, StoreInUseError

NAMESPACE = b"n" * 32
PAGES, PAGE_BYTES = 40, 60_000
OPTIONS = StoreOptions(8_000_000)


def key(rank, chain, place):
    return bytes([rank, chain, place]) * 10 + b"ke"


@pytest.fixture
def folder(tmp_path):
    """A tier of two stores with four chains of ten pages each."""
    for rank in range(2):
        with PageStore(tmp_path / f"rank-{rank}", OPTIONS) as store:
            for chain in range(4):
                keys = [key(rank, chain, place) for place in range(10)]
                parents = [None, *keys]
                pages = [
                    Page(k, p, [bytes([rank + place]) * PAGE_BYTES])
                    for place, (k, p) in enumerate(zip(keys, parents, strict=False))
                ]
                assert all(store.write(NAMESPACE, pages))
    return tmp_path


def test_a_tier_has_stores_and_a_store_is_one(folder, tmp_path):
    ranks = [folder / "rank-0", folder / "rank-1"]
    assert upkeep.stores_in(folder) == ranks
    assert upkeep.stores_in(ranks[1]) == ranks[1:]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no page store"):
        upkeep.stores_in(tmp_path / "empty")


def test_looking_beside_a_writer_and_without_one(folder):
    rank = folder / "rank-0"
    before = upkeep.look(rank)
    assert (before.pages, before.payload_bytes) == (PAGES, PAGES * PAGE_BYTES)
    assert before.disk_bytes == sum(
        path.stat().st_blocks * 512 for path in rank.rglob("*") if path.is_file()
    )
    assert before.in_use_by is None
    with PageStore(rank, OPTIONS) as store:
        store.write(NAMESPACE, [Page(b"x" * 32, None, [b"y" * PAGE_BYTES])])
        now = upkeep.look(rank)
        assert now.pages == PAGES + 1
        assert now.in_use_by == os.getpid()


def test_a_store_that_cannot_be_opened_says_why(folder):
    (folder / "rank-0").chmod(0o755)
    assert "chmod 700" in upkeep.look(folder / "rank-0").problem


def test_a_flipped_bit_is_found_and_nothing_is_changed(folder):
    rank = folder / "rank-0"
    bad = key(0, 2, 4)
    stored(folder)[bad].flip(30_000)
    told = []
    (finding,) = upkeep.verify(rank, lambda *progress: told.append(progress))
    assert finding.key == bad.hex()
    assert told[-1] == (rank, PAGES, PAGES)
    assert upkeep.look(rank).pages == PAGES
    assert upkeep.verify(folder / "rank-1") == []


def test_a_store_in_use_is_not_verified(folder):
    with PageStore(folder / "rank-0", OPTIONS), pytest.raises(StoreInUseError):
        upkeep.verify(folder / "rank-0")


def test_cleaning_drops_what_does_not_match_and_what_follows_it(folder):
    stored(folder)[key(0, 2, 4)].tear()
    cleaned = upkeep.clean(folder)
    assert (cleaned.dropped_pages, cleaned.evicted_pages) == (6, 0)
    assert [finding["store"] for finding in cleaned.findings] == ["rank-0"]
    assert upkeep.verify(folder / "rank-0") == []
    left = stored(folder)
    assert len(left) == 2 * PAGES - 6
    assert key(0, 2, 3) in left


def test_cleaning_a_clean_tier_changes_nothing(folder):
    before = set(stored(folder))
    cleaned = upkeep.clean(folder)
    assert (cleaned.dropped_pages, cleaned.evicted_pages, cleaned.findings) == (0, 0, [])
    assert set(stored(folder)) == before


def test_cleaning_removes_stores_that_are_not_used(folder):
    cleaned = upkeep.clean(folder, ranks=1)
    assert (cleaned.removed, cleaned.kept) == (["rank-1"], [])
    assert cleaned.freed_bytes > PAGES * PAGE_BYTES
    assert upkeep.stores_in(folder) == [folder / "rank-0"]


def test_cleaning_keeps_files_of_others(folder):
    (folder / "rank-1" / "mine").write_text("mine")
    cleaned = upkeep.clean(folder, ranks=1)
    assert (cleaned.removed, cleaned.kept) == ([], ["rank-1"])
    assert (folder / "rank-1" / "mine").exists()


def test_cleaning_shrinks_to_a_size(folder):
    size_bytes = 3_500_000
    cleaned = upkeep.clean(folder, size_bytes=size_bytes)
    states = [upkeep.look(store) for store in upkeep.stores_in(folder)]
    assert sum(state.disk_bytes for state in states) <= size_bytes
    assert 0 < sum(state.pages for state in states) == 2 * PAGES - cleaned.evicted_pages
    assert upkeep.verify(folder / "rank-0") == []


def test_cleaning_removes_what_was_left_over(folder):
    left_over = folder / "rank-0" / "index-7.ckpt.partial"
    left_over.write_bytes(b"x" * 10_000)
    left_over.chmod(0o600)
    upkeep.clean(folder)
    assert not left_over.exists()


def test_a_tier_in_use_is_not_cleaned(folder):
    lock = ServerLock(folder)
    with pytest.raises(ConfigError, match="in use by the server"):
        upkeep.clean(folder)
    lock.release()
    upkeep.clean(folder / "rank-0")
