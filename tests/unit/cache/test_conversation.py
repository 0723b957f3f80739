"""A conversation: its pace, its features, its row."""

import json
from math import log

import numpy as np
import pytest

from sglang_ext.cache.conversation import FEATURES, Conversation, Stop, features


def talked(*gaps, stop=Stop.TOOL, tokens=1000):
    one = Conversation(3, "s", False, 0)
    now = 0.0
    one.arrive(now, tokens)
    for gap in gaps:
        one.finish(now + 2.0, stop, 50)
        now += 2.0 + gap
        tokens += 100
        one.arrive(now, tokens)
    return one


def named(conversation, parallel=0):
    return dict(zip(FEATURES, features(conversation, parallel).tolist(), strict=True))


def test_gaps_count_from_the_end_of_the_answer():
    one = talked(10.0, 40.0)
    assert one.gaps == pytest.approx([log(40.0), log(10.0)])
    assert log(10.0) < one.pace < log(40.0)
    assert one.pace_of[Stop.TOOL] == pytest.approx(log(10.0) + 0.3 * log(4.0))
    assert (one.turns, one.since_end, one.new_tokens) == (3, 2, 100)


def test_a_finished_turn_starts_the_count_anew():
    one = talked(10.0, 10.0)
    one.finish(30.0, Stop.END, 5)
    one.arrive(500.0, 2000)
    assert (one.since_end, one.end_s) == (0, 500.0)


def test_a_running_request_says_nothing_of_its_answer():
    one = talked(10.0)
    known = named(one)
    assert known["stop running"] == 1.0
    assert known["output"] == known["output squared"] == 0.0
    one.finish(20.0, Stop.END, 5000)
    known = named(one)
    assert (known["stop running"], known["stop end"]) == (0.0, 1.0)
    assert known["output x end"] == known["output"] > 1.0


def test_features_are_bounded_and_finite():
    one = Conversation(0, None, True, 6)
    one.arrive(-1e9, 10**12)
    one.finish(1e12, Stop.OTHER, 10**12)
    one.arrive(1e15, 0)
    x = features(one, 10**6)
    assert x.shape == (len(FEATURES),)
    assert np.isfinite(x).all()


def test_advice_ends_with_the_next_request():
    one = talked(10.0)
    one.ended, one.superseded, one.announced_s = True, True, 30.0
    assert named(one, 2)["announced"] == named(one)["ended"] == named(one)["superseded"] == 1.0
    one.arrive(99.0, 3000)
    assert named(one)["announced"] == named(one)["ended"] == named(one)["superseded"] == 0.0


def test_a_row_comes_back_through_json():
    one = talked(10.0, 40.0, stop=Stop.END)
    one.marks, one.blocks = [2**63 - 1, 4], 2
    again = Conversation.restored(json.loads(json.dumps(one.row())))
    assert again.row() == one.row()
    assert named(again) == named(one)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pace", float("nan")), ("pace_of", [0.0]), ("turns", 0), ("stop", 9), ("model", 99)],
)
def test_a_row_that_cannot_be_is_refused(name, value):
    one = talked(10.0)
    setattr(one, name, value)
    with pytest.raises((ValueError, TypeError)):
        Conversation.restored(one.row())
    with pytest.raises(ValueError, match="zip"):
        Conversation.restored(one.row()[:-1])
