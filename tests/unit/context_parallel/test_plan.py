"""The plan: every token once, evenly, in few slices, and what stock does is what we say it does."""

import numpy as np
import pytest
from support.stock_splits import stock_split

from sglang_ext.context_parallel import evening, rivals
from sglang_ext.context_parallel.cost import Cost
from sglang_ext.context_parallel.pieces import Pieces
from sglang_ext.context_parallel.plan import Slice, least_of_full_ranks, plan
from sglang_ext.errors import ConfigError

COSTS = [
    Cost.causal(),
    Cost.windowed(128),
    Cost.windowed(128, window_layers=5, full_layers=1),
    Cost.top_k(2048, attention=4, indexer=1),
]


def token_costs(extend_lens, prefix_lens, cost):
    """Cost of each token of the batch, one at a time."""
    return [
        cost.linear * (position + 1) + cost.capped * min(position + 1, cost.cap)
        for new, cached in zip(extend_lens, prefix_lens, strict=True)
        for position in range(cached, cached + new)
    ]


def test_whole_zigzag_is_what_the_term_means():
    found = plan([16], [100], 4)
    assert [found.slices(rank) for rank in range(4)] == [
        (Slice(0, 0, 2), Slice(0, 14, 16)),
        (Slice(0, 2, 4), Slice(0, 12, 14)),
        (Slice(0, 4, 6), Slice(0, 10, 12)),
        (Slice(0, 6, 10),),
    ]
    assert found.tokens.tolist() == [4] * 4
    assert len(set(found.attention.tolist())) == 1


def test_rows_and_gathered_rows_agree():
    found = plan([7, 300, 1, 0, 41], [0, 5, 70, 3, 900], 4)
    gathered = found.gathered_rows().reshape(4, found.rows)
    for rank in range(4):
        mine = found.rows_of(rank)
        assert gathered[rank, : len(mine)].tolist() == mine.tolist()
        assert (gathered[rank, len(mine) :] == -1).all()
        starts = np.cumsum([0, 7, 300, 1, 0, 41])
        named = [
            starts[piece.request] + token
            for piece in found.slices(rank)
            for token in range(piece.start, piece.stop)
        ]
        assert named == mine.tolist()


def test_remainders_do_not_pile_up_on_one_rank():
    """Stock zigzag gives each remainder to rank 0; eleven requests of 9 tokens on 4 ranks."""
    extend, prefix = [9] * 11, [500] * 11
    stock = [len(tokens) for tokens in stock_split("zigzag", extend, prefix, 4)]
    assert stock == [33, 22, 22, 22]
    assert plan(extend, prefix, 4).tokens.tolist() == [25, 25, 25, 24]


def test_a_batch_with_a_short_request_is_split():
    extend, prefix = [4000, 3], [0, 0]
    assert stock_split("zigzag", extend, prefix, 4) is None
    found = plan(extend, prefix, 4)
    assert max(found.tokens) == 1001
    assert max(found.attention) <= 1.005 * np.mean(found.attention)


def test_tokens_are_traded_where_single_ones_are_dear():
    """Three tokens at 40,000 on four ranks: no dealing alone comes closer than 1 %."""
    extend, prefix = [2000, 3], [0, 40_000]
    dealt = Pieces.cut(np.array(extend), np.array(prefix), 4, Cost.causal()).deal()[1]
    assert max(dealt) > 1.01 * np.mean(dealt)
    found = plan(extend, prefix, 4)
    assert max(found.attention) <= 1.005 * np.mean(found.attention)
    assert max(found.tokens) == 501


@pytest.mark.parametrize("cost", COSTS)
def test_what_whole_tokens_allow(cost):
    """The dearest of the ranks with a token more costs no less than their share of the cheapest."""
    for extend, prefix, ranks in (
        ([1160], [22_337], 64),
        ([3, 0, 90, 1], [100, 5, 90, 2_047], 7),
        ([50], [0], 8),
        ([1, 1, 1], [9, 9, 400], 2),
    ):
        each, full = divmod(sum(extend), ranks)
        cheapest = sorted(token_costs(extend, prefix, cost))[: full * (each + 1)]
        least = least_of_full_ranks(np.array(extend), np.array(prefix), ranks, cost)
        assert least == -(sum(cheapest) // -full)
        assert max(plan(extend, prefix, ranks, cost).attention) >= least
    assert least_of_full_ranks(np.array([16]), np.array([5]), 4, cost) == 0


def trades_tried(monkeypatch, batch):
    """How many pairs of ranks a plan compares."""
    tried = []
    real = evening._best_swap

    def counted(*args):
        tried.append(args)
        return real(*args)

    monkeypatch.setattr(evening, "_best_swap", counted)
    plan(*batch)
    return len(tried)


@pytest.mark.parametrize(
    ("batch", "most"),
    [
        (([1160], [22_337], 64), 100),  # 18 or 19 tokens: 2 % above the mean at least
        (([3470], [0], 32), 150),
        (([931], [0], 16), 80),
    ],
)
def test_nothing_is_traded_for_what_cannot_be_reached(batch, most, monkeypatch):
    assert trades_tried(monkeypatch, batch) <= most


def test_no_more_trades_than_said(monkeypatch):
    """A detour over a third rank is two trades, and is left out where one is left."""
    runs = plan([9], [0], 3).runs
    states = iter([np.array([90 - made, 0, 0]) for made in range(20)])
    detours = iter([None])
    monkeypatch.setattr(evening, "_direct", lambda *_: (runs, next(states)))
    monkeypatch.setattr(
        evening, "_through_a_third", lambda *_: next(detours, (runs, np.array([50, 0, 0])))
    )
    load = evening.even_out(runs, np.array([99, 0, 0]), np.array([0]), Cost.causal(), 1, 1)[1]
    assert load[0] == 88  # one trade, a detour, one trade: four
    assert next(states)[0] == 87


def test_a_request_without_new_tokens_changes_nothing():
    short = [38, 40, 24, 39]
    cost = Cost.top_k(2048, attention=4, indexer=1)
    alone = plan(short, [0] * 4, 4, cost)
    beside = plan([*short, 0], [0] * 4 + [35_708], 4, cost)
    assert beside.attention.tolist() == alone.attention.tolist()


@pytest.mark.parametrize("cost", COSTS)
def test_prediction_of_stock_is_what_stock_does(cost):
    extend, prefix = [97, 16, 1000, 33], [0, 3000, 77, 120]
    costs = np.array(token_costs(extend, prefix, cost))
    for ranks in (2, 4, 8):
        for scheme, predict in (
            ("zigzag", rivals.zigzag_loads),
            ("interleave", rivals.interleave_loads),
        ):
            split = stock_split(scheme, extend, prefix, ranks)
            tokens, load = predict(np.array(extend), np.array(prefix), ranks, cost)
            assert tokens.tolist() == [len(mine) for mine in split]
            assert load.tolist() == [int(costs[mine].sum()) for mine in split]


@pytest.mark.parametrize("cost", COSTS)
def test_costs_agree_with_the_sum_over_tokens(cost):
    one_by_one = np.array(token_costs([3000], [0], cost))
    edges = np.array([0, 1, 127, 128, 129, 2047, 2048, 2049, 3000])
    assert cost.before(edges).tolist() == [int(one_by_one[:edge].sum()) for edge in edges]
    assert cost.of(edges[:-1]).tolist() == one_by_one[edges[:-1]].tolist()
    for position in (1, 100, 128, 2500):
        found = cost.position_with(int(one_by_one[position]))
        assert one_by_one[found] == one_by_one[position]


def test_nothing_to_do_and_one_rank():
    assert plan([], [], 4).rows == 0
    assert plan([0, 0], [5, 6], 4).gathered_rows().tolist() == []
    assert plan([3, 5], [0, 1], 1).slices(0) == (Slice(0, 0, 3), Slice(1, 0, 5))


def test_fewer_tokens_than_ranks():
    found = plan([2, 1], [50, 0], 8)
    assert sorted(found.tokens.tolist()) == [0] * 5 + [1] * 3


@pytest.mark.parametrize(
    ("extend", "prefix", "ranks"), [([1], [0], 0), ([1], [0, 0], 2), ([-1], [0], 2), ([1], [-1], 2)]
)
def test_wrong_use_is_told(extend, prefix, ranks):
    with pytest.raises(ConfigError, match="expected at least"):
        plan(extend, prefix, ranks)


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 0, 0), (1, 1, 0), (1, 0, 5)])
def test_a_cost_without_sense_is_told(weights):
    with pytest.raises(ConfigError, match="cost"):
        Cost(*weights)
