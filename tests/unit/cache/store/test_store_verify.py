"""Verification reads everything, tells what it finds, and changes nothing."""

import errno
import json

import pytest
from support.store_crash import crash, killed_when
from support.store_pages import chain, options, write

from sglang_ext.cache import upkeep
from sglang_ext.cache.store import Finding, PageStore, verify_store
from sglang_ext.cache.store.options import MIB

KEYS = chain("a", 30)


@pytest.fixture
def folder(tmp_path):
    with PageStore(tmp_path / "store", options()) as store:
        assert all(write(store, KEYS))
    return tmp_path / "store"


def content(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def damage(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_good_store_has_no_findings_and_reports_each_page(folder):
    before = content(folder)
    progress = []
    assert list(verify_store(folder, lambda done, pages: progress.append((done, pages)))) == []
    assert progress == [(number, 30) for number in range(1, 31)]
    assert content(folder) == before


def test_every_damaged_page_is_found_and_left_as_it_is(folder):
    for page in (0, 3, 4):
        damage(folder / "segments/000001.seg", 4096 + page * 12288 + 6000)
    before = content(folder)
    findings = list(verify_store(folder))
    assert [finding.key for finding in findings] == [KEYS[n].hex() for n in (0, 3, 4)]
    assert all("payload does not match" in finding.what for finding in findings)
    assert all(finding.file == "segments/000001.seg" for finding in findings)
    assert content(folder) == before
    assert list(verify_store(folder)) == findings


def test_a_damaged_checkpoint_and_segment_are_findings(folder):
    damage(folder / "index-1.ckpt", 5000)
    damage(folder / "segments/000002.seg", 9)
    findings = list(verify_store(folder))
    assert {finding.file for finding in findings} >= {"index-1.ckpt", "segments/000002.seg"}


def test_a_finding_is_plain_values_for_json():
    finding = Finding("segments/000001.seg", "ab", "cut")
    assert json.loads(json.dumps(finding.to_json())) == {
        "file": "segments/000001.seg",
        "key": "ab",
        "what": "cut",
        "explained": False,
    }


def test_the_lock_is_free_after_and_during_an_abandoned_verification(folder):
    damage(folder / "segments/000001.seg", 4096 + 6000)
    findings = verify_store(folder)
    next(findings)
    findings.close()
    PageStore(folder, options()).close()


def overwritten(folder, disk):
    """A full store that is killed after pages were overwritten and before that was recorded."""
    store = PageStore(folder, options(MIB), disk=disk)
    for number in range(20):
        write(store, chain(number, 10))
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "write" and ".log" in path.name else 0
    )
    assert not any(write(store, chain("last", 10)))
    crash(store)


def test_what_a_kill_explains_is_told_apart_from_damage(tmp_path, disk, caplog):
    overwritten(tmp_path / "s", disk)
    findings = list(verify_store(tmp_path / "s"))
    assert findings
    assert all(finding.explained for finding in findings)
    assert all("no damage" in finding.what for finding in findings)
    assert upkeep.verify(tmp_path / "s") == []
    assert f"{len(findings)} pages were evicted and overwritten" in caplog.text


def test_damage_in_a_store_that_was_killed_is_damage(tmp_path, disk):
    overwritten(tmp_path / "s", disk)
    [finding, *_] = verify_store(tmp_path / "s")
    slot = int(finding.what.split()[1].rstrip(":"))
    damage(tmp_path / "s" / finding.file, 4096 + slot * 12288 + 6000)
    [damaged] = upkeep.verify(tmp_path / "s")
    assert (damaged.file, damaged.key) == (finding.file, finding.key)


def test_pages_in_each_others_place_are_damage_even_after_a_kill(crashed):
    path = crashed / "segments/000001.seg"
    data = bytearray(path.read_bytes())
    first, second = slice(4096, 4096 + 12288), slice(4096 + 12288, 4096 + 2 * 12288)
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)
    assert len(upkeep.verify(crashed)) == 2


def test_a_page_in_the_place_of_another_is_damage_in_a_store_that_was_closed(folder, tmp_path):
    with PageStore(tmp_path / "other", options()) as store:
        assert all(write(store, chain("b", 30)))
    page = (tmp_path / "other/segments/000001.seg").read_bytes()[4096 : 4096 + 12288]
    with (folder / "segments/000001.seg").open("r+b") as file:
        file.seek(4096)
        file.write(page)
    assert len(upkeep.verify(folder)) == 1


@pytest.mark.parametrize("when", ["allocate", "write"])
def test_a_kill_while_a_segment_is_made_is_no_damage(tmp_path, disk, when, caplog):
    with PageStore(tmp_path / "s", options(), disk=disk) as store:
        assert all(write(store, KEYS[:5]))
        copy = killed_when(
            disk,
            tmp_path / "s",
            lambda what, path: what == when and path.suffix == ".seg" and "1" not in path.name,
            lambda: write(store, chain("large", 3), 30_000),
        )
    [finding] = verify_store(copy)
    assert (finding.file, finding.explained) == ("segments/000002.seg", True)
    assert upkeep.verify(copy) == []
    assert "it was being made while the writer was killed" in caplog.text
    assert upkeep.look(copy).problem == ""


def test_a_kill_after_the_store_was_cleared_is_no_damage(folder):
    store = PageStore(folder, options())
    store.clear()
    crash(store)
    assert list(verify_store(folder)) == []


def test_a_segment_of_zeros_that_had_pages_is_damage(folder):
    path = folder / "segments/000001.seg"
    path.write_bytes(bytes(path.stat().st_size))
    damaged = upkeep.verify(folder)
    assert any("pages with it" in finding.what for finding in damaged)
    assert upkeep.look(folder).problem
