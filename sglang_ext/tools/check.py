"""Whether a finished value is valid: every keyword of draft 2020-12, on the decoded JSON.

This is the last word: what a grammar cannot hold a model to is decided here, and so is everything
else once more. Pure.

Source: release 4.26 of ``jsonschema``, which passes the JSON Schema Test Suite but for formats.
Patterns are ours: linear time, ECMA-262; and numbers: compared as they are written.
"""

import operator
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from jsonschema import ValidationError
from jsonschema.validators import Draft202012Validator, extend
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.exact import decimal_of, is_multiple, is_whole
from sglang_ext.tools.language import Machine
from sglang_ext.tools.pattern import search
from sglang_ext.tools.verdicts import pointer

__all__ = ["Checker", "Violation"]

# What a check may raise that is no violation.
_UNDECIDED = (RecursionError, Unresolvable, OverflowError, ArithmeticError, ValueError)

Violation = tuple[str, str]  # JSON Pointer into the value, and what is wrong there

_PATTERN_STATES = 2_000  # Speed: 1 ms to build each 100
_PATTERNS_CACHED = 1_024
_WORDS = 200  # characters of a reason


@lru_cache(maxsize=_PATTERNS_CACHED)
def _machine(pattern: str) -> Machine:
    return Machine(search(pattern), most_states=_PATTERN_STATES)


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not _machine(pattern).accepts(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _schema: Any) -> Any:
    if not isinstance(instance, dict):
        return
    for pattern, schema in patterns.items():
        for name, value in instance.items():
            if _machine(pattern).accepts(name):
                yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, schema: Any, instance: Any, parent: Any) -> Any:
    if not isinstance(instance, dict):
        return
    patterns = parent.get("patternProperties", ())
    for name, value in instance.items():
        declared = name in parent.get("properties", ())
        if not declared and not any(_machine(pattern).accepts(name) for pattern in patterns):
            yield from validator.descend(value, schema, path=name)


def _multiple_of(validator: Any, factor: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "number") and not is_multiple(instance, factor):
        yield ValidationError(f"{instance} is not a multiple of {factor}")


def _bound(holds: Callable[[Any, Any], bool], words: str) -> Callable[..., Iterator[Any]]:
    def check(validator: Any, bound: Any, instance: Any, _schema: Any) -> Iterator[Any]:
        if not validator.is_type(instance, "number"):
            return
        if not holds(decimal_of(instance), decimal_of(bound)):
            yield ValidationError(f"{instance} is {words} {bound}")

    return check


def _is_integer(_checker: Any, value: Any) -> bool:
    return not isinstance(value, bool) and is_whole(value)


_Validator = extend(
    Draft202012Validator,
    {
        "multipleOf": _multiple_of,
        "minimum": _bound(operator.ge, "less than the minimum of"),
        "maximum": _bound(operator.le, "greater than the maximum of"),
        "exclusiveMinimum": _bound(operator.gt, "less than or equal to the exclusive minimum of"),
        "exclusiveMaximum": _bound(
            operator.lt, "greater than or equal to the exclusive maximum of"
        ),
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    },
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


class Checker:
    """Checks values against one schema.

    Args:
        schema: decoded JSON, a valid schema of draft 2020-12.

    Raises:
        ToolSchemaError: it cannot be checked: not a schema, or a pattern outside of the dialect.
    """

    def __init__(self, schema: Any) -> None:
        error = next(
            Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema), None
        )
        if error is not None:
            where = pointer("#", *error.absolute_path)
            raise ToolSchemaError(f"{where}: not a JSON schema: {error.message[:_WORDS]}")
        _check_patterns(schema)
        resource = DRAFT202012.create_resource(schema)
        self._registry = REGISTRY.with_resource("", resource)
        self._validator = _Validator(schema, registry=self._registry)

    def violation(self, value: Any) -> Violation | None:
        """The first thing wrong with ``value``; None where it is valid.

        A value that cannot be decided, because the schema refers to itself without end or to
        something that is not there, is wrong.
        """
        try:
            error = next(self._validator.iter_errors(value), None)
        except _UNDECIDED as reason:
            return "#", f"cannot be decided: {type(reason).__name__}"
        if error is None:
            return None
        return pointer("#", *error.absolute_path), error.message[:_WORDS]

    def part(self, schema: Any, resolver: Any) -> Callable[[Any], bool]:
        """A check against one part of the schema, with the resolver of its place."""
        validator = _Validator(schema, registry=self._registry, _resolver=resolver)

        def valid(value: Any) -> bool:
            try:
                return next(validator.iter_errors(value), None) is None
            except _UNDECIDED:
                return True  # the whole schema decides

        return valid


def _check_patterns(schema: Any) -> None:
    stack: list[tuple[Any, str]] = [(schema, "#")]
    while stack:
        value, where = stack.pop()
        if isinstance(value, list):
            stack += [(inner, pointer(where, number)) for number, inner in enumerate(value)]
        if not isinstance(value, dict):
            continue
        found = [("pattern", value.get("pattern"))]
        named = value.get("patternProperties")
        found += [("patternProperties", key) for key in named] if isinstance(named, dict) else []
        for keyword, pattern in found:
            if isinstance(pattern, str):
                try:
                    _machine(pattern)
                except ToolSchemaError as error:
                    raise ToolSchemaError(f"{pointer(where, keyword)}: {error}") from None
        stack += [
            (inner, pointer(where, name))
            for name, inner in value.items()
            if name not in ("const", "enum", "default", "examples")
        ]
