"""The JSON Schema Test Suite, run through the schema normaliser and the grammar that comes of it.

Each instance is written in each order of its properties (up to a bound): the grammar writes
properties in one order, so a value counts as accepted where any spelling of it is.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_ext.errors import BenchError, ToolSchemaError
from sglang_ext.tools.ebnf import Separators, grammar
from sglang_ext.tools.schema import normalise

__all__ = ["SuiteResult", "run_suite"]

_MOST_SPELLINGS = 5_040


@dataclass
class SuiteResult:
    """What became of the suite's schemas, and each instance that was decided wrongly."""

    enforced: int = 0
    checked: int = 0
    refused: int = 0
    instances: int = 0
    wrong: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # of refused schemas, by name

    def as_json(self) -> dict[str, Any]:
        """Counts, and the share of refused schemas."""
        schemas = self.enforced + self.checked + self.refused
        return {
            "schemas": schemas,
            "enforced": self.enforced,
            "checked": self.checked,
            "refused": self.refused,
            "refused_share": round(self.refused / max(schemas, 1), 4),
            "instances": self.instances,
            "wrong": len(self.wrong),
        }


def run_suite(folder: Path) -> SuiteResult:
    """Run every file of the suite in ``folder``, such as ``tests/draft2020-12``.

    Raises:
        BenchError: the folder holds no suite.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BenchError(f"{folder} holds no JSON files; give the suite's tests/draft2020-12")
    result = SuiteResult()
    for path in files:
        for group in json.loads(path.read_text()):
            _run_group(f"{path.stem}: {group['description']}", group, result)
    return result


def _run_group(name: str, group: dict[str, Any], result: SuiteResult) -> None:
    from xgrammar import Grammar
    from xgrammar.testing import _is_grammar_accept_string

    try:
        schema = normalise(group["schema"])
    except ToolSchemaError as error:
        if "no value is valid" in str(error):
            result.enforced += 1  # refused because nothing fits: right if nothing is valid
            result.instances += len(group["tests"])
            result.wrong += [f"{name}: {t['description']}" for t in group["tests"] if t["valid"]]
            return
        result.refused += 1
        result.reasons[name] = str(error)
        return
    result.enforced += schema.exact
    result.checked += not schema.exact
    compiled = Grammar.from_ebnf(grammar(schema))
    for test in group["tests"]:
        result.instances += 1
        written = any(
            _is_grammar_accept_string(compiled, text)
            for text in itertools.islice(_spellings(test["data"], Separators()), _MOST_SPELLINGS)
        )
        passed = written and schema.checker.violation(test["data"]) is None
        if passed != test["valid"] or (schema.exact and written != test["valid"]):
            result.wrong.append(
                f"{name}: {test['description']}: valid {test['valid']}, written {written}, "
                f"passed {passed}"
            )


def _spellings(value: Any, separators: Separators) -> Iterator[str]:
    if isinstance(value, dict):
        for order in itertools.permutations(value.items()):
            options = [
                [f"{json.dumps(name, ensure_ascii=False)}{separators.key}{text}" for text in texts]
                for name, texts in (
                    (name, list(_spellings(one, separators))) for name, one in order
                )
            ]
            for members in itertools.product(*options):
                yield "{" + separators.item.join(members) + "}"
    elif isinstance(value, list):
        for items in itertools.product(*(list(_spellings(one, separators)) for one in value)):
            yield "[" + separators.item.join(items) + "]"
    else:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        yield json.dumps(value, ensure_ascii=False)
