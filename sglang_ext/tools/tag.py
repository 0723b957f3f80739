"""From a request's tools to the structural tag that holds its answer, and the form to read it by.

A parser has a form whose arguments are JSON (`forms.FORMS`), a tag that xgrammar makes for the
model (`forms.NATIVE_TAGS`), one that SGLang makes (`forms.STOCK_TAGS`), or none. Without one, a
required call is written as a bare list, and what the model writes of its own accord is free and
checked.

Pure. Source: xgrammar 0.2.7, ``structural_tag``; SGLang 0.5.23, ``function_call_parser``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sglang_ext.errors import ToolSchemaError, ToolsError
from sglang_ext.tools.bounded import BoundedCache
from sglang_ext.tools.duplicates import note
from sglang_ext.tools.ebnf import GrammarWriter, grammar, quoted
from sglang_ext.tools.exact import decoded
from sglang_ext.tools.forms import ARRAY, FORMS, NATIVE_TAGS, STOCK_TAGS, TEXT_TAGS, Form
from sglang_ext.tools.plain import plain_schema
from sglang_ext.tools.schema import NormalSchema, normalise

__all__ = ["OURS", "Choice", "Plan", "ToolSpec", "compile_plan", "schema_of"]

_MOST_TOOLS = 256
_MOST_OPEN = 3_000  # places of all strings together; see `ebnf`
# Schemas that are kept as read. Default: 128 MB, about 700 with twenty properties each. Cost: 50 to
# 65 bytes for each character of their text.
_SCHEMAS_BYTES, _BYTES_PER_CHARACTER = 128 * 1024 * 1024, 65
OURS = "call ::= call0"  # in each tag with grammars of ours, and in no other
_ANY_ARGUMENTS = '{"type": "object"}'

Choice = Literal["auto", "required"]


@dataclass(frozen=True)
class ToolSpec:
    """One tool: its name and its parameters as JSON text, which is how they are cached."""

    name: str
    parameters: str = _ANY_ARGUMENTS
    strict: bool | None = None

    @property
    def enforced(self) -> bool:
        """Whether its schema holds: unless the tool says ``strict: false``."""
        return self.strict is not False


@dataclass(frozen=True)
class Plan:
    """How one request is answered.

    Attributes:
        tag: xgrammar structural tag; None leaves decoding free.
        form: how to read its calls; None: by SGLang's detector.
        required: the whole answer is calls.
    """

    tag: dict[str, Any] | None
    form: Form | None
    required: bool


_read: BoundedCache[tuple[str, bool], NormalSchema | ToolSchemaError] = BoundedCache(
    _SCHEMAS_BYTES, lambda key, _found: _BYTES_PER_CHARACTER * len(key[0])
)


def _normalised(text: str, *, objects_only: bool) -> NormalSchema | ToolSchemaError:
    found = _read.get((text, objects_only))
    if found is None:
        try:
            found = normalise(decoded(text), objects_only=objects_only)
        except ToolSchemaError as error:
            found = error
        except ValueError as error:  # what Python's JSON writes of a number that no float holds
            found = ToolSchemaError(f"#: {error}")
        _read.put((text, objects_only), found)
    return found


def schema_of(tool: ToolSpec) -> NormalSchema:
    """The schema of a tool's arguments: any object where it is not enforced.

    Raises:
        ToolSchemaError: it is refused; names the tool.
    """
    parameters = tool.parameters if tool.enforced else _ANY_ARGUMENTS
    found = _normalised(parameters, objects_only=True)
    if isinstance(found, ToolSchemaError):
        raise _not_enforced(tool, found)
    return found


def _not_enforced(tool: ToolSpec, why: ToolSchemaError) -> ToolSchemaError:
    return ToolSchemaError(
        f"the parameters of tool {tool.name!r} cannot be enforced: {why}",
        fix='change that part, or let the tool say "strict": false to go without its schema',
    )


def compile_plan(
    tools: Sequence[ToolSpec],
    choice: Choice | ToolSpec,
    *,
    parser: str,
    parallel: bool = True,
    reasoning: bool = False,
    trained: Form | None = None,
    answer: str | None = None,
) -> Plan:
    """The plan for one request.

    Args:
        tools: the tools that may be called.
        choice: ``auto``, ``required``, or the one tool that must be called.
        parser: name of SGLang's tool-call parser.
        parallel: whether several calls may be made.
        reasoning: whether the tag is to cover the model's reasoning; only xgrammar's own do.
        trained: how the model's chat template spells calls; None: as the parser's own form does.
        answer: JSON schema, as text, of an answer without calls.

    Raises:
        ToolsError: too many tools, two of one name, or a schema that is refused.
    """
    _check_tools(tools)
    if answer is not None and choice == "auto":
        alone = compile_plan(
            tools,
            "required",
            parser=parser,
            parallel=parallel,
            reasoning=reasoning,
            trained=trained,
        )
        return _calls_or_answer(alone, answer, parser)
    required = choice != "auto"
    allowed = [choice] if isinstance(choice, ToolSpec) else list(tools)
    if parser in NATIVE_TAGS:
        tag = _native(allowed, choice, NATIVE_TAGS[parser], parallel, reasoning)
        return Plan(tag, None, required)
    if parser in TEXT_TAGS and not required:
        return Plan(_native_in_text(allowed, parser, parallel), None, False)
    form = trained or FORMS.get(parser, ARRAY if required else None)
    if parser in STOCK_TAGS:
        form = None
    if form is None or not (required or form.marker):
        for tool in allowed:
            schema_of(tool)  # refused now rather than after decoding
        return Plan(None, None, required)
    calls = _calls(allowed, form, parallel)
    if required:
        return Plan(_tag({"type": "grammar", "grammar": calls}), form, True)
    return Plan(_tag(_triggered(allowed, form, parallel)), form, False)


def _calls_or_answer(calls: Plan, answer: str, parser: str) -> Plan:
    """Either calls and nothing else, or an answer of the schema that the request asks for."""
    form = calls.form
    if calls.tag is None or (form is not None and not _begins_apart(form)):
        raise ToolsError(
            f"calls of the parser {parser} are not told apart from an answer in JSON",
            fix="leave out response_format, or say tool_choice required or none",
        )
    found = _normalised(answer, objects_only=False)
    if isinstance(found, ToolSchemaError):
        raise ToolSchemaError(
            f"the schema of response_format cannot be enforced: {found}", fix="change that part"
        )
    written = {"type": "grammar", "grammar": grammar(found)}
    return Plan(_tag({"type": "or", "elements": [calls.tag["format"], written]}), form, False)


def _begins_apart(form: Form) -> bool:
    """Whether calls begin as no JSON does."""
    return form.marker[:1] not in ("", "{", "[") or form.marker.startswith("[TOOL")


def _check_tools(tools: Sequence[ToolSpec]) -> None:
    if len(tools) > _MOST_TOOLS:
        raise ToolsError(f"{len(tools)} tools, at most {_MOST_TOOLS}", fix="send fewer")
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise ToolsError(f"two tools are named {name!r}", fix="give each a name of its own")
        if not name or any(char in '"<>\\' or char < " " for char in name):
            raise ToolsError(
                f"{name[:80]!r} is not the name of a tool",
                fix="use letters, digits, dash and underscore",
            )


def _tag(form: dict[str, Any]) -> dict[str, Any]:
    return {"type": "structural_tag", "format": form}


def _rules(tools: Sequence[ToolSpec], form: Form, skip: int = 0) -> str:
    """Rules ``call0``, ``call1``, … of one call each; ``skip`` characters of each are written."""
    writer, calls, end = GrammarWriter(form.separators), [], quoted(form.call_end)
    for number, tool in enumerate(tools):
        schema = schema_of(tool)
        try:
            value = writer.value(schema)
        except ToolSchemaError as error:
            raise _not_enforced(tool, error) from None
        opening = quoted(form.opening(tool.name)[skip:])
        calls.append(f"call{number} ::= {opening} {value} {end}")
    names = " | ".join(f"call{number}" for number in range(len(tools)))
    if writer.open_places > _MOST_OPEN:
        raise ToolsError(
            f"the strings of these tools have {writer.open_places:,} places that take almost any "
            f"character, at most {_MOST_OPEN:,}",
            fix='send fewer tools, or let them say "additionalProperties": false',
        )
    return "\n".join([*calls, f"call ::= {names}", writer.text(), note(form), ""])


def _calls(tools: Sequence[ToolSpec], form: Form, parallel: bool) -> str:
    """The grammar of one call or more, with what stands around them."""
    more = f"({quoted(form.between)} call)*" if parallel else ""
    root = f"root ::= {quoted(form.begin)} call {more} {quoted(form.end)}\n"
    return root + _rules(tools, form)


def _triggered(tools: Sequence[ToolSpec], form: Form, parallel: bool) -> dict[str, Any]:
    """Free text, in which the form's marker begins calls."""
    if form.begin:
        more = f"({quoted(form.between)} call)*" if parallel else ""
        rest = quoted(form.begin[len(form.marker) :])
        root = f"root ::= {rest} call {more} {quoted(form.end)}\n"
        content = root + _rules(tools, form)
    else:
        # The marker may stand within the opening: what is before it is free text.
        openings = {form.opening(tool.name).index(form.marker) for tool in tools}
        skip = max(openings) + len(form.marker)
        content = "root ::= call\n" + _rules(tools, form, skip)
    return {
        "type": "triggered_tags",
        "triggers": [form.marker],
        "tags": [
            {
                "type": "tag",
                "begin": form.marker,
                "content": {"type": "grammar", "grammar": content},
                "end": "",
            }
        ],
        # A section ends the answer; a second one is not a form that models were trained on.
        "stop_after_first": bool(form.begin) or not parallel,
    }


def _native(
    tools: Sequence[ToolSpec],
    choice: Choice | ToolSpec,
    model: str,
    parallel: bool,
    reasoning: bool,
    **more: Any,
) -> dict[str, Any]:
    from xgrammar import get_model_structural_tag

    documents = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "parameters": plain_schema(schema_of(tool)),
                "strict": True,
            },
        }
        for tool in tools
    ]
    named: Any = choice
    if isinstance(choice, ToolSpec):
        named = {"type": "function", "function": {"name": choice.name}}
    try:
        tag = get_model_structural_tag(
            model,
            tools=documents,
            tool_choice=named,
            reasoning=reasoning,
            parallel_tool_calls=parallel,
            max_whitespace_cnt=1,
            **more,
        )
    except ValueError as error:
        raise ToolsError(f"xgrammar makes no tag for {model}: {error}") from None
    found: dict[str, Any] = tag.model_dump()
    return found


def _native_in_text(tools: Sequence[ToolSpec], parser: str, parallel: bool) -> dict[str, Any]:
    """Free text, what a model thinks included, in which a marker begins calls."""
    model, names = TEXT_TAGS[parser]
    tag = _native(tools, "auto", model, parallel, False, exclude_special_tokens=False)
    found = next(node for node in _nodes(tag["format"]) if node["type"] == "triggered_tags")
    renamed: dict[str, Any] = _renamed(found, names)
    return _tag(renamed)


def _nodes(form: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield form
    for element in form.get("elements", ()):
        yield from _nodes(element)


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A tag with other markers; what tools are called and take is left as it is."""
    if isinstance(node, list):
        return [_renamed(inner, names) for inner in node]
    if isinstance(node, str):
        for old, new in names.items():
            node = new + node[len(old) :] if node.startswith(old) else node
        return node
    if not isinstance(node, dict):
        return node
    return {
        key: inner if key == "json_schema" else _renamed(inner, names)
        for key, inner in node.items()
    }
