"""What SGLang does differently under context parallelism of ours.

`plugin/` puts these in place, and only in a server that was started with ``--ext-cp-size``.
"""

from collections.abc import Callable
from typing import Any

from sglang_ext.context_parallel.names import STRATEGY

__all__ = ["choose_strategy", "complete_cuda_streams", "pad_heads_for_attention"]


def choose_strategy(
    original: Callable[..., None], *, enable_prefill_cp: bool, cp_size: int, cp_strategy: str
) -> None:
    """AROUND ``init_cp_strategy``: our strategy under its name; SGLang knows two names.

    Upstream should have a registry here.
    """
    if cp_strategy != STRATEGY or not enable_prefill_cp or cp_size <= 1:
        original(enable_prefill_cp=enable_prefill_cp, cp_size=cp_size, cp_strategy=cp_strategy)
        return
    from sglang.srt.layers.cp import base

    from sglang_ext.context_parallel.strategy import PlannedStrategy

    complete_cuda_streams()
    base._STRATEGY = PlannedStrategy(cp_size)  # noqa: SLF001 - what the original sets


def complete_cuda_streams() -> None:
    """Let ``torch.cuda.current_stream`` answer where torch has no CUDA.

    SGLang's runner asks for it in every context-parallel forward, on any device, to hand it to the
    strategy. Ours does not look at it.
    """
    import torch

    if not torch.cuda.is_available():
        torch.cuda.current_stream = torch.cpu.current_stream


def pad_heads_for_attention(
    original: Callable[..., Any], model_config: Any, load_config: Any, tp_size: int
) -> Any:
    """AROUND ``adjust_config_with_unaligned_cpu_tp``: heads divide over the attention's ranks.

    On a CPU SGLang pads heads until they divide over all ranks, and then a rank that has all heads
    finds too few in the weights.
    """
    from sglang.srt.runtime_context import get_parallel

    return original(model_config, load_config, min(tp_size, get_parallel().attn_tp_size))
