"""``--ext-tools``: tool calls that are always valid, and the stock flags that contradict it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_ext.config.flag import Flag, parse_dir
from sglang_ext.errors import ConfigError, FlagConflictError

__all__ = ["FLAGS", "PARTS", "ToolsConfig", "check_together", "check_values"]

# Parts of decoding that can be switched off; see `sglang_ext.tools.parts`.
PARTS = ("completion", "repetition", "duplicates", "greedy", "penalties")


@dataclass(frozen=True)
class ToolsConfig:
    """Tool calls."""

    enforce: bool = False
    without: tuple[str, ...] = ()
    warm_dir: str | None = None


def _parse_mode(text: str) -> bool:
    if text not in ("off", "enforce"):
        raise ConfigError(f"{text!r} is not a mode; expected off or enforce")
    return text == "enforce"


def _parse_parts(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in PARTS:
            raise ConfigError(f"{name!r} is not a part; expected some of {', '.join(PARTS)}")
    return names


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
    Flag(
        "--ext-tools-without",
        "without",
        "Parts of --ext-tools enforce to leave out, with commas between: completion (the shortest "
        "legal end where the token budget runs out), repetition (the same where the model repeats "
        "itself), duplicates (a call that the answer has already ends it, and is not shown twice), "
        "greedy (no sampling where the grammar leaves little choice), penalties (none "
        "there). Default: all are on.",
        _parse_parts,
        "PARTS",
    ),
    Flag(
        "--ext-tools-warm-dir",
        "warm_dir",
        "Folder on a local disk, this user's alone, in which the grammars' texts of --ext-tools "
        "enforce are kept: names and schemas of the clients' tools, no prompts and no answers. A "
        "server that starts again compiles them in the background. Default: none is kept.",
        parse_dir,
        "DIR",
    ),
)


def check_together(tools: ToolsConfig) -> None:
    """Refuse flags that need one another and are not together.

    Raises:
        ConfigError: names the flags.
    """
    if tools.enforce:
        return
    for flag, given in (
        ("--ext-tools-without", tools.without),
        ("--ext-tools-warm-dir", tools.warm_dir),
    ):
        if given:
            raise ConfigError(
                f"{flag} does nothing without --ext-tools enforce; add --ext-tools enforce"
            )


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
    if tools.warm_dir and given.get("reasoning_parser"):
        raise FlagConflictError(
            f"--reasoning-parser {given['reasoning_parser']} contradicts --ext-tools-warm-dir: "
            "grammars of models that reason are not kept; leave out --ext-tools-warm-dir"
        )
