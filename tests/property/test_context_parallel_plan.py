"""The plan of any batch, beside SGLang's own two splits of the same batch."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.stock_splits import stock_split

from sglang_ext.context_parallel.cost import Cost
from sglang_ext.context_parallel.plan import STOCK_TOLERANCE, plan

SHORT = st.tuples(st.integers(0, 40), st.integers(0, 200_000))
LONG = st.tuples(st.integers(0, 6_000), st.integers(0, 50_000))
COSTS = st.one_of(
    st.just(Cost.causal()),
    st.builds(Cost.windowed, st.integers(1, 300), st.integers(1, 5), st.integers(0, 5)),
    st.builds(Cost.top_k, st.integers(1, 3_000), st.integers(1, 5), st.integers(0, 5)),
)
BATCHES = st.lists(st.one_of(SHORT, LONG), min_size=1, max_size=8)


def token_costs(batch, cost):
    positions = np.concatenate([np.arange(cached, cached + new) for new, cached in batch])
    return cost.linear * (positions + 1) + cost.capped * np.minimum(positions + 1, cost.cap)


@settings(max_examples=400, deadline=None)
@given(batch=BATCHES, ranks=st.integers(1, 9), cost=COSTS)
@example(batch=[(3_649, 55)], ranks=4, cost=Cost.causal())
@example(batch=[(31, 96_749), (21, 33)], ranks=16, cost=Cost.causal())
@example(
    batch=[(38, 0), (40, 0), (24, 0), (0, 35_708), (39, 0)], ranks=4, cost=Cost.top_k(2_048, 4, 1)
)
@example(batch=[(81, 0)], ranks=8, cost=Cost.top_k(2_048, 4, 1))
@example(batch=[(1_000, 0), (1, 500)], ranks=2, cost=Cost.causal())
def test_every_token_once_and_never_worse_than_stock(batch, ranks, cost):
    extend, prefix = [new for new, _ in batch], [cached for _, cached in batch]
    total = sum(extend)
    costs = token_costs(batch, cost)
    found = plan(extend, prefix, ranks, cost)
    again = plan(list(extend), tuple(prefix), ranks, cost)

    rows = found.gathered_rows()
    assert rows.tolist() == again.gathered_rows().tolist()
    assert sorted(rows[rows >= 0].tolist()) == list(range(total))
    assert found.rows == max(found.tokens) == -(total // -ranks)
    mine = [int(costs[found.rows_of(rank)].sum()) for rank in range(ranks)]
    assert mine == found.attention.tolist()

    for scheme in ("zigzag", "interleave"):
        split = stock_split(scheme, extend, prefix, ranks)
        if split is not None:
            assert max(found.tokens) <= max(len(tokens) for tokens in split)
            stock = max(int(costs[tokens].sum()) for tokens in split)
            assert max(mine) <= stock + stock // STOCK_TOLERANCE, scheme

    sides = 2 if cost.capped else 1
    few = sum(min(new, sides * 2 * ranks) for new in extend) + 8 * ranks
    assert sum(len(found.slices(rank)) for rank in range(ranks)) <= few
