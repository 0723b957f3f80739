"""``sglang-ext replay`` as an operator uses it."""

import json
import stat

import pytest
from click.testing import CliRunner

from sglang_ext.cache.policy import Policy
from sglang_ext.cli.main import cli
from sglang_ext.errors import ConfigError, DamagedStateError

LOG = [
    {"t": t, "in": 16 * n, "out": 9, "keys": [f"{s}-{k}" for k in range(n)], "s": s}
    for t, s, n in [(0, "a", 3), (1, "b", 4), (2, "a", 5), (3, "b", 6), (4, "a", 7), (5, "c", 2)]
]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "server.log"
    path.write_text("\n".join(json.dumps(row) for row in LOG))
    return path


def run(*arguments):
    return CliRunner().invoke(cli, ["replay", *map(str, arguments)])


def test_a_log_is_recorded_and_replayed(log, tmp_path):
    out, trace = tmp_path / "out.json", tmp_path / "t.jsonl.gz"
    result = run(log, "--record", trace, "--block-tokens", 16, "--wished-hit", 20, "--json", out)
    assert result.exit_code == 0, result.output
    assert "6 requests of 3 sessions" in result.output
    assert "A hit rate of 20 % with ext:" in result.output
    found = json.loads(out.read_text())
    assert found["ideal_hit"] == pytest.approx(sum((3, 4, 5)) / 27)
    assert {row["policy"] for row in found["needed"]} == {row["policy"] for row in found["rows"]}
    assert all(row["capacity_tokens"] for row in found["needed"])
    again = run(trace, "--policies", "lru,belady", "--capacity-tokens", "64,1k", "--json", out)
    assert again.exit_code == 0, again.output
    rows = json.loads(out.read_text())["rows"]
    assert [(row["policy"], row["capacity_tokens"]) for row in rows] == [
        ("lru", 64), ("lru", 1000), ("belady", 64), ("belady", 1000)
    ]  # fmt: skip


def test_tiers_and_several_traces(log, tmp_path):
    out, trace = tmp_path / "out.json", tmp_path / "t.jsonl.gz"
    assert run(log, "--record", trace, "--block-tokens", 16, "--policies", "lru").exit_code == 0
    result = run(trace, trace, "--policies", "ext,lru", "--tiers", "64,64,1k", "--json", out)
    assert result.exit_code == 0, result.output
    for found in json.loads(out.read_text())["traces"]:
        for row in found["rows"]:
            parts = row["l1_hit"] + row["l2_hit"] + row["l3_hit"]
            assert row["hit"] == pytest.approx(parts)
            assert row["capacity_tokens"] == 1128
    flags = "--policies", "lru", "--tiers", "64,128,1k", "--inclusive", "--json", out
    assert run(trace, *flags).exit_code == 0
    found = json.loads(out.read_text())
    assert (found["inclusive"], found["rows"][0]["capacity_tokens"]) == (True, 1000)


def test_a_wish_that_is_not_reached_is_a_finding(log, tmp_path):
    trace = tmp_path / "t.jsonl.gz"
    run(log, "--record", trace, "--block-tokens", 16, "--policies", "lru")
    result = run(trace, "--policies", "lru", "--wished-hit", 99)
    assert result.exit_code == 1
    assert "no capacity shown above reaches it" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "lru,best"], "'best' is not one of"),
        (["--capacity-tokens", "1k,none"], "not a number of tokens"),
        (["--tiers", "1k", "--capacity-tokens", "1k"], "no --capacity-tokens"),
        (["--tiers", "1,2,3,4"], "up to three sizes"),
        (["--inclusive"], "is of --tiers"),
        (["--tiers", "1k", "--wished-hit", "50"], "drop one of them"),
        (["--record", "x.gz", "second.log"], "does not exist"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--window", "nan"], "not a number of seconds"),
        (["--answers", "held"], "is of ext, lru and belady"),
        ([], "no header"),
    ],
)
def test_wrong_use_says_why(log, arguments, message):
    result = run(log, *arguments)
    assert result.exit_code != 0
    assert message in " ".join((result.output + str(result.exception)).split())


def test_what_was_learned_is_saved_and_loaded(log, tmp_path):
    trace, state = tmp_path / "t.jsonl.gz", tmp_path / "policy.state"
    run(log, "--record", trace, "--block-tokens", 16, "--policies", "lru")
    saved = run(trace, "--policies", "ext", "--tiers", "64,64", "--save-policy", state)
    assert saved.exit_code == 0, saved.output
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    policy = Policy()
    policy.load(state.read_bytes(), 0.0)
    found = policy.inspect()
    assert (found["pauses"], found["conversations"]) == (6, 0)
    again = run(trace, "--policies", "ext", "--load-policy", state, "--save-policy", state)
    assert again.exit_code == 0, again.output
    policy.load(state.read_bytes(), 0.0)
    assert policy.inspect()["pauses"] == 12


def test_a_state_that_is_none_is_refused(log, tmp_path):
    trace = tmp_path / "t.jsonl.gz"
    run(log, "--record", trace, "--block-tokens", 16, "--policies", "lru")
    result = run(trace, "--policies", "ext", "--load-policy", log)
    assert isinstance(result.exception, DamagedStateError)
    nowhere = run(trace, "--policies", "ext", "--save-policy", tmp_path / "none" / "s")
    assert isinstance(nowhere.exception, ConfigError)
    theirs = tmp_path / "precious"
    theirs.write_text("precious")
    assert isinstance(
        run(trace, "--policies", "ext", "--save-policy", theirs).exception, ConfigError
    )
    assert theirs.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(theirs)
    assert isinstance(run(trace, "--policies", "ext", "--load-policy", link).exception, ConfigError)
    for wrong in ((trace, "--policies", "lru"), (trace, trace, "--policies", "ext")):
        assert isinstance(run(*wrong, "--save-policy", tmp_path / "s").exception, ConfigError)


@pytest.mark.parametrize("flag", ["--json", "--save-policy", "--record"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_read_is_not_replaced(log, tmp_path, flag, linked):
    to, made = log, [path for path in tmp_path.iterdir() if path != log]
    if linked:
        to = tmp_path / "link"
        to.symlink_to(log)
        made = [to]
    before = log.read_bytes()
    log_flags = () if flag == "--record" else ("--record", tmp_path / "t.gz")
    result = run(log, *log_flags, "--block-tokens", 16, "--policies", "ext", flag, to)
    assert isinstance(result.exception, ConfigError)
    assert f"{flag}: {to} is what TRACE names" in str(result.exception)
    assert log.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([log, *made]), "nothing was written"


def test_one_of_several_traces_is_not_replaced(log, tmp_path):
    trace = tmp_path / "t.gz"
    assert run(log, "--record", trace, "--block-tokens", 16, "--policies", "lru").exit_code == 0
    second = tmp_path / "second.gz"
    second.write_bytes(before := trace.read_bytes())
    result = run(trace, second, "--policies", "lru", "--json", second)
    assert isinstance(result.exception, ConfigError)
    assert second.read_bytes() == before


@pytest.mark.parametrize("pair", [("--json", "--record"), ("--json", "--save-policy")])
def test_two_results_do_not_share_a_file(log, tmp_path, pair):
    flags = [part for flag in pair for part in (flag, tmp_path / "x")]
    result = run(log, *flags, "--block-tokens", 16, "--policies", "ext")
    assert isinstance(result.exception, ConfigError)
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.parametrize("flag", ["--json", "--save-policy", "--record"])
def test_a_folder_that_is_not_there_is_refused(log, tmp_path, flag):
    result = run(log, "--policies", "ext", "--block-tokens", 16, flag, tmp_path / "none" / "x")
    assert isinstance(result.exception, ConfigError)
    assert f"{flag}: there is no folder" in str(result.exception)
    assert list(tmp_path.iterdir()) == [log]


def test_a_line_that_was_cut_off_is_told(log, tmp_path):
    log.write_text(log.read_text()[:-20])
    result = run(log, "--record", tmp_path / "t.gz", "--block-tokens", 16, "--policies", "lru")
    assert result.exit_code == 0, result.output
    assert "Left out: 1 lines that were cut off" in result.output
