"""A server's log becomes a trace."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.errors import TraceError
from sglang_ext.replay.rankings import block_paths
from sglang_ext.replay.record import record
from sglang_ext.replay.trace import read_trace

ROWS = [
    {"block": 16},
    {"t": 12.5, "in": 40, "out": 3, "keys": ["a", "b"], "s": "alice", "stop": "tool_use", "a": 1.5},
    {"t": 10.0, "in": 33, "keys": ["x", "y"], "s": "bob", "m": "llama"},
    {"t": 20.0, "in": 70, "out": None, "keys": ["a", "b", "c", "d"], "s": "alice", "sub": 1},
]


def log_of(path, rows, zipped=False):
    text = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(text) if zipped else text)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_log_becomes_a_trace(tmp_path, zipped):
    made = record(log_of(tmp_path / "server.log", ROWS, zipped), tmp_path / "out" / "t.jsonl.gz")
    assert made == {
        "name": "server",
        "block": 16,
        "requests": 3,
        "skipped": 0,
        "cut": 0,
        "sessions": 2,
        "input_tokens": 143,
        "footprint_tokens": 6 * 16,
    }
    trace = read_trace(tmp_path / "out" / "t.jsonl.gz")
    assert trace.time_s.tolist() == [0.0, 2.5, 10.0]
    assert trace.parent.tolist() == [-1, -1, 1]
    assert trace.shared.tolist() == [0, 0, 2]
    assert trace.session.tolist() == [0, 1, 1]
    assert trace.output_tokens.tolist() == [-1, 3, -1]
    assert (trace.stop[1], trace.answer_s[1], trace.agent[2]) == ("tool_use", 1.5, True)


def test_no_name_and_no_key_gets_into_the_trace(tmp_path):
    record(log_of(tmp_path / "server.log", ROWS), tmp_path / "t.jsonl.gz")
    text = gzip.decompress((tmp_path / "t.jsonl.gz").read_bytes()).decode()
    for word in ("alice", "bob", '"a"]', "keys"):
        assert word not in text
    again = tmp_path / "again.jsonl.gz"
    record(log_of(tmp_path / "server.log", ROWS), again)
    assert again.read_bytes() == (tmp_path / "t.jsonl.gz").read_bytes()


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=12))
def test_prompts_share_in_the_trace_what_they_share_in_the_log(prompts):
    import tempfile
    from pathlib import Path

    keys = [[hash(tuple(prompt[: n + 1])) for n in range(len(prompt))] for prompt in prompts]
    rows = [{"t": float(i), "in": len(k), "keys": k} for i, k in enumerate(keys)]
    with tempfile.TemporaryDirectory() as folder:
        log = log_of(Path(folder) / "l", rows)
        record(log, Path(folder) / "t", block_tokens=1)
        paths = [path.tolist() for path in block_paths(read_trace(Path(folder) / "t"))]
    number: dict[int, int] = {}
    for path, chain in zip(paths, keys, strict=True):
        assert len(path) == len(chain)
        for block, key in zip(path, chain, strict=True):
            assert number.setdefault(key, block) == block
    assert len(set(number.values())) == len(number)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[1:], "no line says how many tokens"),
        ([ROWS[0], {"t": 1.0, "in": 5}], "line 2 is no request"),
        ([ROWS[0]], "no request with"),
        ([ROWS[0], {"t": 1.0, "in": 5, "p": -1, "lcp": 0, "n": 1}], "this is a trace"),
        ([ROWS[0], {"t": float("inf"), "in": 5, "keys": []}], "line 2"),
        ([ROWS[0], {"t": "late", "in": 5, "keys": []}], "line 2"),
        ([ROWS[0], {"t": 1.0, "in": 5, "keys": "abc"}], "line 2"),
        ([ROWS[0], {"t": float("nan"), "in": 5, "keys": []}], "line 2"),
        ([ROWS[0], {"t": 1.0, "in": 5, "keys": [None]}], "line 2"),
        ([ROWS[0], {"t": 1.0, "in": 5, "keys": [], "out": "many"}], "line 2"),
        ([ROWS[0], {"t": 1.0, "in": 5, "keys": [], "a": float("inf")}], "line 2"),
        ([ROWS[0], {"t": 1.0, "in": 5, "keys": [], "a": -1.0}], "line 2"),
        ([*ROWS, {"block": 32}, ROWS[1]], "line 5 .*32 tokens after keys of 16; split the log"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, rows, message):
    with pytest.raises(TraceError, match=message):
        record(log_of(tmp_path / "server.log", rows), tmp_path / "t.jsonl.gz")


def test_a_log_may_say_its_block_size_again_and_late(tmp_path):
    for rows in ([*ROWS, ROWS[0], ROWS[1]], [*ROWS[1:], ROWS[0]], [{"block": 32}, *ROWS]):
        made = record(log_of(tmp_path / "server.log", rows), tmp_path / "t.jsonl.gz")
        assert made["block"] == 16


def test_two_block_sizes_are_refused_whatever_is_given(tmp_path):
    log = log_of(tmp_path / "server.log", [*ROWS, {"block": 32}, ROWS[1]])
    with pytest.raises(TraceError, match="split the log"):
        record(log, tmp_path / "t.jsonl.gz", block_tokens=16)


@pytest.mark.parametrize("name", ["server.log", "link", "hard link"])
def test_a_log_is_not_replaced_by_its_own_trace(tmp_path, name):
    log = log_of(tmp_path / "server.log", ROWS)
    (tmp_path / "link").symlink_to(log)
    (tmp_path / "hard link").hardlink_to(log)
    before = log.read_bytes()
    with pytest.raises(TraceError, match="is the log itself"):
        record(log, tmp_path / name)
    assert log.read_bytes() == before


HALF = '{"t": 21.0, "in": 50, "ke'


@pytest.mark.parametrize("half", [HALF, "\0" * 50, "\udcff\udcfe", "[" * 100_000])
def test_a_line_that_was_cut_off_is_left_out_and_counted(tmp_path, half):
    lines = [json.dumps(row) for row in ROWS]
    log = tmp_path / "server.log"
    for text, requests, cut in (
        ([*lines, half], 3, 1),
        ([*lines, half, lines[0], lines[1]], 4, 1),
        ([*lines, half, "", lines[0], lines[1], half], 4, 2),
    ):
        log.write_text("\n".join(text), errors="surrogateescape")
        made = record(log, tmp_path / "t.jsonl.gz")
        assert (made["requests"], made["cut"]) == (requests, cut)


def test_a_broken_line_between_requests_is_refused(tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    for text in ([*lines[:3], HALF, lines[3]], [*lines, HALF, HALF]):
        (tmp_path / "server.log").write_text("\n".join(text))
        with pytest.raises(TraceError, match=f"line {text.index(HALF) + 1} is no request"):
            record(tmp_path / "server.log", tmp_path / "t.jsonl.gz")
