"""What the process that takes requests tells the scheduler of each: an action in ``kv_hints``.

SGLang carries the hints of a request from the endpoint to the scheduler and uses none of them, so
nothing of its own messages changes. What a client put under our action's name is overwritten.

Pure: neither torch nor SGLang is imported.
"""

from collections.abc import Mapping
from typing import Any

from sglang_ext.cache.sessions import LONGEST_NAME, session_hint

__all__ = ["ACTION", "action", "carried_by", "describe_request"]

ACTION = "sglang_ext.request"
_TOOLS = ("", "auto", "required")


def describe_request(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    hints: Mapping[str, Any] | None,
    received_s: float,
    key: bytes = b"",
) -> dict[str, Any]:
    """What the scheduler is told of a request; names as digests.

    Args:
        body: of the request, as the client sent it.
        headers: of the request; names in lower case.
        hints: payload of the client's own hints that name a session, if any.
        received_s: when it came.
        key: of digests, secret.
    """
    metadata = body.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    weak = session_hint(
        metadata=_short(metadata),
        header=_name(headers.get("x-session-id")),
        user=_name(body.get("user")) or _name(metadata.get("user_id")),
        key=key,
    )
    told: dict[str, Any] = {"received": received_s}
    strong = session_hint(kv_hints=_short(hints or {}), key=key)
    for name, value in (
        ("session", strong),
        ("weak_session", weak),
        ("previous", _name(body.get("previous_response_id"))),
        ("tools", _tools(body)),
    ):
        if value:
            told[name] = value
    if headers.get("x-agent-kind") == "sub" or metadata.get("agent") == "sub":
        told["agent"] = True
    return told


def action(told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SGLang's ``KvHintAction`` that carry it."""
    return {
        "action_id": ACTION,
        "action_type": ACTION,
        "action_version": "1",
        "payload": dict(told),
    }


def carried_by(envelope: Any) -> Mapping[str, Any]:
    """What an envelope of hints carries for us; empty where it carries nothing.

    Args:
        envelope: SGLang's ``KvHintsEnvelope``, or None.
    """
    for act in getattr(envelope, "actions", None) or ():
        if act.action_type == ACTION and isinstance(act.payload, Mapping):
            return _checked(act.payload)
    return {}


def _checked(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Only what is of the right kind: on some ways in, nobody has overwritten a client's own."""
    good: dict[str, Any] = {}
    for name in ("session", "weak_session", "previous"):
        value = _name(payload.get(name))
        if value:
            good[name] = value
    received = payload.get("received")
    if isinstance(received, float | int) and not isinstance(received, bool):
        good["received"] = float(received)
    if payload.get("tools") in _TOOLS:
        good["tools"] = payload["tools"]
    if isinstance(payload.get("advice"), list):
        good["advice"] = payload["advice"]
    if payload.get("agent") is True:
        good["agent"] = True
    return good


def _tools(body: Mapping[str, Any]) -> str:
    """How an answer may call tools."""
    if not body.get("tools"):
        return ""
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, Mapping):
        choice = choice.get("type", "required")
    if choice in ("required", "any", "function", "tool", "custom"):
        return "required"
    return "" if choice == "none" else "auto"


def _short(names: Mapping[str, Any]) -> dict[str, Any]:
    return {"session_id": _name(names.get("session_id"))}


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_NAME else None
