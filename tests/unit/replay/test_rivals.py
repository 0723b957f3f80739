"""Rivals on paths whose answers can be worked out by hand."""

import numpy as np

from sglang_ext.replay.rivals import ARC, FIFO, LFU, S3FIFO, SLRU


def cache_of(kind, capacity, blocks=40):
    return kind(np.zeros(blocks, dtype=np.int64), capacity)


def path(*blocks):
    return np.array(blocks, dtype=np.int64)


def held(cache):
    return set(np.flatnonzero(cache.queue >= 0).tolist())


def test_fifo_forgets_that_a_block_was_used():
    cache = cache_of(FIFO, 3)
    cache.access(path(0))
    cache.access(path(1))
    cache.access(path(2))
    assert cache.access(path(0)) == 1
    cache.access(path(3))
    assert held(cache) == {1, 2, 3}


def test_a_parent_outlives_its_children_in_fifo():
    cache = cache_of(FIFO, 3)
    cache.access(path(0, 1))
    cache.access(path(0, 2))
    cache.access(path(0, 3))
    assert held(cache) == {0, 2, 3}


def test_lfu_keeps_what_was_used_often():
    cache = cache_of(LFU, 3)
    for _ in range(3):
        cache.access(path(0))
    cache.access(path(1))
    cache.access(path(2))
    cache.access(path(3))
    assert held(cache) == {0, 2, 3}


def test_slru_protects_what_was_used_again():
    cache = cache_of(SLRU, 5)
    cache.access(path(0))
    cache.access(path(0))
    for block in range(1, 9):
        cache.access(path(block))
    assert 0 in held(cache)
    assert cache.size[1] == 1


def test_slru_gives_protection_up_by_age():
    cache = cache_of(SLRU, 5)
    for block in range(5):
        cache.access(path(block))
        cache.access(path(block))
    assert cache.size == [1, 4]
    cache.access(path(9))
    assert held(cache) == {1, 2, 3, 4, 9}


def test_s3fifo_drops_what_was_used_once_quickly():
    cache = cache_of(S3FIFO, 10)
    for _ in range(3):
        cache.access(path(0, 1))
    for block in range(10, 30):
        cache.access(path(block))
    assert {0, 1} <= held(cache)


def test_arc_moves_its_split_on_ghost_hits():
    cache = cache_of(ARC, 4)
    for block in (0, 1):
        cache.access(path(block))
        cache.access(path(block))
    for block in range(10, 14):
        cache.access(path(block))
    assert {0, 1} <= held(cache)
    assert cache.target == 0.0
    gone = next(block for block in (10, 11) if block not in held(cache))
    assert cache.access(path(gone)) == 0
    assert cache.target == 1.0
    assert cache.queue[gone] == 1
