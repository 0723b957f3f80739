"""What of a node's use its parent inherits when the node goes.

A request is noted where its path ends, and passed everything above: a parent was used whenever its
child was. The server's tree and ``sglang-ext replay`` hand uses up by this one rule.

Pure: neither torch nor SGLang is imported.
"""

from typing import NamedTuple

from sglang_ext.cache.conversation import Turn

__all__ = ["NEVER", "UNUSED", "Use", "handed_up"]

# Touch of a node that no known request has ended at.
NEVER = -1


class Use(NamedTuple):
    """How a node was used last, as far as is noted at the node itself.

    ``touch`` numbers the request (`NEVER`: none), ``turn`` is that request's (None: nobody knows).
    """

    touch: int = NEVER
    turn: Turn | None = None


UNUSED = Use()


def handed_up(below: Use, above: Use) -> Use:
    """The use of a node once a child of it, with the use ``below``, is gone."""
    return below if below.touch > above.touch else above
