"""Return curves: the index, what is learned from pauses, its state."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.cache.ages import AGES, hold_value
from sglang_ext.cache.returns import ReturnModel

ENDS = np.append(AGES[1:], AGES[-1] * 1.5)


def slow_index(hazard):
    """The definition: for each age, the best time to give up."""
    best = []
    for begin in range(len(AGES)):
        away, held, back, most = 1.0, 0.0, 0.0, 0.0
        for place in range(begin, len(AGES)):
            stays = away * (1.0 - hazard[place])
            held += (away + stays) / 2.0 * (ENDS[place] - AGES[place])
            back += away - stays
            away = stays
            most = max(most, back / held) if held > 0 else most
        best.append(most)
    return best


@given(st.lists(st.floats(0, 0.3), min_size=len(AGES), max_size=len(AGES)))
def test_the_index_equals_its_definition(hazard):
    assert hold_value(np.array(hazard)) == pytest.approx(slow_index(hazard), rel=1e-4, abs=1e-12)


def test_one_who_has_just_paused_is_not_dead():
    # The known trap: the hazard of the first seconds is nil, the worth is not.
    hazard = np.zeros(len(AGES))
    hazard[AGES.searchsorted(60.0)] = 0.9
    worth = hold_value(hazard)
    assert worth[0] > 0.0
    assert worth[AGES.searchsorted(40.0)] > worth[0]
    assert worth[AGES.searchsorted(100.0)] == 0.0


def test_a_cold_model_ranks_by_age():
    model = ReturnModel(3)
    worth = model.curve(np.array([1.0, -2.0, 3.0], dtype=np.float32))
    assert (np.diff(worth) < 0).all()
    assert (worth == model.curve(np.zeros(3, dtype=np.float32))).all()
    assert model.learn(0.0) == 0


def taught(pauses=3000, seed=0, **given_):
    """Kind 0 is back after about 5 s, kind 1 after about 300 s or, half of them, never."""
    rng = np.random.default_rng(seed)
    model = ReturnModel(2, seed=seed, **given_)
    now, waiting = 0.0, []
    for _ in range(pauses):
        now += 1.0
        kind = int(rng.random() < 0.5)
        number = model.open(np.array([1.0 - kind, kind], dtype=np.float32), now)
        gap = rng.lognormal(np.log(300.0 if kind else 5.0), 0.3)
        if not kind or rng.random() < 0.5:
            waiting.append((now + gap, number))
        waiting.sort(reverse=True)
        while waiting and waiting[-1][0] <= now:
            when, done = waiting.pop()
            model.close(done, when, back=True)
        model.learn(now)
    return model, now


def test_kinds_of_pauses_are_told_apart():
    model, _ = taught()
    quick, slow = (
        np.cumprod(1.0 - model.hazard(np.array(x, dtype=np.float32))) for x in ([1, 0], [0, 1])
    )
    at = AGES.searchsorted
    assert quick[at(18.0)] < 0.1
    assert slow[at(100.0)] > 0.85
    assert slow[at(900.0)] == pytest.approx(0.5, abs=0.12)
    fast, late = (model.curve(np.array(x, dtype=np.float32)) for x in ([1, 0], [0, 1]))
    assert fast[0] > 20 * late[0]
    assert late[at(250.0)] > 3 * late[at(900.0)]


def test_ages_that_nobody_reached_count_for_nothing():
    model, now = taught()
    hazard = model.hazard(np.array([0.0, 1.0], dtype=np.float32))
    assert (hazard[2 * now < AGES] == 0.0).all()


def test_open_pauses_say_not_yet():
    model = ReturnModel(1)
    x = np.ones(1, dtype=np.float32)
    for number in range(600):
        model.open(x, float(number))
        if number % 10 == 0:
            model.close(number, number + 2.0, back=True)
        model.learn(number + 2.0)
    away = np.cumprod(1.0 - model.hazard(x))
    assert away[AGES.searchsorted(100.0)] == pytest.approx(0.9, abs=0.06)


def test_what_entered_late_says_nothing_of_before():
    model = ReturnModel(1)
    number = model.open(np.ones(1, dtype=np.float32), 0.0, entered=100.0)
    model.close(number, 130.0, back=True)
    at_risk, event = np.zeros((2, 1, len(AGES)), dtype=np.float32)
    model._targets(np.array([0]), 500.0, at_risk, event)
    assert not at_risk[0][AGES < 100.0].any()
    assert event.sum() == 1.0
    assert at_risk[0][event[0] > 0].all()


def test_the_ring_forgets():
    model = ReturnModel(1, ring=4)
    x = np.ones(1, dtype=np.float32)
    for number in range(6):
        assert model.open(x, float(number)) == number
    model.close(0, 9.0, back=True)
    assert model.closed == 0
    model.close(5, 9.0, back=True)
    assert model.closed == 1
    model.close_others([4], 20.0)
    assert np.isnan(model._age).sum() == 1


def test_a_state_comes_back_exactly():
    model, now = taught(500)
    text = json.dumps(model.state())
    again = ReturnModel(2, seed=9)
    again.load(json.loads(text))
    x = np.array([1.0, 0.5], dtype=np.float32)
    assert (again.hazard(x) == model.hazard(x)).all()
    assert (again.opened, again.closed, again.steps) == (model.opened, model.closed, model.steps)
    again.open(x, now)
    assert json.dumps(model.state()) == text


def test_a_state_of_another_shape_is_refused():
    model, _ = taught(100)
    state = model.state()
    with pytest.raises(ValueError, match="3"):
        ReturnModel(3).load(state)
    with pytest.raises(ValueError, match="pauses"):
        ReturnModel(2, ring=5).load(state)
    broken = {**state, "x": state["pauses"][0]}
    with pytest.raises(ValueError, match="numbers"):
        ReturnModel(2).load(broken)
    spoiled = ReturnModel(2)
    spoiled._weights[0][0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ReturnModel(2).load(spoiled.state())


def test_a_flood_of_pauses_is_learned_in_small_steps():
    model = ReturnModel(3, ring=64)
    x = np.zeros(3, dtype=np.float32)
    for number in range(5000):
        model.close(model.open(x, float(number)), number + 1.0, back=True)
    taken = [model.learn(5000.0) for _ in range(100)]
    assert max(taken) <= 4
    assert 0 < sum(taken) <= 64


def test_a_reopened_pause_is_looked_at_from_then_on():
    model = ReturnModel(3, ring=4)
    pause = model.open(np.zeros(3, dtype=np.float32), 0.0)
    assert model.reopen(pause, np.ones(3, dtype=np.float32), entered=7.0)
    assert model.opened == 1
    assert model.average().tolist() == [1.0, 1.0, 1.0]
    for _ in range(4):
        model.open(np.zeros(3, dtype=np.float32), 1.0)
    assert not model.reopen(pause, np.ones(3, dtype=np.float32), entered=8.0)
    assert not model.reopen(-1, np.ones(3, dtype=np.float32), entered=8.0)
    assert not model.average().any()
