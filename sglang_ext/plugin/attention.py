"""Which attention the reference device's backend is in this process."""

from typing import Any

__all__ = ["create_attention_backend"]


def create_attention_backend(runner: Any) -> Any:
    """Factory for SGLang's registry of attention backends; imports the backend on first use.

    Args:
        runner: SGLang's ``ModelRunner``, model loaded and pools allocated.

    Raises:
        DeviceError: the model or a flag needs what the backend does not do.
    """
    from sglang.srt.layers.cp.base import get_cp_strategy

    from sglang_ext.context_parallel.names import STRATEGY

    strategy = get_cp_strategy()
    if strategy is not None and strategy.name == STRATEGY:
        from sglang_ext.context_parallel.backend import SplitAttentionBackend

        return SplitAttentionBackend(runner)
    from sglang_ext.device.attention import create_reference_backend

    return create_reference_backend(runner)
