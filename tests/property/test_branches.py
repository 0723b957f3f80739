"""Branches of one context (forks, map-reduce, best of n) cost no more than LRU would, named or not.

The context is what is worth keeping, and every branch needs it. Sizes run from a few contexts to
nearly all that is alive.
"""

import numpy as np
import pytest
from support.traces import branches

from sglang_ext.replay.run import replay

SIZES = (0.02, 0.04, 0.06, 0.1)


@pytest.mark.parametrize(
    ("count", "named", "grow"), [(2, False, 2), (4, False, 2), (8, False, 2), (4, True, 2)]
)
def test_branches_cost_no_more_than_recency(count, named, grow):
    trace = branches(count, named=named, grow=grow)
    sizes = [int(trace.footprint_tokens * size) for size in SIZES]
    found = replay(trace, ["lru", "ext"], sizes)
    lru, ext = (np.array([row.hit for row in found.of(name)]) for name in ("lru", "ext"))
    assert (ext - lru).min() > -0.003, ext - lru
    assert (ext - lru).mean() > 0.0
