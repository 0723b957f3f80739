"""What the server tells beside a streamed answer: calls that were withheld, figures, usage.

Every hook here runs in the process that answers HTTP.

Source: SGLang 0.5.23, ``entrypoints/openai/serving_chat.py``.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from sglang_ext.tools.answers import WITHHELD, answer_of, note_end
from sglang_ext.tools.decoding import REPORT
from sglang_ext.tools.metrics import count_request

__all__ = [
    "FIGURES",
    "convert_request",
    "figures",
    "generate_chat_stream",
    "generate_request",
    "process_tool_call_stream",
]

FIGURES = "tool_figures"  # key of a response's metadata
_DONE = "data: [DONE]"

# What the scheduler measured of the answers that this task has read, by choice.
_measured: ContextVar[Mapping[int, dict[str, Any]] | None] = ContextVar("measured", default=None)


def figures() -> list[dict[str, Any]]:
    """What was measured of the answers that this task has read, one for each choice."""
    return [{"choice": number, **told} for number, told in sorted((_measured.get() or {}).items())]


def generate_request(
    original: Callable[..., AsyncIterator[Any]], manager: Any, *args: Any, **kwargs: Any
) -> AsyncIterator[Any]:
    """AROUND ``TokenizerManager.generate_request``: who reads an answer knows how it ended.

    A generator runs in the context of the task that reads it, and that task parses next.
    """
    return _noting_ends(original(manager, *args, **kwargs))


async def _noting_ends(answers: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for answer in answers:
        for number, one in enumerate(answer if isinstance(answer, list) else [answer]):
            _note(one, number)
        yield answer


def _note(answer: Any, number: int) -> None:
    meta = answer.get("meta_info") or {} if isinstance(answer, dict) else {}
    finish_reason = meta.get("finish_reason")
    note_end(finish_reason)
    if finish_reason and REPORT in finish_reason:
        measured = finish_reason[REPORT]
        count_request(measured)
        _measured.set({**(_measured.get() or {}), answer.get("index", number): measured})


def convert_request(
    original: Callable[..., Any], serving: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """AROUND ``OpenAIServingChat._convert_to_internal_request``.

    SGLang refuses ``return_meta_info`` in streams; of one with tools, our figures are told.
    """
    asked = request.return_meta_info and request.stream and request.tools
    if not asked:
        return original(serving, request, *args, **kwargs)
    request.return_meta_info = False
    try:
        return original(serving, request, *args, **kwargs)
    finally:
        request.return_meta_info = True


def generate_chat_stream(
    original: Callable[..., AsyncIterator[str]],
    serving: Any,
    adapted: Any,
    request: Any,
    *args: Any,
    **kwargs: Any,
) -> AsyncIterator[str]:
    """AROUND ``OpenAIServingChat._generate_chat_stream``: figures stand in its last chunk."""
    frames = original(serving, adapted, request, *args, **kwargs)
    return _with_figures(frames) if request.return_meta_info else frames


async def _with_figures(frames: AsyncIterator[str]) -> AsyncIterator[str]:
    """The frames, one behind: which one is the last is known when the next one says so."""
    held = ""
    async for frame in frames:
        if frame.startswith(_DONE) and held.startswith("data: {") and figures():
            document = json.loads(held.removeprefix("data: "))
            document["metadata"] = {**(document.get("metadata") or {}), FIGURES: figures()}
            held = _frame(document)
        if held:
            yield held
        held = frame
    if held:
        yield held


def process_tool_call_stream(
    original: Callable[..., AsyncIterator[str]],
    serving: Any,
    index: int,
    delta: str,
    parser_dict: dict[int, Any],
    content: dict[str, Any],
    request: Any,
    *args: Any,
    **kwargs: Any,
) -> AsyncIterator[str]:
    """AROUND ``OpenAIServingChat._process_tool_call_stream``: a last chunk with the report."""
    chunks = original(serving, index, delta, parser_dict, content, request, *args, **kwargs)
    return _with_report(chunks, serving, index, parser_dict, content, request, kwargs)


async def _with_report(
    chunks: AsyncIterator[str],
    serving: Any,
    index: int,
    parser_dict: dict[int, Any],
    content: dict[str, Any],
    request: Any,
    kwargs: dict[str, Any],
) -> AsyncIterator[str]:
    note_end(content["meta_info"].get("finish_reason"))
    shown = False
    async for chunk in chunks:
        shown = True
        yield chunk
    answer = answer_of(parser_dict.get(index))
    if not kwargs.get("flush") or answer is None:
        return
    document: dict[str, Any] = {
        "id": content["meta_info"]["id"],
        "object": "chat.completion.chunk",
        "created": kwargs.get("created", 0),
        "model": request.model,
        "choices": [],
    }
    if not shown and kwargs.get("continuous_usage_stats"):
        # Of an answer that shows nothing no chunk tells what was read, and /v1/messages says 0.
        choice = {"index": index, "delta": {}, "finish_reason": None}
        yield _frame({**document, "choices": [choice], "usage": _usage(serving, content)})
    if answer.withheld:
        withheld = [{"choice": index, **entry} for entry in answer.report()]
        yield _frame({**document, "metadata": {WITHHELD: withheld}})


def _usage(serving: Any, content: dict[str, Any]) -> dict[str, Any]:
    from sglang.srt.entrypoints.openai.usage_processor import UsageProcessor

    meta = content["meta_info"]
    usage = UsageProcessor.calculate_token_usage(
        prompt_tokens=serving._reported_prompt_tokens(meta),  # noqa: SLF001 - as its own chunks do
        completion_tokens=meta.get("completion_tokens", 0),
        reasoning_tokens=meta.get("reasoning_tokens", 0),
        cached_tokens=serving._continuous_usage_cached_details(content),  # noqa: SLF001
    )
    found: dict[str, Any] = usage.model_dump()
    return found


def _frame(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
