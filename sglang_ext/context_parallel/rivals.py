"""How stock SGLang would split the same batch (pure: numpy alone).

The plan asks, so that it never does worse. The tests compare these figures with SGLang's own code.

Source: ``sglang/srt/layers/cp/zigzag.py`` and ``interleave.py`` of SGLang 0.5.23.
"""

from __future__ import annotations

import numpy as np

from sglang_ext.context_parallel.cost import Cost, Ints

__all__ = ["interleave_loads", "zigzag_applies", "zigzag_edges", "zigzag_loads"]


def interleave_loads(
    extend_lens: Ints, prefix_lens: Ints, ranks: int, cost: Cost
) -> tuple[Ints, Ints]:
    """Every ``ranks``-th token of the whole batch to one rank.

    Args:
        extend_lens: ``[requests]`` new tokens.
        prefix_lens: ``[requests]`` tokens that are cached.
        ranks: ranks, at least 1.
        cost: what tokens cost.

    Returns:
        ``[ranks]`` tokens and ``[ranks]`` cost of attention.
    """
    offsets = np.cumsum(extend_lens) - extend_lens
    first = (np.arange(ranks)[None, :] - offsets[:, None]) % ranks
    counts = np.maximum(0, -((first - extend_lens[:, None]) // ranks))
    attention = cost.strided(prefix_lens[:, None] + first, counts, ranks)
    return counts.sum(0), attention.sum(0)


def zigzag_applies(extend_lens: Ints, ranks: int) -> bool:
    """Whether the stock zigzag splits the batch at all: not when one request is short."""
    return bool((extend_lens >= 2 * ranks).all())


def zigzag_edges(extend_lens: Ints, ranks: int) -> Ints:
    """``[requests, 2 * ranks + 1]``: first new token of each block, and the end of the last."""
    blocks = np.arange(2 * ranks + 1)[None, :]
    base, rest = np.divmod(extend_lens[:, None], 2 * ranks)
    edges: Ints = base * blocks + np.minimum(blocks, rest)
    return edges


def zigzag_loads(extend_lens: Ints, prefix_lens: Ints, ranks: int, cost: Cost) -> tuple[Ints, Ints]:
    """Two blocks of each request to one rank, remainders to the first blocks.

    Args and result are those of :func:`interleave_loads`.
    """
    edges = zigzag_edges(extend_lens, ranks)
    tokens = np.diff(edges, axis=1)
    positions = prefix_lens[:, None] + edges
    attention = cost.between(positions[:, :-1], positions[:, 1:])
    return _folded(tokens, ranks), _folded(attention, ranks)


def _folded(blocks: Ints, ranks: int) -> Ints:
    total = blocks.sum(0)
    pairs: Ints = total[:ranks] + total[: ranks - 1 : -1]
    return pairs
