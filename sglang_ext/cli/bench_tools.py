"""``sglang-ext bench tools``: tool calls, ours beside SGLang's own constraint modes."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sglang_ext.cli.options import json_option, open_json, workdir_option, write_json
from sglang_ext.models import default_folder

__all__ = ["tools"]

_SUITE = Path("tests/data/json-schema-test-suite/draft2020-12")  # in a checkout


@click.command(
    epilog="Exit codes: 0 no invalid call of ours was shown and no instance of the suite was "
    "decided wrongly, 1 one was, 2 wrong use."
)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Model folder. Default: smollm2 as made by `sglang-ext model`.",
)
@click.option("--parser", default="hermes", show_default=True, help="Its tool-call parser.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="In which the servers compute.",
)
@click.option("--cases", default=400, show_default=True, help="Of each category, at most.")
@click.option(
    "--max-tokens",
    "budgets",
    type=int,
    multiple=True,
    default=(96,),
    show_default=True,
    help="Tokens that an answer may have; may be repeated.",
)
@click.option(
    "--temperature",
    "temperatures",
    type=float,
    multiple=True,
    default=(0.0,),
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--systems",
    default="stock,stock_strict,ext",
    show_default=True,
    metavar="LIST",
    help="Who takes part.",
)
@click.option(
    "--choices",
    default="required,auto",
    show_default=True,
    metavar="LIST",
    help="Of tool_choice; with auto each answer begins with the text that triggers a call.",
)
@click.option("--without", metavar="PARTS", help="Given to our server as --ext-tools-without.")
@click.option("--at-once", default=8, show_default=True, help="Requests in flight.")
@click.option(
    "--suite",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help=f"Draft 2020-12 of the JSON Schema Test Suite. Default: {_SUITE}, where it is there.",
)
@workdir_option("build", "Where the servers' logs go.")
@json_option("the figures")
def tools(
    model: Path | None,
    parser: str,
    dtype: str,
    cases: int,
    budgets: tuple[int, ...],
    temperatures: tuple[float, ...],
    systems: str,
    choices: str,
    without: str | None,
    at_once: int,
    suite: Path | None,
    workdir: Path,
    json_file: Path | None,
) -> None:
    """Calls of BFCL's simple_python and multiple: valid, right, and in how many tokens."""
    from sglang_ext.bench.tool_calls import ToolBench, bench_tools

    what = ToolBench(
        model=model or default_folder("smollm2"),
        cases=cases,
        budgets=budgets,
        temperatures=temperatures,
        systems=_parts(systems),
        choices=_parts(choices),
        parser=parser,
        dtype=dtype,
        at_once=at_once,
        flags=("--ext-tools-without", without) if without else (),
        suite=suite or (_SUITE if _SUITE.is_dir() else None),
    )
    open_json(json_file)
    console = Console(stderr=True)
    with console.status("") as status:

        def on_step(step: str) -> None:
            status.update(step)
            if not console.is_terminal:
                click.echo(step, err=True)

        result = bench_tools(what, workdir, on_step)
    write_json(json_file, result)
    _print(result)
    sys.exit(1 if result["findings"] else 0)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


_COLUMNS = (
    ("valid", "schema_valid", "{:.1%}"),
    ("right", "ast_correct", "{:.1%}"),
    ("tokens", "tokens_per_case", "{:.1f}"),
    ("cut off", "hit_limit", "{}"),
    ("mask us", "mask_us_p50", "{:.0f}"),
    ("p99", "mask_us_p99", "{:.0f}"),
    ("compile ms", "compile_ms_p50", "{:.1f}"),
    ("p99", "compile_ms_p99", "{:.1f}"),
)


def _print(result: dict[str, Any]) -> None:
    table = Table(title="calls", title_justify="left")
    for heading in ("category", "choice", "tokens", "temp.", "system", "n"):
        table.add_column(heading, justify="right" if heading in ("tokens", "n") else "left")
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(
            *(row["category"], row["tool_choice"], str(row["max_tokens"])),
            *(str(row["temperature"]), row["system"], str(row["n"])),
            *("-" if row[name] is None else form.format(row[name]) for _, name, form in _COLUMNS),
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for pair in result["paired"]:
        right, saved = pair["ast_correct_difference"], pair["tokens_saved"]
        click.echo(
            f"{pair['category']}, {pair['tool_choice']}, {pair['max_tokens']} tokens, "
            f"{pair['temperature']}: ours against {pair['against']}: right {right[0]:+.1%} "
            f"({right[1]:+.1%} to {right[2]:+.1%}), "
            f"tokens saved {saved[0]:.1%} ({saved[1]:.1%} to {saved[2]:.1%})"
        )
    if "schemas" in result:
        found = result["schemas"]
        click.echo(
            f"JSON Schema Test Suite: {found['schemas']} schemas, {found['enforced']} enforced, "
            f"{found['checked']} checked, {found['refused']} refused; {found['instances']} "
            f"instances, {found['wrong']} decided wrongly"
        )
    for finding in result["findings"]:
        click.echo(f"finding: {finding}")
