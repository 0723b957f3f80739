"""Traces: what is read, what is refused, coarser blocks, session starts."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from sglang_ext.errors import TraceError
from sglang_ext.replay.trace import read_trace

HEADER = {"name": "t", "block": 64, "timed": "session"}
ROWS = [
    {
        "s": 0,
        "t": 0.0,
        "in": 650,
        "out": 5,
        "p": -1,
        "lcp": 0,
        "n": 10,
        "a": 2.5,
        "stop": "tool_use",
    },
    {"s": 1, "t": 0.5, "in": 640, "out": None, "p": -1, "lcp": 0, "n": 10, "a": None, "sub": 1},
    {"s": 0, "t": 9.0, "in": 1290, "out": 7, "p": 0, "lcp": 9, "n": 20, "m": "x"},
]


def written(path, header=HEADER, rows=ROWS, zipped=True):
    text = "\n".join(json.dumps(row) for row in [header, *rows])
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_trace_is_read(tmp_path, zipped):
    trace = read_trace(written(tmp_path / "t.jsonl", zipped=zipped))
    assert (trace.name, trace.block_tokens, trace.timed, len(trace)) == ("t", 64, "session", 3)
    assert trace.output_tokens.tolist() == [5, -1, 7]
    assert trace.answer_s.tolist() == [2.5, 0.0, 0.0]
    assert trace.agent == [False, True, False]
    assert trace.stop == ["tool_use", "", ""]
    assert trace.footprint_tokens == (10 + 10 + 11) * 64
    assert trace.ideal_hit == pytest.approx(9 / 40)


def test_coarser_blocks_round_down(tmp_path):
    trace = read_trace(written(tmp_path / "t.jsonl")).coarser(256)
    assert trace.blocks.tolist() == [2, 2, 5]
    assert trace.shared.tolist() == [0, 0, 2]
    with pytest.raises(TraceError, match="blocks of 100 tokens"):
        trace.coarser(100)


def test_starts_are_those_of_the_form(tmp_path):
    trace = read_trace(written(tmp_path / "t.jsonl"))
    offsets = np.random.default_rng(3).uniform(0, 100.0, 2)
    expected = [offsets[0], 0.5 + offsets[1], 9.0 + offsets[0]]
    assert trace.starts(3, 100.0).tolist() == expected
    header = {**HEADER, "timed": "none"}
    assert read_trace(written(tmp_path / "n.jsonl", header)).starts(3, 9.0).tolist() == [0, 1, 2]
    header = {**HEADER, "timed": "global"}
    assert read_trace(written(tmp_path / "g.jsonl", header)).starts(3, 9.0).tolist() == [0, 0.5, 9]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ({"name": "t"}, ROWS, "no header"),
        ({**HEADER, "timed": "later"}, ROWS, "timed 'later'"),
        ({**HEADER, "block": 0}, ROWS, "blocks of 0 tokens"),
        (HEADER, [{**ROWS[0], "p": 0}], "parent that is not before it"),
        (HEADER, [ROWS[0], {**ROWS[2], "p": 0, "lcp": 11}], "more blocks than its parent"),
        (HEADER, [{**ROWS[0], "t": float("inf")}], "not finite"),
        (HEADER, [{k: v for k, v in ROWS[0].items() if k != "s"}], "has no session"),
        (HEADER, [{k: v for k, v in ROWS[0].items() if k != "n"}], "a request without 'n'"),
        (HEADER, [{**ROWS[0], "n": "many"}], "t.jsonl: invalid literal"),
        ({**HEADER, "block": "x"}, ROWS, "t.jsonl: invalid literal"),
        (HEADER, [ROWS[0], [1, 2]], "request 1 is no object"),
        (HEADER, [], "a header and no request"),
        (HEADER, [{**ROWS[0], "s": 10**10}], "has a session of"),
        (HEADER, [ROWS[0], {**ROWS[1], "a": -1.0}], "request 1 is answered before it is asked"),
        (HEADER, [ROWS[0], {**ROWS[1], "n": 1 << 31}], "request 1 has 2,147,483,648 blocks"),
        (
            HEADER,
            [{**ROWS[0], "n": 1 << 30}, {**ROWS[1], "n": 1 << 30}],
            "2,147,483,648 different blocks or more",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, header, rows, message):
    with pytest.raises(TraceError, match=message):
        read_trace(written(tmp_path / "t.jsonl", header, rows))


@pytest.mark.parametrize("data", [b"", b"no json", gzip.compress(b"{}", mtime=0)[:-9], b"[]\n"])
def test_what_is_no_trace_is_refused(tmp_path, data):
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(TraceError):
        read_trace(path)


def test_any_negative_parent_is_none(tmp_path):
    trace = read_trace(written(tmp_path / "t.jsonl", rows=[{**ROWS[0], "p": -7, "lcp": 3}]))
    assert trace.shared.tolist() == [0]
