"""SmolLM2 on the reference device says what transformers says."""

import json
from pathlib import Path

import pytest
from support.oracle import Oracle
from support.serving import generate, post, start

pytestmark = pytest.mark.server

# Both add float32 numbers in another order; 30 layers leave up to 3e-5 (docs/LOG.md).
LOGPROB_BOUND = 1e-4
NEW_TOKENS = 24
PROMPTS = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    server = start(smollm2, log, "--max-total-tokens", "16384")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prompts(smollm2):
    """Token ids of each prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return [tokenizer(prompt).input_ids for prompt in PROMPTS]


@pytest.fixture(scope="module")
def check(smollm2):
    """Compares an answer with transformers."""
    oracle = Oracle(smollm2)

    def compare(answer, ids):
        assert len(answer["output_ids"]) == NEW_TOKENS
        assert oracle.error(ids, answer) <= LOGPROB_BOUND

    return compare


def test_there_are_twenty_prompts_of_different_lengths(prompts):
    assert len(prompts) == 20
    assert len({len(ids) for ids in prompts}) > 10


def test_greedy_tokens_and_logprobs_are_those_of_transformers(server, prompts, check):
    for ids in prompts:
        check(generate(server, ids, NEW_TOKENS, return_logprob=True), ids)


def test_the_same_in_one_batch_and_after_a_prefix_hit(server, prompts, check):
    sampling = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": prompts, "sampling_params": sampling, "return_logprob": True}
    for ids in prompts:  # whatever ran before, the prompts are cached now
        generate(server, ids, 1)
    answers = post(server, "/generate", body)
    for answer, ids in zip(answers, prompts, strict=True):
        assert answer["meta_info"]["cached_tokens"] == len(ids) - 1
        check(answer, ids)
