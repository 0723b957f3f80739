"""Latent attention (MLA) under context parallelism of ours, where SGLang would do it another way.

SGLang's own MLA context parallelism is made for DeepEP, whose kernels need a GPU: it sets experts
on ranks of their own, and a flag for whole dense layers that pads every batch for kernels which the
reference device lacks. Ours has dense layers whole in its own model class, and experts gather and
sum over the ranks.

Source: ``sglang/srt/arg_groups/model_overrides/deepseek_v2.py`` and
``sglang/srt/models/deepseek_common/attention_backend_handler.py``, release 0.5.23.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_ext.context_parallel.names import STRATEGY, heads_stay_whole
from sglang_ext.device import ATTENTION_BACKEND
from sglang_ext.errors import FlagConflictError

__all__ = ["absorb_keys", "absorbed", "keep_experts_together"]


def keep_experts_together(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Resolution step ``handle_model_specific_adjustments``: what a latent model is set to.

    Raises:
        FlagConflictError: attention heads would be cut over ranks.
    """
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        resolving_view,
        use_mla_backend,
    )

    asked = resolving_view(server_args)
    ours = asked.enable_prefill_cp and asked.cp_strategy == STRATEGY
    ranks = asked.attn_cp_size
    previous(server_args)
    if not ours or not use_mla_backend(server_args):
        return
    if asked.tp_size != ranks:
        raise FlagConflictError(heads_stay_whole(asked.tp_size, ranks))
    declare_resolution(
        server_args,
        "sglang_ext.context_parallel",
        attn_cp_size=ranks,
        ep_size=1,
        moe_a2a_backend="none",
        moe_dense_tp_size=None,
    )


def absorb_keys() -> None:
    """Makes SGLang's model hand over latents, never keys of each head; asked once a layer.

    A backend that it does not know gets keys of each head where nothing is cached, and the layer
    writes the latents of a rank's rows by itself, to slots that belong to the whole batch.
    """
    from sglang.srt.models.deepseek_common.attention_backend_handler import (
        AttentionBackendRegistry,
    )

    AttentionBackendRegistry.register(ATTENTION_BACKEND, absorbed)


def absorbed(_attention: Any, _batch: Any) -> Any:
    """The form of attention in which values are the first columns of keys."""
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
        AttnForwardMethod,
    )

    return AttnForwardMethod.MLA
