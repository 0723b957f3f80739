"""Tool calls on real servers: ours beside SGLang's own constraint modes, case by case.

Each case is a single-turn request of BFCL whose answer is one call. ``stock`` is SGLang as
frameworks use it, without ``strict``; ``stock_strict`` says ``strict: true``; ``ext`` is the same
request as ``stock`` on a server with ``--ext-tools enforce``. With the choice ``auto`` the answer
of each begins with the text that triggers a call, so that a small model which would rather chat is
measured where it calls.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, NamedTuple

from jsonschema.validators import Draft202012Validator

from sglang_ext.bench.bfcl_calls import Case, is_right, load_cases
from sglang_ext.bench.chat import Endpoint, Shown
from sglang_ext.bench.forced_start import FLAG, beginning_with
from sglang_ext.bench.paired import bootstrap
from sglang_ext.bench.schema_suite import run_suite
from sglang_ext.bench.server import ServerProcess, sglang_command
from sglang_ext.bench.tool_grammars import Grammars, Times
from sglang_ext.errors import BenchError
from sglang_ext.tools.tag import Choice

__all__ = ["CHOICES", "SYSTEMS", "ToolBench", "bench_tools", "is_valid"]

SYSTEMS = ("stock", "stock_strict", "ext")
CHOICES: tuple[Choice, ...] = ("required", "auto")
CALLED = ("simple_python", "multiple")  # categories whose answer is one call
_SEED = 11
_TOKENS_AT_ONCE = 1536  # of KV cache for each request in flight; prompts have up to 900


@dataclass(frozen=True)
class ToolBench:
    """What is measured.

    Attributes:
        model: folder of the model.
        cases: of each category, from its first on.
        budgets: tokens that an answer may have.
        temperatures: each is a row of its own.
        systems: of `SYSTEMS`.
        choices: of `CHOICES`.
        parser: name of SGLang's tool-call parser.
        dtype: in which the servers compute.
        at_once: requests in flight; a batch hides no difference, for all systems have the same.
        flags: further flags of our server, such as ``--ext-tools-without greedy``.
        suite: folder of the JSON Schema Test Suite; None leaves it out.
    """

    model: Path
    cases: int = 400
    budgets: tuple[int, ...] = (96,)
    temperatures: tuple[float, ...] = (0.0,)
    systems: tuple[str, ...] = SYSTEMS
    choices: tuple[str, ...] = CHOICES
    parser: str = "hermes"
    dtype: str = "float32"
    at_once: int = 8
    flags: tuple[str, ...] = ()
    suite: Path | None = None


class _Key(NamedTuple):
    """What a row is of."""

    system: str
    category: str
    choice: Choice
    budget: int
    temperature: float

    def __str__(self) -> str:
        return (
            f"{self.category}, {self.choice}, {self.budget} tokens, temperature {self.temperature}"
        )

    def as_json(self) -> dict[str, Any]:
        """Without the system."""
        return {
            "category": self.category,
            "tool_choice": self.choice,
            "max_tokens": self.budget,
            "temperature": self.temperature,
        }


@dataclass(frozen=True)
class _Judged:
    """One answer."""

    case: Case
    shown: Shown
    parsed: bool
    valid: bool
    right: bool


def bench_tools(
    what: ToolBench, workdir: Path, on_step: Callable[[str], None] = lambda _step: None
) -> dict[str, Any]:
    """Run all cases on all systems.

    Args:
        what: what is measured.
        workdir: where the servers' logs go.
        on_step: called before each step with what it is.

    Returns:
        The object that ``--json`` writes: ``rows``, ``paired``, ``schemas``, ``findings``.

    Raises:
        BenchError: a server answers a request with an error, or there is no such system or choice.
    """
    _known("system", what.systems, SYSTEMS)
    _known("choice", what.choices, CHOICES)
    choices = [choice for choice in CHOICES if choice in what.choices]
    cases = {category: load_cases(category)[: what.cases] for category in CALLED}
    grammars = Grammars(what.model, what.parser)
    judged: dict[_Key, list[_Judged]] = {}
    with ExitStack() as stack:
        ends = _endpoints(what, workdir, stack, on_step)
        for category, choice, budget, temperature, system in product(
            CALLED, choices, what.budgets, what.temperatures, what.systems
        ):
            key = _Key(system, category, choice, budget, temperature)
            on_step(f"{key}: {system}")
            extra = beginning_with(grammars.trigger()) if key.choice == "auto" else {}
            judged[key] = _run(ends[system], what, cases[key.category], key, extra)
    on_step("masks and compiles")
    times = {key: _times(grammars, key, answers) for key, answers in judged.items()}
    rows = [_row(key, answers, times[key]) for key, answers in judged.items()]
    result: dict[str, Any] = {
        "settings": {
            "model": what.model.name,
            "parser": what.parser,
            "dtype": what.dtype,
            "at_once": what.at_once,
            "flags": list(what.flags),
        },
        "rows": rows,
        "paired": list(_paired(judged)),
    }
    if what.suite is not None:
        on_step("the JSON Schema Test Suite")
        result["schemas"] = run_suite(what.suite).as_json()
    result["findings"] = list(_findings(result))
    return result


def _known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise BenchError(f"no {kind} {name!r}; expected some of {', '.join(known)}")


def _endpoints(
    what: ToolBench, workdir: Path, stack: ExitStack, on_step: Callable[[str], None]
) -> dict[str, Endpoint]:
    """One server for both modes of SGLang's own, and one of ours; the one that waits sleeps."""
    found: dict[str, Endpoint] = {}
    servers: dict[str, Endpoint] = {}
    for system in what.systems:
        kind = "ext" if system == "ext" else "stock"
        if kind not in servers:
            on_step(f"starting a server: {kind}")
            ours = ("--ext-tools", "enforce", *what.flags) if kind == "ext" else ()
            server = stack.enter_context(_server(what, workdir, kind, ours))
            plain = Endpoint(f"{server.base_url}/v1")
            servers[kind] = Endpoint(plain.base_url, plain.first_model())
        found[system] = servers[kind]
    return found


def _server(what: ToolBench, workdir: Path, kind: str, ours: Sequence[str]) -> ServerProcess:
    def command(port: int) -> list[str]:
        return sglang_command(
            what.model,
            port,
            *("--dtype", what.dtype),
            *("--tool-call-parser", what.parser),
            *("--max-total-tokens", str(_TOKENS_AT_ONCE * what.at_once)),
            "--sleep-on-idle",
            FLAG,
            *ours,
        )

    return ServerProcess(command, log=workdir / f"bench-tools-{kind}.log")


def _run(
    end: Endpoint, what: ToolBench, cases: Sequence[Case], key: _Key, extra: dict[str, Any]
) -> list[_Judged]:
    def one(case: Case) -> _Judged:
        shown = end.ask(
            {
                "messages": list(case.messages),
                "tools": case.tools(strict=True if key.system == "stock_strict" else None),
                "tool_choice": key.choice,
                "parallel_tool_calls": False,
                "max_tokens": key.budget,
                "temperature": key.temperature,
                "seed": _SEED,
                "return_token_ids": True,
                **extra,
            }
        )
        if shown.status != 200:
            raise BenchError(f"{key.system}, {case.id}: {shown.status}: {shown.message[:300]}")
        if not shown.token_ids:
            raise BenchError(
                f"{key.system}, {case.id}: the server does not tell the answer's tokens"
            )
        return _judge(case, shown)

    pool = ThreadPoolExecutor(what.at_once)
    try:
        return list(pool.map(one, cases))
    finally:  # not waited for: whoever interrupts ends the servers next, and with them these
        pool.shutdown(wait=False, cancel_futures=True)


def _judge(case: Case, shown: Shown) -> _Judged:
    parsed = bool(shown.calls) and all(_is_object(text) for _, text in shown.calls)
    valid = parsed and all(is_valid(case, name, text) for name, text in shown.calls)
    return _Judged(case, shown, parsed, valid, is_right(case, shown.calls))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def is_valid(case: Case, name: str, arguments: str) -> bool:
    """Whether a call names a tool of the request and is valid for its schema."""
    schema = case.schema(name)
    if schema is None or not _is_object(arguments):
        return False
    return bool(Draft202012Validator(schema).is_valid(json.loads(arguments)))


def _times(grammars: Grammars, key: _Key, answers: Sequence[_Judged]) -> Times:
    times = Times()
    for one in answers:
        constraint = grammars.constraint(one.case, key.system, key.choice)
        if constraint is not None:
            grammars.measure(constraint, one.shown.token_ids, times)
    return times


def _row(key: _Key, answers: Sequence[_Judged], times: Times) -> dict[str, Any]:
    count = len(answers)
    mask, compiled = _percentiles(times.mask_us), _percentiles(times.compile_ms)
    return {
        "system": key.system,
        **key.as_json(),
        "n": count,
        "parsed": round(sum(one.parsed for one in answers) / count, 4),
        "schema_valid": round(sum(one.valid for one in answers) / count, 4),
        "ast_correct": round(sum(one.right for one in answers) / count, 4),
        "shown_invalid": sum(bool(one.shown.calls) and not one.valid for one in answers),
        "tokens_per_case": round(fmean(one.shown.tokens for one in answers), 2),
        "hit_limit": sum(one.shown.finish == "length" for one in answers),
        "withheld": Counter(
            entry.get("reason", "") for one in answers for entry in one.shown.withheld
        ),
        "mask_us_p50": mask[0],
        "mask_us_p99": mask[1],
        "compile_ms_p50": compiled[0],
        "compile_ms_p99": compiled[1],
    }


def _percentiles(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """The 50th and 99th; None where nothing was constrained."""
    if len(values) < 2:
        return (round(values[0], 3), round(values[0], 3)) if values else (None, None)
    cuts = quantiles(values, n=100)
    return round(cuts[49], 3), round(cuts[98], 3)


def _paired(judged: dict[_Key, list[_Judged]]) -> Iterator[dict[str, Any]]:
    """Ours against each rival, on the same cases."""
    for key, answers in judged.items():
        ours = judged.get(key._replace(system="ext"))
        if key.system == "ext" or ours is None:
            continue
        pairs = list(zip(ours, answers, strict=True))
        right = [(float(mine.right), float(theirs.right)) for mine, theirs in pairs]
        tokens = [(float(mine.shown.tokens), float(theirs.shown.tokens)) for mine, theirs in pairs]
        yield {
            "against": key.system,
            **key.as_json(),
            "ast_correct_difference": bootstrap(right, lambda a, b: a - b).as_json(),
            "only_ours_right": sum(mine > theirs for mine, theirs in right),
            "only_theirs_right": sum(mine < theirs for mine, theirs in right),
            "tokens_saved": bootstrap(tokens, lambda a, b: 1 - a / b if b else 0.0).as_json(),
        }


def _findings(result: dict[str, Any]) -> Iterator[str]:
    """What does not hold that has to."""
    for row in result["rows"]:
        if row["system"] == "ext" and row["shown_invalid"]:
            where = (
                f"{row['category']}, {row['tool_choice']}, {row['max_tokens']} tokens, "
                f"{row['temperature']}"
            )
            yield f"{where}: {row['shown_invalid']} invalid calls were shown"
    if result.get("schemas", {}).get("wrong"):
        yield f"{result['schemas']['wrong']} instances of the suite were decided wrongly"
