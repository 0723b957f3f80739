"""In the process that takes requests: what is known of each goes along, and advice is taken.

Imports SGLang and FastAPI when called.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from sglang_ext.cache.advice import Outbox, read_advice
from sglang_ext.cache.carrier import ACTION, action, describe_request
from sglang_ext.cache.probes import PROBE_PATHS, is_probe
from sglang_ext.errors import AdviceError

__all__ = ["PATHS", "add_routes", "carry_request"]

logger = logging.getLogger(__name__)

# Where advice is taken: beside the native endpoints, and beside the OpenAI-compatible ones.
PATHS = ("/ext/session", "/v1/ext/session")
_outbox = Outbox()
_key = b""


def add_routes(replicas: int = 1, key: bytes = b"") -> None:
    """Put the endpoints on SGLang's application; its API key guards them like all others.

    Args:
        replicas: of the server.
        key: of digests of names, as the schedulers have it.
    """
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from sglang.srt.entrypoints.http_server import app

    global _outbox, _key
    _outbox, _key = Outbox(replicas), key

    async def advise(request: Request) -> JSONResponse:
        try:
            advice = read_advice(json.loads(await request.body()), _key)
        except (AdviceError, ValueError, RecursionError) as error:
            return JSONResponse({"error": {"message": str(error)}}, status_code=400)
        _outbox.put(*advice)
        return JSONResponse({"accepted": advice[0]})

    known = {getattr(route, "path", "") for route in app.routes}
    for path in PATHS:
        if path not in known:
            app.add_api_route(path, advise, methods=["POST"])


def carry_request(
    original: Callable[..., Any], manager: Any, obj: Any, request: Any = None, **kwargs: Any
) -> Any:
    """AROUND ``TokenizerManager.generate_request``: what is known of a request goes with it."""
    rid = getattr(obj, "rid", None)
    named = any(map(is_probe, rid if isinstance(rid, list) else [rid]))
    if hasattr(obj, "kv_hints") and not (named and _path(request).endswith(PROBE_PATHS)):
        # A busy scheduler drops what is named like a health check, and advice with it.
        obj.kv_hints = _with_ours(obj.kv_hints, request, advised=not named)
    return original(manager, obj, request, **kwargs)


def _with_ours(hints: Any, request: Any, *, advised: bool) -> Any:
    """A client's hints with our action in them, and nothing else under its name."""
    if isinstance(hints, list):
        return [_with_ours(each, request, advised=advised) for each in hints]
    envelope = _plain(hints)
    if envelope is None:  # not of the right form: SGLang says so
        return hints
    kept = _others(envelope)
    return {**envelope, "actions": [*kept, action(_told(kept, request, advised=advised))]}


def _told(actions: list[Any], request: Any, *, advised: bool) -> dict[str, Any]:
    """What the scheduler is told of a request, and the advice that goes along if it is to."""
    now = time.time()
    try:
        body = _body(request)
        named = _naming(actions) or _naming(_kept(body.get("kv_hints")))
        told = describe_request(body, _headers(request), named, now, _key)
    except Exception:  # no request is refused for what is learned of it
        logger.debug("A request was not described", exc_info=True)
        told = {"received": now}
    advice = _outbox.take() if advised else []
    if advice:
        told["advice"] = advice
    return told


def _plain(hints: Any) -> dict[str, Any] | None:
    if hints is None or hints == {}:
        return {"protocol_version": "1", "message_id": ACTION, "actions": []}
    if not isinstance(hints, Mapping):
        import msgspec

        try:
            hints = msgspec.to_builtins(hints)
        except TypeError:
            return None
    if not isinstance(hints, Mapping):
        return None
    actions = hints.get("actions", [])
    good = isinstance(actions, list) and all(isinstance(act, Mapping) for act in actions)
    return {**hints, "actions": actions} if good else None


def _others(envelope: Mapping[str, Any]) -> list[Any]:
    """The actions of an envelope that do not bear our name."""
    return [act for act in envelope["actions"] if act.get("action_type") != ACTION]


def _kept(hints: Any) -> list[Any]:
    """The actions in the body of a request to an endpoint whose form SGLang gives no hints."""
    envelope = _plain(hints)
    return [] if envelope is None else _others(envelope)


def _naming(actions: list[Any]) -> Mapping[str, Any]:
    """The first payload that names a session; empty where none does."""
    return next((_payload(act) for act in actions if "session_id" in _payload(act)), {})


def _payload(act: Mapping[str, Any]) -> Mapping[str, Any]:
    payload = act.get("payload")
    return payload if isinstance(payload, Mapping) else {}


def _path(request: Any) -> str:
    return getattr(getattr(request, "url", None), "path", "")


def _headers(request: Any) -> Mapping[str, str]:
    return getattr(request, "headers", None) or {}


def _body(request: Any) -> Mapping[str, Any]:
    """The body of a request to an OpenAI-compatible endpoint; FastAPI has read it by now."""
    raw = getattr(request, "_body", None)
    if not _path(request).startswith("/v1/") or not raw:
        return {}
    body = json.loads(raw)
    return body if isinstance(body, Mapping) else {}
