"""How evenly a prefill batch lies on its ranks: ours, SGLang's zigzag and SGLang's interleave."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_ext.context_parallel.cost import Cost, Ints
from sglang_ext.context_parallel.plan import plan
from sglang_ext.context_parallel.rivals import interleave_loads, zigzag_applies, zigzag_loads
from sglang_ext.errors import ConfigError

__all__ = ["RANKS", "SCHEMES", "Batch", "compare_balance", "mixed_batches"]

RANKS = (2, 4, 8)
SCHEMES = ("ext", "zigzag", "interleave")
_TIMED_RUNS = 5

Loads = tuple[Ints, Ints]  # tokens of each rank, attended pairs of each rank


@dataclass(frozen=True)
class Batch:
    """A prefill batch.

    Attributes:
        extend_lens: new tokens of each request.
        prefix_lens: cached tokens of each request.
    """

    extend_lens: tuple[int, ...]
    prefix_lens: tuple[int, ...]

    def bounds(self, ranks: int) -> tuple[float, float]:
        """Max over mean that whole tokens allow: of tokens and of attended pairs."""
        tokens = sum(self.extend_lens)
        extend, prefix = np.array(self.extend_lens), np.array(self.prefix_lens)
        pairs = int(Cost.causal().between(prefix, prefix + extend).sum())
        dearest = int((extend + prefix).max())
        return -(tokens // -ranks) * ranks / tokens, max(1.0, dearest * ranks / pairs)


NAMED = {
    "one prompt of 8,191": Batch((8191,), (0,)),
    "16 short requests, prefixes of 50,000": Batch((37,) * 16, (50_000,) * 16),
    "64 requests": Batch(tuple(range(40, 40 + 64 * 7, 7)), tuple(range(0, 64 * 500, 500))),
}


def mixed_batches(count: int, seed: int = 0) -> list[Batch]:
    """Random batches: 1 to 16 requests, 1 to 8,192 new tokens, half with a prefix up to 64K."""
    generator = random.Random(seed)  # noqa: S311 - reproducible, not secret
    batches = []
    for _ in range(count):
        requests = generator.randint(1, 16)
        extend = tuple(int(2 ** generator.uniform(0, 13)) for _ in range(requests))
        prefix = tuple(
            int(2 ** generator.uniform(0, 16)) if generator.random() < 0.5 else 0
            for _ in range(requests)
        )
        batches.append(Batch(extend, prefix))
    return batches


def compare_balance(count: int) -> list[dict[str, Any]]:
    """Rows of named batches, then of ``count`` random ones together.

    Returns:
        A row for each (batch, ranks, scheme). ``attention_max_over_mean`` and
        ``tokens_max_over_mean`` are means over the batches that the scheme splits, the other
        fields are told in ``docs/bench.md``. Both are None where it splits none.

    Raises:
        ConfigError: fewer than one batch.
    """
    if count < 1:
        raise ConfigError(f"{count} batches: expected at least 1")
    sets = {name: [batch] for name, batch in NAMED.items()}
    sets[f"{count} mixed"] = mixed_batches(count)
    return [
        _row(name, batches, ranks, scheme)
        for name, batches in sets.items()
        for ranks in RANKS
        for scheme in SCHEMES
    ]


def _row(name: str, batches: list[Batch], ranks: int, scheme: str) -> dict[str, Any]:
    attention, tokens, over_bound, seconds, slices = [], [], [], [], []
    for batch in batches:
        extend, prefix = np.array(batch.extend_lens), np.array(batch.prefix_lens)
        seconds.append(_planning_seconds(scheme, batch, ranks))
        found = _loads(scheme, extend, prefix, ranks)
        if found is None:
            continue
        ratios = [float(load.max() / load.mean()) for load in found]
        tokens.append(ratios[0])
        attention.append(ratios[1])
        bounds = batch.bounds(ranks)
        over_bound.append((ratios[0] / bounds[0], ratios[1] / bounds[1]))
        if scheme == "ext":
            split = plan(batch.extend_lens, batch.prefix_lens, ranks)
            slices.append(len(split.runs.rank) / len(batch.extend_lens))
    return {
        "batch": name,
        "ranks": ranks,
        "scheme": scheme,
        "handled": round(len(attention) / len(batches), 4),
        "attention_max_over_mean": _mean(attention),
        "attention_p95": _p95(attention),
        "tokens_max_over_mean": _mean(tokens),
        "tokens_p95": _p95(tokens),
        "attention_over_bound": _mean([pair[1] for pair in over_bound]),
        "attention_over_bound_p95": _p95([pair[1] for pair in over_bound]),
        "tokens_over_bound": _mean([pair[0] for pair in over_bound]),
        "tokens_over_bound_p95": _p95([pair[0] for pair in over_bound]),
        "slices_per_request": _mean(slices),
        "plan_us": round(float(np.median(seconds)) * 1e6, 1),
    }


def _loads(scheme: str, extend: Ints, prefix: Ints, ranks: int) -> Loads | None:
    if scheme == "ext":
        found = plan(extend.tolist(), prefix.tolist(), ranks)
        return found.tokens, found.attention
    if scheme == "interleave":
        return interleave_loads(extend, prefix, ranks, Cost.causal())
    if zigzag_applies(extend, ranks):
        return zigzag_loads(extend, prefix, ranks, Cost.causal())
    return None


def _planning_seconds(scheme: str, batch: Batch, ranks: int) -> float:
    """Best of a few runs: our plan with its index, or SGLang's own metadata."""
    work: Callable[[], object]
    if scheme == "ext":

        def work() -> object:
            return plan(batch.extend_lens, batch.prefix_lens, ranks).gathered_rows()
    else:
        work = _stock_metadata(scheme, batch, ranks)
    best = float("inf")
    for _ in range(_TIMED_RUNS):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def _stock_metadata(scheme: str, batch: Batch, ranks: int) -> Callable[[], object]:
    from sglang_ext.bench.prefill.stock import stock_strategy

    strategy = stock_strategy(scheme, ranks)
    extend = list(batch.extend_lens)
    seq_lens = [new + cached for new, cached in zip(extend, batch.prefix_lens, strict=True)]
    return lambda: strategy.build_metadata(sum(extend), seq_lens, extend)


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _p95(values: list[float]) -> float | None:
    return round(float(np.percentile(values, 95)), 4) if values else None
