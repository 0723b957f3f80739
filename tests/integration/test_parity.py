"""SmolLM2 on the reference device says what transformers says."""

import json
from pathlib import Path

import pytest
import torch
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
    """Compares an answer with transformers.

    One forward over prompt and answer gives every step at once: if each token is the likeliest
    after those before it, the answer is transformers' greedy one. (Its ``generate`` would mask the
    end of the text to reach a length, and change the log-probabilities with it.)
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)

    def compare(answer, ids):
        new = answer["output_ids"]
        assert len(new) == NEW_TOKENS
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1]
        assert logits.argmax(-1).tolist() == new
        theirs = torch.log_softmax(logits.double(), -1)[range(NEW_TOKENS), new]
        ours = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
        assert (theirs - torch.tensor(ours)).abs().max() <= LOGPROB_BOUND

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
