"""Shapes as a grammar in xgrammar's EBNF: one spelling of JSON, without free white space.

Properties are written in their declared order, then others. Separators are given: they are those
that a model was trained on, and no blank beyond them can be written. Pure.

Source: xgrammar 0.2.7, ``Grammar.from_ebnf``.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.language import Machine, Term
from sglang_ext.tools.numbers import decimals
from sglang_ext.tools.schema import NormalSchema
from sglang_ext.tools.shapes import (
    Anything,
    ArrayShape,
    Bounds,
    Choice,
    Literals,
    Nothing,
    NumberShape,
    ObjectShape,
    Property,
    Reference,
    Shape,
    StringShape,
)
from sglang_ext.tools.work import spend

__all__ = ["GrammarWriter", "Separators", "grammar", "quoted"]

_MOST_STATES = 4_096  # of one string or number; `SchemaLimits` keeps them far below
# Places of one schema's strings that take almost any character. Speed: 8 ms of compiling each, on
# one core: most of the vocabulary is tried there. Free strings share theirs.
_MOST_OPEN = 500
_BYTES_A_UNIT = 100  # of a body, in `spend`
_SURROGATES = (0xD800, 0xDFFF)
_SHORT_ESCAPES = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_SPECIAL = [*range(0x20), 34, 92]  # what a JSON string does not hold as it is; sorted

# A surrogate is escaped with its other half or not at all: half a character cannot be sent on.
_COMMON = r"""chars ::= "\"" | [^"\\\x00-\x1f] chars | "\\" escape chars
escape ::= ["\\/bfnrt] | "u" unit
unit ::= [0-9a-cA-CeEfF] hex hex hex | [dD] [0-7] hex hex | pair
pair ::= [dD] [89abAB] hex hex "\\u" [dD] [c-fC-F] hex hex
hex ::= [0-9a-fA-F]
natural ::= "0" | [1-9] [0-9]*
integer ::= "-"? natural
number ::= "-"? natural ("." [0-9]+)? ([eE] [+-]? [0-9]+)?
"""
_VALUE = r"""value ::= "\"" chars | number | "true" | "false" | "null" | "{{" members | "[" items
members ::= "}}" | "\"" chars {key} value more_members
more_members ::= "}}" | {item} "\"" chars {key} value more_members
items ::= "]" | value more_items
more_items ::= "]" | {item} value more_items
"""


@dataclass(frozen=True)
class Separators:
    """What stands between items, and between a name and its value."""

    item: str = ", "
    key: str = ": "


def quoted(text: str) -> str:
    """``text`` as a literal of the grammar."""
    return '"' + "".join(_escaped(ord(char)) for char in text) + '"'


def _escaped(point: int) -> str:
    if point in (34, 92):
        return "\\" + chr(point)
    if 32 <= point < 127:
        return chr(point)
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


def _in_class(point: int) -> str:
    """A code point within brackets."""
    if 48 <= point <= 57 or 65 <= point <= 90 or 97 <= point <= 122:
        return chr(point)
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


def _bracket(ranges: Iterable[tuple[int, int]]) -> str:
    return (
        "["
        + "".join(
            _in_class(low) if low == high else f"{_in_class(low)}-{_in_class(high)}"
            for low, high in ranges
        )
        + "]"
    )


def grammar(schema: NormalSchema, separators: Separators | None = None) -> str:
    """The grammar of a schema's values; its first rule is ``root``.

    Args:
        schema: what to write.
        separators: how to write it.

    Raises:
        ToolSchemaError: a bound of a number has too many digits.
    """
    writer = GrammarWriter(separators or Separators())
    return f"root ::= {writer.value(schema)}\n{writer.text()}"


class GrammarWriter:
    """Writes the grammars of several schemas; what is equal in them is there once.

    A mask is computed for each place of each rule, so what fifty tools have in common costs as much
    as of one.

    Args:
        separators: how to write values.
    """

    def __init__(self, separators: Separators) -> None:
        self.item = quoted(separators.item)
        self.key = quoted(separators.key)
        self.separator = separators.key
        self.separators = (separators.item, separators.key)
        self.rules: dict[str, str] = {}
        self.numbers = itertools.count()
        self.of_body: dict[str, str] = {}  # names of rules that are finished
        self.repeated: dict[str, str] = {}  # and of those that name themselves, by what is repeated
        self.automata: dict[tuple[Term, bool], str] = {}
        self.shapes: dict[str, Shape] = {}  # of the schema at hand
        self.names: dict[Shape, str] = {}
        self.open_places = 0  # that take almost any character

    def value(self, schema: NormalSchema) -> str:
        """What stands for a schema's value in the body of a rule.

        Raises:
            ToolSchemaError: a bound of a number has too many digits, or the strings have too many
                open places.
        """
        self.shapes, self.names = schema.shapes, {}
        before = self.open_places
        written = self._inline(schema.root)
        found = self.open_places - before
        if found > _MOST_OPEN:
            raise ToolSchemaError(
                f"its strings have {found:,} places that take almost any character, at most "
                f"{_MOST_OPEN}: patterns that may begin anywhere, names that others may not have"
            )
        return written

    def text(self) -> str:
        """The rules."""
        rules = "".join(f"{name} ::= {body}\n" for name, body in self.rules.items())
        special = " | ".join(_escape(point) for point in _SPECIAL)
        value = _VALUE.format(key=self.key, item=self.item)
        return f"{rules}special ::= {special}\n{_COMMON}{value}"

    def _rule(self, body: str) -> str:
        """A rule, the same for the same body; its name."""
        name = self.of_body.get(body)
        if name is None:
            name = self.of_body[body] = self._begun()
            self._write(name, body)
        return name

    def _write(self, name: str, body: str) -> None:
        """The body of a rule that was begun."""
        spend(2 + len(body) // _BYTES_A_UNIT)
        self.rules[name] = body

    def _begun(self) -> str:
        """A rule whose body is still to come; its name."""
        name = f"r{next(self.numbers)}"
        self.rules[name] = ""
        return name

    def _more(self, end: str, one: str) -> str:
        """A rule of any number of ``one`` and then ``end``; its name."""
        body = f"{end} | {one}"
        if body not in self.repeated:
            name = self.repeated[body] = self._begun()
            self._write(name, f"{body} {name}")
        return self.repeated[body]

    def _inline(self, shape: Shape) -> str:
        """What stands for ``shape`` in the body of a rule."""
        match shape:
            case Anything():
                return "value"
            case Reference(name):
                return self._named(name)
            case StringShape(None):
                return '"\\"" chars'
            case NumberShape(whole, bounds) if bounds == Bounds():
                return "integer" if whole else "number"
            case Literals(texts) if len(texts) == 1:
                return self._literal(texts[0])
        if shape not in self.names:
            self.names[shape] = self._rule(self._body(shape))
        return self.names[shape]

    def _named(self, name: str) -> str:
        target = self.shapes[name]
        if not isinstance(target, Choice | ArrayShape | ObjectShape):
            return self._inline(target)
        key = Reference(name)
        if key not in self.names:
            self.names[key] = rule = self._begun()
            self._write(rule, self._body(target))
        return self.names[key]

    def _body(self, shape: Shape) -> str:
        match shape:
            case Choice(options):
                return " | ".join(self._inline(option) for option in options)
            case Literals(texts):
                return " | ".join(self._literal(text) for text in texts)
            case StringShape(term) if term is not None:
                return f'"\\"" {self._language(term, in_string=True)}'
            case NumberShape(whole, bounds):
                return self._language(decimals(bounds, whole=whole), in_string=False)
            case ArrayShape():
                return self._array(shape)
            case ObjectShape():
                return self._object(shape)
            case _:
                return _never(shape)

    def _literal(self, text: str) -> str:
        value = json.loads(text)
        return quoted(json.dumps(value, ensure_ascii=False, separators=self.separators))

    def _object(self, shape: ObjectShape) -> str:
        # From the last property to the first: a rule for "something was written before" and one
        # for "nothing was".
        pairs = [
            f'"\\"" {self._language(term, True)} {self.key} {self._inline(value)}'
            for term, value in shape.extra
        ]
        first = later = '"}"'
        if pairs:
            pair = self._rule(" | ".join(pairs))
            later = self._more('"}"', f"{self.item} {pair}")
            first = self._rule(f'"}}" | {pair} {later}')
        for one in reversed(shape.properties):
            first, later = self._property(one, first, later)
        return f'"{{" {first}'

    def _property(self, one: Property, first: str, later: str) -> tuple[str, str]:
        name = quoted(json.dumps(one.name, ensure_ascii=False) + self.separator)
        written = self._rule(f"{name} {self._inline(one.shape)} {later}")
        if one.required:
            return written, self._rule(f"{self.item} {written}")
        return self._rule(f"{written} | {first}"), self._rule(f"{self.item} {written} | {later}")

    def _array(self, shape: ArrayShape) -> str:
        length = len(shape.prefix)
        if shape.most == 0:
            return '"[]"'
        tail = self._tail(shape, max(length, 1))
        for number in range(length - 1, 0, -1):
            element = f"{self.item} {self._inline(shape.prefix[number])} {tail}"
            closed = '"]" | ' if number >= shape.least else ""
            tail = self._rule(closed + element) if not self._ends_at(shape, number) else '"]"'
        head = self._inline(shape.prefix[0] if length else shape.items)
        empty = '"]" | ' if shape.least == 0 else ""
        return f'"[" {self._rule(f"{empty}{head} {tail}")}'

    def _ends_at(self, shape: ArrayShape, number: int) -> bool:
        return shape.most is not None and number >= shape.most

    def _tail(self, shape: ArrayShape, written: int) -> str:
        """What follows when all positions of the prefix are written."""
        least = max(shape.least - written, 0)
        if self._ends_at(shape, written) or isinstance(shape.items, Nothing):
            return '"]"'
        item = self._rule(f"{self.item} {self._inline(shape.items)}")
        if shape.most is not None:
            return self._rule(f'{item}{{{least},{shape.most - written}}} "]"')
        more = self._more('"]"', item)
        return self._rule(f"{item}{{{least}}} {more}") if least else more

    def _language(self, term: Term, in_string: bool) -> str:
        """Rules of an automaton, up to the closing quote in a string; the first one's name."""
        key = (term, in_string)
        if key in self.automata:
            return self.automata[key]
        machine = Machine(term, most_states=_MOST_STATES)
        rules = [self._begun() for _ in machine.steps]
        for number, row in enumerate(machine.steps):
            targets: dict[int, list[tuple[int, int]]] = {}
            for low, high, target in row:
                targets.setdefault(target, []).append((low, high))
            options = [
                f"{option} {rules[target]}"
                for target, ranges in targets.items()
                for option in (_spelled(ranges) if in_string else [_bracket(ranges)])
            ]
            self.open_places += any(option.startswith("special ") for option in options)
            if number in machine.accepting:
                options.append('"\\""' if in_string else '""')
            self._write(rules[number], " | ".join(options))
        for number, rule in enumerate(rules):
            if not self.rules[rule] and number:
                del self.rules[rule]  # a state from which no end is reached
        self.automata[key] = rules[0]
        return rules[0]


def _spelled(ranges: list[tuple[int, int]]) -> list[str]:
    """The spellings of one character out of ``ranges`` within a JSON string."""
    escaped = [point for low, high in ranges for point in _SPECIAL if low <= point <= high]
    plain = []
    for low, high in ranges:
        start = low
        for point in (*[one for one in escaped if low <= one <= high], high + 1):
            if point > start:
                plain += _without_surrogates(start, point - 1)
            start = point + 1
    options = ["special"] if escaped == _SPECIAL else [_escape(point) for point in escaped]
    return [_bracket(plain), *options] if plain else options


def _escape(point: int) -> str:
    """The one spelling, in a string, of what it does not hold as it is."""
    return quoted("\\" + _SHORT_ESCAPES.get(point, f"u{point:04x}"))


def _without_surrogates(low: int, high: int) -> list[tuple[int, int]]:
    first, last = _SURROGATES
    parts = [(low, min(high, first - 1)), (max(low, last + 1), high)]
    if high < first or low > last:
        return [(low, high)]
    return [(start, end) for start, end in parts if start <= end]


def _never(shape: Shape) -> str:
    raise ToolSchemaError(f"{type(shape).__name__} has no spelling")
