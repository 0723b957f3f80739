"""Single-turn cases of BFCL and its check, on the package itself."""

import json

import pytest
from jsonschema.validators import Draft202012Validator

from sglang_ext.bench.bfcl_calls import CATEGORIES, is_right, load_cases
from sglang_ext.bench.tool_calls import is_valid
from sglang_ext.errors import DemoError
from sglang_ext.tools.requests import specs
from sglang_ext.tools.tag import schema_of

pytest.importorskip("bfcl_eval")


def first_answer(case):
    """The right calls, with the first of the values that are right."""
    calls = []
    for answer in case.answers:
        ((name, values),) = answer.items()
        arguments = {}
        for key, right in values.items():
            if right[0] != "":
                arguments[key] = plain(right[0])
        calls.append((name.replace(".", "_"), json.dumps(arguments)))
    return calls


def plain(value):
    """BFCL lists the right values within an object, too."""
    if isinstance(value, dict):
        return {key: plain(right[0]) for key, right in value.items() if right[0] != ""}
    if isinstance(value, list):
        return [plain(item) if isinstance(item, dict) else item for item in value]
    return value


@pytest.mark.parametrize(("category", "count"), zip(CATEGORIES, [400, 200, 200, 240], strict=True))
def test_every_case_has_tools_whose_schemas_are_schemas(category, count):
    cases = load_cases(category)
    assert len(cases) == count
    for case in cases:
        for tool in case.tools(strict=None):
            Draft202012Validator.check_schema(tool["function"]["parameters"])
            assert "strict" not in tool["function"]
            assert case.schema(tool["function"]["name"]) == tool["function"]["parameters"]
    assert all(tool["function"]["strict"] for tool in cases[0].tools(strict=True))


@pytest.mark.parametrize("category", ["simple_python", "multiple"])
def test_the_right_answer_is_right_and_others_are_not(category):
    cases = load_cases(category)
    right = [is_right(case, first_answer(case)) for case in cases]
    assert sum(right) >= 0.99 * len(cases)  # a few of BFCL's answers are in no JSON
    for case in cases[:20]:
        ((name, arguments),) = first_answer(case)
        assert not is_right(case, [])
        assert not is_right(case, [("other", arguments)])
        assert not is_right(case, [(name, "{}")])
        assert not is_right(case, [(name, "not JSON")])
        assert not is_right(case, [(name, "[]")])
        assert not is_right(case, [(name, arguments)] * 2)


def test_where_no_tool_fits_no_call_is_right():
    case = load_cases("irrelevance")[0]
    assert is_right(case, [])
    assert not is_right(case, [("determine_body_mass_index", "{}")])


def test_what_is_valid_is_decided_by_the_schema():
    case = load_cases("simple_python")[0]
    name = "calculate_triangle_area"
    assert is_valid(case, name, '{"base": 10, "height": 5}')
    assert not is_valid(case, name, '{"base": 10}')
    assert not is_valid(case, name, '{"base": 10, "height": 5, "more": 1}')
    assert not is_valid(case, "other", '{"base": 10, "height": 5}')
    assert not is_valid(case, name, '{"base": 10, "height": 5')


class Tool:
    """SGLang's tool as far as it is read."""

    def __init__(self, document):
        self.function = type("Function", (), {"strict": None, **document["function"]})


def test_no_schema_of_the_cases_is_refused():
    for category in CATEGORIES:
        for case in load_cases(category):
            for tool in specs([Tool(document) for document in case.tools(strict=None)]):
                assert schema_of(tool).root is not None


def test_an_unknown_category():
    with pytest.raises(DemoError, match="unknown category 'java'; known are simple_python"):
        load_cases("java")
