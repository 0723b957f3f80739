"""How many pages moved in each call, and how fast, until somebody asks.

Pure: neither torch nor SGLang is imported.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

__all__ = ["Traffic"]

# Calls that are kept until somebody asks; older ones are forgotten. SGLang asks in each step.
_MOST = 1000


class Traffic:
    """Measures calls that move pages in one direction."""

    def __init__(self) -> None:
        """Nothing has moved yet."""
        self._calls: deque[tuple[int, float]] = deque(maxlen=_MOST)

    def measure(self, page_bytes: int, move: Callable[[], Sequence[bool]]) -> Sequence[bool]:
        """What ``move`` returns: for each page whether it moved."""
        start = time.perf_counter()
        done = move()
        seconds = time.perf_counter() - start
        pages = sum(done)
        if pages and seconds > 0:
            self._calls.append((pages, pages * page_bytes / seconds / 1e9))
        return done

    def take(self) -> tuple[list[int], list[float]]:
        """Pages of each call since this was last asked, and gigabytes (10^9) a second."""
        calls = [self._calls.popleft() for _ in range(len(self._calls))]
        return [pages for pages, _ in calls], [speed for _, speed in calls]
