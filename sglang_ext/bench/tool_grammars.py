"""What the grammars of tool calls cost: to compile, and to make a mask for each token.

The constraint is the one that the system hands to xgrammar, the tokens are those that its server
wrote; both run here, alone on one core, so that neither a batch nor a network is in the figures.

Source: SGLang 0.5.23, ``constrained/xgrammar_backend.py``.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sglang_ext.bench.bfcl_calls import Case
from sglang_ext.errors import BenchError
from sglang_ext.tools.requests import specs
from sglang_ext.tools.tag import Choice, compile_plan

__all__ = ["Grammars", "Times"]

_DISPATCH = {"json_schema": "dispatch_json", "structural_tag": "dispatch_structural_tag"}


@dataclass
class Times:
    """Milliseconds of each compile, and microseconds of each mask."""

    compile_ms: list[float] = field(default_factory=list)
    mask_us: list[float] = field(default_factory=list)


class Grammars:
    """Compiles the constraints of one model's tool calls as SGLang's backend does.

    Args:
        model: folder of the model.
        parser: name of SGLang's tool-call parser.
    """

    def __init__(self, model: Path, parser: str) -> None:
        from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend
        from transformers import AutoConfig, AutoTokenizer
        from xgrammar import GrammarCompiler, allocate_token_bitmask

        self._parser = parser
        size = AutoConfig.from_pretrained(model).vocab_size
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._backend = XGrammarGrammarBackend(self._tokenizer, size)
        self._backend.grammar_compiler = GrammarCompiler(
            self._backend._tokenizer_info,  # noqa: SLF001 - its compiler does not tell it
            cache_enabled=False,
        )
        self._mask = allocate_token_bitmask(1, size)

    def trigger(self) -> list[int]:
        """Tokens of the text that begins a call where the model may also chat."""
        from sglang.srt.function_call.function_call_parser import FunctionCallParser

        text = FunctionCallParser([], self._parser).detector.structure_info()("").trigger
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def constraint(self, case: Case, system: str, choice: Choice) -> tuple[str, str] | None:
        """Kind and text of what ``system`` holds an answer to ``case`` to; None: to nothing."""
        from sglang.srt.entrypoints.openai.protocol import Tool
        from sglang.srt.function_call.function_call_parser import FunctionCallParser

        strict = True if system == "stock_strict" else None
        tools = [Tool(**tool) for tool in case.tools(strict=strict)]
        if system == "ext":
            plan = compile_plan(specs(tools), choice, parser=self._parser, parallel=False)
            return "structural_tag", json.dumps(plan.tag)
        parser = FunctionCallParser(tools, self._parser)
        found = parser.get_structure_constraint(choice, parallel_tool_calls=False)
        if found is None:
            return None
        kind, value = found
        if isinstance(value, str):
            return kind, value
        return kind, json.dumps(
            value if isinstance(value, dict) else value.model_dump(by_alias=True)
        )

    def measure(self, constraint: tuple[str, str], tokens: Sequence[int], times: Times) -> None:
        """Compile once and make the mask of each token.

        Raises:
            BenchError: SGLang refuses the constraint.
        """
        kind, text = constraint
        dispatch = getattr(self._backend, _DISPATCH[kind])
        begin = time.perf_counter()
        grammar = dispatch(text)
        times.compile_ms.append(1e3 * (time.perf_counter() - begin))
        if not hasattr(grammar, "ctx"):
            raise BenchError(f"SGLang refuses a constraint: {grammar.error_message}")
        matcher = grammar.copy().matcher
        for token in tokens:
            if matcher.is_terminated():
                return
            begin = time.perf_counter()
            matcher.fill_next_token_bitmask(self._mask, 0)
            times.mask_us.append(1e6 * (time.perf_counter() - begin))
            if not matcher.accept_token(token):
                return
