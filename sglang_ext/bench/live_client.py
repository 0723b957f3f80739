"""Sends the requests of a rehearsal to a server and asks where each was served from.

Each request says what the trace says of it: when it came, whose it is, and how its answer ends.
"""

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from sglang_ext.bench.answers import Tokens
from sglang_ext.errors import BenchError
from sglang_ext.replay.trace import Trace

__all__ = ["LiveClient", "prompts"]

_REQUEST_S = 120.0
# How long pages may be on their way to the disk. Default 30 s; milliseconds are usual.
_COPIES_S = 30.0
_POLL_S = 0.005
# Nothing has come for so long: nothing is on its way.
_STILL_S = 0.5
# Token ids of prompts: in the vocabulary of every model here, and none of them special.
_TOKENS = range(1000, 40_000)
# Outweighs any logit of a model.
_SURE = 100.0
_TOOL = {"type": "function", "function": {"name": "tool", "parameters": {"type": "object"}}}


def prompts(trace: Trace, seed: int = 0) -> Iterator[list[int]]:
    """Prompts that share exactly the prefixes of the trace, and a token more that is asked for."""
    rng = random.Random(seed)  # noqa: S311 - made-up prompts, no secrets
    made: list[list[int]] = []
    rows = zip(trace.parent.tolist(), trace.shared.tolist(), trace.blocks.tolist(), strict=True)
    for parent, shared, blocks in rows:
        size = trace.block_tokens
        prefix = made[parent][: shared * size] if parent >= 0 else []
        made.append([*prefix, *rng.choices(_TOKENS, k=(blocks - shared) * size)])
        yield [*made[-1], 1]


class LiveClient:
    """One request at a time.

    Args:
        base_url: of the server.
        end_token: with which an answer ends.
    """

    def __init__(self, base_url: str, end_token: int) -> None:
        self._base_url = base_url
        self._end_token = end_token

    def send(self, trace: Trace, place: int, prompt: list[int]) -> tuple[int, int, int]:
        """Send a request and wait for its answer; returns prompt tokens from L1, L2 and L3.

        Raises:
            BenchError: the server refused it, or ended it otherwise than it was asked to.
        """
        stop, tokens = trace.stop[place], int(trace.output_tokens[place])
        headers = {"X-Request-Time": repr(float(trace.time_s[place]))}
        if trace.session[place] >= 0:
            headers["X-Session-Id"] = str(trace.session[place])
        if trace.agent[place]:
            headers["X-Agent-Kind"] = "sub"
        answer = self._ask("/v1/completions", _body(prompt, tokens, stop, self._end_token), headers)
        usage, choice = answer["usage"], answer["choices"][0]
        expected = "stop" if stop in _ENDINGS else "length"
        if (usage["completion_tokens"], choice["finish_reason"]) != (tokens, expected):
            raise BenchError(
                f"request {place}: an answer of {usage['completion_tokens']} tokens that ended by "
                f"{choice['finish_reason']!r}, not {tokens} by {expected!r}"
            )
        details = (answer.get("sglext") or {}).get("cached_tokens_details")
        found = Tokens.from_report(usage["prompt_tokens"], details)
        return found.l1, found.l2, found.l3

    def wait_for_copies(self, pages: int, *, all_of_them: bool = True) -> None:
        """Until ``pages`` were written to disk since the start, and so are in host memory.

        Args:
            pages: written since the start, or refused.
            all_of_them: not less. A disk tier that forgets refuses what follows a page that it has
                forgotten, and SGLang does not offer it what follows that: then it is enough that
                nothing is on its way any more.

        Raises:
            BenchError: they are not after half a minute.
        """
        deadline, still, before = time.monotonic() + _COPIES_S, time.monotonic(), -1
        while (found := self._offered()) < pages:
            now = time.monotonic()
            if found != before:
                before, still = found, now
            if not all_of_them and now - still > _STILL_S:
                return
            if now > deadline:
                raise BenchError(f"{found} of {pages} pages are on disk {_COPIES_S:.0f} s later")
            time.sleep(_POLL_S)

    def _offered(self) -> int:
        """Pages that the disk tier has written, had already, or refused."""
        tier = self._state()["disk_tier"]
        refused: dict[str, int] = tier["refused"]
        return int(tier["written_pages"]) + int(tier["duplicates"]) + sum(refused.values())

    def check(self, policy: str) -> None:
        """Whether the server did what it was started for.

        Raises:
            BenchError: another policy was at work, or SGLang chose in its place.
        """
        tree = self._state().get("tree")
        if policy == "stock":
            wrong = tree is not None
        else:
            wrong = tree is None or tree["policy"] != policy or not tree["steered"]
        if wrong:
            raise BenchError(f"the server was to run policy {policy}; its tree says {tree}")

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._ask("/server_info")["internal_states"][0]["sglang_ext"]
        return state

    def _ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own http URL
            self._base_url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_S) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read(500).decode(errors="replace")
            raise BenchError(f"{path} answered {error.code}: {text}") from error
        except OSError as error:
            raise BenchError(f"{path} did not answer: {error}") from error


# How answers of a trace end that end by themselves.
_ENDINGS = ("tool_use", "end_turn")


def _body(prompt: list[int], tokens: int, stop: str, end_token: int) -> dict[str, Any]:
    """A request whose answer has ``tokens`` tokens and ends as ``stop`` says."""
    body: dict[str, Any] = {
        "model": "any",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "return_cached_tokens_details": True,
    }
    if stop not in _ENDINGS:
        return {**body, "ignore_eos": True}
    body |= {"min_tokens": tokens - 1, "logit_bias": {str(end_token): _SURE}}
    # Says no more than that the answer is a call; nothing is put into the prompt.
    return {**body, "tools": [_TOOL], "tool_choice": "required"} if stop == "tool_use" else body
