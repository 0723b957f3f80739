"""A part of a trace, scaled down: who shares what with whom stays."""

import dataclasses

import numpy as np
import pytest
from support.traces import agents, made

from sglang_ext.errors import TraceError
from sglang_ext.replay.rankings import block_paths
from sglang_ext.replay.rehearsal import part, rehearsal, scaled


def shared(paths, one, two):
    depth = 0
    for mine, theirs in zip(paths[one], paths[two], strict=False):
        if mine != theirs:
            break
        depth += 1
    return depth


def test_a_part_shares_what_its_requests_share():
    trace = agents(sessions=12)
    chosen = [request for request in range(len(trace)) if request % 3]
    cut = part(trace, chosen, trace.time_s + 5.0)
    whole, mine = block_paths(trace), block_paths(cut)
    for one in range(0, len(chosen), 7):
        for two in range(0, len(chosen), 5):
            assert shared(mine, one, two) == shared(whole, chosen[one], chosen[two])
    assert cut.time_s.tolist() == (trace.time_s[chosen] + 5.0).tolist()
    assert cut.stop == [trace.stop[request] for request in chosen]
    assert cut.timed == "global"


def test_what_is_left_out_is_not_shared():
    trace = made([-1, 0, 1], [0, 4, 6], [4, 6, 8])
    cut = part(trace, [0, 2], trace.time_s)
    assert (cut.parent.tolist(), cut.shared.tolist()) == ([-1, 0], [0, 4])
    assert part(trace, [2], trace.time_s).shared.tolist() == [0]


def test_scaled_prompts_and_answers_fit_pages():
    trace = made([-1, 0], [0, 4], [4, 9], output=[100, 3], block=64)
    small = scaled(trace, 128, 16)
    assert small.blocks.tolist() == [2, 4]
    assert small.shared.tolist() == [0, 2]
    assert small.input_tokens.tolist() == [33, 65]
    assert small.output_tokens.tolist() == [12, 1]
    assert scaled(trace, 64, 8).output_tokens.tolist() == [6, 1]
    with pytest.raises(TraceError):
        scaled(trace, 100, 16)


def test_sessions_are_learned_from_or_live_never_both():
    trace = agents(sessions=20)
    found = rehearsal(trace, 40, block_tokens=64, page_tokens=16)
    assert len(found.live) == 40
    assert set(found.live.session % 2) == {0}
    assert set(found.earlier.session % 2) == {1}
    span = found.live.time_s[-1] - found.live.time_s[0]
    even = np.sort(trace.time_s[trace.session % 2 == 0])
    assert span == min(even[39:] - even[: len(even) - 39]), "the busiest stretch"


def test_without_sessions_the_past_is_learned_from():
    trace = dataclasses.replace(agents(sessions=20), session=np.full(len(agents(sessions=20)), -1))
    found = rehearsal(trace, 40, block_tokens=64, page_tokens=16)
    assert len(found.earlier) == len(trace) - 40
    assert found.earlier.time_s[-1] <= found.live.time_s[0]
    with pytest.raises(TraceError, match="to learn from"):
        rehearsal(trace, len(trace), block_tokens=64, page_tokens=16)
