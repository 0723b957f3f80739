"""Pages of several sizes in one store: in one chain, and one size after another."""

import pytest
from support.store_pages import NAMESPACE, chain, key_of, options, payload, write

from sglang_ext.cache.store import Page, PageStore
from sglang_ext.cache.store.options import MIB

KV_BYTES, INDEXER_BYTES = 60_000, 4000


def pairs(name, count):
    """A chain of pages of keys and values, each with a page of an indexer after it."""
    pages, parent = [], None
    for number in range(count):
        for size, pool in ((KV_BYTES, "kv"), (INDEXER_BYTES, "indexer")):
            key = key_of(name, number, pool)
            pages.append(Page(key, parent, [payload(key, size)]))
            parent = key
    return pages


def resident(store, pages):
    return store.prefix([page.key for page in pages])


@pytest.mark.parametrize(("old", "new"), [(8000, 20_000), (20_000, 8000), (3000, 60_000)])
def test_writes_go_on_after_a_change_of_page_size(tmp_path, old, new):
    with PageStore(tmp_path / "s", options(4 * MIB)) as store:
        for number in range(12 * MIB // (10 * old)):
            write(store, chain(("old", number), 10), old)
        assert store.stats().evicted
        for number in range(12 * MIB // (10 * new)):
            keys = chain(("new", number), 10)
            assert all(write(store, keys, new)), f"chain {number} is refused"
            assert store.prefix(keys) == 10
        store.check_integrity()


def test_a_chain_of_two_sizes_loses_its_end_and_nothing_else(tmp_path):
    with PageStore(tmp_path / "s", options(16 * MIB)) as store:
        chains = [pairs(number, 5) for number in range(120)]
        kept = []
        for number, pages in enumerate(chains):
            assert all(store.write(NAMESPACE, pages))
            kept.append(sum(resident(store, old) for old in chains[: number + 1]) // 2)
        full = next(at for at in range(1, 120) if kept[at] <= kept[at - 1])
        # A batch brings five pages of keys and values; so many may go for the next one.
        assert min(kept[full:]) >= kept[full] - 5
        # What is left is what came last.
        whole = [resident(store, pages) == 10 for pages in chains]
        assert all(whole[1 - kept[-1] // 5 :])
        store.check_integrity()


def test_a_chain_of_two_sizes_is_evicted_in_order_after_a_restart(tmp_path):
    chains = [pairs(number, 5) for number in range(80)]
    with PageStore(tmp_path / "s", options(16 * MIB)) as store:
        for pages in chains:
            store.write(NAMESPACE, pages)
        before = [resident(store, pages) for pages in chains]
    with PageStore(tmp_path / "s", options(16 * MIB)) as store:
        store.check_integrity()
        assert [resident(store, pages) for pages in chains] == before
        assert all(store.write(NAMESPACE, pairs("new", 5)))
        after = [resident(store, pages) for pages in chains]
        lost = [was - now for was, now in zip(before, after, strict=True)]
        assert 10 <= sum(lost) <= 20
        first = next(at for at, count in enumerate(before) if count)
        assert sum(lost[first : first + 3]) == sum(lost), "not the oldest went"


def test_a_model_with_another_page_size_keeps_its_pages(tmp_path):
    """What has no page of the asked size is no use to evict, however old it is."""
    with PageStore(tmp_path / "s", options(8 * MIB)) as store:
        small = [chain(("small", number), 10) for number in range(20)]
        for keys in small:
            assert all(write(store, keys, 8000))
        number = 0
        while not store.stats().evicted:
            write(store, chain(("large", number), 4), KV_BYTES)
            number += 1
        for more in range(20):
            assert all(write(store, chain(("large", number + more), 4), KV_BYTES))
        assert [store.prefix(keys) for keys in small] == [10] * 20
        store.check_integrity()
