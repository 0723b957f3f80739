"""Shapes as a JSON schema of the part of the language that xgrammar reads without loss.

For models whose arguments are not JSON, and whose tags xgrammar writes. Patterns and lengths of
strings are left out, and the bounds of numbers that are not whole: xgrammar reads them narrower
than the standard. Pure.

Source: xgrammar 0.2.7, read by compiling and matching.
"""

import json
from typing import Any

from sglang_ext.tools.language import ANY, star
from sglang_ext.tools.schema import NormalSchema
from sglang_ext.tools.shapes import (
    ANYTHING,
    ArrayShape,
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

__all__ = ["plain_schema"]


def plain_schema(schema: NormalSchema) -> dict[str, Any]:
    """A JSON schema, as wide as ``schema`` or wider."""
    writer = _Writer(schema.shapes)
    top = writer.write(_resolved(schema, schema.root), root=True)
    return {**top, "$defs": writer.definitions} if writer.definitions else top


def _resolved(schema: NormalSchema, shape: Shape) -> Shape:
    """The object that arguments are: a tag's top level is not a reference."""
    while isinstance(shape, Reference):
        shape = schema.shapes[shape.name]
    return shape


class _Writer:
    def __init__(self, shapes: dict[str, Shape]) -> None:
        self.shapes = shapes
        self.definitions: dict[str, Any] = {}

    def write(self, shape: Shape, *, root: bool = False) -> dict[str, Any]:
        match shape:
            case Reference(name):
                return self.named(name)
            case Choice(options):
                if root:  # tags of XML arguments want one object
                    return self.write(_joined(options, self.shapes))
                return {"anyOf": [self.write(option) for option in options]}
            case Literals(texts):
                values = [json.loads(text) for text in texts]
                return {"enum": values} if all(map(_is_read, values)) else {}
            case StringShape():
                return {"type": "string"}
            case NumberShape():
                return _number(shape)
            case ArrayShape():
                return self.array(shape)
            case ObjectShape():
                return self.object(shape)
            case _:
                return {}

    def named(self, name: str) -> dict[str, Any]:
        target = self.shapes[name]
        if not isinstance(target, Choice | ArrayShape | ObjectShape):
            return self.write(target)
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self.write(target)
        return {"$ref": f"#/$defs/{name}"}

    def array(self, shape: ArrayShape) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "array"}
        if shape.prefix:
            found["prefixItems"] = [self.write(item) for item in shape.prefix]
        closed = shape.most is not None and shape.most <= len(shape.prefix)
        found["items"] = False if closed else self.write(shape.items)
        if shape.least:
            found["minItems"] = shape.least
        if shape.most is not None and not (closed and shape.prefix):
            found["maxItems"] = shape.most
        return found

    def object(self, shape: ObjectShape) -> dict[str, Any]:
        extra: Any = False
        if shape.extra:
            extra = self.write(choice(value for _, value in shape.extra)) or True
        return {
            "type": "object",
            "properties": {one.name: self.write(one.shape) for one in shape.properties},
            "required": [one.name for one in shape.properties if one.required],
            "additionalProperties": extra,
        }


def _number(shape: NumberShape) -> dict[str, Any]:
    if not shape.whole:
        return {"type": "number"}
    bounds = {"minimum": shape.bounds.least, "maximum": shape.bounds.most}
    known = {keyword: int(bound) for keyword, bound in bounds.items() if bound is not None}
    # A bound that it does not hold is one more that is checked.
    return {"type": "integer", **{name: bound for name, bound in known.items() if _is_read(bound)}}


def _is_read(value: Any) -> bool:
    """Whether xgrammar reads all numbers of a value as they are: whole ones have 64 bits there."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return all(map(_is_read, inner))
    return not isinstance(value, int) or -(2**63) <= value < 2**63 - 1


def _joined(options: tuple[Shape, ...], shapes: dict[str, Shape]) -> Shape:
    """One open object out of several; its properties are checked after decoding."""
    names: dict[str, None] = {}
    for option in options:
        while isinstance(option, Reference):
            option = shapes[option.name]
        if isinstance(option, ObjectShape):
            names.update(dict.fromkeys(one.name for one in option.properties))
    properties = tuple(Property(name, ANYTHING, False) for name in names)
    return ObjectShape(properties, ((star(ANY), ANYTHING),))
