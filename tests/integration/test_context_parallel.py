"""A server that splits its prefill batches over ranks says what one rank says."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support.collectives import Collectives, ask_while_running
from support.oracle import Oracle
from support.serving import flush, generate, get, served_by, start
from support.stored_pages import wait_for_pages

from sglang_ext.context_parallel.plan import plan

pytestmark = pytest.mark.server

# Those of one rank against transformers (test_parity.py): additions in another order.
LOGPROB_BOUND = 1e-4
RANKS, CHUNK, PAGE, NEW_TOKENS = 2, 512, 64, 12


@pytest.fixture(scope="module")
def prompt_of(smollm2):
    """Tokens of a text, from another place for each seed and length.

    Of a text: on two random tokens transformers itself is 3e-5 away from float64, ten times as far
    as on others.
    """
    from transformers import AutoTokenizer

    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(smollm2)(text).input_ids

    def prompt_of(tokens, seed=0):
        first = (911 * seed + 31 * tokens) % len(ids)
        return (2 * ids)[first : first + tokens]

    return prompt_of


@pytest.fixture(scope="module")
def collectives(tmp_path_factory):
    return Collectives(tmp_path_factory.mktemp("collectives") / "calls.txt")


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    return tmp_path_factory.mktemp("disk") / "kv"


@pytest.fixture(scope="module")
def server(smollm2, collectives, disk, tmp_path_factory):
    """Two ranks with everything that a prefill batch can be: cached, chunked, mixed."""
    server = start(
        smollm2,
        tmp_path_factory.mktemp("log") / "server.log",
        *("--ext-cp-size", "2", "--max-total-tokens", "6144"),
        *("--chunked-prefill-size", str(CHUNK), "--enable-mixed-chunk"),
        *("--ext-cache", "--ext-l2-size", "600MB", "--ext-l3-dir", str(disk)),
        *("--ext-l3-size", "2GB"),
        env=collectives.environment,
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def oracle(smollm2):
    return Oracle(smollm2)


@pytest.fixture(scope="module")
def layers(smollm2):
    return json.loads((smollm2 / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]


def ask(server, prompt, new_tokens=NEW_TOKENS):
    return generate(server, prompt, new_tokens, return_logprob=True)


def check(server, oracle, prompt):
    answer = ask(server, prompt)
    assert oracle.error(prompt, answer) <= LOGPROB_BOUND
    return answer


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 64, 65, 333, CHUNK, CHUNK + 1, 1700])
def test_any_length_is_answered_as_by_one_rank(server, prompt_of, oracle, tokens):
    answer = check(server, oracle, prompt_of(tokens))
    assert answer["meta_info"]["cached_tokens"] == 0


@pytest.mark.parametrize("more", [1, 5, 200])
def test_new_tokens_behind_a_cached_prefix(server, prompt_of, oracle, more):
    prefix = prompt_of(400, seed=1)
    generate(server, prefix, 1)
    answer = check(server, oracle, prefix + prompt_of(more, seed=2))
    assert answer["meta_info"]["cached_tokens"] == 400 // PAGE * PAGE


SHORT, LONG = (40, 3, 90, 17), (1200, 1, 700, 300)


def test_requests_of_one_batch(server, prompt_of, oracle):
    prompts = [prompt_of(tokens, seed=3) for tokens in SHORT + LONG]
    with ThreadPoolExecutor(len(prompts)) as clients:
        answers = list(clients.map(lambda prompt: ask(server, prompt), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert oracle.error(prompt, answer) <= LOGPROB_BOUND


def test_requests_mixed_with_running_ones(server, prompt_of, oracle, collectives, layers):
    """SGLang mixes only where nobody asks for log-probabilities."""
    short, long = ([prompt_of(tokens, seed=8) for tokens in part] for part in (SHORT, LONG))
    answers, calls = ask_while_running(collectives, partial(generate, server), short, long)
    for prompt, answer in answers:
        oracle.greedy(prompt, answer["output_ids"])
    # What was computed in split batches beyond the prompts, rounding aside, are tokens of requests
    # that were running: an unmixed batch has none.
    forwards = len(calls) / RANKS / layers
    computed = sum(call.rows for call in calls) / layers
    assert computed > sum(map(len, short + long)) + forwards


def test_prefixes_from_host_memory_and_disk(server, prompt_of, oracle, disk):
    prompt = prompt_of(640, seed=4)
    check(server, oracle, prompt)
    wait_for_pages(disk, 2 * (640 // PAGE))
    flush(server)
    answer = check(server, oracle, [*prompt, 5, 6, 7])
    assert served_by(answer) == (0, 0, 640)


def test_logprobs_of_the_prompt_are_in_its_own_order(server, prompt_of, oracle):
    prompt = prompt_of(150, seed=5)
    answer = generate(server, prompt, 1, return_logprob=True, logprob_start_len=0)
    assert oracle.prompt_error(prompt, answer) <= LOGPROB_BOUND


@pytest.mark.parametrize(("tokens", "seed"), [(32, 6), (501, 7)])
def test_one_allgather_a_layer_of_just_its_rows(
    server, prompt_of, smollm2, collectives, layers, tokens, seed
):
    shape = json.loads((smollm2 / "config.json").read_text(encoding="utf-8"))
    head_dim = shape["hidden_size"] // shape["num_attention_heads"]
    row = 2 * shape["num_key_value_heads"] * head_dim * 4
    collectives.since_last()
    generate(server, prompt_of(tokens, seed), 1)
    calls = collectives.since_last()
    ranks = {call.process for call in calls if call.of_attention}
    assert len(ranks) == 2
    for rank in ranks:
        mine = [call for call in calls if call.process == rank]
        attention = [call for call in mine if call.of_attention]
        assert len(attention) == layers
        # Received: (ranks - 1) / ranks * padded tokens * row, which is what the other rank sends.
        assert {call.sent_bytes for call in attention} == {plan([tokens], [0], 2).rows * row}
        rest = [call for call in mine if not call.of_attention and call.sent_bytes > row]
        assert len(rest) <= 4, rest  # embeddings, hidden states, logits: once a forward


def test_the_server_says_what_it_does(server):
    shown = get(server, "/server_info")["sglang_ext"]
    assert shown["config"]["context_parallel_size"] == 2
    assert not shown["degraded"]
