from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from sglang_ext.bench.answers import Answer, Call, Exchange, Tokens
from sglang_ext.bench.compare import Comparison, Difference
from sglang_ext.bench.demo import Outcome, Run, Settings

EQUAL = Comparison(2, ())
FIELDS = [
    "ok",
    "prompt_tokens",
    "l1_tokens",
    "l2_tokens",
    "l3_tokens",
    "computed_tokens",
    "warm_restart_cached_share",
    "outputs_equal",
    "ttft_cold_s",
    "ttft_warm_s",
]


def made(*tokens: Tokens, ttft: Sequence[float] = (1.0, 3.0)) -> Run:
    return Run(
        [
            Exchange(1, turn, {}, Answer("", (), "stop", (1,), (2,), one, seconds, seconds))
            for turn, (one, seconds) in enumerate(zip(tokens, ttft, strict=True), start=1)
        ]
    )


TIERED = made(Tokens(1000, 500, 0, 0), Tokens(1000, 300, 200, 400))
WARM = made(Tokens(1000, 0, 0, 950), Tokens(1000, 960, 0, 0), ttft=(0.2, 0.4))
PLAIN = made(Tokens(1000), Tokens(1000), ttft=(5.0, 7.0))


def test_a_good_outcome() -> None:
    result = Outcome(TIERED, WARM, PLAIN, EQUAL, EQUAL).to_json()
    assert list(result)[: len(FIELDS)] == FIELDS
    assert [result[name] for name in FIELDS] == [
        True, 2000, 800, 200, 400, 600, 0.955, True, 6.0, 0.3,
    ]  # fmt: skip
    assert result["findings"] == []
    assert [row["turn"] for row in result["turns"]] == [1, 2]


@pytest.mark.parametrize(
    ("tiered", "warm", "plain", "finding"),
    [
        (made(Tokens(9, 0, 1, 1), Tokens(9)), WARM, PLAIN, "L1 served no tokens"),
        (made(Tokens(9, 1, 0, 1), Tokens(9)), WARM, PLAIN, "L2 served no tokens"),
        (made(Tokens(9, 1, 1, 0), Tokens(9)), WARM, PLAIN, "L3 served no tokens"),
        (TIERED, made(Tokens(100, 0, 0, 89), Tokens(100, 90)), PLAIN, "89.5% of the prompt"),
        (TIERED, made(Tokens(100, 99), Tokens(100, 99)), PLAIN, "L3 gave nothing back"),
        (TIERED, WARM, made(Tokens(100, 64), Tokens(100)), "reference server served 64"),
    ],
)
def test_what_must_hold_is_a_finding_when_it_does_not(
    tiered: Run, warm: Run, plain: Run, finding: str
) -> None:
    outcome = Outcome(tiered, warm, plain, EQUAL, EQUAL)
    assert len(outcome.findings) == 1
    assert finding in outcome.findings[0]
    assert outcome.to_json()["ok"] is False


def test_a_flip_is_counted_and_a_difference_fails_by_its_place() -> None:
    flip = Comparison(2, (Difference("agent 1", 3, (1,), (2,), 5e-5),))
    fine = Outcome(TIERED, WARM, PLAIN, flip, EQUAL).to_json()
    assert (fine["ok"], fine["outputs_equal"], fine["flips"]) == (True, True, 1)
    wrong = Comparison(2, (Difference("agent 2, turn 4, request 1", 3, (1,), (2,), 0.5),))
    bad = Outcome(TIERED, WARM, PLAIN, EQUAL, wrong).to_json()
    assert (bad["ok"], bad["outputs_equal"], bad["flips"]) == (False, False, 0)
    assert bad["findings"] == [
        "warm run, agent 2, turn 4, request 1: output token 3 differs from the server without a "
        "cache"
    ]


def test_the_cache_is_too_small_on_purpose_and_l2_holds_l1() -> None:
    settings = Settings(Path("m"), Path("w"))
    flags = settings.cache_flags(Path("/l3"))
    values = dict(pairwise(flags))
    assert values["--ext-l3-dir"] == "/l3"
    assert int(values["--ext-l2-size"]) == settings.l2_tokens * 46_080
    assert settings.l1_tokens < settings.l2_tokens


def test_a_call_that_was_cut_off_does_not_count_as_executed() -> None:
    calls = (Call("a", "ls", "{}"), Call("b", "find", '{"path": "un'))
    answer = Answer("", calls, "length", (1,), (2,), Tokens(1), 1.0, 1.0)
    run = Run([Exchange(1, 1, {}, answer), Exchange(1, 2, {}, answer)])
    assert run.calls == (2, 4)
    assert run.to_json()["calls_executed"] == 2
