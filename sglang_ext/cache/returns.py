"""When a paused conversation comes back: return curves, learned online.

A *pause* begins when an answer is finished and ends when the conversation's next request arrives.
What is known at its beginning is a vector of some thirty numbers (`sglang_ext.cache.sessions`). The
model gives the hazard of a return in each of `AGES`' bins: the chance that it comes in this bin,
given that it has not come before. It is a small network, one hidden layer and a linear path, that
speaks through twelve hats over the logarithm of the age; so what is learned of one age serves its
neighbours, and every feature acts on all conversations at once instead of splitting them into
classes. It learns from a ring of the latest pauses, those still open included: they say "not yet".

Before it has learned anything all pauses have one curve, whose hazard falls with age. Ranking by it
is ranking by age: a cold start equals LRU. Ages that no pause has reached yet count for nothing:
what is that old is ranked by age again.

Pure: neither torch nor SGLang is imported.

Source: discrete-time survival likelihood (Gensheimer and Narasimhan, 2019); the index of
Gittins (1979) as in Aalto, Ayesta and Righter (2009).
"""

import base64
import hashlib
from array import array
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang_ext.cache.ages import (
    AGES,
    AT_RISK,
    BASIS,
    BASIS_32,
    ENDS,
    EVENT,
    HATS,
    LOOKED_AT,
    PRIOR,
    RAMPS,
    Array,
    hold_value,
)

__all__ = ["RING", "ReturnModel", "fingerprint"]

_HIDDEN = 32

# Pauses that are learned from. Default: 8192. Cost: 160 bytes each; fewer forget sooner.
RING = 8192
# Pauses of one step of learning. A step takes 0.4 ms.
_BATCH = 512
# Steps for each pause that begins, later on and in addition at first; half as many of the latter
# after so many pauses.
_STEPS, _FIRST_STEPS, _FIRST_PAUSES = 0.16, 0.3, 1000.0
# Pauses that must have ended before the first step: below that a curve is a guess.
_FIRST = 32
# Steps taken at once, 0.4 ms each, and those that wait for the next occasion: many pauses
# may begin in a moment.
_AT_ONCE, _MOST_DUE = 4, 64.0
# Step size falls from the first to the second with the root of the pauses seen.
_RATE, _LAST_RATE, _RATE_PAUSES = 1e-2, 2e-3, 1000.0
# Shrinkage of the weights, as of a prior worth this many pauses, and its floor; shrinkage of what
# one age says against its neighbours.
_PRIOR_PAUSES, _SHRINK, _FINE_SHRINK = 5.0, 1e-3, 1e-2
# A pause that ended at once.
_LEAST_AGE_S = 0.05
# Pauses that must have been seen at an age for its hazard to count half.
_HALF_SEEN = 30.0


class ReturnModel:
    """Learns return curves from pauses.

    A pause is opened with its features and closed by its return; `learn` is called now and then
    and takes a step when one is due. Not thread-safe: one thread, the scheduler's.

    Args:
        features: length of a feature vector.
        ring: pauses remembered; the oldest is overwritten, open or not.
        seed: of the first weights and of the batches.
        prior: log-odds that a feature of one adds to every hazard, by its place, until the pauses
            say otherwise; from the first step of learning on.
    """

    def __init__(
        self,
        features: int,
        *,
        ring: int = RING,
        seed: int = 0,
        prior: Mapping[int, float] | None = None,
    ) -> None:
        self.features = features
        self._direct = np.zeros((features, HATS))
        for place, odds in (prior or {}).items():
            self._direct[place] = odds
        self._rng = np.random.default_rng(seed)
        scale = 1.0 / np.sqrt(features)
        self._weights: list[Array] = [
            self._rng.normal(0.0, scale, (features, _HIDDEN)),
            self._rng.normal(0.0, 0.3, _HIDDEN),
            np.zeros((_HIDDEN, HATS)),
            self._direct.copy(),
            np.zeros(HATS),
            np.zeros(len(AGES)),
        ]
        self._mean = [np.zeros_like(weight) for weight in self._weights]
        self._square = [np.zeros_like(weight) for weight in self._weights]
        self._seen = np.zeros(len(AGES))  # pauses of the ring that were looked at in each bin
        self.steps = 0
        self.opened = 0
        self.closed = 0
        self._due = 0.0
        self._x = np.zeros((ring, features), dtype=np.float32)
        self._weight = np.zeros(ring)  # of a pause in learning
        self._begin = np.zeros(ring)
        self._entered = np.zeros(ring)  # age from which on a pause is looked at
        self._age = np.full(ring, np.nan)  # at its end; NaN: still open
        self._back = np.zeros(ring, dtype=bool)
        # Of a step: what is made anew each time costs more in page faults than what is computed.
        self._scratch = np.zeros((3, _BATCH, len(AGES)), dtype=np.float32)

    @property
    def ring(self) -> int:
        """Pauses remembered at most."""
        return len(self._begin)

    def open(
        self,
        x: npt.NDArray[np.float32],
        begin: float,
        *,
        entered: float = 0.0,
        weight: float = 1.0,
    ) -> int:
        """Note that a pause began; returns its number.

        Args:
            x: `[features]`, copied.
            begin: when it began, seconds.
            entered: age at which it is first looked at: what was before says nothing.
            weight: how much it counts against others, more than nought.
        """
        number, slot = self.opened, self.opened % self.ring
        self._x[slot] = x
        self._weight[slot] = weight
        self._begin[slot] = begin
        self._entered[slot] = entered
        self._age[slot] = np.nan
        self._back[slot] = False
        self.opened += 1
        self._due += _STEPS + _FIRST_STEPS / (1.0 + self.opened / _FIRST_PAUSES)
        return number

    def reopen(self, number: int, x: npt.NDArray[np.float32], *, entered: float) -> bool:
        """Look at an open pause from age ``entered`` on, with what is known of it now.

        Returns:
            False where the ring has forgotten it.
        """
        if not self._holds(number):
            return False
        slot = number % self.ring
        self._x[slot] = x
        self._entered[slot] = entered
        return True

    def close(self, number: int, now: float, *, back: bool) -> None:
        """Note that a pause ended: the conversation came back, or nobody looks on.

        A pause that the ring has forgotten is ignored.
        """
        if not self._holds(number):
            return
        slot = number % self.ring
        self._age[slot] = max(now - self._begin[slot], _LEAST_AGE_S)
        self._back[slot] = back
        self.closed += back

    def _holds(self, number: int) -> bool:
        return number >= 0 and self.opened - self.ring <= number < self.opened

    def close_others(self, numbers: Collection[int], now: float) -> None:
        """Close open pauses that are not among ``numbers``: nobody looks on, as of ``now``."""
        for number in range(max(0, self.opened - self.ring), self.opened):
            if np.isnan(self._age[number % self.ring]) and number not in numbers:
                self.close(number, now, back=False)

    def hazard(self, x: npt.NDArray[np.float32]) -> Array:
        """`[ages]`: chance of a return in each bin, given none before.

        Ages that hardly any pause has reached count for nothing, once anything was learned.
        """
        if not self.steps:
            return np.asarray(1.0 / (1.0 + np.exp(-PRIOR)))
        hazard = 1.0 / (1.0 + np.exp(-self._forward(x, BASIS)[1]))
        return np.asarray(hazard * self._seen / (self._seen + _HALF_SEEN))

    def curve(self, x: npt.NDArray[np.float32]) -> Array:
        """`[ages]`: `hold_value` of a pause with features ``x``."""
        return hold_value(self.hazard(x))

    def packed(self, x: npt.NDArray[np.float32]) -> "array[float]":
        """`curve`, for reading one number at a time."""
        packed = array("d")
        packed.frombytes(self.curve(x).tobytes())
        return packed

    def average(self, column: int | None = None) -> npt.NDArray[np.float32]:
        """Mean features of the pauses remembered; of those alone that have ``column`` set.

        Zeros where there are none.
        """
        x = self._x[: min(self.opened, self.ring)]
        if column is not None:
            x = x[x[:, column] > 0.5]
        if not len(x):
            return np.zeros(self.features, dtype=np.float32)
        return np.asarray(x.mean(axis=0), dtype=np.float32)

    def learn(self, now: float) -> int:
        """Take steps of learning that are due, a few at most; returns how many."""
        if self.closed < _FIRST:
            self._due = 0.0
            return 0
        self._due = min(self._due, _MOST_DUE)
        taken = 0
        while self._due >= 1.0 and taken < _AT_ONCE:
            self._due -= 1.0
            self._step(now)
            taken += 1
        return taken

    def state(self, closed_s: float | None = None) -> dict[str, Any]:
        """Everything that was learned, as plain values; `load` takes it back.

        Args:
            closed_s: when to take open pauses for closed, as by `close_others`; None: they stay.
        """
        known = min(self.opened, self.ring)
        arrays = [*self._weights, *self._mean, *self._square, self._seen]
        age = self._age
        if closed_s is not None:
            age = np.where(np.isnan(age), np.maximum(closed_s - self._begin, _LEAST_AGE_S), age)
        ring = [self._weight, self._begin, self._entered, age, self._back.astype(np.float64)]
        return {
            "features": self.features,
            "ring": self.ring,
            "counts": [self.steps, self.opened, self.closed],
            "arrays": [_written(array) for array in arrays],
            "x": _written(self._x[:known]),
            "pauses": [_written(column[:known]) for column in ring],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take a state back.

        Raises:
            ValueError: it is of another shape, or not finite.
        """
        if (state["features"], state["ring"]) != (self.features, self.ring):
            raise ValueError(
                f"a model of {state['features']} features and {state['ring']} pauses; this one has "
                f"{self.features} and {self.ring}"
            )
        counts = [int(count) for count in state["counts"]]
        if len(counts) != 3 or min(counts) < 0 or max(counts) > 1 << 50:
            raise ValueError(f"counts {counts}")
        known = min(counts[1], self.ring)
        mine = [*self._weights, *self._mean, *self._square, self._seen]
        theirs = [_read(text, a.shape) for text, a in zip(state["arrays"], mine, strict=True)]
        x = _read(state["x"], (known, self.features))
        columns = [_read(text, (known,), ages=True) for text in state["pauses"]]
        weight, begin, entered, age, back = columns
        for own, value in zip(mine, theirs, strict=True):
            own[...] = value
        self.steps, self.opened, self.closed = counts
        self._x[:known] = x
        self._weight[:known], self._begin[:known] = weight, begin
        self._entered[:known], self._age[:known] = entered, age
        self._back[:known] = back > 0.5

    def _forward(
        self, x: npt.NDArray[Any], basis: npt.NDArray[Any], odds: npt.NDArray[Any] | None = None
    ) -> tuple[Any, Any]:
        """Hidden layer and log-odds of hazards, in the precision of ``basis``; into ``odds``."""
        kind = basis.dtype
        inner, inner_bias, outer, direct = (w.astype(kind, copy=False) for w in self._weights[:4])
        level, fine = self._weights[4:]
        hidden = np.tanh(x @ inner + inner_bias)
        common = (PRIOR + level @ RAMPS + fine).astype(kind, copy=False)
        odds = np.matmul(hidden @ outer + x @ direct, basis, out=odds)
        odds += common
        return hidden, np.clip(odds, -13.8, 13.8, out=odds)

    def _step(self, now: float) -> None:
        """One step of Adam on the likelihood of a batch of pauses.

        The batch goes through in single precision, a third of the time; the weights stay double.
        """
        known = min(self.opened, self.ring)
        rows = self._rng.integers(0, known, _BATCH)
        x = self._x[rows]
        at_risk, event, error = self._scratch
        self._targets(rows, now, at_risk, event)
        seen = at_risk.mean(axis=0, dtype=np.float64) * known
        self._seen += (seen - self._seen) / min(self.steps + 1, 20)
        inner, _, outer, direct, level, fine = self._weights
        hidden, _ = self._forward(x, BASIS_32, error)
        weight = self._weight[rows]
        at_risk *= (weight / weight.sum()).astype(np.float32)[:, None]
        np.negative(error, out=error)
        np.exp(error, out=error)
        error += np.float32(1.0)
        np.divide(np.float32(1.0), error, out=error)
        error -= event
        error *= at_risk
        at_hats = error @ BASIS_32.T
        at_ages = error.sum(axis=0)
        at_hidden = at_hats @ outer.astype(np.float32).T * (np.float32(1.0) - hidden * hidden)
        shrink = max(_SHRINK, _PRIOR_PAUSES / self.opened)
        slopes = (
            x.T @ at_hidden + shrink * inner,
            at_hidden.sum(axis=0),
            hidden.T @ at_hats + shrink * outer,
            x.T @ at_hats + shrink * (direct - self._direct),
            RAMPS @ at_ages + shrink * level,
            at_ages + _FINE_SHRINK * fine,
        )
        self._move(slopes)

    def _targets(
        self,
        rows: npt.NDArray[np.int64],
        now: float,
        at_risk: npt.NDArray[np.float32],
        event: npt.NDArray[np.float32],
    ) -> None:
        """Into `[rows, ages]`: whether a return in a bin was to be seen; whether it came, if so."""
        age = self._age[rows]
        age = np.where(np.isnan(age), now - self._begin[rows], age)
        row = np.searchsorted(ENDS, age, side="right") + len(AT_RISK) // 2 * self._back[rows]
        entered = np.searchsorted(AGES, self._entered[rows], side="left")
        # Numbers are in range; told so, numpy needs no copy in between.
        np.take(AT_RISK, row, axis=0, out=at_risk, mode="clip")
        np.take(LOOKED_AT, entered, axis=0, out=event, mode="clip")
        at_risk *= event
        np.take(EVENT, row, axis=0, out=event, mode="clip")

    def _move(self, slopes: tuple[Array, ...]) -> None:
        self.steps += 1
        rate = max(_LAST_RATE, _RATE / np.sqrt(1.0 + self.opened / _RATE_PAUSES))
        first, second = 1.0 - 0.9**self.steps, 1.0 - 0.999**self.steps
        for weight, mean, square, slope in zip(
            self._weights, self._mean, self._square, slopes, strict=True
        ):
            mean += 0.1 * (slope - mean)
            square += 0.001 * (slope * slope - square)
            weight -= rate * (mean / first) / (np.sqrt(square / second) + 1e-8)


def fingerprint(features: int) -> int:
    """A number below 2**62 that is equal where learning is equal, to the last bit.

    It may not be with other processors or another numpy. Takes 0.2 s.

    Args:
        features: of the model that is tried.
    """
    model = ReturnModel(features, ring=_BATCH)
    rng = np.random.default_rng(1)
    for number in range(_BATCH):
        x = rng.normal(0.0, 1.0, features).astype(np.float32)
        pause = model.open(x, float(number))
        model.close(pause, number + rng.exponential(60.0), back=bool(number % 8))
        model.learn(float(number))
    text = str(model.state()) + _written(model.curve(model.average()))
    digest = hashlib.blake2b(text.encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def _written(array: npt.NDArray[Any]) -> str:
    """Little-endian float64, base64: plain text, exact, no pickle."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f8").tobytes()).decode("ascii")


def _read(text: str, shape: tuple[int, ...], *, ages: bool = False) -> Array:
    array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f8")
    if array.size != int(np.prod(shape)):
        raise ValueError(f"{array.size} numbers where {shape} are expected")
    if not (np.isfinite(array) | (np.isnan(array) & ages)).all():
        raise ValueError("a number that is not finite")
    return array.reshape(shape).astype(np.float64)
