"""How long a prefill takes on more ranks than there are here: a model with five constants.

    seconds = forward + token * tokens / ranks + pair * pairs / ranks
              + exchange (two ranks or more) + row * tokens * (ranks - 1) / ranks

``token`` is matrix products, ``pair`` attention, ``exchange`` what the collectives of a forward
cost whatever their size, ``row`` what a gathered token costs: the part of the AllGather that own
attention does not hide, writing its row, and its share of what every rank does for all tokens.
Work is taken as even over ranks; `balance` says how even it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_ext.bench.prefill.speedup import Timings

__all__ = ["Constants", "describe", "fit"]

WHAT_IF_RANKS = (1, 2, 8, 32, 128)
WHAT_IF_TOKENS = (131_072, 1_000_000)


@dataclass(frozen=True, slots=True)
class Constants:
    """Seconds of each term; see the module."""

    forward: float
    token: float
    pair: float
    exchange: float
    row: float

    def seconds(self, ranks: int, tokens: int) -> float:
        """Prefill of ``tokens`` new tokens without a prefix on ``ranks`` ranks."""
        terms = _terms(ranks, tokens)
        return float(
            terms @ np.array([self.forward, self.token, self.pair, self.exchange, self.row])
        )


def fit(timings: Timings, held_out: Collection[tuple[int, int]]) -> Constants:
    """The constants, none below zero, that leave the least relative error.

    Args:
        timings: seconds of each round, by ranks and tokens; medians count.
        held_out: points that are not used.
    """
    from scipy.optimize import nnls

    used = {key: statistics.median(s) for key, s in timings.items() if key not in held_out}
    terms = np.array([_terms(*key) / seconds for key, seconds in used.items()])
    scale = terms.max(axis=0)
    found, _ = nnls(terms / scale, np.ones(len(terms)))
    return Constants(*(found / scale).tolist())


def describe(timings: Timings, held_out: Collection[tuple[int, int]]) -> dict[str, Any]:
    """What ``--json`` has under ``model``: constants, each point with its error, more ranks.

    Args:
        timings: seconds of each round, by ranks and tokens.
        held_out: points that the constants are not fitted to.
    """
    constants = fit(timings, held_out)
    points = []
    for key, seconds in sorted(timings.items()):
        measured, said = statistics.median(seconds), constants.seconds(*key)
        points.append(
            {
                "ranks": key[0],
                "tokens": key[1],
                "measured_s": round(measured, 4),
                "model_s": round(said, 4),
                "error": round(said / measured - 1, 4),
                "held_out": key in held_out,
            }
        )
    errors = [abs(point["error"]) for point in points if point["held_out"]]
    return {
        "constants_s": {name: getattr(constants, name) for name in Constants.__slots__},
        "points": points,
        "held_out_error": {
            "mean": round(statistics.mean(errors), 4),
            "max": round(max(errors), 4),
        },
        "what_if": [
            _what_if(constants, ranks, tokens)
            for tokens in WHAT_IF_TOKENS
            for ranks in WHAT_IF_RANKS
        ],
    }


def _what_if(constants: Constants, ranks: int, tokens: int) -> dict[str, Any]:
    seconds = constants.seconds(ranks, tokens)
    alone = constants.seconds(1, tokens)
    return {
        "ranks": ranks,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "efficiency": round(alone / seconds / ranks, 3),
    }


def _terms(ranks: int, tokens: int) -> NDArray[np.float64]:
    pairs = tokens * (tokens + 1) / 2
    several = float(ranks > 1)
    return np.array([1.0, tokens / ranks, pairs / ranks, several, tokens * (ranks - 1) / ranks])
