"""Pages of one token and of 64 under mixed traffic: sessions, branches, all tiers full."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.serving import flush, generate, get, served_by, start

TOKEN_BYTES = 4096  # of tiny-llama, in both tiers
L1, L2 = 2048, 4096
L3_BYTES = {1: 48_000_000, 64: 20_000_000}  # room for some 5,000 tokens

pytestmark = pytest.mark.server


def traffic(seed):
    """Prompts in rounds; those of a round are sent together.

    Ten sessions that grow, now and then rewrite their end, or begin with what another has.
    """
    rng = random.Random(seed)
    sessions = [
        [rng.randrange(1000, 40_000) for _ in range(rng.randrange(90, 300))] for _ in range(10)
    ]
    rounds = []
    for _ in range(30):
        sent = []
        for who in rng.sample(range(len(sessions)), 3):
            tokens, kind = sessions[who], rng.random()
            if kind < 0.15:
                tokens = tokens[: rng.randrange(len(tokens) // 2, len(tokens))]
            elif kind < 0.3 or len(tokens) > 900:
                other = sessions[rng.randrange(len(sessions))]
                tokens = other[: rng.randrange(len(other))]
            new = rng.randrange(20, 140)
            sessions[who] = [*tokens, *(rng.randrange(1000, 40_000) for _ in range(new))]
            sent.append(sessions[who])
        rounds.append(sent)
    return rounds


@pytest.mark.parametrize("page", [1, 64])
def test_answers_hold_while_all_tiers_forget(page, tiny_llama, tmp_path):
    flags = (
        *("--ext-cache", "--page-size", str(page), "--sleep-on-idle"),
        *("--ext-l1-tokens", str(L1), "--ext-l2-size", str(L2 * TOKEN_BYTES)),
        *("--ext-l3-dir", str(tmp_path / "kv"), "--ext-l3-size", str(L3_BYTES[page])),
    )
    server = start(tiny_llama, tmp_path / "server.log", *flags)
    try:
        answers, hits = [], [0, 0, 0]
        with ThreadPoolExecutor(3) as pool:
            for sent in traffic(page):
                found = pool.map(lambda prompt: generate(server, prompt, 4), sent)
                for prompt, answer in zip(sent, found, strict=True):
                    answers.append((prompt, answer["output_ids"]))
                    hits = [a + b for a, b in zip(hits, served_by(answer), strict=True)]
        state = get(server, "/server_info")["internal_states"][0]["sglang_ext"]
        flush(server)
        again = [generate(server, prompt, 4)["output_ids"] for prompt, _ in answers[::9]]
    finally:
        server.stop()
    tree, moves = state["tree"], state["tree"]["moves"]
    assert min(hits) > 0, hits
    assert tree["steered"]
    assert moves.get("refused", 0) == moves.get("own_walks", 0) == moves.get("lost", 0) == 0
    assert tree["tokens"].get("faults", 0) == 0
    assert moves["demoted"] > 0
    assert moves["lost_host"] > 0
    assert moves["evicted_storage"] > 0
    assert state["disk_tier"]["off"] in (None, False, "")
    assert again == [ids for _, ids in answers[::9]]
    assert "Traceback" not in (tmp_path / "server.log").read_text(errors="replace")
