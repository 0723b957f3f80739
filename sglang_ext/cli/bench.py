"""``sglang-ext bench``: ours, the rivals and the physical limit in one run."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sglang_ext.cli.bench_cache import cache
from sglang_ext.cli.bench_live import live
from sglang_ext.cli.bench_prefill import prefill
from sglang_ext.cli.bench_store import store
from sglang_ext.cli.bench_tools import tools
from sglang_ext.cli.options import (
    json_option,
    open_json,
    unwind_on_sigterm,
    workdir_option,
    write_json,
)
from sglang_ext.models import default_folder

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure ours, the rivals and the physical limit in one run; medians of several rounds."""
    unwind_on_sigterm()


bench.add_command(cache)
bench.add_command(live)
bench.add_command(prefill)
bench.add_command(store)
bench.add_command(tools)


@bench.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Model folder. Default: smollm2 as made by `sglang-ext model`.",
)
@click.option("--prompt-tokens", default=3001, show_default=True, help="Length of each prompt.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; medians are shown.")
@workdir_option("build", "Where the servers' logs go.")
@json_option("the figures")
def device(
    model: Path | None, prompt_tokens: int, rounds: int, workdir: Path, json_file: Path | None
) -> None:
    """Prefill cold, prefill after a prefix hit, and decode: ours beside torch_native."""
    from sglang_ext.bench.device import bench_device

    folder = model or default_folder("smollm2")
    open_json(json_file)
    console = Console(stderr=True)
    with console.status("") as status:

        def on_step(step: str) -> None:
            status.update(step)
            if not console.is_terminal:
                click.echo(step, err=True)

        result = bench_device(
            folder, prompt_tokens=prompt_tokens, rounds=rounds, workdir=workdir, on_step=on_step
        )
    write_json(json_file, result)
    _print_device(result)


def _print_device(result: dict[str, Any]) -> None:
    rival, limit = result["torch_native"], result["limit"]
    table = Table(title=f"{result['prompt_tokens']} prompt tokens, medians of {result['rounds']}")
    for heading in ("", "sglang-ext", "torch_native", "machine"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = (
        ("cold prefill, s", "cold_prefill_s", "{:.3f}"),
        ("warm prefill (1 new token), s", "warm_prefill_s", "{:.3f}"),
        ("cold / warm", "ratio", "{:.1f}"),
        ("decode, tokens/s", "decode_tokens_s", "{:.1f}"),
    )
    for title, name, form in rows:
        at_best = form.format(limit[name]) if name in limit else ""
        table.add_row(title, form.format(result[name]), form.format(rival[name]), at_best)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    click.echo(
        f"machine: {limit['gflops']} GFLOP/s of matrix product, {limit['read_gb_s']} GB/s of "
        "reading; attention and sampling not counted"
    )
