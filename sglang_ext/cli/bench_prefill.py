"""``sglang-ext bench prefill``: context-parallel prefill beside what stock SGLang does."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sglang_ext.cli.options import json_option, open_json, workdir_option, write_json
from sglang_ext.models import default_folder

__all__ = ["prefill"]

_PLAIN_WIDTH = 100


@click.command()
@click.option("--batches", default=400, show_default=True, help="Random mixed batches.")
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Model folder. Default: smollm2 as made by `sglang-ext model`.",
)
@click.option("--rounds", default=3, show_default=True, help="Rounds of each timed prompt.")
@click.option("--servers/--no-servers", default=True, help="Time real servers. Default: they are.")
@workdir_option("build", "Where the servers' logs go.")
@json_option("the figures")
def prefill(
    batches: int,
    model: Path | None,
    rounds: int,
    servers: bool,
    workdir: Path,
    json_file: Path | None,
) -> None:
    """Context-parallel prefill: balance and collectives beside SGLang's, one rank against two.

    No time on an accelerator is claimed.
    """
    from sglang_ext.bench.prefill import bench_prefill

    open_json(json_file)
    folder = (model or default_folder("smollm2")) if servers else None
    result = bench_prefill(
        batches, folder, rounds, workdir, lambda step: click.echo(step, err=True)
    )
    write_json(json_file, result)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(_balance_table(result["balance"]))
    console.print(_collectives_table(result["collectives"]))
    if "speedup" in result:
        console.print(_speedup_table(result["model"]["points"], result["speedup"]))
        console.print(_model_table(result["model"]))
    console.print(_anchors_table(result["anchors"]))


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


def _speedup_table(points: list[dict[str, Any]], speedup: dict[str, Any]) -> Table:
    gained = f"{speedup['ratio']} x at {speedup['prompt_tokens']} tokens"
    title = f"cold prefill, a core for each rank: {gained}"
    table = Table(title=title, title_justify="left")
    for heading in ("tokens", "ranks", "seconds", "model, s", "error", ""):
        table.add_column(heading, justify="right")
    for point in sorted(points, key=lambda one: (one["tokens"], one["ranks"])):
        table.add_row(
            f"{point['tokens']:,}",
            str(point["ranks"]),
            f"{point['measured_s']:.3f}",
            f"{point['model_s']:.3f}",
            f"{point['error']:+.1%}",
            "held out" if point["held_out"] else "",
        )
    return table


def _model_table(model: dict[str, Any]) -> Table:
    error = model["held_out_error"]
    title = f"more such ranks, by a model with an error of {error['mean']:.1%} where held out"
    table = Table(title=title, title_justify="left")
    for heading in ("tokens", "ranks", "seconds", "efficiency"):
        table.add_column(heading, justify="right")
    for row in model["what_if"]:
        table.add_row(
            f"{row['tokens']:,}",
            str(row["ranks"]),
            f"{row['seconds']:,.1f}",
            f"{row['efficiency']:.1%}",
        )
    return table


def _anchors_table(anchors: dict[str, Any]) -> Table:
    check = anchors["check"]
    title = (
        f"{anchors['model']} after {anchors['source']}, predicted; of {check['tokens']:,} tokens "
        f"{check['model_s']} s where {check['published_s']} s are published"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("tokens", "devices", "GB/s", "AllGathers hidden, s", "exposed, s"):
        table.add_column(heading, justify="right")
    for row in anchors["what_if"]:
        table.add_row(
            f"{row['tokens']:,}",
            str(row["devices"]),
            str(row["interconnect_gb_s"]),
            f"{row['hidden_s']:.2f}",
            f"{row['exposed_s']:.2f}",
        )
    return table


def _pair(mean: float | None, p95: float | None) -> str:
    return "" if mean is None or p95 is None else f"{mean:.3f} {p95:.3f}"
