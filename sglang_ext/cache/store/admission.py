"""What is worth the SSD's endurance: budgets of pages and of notes, a filter for one-time pages."""

import math
import struct
import time
from collections.abc import Callable

from sglang_ext.cache.store.format import DAY_HOURS

__all__ = ["SeenTwice", "TouchBudget", "WriteHours"]

_HOUR_S = 3600
_HOURS = struct.Struct(f"<{DAY_HOURS}Q")
# Keys remembered in each half of the filter. Cost: about 100 bytes each.
_MOST_SEEN = 1 << 17


class WriteHours:
    """Bytes written in each of the last 24 hours.

    Args:
        limit_bytes: most that may be written in 24 hours; None: no limit.
        clock: seconds since 1970.
    """

    def __init__(self, limit_bytes: int | None, clock: Callable[[], float] = time.time) -> None:
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._hour = 0
        self._written = [0] * DAY_HOURS

    def left_bytes(self) -> int | None:
        """How much may be written now; None: as much as you like."""
        if self._limit_bytes is None:
            return None
        return max(0, self._limit_bytes - self.total_bytes())

    def add(self, size_bytes: int) -> None:
        """Count what was written."""
        self._turn()
        self._written[-1] += size_bytes

    def total_bytes(self) -> int:
        """Written in the last 24 hours."""
        self._turn()
        return sum(self._written)

    def current(self) -> tuple[int, int]:
        """This hour and what was written in it."""
        self._turn()
        return self._hour, self._written[-1]

    def restore_hour(self, hour: int, size_bytes: int) -> None:
        """An hour as it was recorded."""
        self._turn()
        age = self._hour - hour
        if 0 <= age < DAY_HOURS:
            self._written[-1 - age] = size_bytes

    def pack(self) -> tuple[int, bytes]:
        """This hour, and the last 24 hours as bytes."""
        self._turn()
        return self._hour, _HOURS.pack(*self._written)

    def unpack(self, hour: int, data: bytes) -> None:
        """Restore what ``pack`` gave."""
        for age, size_bytes in enumerate(reversed(_HOURS.unpack(data))):
            self.restore_hour(hour - age, size_bytes)

    def _turn(self) -> None:
        hour = max(0, int(self._clock() // _HOUR_S))  # the disk has no hours before 1970
        if self._hour - hour >= DAY_HOURS:  # years ahead, say: what was written counts as now
            self._hour = hour
        passed = min(max(hour - self._hour, 0), DAY_HOURS)  # set back by less: hours stand still
        self._written = self._written[passed:] + [0] * passed
        self._hour = max(hour, self._hour)


class TouchBudget:
    """How many touches may be written to the journal.

    A quarter of a journal at once; after that as many as fill one in an hour. So touches alone, of
    a store that is read and not written, ask for one checkpoint an hour at most.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = 0.0
        self._at_s = -math.inf

    def take(self, most: int, journal_records: int) -> int:
        """Up to ``most`` of what is left, and it is used up.

        Args:
            most: touches that wait.
            journal_records: records that a journal holds.
        """
        now_s = self._clock()
        refill = (now_s - self._at_s) * journal_records / _HOUR_S
        self._left = min(self._left + refill, journal_records / 4)
        self._at_s = now_s
        taken = min(most, int(self._left))
        self._left -= taken
        return taken


class SeenTwice:
    """Lets a key pass when it is offered for the second time.

    Two sets of the first 8 bytes of keys: when the younger is full, the older is forgotten. Two
    keys with the same 8 bytes pass too early, which costs one needless write.
    """

    def __init__(self, most: int = _MOST_SEEN) -> None:
        self._most = most
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def passes(self, key: bytes) -> bool:
        """Whether ``key`` was offered before; it is remembered."""
        short = key[:8]
        if short in self._young or short in self._old:
            return True
        if len(self._young) >= self._most:
            self._old, self._young = self._young, set()
        self._young.add(short)
        return False
