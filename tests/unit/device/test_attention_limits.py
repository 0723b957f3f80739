"""What the reference attention does not do is refused by name, as early as it can be known."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_ext.device.attention import create_reference_backend
from sglang_ext.errors import DeviceError


def make_layer(**options) -> RadixAttention:
    attributes = {k: options.pop(k) for k in ("xai_temperature_len",) if k in options}
    layer = RadixAttention(2, 8, 0.3, 1, 4, **options)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def make_runner(layer=None, pool=None, **changes) -> SimpleNamespace:
    runner = SimpleNamespace(
        device="cpu",
        dtype=torch.float32,
        model=torch.nn.ModuleDict({"attn": layer or make_layer()}),
        req_to_token_pool=ReqToTokenPool(4, 32, "cpu", False),
        token_to_kv_pool=pool or make_pool(),
        model_config=SimpleNamespace(has_attention_sinks=False),
        spec_algorithm=SpeculativeAlgorithm.NONE,
    )
    for name, value in changes.items():
        setattr(runner, name, value)
    return runner


def make_pool(dtype=torch.float32, **options) -> MHATokenToKVPool:
    return MHATokenToKVPool(15, 1, dtype, 1, 8, 5, "cpu", False, **options)


def make_batch(**changes) -> ForwardBatch:
    batch = ForwardBatch(
        forward_mode=ForwardMode.EXTEND,
        batch_size=1,
        input_ids=torch.zeros(2, dtype=torch.long),
        req_pool_indices=torch.tensor([1]),
        seq_lens=torch.tensor([2]),
        out_cache_loc=torch.tensor([3, 4]),
        seq_lens_sum=2,
        extend_seq_lens=torch.tensor([2]),
        extend_prefix_lens=torch.tensor([0]),
    )
    for name, value in changes.items():
        setattr(batch, name, value)
    return batch


def call(layer, backend, batch, **extras):
    q, kv = torch.ones(2, 16), torch.ones(extras.pop("keys", 2), 1, 8)
    return backend.forward(q, kv, kv, layer, batch, **extras)


def test_what_is_supported_is_not_refused():
    layer = make_layer(sliding_window_size=4, logit_cap=3.0)
    backend = create_reference_backend(make_runner(layer))
    batch = make_batch()
    backend.init_forward_metadata(batch)
    assert call(layer, backend, batch, sinks=None, flag=False).shape == (2, 16)


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        ({"is_cross_attention": True}, "cross-attention"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "encoder_only attention"),
        ({"attn_type": AttentionType.DECODER_BIDIRECTIONAL}, "decoder_bidirectional attention"),
        ({"xai_temperature_len": 1024}, "from 1024 tokens"),
        ({"pos_encoding_mode": "ALIBI"}, "ALIBI"),
        ({"logit_cap": 5.0, "logit_capping_method": "sigmoid"}, "sigmoid"),
    ],
)
def test_a_layer_is_refused_when_the_backend_is_made(options, feature):
    with pytest.raises(DeviceError, match=rf"{feature}.*layer 4 \(attn\).*--attention-backend"):
        create_reference_backend(make_runner(make_layer(**options)))


def test_a_layer_outside_the_model_is_refused_when_it_is_called():
    backend, batch = create_reference_backend(make_runner()), make_batch()
    backend.init_forward_metadata(batch)
    with pytest.raises(DeviceError, match=r"cross-attention.*layer 4"):
        call(make_layer(is_cross_attention=True), backend, batch)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_config": SimpleNamespace(has_attention_sinks=True)}, "attention sinks"),
        ({"spec_algorithm": SpeculativeAlgorithm.NGRAM}, "--speculative-algorithm"),
        ({"dtype": torch.float64}, "--dtype"),
        ({"token_to_kv_pool": make_pool(torch.float8_e4m3fn)}, "--kv-cache-dtype"),
        ({"token_to_kv_pool": make_pool(torch.bfloat16)}, "--kv-cache-dtype"),
        ({"token_to_kv_pool": make_pool(kv_cache_layout="page_major")}, "page_major"),
    ],
)
def test_a_configuration_is_refused_when_the_backend_is_made(changes, named):
    with pytest.raises(DeviceError, match=named):
        create_reference_backend(make_runner(**changes))


def test_both_parts_of_a_window_pool_are_looked_at():
    pool = SWAKVPool(
        size=15,
        size_swa=15,
        page_size=1,
        dtype=torch.bfloat16,
        head_num=1,
        head_dim=8,
        swa_attention_layer_ids=[1],
        full_attention_layer_ids=[0],
        device="cpu",
    )
    pool.full_kv_pool = make_pool()
    with pytest.raises(DeviceError, match=r"bfloat16 under a model of torch\.float32"):
        create_reference_backend(make_runner(pool=pool))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"forward_mode": ForwardMode.TARGET_VERIFY}, "TARGET_VERIFY"),
        ({"forward_mode": ForwardMode.DRAFT_EXTEND_V2}, "DRAFT_EXTEND_V2"),
        ({"forward_mode": ForwardMode.DLLM_EXTEND}, "DLLM_EXTEND"),
        ({"encoder_lens": torch.tensor([3])}, "encoder-decoder"),
        ({"attn_cp_metadata": object()}, "context parallelism"),
        ({"multi_item_delimiter_indices": [torch.tensor([1])]}, "multi-item"),
    ],
)
def test_a_batch_is_refused_before_its_first_layer(changes, named):
    backend = create_reference_backend(make_runner())
    with pytest.raises(DeviceError, match=named):
        backend.init_forward_metadata(make_batch(**changes))


@pytest.mark.parametrize(
    ("extras", "changes", "named"),
    [
        ({"sinks": torch.zeros(2)}, {}, "sinks.*layer 4"),
        ({"q_rope": torch.zeros(2, 8)}, {}, "q_rope.*layer 4"),
        ({}, {"mha_return_lse": True}, "mha_return_lse.*layer 4"),
        ({"keys": 3}, {}, "3 keys handed over for 2 queries.*layer 4"),
    ],
)
def test_an_extra_that_changes_the_result_is_not_ignored(extras, changes, named):
    layer = make_layer()
    backend, batch = create_reference_backend(make_runner(layer)), make_batch(**changes)
    backend.init_forward_metadata(batch)
    with pytest.raises(DeviceError, match=named):
        call(layer, backend, batch, **extras)


def test_a_forward_without_a_plan_says_so():
    layer = make_layer()
    backend = create_reference_backend(make_runner(layer))
    with pytest.raises(DeviceError, match=r"layer 4.*init_forward_metadata"):
        call(layer, backend, make_batch())
