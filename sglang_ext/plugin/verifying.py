"""Verifies that each seam took effect, as the last thing that SGLang's loader does."""

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from sglang_ext.errors import CompatibilityError, HookError
from sglang_ext.plugin import places
from sglang_ext.plugin.seam import Entry, Hook, SeamStatus
from sglang_ext.plugin.switches import STRICT, strict
from sglang_ext.plugin.table import ENTRIES, HOOKS
from sglang_ext.upstream.releases import TESTED_RELEASES, installed
from sglang_ext.upstream.symbols import resolve

__all__ = ["record", "seam_statuses", "verify", "verify_after_loading"]

logger = logging.getLogger(__name__)

_MARK = "_verified_by_sglang_ext"

_statuses: list[SeamStatus] = []


def seam_statuses() -> tuple[SeamStatus, ...]:
    """What became of each seam in this process; empty before SGLang's loader has run."""
    return tuple(_statuses)


def record(statuses: Iterable[SeamStatus] = ()) -> None:
    """What became of the seams until `verify` looks at them."""
    _statuses[:] = statuses


def verify_after_loading() -> None:
    """Have SGLang's loader verify our seams as the last thing it does."""
    registry = resolve("sglang.srt.plugins.hook_registry:HookRegistry")
    plain = registry.apply_hooks
    if getattr(plain, _MARK, False):
        return

    @functools.wraps(plain)
    def apply_hooks(_cls: type) -> None:
        plain()
        verify()

    setattr(apply_hooks, _MARK, True)
    registry.apply_hooks = classmethod(apply_hooks)


def verify() -> None:
    """Look up each hook where it should be; record the outcome and stop if one is missing.

    Raises:
        SystemExit: a seam failed and ``SGLANG_EXT_STRICT`` is not 0.
    """
    _statuses[:] = [_hook_status(hook) for hook in HOOKS]
    _statuses.extend(_entry_status(entry) for entry in ENTRIES)
    failed = [status for status in _statuses if status.state == "failed"]
    if not failed:
        return
    message = "; ".join(f"{status.name}: {status.detail}" for status in failed)
    if strict():
        error = HookError(
            f"{len(failed)} of {len(_statuses)} seams did not take effect: {message}. Tested with "
            f"SGLang {', '.join(TESTED_RELEASES)}, installed is "
            f"{installed('sglang')}; install a tested release, see `sglang-ext doctor`, "
            f"or set {STRICT}=0 to go on without these, as far as SGLang does"
        )
        raise SystemExit(f"sglang-ext: error: {error}")
    for status in failed:
        logger.error("sglang-ext goes on without %s: %s", status.name, status.detail)


def _hook_status(hook: Hook) -> SeamStatus:
    reason = places.not_needed(hook)
    if reason:
        return SeamStatus(hook.target, "not needed", reason)
    try:
        current = resolve(hook.path)
        function = resolve(hook.function)
    except CompatibilityError as error:
        return SeamStatus(hook.target, "failed", str(error))
    if not _wraps(current, function):
        return SeamStatus(hook.target, "failed", "SGLang's loader did not apply the hook")
    return SeamStatus(hook.target, "applied")


def _entry_status(entry: Entry) -> SeamStatus:
    reason = entry.not_needed()
    if reason:
        return SeamStatus(entry.name, "not needed", reason)
    try:
        present = entry.present()
    except (ImportError, AttributeError) as error:
        return SeamStatus(entry.name, "failed", f"its registry is not there: {error}")
    if not present:
        return SeamStatus(entry.name, "failed", "the registry does not hold the entry")
    return SeamStatus(entry.name, "applied")


def _wraps(current: Any, function: Callable[..., Any]) -> bool:
    """Whether ``function`` is somewhere in the chain of wrappers around ``current``."""
    seen: Any = getattr(current, "__func__", current)
    while seen is not None:
        cells = getattr(seen, "__closure__", None) or ()
        if any(_holds(cell, function) for cell in cells):
            return True
        seen = getattr(seen, "__wrapped__", None)
    return False


def _holds(cell: Any, function: Callable[..., Any]) -> bool:
    try:
        return cell.cell_contents is function
    except ValueError:  # a cell that was never filled
        return False
