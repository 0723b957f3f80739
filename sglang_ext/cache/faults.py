"""Faults of the third tier: each is counted, and told in a log line a minute.

Pure: neither torch nor SGLang is imported.
"""

import logging
from collections import Counter

from sglang_ext.cache.quiet import LogGate
from sglang_ext.errors import StoreError

__all__ = ["Faults"]

logger = logging.getLogger(__name__)


class Faults:
    """What went wrong, by cause."""

    def __init__(self) -> None:
        self._gate = LogGate()
        self._counts: Counter[str] = Counter()

    def count(self, cause: str) -> None:
        """A fault that somebody else tells of."""
        self._counts[cause] += 1

    def failed(self, what: str, error: Exception) -> None:
        """``what`` raised ``error``, and counts as a miss."""
        cause = f"{what}: {type(error).__name__}"
        self.count(cause)
        others = self._gate.admits(cause)
        if others is not None:
            logger.warning(
                "Disk tier: a %s failed and counts as a miss (%s: %s); %d more since the last line",
                *(what, type(error).__name__, error, others),
                exc_info=not isinstance(error, (StoreError, OSError)),
            )

    def refused(self, cause: str) -> None:
        """What was asked for cannot be done, for ``cause``."""
        self.count(cause)
        others = self._gate.admits(cause)
        if others is not None:
            logger.warning("Disk tier: %s, refused; %d more since the last line", cause, others)

    def describe(self) -> dict[str, int]:
        """How many, by cause."""
        return dict(self._counts)
