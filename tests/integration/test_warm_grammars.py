"""Grammars of tools after a restart, on a real server: compiled before they are asked for."""

import json
import stat
import time
import urllib.request

import pytest
from support import serving

pytestmark = pytest.mark.server

TOOL = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
REQUEST = {
    "model": "m",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [{"type": "function", "function": TOOL}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "temperature": 0,
    "max_tokens": 64,
    "return_meta_info": True,
}


def start(smollm2, log, folder):
    flags = ("--tool-call-parser", "hermes", "--ext-tools", "enforce", "--enable-metrics")
    flags += ("--ext-tools-warm-dir", str(folder), "--max-total-tokens", "8000")
    return serving.start(smollm2, log, *flags)


def ask(server):
    """The arguments that the model wrote, and what its scheduler tells."""
    answer = serving.post(server, "/v1/chat/completions", REQUEST)
    choice = answer["choices"][0]
    arguments = choice["message"]["tool_calls"][0]["function"]["arguments"]
    return arguments, choice["meta_info"]["finish_reason"]["sglang_ext"]


def counted(server):
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    series = dict(line.rsplit(" ", 1) for line in lines if line.startswith("sglang_ext:tool"))
    return {name: float(value) for name, value in series.items()}


def warm(series, state):
    [value] = [
        value
        for name, value in series.items()
        if name.startswith("sglang_ext:tool_warm_grammars{") and f'state="{state}"' in name
    ]
    return value


def test_the_first_request_after_a_restart_finds_its_grammar_warm(smollm2, tmp_path):
    folder = tmp_path / "grammars"
    server = start(smollm2, tmp_path / "first.log", folder)
    try:
        arguments, told = ask(server)
        assert told["compile_ms"] > 0
        assert (told["warmed"], told["warm_found"], told["warm_skipped"]) == (0, 0, 0)
        assert counted(server)["sglang_ext:tool_compile_seconds_count"] == 1
        end = time.monotonic() + 60
        while not (files := list(folder.glob("*.texts"))):
            assert time.monotonic() < end, "no text was kept"
            time.sleep(0.1)
    finally:
        server.stop()
    [file] = files
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = file.read_bytes()
    assert b"get_weather" in kept
    assert b"Paris" not in kept, "neither prompts nor answers"
    file.write_bytes(kept + b"\x00" * 19)  # a second text that the disk has lost

    server = start(smollm2, tmp_path / "second.log", folder)
    try:
        for _ in range(2):  # the second time from the cache
            again, told = ask(server)
            assert again == arguments
            assert told["compile_ms"] == 0
            assert (told["warmed"], told["warm_found"], told["warm_skipped"]) == (1, 1, 1)
        series = counted(server)
        assert series.get("sglang_ext:tool_compile_seconds_count", 0) == 0
        assert [warm(series, state) for state in ("warmed", "found", "skipped")] == [1, 1, 1]
        assert serving.get(server, "/server_info")["sglang_ext"]["degraded"] is False
    finally:
        server.stop()
    log = (tmp_path / "second.log").read_text(encoding="utf-8", errors="replace")
    assert "Compiled 1 grammars of before" in log
    assert "'damaged': 1" in log
    assert json.loads(arguments).keys() == {"city"}
