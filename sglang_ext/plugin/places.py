"""Which hooks have a place in this process: its device, and what has been opened in it."""

from sglang_ext.plugin.reference import reference_device
from sglang_ext.plugin.seam import Hook
from sglang_ext.plugin.table import GROUPS

__all__ = ["enter", "not_needed"]

_opened: set[str] = set()  # groups of hooks, in this process


def enter(group: str) -> bool:
    """From now on hooks of ``group`` have a place here; whether that is new."""
    new = group not in _opened
    _opened.add(group)
    return new


def not_needed(hook: Hook) -> str:
    """Why a hook has no place in this process; empty where it has one."""
    if hook.reference_device and not reference_device():
        return "SGLang knows this device"
    if hook.groups and not _opened.intersection(hook.groups):
        return GROUPS[hook.groups[0]].absent
    return ""
