"""``sglang-ext tools``: looks at the tool calls of a server."""

import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sglang_ext.cli.options import json_option, open_json, write_json

__all__ = ["tools"]

_SHOWN = 10  # findings on a terminal; the file has all
_API_KEY = "OPENAI_API_KEY"


@click.group()
def tools() -> None:
    """Look at the tool calls of a server."""


@tools.command(
    epilog="Exit codes: 0 all checks held, 1 one did not, 2 wrong use. When a model calls is its "
    "own choice, so trigger F1 is no check."
)
@click.option(
    "--base-url",
    required=True,
    metavar="URL",
    help="Of an OpenAI-compatible server, with /v1, such as http://127.0.0.1:30000/v1.",
)
@click.option("--model", default="", help="Default: the first that the server lists.")
@click.option("--requests", default=100, show_default=True, help="Requests, at least 20.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds for one request.")
@json_option("the figures")
def verify(
    base_url: str, model: str, requests: int, timeout: float, json_file: Path | None
) -> None:
    """Schema accuracy, when to call, named and parallel choice, streams, truncation.

    Works against any server; the key in OPENAI_API_KEY is sent along.
    """
    from sglang_ext.bench.chat import Endpoint
    from sglang_ext.bench.tool_verify import verify_tools

    open_json(json_file)
    end = Endpoint(base_url.rstrip("/"), model, os.environ.get(_API_KEY, ""), timeout)
    if not model:
        end = Endpoint(end.base_url, end.first_model(), end.api_key, timeout)
    console = Console(stderr=True)
    with console.status("") as status:
        result = verify_tools(end, requests, status.update)
    write_json(json_file, {"model": end.model, **result})
    _print(result)
    sys.exit(1 if result["findings"] else 0)


_ROWS = (
    ("calls that are valid for their schema", "schema_accuracy"),
    ("when to call (F1)", "trigger_f1"),
    ("a named choice is called", "named_respected"),
    ("one call at most where one is asked for", "parallel_respected"),
    ("a stream shows the same", "stream_equal"),
    ("truncation is honest", "truncation_honest"),
    ("hostile schemas are answered", "hostile_answered"),
)


def _print(result: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("", justify="right")
    for title, name in _ROWS:
        value = result[name]
        table.add_row(title, "no such answer" if value is None else f"{value:.1%}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    findings = result["findings"]
    for finding in findings[:_SHOWN]:
        click.echo(f"finding: {finding}")
    if len(findings) > _SHOWN:
        click.echo(f"and {len(findings) - _SHOWN} more; --json FILE has all")
