"""Puts our seams in place: those of this process, and a group's once the group is opened."""

import logging

from sglang_ext.plugin import places
from sglang_ext.plugin.seam import Entry, Hook
from sglang_ext.plugin.table import ENTRIES, HOOKS
from sglang_ext.plugin.verifying import seam_statuses
from sglang_ext.upstream.symbols import resolve

__all__ = ["open_group", "register_all", "register_hook"]

logger = logging.getLogger(__name__)


def register_all() -> None:
    """Register every seam that has a place in this process."""
    for hook in HOOKS:
        register_hook(hook)
    for entry in ENTRIES:
        _register_entry(entry)


def open_group(name: str = "disk_tier") -> list[str]:
    """Put a group's hooks in place; called in a process that is about to need them.

    Returns:
        Targets of those that did not take effect, where ``SGLANG_EXT_STRICT=0`` lets that pass.

    Raises:
        SystemExit: one did not take effect.
    """
    first = places.enter(name)
    hooked = [hook for hook in HOOKS if name in hook.groups]
    if first:
        for hook in hooked:
            register_hook(hook)
        resolve("sglang.srt.plugins.hook_registry:HookRegistry").apply_hooks()
    failed = {status.name for status in seam_statuses() if status.state == "failed"}
    return [hook.target for hook in hooked if hook.target in failed]


def register_hook(hook: Hook) -> None:
    """Hand one hook to SGLang's registry, unless it has no place in this process."""
    if places.not_needed(hook):
        return
    try:
        registry = resolve("sglang.srt.plugins.hook_registry:HookRegistry")
        kinds = resolve("sglang.srt.plugins.hook_registry:HookType")
        resolve(hook.path)
        registry.register(hook.target, resolve(hook.function), kinds[hook.kind])
    except Exception as error:  # any cause is reported by verify(), with the seam's name
        logger.debug("Cannot register %s: %s", hook.target, error)


def _register_entry(entry: Entry) -> None:
    if entry.not_needed():
        return
    try:
        entry.register()
    except Exception as error:  # any cause is reported by verify(), with the entry's name
        logger.debug("Cannot register %s: %s", entry.name, error)
