"""Single-turn cases of the Berkeley Function Calling Leaderboard, and its check of an answer.

The categories ``simple_python``, ``multiple`` and ``parallel`` have right answers; in
``irrelevance`` no tool fits, so none is to be called.

Source: ``bfcl_eval/eval_checker/ast_eval/ast_checker.py``, release 2026.3.23. It asks the package's
table of models one question, whether dots in names are written as underscores; the table imports
every vendor's SDK, so another one that answers yes stands in its place.
"""

import json
import sys
import types
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sglang_ext.bench.bfcl import data_folder, json_lines, json_schema
from sglang_ext.errors import DemoError

__all__ = ["CATEGORIES", "Case", "is_right", "load_cases"]

CATEGORIES = ("simple_python", "multiple", "parallel", "irrelevance")
_MODELS = "bfcl_eval.constants.model_config"


@dataclass(frozen=True)
class Case:
    """One request: what is asked, the tools, and the right calls (none: no tool fits)."""

    id: str
    category: str
    messages: tuple[dict[str, str], ...]
    documents: tuple[dict[str, Any], ...]  # as BFCL has them
    answers: tuple[dict[str, Any], ...]

    def tools(self, *, strict: bool | None) -> list[dict[str, Any]]:
        """The tools as the OpenAI API takes them; ``strict`` None says nothing of it."""
        said = {} if strict is None else {"strict": strict}
        return [
            {
                "type": "function",
                "function": {
                    "name": _name(document["name"]),
                    "description": document["description"],
                    "parameters": json_schema(document["parameters"]),
                    **said,
                },
            }
            for document in self.documents
        ]

    def schema(self, name: str) -> dict[str, Any] | None:
        """The JSON schema of a tool's arguments; None where there is no such tool."""
        for document in self.documents:
            if _name(document["name"]) == name:
                return json_schema(document["parameters"])
        return None


def _name(name: str) -> str:
    """A tool's name as the OpenAI API takes it."""
    return name.replace(".", "_")


def load_cases(category: str) -> list[Case]:
    """All cases of a category, in file order.

    Raises:
        DemoError: ``bfcl-eval`` is missing, or there is no such category.
    """
    if category not in CATEGORIES:
        raise DemoError(f"unknown category {category!r}; known are {', '.join(CATEGORIES)}")
    data = data_folder()
    answers = {}
    if category != "irrelevance":
        file = data / "possible_answer" / f"BFCL_v4_{category}.json"
        answers = {row["id"]: tuple(row["ground_truth"]) for row in json_lines(file)}
    return [
        Case(
            row["id"],
            category,
            tuple(row["question"][0]),
            tuple(row["function"]),
            answers.get(row["id"], ()),
        )
        for row in json_lines(data / f"BFCL_v4_{category}.json")
    ]


def is_right(case: Case, calls: Sequence[tuple[str, str]]) -> bool:
    """Whether BFCL counts ``calls`` (name, arguments as JSON) as right.

    Raises:
        DemoError: its checker cannot be imported.
    """
    if not case.answers:
        return not calls
    try:
        found = [{name: json.loads(arguments)} for name, arguments in calls]
    except ValueError:
        return False
    if not found or not all(isinstance(value, dict) for one in found for value in one.values()):
        return False
    check, python = _checker()
    verdict = check(
        list(case.documents), found, list(case.answers), python, case.category, "underscores"
    )
    return bool(verdict["valid"])


@cache
def _checker() -> tuple[Any, Any]:
    """BFCL's check, and its name of the language Python."""
    models = types.ModuleType(_MODELS)
    underscores = types.SimpleNamespace(underscore_to_dot=True)
    models.MODEL_CONFIG_MAPPING = defaultdict(lambda: underscores)  # type: ignore[attr-defined]
    before = sys.modules.get(_MODELS)
    sys.modules[_MODELS] = models
    try:
        from bfcl_eval.constants.enums import Language
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    except ImportError as error:
        raise DemoError(
            f"the checker of bfcl-eval cannot be imported ({error}); "
            "pip install --no-deps bfcl-eval==2026.3.23"
        ) from error
    finally:
        sys.modules.pop(_MODELS)
        if before is not None:
            sys.modules[_MODELS] = before
    return ast_checker, Language.PYTHON
