"""The shortest legal end of a call: what to write so that a grammar is satisfied. Pure.

Source: xgrammar 0.2.7, ``GrammarMatcher``.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["Matcher", "completion"]

_MOST_STEPS = 400  # of a completion. Speed: 20 us each
# What closes something comes first, then what is short, then what a pattern may want, then bytes of
# other characters.
_CANDIDATES = [
    *(b"}", b"]", b'"', b", ", b",", b"0", b"1", b"t", b"f", b"n", b"-", b"."),
    *(bytes([byte]) for byte in (*range(32, 127), *range(0x80, 0xF5))),
]


class Matcher(Protocol):
    """What is used of xgrammar's matcher."""

    def fork(self) -> "Matcher":
        """A matcher in the same state."""
        ...

    def accept_string(self, text: bytes) -> bool:
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
    parts: list[bytes] = []
    for _ in range(_MOST_STEPS):
        if walker.is_completed():
            return _text(b"".join(parts))
        step = _jump(walker)
        if not step or not walker.accept_string(step):
            step = _step(walker)
        if not step:
            return None
        parts.append(step)
    return None


def _text(end: bytes) -> str | None:
    """An end as text; None where it begins within a character: no tokens are looked for then."""
    try:
        return end.decode()
    except UnicodeDecodeError:
        return None


def _jump(walker: Matcher) -> bytes:
    """What must follow, where that is whole characters: xgrammar has it as bytes, and decodes."""
    try:
        return walker.find_jump_forward_string().encode()
    except UnicodeDecodeError:
        return b""


def _step(walker: Matcher) -> bytes:
    """Take the candidate that closes most; in free text that is the quote."""
    if walker.fork().accept_string(b"qz~}]") and walker.accept_string(b'"'):
        return b'"'
    return next((one for one in _CANDIDATES if walker.accept_string(one)), b"")
