"""``sglang-ext replay``: a request trace through the real policy and its rivals."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sglang_ext.cache.learned_file import MOST_BYTES, read_state, write_state
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.state import check_state
from sglang_ext.cli.options import json_option, open_json, write_json
from sglang_ext.config.sizes import parse_tokens
from sglang_ext.errors import ConfigError
from sglang_ext.replay.record import record
from sglang_ext.replay.rivals import RIVALS
from sglang_ext.replay.run import ANSWERS, HOLDING, POLICIES, Replay, replay
from sglang_ext.replay.sizing import ladder, needed_tokens
from sglang_ext.replay.trace import Trace, read_trace

__all__ = ["replay_command"]

_BAR = 40


class _TokensParam(click.ParamType[tuple[int, ...]]):
    """Comma-separated numbers of tokens."""

    name = "tokens"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """``1M,2M`` as a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(parse_tokens(part) for part in str(value).split(","))
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class _PoliciesParam(click.ParamType[tuple[str, ...]]):
    """Comma-separated names of policies."""

    name = "policies"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """``ext,lru`` as a tuple."""
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(str(value).split(",")))
        for name in names:
            if name not in POLICIES:
                self.fail(f"{name!r} is not one of {', '.join(POLICIES)}", param, ctx)
        return names


@click.command(
    "replay",
    epilog="Exit codes: 0 done, 1 a wished hit rate that no capacity reached, 2 wrong use.",
)
@click.argument(
    "traces",
    nargs=-1,
    required=True,
    metavar="TRACE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--policies",
    type=_PoliciesParam(),
    default=",".join(POLICIES),
    show_default=True,
    metavar="A,B,...",
    help="What to run, in this order.",
)
@click.option(
    "--capacity-tokens",
    "capacities",
    type=_TokensParam(),
    metavar="A,B,...",
    help="Sizes of the cache, such as 500k,1M. Default: from 0.1 % to all of the footprint.",
)
@click.option(
    "--tiers",
    type=_TokensParam(),
    metavar="L1[,L2[,L3]]",
    help="Tokens in each tier, beside each other; in place of --capacity-tokens.",
)
@click.option(
    "--inclusive",
    is_flag=True,
    help="Of --tiers: each tier also holds what those above it hold, as in the server.",
)
@click.option(
    "--window",
    "window_s",
    type=click.FloatRange(min=0),
    default=43_200.0,
    show_default=True,
    metavar="S",
    help="Seconds within which sessions start, where a trace has times within its sessions.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the starts of sessions.",
)
@click.option(
    "--block-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens a block; a multiple of the trace's, which is the default.",
)
@click.option(
    "--answers",
    type=click.Choice(ANSWERS),
    default=ANSWERS[0],
    show_default=True,
    help="When a policy is told how an answer ended: with its request; when it is complete; then, "
    "and what runs is held beside the capacity; or within it, as in SGLang.",
)
@click.option(
    "--load-policy",
    "load_from",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What ext has learned already: of --save-policy, or policy.state below a --ext-l3-dir.",
)
@click.option(
    "--save-policy",
    "save_to",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write what ext has learned; as policy.state below the --ext-l3-dir of a server that is "
    "not running, it starts with that.",
)
@click.option(
    "--wished-hit",
    type=click.FloatRange(min=0, max=100),
    metavar="PERCENT",
    help="Say what capacity this hit rate takes.",
)
@click.option(
    "--record",
    "record_to",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TRACE is the log of a server: make FILE, a trace, of it first.",
)
@json_option()
def replay_command(
    traces: Sequence[Path],
    policies: tuple[str, ...],
    capacities: tuple[int, ...] | None,
    tiers: tuple[int, ...] | None,
    inclusive: bool,
    window_s: float,
    seed: int,
    block_tokens: int | None,
    answers: str,
    load_from: Path | None,
    save_to: Path | None,
    wished_hit: float | None,
    record_to: Path | None,
    json_file: Path | None,
) -> None:
    """Hit rates of the server's policy and of its rivals on the requests in TRACE.

    Each policy runs once over the trace, all capacities beside each other. lru to arc are what
    caches do elsewhere; belady knows the future.
    """
    _check_tiers(tiers, capacities, inclusive=inclusive, wished_hit=wished_hit)
    if not isfinite(window_s):
        raise ConfigError("--window is not a number of seconds")
    _check_policies(policies, answers, load_from, save_to)
    made = {"--record": record_to, "--save-policy": save_to, "--json": json_file}
    _check_made(traces, {flag: file for flag, file in made.items() if file is not None}, load_from)
    open_json(json_file)
    if record_to is not None:
        traces = [_recorded(traces[0], record_to, block_tokens)]
    results = []
    unreached = False
    for file in traces:
        trace = read_trace(file)
        coarse = trace.coarser(block_tokens or trace.block_tokens)
        sizes = capacities or tuple(ladder(trace.footprint_tokens, coarse.block_tokens))
        begin_s, end_s = _times(trace, seed, window_s)
        policy = _policy(seed, load_from, begin_s)
        with _progress() as on_step:
            found = replay(
                trace,
                policies,
                sizes,
                tiers=tiers or (),
                inclusive=inclusive,
                seed=seed,
                window_s=window_s,
                block_tokens=block_tokens,
                answers=answers,
                policy=policy,
                on_step=on_step,
            )
        if save_to is not None:
            write_state(save_to, policy.save_learned(end_s))
        result = found.as_json()
        _show(found, policies, tiered=bool(tiers))
        if not tiers:
            _show_curve(found, policies[0])
        if wished_hit is not None:
            result["wished_hit"] = wished_hit / 100
            result["needed"] = _needed(found, policies, wished_hit)
            unreached |= any(row["capacity_tokens"] is None for row in result["needed"])
        results.append(result)
    write_json(json_file, results[0] if len(results) == 1 else {"traces": results})
    sys.exit(1 if unreached else 0)


def _check_tiers(
    tiers: tuple[int, ...] | None,
    capacities: tuple[int, ...] | None,
    *,
    inclusive: bool,
    wished_hit: float | None,
) -> None:
    if inclusive and not tiers:
        raise ConfigError("--inclusive is of --tiers", fix="give their sizes, or leave it away")
    if tiers and (capacities or len(tiers) > 3):
        raise ConfigError("--tiers takes up to three sizes, and no --capacity-tokens")
    if tiers and wished_hit is not None:
        raise ConfigError("--wished-hit is of one cache, not of --tiers; drop one of them")


def _check_policies(
    policies: tuple[str, ...], answers: str, load_from: Path | None, save_to: Path | None
) -> None:
    if answers in HOLDING and set(policies) & set(RIVALS):
        raise ConfigError(
            f"--answers {answers} is of ext, lru and belady", fix="name them: --policies"
        )
    if (load_from or save_to) and "ext" not in policies:
        raise ConfigError("--load-policy and --save-policy are of ext; name it in --policies")


def _check_made(traces: Sequence[Path], made: Mapping[str, Path], load_from: Path | None) -> None:
    """Refuse now, and not after minutes of work, what could not be written, or not without loss."""
    read = [("TRACE", trace) for trace in traces]
    if load_from is not None:
        read.append(("--load-policy", load_from))
    for flag, file in made.items():
        if flag != "--json" and len(traces) != 1:
            raise ConfigError(f"{flag} takes one file, not {len(traces)}")
        if not file.parent.is_dir():
            raise ConfigError(f"{flag}: there is no folder {file.parent}")
        for other, theirs in read:
            goes_on = (flag, other) == ("--save-policy", "--load-policy")
            if not goes_on and _is_same(file, theirs):
                raise ConfigError(
                    f"{flag}: {file} is what {other} names, and would be replaced",
                    fix="name another file",
                )
        read.append((flag, file))
    if "--save-policy" in made:
        check_state(made["--save-policy"], "--save-policy")


def _is_same(one: Path, other: Path) -> bool:
    """Whether both name one file, which need not be there."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _policy(seed: int, load_from: Path | None, now: float) -> Policy:
    """What ``ext`` begins with."""
    policy = Policy(seed=seed)
    if load_from is not None:
        try:
            state = read_state(load_from, MOST_BYTES)
        except OSError as error:
            raise ConfigError(f"--load-policy: {load_from}: {error.strerror}") from None
        policy.load(state, now)
    return policy


def _times(trace: Trace, seed: int, window_s: float) -> tuple[float, float]:
    """Of the first and of the last request, in seconds."""
    times = trace.starts(seed, window_s).tolist() or [0.0]
    return min(times), max(times)


def _recorded(log: Path, to: Path, block_tokens: int | None) -> Path:
    made = record(log, to, block_tokens=block_tokens)
    click.echo(
        f"Made {to} from {made['requests']:,} requests of {made['sessions']:,} sessions: "
        f"{made['input_tokens']:,} prompt tokens, {made['footprint_tokens']:,} of them different."
    )
    if made["skipped"]:
        click.echo(f"Left out: {made['skipped']:,} requests whose token ids are not in the log.")
    if made["cut"]:
        click.echo(f"Left out: {made['cut']:,} lines that were cut off, as where power was lost.")
    return to


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each policy on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda policy, done, total: None
        return
    columns = (
        TextColumn("{task.description:>7}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def step(policy: str, done: int, total: int) -> None:
            if policy not in tasks:
                tasks[policy] = progress.add_task(policy, total=total)
            progress.update(tasks[policy], completed=done)

        yield step


def _show(found: Replay, policies: Sequence[str], *, tiered: bool) -> None:
    click.echo(
        f"{found.trace}: {found.requests:,} requests, {found.block_tokens}-token blocks, "
        f"footprint {found.footprint_tokens:,} tokens, ideal hit {found.ideal_hit:.1%}"
    )
    table = Table()
    if tiered:
        for heading in ("policy", "L1", "L2", "L3", "hit"):
            table.add_column(heading, justify="left" if heading == "policy" else "right")
        for row in found.rows:
            parts = (row.l1_hit, row.l2_hit, row.l3_hit, row.hit)
            table.add_row(row.policy, *("" if p is None else f"{p:.1%}" for p in parts))
    else:
        table.add_column("tokens", justify="right", no_wrap=True)
        for policy in policies:
            table.add_column(policy, justify="right", no_wrap=True)
        columns = [found.of(policy) for policy in policies]
        for rows in zip(*columns, strict=True):
            table.add_row(f"{rows[0].capacity_tokens:,}", *(f"{row.hit:.1%}" for row in rows))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _show_curve(found: Replay, policy: str) -> None:
    """The hit rate of ``policy`` over the capacity, a bar a row; the ideal is the whole width."""
    if len(found.of(policy)) < 3:
        return
    click.echo(f"{policy}, of an ideal of {found.ideal_hit:.1%}:")
    for row in found.of(policy):
        filled = round(_BAR * row.hit / found.ideal_hit) if found.ideal_hit else 0
        click.echo(f"{row.capacity_tokens:>15,} {'█' * filled:<{_BAR}} {row.hit:.1%}")


def _needed(found: Replay, policies: Sequence[str], wished: float) -> list[dict[str, Any]]:
    rows = []
    for policy in policies:
        tokens = needed_tokens(found.of(policy), wished / 100)
        rows.append({"policy": policy, "capacity_tokens": tokens})
        takes = "no capacity shown above reaches it" if tokens is None else f"{tokens:,} tokens"
        click.echo(f"A hit rate of {wished:g} % with {policy}: {takes}.")
    return rows
