"""``sglang-ext bench store``: the page store beside its rivals and the disk itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sglang_ext.bench.store import ENGINE_NAMES, PAGE_BYTES, OnStep, StoreBench, bench_store
from sglang_ext.cli.options import json_option, open_json, write_json
from sglang_ext.config.sizes import parse_size

__all__ = ["store"]

_PLAIN_WIDTH = 100


@click.command(
    epilog="Exit codes: 0 every page came back right and all that our store kept is reachable; "
    "1 one of these did not hold, or fio failed; 2 wrong use, such as a package that is missing."
)
@click.option("--rounds", default=5, show_default=True, help="Rounds; medians are shown.")
@click.option(
    "--bytes",
    "data_bytes",
    default="1GiB",
    show_default=True,
    metavar="SIZE",
    help="Data set of each page size: twice on disk, once in memory.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build"),
    show_default=True,
    metavar="DIR",
    help="Folder on the disk to measure; what is made there is removed again.",
)
@click.option(
    "--engines",
    default=",".join(ENGINE_NAMES),
    show_default=True,
    metavar="LIST",
    help="Who takes part; fio is the ceiling.",
)
@click.option(
    "--page-sizes",
    default=",".join(f"{size // 1024}KiB" for size in PAGE_BYTES),
    show_default=True,
    metavar="LIST",
    help="Bytes a page, multiples of 4 KiB.",
)
@json_option("the figures")
def store(
    rounds: int,
    data_bytes: str,
    folder: Path,
    engines: str,
    page_sizes: str,
    json_file: Path | None,
) -> None:
    """Cold reads and durable writes of pages: ours, the rivals and the disk's best."""
    what = StoreBench(
        folder=folder,
        data_bytes=parse_size(data_bytes),
        rounds=rounds,
        engines=_listed(engines),
        page_sizes=tuple(parse_size(size) for size in _listed(page_sizes)),
    )
    open_json(json_file)
    with _progress(what.steps) as on_step:
        result = bench_store(what, on_step)
    write_json(json_file, result)
    _print(result)
    sys.exit(1 if result["findings"] else 0)


def _listed(text: str) -> tuple[str, ...]:
    """The items of a list with commas, each once, in order."""
    return tuple(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))


@contextmanager
def _progress(steps: int) -> Iterator[OnStep]:
    """A bar on a terminal, a line for each step elsewhere.

    The bar is drawn between steps alone: a thread that draws would take time from what is measured.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done: click.echo(f"{done + 1}/{steps} {what}", err=True)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    with Progress(*columns, text, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=steps)

        def on_step(what: str, done: int) -> None:
            bar.update(task, completed=done, description=what, refresh=True)

        yield on_step


def _print(result: dict[str, Any]) -> None:
    ceiling = {
        (row["op"], row["page_bytes"]): row["mb_s"]
        for row in result["rows"]
        if row["engine"] == "fio"
    }
    title = f"cold reads and durable writes, medians of {result['rounds']} rounds"
    table = Table(title=title, title_justify="left")
    for heading in ("page", "op", "engine", "MB/s", "of fio", "p50 ms", "p99 ms", "CPU s/GB"):
        is_text = heading in ("op", "engine")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    order = sorted(result["rows"], key=lambda row: (row["page_bytes"], row["op"]))
    before = None
    for row in order:
        group = row["op"], row["page_bytes"]
        if before not in (None, group):
            table.add_section()
        before = group
        best = ceiling.get(group)
        table.add_row(
            f"{row['page_bytes'] // 1024} KiB",
            row["op"],
            row["engine"],
            f"{row['mb_s']:,.0f}",
            f"{row['mb_s'] / best:.0%}" if best else "",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['cpu_s_per_gb']:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(table)
    click.echo("Latencies are of a call of up to 128 pages; those of fio are of one block.")
    for name, share in result["reachable"].items():
        click.echo(f"Reachable of what {name} keeps in a full store: {share:.1%}")
    for goal in result["goals"]:
        mark = "met" if goal["met"] else "MISSED"
        click.echo(f"{mark}: {goal['what']}: {goal['found']:.2f}, goal {goal['target']:.2f}")
    for finding in result["findings"]:
        click.echo(f"FINDING: {finding}")
