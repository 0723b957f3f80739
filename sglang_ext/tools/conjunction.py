"""One shape out of several plain schemas that must all hold.

Pure. Source: JSON Schema 2020-12, validation and applicator vocabularies.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.language import (
    ANY,
    Machine,
    Term,
    both,
    repeat,
    star,
)
from sglang_ext.tools.located import Located, Reader, evaluates_alone
from sglang_ext.tools.members import object_shape
from sglang_ext.tools.pattern import search
from sglang_ext.tools.shapes import (
    ANYTHING,
    NOTHING,
    ArrayShape,
    Bounds,
    Choice,
    Literals,
    NumberShape,
    ObjectShape,
    Property,
    Reference,
    Shape,
    StringShape,
    choice,
)

__all__ = ["KEYWORDS", "disjoint", "merged", "replace"]

# What is read here or in `schema.py`.
KEYWORDS = frozenset(
    {
        *("$ref", "additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum"),
        *("exclusiveMinimum", "items", "maxItems", "maxLength", "maximum", "minItems", "minLength"),
        *("minimum", "oneOf", "pattern", "patternProperties", "prefixItems", "properties"),
        *("propertyNames", "required", "type"),
    }
)
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_ANYTHING = star(ANY)


def disjoint(branches: list[Any]) -> bool:
    """Whether at most one of ``branches`` can match, as far as is easily seen."""
    return all(_apart(one, other) for one, other in itertools.combinations(branches, 2))


def _apart(one: Any, other: Any) -> bool:
    if one is False or other is False:
        return True
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return False
    if "type" in one and "type" in other and not _of_types([one, other]):
        return True
    if not all("object" in _as_list(schema.get("type")) for schema in (one, other)):
        return False
    names = set(one.get("required", ())) & set(other.get("required", ()))
    return any(_tags_differ(one, other, name) for name in names)


def _tags_differ(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    tags = []
    for schema in (one, other):
        inner = schema.get("properties", {}).get(name)
        if not isinstance(inner, dict) or not {"const", "enum"} & inner.keys():
            return False
        tags.append([inner["const"]] if "const" in inner else inner["enum"])
    return all(isinstance(tag, str) for tag in (*tags[0], *tags[1])) and not (
        set(tags[0]) & set(tags[1])
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _of_types(schemas: Iterable[dict[str, Any]]) -> list[str]:
    """The JSON types that all of ``schemas`` admit."""
    admitted = set(_TYPES)
    for schema in schemas:
        named = set(_as_list(schema.get("type"))) or set(_TYPES)
        if "number" in named:
            named.add("integer")
        admitted &= named
    if "number" in admitted:
        admitted.discard("integer")
    return [name for name in _TYPES if name in admitted]


def merged(parts: list[Located], reader: Reader) -> Shape:
    """The shape of values that are valid for all of ``parts``, whose references are resolved."""
    build: dict[str, Callable[[], Shape]] = {
        "object": lambda: object_shape(parts, reader),
        "array": lambda: _array(parts, reader),
        "string": lambda: _string(parts, reader),
        "integer": lambda: _number(parts, True),
        "number": lambda: _number(parts, False),
        "boolean": lambda: Literals(("true", "false")),
        "null": lambda: Literals(("null",)),
    }
    types = _of_types(part.schema for part in parts)
    options = [build[name]() for name in types]
    return ANYTHING if _unbounded(options) else choice(options)


def _unbounded(options: list[Shape]) -> bool:
    """Whether ``options`` together are any value: one of each type, none of them bounded."""
    free = [
        ObjectShape((), ((_ANYTHING, ANYTHING),)),
        ArrayShape((), ANYTHING),
        StringShape(),
        NumberShape(whole=False),
    ]
    return len(options) == len(_TYPES) - 1 and all(shape in options for shape in free)


def _bound(parts: list[Located], keyword: str, pick: Callable[[Iterable[int]], int]) -> int | None:
    found = [int(part.get(keyword)) for part in parts if keyword in part.schema]
    return pick(found) if found else None


def _string(parts: list[Located], reader: Reader) -> Shape:
    least = _bound(parts, "minLength", max) or 0
    most = _bound(parts, "maxLength", min)
    if most is not None and least > most:
        return NOTHING
    terms: list[Term] = []
    for part in parts:
        if "pattern" in part.schema:
            try:
                terms.append(search(part.get("pattern")))
            except ToolSchemaError as error:
                raise reader.refused(part, "pattern", str(error)) from None
    room = reader.limits.string_states
    for part in parts:
        for keyword in ("minLength", "maxLength"):
            if part.get(keyword, 0) >= room:
                reason = f"lengths from {room} on are not counted while decoding"
                reader.checked(part, keyword, reason)
    least, most = min(least, room - 1), most if most is not None and most < room else None
    lengths = [repeat(ANY, least, most)] if least or most is not None else []
    return _fitting([*terms, *lengths], terms, parts, reader)


def _fitting(
    wanted: list[Term], patterns: list[Term], parts: list[Located], reader: Reader
) -> Shape:
    """A string of all that is ``wanted``, or of the patterns alone where that is too large."""
    if not wanted:
        return StringShape()
    room = reader.limits.string_states
    try:
        term = both(*wanted)
        return NOTHING if Machine(term, most_states=room).empty else StringShape(term)
    except ToolSchemaError as error:
        reason = f"with the other bounds of the string it {error}"
    if patterns and len(wanted) > len(patterns):
        for part in parts:
            for keyword in ("minLength", "maxLength"):
                if keyword in part.schema:
                    reader.checked(part, keyword, reason)
        return _fitting(patterns, [], parts, reader)
    for part in parts:
        if "pattern" in part.schema:
            reader.checked(part, "pattern", reason)
    return StringShape()


def _number(parts: list[Located], whole: bool) -> Shape:
    least: list[tuple[Fraction, bool]] = []
    most: list[tuple[Fraction, bool]] = []
    for part in parts:
        for keyword, side, is_open in (
            ("minimum", least, False),
            ("exclusiveMinimum", least, True),
            ("maximum", most, False),
            ("exclusiveMaximum", most, True),
        ):
            if keyword in part.schema:
                side.append((Fraction(str(part.get(keyword))), is_open))
    low, low_open = max(least) if least else (None, False)
    high, high_open = min(most, key=lambda pair: (pair[0], not pair[1])) if most else (None, False)
    if whole:
        if low is not None:
            low = Fraction(math.floor(low) + 1 if low_open else math.ceil(low))
        if high is not None:
            high = Fraction(math.ceil(high) - 1 if high_open else math.floor(high))
        low_open = high_open = False
    if low is not None and high is not None:
        empty = low > high or (low == high and (low_open or high_open))
        if empty:
            return NOTHING
    return NumberShape(whole, Bounds(low, high, low_open, high_open))


def _array(parts: list[Located], reader: Reader) -> Shape:
    least = _bound(parts, "minItems", max) or 0
    most = _bound(parts, "maxItems", min)
    length = max((len(part.get("prefixItems", ())) for part in parts), default=0)
    prefix: list[Shape] = []
    for number in range(length):
        shape = reader.shape(_items(parts, number))
        if shape == NOTHING:
            most = number if most is None else min(most, number)
            break
        prefix.append(shape)
    items = reader.shape(_items(parts, None))
    if items == NOTHING:
        most = len(prefix) if most is None else min(most, len(prefix))
    if most is not None:
        prefix = prefix[:most]
        if least > most:
            return NOTHING
    return ArrayShape(tuple(prefix), items, least, most)


def _items(parts: list[Located], number: int | None) -> list[Located]:
    """The schemas of the item at ``number``, or of those after all prefixes."""
    found: list[Located] = []
    for part in parts:
        prefix = part.get("prefixItems", ())
        if number is not None and number < len(prefix):
            found.append(part.at("prefixItems", number))
        elif "items" in part.schema:
            found.append(part.at("items"))
        elif "unevaluatedItems" in part.schema and evaluates_alone(part.schema, "unevaluatedItems"):
            found.append(part.at("unevaluatedItems"))
    return found


def replace(shape: Shape, named: Callable[[str], Shape]) -> Shape:
    """``shape`` with every reference replaced by what ``named`` says of its name."""
    match shape:
        case Reference(name):
            return named(name)
        case Choice(options):
            return choice(replace(option, named) for option in options)
        case ArrayShape(prefix, items, least, most):
            inner = tuple(replace(item, named) for item in prefix)
            rest = replace(items, named)
            if NOTHING in inner:
                most, inner = inner.index(NOTHING), inner[: inner.index(NOTHING)]
            elif rest == NOTHING:
                most = len(inner) if most is None else min(most, len(inner))
            return ArrayShape(inner, rest, least, most)
        case ObjectShape(properties, extra):
            kept = [
                Property(one.name, replace(one.shape, named), one.required) for one in properties
            ]
            others = [(term, replace(value, named)) for term, value in extra]
            return ObjectShape(
                tuple(one for one in kept if one.shape != NOTHING),
                tuple(pair for pair in others if pair[1] != NOTHING),
            )
        case _:
            return shape
