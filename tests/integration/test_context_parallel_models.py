"""Context parallelism with experts, on more ranks than cores, and where it is refused.

Apart from `test_context_parallel`, whose ranks would take the cores of these.
"""

import random

import pytest
from support.oracle import Oracle
from support.serving import generate, launch, start

pytestmark = pytest.mark.server

# Of models of two layers, whose logits reach 12: about ten steps of float32 there, two of bfloat16.
# Measured: 9e-6 and 0.10 (docs/context_parallel.md).
BOUNDS = {"float32": 1e-5, "bfloat16": 0.125}
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
            assert oracle.error(prompt, answer) <= BOUNDS["float32"]
        again = generate(server, [*prompt, 9, 8], NEW_TOKENS, return_logprob=True)
        assert oracle.error([*prompt, 9, 8], again) <= BOUNDS["float32"]
        assert again["meta_info"]["cached_tokens"] >= 1400
    finally:
        server.stop()


@pytest.mark.parametrize("dtype", BOUNDS)
def test_two_layers_on_two_ranks(tiny_llama, dtype, tmp_path):
    """Every log-probability of a prompt, against transformers in float32."""
    oracle = Oracle(tiny_llama)
    flags = ("--ext-cp-size", "2", "--max-total-tokens", "4096", "--dtype", dtype)
    server = start(tiny_llama, tmp_path / "log", *flags)
    try:
        for tokens in (5, 17, 64, 65, 200, 500):
            prompt = prompt_of(tokens)
            answer = generate(server, prompt, 1, return_logprob=True, logprob_start_len=0)
            assert oracle.prompt_error(prompt, answer) <= BOUNDS[dtype]
    finally:
        server.stop()


def test_lengths_up_to_8000(tiny_llama, tmp_path):
    """In chunks of 2,048, behind a prefix of another prompt or not: the tokens of transformers."""
    oracle = Oracle(tiny_llama)
    flags = ("--ext-cp-size", "2", "--max-total-tokens", "20000", "--chunked-prefill-size", "2048")
    lengths = [8000, *random.Random(6).sample(range(2_000, 8_000), 3)]
    server = start(tiny_llama, tmp_path / "log", *flags)
    try:
        for tokens in lengths:
            prompt = prompt_of(tokens)
            answer = generate(server, prompt, NEW_TOKENS, return_logprob=True)
            assert oracle.error(prompt, answer) <= BOUNDS["float32"]
        branch = [*prompt_of(lengths[0])[:7001], *prompt_of(900)]
        answer = generate(server, branch, NEW_TOKENS, return_logprob=True)
        assert oracle.error(branch, answer) <= BOUNDS["float32"]
    finally:
        server.stop()


def test_sglangs_own_context_parallelism_is_refused_at_start(tiny_llama):
    flags = ("--tp-size", "2", "--attn-cp-size", "2", "--enable-prefill-cp")
    result = launch("--model-path", str(tiny_llama), *flags, "--cp-strategy", "zigzag")
    assert result.returncode != 0
    assert "use --ext-cp-size instead" in result.stderr + result.stdout
