"""The real server on three tiers: what each serves, what survives a kill, what stays equal."""

import stat

import pytest
from support.serving import flush, generate, get, post, served_by, start
from support.stored_pages import wait_for_pages
from support.tiered import PAGE, WHOLE, flags, prompts

from sglang_ext.plugin.table import HOOKS

PARSER = ("--tool-call-parser", "hermes")

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("l3") / "kv"


@pytest.fixture(scope="module")
def server(tiny_llama, folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    server = start(tiny_llama, log, *flags(folder), *PARSER)
    yield server
    server.stop()


def test_server_info_shows_what_is_in_effect(server, folder):
    info = get(server, "/server_info")["sglang_ext"]
    assert info["degraded"] is False
    assert info["config"]["cache_l1_tokens"] == 4000
    assert info["config"]["cache_l3_dir"] == str(folder)
    # The hooks of the disk tier and of the tree are needed where these are, in the scheduler.
    states = {seam["name"]: seam["state"] for seam in info["seams"]}
    assert set(states.values()) == {"applied", "not needed"}
    assert {name for name, state in states.items() if state != "applied"} == {
        "radix cache sglang_ext",
        *(hook.target for hook in HOOKS if {"disk_tier", "tree"}.intersection(hook.groups)),
    }


def test_each_tier_serves_and_answers_stay_equal(server, folder):
    first, *others = prompts(4)
    cold = generate(server, first)
    assert served_by(cold) == (0, 0, 0)
    again = generate(server, first)
    assert served_by(again) == (WHOLE, 0, 0)
    for other in others:
        generate(server, other)
    from_host = generate(server, first)
    device, host, storage = served_by(from_host)
    assert host > 0
    assert device + host + storage == WHOLE
    wait_for_pages(folder, 4 * (WHOLE // PAGE))
    tree = get(server, "/server_info")["internal_states"][0]["sglang_ext"]["tree"]
    assert tree["moves"]["written_storage"] == 4 * WHOLE
    assert tree["disk"] == {"conversations": 4, "trusted": False}, "each prompt, and by use so far"
    flush(server)
    from_disk = generate(server, first)
    assert served_by(from_disk) == (0, 0, WHOLE)
    answers = [a["output_ids"] for a in (cold, again, from_host, from_disk)]
    assert all(answer == answers[0] for answer in answers)


def test_folder_is_for_its_owner_alone(server, folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_disk_is_warm_after_a_kill(tiny_llama, tmp_path):
    folder = tmp_path / "kv"
    prompt = prompts(1, seed=7)[0]
    server = start(tiny_llama, tmp_path / "first.log", *flags(folder), *PARSER)
    try:
        before = generate(server, prompt)
        wait_for_pages(folder, WHOLE // PAGE)
        server.kill()
        assert not server.running
    finally:
        server.stop()
    server = start(tiny_llama, tmp_path / "second.log", *flags(folder), *PARSER)
    try:
        after = generate(server, prompt)
    finally:
        server.stop()
    assert served_by(after) == (0, 0, WHOLE)
    assert after["output_ids"] == before["output_ids"]


def test_tools_are_told_to_the_model_on_the_openai_endpoint(server):
    parameters = {"type": "object", "properties": {"level": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "set_level", "parameters": parameters}}
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": "Set it high."}],
        "max_tokens": 4,
        "temperature": 0,
    }
    plain = post(server, "/v1/chat/completions", body)
    with_tools = post(server, "/v1/chat/completions", {**body, "tools": [tool]})
    assert plain["choices"][0]["finish_reason"] == "length"
    assert with_tools["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 20
    assert with_tools["usage"]["completion_tokens"] == 4


def test_batch_of_prefills_and_decodes_equals_one_by_one(server):
    batch = prompts(3, seed=11) + [p[:40] for p in prompts(3, seed=12)]
    alone = [generate(server, prompt, 12)["output_ids"] for prompt in batch]
    flush(server)
    sampling = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
    together = post(server, "/generate", {"input_ids": batch, "sampling_params": sampling})
    assert [answer["output_ids"] for answer in together] == alone
