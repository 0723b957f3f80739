"""Several ranks over gloo, mixtures of experts, and both at once."""

import random

import pytest
from support.serving import generate, start

pytestmark = pytest.mark.server

PROMPT = [random.Random(3).randrange(1000, 40_000) for _ in range(300)]


def answers(model, log, *flags, repeats=1):
    """The same prompt several times: cold first, then after a prefix hit."""
    server = start(model, log, "--max-total-tokens", "4096", *flags)
    try:
        replies = [generate(server, PROMPT, 16) for _ in range(repeats)]
    finally:
        server.stop()
    return [reply["output_ids"] for reply in replies], log.read_text()


def test_two_ranks_say_what_one_says(tiny_llama, tmp_path):
    one, _ = answers(tiny_llama, tmp_path / "one.log")
    two, log = answers(tiny_llama, tmp_path / "two.log", "--tp-size", "2", repeats=2)
    assert two == [one[0], one[0]]
    assert log.count("Bound to processors") == 2


def test_experts_on_one_rank_and_on_two_with_the_cache(tiny_qwen3_moe, tmp_path):
    one, _ = answers(tiny_qwen3_moe, tmp_path / "one.log")
    flags = ("--tp-size", "2", "--ext-cache", "--ext-l2-size", "64MB")
    flags += ("--ext-l3-dir", str(tmp_path / "kv"), "--ext-l3-size", "100MB")
    two, _ = answers(tiny_qwen3_moe, tmp_path / "two.log", *flags, repeats=2)
    assert two == [one[0], one[0]]
