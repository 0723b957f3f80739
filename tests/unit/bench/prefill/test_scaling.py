"""The model of more ranks finds constants that it was given, and says how far off it is."""

import pytest

from sglang_ext.bench.prefill import HELD_OUT, LENGTHS, scaling
from sglang_ext.bench.prefill.anchors import LLAMA_405B, describe_anchors
from sglang_ext.bench.prefill.scaling import Constants
from sglang_ext.bench.prefill.speedup import RANKS, SPEEDUP_TOKENS, speedup

TRUE = Constants(forward=0.02, token=1e-3, pair=2e-8, exchange=0.01, row=1e-5)


def timings(constants=TRUE, off=1.0):
    """Three rounds of each point, of which the middle one is right."""
    return {
        (ranks, tokens): [s * off, s * off * 1.5, s * off / 2]
        for ranks in RANKS
        for tokens in LENGTHS
        for s in [constants.seconds(ranks, tokens)]
    }


def test_constants_are_found_again():
    found = scaling.fit(timings(), HELD_OUT)
    for name in Constants.__slots__:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)


def test_no_constant_is_negative():
    odd = timings() | {(2, tokens): [TRUE.seconds(1, tokens) / 3] for tokens in LENGTHS}
    found = scaling.fit(odd, HELD_OUT)
    assert min(getattr(found, name) for name in Constants.__slots__) >= 0


def test_points_that_are_held_out_do_not_count_and_are_judged():
    damaged = timings()
    for key in HELD_OUT:
        damaged[key] = [2 * seconds for seconds in damaged[key]]
    result = scaling.describe(damaged, HELD_OUT)
    assert result["held_out_error"] == {"mean": 0.5, "max": 0.5}
    assert {(p["ranks"], p["tokens"]) for p in result["points"] if p["held_out"]} == set(HELD_OUT)
    assert all(p["error"] == 0 for p in result["points"] if not p["held_out"])


def test_more_ranks_take_less_time_and_are_less_efficient():
    rows = scaling.describe(timings(), HELD_OUT)["what_if"]
    for tokens in scaling.WHAT_IF_TOKENS:
        mine = [row for row in rows if row["tokens"] == tokens]
        assert [row["ranks"] for row in mine] == list(scaling.WHAT_IF_RANKS)
        assert mine[0]["efficiency"] == 1
        assert [r["seconds"] for r in mine] == sorted((r["seconds"] for r in mine), reverse=True)
        efficiency = [row["efficiency"] for row in mine]
        assert efficiency == sorted(efficiency, reverse=True)


def test_speedup_is_of_medians_at_its_length():
    result = speedup(timings())
    one, two = (TRUE.seconds(ranks, SPEEDUP_TOKENS) for ranks in RANKS)
    assert result["t1_s"] == pytest.approx(one, abs=1e-4)
    assert result["t2_s"] == pytest.approx(two, abs=1e-4)
    assert result["ratio"] == pytest.approx(one / two, abs=1e-3)
    assert result["prompt_tokens"] >= 4096
    assert len(result["points"]) == len(RANKS) * len(LENGTHS)


def test_published_figures_stand_beside_what_follows_from_them():
    result = describe_anchors()
    # 0.81e18 operations of matrix products and 4.13e18 of attention, by 128 devices in 77 s.
    assert result["rate_tflops"] == pytest.approx(501, abs=1)
    rows = result["what_if"]
    fixed = [r for r in rows if (r["tokens"], r["devices"]) == (1_000_000, 128)]
    assert all(row["hidden_s"] == pytest.approx(77, abs=0.01) for row in fixed)
    assert all(row["exposed_s"] >= row["hidden_s"] for row in rows)
    assert LLAMA_405B.row_bytes() == 4096
