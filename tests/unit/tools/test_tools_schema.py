"""The schema normaliser: the official suite, random schemas, and what is said of each keyword."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xgrammar import Grammar
from xgrammar.testing import _is_grammar_accept_string

from sglang_ext.bench.schema_suite import _spellings, run_suite
from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.ebnf import Separators, grammar
from sglang_ext.tools.limits import SchemaLimits
from sglang_ext.tools.schema import normalise
from sglang_ext.tools.verdicts import State

SUITE = Path(__file__).parents[2] / "data" / "json-schema-test-suite" / "draft2020-12"


def states(schema):
    return {verdict.pointer: verdict.state.value for verdict in normalise(schema).verdicts}


def accepts(schema, text, **kwargs):
    return _is_grammar_accept_string(Grammar.from_ebnf(grammar(normalise(schema), **kwargs)), text)


def test_the_official_suite_is_never_decided_wrongly():
    result = run_suite(SUITE)
    assert result.wrong == []
    assert result.instances > 1_200
    # Refused are schemas kept elsewhere, \p{…} and unknown dialects.
    assert result.as_json()["refused_share"] < 0.07
    known = ("is not in this schema, and nothing is fetched", "escape \\p", "dialect")
    assert all(any(word in why for word in known) for why in result.reasons.values())


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-20, 20) | st.text('ab"\n', max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
SCHEMAS = st.recursive(
    st.booleans()
    | st.fixed_dictionaries({}, optional={
        "type": st.sampled_from(["string", "integer", "object", "array", ["null", "number"]]),
        "minLength": st.integers(0, 3), "maxLength": st.integers(0, 3),
        "pattern": st.sampled_from(["^a", "b$", "[^a]", "a\\nb|\""]),
        "minimum": st.integers(-15, 15), "exclusiveMaximum": st.sampled_from([0, 7.5, -3]),
        "enum": st.lists(VALUES, min_size=1, max_size=3), "required": st.lists(NAMES, unique=True),
        "minItems": st.integers(0, 2), "maxItems": st.integers(0, 2),
    }),
    lambda inner: st.fixed_dictionaries({}, optional={
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "patternProperties": st.dictionaries(st.sampled_from(["a", "^b"]), inner, max_size=2),
        "additionalProperties": inner, "items": inner,
        "propertyNames": st.sampled_from([{"pattern": "a|b"}, {"maxLength": 0}, {"enum": ["a"]}]),
        "prefixItems": st.lists(inner, min_size=1, max_size=2),
        "allOf": st.lists(inner, min_size=1, max_size=2),
        "anyOf": st.lists(inner, min_size=1, max_size=2),
        "oneOf": st.lists(inner, min_size=1, max_size=2), "not": inner,
        "required": st.lists(NAMES, unique=True, max_size=2),
    }),
    max_leaves=6,
)  # fmt: skip


# Branches within an allOf, beside other keywords.
BESIDE = {"properties": {}, "allOf": [{"anyOf": [{"type": "object"}, {"type": "string"}]}]}


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=6))
@example(BESIDE, [{}, "a", 1])
@example({"$ref": "#/$defs/a", "required": ["a"], "$defs": {"a": {"oneOf": [BESIDE]}}}, [{"a": 1}])
def test_no_valid_value_is_refused_and_no_invalid_one_passes(schema, values):
    try:
        normal = normalise(schema)
    except ToolSchemaError as error:
        assert "no value is valid" in str(error)  # noqa: PT017 - the only refusal here
        from jsonschema import Draft202012Validator

        for value in values:
            assert not Draft202012Validator(schema).is_valid(value)
        return
    compiled = Grammar.from_ebnf(grammar(normal))
    for value in values:
        written = any(
            _is_grammar_accept_string(compiled, text) for text in _spellings(value, Separators())
        )
        valid = normal.checker.violation(value) is None
        assert written or not valid, (schema, value)
        if normal.exact:
            assert written == valid, (schema, value)


def test_every_keyword_is_spoken_of():
    schema = {
        "type": "object",
        "description": "…",
        "properties": {
            "when": {"type": "string", "format": "date"},
            "ids": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
            "text": {"type": "string", "maxLength": 5000, "x-order": 3},
        },
        "required": ["ids"],
        "dependentRequired": {"when": ["text"]},
    }
    assert states(schema) == {
        "#/type": "enforced",
        "#/description": "annotation",
        "#/properties": "enforced",
        "#/required": "enforced",
        "#/dependentRequired": "checked",
        "#/properties/when/type": "enforced",
        "#/properties/when/format": "annotation",
        "#/properties/ids/type": "enforced",
        "#/properties/ids/items": "enforced",
        "#/properties/ids/items/type": "enforced",
        "#/properties/ids/uniqueItems": "checked",
        "#/properties/text/type": "enforced",
        "#/properties/text/maxLength": "checked",
        "#/properties/text/x-order": "annotation",
    }
    assert all(v.reason for v in normalise(schema).verdicts if v.state is State.CHECKED)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"$ref": "http://example.com/x.json"}, r"#/\$ref: .*nothing is fetched"),
        ({"properties": {"a/b": {"$ref": "#/$defs/no"}}}, "#/properties/a~1b/\\$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "back to itself"),
        ({"properties": {"a": {"pattern": r"(a)\1"}}}, "#/properties/a/pattern: .*not supported"),
        ({"not": {"pattern": r"\bx"}}, "#/not/pattern: .*not supported"),
        ({"patternProperties": {"(?<=a)": {}}}, "#/patternProperties: .*look-behind"),
        ({"type": "strng"}, "#/type: not a JSON schema"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, r"#/\$schema: .*draft-04"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no value is valid"),
        ({"required": ["a"], "properties": {"a": False}, "type": "object"}, "no value is valid"),
        # A list that must hold itself, and so on: no finite value.
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no value"),
    ],
)
def test_refusals_say_where_and_why(schema, why):
    with pytest.raises(ToolSchemaError, match=why):
        normalise(schema)


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (deep(50_000), "nested more than 64 deep"),
        ({"properties": {f"p{n}": {} for n in range(2_000)}}, "#/properties: 2,000 properties"),
        ({"enum": list(range(3_000))}, "#/enum: 3,000 values"),
        ({"description": "x" * 200_000}, "larger than 100,000 bytes"),
        ({"pattern": "a" * 600}, "#/pattern: 600 characters"),
        ({"pattern": "^(a|b)*a(a|b){40}$"}, "#/pattern: needs more than"),
        ({"pattern": "^((a{1,30}){1,30}){1,30}$"}, "#/pattern: needs"),
    ],
)  # fmt: skip
def test_hostile_schemas_are_refused_quickly(schema, why):
    start = time.process_time()
    with pytest.raises(ToolSchemaError, match=why):
        normalise(schema)
    assert time.process_time() - start < 30  # not a measurement: without bounds it takes for ever


def test_branches_that_multiply_are_left_to_the_check():
    schema = {"allOf": [{"anyOf": [{"required": [f"{n}{m}"]} for m in range(9)]} for n in range(9)]}
    assert states(schema)["#/allOf/5/anyOf"] == "checked"
    assert normalise(schema).checker.violation({}) is not None


def test_definitions_of_two_tools_do_not_meet():
    one = {"$defs": {"x": {"type": "string"}}, "$ref": "#/$defs/x"}
    two = {"$defs": {"x": {"type": "integer"}}, "$ref": "#/$defs/x"}
    assert accepts(one, '"a"')
    assert accepts(two, "1")
    assert not accepts(two, '"a"')


def test_arguments_are_an_object():
    assert not _is_grammar_accept_string(
        Grammar.from_ebnf(grammar(normalise({}, objects_only=True))), "1"
    )
    with pytest.raises(ToolSchemaError, match="no value is valid"):
        normalise({"type": "string"}, objects_only=True)


def test_no_blank_beyond_the_separators():
    schema = {"type": "object", "properties": {"a": {}, "b": {"const": {"c": [1, 2]}}}}
    assert accepts(schema, '{"a": [1, 2], "b": {"c": [1, 2]}}')
    assert not accepts(schema, '{"a":  1}')
    assert not accepts(schema, '{ "a": 1}')
    compact = Separators(",", ":")
    assert accepts(schema, '{"a":[1,2],"b":{"c":[1,2]}}', separators=compact)
    assert not accepts(schema, '{"a": 1}', separators=compact)


@pytest.mark.parametrize(
    "text",
    ['"\\ud83d"', '"\\udca9\\ud83d"', '"\t"', '"\\x"', '"a'],
)
def test_strings_are_text(text):
    assert not accepts({"type": "string"}, text)
    assert accepts({"type": "string"}, '"\\ud83d\\udca9 💩 \\u00e9 \\/ \\n"')


def test_escapes_count_as_one_character():
    schema = {"type": "string", "minLength": 2, "maxLength": 3}
    assert [accepts(schema, json.dumps(text)) for text in ("a", '"\n', "\\\x01b", "abcd")] == [
        False,
        True,
        True,
        False,
    ]


def test_limits_are_a_choice():
    with pytest.raises(ToolSchemaError, match="3 values, at most 2"):
        normalise({"enum": [1, 2, 3]}, limits=SchemaLimits(enum_values=2))
