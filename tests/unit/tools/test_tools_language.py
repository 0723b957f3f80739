"""Regular languages: against Python's own engine, on the same patterns and texts."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.language import ANY, Machine, both, literal, repeat, star, without
from sglang_ext.tools.pattern import search

STATES = 500

ATOMS = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", "1", "(?:)", r"\n"])


@st.composite
def patterns(draw, depth=3):
    if depth == 0:
        return draw(ATOMS)
    kind = draw(st.sampled_from(["atom", "cat", "alt", "star", "opt", "plus", "times"]))
    inner = patterns(depth=depth - 1)
    match kind:
        case "atom":
            return draw(ATOMS)
        case "cat":
            return draw(inner) + draw(inner)
        case "alt":
            return f"(?:{draw(inner)}|{draw(inner)})"
        case "times":
            low = draw(st.integers(0, 2))
            return f"(?:{draw(inner)}){{{low},{low + draw(st.integers(0, 2))}}}"
        case _:
            return f"(?:{draw(inner)}){ {'star': '*', 'opt': '?', 'plus': '+'}[kind] }"


def found(pattern, text):
    # \Z: Python's $ also matches before a last line end; \d is ASCII in ECMA-262.
    return re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None


@settings(max_examples=300, deadline=None)
@given(
    patterns(),
    st.sampled_from(["", "^"]),
    st.sampled_from(["", "$"]),
    st.lists(st.text("abc1x\n", max_size=7), min_size=1, max_size=5),
)
def test_a_pattern_finds_what_python_finds(pattern, begin, end, texts):
    pattern = begin + pattern + end
    try:
        machine = Machine(search(pattern), most_states=STATES)
    except ToolSchemaError as error:
        assert "states" in str(error)  # noqa: PT017 - the only refusal allowed here
        return
    for text in texts:
        assert machine.accepts(text) == found(pattern, text), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"^(?=.*[A-Z])(?=.*\d).{4,}$", ["Ab1x"], ["ab1x", "Abxx", "A1"]),
        (r"^(?!admin$).+$", ["adm", "admin2"], ["admin", ""]),
        (r"^a|b$", ["ax", "xb"], ["xa", "bx"]),
        (r"^(a|b$)", ["ax", "b"], ["xb", "bx"]),
        (r"^\S(|(.|\n)*\S)\Z", None, None),
        (r"[\w.+-]+@\w+\.\w{2,3}", ["a.b@c.de", "x a@b.cde y"], ["a@b", "@b.cd"]),
        (r"^\u{1F4A9}+$", ["💩", "💩💩"], ["", "x"]),
        (r"^\uD83D\uDCA9$", ["💩"], ["x"]),
        (r"^\cJ\x41\0$", ["\nA\0"], ["A"]),
        (r"^[^\s\S]?$", [""], ["a"]),
        (r"^\D*?$", ["", "ab"], ["1"]),
        (r"^(?<year>\d{4})-\d\d$", ["2024-11"], ["24-11"]),
        (r"^é+[à-ü]$", ["ééö"], ["é", "eö"]),
    ],
)
def test_dialect(pattern, yes, no):
    if yes is None:
        with pytest.raises(ToolSchemaError, match="not supported"):
            search(pattern)
        return
    machine = Machine(search(pattern), most_states=STATES)
    assert [machine.accepts(text) for text in yes] == [True] * len(yes)
    assert [machine.accepts(text) for text in no] == [False] * len(no)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(a)\1", "not supported"),
        (r"\bword", "not supported"),
        (r"(?<=a)b", "look-behind"),
        (r"(?:^a)*", "repeated anchor"),
        ("(a", "unclosed"),
        ("a)", "unmatched"),
        ("[a", "unfinished"),
        ("*", "stray"),
        ("a{2,1}", "bounds"),
        ("a{99999}", "not a number"),
        ("[z-a]", "range"),
        ("(" * 60 + ")" * 60, "nested"),
        (r"\u{}", "hexadecimal"),
    ],
)
def test_what_is_not_in_the_dialect_is_said(pattern, why):
    with pytest.raises(ToolSchemaError, match=why):
        search(pattern)


def test_a_catastrophic_pattern_costs_states_not_time():
    machine = Machine(search(r"^(a+)+$"), most_states=10)
    assert machine.accepts("a" * 100_000)
    assert not machine.accepts("a" * 100_000 + "b")
    with pytest.raises(ToolSchemaError, match="more than 50 states"):
        Machine(search(r"^(a|b)*a(a|b){20}$"), most_states=50)


def test_intersection_and_complement():
    term = both(search("^a*$"), repeat(ANY, 2, 3), without(literal("aa")))
    machine = Machine(term, most_states=50)
    assert [machine.accepts("a" * n) for n in range(5)] == [False, False, False, True, False]
    assert Machine(both(literal("a"), literal("b")), most_states=9).empty
    assert Machine(without(star(ANY)), most_states=9).empty
