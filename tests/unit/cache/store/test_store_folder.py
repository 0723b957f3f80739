"""The folder: whose it is, what is in it, and who writes to it."""

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from support.store_crash import crash
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore, verify_store
from sglang_ext.errors import StoreError, StoreFolderError, StoreFormatError, StoreInUseError

KEYS = chain("a", 4)


@pytest.fixture
def folder(tmp_path):
    """A store with four pages."""
    path = tmp_path / "store"
    with PageStore(path, options()) as store:
        assert all(write(store, KEYS))
    return path


def refused(folder, error, *words):
    with pytest.raises(error) as raised:
        PageStore(folder, options())
    for word in words:
        assert str(word) in str(raised.value)


def verify(folder, options):
    list(verify_store(folder))


def own_names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folders_are_0700_and_files_0600(folder):
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_closed_store_has_these_files(folder):
    assert own_names(folder) == ["STORE", "index-1.ckpt", "lock", "segments/000001.seg"]


def test_a_second_writer_is_refused_with_the_pid_and_a_way_out(folder):
    with PageStore(folder, options()):
        refused(folder, StoreInUseError, os.getpid(), "folder of its own")
        with pytest.raises(StoreInUseError):
            list(verify_store(folder))
    assert StoreInUseError.exit_code == 2
    PageStore(folder, options()).close()


def test_a_newer_format_is_refused_with_a_way_out(folder):
    text = json.loads((folder / "STORE").read_text())
    text["version"] = 99
    (folder / "STORE").write_text(json.dumps(text))
    before = own_names(folder)
    refused(folder, StoreFormatError, "99", "another folder")
    with pytest.raises(StoreFormatError):
        PageStore.follow(folder, options())
    assert own_names(folder) == before
    assert StoreFormatError.exit_code == 2


ID = "00" * 16
SUPERBLOCK = {"format": "sglang-ext page store", "version": 1, "id": ID}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 4000,
        '{"format": "other", "version": 1, "id": "00"}',
        json.dumps({**SUPERBLOCK, "version": "1"}),
        json.dumps({**SUPERBLOCK, "version": True}),
        json.dumps({**SUPERBLOCK, "check": "0" * 16}),
    ],
)
def test_a_damaged_superblock_is_refused_and_nothing_is_removed(folder, text):
    (folder / "STORE").write_text(text)
    before = own_names(folder)
    refused(folder, StoreError, "STORE")
    assert own_names(folder) == before


def test_a_bit_flip_in_the_id_is_told_as_such(folder):
    text = json.loads((folder / "STORE").read_text())
    text["id"] = f"{int(text['id'], 16) ^ 1:032x}"
    (folder / "STORE").write_text(json.dumps(text))
    refused(folder, StoreError, "STORE is damaged")


def test_a_superblock_without_checksum_is_read(folder):
    text = json.loads((folder / "STORE").read_text())
    del text["check"]
    (folder / "STORE").write_text(json.dumps(text))
    with PageStore(folder, options()) as store:
        assert all(read(store, KEYS))


@pytest.mark.parametrize("name", ["journal-007.log", f"journal-{'9' * 26}.log", "index-01.ckpt"])
def test_names_that_we_do_not_write_are_not_ours(folder, name):
    (folder / name).write_text("mine")
    with PageStore(folder, options()) as store:
        assert store.stats().recovery == "clean"
        assert all(read(store, KEYS))
    assert (folder / name).read_text() == "mine"


def test_too_many_open_files_are_no_fault_of_the_disk(folder, disk):
    disk.fault = lambda operation, path, offset: errno.EMFILE if operation == "open" else 0
    with pytest.raises(StoreError, match="ulimit"):
        PageStore(folder, options(), disk=disk)


def test_segments_without_a_superblock_are_not_taken_for_ours(folder):
    (folder / "STORE").unlink()
    before = own_names(folder)
    refused(folder, StoreError, "superblock")
    assert own_names(folder) == before


@pytest.mark.parametrize("name", ["", "segments"])
def test_a_folder_open_to_others_is_refused(folder, name):
    (folder / name).chmod(0o755)
    refused(folder, StoreFolderError, "0755", "chmod 700")


@pytest.mark.parametrize("name", ["STORE", "lock", "index-1.ckpt", "segments/000001.seg"])
def test_a_file_open_to_others_is_refused(folder, name):
    (folder / name).chmod(0o644)
    refused(folder, StoreFolderError, "0644", "chmod 600")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "STORE", "lock", "index-1.ckpt", "segments/000001.seg"])
def test_the_wrong_owner_is_refused(folder, name):
    os.chown(folder / name, 1234, -1)
    refused(folder, StoreFolderError, "1234")


@pytest.mark.parametrize(
    "name", ["STORE", "lock", "index-1.ckpt", "segments/000001.seg", "segments"]
)
def test_symbolic_links_are_not_followed(folder, name, tmp_path):
    away = tmp_path / "away"
    (folder / name).rename(away)
    (folder / name).symlink_to(away)
    content = away.read_bytes() if away.is_file() else own_names(away)
    refused(folder, StoreFolderError)
    assert content == (away.read_bytes() if away.is_file() else own_names(away))


@pytest.fixture
def journal(tmp_path):
    """The journal of a store that was killed."""
    store = PageStore(tmp_path / "killed", options())
    assert all(write(store, KEYS))
    store.flush()
    crash(store)
    return tmp_path / "killed/journal-1.log"


def test_a_journal_that_is_a_link_is_refused(journal, tmp_path):
    away = tmp_path / "away"
    journal.rename(away)
    journal.symlink_to(away)
    content = away.read_bytes()
    refused(journal.parent, StoreFolderError, "link", journal)
    assert journal.is_symlink()
    assert away.read_bytes() == content


def test_a_journal_open_to_others_is_refused(journal):
    journal.chmod(0o644)
    refused(journal.parent, StoreFolderError, "0644", f"chmod 600 {journal}")
    journal.chmod(0o600)
    with PageStore(journal.parent, options()) as store:
        assert store.stats().recovery == "journal"
        assert all(read(store, KEYS))


def test_the_folder_itself_may_not_be_a_link(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    refused(link, StoreFolderError, "link")


def test_hard_links_are_refused(folder, tmp_path):
    os.link(folder / "segments/000001.seg", tmp_path / "second")
    refused(folder, StoreFolderError, "second name")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    refused(path, StoreFolderError, "not a folder")


def fifo(path):
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("make", [fifo, Path.mkdir])
@pytest.mark.parametrize("opens", [PageStore, PageStore.follow, verify])
@pytest.mark.parametrize("name", ["STORE", "lock", "index-1.ckpt", "segments/000001.seg"])
def test_what_is_no_regular_file_is_refused_at_once(folder, name, opens, make, caplog):
    path = folder / name
    path.unlink()
    make(path)
    path.chmod(0o600)
    raised = []

    def attempt():
        try:
            opens(folder, options()).close()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=attempt, daemon=True)  # it may hang
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    if opens == PageStore.follow and name in ("lock", "index-1.ckpt"):
        return  # a view takes no lock, and waits for a writer's checkpoint
    assert [type(error) for error in raised] == [StoreFolderError]
    assert f"{path} is not a regular file" in str(raised[0])
    assert "O_DIRECT" not in caplog.text


def test_foreign_files_are_never_touched(folder):
    names = ["mine.txt", "index-x.ckpt", "journal-1.log.bak", "segments/1.seg", "segments/a.txt"]
    for name in names:
        (folder / name).write_text("mine")
        (folder / name).chmod(0o644)
    with PageStore(folder, options()) as store:
        assert all(read(store, KEYS))
        store.clear()
        assert all(write(store, KEYS))
    assert not list(verify_store(folder))
    assert all((folder / name).read_text() == "mine" for name in names)


def test_clear_gives_the_room_back(folder):
    with PageStore(folder, options()) as store:
        before = store._keeper.folder.allocated_bytes()
        store.clear()
        assert store._keeper.folder.allocated_bytes() < before / 4
        assert store.prefix(KEYS) == 0
        assert read(store, KEYS) == [False] * 4
        store.check_integrity()
    with PageStore(folder, options()) as store:
        assert store.stats().pages == 0


def test_a_cleared_page_does_not_come_back_even_by_a_scan(folder):
    with PageStore(folder, options()) as store:
        store.clear()
        assert all(write(store, chain("b", 2)))
    next(folder.glob("index-*.ckpt")).write_bytes(b"damaged")
    with PageStore(folder, options()) as store:
        assert store.stats().recovery == "scan"
        assert store.prefix(KEYS) == 0
        assert store.prefix(chain("b", 2)) == 2


def test_what_was_half_written_is_removed(folder):
    (folder / "index-7.ckpt.partial").write_bytes(b"half")
    (folder / "index-7.ckpt.partial").chmod(0o600)
    with PageStore(folder, options()) as store:
        assert store.prefix(KEYS) == 4
    assert "index-7.ckpt.partial" not in own_names(folder)


def test_follow_and_verify_of_nothing(tmp_path):
    with PageStore.follow(tmp_path / "none", options()) as view:
        assert view.prefix(KEYS) == 0
    assert not (tmp_path / "none").exists()
    with pytest.raises(StoreError, match="no page store"):
        list(verify_store(tmp_path / "none"))
    (tmp_path / "empty").mkdir(mode=0o700)
    with pytest.raises(StoreError, match="no page store"):
        list(verify_store(tmp_path / "empty"))
