"""Log lines about faults that may come a thousand times a second.

Pure: neither torch nor SGLang is imported.
"""

import logging
import time

__all__ = ["LogGate", "RepeatFilter"]

# One line about a cause in this time. Default 60 s: an operator sees it at once and can still
# read the rest.
_EVERY_S = 60.0


class LogGate:
    """Lets one line about a cause through in a while, and counts the others."""

    def __init__(self, every_s: float = _EVERY_S) -> None:
        """A gate that opens for each cause every ``every_s`` seconds."""
        self._every_s = every_s
        self._last: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def admits(self, cause: str) -> int | None:
        """How many lines about the cause were held back before this one; None holds it back too."""
        now = time.monotonic()
        if now - self._last.get(cause, -self._every_s) < self._every_s:
            self._held_back[cause] = self._held_back.get(cause, 0) + 1
            return None
        self._last[cause] = now
        return self._held_back.pop(cause, 0)


class RepeatFilter(logging.Filter):
    """For a logger of somebody else's: messages that begin with one of ``starts`` pass a gate."""

    def __init__(self, *starts: str, every_s: float = _EVERY_S) -> None:
        """Hold back repetitions of messages that begin so; all others pass."""
        super().__init__()
        self._starts = starts
        self._gate = LogGate(every_s)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        message = str(record.msg)
        for start in self._starts:
            if message.startswith(start):
                return self._gate.admits(start) is not None
        return True
