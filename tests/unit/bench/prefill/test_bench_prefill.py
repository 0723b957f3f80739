"""``bench prefill``: its figures are counts, and can be checked by hand."""

import json

import pytest
from click.testing import CliRunner

from sglang_ext.bench.prefill import collectives
from sglang_ext.bench.prefill.balance import RANKS, SCHEMES, Batch, compare_balance, mixed_batches
from sglang_ext.cli.main import cli
from sglang_ext.errors import ConfigError


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "prefill.json"
    argv = ["bench", "prefill", "--no-servers", "--batches", "40", "--json", str(file)]
    run = CliRunner().invoke(cli, argv)
    assert run.exit_code == 0, run.output
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_batch_has_a_row_for_each_scheme(result):
    names = list(dict.fromkeys(row["batch"] for row in result["balance"]))
    assert [(row["batch"], row["ranks"], row["scheme"]) for row in result["balance"]] == [
        (name, ranks, scheme) for name in names for ranks in RANKS for scheme in SCHEMES
    ]


def test_ours_splits_every_batch_and_is_even(result):
    ours = [row for row in result["balance"] if row["scheme"] == "ext"]
    assert all(row["handled"] == 1 for row in ours)
    assert all(row["tokens_over_bound_p95"] == 1 for row in ours)
    mixed = [row for row in ours if row["batch"] == "40 mixed"]
    assert all(row["attention_over_bound"] <= 1.02 for row in mixed)
    assert all(row["attention_over_bound_p95"] <= 1.05 for row in mixed)


def test_stock_zigzag_leaves_batches_out(result):
    zigzag = [row for row in result["balance"] if row["scheme"] == "zigzag"]
    assert any(row["handled"] < 1 for row in zigzag if row["batch"] == "40 mixed")


def test_collectives_are_the_formula(result):
    found = result["collectives"]
    others = collectives.RANKS - 1
    rows = -(collectives.TOKENS // -collectives.RANKS)
    dense = 2 * collectives.KV_HEADS * collectives.HEAD_DIM * 2
    dsa = (collectives.LATENT + collectives.ROPE + collectives.INDEX_KEY) * 2
    assert found["ext"]["per_layer"] == found["ext"]["dsa"]["per_layer"] == 1
    assert found["ext"]["bytes_per_rank"] == others * rows * dense
    assert found["ext"]["dsa"]["bytes_per_rank"] == others * rows * dsa
    assert (found["zigzag"]["per_layer"], found["interleave"]["per_layer"]) == (1, 2)


def test_bounds_of_a_batch():
    assert Batch((5,), (0,)).bounds(4) == (1.6, 5 * 4 / 15)


def test_batches_are_the_same_every_time():
    assert mixed_batches(5) == mixed_batches(9)[:5]


def test_no_batches_are_wrong_use():
    with pytest.raises(ConfigError, match="at least 1"):
        compare_balance(0)
