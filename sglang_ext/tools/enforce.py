"""What the server does differently with ``--ext-tools enforce``: constraints, checks, reports.

Every hook here runs in the process that answers HTTP. A request whose tools cannot be held to is
answered with 400; a call that is not whole and valid is not shown as a call, and the response says
so in ``metadata.tool_calls_withheld``.

Source: SGLang 0.5.23, ``entrypoints/openai/serving_chat.py``, ``function_call_parser.py``.
"""

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from typing import Any

from sglang_ext.errors import ToolsError
from sglang_ext.tools.bounded import BoundedCache
from sglang_ext.tools.calls import Answer, Reader
from sglang_ext.tools.complete import FORCED
from sglang_ext.tools.limits import SchemaLimits, check_size
from sglang_ext.tools.tag import Choice, Plan, ToolSpec, compile_plan

__all__ = [
    "build_response",
    "constrain",
    "generate_request",
    "has_tool_call",
    "make_parser",
    "owns_tool_format",
    "parse_non_stream",
    "parse_stream_chunk",
    "parse_stream_end",
    "process_tool_call_stream",
    "process_tool_calls",
    "request_of_messages",
    "tools_of_responses",
    "validate_request",
]

logger = logging.getLogger(__name__)

# Attributes of SGLang's parser that hold ours, and the key of a finish reason that holds a report.
_READER = "_sglang_ext_reader"
_ANSWER = "_sglang_ext_answer"
_PARSER = "_sglang_ext_parser"
_WITHHELD = "_sglang_ext_withheld"
WITHHELD = "tool_calls_withheld"
_PLANS_BYTES = 64 * 1024 * 1024  # texts of tags kept; a tool takes 1 to 30 kB


_answers: ContextVar[list[Answer] | None] = ContextVar("answers", default=None)
_forced: ContextVar[bool] = ContextVar("forced", default=False)


def _specs(tools: Iterable[Any]) -> list[ToolSpec]:
    """SGLang's tools as ours; the text of a schema is what it is cached by."""
    found = []
    for tool in tools:
        function = tool.function
        parameters = function.parameters
        text = '{"type": "object"}' if parameters is None else json.dumps(parameters)
        found.append(ToolSpec(function.name or "", text, function.strict))
    return found


def _choice(choice: Any, tools: list[ToolSpec]) -> Choice | ToolSpec:
    if isinstance(choice, str) or choice is None:
        return "required" if choice == "required" else "auto"
    name = choice["name"] if isinstance(choice, dict) else choice.function.name
    named = next((tool for tool in tools if tool.name == name), None)
    if named is None:
        raise ToolsError(f"the tool {name!r} that must be called is not among the tools")
    return named


def validate_request(original: Callable[..., Any], serving: Any, request: Any) -> str | None:
    """AROUND ``OpenAIServingChat._validate_request``: refuse what cannot be held to."""
    tools = serving._effective_tools(request)  # noqa: SLF001 - SGLang's own reading of a request
    if not tools or request.tool_choice == "none":
        said: str | None = original(serving, request)
        return said
    try:
        for number, tool in enumerate(tools):
            try:
                check_size(tool.function.parameters, SchemaLimits())
            except ToolsError as error:
                raise ToolsError(f"tools[{number}].function.parameters: {error}") from None
        said = original(serving, request)
        if said is None:
            specs = _specs(tools)
            _plan(specs, request.tool_choice, serving.tool_call_parser, request.parallel_tool_calls)
    except ToolsError as error:
        return f"sglang-ext: {error}"
    return said


def tools_of_responses(tools: list[Any], _serving: Any, request: Any) -> None:
    """AFTER ``_response_tools_to_chat_tools`` of ``/v1/responses``: what was not said stays so."""
    _unsaid(tools, request.tools or ())


def request_of_messages(
    chat: Any, _serving: Any, request: Any, *_args: Any, **_kwargs: Any
) -> None:
    """AFTER ``AnthropicServing._convert_to_chat_completion_request``: the same."""
    _unsaid(chat.tools or (), request.tools or ())


def _unsaid(tools: Iterable[Any], sources: Iterable[Any]) -> None:
    """Take ``strict: false`` from tools whose client did not say it."""
    said = {source.name for source in sources if "strict" in source.model_fields_set}
    for tool in tools:
        if tool.function.name not in said:
            tool.function.strict = None


_plans: BoundedCache[Any, Plan] = BoundedCache(
    _PLANS_BYTES, lambda _key, plan: len(json.dumps(plan.tag)) + 1_000
)


def _plan(
    specs: list[ToolSpec], choice: Any, parser: str | None, parallel: Any, reasoning: bool = False
) -> Plan:
    if not parser:
        raise ToolsError("this server reads no tool calls", fix="start it with --tool-call-parser")
    wanted = _choice(choice, specs)
    key = (tuple(specs), wanted, parser, parallel is not False, reasoning)
    plan = _plans.get(key)
    if plan is None:
        plan = compile_plan(
            specs, wanted, parser=parser, parallel=parallel is not False, reasoning=reasoning
        )
        _plans.put(key, plan)
    return plan


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
    specs = _specs(tools or [])
    choice = kwargs.get("tool_choice")
    setattr(parser, _PARSER, tool_call_parser)
    try:
        wanted = _choice(choice, specs)
        plan = _plan(specs, choice, tool_call_parser, True)
    except ToolsError:  # refused before; a parser that is made elsewhere reads as SGLang does
        return
    allowed = [wanted] if isinstance(wanted, ToolSpec) else specs
    detector = parser.detector
    markers = [] if plan.required else _markers(plan, detector)
    setattr(
        parser,
        _READER,
        Reader(
            allowed,
            form=plan.form,
            markers=markers,
            detector=lambda text: _detected(detector, text, tools),
            required=plan.required,
        ),
    )


def _markers(plan: Plan, detector: Any) -> list[str]:
    """What begins calls in free text; nothing known means that any text may."""
    if plan.form is not None:
        return [plan.form.marker]
    found = list(_triggers(plan.tag))
    return found or [text for text in (getattr(detector, "bot_token", ""),) if text]


def _triggers(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        yield from node.get("triggers", ())
        for inner in node.values():
            yield from _triggers(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _triggers(inner)


def _detected(detector: Any, text: str, tools: Any) -> tuple[str, list[tuple[str, str]]]:
    if not detector.has_tool_call(text):
        return text, []
    found = detector.detect_and_parse(text, tools)
    return found.normal_text, [(call.name or "", call.parameters) for call in found.calls]


def constrain(
    original: Callable[..., Any], parser: Any, tool_choice: Any, *args: Any, **kwargs: Any
) -> Any:
    """AROUND ``FunctionCallParser.get_structure_constraint``: our tag, or an error, never none."""
    from xgrammar import StructuralTag

    specs = _specs(parser.tools)
    parallel = kwargs.get("parallel_tool_calls", args[0] if args else True)
    reasoning = kwargs.get("thinking_mode", args[1] if len(args) > 1 else False)
    try:
        plan = _plan(specs, tool_choice, getattr(parser, _PARSER, ""), parallel, reasoning)
        if plan.tag is not None:
            return ("structural_tag", StructuralTag.from_json(plan.tag))
    except (ToolsError, ValueError) as error:
        raise ValueError(f"sglang-ext: {error}") from error
    made = original(_strictly(parser), tool_choice, *args, **kwargs)
    if made is None and plan.required:
        raise ValueError(
            f"sglang-ext: no grammar holds a required call of this model "
            f"({type(parser.detector).__name__}); use tool_choice auto"
        )
    return made


def _strictly(parser: Any) -> Any:
    """``parser``, which makes tags of its own, with every schema enforced."""
    parser.tools = [
        tool.model_copy(update={"function": tool.function.model_copy(update={"strict": True})})
        if spec.enforced and tool.function.parameters is not None
        else tool
        for tool, spec in zip(parser.tools, _specs(parser.tools), strict=True)
    ]
    return parser


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
    answer = reader.read(full_text, forced=_forced.get())
    setattr(parser, _ANSWER, answer)
    collected = _answers.get()
    if collected is not None:
        collected.append(answer)
    return answer.content, _items(answer)


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
    answer = reader.finish(forced=_forced.get())
    setattr(parser, _ANSWER, answer)
    return answer.content, _items(answer)


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
    token = _answers.set([])
    forced = _forced.set(bool(finish_reason.get(FORCED)))
    try:
        result = original(serving, text, tools, finish_reason, *args, **kwargs)
        withheld = [entry for answer in _answers.get() or () for entry in answer.report()]
    finally:
        _answers.reset(token)
        _forced.reset(forced)
    if withheld:
        finish_reason[_WITHHELD] = withheld
    return result


def build_response(
    response: Any, _serving: Any, _request: Any, ret: list[dict[str, Any]], *_args: Any
) -> Any:
    """AFTER ``OpenAIServingChat._build_chat_response``: the report goes into ``metadata``."""
    withheld = [
        {"choice": number, **entry}
        for number, one in enumerate(ret)
        for entry in (one["meta_info"].get("finish_reason") or {}).pop(_WITHHELD, ())
    ]
    if withheld and hasattr(response, "metadata"):
        response.metadata = {**(response.metadata or {}), WITHHELD: withheld}
    return response


def generate_request(
    original: Callable[..., AsyncIterator[Any]], manager: Any, *args: Any, **kwargs: Any
) -> AsyncIterator[Any]:
    """AROUND ``TokenizerManager.generate_request``: who reads an answer knows if it was forced.

    A generator runs in the context of the task that reads it, and that task parses next.
    """
    return _noting_forced(original(manager, *args, **kwargs))


async def _noting_forced(answers: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for answer in answers:
        meta = answer.get("meta_info") or {} if isinstance(answer, dict) else {}
        _forced.set(bool((meta.get("finish_reason") or {}).get(FORCED)))
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
    _forced.set(bool(finish_reason.get(FORCED)))
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
