"""Whether to ask the disk at all: counted faults, a quiet log, and a way back."""

import errno
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

__all__ = ["Health"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# One line for each kind of fault in this time; the rest is counted.
_LOG_EVERY_S = 30.0


class Health:
    """A breaker for one direction of I/O.

    After a fault nothing is asked of the disk for a pause. Then one call is let through; when it
    succeeds, all are, and when it fails, the next pause is twice as long, up to 30 s. Faults of
    what was begun before a pause do not prolong it.

    Args:
        what: ``reading``, ``writing`` or ``syncing``, for the log.
        clock: seconds, monotonic.
        effect: what a fault costs, for the log.
    """

    def __init__(
        self,
        what: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        effect: str = "pages of this tier are misses",
    ) -> None:
        self.errors: Counter[str] = Counter()
        self._what = what
        self._effect = effect
        self._clock = clock
        self._guard = threading.Lock()
        self._pause_s = 0.0
        self._until = 0.0
        self._tries = False
        self._logged: dict[str, float] = {}
        self._unlogged = 0

    @property
    def is_good(self) -> bool:
        """Whether the last thing heard of the disk was good."""
        return self._pause_s == 0

    def left(self) -> None:
        """This is a process that was forked: the lock may be held by nobody who is there."""
        self._guard = threading.Lock()

    def count(self, error: OSError) -> None:
        """A fault after which the disk is asked on: it is counted, no more."""
        with self._guard:
            self.errors[errno.errorcode.get(error.errno or 0, "UNKNOWN")] += 1

    def counted(self) -> Counter[str]:
        """A copy of ``errors``: faults by the name of the errno, and ``STALL``."""
        with self._guard:
            return Counter(self.errors)

    def allows(self) -> bool:
        """Whether to try: always when all is well, once after each pause when it is not."""
        if self._pause_s == 0:
            return True
        with self._guard:
            now = self._clock()
            if now < self._until:
                return False
            self._until = now + self._pause_s  # the next one waits for what this one finds
            self._tries = True
            return True

    def failed(self, error: Exception | None) -> None:
        """An operation failed; None: it did not come back in time."""
        name = "STALL"
        if error is not None:
            name = errno.errorcode.get(getattr(error, "errno", None) or 0, "UNKNOWN")
        with self._guard:
            now = self._clock()
            self.errors[name] += 1
            if self._tries or now >= self._until or self._pause_s == 0:
                self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                self._until = now + self._pause_s
                self._tries = False
            quiet = now - self._logged.get(name, -_LOG_EVERY_S) < _LOG_EVERY_S
            if quiet:
                self._unlogged += 1
                return
            self._logged[name] = now
            unlogged, self._unlogged = self._unlogged, 0
        logger.warning(
            "page store: %s failed: %s (%d more not logged); %s, tried again in %.1f s",
            self._what,
            name if error is None else error,
            unlogged,
            self._effect,
            self._pause_s,
        )

    def succeeded(self) -> bool:
        """An operation came back well.

        Returns:
            Whether that ends an outage: not one fault, but one and the tries after it.
        """
        if self._pause_s == 0:
            return False
        with self._guard:
            lasted = self._pause_s > _FIRST_PAUSE_S
            self._pause_s = 0.0
            self._until = 0.0
            self._tries = False
        logger.warning("page store: %s works again", self._what)
        return lasted
