"""What a seam with SGLang is: a hook or a registry entry, where it holds, what became of it."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Entry", "Group", "Hook", "SeamStatus"]


@dataclass(frozen=True)
class Group:
    """Hooks that are put in place when a part of ours is opened in a process, not before.

    Their modules are large, and nothing of SGLang is to be different where nobody asked for them.
    """

    absent: str  # why its hooks are not needed in a process that has not opened it
    where: str  # which processes open it


@dataclass(frozen=True)
class Hook:
    """One hook: the symbol of `upstream.table`, how it wraps, our function, and where it holds.

    ``function`` is ``module:name`` and imported only when the hook is put in place.
    """

    path: str
    kind: str  # BEFORE, AFTER or AROUND: see SGLang's HookType
    function: str
    reference_device: bool = False  # only where the reference platform is active
    # What must have been opened in a process for the hook to hold there; any one suffices.
    groups: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """Dotted path, as SGLang's hook registry takes it."""
        return self.path.replace(":", ".")


@dataclass(frozen=True)
class Entry:
    """One entry in a registry of SGLang's: how it is made, and how to see that it is there."""

    name: str
    register: Callable[[], None]
    present: Callable[[], bool]
    not_needed: Callable[[], str]  # why it has no place in this process; empty where it has one


@dataclass(frozen=True)
class SeamStatus:
    """What became of one hook or registry entry in this process."""

    name: str
    state: str  # applied, not needed, failed
    detail: str = ""
