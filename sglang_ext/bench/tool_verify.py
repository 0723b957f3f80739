"""Measures the tool calls of any OpenAI-compatible endpoint, with requests built from BFCL.

Source of the measure of schemas: K2 Vendor Verifier, which divides the answers whose calls are all
valid by the answers that finished as tool calls.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any

from sglang_ext.bench.bfcl_calls import Case, load_cases
from sglang_ext.bench.chat import Endpoint, Shown
from sglang_ext.bench.tool_calls import is_valid
from sglang_ext.errors import BenchError

__all__ = ["Check", "verify_tools"]

_BUDGETS = (4, 8, 16, 24, 32, 48)  # tokens at which an answer is cut off
_MOST_TOKENS = 256  # of all other answers

# Schemas that have made servers hang, fall silent, or forget the constraint. An answer of any
# kind is good, if it is no invalid call, and the server still serves.
_HOSTILE: dict[str, dict[str, Any]] = {
    "2,000 properties": {
        "type": "object",
        "properties": {f"p{number}": {"type": "string"} for number in range(2_000)},
    },
    "catastrophic pattern": {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^((a{1,30}){1,30}){1,30}$"}},
        "required": ["a"],
    },
    "giant enum": {"type": "object", "properties": {"a": {"enum": list(range(20_000))}}},
    "nested 100 deep": json.loads(
        '{"type": "object", "properties": {"a": ' * 100 + "{}" + "}}" * 100
    ),
    "reference to nowhere": {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
}


@dataclass(frozen=True)
class Check:
    """One request: what was looked at, and whether it held; ``detail`` where it did not."""

    check: str
    case: str
    ok: bool
    detail: str = ""


def verify_tools(
    end: Endpoint, requests: int, on_step: Callable[[str], None] = lambda _step: None
) -> dict[str, Any]:
    """Run all checks.

    Args:
        end: the endpoint, with the name of its model.
        requests: how many are sent at most, hostile schemas aside; at least 20.
        on_step: called before each group of checks with what it is.

    Returns:
        The object that ``--json`` writes.

    Raises:
        BenchError: too few requests, or the endpoint does not answer.
    """
    if requests < 20:
        raise BenchError(f"{requests} requests are too few; give at least 20")
    part = requests // 20
    on_step("when to call")
    called = _chosen(("simple_python", "multiple"), 5 * part)
    labelled = [*called, *_chosen(("irrelevance",), 5 * part)]
    free = [(case, end.ask(_body(case, "auto"))) for case in labelled]
    on_step("required calls")
    held = [(case, end.ask(_body(case, "required"))) for case in called[: 2 * part]]
    checks = [_schema(case, shown) for case, shown in [*free, *held] if _finished(shown)]
    on_step("named calls, and one at a time")
    checks += [_named(end, case) for case in _chosen(("multiple",), 2 * part)]
    checks += [_single(end, case) for case in _chosen(("parallel",), 2 * part)]
    on_step("streams")
    checks += [_streamed(end, case) for case in called[:part]]
    on_step("answers that are cut off")
    budgets = cycle(_BUDGETS)
    checks += [_cut_off(end, case, next(budgets)) for case in called[: 2 * part]]
    on_step("hostile schemas")
    checks += [_hostile(end, name, called[0]) for name in _HOSTILE]
    return _result(free, checks)


def _chosen(categories: Sequence[str], count: int) -> list[Case]:
    """Cases of the categories in turn, from their first on."""
    sources = [load_cases(category) for category in categories]
    turns = (case for row in zip(*sources, strict=False) for case in row)
    return list(islice(turns, count))


def _body(case: Case, choice: Any, **more: Any) -> dict[str, Any]:
    return {
        "messages": list(case.messages),
        "tools": case.tools(strict=None),
        "tool_choice": choice,
        "temperature": 0,
        "max_tokens": _MOST_TOKENS,
        **more,
    }


def _finished(shown: Shown) -> bool:
    return shown.status == 200 and shown.finish == "tool_calls"


def _invalid(case: Case, shown: Shown) -> str:
    """The first call that is not valid, as text; empty where all are."""
    for name, arguments in shown.calls:
        if not is_valid(case, name, arguments):
            return f"{name}({arguments[:200]})"
    return ""


def _schema(case: Case, shown: Shown) -> Check:
    wrong = _invalid(case, shown) or ("" if shown.calls else "finished as tool_calls without one")
    return Check("schema", case.id, not wrong, wrong)


def _named(end: Endpoint, case: Case) -> Check:
    # The last tool: seldom the one that fits, so that the choice is seen to be what decides.
    name = case.tools(strict=None)[-1]["function"]["name"]
    shown = end.ask(_body(case, {"type": "function", "function": {"name": name}}))
    called = [one for one, _ in shown.calls]
    wrong = [one for one in called if one != name] or _invalid(case, shown)
    ok = shown.status == 200 and not wrong and (bool(called) or shown.finish == "length")
    return Check("named", case.id, ok, "" if ok else f"{name} was named: {_told(shown)}")


def _single(end: Endpoint, case: Case) -> Check:
    shown = end.ask(_body(case, "required", parallel_tool_calls=False))
    ok = shown.status == 200 and len(shown.calls) <= 1
    return Check("parallel", case.id, ok, "" if ok else _told(shown))


def _streamed(end: Endpoint, case: Case) -> Check:
    body = _body(case, "required")
    whole, streamed = end.ask(body), end.ask({**body, "stream": True})
    ok = (whole.content, whole.calls, whole.finish) == (
        streamed.content,
        streamed.calls,
        streamed.finish,
    )
    return Check(
        "stream", case.id, ok, "" if ok else f"{_told(whole)}; as stream {_told(streamed)}"
    )


def _cut_off(end: Endpoint, case: Case, most: int) -> Check:
    """Honest: nothing invalid is shown as a call, and an answer that was cut off says so."""
    shown = end.ask(_body(case, "required", max_tokens=most))
    wrong = _invalid(case, shown)
    honest = shown.finish != "tool_calls" or bool(shown.calls)
    if not shown.calls and shown.tokens >= most:
        honest = honest and shown.finish == "length"
    ok = shown.status == 200 and not wrong and honest
    return Check("truncation", f"{case.id}, {most} tokens", ok, "" if ok else _told(shown))


def _hostile(end: Endpoint, name: str, after: Case) -> Check:
    """The server answers, and answers the next request, too."""
    tool = {"type": "function", "function": {"name": "act", "parameters": _HOSTILE[name]}}
    case = Case(name, "hostile", after.messages, (), ())
    body = {**_body(case, "required", max_tokens=32), "tools": [tool]}
    try:
        shown = end.ask(body)
        following = end.ask(_body(after, "none", max_tokens=4))
    except BenchError as error:
        return Check("hostile", name, False, str(error)[:300])
    objects = all(_is_object(arguments) for _, arguments in shown.calls)
    told = shown.status in (200, 400, 413, 422)
    ok = told and objects and following.status == 200
    return Check("hostile", name, ok, "" if ok else _told(shown))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _told(shown: Shown) -> str:
    if shown.status != 200:
        return f"{shown.status}: {shown.message[:200]}"
    return f"{shown.finish}, calls {shown.calls}, content {shown.content[:80]!r}"[:400]


def _result(free: Sequence[tuple[Case, Shown]], checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "schema_accuracy": _share(checks, "schema"),
        "trigger_f1": _f1([(bool(case.answers), bool(shown.calls)) for case, shown in free]),
        "named_respected": _share(checks, "named"),
        "parallel_respected": _share(checks, "parallel"),
        "stream_equal": _share(checks, "stream"),
        "truncation_honest": _share(checks, "truncation"),
        "hostile_answered": _share(checks, "hostile"),
        "cases": [asdict(one) for one in checks],
        "findings": list(_findings(checks)),
    }


def _share(checks: Sequence[Check], name: str) -> float | None:
    """Share of checks that held; None where nothing was to be checked."""
    held = [one.ok for one in checks if one.check == name]
    return round(sum(held) / len(held), 4) if held else None


def _f1(pairs: Sequence[tuple[bool, bool]]) -> float:
    """F1 of calling, from (whether a tool fits, whether one was called)."""
    hits = sum(fits and called for fits, called in pairs)
    wrong = sum(fits != called for fits, called in pairs)
    return round(2 * hits / (2 * hits + wrong), 4) if hits or wrong else 1.0


def _findings(checks: Sequence[Check]) -> Iterator[str]:
    for one in checks:
        if not one.ok:
            yield f"{one.check}: {one.case}: {one.detail}"
