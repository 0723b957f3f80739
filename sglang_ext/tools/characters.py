"""Characters of several tokens: which tokens end within one, and what completes it. Pure.

Source: byte-level vocabularies as GPT-2 spells them; byte fallback as SentencePiece does.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

__all__ = ["Characters", "Kind", "Tokenizer", "completing", "unfinished"]

Kind = Literal["byte level", "byte fallback"]
# UTF-8: what may follow the first byte of a character where that is not any continuation.
_SECOND: Mapping[int, range] = {
    0xE0: range(0xA0, 0xC0),
    0xED: range(0x80, 0xA0),
    0xF0: range(0x90, 0xC0),
    0xF4: range(0x80, 0x90),
}
_CONTINUATION = range(0x80, 0xC0)
_LONGEST = 4  # bytes of a character
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer(Protocol):
    """What is used of a tokenizer."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        """Tokens as the vocabulary spells them."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """The whole vocabulary."""
        ...


def unfinished(text: bytes) -> bytes:
    """The bytes of the character that ``text`` ends within; none where it ends with a whole one."""
    for length in range(1, min(_LONGEST - 1, len(text)) + 1):
        lead = text[-length]
        if lead not in _CONTINUATION:
            return text[-length:] if length < _length(lead) else b""
    return b""


def completing(within: bytes) -> range:
    """The bytes that may follow ``within``, a character that is not finished."""
    return _SECOND.get(within[0], _CONTINUATION) if len(within) == 1 else _CONTINUATION


def _length(lead: int) -> int:
    """Bytes of a character that begins with ``lead``; 0 where none does."""
    known = ((0xC2, 0xE0, 2), (0xE0, 0xF0, 3), (0xF0, 0xF5, 4))
    return next((length for low, high, length in known if low <= lead < high), 0)


def _spelled_bytes() -> dict[str, int]:
    """Bytes by the characters that GPT-2 writes them with."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in plain]
    spelled = {chr(byte): byte for byte in plain}
    return spelled | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _spelled_bytes()


class Characters:
    """What a vocabulary has of single bytes.

    Args:
        tokenizer: its vocabulary is read when it is needed first. Speed: 0.1 s for 150,000 tokens.
        kind: how it spells bytes.
    """

    def __init__(self, tokenizer: Tokenizer, kind: Kind) -> None:
        self._tokenizer = tokenizer
        self._kind = kind

    def unfinished(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the character that ``tokens`` end within."""
        last = [int(token) for token in tokens[-_LONGEST + 1 :]]
        spelled = self._tokenizer.convert_ids_to_tokens(last)
        return unfinished(b"".join(self._bytes(token or "") for token in spelled))

    def token(self, byte: int) -> int | None:
        """The token of ``byte`` alone; None where there is none."""
        return self._singles.get(byte)

    def _bytes(self, token: str) -> bytes:
        """A token's bytes; of one that is special, or that no byte is seen in, whatever."""
        if self._kind == "byte level":
            return bytes(_BYTES.get(char, 0) for char in token[-_LONGEST:])
        found = _FALLBACK.fullmatch(token)
        return bytes([int(found[1], 16)]) if found else token[-1:].encode()

    @functools.cached_property
    def _singles(self) -> dict[int, int]:
        vocabulary = self._tokenizer.get_vocab()
        spelled = {byte: char for char, byte in _BYTES.items()}
        if self._kind == "byte fallback":
            spelled = {byte: f"<0x{byte:02X}>" for byte in range(256)}
        return {byte: vocabulary[text] for byte, text in spelled.items() if text in vocabulary}

    @functools.cached_property
    def opening(self) -> tuple[int, ...]:
        """The tokens that begin a character and do not end it."""
        vocabulary = self._tokenizer.get_vocab().items()
        return tuple(number for text, number in vocabulary if unfinished(self._bytes(text)))
