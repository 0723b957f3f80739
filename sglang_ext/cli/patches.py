"""``sglang-ext patches``: prove, apply and list the patches that are staged for upstream."""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sglang_ext.cli.options import json_option, open_json, write_json
from sglang_ext.errors import ConfigError
from sglang_ext.patching import source, table, target
from sglang_ext.patching.check import DEFAULT_TIMEOUT_S, Proof, check_series
from sglang_ext.patching.series import Patch, find_patches, read_series
from sglang_ext.upstream.releases import TESTED_RELEASES

__all__ = ["patches"]

_patches_option = click.option(
    "--patches",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder with a sub-folder for each release. Default: patches/ of the checkout.",
)
_release_option = click.option(
    "--release",
    default=TESTED_RELEASES[-1],
    show_default=True,
    help="SGLang release whose series is meant.",
)


@click.group(
    help="Prove, apply and list the patches staged for upstream.\n\n"
    "Exit codes: 0 good, 1 a finding, 2 wrong use."
)
def patches() -> None:
    """Group of the commands on ``patches/``."""


@patches.command(help="Prove each patch on a copy of the installed SGLang.")
@_release_option
@_patches_option
@json_option("the proofs")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Patches checked at once. Each takes 220 MB of disk and one SGLang process.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    help="Seconds for one run of one test file.",
)
def check(
    release: str, folder: Path | None, json_file: Path | None, jobs: int, timeout_s: float
) -> None:
    """Each patch applies, its test fails without it and passes with it."""
    open_json(json_file)
    series = read_series(find_patches(folder), release)
    installed, package = source.installed_release()
    if installed != release:
        raise ConfigError(
            f"--release {release}: sglang {installed} is installed at {package}; install the "
            f"release (`pip install --no-deps sglang=={release}`) or check the one you have"
        )
    source.check_pristine(series)
    proofs = _check_with_progress(series, package, jobs, timeout_s)
    _print_proofs(proofs)
    ok = all(proof.ok for proof in proofs)
    report = {"ok": ok, "release": release, "patches": [proof.as_json() for proof in proofs]}
    write_json(json_file, report)
    sys.exit(0 if ok else 1)


def _check_with_progress(
    series: list[Patch], package: Path, jobs: int, timeout_s: float
) -> list[Proof]:
    console = Console(stderr=True)
    if not console.is_terminal:
        return check_series(series, package, jobs=jobs, timeout_s=timeout_s)
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(series))
        return check_series(
            series,
            package,
            jobs=jobs,
            timeout_s=timeout_s,
            done=lambda proof: progress.advance(task),
        )


def _print_proofs(proofs: list[Proof]) -> None:
    console = Console()
    rows = Table()
    rows.add_column("patch", no_wrap=True)
    for heading in ("applies", "fails without", "passes with", "s", "result"):
        rows.add_column(heading)
    for proof in proofs:
        rows.add_row(
            proof.patch.removesuffix(".patch"),
            _yes(proof.applies),
            f"{len(proof.failed_without)} of {proof.tests}" if proof.fails_without else "no",
            _yes(proof.passes_with),
            f"{proof.seconds:.0f}",
            "[green]proved[/]" if proof.ok else "[red]not proved[/]",
        )
    console.print(rows)
    for proof in proofs:
        if proof.error:
            console.print(proof.error, markup=False, soft_wrap=True)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


@patches.command(help="Apply the series to a source tree of SGLang; all of it or nothing.")
@_release_option
@_patches_option
@click.option(
    "--target",
    "tree",
    type=click.Path(path_type=Path),
    required=True,
    help="Root of a clone of the SGLang repository, never an installed package.",
)
@click.option("--any-release", is_flag=True, help="Try it on a tree of another release.")
def apply(release: str, folder: Path | None, tree: Path, any_release: bool) -> None:
    """Bring a source tree to the end of the series."""
    series = read_series(find_patches(folder), release)
    applied = target.apply_series(tree, series, release, any_release=any_release)
    for name in applied.already:
        click.echo(f"{name}: already applied")
    for name in applied.now:
        click.echo(f"{name}: applied")
    click.echo(
        f"{len(applied.files)} files changed below {tree}"
        if applied.now
        else f"nothing to do: {tree} has the whole series for {release}"
    )


@patches.command("table", help="Write the table of patches/README.md from the patches' headers.")
@_patches_option
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit 1 if it is stale.")
def table_command(folder: Path | None, only_check: bool) -> None:
    """Keep the README's table in step with the headers."""
    found = find_patches(folder)
    readme = found / "README.md"
    text = table.updated(found)
    current = text == readme.read_text()
    if only_check and not current:
        click.echo(f"{readme}: the table is stale; run `sglang-ext patches table`", err=True)
        sys.exit(1)
    if not current:
        readme.write_text(text)
    click.echo(f"{readme}: {'the table is current' if current else 'table written'}")
