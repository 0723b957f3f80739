"""Which rank owns which store, against every rank of small servers."""

from dataclasses import replace

import pytest

from sglang_ext.cache.placement import Placement, Ranks, place

ONE = Ranks(replica=0, replicas=1, pp_rank=0, pp_size=1, tp_rank=0, tp_size=1)


def whole_server(replicas, pp_size, tp_size, sharers=1):
    sizes = replace(ONE, replicas=replicas, pp_size=pp_size, tp_size=tp_size, sharers=sharers)
    return [
        place(replace(sizes, replica=replica, pp_rank=pp_rank, tp_rank=tp_rank))
        for replica in range(replicas)
        for pp_rank in range(pp_size)
        for tp_rank in range(tp_size)
    ]


def test_one_rank_has_it_all():
    assert place(ONE) == Placement(owner=0, owners=1, writes=True)
    assert place(ONE).folder == "rank-0"
    assert place(ONE).share(1000) == 1000


@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 1, 1), (1, 2, 2), (2, 2, 4)])
def test_every_rank_has_a_store_of_its_own(sizes):
    placements = whole_server(*sizes)
    assert [p.owner for p in placements] == list(range(len(placements)))
    assert {p.owners for p in placements} == {len(placements)}
    assert all(p.writes for p in placements)
    assert sum(p.share(1001) for p in placements) <= 1001


@pytest.mark.parametrize("sizes", [(1, 1, 2, 2), (2, 1, 4, 4), (1, 2, 4, 2), (2, 2, 8, 2)])
def test_ranks_that_hold_the_same_share_a_store_with_one_writer(sizes):
    placements = whole_server(*sizes)
    sharers = sizes[-1]
    owners = placements[0].owners
    assert owners * sharers == len(placements)
    for owner in range(owners):
        group = placements[owner * sharers : (owner + 1) * sharers]
        assert [p.owner for p in group] == [owner] * sharers
        assert [p.writes for p in group] == [True] + [False] * (sharers - 1)


@pytest.mark.parametrize(
    "wrong",
    [{"replica": 1}, {"pp_rank": -1}, {"tp_rank": 2}, {"sharers": 0}, {"tp_size": 4, "sharers": 3}],
)
def test_ranks_that_contradict_each_other(wrong):
    with pytest.raises(ValueError, match=r"of|share"):
        place(replace(ONE, **wrong))
