"""Tasks, tool documents and executable tools of the Berkeley Function Calling Leaderboard.

The package ``bfcl-eval`` carries, for its multi-turn category, user turns, documents of the
tools, and Python classes that execute them on an in-memory state. Only these are used: the
package's model zoo needs every vendor's SDK, and nothing here imports it.

A call is looked up by name among the documented tools and executed with keyword arguments; no
text of a model is ever evaluated. The tools keep their state in memory and touch no real file.

Determinism: with the same task and the same calls, the results are the same. Two exceptions lie
in tools that the demonstration does not use: ``TravelAPI.verify_traveler_information`` compares
an age with today, and ``TradingBot`` writes time stamps in the local time zone. There is no time
limit on a call: ``MathAPI.power`` with a huge exponent does not come back.

Source: ``bfcl_eval/eval_checker/multi_turn_eval/multi_turn_utils.py``, release 2026.3.23.
"""

import copy
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext.errors import DemoError

__all__ = [
    "TOOL_CLASSES",
    "Task",
    "ToolBox",
    "class_description",
    "data_folder",
    "json_lines",
    "json_schema",
    "load_tasks",
    "tool_schemas",
]

_SOURCE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"

# class -> (module with the executable class, file with its documents). The same table is in
# bfcl_eval.constants, which we keep from importing. Left out: web search and the memory tools,
# which need a network, an API key or embedding models.
TOOL_CLASSES: dict[str, tuple[str, str]] = {
    "GorillaFileSystem": ("gorilla_file_system", "gorilla_file_system.json"),
    "MathAPI": ("math_api", "math_api.json"),
    "MessageAPI": ("message_api", "message_api.json"),
    "TicketAPI": ("ticket_api", "ticket_api.json"),
    "TradingBot": ("trading_bot", "trading_bot.json"),
    "TravelAPI": ("travel_booking", "travel_booking.json"),
    "TwitterAPI": ("posting_api", "posting_api.json"),
    "VehicleControlAPI": ("vehicle_control", "vehicle_control.json"),
}

# BFCL's documents use Python's names of types where JSON Schema has its own.
_JSON_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "list": "array",
    "int": "integer",
    "bool": "boolean",
    "str": "string",
}
_STANDARD_TYPES = {"object", "number", "array", "integer", "boolean", "string", "null"}

# Every document begins with a sentence about its whole class, then these words.
_TOOL_DESCRIPTION = "Tool description: "


@dataclass(frozen=True)
class Task:
    """One multi-turn task: what a user asks in turn, and the state the tools start from."""

    id: str
    user_turns: tuple[str, ...]
    initial_config: Mapping[str, Any]
    classes: tuple[str, ...]


def data_folder() -> Path:
    """The data folder of ``bfcl-eval``.

    Raises:
        DemoError: the package is not installed, or another release without this layout.
    """
    spec = importlib.util.find_spec("bfcl_eval")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise DemoError(
            "the package bfcl-eval is not installed; it has the tasks and tools of the "
            "demonstration: pip install --no-deps bfcl-eval==2026.3.23 mpmath"
        )
    data = Path(places[0]) / "data"
    if not (data / "multi_turn_func_doc").is_dir():
        raise DemoError(
            f"{data} has no folder multi_turn_func_doc: this release of bfcl-eval is laid out "
            "differently; install bfcl-eval==2026.3.23"
        )
    return data


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that has one a line."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _known(classes: Sequence[str]) -> None:
    unknown = sorted(set(classes) - set(TOOL_CLASSES))
    if unknown:
        raise DemoError(
            f"unknown tool class {unknown[0]!r}; known are {', '.join(sorted(TOOL_CLASSES))}"
        )


def load_tasks(classes: Sequence[str]) -> list[Task]:
    """All multi-turn tasks that need no other tools than those of ``classes``, in file order.

    Raises:
        DemoError: ``bfcl-eval`` is missing, or a class is not known.
    """
    _known(classes)
    tasks = []
    for row in json_lines(data_folder() / "BFCL_v4_multi_turn_base.json"):
        if not set(row["involved_classes"]) <= set(classes):
            continue
        turns = tuple(message["content"] for turn in row["question"] for message in turn)
        tasks.append(Task(row["id"], turns, row["initial_config"], tuple(row["involved_classes"])))
    return tasks


def json_schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one of BFCL's parameter documents to JSON Schema.

    Types get their standard names, a type without one (``any``) becomes no constraint, objects
    whose properties are listed accept no others, and a default that is not of the type (the
    word ``"None"`` for an optional number) is left out.
    """
    kind = _JSON_TYPES.get(str(document.get("type")), document.get("type"))
    schema: dict[str, Any] = {"type": kind} if kind in _STANDARD_TYPES else {}
    if description := str(document.get("description", "")).strip():
        schema["description"] = description
    for name in ("enum", "default"):
        if name in document and document[name] != "None":
            schema[name] = document[name]
    if kind == "object" and "properties" in document:
        schema["properties"] = {
            name: json_schema(value) for name, value in document["properties"].items()
        }
        schema["required"] = list(document.get("required", []))
        schema["additionalProperties"] = False
    if kind == "array" and isinstance(document.get("items"), Mapping):
        schema["items"] = json_schema(document["items"])
    return schema


def _documents(class_name: str) -> Iterator[dict[str, Any]]:
    yield from json_lines(data_folder() / "multi_turn_func_doc" / TOOL_CLASSES[class_name][1])


def class_description(class_name: str) -> str:
    """The sentence about the whole class, which BFCL repeats in each of its documents."""
    _known([class_name])
    text = str(next(_documents(class_name))["description"])
    return text.split(_TOOL_DESCRIPTION)[0].strip()


def tool_schemas(classes: Sequence[str], *, strict: bool = True) -> list[dict[str, Any]]:
    """The tools of ``classes`` as the OpenAI API takes them, in file order.

    Args:
        classes: keys of ``TOOL_CLASSES``.
        strict: asks the server to hold every call to its schema.

    Returns:
        A new list; the sentence that BFCL repeats for a class is left to ``class_description``.

    Raises:
        DemoError: ``bfcl-eval`` is missing, or a class is not known.
    """
    _known(classes)
    return [
        {
            "type": "function",
            "function": {
                "name": document["name"],
                "description": document["description"].split(_TOOL_DESCRIPTION)[-1].strip(),
                "parameters": json_schema(document["parameters"]),
                "strict": strict,
            },
        }
        for class_name in classes
        for document in _documents(class_name)
    ]


class ToolBox:
    """The tools of some classes with a state of their own; used by one thread at a time.

    Args:
        classes: keys of ``TOOL_CLASSES``.
        initial_config: the ``initial_config`` of a task; copied. A class it does not name
            starts from its own default.
        long_context: let the tools fill their state up, as BFCL's category ``long_context``
            does: longer files, more files in a folder.

    Raises:
        DemoError: ``bfcl-eval`` or a package its tools import is missing.
    """

    def __init__(
        self,
        classes: Sequence[str],
        initial_config: Mapping[str, Any],
        *,
        long_context: bool = False,
    ) -> None:
        _known(classes)
        self._methods: dict[str, Any] = {}
        for class_name in classes:
            instance = _load_class(class_name)()
            if hasattr(instance, "_load_scenario"):  # MathAPI has no state
                scenario = copy.deepcopy(dict(initial_config.get(class_name, {})))
                instance._load_scenario(scenario, long_context=long_context)  # noqa: SLF001 - the interface BFCL itself uses
            for document in _documents(class_name):
                self._methods[document["name"]] = getattr(instance, document["name"])

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Execute a tool and return its result as JSON; an error is a result like any other.

        Args:
            name: a documented tool; anything else is answered with an error.
            arguments: keyword arguments, as parsed from the model's call.
        """
        method = self._methods.get(name)
        if method is None:
            return _error(f"there is no tool named {name!r}")
        try:
            result = method(**arguments)
        except Exception as error:  # a tool may raise anything, and the agent has to go on
            return _error(f"{type(error).__name__}: {error}")
        return json.dumps(result if result is not None else {"result": None}, default=str)


def _load_class(class_name: str) -> Any:
    try:
        module = importlib.import_module(f"{_SOURCE}.{TOOL_CLASSES[class_name][0]}")
    except ImportError as error:
        raise DemoError(
            f"the tools of {class_name} cannot be imported ({error}); "
            "pip install --no-deps bfcl-eval==2026.3.23 mpmath"
        ) from error
    return getattr(module, class_name)


def _error(message: str) -> str:
    return json.dumps({"error": message})
