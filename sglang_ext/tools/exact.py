"""JSON's numbers as what is written, not as what a float keeps of it. Pure.

A float holds 53 bits: ``9007199254740993.0`` is another number there, and 4.35 is no multiple of
0.01. Compared here are decimals.
"""

import json
from decimal import Decimal, InvalidOperation
from typing import Any

__all__ = ["decimal_of", "decoded", "is_multiple", "is_whole"]

_EXACT = 2**53  # from here on, a float leaves out whole numbers
_MOST_DIGITS = 400  # of a whole number that is written as a float; all floats have less


def decoded(text: str) -> Any:
    """JSON, as `json.loads` has it, with numbers that a float would change as others.

    Those that are whole become integers, the rest decimals.

    Raises:
        ValueError: it is not JSON, or has a number out of all bounds.
    """
    return json.loads(text, parse_constant=_no_constant, parse_float=_number)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _number(text: str) -> int | float | Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"the number {text[:40]} is out of all bounds") from None
    if value.copy_abs() >= _EXACT and value.adjusted() < _MOST_DIGITS and is_whole(value):
        return int(value)
    near = float(value)
    return near if near - near == 0 and Decimal(repr(near)) == value else value


def is_whole(value: Any) -> bool:
    """Whether a number is an integer, as the standard has it: 2.0 is one."""
    if isinstance(value, Decimal):
        _, digits, exponent = value.as_tuple()
        zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
        return value == 0 or (isinstance(exponent, int) and exponent + zeros >= 0)
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def decimal_of(value: Any) -> Decimal:
    """A number as it was written."""
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def is_multiple(value: Any, factor: Any) -> bool:
    """Whether ``value`` is a whole multiple of ``factor``, which is greater than zero."""
    digits, exponent = _parts(decimal_of(value))
    unit, scale = _parts(decimal_of(factor))
    shift = exponent - scale
    if shift >= 0:
        return digits * pow(10, shift, unit) % unit == 0
    if -shift > len(str(abs(digits))):
        return digits == 0
    return bool(digits % (unit * 10**-shift) == 0)


def _parts(value: Decimal) -> tuple[int, int]:
    """Digits as a whole number, and the power of ten to multiply it by."""
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is not a number")
    whole = int("".join(map(str, digits)) or "0")
    return (-whole if sign else whole), exponent
