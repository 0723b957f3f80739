"""How one request's call comes along: its budget, whether it is ended by force, its figures. Pure.

Far from the end of the budget nothing is looked for; near it, the shortest legal end is found
before each token, and taken when it just fits; likewise where the model repeats itself.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sglang_ext.tools.characters import Characters
from sglang_ext.tools.complete import Matcher, completion
from sglang_ext.tools.duplicates import DUPLICATE, Duplicates
from sglang_ext.tools.parts import active
from sglang_ext.tools.repetition import repeated

__all__ = ["BUDGET", "REPETITION", "Progress", "Request"]

# Why a call was ended; or an answer that is whole, with a duplicate.
BUDGET, REPETITION = "forced", "repetition"

# Freedom left when a completion begins. Default one token: a call that the model would have ended
# in time is not cut short; one that opens an optional part at the very end is cut off instead.
_SPARE_TOKENS = 1
_MARKER_TOKENS = 64  # what begins a call takes less
_REST_OF_CHARACTER = 3  # tokens, at most
_WINDOW_TOKENS = 64  # beyond twice what an end takes, nothing is looked for. Speed: 0.1 ms a token
_REPETITION_EVERY = 16  # tokens from one look for repetition to the next
# A place is structure where less than this share of the vocabulary may follow: punctuation, names,
# enumerated values and numbers, not text. Tokens of digits are less than 1 % of any vocabulary.
_STRUCTURE_SHARE = 1 / 32
_UNLIMITED = 1 << 30


class Request(Protocol):
    """What is used of SGLang's request."""

    sampling_params: Any
    output_ids: Sequence[int]


class Progress:
    """Decides, before each token, what may be written.

    Args:
        request: held weakly.
        encode: text to tokens, without special tokens.
        vocabulary: number of tokens.
        decode: tokens to text, with special ones; None: duplicates are not looked for.
        duplicates: what looks for them.
        characters: its single bytes; None: nothing is completed within a character.
        compile_ms: what the grammar took, 0 where it was there.
    """

    def __init__(
        self,
        request: Request,
        encode: Callable[[str], Sequence[int]],
        *,
        vocabulary: int,
        decode: Callable[[Sequence[int]], str] | None = None,
        duplicates: Duplicates | None = None,
        characters: Characters | None = None,
        compile_ms: float = 0.0,
    ) -> None:
        self._request = weakref.ref(request)
        self._encode = encode
        self._decode = decode
        self._duplicates = duplicates
        self._begun = False
        self.characters = characters
        self._structure_most = vocabulary * _STRUCTURE_SHARE
        self._needed = 0
        self._next_look = 0
        self._shortest: list[int] = []  # end that was found last
        self.forced: list[int] | None = None  # tokens that are still to be written
        self.ended = ""  # why the call was ended
        self.structure = False  # whether the next token is one of structure
        self.whole_characters = False  # whether it may not end within a character
        self.forced_tokens = 0
        self.structure_tokens = 0
        self.tokens = 0
        self.mask_ms = 0.0
        self.compile_ms = compile_ms

    def remaining(self) -> int:
        """Tokens that may still be written."""
        request = self._request()
        if request is None or request.sampling_params.max_new_tokens is None:
            return _UNLIMITED
        return int(request.sampling_params.max_new_tokens) - len(request.output_ids)

    def decide(self, matcher: Matcher, allowed: int) -> None:
        """Look at the place of the next token, where the grammar allows ``allowed`` tokens."""
        self.structure = allowed < self._structure_most
        self.whole_characters = False
        if self.forced is not None:
            return
        if active().duplicates:
            self._after_a_duplicate(matcher)
        if self.forced is None and active().completion:
            self._before_the_budget_ends(matcher)
        if self.forced is None and active().repetition:
            self._before_it_repeats_on(matcher)

    def _before_the_budget_ends(self, matcher: Matcher) -> None:
        remaining = self.remaining()
        # What is needed shrinks and grows by little each token: far from the end nothing is done.
        if remaining > 2 * self._needed + _WINDOW_TOKENS:
            return
        found = self._completion(matcher)
        if found is None:
            return
        self._needed = max(self._needed, len(found))
        if found and remaining - _SPARE_TOKENS <= len(found) <= remaining:
            self._end(found, BUDGET)
        # A character that is begun may take this much more to end. It is, where the end needs it.
        fits = not found or len(found) + _REST_OF_CHARACTER < remaining
        opening = () if fits or self.characters is None else self.characters.opening
        self.whole_characters = not fits and found[0] not in opening
        self._shortest = found

    def narrowed(self, allowed: int) -> None:
        """``whole_characters`` has left ``allowed`` tokens of more.

        Where those are few, the model has no way left but to end: the budget ends the call.
        """
        if self.forced is None and allowed < self._structure_most:
            self._end(self._shortest, BUDGET)

    def _completion(self, matcher: Matcher) -> list[int] | None:
        request, characters = self._request(), self.characters
        if request is None or characters is None:
            return completion(matcher, self._encode)
        within = characters.unfinished(request.output_ids)
        return completion(matcher, self._encode, within=within, token_of=characters.token)

    def _after_a_duplicate(self, matcher: Matcher) -> None:
        request, calls, decode = self._request(), self._duplicates, self._decode
        if request is None or calls is None or decode is None:
            return
        written = request.output_ids
        if not self._begun:  # before the grammar was asked, the model has reasoned
            self._begun = True
            calls.pass_over(len(written))
        ends = calls.before_it_goes_on(written)
        # Arguments end with a brace; in a string, where text is free, they do not.
        outside = self.structure or matcher.is_completed()
        if not calls.reaches(len(written)):
            if outside and not self.structure:  # text, whose end may begin a call
                calls.pass_over(len(written) - _MARKER_TOKENS)
        elif not ends and outside and written and "}" in decode(written[-1:]):
            ends = calls.ends(decode(calls.unread(written)), len(written))
        found = self._completion(matcher) if ends else None
        if found is not None and len(found) <= self.remaining():
            self._end(found, DUPLICATE)

    def _before_it_repeats_on(self, matcher: Matcher) -> None:
        request = self._request()
        if request is None or len(request.output_ids) < self._next_look:
            return
        self._next_look = len(request.output_ids) + _REPETITION_EVERY
        passage = repeated(request.output_ids)
        if not passage:
            return
        found = self._completion(matcher)
        if found is None or (not found and not self.structure):
            return  # where text is free, the model may repeat itself: a call it is not
        self._next_look = 0  # it ends at the first place where it can end otherwise
        if not found or found[0] != request.output_ids[-passage]:
            self._end(found, REPETITION)

    def _end(self, tokens: list[int], why: str) -> None:
        self.forced, self.ended, self.forced_tokens = tokens, why, len(tokens)

    def accept(self, token: int) -> None:
        """A token was written."""
        self.tokens += 1
        self.structure_tokens += self.structure
        if not self.forced:
            return
        if self.forced[0] == token:
            self.forced.pop(0)
        else:  # a sampler that does not honour the mask: what follows is not ours
            self.forced, self.ended, self.forced_tokens = None, "", 0

    def completed(self) -> bool:
        """Whether a forced end is written; the grammar may take its last token only later."""
        left, request = self.forced, self._request()
        if left is None or request is None:
            return False
        return not left or list(request.output_ids[-len(left) :]) == left

    def figures(self) -> dict[str, Any]:
        """What is told of the request when it ends."""
        ended = self.ended if self.completed() else ""
        return {
            "ended": ended,
            "tokens": self.tokens,
            "structure_tokens": self.structure_tokens,
            "forced_tokens": self.forced_tokens if ended else 0,
            "mask_ms": round(self.mask_ms, 3),
            "compile_ms": round(self.compile_ms, 3),
        }
