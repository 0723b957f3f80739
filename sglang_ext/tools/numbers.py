"""The decimal spellings of numbers within bounds, as regular languages.

A bounded number is written without an exponent and not as minus zero: each value has a spelling,
and no spelling outside of the bounds exists. Pure.
"""

from fractions import Fraction

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.language import EMPTY, EPSILON, Term, alt, both, cat, chars, literal, star
from sglang_ext.tools.shapes import Bounds

__all__ = ["decimals"]

_MOST_DIGITS = 40  # of a bound


def _digits(low: int, high: int) -> Term:
    return chars([(48 + low, 48 + high)]) if low <= high else EMPTY


_DIGIT = _digits(0, 9)
_ANY_DIGITS = star(_DIGIT)
_POSITIVE = cat(_digits(1, 9), _ANY_DIGITS)
_NATURAL = alt(literal("0"), _POSITIVE)
_POINT = literal(".")
_FRACTION = alt(EPSILON, cat(_POINT, _DIGIT, _ANY_DIGITS))
_NOT_ZEROS = cat(_ANY_DIGITS, _digits(1, 9), _ANY_DIGITS)


def decimals(bounds: Bounds, *, whole: bool) -> Term:
    """All spellings of the numbers within ``bounds``; whole numbers alone where ``whole``.

    Raises:
        ToolSchemaError: a bound has too many digits.
    """
    zero = Fraction(0)
    least, most = bounds.least, bounds.most
    signed: list[Term] = []
    if most is None or most > zero or (most == zero and not bounds.most_open):
        low = (least, bounds.least_open) if least is not None and least >= zero else None
        high = (most, bounds.most_open) if most is not None else None
        signed.append(_magnitudes(low, high, whole))
    if least is None or least < zero:
        low = (-most, bounds.most_open) if most is not None and most < zero else (zero, True)
        high = (-least, bounds.least_open) if least is not None else None
        signed.append(cat(literal("-"), _magnitudes(low, high, whole)))
    return alt(*signed)


def _magnitudes(
    low: tuple[Fraction, bool] | None, high: tuple[Fraction, bool] | None, whole: bool
) -> Term:
    """Spellings of numbers from zero on, between two bounds that may be open."""
    term = _NATURAL if whole else cat(_NATURAL, _FRACTION)
    if low is not None:
        term = both(term, _above(*low))
    if high is not None:
        term = both(term, _below(*high))
    return term


def _split(bound: Fraction) -> tuple[str, str]:
    """Digits before and after the point."""
    ten = 10**_MOST_DIGITS
    if bound >= ten or (bound * ten).denominator != 1:
        raise ToolSchemaError(f"a bound of more than {_MOST_DIGITS} digits")
    whole, rest = divmod(bound, 1)
    return str(whole), f"{int(rest * ten):0{_MOST_DIGITS}d}".rstrip("0")


def _above(bound: Fraction, is_open: bool) -> Term:
    whole, rest = _split(bound)
    tail = _fraction_above(rest, is_open)
    return alt(cat(_natural_above(whole), _FRACTION), cat(literal(whole), tail))


def _below(bound: Fraction, is_open: bool) -> Term:
    whole, rest = _split(bound)
    tail = _fraction_below(rest, is_open)
    return alt(cat(_natural_below(whole), _FRACTION), cat(literal(whole), tail))


def _natural_above(digits: str) -> Term:
    """Naturals greater than ``digits``."""
    longer = cat(_digits(1, 9), *[_DIGIT] * len(digits), _ANY_DIGITS)
    options = [longer]
    for at, digit in enumerate(digits):
        rest = [_DIGIT] * (len(digits) - at - 1)
        options.append(cat(literal(digits[:at]), _digits(int(digit) + 1, 9), *rest))
    return both(_NATURAL, alt(*options))


def _natural_below(digits: str) -> Term:
    """Naturals less than ``digits``."""
    options = [cat(*[_DIGIT] * length) for length in range(1, len(digits))]
    for at, digit in enumerate(digits):
        rest = [_DIGIT] * (len(digits) - at - 1)
        options.append(cat(literal(digits[:at]), _digits(0, int(digit) - 1), *rest))
    return both(_NATURAL, alt(*options))


def _fraction_above(digits: str, is_open: bool) -> Term:
    """What follows the whole part of a bound whose digits after the point are ``digits``."""
    if not digits:
        return cat(_POINT, _NOT_ZEROS) if is_open else _FRACTION
    options = [cat(literal(digits), _NOT_ZEROS if is_open else _ANY_DIGITS)]
    for at, digit in enumerate(digits):
        options.append(cat(literal(digits[:at]), _digits(int(digit) + 1, 9), _ANY_DIGITS))
    return cat(_POINT, alt(*options))


def _fraction_below(digits: str, is_open: bool) -> Term:
    zeros = star(literal("0"))
    if not digits:
        return EMPTY if is_open else alt(EPSILON, cat(_POINT, literal("0"), zeros))
    options = [] if is_open else [cat(literal(digits), zeros)]
    for at, digit in enumerate(digits):
        if at:
            options.append(literal(digits[:at]))
        options.append(cat(literal(digits[:at]), _digits(0, int(digit) - 1), _ANY_DIGITS))
    return alt(EPSILON, cat(_POINT, alt(*options)))
