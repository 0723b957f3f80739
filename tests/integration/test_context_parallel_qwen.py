"""Dense Qwen2 and Qwen3 on two ranks: biases, and heads that are normalised."""

import random
from dataclasses import dataclass
from functools import partial

import pytest
from support.collectives import Collectives, ask_while_running
from support.oracle import Oracle
from support.serving import generate, start

from sglang_ext.bench.server import ServerProcess

pytestmark = pytest.mark.server

# Of models of two layers; see test_context_parallel_models.py.
BOUND = 1e-5
RANKS, CHUNK, NEW_TOKENS = 2, 256, 12


@dataclass
class Served:
    server: ServerProcess
    oracle: Oracle
    collectives: Collectives

    @property
    def layers(self) -> int:
        return self.oracle.model.config.num_hidden_layers

    def check(self, prompt):
        """Greedy tokens and log-probabilities of transformers; returns the answer."""
        answer = generate(self.server, prompt, NEW_TOKENS, return_logprob=True)
        assert self.oracle.error(prompt, answer) <= BOUND
        return answer


@pytest.fixture(scope="module", params=["tiny_qwen2", "tiny_qwen3"])
def served(request, tmp_path_factory):
    model, folder = request.getfixturevalue(request.param), tmp_path_factory.mktemp("served")
    collectives = Collectives(folder / "calls.txt")
    server = start(
        model,
        folder / "log",
        *("--ext-cp-size", "2", "--max-total-tokens", "8192"),
        *("--chunked-prefill-size", str(CHUNK), "--enable-mixed-chunk"),
        env=collectives.environment,
    )
    yield Served(server, Oracle(model), collectives)
    server.stop()


def prompt_of(tokens, seed=0):
    return random.Random(1000 * seed + tokens).choices(range(1000, 40_000), k=tokens)


@pytest.mark.parametrize("tokens", [1, 2, 65, CHUNK + 1, 700])
def test_any_length_is_answered_as_by_transformers(served, tokens):
    answer = served.check(prompt_of(tokens))
    assert answer["meta_info"]["cached_tokens"] == 0


def test_new_tokens_behind_a_cached_prefix(served):
    prefix = prompt_of(200, seed=1)
    generate(served.server, prefix, 1)
    answer = served.check(prefix + prompt_of(30, seed=2))
    assert answer["meta_info"]["cached_tokens"] == 200


def test_requests_mixed_with_running_ones(served):
    """SGLang mixes only where nobody asks for log-probabilities."""
    short, long = ([prompt_of(n, seed=3) for n in part] for part in ((40, 3, 90), (600, 1, 300)))
    ask = partial(generate, served.server)
    answers, calls = ask_while_running(served.collectives, ask, short, long)
    for prompt, answer in answers:
        served.oracle.greedy(prompt, answer["output_ids"])
    forwards = len(calls) / RANKS / served.layers
    rows = sum(call.rows for call in calls) / served.layers
    assert rows > sum(map(len, short + long)) + forwards


def test_one_allgather_a_layer(served):
    served.collectives.since_last()
    generate(served.server, prompt_of(33, seed=4), 1)
    calls = served.collectives.since_last()
    assert len([call for call in calls if call.of_attention]) == RANKS * served.layers
    others = [call for call in calls if not call.of_attention and call.rows > 1]
    assert len(others) <= RANKS * 4, others  # embeddings, hidden states, logits: once a forward
