"""What SGLang sets for a latent model under context parallelism, and what ours leaves of it."""

from types import SimpleNamespace

import pytest
from sglang.srt.arg_groups.overrides import declare_resolution, resolved_view
from sglang.srt.configs.model_config import AttentionArch
from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)

from sglang_ext.context_parallel.latent import absorb_keys, keep_experts_together
from sglang_ext.context_parallel.names import STRATEGY
from sglang_ext.device import ATTENTION_BACKEND
from sglang_ext.errors import FlagConflictError

STOCK = {
    "attn_cp_size": 4,
    "ep_size": 4,
    "moe_a2a_backend": "deepep",
    "moe_dense_tp_size": 1,
}


def arguments(arch=AttentionArch.MLA, **changed):
    asked = {"enable_prefill_cp": True, "cp_strategy": STRATEGY, "attn_cp_size": 2, "tp_size": 2}
    config = SimpleNamespace(attention_arch=arch)
    return SimpleNamespace(
        **{**asked, **changed}, _resolved_overrides=[], _model_config=config, model_path="m"
    )


def after(record):
    keep_experts_together(record, lambda record: declare_resolution(record, "stock", **STOCK))
    view = resolved_view(record)
    return {name: getattr(view, name) for name in STOCK}


def test_experts_stay_together_and_dense_layers_are_the_models_own():
    assert after(arguments()) == {
        "attn_cp_size": 2,
        "ep_size": 1,
        "moe_a2a_backend": "none",
        "moe_dense_tp_size": None,
    }


@pytest.mark.parametrize(
    "changed",
    [{"cp_strategy": "zigzag"}, {"enable_prefill_cp": False}, {"arch": AttentionArch.MHA}],
)
def test_other_servers_are_left_alone(changed):
    assert after(arguments(**changed)) == STOCK


def test_more_ranks_than_parts_are_refused():
    with pytest.raises(FlagConflictError, match="--tp-size 4 contradicts --ext-cp-size 2"):
        after(arguments(tp_size=4))


def test_a_layer_hands_over_latents_whatever_the_batch(monkeypatch):
    monkeypatch.setattr(AttentionBackendRegistry, "_handlers", {})
    absorb_keys()
    handler = AttentionBackendRegistry.get_handler(ATTENTION_BACKEND)
    assert handler(SimpleNamespace(), SimpleNamespace()) is AttnForwardMethod.MLA
