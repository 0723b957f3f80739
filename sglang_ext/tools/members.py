"""The shape of objects: declared properties, patterns of names, and all other names.

Pure. Source: JSON Schema 2020-12, applicator vocabulary.
"""

import itertools
import json
from collections.abc import Iterator

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.language import ANY, Machine, Term, alt, both, literal, star, without
from sglang_ext.tools.located import Located, Reader, evaluates_alone
from sglang_ext.tools.pattern import search
from sglang_ext.tools.shapes import (
    ANYTHING,
    NOTHING,
    Literals,
    ObjectShape,
    Property,
    Reference,
    Shape,
    StringShape,
)

__all__ = ["object_shape"]

_MOST_PATTERNS = 4  # of names, whose combinations are told apart
_ANYTHING = star(ANY)


def object_shape(parts: list[Located], reader: Reader) -> Shape:
    """The shape of objects that are valid for all of ``parts``."""
    required = {name for part in parts for name in part.get("required", ())}
    names = dict.fromkeys(name for part in parts for name in part.get("properties", ()))
    names.update(dict.fromkeys(name for part in parts for name in part.get("required", ())))
    allowed = _allowed_names(parts, reader)
    patterns = _name_patterns(parts, reader)
    properties: list[Property] = []
    for name in names:
        shape = reader.shape(_values_of(parts, name, patterns))
        if allowed is not None and not allowed.accepts(name):
            shape = NOTHING
        if shape == NOTHING and name in required:
            return NOTHING
        if shape != NOTHING:
            properties.append(Property(name, shape, name in required))
    return ObjectShape(tuple(properties), _extra(parts, reader, tuple(names), patterns))


class _Names(Machine):
    """The names of a ``propertyNames`` or a pattern, with the term they come from."""

    def __init__(self, term: Term, most_states: int) -> None:
        super().__init__(term, most_states=most_states)
        self.term = term


def _allowed_names(parts: list[Located], reader: Reader) -> _Names | None:
    schemas = [part.at("propertyNames") for part in parts if "propertyNames" in part.schema]
    if not schemas:
        return None
    shape = reader.shape([*schemas, reader.made({"type": "string"}, schemas[0])])
    term = _text(shape, reader)
    if term is not None:
        try:
            return _Names(term, reader.limits.string_states)
        except ToolSchemaError:
            pass
    for part in parts:
        if "propertyNames" in part.schema:
            reader.checked(part, "propertyNames", "the names are more than a pattern or a list")
    return None


def _text(shape: Shape, reader: Reader) -> Term | None:
    """The language of a string's shape; None where it has no such simple form."""
    if isinstance(shape, Reference):
        shape = reader.shapes[shape.name]  # type: ignore[attr-defined] # the one reader there is
    match shape:
        case StringShape(term):
            return _ANYTHING if term is None else term
        case Literals(texts):
            return alt(*(literal(json.loads(text)) for text in texts))
        case _ if shape == NOTHING:
            return without(_ANYTHING)
    return None


def _name_patterns(parts: list[Located], reader: Reader) -> list[tuple[Located, str, _Names]]:
    found = []
    for part in parts:
        for pattern in part.get("patternProperties", ()):
            try:
                names = _Names(search(pattern), reader.limits.string_states)
            except ToolSchemaError as error:
                raise reader.refused(part, "patternProperties", f"{pattern!r}: {error}") from None
            found.append((part, pattern, names))
    return found


def _values_of(
    parts: list[Located], name: str, patterns: list[tuple[Located, str, _Names]]
) -> list[Located]:
    """The schemas of the property ``name``."""
    found: list[Located] = []
    for part in parts:
        matched = [
            part.at("patternProperties", pattern)
            for owner, pattern, names in patterns
            if owner is part and names.accepts(name)
        ]
        if name in part.get("properties", ()):
            matched.append(part.at("properties", name))
        found += matched or _additional(part)
    return found


def _additional(part: Located) -> list[Located]:
    if "additionalProperties" in part.schema:
        return [part.at("additionalProperties")]
    if "unevaluatedProperties" in part.schema and evaluates_alone(
        part.schema, "unevaluatedProperties"
    ):
        return [part.at("unevaluatedProperties")]
    return []


def _extra(
    parts: list[Located],
    reader: Reader,
    names: tuple[str, ...],
    patterns: list[tuple[Located, str, _Names]],
) -> tuple[tuple[Term, Shape], ...]:
    """Names that are not declared, by the patterns that they match, with their shapes."""
    if len(patterns) > _MOST_PATTERNS:
        for part, _, _ in patterns:
            reader.checked(part, "patternProperties", f"more than {_MOST_PATTERNS} patterns")
        return ((without(alt(*map(literal, names))), ANYTHING),)
    allowed = _allowed_names(parts, reader)
    base = [without(alt(*map(literal, names)))] if names else []
    base += [allowed.term] if allowed is not None else []
    found: list[tuple[Term, Shape]] = []
    for hits in _subsets(patterns):
        shape = reader.shape(_schemas_of(parts, hits))
        if shape == NOTHING:
            continue
        terms = [
            one.term if (part, key, one) in hits else without(one.term)
            for part, key, one in patterns
        ]
        term = both(*base, *terms) if base or terms else _ANYTHING
        try:
            if not Machine(term, most_states=16 * reader.limits.string_states).empty:
                found.append((term, shape))
        except ToolSchemaError as error:
            for part in parts:
                for keyword in ("properties", "patternProperties"):
                    if keyword in part.schema:
                        reader.checked(part, keyword, f"the other names: {error}")
            found.append((_ANYTHING, ANYTHING))
    return tuple(found)


_Pattern = tuple[Located, str, _Names]


def _subsets(patterns: list[_Pattern]) -> Iterator[list[_Pattern]]:
    for size in range(len(patterns), -1, -1):
        for picked in itertools.combinations(patterns, size):
            yield list(picked)


def _schemas_of(parts: list[Located], hits: list[_Pattern]) -> list[Located]:
    """The schemas of a name that is not declared and matches exactly the patterns in ``hits``."""
    owners = {id(part) for part, _, _ in hits}
    schemas = [part.at("patternProperties", pattern) for part, pattern, _ in hits]
    for part in parts:
        if id(part) not in owners:
            schemas += _additional(part)
    return schemas
