"""What follows for pages from their ancestors or descendants, over whole columns of the index.

Each function goes up by ancestors at distance 1, 2, 4, …, so that a chain of a million pages takes
twenty steps, not a million. Pure.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_ext.cache.store.index import NO_ROW

__all__ = ["Numbers", "closed", "newest_below", "with_ancestors"]

Numbers = npt.NDArray[Any]


def closed(parent: Numbers, held: Numbers) -> Numbers:
    """``held`` without rows that have an ancestor which is not.

    Args:
        parent: rows of parents, int32 [rows]; `NO_ROW` at a root.
        held: bool [rows].
    """
    result = np.append(held, True)
    for jump in _jumps(parent):
        result &= result[jump]
    return result[:-1]


def with_ancestors(parent: Numbers, bits: Numbers) -> Numbers:
    """Each row's bits together with those of all its ancestors.

    Args:
        parent: rows of parents, int32 [rows]; `NO_ROW` at a root.
        bits: unsigned [rows].
    """
    result = np.append(bits, bits.dtype.type(0))
    for jump in _jumps(parent):
        result |= result[jump]
    return result[:-1]


def newest_below(parent: Numbers, time_us: Numbers) -> Numbers:
    """When each row or anything that descends from it was last used.

    Args:
        parent: rows of parents, int32 [rows]; `NO_ROW` at a root. Free rows have none.
        time_us: int64 [rows].
    """
    result = time_us.copy()
    for jump in _jumps(parent):
        rows = np.flatnonzero(jump >= 0)
        np.maximum.at(result, jump[rows], result[rows])
    return result


def _jumps(parent: Numbers) -> Iterator[Numbers]:
    """Ancestors at distance 1, 2, 4, …, with one row more that stands for the lack of one."""
    jump = np.append(parent, np.int32(NO_ROW))  # as an index, -1 is that last row
    while (jump >= 0).any():
        yield jump
        jump = jump[jump]
