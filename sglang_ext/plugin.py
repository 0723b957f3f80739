"""The door to SGLang's hooks: registers every one of them, and verifies that each took effect.

SGLang's loader logs a plugin that fails and goes on without it. Here nothing fails silently:
after the loader has applied its hooks, each of ours is looked up where it should now be, in every
process, and one that is missing stops the process. ``SGLANG_EXT_STRICT=0`` goes on instead, says
so in the log, and shows it in ``/server_info``. ``SGLANG_EXT_DISABLE=1`` is stock SGLang.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sglang_ext import __version__, upstream
from sglang_ext.cache import front, install
from sglang_ext.cache.hooks import on_opening
from sglang_ext.errors import CompatibilityError, HookError
from sglang_ext.serve_help import load_plugins_before_help

if TYPE_CHECKING:
    import argparse

__all__ = [
    "DISABLE",
    "GROUPS",
    "STRICT",
    "Hook",
    "SeamStatus",
    "activate_platform",
    "hooks",
    "open_group",
    "register",
    "seam_statuses",
]

logger = logging.getLogger(__name__)

DISABLE = "SGLANG_EXT_DISABLE"
STRICT = "SGLANG_EXT_STRICT"
_MARK = "_verified_by_sglang_ext"
# Hooks of these are put in place when they are opened (`open_group`), with what they lack said so.
GROUPS = {
    "disk_tier": "this process has no disk tier",
    "tree": "this process steers no tree",
    "front": "this process takes no requests for a steered tree",
}
PLATFORM = "sglang_ext.device.cpu.ReferencePlatform"


@dataclass(frozen=True)
class Hook:
    """One hook: the symbol of `upstream.SYMBOLS`, how it wraps, our function, and where it holds.

    ``function`` is ``module:name`` and imported only when the hook is put in place.
    """

    path: str
    kind: str  # BEFORE, AFTER or AROUND: see SGLang's HookType
    function: str
    reference_device: bool = False  # only where the reference platform is active
    disk_tier: bool = False  # only in a process that opens the disk tier
    tree: bool = False  # only in a process that steers its radix tree
    front: bool = False  # only in a process that takes requests for such trees

    @property
    def groups(self) -> tuple[str, ...]:
        """What must have been opened in a process for the hook to hold there; any one suffices."""
        return tuple(name for name in GROUPS if getattr(self, name))

    @property
    def target(self) -> str:
        """Dotted path, as SGLang's hook registry takes it."""
        return self.path.replace(":", ".")


@dataclass(frozen=True)
class SeamStatus:
    """What became of one hook or registry entry in this process."""

    name: str
    state: str  # applied, not needed, failed
    detail: str = ""


_HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.server_args:ServerArgs.add_cli_args",
        "AFTER",
        "sglang_ext.plugin:add_flags",
    ),
    Hook(
        "sglang.srt.server_args:ServerArgs.from_cli_args",
        "AROUND",
        "sglang_ext.plugin:take_config",
    ),
    Hook(
        "sglang.srt.utils.common:build_server_info",
        "AFTER",
        "sglang_ext.plugin:show_in_server_info",
    ),
    Hook(
        "sglang.srt.distributed.bootstrap:_bind_threads_if_cpu",
        "AROUND",
        "sglang_ext.device.threads:bind_threads",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.distributed.bootstrap:_init_cpu_threads_env",
        "AROUND",
        "sglang_ext.device.threads:init_threads",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.distributed.parallel_state:GroupCoordinator.all_gather_into_tensor",
        "AROUND",
        "sglang_ext.device.hooks:all_gather_without_custom_op",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.pool_host.base:HostKVCache.__init__",
        "AROUND",
        "sglang_ext.device.hooks:unpinned_host_pool",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.pool_host.mha:MHATokenToKVPoolHost.load_to_device_per_layer",
        "AROUND",
        "sglang_ext.device.host_transfer:load_layer",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.pool_host.mha:MHATokenToKVPoolHost.backup_from_device_all_layer",
        "AROUND",
        "sglang_ext.device.host_transfer:backup_all_layers",
        reference_device=True,
    ),
    Hook(
        "sglang.srt.mem_cache.cpp_utils.native_hash:get_native_hash",
        "AROUND",
        "sglang_ext.cache.hooks:hash_without_compiler",
        reference_device=True,
    ),
    # Put in place when a scheduler opens the disk tier: their modules are large, and nothing of
    # SGLang is to be different where nobody asked for the tier.
    Hook(
        "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.match_prefix",
        "AFTER",
        "sglang_ext.cache.hooks:refresh_on_hit",
        disk_tier=True,
    ),
    Hook(
        "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller:"
        "HybridCacheController._page_backup",
        "AROUND",
        "sglang_ext.cache.hooks:backup_as_one",
        disk_tier=True,
    ),
    Hook(
        f"{upstream.WEIGHT_UPDATER}._observe_weight_load",
        "BEFORE",
        "sglang_ext.cache.hooks:weights_change",
        disk_tier=True,
    ),
    Hook(
        f"{upstream.WEIGHT_UPDATER}.flush_cache_after_weight_update",
        "AFTER",
        "sglang_ext.cache.hooks:weights_changed",
        disk_tier=True,
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.internal_state:"
        "SchedulerInternalStateController.get_internal_state",
        "AFTER",
        "sglang_ext.cache.hooks:show_state",
        disk_tier=True,
        tree=True,
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request",
        "AROUND",
        "sglang_ext.cache.front:carry_request",
        front=True,
    ),
)


def _of_the_reference_device() -> str:
    """Why an entry of the reference device has no place in this process."""
    return "" if reference_device() else "SGLang knows this device"


@dataclass(frozen=True)
class Entry:
    """One entry in a registry of SGLang's: how it is made, and how to see that it is there."""

    name: str
    register: Callable[[], None]
    present: Callable[[], bool]
    # Why it has no place in this process; empty where it has one.
    not_needed: Callable[[], str] = _of_the_reference_device


def _register_attention() -> None:
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    from sglang_ext.device import ATTENTION_BACKEND
    from sglang_ext.device.hooks import create_attention_backend

    register_attention_backend(ATTENTION_BACKEND)(create_attention_backend)
    if ATTENTION_BACKEND not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([ATTENTION_BACKEND])


def _attention_present() -> bool:
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    from sglang_ext.device import ATTENTION_BACKEND
    from sglang_ext.device.hooks import create_attention_backend

    registered = ATTENTION_BACKENDS.get(ATTENTION_BACKEND) is create_attention_backend
    return registered and ATTENTION_BACKEND in ATTENTION_BACKEND_CHOICES


def _register_defaults() -> None:
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    from sglang_ext.device.hooks import default_backends

    register_resolution_hook("handle_cpu_backends")(default_backends)


def _defaults_present() -> bool:
    from sglang.srt.arg_groups import resolution_hooks

    from sglang_ext.device.hooks import default_backends

    registered = resolution_hooks._HOOKS  # noqa: SLF001 - the registry has no reader
    return default_backends in registered.get("handle_cpu_backends", ())


def _register_streams() -> None:
    from sglang_ext.device.hooks import complete_cpu_streams

    complete_cpu_streams()


def _streams_present() -> bool:
    import torch

    return hasattr(torch.cpu.Stream, "synchronize")


_ENTRIES: tuple[Entry, ...] = (
    Entry("attention backend sglang_ext_cpu", _register_attention, _attention_present),
    Entry("resolution of handle_cpu_backends", _register_defaults, _defaults_present),
    Entry("torch.cpu.Stream.synchronize", _register_streams, _streams_present),
    Entry("radix cache sglang_ext", install.register, install.present, install.not_needed),
)

_statuses: list[SeamStatus] = []
_opened: set[str] = set()  # groups of hooks, in this process


def hooks() -> tuple[Hook, ...]:
    """All hooks, those of the reference device included."""
    return _HOOKS


def seam_statuses() -> tuple[SeamStatus, ...]:
    """What became of each seam in this process; empty before SGLang's loader has run."""
    return tuple(_statuses)


def disabled() -> bool:
    """Whether ``SGLANG_EXT_DISABLE`` asks for stock SGLang."""
    return os.environ.get(DISABLE, "0") not in ("", "0")


def strict() -> bool:
    """Whether a seam that failed stops the process (the default)."""
    return os.environ.get(STRICT, "1") != "0"


def activate_platform() -> str | None:
    """Entry point of group ``sglang.srt.platforms``: the reference platform, where none is known.

    Returns:
        The platform's class as a dotted path, or None where SGLang knows the device itself.
    """
    if disabled():
        return None
    load_plugins_before_help(sys.argv)
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1" or _known_device():
        return None
    try:
        upstream.check_release()
    except CompatibilityError:
        return None  # register() says why; without its hooks the platform would not work
    return PLATFORM


def _known_device() -> bool:
    """Whether torch sees a device that SGLang serves without us.

    Source: ``_resolve_platform`` in ``sglang/srt/platforms/__init__.py``, release 0.5.23.
    """
    import torch

    for name in ("cuda", "xpu", "npu", "musa", "mps", "hpu"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            return True
    return False


def register() -> None:
    """Entry point of group ``sglang.srt.plugins``; called by SGLang's loader in every process.

    Raises:
        SystemExit: SGLang is not of a tested release, or cannot be hooked at all. The loader
            swallows every ordinary exception, and this must not be swallowed.
    """
    if disabled():
        logger.warning("%s is set: sglang-ext is switched off", DISABLE)
        return
    try:
        upstream.check_release()
        upstream.check_torch()
        _wrap_apply_hooks()
    except CompatibilityError as error:
        _refuse(error)
        return
    except Exception as error:  # SGLang's loader would log it and go on without us
        _refuse(CompatibilityError(f"the plugin failed: {type(error).__name__}: {error}"))
        return
    _statuses.clear()
    on_opening(open_group)
    install.on_settings(_tree_settings)
    for hook in _HOOKS:
        _register_hook(hook)
    for entry in _ENTRIES:
        _register_entry(entry)


def open_group(name: str = "disk_tier") -> list[str]:
    """Put a group's hooks in place; called in a process that is about to need them.

    Returns:
        Targets of those that did not take effect, where ``SGLANG_EXT_STRICT=0`` lets that pass.

    Raises:
        SystemExit: one did not take effect.
    """
    first = name not in _opened
    _opened.add(name)
    hooked = [hook for hook in _HOOKS if name in hook.groups]
    if first:
        for hook in hooked:
            _register_hook(hook)
        upstream.resolve("sglang.srt.plugins.hook_registry:HookRegistry").apply_hooks()
    failed = {status.name for status in _statuses if status.state == "failed"}
    return [hook.target for hook in hooked if hook.target in failed]


def _tree_settings(server_args: Any) -> Any:
    from sglang_ext.arguments import tree_settings

    return tree_settings(server_args)


@functools.cache
def reference_device() -> bool:
    """Whether the reference platform is the active one in this process."""
    from sglang.srt.platforms import current_platform

    platform = type(current_platform)
    return f"{platform.__module__}.{platform.__qualname__}" == PLATFORM


def _refuse(error: CompatibilityError) -> None:
    if strict():
        raise SystemExit(
            f"sglang-ext: error: {error} ({STRICT}=0 starts without sglang-ext, on a device that "
            "SGLang itself serves)"
        )
    logger.error("sglang-ext is not active: %s", error)
    _statuses[:] = [SeamStatus("sglang-ext", "failed", str(error))]
    # Whatever release this is: /server_info shall say so if it can.
    _register_hook(next(hook for hook in _HOOKS if hook.function.endswith(":show_in_server_info")))


def _wrap_apply_hooks() -> None:
    """Have SGLang's loader verify our seams as the last thing it does."""
    registry = upstream.resolve("sglang.srt.plugins.hook_registry:HookRegistry")
    plain = registry.apply_hooks
    if getattr(plain, _MARK, False):
        return

    @functools.wraps(plain)
    def apply_hooks(_cls: type) -> None:
        plain()
        verify()

    setattr(apply_hooks, _MARK, True)
    registry.apply_hooks = classmethod(apply_hooks)


def _register_hook(hook: Hook) -> None:
    if _not_needed(hook):
        return
    try:
        registry = upstream.resolve("sglang.srt.plugins.hook_registry:HookRegistry")
        kinds = upstream.resolve("sglang.srt.plugins.hook_registry:HookType")
        upstream.resolve(hook.path)
        registry.register(hook.target, upstream.resolve(hook.function), kinds[hook.kind])
    except Exception as error:  # any cause is reported by verify(), with the seam's name
        logger.debug("Cannot register %s: %s", hook.target, error)


def _register_entry(entry: Entry) -> None:
    if entry.not_needed():
        return
    try:
        entry.register()
    except Exception as error:  # any cause is reported by verify(), with the entry's name
        logger.debug("Cannot register %s: %s", entry.name, error)


def verify() -> None:
    """Look up each hook where it should be; record the outcome and stop if one is missing.

    Raises:
        SystemExit: a seam failed and ``SGLANG_EXT_STRICT`` is not 0.
    """
    _statuses[:] = [_hook_status(hook) for hook in _HOOKS]
    _statuses.extend(_entry_status(entry) for entry in _ENTRIES)
    failed = [status for status in _statuses if status.state == "failed"]
    if not failed:
        return
    message = "; ".join(f"{status.name}: {status.detail}" for status in failed)
    if strict():
        error = HookError(
            f"{len(failed)} of {len(_statuses)} seams did not take effect: {message}. Tested with "
            f"SGLang {', '.join(upstream.TESTED_RELEASES)}, installed is "
            f"{upstream.installed('sglang')}; install a tested release, see `sglang-ext doctor`, "
            f"or set {STRICT}=0 to go on without these, as far as SGLang does"
        )
        raise SystemExit(f"sglang-ext: error: {error}")
    for status in failed:
        logger.error("sglang-ext goes on without %s: %s", status.name, status.detail)


def _not_needed(hook: Hook) -> str:
    """Why a hook has no place in this process; empty where it has one."""
    if hook.reference_device and not reference_device():
        return "SGLang knows this device"
    if hook.groups and not _opened.intersection(hook.groups):
        return GROUPS[hook.groups[0]]
    return ""


def _hook_status(hook: Hook) -> SeamStatus:
    reason = _not_needed(hook)
    if reason:
        return SeamStatus(hook.target, "not needed", reason)
    try:
        current = upstream.resolve(hook.path)
        function = upstream.resolve(hook.function)
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


def add_flags(_result: None, parser: "argparse.ArgumentParser") -> None:
    """AFTER hook of ``ServerArgs.add_cli_args``; see `arguments.add_flags`."""
    from sglang_ext import arguments

    arguments.add_flags(parser, check_always=reference_device())


def take_config(original: Callable[..., Any], cls: type, args: "argparse.Namespace") -> Any:
    """AROUND hook of ``ServerArgs.from_cli_args``; see `arguments.carry_config`.

    The process that parses the arguments is the one that takes requests.
    """
    from sglang_ext import arguments

    record = arguments.carry_config(original, cls, args)
    if arguments.tree_settings(record) is not None:
        open_group("front")
        front.add_routes(getattr(record, "dp_size", 1) or 1)
    return record


def show_in_server_info(
    info: dict[str, Any], server_args: Any, *_args: Any, **_kwargs: Any
) -> dict[str, Any]:
    """AFTER hook of ``build_server_info``: what is installed, asked for and in effect."""
    from sglang_ext.arguments import config_of
    from sglang_ext.config import describe

    failed = [status.name for status in _statuses if status.state == "failed"]
    info["sglang_ext"] = {
        "version": __version__,
        "degraded": bool(failed),
        "config": describe(config_of(server_args)),
        "seams": [asdict(status) for status in _statuses],
    }
    return info
