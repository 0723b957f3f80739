"""Context parallelism with experts, on more ranks than cores, and where it is refused.

Apart from `test_context_parallel`, whose ranks would take the cores of these.
"""

import random

import pytest
from support.oracle import Oracle
from support.serving import generate, launch, start

pytestmark = pytest.mark.server

LOGPROB_BOUND = 1e-4
NEW_TOKENS = 12


def prompt_of(tokens):
    return random.Random(tokens).choices(range(1000, 40_000), k=tokens)


def test_experts_on_four_ranks(tiny_qwen3_moe, tmp_path):
    oracle = Oracle(tiny_qwen3_moe)
    flags = ("--ext-cp-size", "4", "--max-total-tokens", "8192", "--chunked-prefill-size", "512")
    server = start(tiny_qwen3_moe, tmp_path / "log", *flags)
    try:
        for tokens in (1, 2, 5, 64, 333, 1400):
            prompt = prompt_of(tokens)
            answer = generate(server, prompt, NEW_TOKENS, return_logprob=True)
            assert oracle.error(prompt, answer) <= LOGPROB_BOUND
        again = generate(server, [*prompt, 9, 8], NEW_TOKENS, return_logprob=True)
        assert oracle.error([*prompt, 9, 8], again) <= LOGPROB_BOUND
        assert again["meta_info"]["cached_tokens"] >= 1400
    finally:
        server.stop()


def test_sglangs_own_context_parallelism_is_refused_at_start(tiny_llama):
    flags = ("--tp-size", "2", "--attn-cp-size", "2", "--enable-prefill-cp")
    result = launch("--model-path", str(tiny_llama), *flags, "--cp-strategy", "zigzag")
    assert result.returncode != 0
    assert "use --ext-cp-size instead" in result.stderr + result.stdout
