"""What is told beside streamed answers, and what of a request is made once."""

import asyncio
import contextvars
import json
from types import SimpleNamespace

import pytest

from sglang_ext.tools import requests
from sglang_ext.tools.answers import _ANSWER
from sglang_ext.tools.calls import Answer, Withheld
from sglang_ext.tools.decoding import REPORT
from sglang_ext.tools.endpoints import response_of_responses
from sglang_ext.tools.requests import plan_of, plan_to_read, specs
from sglang_ext.tools.streams import (
    convert_request,
    generate_chat_stream,
    generate_request,
    process_tool_call_stream,
)

FIGURES = {
    "ended": "",
    "tokens": 9,
    "structure_tokens": 4,
    "forced_tokens": 0,
    "mask_ms": 0.5,
    "compile_ms": 0.0,
    "cache_bytes": 7,
}


def in_a_task(call):
    """A request has a task, and a context, of its own."""
    return contextvars.copy_context().run(call)


def collect(frames):
    async def all_of():
        return [frame async for frame in frames]

    return in_a_task(lambda: asyncio.run(all_of()))


async def served(answers, frames):
    """SGLang's stream: answers are read, then frames are sent."""

    async def of_scheduler(_manager):
        for answer in answers:
            yield answer

    async for _ in generate_request(of_scheduler, None):
        pass
    for frame in frames:
        yield frame


def answer_of_choice(number):
    reason = {"type": "stop", REPORT: {**FIGURES, "tokens": number + 9}}
    return {"index": number, "meta_info": {"finish_reason": reason}}


FRAMES = ['data: {"choices": [1]}\n\n', 'data: {"usage": {"a": 1}}\n\n', "data: [DONE]\n\n"]


def chat(answers, frames, asked):
    request = SimpleNamespace(return_meta_info=asked)
    return collect(
        generate_chat_stream(lambda *_args: served(answers, frames), None, None, request)
    )


def test_figures_stand_in_the_last_chunk():
    answers = [answer_of_choice(1), answer_of_choice(0)]
    first, last, done = chat(answers, FRAMES, asked=True)
    assert (first, done) == (FRAMES[0], FRAMES[2])
    document = json.loads(last.removeprefix("data: "))
    assert document["usage"] == {"a": 1}
    told = document["metadata"]["tool_figures"]
    assert [(one["choice"], one["tokens"]) for one in told] == [(0, 9), (1, 10)]
    assert chat(answers, FRAMES, asked=False) == FRAMES
    assert chat([], FRAMES, asked=True) == FRAMES, "an answer without calls has none"
    assert chat(answers, FRAMES[:2], asked=True) == FRAMES[:2], "a stream that breaks off"
    assert chat(answers, FRAMES[2:], asked=True) == FRAMES[2:]


def test_figures_may_be_asked_for_in_streams_with_tools():
    def refusing(_serving, request):
        if request.stream and request.return_meta_info:
            raise ValueError("not supported with streaming")
        return request.return_meta_info

    def request(**more):
        return SimpleNamespace(**{"stream": True, "return_meta_info": True, "tools": [1], **more})

    asking = request()
    assert convert_request(refusing, None, asking) is False
    assert asking.return_meta_info is True
    assert convert_request(refusing, None, request(stream=False)) is True
    with pytest.raises(ValueError, match="streaming"):
        convert_request(refusing, None, request(tools=None))


def test_a_response_tells_figures_when_its_request_asks():
    async def read():
        async for _ in served([answer_of_choice(0)], []):
            pass
        told = []
        for metadata in (None, {"sglang_ext": "figures"}):
            request = SimpleNamespace(metadata=metadata)
            response = SimpleNamespace(metadata=metadata)
            told.append(response_of_responses(response, request).metadata)
        return told

    without, asked = in_a_task(lambda: asyncio.run(read()))
    assert without is None
    assert json.loads(asked["tool_figures"])[0]["tokens"] == 9
    assert asked["sglang_ext"] == "figures"


class Serving:
    """SGLang's chat endpoint as far as it is used."""

    def _reported_prompt_tokens(self, meta):
        return meta["prompt_tokens"]

    def _continuous_usage_cached_details(self, _content):
        return None


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("withheld", [True, False])
def test_an_answer_that_shows_nothing_tells_what_was_read(shown, continuous, withheld):
    pytest.importorskip("sglang")
    answer = Answer(withheld=[Withheld("a", "truncated")] if withheld else [])
    parsers = {0: SimpleNamespace(**{_ANSWER: answer})}
    meta = {"id": "x", "prompt_tokens": 77, "completion_tokens": 3, "finish_reason": None}

    async def of_sglang(*_args, **_kwargs):
        if shown:
            yield "data: {}\n\n"

    request = SimpleNamespace(model="m")
    frames = collect(
        process_tool_call_stream(
            of_sglang, Serving(), 0, "", parsers, {"meta_info": meta}, request,
            created=5, continuous_usage_stats=continuous, flush=True,
        )
    )  # fmt: skip
    documents = [json.loads(frame.removeprefix("data: ")) for frame in frames[shown:]]
    assert len(documents) == (continuous and not shown) + withheld
    usages = [one["usage"] for one in documents if one["choices"]]
    assert [usage["prompt_tokens"] for usage in usages] == [77] * (continuous and not shown)
    assert ["metadata" in one for one in documents[-1:]] == [withheld] * bool(documents)


def tool(name="a"):
    return SimpleNamespace(
        function=SimpleNamespace(name=name, parameters={"type": "object"}, strict=None)
    )


def test_tools_are_written_once_for_each_request():
    def one_request():
        tools = [tool("a"), tool("b")]
        first = specs(tools)
        assert specs(list(tools)) is first
        tools[0].function.strict = False
        assert specs(tools)[0].strict is False
        assert [one.name for one in specs(tools[:1])] == ["a"]
        assert [one.name for one in specs([tool("c")])] == ["c"]

    in_a_task(one_request)


@pytest.mark.parametrize("parser", ["hermes", "qwen3_coder", "pythonic", "glm45"])
@pytest.mark.parametrize("choice", ["auto", "required", {"name": "a"}], ids=str)
def test_a_plan_is_made_once_for_each_request(parser, choice, monkeypatch):
    pytest.importorskip("xgrammar")
    made = []
    real = requests.compile_plan

    def counting(*args, **kwargs):
        made.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(requests, "compile_plan", counting)
    monkeypatch.setattr(requests._plans, "get", lambda _key: None)

    def one_request(reasoning):
        tools = specs([tool("a"), tool("b")])
        plan = plan_of(tools, choice, parser, parallel=False, reasoning=reasoning)
        assert plan_to_read(tools, choice, parser) is plan
        others = specs([tool("c"), tool("a")])
        assert plan_to_read(others, choice, parser) is not plan
        return tools

    in_a_task(lambda: one_request(True))
    assert len(made) == 2
    held = [kwargs["reasoning"] for kwargs in made]
    assert held[0] == (parser == "qwen3_coder"), "where the tag depends on it"
