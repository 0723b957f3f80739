"""Ends a call within its token budget: when the room runs out, the shortest legal end is taken.

Runs in the scheduler, on the matcher of one request. A completion that was forced is marked in the
finish reason, which stays ``length``; where none fits, the call stays cut off, and is withheld.

Source: xgrammar 0.2.7 ``GrammarMatcher``; SGLang 0.5.23 ``constrained/xgrammar_backend.py``.
"""

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = [
    "FORCED",
    "accept_token",
    "attach",
    "attach_ready",
    "completion",
    "fill_vocab_mask",
    "mark_forced",
]

logger = logging.getLogger(__name__)

# Key of a finish reason: the call at the end was completed by force.
FORCED = "sglang_ext_forced"
_STATE = "_sglang_ext_ending"
_OURS = "call ::= call0"  # only in tags that `tag.py` wrote
# Freedom left when a completion begins. Default one token: a call that the model would have ended
# in time is not cut short; one that opens an optional part at the very end is cut off instead.
_SPARE_TOKENS = 1
_WINDOW_TOKENS = 64  # beyond twice what an end takes, nothing is looked for. Speed: 0.1 ms a token
_MOST_STEPS = 400  # of a completion. Speed: 20 us each
# What closes something comes first, then what is short, then what a pattern may want.
_CANDIDATES = [
    *("}", "]", '"', ", ", ",", "0", "1", "t", "f", "n", "-", "."),
    *(chr(point) for point in range(32, 127)),
]


class Matcher(Protocol):
    """What is used of xgrammar's matcher."""

    def fork(self) -> "Matcher":
        """A matcher in the same state."""
        ...

    def accept_string(self, text: str) -> bool:
        """Take ``text``; False, without a change, where it does not fit."""
        ...

    def accept_token(self, token: int) -> bool:
        """Take a token, likewise."""
        ...

    def find_jump_forward_string(self) -> str:
        """What must follow."""
        ...

    def is_completed(self) -> bool:
        """Whether the text may end here."""
        ...


def completion(matcher: Matcher, encode: Callable[[str], Sequence[int]]) -> list[int] | None:
    """A short legal end for what ``matcher`` has seen; None where none was found.

    Args:
        matcher: its state is not changed.
        encode: text to tokens, without special tokens.
    """
    text = _ending(matcher.fork())
    if text is None:
        return None
    tokens = list(encode(text))
    trial = matcher.fork()
    if all(trial.accept_token(token) for token in tokens) and trial.is_completed():
        return tokens
    return None


def _ending(walker: Matcher) -> str | None:
    parts: list[str] = []
    for _ in range(_MOST_STEPS):
        if walker.is_completed():
            return "".join(parts)
        step = walker.find_jump_forward_string()
        if not step or not walker.accept_string(step):
            step = _step(walker)
        if not step:
            return None
        parts.append(step)
    return None


def _step(walker: Matcher) -> str:
    """Take the candidate that closes most; in free text that is the quote."""
    if walker.fork().accept_string("qz~}]") and walker.accept_string('"'):
        return '"'
    for candidate in _CANDIDATES:
        if walker.accept_string(candidate):
            return candidate
    return ""


class _Ending:
    """Whether and how one request's call is completed by force."""

    def __init__(self, request: Any, encode: Callable[[str], Sequence[int]]) -> None:
        self._request = weakref.ref(request)
        self._encode = encode
        self.forced: list[int] | None = None
        self._needed = 0

    def remaining(self) -> int:
        """Tokens that may still be written."""
        request = self._request()
        if request is None or request.sampling_params.max_new_tokens is None:
            return 1 << 30
        return int(request.sampling_params.max_new_tokens) - len(request.output_ids)

    def decide(self, matcher: Any) -> None:
        """Begin to complete the call if the room is short and a completion fits."""
        remaining = self.remaining()
        # What is needed shrinks and grows by little each token: far from the end nothing is done.
        if self.forced is not None or remaining > 2 * self._needed + _WINDOW_TOKENS:
            return
        found = completion(matcher, self._encode)
        if found is None:
            return
        self._needed = max(self._needed, len(found))
        if found and remaining - _SPARE_TOKENS <= len(found) <= remaining:
            self.forced = found


def attach(_result: Any, manager: Any, request: Any) -> None:
    """AFTER ``GrammarManager.process_req_with_grammar``: a grammar learns of its request."""
    _attach(manager, request)


def attach_ready(requests: list[Any], manager: Any) -> None:
    """AFTER ``GrammarManager.get_ready_grammar_requests``: likewise."""
    for request in requests:
        _attach(manager, request)


def _attach(manager: Any, request: Any) -> None:
    grammar = getattr(request.grammar, "grammar", None) or request.grammar  # within a reasoner
    key = getattr(grammar, "key_string", None)
    tokenizer = manager.scheduler.tokenizer
    if not isinstance(key, str) or _OURS not in key or tokenizer is None:
        return
    ending = _Ending(request, lambda text: tokenizer.encode(text, add_special_tokens=False))
    setattr(grammar, _STATE, ending)


def fill_vocab_mask(original: Callable[..., None], grammar: Any, mask: Any, row: int) -> None:
    """AROUND ``XGrammarGrammar.fill_vocab_mask``: near the end, one token is allowed."""
    ending: _Ending | None = getattr(grammar, _STATE, None)
    if ending is None:
        original(grammar, mask, row)
        return
    ending.decide(grammar.matcher)
    if ending.forced is None:
        original(grammar, mask, row)
        return
    allowed = ending.forced[:1] or list(grammar.matcher.stop_token_ids)
    mask[row].zero_()
    for token in allowed:
        # Bits of 32-bit words; the highest one is the sign.
        bit = token % 32
        mask[row, token // 32] |= -(1 << 31) if bit == 31 else 1 << bit


def accept_token(original: Callable[..., None], grammar: Any, token: int) -> None:
    """AROUND ``XGrammarGrammar.accept_token``: a token of a forced completion is taken."""
    original(grammar, token)
    ending: _Ending | None = getattr(grammar, _STATE, None)
    if ending is not None and ending.forced:
        if ending.forced[0] == token:
            ending.forced.pop(0)
        else:  # a sampler that does not honour the mask: what follows is not ours
            ending.forced = None


def mark_forced(_result: None, request: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER ``Req.update_finish_state``: a forced completion ends for want of room, and says so."""
    grammar = getattr(request.grammar, "grammar", None) or request.grammar
    ending: _Ending | None = getattr(grammar, _STATE, None)
    if ending is None or request.finished_reason is None or not _done(ending, request):
        return
    kind = request.finished_reason.to_json().get("type")
    if kind == "stop":  # its last token ends the answer, and is no part of it
        request.finished_len = len(request.output_ids) - 1
    if kind in ("stop", "length"):
        request.finished_reason = _finish_forced(request.sampling_params.max_new_tokens)


def _done(ending: _Ending, request: Any) -> bool:
    """Whether a forced completion is written; the grammar may take its last token only later."""
    left = ending.forced
    return left is not None and (not left or list(request.output_ids[-len(left) :]) == left)


def _finish_forced(length: int) -> Any:
    from sglang.srt.managers.schedule_batch import FINISH_LENGTH

    class FinishForced(FINISH_LENGTH):
        def to_json(self) -> dict[str, Any]:
            return {**super().to_json(), FORCED: True}

    return FinishForced(length)
