"""Samples a call as fits it: what the grammar leaves little choice in is greedy and unpenalised.

In free text and in free strings the request's own temperature and penalties hold. A row is made
greedy by leaving it one token, so that every sampler of SGLang honours it.

Source: SGLang 0.5.23, ``sampling/sampling_batch_info.py``.
"""

from collections.abc import Callable
from typing import Any

from sglang_ext.tools.decoding import progress_of
from sglang_ext.tools.parts import active

__all__ = ["leave_the_best", "note_structure", "spare_structure"]

_ROWS = "_sglang_ext_structure"


def note_structure(_result: None, info: Any) -> None:
    """AFTER ``SamplingBatchInfo.update_regex_vocab_mask``: note the rows that are structure."""
    rows = [row for row, grammar in enumerate(info.grammars or ()) if _is_structure(grammar)]
    setattr(info, _ROWS, rows)


def _is_structure(grammar: Any) -> bool:
    if grammar is None or grammar.finished or grammar.is_terminated():
        return False
    progress = progress_of(grammar)
    return progress is not None and progress.structure


def spare_structure(original: Callable[..., None], info: Any, logits: Any) -> None:
    """AROUND ``_apply_pre_grammar_logits_transforms``: penalties leave those rows alone."""
    rows = getattr(info, _ROWS, None)
    if not rows or not active().penalties or not _penalised(info):
        original(info, logits)
        return
    kept = logits[rows].clone()
    original(info, logits)
    logits[rows] = kept


def _penalised(info: Any) -> bool:
    orchestrator = info.penalizer_orchestrator
    return (
        info.acc_additive_penalties is not None
        or info.acc_scaling_penalties is not None
        or bool(orchestrator and orchestrator.is_required)
    )


def leave_the_best(_result: None, info: Any, logits: Any) -> None:
    """AFTER ``_apply_post_grammar_logits_transforms``: those rows keep their best token alone."""
    rows = getattr(info, _ROWS, None)
    if not rows or info.is_all_greedy or not active().greedy:
        return
    picked = logits[rows]
    best = picked.argmax(dim=-1, keepdim=True)
    kept = picked.gather(-1, best)
    logits[rows] = picked.fill_(float("-inf")).scatter_(-1, best, kept)
