"""What the server does differently with a request's tools: refused, or held by a grammar.

Every hook here runs in the process that answers HTTP. A request whose tools cannot be held to is
answered with 400.

Source: SGLang 0.5.23, ``entrypoints/openai/serving_chat.py``, ``function_call_parser.py``.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from sglang_ext.errors import ToolsError
from sglang_ext.tools.bounded import BoundedCache
from sglang_ext.tools.forms import FORMS, NATIVE_TAGS, VARIANTS, Form
from sglang_ext.tools.limits import SchemaLimits, check_size
from sglang_ext.tools.metrics import count_refusal
from sglang_ext.tools.tag import OURS, Choice, Plan, ToolSpec, compile_plan
from sglang_ext.tools.template import read_template
from sglang_ext.tools.work import bounded

__all__ = [
    "answer_schema",
    "asks_for_figures",
    "constrain",
    "figures_asked",
    "name_parser",
    "plan_of",
    "plan_to_read",
    "process_messages",
    "request_of_messages",
    "sampling_params",
    "specs",
    "tools_of_responses",
    "trained_form",
    "validate_request",
    "wanted",
]

# Attributes of SGLang's parser, and of what serves its endpoint.
_PARSER = "_sglang_ext_parser"
_SPELLING = "_sglang_ext_spelling"
logger = logging.getLogger(__name__)

_PLANS_BYTES = 64 * 1024 * 1024  # of tags kept, with the tools they are for; 4 to 120 kB a tool

# Schema, as text, of the answer that the request of this task asks for; a task serves one request.
_answer_schema: ContextVar[str | None] = ContextVar("answer_schema", default=None)
# How the model of this task's server spells calls.
_trained: ContextVar[Form | None] = ContextVar("trained", default=None)


# Whether the request of this task asks for figures, where only its metadata can say so.
_figures_asked: ContextVar[bool] = ContextVar("figures_asked", default=False)
# The tools of this task's request as ours, and its plan: both are asked for more than once.
_offered: ContextVar[tuple[list[Any], list[ToolSpec]]] = ContextVar("offered")
_made: ContextVar[tuple[Any, Plan]] = ContextVar("made")


def figures_asked() -> bool:
    """Whether the request of this task asks for figures in its metadata."""
    return _figures_asked.get()


def asks_for_figures(request: Any) -> bool:
    """Whether a request does: ``"metadata": {"sglang_ext": "figures"}``."""
    return (getattr(request, "metadata", None) or {}).get("sglang_ext") == "figures"


def specs(tools: Iterable[Any]) -> list[ToolSpec]:
    """SGLang's tools as ours; the text of a schema is what it is cached by."""
    functions = [tool.function for tool in tools]
    known, offered = _offered.get(([], []))
    if len(known) == len(functions) and all(
        one is other and one.strict == spec.strict
        for one, other, spec in zip(functions, known, offered, strict=True)
    ):
        return offered
    found = []
    for function in functions:
        parameters = function.parameters
        text = '{"type": "object"}' if parameters is None else json.dumps(parameters)
        found.append(ToolSpec(function.name or "", text, function.strict))
    _offered.set((functions, found))
    return found


def wanted(choice: Any, tools: list[ToolSpec]) -> Choice | ToolSpec:
    """What must be called, from SGLang's choice.

    Raises:
        ToolsError: it names a tool that is not there.
    """
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
            plan_of(
                specs(tools),
                request.tool_choice,
                serving.tool_call_parser,
                parallel=request.parallel_tool_calls,
                answer=_schema_of_answer(request),
                trained=_spelling_of(serving),
            )
    except ToolsError as error:
        count_refusal()
        return f"sglang-ext: {error}"
    return said


def tools_of_responses(tools: list[Any], _serving: Any, request: Any) -> None:
    """AFTER ``_response_tools_to_chat_tools`` of ``/v1/responses``: what was not said stays so."""
    _unsaid(tools, request.tools or ())


def request_of_messages(
    chat: Any, _serving: Any, request: Any, *_args: Any, **_kwargs: Any
) -> None:
    """AFTER ``AnthropicServing._convert_to_chat_completion_request``: the same."""
    _figures_asked.set(asks_for_figures(request))
    _unsaid(chat.tools or (), request.tools or ())


def _unsaid(tools: Iterable[Any], sources: Iterable[Any]) -> None:
    """Take ``strict: false`` from tools whose client did not say it."""
    said = {source.name for source in sources if "strict" in source.model_fields_set}
    for tool in tools:
        if tool.function.name not in said:
            tool.function.strict = None


def process_messages(
    original: Callable[..., Any], serving: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    """AROUND ``OpenAIServingChat._process_messages``: its grammar is to hold the answer, too."""
    _answer_schema.set(_schema_of_answer(request))
    _trained.set(_spelling_of(serving))
    return original(serving, request, *args, **kwargs)


def _spelling_of(serving: Any) -> Form | None:
    """How the model spells calls, from its chat template; asked once for each server."""
    parser = serving.tool_call_parser
    if parser not in FORMS:
        return None
    spelling = getattr(serving, _SPELLING, None)
    if spelling is None:
        tokenizer = serving.tokenizer_manager.tokenizer
        spelling = read_template(
            (FORMS[parser], *VARIANTS.get(parser, ())),
            lambda messages, tools: str(
                tokenizer.apply_chat_template(list(messages), tools=list(tools), tokenize=False)
            ),
        )
        setattr(serving, _SPELLING, spelling)
        if spelling.form is None:
            logger.warning(
                "The chat template does not write calls as the parser %s reads them; the parser's "
                "way is used. It writes %r",
                parser,
                spelling.rendered[:200],
            )
    form: Form | None = spelling.form
    return form


def trained_form() -> Form | None:
    """How the model of this task's server spells calls, where its chat template tells."""
    return _trained.get()


def answer_schema() -> str | None:
    """Schema, as text, of the answer that this task's request asks for beside its tools."""
    return _answer_schema.get()


def _schema_of_answer(request: Any) -> str | None:
    format_ = request.response_format
    if format_ is None or request.tool_choice == "none" or not request.tools:
        return None
    if format_.type == "json_object":
        return '{"type": "object"}'
    if format_.type != "json_schema":
        return None
    schema = getattr(format_.json_schema, "schema_", None)
    return None if schema is None else json.dumps(schema)


def sampling_params(original: Callable[..., Any], request: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND ``ChatCompletionRequest.to_sampling_params``: our tag holds the answer as well."""
    constraint = kwargs.get("tool_call_constraint", args[2] if len(args) > 2 else None)
    if _schema_of_answer(request) is not None and _is_ours(constraint):
        request = request.model_copy(update={"response_format": None})
    return original(request, *args, **kwargs)


def _is_ours(constraint: Any) -> bool:
    if constraint is None or constraint[0] != "structural_tag":
        return False
    return OURS in constraint[1].model_dump_json()


def _plan_bytes(key: Any, plan: Plan) -> int:
    # A grammar has characters from all planes, so Python takes four bytes for each of its text.
    tag = json.dumps(plan.tag, ensure_ascii=False)
    return sys.getsizeof(tag) + sum(sys.getsizeof(tool.parameters) for tool in key[0]) + 1_000


_plans: BoundedCache[Any, Plan] = BoundedCache(_PLANS_BYTES, _plan_bytes)


def plan_of(
    tools: list[ToolSpec],
    choice: Any,
    parser: str | None,
    *,
    parallel: Any = True,
    reasoning: bool = False,
    answer: str | None = None,
    trained: Form | None = None,
) -> Plan:
    """The plan of a request, from the cache where it is there.

    Raises:
        ToolsError: see `compile_plan`; or this server has no parser.
    """
    if not parser:
        raise ToolsError("this server reads no tool calls", fix="start it with --tool-call-parser")
    chosen = wanted(choice, tools)
    if chosen != "auto":
        answer = None  # the answer is a call
    reasoning = reasoning and parser in NATIVE_TAGS  # in no other does the tag depend on it
    request = (tuple(tools), chosen, parser, answer, trained)
    key = (*request, parallel is not False, reasoning)
    plan = _plans.get(key)
    if plan is None:
        with bounded():
            plan = compile_plan(
                tools,
                chosen,
                parser=parser,
                parallel=parallel is not False,
                reasoning=reasoning,
                answer=answer,
                trained=trained,
            )
        _plans.put(key, plan)
    _made.set((request, plan))
    return plan


def plan_to_read(tools: list[ToolSpec], choice: Any, parser: str) -> Plan:
    """The plan of this task's request, to read its answer by.

    How an answer is read depends neither on how many calls it may have nor on reasoning.

    Raises:
        ToolsError: see `plan_of`.
    """
    answer, trained = answer_schema(), trained_form()
    chosen = wanted(choice, tools)
    request = (tuple(tools), chosen, parser, answer if chosen == "auto" else None, trained)
    made = _made.get(None)
    if made is not None and made[0] == request:
        return made[1]
    return plan_of(tools, choice, parser, answer=answer, trained=trained)


def name_parser(parser: Any, name: str) -> None:
    """Note the name of SGLang's parser on it."""
    setattr(parser, _PARSER, name)


def constrain(
    original: Callable[..., Any], parser: Any, tool_choice: Any, *args: Any, **kwargs: Any
) -> Any:
    """AROUND ``FunctionCallParser.get_structure_constraint``: our tag, or an error, never none."""
    from xgrammar import StructuralTag

    parallel = kwargs.get("parallel_tool_calls", args[0] if args else True)
    reasoning = kwargs.get("thinking_mode", args[1] if len(args) > 1 else False)
    try:
        plan = plan_of(
            specs(parser.tools),
            tool_choice,
            getattr(parser, _PARSER, ""),
            parallel=parallel,
            reasoning=reasoning,
            answer=answer_schema(),
            trained=_trained.get(),
        )
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
        for tool, spec in zip(parser.tools, specs(parser.tools), strict=True)
    ]
    return parser
