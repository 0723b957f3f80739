"""``--ext-tools``: tool calls that are always valid, and the stock flags that contradict it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_ext.config.flag import Flag
from sglang_ext.errors import ConfigError, FlagConflictError

__all__ = ["FLAGS", "ToolsConfig", "check_together", "check_values"]


@dataclass(frozen=True)
class ToolsConfig:
    """Tool calls."""

    enforce: bool = False


def _parse_mode(text: str) -> bool:
    if text not in ("off", "enforce"):
        raise ConfigError(f"{text!r} is not a mode; expected off or enforce")
    return text == "enforce"


FLAGS: tuple[Flag, ...] = (
    Flag(
        "--ext-tools",
        "enforce",
        "Tool calls that are always valid: enforce holds every call to its tool's schema while "
        "decoding and checks it once more; a call that is not whole and valid is not shown as one. "
        "Needs --tool-call-parser. Default: off.",
        _parse_mode,
        "{off,enforce}",
    ),
)


def check_together(_tools: ToolsConfig) -> None:
    """Refuse flags that need one another and are not together; there is none."""


def check_values(tools: ToolsConfig, given: Mapping[str, Any]) -> None:
    """Refuse values of stock flags that contradict ``tools``.

    Raises:
        ConfigError: the parser of the model's calls is not given.
        FlagConflictError: names both flags.
    """
    if not tools.enforce:
        return
    if not given.get("tool_call_parser"):
        raise ConfigError(
            "--ext-tools enforce needs --tool-call-parser, the way in which the model writes its "
            "calls, such as hermes or qwen"
        )
    backend = given.get("grammar_backend", "xgrammar")
    if backend not in (None, "xgrammar"):
        raise FlagConflictError(
            f"--grammar-backend {backend} contradicts --ext-tools enforce, whose grammars are "
            "xgrammar's; drop one of them"
        )
