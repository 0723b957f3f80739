"""``sglang-ext cache``: looks at the disk tier, checks every page of it, gives space back."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sglang_ext.cache import upkeep
from sglang_ext.cli.options import json_option, open_json, write_json
from sglang_ext.config.sizes import format_size, parse_size
from sglang_ext.errors import ConfigError, SglangExtError

__all__ = ["cache"]

_folder = click.argument(
    "folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


@click.group()
def cache() -> None:
    """Look after the disk tier in DIR, the folder of --ext-l3-dir.

    Exit codes: 0 good, 1 a finding, 2 wrong use, or a store that cannot be opened.
    """
    # Whoever reads our output may stop; that is no finding.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


@cache.command()
@_folder
@json_option()
def stat(folder: Path, json_file: Path | None) -> None:
    """Pages, bytes and state of each store. Works beside a running server."""
    open_json(json_file)
    states = [upkeep.look(store) for store in upkeep.stores_in(folder)]
    table = Table(box=None, pad_edge=False)
    for heading in ("store", "pages", "payload", "on disk", "segments", "in use by"):
        table.add_column(heading, justify="left" if heading == "store" else "right")
    for state in states:
        if state.problem and not state.segments:
            table.add_row(state.store, "", "", "", "", "")
            continue
        user = "" if state.in_use_by is None else f"process {state.in_use_by or '?'}"
        sizes = format_size(state.payload_bytes), format_size(state.disk_bytes)
        table.add_row(state.store, str(state.pages), *sizes, str(state.segments), user)
    _console().print(table)
    problems = [state for state in states if state.problem]
    for state in problems:
        click.echo(f"{state.store}: {state.problem}", err=True)
    totals = {
        name: sum(getattr(state, name) for state in states)
        for name in ("pages", "payload_bytes", "disk_bytes")
    }
    write_json(json_file, {"ok": not problems, **totals, "stores": [asdict(one) for one in states]})
    raise SystemExit(1 if problems else 0)


@cache.command()
@_folder
@json_option()
def verify(folder: Path, json_file: Path | None) -> None:
    """Read every page and compare it with its checksum, key and place; nothing is changed.

    Not beside a running server.
    """
    stores = upkeep.stores_in(folder)
    open_json(json_file)
    findings: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    pages: dict[Path, int] = {}
    with _progress("verifying") as on_page:

        def count(store: Path, done: int, of: int) -> None:
            pages[store] = of
            on_page(store, done, of)

        for store in stores:
            try:
                for finding in upkeep.verify(store, count):
                    findings.append({"store": store.name, **finding.to_json()})
            except (SglangExtError, OSError) as error:
                errors.append({"store": store.name, "error": str(error)})
    checked = sum(pages.values())
    _print_findings(findings)
    _print_errors(errors)
    click.echo(f"{checked} pages in {len(stores)} stores, {len(findings)} findings")
    told = {"stores": len(stores), "pages": checked, "findings": findings, "errors": errors}
    write_json(json_file, {"ok": not findings and not errors, **told})
    raise SystemExit(2 if errors else 1 if findings else 0)


@cache.command()
@_folder
@click.option("--size", metavar="SIZE", help="Shrink all stores together to SIZE, such as 200GB.")
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    help="Stores that the server uses; those above are removed. Default: all are used.",
)
@json_option()
def gc(folder: Path, size: str | None, ranks: int | None, json_file: Path | None) -> None:
    """Remove unused stores, left-over files and pages that do not match; shrink to a size.

    Not beside a running server. Pages that were used least recently go first; files that are not
    ours stay. Exits 1 if something could not be removed, 2 if a store cannot be opened; what was
    mended is no finding.
    """
    try:
        size_bytes = None if size is None else parse_size(size)
    except ConfigError as error:
        raise ConfigError(f"--size: {error}") from None
    open_json(json_file)
    with _progress("checking") as on_page:
        cleaned = upkeep.clean(folder, size_bytes=size_bytes, ranks=ranks, on_page=on_page)
    _print_findings(cleaned.findings)
    for name in cleaned.removed:
        click.echo(f"removed {name}")
    for name in cleaned.kept:
        click.echo(f"{name} holds files that are not ours, or is in use: not removed", err=True)
    _print_errors(cleaned.errors)
    click.echo(
        f"{cleaned.dropped_pages} pages dropped, {cleaned.evicted_pages} evicted, "
        f"{format_size(cleaned.freed_bytes)} given back"
    )
    write_json(json_file, {"ok": not cleaned.kept and not cleaned.errors, **asdict(cleaned)})
    raise SystemExit(2 if cleaned.errors else 1 if cleaned.kept else 0)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[Path, int, int], None]]:
    """A bar for each store, on a terminal."""
    columns = (
        *(TextColumn("{task.description}", markup=False), BarColumn()),
        *(MofNCompleteColumn(), TimeRemainingColumn()),
    )
    console = Console(stderr=True, markup=False, emoji=False)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[Path, Any] = {}

        def on_page(store: Path, done: int, pages: int) -> None:
            if store not in tasks:
                tasks[store] = progress.add_task(f"{what} {store.name}", total=pages)
            progress.update(tasks[store], completed=done)

        yield on_page


def _print_findings(findings: list[dict[str, Any]]) -> None:
    if not findings:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("store", "file", "page", "what"):
        table.add_column(heading, overflow="fold")
    for one in findings:
        table.add_row(one["store"], one["file"], one["key"][:16], one["what"])
    _console().print(table)


def _print_errors(errors: list[dict[str, str]]) -> None:
    for one in errors:
        click.echo(f"{one['store']}: {one['error']}", err=True)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)
