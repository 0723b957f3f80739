"""Traces made up for tests: random ones for oracles, agent-like ones for policies."""

import numpy as np

from sglang_ext.replay.trace import Trace


def made(
    parent,
    shared,
    blocks,
    *,
    time_s=None,
    session=None,
    stop=None,
    output=None,
    agent=None,
    block=1,
):
    """A trace from its tree; everything else has a default."""
    count = len(parent)
    return Trace(
        name="made",
        block_tokens=block,
        timed="global",
        time_s=np.arange(count, dtype=float) if time_s is None else np.asarray(time_s, float),
        session=np.full(count, -1) if session is None else np.asarray(session),
        input_tokens=np.asarray(blocks, dtype=np.int64) * block,
        output_tokens=np.full(count, 100) if output is None else np.asarray(output),
        parent=np.asarray(parent, dtype=np.int64),
        shared=np.asarray(shared, dtype=np.int64),
        blocks=np.asarray(blocks, dtype=np.int64),
        answer_s=np.zeros(count),
        model=["m"] * count,
        stop=[""] * count if stop is None else list(stop),
        agent=[False] * count if agent is None else list(agent),
    )


def agents(sessions=60, turns=30, seed=0, spread_s=4000.0):
    """Agents whose pauses follow from how their answers ended.

    After a tool call they are back in seconds, each at its own pace; after a finished turn a person
    takes minutes, and one in three never comes back. Half of all pauses end a turn, so recency says
    little: what was used last is often what a person holds.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for session in range(sessions):
        now = rng.uniform(0, spread_s)
        pace = rng.lognormal(np.log(8.0), 0.7)
        length = int(rng.integers(20, 60))
        for turn in range(int(rng.integers(turns // 2, turns))):
            stop = "tool_use" if rng.random() < 0.7 else "end_turn"
            rows.append((now, session, turn, length, stop))
            if stop == "end_turn" and rng.random() < 0.3:
                break
            gap = pace if stop == "tool_use" else 400.0
            now += rng.lognormal(np.log(gap), 0.5)
            length += int(rng.integers(1, 6))
    rows.sort()
    last: dict[int, tuple[int, int]] = {}
    parent, shared, blocks, times, owner, stops = [], [], [], [], [], []
    for request, (now, session, _, length, stop) in enumerate(rows):
        before, known = last.get(session, (-1, 0))
        parent.append(before)
        shared.append(known)
        blocks.append(length)
        times.append(now)
        owner.append(session)
        stops.append(stop)
        last[session] = (request, length)
    return made(parent, shared, blocks, time_s=times, session=owner, stop=stops, block=64)
