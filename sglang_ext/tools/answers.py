"""What the server does differently with an answer: its calls are read, checked, and reported.

Every hook here runs in the process that answers HTTP. A call that is not whole and valid is not
shown as a call, and the response says so in ``metadata.tool_calls_withheld``.

Source: SGLang 0.5.23, ``entrypoints/openai/serving_chat.py``, ``function_call_parser.py``.
"""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

from sglang_ext.errors import ToolsError
from sglang_ext.tools.calls import Answer, Reader
from sglang_ext.tools.decoding import REPORT
from sglang_ext.tools.metrics import count_answer
from sglang_ext.tools.parts import active
from sglang_ext.tools.requests import (
    answer_schema,
    name_parser,
    plan_to_read,
    specs,
    wanted,
)
from sglang_ext.tools.tag import Plan, ToolSpec

__all__ = [
    "WITHHELD",
    "answer_of",
    "build_response",
    "has_tool_call",
    "make_parser",
    "note_end",
    "owns_tool_format",
    "parse_non_stream",
    "parse_stream_chunk",
    "parse_stream_end",
    "process_tool_calls",
    "told",
]

# Attributes of SGLang's parser that hold ours.
_READER = "_sglang_ext_reader"
_ANSWER = "_sglang_ext_answer"
WITHHELD = "tool_calls_withheld"  # key of a response's metadata, and of a finish reason within

# What was withheld from the answers that this task has read; a task serves one request.
_told: ContextVar[tuple[dict[str, str], ...]] = ContextVar("told", default=())


class _End(NamedTuple):
    """How the answer that is read next has ended."""

    ended: str = ""  # why its last call was ended by force; empty where it was not
    cut: bool = False  # whether the token budget ended it


_NOT_ENDED = _End()
_end: ContextVar[_End] = ContextVar("end")


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
        plan = plan_to_read(offered, choice, tool_call_parser)
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
            unique=active().duplicates,
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
    answer = reader.read(full_text, **_end.get(_NOT_ENDED)._asdict())
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
    answer = reader.finish(**_end.get(_NOT_ENDED)._asdict())
    return _taken(parser, answer)


def _taken(parser: Any, answer: Answer) -> tuple[str, list[Any]]:
    """An answer as SGLang takes it; what is withheld is noted."""
    setattr(parser, _ANSWER, answer)
    _told.set((*_told.get(), *answer.report()))
    count_answer(answer)
    return answer.content, _items(answer)


def _end_of(finish_reason: Any) -> _End:
    if not isinstance(finish_reason, dict):
        return _End()
    figures = finish_reason.get(REPORT)
    ended = str(figures["ended"]) if figures and figures["forced_tokens"] else ""
    return _End(ended, finish_reason.get("type") == "length")


def note_end(finish_reason: Any) -> None:
    """How the answer that this task reads next has ended."""
    _end.set(_end_of(finish_reason))


def answer_of(parser: Any) -> Answer | None:
    """What was read by a parser whose answer has ended."""
    return getattr(parser, _ANSWER, None)


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
    end = _end.set(_end_of(finish_reason))
    try:
        result = original(serving, text, tools, finish_reason, *args, **kwargs)
        withheld = list(_told.get())
    finally:
        _told.reset(before)
        _end.reset(end)
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
