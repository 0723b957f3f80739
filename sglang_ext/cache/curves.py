"""Return curves read at an age: what holding a block is worth then.

Pure: neither torch nor SGLang is imported.
"""

from array import array
from bisect import bisect_right
from itertools import pairwise
from math import inf
from typing import Any

from sglang_ext.cache.ages import AGES, ENDS, cold_value, hold_value
from sglang_ext.cache.conversation import FEATURES, Stop
from sglang_ext.cache.returns import ReturnModel

__all__ = ["AGES_S", "COLD", "NEXT_S", "Curves", "place_of", "worth_at"]

AGES_S: list[float] = AGES.tolist()
_ENDS_S: list[float] = ENDS.tolist()
NEXT_S = [*AGES_S, inf]
_LAST = len(AGES_S) - 1
_WIDTHS_S = [after - age for age, after in pairwise(AGES_S)]
# Worth by age of a policy that has learned nothing.
COLD: list[float] = cold_value().tolist()
# Pauses between two looks at the average curve, by which strangers are judged; before the first.
_AVERAGE_EVERY, _FIRST_AVERAGE = 256, 16


class Curves:
    """The curves of a model."""

    def __init__(self, model: ReturnModel) -> None:
        self._model = model
        self._average = model.packed(model.average())
        self._average_at = model.opened

    def average(self) -> "array[float]":
        """The curve of a pause of which nothing particular is known."""
        return self._average

    def refresh(self) -> None:
        """Take what was learned into the average, now and then; sooner while little is known.

        Called where all ranks of a server call it alike, and not where the average is asked for.
        """
        opened = self._model.opened
        if opened - self._average_at >= min(_AVERAGE_EVERY, max(_FIRST_AVERAGE, self._average_at)):
            self._average = self._model.packed(self._model.average())
            self._average_at = opened

    def by_stop(self) -> dict[str, Any]:
        """The average curve for each way to stop, as plain values."""
        curves = {}
        for stop in (Stop.TOOL, Stop.END, Stop.OTHER):
            column = FEATURES.index(f"stop {stop.name.lower()}")
            hazard = self._model.hazard(self._model.average(column))
            curves[stop.name.lower()] = {
                "age_s": _ENDS_S,
                "back": [round(1.0 - away, 4) for away in (1.0 - hazard).cumprod().tolist()],
                "worth": [float(f"{value:.3g}") for value in hold_value(hazard).tolist()],
            }
        return curves


def place_of(begin: float, now: float) -> tuple[int, float]:
    """Place in `AGES_S` of a pause's age, and until when it holds."""
    place = bisect_right(AGES_S, now - begin)
    until = begin + NEXT_S[place]
    if until <= now:  # the sum was rounded
        place, until = place + 1, begin + NEXT_S[place + 1]
    return max(0, place - 1), until


def worth_at(curve: "array[float]", begin: float, now: float) -> tuple[float, float]:
    """A curve between two ages, and until when that counts.

    A cold model takes steps instead (`COLD`), which keep the order of ages exact though worths are
    asked for at different times.

    Args:
        curve: `[ages]`, of the model, or `Curves.average`.
        begin: of the pause, seconds.
        now: seconds.
    """
    age = now - begin
    place = bisect_right(AGES_S, age)
    until = begin + NEXT_S[place]
    if place and until > now:
        place -= 1
    else:
        place, until = place_of(begin, now)
    worth = curve[place]
    if place == _LAST:
        return worth, until
    part = (age - AGES_S[place]) / _WIDTHS_S[place]
    return worth + (curve[place + 1] - worth) * min(1.0, max(0.0, part)), until
