"""How much work the plan of one request may take.

Counted and not timed, so what is refused does not depend on what else the machine does. Every bound
of `sglang_ext.tools.limits` is of one schema; this one is of all tools of a request together. Pure.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sglang_ext.errors import ToolWorkError

__all__ = ["UNITS", "bounded", "spend"]

# Of one request. Speed: about 5 us each on one core, while other requests wait. Fifty tools of
# eight properties take 20,000, a property with two bounds of twelve digits takes 1,600.
UNITS = 170_000

_left: ContextVar[list[int] | None] = ContextVar("work_left", default=None)


@contextmanager
def bounded(units: int = UNITS) -> Iterator[None]:
    """Within, `spend` may be called for as many units in all."""
    token = _left.set([units])
    try:
        yield
    finally:
        _left.reset(token)


def spend(units: int) -> None:
    """Note work that is about to be done; free where nothing bounds it.

    Raises:
        ToolWorkError: more than there is.
    """
    left = _left.get()
    if left is None:
        return
    left[0] -= units
    if left[0] < 0:
        raise ToolWorkError(
            "the schemas of these tools take too much work",
            fix="send fewer patterns, bounds of numbers and combinations, or fewer tools; "
            'a tool that says "strict": false goes without its schema',
        )
