"""Whether a text runs away: the model writes the same again and again. Pure."""

from collections.abc import Sequence

__all__ = ["repeated"]

# Beyond what calls are made of: 64 zeros in an array are 128 tokens. Default 192: one and a half
# times that, and still less than half of a budget of 512.
_LEAST_TOKENS = 192
_LEAST_TIMES = 4
_WINDOW_TOKENS = 1_024  # of the end that is looked at. Speed: 0.3 us each


def repeated(tokens: Sequence[int]) -> int:
    """Length of the passage that ``tokens`` end in, where it is written at least four times over.

    Args:
        tokens: what was written; only its end is looked at.

    Returns:
        Tokens of the passage, if four of them or more make up the last 192 tokens; else 0.
    """
    end = list(tokens[-_WINDOW_TOKENS:])[::-1]
    # Knuth, Morris, Pratt: `border` is the longest proper prefix that also ends each prefix; what
    # is left of the prefix is its shortest period.
    borders = [0] * len(end)
    border = 0
    for at in range(1, len(end)):
        while border and end[at] != end[border]:
            border = borders[border - 1]
        if end[at] == end[border]:
            border += 1
        borders[at] = border
        length = at + 1
        if length >= _LEAST_TOKENS and length >= _LEAST_TIMES * (length - border):
            return length - border
    return 0
