"""Forced completions: from every place within a call, on real grammars and a real tokenizer."""

import json
import random

import pytest
import xgrammar

from sglang_ext.tools.calls import Reader
from sglang_ext.tools.characters import Characters
from sglang_ext.tools.complete import completion
from sglang_ext.tools.forms import ARRAY, FORMS
from sglang_ext.tools.tag import ToolSpec, compile_plan

SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 2},
            "when": {"type": "string", "pattern": r"^\d{4}-\d\d$"},
            "days": {"type": "integer", "minimum": 10},
            "unit": {"enum": ["celsius", "kelvin"]},
            "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
            "near": {
                "type": "object",
                "properties": {"km": {"type": "number"}},
                "required": ["km"],
            },
        },
        "required": ["city", "when", "days", "unit", "flags"],
    },
    {"type": "object"},
    {
        "type": "object",
        "properties": {"ответ": {"enum": ["да", "нет"]}, "town": {"enum": ["北京", "🌍", "é"]}},
        "required": ["ответ", "town"],
    },
]
ARGUMENTS = [
    {"city": "A \"b\" }]", "when": "2024-11", "days": 12, "unit": "kelvin", "flags": [True, False],
     "near": {"km": 1.5}},
    {"x": [1, {"y": "z"}], "w": None},
    {"ответ": "нет", "town": "🌍"},
]  # fmt: skip


def encoder(tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def spelled(arguments):
    """JSON as the grammar has the values of an enum: not escaped."""
    return json.dumps(arguments, ensure_ascii=False)


@pytest.mark.parametrize("parser", ["hermes", "mistral", "llama3", "pythonic"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_can_be_completed_from_everywhere(parser, choice, tokenizer, compiler):
    if choice == "auto" and parser not in FORMS:
        pytest.skip("nothing is constrained")
    tools = [ToolSpec(f"tool{n}", json.dumps(schema)) for n, schema in enumerate(SCHEMAS)]
    plan = compile_plan(tools, choice, parser=parser)
    form = FORMS.get(parser, ARRAY)
    compiled = compiler.compile_structural_tag(xgrammar.StructuralTag.from_json(plan.tag))
    for tool, arguments in zip(tools, ARGUMENTS, strict=True):
        call = form.opening(tool.name) + spelled(arguments) + form.call_end
        text = ("Well. " if choice == "auto" else "") + form.begin + call + form.end
        tokens = tokenizer.encode(text, add_special_tokens=False)
        matcher = xgrammar.GrammarMatcher(compiled)
        characters = Characters(tokenizer, "byte level")
        for number, token in enumerate(tokens):
            within = characters.unfinished(tokens[:number])
            halved = tokenizer.decode(tokens[:number]).endswith("\N{REPLACEMENT CHARACTER}")
            assert bool(within) == halved
            found = completion(
                matcher, encoder(tokenizer), within=within, token_of=characters.token
            )
            assert found is not None, tokenizer.decode(tokens[:number])
            written = tokenizer.decode(tokens[:number] + found)
            assert "\N{REPLACEMENT CHARACTER}" not in written
            assert matcher.accept_token(token)
            markers = [form.marker] if choice == "auto" else []
            reader = Reader(tools, form=form, markers=markers, detector=lambda text: (text, []),
                            required=choice == "required")  # fmt: skip
            answer = reader.read(written, ended="forced" if found else "")
            assert answer.calls == [], written
            assert [one.reason for one in answer.withheld] in ([], ["forced"]), written
            if found:
                assert answer.withheld, written
        assert completion(matcher, encoder(tokenizer)) == []


def test_a_completion_is_short(tokenizer, compiler):
    plan = compile_plan([ToolSpec("a", '{"type": "object"}')], "required", parser="hermes")
    compiled = compiler.compile_structural_tag(xgrammar.StructuralTag.from_json(plan.tag))
    matcher = xgrammar.GrammarMatcher(compiled)
    rng = random.Random(3)
    matcher.accept_string(FORMS["hermes"].opening("a") + '{"text": "')
    matcher.accept_string("".join(rng.choice("ab }]") for _ in range(50)))
    assert tokenizer.decode(completion(matcher, encoder(tokenizer))) == '"}}\n</tool_call>'


@pytest.mark.parametrize("text", ["é", "€", "한", "𐍈", "🌍", "\U0010fffd", "\ud7ff", "ࠀ"])
def test_a_character_that_is_begun_is_ended(text, tokenizer, compiler):
    """xgrammar takes continuations that are no UTF-8 (E0 80, F4 90): those are not written."""
    plan = compile_plan([ToolSpec("a", '{"type": "object"}')], "required", parser="hermes")
    compiled = compiler.compile_structural_tag(xgrammar.StructuralTag.from_json(plan.tag))
    characters = Characters(tokenizer, "byte level")
    begin = (FORMS["hermes"].opening("a") + '{"text": "').encode()
    for length in range(1, len(text.encode())):
        matcher = xgrammar.GrammarMatcher(compiled)
        within = text.encode()[:length]
        assert matcher.accept_string(begin + within)
        found = completion(matcher, encoder(tokenizer), within=within, token_of=characters.token)
        before = [characters.token(byte) for byte in within]
        written = tokenizer.decode(before + found)
        assert len(written.encode()) == len(text.encode()) + len('"}}\n</tool_call>')
        assert "\N{REPLACEMENT CHARACTER}" not in written
        # A vocabulary without single bytes ends nothing there.
        assert completion(matcher, encoder(tokenizer), within=within) is None
