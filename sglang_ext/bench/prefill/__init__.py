"""``sglang-ext bench prefill``: context-parallel prefill beside what stock SGLang does.

Counts and ratios come from the code that would run: our plan and our exchange, SGLang's own
strategies. Nothing here needs a GPU or a second machine.
"""

from collections.abc import Callable
from typing import Any

from sglang_ext.bench.prefill.balance import compare_balance
from sglang_ext.bench.prefill.collectives import compare_collectives

__all__ = ["bench_prefill"]


def bench_prefill(
    batches: int = 400, on_step: Callable[[str], None] = lambda _step: None
) -> dict[str, Any]:
    """Balance of batches over ranks, and collectives of a layer.

    Args:
        batches: random mixed batches beside the named ones.
        on_step: called before each step with what it is.

    Returns:
        The object that ``--json`` writes.

    Raises:
        ConfigError: fewer than one batch.
    """
    on_step("balance")
    balance = compare_balance(batches)
    on_step("collectives")
    return {"balance": balance, "collectives": compare_collectives()}
