"""``sglang-ext demo``: agents on a three-tier cache, killed and replayed."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sglang_ext.bench.answers import Exchange
from sglang_ext.bench.compare import FLIP_BOUND, Comparison
from sglang_ext.bench.demo import Outcome, Run, Settings, run_demo
from sglang_ext.cli.options import open_json, unwind_on_sigterm, workdir_option, write_json
from sglang_ext.errors import ConfigError
from sglang_ext.models import default_folder, make_model

__all__ = ["demo"]

# A file or a pipe has no width; the widest table needs this many columns.
_PLAIN_WIDTH = 100


@click.command(
    epilog="Exit codes: 0 each tier served tokens, the restarted server took 90 % or more of the "
    "prompt tokens from its cache, and outputs are equal; 1 one of these did not hold; 2 wrong use."
)
@click.option("--agents", type=click.IntRange(4, 8), default=4, show_default=True)
@click.option("--turns", type=click.IntRange(6, 10), default=6, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("build/demo.json"),
    show_default=True,
    metavar="FILE",
    help="Where the result is written as one JSON object.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of SmolLM2. Default: ~/.cache/sglang-ext/models/smollm2, made if missing.",
)
@workdir_option(
    "build/demo",
    "Logs of the servers, and the L3 folder while the demonstration runs (about 1 GB).",
)
def demo(agents: int, turns: int, out: Path, model: Path | None, workdir: Path) -> None:
    """Watch agents on a three-tier KV cache that survives a kill.

    Starts a stock SGLang server with --ext-cache, lets several tool-using agents work on it, kills
    it, starts it again and replays, then compares every output with a server without a cache.
    """
    unwind_on_sigterm()
    console = Console(stderr=True)
    open_json(out)
    settings = Settings(_model_folder(model, console), workdir, agents, turns)
    begin = time.monotonic()
    outcome = run_demo(settings, _Screen(console), lambda title, run: _show_run(title, run))
    result = {**outcome.to_json(), "seconds": round(time.monotonic() - begin, 1)}
    write_json(out, result)
    _show_outcome(outcome, settings.model)
    click.echo(f"Written: {out}  ({result['seconds']:.0f} s)")
    sys.exit(1 if outcome.findings else 0)


def _model_folder(model: Path | None, console: Console) -> Path:
    folder = default_folder("smollm2") if model is None else model
    if (folder / "config.json").is_file():
        return folder
    if model is not None:
        found = (
            "holds no config.json, so it is not a model folder" if folder.exists() else "is missing"
        )
        raise ConfigError(
            f"--model {folder} {found}",
            fix="leave the flag out, or make one with: sglang-ext model smollm2 --out DIR",
        )
    with console.status(f"making SmolLM2 in {folder}", spinner="line"):
        make_model("smollm2", folder)
    return folder


class _Screen:
    """Progress on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """One line."""
        click.echo(text)

    @contextmanager
    def starting(self, what: str) -> Iterator[Callable[[float], None]]:
        """A server is starting."""
        begin = time.monotonic()
        if not self._console.is_terminal:
            yield lambda seconds: None
        else:
            with self._console.status(f"starting {what}", spinner="line") as status:
                yield lambda seconds: status.update(f"starting {what}: {seconds:.0f} s")
        self.say(f"Started {what} in {time.monotonic() - begin:.0f} s.")

    @contextmanager
    def serving(self, what: str, total: int) -> Iterator[Callable[[Exchange], None]]:
        """Requests are running."""
        if not self._console.is_terminal:
            yield lambda one: click.echo(f"  {what}: {one.place}: {_counts(one)}")
            return
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        last = TextColumn("{task.fields[last]}")
        with Progress(*columns, last, console=self._console, transient=True) as progress:
            task = progress.add_task(what, total=total, last="")
            yield lambda one: progress.update(task, advance=1, last=f"{one.place}: {_counts(one)}")


def _counts(exchange: Exchange) -> str:
    tokens = exchange.answer.tokens
    called = ", ".join(call.name for call in exchange.answer.calls) or "words"
    return (
        f"{called}; {tokens.prompt} tokens: L1 {tokens.l1}, L2 {tokens.l2}, L3 {tokens.l3}, "
        f"computed {tokens.computed}; first token after {exchange.answer.ttft_s:.2f} s"
    )


def _show_run(title: str, run: Run) -> None:
    """A table by turn with a total."""
    table = Table(title=title, title_justify="left")
    for name in ("turn", "requests", "prompt", "L1", "L2", "L3", "computed", "cached", "TTFT"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(str(turn), part) for turn, part in run.by_turn()]
    for name, part in [*rows, ("total", run)]:
        tokens = part.tokens
        if name == "total":
            table.add_section()
        table.add_row(
            name,
            str(len(part.exchanges)),
            *(f"{n:,}" for n in (tokens.prompt, tokens.l1, tokens.l2, tokens.l3, tokens.computed)),
            f"{part.cached_share:.1%}",
            f"{part.ttft_s:.2f} s",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    console.print(table)
    longest = max(exchange.answer.tokens.prompt for exchange in run.exchanges)
    click.echo(f"Tokens of prompts by tier; TTFT is a median. Longest context: {longest:,} tokens.")


def _show_outcome(outcome: Outcome, model: Path) -> None:
    executed, calls = outcome.tiered.calls
    others = "the others were cut off or malformed, and answered with an error"
    click.echo(
        f"{executed} of {calls} calls of the model were executed"
        + (f"; {others}." if executed < calls else ".")
    )
    click.echo(
        f"After the kill {outcome.warm.cached_share:.1%} of the prompt tokens came from the cache, "
        f"{outcome.warm.tokens.l3:,} tokens straight from L3. Median time to first token "
        f"{outcome.plain.ttft_s:.2f} s without a cache, {outcome.warm.ttft_s:.2f} s warm."
    )
    for name, comparison in (("first", outcome.tiered_equal), ("warm", outcome.warm_equal)):
        click.echo(
            f"Outputs of the {name} run against no cache: {comparison.requests} requests, "
            f"{comparison.requests - len(comparison.differences)} equal token by token, "
            f"{len(comparison.flips)} flips, {len(comparison.failures)} different."
        )
        _show_differences(comparison, model)
    for finding in outcome.findings:
        click.echo(f"FINDING: {finding}")


def _show_differences(comparison: Comparison, model: Path) -> None:
    if not comparison.differences:
        return
    from transformers import AutoTokenizer  # seconds to import, and rarely needed

    tokenizer = AutoTokenizer.from_pretrained(model)
    for one in comparison.differences:
        gap = "one answer ends there" if one.gap is None else f"{one.gap:.2e} nats apart"
        kind = f"flip (below {FLIP_BOUND:.0e})" if one.is_flip else "DIFFERENT"
        click.echo(f"  {one.place}, output token {one.position}: {kind}, {gap}")
        click.echo(f"    without cache: {tokenizer.decode(one.expected)!r}")
        click.echo(f"    with cache:    {tokenizer.decode(one.found)!r}")
