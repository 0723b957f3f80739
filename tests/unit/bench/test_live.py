"""Prompts, findings and shares of the live comparison; its servers run in the integration tests."""

from pathlib import Path

import pytest
from support.traces import agents

from sglang_ext.bench.live import LiveBench, LiveRow, _findings, _gap_closed, _tiers, bench_live
from sglang_ext.bench.live_client import _body, prompts
from sglang_ext.errors import BenchError
from sglang_ext.replay.rankings import block_paths

ROWS = [
    LiveRow("ext", "replay", 0.30, 0.30, 0.20),
    LiveRow("lru", "replay", 0.10, 0.30, 0.40),
    LiveRow("belady", "replay", 0.35, 0.35, 0.10),
    LiveRow("ext", "server", 0.295, 0.30, 0.205),
    LiveRow("lru", "server", 0.10, 0.30, 0.40),
]


def test_prompts_share_what_the_trace_shares():
    trace = agents(sessions=4)
    made = list(prompts(trace))
    paths, size = block_paths(trace), trace.block_tokens
    for one in range(0, len(made), 5):
        for two in range(0, len(made), 3):
            common = 0
            for mine, theirs in zip(paths[one], paths[two], strict=False):
                if mine != theirs:
                    break
                common += 1
            first, second = made[one][:-1], made[two][:-1]
            assert first[: common * size] == second[: common * size]
            if min(len(paths[one]), len(paths[two])) > common:
                assert first[common * size] != second[common * size]


def test_answers_end_as_the_trace_says():
    tool, end, other = (_body([1], 5, stop, 2) for stop in ("tool_use", "end_turn", ""))
    assert tool["tool_choice"] == "required"
    assert "tools" not in end
    assert end["logit_bias"] == {"2": 100.0}
    assert (end["min_tokens"], end["max_tokens"]) == (4, 5)
    assert other["ignore_eos"]


def test_a_run_that_agrees_has_no_finding():
    assert _findings(ROWS) == []
    closed = _gap_closed(ROWS)
    assert closed["server_l1"] == pytest.approx(0.195 / 0.25)
    assert closed["replay_memory"] == pytest.approx(0.20 / 0.30)
    assert _gap_closed(ROWS[:4])["server_l1"] is None


def test_a_tier_that_disagrees_and_a_policy_below_lru_are_findings():
    wrong = [*ROWS[:3], LiveRow("ext", "server", 0.08, 0.30, 0.42), ROWS[4]]
    found = _findings(wrong)
    assert any("L1 served 8.0%, replay predicts 30.0%" in one for one in found)
    assert any("ext is below lru live" in one for one in found)
    assert _findings([*ROWS[:3], LiveRow("lru", "server", 0.1, 0.28, 0.42)])


def test_tiers_hold_the_longest_prompt_or_are_refused():
    trace = agents(sessions=6)
    what = LiveBench(trace, Path(), Path(), page_tokens=64)
    l1, l2 = _tiers(what, trace)
    assert l1 % 64 == 0
    assert l1 >= 1.25 * trace.input_tokens.max() - 64
    assert l2 == 2 * l1
    with pytest.raises(BenchError, match="tiers of 64"):
        _tiers(LiveBench(trace, Path(), Path(), l1_tokens=64), trace)
    with pytest.raises(BenchError, match="arc"):
        bench_live(LiveBench(trace, Path(), Path(), policies=("arc",)), lambda step, done: None)
