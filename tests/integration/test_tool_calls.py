"""Tool calls on a real server with ``--ext-tools enforce``, through the three endpoints."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from decimal import Decimal
from pathlib import Path

import pytest
from support import serving

pytestmark = pytest.mark.server

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
TIME = {
    "name": "get_time",
    "description": "Time in a zone",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
WEATHER_ALONE = {"type": "function", "function": {"name": "get_weather"}}
NAMED = {"type": "function", "function": {"name": "get_time"}}
# Nothing but the marker is likely here, so that a constraint that begins at it is seen to hold.
FORCED = {"messages": [{"role": "user", "content": "Repeat: <tool_call> <tool_call> <tool_call>"}]}


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "server.log"
    flags = ("--tool-call-parser", "hermes", "--ext-tools", "enforce")
    server = serving.start(smollm2, log, *flags, "--max-total-tokens", "8000", "--enable-metrics")
    yield server
    server.stop()


def request(server, path="/v1/chat/completions", **body):
    """Status and decoded answer; a stream comes back as its lines."""
    document = {
        "model": str(server.model) if hasattr(server, "model") else "m",
        "messages": [{"role": "user", "content": "What is the weather in Paris for 3 days?"}],
        "temperature": 0,
        "max_tokens": 96,
        **body,
    }
    if path == "/v1/chat/completions":
        tools = [{"type": "function", "function": function} for function in (WEATHER, TIME)]
        document.setdefault("tools", tools)
    asked = urllib.request.Request(
        server.base_url + path, json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=120) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    return 200, text.splitlines() if document.get("stream") else json.loads(text)


def ask(server, **body):
    """Finish reason, content, calls and withheld calls."""
    status, answer = request(server, **body)
    assert status == 200, answer
    choice = answer["choices"][0]
    calls = [call["function"] for call in choice["message"].get("tool_calls") or ()]
    withheld = (answer.get("metadata") or {}).get("tool_calls_withheld", [])
    calls = [(call["name"], call["arguments"]) for call in calls]
    return choice["finish_reason"], choice["message"]["content"] or "", calls, withheld


def chunks_of(lines):
    return [json.loads(line[len("data: ") :]) for line in lines if line.startswith("data: {")]


def ask_streaming(server, **body):
    status, lines = request(server, stream=True, **body)
    assert status == 200, lines
    finish, content, calls, withheld = None, "", {}, []
    for chunk in chunks_of(lines):
        withheld += (chunk.get("metadata") or {}).get("tool_calls_withheld", [])
        for choice in chunk["choices"]:
            finish = choice["finish_reason"] or finish
            content += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or ():
                held = calls.setdefault(call["index"], ["", ""])
                held[0] += call["function"]["name"] or ""
                held[1] += call["function"]["arguments"] or ""
    return finish, content, [tuple(call) for call in calls.values()], withheld


def valid(name, arguments):
    value = json.loads(arguments)
    if name == "get_time":
        return set(value) == {"zone"} and value["zone"] in ("UTC", "CET")
    days = value["days"]
    return name == "get_weather" and set(value) == {"city", "days"} and 1 <= days <= 9


@pytest.mark.parametrize("choice", ["auto", "required", NAMED, "none"], ids=str)
@pytest.mark.parametrize("most", [1, 3, 16, 34, 40, 96])
def test_what_is_shown_is_valid_and_a_stream_shows_the_same(server, choice, most):
    body = {"tool_choice": choice, "max_tokens": most}
    finish, content, calls, withheld = ask(server, **body)
    assert ask_streaming(server, **body) == (finish, content, calls, withheld)
    assert all(valid(*call) for call in calls)
    forced = [entry for entry in withheld if entry["reason"] == "forced"]
    assert all(valid(entry["name"], entry["detail"]) for entry in forced)
    assert not [entry for entry in withheld if entry["reason"] == "invalid"]
    assert "<|im_end|>" not in f"{content}{withheld}"
    if choice == "none":
        assert not calls
    elif choice != "auto":
        assert content == ""
        assert calls or withheld
    if choice == NAMED:
        assert {name for name, _ in calls} <= {"get_time"}
    if not calls:
        assert finish != "tool_calls"


def test_one_call_where_one_is_asked_for(server):
    finish, _, calls, withheld = ask(server, tool_choice="required", parallel_tool_calls=False)
    assert (finish, len(calls), withheld) == ("tool_calls", 1, [])
    assert calls[0][0] == "get_weather"
    assert json.loads(calls[0][1]) == {"city": "Paris", "days": 3}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_at_every_temperature(server, temperature):
    for seed in range(4):
        finish, _, calls, _ = ask(
            server,
            tool_choice="required",
            temperature=temperature,
            seed=seed,
            parallel_tool_calls=False,
            max_tokens=200,
        )
        assert all(valid(*call) for call in calls)
        assert finish == "length" or len(calls) == 1


def test_a_model_that_begins_a_call_finishes_a_valid_one(server):
    prompt = FORCED["messages"]
    finish, content, calls, withheld = ask(server, messages=prompt, max_tokens=96)
    assert "<tool_call>" not in content
    assert all(valid(*call) for call in calls)
    assert calls or withheld or finish


def test_a_call_is_completed_where_its_end_fits_and_says_so(server):
    outcomes = set()
    for most in range(26, 40):
        finish, content, calls, withheld = ask(
            server, tool_choice=NAMED, max_tokens=most, parallel_tool_calls=False
        )
        assert content == ""
        assert len(calls) + len(withheld) == 1
        outcomes.add(withheld[0]["reason"] if withheld else finish)
        if withheld:
            assert finish == "length"
        if withheld and withheld[0]["reason"] == "forced":
            assert valid(withheld[0]["name"], withheld[0]["detail"])
    # Too short for any call, just enough for the shortest, and enough for the model's own.
    assert outcomes == {"truncated", "forced", "tool_calls"}


def test_values_that_begin_with_the_same_byte_end_no_server(server):
    """A completion is looked for within a character: xgrammar says what follows as bytes."""
    schema = {
        "type": "object",
        "properties": {"ответ": {"enum": ["да", "нет"]}},
        "required": ["ответ"],
        "additionalProperties": False,
    }
    for most in (64, *range(24, 44, 3)):
        finish, content, calls, withheld = ask(
            server,
            tools=[tool_with(schema)],
            tool_choice="required",
            max_tokens=most,
            parallel_tool_calls=False,
        )
        assert (finish, content) in (("tool_calls", ""), ("length", ""))
        assert len(calls) + len(withheld) == 1
        assert all(json.loads(text)["ответ"] in ("да", "нет") for _, text in calls)


def test_a_budget_that_ends_within_a_character_leaves_a_legal_call(server):
    """Characters that SmolLM2 has no token for take two to four."""
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string", "pattern": "^[\U0001f300-\U0001f6ff가-힣]{3,}$"}},
        "required": ["word"],
        "additionalProperties": False,
    }
    reasons = []
    for most in range(28, 64, 3):
        body = {
            "tools": [tool_with(schema)],
            "tool_choice": "required",
            "max_tokens": most,
            "parallel_tool_calls": False,
            "temperature": 1.0,
            "seed": most,
        }
        finish, content, calls, withheld = ask(server, **body)
        assert (finish, content) in (("tool_calls", ""), ("length", ""))
        assert len(calls) + len(withheld) == 1
        reasons += [entry["reason"] for entry in withheld]
        for entry in withheld:
            if entry["reason"] == "forced":
                word = json.loads(entry["detail"])["word"]
                assert len(word) >= 3
                assert "\N{REPLACEMENT CHARACTER}" not in word
    # The shortest such call fits from some budget on, and is found from there on.
    assert "truncated" not in reasons[reasons.index("forced") :]


def tool_with(schema, **more):
    return {"type": "function", "function": {**WEATHER, "parameters": schema, **more}}


BACK_REFERENCE = {"type": "object", "properties": {"a": {"type": "string", "pattern": r"(a)\1"}}}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (BACK_REFERENCE, "#/properties/a/pattern: the pattern has an escape"),
        ({"type": "object", "properties": {f"p{n}": {} for n in range(2_000)}}, "at most 256"),
        ({"type": "object", "properties": {"a": {"enum": list(range(9_000))}}}, "at most 2,000"),
        (
            {"type": "object", "properties": {"a": {"pattern": "^((a{1,30}){1,30}){1,30}$"}}},
            "large",
        ),
        ({"$ref": "http://127.0.0.1:1/x.json"}, "nothing is fetched"),
    ],
    ids=["pattern", "properties", "enum", "catastrophic", "remote"],
)
def test_a_schema_that_cannot_be_held_is_answered_with_400(server, schema, why):
    for body in ({}, {"tool_choice": "required"}, {"stream": True}):
        status, answer = request(server, tools=[tool_with(schema)], **body)
        assert status == 400
        assert why in answer["message"]
        assert "sglang-ext" in answer["message"]


def test_nesting_that_no_parser_reads_is_answered_with_400(server):
    deep = '{"items":' * 50_000 + "{}" + "}" * 50_000
    tool = json.dumps(tool_with("DEEP")).replace('"DEEP"', deep)
    body = f'{{"model": "m", "messages": [{{"role": "user", "content": "x"}}], "tools": [{tool}]}}'
    asked = urllib.request.Request(
        server.base_url + "/v1/chat/completions",
        body.encode(),
        {"Content-Type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(asked, timeout=60)
    assert error.value.code == 400


def test_strict_false_goes_without_the_schema(server):
    tool = tool_with(BACK_REFERENCE, strict=False)
    _, _, calls, withheld = ask(server, tools=[tool], tool_choice="required", max_tokens=60)
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)
    assert calls or withheld


MESSAGES = {
    "path": "/v1/messages",
    "tools": [{"name": WEATHER["name"], "input_schema": WEATHER["parameters"]}],
    "tool_choice": {"type": "any"},
}


def test_the_messages_endpoint(server):
    one = {"type": "any", "disable_parallel_tool_use": True}
    status, answer = request(server, **{**MESSAGES, "tool_choice": one})
    assert status == 200, answer
    used = [block for block in answer["content"] if block["type"] == "tool_use"]
    assert len(used) == 1
    assert all(valid(block["name"], json.dumps(block["input"])) for block in used)
    assert "metadata" not in answer


def test_the_messages_endpoint_reports_a_call_that_is_cut_off(server):
    status, answer = request(server, **MESSAGES, max_tokens=12)
    assert status == 200, answer
    assert answer["stop_reason"] == "max_tokens"
    assert not [block for block in answer["content"] if block["type"] == "tool_use"]
    reported = answer["metadata"]["tool_calls_withheld"]
    assert [entry["reason"] for entry in reported] == ["truncated"]
    status, lines = request(server, **MESSAGES, max_tokens=12, stream=True)
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data:")]
    deltas = [event for event in events if event["type"] == "message_delta"]
    streamed = deltas[-1]["metadata"]["tool_calls_withheld"]
    assert [{**entry, "choice": 0} for entry in streamed] == reported
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert "tool_use" not in [event["content_block"]["type"] for event in starts]


@pytest.mark.parametrize("most", [12, 96])
@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_endpoint(server, most, stream):
    document = {
        "model": serving.get(server, "/v1/models")["data"][0]["id"],
        "input": "What is the weather in Paris for 3 days?",
        "tools": [{"type": "function", **WEATHER}],
        "tool_choice": "required",
        "temperature": 0,
        "max_output_tokens": most,
        "stream": stream,
        "parallel_tool_calls": False,
    }
    status, answer = request(server, path="/v1/responses", **document)
    assert status == 200, answer
    if stream:
        events = [json.loads(line[6:]) for line in answer if line.startswith("data: {")]
        answer = events[-1]["response"]
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    assert all(valid(call["name"], call["arguments"]) for call in calls)
    assert bool(calls) == (most == 96)
    reported = json.loads(answer["metadata"].get("tool_calls_withheld", "[]"))
    assert [entry["reason"] for entry in reported] == ["truncated"] * (most == 12)


ANSWER = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"capital": {"type": "string", "maxLength": 12}},
            "required": ["capital"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": "What is the capital of France?"}], FORCED["messages"]],
    ids=["answer", "call"],
)
def test_tools_together_with_response_format(server, messages):
    body = {"messages": messages, "response_format": ANSWER}
    finish, content, calls, withheld = ask(server, **body)
    assert ask_streaming(server, **body) == (finish, content, calls, withheld)
    assert all(valid(*call) for call in calls)
    if content:
        assert set(json.loads(content)) == {"capital"}
    assert bool(content) != bool(calls or withheld)


def test_a_required_call_is_not_an_answer(server):
    _, content, calls, _ = ask(server, tool_choice="required", response_format=ANSWER)
    assert content == ""
    assert calls
    assert all(valid(*call) for call in calls)


def test_structure_is_not_sampled_and_free_strings_are(server):
    body = {"tool_choice": NAMED | {"function": {"name": "get_weather"}}, "logprobs": True}
    sampled = []
    for seed in range(3):
        status, answer = request(
            server, **body, temperature=1.0, seed=seed, frequency_penalty=1.5, max_tokens=200
        )
        assert status == 200, answer
        tokens = answer["choices"][0]["logprobs"]["content"]
        text, free = "", []
        for token in tokens:
            free.append(text.rpartition('"city": ')[2].count('"') == 1 and '"city": ' in text)
            text += token["token"]
        assert any(free), text
        for token, is_free in zip(tokens, free, strict=True):
            if not is_free:
                assert token["logprob"] == 0, (token, text)
        sampled += [
            token["logprob"] for token, is_free in zip(tokens, free, strict=True) if is_free
        ]
    assert min(sampled) < 0


def test_a_call_that_is_there_already_ends_the_answer(server):
    """SmolLM2 writes the same required call until its budget ends it."""
    body = {"tool_choice": "required", "max_tokens": 900}
    finish, content, calls, withheld = ask(server, **body)
    assert ask_streaming(server, **body) == (finish, content, calls, withheld)
    assert (finish, content) == ("tool_calls", "")
    assert all(valid(*call) for call in calls)
    assert len({(name, json.dumps(json.loads(text))) for name, text in calls}) == len(calls)
    assert [entry["reason"] for entry in withheld] == ["duplicate"]
    assert (withheld[0]["name"], withheld[0]["detail"]) in calls
    status, answer = request(server, **body, return_meta_info=True)
    assert status == 200
    assert answer["usage"]["completion_tokens"] < 300
    told = answer["choices"][0]["meta_info"]["finish_reason"]["sglang_ext"]
    assert told["ended"] == "duplicate"
    # Of a budget that ends before the duplicate does, what is whole is shown all the same.
    outcomes = {ask(server, **{**body, "max_tokens": most})[0] for most in range(40, 96, 5)}
    assert outcomes <= {"length", "tool_calls"}


def test_an_answer_tells_its_figures_when_asked(server):
    body = {"tool_choice": "required", "parallel_tool_calls": False, "return_meta_info": True}
    status, answer = request(server, **body)
    assert status == 200
    told = answer["choices"][0]["meta_info"]["finish_reason"]["sglang_ext"]
    assert told["ended"] == ""
    assert 0 < told["structure_tokens"] < told["tokens"] <= answer["usage"]["completion_tokens"]
    assert told["mask_ms"] > 0
    assert told["cache_bytes"] > 0


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
def test_a_stream_tells_its_figures_in_its_last_chunk(server, options):
    body = {"tool_choice": "required", "parallel_tool_calls": False, "stream": True}
    status, lines = request(server, **body, return_meta_info=True, stream_options=options)
    assert status == 200, lines
    assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
    *others, last = chunks_of(lines)
    assert not [chunk for chunk in others if (chunk.get("metadata") or {}).get("tool_figures")]
    assert bool(last.get("usage")) == bool(options)
    (told,) = last["metadata"]["tool_figures"]
    assert (told["choice"], told["ended"]) == (0, "")
    assert 0 < told["structure_tokens"] < told["tokens"]
    status, lines = request(server, **body)
    assert not [chunk for chunk in chunks_of(lines) if chunk.get("metadata")], "nobody asked"
    # Without tools there are none, and SGLang refuses as ever.
    status, answer = request(server, stream=True, return_meta_info=True, tools=None)
    assert status == 400, answer


@pytest.mark.parametrize("stream", [False, True])
def test_the_other_endpoints_tell_figures_when_asked(server, stream):
    asking = {"metadata": {"sglang_ext": "figures"}, "stream": stream}
    status, answer = request(server, **MESSAGES, **asking)
    assert status == 200, answer
    if stream:
        answer = next(event for event in chunks_of(answer) if event["type"] == "message_delta")
    (told,) = answer["metadata"]["tool_figures"]
    assert told["tokens"] > 0
    document = {
        "model": serving.get(server, "/v1/models")["data"][0]["id"],
        "input": "What is the weather in Paris for 3 days?",
        "tools": [{"type": "function", **WEATHER}],
        "tool_choice": "required",
        "max_output_tokens": 96,
        **asking,
    }
    status, answer = request(server, path="/v1/responses", **document)
    assert status == 200, answer
    if stream:
        answer = chunks_of(answer)[-1]["response"]
    (told,) = json.loads(answer["metadata"]["tool_figures"])
    assert told["tokens"] > 0
    assert answer["metadata"]["sglang_ext"] == "figures", "what the client said stays"


def test_a_cut_stream_of_messages_tells_what_was_read(server):
    read = []
    for stream in (False, True):
        status, answer = request(server, **MESSAGES, max_tokens=12, stream=stream)
        assert status == 200, answer
        if stream:
            answer = chunks_of(answer)[0]["message"]
        usage = answer["usage"]
        read.append(usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0))
    assert read[0] == read[1] > 50


def test_multiples_and_large_numbers_are_never_silent(server):
    schema = {
        "type": "object",
        "properties": {
            "cents": {"type": "number", "minimum": 4, "maximum": 5, "multipleOf": 0.01},
            "id": {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 3},
            "big": {"enum": [2**64 - 1]},  # of more bits SGLang's own reading makes floats
        },
        "required": ["cents", "id", "big"],
        "additionalProperties": False,
    }
    for seed in range(4):
        body = {"temperature": 1.0, "seed": seed, "parallel_tool_calls": False}
        _, _, calls, withheld = ask(
            server, tools=[tool_with(schema)], tool_choice=WEATHER_ALONE, **body
        )
        assert len(calls) + len(withheld) == 1
        for _, text in calls:
            value = json.loads(text, parse_float=Decimal)
            assert value["cents"] % Decimal("0.01") == 0
            assert 2**53 < value["id"] <= 2**53 + 3
            assert value["big"] == 2**64 - 1
        assert {entry["reason"] for entry in withheld} <= {"invalid", "truncated", "forced"}
    unbounded = json.loads(json.dumps(schema))
    unbounded["properties"]["id"]["maximum"] = float("inf")  # which JSON has no word for
    status, answer = request(server, tools=[tool_with(unbounded)])
    assert status == 400, answer


def test_metrics_count_calls_by_what_became_of_them(server):
    ask(server, tool_choice="required", parallel_tool_calls=False)
    ask(server, tool_choice="required", max_tokens=12)
    request(server, tools=[tool_with(BACK_REFERENCE)])
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    counted = dict(line.rsplit(" ", 1) for line in lines if line.startswith("sglang_ext:tool"))
    for series in (
        'sglang_ext:tool_calls_total{outcome="shown"}',
        'sglang_ext:tool_calls_total{outcome="truncated"}',
        "sglang_ext:tool_requests_refused_total",
        'sglang_ext:tool_tokens_total{kind="structure"}',
        "sglang_ext:tool_mask_seconds_total",
        "sglang_ext:tool_compile_seconds_count",
    ):
        assert float(counted[series]) > 0, series
    assert [line for line in counted if line.startswith("sglang_ext:tool_grammar_cache_bytes")]


def test_the_hooks_are_said_to_be_in_effect(server):
    info = serving.get(server, "/server_info")["sglang_ext"]
    assert info["config"]["tools_enforce"] is True
    assert info["degraded"] is False
    states = {seam["name"]: seam["state"] for seam in info["seams"]}
    ours = [name for name in states if "FunctionCallParser" in name or "OpenAIServingChat" in name]
    assert len(ours) > 5
    assert {states[name] for name in ours} == {"applied"}


@pytest.mark.parametrize("example", ["tool_agent", "messages_agent"])
def test_an_example_gets_its_call(server, example):
    file = Path(__file__).parents[2] / "examples" / f"{example}.py"
    done = subprocess.run(
        [sys.executable, file, server.base_url], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "get_weather(" in done.stdout
    assert "Paris" in done.stdout
