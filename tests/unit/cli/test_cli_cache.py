"""``sglang-ext cache`` as it is typed."""

import json
import subprocess
import sys

import pytest
from support.stored_pages import stored

from sglang_ext.cache.store import Page, PageStore, StoreOptions

NAMESPACE = b"n" * 32
OPTIONS = StoreOptions(4_000_000)


@pytest.fixture
def folder(tmp_path):
    with PageStore(tmp_path / "rank-0", OPTIONS) as store:
        pages = [Page(bytes([n]) * 32, None, [bytes([n]) * 50_000]) for n in range(1, 11)]
        assert all(store.write(NAMESPACE, pages))
    return tmp_path


def run(*words):
    command = [sys.executable, "-m", "sglang_ext.cli", "cache", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def report(folder, *words):
    file = folder / "report.json"
    result = run(*words, "--json", file)
    return result, json.loads(file.read_text())


def test_stat(folder):
    result, told = report(folder, "stat", folder)
    assert result.returncode == 0, result.stderr
    assert told["ok"] is True
    assert told["pages"] == 10
    assert told["stores"][0]["in_use_by"] is None
    assert "rank-0" in result.stdout
    with PageStore(folder / "rank-0", OPTIONS):
        assert "process" in run("stat", folder).stdout


def test_stat_of_a_store_that_cannot_be_opened(folder):
    (folder / "rank-0").chmod(0o755)
    result, told = report(folder, "stat", folder)
    assert result.returncode == 1
    assert "chmod 700" in result.stderr
    assert told["ok"] is False


def test_verify(folder):
    result, told = report(folder, "verify", folder)
    assert (result.returncode, told["ok"], told["pages"]) == (0, True, 10)
    stored(folder)[b"\x05" * 32].flip(10)
    result, told = report(folder, "verify", folder)
    assert (result.returncode, told["ok"]) == (1, False)
    assert told["findings"][0]["key"] == "05" * 32
    assert "1 findings" in result.stdout


def test_gc(folder):
    stored(folder)[b"\x05" * 32].flip(10)
    result, told = report(folder, "gc", folder)
    assert result.returncode == 0, result.stderr
    assert told["dropped_pages"] == 1
    assert run("verify", folder).returncode == 0
    result, told = report(folder, "gc", folder, "--size", "700KB")
    assert result.returncode == 0, result.stderr
    assert told["evicted_pages"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stat", "{folder}/nothing"], "does not exist"),
        (["verify", "{folder}/empty"], "holds no page store"),
        (["gc", "{folder}", "--size", "many"], "--size: 'many' is not a size"),
    ],
)
def test_wrong_use(folder, words, said):
    (folder / "empty").mkdir()
    result = run(*(word.format(folder=folder) for word in words))
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_beside_a_server(folder):
    with PageStore(folder / "rank-0", OPTIONS):
        for command in ("verify", "gc"):
            result = run(command, folder)
            assert result.returncode == 2
            assert "in use" in result.stderr
