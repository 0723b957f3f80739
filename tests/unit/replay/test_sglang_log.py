"""What SGLang's logger writes becomes a trace."""

import json

import pytest

from sglang_ext.errors import TraceError
from sglang_ext.replay.record import record
from sglang_ext.replay.sglang_log import block_keys, row_of
from sglang_ext.replay.trace import read_trace

request_logger = pytest.importorskip("sglang.srt.utils.request_logger")
io_struct = pytest.importorskip("sglang.srt.managers.io_struct")


def logged(folder, prompts, level=3):
    """A folder's logs, of SGLang's logger, of requests with these tokens."""
    logger = request_logger.RequestLogger(True, level, "json", [str(folder)])
    for number, tokens in enumerate(prompts):
        prompt = {"text": "plain"} if tokens is None else {"input_ids": tokens}
        asked = io_struct.GenerateReqInput(**prompt, rid=str(number))
        meta = {"completion_tokens": 7, "e2e_latency": 0.25, "finish_reason": {"type": "stop"}}
        logger.log_received_request(asked)
        logger.log_finished_request(asked, {"text": "secret", "meta_info": meta})
    for target in logger.targets:
        for handler in target.handlers:
            handler.flush()
    (log,) = folder.iterdir()
    return log


def test_a_log_of_sglang_becomes_a_trace(tmp_path):
    first = list(range(130))
    log = logged(tmp_path, [first, [*first, *range(70)], [9] * 64])
    made = record(log, tmp_path / "t.jsonl.gz")
    assert (made["block"], made["requests"], made["input_tokens"]) == (64, 3, 130 + 200 + 64)
    trace = read_trace(tmp_path / "t.jsonl.gz")
    assert trace.parent.tolist() == [-1, 0, -1]
    assert trace.shared.tolist() == [0, 2, 0]
    assert trace.blocks.tolist() == [2, 3, 1]
    assert trace.output_tokens.tolist() == [7, 7, 7]
    assert trace.answer_s.tolist() == [0.25] * 3
    assert record(log, tmp_path / "u.gz", block_tokens=10)["footprint_tokens"] == 130 + 70 + 60


def test_plain_text_is_left_out(tmp_path):
    log = logged(tmp_path, [[1] * 64, None])
    made = record(log, tmp_path / "t.jsonl.gz")
    assert (made["requests"], made["skipped"]) == (1, 1)


def test_a_log_without_tokens_says_how_to_get_them(tmp_path):
    log = logged(tmp_path, [[1, 2, 3]], level=1)
    with pytest.raises(TraceError, match="--log-requests-level 3"):
        record(log, tmp_path / "t.jsonl.gz")


def test_what_is_no_event_of_sglang_is_refused(tmp_path):
    log = tmp_path / "log"
    log.write_text(json.dumps({"event": "request.finished", "timestamp": "now", "obj": None}))
    with pytest.raises(TraceError, match="line 1 is no request"):
        record(log, tmp_path / "t.jsonl.gz")


def test_keys_are_equal_where_all_before_them_is():
    one, two = block_keys([1, 2, 3, 4, 5], 2), block_keys([1, 2, 9, 4], 2)
    assert len(one) == len(two) == 2
    assert one[0] == two[0]
    assert one[1] != two[1]


def finished(headers=None, **asked):
    meta = {"completion_tokens": 7, "e2e_latency": 0.25}
    obj = {"input_ids": list(range(200)), **asked}
    row = {"timestamp": "2026-01-01T00:00:00", "obj": obj, "out": {"meta_info": meta}}
    return row_of({**row, "headers": headers}, 64)


def test_what_the_server_keeps_apart_shares_no_block():
    spaces = ({}, {"cache_salt": "a"}, {"extra_key": "a"}, {"lora_path": "a"})
    first = [finished(**space)["keys"][0] for space in spaces]
    assert len(set(first)) == len(spaces)
    assert finished(cache_salt="a")["keys"] == finished(cache_salt="a")["keys"]
    assert first[0] == block_keys(list(range(64)), 64)[0]


def test_a_session_is_named_by_its_own_header_alone():
    router = {"x-smg-routing-key": "r"}
    assert "s" not in finished(router)
    one, two = (finished({**router, "X-Session-Id": name})["s"] for name in "ab")
    assert one != two
    assert finished({"x-session-id": "a"})["s"] == one
