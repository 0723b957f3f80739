"""Reports on the endpoints whose responses SGLang writes anew: Anthropic's and OpenAI's Responses.

A call that was withheld is left out there, never shown as a call with other arguments; what it was
stands in the response's ``metadata``.

Source: SGLang 0.5.23, ``entrypoints/anthropic/serving.py``,
``entrypoints/openai/serving_responses.py``.
"""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from sglang_ext.tools.answers import WITHHELD, told

__all__ = ["message_of_chat", "messages_stream", "response_of_responses"]


def message_of_chat(message: Any, _serving: Any, response: Any) -> Any:
    """AFTER ``AnthropicServing._convert_response``: metadata of the chat response goes along."""
    metadata = getattr(response, "metadata", None) or {}
    if WITHHELD not in metadata:
        return message
    shown = {name: getattr(message, name) for name in type(message).model_fields}
    return _with_metadata(type(message)).model_construct(
        **shown, metadata={WITHHELD: metadata[WITHHELD]}
    )


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
        if name == "event: message_delta" and told():
            event = json.loads(data)
            event["metadata"] = {WITHHELD: list(told())}
            yield f"{name}\ndata: {json.dumps(event)}\n\n"
        else:
            yield frame


def response_of_responses(response: Any, *_args: Any, **_kwargs: Any) -> Any:
    """AFTER ``OpenAIServingResponses._build_response``: values of its metadata are strings."""
    if told():
        metadata = {**(response.metadata or {}), WITHHELD: json.dumps(told())}
        response.metadata = metadata
    return response
