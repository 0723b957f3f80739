"""``sglang-ext bench prefill``: context-parallel prefill beside what stock SGLang does.

Counts and ratios come from the code that would run: our plan and our exchange, SGLang's own
strategies. With a model, real servers of one and two ranks are timed, and a model of more ranks is
fitted to them. Nothing here needs a GPU or a second machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_ext.bench.prefill import scaling
from sglang_ext.bench.prefill.anchors import describe_anchors
from sglang_ext.bench.prefill.balance import compare_balance
from sglang_ext.bench.prefill.collectives import compare_collectives
from sglang_ext.bench.prefill.speedup import measure_prefills, speedup
from sglang_ext.errors import ConfigError

__all__ = ["bench_prefill"]


# Tokens of the prompts that are timed; 32 is a short one, on which the exchange weighs most.
LENGTHS = (32, 512, 1024, 2048, 3072, 4096)
# What the model of more ranks is not fitted to: within what it sees, and beyond it.
HELD_OUT = ((1, 3072), (2, 3072), (2, 4096))


def bench_prefill(
    batches: int = 400,
    model: Path | None = None,
    rounds: int = 3,
    workdir: Path | None = None,
    on_step: Callable[[str], None] = lambda _step: None,
) -> dict[str, Any]:
    """Balance of batches over ranks, collectives of a layer, and seconds of real servers.

    Args:
        batches: random mixed batches beside the named ones.
        model: folder of the model that is served; None leaves seconds out.
        rounds: how often each prompt is timed.
        workdir: where the servers' logs go; needed with a model.
        on_step: called before each step with what it is.

    Returns:
        The object that ``--json`` writes.

    Raises:
        ConfigError: fewer than one batch or round, or a model that cannot be timed here.
        ServerError: a server failed.
    """
    if rounds < 1:
        raise ConfigError(f"rounds {rounds}: expected at least 1")
    on_step("balance")
    balance = compare_balance(batches)
    on_step("collectives")
    result: dict[str, Any] = {
        "balance": balance,
        "collectives": compare_collectives(),
        "anchors": describe_anchors(),
    }
    if model is not None and workdir is not None:
        timings = measure_prefills(model, LENGTHS, rounds, workdir, on_step)
        result["speedup"] = speedup(timings)
        result["model"] = scaling.describe(timings, HELD_OUT)
    return result
