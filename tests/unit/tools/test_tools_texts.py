"""Texts of grammars in a file: bounded, whole at any time, and never trusted."""

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.tools import texts as module
from sglang_ext.tools.texts import TextLimits, Texts, digest, owner, read, write

WHOSE = owner("tokenizer", "0.2.7")
HEAD, ENTRY = 24, 20


def tag(name):
    return json.dumps({"type": "structural_tag", "format": {"type": "const_string", "value": name}})


def written(tmp_path, names):
    file = tmp_path / "grammars.texts"
    write(file, WHOSE, [tag(name) for name in names])
    return file


def test_what_is_written_is_read_in_its_order(tmp_path):
    names = ["a", "ö", "\U0001f600"]
    file = written(tmp_path, names)
    assert file.stat().st_mode & 0o777 == 0o600
    found = read(file, WHOSE)
    assert (found.texts, dict(found.skipped)) == ([tag(name) for name in names], {})
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    assert read(tmp_path / "none", WHOSE).skipped == {}


def test_texts_of_another_owner_are_not_read(tmp_path):
    file = written(tmp_path, ["a"])
    for other in (owner("tokenizer", "0.2.8"), owner("other", "0.2.7")):
        found = read(file, other)
        assert (found.texts, dict(found.skipped)) == ([], {"foreign": 1})


def test_texts_of_another_form_are_not_read(tmp_path, monkeypatch):
    file = written(tmp_path, ["a"])
    monkeypatch.setattr(module, "FORM", 2)
    assert dict(read(file, WHOSE).skipped) == {"damaged": 1}
    assert owner("tokenizer", "0.2.7") != WHOSE


@given(st.integers(0, 1_000), st.integers(1, 255))
def test_a_byte_that_was_changed_costs_no_more_than_it_must(tmp_path_factory, at, flip):
    file = written(tmp_path_factory.mktemp("texts"), ["a", "b", "c"])
    data = bytearray(file.read_bytes())
    at %= len(data)
    data[at] ^= flip
    file.write_bytes(data)
    found = read(file, WHOSE)
    whole = [tag(name) for name in "abc"]
    assert set(found.texts) < set(whole)
    assert found.skipped.total() > 0
    assert [text for text in whole if text in found.texts] == found.texts


@given(st.integers(0, 1_000))
def test_what_was_cut_off_is_left_out(tmp_path_factory, at):
    file = written(tmp_path_factory.mktemp("texts"), ["a", "b", "c"])
    data = file.read_bytes()
    at %= len(data)
    file.write_bytes(data[:at])
    found = read(file, WHOSE)
    assert found.texts == [tag(name) for name in "abc"][: len(found.texts)]
    assert found.skipped.total() > 0 or (at - HEAD) % (ENTRY + len(tag("a"))) == 0


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", '"x"', "{}", '{"format": ', '{"a":' * 50_000 + "1" + "}" * 50_000]
)
def test_what_is_no_tag_is_left_out(tmp_path, text):
    file = tmp_path / "grammars.texts"
    write(file, WHOSE, [text, tag("a"), tag("a")])
    found = read(file, WHOSE)
    assert (found.texts, dict(found.skipped)) == ([tag("a")], {"damaged": 2})


def test_a_length_that_is_not_there_is_not_allocated(tmp_path):
    file = written(tmp_path, ["a"])
    data = bytearray(file.read_bytes())
    data[HEAD + 16 : HEAD + 20] = b"\xff" * 4
    file.write_bytes(data)
    assert dict(read(file, WHOSE).skipped) == {"damaged": 1}


def plant(kind, file):
    if kind == "link":
        file.rename(file.with_name("target"))
        file.symlink_to(file.with_name("target"))
    elif kind == "open to others":
        file.chmod(0o644)
    elif kind == "fifo":
        file.unlink()
        os.mkfifo(file, 0o600)
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    else:
        os.truncate(file, 1 << 40)


@pytest.mark.parametrize("kind", ["link", "open to others", "fifo", "folder", "terabyte"])
def test_a_file_that_is_not_ours_alone_is_not_read(tmp_path, kind):
    file = written(tmp_path, ["a"])
    plant(kind, file)
    begin = time.monotonic()
    found = read(file, WHOSE)
    assert (found.texts, dict(found.skipped)) == ([], {"file": 1})
    assert time.monotonic() - begin < 30  # it neither waits for a writer nor reads zeros


def test_no_more_is_read_than_may_be_kept(tmp_path):
    file = written(tmp_path, ["a", "b", "c"])
    found = read(file, WHOSE, TextLimits(count=2))
    assert (found.texts, dict(found.skipped)) == ([tag("a"), tag("b")], {"too many": 1})
    assert dict(read(file, WHOSE, TextLimits(text_bytes=30)).skipped) == {"damaged": 1}


def test_a_writer_that_was_killed_leaves_the_old_file(tmp_path, monkeypatch):
    file = written(tmp_path, ["a"])

    def no_disk(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", no_disk)
        with pytest.raises(OSError, match="No space"):
            write(file, WHOSE, [tag("b")])
    assert read(file, WHOSE).texts == [tag("a")]
    write(file, WHOSE, [tag("b")])  # over what the first one left
    assert read(file, WHOSE).texts == [tag("b")]
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_files_of_servers_that_are_gone_are_few(tmp_path):
    (tmp_path / "mine").write_text("kept")
    for number in range(50):
        file = tmp_path / f"grammars-{number:032x}-0.texts"
        write(file, WHOSE, [tag("a")])
        os.utime(file, (number, number))
    write(file, WHOSE, [tag("a")])
    names = {entry.name for entry in tmp_path.iterdir()}
    assert len(names) == 34
    assert "mine" in names
    assert f"grammars-{17:032x}-0.texts" in names
    assert f"grammars-{16:032x}-0.texts" not in names


@given(st.lists(st.tuples(st.sampled_from("aurf"), st.integers(0, 6), st.integers(0, 40))))
def test_the_least_used_goes_first_and_the_bounds_are_exact(steps):
    limits = TextLimits(count=4, total_bytes=HEAD + 150, text_bytes=55)
    texts, oracle = Texts(limits), []

    def size(text):
        return ENTRY + len(text.encode())

    for kind, number, length in steps:
        text = f"{number}{'ö' * (length // 8)}{'x' * (length % 30)}"
        if kind == "a" and size(text) <= 55:
            texts.add(text)
            oracle = [text, *(one for one in oracle if one != text)]
            while len(oracle) > 4 or sum(map(size, oracle)) > 150:
                oracle.pop()
        elif kind == "a":
            texts.add(text)
        elif kind == "u":
            texts.use(text)
            if text in oracle:
                oracle = [text, *(one for one in oracle if one != text)]
        elif kind == "r":
            texts.remember([text])
            if text not in oracle and len(oracle) < 4 and sum(map(size, [*oracle, text])) <= 150:
                oracle.append(text)
        else:
            texts.forget(text)
            oracle = [one for one in oracle if one != text]
        assert texts.latest() == oracle
        assert len(texts) == len(oracle)


def test_half_a_character_is_not_kept():
    texts = Texts()
    texts.add("\ud800")
    texts.remember(["\ud800", "a"])
    assert texts.latest() == ["a"]
    assert len(digest("\ud800", WHOSE)) == 16
