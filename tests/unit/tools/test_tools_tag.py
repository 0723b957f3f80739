"""Tags: every parser of SGLang, each choice, strict and not, parallel and not."""

import itertools
import json

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from xgrammar import Grammar, StructuralTag
from xgrammar.testing import _is_grammar_accept_string

from sglang_ext.errors import ToolsError, ToolWorkError
from sglang_ext.tools import work
from sglang_ext.tools.forms import FORMS, NATIVE_TAGS, STOCK_TAGS, TEXT_TAGS, VARIANTS
from sglang_ext.tools.tag import ToolSpec, compile_plan, schema_of

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
TIME = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}
TOOLS = [ToolSpec("get_weather", json.dumps(WEATHER)), ToolSpec("get_time", json.dumps(TIME))]
LOOSE = [ToolSpec(tool.name, tool.parameters, strict=False) for tool in TOOLS]
PARSERS = sorted(FunctionCallParser.ToolCallParserEnum)
# Tags that SGLang or xgrammar write in code of their own; what their models emit is in the
# matrix of docs/tools.md.
OTHERS = {*NATIVE_TAGS, *STOCK_TAGS}


def accepts(plan, text):
    tag = StructuralTag.from_json(plan.tag)
    return _is_grammar_accept_string(Grammar.from_structural_tag(tag), text)


def spelled(form, *calls):
    texts = [form.opening(name) + json.dumps(value, separators=separators(form)) + form.call_end
             for name, value in calls]  # fmt: skip
    return form.begin + form.between.join(texts) + form.end


def separators(form):
    return form.separators.item, form.separators.key


GOOD = ("get_weather", {"city": 'Pa"ris', "days": 2})
BAD = ("get_weather", {"city": 'Pa"ris', "days": 0})
OTHER = ("get_time", {"zone": "UTC"})

MATRIX = list(
    itertools.product(
        [name for name in PARSERS if name not in OTHERS],
        ["auto", "required", "named"],
        [True, False],
        [True, False],
    )
)


@pytest.mark.parametrize(("parser", "choice", "strict", "parallel"), MATRIX)
def test_every_parser(parser, choice, strict, parallel):
    tools = TOOLS if strict else LOOSE
    wanted = tools[0] if choice == "named" else choice
    plan = compile_plan(tools, wanted, parser=parser, parallel=parallel)
    if plan.tag is not None and plan.form is None:
        assert choice == "auto"
        calls_in_text(plan, parser, tools, strict, parallel)
        return
    if plan.tag is None:
        assert parser not in TEXT_TAGS
        assert choice == "auto"  # a required call is always held
        assert not FORMS.get(parser) or not FORMS[parser].marker
        return
    form = plan.form
    assert accepts(plan, spelled(form, GOOD))
    assert accepts(plan, spelled(form, BAD)) == (not strict)
    assert accepts(plan, spelled(form, OTHER)) == (choice != "named")
    assert accepts(plan, spelled(form, GOOD, GOOD)) == parallel
    assert accepts(plan, "Text.") == (choice == "auto")
    assert accepts(plan, "Text. " + spelled(form, GOOD)) == (choice == "auto")
    assert not accepts(plan, spelled(form, ("nobody", {})))


def written(value):
    return value if isinstance(value, str) else json.dumps(value)


def pairs(begin, end, line):
    def call(name, arguments):
        values = [
            f"<arg_key>{key}</arg_key>{line}<arg_value>{written(value)}</arg_value>{line}"
            for key, value in arguments.items()
        ]
        return f"{begin}{name}{line}{''.join(values)}{end}"

    return call


def elements(begin, value, end):
    def call(name, arguments):
        values = [value % (key, written(inner)) for key, inner in arguments.items()]
        return begin % name + "\n".join(values) + end

    return call


# As the models' chat templates and SGLang's detectors have them.
IN_TEXT = {
    "dots": elements(
        '<dots_function_call>\n<invoke name="%s">\n',
        '<parameter name="%s">%s</parameter>',
        "\n</invoke>\n</dots_function_call>",
    ),
    "glm": pairs("<tool_call>", "</tool_call>", "\n"),
    "glm45": pairs("<tool_call>", "</tool_call>", "\n"),
    "iquest_q1": pairs("<iquest_tool_call>", "</iquest_tool_call>", ""),
    "ling3": pairs("<tool_call>", "</tool_call>", "\n"),
    "mimo": elements(
        "<tool_call>\n<function=%s>\n",
        "<parameter=%s>%s</parameter>",
        "\n</function>\n</tool_call>",
    ),
    "poolside_v1": pairs("<tool_call>", "</tool_call>", "\n"),
    "spark25": pairs("<tool_call>", "</tool_call>", ""),
}


def calls_in_text(plan, parser, tools, strict, parallel):
    """The row of a parser whose calls xgrammar's tag of another model holds."""
    call = IN_TEXT[parser]
    good, bad, other = (call(*one) for one in (GOOD, BAD, OTHER))
    # Text may have what models think, and what is no call: it is free.
    for text in ("", "Text. ", "<think>Hm.</think>\n\n"):
        assert accepts(plan, text)
        assert accepts(plan, text + good)
        assert accepts(plan, text + other)
        assert accepts(plan, text + bad) == (not strict)
    assert accepts(plan, good + "\n" + other) == parallel
    assert not accepts(plan, call("nobody", {}))
    listed = [
        Tool(type="function", function={"name": t.name, "parameters": json.loads(t.parameters)})
        for t in tools
    ]
    detector = FunctionCallParser.ToolCallParserEnum[parser]()
    found = detector.detect_and_parse(f"Text. {good}\n{other}", listed).calls
    assert [(one.name, json.loads(one.parameters)) for one in found] == [GOOD, OTHER]


SPELLINGS = [*FORMS.items(), *((name, form) for name in VARIANTS for form in VARIANTS[name])]


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(("parser", "form"), [(n, f) for n in VARIANTS for f in VARIANTS[n]])
def test_a_spelling_of_newer_models(parser, form, choice):
    plan = compile_plan(TOOLS, choice, parser=parser, trained=form)
    assert plan.form == form
    assert accepts(plan, spelled(form, GOOD, OTHER))
    assert not accepts(plan, spelled(form, BAD))
    assert not accepts(plan, spelled(FORMS[parser], GOOD))
    assert accepts(plan, "Text. " + spelled(form, GOOD)) == (choice == "auto")


@pytest.mark.parametrize(("parser", "form"), SPELLINGS)
def test_sglang_reads_what_is_spelled(parser, form):
    tools = [
        Tool(type="function", function={"name": t.name, "parameters": json.loads(t.parameters)})
        for t in TOOLS
    ]
    detector = FunctionCallParser.ToolCallParserEnum[parser]()
    found = detector.detect_and_parse(spelled(form, GOOD, OTHER), tools)
    assert [(call.name, json.loads(call.parameters)) for call in found.calls] == [GOOD, OTHER]


@pytest.mark.parametrize("parser", sorted(NATIVE_TAGS))
@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize("parallel", [True, False])
def test_tags_of_xgrammar_compile(parser, choice, parallel):
    wanted = TOOLS[0] if choice == "named" else choice
    for tools in (TOOLS, LOOSE):
        chosen = tools[0] if choice == "named" else wanted
        plan = compile_plan(tools, chosen, parser=parser, parallel=parallel)
        text = json.dumps(plan.tag)
        Grammar.from_structural_tag(StructuralTag.from_json(plan.tag))
        assert ("get_time" in text) == (choice != "named")
        assert plan.form is None


def test_a_tag_of_xgrammar_holds_the_schema():
    plan = compile_plan(TOOLS, "required", parser="qwen3_coder")
    call = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n{}\n</parameter>\n{}</function>\n"
        "</tool_call>"
    )
    days = "<parameter=days>\n{}\n</parameter>\n"
    assert accepts(plan, call.format('Pa"ris', days.format(2)))
    assert not accepts(plan, call.format('Pa"ris', days.format(0)))
    assert not accepts(plan, call.format("Paris", days.format("two")))


def test_definitions_of_two_tools_do_not_meet():
    kinds = {"one": "string", "two": "integer"}
    tools = []
    for name, kind in kinds.items():
        schema = {"properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"]}
        tools.append(ToolSpec(name, json.dumps({**schema, "$defs": {"x": {"type": kind}}})))
    plan = compile_plan(tools, "required", parser="hermes")
    assert accepts(plan, spelled(plan.form, ("one", {"a": "x"}), ("two", {"a": 1})))
    assert not accepts(plan, spelled(plan.form, ("one", {"a": 1})))


def test_a_name_may_hold_what_a_grammar_quotes():
    tool = ToolSpec("r0 ::= [a-z]* | chars", json.dumps(WEATHER))
    plan = compile_plan([tool], "required", parser="hermes")
    assert accepts(plan, spelled(plan.form, (tool.name, GOOD[1])))


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ([TOOLS[0], TOOLS[0]], "two tools are named 'get_weather'"),
        ([ToolSpec("a\nb")], "not the name of a tool"),
        ([ToolSpec(f"t{n}") for n in range(300)], "300 tools, at most 256"),
        (
            [ToolSpec("a", '{"pattern": "(a)\\\\1", "type": "string"}')],
            "tool 'a' cannot be enforced",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(tools, why):
    for parser in ("hermes", "pythonic", "qwen3_coder"):
        with pytest.raises(ToolsError, match=why):
            compile_plan(tools, "auto", parser=parser)


def test_a_refusal_says_how_to_go_without():
    tool = ToolSpec("a", '{"properties": {"x": {"pattern": "(a)\\\\1"}}}')
    with pytest.raises(ToolsError, match=r'#/properties/x/pattern.*"strict": false'):
        schema_of(tool)
    assert schema_of(ToolSpec("a", tool.parameters, strict=False)).exact


ANSWER = json.dumps(
    {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
)
APART = [name for name, form in FORMS.items() if form.marker and name != "llama3"]


@pytest.mark.parametrize("parser", APART)
def test_calls_or_an_answer_of_the_schema_that_is_asked_for(parser):
    plan = compile_plan(TOOLS, "auto", parser=parser, answer=ANSWER)
    form = FORMS[parser]
    assert accepts(plan, spelled(form, GOOD))
    assert accepts(plan, spelled(form, GOOD, OTHER))
    assert accepts(plan, '{"sum": 3}')
    assert not accepts(plan, spelled(form, BAD))
    assert not accepts(plan, '{"sum": "3"}')
    assert not accepts(plan, '{"sum": 3} ' + spelled(form, GOOD))
    assert not accepts(plan, "Well.")
    single = compile_plan(TOOLS, "auto", parser=parser, answer=ANSWER, parallel=False)
    assert not accepts(single, spelled(form, GOOD, OTHER))


@pytest.mark.parametrize("parser", sorted(NATIVE_TAGS))
def test_models_with_tags_of_xgrammar_may_answer_too(parser):
    assert accepts(compile_plan(TOOLS, "auto", parser=parser, answer=ANSWER), '{"sum": 3}')


def test_an_answer_that_cannot_be_held_is_refused():
    with pytest.raises(ToolsError, match="llama3 are not told apart from an answer in JSON"):
        compile_plan(TOOLS, "auto", parser="llama3", answer=ANSWER)
    hostile = json.dumps({"properties": {"a": {"pattern": r"(a)\1"}}})
    with pytest.raises(ToolsError, match="response_format cannot be enforced: #/properties/a"):
        compile_plan(TOOLS, "auto", parser="hermes", answer=hostile)


def test_what_tools_have_in_common_is_written_once():
    def written(count):
        tools = [
            ToolSpec(f"t{n}", json.dumps({**WEATHER, "required": ["city", "days"][: 1 + n % 2]}))
            for n in range(count)
        ]
        return compile_plan(tools, "required", parser="hermes").tag["format"]["grammar"]

    assert len(written(10)) - len(written(2)) < 8 * 130, "a call each, and no schema"


def test_equal_parts_of_two_schemas_do_not_meet():
    """References of one name mean what they mean in their own schema."""
    schemas = [
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/x"}},
            "required": ["a"],
            "additionalProperties": False,
            "$defs": {"x": {"type": "array", "items": {"type": kind}, "maxItems": 1}},
        }
        for kind in ("integer", "boolean")
    ]
    tools = [ToolSpec(f"t{n}", json.dumps(schema)) for n, schema in enumerate(schemas)]
    plan = compile_plan(tools, "required", parser="hermes", parallel=False)
    for number, value in enumerate(([1], [True])):
        for tool in range(2):
            call = spelled(plan.form, (f"t{tool}", {"a": value}))
            assert accepts(plan, call) == (tool == number), call


def test_what_would_take_seconds_to_compile_is_refused():
    """Measured: 8 ms for each place of a string that takes almost any character."""
    patterns = {f"p{n}": {"type": "string", "pattern": f"(a|b)*a(a|b){{4}}{n}"} for n in range(40)}
    tool = ToolSpec("w", json.dumps({"type": "object", "properties": patterns}))
    with pytest.raises(ToolsError, match=r"'w' cannot be enforced: its strings have 1,\d+ places"):
        compile_plan([tool], "required", parser="hermes")
    names = [[f"{letter * 6}{n}" for letter in "abcdefghi"] for n in range(200)]
    many = [
        ToolSpec(
            f"t{n}", json.dumps({"type": "object", "properties": {name: {} for name in names[n]}})
        )
        for n in range(200)
    ]
    with pytest.raises(ToolsError, match=r"the strings of these tools have .*additionalProp"):
        compile_plan(many, "required", parser="hermes")
    compile_plan(many[:40], "required", parser="hermes")


@pytest.mark.parametrize(
    "pattern", ["(((a{100}){100}){100}){100}", "(a|b)*a(a|b){5}%d", "(x+x+)+y{%d}"]
)
def test_the_work_of_a_request_is_bounded_over_all_its_tools(pattern):
    tools = [
        ToolSpec(
            f"t{tool}",
            json.dumps(
                {
                    "type": "object",
                    "properties": {
                        f"p{n}": {"type": "string", "pattern": pattern.replace("%d", str(n + 1))}
                        for n in range(200)
                    },
                }
            ),
        )
        for tool in range(8)
    ]
    with work.bounded(5_000), pytest.raises(ToolWorkError, match="fewer patterns"):
        compile_plan(tools, "required", parser="hermes")
    with work.bounded(), pytest.raises(ToolWorkError if "%d" in pattern else ToolsError):
        compile_plan(tools, "required", parser="hermes")


def test_whole_numbers_beyond_those_of_floats_are_held():
    bounds = {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 3}
    listed = {"enum": [2**53 + 1, 2**70]}
    for schema, good, bad in (
        (bounds, [2**53 + 1, 2**53 + 3], [2**53, 2**53 + 4]),
        ({**bounds, "maximum": 2**70}, [2**70], [2**70 + 1]),
        (listed, [2**53 + 1, 2**70], [2**53, 2**70 + 1]),
    ):
        tool = ToolSpec("a", json.dumps({"properties": {"x": schema}, "required": ["x"]}))
        plan = compile_plan([tool], "required", parser="hermes")
        assert all(accepts(plan, spelled(plan.form, ("a", {"x": value}))) for value in good)
        assert not any(accepts(plan, spelled(plan.form, ("a", {"x": value}))) for value in bad)
        plan = compile_plan([tool], "required", parser="qwen3_coder")
        call = (
            "<tool_call>\n<function=a>\n<parameter=x>\n{}\n</parameter>\n</function>\n</tool_call>"
        )
        assert all(accepts(plan, call.format(value)) for value in good)
