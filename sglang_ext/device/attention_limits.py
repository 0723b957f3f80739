"""What the reference attention backend does not do, said as early as it can be known.

Configuration and layers are looked at when the backend is made (a server stops before it listens),
batches once a forward, and calls once a layer. Every refusal is a :class:`DeviceError` that names
the feature, the place and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.layers.cp.base import is_cp_enabled
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from torch import Tensor

from sglang_ext.errors import DeviceError

__all__ = ["refuse_batch", "refuse_call", "refuse_configuration", "refuse_layer"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MODES = (
    ForwardMode.EXTEND,
    ForwardMode.DECODE,
    ForwardMode.MIXED,
    ForwardMode.SPLIT_PREFILL,
    ForwardMode.IDLE,
)


def refuse_configuration(runner: Any, *, may_be_split: bool = False) -> None:
    """Refuses a model or flags that the backend cannot serve.

    Args:
        runner: SGLang's ``ModelRunner``, model loaded and pools allocated.
        may_be_split: the backend takes this rank's part of a batch.

    Raises:
        DeviceError: naming the feature and the flag to change.
    """
    if runner.model_config.has_attention_sinks:
        raise _refusal("attention sinks", "the model's configuration", "use a model without them")
    if not runner.spec_algorithm.is_none():
        raise _refusal(
            f"speculative decoding ({runner.spec_algorithm})",
            "the server's flags",
            "leave out --speculative-algorithm",
        )
    if is_cp_enabled() and not may_be_split:
        raise _refusal(
            "SGLang's own context parallelism", "the server's flags", "use --ext-cp-size instead"
        )
    if runner.dtype not in _DTYPES:
        raise _refusal(f"dtype {runner.dtype}", "the model", "use --dtype float32 or bfloat16")
    for pool in _plain_pools(runner.token_to_kv_pool):
        _refuse_pool(pool, runner.dtype)


def refuse_layer(layer: RadixAttention, name: str) -> None:
    """Refuses a layer that the backend cannot compute.

    Args:
        layer: one attention layer of the model.
        name: its dotted name in the model; empty when not known.

    Raises:
        DeviceError: naming the feature and the layer.
    """
    temperature_tokens = layer.xai_temperature_len or -1
    for unsupported, feature in (
        (layer.is_cross_attention, "cross-attention"),
        (layer.attn_type != AttentionType.DECODER, f"{layer.attn_type.value} attention"),
        (temperature_tokens > 0, f"a temperature by position (from {temperature_tokens} tokens)"),
        (layer.pos_encoding_mode != "NONE", f"position encoding {layer.pos_encoding_mode}"),
        (
            layer.logit_cap > 0 and layer.logit_capping_method != "tanh",
            f"logit capping by {layer.logit_capping_method}",
        ),
    ):
        if unsupported:
            raise _refusal(feature, _place(layer, name), "use a model without it")


def refuse_batch(batch: ForwardBatch, *, may_be_split: bool = False) -> None:
    """Refuses a batch that the backend cannot compute.

    Args:
        batch: the batch.
        may_be_split: the backend takes this rank's part of a batch.

    Raises:
        DeviceError: naming the feature.
    """
    mode = batch.forward_mode
    if mode not in _MODES:
        raise _refusal(
            f"forward mode {mode.name}",
            f"a batch of {batch.batch_size} requests",
            "leave out --speculative-algorithm and diffusion language models",
        )
    for unsupported, feature, remedy in (
        (batch.encoder_lens is not None, "encoder-decoder models", "use a decoder-only model"),
        (
            batch.attn_cp_metadata is not None and not may_be_split,
            "SGLang's own context parallelism",
            "use --ext-cp-size instead",
        ),
        (
            batch.multi_item_delimiter_indices is not None,
            "multi-item scoring",
            "leave out --multi-item-scoring-delimiter",
        ),
    ):
        if unsupported:
            raise _refusal(feature, f"a batch of {batch.batch_size} requests", remedy)


def refuse_call(
    layer: RadixAttention,
    batch: ForwardBatch,
    rows: int,
    k: Tensor | None,
    extras: dict[str, Any],
) -> None:
    """Refuses what one layer's call asks for beyond queries, keys and values.

    Args:
        layer: the layer that is called.
        batch: its batch.
        rows: query rows.
        k: ``[tokens, kv_heads, head_dim]`` or None.
        extras: keyword arguments of the model, such as ``sinks``.

    Raises:
        DeviceError: naming the argument and the layer.
    """
    wanted = sorted(
        name for name, value in extras.items() if value is not None and value is not False
    )
    if batch.mha_return_lse:
        wanted.append("mha_return_lse")
    if wanted:
        raise _refusal(", ".join(wanted), _place(layer), "use a model without it")
    if k is not None and k.shape[0] != rows:
        raise _refusal(
            f"{k.shape[0]} keys handed over for {rows} queries",
            _place(layer),
            "start the server with --disable-chunked-prefix-cache",
        )


def _refuse_pool(pool: Any, dtype: torch.dtype) -> None:
    """Refuses a KV pool whose bytes are not token-major rows of the model's dtype."""
    if pool.dtype != dtype or pool.store_dtype != dtype:
        raise _refusal(
            f"KV of {pool.dtype} under a model of {dtype}",
            type(pool).__name__,
            "use --kv-cache-dtype auto",
        )
    if getattr(pool, "is_quantized_kv_cache", False):
        raise _refusal("quantised KV", type(pool).__name__, "use --kv-cache-dtype auto")
    layout = getattr(pool, "kv_cache_layout", "nhd")
    if layout != "nhd":
        raise _refusal(
            f"the KV layout {layout}", type(pool).__name__, "unset SGLANG_USE_HND_KVCACHE"
        )


def _plain_pools(pool: Any) -> Iterator[Any]:
    """The pools that hold rows: a hybrid pool is made of several."""
    parts = [getattr(pool, name) for name in ("full_kv_pool", "swa_kv_pool") if hasattr(pool, name)]
    if not parts:
        yield pool
    for part in parts:
        yield from _plain_pools(part)


def _place(layer: RadixAttention, name: str = "") -> str:
    return f"layer {layer.layer_id}" + (f" ({name})" if name else "")


def _refusal(feature: str, place: str, remedy: str) -> DeviceError:
    return DeviceError(
        f"the reference device does not do {feature}, asked for by {place}; {remedy}, "
        "or choose another --attention-backend"
    )
