"""What of a policy survives a restart, as bytes.

Pure: neither torch nor SGLang is imported.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

from sglang_ext.cache.conversation import Conversation
from sglang_ext.cache.guard import Guard
from sglang_ext.cache.returns import ReturnModel
from sglang_ext.cache.sessions import Sessions
from sglang_ext.cache.state import from_bytes, to_bytes
from sglang_ext.errors import DamagedStateError, StateBoundsError

__all__ = ["Restored", "restore", "saved"]

# Conversations that survive a restart. Default: 4096. Cost: 400 bytes of the state each.
_KEPT = 4096


@dataclass(frozen=True)
class Restored:
    """What a state holds beside the model and the sessions."""

    conversations: list[Conversation]
    pauses: dict[int, int]  # that were open, by number of the conversation
    guards: list[list[float]]  # states of guards


def saved(
    model: ReturnModel,
    sessions: Sessions,
    guards: Iterable[Guard],
    forgotten_s: float | None = None,
) -> bytes:
    """A state for `restore`.

    Args:
        model: what was learned.
        sessions: of whom.
        guards: what it brought.
        forgotten_s: when all conversations were left, to keep what was learned alone; None: the
            latest conversations are kept.
    """
    kept = _KEPT if forgotten_s is None else 0
    open_pauses = {c.number: c.turn.pause for c in sessions.latest(kept) if c.turn is not None}
    return to_bytes(
        {
            "model": model.state(forgotten_s),
            "sessions": sessions.state(kept),
            "open": list(open_pauses.items()),
            "guards": [guard.state() for guard in guards],
        }
    )


def restore(data: bytes, model: ReturnModel, sessions: Sessions) -> Restored:
    """Fill a new model and new sessions from a state.

    Raises:
        DamagedStateError: it is not a state, or some of it is wrong.
        StateFormError: it was written in another form.
        StateBoundsError: it is of a policy with another number of pauses.
    """
    state = from_bytes(data)
    try:
        bounds = state["model"]["features"], state["model"]["ring"]
        if bounds != (model.features, model.ring):
            raise StateBoundsError(
                f"a policy's state of {bounds[0]} features and {bounds[1]} pauses; this policy "
                f"has {model.features} and {model.ring}",
                fix="start without it",
            )
        model.load(state["model"])
        conversations = sessions.load(state["sessions"])
        pauses = {int(number): int(pause) for number, pause in state["open"]}
        guarded = [[float(value) for value in row] for row in state["guards"]]
        for row in guarded:
            capacity, _, squares, _ = row
            if not all(map(isfinite, row)) or min(capacity, squares) < 0.0:
                raise ValueError("a guard that is none")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedStateError(
            f"a policy's state: {type(error).__name__} {error}", fix="start without it"
        ) from error
    return Restored(conversations, pauses, guarded)
