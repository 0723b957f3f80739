"""Latent attention (MLA) on one rank, and split over two: the answers of transformers."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.collectives import Collectives
from support.oracle import Oracle
from support.serving import generate, start

from sglang_ext.context_parallel.plan import plan

pytestmark = pytest.mark.server

# Two layers whose logits reach 12; one rank is 1.1e-5 from transformers (docs/context_parallel.md).
LOGPROB_BOUND = 2e-5
RANKS, CHUNK, NEW_TOKENS = 2, 512, 12
FLAGS = ("--max-total-tokens", "8192", "--chunked-prefill-size", str(CHUNK))


@pytest.fixture(scope="module")
def oracle(tiny_deepseek_v3):
    return Oracle(tiny_deepseek_v3)


@pytest.fixture(scope="module")
def shape(tiny_deepseek_v3):
    return json.loads((tiny_deepseek_v3 / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def collectives(tmp_path_factory):
    return Collectives(tmp_path_factory.mktemp("collectives") / "calls.txt")


@pytest.fixture(scope="module")
def server(tiny_deepseek_v3, collectives, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    flags = ("--ext-cp-size", str(RANKS), "--enable-mixed-chunk", *FLAGS)
    server = start(tiny_deepseek_v3, log, *flags, env=collectives.environment)
    yield server
    server.stop()


def prompt_of(tokens, seed=0):
    return random.Random(1000 * seed + tokens).choices(range(1000, 40_000), k=tokens)


def check(server, oracle, prompt):
    answer = generate(server, prompt, NEW_TOKENS, return_logprob=True)
    assert oracle.error(prompt, answer) <= LOGPROB_BOUND
    return answer["meta_info"]["cached_tokens"]


@pytest.mark.parametrize("tokens", [1, 2, 5, 64, 333, CHUNK + 1, 1400])
def test_any_length_and_chunks(server, oracle, tokens):
    assert check(server, oracle, prompt_of(tokens)) == 0


@pytest.mark.parametrize("more", [1, 5, 200])
def test_new_tokens_behind_a_cached_prefix(server, oracle, more):
    prefix = prompt_of(400, seed=1)
    generate(server, prefix, 1)
    assert check(server, oracle, prefix + prompt_of(more, seed=2)) == 400


def test_requests_of_one_batch(server, oracle):
    prompts = [prompt_of(tokens, seed=3) for tokens in (40, 3, 90, 17, 1200, 1, 700, 300)]
    with ThreadPoolExecutor(len(prompts)) as clients:
        list(clients.map(lambda prompt: check(server, oracle, prompt), prompts))


def test_requests_mixed_with_running_ones(server, oracle, collectives, shape):
    """SGLang mixes only where nobody asks for log-probabilities."""
    short, long = [prompt_of(n, seed=8) for n in (40, 3)], [prompt_of(n, seed=8) for n in (900, 7)]
    collectives.since_last()
    with ThreadPoolExecutor(4) as clients:
        asked = [(prompt, clients.submit(generate, server, prompt, 256)) for prompt in short]
        begun, deadline = [], time.monotonic() + 60
        while not begun and time.monotonic() < deadline:
            time.sleep(0.05)
            begun = collectives.since_last()
        asked += [(prompt, clients.submit(generate, server, prompt, 24)) for prompt in long]
        answers = [(prompt, answer.result()) for prompt, answer in asked]
    for prompt, answer in answers:
        oracle.greedy(prompt, answer["output_ids"])
    # Beyond the prompts, rounding aside, split batches computed tokens of running requests.
    calls = [call for call in begun + collectives.since_last() if call.of_attention]
    layers = shape["num_hidden_layers"]
    computed = sum(call.rows for call in calls) / layers
    assert computed > sum(map(len, short + long)) + len(calls) / RANKS / layers


def test_logprobs_of_the_prompt_are_in_its_own_order(server, oracle):
    prompt = prompt_of(150, seed=5)
    answer = generate(server, prompt, 1, return_logprob=True, logprob_start_len=0)
    assert oracle.prompt_error(prompt, answer) <= LOGPROB_BOUND


@pytest.mark.parametrize("tokens", [32, 501])
def test_one_allgather_a_layer_of_just_its_latents(server, collectives, shape, tokens):
    row = (shape["kv_lora_rank"] + shape["qk_rope_head_dim"]) * 4
    hidden = shape["hidden_size"] * 4
    rows = plan([tokens], [0], RANKS).rows
    collectives.since_last()
    generate(server, prompt_of(tokens, seed=6), 1)
    calls = collectives.since_last()
    ranks = {call.process for call in calls if call.of_attention}
    assert len(ranks) == RANKS
    for rank in ranks:
        mine = [call for call in calls if call.process == rank]
        attention = [call for call in mine if call.of_attention]
        assert [call.sent_bytes for call in attention] == [rows * row] * shape["num_hidden_layers"]
        # Of the rest the layer of experts gathers its rows and scatters its sums, padded by SGLang
        # to a multiple of the ranks; embeddings, hidden states and logits are once a forward. The
        # dense layer has none.
        rest = [(c.name, c.sent_bytes // hidden) for c in mine if not c.of_attention]
        padded = -(-rows // RANKS) * RANKS
        assert rest == [
            ("all_reduce", tokens),
            ("all_gather_single", padded),
            ("reduce_scatter_single", RANKS * padded),
            ("all_gather_single", padded),
            ("all_gather_single", shape["vocab_size"] * 4 // RANKS // hidden),
        ]


def test_one_rank(tiny_deepseek_v3, oracle, tmp_path):
    server = start(tiny_deepseek_v3, tmp_path / "log", *FLAGS)
    try:
        for tokens in (1, 64, 333, 1400):
            assert check(server, oracle, prompt_of(tokens)) == 0
        assert check(server, oracle, [*prompt_of(1400), 9, 8]) >= 1400
    finally:
        server.stop()
