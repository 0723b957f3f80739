"""The benchmark of the tree: every core does the same work, and the figures are whole."""

import json

import pytest
from click.testing import CliRunner

from sglang_ext.bench.cache import CORES, CacheBench, bench_cache
from sglang_ext.cli import bench_cache as command
from sglang_ext.errors import BenchError

pytest.importorskip("sglang")

SMALL = CacheBench(
    context_tokens=2048, resident_tokens=8192, turn_tokens=256, leaves=(0, 9), rounds=3
)


def test_every_core_holds_as_much_and_has_all_figures():
    steps = []
    result = bench_cache(SMALL, steps.append)
    assert [(row["leaves"], row["core"]) for row in result["tree"]] == [
        (leaves, core) for leaves in SMALL.leaves for core in CORES
    ]
    for leaves in SMALL.leaves:
        rows = [row for row in result["tree"] if row["leaves"] == leaves]
        assert len({row["resident_tokens"] // 512 for row in rows}) == 1
    for row in result["tree"]:
        assert min(row[f"{name}_us"] for name in ("match", "insert", "evict", "sum")) > 0
        assert row["all_us"] == pytest.approx(row["sum_us"] + row["policy_us"], abs=0.11)
    told = {row["core"]: row["policy_us"] for row in result["tree"]}
    assert told["sglang_ext"] > max(told["rust"], told["python"]), "the rivals tell nobody"
    assert len(steps) == 2 * (len(CORES) + SMALL.rounds)


def test_unknown_core():
    with pytest.raises(BenchError, match="no_such"):
        bench_cache(CacheBench(cores=("no_such",)), lambda step: None)


def test_command_writes_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CacheBench", lambda **given: SMALL)
    file = tmp_path / "bench.json"
    done = CliRunner().invoke(command.cache, ["--json", str(file)])
    assert done.exit_code in (0, 1), done.output
    written = json.loads(file.read_text())
    assert {row["core"] for row in written["tree"]} == set(CORES)
    assert (done.exit_code == 1) == bool(written["findings"])
    assert "sglang_ext" in done.output


def test_leaves_are_numbers():
    assert CliRunner().invoke(command.cache, ["--leaves", "many"]).exit_code == 2
