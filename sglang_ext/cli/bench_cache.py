"""``sglang-ext bench cache``: what the radix tree costs the scheduler."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sglang_ext.bench.cache import CORES, CacheBench, bench_cache
from sglang_ext.cli.options import json_option, open_json, write_json

__all__ = ["cache"]


@click.command(
    epilog="Exit codes: 0 within the goal, 1 match, insert and evict cost more than 1.5 x SGLang's "
    "Rust core, 2 wrong use."
)
@click.option("--rounds", default=20, show_default=True, help="Requests; medians are shown.")
@click.option(
    "--leaves",
    default="0,2000,20000",
    show_default=True,
    metavar="LIST",
    help="Leaves beside those of the sessions.",
)
@click.option(
    "--cores", default=",".join(CORES), show_default=True, metavar="LIST", help="Who takes part."
)
@click.option("--page-tokens", default=64, show_default=True, help="Tokens a page.")
@json_option("the figures")
def cache(rounds: int, leaves: str, cores: str, page_tokens: int, json_file: Path | None) -> None:
    """Match, insert and evict of a 100,000-token request with a million tokens resident."""
    try:
        counts = tuple(int(part) for part in leaves.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{leaves!r} is no list of numbers", param_hint="--leaves"
        ) from None
    what = CacheBench(
        cores=tuple(part.strip() for part in cores.split(",")),
        leaves=counts,
        rounds=rounds,
        page_tokens=page_tokens,
    )
    open_json(json_file)
    console = Console(stderr=True)
    with console.status("") as status:
        result = bench_cache(what, status.update)
    write_json(json_file, result)
    _print(result)
    sys.exit(1 if result["findings"] else 0)


def _print(result: dict[str, Any]) -> None:
    table = Table(title="CPU microseconds a request, medians", title_justify="left")
    three = "match", "insert", "evict"
    for heading in ("leaves", "core", *three, "sum", "of rust", "policy", "all"):
        table.add_column(heading, justify="left" if heading == "core" else "right", no_wrap=True)
    rust = {row["leaves"]: row["sum_us"] for row in result["tree"] if row["core"] == "rust"}
    for row in result["tree"]:
        best, ours = rust.get(row["leaves"]), row["core"] == "sglang_ext"
        table.add_row(
            f"{row['leaves']:,}",
            row["core"],
            *(f"{row[f'{name}_us']:,.0f}" for name in (*three, "sum")),
            f"{row['sum_us'] / best:.2f}" if best else "",
            *(f"{row[f'{name}_us']:,.0f}" if ours else "" for name in ("policy", "all")),
        )
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    for finding in result["findings"]:
        click.echo(f"FINDING: {finding}")
