"""Turns a tool's JSON schema into shapes, and says of every keyword what becomes of it.

A schema is read as a conjunction: its own keywords, what ``$ref`` and ``allOf`` add, and one branch
of each ``anyOf`` and ``oneOf``. Equal conjunctions become one named shape, which is also how
recursion ends. References are resolved within the schema alone: ``$defs`` of two tools never meet,
and nothing is fetched. Pure.

Source: JSON Schema 2020-12; release 4.26 of ``jsonschema`` for enumerated values.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools import conjunction
from sglang_ext.tools.check import Checker
from sglang_ext.tools.limits import SchemaLimits, check_size
from sglang_ext.tools.located import Located, evaluates_alone
from sglang_ext.tools.shapes import (
    ANYTHING,
    NOTHING,
    Anything,
    Literals,
    Nothing,
    Reference,
    Shape,
    choice,
    productive,
)
from sglang_ext.tools.verdicts import ANNOTATIONS, CHECKED, State, Verdict, Verdicts
from sglang_ext.tools.work import spend

__all__ = ["NormalSchema", "normalise"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Draft 7 is what most frameworks name and read the same way, down to `definitions`.
_DIALECTS = frozenset({"", _DIALECT, "http://json-schema.org/draft-07/schema"})
_MOST_COMBINATIONS = 64


@dataclass(frozen=True)
class NormalSchema:
    """A schema as shapes.

    Attributes:
        root: what the value may look like; `Reference` into ``shapes``.
        shapes: named parts.
        verdicts: what becomes of each keyword.
        checker: decides whether a finished value is valid, by every keyword.
    """

    root: Shape
    shapes: dict[str, Shape]
    verdicts: tuple[Verdict, ...]
    checker: Checker = field(compare=False)

    @property
    def exact(self) -> bool:
        """Whether every value of this shape is valid."""
        return all(verdict.state is not State.CHECKED for verdict in self.verdicts)


def normalise(
    schema: Any, *, limits: SchemaLimits | None = None, objects_only: bool = False
) -> NormalSchema:
    """Read a JSON schema of draft 2020-12.

    Args:
        schema: decoded JSON. It must not change while the result is used.
        limits: its bounds.
        objects_only: the value is a tool's arguments, which are an object.

    Raises:
        ToolSchemaError: it can neither be enforced nor checked; says where and why.
    """
    limits = limits or SchemaLimits()
    check_size(schema, limits)
    reader = _Reader(schema, limits)
    root = reader.read(objects_only)
    alive = productive(reader.shapes)
    shapes = {name: shape for name, shape in reader.shapes.items() if name in alive}
    if isinstance(root, Nothing) or (isinstance(root, Reference) and root.name not in alive):
        raise ToolSchemaError("#: no value is valid, so no call can be made")
    shapes = {name: _pruned(shape, alive) for name, shape in shapes.items()}
    return NormalSchema(root, shapes, reader.verdicts.all(), reader.checker)


def _pruned(shape: Shape, alive: set[str]) -> Shape:
    """``shape`` without references to shapes that have no value."""
    return conjunction.replace(shape, lambda name: Reference(name) if name in alive else NOTHING)


class _Reader:
    def __init__(self, schema: Any, limits: SchemaLimits) -> None:
        self.schema = schema
        self.limits = limits
        self.verdicts = Verdicts()
        self.shapes: dict[str, Shape] = {}
        self._names: dict[tuple[tuple[int, frozenset[str]], ...], str] = {}
        self._keep: list[Any] = []  # what was made here must live as long as its id is a key
        self._check_dialect()
        self.checker = Checker(schema)

    def _check_dialect(self) -> None:
        named = self.schema.get("$schema", "") if isinstance(self.schema, dict) else ""
        if not isinstance(named, str) or named.rstrip("#") not in _DIALECTS:
            reason = f"the dialect {named!r} is not known; leave $schema out, or name {_DIALECT}"
            raise self.verdicts.refuse("#", "$schema", reason)

    def read(self, objects_only: bool) -> Shape:
        resource = DRAFT202012.create_resource(self.schema)
        registry: Registry[Any] = Registry().with_resource("", resource)
        root = Located(self.schema, "#", registry.resolver_with_root(resource))
        parts = [root]
        if objects_only:
            parts.append(self.made({"type": "object"}, root))
        return self.shape(parts)

    def made(self, schema: Any, near: Located) -> Located:
        """A schema of ours, said nothing about."""
        self._keep.append(schema)
        return Located(schema, near.where, near.resolver, quiet=True)

    def shape(self, parts: Iterable[Located]) -> Shape:
        """The shape of values that are valid for all of ``parts``."""
        flat = list(self._flattened(parts))
        spend(4 * len(flat))
        if any(part.schema is False for part in flat):
            return NOTHING
        flat = [part for part in flat if _says_something(part)]
        if not flat:
            return ANYTHING
        key = tuple(sorted({(id(part.schema), part.done) for part in flat}, key=_key_order))
        if key not in self._names:
            if len(self._names) >= self.limits.shapes:
                raise ToolSchemaError(
                    f"{flat[0].where}: the schema combines into more than "
                    f"{self.limits.shapes:,} parts"
                )
            name = self._names[key] = f"s{len(self._names)}"
            self.shapes[name] = NOTHING  # until it is known
            self.shapes[name] = self._choices(flat)
        name = self._names[key]
        known = self.shapes[name]
        return known if isinstance(known, Anything | Literals) else Reference(name)

    def _flattened(self, parts: Iterable[Located]) -> Iterator[Located]:
        """``parts`` and everything that ``$ref`` and ``allOf`` add to them."""
        seen: set[tuple[int, frozenset[str]]] = set()
        queue = list(parts)
        while queue:
            part = queue.pop(0)
            if (id(part.schema), part.done) in seen:
                continue
            seen.add((id(part.schema), part.done))
            if isinstance(part.schema, dict):
                self._judge(part)
                if "$ref" in part.schema and "$ref" not in part.done:
                    queue.append(self._resolved(part))
                if "allOf" not in part.done:
                    queue += [part.at("allOf", n) for n in range(len(part.schema.get("allOf", ())))]
            yield part

    def _resolved(self, part: Located) -> Located:
        reference = part.schema["$ref"]
        trail: set[int] = {id(part.schema)}
        found = part
        while isinstance(found.schema, dict) and "$ref" in found.schema:
            try:
                resolved = found.resolver.lookup(found.schema["$ref"])
            except Unresolvable:
                if reference.rstrip("#") == _DIALECT:
                    self.checked(part, "$ref", "the schema of schemas is not written as a grammar")
                    return self.made(True, part)
                reason = f"{reference!r} is not in this schema, and nothing is fetched"
                raise self.verdicts.refuse(part.where, "$ref", reason) from None
            where = reference if reference.startswith("#") else f"{part.where}→{reference}"
            found = Located(resolved.contents, where, resolved.resolver)
            if not isinstance(found.schema, dict) or len(found.schema) > 1:
                break
            if id(found.schema) in trail:
                reason = "a reference that leads back to itself"
                raise self.verdicts.refuse(part.where, "$ref", reason)
            trail.add(id(found.schema))
        return found

    def _judge(self, part: Located) -> None:
        """Say what becomes of each keyword; the details may say worse later."""
        if part.quiet:
            return
        for keyword in part.schema:
            if keyword in CHECKED:
                if not evaluates_alone(part.schema, keyword):
                    self.verdicts.say(part.where, keyword, State.CHECKED, CHECKED[keyword])
                else:
                    self.verdicts.say(part.where, keyword, State.ENFORCED)
            elif keyword in ANNOTATIONS or keyword not in conjunction.KEYWORDS:
                known = keyword in ANNOTATIONS
                reason = "" if known else "not a keyword of draft 2020-12"
                self.verdicts.say(part.where, keyword, State.ANNOTATION, reason)
            else:
                self.verdicts.say(part.where, keyword, State.ENFORCED)

    def _choices(self, flat: list[Located]) -> Shape:
        groups = [
            (part, keyword)
            for part in flat
            if isinstance(part.schema, dict)
            for keyword in ("anyOf", "oneOf")
            if keyword in part.schema and keyword not in part.done
        ]
        values = self._values(flat)
        if values is not None:
            return values
        kept, combinations = [], 1
        for part, keyword in groups:
            combinations *= len(part.schema[keyword])
            if combinations > _MOST_COMBINATIONS:
                combinations //= len(part.schema[keyword])
                reason = f"more than {_MOST_COMBINATIONS} combinations of branches"
                self.verdicts.say(part.where, keyword, State.CHECKED, reason)
                continue
            kept.append((part, keyword))
            if keyword == "oneOf" and not conjunction.disjoint(part.schema["oneOf"]):
                reason = "a branch is enforced; that no other matches is checked"
                self.verdicts.say(part.where, keyword, State.CHECKED, reason)
        base = [
            part.without("$ref", "allOf", *(word for one, word in groups if one is part))
            for part in flat
        ]
        if not kept:
            return conjunction.merged(base, self)
        branches = [
            [part.at(word, n) for n in range(len(part.schema[word]))] for part, word in kept
        ]
        return choice(self.shape([*base, *picked]) for picked in itertools.product(*branches))

    def _values(self, flat: list[Located]) -> Shape | None:
        """The values that are listed, less those that another part forbids."""
        for part in flat:
            if not isinstance(part.schema, dict):
                continue
            if "const" in part.schema:
                listed = [part.schema["const"]]
            elif "enum" in part.schema:
                listed = part.schema["enum"]
            else:
                continue
            checks = [self.checker.part(one.schema, one.resolver) for one in flat]
            valid = [value for value in listed if all(check(value) for check in checks)]
            texts = [json.dumps(_whole(value), ensure_ascii=False) for value in valid]
            return choice([Literals(tuple(texts))] if texts else [])
        return None

    def child(self, part: Located, *steps: str | int) -> Located:
        """The subschema of ``part`` at ``steps``."""
        return part.at(*steps)

    def checked(self, part: Located, keyword: str, reason: str) -> None:
        """A keyword of ``part`` is left to the check."""
        if not part.quiet:
            self.verdicts.say(part.where, keyword, State.CHECKED, reason)

    def refused(self, part: Located, keyword: str, reason: str) -> ToolSchemaError:
        """The error that refuses a keyword of ``part``."""
        return self.verdicts.refuse(part.where, keyword, reason)


def _whole(value: Any) -> Any:
    """``value`` with numbers such as 2.0 as whole ones: a number has one spelling here."""
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _says_something(part: Located) -> bool:
    if not isinstance(part.schema, dict):
        return part.schema is not True
    plain = conjunction.KEYWORDS - {"$ref", "allOf"} - part.done
    return any(keyword in plain or evaluates_alone(part.schema, keyword) for keyword in part.schema)


def _key_order(key: tuple[int, frozenset[str]]) -> tuple[int, list[str]]:
    return key[0], sorted(key[1])
