"""Asks an OpenAI-compatible chat endpoint for tool calls, streamed or not, and reads what it shows.

Works against any server that speaks the protocol; nothing of SGLang is imported.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang_ext.errors import BenchError

__all__ = ["Endpoint", "Shown"]


@dataclass
class Shown:
    """What a client is shown of one answer.

    Attributes:
        status: HTTP status; content, calls and the rest are empty unless it is 200.
        calls: name and arguments, as text, in order.
        tokens: completion tokens, as the server counts them.
        token_ids: them, where SGLang was asked with ``return_token_ids``.
        message: what the server says of an error.
    """

    status: int = 200
    finish: str = ""
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    withheld: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""


@dataclass(frozen=True)
class Endpoint:
    """A chat endpoint.

    Args:
        base_url: up to and without ``/chat/completions``, such as ``http://127.0.0.1:30000/v1``.
        model: name of the model; empty asks the server for its first.
        api_key: sent as a bearer token unless it is empty.
        timeout_s: of one request.
    """

    base_url: str
    model: str = ""
    api_key: str = ""
    timeout_s: float = 300.0

    def first_model(self) -> str:
        """Name of the first model that the server lists.

        Raises:
            BenchError: it cannot be asked.
        """
        try:
            with self._open("/models", None) as answer:
                return str(json.loads(answer.read())["data"][0]["id"])
        except (OSError, ValueError, LookupError) as error:
            raise BenchError(
                f"{self.base_url}/models does not answer with a list of models: {error}",
                fix="give the URL up to and with /v1, of a server that runs",
            ) from None

    def ask(self, body: Mapping[str, Any]) -> Shown:
        """Send a request; an error of HTTP is an answer, too.

        Raises:
            BenchError: the server does not answer, or not in the protocol.
        """
        document = {"model": self.model, **body}
        try:
            with self._open("/chat/completions", document) as answer:
                if document.get("stream"):
                    return _of_stream(answer)
                return _of_response(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            return Shown(status=error.code, message=error.read().decode(errors="replace"))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BenchError(
                f"{self.base_url}/chat/completions: {type(error).__name__}: {error}"
            ) from None

    def _open(self, path: str, document: Mapping[str, Any] | None) -> Any:
        if not self.base_url.startswith(("http://", "https://")):
            raise BenchError(f"{self.base_url} is not an http or https URL")
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self.base_url + path, data, headers)  # noqa: S310 - checked
        return urllib.request.urlopen(request, timeout=self.timeout_s)  # noqa: S310 - checked


def _of_response(response: Mapping[str, Any]) -> Shown:
    choice = response["choices"][0]
    message = choice["message"]
    return Shown(
        finish=choice.get("finish_reason") or "",
        content=message.get("content") or "",
        calls=[
            (call["function"]["name"] or "", call["function"]["arguments"] or "")
            for call in message.get("tool_calls") or ()
        ],
        tokens=int((response.get("usage") or {}).get("completion_tokens") or 0),
        token_ids=list(choice.get("response_token_ids") or ()),
        withheld=list((response.get("metadata") or {}).get("tool_calls_withheld") or ()),
    )


def _of_stream(lines: Any) -> Shown:
    shown = Shown()
    calls: dict[int, list[str]] = {}
    for event in _events(lines):
        if "error" in event and "choices" not in event:
            return Shown(status=500, message=json.dumps(event["error"]))
        shown.withheld += (event.get("metadata") or {}).get("tool_calls_withheld") or ()
        shown.tokens = int((event.get("usage") or {}).get("completion_tokens") or shown.tokens)
        for choice in event.get("choices") or ():
            shown.finish = choice.get("finish_reason") or shown.finish
            delta = choice.get("delta") or {}
            shown.content += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                held = calls.setdefault(call["index"], ["", ""])
                function = call.get("function") or {}
                held[0] += function.get("name") or ""
                held[1] += function.get("arguments") or ""
    shown.calls = [(name, arguments) for name, arguments in calls.values()]
    return shown


def _events(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        text = line.decode().strip()
        if text.startswith("data:") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data:"))
