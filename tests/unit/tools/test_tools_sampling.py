"""Sampling of a call, on SGLang's own record of a batch's sampling."""

from types import SimpleNamespace

import pytest

from sglang_ext.tools import parts
from sglang_ext.tools.decoding import _PROGRESS
from sglang_ext.tools.sampling import leave_the_best, note_structure, spare_structure

torch = pytest.importorskip("torch")


class Grammar(SimpleNamespace):
    """A row's grammar as far as it is used."""

    finished = False

    def is_terminated(self):
        return False


def batch(*structure, greedy=False):
    """A batch of one row each; None is a row without a grammar of ours."""
    grammars = [
        None if one is None else Grammar(**{_PROGRESS: SimpleNamespace(structure=one)})
        for one in structure
    ]
    return SimpleNamespace(
        grammars=grammars,
        is_all_greedy=greedy,
        penalizer_orchestrator=None,
        acc_additive_penalties=torch.ones(len(grammars), 4),
        acc_scaling_penalties=None,
    )


LOGITS = [[0.5, 2.0, 1.0, float("-inf")]] * 3


def step(info):
    logits = torch.tensor(LOGITS)
    note_structure(None, info)

    def penalise(batch, logits):
        logits.sub_(
            7 * (batch.acc_additive_penalties if batch.acc_additive_penalties is not None else 0)
        )

    spare_structure(penalise, info, logits)
    leave_the_best(None, info, logits)
    return logits


def test_structure_is_greedy_and_unpenalised_and_the_rest_is_not():
    logits = step(batch(True, False, None))
    assert logits[0].tolist() == [float("-inf"), 2.0, float("-inf"), float("-inf")]
    for row in (1, 2):
        assert logits[row].tolist() == [-6.5, -5.0, -6.0, float("-inf")]


def test_a_grammar_that_has_ended_is_no_structure():
    info = batch(True, True, True)
    info.grammars[0].finished = True
    info.grammars[1].is_terminated = lambda: True
    logits = step(info)
    assert logits[0].tolist() == logits[1].tolist() == [-6.5, -5.0, -6.0, float("-inf")]
    assert logits[2].tolist() == [float("-inf"), 2.0, float("-inf"), float("-inf")]


def test_each_part_can_be_switched_off(switched):
    switched(parts.Parts().without(["greedy"]))
    assert step(batch(True, False, None))[0].tolist() == LOGITS[0]
    switched(parts.Parts().without(["penalties"]))
    assert step(batch(True, False, None))[0].tolist()[1] == -5.0
    switched(parts.Parts().without(["penalties", "greedy"]))
    assert step(batch(True, True, None))[0].tolist() == [-6.5, -5.0, -6.0, float("-inf")]


def test_a_greedy_batch_is_left_as_it_is():
    assert step(batch(True, False, None, greedy=True))[0].tolist() == LOGITS[0]
