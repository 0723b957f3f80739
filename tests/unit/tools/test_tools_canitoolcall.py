"""The fixtures of the package canitoolcall: what models have written, and what it means.

What no grammar of ours lets a model write is withheld, whatever its parser makes of it.
"""

import json

import pytest

pytest.importorskip("sglang")

from canitoolcall.adapters.sglang import resolve_parsers
from canitoolcall.fixtures import Fixture, default_fixtures_dir
from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.parser.reasoning_parser import ReasoningParser

from sglang_ext.tools import requests
from sglang_ext.tools.answers import _READER, make_parser
from sglang_ext.tools.forms import FORMS, VARIANTS

FIXTURES = [
    Fixture.from_dict(json.loads(line))
    for file in sorted(default_fixtures_dir().glob("*/*.jsonl"))
    for line in file.read_text(encoding="utf-8").splitlines()
]
# SGLang reads these and we do not, or not all of it: why.
OTHERWISE = {
    "deepseek/vllm-v3-parallel-no-newline": "a grammar puts the line break between the calls",
    "gemma4/truncated-second-parallel-call": "which of two calls was cut off is not told",
    "llama/l3-meta-python-tag-type-function": "a key before the name, which no template writes",
    "mistral/vllm-v3-arguments-before-name": "a grammar puts the name first",
    "mistral/vllm-v3-content-before-call": "a grammar puts a blank behind the colon",
    "mistral/vllm-v3-name-inside-arguments": "a grammar puts the name first",
    "mistral/vllm-v3-parallel": "a grammar puts a blank behind the colon",
}


def parser_of(fixture):
    rule = resolve_parsers(fixture.family, fixture.reference_model)
    return rule.tool_call_parser or "deepseekv41", rule.reasoning_parser


def behind_reasoning(fixture, reasoning):
    """What SGLang's parser of reasoning leaves to that of calls."""
    text = fixture.raw_output
    if reasoning is None:
        return text
    begun = "</think>" in text and "<think>" not in text
    parser = ReasoningParser(reasoning, stream_reasoning=False, force_reasoning=begun)
    return parser.parse_non_stream(text)[1] or ""


def read(fixture, pieces):
    """Calls, content and what was withheld, as a server with this model's template reads it."""
    name, _ = parser_of(fixture)
    tools = [Tool(**tool) for tool in fixture.tools]
    text = "".join(pieces)
    forms = [FORMS.get(name), *VARIANTS.get(name, ())]
    openings = {form: [form.opening(t.function.name) for t in tools] for form in forms if form}
    spelt = [form for form in openings if any(opening in text for opening in openings[form])]
    token = requests._trained.set(spelt[0] if spelt else None)
    try:
        parser = FunctionCallParser.__new__(FunctionCallParser)
        make_parser(FunctionCallParser.__init__, parser, tools, name, tool_choice="auto")
    finally:
        requests._trained.reset(token)
    reader = getattr(parser, _READER)
    content = "".join(reader.feed(piece) for piece in pieces)
    answer = reader.finish(cut=fixture.truncated)
    calls = [(call.name, json.loads(call.arguments)) for call in answer.calls]
    return calls, content + answer.content, answer.withheld


def stock(fixture, text):
    """What SGLang's parser makes of it."""
    parser = FunctionCallParser([Tool(**tool) for tool in fixture.tools], parser_of(fixture)[0])
    try:
        calls = parser.parse_non_stream(text)[1] if parser.has_tool_call(text) else []
        return [(call.name, json.loads(call.parameters)) for call in calls]
    except ValueError:
        return None


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.id)
def test_a_fixture(fixture):
    text = behind_reasoning(fixture, parser_of(fixture)[1])
    calls, content, withheld = read(fixture, [text])
    for pieces in (list(text), [text[:7], text[7:]], [text[:-9], text[-9:]]):
        assert read(fixture, pieces) == (calls, content, withheld)
    if fixture.expected is None:
        assert not calls
        return
    wanted = [(call.name, dict(call.arguments)) for call in fixture.expected.tool_calls]
    if fixture.id in OTHERWISE:
        assert stock(fixture, text) == wanted != calls, "no exception any more"
    elif calls != wanted:
        assert stock(fixture, text) != wanted
