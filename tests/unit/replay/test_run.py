"""Whole replays: rows, tiers, seeds."""

import dataclasses

import numpy as np
import pytest
from support.traces import agents

from sglang_ext.cache.policy import Policy
from sglang_ext.errors import TraceError
from sglang_ext.replay.run import POLICIES, replay


@pytest.fixture(scope="module")
def trace():
    return agents()


def test_rows_are_in_order_and_between_nothing_and_the_ideal(trace):
    sizes = [trace.footprint_tokens // part for part in (50, 10, 2)]
    steps = []
    found = replay(trace, POLICIES, sizes, on_step=lambda *step: steps.append(step))
    assert [(row.policy, row.capacity_tokens) for row in found.rows] == [
        (policy, size) for policy in POLICIES for size in sizes
    ]
    belady = [row.hit for row in found.of("belady")]
    for policy in POLICIES:
        hits = [row.hit for row in found.of(policy)]
        assert all(0 <= hit <= best + 1e-12 for hit, best in zip(hits, belady, strict=True))
        assert all(row.l1_hit is row.l2_hit is row.l3_hit is None for row in found.of(policy))
        assert (policy, len(trace), len(trace)) in steps
    ours, lru = ([row.hit for row in found.of(name)] for name in ("ext", "lru"))
    assert sum(ours) > sum(lru)


def test_a_cache_of_everything_is_ideal(trace):
    found = replay(trace, POLICIES, [trace.footprint_tokens])
    assert {row.hit for row in found.rows} == {found.ideal_hit}


def test_tiers_are_nested_caches(trace):
    a, b, c = (trace.footprint_tokens // part for part in (40, 20, 5))
    tiered = replay(trace, ["ext", "lru", "arc"], [], tiers=[a, b, c])
    plain = replay(trace, ["ext", "lru", "arc"], [a, a + b, a + b + c])
    for row in tiered.rows:
        one, two, three = (other.hit for other in plain.of(row.policy))
        assert row.capacity_tokens == a + b + c
        assert (row.hit, row.l1_hit) == (three, one)
        assert row.l2_hit == pytest.approx(two - one)
        assert row.l3_hit == pytest.approx(three - two)
    assert replay(trace, ["lru"], [], tiers=[a]).rows[0].l2_hit is None


def test_inclusive_tiers_are_caches_of_their_own_size(trace):
    a, b, c = (trace.footprint_tokens // part for part in (40, 20, 5))
    tiered = replay(trace, ["ext", "lru", "arc"], [], tiers=[a, b, c], inclusive=True)
    plain = replay(trace, ["ext", "lru", "arc"], [a, b, c])
    assert (tiered.inclusive, plain.inclusive) == (True, False)
    for row in tiered.rows:
        one, two, three = (other.hit for other in plain.of(row.policy))
        assert row.capacity_tokens == c
        assert row.l1_hit == one
        # What a tier lacks, one above it may have: never less than either.
        assert one + row.l2_hit == pytest.approx(two, abs=0.01)
        assert one + row.l2_hit >= two - 1e-9
        if row.policy == "arc":
            assert three - 1e-9 <= row.hit <= three + 0.01
        else:  # a disk, which makes room before it writes and is told names a few at a time
            assert row.hit == pytest.approx(three, abs=0.02)
    (row,) = replay(trace, ["ext"], [], tiers=[b, a], inclusive=True).rows
    assert (row.l2_hit, row.capacity_tokens) == (0, b), "a smaller L2 adds nothing"


def test_starts_follow_the_seed(trace):
    timed = dataclasses.replace(trace, timed="session")
    size = [trace.footprint_tokens // 10]
    runs = [replay(timed, ["ext"], size, seed=seed, window_s=5000.0) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].rows[0].hit != runs[2].rows[0].hit


def test_answers_that_take_time_are_told_later(trace):
    slow = dataclasses.replace(trace, answer_s=np.full(len(trace), 6.0))
    size = [trace.footprint_tokens // 10]
    once, late, held = (
        replay(slow, ["ext", "lru", "belady"], size, answers=answers)
        for answers in ("at-once", "late", "held")
    )
    assert (late.answers, held.answers) == ("late", "held")
    for name in ("lru", "belady"):
        assert late.of(name) == once.of(name), "what is told does not matter to them"
        assert held.of(name)[0].hit > once.of(name)[0].hit, "what runs takes no room"
    assert once.of("ext")[0].hit > late.of("ext")[0].hit > once.of("lru")[0].hit
    assert held.of("lru")[0].hit < held.of("ext")[0].hit <= held.of("belady")[0].hit
    with pytest.raises(ValueError, match="arc"):
        replay(slow, ["arc"], size, answers="held")


def test_what_runs_within_the_capacity_takes_room_from_others(trace):
    size = [trace.footprint_tokens // 10]
    once, pooled = (
        replay(trace, ["ext", "lru", "belady"], size, answers=answers)
        for answers in ("at-once", "pooled")
    )
    assert pooled.of("lru")[0].hit == pytest.approx(once.of("lru")[0].hit, abs=0.002), "never first"
    for name in ("ext", "belady"):
        assert pooled.of(name)[0].hit < once.of(name)[0].hit, "what just came cannot go"
    slow = dataclasses.replace(trace, answer_s=np.full(len(trace), 60.0))
    held, within = (replay(slow, ["lru"], size, answers=how) for how in ("held", "pooled"))
    assert within.of("lru")[0].hit < held.of("lru")[0].hit
    with pytest.raises(ValueError, match="arc"):
        replay(trace, ["arc"], size, answers="pooled")


def test_what_was_learned_before_counts(trace):
    size = [trace.footprint_tokens // 20]
    policy = Policy()
    cold = replay(trace, ["ext"], size, policy=policy)
    state = policy.save_learned(float(trace.time_s.max()))
    other = agents(seed=1)
    warm = Policy()
    warm.load(state, 0.0)
    size = [other.footprint_tokens // 20]
    first, second = (replay(other, ["ext"], size, policy=one) for one in (None, warm))
    assert cold.rows[0].hit > 0.0
    assert second.rows[0].hit > first.rows[0].hit


def test_the_interface_of_the_json(trace):
    result = replay(trace, ["lru"], [64_000], block_tokens=128).as_json()
    assert set(result) >= {"trace", "seed", "window_s", "block_tokens", "ideal_hit", "rows"}
    assert result["block_tokens"] == 128
    assert set(result["rows"][0]) == {
        "policy", "capacity_tokens", "hit", "l1_hit", "l2_hit", "l3_hit"
    }  # fmt: skip
    with pytest.raises(TraceError):
        replay(trace, ["lru"], [64_000], block_tokens=100)
