"""What the scheduler is told of a request."""

from types import SimpleNamespace

import pytest

from sglang_ext.cache.carrier import ACTION, action, carried_by, describe_request

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def told(body=None, headers=None, hints=None):
    return describe_request(body or {}, headers or {}, hints, 5.0)


def envelope(*actions):
    return SimpleNamespace(actions=[SimpleNamespace(**fields) for fields in actions])


def test_nothing_said_is_nothing_told_but_the_time():
    assert told() == {"received": 5.0}


def test_names_are_digests():
    said = told(
        {"user": "ada@example.org", "previous_response_id": "resp_1"}, {"x-session-id": "s"}
    )
    assert "ada" not in str(said)
    assert len(said["weak_session"]) == 32
    assert said["previous"] == "resp_1"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"metadata": {"session_id": "s"}}, {}),
        ({}, {"x-session-id": "s"}),
        ({"metadata": {"session_id": "s"}, "user": "u"}, {"x-session-id": "other"}),
    ],
)
def test_metadata_header_and_user_name_a_session_in_this_order(body, headers):
    assert told(body, headers)["weak_session"] == told({}, {"x-session-id": "s"})["weak_session"]
    assert told({"user": "s"})["weak_session"] != told({}, {"x-session-id": "s"})["weak_session"]


def test_anthropic_names_its_user_in_metadata():
    assert told({"metadata": {"user_id": "u"}}) == told({"user": "u"})


def test_hints_say_most():
    assert (
        told(hints={"session_id": "s"})["session"]
        == told({}, {"x-session-id": "s"})["weak_session"]
    )


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", None),
        ("required", "required"),
        ({"type": "function", "function": {"name": "f"}}, "required"),
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
    ],
)
def test_tools(choice, tools):
    body = {"tools": TOOLS, **({} if choice is None else {"tool_choice": choice})}
    assert told(body).get("tools") == tools


def test_sub_agent():
    assert told({}, {"x-agent-kind": "sub"})["agent"] is True


def test_round_trip_through_hints():
    said = told({"user": "u", "tools": TOOLS}, hints={"session_id": "s"})
    other = {"action_type": "somebody.else", "payload": {"session": "x"}}
    assert carried_by(envelope(other, action(said))) == said
    assert carried_by(envelope(other)) == {}
    assert carried_by(None) == {}


@pytest.mark.parametrize(
    "payload",
    [
        {"session": 5, "received": "now", "tools": "all", "agent": "yes"},
        {"session": "x" * 10_000, "weak_session": "", "received": True},
        ["session"],
    ],
)
def test_what_is_of_the_wrong_kind_is_dropped(payload):
    assert carried_by(envelope({"action_type": ACTION, "payload": payload})) == {}
