"""Dense Qwen3 under context parallelism: a Llama whose queries and keys are normalised by head.

Source: ``sglang/srt/models/qwen3.py`` of SGLang 0.5.23.
"""

from typing import Any

from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.models.utils import apply_qk_norm
from torch import Tensor

from sglang_ext.context_parallel.models.dense import Attention, DenseForCausalLM

__all__ = ["EntryClass", "Qwen3ForCausalLM"]


class _Attention(Attention):
    """Each head's query and key have the size of a weight that heads share."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        super().__init__(config, layer_id, quant_config, prefix)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward_prepare_native(
        self, positions: Tensor, hidden_states: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[tokens, heads * head_dim]``, keys and values, rotated to their positions."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = apply_qk_norm(q, k, self.q_norm, self.k_norm, self.head_dim)
        q, k = self.rotary_emb(positions, q, k)
        return q, k, v


class Qwen3ForCausalLM(DenseForCausalLM):
    """Takes the place of SGLang's class of this name."""

    attention = _Attention


EntryClass = Qwen3ForCausalLM
