"""Usable prefixes over several pools, against a definition that tries every length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.cache.hits import Need, PoolPages, usable

NAMES = ("a", "b", "c")


def by_definition(kv_pages, pools):
    def fits(length):
        for pool in pools:
            if pool.need is Need.GROUPS:
                continue
            first = 0 if pool.need is Need.ALL else max(0, length - max(1, pool.window_pages))
            if not all(pool.there[first:length]):
                return False
        return True

    return [length for length in range(1, kv_pages + 1) if fits(length)]


@st.composite
def spans(draw):
    span = draw(st.integers(0, 12))
    pools = [
        PoolPages(
            name,
            draw(st.sampled_from([Need.ALL, Need.LAST])),
            draw(st.lists(st.booleans(), min_size=span, max_size=span)),
            window_pages=draw(st.integers(0, 4)),
        )
        for name in NAMES[: draw(st.integers(0, 3))]
    ]
    return draw(st.integers(0, span)), pools


@given(spans())
def test_every_usable_length_and_no_other(span):
    kv_pages, pools = span
    found = usable(kv_pages, pools)
    assert found.lengths == by_definition(kv_pages, pools)
    assert found.pages == max(found.lengths, default=0)
    for pool in pools:
        alone = by_definition(kv_pages, [pool])
        assert found.by_pool.get(pool.name, 0) == max(alone, default=0)
    assert found.by_pool.get("kv", 0) == kv_pages


def test_a_window_may_be_there_at_five_and_not_at_four():
    pool = PoolPages("mamba", Need.LAST, [True, False, False, False, True])
    found = usable(5, [pool])
    assert found.lengths == [1, 5]
    assert found.pages == 5


@pytest.mark.parametrize(
    ("there", "covered"), [([True] * 5, 8), ([True] * 3, 4), ([False] * 4, 0), ([True] * 40, 9)]
)
def test_groups_have_a_verdict_and_never_shorten_the_prefix(there, covered):
    pool = PoolPages("blocks", Need.GROUPS, there, group_pages=2, block_pages=4)
    found = usable(9, [pool])
    assert found.pages == 9
    assert found.by_pool.get("blocks", 0) == covered


def test_groups_without_geometry_have_no_verdict():
    assert usable(3, [PoolPages("blocks", Need.GROUPS, [True] * 3)]).by_pool == {"kv": 3}
