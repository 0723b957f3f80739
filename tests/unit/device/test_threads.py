"""Processors of ranks."""

import os

import pytest

from sglang_ext.device.threads import rank_cpus


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


def test_processors_are_split_evenly_and_never_shared(eight):
    shares = [rank_cpus(rank, 3) for rank in range(3)]
    assert shares == [[0, 1], [2, 3], [4, 5]]


def test_one_rank_takes_all(eight):
    assert rank_cpus(0, 1) == list(range(8))


def test_more_ranks_than_processors_take_turns(eight):
    assert [rank_cpus(rank, 16) for rank in (0, 7, 8, 15)] == [[0], [7], [0], [7]]


def test_binding_of_the_user_wins(eight):
    assert rank_cpus(1, 2, "0-1|4-5,7") == [4, 5, 7]
    assert rank_cpus(0, 2, "all") == [0, 1, 2, 3]


@pytest.mark.parametrize("binding", ["0-1", "0|x"])
def test_bad_binding_is_refused(eight, binding):
    with pytest.raises(ValueError, match="SGLANG_CPU_OMP_THREADS_BIND"):
        rank_cpus(1, 2, binding)
