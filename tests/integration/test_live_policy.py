"""The learned policy at work in the real server: what `replay` predicts, and more than recency."""

from pathlib import Path

import pytest

from sglang_ext.bench.live import AGREED, LiveBench, bench_live
from sglang_ext.replay.trace import read_trace

TRACE = Path(__file__).parents[1] / "data" / "claude_code_sessions.jsonl.gz"
TIERS = ("l1_hit", "l2_hit", "l3_hit")
SOURCES = ("server", "replay")

pytestmark = pytest.mark.server


def run(model, workdir, policies, window_s=3600.0, l3_tokens=None):
    what = LiveBench(
        trace=read_trace(TRACE),
        model=model,
        workdir=workdir,
        policies=policies,
        requests=140,
        window_s=window_s,
        l3_tokens=l3_tokens,
    )
    result = bench_live(what, lambda step, done: None)
    return result, {(row["source"], row["policy"]): row for row in result["rows"]}


@pytest.fixture(scope="module")
def found(tiny_llama, tmp_path_factory):
    return run(tiny_llama, tmp_path_factory.mktemp("live"), ("ext", "lru"))


@pytest.mark.parametrize("policy", ["ext", "lru"])
def test_each_tier_serves_what_replay_predicts(found, policy):
    _, rows = found
    live, predicted = ([rows[source, policy][tier] for tier in TIERS] for source in SOURCES)
    assert live == pytest.approx(predicted, abs=AGREED)
    assert min(live) > 0.0


def test_what_was_learned_is_at_work(found):
    _, rows = found
    for tier in ("l1_hit", "memory_hit"):
        learned, recency = rows["server", "ext"][tier], rows["server", "lru"][tier]
        # The two differ by far more than a server from its prediction: one that was given no
        # state, or does not hear the time, fails this or the test before.
        assert learned > recency + 3 * AGREED, tier
    assert rows["server", "ext"]["l1_hit"] < rows["replay", "belady"]["l1_hit"] + AGREED


def test_the_command_has_no_finding(found):
    result, _ = found
    assert result["findings"] == []
    assert 0.3 < result["gap_closed"]["server_memory"] < 1.0


def test_a_disk_tier_that_forgets_serves_what_replay_predicts(tiny_llama, tmp_path):
    """Room for somewhat more than half; ordered to the block it would serve four points more."""
    result, rows = run(tiny_llama, tmp_path, ("ext",), window_s=10_800.0, l3_tokens=25_776)
    live, predicted = ([rows[source, "ext"][tier] for tier in TIERS] for source in SOURCES)
    assert live == pytest.approx(predicted, abs=AGREED)
    assert result["findings"] == []
