"""The disk tier under servers that end and start: weights, refreshing, replicas, second pools.

Apart from `test_disk_tier`, whose server would take memory and a core of these.
"""

import time

import pytest
from support.serving import flush, generate, get, launch, post, served_by, start
from support.sliding_window_model import make_sliding_window_model
from support.stored_pages import wait_for_pages
from support.tiered import CHAIN, WHOLE, flags, prompts, tier

from sglang_ext.cache import upkeep

pytestmark = pytest.mark.server


def test_a_store_of_a_newer_format_is_refused(tiny_llama, tmp_path):
    upkeep.PageStore(tmp_path / "kv" / "rank-0", upkeep.StoreOptions(2_000_000)).close()
    (tmp_path / "kv").chmod(0o700)
    root = tmp_path / "kv" / "rank-0" / "STORE"
    root.write_text(root.read_text().replace('"version": 1', '"version": 99'))
    result = launch("--model-path", str(tiny_llama), *flags(tmp_path / "kv"))
    assert result.returncode == 2
    assert "format 99" in result.stderr
    assert "Traceback" not in result.stderr


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
        assert shown["uncopied_pages"] == shown["written_pages"], "pages were copied"
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
