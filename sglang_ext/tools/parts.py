"""What decoding of a call is made of, part by part; each can be switched off. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["Parts", "active", "use"]


@dataclass(frozen=True)
class Parts:
    """The parts that are switched on.

    Attributes:
        completion: the shortest legal end is taken where the token budget runs out.
        repetition: the same where the model repeats itself without end.
        duplicates: a call that the answer has already ends it, and is not shown again.
        greedy: what the grammar leaves little choice in is not sampled.
        penalties: penalties are off there.
    """

    completion: bool = True
    repetition: bool = True
    duplicates: bool = True
    greedy: bool = True
    penalties: bool = True

    def without(self, names: Iterable[str]) -> "Parts":
        """The same, less the parts of these names."""
        return replace(self, **dict.fromkeys(names, False))


_active = Parts()


def use(parts: Parts) -> None:
    """From now on, these parts are switched on in this process."""
    global _active
    _active = parts


def active() -> Parts:
    """The parts that are switched on in this process."""
    return _active
