"""DeepSeek-V2 and V3 whose dense layers are whole on every rank of a context-parallel group.

SGLang cuts attention over the attention's tensor-parallel group already, which is one rank here,
and a dense MLP over all ranks, with a gather before and a sum behind it. Whole, it has none. (Its
own ``--moe-dense-tp-size 1`` does that, too, and pads batches for kernels that are not there.)
Experts stay as SGLang has them: cut over all ranks, their rows gathered and their sums scattered.

Source: ``sglang/srt/models/deepseek_v2.py`` of SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.layers.layer_boundary import declare_ffn
from sglang.srt.models import deepseek_v2
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix

__all__ = ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "EntryClass"]

_StockLayer = deepseek_v2.DeepseekV2DecoderLayer


class _DecoderLayer(deepseek_v2.DeepseekV2DecoderLayer):
    """A layer whose dense MLP is whole, or the rank's share of the attention's group."""

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str, **more: Any):
        super().__init__(config, layer_id, quant_config, prefix=prefix, build_stages=False, **more)
        if not self.is_layer_sparse:
            self.mlp = deepseek_v2.DeepseekV2MLP(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                hidden_act=config.hidden_act,
                quant_config=quant_config,
                prefix=add_prefix("mlp", prefix),
                reduce_results=False,
                parallel_group="attn_tp",
                swiglu_limit=getattr(config, "swiglu_limit", None),
                allow_fused_down=False,
            )
        self.attn_boundary, self.ffn_boundary = self._build_stages(
            input_layernorm=self.input_layernorm,
            post_attention_layernorm=self.post_attention_layernorm,
            qkv_latent_func=self.self_attn.prepare_qkv_latent,
        )

    @classmethod
    def stage_facts(cls, config: Any, layer_id: int, **more: Any) -> tuple[Any, Any]:
        """What SGLang plans moves between stages from: a dense MLP as wide as the attention."""
        attention, ffn = super().stage_facts(config, layer_id, **more)
        if not cls._is_layer_sparse(config, layer_id, is_nextn=more.get("is_nextn", False)):
            ffn = declare_ffn(
                next_layer_sparse=cls._is_layer_sparse(config, layer_id + 1, is_nextn=False),
                output_transform=more.get("output"),
                dense_tp_size=get_parallel().attn_tp_size,
            )
        return attention, ffn


@contextmanager
def _our_layers() -> Iterator[None]:
    """SGLang's body makes layers of the class that its module names, and takes no other."""
    deepseek_v2.DeepseekV2DecoderLayer = _DecoderLayer
    try:
        yield
    finally:
        deepseek_v2.DeepseekV2DecoderLayer = _StockLayer


class DeepseekV2ForCausalLM(deepseek_v2.DeepseekV2ForCausalLM):
    """Takes the place of SGLang's class of this name."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        with _our_layers():
            super().__init__(config, quant_config, prefix)


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    """The same for its newer name."""


EntryClass = [DeepseekV2ForCausalLM, DeepseekV3ForCausalLM]
