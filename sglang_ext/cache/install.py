"""Puts our radix cache into SGLang's registries, where ``--radix-cache-backend`` finds it.

Imports SGLang when called.
"""

import functools
import logging
import secrets
import sys
from typing import Any

from sglang_ext.cache.hooks import opening
from sglang_ext.cache.settings import TreeSettings

__all__ = [
    "BACKEND",
    "create_cache",
    "create_core",
    "not_needed",
    "on_settings",
    "present",
    "register",
]

logger = logging.getLogger(__name__)

BACKEND = "sglang_ext"
REGISTRY = "sglang.srt.mem_cache.registry"

_settings_of: Any = None


def on_settings(read: Any) -> None:
    """How the settings of a server are read from SGLang's record of its arguments."""
    global _settings_of
    _settings_of = read


@functools.cache
def not_needed() -> str:
    """Why this process has no use for it: importing SGLang's caches takes seconds, and sgl_kernel.

    A scheduler has imported them before it loads plugins. The first answer stays: a process that
    imports them later has no tree of its own.
    """
    return "" if REGISTRY in sys.modules else "this process has no caches of SGLang's"


def register() -> None:
    """Enter both factories; what is already there is left."""
    from sglang.srt.mem_cache.registry import (
        get_radix_cache_factory,
        register_radix_cache_backend,
    )
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import (
        get_tree_core_factory,
        register_tree_core_backend,
    )

    if get_radix_cache_factory(BACKEND) is None:
        register_radix_cache_backend(BACKEND, create_cache)
    if get_tree_core_factory(BACKEND) is None:
        register_tree_core_backend(BACKEND, create_core)


def present() -> bool:
    """Whether SGLang's registries hold both."""
    from sglang.srt.mem_cache.registry import get_radix_cache_factory
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import get_tree_core_factory

    cache, core = get_radix_cache_factory(BACKEND), get_tree_core_factory(BACKEND)
    return cache is create_cache and core is create_core


def create_cache(ctx: Any) -> Any:
    """SGLang's factory of a radix cache; called once in each scheduler."""
    from sglang_ext.cache import tree

    settings = None if _settings_of is None else _settings_of(ctx.server_args)
    if settings is None:
        settings = TreeSettings(secret=secrets.token_bytes(16))
    missing = opening("tree")
    if missing:
        logger.error("Without %s nothing is shown of the cache", ", ".join(missing))
    return tree.create(settings, ctx)


def create_core(params: Any, components: Any) -> Any:
    """SGLang's factory of a tree core."""
    from sglang_ext.cache import tree

    return tree.create_core(params, components)
