"""The disk tier under a real server: damage, sharing, refreshing, weights, what operators do."""

import time

import pytest
from support.serving import flush, generate, get, launch, post, served_by, start
from support.sliding_window_model import make_sliding_window_model
from support.stored_pages import stored, wait_for_pages
from support.tiered import PAGE, PROMPT, WHOLE, flags, prompts

from sglang_ext.cache import upkeep

CHAIN = PROMPT // PAGE

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("l3") / "kv"


@pytest.fixture(scope="module")
def server(tiny_llama, folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    server = start(tiny_llama, log, *flags(folder))
    yield server
    server.stop()


def tier(server):
    (state,) = get(server, "/server_info")["internal_states"]
    return state["sglang_ext"]["disk_tier"]


def fresh(server, folder, seed):
    """A prompt whose pages are on disk, those pages by depth, and its answer."""
    (prompt,) = prompts(1, seed)
    before = stored(folder)
    answer = generate(server, prompt)
    after = wait_for_pages(folder, len(before) + CHAIN)
    pages = {page.depth: page for key, page in after.items() if key not in before}
    assert sorted(pages) == list(range(CHAIN))
    return prompt, pages, answer


@pytest.mark.parametrize("damage", ["flip", "tear"])
def test_a_damaged_page_is_computed_anew_and_heals(server, folder, damage):
    prompt, pages, cold = fresh(server, folder, seed=damage)
    count = len(stored(folder))
    flush(server)
    bad = pages[CHAIN // 2]
    bad.flip(1000) if damage == "flip" else bad.tear()
    answer = generate(server, prompt)
    assert answer["output_ids"] == cold["output_ids"]
    assert served_by(answer) == (0, 0, CHAIN // 2 * PAGE)
    assert sum(tier(server)["dropped"].values()) > 0
    wait_for_pages(folder, count)
    flush(server)
    healed = generate(server, prompt)
    assert healed["output_ids"] == cold["output_ids"]
    assert served_by(healed) == (0, 0, WHOLE)


def test_a_second_server_on_the_folder_is_refused(server, folder, tiny_llama):
    result = launch("--model-path", str(tiny_llama), *flags(folder))
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("sglang-ext: error:")]
    assert len(lines) == 1, result.stderr
    assert f"{folder} is in use by the server with process id {server.pid}" in lines[0]
    assert generate(server, prompts(1, seed=3)[0])["output_ids"]


def test_a_store_of_a_newer_format_is_refused(tiny_llama, tmp_path):
    upkeep.PageStore(tmp_path / "kv" / "rank-0", upkeep.StoreOptions(2_000_000)).close()
    (tmp_path / "kv").chmod(0o700)
    root = tmp_path / "kv" / "rank-0" / "STORE"
    root.write_text(root.read_text().replace('"version": 1', '"version": 99'))
    result = launch("--model-path", str(tiny_llama), *flags(tmp_path / "kv"))
    assert result.returncode == 2
    assert "format 99" in result.stderr
    assert "Traceback" not in result.stderr


def test_looking_at_the_tier_of_a_running_server(server, folder):
    generate(server, prompts(1, seed=4)[0])
    wait_for_pages(folder, CHAIN)
    (state,) = [upkeep.look(store) for store in upkeep.stores_in(folder)]
    assert state.pages >= CHAIN
    assert state.in_use_by is not None
    shown = tier(server)
    assert (shown["off"], shown["faults"], shown["errors"]) == ("", {}, {})
    assert shown["pages"] >= CHAIN
    assert shown["capacity_bytes"] <= 200_000_000


def test_clearing_the_tier(server, folder):
    _, _, _ = fresh(server, folder, seed=5)
    foreign = folder / "rank-0" / "notes.txt"
    foreign.write_text("mine")
    post(server, "/hicache/storage-backend/clear", {})
    assert stored(folder) == {}
    assert foreign.read_text() == "mine"
    foreign.unlink()
    flush(server)
    fresh(server, folder, seed=6)


def test_changed_weights_find_no_page_of_the_old_ones(tiny_llama, tmp_path):
    (prompt,) = prompts(1, seed=8)
    folder = tmp_path / "kv"
    server = start(tiny_llama, tmp_path / "server.log", *flags(folder))
    try:
        generate(server, prompt)
        count = len(wait_for_pages(folder, CHAIN))
        flush(server)
        update = {"model_path": str(tiny_llama), "flush_cache": True}
        assert post(server, "/update_weights_from_disk", update)["success"]
        # The same weights in truth; nobody can know that they are.
        assert served_by(generate(server, prompt)) == (0, 0, 0)
        wait_for_pages(folder, count + CHAIN)
        flush(server)
        assert served_by(generate(server, prompt)) == (0, 0, WHOLE)
        kept = {"model_path": str(tiny_llama), "flush_cache": False}
        assert post(server, "/update_weights_from_disk", kept)["success"]
        flush(server)
        assert served_by(generate(server, prompt)) == (0, 0, 0)
        assert "weights" in tier(server)["off"]
    finally:
        server.stop()
    server = start(tiny_llama, tmp_path / "restarted.log", *flags(folder))
    try:
        assert served_by(generate(server, prompt)) == (0, 0, WHOLE)
    finally:
        server.stop()


def test_what_is_hot_in_memory_stays_on_disk(tiny_llama, tmp_path):
    hot, *others = prompts(8, seed=9)
    folder = tmp_path / "kv"
    # Three prompts fit onto the disk, two into device memory.
    server = start(tiny_llama, tmp_path / "server.log", *flags(folder, size="21MB"))
    try:
        generate(server, hot)
        wait_for_pages(folder, CHAIN)
        for other in others:
            assert sum(served_by(generate(server, hot))[:2]) == WHOLE
            before = tier(server)["written_pages"]
            generate(server, other)
            until_written(server, before + CHAIN)
        shown = tier(server)
        assert shown["evicted"] >= 2 * CHAIN
        assert shown["refreshed"]["hits"] >= len(others)
        flush(server)
        assert served_by(generate(server, hot)) == (0, 0, WHOLE)
        assert served_by(generate(server, others[0]))[2] < WHOLE
    finally:
        server.stop()


def test_replicas_have_stores_of_their_own(tiny_llama, tmp_path):
    folder = tmp_path / "kv"
    both = (*flags(folder), "--dp-size", "2")
    asked = prompts(2, seed=10)
    server = start(tiny_llama, tmp_path / "server.log", *both)
    try:
        cold = [generate(server, prompt) for prompt in asked]
        wait_for_pages(folder, 2 * CHAIN)
        states = get(server, "/server_info")["internal_states"]
        shown = [state["sglang_ext"]["disk_tier"] for state in states]
        assert sorted(one["store"] for one in shown) == [0, 1]
        assert sum(one["capacity_bytes"] for one in shown) <= 200_000_000
        server.kill()
    finally:
        server.stop()
    assert [upkeep.look(store).pages for store in upkeep.stores_in(folder)] == [CHAIN, CHAIN]
    server = start(tiny_llama, tmp_path / "restarted.log", *both)
    try:
        warm = [generate(server, prompt) for prompt in asked]
    finally:
        server.stop()
    # Requests go to the replicas in turn, in the same order as before.
    assert [served_by(answer) for answer in warm] == [(0, 0, WHOLE)] * 2
    assert [a["output_ids"] for a in warm] == [a["output_ids"] for a in cold]


def test_a_model_with_a_second_pool_is_served_from_disk(tiny_llama, tmp_path):
    model = make_sliding_window_model(tiny_llama, tmp_path / "model")
    folder = tmp_path / "kv"
    asked = prompts(2, seed=11)
    server = start(model, tmp_path / "server.log", *flags(folder))
    try:
        cold = [generate(server, prompt) for prompt in asked]
        # Beside those of keys and values, the window's pages at the end of each prompt.
        count = len(wait_for_pages(folder, 2 * CHAIN + 2))
        assert count < 4 * CHAIN
        flush(server)
        from_disk = [generate(server, prompt) for prompt in asked]
        server.kill()
    finally:
        server.stop()
    server = start(model, tmp_path / "restarted.log", *flags(folder))
    try:
        warm = [generate(server, prompt) for prompt in asked]
    finally:
        server.stop()
    assert "The cache policy is SGLang's own: the model has sliding windows" in (
        (tmp_path / "server.log").read_text()
    )
    assert [served_by(answer) for answer in (*from_disk, *warm)] == [(0, 0, WHOLE)] * 4
    for answers in (from_disk, warm):
        assert [a["output_ids"] for a in answers] == [a["output_ids"] for a in cold]


def until_written(server, count):
    for _ in range(300):
        if tier(server)["written_pages"] >= count:
            return
        time.sleep(0.1)
    raise AssertionError(f"{tier(server)['written_pages']} of {count} pages written")
