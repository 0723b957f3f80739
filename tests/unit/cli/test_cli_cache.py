"""``sglang-ext cache`` as it is typed."""

import json
import os
import shutil
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


def two_ranks(folder):
    with PageStore(folder / "rank-1", OPTIONS) as store:
        assert all(store.write(NAMESPACE, [Page(b"x" * 32, None, [b"x" * 50_000])]))


@pytest.mark.parametrize("command", ["stat", "verify"])
def test_a_store_that_lost_its_root_is_told(folder, command):
    two_ranks(folder)
    (folder / "rank-0" / "STORE").unlink()
    result, told = report(folder, command, folder)
    assert result.returncode == (1 if command == "stat" else 2)
    assert "rank-0" in result.stderr
    assert "no superblock (STORE)" in result.stderr
    assert (told["ok"], told["pages"]) == (False, 1)


def test_verify_tells_all_though_a_store_cannot_be_opened(folder):
    two_ranks(folder)
    stored(folder)[b"\x05" * 32].flip(10)
    (folder / "rank-1" / "STORE").write_text("nonsense")
    result, told = report(folder, "verify", folder)
    assert result.returncode == 2
    assert [one["key"] for one in told["findings"]] == ["05" * 32]
    assert [one["store"] for one in told["errors"]] == ["rank-1"]


@pytest.mark.parametrize("how", ["damaged", "open to others"])
def test_gc_cleans_the_others_though_a_store_cannot_be_opened(folder, how):
    two_ranks(folder)
    (folder / "rank-0").rename(folder / "rank-2")
    stored(folder)[b"\x05" * 32].flip(10)
    if how == "damaged":
        (folder / "rank-1" / "STORE").write_text("nonsense")
    else:
        (folder / "rank-1").chmod(0o755)
    result, told = report(folder, "gc", folder)
    assert result.returncode == 2
    assert (told["ok"], told["dropped_pages"]) == (False, 1)
    assert [one["store"] for one in told["errors"]] == ["rank-1"]
    assert "rank-1: " in result.stderr


def test_a_store_in_use_is_told_with_what_to_do(folder):
    with PageStore(folder / "rank-0", OPTIONS):
        for command in ("verify", "gc"):
            result = run(command, folder)
            assert result.returncode == 2
            assert f"in use by process {os.getpid()}; end that process first" in result.stderr


@pytest.mark.parametrize("name", ["kv[red]z", "kv :smile: é"])
def test_a_folder_may_have_any_name(folder, name):
    stored(folder)[b"\x05" * 32].flip(10)
    store = (folder / "rank-0").rename(folder / name)
    assert name in run("stat", store).stdout
    result = run("verify", store)
    assert (result.returncode, result.stderr) == (1, "")
    assert name in result.stdout


@pytest.mark.parametrize(("cut", "said"), [(True, "it was cut"), (False, "it is gone")])
def test_verify_misses_no_segment(folder, cut, said):
    segment = min((folder / "rank-0" / "segments").iterdir())
    if cut:
        os.truncate(segment, segment.stat().st_size // 4)
    else:
        segment.unlink()
    result, told = report(folder, "verify", folder)
    assert result.returncode == 1
    (finding,) = told["findings"]
    assert finding["file"] == f"segments/{segment.name}"
    assert said in finding["what"]
    assert f"{10 - told['pages']} pages with it" in finding["what"]


def test_pages_dropped_on_purpose_are_no_finding(folder):
    with PageStore(folder / "rank-0", OPTIONS) as store:
        store.clear()
        assert store.write(NAMESPACE, [Page(b"x" * 32, None, [b"x" * 9_000])]) == [True]
    assert run("verify", folder).returncode == 0


def test_stat_tells_of_a_segment_of_another_store(folder):
    two_ranks(folder)
    segment = min((folder / "rank-1" / "segments").iterdir())
    shutil.copy(segment, folder / "rank-0" / "segments" / "000077.seg")
    result, told = report(folder, "stat", folder)
    assert result.returncode == 1
    assert "belongs to another store" in result.stderr
    assert told["stores"][0]["pages"] == 10


def test_gc_looks_at_its_size_first(folder):
    two_ranks(folder)
    result = run("gc", folder, "--ranks", 1, "--size", 1)
    assert result.returncode == 2
    assert "--size" in result.stderr
    assert (folder / "rank-1" / "STORE").exists()


def test_gc_removes_what_was_being_made(folder):
    for name in ("policy.state.77.new", "secret.1.new", "notes.77.new"):
        (folder / name).write_text("x")
    assert run("gc", folder).returncode == 0
    assert {path.name for path in folder.iterdir()} >= {"notes.77.new"}
    assert not list(folder.glob("policy*"))
    assert not list(folder.glob("secret*"))


def test_a_reader_that_stops_is_no_finding(folder):
    command = f"{sys.executable} -m sglang_ext.cli cache stat {folder}"
    script = f"({command}; echo $? >{folder}/code) | true"
    subprocess.run(["/bin/sh", "-c", script], check=False)
    assert (folder / "code").read_text().strip() in ("0", "141")


def test_json_needs_a_file(folder):
    result = run("stat", folder, "--json", "-")
    assert result.returncode == 2
    assert "'-' is no file" in result.stderr
