"""What the tree shows in ``/metrics``, from the first scrape on."""

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from sglang_ext.cache.policy import Policy
from sglang_ext.cache.tree_metrics import _ADVICE, _EVENTS, _MOVES, TreeMetrics


@pytest.fixture
def metrics(monkeypatch):
    """Metrics in a registry of their own; ``read`` gives its series."""
    registry = CollectorRegistry()
    for name in ("register", "unregister"):
        monkeypatch.setattr(REGISTRY, name, getattr(registry, name))
    made = TreeMetrics({"model_name": "m", "tp_rank": 0})

    def read():
        lines = generate_latest(registry).decode().splitlines()
        rows = (line.rpartition(" ") for line in lines if line.startswith("sglang_ext:"))
        return {name: float(value) for name, _, value in rows if "_created{" not in name}

    made.read = read
    return made


def series(shown, name, **labels):
    return [
        value
        for key, value in shown.items()
        if key.startswith(f"{name}{{") and all(f'{k}="{v}"' in key for k, v in labels.items())
    ]


def test_all_series_begin_at_nought(metrics):
    shown = metrics.read()
    assert set(shown.values()) == {0.0}
    for tier, event in _MOVES.values():
        assert series(shown, "sglang_ext:cache_tokens_total", tier=tier, event=event) == [0.0]
    for event in _EVENTS:
        assert series(shown, "sglang_ext:cache_steering_total", event=event) == [0.0]
    for action in _ADVICE:
        assert series(shown, "sglang_ext:session_advice_total", action=action) == [0.0]
    assert series(shown, "sglang_ext:cache_faults_total") == [0.0]


def test_counts_are_shown_as_they_grow(metrics):
    metrics.show({"faults": 2, "advice_pin_refused": 1, "hit_host": 30})
    metrics.show({"faults": 3, "advice_pin_refused": 1, "hit_host": 30})
    shown = metrics.read()
    assert series(shown, "sglang_ext:cache_faults_total") == [3.0]
    assert series(shown, "sglang_ext:session_advice_total", action="pin_refused") == [1.0]
    assert series(shown, "sglang_ext:cache_tokens_total", tier="host", event="hit") == [30.0]
    assert sum(shown.values()) == 34.0


def test_curves_are_shown(metrics):
    metrics.show_curves(Policy().inspect()["curves"])
    assert len(series(metrics.read(), "sglang_ext:session_back", stop="tool")) > 5
