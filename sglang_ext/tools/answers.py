"""What the server does differently with an answer: its calls are read, checked, and reported.

Every hook here runs in the process that answers HTTP. A call that is not whole and valid is not
shown as a call, and the response says so in ``metadata.tool_calls_withheld``.

Source: SGLang 0.5.23, ``entrypoints/openai/serving_chat.py``, ``function_call_parser.py``.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from typing import Any

from sglang_ext.errors import ToolsError
from sglang_ext.tools.calls import Answer, Reader
from sglang_ext.tools.decoding import REPORT
from sglang_ext.tools.metrics import count_answer, count_request
from sglang_ext.tools.requests import (
    answer_schema,
    name_parser,
    plan_of,
    specs,
    trained_form,
    wanted,
)
from sglang_ext.tools.tag import Plan, ToolSpec

__all__ = [
    "WITHHELD",
    "build_response",
    "generate_request",
    "has_tool_call",
    "make_parser",
    "owns_tool_format",
    "parse_non_stream",
    "parse_stream_chunk",
    "parse_stream_end",
    "process_tool_call_stream",
    "process_tool_calls",
    "told",
]

# Attributes of SGLang's parser that hold ours.
_READER = "_sglang_ext_reader"
_ANSWER = "_sglang_ext_answer"
WITHHELD = "tool_calls_withheld"  # key of a response's metadata, and of a finish reason within

# What was withheld from the answers that this task has read; a task serves one request.
_told: ContextVar[tuple[dict[str, str], ...]] = ContextVar("told", default=())
_ended: ContextVar[str] = ContextVar("ended", default="")
_cut: ContextVar[bool] = ContextVar("cut", default=False)


def told() -> tuple[dict[str, str], ...]:
    """What was withheld from the answers that this task has read."""
    return _told.get()


def make_parser(
    original: Callable[..., None],
    parser: Any,
    tools: Any,
    tool_call_parser: str,
    *args: Any,
    **kwargs: Any,
) -> None:
    """AROUND ``FunctionCallParser.__init__``: lay our reader on it."""
    original(parser, tools, tool_call_parser, *args, **kwargs)
    name_parser(parser, tool_call_parser)
    offered = specs(tools or [])
    choice = kwargs.get("tool_choice")
    answer = answer_schema()
    try:
        chosen = wanted(choice, offered)
        plan = plan_of(offered, choice, tool_call_parser, answer=answer, trained=trained_form())
    except ToolsError:  # refused before; a parser that is made elsewhere reads as SGLang does
        return
    allowed = [chosen] if isinstance(chosen, ToolSpec) else offered
    detector = parser.detector
    answers = answer is not None and not plan.required and plan.form is not None
    markers = [] if plan.required else _markers(plan, detector)
    setattr(
        parser,
        _READER,
        Reader(
            allowed,
            form=plan.form,
            markers=markers,
            ends=[*_ends(plan.tag), (_text(detector, "bot_token"), _text(detector, "eot_token"))],
            detector=lambda text: _detected(detector, text, tools),
            required=plan.required,
            answers=answers,
        ),
    )


def _markers(plan: Plan, detector: Any) -> list[str]:
    """What begins calls in free text; nothing known means that any text may."""
    if plan.form is not None:
        return [plan.form.marker]
    # A model may leave out the line break of a trigger; its text is read all the same.
    triggers = [trigger.strip().partition("\n")[0] for trigger in _triggers(plan.tag)]
    return [*triggers, _text(detector, "bot_token")]


def _text(detector: Any, name: str) -> str:
    return getattr(detector, name, None) or ""


def _triggers(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        yield from node.get("triggers", ())
        for inner in node.values():
            yield from _triggers(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _triggers(inner)


def _ends(node: Any) -> Iterable[tuple[str, str]]:
    """What begins and what ends each call, of a tag of xgrammar."""
    if isinstance(node, dict):
        begin, end = node.get("begin"), node.get("end")
        if isinstance(begin, str) and isinstance(end, str):
            yield begin.strip(), end.strip()
        for inner in node.values():
            yield from _ends(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _ends(inner)


def _detected(detector: Any, text: str, tools: Any) -> tuple[str, list[tuple[str, str]]]:
    if not detector.has_tool_call(text):
        return text, []
    found = detector.detect_and_parse(text, tools)
    return found.normal_text, [(call.name or "", call.parameters) for call in found.calls]


def has_tool_call(original: Callable[..., bool], parser: Any, text: str) -> bool:
    """AROUND ``FunctionCallParser.has_tool_call``: whether any can be in it."""
    reader = getattr(parser, _READER, None)
    return original(parser, text) if reader is None else reader.may_hold_calls(text)


def owns_tool_format(original: Callable[..., bool], parser: Any) -> bool:
    """AROUND ``FunctionCallParser.owns_tool_format``: our reader reads required calls."""
    return True if hasattr(parser, _READER) else original(parser)


def parse_non_stream(
    original: Callable[..., Any], parser: Any, full_text: str, **kwargs: Any
) -> Any:
    """AROUND ``FunctionCallParser.parse_non_stream``."""
    reader = getattr(parser, _READER, None)
    if reader is None:
        return original(parser, full_text, **kwargs)
    answer = reader.read(full_text, ended=_ended.get(), cut=_cut.get())
    return _taken(parser, answer)


def parse_stream_chunk(original: Callable[..., Any], parser: Any, chunk_text: str) -> Any:
    """AROUND ``FunctionCallParser.parse_stream_chunk``."""
    reader = getattr(parser, _READER, None)
    if reader is None:
        return original(parser, chunk_text)
    return reader.feed(chunk_text), []


def parse_stream_end(original: Callable[..., Any], parser: Any) -> Any:
    """AROUND ``FunctionCallParser.parse_stream_end``."""
    reader = getattr(parser, _READER, None)
    if reader is None:
        return original(parser)
    answer = reader.finish(ended=_ended.get(), cut=_cut.get())
    return _taken(parser, answer)


def _taken(parser: Any, answer: Answer) -> tuple[str, list[Any]]:
    """An answer as SGLang takes it; what is withheld is noted."""
    setattr(parser, _ANSWER, answer)
    _told.set((*_told.get(), *answer.report()))
    count_answer(answer)
    return answer.content, _items(answer)


def _why_ended(finish_reason: Any) -> str:
    """Why the last call was ended by force; empty where it was not."""
    figures = finish_reason.get(REPORT) if isinstance(finish_reason, dict) else None
    return str(figures["ended"]) if figures and figures["forced_tokens"] else ""


def _is_cut(finish_reason: Any) -> bool:
    """Whether the token budget ended the answer."""
    return isinstance(finish_reason, dict) and finish_reason.get("type") == "length"


def _items(answer: Answer) -> list[Any]:
    from sglang.srt.function_call.core_types import ToolCallItem

    return [
        ToolCallItem(tool_index=number, name=call.name, parameters=call.arguments)
        for number, call in enumerate(answer.calls)
    ]


def process_tool_calls(
    original: Callable[..., Any],
    serving: Any,
    text: str,
    tools: Any,
    finish_reason: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """AROUND ``OpenAIServingChat._process_tool_calls``: note what was withheld."""
    before = _told.set(())
    ended, cut = _ended.set(_why_ended(finish_reason)), _cut.set(_is_cut(finish_reason))
    try:
        result = original(serving, text, tools, finish_reason, *args, **kwargs)
        withheld = list(_told.get())
    finally:
        _told.reset(before)
        _ended.reset(ended)
        _cut.reset(cut)
    if withheld:
        finish_reason[WITHHELD] = withheld
    return result


def build_response(
    response: Any, _serving: Any, _request: Any, ret: list[dict[str, Any]], *_args: Any
) -> Any:
    """AFTER ``OpenAIServingChat._build_chat_response``: the report goes into ``metadata``."""
    withheld = [
        {"choice": number, **entry}
        for number, one in enumerate(ret)
        for entry in (one["meta_info"].get("finish_reason") or {}).pop(WITHHELD, ())
    ]
    if withheld and hasattr(response, "metadata"):
        response.metadata = {**(response.metadata or {}), WITHHELD: withheld}
    return response


def generate_request(
    original: Callable[..., AsyncIterator[Any]], manager: Any, *args: Any, **kwargs: Any
) -> AsyncIterator[Any]:
    """AROUND ``TokenizerManager.generate_request``: who reads an answer knows how it ended.

    A generator runs in the context of the task that reads it, and that task parses next.
    """
    return _noting_ends(original(manager, *args, **kwargs))


async def _noting_ends(answers: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for answer in answers:
        meta = answer.get("meta_info") or {} if isinstance(answer, dict) else {}
        finish_reason = meta.get("finish_reason")
        _ended.set(_why_ended(finish_reason))
        _cut.set(_is_cut(finish_reason))
        if finish_reason and REPORT in finish_reason:
            count_request(finish_reason[REPORT])
        yield answer


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
    return _with_report(chunks, index, parser_dict, content, request, kwargs)


async def _with_report(
    chunks: AsyncIterator[str],
    index: int,
    parser_dict: dict[int, Any],
    content: dict[str, Any],
    request: Any,
    kwargs: dict[str, Any],
) -> AsyncIterator[str]:
    finish_reason = content["meta_info"].get("finish_reason") or {}
    _ended.set(_why_ended(finish_reason))
    _cut.set(_is_cut(finish_reason))
    async for chunk in chunks:
        yield chunk
    answer = getattr(parser_dict.get(index), _ANSWER, None)
    if not kwargs.get("flush") or answer is None or not answer.withheld:
        return
    withheld = [{"choice": index, **entry} for entry in answer.report()]
    document = {
        "id": content["meta_info"]["id"],
        "object": "chat.completion.chunk",
        "created": kwargs.get("created", 0),
        "model": request.model,
        "choices": [],
        "metadata": {WITHHELD: withheld},
    }
    yield f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
