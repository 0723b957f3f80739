"""What becomes of each keyword of a tool's schema: enforced, checked, refused or an annotation.

Pure. Source: JSON Schema 2020-12, https://json-schema.org/draft/2020-12.
"""

from dataclasses import dataclass
from enum import StrEnum

from sglang_ext.errors import ToolSchemaError

__all__ = ["ANNOTATIONS", "APPLICATORS", "CHECKED", "State", "Verdict", "Verdicts", "pointer"]


class State(StrEnum):
    """What happens to a keyword."""

    ENFORCED = "enforced"  # while decoding: no other value can be written
    CHECKED = "checked"  # on the finished call: an invalid one is not shown as a call
    REFUSED = "refused"  # the request is answered with 400
    ANNOTATION = "annotation"  # says nothing about validity


# Keywords that no grammar enforces, and why.
CHECKED: dict[str, str] = {
    "$dynamicRef": "which schema it means depends on how it was reached",
    "contains": "a grammar does not look ahead in a list",
    "dependentRequired": "a grammar does not remember which optional properties were written",
    "dependentSchemas": "a grammar does not remember which optional properties were written",
    "else": "a grammar does not test a condition",
    "if": "a grammar does not test a condition",
    "maxContains": "a grammar does not count matches",
    "maxProperties": "a grammar does not count properties",
    "minContains": "a grammar does not count matches",
    "minProperties": "a grammar does not count properties",
    "multipleOf": "a grammar does not divide",
    "not": "a grammar has no complement of structures",
    "then": "a grammar does not test a condition",
    "unevaluatedItems": "what is evaluated depends on the branch that matched",
    "unevaluatedProperties": "what is evaluated depends on the branch that matched",
    "uniqueItems": "a grammar does not compare items",
}
ANNOTATIONS = frozenset(
    {
        *("$anchor", "$comment", "$defs", "$dynamicAnchor", "$id", "$schema", "$vocabulary"),
        *("contentEncoding", "contentMediaType", "contentSchema", "default", "definitions"),
        *("deprecated", "description", "examples", "format", "readOnly", "title", "writeOnly"),
    }
)
# Keywords that say more about the same value.
APPLICATORS = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "$dynamicRef", "if", "dependentSchemas"}
)


def pointer(base: str, *steps: str | int) -> str:
    """``base`` with ``steps`` added, as a JSON Pointer in a URI fragment."""
    for step in steps:
        base += "/" + str(step).replace("~", "~0").replace("/", "~1")
    return base


@dataclass(frozen=True)
class Verdict:
    """One keyword at one place: ``pointer`` is a JSON Pointer into the tool's parameters."""

    pointer: str
    keyword: str
    state: State
    reason: str = ""


class Verdicts:
    """Collects what was said about each keyword; the strictest thing said of one stays."""

    _ORDER = (State.ANNOTATION, State.ENFORCED, State.CHECKED, State.REFUSED)

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], Verdict] = {}

    def say(self, where: str, keyword: str, state: State, reason: str = "") -> None:
        """Record what happens to ``keyword`` of the schema at ``where``."""
        key = (where, keyword)
        said = self._said.get(key)
        if said is None or self._ORDER.index(state) > self._ORDER.index(said.state):
            self._said[key] = Verdict(pointer(where, keyword), keyword, state, reason)

    def refuse(self, where: str, keyword: str, reason: str) -> ToolSchemaError:
        """Record a refusal, and make the error that says it."""
        self.say(where, keyword, State.REFUSED, reason)
        at = pointer(where, keyword) if keyword else where
        return ToolSchemaError(f"{at}: {reason}")

    def all(self) -> tuple[Verdict, ...]:
        """Everything said, in the order of the schema."""
        return tuple(self._said.values())
