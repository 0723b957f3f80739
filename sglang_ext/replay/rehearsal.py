"""A part of a trace, scaled so that a small server can be sent it, and what it may learn before.

A rehearsal keeps what a cache policy sees of traffic - who shares what with whom, when, and how
answers end - and makes prompts shorter: so many tokens of the trace become one page of the server.
What is learned from is of other sessions than what is measured.

Pure: neither torch nor SGLang is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sglang_ext.errors import TraceError
from sglang_ext.replay.rankings import block_paths
from sglang_ext.replay.trace import FloatArray, Trace

__all__ = ["Rehearsal", "part", "rehearsal", "scaled"]


@dataclass(frozen=True)
class Rehearsal:
    """``earlier`` is what a policy may learn from, ``live`` what a server is sent."""

    earlier: Trace
    live: Trace


def rehearsal(
    trace: Trace,
    requests: int,
    *,
    block_tokens: int,
    page_tokens: int,
    seed: int = 0,
    window_s: float = 0.0,
) -> Rehearsal:
    """Cut ``trace`` in two and scale it.

    Requests of every other session are learned from; of the others, the ``requests`` in a row that
    come in the shortest time are live. Where the trace names no sessions the last ``requests`` are
    live, and those before them are learned from.

    Args:
        trace: the requests.
        requests: how many are live.
        block_tokens: tokens of the trace that become a page.
        page_tokens: of a page of the server.
        seed: of the starts of sessions.
        window_s: within which they start.

    Raises:
        TraceError: it has fewer requests, or ``block_tokens`` does not fit it.
    """
    when = trace.starts(seed, window_s)
    order = np.argsort(when, kind="stable")
    small = scaled(trace, block_tokens, page_tokens)
    sessions = trace.session[order]
    if (sessions < 0).any():
        live, earlier = order[-requests:], order[:-requests]
    else:
        mine = order[sessions % 2 == 0]
        begin = _busiest(when[mine], requests)
        live, earlier = mine[begin : begin + requests], order[sessions % 2 == 1]
    if len(live) < requests or not len(earlier):
        raise TraceError(
            f"{trace.name}: {len(live)} requests to send and {len(earlier)} to learn from, not "
            f"{requests} and some",
            fix="ask for fewer requests, or give a longer trace",
        )
    return Rehearsal(
        part(small, earlier.tolist(), when),
        part(small, live.tolist(), when),
    )


def _busiest(when: FloatArray, requests: int) -> int:
    """Where so many requests in a row take the shortest time."""
    if len(when) <= requests:
        return 0
    return int(np.argmin(when[requests - 1 :] - when[: len(when) - requests + 1]))


def scaled(trace: Trace, block_tokens: int, page_tokens: int) -> Trace:
    """The same requests with a page of ``page_tokens`` for each block of ``block_tokens``.

    A prompt has a token beyond its last page, because a server computes one at least; an answer is
    shorter by the same factor and fits into the rest of that page, so that it leaves no page in the
    cache. Answers are complete at once. Models are left out: a server has one.

    Raises:
        TraceError: ``block_tokens`` is not a multiple of the trace's.
    """
    coarse = trace.coarser(block_tokens)
    answers = np.round(coarse.output_tokens * (page_tokens / block_tokens)).astype(np.int64)
    return replace(
        coarse,
        block_tokens=page_tokens,
        input_tokens=coarse.blocks * page_tokens + 1,
        output_tokens=np.clip(answers, 1, max(1, page_tokens - 2)),
        answer_s=np.zeros(len(coarse)),
        model=[""] * len(coarse),
    )


def part(trace: Trace, requests: Sequence[int], when: FloatArray) -> Trace:
    """Some requests as a trace of their own, which shares nothing with those left out.

    Args:
        trace: all requests.
        requests: which ones, in the order of their times.
        when: time of each request of ``trace``, in seconds.
    """
    paths = block_paths(trace)
    first_with: dict[int, int] = {}
    parent, shared = [], []
    for place, request in enumerate(requests):
        path = paths[request].tolist()
        depth = len(path)
        while depth and path[depth - 1] not in first_with:
            depth -= 1
        parent.append(first_with[path[depth - 1]] if depth else -1)
        shared.append(depth)
        first_with.update(dict.fromkeys(path[depth:], place))
    rows = np.asarray(requests, dtype=np.int64)
    return replace(
        trace,
        timed="global",
        time_s=when[rows],
        session=trace.session[rows],
        input_tokens=trace.input_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        parent=np.asarray(parent, dtype=np.int64),
        shared=np.asarray(shared, dtype=np.int64),
        blocks=trace.blocks[rows],
        answer_s=trace.answer_s[rows],
        model=[trace.model[row] for row in requests],
        stop=[trace.stop[row] for row in requests],
        agent=[trace.agent[row] for row in requests],
    )
