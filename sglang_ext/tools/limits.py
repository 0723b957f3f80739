"""How large a tool's schema may be, with what each bound costs.

Costs were measured on one core of an x86-64 server with a vocabulary of 49,152 tokens; they grow
with the vocabulary. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.verdicts import pointer

__all__ = ["SchemaLimits", "check_size"]


@dataclass(frozen=True)
class SchemaLimits:
    """Bounds of one tool's schema; what exceeds one is refused with its name and place."""

    schema_bytes: int = 100_000  # as JSON. Speed: about 10 ms a 10 kB to read and normalise
    depth: int = 64  # nested schemas and values. Speed: 2 ms of compiling each
    properties: int = 256  # of one object. Speed: 1 ms of compiling each, open objects 8 ms
    enum_values: int = 2_000  # of one enum. Speed: 0.01 ms of compiling each
    pattern_chars: int = 512  # of one pattern
    # States of one string's automaton. Speed: 8 ms of compiling each. A pattern that needs more
    # is refused; a length that needs more is checked instead.
    string_states: int = 64
    name_chars: int = 256  # of one property
    shapes: int = 2_000  # distinct parts after references and combinations are resolved


def check_size(schema: Any, limits: SchemaLimits) -> None:
    """Refuse a schema that is too large to look at; takes time linear in what is looked at.

    Args:
        schema: decoded JSON, without cycles.
        limits: the bounds.

    Raises:
        ToolSchemaError: a bound is exceeded; names it, its value and a JSON Pointer.
    """
    room = limits.schema_bytes
    for value, where, depth in _walk(schema):
        if depth > limits.depth:
            raise ToolSchemaError(f"{_short(where)}: nested more than {limits.depth} deep")
        room -= len(value) + 2 if isinstance(value, str) else 4
        if isinstance(value, dict):
            room -= sum(len(name) + 4 for name in value)
            _check_object(value, where, limits)
        if room < 0:
            raise ToolSchemaError(f"#: larger than {limits.schema_bytes:,} bytes")


def _short(where: str) -> str:
    return where if len(where) <= 120 else f"{where[:120]}…"


def _walk(schema: Any) -> Iterator[tuple[Any, str, int]]:
    stack: list[tuple[Any, str, int]] = [(schema, "#", 0)]
    while stack:
        value, where, depth = stack.pop()
        yield value, where, depth
        if isinstance(value, dict):
            stack += [(one, pointer(where, name), depth + 1) for name, one in value.items()]
        elif isinstance(value, list):
            stack += [(one, pointer(where, number), depth + 1) for number, one in enumerate(value)]


def _check_object(value: dict[str, Any], where: str, limits: SchemaLimits) -> None:
    counted = (
        ("properties", dict, limits.properties, "properties"),
        ("patternProperties", dict, limits.properties, "properties"),
        ("enum", list, limits.enum_values, "values"),
        ("pattern", str, limits.pattern_chars, "characters"),
    )
    for keyword, kind, most, what in counted:
        found = value.get(keyword)
        if isinstance(found, kind) and len(found) > most:
            raise ToolSchemaError(
                f"{_short(pointer(where, keyword))}: {len(found):,} {what}, at most {most:,}"
            )
    for name in value:
        if len(name) > limits.name_chars:
            raise ToolSchemaError(
                f"{_short(where)}: a name of {len(name):,} characters, at most {limits.name_chars}"
            )
