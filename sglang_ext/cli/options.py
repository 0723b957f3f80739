"""Options that several commands share, so that they read alike everywhere."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from sglang_ext.errors import ConfigError

__all__ = ["json_option", "open_json", "unwind_on_sigterm", "workdir_option", "write_json"]


def json_option(what: str = "the result") -> Callable[..., Any]:
    """``--json FILE``, as ``json_file: Path | None``."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help=f"Also write {what} as one JSON object.",
    )


def workdir_option(default: str, what: str) -> Callable[..., Any]:
    """``--workdir DIR``, as ``workdir: Path``."""
    return click.option(
        "--workdir",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path(default),
        show_default=True,
        metavar="DIR",
        help=what,
    )


def open_json(file: Path | None) -> None:
    """Fail now when ``file`` cannot be written: before minutes of work, not after.

    Raises:
        ConfigError: it is ``-``.
        OSError: its folder cannot be made, or it cannot be opened.
    """
    if file == Path("-"):
        raise ConfigError("--json: '-' is no file", fix="give a path; /dev/stdout is one")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a", encoding="utf-8").close()


def write_json(file: Path | None, result: Any) -> None:
    """Write ``result`` to ``file``, unless it is None."""
    if file is None:
        return
    try:
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def unwind_on_sigterm() -> None:
    """Take SIGTERM as Ctrl-C: a polite end must leave neither servers nor data sets behind."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
