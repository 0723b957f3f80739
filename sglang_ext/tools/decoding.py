"""What a scheduler does differently while a call is written: hooks on requests and their grammars.

A call that was ended by force is marked in the finish reason, which says ``length``; where no legal
end fits, the call stays cut off, and is withheld.

Source: SGLang 0.5.23, ``constrained/xgrammar_backend.py``, ``constrained/grammar_manager.py``.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from sglang_ext.tools import grammars
from sglang_ext.tools.characters import Characters, Kind
from sglang_ext.tools.duplicates import DUPLICATE, noted
from sglang_ext.tools.progress import Progress
from sglang_ext.tools.tag import OURS

__all__ = [
    "REPORT",
    "accept_token",
    "attach",
    "attach_ready",
    "fill_vocab_mask",
    "mark_finished",
    "progress_of",
]

logger = logging.getLogger(__name__)

# Key of a finish reason that holds the figures of a call.
REPORT = "sglang_ext"
_PROGRESS = "_sglang_ext_progress"
_CHARACTERS = "_sglang_ext_characters"  # of a scheduler's manager of grammars
# xgrammar's kinds of vocabularies; of one in raw bytes nothing is known here.
_KINDS: dict[str, Kind] = {"BYTE_LEVEL": "byte level", "BYTE_FALLBACK": "byte fallback"}


def progress_of(grammar: Any) -> Progress | None:
    """What is known of the call that ``grammar`` holds; None where the tag is not ours."""
    return getattr(_inner(grammar), _PROGRESS, None)


def _inner(grammar: Any) -> Any:
    """xgrammar's, where SGLang has put it within a reasoner."""
    return getattr(grammar, "grammar", None) or grammar


def attach(_result: Any, manager: Any, request: Any) -> None:
    """AFTER ``GrammarManager.process_req_with_grammar``: a grammar learns of its request."""
    _attach(manager, request)


def attach_ready(requests: list[Any], manager: Any) -> None:
    """AFTER ``GrammarManager.get_ready_grammar_requests``: likewise."""
    for request in requests:
        _attach(manager, request)


def _attach(manager: Any, request: Any) -> None:
    grammar = _inner(request.grammar)
    key = getattr(grammar, "key_string", None)
    tokenizer = manager.scheduler.tokenizer
    if not isinstance(key, str) or OURS not in key or tokenizer is None:
        return
    stats = getattr(grammar, "grammar_stats", None)
    hit = getattr(stats, "is_cache_hit", True)
    seconds = 0.0 if hit else getattr(stats, "compilation_time", None) or 0.0
    progress = Progress(
        request,
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        vocabulary=grammar.vocab_size,
        decode=lambda tokens: str(tokenizer.decode(list(tokens))),
        duplicates=noted(key),
        characters=_characters_of(manager, grammar, tokenizer),
        compile_ms=1e3 * seconds,
    )
    setattr(grammar, _PROGRESS, progress)


def _characters_of(manager: Any, grammar: Any, tokenizer: Any) -> Characters | None:
    if not hasattr(manager, _CHARACTERS):
        info = getattr(getattr(grammar, "ctx", None), "tokenizer_info", None)
        kind = _KINDS.get(getattr(getattr(info, "vocab_type", None), "name", ""))
        setattr(manager, _CHARACTERS, Characters(tokenizer, kind) if kind else None)
    found: Characters | None = getattr(manager, _CHARACTERS)
    return found


def fill_vocab_mask(original: Callable[..., None], grammar: Any, mask: Any, row: int) -> None:
    """AROUND ``XGrammarGrammar.fill_vocab_mask``: near the end, one token is allowed."""
    progress = progress_of(grammar)
    if progress is None:
        original(grammar, mask, row)
        return
    begin = time.perf_counter()
    original(grammar, mask, row)
    try:
        progress.decide(grammar.matcher, _allowed(mask[row]))
        if (
            progress.whole_characters
            and progress.characters is not None
            and _forbid(mask[row], progress.characters.opening)
        ):
            progress.narrowed(_allowed(mask[row]))
    except Exception:
        _give_up(grammar)
        return
    if progress.forced is not None:
        _allow(mask[row], progress.forced[:1] or list(grammar.matcher.stop_token_ids))
    progress.mask_ms += 1e3 * (time.perf_counter() - begin)


def _allowed(words: Any) -> int:
    return int.from_bytes(words.numpy().tobytes(), "little").bit_count()


def _give_up(grammar: Any) -> None:
    """The grammar alone holds the call from here on; the scheduler would end on the exception."""
    logger.exception("A call is written on, but it will not be ended before its budget is")
    setattr(_inner(grammar), _PROGRESS, None)


def _allow(words: Any, tokens: list[int]) -> None:
    """Allow ``tokens`` alone: bits of 32-bit words; the highest one is the sign."""
    words.zero_()
    for token in tokens:
        bit = token % 32
        words[token // 32] |= -(1 << 31) if bit == 31 else 1 << bit


def _forbid(words: Any, tokens: Sequence[int]) -> bool:
    """Forbid ``tokens``, unless nothing else is allowed; whether any of them was."""
    import torch

    bits = [0] * len(words)
    for token in tokens:
        bits[token // 32] |= 1 << token % 32
    signed = [word - (1 << 32) if word >> 31 else word for word in bits]
    kept = words & ~torch.tensor(signed, dtype=words.dtype)
    if not bool(kept.any()) or bool((kept == words).all()):
        return False
    words.copy_(kept)
    return True


def accept_token(original: Callable[..., None], grammar: Any, token: int) -> None:
    """AROUND ``XGrammarGrammar.accept_token``: what was written is noted."""
    original(grammar, token)
    progress = progress_of(grammar)
    if progress is not None:
        progress.accept(token)


def mark_finished(_result: None, request: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER ``Req.update_finish_state``: the finish reason tells of the call."""
    reason = request.finished_reason
    progress = None if reason is None else progress_of(request.grammar)
    if progress is None or REPORT in (told := reason.to_json()):
        return
    figures = {**progress.figures(), **grammars.figures()}
    kind = told.get("type")
    if kind not in ("stop", "length"):
        figures["ended"] = ""
    if figures["ended"] not in ("", DUPLICATE):
        if kind == "stop":  # its last token ends the answer, and is no part of it
            request.finished_len = len(request.output_ids) - 1
        reason = _cut_off(len(request.output_ids))
    request.finished_reason = _telling(reason, figures)


def _cut_off(length: int) -> Any:
    from sglang.srt.managers.schedule_batch import FINISH_LENGTH

    return FINISH_LENGTH(length)


def _telling(reason: Any, figures: dict[str, Any]) -> Any:
    """``reason``, which also tells ``figures``."""

    class Telling(type(reason)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__.update(vars(reason))

        def to_json(self) -> dict[str, Any]:
            return {**super().to_json(), REPORT: figures}

    return Telling()
