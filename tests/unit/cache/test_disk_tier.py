"""Pools of pages over a real page store; host memory is plain bytes here."""

import hashlib
import random

import pytest

from sglang_ext.cache.disk_tier import KV, DiskTier, TierPool
from sglang_ext.cache.namespace import KeySpace, namespace_digest
from sglang_ext.cache.store import PageStore, StoreOptions

NAMESPACE = namespace_digest({"model": "one"})
PAGE_BYTES = 8192
CAPACITY_BYTES = 16_000_000


class Memory:
    """A host pool of so many pages of two pieces each."""

    def __init__(self, pages, seed=None):
        fill = random.Random(seed).randbytes if seed is not None else bytes
        self.pages = [bytearray(fill(PAGE_BYTES)) for _ in range(pages)]

    def outgoing(self, indices, count):
        assert len(indices) == count
        half = PAGE_BYTES // 2
        views = [memoryview(self.pages[index]) for index in indices]
        return [[view[:half], view[half:]] for view in views]

    def incoming(self, indices, count):
        return self.outgoing(indices, count), lambda _page: None


def chain(name, count):
    """Hashes of a chain of pages, as SGLang makes them."""
    return [hashlib.sha256(f"{name} {place}".encode()).hexdigest() for place in range(count)]


@pytest.fixture
def store(tmp_path):
    with PageStore(tmp_path / "rank-0", StoreOptions(CAPACITY_BYTES)) as store:
        yield store
        store.check_integrity()


def tier_over(store, namespace=NAMESPACE, **memories):
    tier = DiskTier(store, namespace)
    for name, memory in memories.items():
        tier.add_pool(TierPool(name, KeySpace(namespace, {"name": name}), memory))
    return tier


@pytest.fixture
def memory():
    return Memory(16, seed=1)


@pytest.fixture
def tier(store, memory):
    return tier_over(store, kv=memory)


def test_pages_come_back_as_they_went(store, memory):
    hashes = chain("a", 5)
    tier = tier_over(store, kv=memory)
    assert tier.prefix(hashes) == 0
    assert tier.write(None, hashes[:2], [3, 1]) == [True, True]
    assert tier.write(hashes[1], hashes[2:], [0, 2, 9]) == [True] * 3
    assert tier.prefix(hashes) == 5
    empty = Memory(16)
    other = tier_over(store, kv=empty)
    assert other.read(KV, hashes, [7, 6, 5, 4, 3]) == [True] * 5
    arrived = [empty.pages[index] for index in (7, 6, 5, 4, 3)]
    assert arrived == [memory.pages[index] for index in (3, 1, 0, 2, 9)]


def test_another_namespace_finds_nothing(store, tier, memory):
    hashes = chain("a", 2)
    tier.write(None, hashes, [0, 1])
    other = tier_over(store, namespace_digest({"model": "two"}), kv=Memory(2))
    assert other.prefix(hashes) == 0
    assert other.read(KV, hashes, [0, 1]) == [False, False]


def test_a_page_without_the_pages_before_it_is_refused(tier):
    hashes = chain("a", 3)
    assert tier.write(hashes[1], hashes[2:], [0]) == [False]
    assert tier.prefix(hashes[2:]) == 0


def test_pages_of_a_second_pool_wait_for_those_of_the_first(store, memory):
    hashes, beside = chain("a", 3), Memory(16, seed=2)
    tier = tier_over(store, kv=memory, mamba=beside)

    def backup():
        assert tier.offer("mamba", hashes[2:], [4]) == [True]
        assert tier.resident("mamba", hashes[2:]) == [False]
        return tier.write(None, hashes, [0, 1, 2])

    assert tier.operation(backup) == [True] * 3
    assert tier.resident("mamba", hashes) == [False, False, True]
    empty = Memory(1)
    assert tier_over(store, kv=memory, mamba=empty).read("mamba", hashes[2:], [0]) == [True]
    assert empty.pages[0] == beside.pages[4]


def test_what_is_held_is_forgotten_after_the_operation(store, memory):
    hashes, beside = chain("a", 2), Memory(16, seed=2)
    tier = tier_over(store, kv=memory, mamba=beside)
    tier.operation(lambda: tier.offer("mamba", hashes[1:], [4]))
    beside.pages[4][:] = bytes(PAGE_BYTES)  # SGLang gave the page to somebody else
    assert tier.operation(lambda: tier.write(None, hashes, [0, 1])) == [True, True]
    assert tier.resident("mamba", hashes) == [False, False]


def test_outside_of_an_operation_nothing_is_held(store, memory):
    hashes = chain("a", 2)
    tier = tier_over(store, kv=memory, mamba=Memory(16, seed=2))
    assert tier.offer("mamba", hashes[1:], [4]) == [False]
    tier.write(None, hashes, [0, 1])
    assert tier.offer("mamba", hashes[1:], [4]) == [True]
    assert tier.resident("mamba", hashes) == [False, True]


def test_pools_that_a_prefix_needs_whole_stand_in_its_chain(store, memory):
    hashes = chain("a", 4)
    tier = tier_over(store, kv=memory, indexer=Memory(16, seed=2), draft=Memory(16, seed=3))
    tier.link("indexer")
    tier.link("draft")

    def backup():
        tier.offer("indexer", hashes[:2], [0, 1])
        tier.offer("draft", hashes[:2], [0, 1])
        return tier.write(None, hashes[:2], [0, 1])

    assert tier.operation(backup) == [True, True]
    assert tier.resident("indexer", hashes) == [True, True, False, False]
    # The next page of keys and values cannot be used without the indexer's, so it is not kept.
    assert tier.write(hashes[1], hashes[2:3], [2]) == [True]
    assert tier.write(hashes[2], hashes[3:], [3]) == [False]


@pytest.mark.parametrize("linked", [False, True])
def test_no_page_of_a_second_pool_outlives_its_page_of_the_first(tmp_path, memory, linked):
    options = StoreOptions(1_500_000)
    with PageStore(tmp_path / "rank-0", options) as store:
        tier = tier_over(store, kv=memory, indexer=Memory(16, seed=2))
        if linked:
            tier.link("indexer")
        chains = [chain(str(number), 12) for number in range(12)]
        for hashes in chains:

            def backup(hashes=hashes):
                tier.offer("indexer", hashes, list(range(12)))
                return tier.write(None, hashes, list(range(12)))

            tier.operation(backup)
        assert store.stats().evicted > 0
        store.check_integrity()
        kept = 0
        for hashes in chains:
            keys = tier.resident(KV, hashes)
            beside = tier.resident("indexer", hashes)
            kept += sum(beside)
            assert not any(b and not k for b, k in zip(beside, keys, strict=True))
            if linked:  # only the last page may lack its companion
                assert sum(keys) - sum(beside) in (0, 1)
                assert keys == sorted(keys, reverse=True)
        assert kept > 0


def test_touched_pages_outlive_others(tmp_path, memory):
    with PageStore(tmp_path / "rank-0", StoreOptions(1_500_000)) as store:
        tier = tier_over(store, kv=memory)
        hot = chain("hot", 8)
        tier.write(None, hot, list(range(8)))
        for number in range(60):
            assert tier.touch(hot[-1]) is True
            tier.write(None, chain(str(number), 8), list(range(8)))
        assert store.stats().evicted > 0
        assert tier.prefix(hot) == 8
        assert tier.touch(chain("0", 8)[-1]) is False


def test_a_pool_that_nobody_knows_has_nothing(tier):
    assert tier.resident("window", chain("a", 3)) == [False] * 3
