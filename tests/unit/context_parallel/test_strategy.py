"""The plan as SGLang's strategy: which rows a rank takes, and how they are put together again."""

import random
from types import SimpleNamespace

import pytest
import torch
from sglang.srt import runtime_context
from sglang.srt.layers.cp import base, padding
from sglang.srt.layers.cp.padding import pad_logical_token_to_physical
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_ext.context_parallel import hooks, strategy
from sglang_ext.context_parallel.names import STRATEGY
from sglang_ext.context_parallel.strategy import PlannedStrategy
from sglang_ext.errors import DeviceError

LENGTHS, NEW = [61, 43, 7, 163, 96, 18], [61, 3, 7, 130, 1, 16]


class Group:
    """Ranks that live in this process: hands out what all of them send."""

    def __init__(self, sent):
        self.sent = sent

    def all_gather_into_tensor(self, output, _rows):
        output.copy_(torch.cat(self.sent))


@pytest.fixture
def parallel(monkeypatch):
    """SGLang's context, in which a test may say who it is."""
    context = SimpleNamespace(attn_cp_rank=0, attn_cp_size=1, attn_cp_group=None)
    for module in (base, strategy, padding):
        monkeypatch.setattr(module, "get_parallel", lambda: context)
    return context


def batch_of(rank, ranks, parallel):
    parallel.attn_cp_rank, parallel.attn_cp_size = rank, ranks
    found = PlannedStrategy(ranks)
    metadata = found.build_metadata(sum(NEW), LENGTHS, NEW)
    pad_logical_token_to_physical(metadata)
    return found, SimpleNamespace(attn_cp_metadata=metadata)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("width", [(), (5,)])
def test_what_is_sharded_and_gathered_is_what_it_was(ranks, width, parallel):
    whole = torch.randn(sum(NEW), *width)
    sent = []
    for rank in range(ranks):
        found, batch = batch_of(rank, ranks, parallel)
        sent.append(found.shard_hidden_states(whole, batch))
    assert len({tuple(part.shape) for part in sent}) == 1  # equal rows
    assert sent[0].shape[0] < sum(NEW) / ranks + 1 + ranks  # ... and hardly more than needed
    parallel.attn_cp_group = Group(sent)
    assert torch.equal(found.gather_hidden_states(sent[-1], batch), whole)


def test_every_rank_has_each_token_once_at_its_own_position(parallel):
    positions = torch.tensor(
        [p for n, k in zip(LENGTHS, NEW, strict=True) for p in range(n - k, n)]
    )
    seen = []
    for rank in range(4):
        found, batch = batch_of(rank, 4, parallel)
        mine = batch.attn_cp_metadata.mine
        assert torch.equal(found.shard_position_ids(positions, batch)[: len(mine)], positions[mine])
        seen += mine.tolist()
    assert sorted(seen) == list(range(sum(NEW)))


def test_any_order_of_requests_has_the_lengths_of_its_own(parallel):
    """SGLang #29161: lengths in another order than the tokens once cost all accuracy."""
    order = list(range(len(NEW)))
    random.Random(2).shuffle(order)
    found, _ = batch_of(1, 4, parallel)
    metadata = found.build_metadata(sum(NEW), [LENGTHS[i] for i in order], [NEW[i] for i in order])
    assert metadata.plan.prefix_lens.tolist() == [LENGTHS[i] - NEW[i] for i in order]


@pytest.mark.parametrize(("lengths", "new"), [(None, [3]), ([5], None), ([5, 5], [3]), ([5], [4])])
def test_lengths_that_do_not_tell_what_is_cached(lengths, new, parallel):
    with pytest.raises(DeviceError, match="needs both of every request"):
        PlannedStrategy(2).build_metadata(3, lengths, new)


def test_positions_of_several_dimensions(parallel):
    found, batch = batch_of(0, 2, parallel)
    with pytest.raises(DeviceError, match="--ext-cp-size"):
        found.shard_position_ids(torch.zeros(3, sum(NEW)), batch)


@pytest.mark.parametrize(
    ("mode", "lengths", "tokens", "split"),
    [
        (ForwardMode.EXTEND, [1], 1, True),
        (ForwardMode.MIXED, [1, 1, 90], 92, True),
        (ForwardMode.EXTEND, [], 0, False),
        (ForwardMode.DECODE, None, 4, False),
        (ForwardMode.IDLE, None, 0, False),
    ],
)
def test_every_batch_that_extends_is_split(mode, lengths, tokens, split):
    batch = SimpleNamespace(forward_mode=mode, extend_seq_lens_cpu=lengths)
    assert PlannedStrategy(4).can_apply(tokens, batch) is split


def test_backends_that_do_not_know_the_plan_are_refused():
    for call in ("run_attention", "materialize_full_kv", "materialize_full_mla_kv"):
        with pytest.raises(DeviceError, match="does not know the plan"):
            getattr(PlannedStrategy(2), call)(None, None, None, None)


@pytest.fixture
def no_strategy(monkeypatch):
    monkeypatch.setattr(base, "_STRATEGY", None)
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.current_stream)


def choose(name, asked, size=2, on=True):
    hooks.choose_strategy(
        lambda **kwargs: asked.append(kwargs),
        enable_prefill_cp=on,
        cp_size=size,
        cp_strategy=name,
    )


def test_our_name_is_our_strategy(no_strategy):
    asked = []
    choose(STRATEGY, asked)
    assert isinstance(base._STRATEGY, PlannedStrategy)
    assert not asked
    if not torch.cuda.is_available():
        assert torch.cuda.current_stream() is not None  # which raises without the hook


@pytest.mark.parametrize(
    ("name", "size", "on"), [("zigzag", 2, True), (STRATEGY, 1, True), (STRATEGY, 2, False)]
)
def test_everything_else_is_sglangs(name, size, on, no_strategy):
    asked = []
    choose(name, asked, size, on)
    assert asked == [{"enable_prefill_cp": on, "cp_size": size, "cp_strategy": name}]
    assert base._STRATEGY is None


def test_heads_are_padded_for_the_ranks_of_the_attention(monkeypatch):
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1))
    asked = []
    hooks.pad_heads_for_attention(lambda *args: asked.append(args), "config", "load", 4)
    assert asked == [("config", "load", 1)]
