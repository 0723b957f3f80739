# ruff: noqa: RUF001 - DeepSeek's markers are written with full-width bars
"""How each of SGLang's tool-call parsers has a call spelled, where its arguments are plain JSON.

Source: the detectors of SGLang 0.5.23, ``sglang/srt/function_call``; the tests have each of them
read what is spelled here. Pure.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sglang_ext.tools.ebnf import Separators

__all__ = ["ARRAY", "FORMS", "NATIVE_TAGS", "STOCK_TAGS", "TEXT_TAGS", "VARIANTS", "Form"]


_TRAINED = Separators()  # those of ``json.dumps`` and of most chat templates


@dataclass(frozen=True)
class Form:
    """The spelling of calls: ``begin (call_begin arguments call_end)+ end``.

    ``{name}`` in ``call_begin`` stands for the tool's name. ``marker`` is how text turns into
    calls: from there on, nothing but calls can be written. Without a marker, text that the model
    writes of its own accord is left to SGLang.
    """

    marker: str
    call_begin: str
    call_end: str
    begin: str = ""
    end: str = ""
    between: str = "\n"
    separators: Separators = _TRAINED

    def opening(self, name: str) -> str:
        """What stands before the arguments of a call of ``name``."""
        return self.call_begin.replace("{name}", json.dumps(name, ensure_ascii=False)[1:-1])

    def with_separators(self, separators: Separators) -> "Form":
        """The same form with other separators within the arguments."""
        return dataclasses.replace(self, separators=separators)


# Where a model has no form that a grammar can hold, a required call is a bare list.
ARRAY = Form(
    marker="",
    begin="[",
    call_begin='{"name": "{name}", "parameters": ',
    call_end="}",
    end="]",
    between=", ",
)

_QWEN = Form(
    marker="<tool_call>",
    call_begin='<tool_call>\n{"name": "{name}", "arguments": ',
    call_end="}\n</tool_call>",
)

FORMS: Mapping[str, Form] = {
    "apertus2509": Form(
        marker="<|tools_prefix|>",
        begin="<|tools_prefix|>[",
        call_begin='{"{name}": ',
        call_end="}",
        end="]<|tools_suffix|>",
        between=", ",
    ),
    "deepseekv3": Form(
        marker="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁calls▁begin｜>",
        call_begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
        call_end="\n```<｜tool▁call▁end｜>",
        end="<｜tool▁calls▁end｜>",
    ),
    "deepseekv31": Form(
        marker="<｜tool▁calls▁begin｜>",
        begin="<｜tool▁calls▁begin｜>",
        call_begin="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
        call_end="<｜tool▁call▁end｜>",
        end="<｜tool▁calls▁end｜>",
        between="",
    ),
    "hermes": _QWEN,
    "inkling": Form(
        marker="",
        call_begin='<|message_model|>{name}<|content_invoke_tool_json|>{"name":"{name}","args":',
        call_end="}<|end_message|>",
        between="",
        separators=Separators(",", ":"),
    ),
    "interns1": Form(
        marker="<|action_start|> <|plugin|>",
        call_begin='<|action_start|> <|plugin|>\n{"name": "{name}", "parameters": ',
        call_end="}<|action_end|>",
    ),
    "llama3": Form(
        marker='{"name": ',
        call_begin='{"name": "{name}", "parameters": ',
        call_end="}",
        between=";",
    ),
    "mistral": Form(
        marker="[TOOL_CALLS]",
        begin="[TOOL_CALLS] [",
        call_begin='{"name": "{name}", "arguments": ',
        call_end="}",
        end="]",
        between=", ",
    ),
    "qwen": _QWEN,
    "qwen25": _QWEN,
    "trinity": _QWEN,
}

# Further spellings that a parser reads, for models whose chat template has calls so.
VARIANTS: Mapping[str, tuple[Form, ...]] = {
    "llama3": (
        dataclasses.replace(FORMS["llama3"], call_begin='{"name": "{name}", "arguments": '),
    ),
    "mistral": (  # from version 11 of Mistral's tokenizers on
        Form(
            marker="[TOOL_CALLS]",
            call_begin="[TOOL_CALLS]{name}[ARGS]",
            call_end="",
            between="",
        ),
    ),
}

# Parsers whose arguments are not JSON, by the name of xgrammar's own tag for the model.
NATIVE_TAGS: Mapping[str, str] = {
    "deepseekv32": "deepseek_v3_2",
    "deepseekv4": "deepseek_v4",
    "deepseekv41": "deepseek_v4_1",
    "glm47": "glm_4_7",
    "gpt-oss": "harmony",
    "kimi_k2": "kimi",
    "minimax-m2": "minimax",
    "nanbeige": "qwen_3_coder",
    "qwen3_coder": "qwen_3_coder",
    "step3p5": "qwen_3_coder",
}

# Parsers whose tag SGLang makes itself, from the chat template or in code of its own.
STOCK_TAGS = frozenset({"beam", "kimi_k3", "response_template"})

_DOTS = {
    "<minimax:tool_call>": "<dots_function_call>",
    "</minimax:tool_call>": "</dots_function_call>",
}
_IQUEST = {
    "<tool_call>": "<iquest_tool_call>",
    "</tool_call>": "</iquest_tool_call>",
}
# Parsers whose calls in free text are written as a model's for which xgrammar has a tag, but for
# names of their own: from the marker on, that tag holds them. A required call is a bare list.
TEXT_TAGS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "dots": ("minimax", _DOTS),
    "glm": ("glm_4_7", {}),
    "glm45": ("glm_4_7", {}),
    "iquest_q1": ("glm_4_7", _IQUEST),
    "ling3": ("glm_4_7", {}),
    "mimo": ("qwen_3_coder", {}),
    "poolside_v1": ("glm_4_7", {}),
    "spark25": ("glm_4_7", {}),
}
