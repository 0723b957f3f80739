from typing import Any

import pytest

from sglang_ext.bench.answers import Tokens, _Stream
from sglang_ext.errors import DemoError


def test_tokens_add_up() -> None:
    tokens = Tokens.from_report(100, {"device": 64, "host": 16, "storage": 8})
    assert (tokens.l1, tokens.l2, tokens.l3, tokens.cached, tokens.computed) == (64, 16, 8, 88, 12)
    assert tokens + Tokens(10, 1, 2, 3) == Tokens(110, 65, 18, 11)


def test_no_report_means_that_nothing_was_cached() -> None:
    assert Tokens.from_report(50, None) == Tokens(50)
    assert Tokens.from_report(50, {"device": 10, "host": None}) == Tokens(50, 10)


def test_a_report_of_more_tokens_than_the_prompt_has_is_refused() -> None:
    with pytest.raises(DemoError, match=r"60 \+ 50 \+ 0 cached tokens for a prompt of 100"):
        Tokens.from_report(100, {"device": 60, "host": 50})


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def test_a_stream_is_put_together() -> None:
    stream = _Stream()

    def delta(value: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"delta": value, "finish_reason": reason}]}

    def part(**function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, "id": function.pop("id", None), "function": function}]}

    # The role comes with the first generated token: it is output, though it has no text yet.
    assert stream.add(delta({"role": "assistant", "content": ""}))
    assert stream.add(delta({"content": "I "}))
    assert stream.add(delta(part(id="c1", name="ls", arguments="")))
    assert stream.add(delta(part(arguments='{"a": ')))
    assert stream.add(delta(part(arguments="true}")))
    assert stream.add(delta({}, "tool_calls"))
    assert not stream.add({"choices": [], "sglext": {"input_ids": [1, 2], "output_ids": [[3]]}})
    assert not stream.add({"choices": [], "usage": usage(2, 1)})
    assert stream.text == ["I "]
    assert stream.calls == {0: {"id": "c1", "name": "ls", "arguments": '{"a": true}'}}
    assert (stream.finish_reason, stream.prompt_tokens) == ("tool_calls", 2)
    answer = stream.answer(0.5, 1.0)
    assert (answer.prompt_ids, answer.output_ids) == ((1, 2), (3,))
    assert (answer.ttft_s, answer.total_s) == (0.5, 1.0)


def ended(extras: dict[str, Any], completion_tokens: int) -> _Stream:
    stream = _Stream()
    stream.add({"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]})
    stream.add({"choices": [], "sglext": extras})
    stream.add({"choices": [], "usage": usage(2, completion_tokens)})
    return stream


@pytest.mark.parametrize("extras", [{}, {"output_ids": None}, {"output_ids": [[]]}])
def test_tokens_without_their_ids_are_refused(extras: dict[str, Any]) -> None:
    with pytest.raises(DemoError, match=r"generated 4 tokens and returned no output ids"):
        ended({"input_ids": [1, 2], **extras}, 4).answer(0.1, 0.2)


def test_an_answer_of_no_token_needs_no_ids() -> None:
    assert ended({"input_ids": [1, 2]}, 0).answer(0.1, 0.2).output_ids == ()


def test_a_prompt_without_its_ids_is_refused() -> None:
    with pytest.raises(DemoError, match=r"counts 2 prompt tokens and returned 0"):
        ended({"output_ids": [[5]]}, 1).answer(0.1, 0.2)
