"""A call that the answer has already ends it, and is not run twice."""

import json
from types import SimpleNamespace

import pytest
import xgrammar

from sglang_ext.tools import parts
from sglang_ext.tools.calls import Reader
from sglang_ext.tools.duplicates import Duplicates, identity, note, noted
from sglang_ext.tools.forms import ARRAY, FORMS, VARIANTS
from sglang_ext.tools.progress import Progress
from sglang_ext.tools.tag import ToolSpec, compile_plan

TOOLS = [ToolSpec("look"), ToolSpec("go")]
A, B = ("look", {"at": "a }} b", "deep": [{"x": {}}]}), ("go", {})
OTHERS = [("look", {"at": "a }} b"}), ("look", {"at": 1}), ("look", {"at": True}), ("go", {"x": 1})]
NAMED = [*FORMS.items(), ("pythonic", ARRAY), ("mistral", VARIANTS["mistral"][0])]


class Request(SimpleNamespace):
    """SGLang's request as far as it is used."""


def spelled(form, calls):
    marks = form.separators.item, form.separators.key
    texts = [form.opening(name) + json.dumps(value, separators=marks) + form.call_end
             for name, value in calls]  # fmt: skip
    return form.begin + form.between.join(texts) + form.end


def write(tokenizer, compiler, parser, form, calls, choice="required"):
    """What becomes of a model that would write ``calls``: the answer, and its tokens."""
    plan = compile_plan(TOOLS, choice, parser=parser, trained=form)
    tag = xgrammar.StructuralTag.from_json(plan.tag)
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(tag))

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    request = Request(sampling_params=SimpleNamespace(max_new_tokens=10_000), output_ids=[])
    progress = Progress(
        request,
        encode,
        vocabulary=len(tokenizer),
        decode=tokenizer.decode,
        duplicates=noted(json.dumps(plan.tag)),
    )
    for token in encode(spelled(form, calls)):
        progress.decide(matcher, 9)
        if progress.forced == []:
            break
        written = progress.forced[0] if progress.forced else token
        assert matcher.accept_token(written)
        progress.accept(written)
        request.output_ids.append(written)
    progress.decide(matcher, 9)
    assert matcher.is_completed()
    reader = Reader(
        TOOLS,
        form=form,
        markers=[] if choice == "required" else [form.marker],
        detector=None,
        required=choice == "required",
        unique=parts.active().duplicates,
    )
    figures = progress.figures()
    answer = reader.read(
        tokenizer.decode(request.output_ids),
        ended=figures["ended"] if figures["forced_tokens"] else "",
    )
    return answer, request.output_ids


def shown(answer):
    return [(call.name, json.loads(call.arguments)) for call in answer.calls]


@pytest.mark.parametrize(("parser", "form"), NAMED)
@pytest.mark.parametrize(
    "calls", [[A] * 9, [A, B] * 5, [A, *OTHERS, B] * 2], ids=["a", "ab", "more"]
)
def test_the_answer_ends_with_the_first_duplicate(parser, form, calls, tokenizer, compiler):
    answer, tokens = write(tokenizer, compiler, parser, form, calls)
    different = list({identity(*call): call for call in calls}.values())
    assert shown(answer) == different
    # Where one token ends a call and begins what parts it from the next, another round is written.
    assert {one.reason for one in answer.withheld} == {"duplicate"}
    assert len(answer.withheld) <= (1 if parser != "llama3" else len(different) + 1)
    most = [*different, *different, different[0]] if parser == "llama3" else [*different, calls[0]]
    # A token that held the end and what follows is split where nothing follows.
    assert len(tokens) <= len(tokenizer.encode(spelled(form, most))) + 3


@pytest.mark.parametrize(("parser", "form"), NAMED)
def test_calls_that_differ_are_all_written(parser, form, tokenizer, compiler):
    calls = [A, *OTHERS, B]
    answer, _ = write(tokenizer, compiler, parser, form, calls)
    assert (shown(answer), answer.withheld) == (calls, [])


def test_in_auto_too(tokenizer, compiler):
    answer, _ = write(tokenizer, compiler, "hermes", FORMS["hermes"], [A] * 5, choice="auto")
    assert (answer.content, shown(answer)) == ("", [A])
    assert [one.reason for one in answer.withheld] == ["duplicate"]


def test_it_can_be_switched_off(switched, tokenizer, compiler):
    switched(parts.Parts().without(["duplicates"]))
    answer, _ = write(tokenizer, compiler, "hermes", FORMS["hermes"], [A, A, A])
    assert (shown(answer), answer.withheld) == ([A, A, A], [])


def test_the_values_are_what_is_compared():
    assert identity("a", {"x": 1, "y": 2}) == identity("a", {"y": 2, "x": 1})
    different = [("a", {"x": 1}), ("a", {"x": True}), ("a", {"x": "1"}), ("b", {"x": 1})]
    assert len({identity(*call) for call in different}) == 4


@pytest.mark.parametrize(("_parser", "form"), NAMED)
def test_a_note_says_how_calls_stand(_parser, form):
    text = json.dumps({"grammar": f"root ::= x\n{note(form)}\n"})
    found = noted(text)
    assert found.ends(spelled(form, [A]), 10) is False
    assert found.ends(spelled(form, [A]), 20) is True
    assert noted("root ::= x") is None


def test_a_long_call_is_not_compared():
    found = Duplicates("<{name}>", "", "")
    assert found.reaches(1024)
    assert not found.reaches(1025)
    assert found.ends("<a>{}", 1025) is False
    assert found.reaches(1100)
    assert found.unread(range(1100)) == range(1025, 1100)


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_what_is_written_before_calls_is_passed_over(choice, tokenizer, compiler):
    """Reasoning, of which the grammar hears nothing, and free text, long and with a call in it."""
    plan = compile_plan(TOOLS, choice, parser="hermes")
    tag = xgrammar.StructuralTag.from_json(plan.tag)
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(tag))
    talk = tokenizer.encode("I could write {} or {1}. " * 300, add_special_tokens=False)
    reasoned = tokenizer.encode(spelled(FORMS["hermes"], [A]), add_special_tokens=False)
    output = [] if choice == "auto" else [*talk, *reasoned]
    request = Request(sampling_params=SimpleNamespace(max_new_tokens=10_000), output_ids=output)
    progress = Progress(
        request,
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        vocabulary=len(tokenizer),
        decode=tokenizer.decode,
        duplicates=noted(json.dumps(plan.tag)),
    )
    before = len(output)
    calls = tokenizer.encode(spelled(FORMS["hermes"], [A, A]), add_special_tokens=False)
    for number, token in enumerate([*(talk if choice == "auto" else []), *calls]):
        text = choice == "auto" and number < len(talk)
        progress.decide(matcher, 40_000 if text else 9)
        assert progress.ended == "" or number > len(calls) // 2
        if progress.ended:
            break
        assert matcher.accept_token(token)
        request.output_ids.append(token)
    assert progress.ended == "duplicate"
    left = before + len(calls) + (len(talk) if choice == "auto" else 0) - len(request.output_ids)
    assert 0 < left < 12
