"""Dense Qwen2 under context parallelism: a Llama whose queries, keys and values have a bias.

Source: ``sglang/srt/models/qwen2.py`` of SGLang 0.5.23.
"""

from typing import Any

from sglang_ext.context_parallel.models.dense import Attention, DenseForCausalLM
from sglang_ext.errors import ModelError

__all__ = ["EntryClass", "Qwen2ForCausalLM"]


class _Attention(Attention):
    """With a bias that the config does not tell of."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        if getattr(config, "dual_chunk_attention_config", None):  # Qwen2.5-1M
            raise ModelError(
                "dual_chunk_attention_config: attention in two chunks is not split over ranks; "
                "leave out --ext-cp-size"
            )
        super().__init__(config, layer_id, quant_config, prefix)

    @staticmethod
    def biases(_config: Any) -> tuple[bool, bool]:
        """Queries, keys and values have one, the output has none."""
        return True, False


class Qwen2ForCausalLM(DenseForCausalLM):
    """Takes the place of SGLang's class of this name."""

    attention = _Attention


EntryClass = Qwen2ForCausalLM
