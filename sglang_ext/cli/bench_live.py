"""``sglang-ext bench live``: the learned policy in the real server, beside what replay predicts."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from sglang_ext.bench.live import POLICIES, LiveBench, bench_live
from sglang_ext.cli.options import json_option, open_json, workdir_option, write_json
from sglang_ext.config.sizes import parse_tokens
from sglang_ext.models import make_model
from sglang_ext.replay.trace import read_trace

__all__ = ["live"]

_EVERY = 50


@click.command(
    epilog="Exit codes: 0 each tier of each server served what replay predicts, to one point, and "
    "ext no less than lru; 1 one of these did not hold; 2 wrong use."
)
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Model folder. Default: tiny-llama, made where it is missing.",
)
@click.option(
    "--requests",
    type=click.IntRange(min=2),
    default=400,
    show_default=True,
    help="Sent to each server: the busiest stretch of the trace.",
)
@click.option(
    "--policies",
    default=",".join(POLICIES),
    show_default=True,
    metavar="LIST",
    help="Of the servers, in this order.",
)
@click.option(
    "--block-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens of the trace that become a page; a multiple of the trace's blocks.",
)
@click.option(
    "--page-tokens", type=click.IntRange(min=4), default=16, show_default=True, help="Of a page."
)
@click.option("--l1-tokens", metavar="N", help="Device tier. Default: an eighth of the footprint.")
@click.option("--l2-tokens", metavar="N", help="Host tier, L1's copies included. Default: 2 x L1.")
@click.option("--l3-tokens", metavar="N", help="Disk tier, all copies included. Default: all.")
@click.option(
    "--window",
    "window_s",
    type=click.FloatRange(min=0),
    default=10_800.0,
    show_default=True,
    metavar="S",
    help="Seconds within which sessions start, where a trace has times within its sessions.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@workdir_option("build", "Logs of the servers, and their disk tiers while they run.")
@json_option("the figures")
def live(
    trace: Path,
    model: Path | None,
    requests: int,
    policies: str,
    block_tokens: int,
    page_tokens: int,
    l1_tokens: str | None,
    l2_tokens: str | None,
    l3_tokens: str | None,
    window_s: float,
    seed: int,
    workdir: Path,
    json_file: Path | None,
) -> None:
    """Hit rates by tier of real servers on a scaled part of TRACE.

    The learned policy first learns from other sessions of TRACE. Each policy then gets a server of
    its own and the same requests, which say when they came.
    """
    what = LiveBench(
        trace=read_trace(trace),
        model=model or make_model("tiny-llama").path,
        workdir=workdir,
        policies=tuple(part.strip() for part in policies.split(",")),
        requests=requests,
        block_tokens=block_tokens,
        page_tokens=page_tokens,
        l1_tokens=None if l1_tokens is None else parse_tokens(l1_tokens),
        l2_tokens=None if l2_tokens is None else parse_tokens(l2_tokens),
        l3_tokens=None if l3_tokens is None else parse_tokens(l3_tokens),
        seed=seed,
        window_s=window_s,
    )
    open_json(json_file)
    console = Console(stderr=True)
    with console.status("") as status:

        def on_step(step: str, done: int) -> None:
            status.update(f"{step} {done}" if done else step)
            if not console.is_terminal and done % _EVERY == 0:
                click.echo(f"{step} {done}" if done else step, err=True)

        result = bench_live(what, on_step)
    write_json(json_file, result)
    _print(result)
    sys.exit(1 if result["findings"] else 0)


def _print(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['trace']}: {result['requests']:,} requests of {result['sessions']} sessions in "
        f"{result['span_s']:,.0f} s, {result['input_tokens']:,} tokens, "
        f"{result['footprint_tokens']:,} of them different; L1 {result['l1_tokens']:,}, L2 "
        f"{result['l2_tokens']:,}; learned from {result['learned_from']:,} requests of others"
    )
    table = Table(title="hits, % of the prompts' pages", title_justify="left")
    for heading in ("policy", "where", "L1", "L2", "L1 + L2", "L3", "hit"):
        is_text = heading in ("policy", "where")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    fields = ("l1_hit", "l2_hit", "memory_hit", "l3_hit", "hit")
    for row in sorted(result["rows"], key=lambda row: row["source"], reverse=True):
        shares = (f"{100 * row[field]:.1f}" for field in fields)
        table.add_row(row["policy"], row["source"], *shares)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    closed = result["gap_closed"]
    for tier, name in (("l1", "L1"), ("memory", "L1 and L2")):
        if closed[f"server_{tier}"] is not None:
            click.echo(
                f"From LRU to Belady in {name}: {closed[f'server_{tier}']:.0%} of the way live, "
                f"{closed[f'replay_{tier}']:.0%} predicted"
            )
    for finding in result["findings"]:
        click.echo(f"FINDING: {finding}")
