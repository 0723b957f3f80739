"""The shortest legal end of a call: what to write so that a grammar is satisfied. Pure.

Source: xgrammar 0.2.7, ``GrammarMatcher``.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from sglang_ext.tools.characters import completing, unfinished

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


def completion(
    matcher: Matcher,
    encode: Callable[[str], Sequence[int]],
    *,
    within: bytes = b"",
    token_of: Callable[[int], int | None] = lambda _byte: None,
) -> list[int] | None:
    """A short legal end for what ``matcher`` has seen; None where none was found.

    Args:
        matcher: its state is not changed.
        encode: text to tokens, without special tokens.
        within: the bytes of a character that the text ends within; its rest is written first.
        token_of: the token of a single byte.
    """
    walker = matcher.fork()
    rest = _rest_of_character(walker, within)
    text = None if rest is None else _ending(walker)
    if rest is None or text is None:
        return None
    bytewise = [token_of(byte) for byte in rest]
    tokens = [token for token in bytewise if token is not None]
    if len(tokens) < len(bytewise):
        return None
    tokens += encode(text)
    trial = matcher.fork()
    if all(trial.accept_token(token) for token in tokens) and trial.is_completed():
        return tokens
    return None


def _rest_of_character(walker: Matcher, within: bytes) -> bytes | None:
    """Finish the character that begins with ``within``; xgrammar takes bytes that are no UTF-8."""
    rest = b""
    while unfinished(within + rest):
        following = (bytes([byte]) for byte in completing(within + rest))
        step = next((byte for byte in following if walker.accept_string(byte)), None)
        if step is None:
            return None
        rest += step
    return rest


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
    """An end as text; None where it is none, as within a character that nobody told of."""
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
