"""The folder of the third tier: locks, and whose files are whose."""

import os
import shutil
import subprocess
import sys
import threading

import pytest

from sglang_ext.cache import folder as l3
from sglang_ext.cache.store import Page, PageStore, StoreOptions
from sglang_ext.errors import ConfigError, StoreError, StoreFormatError, StoreInUseError

HOLD = """
import sys, time
from pathlib import Path
from sglang_ext.cache.folder import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that serves from the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_server_is_refused_by_name(tmp_path, other):
    with pytest.raises(ConfigError, match=rf"{tmp_path} is in use .* process id {other.pid};"):
        l3.ServerLock(tmp_path)


def test_a_killed_server_leaves_no_lock(tmp_path, other):
    other.kill()
    other.wait()
    lock = l3.ServerLock(tmp_path)
    lock.release()
    lock.release()


def test_holding_again_in_the_same_process_is_fine(tmp_path, monkeypatch):
    monkeypatch.setattr(l3, "_held", {})
    l3.hold(tmp_path)
    l3.hold(tmp_path)
    with pytest.raises(ConfigError, match="in use"):
        l3.ServerLock(tmp_path)
    l3.ServerLock(tmp_path, node=1).release()
    for lock in l3._held.values():
        lock.release()


def test_lock_that_is_a_link_or_a_folder(tmp_path):
    (tmp_path / "server.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot open"):
        l3.ServerLock(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "server-1.lock").mkdir()
    with pytest.raises(ConfigError, match="cannot open"):
        l3.ServerLock(tmp_path, node=1)


KEY, NAMESPACE = b"k" * 32, b"n" * 32


def store(folder):
    """A store with a page."""
    with PageStore(folder, StoreOptions(2_000_000)) as made:
        assert made.write(NAMESPACE, [Page(KEY, None, [b"x" * 5000])]) == [True]
    return folder


def test_stores_of_an_earlier_number_of_ranks(tmp_path):
    for name in ("rank-0", "rank-1", "rank-10", "rank-x", "rank-01"):
        (tmp_path / name).mkdir()
    (tmp_path / "rank-3").symlink_to(tmp_path / "rank-1")
    assert list(l3.rank_folders(tmp_path)) == [0, 1, 10]
    assert l3.abandoned(tmp_path, 1) == [tmp_path / "rank-1", tmp_path / "rank-10"]
    assert l3.abandoned(tmp_path, 11) == []


def test_a_store_is_removed_whole(tmp_path):
    assert l3.remove_store(store(tmp_path / "rank-1")) is True
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_stay(tmp_path):
    folder = store(tmp_path / "rank-1")
    for stranger in (folder / "notes.txt", folder / "segments" / "mine.seg"):
        stranger.write_text("mine")
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (folder / "journal-9.log").symlink_to(outside)
    assert l3.remove_store(folder) is False
    assert outside.read_text() == "precious"
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "segments"]
    assert [path.name for path in (folder / "segments").iterdir()] == ["mine.seg"]


def test_what_is_no_store_of_ours_stays(tmp_path):
    empty, strange = tmp_path / "rank-1", tmp_path / "rank-2"
    empty.mkdir()
    (strange / "segments").mkdir(parents=True)
    (strange / "segments").chmod(0o700)
    strange.chmod(0o700)
    (strange / "STORE").write_text("another program's")
    (strange / "STORE").chmod(0o600)
    assert l3.remove_store(empty) is False
    assert l3.remove_store(strange) is False
    assert (strange / "STORE").exists()


def test_a_store_in_use_stays_and_is_named(tmp_path):
    folder = tmp_path / "rank-1"
    with PageStore(folder, StoreOptions(2_000_000)):
        assert l3.remove_store(folder) is False
        with pytest.raises(StoreInUseError, match=rf"{folder} is in use by process {os.getpid()}"):
            l3.check_stores(tmp_path, wait_s=0)
    l3.check_stores(tmp_path)


def test_a_server_that_dies_may_take_a_moment(tmp_path):
    holder = PageStore(tmp_path / "rank-0", StoreOptions(2_000_000))
    end = threading.Timer(0.5, holder.close)
    end.start()
    l3.check_stores(tmp_path, wait_s=30)
    end.join()


def test_a_store_of_another_format_is_told_before_the_start(tmp_path):
    root = store(tmp_path / "rank-0") / "STORE"
    root.write_text(root.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(StoreFormatError, match="format 99"):
        l3.check_stores(tmp_path)


def test_folders_without_a_store_are_fine(tmp_path):
    (tmp_path / "rank-0").mkdir(mode=0o700)
    l3.check_stores(tmp_path)


def test_a_lock_of_somebody_else_stays(tmp_path):
    path = tmp_path / "server.lock"
    path.write_text("my note")
    with pytest.raises(ConfigError, match="not the lock of a server"):
        l3.ServerLock(tmp_path)
    assert path.read_text() == "my note"


@pytest.mark.parametrize("damage", ["no root", "empty root", "link", "file", "mode", "foreign"])
def test_stores_that_would_stop_the_server_are_told_before_it_starts(tmp_path, damage):
    for name in ("rank-0", "rank-1"):
        with PageStore(tmp_path / name, StoreOptions(4_000_000)) as store:
            assert store.write(b"n" * 32, [Page(b"k" * 32, None, [b"x" * 9_000])]) == [True]
    l3.check_stores(tmp_path)
    rank = tmp_path / "rank-0"
    segment = min((rank / "segments").iterdir())
    if damage == "no root":
        (rank / "STORE").unlink()
    elif damage == "empty root":
        (rank / "STORE").write_bytes(b"")
    elif damage == "link":
        rank.rename(tmp_path / "elsewhere")
        rank.symlink_to(tmp_path / "elsewhere")
    elif damage == "file":
        shutil.rmtree(rank)
        rank.write_text("my note")
    elif damage == "mode":
        segment.chmod(0o644)
    else:
        shutil.copy(min((tmp_path / "rank-1" / "segments").iterdir()), segment)
    with pytest.raises(StoreError, match="rank-0"):
        l3.check_stores(tmp_path, wait_s=0)
