"""The ``--ext-*`` flags as one frozen tree, parsed once and carried to every process.

Pure: neither torch nor SGLang is imported. `plugin/` puts the flags on SGLang's parser,
calls `parse`, and lays the result on the server's record of arguments, which SGLang pickles
to each of its processes.

One flag switches a capability on and sets the stock flags it needs (`stock.stock_settings`). A
stock flag that the user gave himself and that contradicts it is an error that names both.

A capability has its flags and its part of the tree in a module of its own, is named in
`CAPABILITIES`, and is a field of `ExtConfig`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sglang_ext.config import cache, context_parallel, tools
from sglang_ext.config.cache import CacheConfig
from sglang_ext.config.context_parallel import ContextParallelConfig
from sglang_ext.config.flag import Flag, read
from sglang_ext.config.tools import ToolsConfig

__all__ = ["CAPABILITIES", "FLAGS", "Capability", "ExtConfig", "describe", "parse"]


@dataclass(frozen=True)
class Capability:
    """What is switched on together: its field of `ExtConfig`, its flags, its part of the tree."""

    name: str
    flags: tuple[Flag, ...]
    config: Callable[..., Any]
    # Refuses flags that need one another and are not together.
    check: Callable[[Any], None]


CAPABILITIES: tuple[Capability, ...] = (
    Capability("cache", cache.FLAGS, CacheConfig, cache.check_together),
    Capability(
        "context_parallel",
        context_parallel.FLAGS,
        ContextParallelConfig,
        context_parallel.check_together,
    ),
    Capability("tools", tools.FLAGS, ToolsConfig, tools.check_together),
)

FLAGS: tuple[Flag, ...] = tuple(flag for part in CAPABILITIES for flag in part.flags)


@dataclass(frozen=True)
class ExtConfig:
    """Everything that sglang-ext was asked for; frozen, so that all processes agree.

    ``secret`` keys the marks of prompts; it is never shown.
    """

    cache: CacheConfig = field(default_factory=CacheConfig)
    context_parallel: ContextParallelConfig = field(default_factory=ContextParallelConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    secret: bytes = field(default=b"", repr=False)

    @property
    def active(self) -> bool:
        """Whether any capability was switched on."""
        return self.cache.enabled or self.context_parallel.enabled or self.tools.enforce


def parse(values: Mapping[str, Any]) -> ExtConfig:
    """The config from raw flag values, keyed by argparse attribute (`Flag.dest`).

    Raises:
        ConfigError: a value cannot be read, or flags that need one another are not together.
    """
    parts = {}
    for part in CAPABILITIES:
        parts[part.name] = part.config(**read(part.flags, values))
        part.check(parts[part.name])
    return ExtConfig(**parts)


def describe(config: ExtConfig) -> dict[str, Any]:
    """The config as plain values, for `/server_info` and the log."""
    return {
        f"{part.name}_{field.name}": getattr(getattr(config, part.name), field.name)
        for part in CAPABILITIES
        for field in fields(getattr(config, part.name))
    }
