"""Whether calls are spelled as the model's chat template spells them, and how it writes JSON.

The template is asked, not a table: it renders a conversation with an example call. Pure.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sglang_ext.tools.ebnf import Separators
from sglang_ext.tools.forms import Form

__all__ = ["Spelling", "read_template"]

_NAME = "look_up"
_ARGUMENTS = {"place": "here", "numbers": [1, 2]}
_PARAMETERS = {
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "numbers": {"type": "array", "items": {"type": "integer"}},
    },
}
_KNOWN = [Separators(item, key) for item, key in product((", ", ","), (": ", ":"))]

# Renders messages and tools to text; may fail in any way.
Render = Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], str]


@dataclass(frozen=True)
class Spelling:
    """What a template tells.

    Attributes:
        agrees: the form's opening and closing stand around the example's arguments.
        separators: how the template writes JSON; None where it is none of the known ways.
        rendered: the example as the template has it; empty where it cannot render one.
    """

    agrees: bool
    separators: Separators | None = None
    rendered: str = ""


def read_template(form: Form, render: Render) -> Spelling:
    """Compare ``form`` with what the model's chat template makes of an example call."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": _NAME, "arguments": _ARGUMENTS},
    }
    tool = {"type": "function", "function": {"name": _NAME, "parameters": _PARAMETERS}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        before = render(messages[:1], [tool])
        whole = render(messages, [tool])
    except Exception:  # a template may refuse in any way
        return Spelling(agrees=False)
    rendered = _after(before, whole)
    for separators in _KNOWN:
        written = json.dumps(_ARGUMENTS, separators=(separators.item, separators.key))
        if written in rendered:
            agrees = form.opening(_NAME) + written + form.call_end in rendered
            return Spelling(agrees, separators, rendered)
    return Spelling(False, None, rendered)


def _after(before: str, whole: str) -> str:
    """What ``whole`` has beyond the common beginning: examples in a template's preamble go."""
    common = 0
    for one, other in zip(before, whole, strict=False):
        if one != other:
            break
        common += 1
    return whole[common:]
