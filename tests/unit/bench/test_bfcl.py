import json

import jsonschema
import pytest

from sglang_ext.bench import bfcl
from sglang_ext.errors import DemoError

CLASSES = sorted(bfcl.TOOL_CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_loads_and_each_documented_tool_is_there(name: str) -> None:
    box = bfcl.ToolBox([name], {})
    for tool in bfcl.tool_schemas([name]):
        result = json.loads(box.call(tool["function"]["name"], {"no such argument": 1}))
        assert "no such argument" in result["error"]


@pytest.mark.parametrize("name", CLASSES)
def test_schemas_are_json_schema_and_hold_their_own_names(name: str) -> None:
    tools = bfcl.tool_schemas([name])
    assert tools
    for tool in tools:
        schema = tool["function"]["parameters"]
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) <= set(schema["properties"])
        assert tool["function"]["strict"] is True
        assert "Tool description:" not in tool["function"]["description"]


def test_types_of_python_become_types_of_json() -> None:
    document = {
        "type": "dict",
        "properties": {
            "price": {"type": "float", "default": 1.5},
            "pair": {"type": "tuple", "items": {"type": "integer"}},
            "anything": {"type": "any", "description": "what you like"},
            "limit": {"type": "integer", "default": "None"},
        },
        "required": ["price"],
    }
    schema = bfcl.json_schema(document)
    assert schema == {
        "type": "object",
        "properties": {
            "price": {"type": "number", "default": 1.5},
            "pair": {"type": "array", "items": {"type": "integer"}},
            "anything": {"description": "what you like"},
            "limit": {"type": "integer"},
        },
        "required": ["price"],
        "additionalProperties": False,
    }
    jsonschema.validate({"price": 2, "pair": [1], "anything": None}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"price": 2, "other": 1}, schema)


def test_tasks_need_no_other_tools_than_those_asked_for() -> None:
    tasks = bfcl.load_tasks(["GorillaFileSystem", "MathAPI"])
    assert len(tasks) == 25
    assert all(set(task.classes) <= {"GorillaFileSystem", "MathAPI"} for task in tasks)
    assert all(task.user_turns for task in tasks)
    assert len(bfcl.load_tasks(CLASSES)) == 200


def test_a_call_changes_the_state_of_its_own_box_only() -> None:
    task = bfcl.load_tasks(["GorillaFileSystem"])[0]
    left = bfcl.ToolBox(task.classes, task.initial_config)
    right = bfcl.ToolBox(task.classes, task.initial_config)
    assert json.loads(left.call("mkdir", {"dir_name": "mine"})) == {"result": None}
    assert "mine" in json.loads(left.call("ls", {}))["current_directory_content"]
    assert "mine" not in json.loads(right.call("ls", {}))["current_directory_content"]
    assert "mine" not in json.dumps(task.initial_config)


def test_the_state_of_a_task_is_copied() -> None:
    config = {"TicketAPI": {"ticket_queue": [], "ticket_counter": 1, "current_user": "ada"}}
    box = bfcl.ToolBox(["TicketAPI"], config)
    assert json.loads(box.call("create_ticket", {"title": "broken"}))["id"] == 1
    assert config["TicketAPI"]["ticket_queue"] == []


def test_the_same_calls_give_the_same_results() -> None:
    task = bfcl.load_tasks(["GorillaFileSystem"])[0]
    calls = [
        ("find", {"path": "."}),
        ("cd", {"folder": "workspace"}),
        ("cat", {"file_name": "log.txt"}),
        ("cat", {"file_name": "missing"}),
        ("du", {"human_readable": True}),
        ("no_such_tool", {}),
        ("ls", {"a": True}),
    ]

    def run() -> list[str]:
        box = bfcl.ToolBox(task.classes, task.initial_config, long_context=True)
        return [box.call(name, arguments) for name, arguments in calls]

    first = run()
    assert first == run()
    assert "error" in json.loads(first[3])
    assert json.loads(first[5]) == {"error": "there is no tool named 'no_such_tool'"}


def test_what_is_not_documented_cannot_be_called() -> None:
    box = bfcl.ToolBox(["GorillaFileSystem"], {})
    for name in ("_load_scenario", "__class__", "__init__", "root"):
        assert "there is no tool" in json.loads(box.call(name, {}))["error"]


def test_text_of_a_model_is_not_evaluated() -> None:
    box = bfcl.ToolBox(["MathAPI"], {})
    result = json.loads(box.call("add", {"a": "__import__('os').getpid()", "b": 1}))
    assert "error" in result


def test_long_context_fills_the_state_up() -> None:
    config = bfcl.load_tasks(["GorillaFileSystem"])[0].initial_config
    short = bfcl.ToolBox(["GorillaFileSystem"], config).call("find", {"path": "."})
    long = bfcl.ToolBox(["GorillaFileSystem"], config, long_context=True).call(
        "find", {"path": "."}
    )
    assert len(long) > len(short)


def test_an_unknown_class_is_refused_by_name() -> None:
    with pytest.raises(DemoError, match="unknown tool class 'WebSearchAPI'"):
        bfcl.tool_schemas(["WebSearchAPI"])
