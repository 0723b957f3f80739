"""How the model's chat template spells calls, among the ways that its parser reads.

The template is asked, not a table: it renders a conversation with an example call. Pure.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from sglang_ext.tools.ebnf import Separators
from sglang_ext.tools.forms import Form

__all__ = ["Spelling", "read_template"]

_NAME = "look_up"
_ID = "call12345"  # Mistral's templates take nine letters and digits
_NUMBERED = f"[CALL_ID]{_ID}"
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
        form: whose opening and closing stand around the example's arguments, with the separators
            that the template writes; None: none of those asked for.
        rendered: the example as the template has it; empty where it cannot render one.
    """

    form: Form | None = None
    rendered: str = ""


def read_template(forms: Iterable[Form], render: Render) -> Spelling:
    """Compare ``forms`` with what the model's chat template makes of an example call.

    Identifiers of calls, which servers number and models do not write, are passed over.
    """
    call = {
        "id": _ID,
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
        return Spelling()
    rendered = _after(before, whole)
    plain = rendered.replace(_NUMBERED, "")
    for form, separators in product(forms, _KNOWN):
        written = json.dumps(_ARGUMENTS, separators=(separators.item, separators.key))
        if form.opening(_NAME) + written + form.call_end in plain:
            return Spelling(form.with_separators(separators), rendered)
    return Spelling(None, rendered)


def _after(before: str, whole: str) -> str:
    """What ``whole`` has beyond the common beginning: examples in a template's preamble go."""
    common = 0
    for one, other in zip(before, whole, strict=False):
        if one != other:
            break
        common += 1
    return whole[common:]
