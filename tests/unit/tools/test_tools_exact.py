"""Numbers that a float does not hold: enforced, checked or refused, never silent."""

import json

import pytest

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.exact import decoded, is_multiple
from sglang_ext.tools.plain import plain_schema
from sglang_ext.tools.tag import ToolSpec, schema_of

BEYOND = 2**53 + 1  # no float


def tool(schema):
    return schema_of(ToolSpec("a", json.dumps({"properties": {"x": schema}})))


def valid(schema, text):
    return tool(schema).checker.violation(decoded(f'{{"x": {text}}}')) is None


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"multipleOf": 0.01}, ["4.35", "1e3", "-0.29", "0"], ["4.355", "1e-3"]),
        ({"multipleOf": 0.1}, ["0.3", "1e308", "0.30"], ["0.35"]),
        ({"multipleOf": 1e-7}, ["1.3", "1e-7"], ["1e-8"]),
        ({"multipleOf": 3}, ["9e30", f"{3 * BEYOND}.0"], ["1e400", f"{3 * BEYOND + 1}.0"]),
        ({"multipleOf": 3}, ["3e1000000000"], ["1e1000000000"]),
        ({"multipleOf": 10}, ["1e400", "1e1000000000"], ["1e-1000000000"]),
        ({"type": "integer"}, ["1e400", "1.50e1", "-0.0"], ["1e-400", "1.05e1"]),
        ({"maximum": BEYOND - 1}, [f"{BEYOND - 1}.0"], [f"{BEYOND}.0", f"{BEYOND - 1}.5"]),
        ({"exclusiveMinimum": BEYOND - 1}, [f"{BEYOND}", f"{BEYOND}.0"], [f"{BEYOND - 1}.0"]),
        ({"const": BEYOND}, [f"{BEYOND}", f"{BEYOND}.0"], [f"{BEYOND - 1}", f"{BEYOND - 1}.0"]),
        ({"enum": [1e30]}, ["1e30", "1" + "0" * 30], [f"{int(1e30)}"]),
        ({"minimum": 1e30}, ["1e30", "1" + "0" * 30], ["9" * 30]),
        ({"maximum": 0.1}, ["0.1", "0.10"], ["0.1000000000000000055"]),
        ({"uniqueItems": True}, [f"[{BEYOND - 1}, {BEYOND}.0]"], [f"[{BEYOND}, {BEYOND}.0]"]),
        ({"type": "boolean"}, ["true"], ["1"]),
    ],
)  # fmt: skip
def test_numbers_are_what_is_written(schema, good, bad):
    assert [text for text in good if not valid(schema, text)] == []
    assert [text for text in bad if valid(schema, text)] == []


def test_many_multiples():
    for cents in range(0, 100_000, 7):
        assert is_multiple(cents / 100, 0.01)
        assert not is_multiple(cents / 100 + 0.005, 0.01)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e99999999999999999999"])
def test_what_is_no_number_is_not_read(text):
    with pytest.raises(ValueError, match=r"JSON|bounds"):
        decoded(text)


def test_a_bound_that_json_does_not_hold_is_refused():
    with pytest.raises(ToolSchemaError, match="Infinity is not JSON"):
        tool({"maximum": float("inf")})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 2**63},
        {"type": "integer", "maximum": -(2**70)},
        {"enum": [1, 2**64]},
        {"const": {"a": [-(2**80)]}},
    ],
)
def test_xgrammar_is_not_asked_for_what_it_does_not_hold(schema):
    """It ends with an exception on such a bound, and writes another number for such a value."""
    written = json.dumps(plain_schema(tool(schema)))
    assert not [word for word in written.replace("]", " ").split() if word.strip("-,}").isdigit()]
