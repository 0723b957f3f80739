"""Reports on the endpoints whose responses SGLang writes anew: Anthropic's and OpenAI's Responses.

A call that was withheld is left out there, never shown as a call with other arguments; what it was
stands in the response's ``metadata``, and what was measured, where the request's own ``metadata``
has ``"sglang_ext": "figures"``.

Source: SGLang 0.5.23, ``entrypoints/anthropic/serving.py``,
``entrypoints/openai/serving_responses.py``.
"""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from sglang_ext.tools.answers import WITHHELD, told
from sglang_ext.tools.requests import asks_for_figures, figures_asked
from sglang_ext.tools.streams import FIGURES, figures

__all__ = ["message_of_chat", "messages_stream", "response_of_responses"]


def message_of_chat(message: Any, _serving: Any, response: Any) -> Any:
    """AFTER ``AnthropicServing._convert_response``: metadata of the chat response goes along."""
    withheld = (getattr(response, "metadata", None) or {}).get(WITHHELD)
    metadata = _metadata(withheld, asked=figures_asked())
    if not metadata:
        return message
    shown = {name: getattr(message, name) for name in type(message).model_fields}
    return _with_metadata(type(message)).model_construct(**shown, metadata=metadata)


def _metadata(withheld: Any, *, asked: bool) -> dict[str, Any]:
    measured = figures() if asked else []
    return {
        **({WITHHELD: withheld} if withheld else {}),
        **({FIGURES: measured} if measured else {}),
    }


_messages: dict[Any, Any] = {}  # SGLang's class of messages, and the same with metadata


def _with_metadata(message: Any) -> Any:
    from pydantic import create_model

    if message not in _messages:
        _messages[message] = create_model(
            "MessageWithMetadata", __base__=message, metadata=(dict[str, Any], ...)
        )
    return _messages[message]


def messages_stream(
    original: Callable[..., AsyncIterator[str]], serving: Any, *args: Any, **kwargs: Any
) -> AsyncIterator[str]:
    """AROUND ``AnthropicServing._generate_anthropic_stream``: its ``message_delta`` reports."""
    return _reporting(original(serving, *args, **kwargs))


async def _reporting(frames: AsyncIterator[str]) -> AsyncIterator[str]:
    async for frame in frames:
        name, _, data = frame.partition("\ndata: ")
        metadata = {}
        if name == "event: message_delta":
            metadata = _metadata(list(told()), asked=figures_asked())
        if metadata:
            event = json.loads(data)
            event["metadata"] = metadata
            yield f"{name}\ndata: {json.dumps(event)}\n\n"
        else:
            yield frame


def response_of_responses(response: Any, request: Any, *_args: Any, **_kwargs: Any) -> Any:
    """AFTER ``OpenAIServingResponses._build_response``: values of its metadata are strings."""
    metadata = _metadata(told(), asked=asks_for_figures(request))
    if metadata:
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        response.metadata = {**(response.metadata or {}), **texts}
    return response
