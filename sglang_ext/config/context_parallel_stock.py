"""What ``--ext-cp-size`` sets among SGLang's own flags, and which of them contradict it."""

from collections.abc import Mapping
from typing import Any

from sglang_ext.config.context_parallel import ContextParallelConfig
from sglang_ext.config.stock_setting import StockSetting
from sglang_ext.errors import FlagConflictError

__all__ = ["ATTENTION_BACKEND", "RESERVED", "check_reserved", "settings"]

# The reference device's: `sglang_ext.device.ATTENTION_BACKEND`, which stands above this room.
ATTENTION_BACKEND = "sglang_ext_cpu"

_FLAG = "--ext-cp-size"

_OTHER_ATTENTION = "the reference device's attention alone takes a rank's part of a batch"

# Stock flags that are not possible beside it: what is harmless, and why the rest is refused.
RESERVED: dict[str, tuple[tuple[Any, ...], str]] = {
    "pp_size": ((None, 1), "a batch that is split over ranks and stages was never run"),
    "dp_size": ((None, 1), "data-parallel replicas of split servers were never run"),
    "attn_dp_size": ((None, 1), "attention's data parallelism would split the batches first"),
    "enable_dp_attention": ((None, False), "it would split the batches first"),
    "ep_size": ((None, 1), "experts on ranks of their own were never run with it"),
    "moe_a2a_backend": ((None, "none"), "experts on ranks of their own were never run with it"),
    "dcp_size": ((None, 1), "SGLang allows one of the two"),
    "speculative_algorithm": ((None,), "a draft model's batches are not planned"),
    "disaggregation_mode": ((None, "null"), "pages of split prefills were never sent elsewhere"),
    "enable_lora": ((None, False), "adapters take the rows of a batch in its own order"),
    "lora_paths": ((None,), "adapters take the rows of a batch in its own order"),
    "enable_two_batch_overlap": ((None, False), "it splits batches in a way of its own"),
    "enable_pdmux": ((None, False), "it runs two batches at once"),
    "quantization": ((None,), "its layers were never run on a rank's rows"),
    "attention_backend": ((None, ATTENTION_BACKEND), _OTHER_ATTENTION),
    "prefill_attention_backend": ((None, ATTENTION_BACKEND), _OTHER_ATTENTION),
    "decode_attention_backend": ((None, ATTENTION_BACKEND), _OTHER_ATTENTION),
    "device": ((None, "cpu"), "the reference device alone splits batches"),
    "model_impl": ((None, "auto", "sglang"), "other models do not have their layers whole"),
    "kv_cache_dtype": (
        (None, "auto", "bf16", "bfloat16"),
        "keys are gathered in the type that the model computes in",
    ),
    "is_embedding": ((None, False), "embeddings of a split batch were never pooled"),
    "nnodes": ((None, 1), "ranks on several machines were never run"),
    "moe_dp_size": ((None, 1), "experts on ranks of their own were never run with it"),
    "moe_dense_tp_size": ((None,), "it already has dense layers whole on each rank"),
    "enable_dp_lm_head": ((None, False), "the head is split over all ranks"),
    "dllm_algorithm": ((None,), "a diffusion model's batches are not planned"),
    "enable_hisparse": ((None, False), "it needs sparse attention, which is not split"),
    "enable_single_batch_overlap": ((None, False), "it overlaps batches in a way of its own"),
    "enable_torch_compile": ((None, False), "a split batch was never compiled"),
    "rl_on_policy_target": ((None,), "layers of the split models do not compute in its types"),
    "enable_symm_mem": ((None, False), "the AllGather does not use its buffers"),
}


def settings(config: ContextParallelConfig) -> tuple[StockSetting, ...]:
    """The stock flags that ``config`` sets; see `stock.stock_settings`."""
    if not config.enabled:
        return ()
    return (
        StockSetting("tp_size", config.size, _FLAG, overridable=True),
        StockSetting("attn_cp_size", config.size, _FLAG),
        StockSetting("enable_prefill_cp", True, _FLAG),
        StockSetting("cp_strategy", "sglang_ext", _FLAG),
    )


def check_reserved(config: ContextParallelConfig, given: Mapping[str, Any]) -> None:
    """Refuse stock flags that contradict ``config``.

    Raises:
        FlagConflictError: names both flags.
    """
    if not config.enabled or config.size is None:
        return
    for name, (harmless, why) in RESERVED.items():
        if name in given and given[name] not in harmless:
            raise FlagConflictError(
                f"--{name.replace('_', '-')} {given[name]} contradicts {_FLAG}: {why}; drop one of "
                "them"
            )
    ranks = given.get("tp_size")
    if ranks is not None and (ranks < 1 or ranks % config.size):
        raise FlagConflictError(
            f"--tp-size {ranks} contradicts {_FLAG} {config.size}: the ranks do not divide into "
            "groups of that size; give a multiple of it, or leave out --tp-size"
        )
