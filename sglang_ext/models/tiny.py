"""Tiny models with random weights: real architectures, real configs, seconds to serve.

What they say is noise; what they compute is not. Weights are scaled so that a mistake shows:
every projection keeps the size of its input (standard deviation ``1 / sqrt(inputs)``), attention is
sharp (scores with a standard deviation of about 3, so a few keys decide) and the logits spread over
a standard deviation of about 2. With the usual 0.02 attention would be a flat average and a wrong
KV page would hardly move the result.

The tokenizer and chat template are SmolLM2's, so that chat and tools work.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_ext.errors import ConfigError
from sglang_ext.models.folder import write_json
from sglang_ext.models.gguf_source import FloatArray, packaged_gguf
from sglang_ext.models.smollm2 import save_weights
from sglang_ext.models.tokenizer import special_token_ids, write_tokenizer

__all__ = [
    "TINY",
    "TinyOptions",
    "build_tiny",
    "check_tiny",
    "random_weight",
    "tiny_config",
    "tiny_shapes",
]

_VOCAB = 49152  # SmolLM2's
_HIDDEN = 128
_HEADS = 8  # divides over 2, 4 and 8 ranks
_HEAD_DIM = 64  # what the GPU attention backends take
_EXPERTS = 8
_CONTEXT_TOKENS = 131072  # agents run to 100K tokens
_SHARP = math.sqrt(3)  # gain of a query or key: scores get a standard deviation of _SHARP ** 2
_LOGITS = 2.0  # standard deviation of the logits


@dataclass(frozen=True)
class TinyOptions:
    """Choices for a tiny model.

    Attributes:
        seed: Every byte of the weights follows from it.
        dtype: ``float32`` or ``bfloat16``.
        layers: Layers.
        kv_heads: KV heads of the Llama and Qwen models: 8 is MHA, fewer is GQA.
        index_topk: Tokens that the indexer of the DeepSeek model selects.
    """

    seed: int = 0
    dtype: str = "float32"
    layers: int = 2
    kv_heads: int = 4
    index_topk: int = 2048


# Name of a tensor -> its shape and gain; see random_weight.
Shapes = dict[str, tuple[tuple[int, ...], float]]


def check_tiny(options: TinyOptions) -> None:
    """Check the range of every option.

    Raises:
        ConfigError: an option is out of range; names its flag.
    """
    limits = {
        "--seed": (options.seed, 0, 2**63 - 1),
        "--layers": (options.layers, 1, 128),
        "--index-topk": (options.index_topk, 1, 163840),
    }
    for flag, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ConfigError(f"{flag} {value} is out of range: expected {low} to {high}")
    if options.kv_heads not in (1, 2, 4, 8):
        raise ConfigError(
            f"--kv-heads {options.kv_heads} does not divide {_HEADS} heads: expected 1, 2, 4 or 8"
        )


def build_tiny(name: str, options: TinyOptions, folder: Path) -> None:
    """Write the model called ``name`` into the empty ``folder``.

    Raises:
        ModelError: the package with the tokenizer is missing.
    """
    source = packaged_gguf()
    config = tiny_config(name, options)
    special = special_token_ids(source)
    token_ids = {f"{k}_token_id": special[k] for k in ("bos", "eos", "pad")}
    shapes = tiny_shapes(name, config)
    weights = {
        tensor: random_weight(options.seed, tensor, shape, gain)
        for tensor, (shape, gain) in shapes.items()
    }
    save_weights(weights, folder, options.dtype)
    write_json(folder / "config.json", {**config, **token_ids})
    write_json(folder / "generation_config.json", {"_from_model_config": True, **token_ids})
    write_tokenizer(source, folder, config["max_position_embeddings"])


def tiny_config(name: str, options: TinyOptions) -> dict[str, Any]:
    """``config.json`` of the model called ``name``, without the token ids."""
    return {**_common(options), **TINY[name][0](options)}


def tiny_shapes(name: str, config: dict[str, Any]) -> Shapes:
    """Shape and gain of every tensor of the checkpoint."""
    shapes: Shapes = {
        # Rows of unit size: the first layer sees what the others see.
        "model.embed_tokens.weight": ((_VOCAB, _HIDDEN), math.sqrt(_HIDDEN)),
        "model.norm.weight": ((_HIDDEN,), 1.0),
        # Not tied: with random weights a tied head answers with the token it was given.
        "lm_head.weight": ((_VOCAB, _HIDDEN), _LOGITS),
    }
    layer_shapes = TINY[name][1]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = ((_HIDDEN,), 1.0)
        shapes[prefix + "post_attention_layernorm.weight"] = ((_HIDDEN,), 1.0)
        shapes.update({prefix + key: value for key, value in layer_shapes(config, layer)})
    return shapes


def random_weight(seed: int, name: str, shape: tuple[int, ...], gain: float) -> FloatArray:
    """Weights of one tensor: the same bytes on every machine and with every NumPy.

    Uniform numbers made from raw 24-bit integers, because only the raw bits of a bit generator are
    promised to stay as they are; a normal distribution also depends on the machine's ``log``. The
    stream belongs to the tensor's name, so a tensor does not change when others come or go.

    Args:
        seed: The model's seed.
        name: Name of the tensor.
        shape: Its shape; the last axis is the inputs of a projection.
        gain: For a projection the standard deviation is ``gain / sqrt(inputs)``; a vector (a norm
            or a bias) lies within 0.1 of ``gain``.

    Returns:
        A new float32 array.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    raw = bits.random_raw(math.prod(shape)) >> np.uint64(40)  # 24 bits: exact in float32
    centred = raw.astype(np.int32) - np.int32(1 << 23)
    unit = centred.astype(np.float32) / np.float32(1 << 23)  # [-1, 1), standard deviation 1/sqrt(3)
    if len(shape) == 1:
        return unit * np.float32(0.1) + np.float32(gain)
    scale = np.float32(gain * math.sqrt(3.0 / shape[-1]))
    return (unit * scale).reshape(shape)


def _common(options: TinyOptions) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": options.dtype,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 2 * _HIDDEN,
        "max_position_embeddings": _CONTEXT_TOKENS,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": options.layers,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": _VOCAB,
    }


def _llama_config(options: TinyOptions) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": _HEAD_DIM,
        "mlp_bias": False,
        "num_key_value_heads": options.kv_heads,
        "rope_theta": 1e6,
    }


def _qwen2_config(options: TinyOptions) -> dict[str, Any]:
    """Without ``head_dim``: on a CPU SGLang's Qwen2 does not look at it."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": options.kv_heads,
        "rope_theta": 1e6,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _qwen3_config(options: TinyOptions) -> dict[str, Any]:
    names = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    return {**_qwen2_config(options), **names, "head_dim": _HEAD_DIM}


def _qwen3_moe_config(options: TinyOptions) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "head_dim": _HEAD_DIM,
        "mlp_only_layers": [],
        "moe_intermediate_size": _HIDDEN,
        "norm_topk_prob": True,
        "num_experts": _EXPERTS,
        "num_experts_per_tok": 2,
        "num_key_value_heads": options.kv_heads,
        "output_router_logits": False,
        "rope_theta": 1e6,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _deepseek_v3_config(_options: TinyOptions) -> dict[str, Any]:
    """Head and rank sizes of the attention are the real model's: GPU kernels are made for them."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "ep_size": 1,
        "first_k_dense_replace": 1,  # layer 0 is dense, the others are experts
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": _HIDDEN,
        "moe_layer_freq": 1,
        "n_group": 4,
        "n_routed_experts": _EXPERTS,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "num_key_value_heads": _HEADS,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 192,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_group": 2,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
    }


def _deepseek_v32_config(options: TinyOptions) -> dict[str, Any]:
    return {
        **_deepseek_v3_config(options),
        "architectures": ["DeepseekV32ForCausalLM"],
        "model_type": "deepseek_v32",
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": options.index_topk,
    }


LayerShapes = Iterator[tuple[str, tuple[tuple[int, ...], float]]]


def _mlp(prefix: str, inner: int) -> LayerShapes:
    yield f"{prefix}.gate_proj.weight", ((inner, _HIDDEN), 1.0)
    yield f"{prefix}.up_proj.weight", ((inner, _HIDDEN), 1.0)
    yield f"{prefix}.down_proj.weight", ((_HIDDEN, inner), 1.0)


def _head_rows(config: dict[str, Any]) -> tuple[int, int]:
    """Rows of all query heads, and of all KV heads."""
    head_dim = config.get("head_dim", _HIDDEN // _HEADS)
    return config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim


def _attention(config: dict[str, Any], query_key_gain: float) -> LayerShapes:
    rows, kv_rows = _head_rows(config)
    yield "self_attn.q_proj.weight", ((rows, _HIDDEN), query_key_gain)
    yield "self_attn.k_proj.weight", ((kv_rows, _HIDDEN), query_key_gain)
    yield "self_attn.v_proj.weight", ((kv_rows, _HIDDEN), 1.0)
    yield "self_attn.o_proj.weight", ((_HIDDEN, rows), 1.0)


def _experts(count: int, inner: int) -> LayerShapes:
    yield "mlp.gate.weight", ((count, _HIDDEN), 2.0)  # clear choices: no ties between experts
    for expert in range(count):
        yield from _mlp(f"mlp.experts.{expert}", inner)


def _llama_layer(config: dict[str, Any], _layer: int) -> LayerShapes:
    yield from _attention(config, _SHARP)
    yield from _mlp("mlp", config["intermediate_size"])


def _qwen2_layer(config: dict[str, Any], _layer: int) -> LayerShapes:
    yield from _attention(config, _SHARP)
    rows, kv_rows = _head_rows(config)
    for part, size in (("q", rows), ("k", kv_rows), ("v", kv_rows)):
        yield f"self_attn.{part}_proj.bias", ((size,), 0.0)
    yield from _mlp("mlp", config["intermediate_size"])


def _normalised_attention(config: dict[str, Any]) -> LayerShapes:
    # Queries and keys are normalised: their size is that of the norm's weight.
    yield from _attention(config, 1.0)
    yield "self_attn.q_norm.weight", ((config["head_dim"],), _SHARP)
    yield "self_attn.k_norm.weight", ((config["head_dim"],), _SHARP)


def _qwen3_layer(config: dict[str, Any], _layer: int) -> LayerShapes:
    yield from _normalised_attention(config)
    yield from _mlp("mlp", config["intermediate_size"])


def _qwen3_moe_layer(config: dict[str, Any], _layer: int) -> LayerShapes:
    yield from _normalised_attention(config)
    yield from _experts(config["num_experts"], config["moe_intermediate_size"])


def _deepseek_v3_layer(config: dict[str, Any], layer: int) -> LayerShapes:
    heads, q_rank, kv_rank = _HEADS, config["q_lora_rank"], config["kv_lora_rank"]
    rope, value = config["qk_rope_head_dim"], config["v_head_dim"]
    query = config["qk_nope_head_dim"] + rope
    yield "self_attn.q_a_proj.weight", ((q_rank, _HIDDEN), 1.0)
    yield "self_attn.q_a_layernorm.weight", ((q_rank,), 1.0)
    # The other half of the sharpness comes from YaRN, which multiplies scores by 1.87.
    yield "self_attn.q_b_proj.weight", ((heads * query, q_rank), _SHARP)
    yield "self_attn.kv_a_proj_with_mqa.weight", ((kv_rank + rope, _HIDDEN), 1.0)
    yield "self_attn.kv_a_layernorm.weight", ((kv_rank,), 1.0)
    rows = heads * (config["qk_nope_head_dim"] + value)
    yield "self_attn.kv_b_proj.weight", ((rows, kv_rank), 1.0)
    yield "self_attn.o_proj.weight", ((_HIDDEN, heads * value), 1.0)
    if layer < config["first_k_dense_replace"]:
        yield from _mlp("mlp", config["intermediate_size"])
        return
    yield from _experts(config["n_routed_experts"], config["moe_intermediate_size"])
    yield "mlp.gate.e_score_correction_bias", ((config["n_routed_experts"],), 0.0)
    yield from _mlp(
        "mlp.shared_experts", config["n_shared_experts"] * config["moe_intermediate_size"]
    )


def _deepseek_v32_layer(config: dict[str, Any], layer: int) -> LayerShapes:
    yield from _deepseek_v3_layer(config, layer)
    index_heads, index_dim = config["index_n_heads"], config["index_head_dim"]
    yield "self_attn.indexer.wq_b.weight", ((index_heads * index_dim, config["q_lora_rank"]), 1.0)
    yield "self_attn.indexer.wk.weight", ((index_dim, _HIDDEN), 1.0)
    yield "self_attn.indexer.k_norm.weight", ((index_dim,), 1.0)
    yield "self_attn.indexer.k_norm.bias", ((index_dim,), 0.0)
    yield "self_attn.indexer.weights_proj.weight", ((index_heads, _HIDDEN), 1.0)


# name -> (its part of the config, the tensors of one layer)
TINY: dict[
    str,
    tuple[Callable[[TinyOptions], dict[str, Any]], Callable[[dict[str, Any], int], LayerShapes]],
] = {
    "tiny-llama": (_llama_config, _llama_layer),
    "tiny-qwen2": (_qwen2_config, _qwen2_layer),
    "tiny-qwen3": (_qwen3_config, _qwen3_layer),
    "tiny-qwen3-moe": (_qwen3_moe_config, _qwen3_moe_layer),
    "tiny-deepseek-v3": (_deepseek_v3_config, _deepseek_v3_layer),
    "tiny-deepseek-v32": (_deepseek_v32_config, _deepseek_v32_layer),
}
