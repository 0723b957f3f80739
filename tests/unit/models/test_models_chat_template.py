import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from sglang_ext.models.gguf_source import GgufFile
from sglang_ext.models.tokenizer import chat_template

Render = Callable[..., str]
Message = dict[str, Any]

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather "now" in a caf\u00e9',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def called(*calls: tuple[str, Any], content: str | None = None) -> Message:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ],
    }


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("system", [False, True])
def test_plain_chats_are_rendered_as_by_the_models_own_template(
    render: Render, source: GgufFile, system: bool, generate: bool
) -> None:
    messages = [user("hi"), {"role": "assistant", "content": "Hello."}, user("a <b> 'c'\n")]
    if system:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    own = source.metadata("tokenizer.chat_template")
    expected = render(messages, chat_template=own, add_generation_prompt=generate)
    assert render(messages, add_generation_prompt=generate) == expected
    assert (DEFAULT_SYSTEM in expected) is not system


def test_tools_extend_the_system_turn(render: Render) -> None:
    text = render([user("x")], tools=[TOOL])
    head, _, rest = text.partition("<|im_end|>\n")
    assert head.startswith(f"<|im_start|>system\n{DEFAULT_SYSTEM}\n\n# Tools\n")
    (line,) = [line for line in head.splitlines() if "get_weather" in line]
    assert json.loads(line) == TOOL
    assert rest == "<|im_start|>user\nx<|im_end|>\n"
    given_system = render([{"role": "system", "content": "S"}, user("x")], tools=[TOOL])
    assert given_system == text.replace(DEFAULT_SYSTEM, "S", 1)


def test_fields_that_a_server_adds_to_a_tool_do_not_change_the_prompt(render: Render) -> None:
    noisy = {**TOOL, "function": {**TOOL["function"], "strict": False}, "defer": None}  # type: ignore[dict-item]
    assert render([user("x")], tools=[noisy]) == render([user("x")], tools=[TOOL])
    assert render([user("x")], tools=[TOOL["function"]]) == render([user("x")], tools=[TOOL])
    assert render([user("x")], tools=[]) == render([user("x")])


def test_a_tool_call_and_its_result(render: Render) -> None:
    messages = [
        user("x"),
        called(("f", {"a": "\u00e9 <b>"}), ("g", {}), content="Let me see."),
        {"role": "tool", "tool_call_id": "c0", "content": '{"ok": 1}'},
    ]
    assert render(messages).endswith(
        "<|im_start|>assistant\nLet me see.\n"
        '<tool_call>\n{"name": "f", "arguments": {"a": "\u00e9 <b>"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"ok": 1}\n</tool_response><|im_end|>\n'
    )


@pytest.mark.parametrize("arguments", [{}, {"a": 1, "b": ["x", None]}])
def test_arguments_may_be_a_dict_or_its_json(render: Render, arguments: dict[str, Any]) -> None:
    as_text = json.dumps(arguments, ensure_ascii=False)
    one, other = called(("f", arguments)), called(("f", as_text))
    assert render([user("x"), one]) == render([user("x"), other])
    assert '"arguments": {}}' in render([user("x"), called(("f", ""))])


@pytest.mark.parametrize("content", [None, ""])
def test_a_call_without_text_starts_its_turn(render: Render, content: str | None) -> None:
    text = render([user("x"), called(("f", {}), content=content)])
    assert "<|im_start|>assistant\n<tool_call>\n" in text


def test_text_parts_are_joined_and_others_refused(render: Render) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render([user(parts)]) == render([user("ab")])
    with pytest.raises(TemplateError, match=r"image_url.*text only"):
        render([user([{"type": "image_url", "image_url": {"url": "x"}}])])
    with pytest.raises(TemplateError, match='unknown role "critic"'):
        render([{"role": "critic", "content": "x"}])


# Blanks at the ends are what templates like to trim.
TEXT = st.one_of(
    st.text(" \n\tab<{\"'", max_size=6), st.text(st.characters(codec="utf-8"), max_size=12)
)
CALLS = st.lists(
    st.tuples(st.sampled_from("fg"), st.dictionaries(TEXT, st.one_of(TEXT, st.integers()))),
    min_size=1,
    max_size=3,
)
TURNS = st.lists(
    st.one_of(
        TEXT.map(user),
        TEXT.map(lambda text: {"role": "assistant", "content": text}),
        st.tuples(CALLS, TEXT).map(lambda pair: called(*pair[0], content=pair[1])),
        TEXT.map(lambda text: {"role": "tool", "content": text}),
        TEXT.map(lambda text: {"role": "system", "content": text}),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(first=st.sampled_from(["user", "system"]), later=TURNS, tools=st.booleans())
def test_a_later_render_only_appends(
    render: Render, first: str, later: list[Message], tools: bool
) -> None:
    messages: list[Message] = [{"role": first, "content": "hi"}, *later]
    options: dict[str, Any] = {"tools": [TOOL] if tools else None}
    whole = render(messages, add_generation_prompt=True, **options)
    for count in range(1, len(messages)):
        start = messages[:count]
        assert whole.startswith(render(start, **options))
        if messages[count]["role"] == "assistant":
            prompt = render(start, add_generation_prompt=True, **options)
            assert whole.startswith(prompt)
            answer = render(messages[: count + 1], **options)[len(prompt) :]
            assert answer.endswith("<|im_end|>\n")


class TestWithSglang:
    """What SGLang's own code makes of the template and of what it renders."""

    @pytest.mark.parametrize("parser", ["hermes", "qwen25"])
    @pytest.mark.parametrize("content", ["", "Let me see."])
    def test_rendered_calls_are_read_back(self, render: Render, parser: str, content: str) -> None:
        pytest.importorskip("sglang")
        from sglang.srt.entrypoints.openai.protocol import Tool
        from sglang.srt.function_call.function_call_parser import FunctionCallParser

        calls = [("get_weather", {"city": 'K\u00f6ln "x" </tool'}), ("get_weather", {})]
        prompt = render([user("x")], add_generation_prompt=True)
        whole = render([user("x"), called(*calls, content=content)])
        answer = whole[len(prompt) :].removesuffix("<|im_end|>\n")
        text, found = FunctionCallParser([Tool(**TOOL)], parser).parse_non_stream(answer)
        assert text == content
        assert [(call.name, json.loads(call.parameters)) for call in found] == calls

    def test_content_arrives_as_text(self) -> None:
        pytest.importorskip("sglang")
        from sglang.srt.parser.jinja_template_utils import detect_jinja_template_content_format

        assert detect_jinja_template_content_format(chat_template()) == "string"
