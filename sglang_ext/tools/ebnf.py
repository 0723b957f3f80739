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

__all__ = ["Separators", "grammar", "quoted"]

_MOST_STATES = 4_096  # of one string or number; `SchemaLimits` keeps them far below
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


def grammar(schema: NormalSchema, separators: Separators | None = None, root: str = "root") -> str:
    """The grammar of a schema's values.

    Args:
        schema: what to write.
        separators: how to write it.
        root: name of the first rule.

    Raises:
        ToolSchemaError: a bound of a number has too many digits.
    """
    writer = _Writer(schema, separators or Separators())
    first = writer.inline(schema.root)
    return f"{root} ::= {first}\n" + writer.text()


class _Writer:
    def __init__(self, schema: NormalSchema, separators: Separators) -> None:
        self.shapes = schema.shapes
        self.item = quoted(separators.item)
        self.key = quoted(separators.key)
        self.separator = separators.key
        self.separators = (separators.item, separators.key)
        self.rules: dict[str, str] = {}
        self.numbers = itertools.count()
        self.names: dict[Shape | tuple[Term, bool], str] = {}

    def text(self) -> str:
        rules = "".join(f"{name} ::= {body}\n" for name, body in self.rules.items())
        return rules + _COMMON + _VALUE.format(key=self.key, item=self.item)

    def rule(self, body: str) -> str:
        """A new rule; its name."""
        name = f"r{next(self.numbers)}"
        self.rules[name] = body
        return name

    def inline(self, shape: Shape) -> str:
        """What stands for ``shape`` in the body of a rule."""
        match shape:
            case Anything():
                return "value"
            case Reference(name):
                return self.named(name)
            case StringShape(None):
                return '"\\"" chars'
            case NumberShape(whole, bounds) if bounds == Bounds():
                return "integer" if whole else "number"
            case Literals(texts) if len(texts) == 1:
                return self.literal(texts[0])
        if shape not in self.names:
            self.names[shape] = self.rule(self.body(shape))
        return self.names[shape]

    def named(self, name: str) -> str:
        target = self.shapes[name]
        if not isinstance(target, Choice | ArrayShape | ObjectShape):
            return self.inline(target)
        key = Reference(name)
        if key not in self.names:
            self.names[key] = rule = self.rule("")
            self.rules[rule] = self.body(target)
        return self.names[key]

    def body(self, shape: Shape) -> str:
        match shape:
            case Choice(options):
                return " | ".join(self.inline(option) for option in options)
            case Literals(texts):
                return " | ".join(self.literal(text) for text in texts)
            case StringShape(term) if term is not None:
                return f'"\\"" {self.language(term, in_string=True)}'
            case NumberShape(whole, bounds):
                return self.language(decimals(bounds, whole=whole), in_string=False)
            case ArrayShape():
                return self.array(shape)
            case ObjectShape():
                return self.object(shape)
            case _:
                return _never(shape)

    def literal(self, text: str) -> str:
        value = json.loads(text)
        return quoted(json.dumps(value, ensure_ascii=False, separators=self.separators))

    def object(self, shape: ObjectShape) -> str:
        # From the last property to the first: a rule for "something was written before" and one
        # for "nothing was".
        pairs = [
            f'"\\"" {self.language(term, True)} {self.key} {self.inline(value)}'
            for term, value in shape.extra
        ]
        first = later = '"}"'
        if pairs:
            pair = self.rule(" | ".join(pairs))
            later = self.rule("")
            self.rules[later] = f'"}}" | {self.item} {pair} {later}'
            first = self.rule(f'"}}" | {pair} {later}')
        for one in reversed(shape.properties):
            first, later = self.property(one, first, later)
        return f'"{{" {first}'

    def property(self, one: Property, first: str, later: str) -> tuple[str, str]:
        name = quoted(json.dumps(one.name, ensure_ascii=False) + self.separator)
        written = self.rule(f"{name} {self.inline(one.shape)} {later}")
        if one.required:
            return written, self.rule(f"{self.item} {written}")
        return self.rule(f"{written} | {first}"), self.rule(f"{self.item} {written} | {later}")

    def array(self, shape: ArrayShape) -> str:
        length = len(shape.prefix)
        if shape.most == 0:
            return '"[]"'
        tail = self.tail(shape, max(length, 1))
        for number in range(length - 1, 0, -1):
            element = f"{self.item} {self.inline(shape.prefix[number])} {tail}"
            closed = '"]" | ' if number >= shape.least else ""
            tail = self.rule(closed + element) if not self.ends_at(shape, number) else '"]"'
        head = self.inline(shape.prefix[0] if length else shape.items)
        empty = '"]" | ' if shape.least == 0 else ""
        return f'"[" {self.rule(f"{empty}{head} {tail}")}'

    def ends_at(self, shape: ArrayShape, number: int) -> bool:
        return shape.most is not None and number >= shape.most

    def tail(self, shape: ArrayShape, written: int) -> str:
        """What follows when all positions of the prefix are written."""
        least = max(shape.least - written, 0)
        if self.ends_at(shape, written) or isinstance(shape.items, Nothing):
            return '"]"'
        item = self.rule(f"{self.item} {self.inline(shape.items)}")
        if shape.most is not None:
            return self.rule(f'{item}{{{least},{shape.most - written}}} "]"')
        more = self.rule("")
        self.rules[more] = f'"]" | {item} {more}'
        return self.rule(f"{item}{{{least}}} {more}") if least else more

    def language(self, term: Term, in_string: bool) -> str:
        """Rules of an automaton, up to the closing quote in a string; the first one's name."""
        key = (term, in_string)
        if key in self.names:
            return self.names[key]
        machine = Machine(term, most_states=_MOST_STATES)
        rules = [self.rule("") for _ in machine.steps]
        for number, row in enumerate(machine.steps):
            targets: dict[int, list[tuple[int, int]]] = {}
            for low, high, target in row:
                targets.setdefault(target, []).append((low, high))
            options = [
                f"{option} {rules[target]}"
                for target, ranges in targets.items()
                for option in (_spelled(ranges) if in_string else [_bracket(ranges)])
            ]
            if number in machine.accepting:
                options.append('"\\""' if in_string else '""')
            self.rules[rules[number]] = " | ".join(options)
        for number, rule in enumerate(rules):
            if not self.rules[rule] and number:
                del self.rules[rule]  # a state from which no end is reached
        self.names[key] = rules[0]
        return rules[0]


def _spelled(ranges: list[tuple[int, int]]) -> list[str]:
    """The spellings of one character out of ``ranges`` within a JSON string."""
    options, plain = [], []
    for low, high in ranges:
        start = low
        for point in (*[one for one in _SPECIAL if low <= one <= high], high + 1):
            if point > start:
                plain += _without_surrogates(start, point - 1)
            if point <= high:
                short = _SHORT_ESCAPES.get(point, f"u{point:04x}")
                options.append(quoted("\\" + short))
            start = point + 1
    return [_bracket(plain), *options] if plain else options


def _without_surrogates(low: int, high: int) -> list[tuple[int, int]]:
    first, last = _SURROGATES
    parts = [(low, min(high, first - 1)), (max(low, last + 1), high)]
    if high < first or low > last:
        return [(low, high)]
    return [(start, end) for start, end in parts if start <= end]


def _never(shape: Shape) -> str:
    raise ToolSchemaError(f"{type(shape).__name__} has no spelling")
