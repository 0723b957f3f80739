"""All seams with SGLang: those of each room, one room a line."""

from sglang_ext.plugin import (
    cache_seams,
    context_parallel_seams,
    device_seams,
    server_seams,
    tool_seams,
)
from sglang_ext.plugin.seam import Entry, Group, Hook

__all__ = ["ENTRIES", "GROUPS", "HOOKS"]

HOOKS: tuple[Hook, ...] = (
    *server_seams.HOOKS,
    *device_seams.HOOKS,
    *cache_seams.HOOKS,
    *context_parallel_seams.HOOKS,
    *tool_seams.HOOKS,
)

ENTRIES: tuple[Entry, ...] = (
    *device_seams.ENTRIES,
    *cache_seams.ENTRIES,
    *context_parallel_seams.ENTRIES,
)

# Hooks of these are put in place when they are opened (`opening.open_group`), with what they lack
# said so.
GROUPS: dict[str, Group] = {
    **cache_seams.GROUPS,
    **context_parallel_seams.GROUPS,
    **tool_seams.GROUPS,
}
