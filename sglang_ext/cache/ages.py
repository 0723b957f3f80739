"""The ages at which a pause is judged, and what holding a block is worth at each.

Everything of return curves that is not learned: bins of age, the functions over them by which
`sglang_ext.cache.returns` speaks, what a pause says of each bin, and the index of a curve.

Pure: neither torch nor SGLang is imported.

Source: the index of Gittins (1979) as in Aalto, Ayesta and Righter (2009).
"""

import numpy as np
import numpy.typing as npt

__all__ = [
    "AGES",
    "AT_RISK",
    "BASIS",
    "BASIS_32",
    "ENDS",
    "EVENT",
    "HATS",
    "LOOKED_AT",
    "PRIOR",
    "RAMPS",
    "Array",
    "cold_value",
    "hold_value",
]

Array = npt.NDArray[np.float64]

# Left edges of the age bins in seconds: every second first, then 22 % apart up to about a day. More
# bins cost 0.3 us each at the end of a request.
AGES: Array = np.concatenate(
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9.5, 11, 13, 15, 18], 21 * 1.22 ** np.arange(43)]
)
ENDS: Array = np.append(AGES[1:], AGES[-1] * 1.5)
_WIDTHS: Array = ENDS - AGES
HATS = 12


def _hats() -> Array:
    """Hat functions over log(age + 5 s), between 1 s and 8,000 s, `[hats, ages]`."""
    where = np.log(AGES + 5.0)
    centres = np.linspace(np.log(6.0), np.log(8_005.0), HATS)
    step = centres[1] - centres[0]
    inside = np.clip(where, centres[0], centres[-1])
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(inside - centres[:, None]) / step))


def _prior() -> Array:
    """Log-odds of the hazard before anything is learned: P(longer than x) = (1 + x/20 s)^-0.7."""
    hazard = 1.0 - ((AGES + 20.0) / (ENDS + 20.0)) ** 0.7
    return np.asarray(np.log(hazard / (1.0 - hazard)))


BASIS = _hats()
# Ramps from nought to one, one at each hat: the level learned at one age holds for all older ones
# until they say otherwise.
RAMPS: Array = np.cumsum(BASIS[::-1], axis=0)[::-1]
PRIOR = _prior()


def _tables() -> "tuple[npt.NDArray[np.float32], ...]":
    """What pauses say of bins, by the number of bins that they outlasted.

    Returns:
        `[2 x (bins + 1), bins]`, open pauses first, then those that ended with a return: whether a
        return in a bin was to be seen; whether it came. `[bins + 1, bins]`: whether a bin is
        looked at from the one on that the row is of.
    """
    count = len(AGES)
    outlasted, bins = np.arange(count + 1)[:, None], np.arange(count)
    over = bins < outlasted
    last = bins == np.minimum(outlasted, count - 1)
    at_risk = np.concatenate([over, over | last])
    event = np.concatenate([np.zeros_like(last), last])
    looked_at = bins >= outlasted
    return tuple(table.astype(np.float32) for table in (at_risk, event, looked_at))


AT_RISK, EVENT, LOOKED_AT = _tables()
BASIS_32: npt.NDArray[np.float32] = BASIS.astype(np.float32)


def hold_value(hazard: Array) -> Array:
    """What holding one block is worth, by age: hits per block and second.

    The Gittins index: the best, over all times to give up, of P(back by then) per second of
    expected holding. With S(x) = P(longer than x) and I its integral, that is the steepest
    descent of S over I from the age at hand; P(longer than the age) cancels.

    Args:
        hazard: `[ages]`, chance of a return in each bin.

    Returns:
        `[ages]`, 1/s, at the left edge of each bin.
    """
    survival = np.concatenate([[1.0], np.cumprod(1.0 - hazard)])
    mean = (survival[1:] + survival[:-1]) / 2.0 * _WIDTHS
    held = np.concatenate([[0.0], np.cumsum(mean)])
    fall = survival[:-1, None] - survival[None, 1:]
    time = held[None, 1:] - held[:-1, None]
    slope = np.where(time > 0.0, fall / np.where(time > 0.0, time, 1.0), 0.0)
    return np.asarray(slope.max(axis=1))


def cold_value() -> Array:
    """`[ages]`: `hold_value` before anything was learned; it falls with age."""
    return hold_value(1.0 / (1.0 + np.exp(-PRIOR)))
