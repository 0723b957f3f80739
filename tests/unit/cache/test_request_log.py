"""The log of requests: what is in it, and its bound."""

import json
import os
import stat

import pytest

from sglang_ext.cache import request_log as module
from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.request_log import RequestLog
from sglang_ext.cache.requests import Known
from sglang_ext.errors import TraceError
from sglang_ext.replay.record import record
from sglang_ext.replay.trace import read_trace


def known(number, marks=(1, 2, 3), **more):
    return Known(str(number), 200, 1000.0 + number, "tenant", "s", False, list(marks), **more)


def test_replay_reads_what_is_written(tmp_path):
    log = RequestLog(tmp_path / "log", 10**6, 64)
    log.put(known(0), Stop.TOOL, 7, 1002.5)
    log.put(known(1, (1, 2, 3, 4)), Stop.OTHER, -1, 1003.0)
    log.close()
    log.close()
    assert log.written == 2
    made = record(tmp_path / "log", tmp_path / "trace.jsonl.gz")
    assert made["block"] == 64
    trace = read_trace(tmp_path / "trace.jsonl.gz")
    assert list(trace.blocks) == [3, 4]
    assert list(trace.shared) == [0, 3]
    assert list(trace.stop) == ["tool_use", "other"]
    assert trace.answer_s[0] == 2.5
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_no_tenant_and_no_id_is_in_it(tmp_path):
    log = RequestLog(tmp_path / "log", 10**6, 64)
    log.put(known(5), Stop.END, 1, 1001.0)
    log.close()
    row = json.loads((tmp_path / "log").read_text().splitlines()[1])
    assert set(row) == {"t", "in", "out", "a", "stop", "keys", "s"}


def test_bound_is_exact(tmp_path):
    file = tmp_path / "log"
    log = RequestLog(file, 300, 64)
    for number in range(50):
        log.put(known(number), Stop.END, 1, 2000.0)
    log.close()
    assert log.full
    assert 0 < file.stat().st_size <= 300
    again = RequestLog(file, 300, 64)
    again.put(known(0), Stop.END, 1, 2000.0)
    again.close()
    assert file.stat().st_size <= 300


def test_file_that_cannot_be_written_is_said_and_nothing_else(tmp_path):
    (tmp_path / "log").symlink_to(tmp_path / "target")
    log = RequestLog(tmp_path / "log", 300, 64)
    log.put(known(0), Stop.END, 1, 1001.0)
    log.close()
    assert log.full
    assert not (tmp_path / "target").exists()


def test_a_disk_that_hangs_does_not_hold_the_end_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CLOSE_S", 0.05)
    os.mkfifo(tmp_path / "log")  # opening it waits for a reader
    log = RequestLog(tmp_path / "log", 10**6, 64)
    for number in range(300):
        log.put(known(number), Stop.END, 1, 2000.0)
    assert log.dropped == 300 - 256
    log.close()
    os.close(os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK))


def test_each_server_says_its_block_size(tmp_path):
    for number, block in enumerate((64, 64, 32)):
        log = RequestLog(tmp_path / "log", 10**6, block)
        log.put(known(number), Stop.END, 1, 2000.0)
        log.close()
        if block == 64:
            made = record(tmp_path / "log", tmp_path / "trace.jsonl.gz")
            assert (made["block"], made["requests"]) == (64, number + 1)
    with pytest.raises(TraceError, match="split the log"):
        record(tmp_path / "log", tmp_path / "trace.jsonl.gz")


def test_after_a_line_that_was_cut_off_comes_a_whole_one(tmp_path):
    file = tmp_path / "log"
    for number in range(3):
        log = RequestLog(file, 10**6, 64)
        log.put(known(number), Stop.END, 1, 2000.0)
        log.close()
        if number < 2:
            os.truncate(file, file.stat().st_size - 5 * number)
    lines = file.read_text().splitlines()
    assert len(lines) == 6
    assert lines[2] == lines[4] == json.dumps({"block": 64})
    made = record(file, tmp_path / "trace.jsonl.gz")
    assert (made["requests"], made["cut"]) == (2, 1)


def test_a_disk_that_takes_half_a_line_costs_that_line(tmp_path, monkeypatch):
    made, short = os.fdopen, [True]

    def fdopen(descriptor, mode, **more):
        file = made(descriptor, mode, **more)
        if mode == "rb":
            return file

        class Short:
            def __enter__(self):
                return self

            def __exit__(self, *what):
                file.close()

            def write(self, line):
                half = short.pop() if short else False
                return file.write(line[: len(line) // 2] if half else line)

        return Short()

    monkeypatch.setattr(os, "fdopen", fdopen)
    log = RequestLog(tmp_path / "log", 10**6, 64)
    for number in range(3):
        log.put(known(number), Stop.END, 1, 2000.0)
    log.close()
    assert (log.written, log.dropped) == (2, 1)
    found = record(tmp_path / "log", tmp_path / "trace.jsonl.gz", block_tokens=64)
    assert (found["requests"], found["cut"]) == (2, 1)
