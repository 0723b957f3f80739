"""What of a node's use its parent inherits when the node goes.

A request is noted where its path ends, and passed everything above: a parent was used whenever its
child was. The server's tree and ``sglang-ext replay`` hand uses up by this one rule.

Pure: neither torch nor SGLang is imported.
"""

from typing import NamedTuple

__all__ = ["NEVER", "Use", "handed_up"]

# Touch of a node that no known request has ended at.
NEVER = -1


class Use(NamedTuple):
    """How a node was used, as far as is noted at the node itself.

    ``touch`` numbers the last request (`NEVER`: none), ``owner`` is whose it was
    (`Conversation.owner`; None: nobody knows), ``shared`` says that others have passed, too.
    """

    touch: int
    owner: object = None
    shared: bool = False


def handed_up(below: Use, above: Use) -> Use:
    """The use of a node once a child of it, with the use ``below``, is gone."""
    if below.touch == NEVER:
        return above
    shared = above.shared or below.shared
    if above.touch != NEVER and above.owner is not None and below.owner is not None:
        shared = shared or above.owner != below.owner
    last = max(below, above, key=_touch)
    return Use(last.touch, last.owner, shared)


def _touch(use: Use) -> int:
    return use.touch
