"""Reading answers: whole calls are shown, others are not, and a stream shows the same."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_ext.tools.calls import Reader
from sglang_ext.tools.forms import ARRAY, FORMS
from sglang_ext.tools.tag import ToolSpec

WEATHER = ToolSpec(
    "get_weather",
    json.dumps(
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "ids": {"type": "array"}},
            "required": ["city"],
            "allOf": [{"properties": {"ids": {"uniqueItems": True}}}],
        }
    ),
)
OTHER = ToolSpec("get", '{"type": "object"}', strict=False)
TOOLS = [WEATHER, OTHER]


def no_detector(text):
    raise AssertionError(f"SGLang's parser is not asked: {text}")


def reader(name="hermes", required=False, form=None):
    form = form or FORMS[name]
    markers = [] if required else [form.marker]
    return Reader(TOOLS, form=form, markers=markers, detector=no_detector, required=required)


def spelled(form, *calls):
    texts = [form.opening(name) + json.dumps(value) + form.call_end for name, value in calls]
    return form.begin + form.between.join(texts) + form.end


def shown(answer):
    return answer.content, [(call.name, json.loads(call.arguments)) for call in answer.calls]


CALLS = [("get_weather", {"city": 'New\n"York" </tool_call> {}'}), ("get", {"a": [1, {"b": 2}]})]
MARKED = [name for name, form in FORMS.items() if form.marker]


@pytest.mark.parametrize("name", MARKED)
def test_calls_after_text(name):
    text = "Let me see.\n" + spelled(FORMS[name], *CALLS)
    answer = reader(name).read(text)
    assert shown(answer) == ("Let me see.", CALLS)
    assert answer.withheld == []


@pytest.mark.parametrize("form", [*FORMS.values(), ARRAY], ids=[*FORMS, "array"])
def test_required_calls(form):
    answer = reader(form=form, required=True).read(spelled(form, *CALLS))
    assert shown(answer) == ("", CALLS)


@pytest.mark.parametrize("form", [*FORMS.values(), ARRAY], ids=[*FORMS, "array"])
def test_no_part_of_a_required_call_is_shown(form):
    text = spelled(form, *CALLS)
    ends = [len(spelled(form, *CALLS[:n])) - len(form.end) for n in (1, 2)]
    for end in range(1, len(text)):
        answer = reader(form=form, required=True).read(text[:end])
        assert answer.content == ""
        assert shown(answer)[1] == CALLS[: sum(end >= whole for whole in ends)]
        assert answer.withheld or not text[ends[0] : end].strip()


@pytest.mark.parametrize("name", MARKED)
def test_half_a_call_after_text_is_withheld(name):
    form = FORMS[name]
    text = "Text. " + spelled(form, CALLS[0])
    for end in range(len("Text. ") + len(form.marker), len(text) - len(form.end) - 1):
        answer = reader(name).read(text[:end])
        assert shown(answer) == ("Text.", [])
        assert [one.reason for one in answer.withheld] == ["truncated"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_stream_shows_what_the_whole_text_shows(data):
    name = data.draw(st.sampled_from(MARKED))
    form = FORMS[name]
    required = data.draw(st.booleans())
    pieces = data.draw(
        st.lists(
            st.sampled_from(
                ["a", " ", "\n", "<", form.marker, form.marker[:3], spelled(form, CALLS[0]),
                 spelled(form, *CALLS), spelled(form, ("get_weather", {"city": 1}))]
            ),
            max_size=6,
        )
    )  # fmt: skip
    text = "".join(pieces)
    text = text[: data.draw(st.integers(0, len(text)))]
    whole = reader(name, required).read(text)
    streamed, content, at = reader(name, required), "", 0
    while at < len(text):
        step = data.draw(st.integers(1, 9))
        content += streamed.feed(text[at : at + step])
        at += step
    last = streamed.finish()
    assert (content + last.content, last.calls, last.withheld) == (
        whole.content,
        whole.calls,
        whole.withheld,
    )


def test_text_without_calls_is_untouched():
    for text in ("", "  hello \n", "a < b <tool", "\n\n"):
        answer = reader().read(text)
        assert (answer.content, answer.calls, answer.withheld) == (text, [], [])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"city": 3}, "#/city"),
        ({"ids": []}, "required"),
        ({"city": "x", "ids": [1, 1]}, "non-unique"),  # what no grammar enforces
    ],
)
def test_an_invalid_call_is_not_shown_as_one(arguments, why):
    text = "Hm." + spelled(FORMS["hermes"], ("get_weather", arguments), CALLS[1])
    answer = reader().read(text)
    assert shown(answer) == ("Hm.", CALLS[1:])
    assert answer.withheld[0].reason == "invalid"
    assert why in answer.withheld[0].detail
    assert answer.report()[0]["name"] == "get_weather"


def test_strict_false_lifts_the_schema_not_the_syntax():
    form = FORMS["hermes"]
    answer = reader().read(spelled(form, ("get", {"anything": None})))
    assert shown(answer)[1] == [("get", {"anything": None})]
    answer = reader().read(form.opening("get") + "[1]" + form.call_end)
    assert [one.reason for one in answer.withheld] == ["invalid"]


def detected(*calls, content=""):
    return Reader(
        TOOLS, form=None, markers=["<call>"], detector=lambda _text: (content, list(calls))
    )


def test_what_sglang_reads_is_checked():
    answer = detected(
        ("get_weather", '{"city": 3}'), ("nobody", "{}"), ("get", '{"a": NaN}'), ("get", "{}")
    ).read("Text <call> whatever")
    assert [call.name for call in answer.calls] == ["get"]
    assert [one.reason for one in answer.withheld] == ["invalid", "unknown tool", "invalid"]
    assert answer.content == "Text"


def test_a_marker_without_a_call_is_a_truncated_call():
    answer = detected(content="<call> half").read("Text <call> half")
    assert (answer.content, answer.calls) == ("Text", [])
    assert answer.withheld[0].reason == "truncated"


def test_a_parser_that_fails_fails_one_answer():
    def failing(_text):
        raise IndexError("boom")

    answer = Reader(TOOLS, form=None, markers=["<call>"], detector=failing).read("<call>")
    assert answer.calls == []
    assert "IndexError" in answer.withheld[0].detail


@pytest.mark.parametrize("name", [name for name in MARKED if name != "llama3"])
@pytest.mark.parametrize("answer", [True, False])
def test_an_answer_beside_tools_is_content_whatever_its_strings_hold(name, answer):
    form = FORMS[name]
    calls = spelled(form, *CALLS)
    text = json.dumps({"text": f"{form.marker} {calls}"}) if answer else calls

    def fresh():
        return Reader(TOOLS, form=form, markers=[form.marker], detector=no_detector, answers=True)

    whole = fresh().read(text)
    assert shown(whole) == ((text, []) if answer else ("", CALLS))
    assert whole.withheld == []
    assert fresh().may_hold_calls(text) is not answer
    pieces = fresh()
    content = "".join(pieces.feed(char) for char in text)
    end = pieces.finish()
    assert (content + end.content, end.calls) == (whole.content, whole.calls)


@pytest.mark.parametrize("ended", ["forced", "repetition", "duplicate"])
def test_a_forced_end_withholds_the_call_that_it_ended_and_no_other(ended):
    form = FORMS["hermes"]
    again, invalid = CALLS[1], ("get_weather", {"city": 3})
    for last, reason in ((again, "duplicate"), (invalid, "invalid"), (("get", {}), ended)):
        fresh = Reader(TOOLS, form=form, markers=[form.marker], detector=no_detector, unique=True)
        answer = fresh.read(spelled(form, *CALLS, last), ended=ended)
        assert shown(answer) == ("", CALLS)
        assert [one.reason for one in answer.withheld] == [reason]
