"""Dense models whose layers are whole on every rank of a context-parallel group.

SGLang's own classes cut attention heads, MLP, or both over the whole tensor-parallel group, whose
ranks have different tokens under context parallelism. Here they are cut over the attention's
tensor-parallel group alone: one rank as a rule, and then a layer has no collective but the
AllGather of its keys. Embedding and head stay cut over all ranks: every rank embeds all tokens.

What Llama, Qwen2 and Qwen3 have in common is here, on SGLang's Llama, whose layers and weights have
the names that all three use. What differs is a class of attention: see ``llama.py``, ``qwen2.py``
and ``qwen3.py``. SGLang's registry finds nothing in this module: it has no ``EntryClass``.

Source: ``sglang/srt/models/llama.py`` and ``qwen3_moe.py`` of SGLang 0.5.23.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sglang.srt.layers.layer_boundary import append_stages, declare_ffn
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import (
    QKVParallelLinear,
    RowParallelLinear,
    resolve_linear_parallel_group,
)
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.models import llama
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix, make_pp_layers
from torch import nn

from sglang_ext.errors import ModelError

__all__ = ["Attention", "DenseForCausalLM"]

_GROUP = "attn_tp"


class Attention(llama.LlamaAttention):
    """Heads cut over the attention's tensor-parallel group."""

    @staticmethod
    def biases(config: Any) -> tuple[bool, bool]:
        """Whether queries, keys and values have a bias, and whether the output has one."""
        bias = getattr(config, "attention_bias", False) or getattr(config, "bias", False)
        return bias, bias

    def __init__(self, config: Any, layer_id: int, quant_config: Any, prefix: str) -> None:
        nn.Module.__init__(self)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        ranks = get_parallel().attn_tp_size
        if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
            raise ModelError(
                f"{heads} heads and {kv_heads} KV heads do not split over {ranks} ranks, which is "
                "--tp-size over --ext-cp-size; give a smaller --tp-size"
            )
        self.hidden_size = config.hidden_size
        self.start_layer = 0
        self.head_dim = _head_dim(config)
        self.num_heads = heads // ranks
        self.num_kv_heads = max(1, kv_heads // ranks)
        self.q_size = self.num_heads * self.head_dim
        self.kv_size = self.num_kv_heads * self.head_dim
        self.scaling = self.head_dim**-0.5
        bias, output_bias = self.biases(config)
        linear = {"quant_config": quant_config, "parallel_group": _GROUP}
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            heads,
            kv_heads,
            bias=bias,
            prefix=add_prefix("qkv_proj", prefix),
            **linear,
        )
        self.o_proj = RowParallelLinear(
            heads * self.head_dim,
            config.hidden_size,
            bias=output_bias,
            reduce_results=False,  # the boundary behind it completes the sum
            prefix=add_prefix("o_proj", prefix),
            **linear,
        )
        self.rotary_emb = _rotary_embedding(config, self.head_dim)
        self.attn = RadixAttention(
            self.num_heads,
            self.head_dim,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            layer_id=layer_id,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )


class _DecoderLayer(llama.LlamaDecoderLayer):
    """Attention and MLP of which each rank has the whole, or its share of the attention's group."""

    def __init__(
        self,
        config: Any,
        layer_id: int,
        quant_config: Any,
        prefix: str,
        attention: type[Attention],
    ) -> None:
        nn.Module.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = attention(config, layer_id, quant_config, add_prefix("self_attn", prefix))
        self.mlp = llama.LlamaMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
            reduce_results=False,
            parallel_group=_GROUP,
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_layernorm.fuse_input_quant(self.self_attn.qkv_proj)
        self.post_attention_layernorm.fuse_input_quant(self.mlp.gate_up_proj)
        attention_facts, ffn_facts = self.stage_facts(config, layer_id)
        self.attn_boundary, self.ffn_boundary = append_stages(
            (attention_facts, self.input_layernorm), (ffn_facts, self.post_attention_layernorm)
        )

    @classmethod
    def stage_facts(cls, config: Any, layer_id: int) -> tuple[Any, Any]:
        """What SGLang plans the sums between stages from: an MLP as wide as the attention."""
        attention, _ = super().stage_facts(config, layer_id)
        return attention, declare_ffn(dense_tp_size=get_parallel().attn_tp_size)


class _Model(llama.LlamaModel):
    """The body: SGLang's own forward over our layers."""

    def __init__(
        self, config: Any, quant_config: Any, prefix: str, attention: type[Attention]
    ) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.padding_idx = getattr(config, "pad_token_id", None)
        self.vocab_size = config.vocab_size
        self.pp_group = get_parallel().pp_group
        self._kv_cache_parallel_layout = resolve_linear_parallel_group(_GROUP)
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            prefix=add_prefix("embed_tokens", prefix),
        )
        self.layers, self.start_layer, self.end_layer = make_pp_layers(
            config.num_hidden_layers,
            lambda idx, prefix: _DecoderLayer(config, idx, quant_config, prefix, attention),
            prefix="model.layers",
            stage_facts=lambda idx: _DecoderLayer.stage_facts(config, idx),
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers_to_capture: list[int] = []


class DenseForCausalLM(llama.LlamaForCausalLM):
    """A model of such layers; a subclass bears the name of the SGLang class whose place it takes.

    Attributes:
        attention: the attention of its layers.
    """

    attention: ClassVar[type[Attention]] = Attention

    def _init_model(self, config: Any, quant_config: Any = None, prefix: str = "") -> Any:
        return _Model(config, quant_config, prefix, self.attention)


def _head_dim(config: Any) -> int:
    """Width of a head; where the config does not say it, of the heads that the weights have.

    SGLang may have added heads on a CPU so that they divide over the ranks.
    """
    heads = getattr(config, "original_num_attention_heads", config.num_attention_heads)
    return int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _rotary_embedding(config: Any, head_dim: int) -> Any:
    """SGLang's rotary embedding, from either form of transformers' config."""
    parameters = getattr(config, "rope_parameters", None)
    theta = getattr(config, "rope_theta", 10000)
    scaling = getattr(config, "rope_scaling", None)
    if parameters is not None:
        theta, scaling = parameters.get("rope_theta", 10000), parameters
    return get_rope(
        head_dim,
        rotary_dim=int(getattr(config, "partial_rotary_factor", 1) * head_dim),
        max_position=getattr(config, "max_position_embeddings", 8192),
        base=theta,
        rope_scaling=scaling,
        is_neox_style=getattr(config, "rope_is_neox_style", True),
    )
