"""``sglang-ext bench prefill``: context-parallel prefill beside what stock SGLang does."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sglang_ext.cli.options import json_option, open_json, write_json

__all__ = ["prefill"]

_PLAIN_WIDTH = 100


@click.command()
@click.option("--batches", default=400, show_default=True, help="Random mixed batches.")
@json_option("the figures")
def prefill(batches: int, json_file: Path | None) -> None:
    """Balance over ranks and collectives of a layer: ours beside SGLang's two splits.

    No server runs, and no time on an accelerator is claimed.
    """
    from sglang_ext.bench.prefill import bench_prefill

    open_json(json_file)
    result = bench_prefill(batches, lambda step: click.echo(step, err=True))
    write_json(json_file, result)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(_balance_table(result["balance"]))
    console.print(_collectives_table(result["collectives"]))


def _balance_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="dearest rank over what whole tokens allow; mean and p95", title_justify="left"
    )
    for heading in ("batch", "ranks", "scheme", "split", "attention", "tokens", "plan, us"):
        table.add_column(heading, justify="left" if heading in ("batch", "scheme") else "right")
    for row in rows:
        table.add_row(
            row["batch"],
            str(row["ranks"]),
            row["scheme"],
            f"{row['handled']:.0%}",
            _pair(row["attention_over_bound"], row["attention_over_bound_p95"]),
            _pair(row["tokens_over_bound"], row["tokens_over_bound_p95"]),
            f"{row['plan_us']:.0f}",
            end_section=row["scheme"] == "interleave",
        )
    return table


def _collectives_table(result: dict[str, Any]) -> Table:
    title = f"one layer's attention, {result['tokens']} tokens on {result['ranks']} ranks"
    table = Table(title=title, title_justify="left")
    for heading in ("shape", "scheme", "AllGathers", "bytes a rank receives"):
        table.add_column(heading, justify="left" if heading in ("shape", "scheme") else "right")
    schemes = (("ext", result["ext"]), ("zigzag", result["zigzag"]))
    for name, row in (
        *schemes,
        ("ext", result["ext"]["dsa"]),
        ("interleave", result["interleave"]),
    ):
        table.add_row(row["shape"], name, str(row["per_layer"]), f"{row['bytes_per_rank']:,}")
    return table


def _pair(mean: float | None, p95: float | None) -> str:
    return "" if mean is None or p95 is None else f"{mean:.3f} {p95:.3f}"
