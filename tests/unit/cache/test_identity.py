"""What tells one server's pages from another's, from SGLang's own records."""

import json
import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("sglang")

from sglang.srt.mem_cache.memory_pool_host import LogicalHostPool
from sglang.srt.runtime_context import get_parallel
from support.host_pools import mha_pool

from sglang_ext.cache.identity import pool_identity, rank_identity, ranks_of, updated_weights
from sglang_ext.cache.placement import Ranks, place


def storage(**changes):
    """SGLang's record of storage, as far as it is read."""
    record = {
        **{"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1},
        **{"attn_cp_rank": 0, "attn_cp_size": 1, "dcp_rank": 0, "dcp_size": 1},
        "is_mla_model": False,
    }
    return SimpleNamespace(**{**record, **changes})


def parallel(**changes):
    """SGLang's context of a process, for the time of a ``with``."""
    values = {"tp_rank": 0, "tp_size": 1, "dp_rank": None, "dp_size": 1, "attn_dp_size": 1}
    return get_parallel().override(**{**values, **changes})


def test_one_process():
    with parallel():
        assert ranks_of(storage()) == Ranks(0, 1, 0, 1, 0, 1, 1)


def test_replicas_are_told_apart():
    with parallel(dp_size=2, dp_rank=1, tp_size=2, tp_rank=1):
        ranks = ranks_of(storage(tp_size=2, tp_rank=1))
    assert place(ranks).folder == "rank-3"


@pytest.mark.parametrize(("tp_rank", "owner", "writes"), [(0, 0, True), (1, 0, False)])
def test_mla_ranks_share(tp_rank, owner, writes):
    with parallel(tp_size=2, tp_rank=tp_rank):
        placement = place(ranks_of(storage(tp_size=2, tp_rank=tp_rank, is_mla_model=True)))
    assert (placement.owner, placement.owners, placement.writes) == (owner, 1, writes)


def test_groups_of_data_parallel_attention_have_stores_of_their_own():
    # Four ranks in two groups: SGLang numbers the ranks of a group from 0.
    placements = []
    for rank in range(4):
        with parallel(tp_size=4, tp_rank=rank, attn_dp_size=2, dp_rank=rank // 2):
            record = storage(tp_size=2, tp_rank=rank % 2, is_mla_model=True)
            placements.append(place(ranks_of(record)))
    assert [p.owner for p in placements] == [0, 0, 1, 1]
    assert [p.writes for p in placements] == [True, False, True, False]


@pytest.fixture
def asked(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return {"session": "one", "model": str(tmp_path), "arguments": {"dtype": "float32"}}


def test_identity_is_plain_and_the_same_again(asked):
    first, second = (rank_identity(storage(), asked) for _ in range(2))
    assert json.loads(json.dumps(first)) == first == second


@pytest.mark.parametrize(
    "changes",
    [
        {"tp_rank": 1, "tp_size": 2},
        {"tp_size": 2},
        {"pp_rank": 1, "pp_size": 2},
        {"attn_cp_rank": 1, "attn_cp_size": 2},
        {"is_mla_model": True, "tp_size": 2},
    ],
)
def test_ranks_differ(asked, changes):
    assert rank_identity(storage(**changes), asked) != rank_identity(storage(), asked)


def test_ranks_of_an_mla_model_do_not(asked):
    records = [storage(is_mla_model=True, tp_size=2, tp_rank=rank) for rank in (0, 1)]
    assert rank_identity(records[0], asked) == rank_identity(records[1], asked)


def test_a_draft_model_matters(asked, tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "model.safetensors").write_bytes(b"draft")
    with_draft = rank_identity(storage(), {**asked, "draft_model": str(draft)})
    assert with_draft != rank_identity(storage(), asked)
    (draft / "model.safetensors").write_bytes(b"other")
    assert with_draft != rank_identity(storage(), {**asked, "draft_model": str(draft)})


def test_contents_of_named_files_matter_and_their_paths_do_not(asked, tmp_path, caplog):
    def identity():
        files = {"quantization_param_path": [str(scales)], "lora_paths": [str(adapter)]}
        return rank_identity(storage(), {**asked, "files": files})

    scales, adapter = tmp_path / "scales", tmp_path / "adapter"
    adapter.mkdir()
    scales.write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter")
    first = identity()
    scales, adapter = (path.rename(path.with_suffix(".moved")) for path in (scales, adapter))
    assert identity() == first != rank_identity(storage(), asked)
    scales.write_text('{"0": 1}')
    second = identity()
    assert second != first
    (adapter / "adapter_model.safetensors").write_bytes(b"trained")
    assert identity() not in (first, second)
    assert not caplog.records
    scales.unlink()
    assert identity()["files"]["quantization_param_path"] == ["unknown one"]
    assert "cannot tell what" in caplog.text


def test_weights_out_of_another_server_are_known_to_one_start_alone(asked):
    remote = {**asked, "arguments": {"load_format": "remote_instance"}}
    assert rank_identity(storage(), remote) == rank_identity(storage(), remote)
    assert rank_identity(storage(), {**remote, "session": "two"}) != rank_identity(
        storage(), remote
    )


def test_weights_that_cannot_be_seen_are_known_to_one_start_alone(asked, caplog):
    elsewhere = {**asked, "model": "s3://bucket/model"}
    with caplog.at_level(logging.WARNING):
        first, second = (rank_identity(storage(), elsewhere) for _ in range(2))
    assert first == second
    assert "cannot tell what s3://bucket/model holds" in caplog.text
    assert rank_identity(storage(), {**elsewhere, "session": "two"}) != first
    assert rank_identity(storage(), {**asked, "session": "two"}) == rank_identity(storage(), asked)


def test_updated_weights_are_like_no_others():
    names = {updated_weights(session, n) for session in ("one", "two") for n in (1, 2)}
    assert len(names) == 4


def test_pools_differ_by_all_that_gives_bytes_their_meaning():
    def of(pool, name="kv", shared=False, tp_rank=0):
        return pool_identity(name, pool, [8, 8], shared=shared, tp_rank=tp_rank)

    plain = of(mha_pool())
    assert json.loads(json.dumps(plain)) == plain
    shifted = mha_pool()
    shifted.start_layer, shifted.end_layer = 3, 6
    others = [of(mha_pool("page_first")), of(mha_pool(), "draft"), of(shifted)]
    assert all(other != plain for other in others)


def test_of_shared_pools_the_split_ones_differ_by_rank():
    def of(name, pool, rank):
        return pool_identity(name, pool, [8], shared=True, tp_rank=rank)

    anchor = LogicalHostPool(64, 64)
    for name, pool, split in [
        ("kv", mha_pool(), False),
        ("draft", mha_pool(), True),
        ("mamba", anchor, True),
        ("indexer", anchor, False),
    ]:
        assert (of(name, pool, 0) != of(name, pool, 1)) is split
