"""The tree's counters in SGLang's own ``/metrics``.

SGLang's schedulers share a folder of prometheus_client's multi-process mode; a counter that is made
in one of them shows up in the endpoint. Made only with ``--enable-metrics``.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["TreeMetrics"]

# Our name of a count, and the labels under which it is shown.
_MOVES = {
    "demoted": ("device", "demoted"),
    "lost_device": ("device", "evicted"),
    "lost_host": ("host", "evicted"),
    "promoted_host": ("host", "promoted"),
    "promoted_storage": ("storage", "promoted"),
    "written_storage": ("storage", "written"),
    "evicted_storage": ("storage", "evicted"),
    "hit_device": ("device", "hit"),
    "hit_host": ("host", "hit"),
    "hit_storage": ("storage", "hit"),
    "missed": ("none", "miss"),
    "regretted": ("none", "regretted"),
}
_EVENTS = ("cuts", "refused", "own_walks", "lost")
_ADVICE = ("pause", "resume", "end", "pin", "pin_refused")


class TreeMetrics:
    """Shows counts as they grow.

    Args:
        labels: of this scheduler, as SGLang's own metrics have them.
    """

    def __init__(self, labels: Mapping[str, Any]) -> None:
        from prometheus_client import Counter as Series
        from prometheus_client import Gauge

        names = list(labels)
        self._labels = {name: str(value) for name, value in labels.items()}
        self._tokens = Series(
            "sglang_ext:cache_tokens",
            "Tokens by tier and what happened to them.",
            [*names, "tier", "event"],
        )
        self._events = Series(
            "sglang_ext:cache_steering", "Events of the steered tree.", [*names, "event"]
        )
        self._advice = Series(
            "sglang_ext:session_advice",
            "Conversations that advice of clients was about, and pins that were refused.",
            [*names, "action"],
        )
        self._faults = Series(
            "sglang_ext:cache_faults",
            "Faults in the books of the cache policy; each cost a request its entry.",
            names,
        )
        self._back = Gauge(
            "sglang_ext:session_back",
            "Share of sessions that are back within age_s after an answer that ended so.",
            [*names, "stop", "age_s"],
            multiprocess_mode="mostrecent",
        )
        self._shown: Counter[str] = Counter()
        self.show({})  # all series begin at nought: rates of what has never been are none

    def show(self, counts: Mapping[str, int]) -> None:
        """Add what has been counted since the last time."""
        for name, (tier, event) in _MOVES.items():
            self._add(self._tokens, counts, name, tier=tier, event=event)
        for name in _EVENTS:
            self._add(self._events, counts, name, event=name)
        for action in _ADVICE:
            self._add(self._advice, counts, f"advice_{action}", action=action)
        self._add(self._faults, counts, "faults")

    def _add(self, series: Any, counts: Mapping[str, int], name: str, **labels: str) -> None:
        more = max(0, counts.get(name, 0) - self._shown[name])
        if more or name not in self._shown:
            series.labels(**self._labels, **labels).inc(more)
            self._shown[name] += more

    def show_curves(self, curves: Mapping[str, Mapping[str, Any]]) -> None:
        """The learned return curves, as `Policy.inspect` gives them; every sixth age."""
        for stop, curve in curves.items():
            rows = list(zip(curve["age_s"], curve["back"], strict=True))
            for age, back in rows[5::6]:
                labels = {**self._labels, "stop": stop, "age_s": f"{age:.0f}"}
                self._back.labels(**labels).set(back)
