"""A schema with its place, and what merging needs of the reader of a whole schema. Pure."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from referencing.jsonschema import DRAFT202012

from sglang_ext.errors import ToolSchemaError
from sglang_ext.tools.limits import SchemaLimits
from sglang_ext.tools.shapes import Shape
from sglang_ext.tools.verdicts import APPLICATORS, pointer

__all__ = ["Located", "Reader", "evaluates_alone"]


@dataclass(frozen=True)
class Located:
    """A schema, its JSON Pointer, and the resolver for references in it.

    ``done`` holds keywords that were read already; of a ``quiet`` one nothing is said.
    """

    schema: Any
    where: str
    resolver: Any
    done: frozenset[str] = frozenset()
    quiet: bool = False

    def at(self, *steps: str | int) -> "Located":
        """The subschema at ``steps``."""
        inner = self.schema
        for step in steps:
            inner = inner[step]
        resolver = self.resolver
        if isinstance(inner, dict) and "$id" in inner:
            resolver = resolver.in_subresource(DRAFT202012.create_resource(inner))
        return Located(inner, pointer(self.where, *steps), resolver, quiet=self.quiet)

    def without(self, *keywords: str) -> "Located":
        """The same schema with ``keywords`` marked as read."""
        return dataclasses.replace(self, done=self.done | frozenset(keywords))

    def get(self, keyword: str, default: Any = None) -> Any:
        """The value of ``keyword``."""
        return self.schema.get(keyword, default)


class Reader(Protocol):
    """What merging needs of the reader of a whole schema."""

    limits: SchemaLimits

    def shape(self, parts: Iterable[Located]) -> Shape:
        """The shape of a conjunction."""
        ...

    def made(self, schema: Any, near: Located) -> Located:
        """A schema of ours."""
        ...

    def checked(self, part: Located, keyword: str, reason: str) -> None:
        """Leave a keyword to the check."""
        ...

    def refused(self, part: Located, keyword: str, reason: str) -> ToolSchemaError:
        """The error that refuses a keyword."""
        ...


def evaluates_alone(schema: dict[str, Any], keyword: str) -> bool:
    """Whether an ``unevaluated…`` keyword means no more than its plain counterpart here."""
    return keyword.startswith("unevaluated") and not (APPLICATORS | {"contains"}) & schema.keys()
