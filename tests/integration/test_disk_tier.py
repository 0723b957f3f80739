"""The disk tier under a real server: damage, sharing, what operators do."""

import pytest
from support.serving import flush, generate, launch, post, served_by, start
from support.stored_pages import stored, wait_for_pages
from support.tiered import CHAIN, PAGE, WHOLE, flags, prompts, tier

from sglang_ext.cache import upkeep

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
