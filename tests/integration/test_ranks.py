"""Several ranks over gloo, mixtures of experts, and both at once."""

import random

import pytest
from support.serving import flush, generate, get, served_by, start
from support.stored_pages import wait_for_pages

from sglang_ext.cache import upkeep

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
    folder = tmp_path / "kv"
    flags = ("--tp-size", "2", "--ext-cache", "--ext-l2-size", "64MB", "--max-total-tokens", "4096")
    flags += ("--ext-l3-dir", str(folder), "--ext-l3-size", "100MB")
    whole = len(PROMPT) // 64 * 64
    server = start(tiny_qwen3_moe, tmp_path / "two.log", *flags)
    try:
        cold = generate(server, PROMPT, 16)
        again = generate(server, PROMPT, 16)
        wait_for_pages(folder, 2 * (whole // 64))
        flush(server)
        from_disk = generate(server, PROMPT, 16)
        server.kill()
    finally:
        server.stop()
    # Each rank has its own store, and half of the size.
    stores = upkeep.stores_in(folder)
    assert [store.name for store in stores] == ["rank-0", "rank-1"]
    assert [upkeep.look(store).pages for store in stores] == [whole // 64] * 2
    server = start(tiny_qwen3_moe, tmp_path / "restarted.log", *flags)
    try:
        after_kill = generate(server, PROMPT, 16)
    finally:
        server.stop()
    assert served_by(from_disk) == served_by(after_kill) == (0, 0, whole)
    assert [a["output_ids"] for a in (cold, again, from_disk, after_kill)] == [one[0]] * 4


def test_two_ranks_under_eviction_stay_alike(tiny_llama, tmp_path):
    """SGLang compares each look-up, insert and eviction over the ranks, and our victims with them.

    It ends the server where they differ.
    """
    log, rng = tmp_path / "two.log", random.Random(5)
    flags = ("--tp-size", "2", "--ext-cache", "--ext-l1-tokens", "2k", "--ext-l2-size", "10MB")
    flags += ("--ext-l3-dir", str(tmp_path / "kv"), "--ext-l3-size", "60MB")
    server = start(tiny_llama, log, *flags, env={"SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"})
    try:
        sessions = [[rng.randrange(1000, 40_000) for _ in range(300)] for _ in range(12)]
        for number in range(60):
            prompt = sessions[rng.randrange(len(sessions))]
            reply = generate(server, prompt, 4)
            prompt += [*reply["output_ids"], *(rng.randrange(1000, 40_000) for _ in range(20))]
            if number % 20 == 19:
                prompt[:] = prompt[:200]
        tree = get(server, "/server_info")["internal_states"][0]["sglang_ext"]["tree"]
    finally:
        server.stop()
    assert tree["steered"]
    moves = tree["moves"]
    assert moves["demoted"] > 2000 < moves["lost_host"], "both tiers have evicted"
    assert moves.get("lost", 0) == moves.get("refused", 0) == 0
    assert tree["learned"]["returns"] > 30
    assert "diverged" not in log.read_text()
