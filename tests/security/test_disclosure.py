"""What a server with our flags tells: to whom it listens, what it logs, who may read its files."""

import random
import stat

import psutil
import pytest
from support.serving import flush, generate, get, post, served_by, start
from support.stored_pages import stored, wait_for_pages

pytestmark = pytest.mark.server

PHRASE = "the heron sleeps in pier fourteen"
SALT = "tenant-salt-7351"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("l3") / "kv"


@pytest.fixture(scope="module")
def server(tiny_llama, folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    flags = ("--ext-cache", "--ext-l1-tokens", "4k", "--ext-l2-size", "8MB")
    flags += ("--ext-l3-dir", str(folder), "--ext-l3-size", "50MB")
    server = start(tiny_llama, log, *flags)
    yield server
    server.stop()


def test_the_servers_own_port_is_on_loopback_alone(server):
    process = psutil.Process(server.pid)
    listening = [
        connection.laddr
        for member in (process, *process.children(recursive=True))
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert any(address.port == server.port for address in listening)
    # gloo and torch's store bind where torch tells them; the server's own port is what we promise.
    ours = {address.ip for address in listening if address.port == server.port}
    assert ours == {"127.0.0.1"}


def test_prompts_ids_and_salts_are_not_logged(server, folder):
    chance = random.Random(5)
    ids = [chance.randrange(10_000, 40_000) for _ in range(200)]
    sampling = {"max_new_tokens": 16, "temperature": 0, "ignore_eos": True}
    sampling["skip_special_tokens"] = False
    said = post(server, "/generate", {"text": PHRASE * 20, "sampling_params": sampling})
    salted = generate(server, ids, cache_salt=SALT)
    # The markers were really processed, so that there was something to log.
    assert len(said["text"].strip()) >= 8
    assert said["meta_info"]["prompt_tokens"] >= 20 * len(PHRASE.split())
    assert salted["meta_info"]["prompt_tokens"] == len(ids)
    assert sum(served_by(generate(server, ids))) == 0
    assert sum(served_by(generate(server, ids, cache_salt=SALT))) > 0
    wait_for_pages(folder, 3)  # what is written may be logged too
    told = server.log.read_text() + str(get(server, "/server_info"))
    assert "heron" not in told
    assert said["text"].strip() not in told
    assert SALT not in told
    assert f"{ids[0]}, {ids[1]}" not in told


def test_cached_pages_are_for_their_owner_alone(server, folder):
    chance = random.Random(6)
    before = len(stored(folder))
    generate(server, [chance.randrange(10_000, 40_000) for _ in range(200)])
    wait_for_pages(folder, before + 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_tenants_pages_on_disk_are_for_that_tenant_alone(server, folder):
    chance = random.Random(7)
    ids = [chance.randrange(10_000, 40_000) for _ in range(200)]
    before = len(stored(folder))
    generate(server, ids, cache_salt="one tenant")
    wait_for_pages(folder, before + 3)
    for other in ({"cache_salt": "another tenant"}, {"extra_key": "one tenant"}, {}):
        flush(server)
        assert sum(served_by(generate(server, ids, **other))) == 0
    flush(server)
    assert served_by(generate(server, ids, cache_salt="one tenant")) == (0, 0, 192)
