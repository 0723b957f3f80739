"""Tool calls in SGLang's own ``/metrics``, counted where answers are read.

What a scheduler measured comes along with each finish reason, so no process but this one counts.
Series are made with the first answer: by then SGLang has said where they are shared.
"""

import functools
from collections.abc import Mapping
from typing import Any

from sglang_ext.tools.calls import Answer

__all__ = ["count_answer", "count_refusal", "count_request", "switch_on"]

_on = False


def switch_on() -> None:
    """Count from now on; called where the server has ``--enable-metrics``."""
    global _on
    _on = True


@functools.cache
def _series() -> dict[str, Any]:
    from prometheus_client import Counter, Gauge, Histogram

    return {
        "calls": Counter(
            "sglang_ext:tool_calls",
            "Calls by what became of them: shown, or why they were withheld.",
            ["outcome"],
        ),
        "refused": Counter("sglang_ext:tool_requests_refused", "Requests answered with 400."),
        "tokens": Counter(
            "sglang_ext:tool_tokens",
            "Tokens of answers that may hold calls: all, those of structure, and forced ones.",
            ["kind"],
        ),
        "mask": Counter("sglang_ext:tool_mask_seconds", "Time spent on masks of those tokens."),
        "compile": Histogram(
            "sglang_ext:tool_compile_seconds",
            "Time to compile a grammar that was not cached.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        ),
        "cache": Gauge(
            "sglang_ext:tool_grammar_cache_bytes",
            "Compiled grammars held by the scheduler that ended a request last.",
            multiprocess_mode="mostrecent",
        ),
        "warm": Gauge(
            "sglang_ext:tool_warm_grammars",
            "Grammars of before the start, of that scheduler: warmed, skipped, or found by a "
            "request.",
            ["state"],
            multiprocess_mode="mostrecent",
        ),
        "warm_s": Gauge(
            "sglang_ext:tool_warm_seconds",
            "Time that scheduler took to compile them.",
            multiprocess_mode="mostrecent",
        ),
    }


def count_answer(answer: Answer) -> None:
    """The calls of an answer, by what became of them."""
    if not _on:
        return
    calls = _series()["calls"]
    if answer.calls:
        calls.labels(outcome="shown").inc(len(answer.calls))
    for one in answer.withheld:
        calls.labels(outcome=one.reason).inc()


def count_refusal() -> None:
    """A request that was answered with 400."""
    if _on:
        _series()["refused"].inc()


def count_request(figures: Mapping[str, Any]) -> None:
    """What a scheduler measured of one request (`Progress.figures`)."""
    if not _on:
        return
    series = _series()
    for kind, name in (
        ("all", "tokens"),
        ("structure", "structure_tokens"),
        ("forced", "forced_tokens"),
    ):
        series["tokens"].labels(kind=kind).inc(figures[name])
    series["mask"].inc(figures["mask_ms"] / 1e3)
    if figures["compile_ms"]:
        series["compile"].observe(figures["compile_ms"] / 1e3)
    series["cache"].set(figures["cache_bytes"])
    if "warmed" in figures:  # texts are kept
        for state, name in (
            ("warmed", "warmed"),
            ("found", "warm_found"),
            ("skipped", "warm_skipped"),
        ):
            series["warm"].labels(state=state).set(figures[name])
        series["warm_s"].set(figures["warm_s"])
