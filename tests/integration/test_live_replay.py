"""The server replays a part of a real trace: it reports what `replay` says, tier by tier."""

import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.serving import generate, get, post, served_by, start
from support.stored_pages import wait_for_pages

from sglang_ext.replay.record import record
from sglang_ext.replay.run import replay
from sglang_ext.replay.trace import read_trace

EXCERPT = Path(__file__).parents[1] / "data" / "claude_code_excerpt.jsonl"
L1, L2 = 4096, 8192
TOKEN_BYTES = 4096  # of tiny-llama, in both tiers

ANSWERS = []  # of the live server, in order

pytestmark = pytest.mark.server


def prompts(trace):
    """Prompts with exactly the shared prefixes of the trace, and a token more that is asked for."""
    rng = random.Random(0)
    made = []
    for parent, shared, blocks in zip(trace.parent, trace.shared, trace.blocks, strict=True):
        size = trace.block_tokens
        prefix = made[parent][: shared * size] if parent >= 0 else []
        new = (int(blocks) - int(shared)) * size
        made.append([*prefix, *(rng.randrange(1000, 40_000) for _ in range(new))])
    return [[*prompt, 1] for prompt in made]


@pytest.fixture(scope="module")
def live(tiny_llama, tmp_path_factory):
    """The server, its log of requests, and by which tier each request was served."""
    folder = tmp_path_factory.mktemp("live")
    trace = read_trace(EXCERPT)
    flags = (
        *("--ext-cache", "--page-size", str(trace.block_tokens), "--enable-metrics"),
        *("--ext-l1-tokens", str(L1), "--ext-l2-size", str(L2 * TOKEN_BYTES)),
        *("--ext-l3-dir", str(folder / "kv"), "--ext-l3-size", "1GB"),
        *("--ext-cache-record", str(folder / "requests.log"), "--sleep-on-idle"),
    )
    server = start(tiny_llama, folder / "server.log", *flags)
    try:
        served, pages = [], 0
        ANSWERS.clear()
        for request, prompt in enumerate(prompts(trace)):
            answer = generate(server, prompt, 1)
            served.append(served_by(answer))
            ANSWERS.append(answer["output_ids"])
            pages += int(trace.blocks[request] - trace.shared[request])
            # Sent while copies to the next tiers were under way, requests moved up to 1.5 points
            # between L1 and L2, from run to run.
            wait_for_pages(folder / "kv", pages)
        time.sleep(1)
        yield server, trace, served, folder / "requests.log"
    finally:
        server.stop()


def shares(trace, served):
    total = float(trace.blocks.sum()) * trace.block_tokens
    return [sum(tier) / total for tier in zip(*served, strict=True)]


def test_server_reports_what_replay_predicts(live):
    _, trace, served, _ = live
    found = shares(trace, served)
    # Under write-through L2 holds a copy of L1, so what it adds is the rest of it.
    tiers = (L1, L2 - L1, 10**7)
    (row,) = replay(trace, ["lru"], [], tiers=tiers).rows
    predicted = [row.l1_hit, row.l2_hit, row.l3_hit]
    assert found == pytest.approx(predicted, abs=0.01)
    assert min(found) > 0.0


def test_log_of_requests_is_the_trace_that_was_sent(live, tmp_path):
    _, trace, served, log = live
    record(log, tmp_path / "trace.jsonl.gz")
    again = read_trace(tmp_path / "trace.jsonl.gz")
    assert list(again.blocks[-len(served) :]) == list(trace.blocks)
    assert again.ideal_hit == pytest.approx(trace.ideal_hit, abs=0.005)


def test_answers_are_those_of_stock(live, tiny_llama, tmp_path):
    _, trace, *_ = live
    server = start(tiny_llama, tmp_path / "stock.log", "--max-total-tokens", "32768")
    try:
        stock = [generate(server, prompt, 1)["output_ids"] for prompt in prompts(trace)[::4]]
    finally:
        server.stop()
    assert stock == ANSWERS[::4]


def test_tree_says_what_it_did(live):
    server, _, served, _ = live
    tree = get(server, "/server_info")["internal_states"][0]["sglang_ext"]["tree"]
    assert tree["steered"] is True
    assert tree["policy"] == "ext"
    for tier, tokens in zip(("device", "host", "storage"), zip(*served, strict=True), strict=True):
        assert tree["tokens"][f"hit_{tier}"] == sum(tokens)
    assert tree["moves"].get("refused", 0) == tree["moves"].get("own_walks", 0) == 0
    assert tree["moves"]["demoted"] > 0
    assert tree["regretted_tokens"] > 0


def test_metrics_are_in_sglangs_endpoint(live):
    server, _, served, _ = live
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    shown = {
        line.split("{")[1].split("}")[0]: float(line.split()[-1])
        for line in lines
        if line.startswith("sglang_ext:cache_tokens_total")
    }
    of_host = [
        value for labels, value in shown.items() if 'tier="host"' in labels and "hit" in labels
    ]
    assert of_host == [sum(host for _, host, _ in served)]
    assert any(line.startswith("sglang_ext:session_back") for line in lines)


def test_advice_and_names_reach_the_policy(live):
    server, *_ = live
    before = get(server, "/server_info")["internal_states"][0]["sglang_ext"]["tree"]["tokens"]
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": "A turn of a session with a name."}],
        "max_tokens": 2,
        "metadata": {"session_id": "named"},
    }
    post(server, "/v1/chat/completions", body)
    for path in ("/ext/session", "/v1/ext/session"):
        advice = {"action": "pin", "session": "named", "seconds": 60}
        assert post(server, path, advice) == {"accepted": "pin"}
    post(server, "/v1/chat/completions", {**body, "metadata": {"session_id": "other"}})
    after = get(server, "/server_info")["internal_states"][0]["sglang_ext"]["tree"]["tokens"]
    assert after.get("advice_pin", 0) - before.get("advice_pin", 0) == 2


@pytest.mark.parametrize("advice", [{}, {"action": "dance", "session": "s"}, {"action": "pin"}])
def test_what_is_no_advice_is_refused(live, advice):
    server, *_ = live
    with pytest.raises(urllib.error.HTTPError) as refusal:
        post(server, "/v1/ext/session", advice)
    assert refusal.value.code == 400


def test_example_runs(live):
    server, *_ = live
    example = Path(__file__).parents[2] / "examples" / "session_advice.py"
    done = subprocess.run(
        [sys.executable, example, server.base_url], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if "accepted" in line] == [
        f"{{'accepted': '{action}'}}" for action in ("pause", "pin", "resume", "end")
    ]
    first, second = (line for line in lines if "prompt tokens" in line)
    assert first.endswith(" 0 from cache")
    assert int(second.split(", ")[1].split()[0]) > 100
