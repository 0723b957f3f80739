"""Verification reads everything, tells what it finds, and changes nothing."""

import json

import pytest
from support.store_pages import chain, options, write

from sglang_ext.cache.store import Finding, PageStore, verify_store

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
    }


def test_the_lock_is_free_after_and_during_an_abandoned_verification(folder):
    damage(folder / "segments/000001.seg", 4096 + 6000)
    findings = verify_store(folder)
    next(findings)
    findings.close()
    PageStore(folder, options()).close()
