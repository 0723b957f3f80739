"""One request on the ``openai`` client: its streamed answer, and where its prompt came from."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sglang_ext.errors import DemoError

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Answer", "Call", "Exchange", "Tokens", "ask", "make_client"]

# What SGLang adds to an answer when asked (0.5.23, entrypoints/openai/protocol.py): tokens by
# tier, and the exact token ids, so that outputs are compared as tokens and not as text.
_SGLANG_EXTRAS = {
    "return_cached_tokens_details": True,
    "return_input_ids_in_sglext": True,
    "return_output_ids_in_sglext": True,
}
_REQUEST_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Tokens:
    """Prompt tokens of a request (or of many) by where their KV came from."""

    prompt: int = 0
    l1: int = 0
    l2: int = 0
    l3: int = 0

    @property
    def cached(self) -> int:
        """Tokens that were not computed."""
        return self.l1 + self.l2 + self.l3

    @property
    def computed(self) -> int:
        """Tokens whose KV the server had to compute."""
        return self.prompt - self.cached

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.prompt + other.prompt,
            self.l1 + other.l1,
            self.l2 + other.l2,
            self.l3 + other.l3,
        )

    @staticmethod
    def from_report(prompt: int, details: Mapping[str, Any] | None) -> "Tokens":
        """From SGLang's ``cached_tokens_details``; None there means that nothing was cached.

        Raises:
            DemoError: the tiers add up to more than the prompt has: the report is wrong.
        """
        details = details or {}
        l1, l2, l3 = (int(details.get(tier) or 0) for tier in ("device", "host", "storage"))
        if l1 + l2 + l3 > prompt:
            raise DemoError(
                f"the server reports {l1} + {l2} + {l3} cached tokens for a prompt of {prompt}"
            )
        return Tokens(prompt, l1, l2, l3)


@dataclass(frozen=True)
class Call:
    """A tool call as the server returned it; ``arguments`` is JSON text, perhaps cut off."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """What a server answered to one request. Times are wall-clock at the client."""

    text: str
    calls: tuple[Call, ...]
    finish_reason: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    tokens: Tokens
    ttft_s: float
    total_s: float


@dataclass(frozen=True)
class Exchange:
    """One request with its answer, and its place: agent and turn."""

    agent: int
    turn: int
    body: Mapping[str, Any]
    answer: Answer

    @property
    def place(self) -> str:
        """The place in words, for messages."""
        return f"agent {self.agent}, turn {self.turn}"


def make_client(base_url: str) -> "OpenAI":
    """A client for a server on this machine; no retries, so that one request is one request."""
    from openai import OpenAI  # here: `sglang-ext --help` must not need it

    return OpenAI(
        base_url=f"{base_url}/v1", api_key="none", timeout=_REQUEST_TIMEOUT_S, max_retries=0
    )


@dataclass
class _Stream:
    """Collects the chunks of one streamed answer."""

    text: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    extras: dict[str, Any] = field(default_factory=dict)

    def add(self, chunk: Mapping[str, Any]) -> bool:
        """Take in a chunk; True when the server had generated a token when it sent it.

        SGLang sends the chunk with the role together with the first generated token, whose text a
        parser or a half character may hold back: any choice counts, not only content.
        """
        self.extras.update(
            {key: value for key, value in (chunk.get("sglext") or {}).items() if value is not None}
        )
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self.completion_tokens = usage["completion_tokens"]
        choices = chunk.get("choices") or ()
        for choice in choices:
            delta = choice.get("delta") or {}
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if delta.get("content"):
                self.text.append(delta["content"])
            for part in delta.get("tool_calls") or ():
                self._add_call(part)
        return bool(choices)

    def _add_call(self, part: Mapping[str, Any]) -> None:
        call = self.calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["name"] = function.get("name") or call["name"]
        call["arguments"] += function.get("arguments") or ""

    def answer(self, ttft_s: float, total_s: float) -> Answer:
        """The whole answer, once the last chunk is in.

        Raises:
            DemoError: the server did not report what the accounting needs.
        """
        prompt_ids = tuple(self.extras.get("input_ids") or ())
        if len(prompt_ids) != self.prompt_tokens or not prompt_ids:
            raise DemoError(
                f"the server counts {self.prompt_tokens} prompt tokens and returned "
                f"{len(prompt_ids)}; SGLang 0.5.23 returns them when asked"
            )
        output_ids = tuple((self.extras.get("output_ids") or [()])[0])
        if self.completion_tokens and not output_ids:
            # Two answers without ids would count as equal, whatever they say.
            raise DemoError(
                f"the server generated {self.completion_tokens} tokens and returned no output ids; "
                "answers cannot be compared without; SGLang 0.5.23 returns them when asked"
            )
        details = self.extras.get("cached_tokens_details")
        return Answer(
            text="".join(self.text),
            calls=tuple(Call(**call) for _, call in sorted(self.calls.items())),
            finish_reason=self.finish_reason,
            prompt_ids=prompt_ids,
            output_ids=output_ids,
            tokens=Tokens.from_report(self.prompt_tokens, details),
            ttft_s=ttft_s,
            total_s=total_s,
        )


def ask(client: "OpenAI", body: Mapping[str, Any]) -> Answer:
    """Send one request and collect its streamed answer; blocks.

    Raises:
        DemoError: the server refused, failed or did not report what the accounting needs.
    """
    from openai import OpenAIError

    stream = _Stream()
    begin = time.monotonic()
    ttft_s = 0.0
    try:
        for chunk in client.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}, extra_body=_SGLANG_EXTRAS
        ):
            if stream.add(chunk.model_dump()) and not ttft_s:
                ttft_s = time.monotonic() - begin
    except OpenAIError as error:
        raise DemoError(f"a request failed: {type(error).__name__}: {error}") from error
    total_s = time.monotonic() - begin
    return stream.answer(ttft_s or total_s, total_s)  # no output: its end is the only time
