import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_ext.errors import ConfigError, ModelError
from sglang_ext.models.folder import MARKER, Recipe, _lock, make_folder


def writes(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return build


def recipe(text: str = "x", **options: object) -> Recipe:
    return Recipe("toy", dict(options), writes(text))


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_made_folder_is_private_and_lists_its_files(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "m"
    made = make_folder(recipe("hello"), out)
    assert made.fresh
    assert made.bytes == 5
    assert listing(out) == {"weights", MARKER}
    assert listing(out.parent) == {"m"}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    files = json.loads((out / MARKER).read_text())["files"]
    digest = hashlib.sha256(b"hello").hexdigest()
    assert files == {"weights": {"bytes": 5, "sha256": digest}}


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    make_folder(recipe("first"), tmp_path / "m")
    before = (tmp_path / "m" / "weights").stat()
    made = make_folder(recipe("second"), tmp_path / "m")
    assert not made.fresh
    assert (tmp_path / "m" / "weights").stat() == before


def test_force_makes_it_again(tmp_path: Path) -> None:
    make_folder(recipe("first"), tmp_path / "m")
    assert make_folder(recipe("second"), tmp_path / "m", force=True).fresh
    assert (tmp_path / "m" / "weights").read_text() == "second"
    assert listing(tmp_path) == {"m"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("marker", [None, "{", "[]", '{"format": 99}'])
def test_a_folder_of_someone_else_is_left_alone(
    tmp_path: Path, force: bool, marker: str | None
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    if marker is not None:
        (tmp_path / MARKER).write_text(marker)
    before = listing(tmp_path)
    with pytest.raises(
        ConfigError, match=r"exists and is not a model made by sglang-ext"
    ) as raised:
        make_folder(recipe(), tmp_path, force=force)
    assert str(tmp_path) in str(raised.value)
    assert listing(tmp_path) == before
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_left_alone(tmp_path: Path, force: bool) -> None:
    (tmp_path / "m").write_text("x")
    with pytest.raises(ConfigError, match="is not a folder"):
        make_folder(recipe(), tmp_path / "m", force=force)
    assert (tmp_path / "m").read_text() == "x"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert make_folder(recipe(), tmp_path / "m").fresh
    assert listing(tmp_path) == {"m"}


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert make_folder(recipe(), tmp_path / "link").path == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert listing(tmp_path / "real") == {"weights", MARKER}


def test_other_options_are_refused_by_name(tmp_path: Path) -> None:
    make_folder(recipe(seed=1, dtype="a"), tmp_path / "m")
    with pytest.raises(ConfigError, match=r"made with seed 1 instead of 2; .*--force"):
        make_folder(recipe(seed=2, dtype="a"), tmp_path / "m")
    with pytest.raises(ConfigError, match=r"model toy instead of other"):
        make_folder(Recipe("other", {"seed": 1, "dtype": "a"}, writes("x")), tmp_path / "m")
    assert make_folder(recipe(seed=2, dtype="a"), tmp_path / "m", force=True).fresh


def test_a_damaged_model_is_reported_and_made_again(tmp_path: Path) -> None:
    weights = tmp_path / "m" / "weights"
    make_folder(recipe("hello"), tmp_path / "m")
    weights.write_text("hell")
    with pytest.raises(ConfigError, match="damaged: weights has 4 bytes instead of 5; --force"):
        make_folder(recipe("hello"), tmp_path / "m")
    weights.unlink()
    with pytest.raises(ConfigError, match="damaged: weights is missing"):
        make_folder(recipe("hello"), tmp_path / "m")
    make_folder(recipe("hello"), tmp_path / "m", force=True)
    assert weights.read_text() == "hello"


def fails(folder: Path) -> None:
    (folder / "weights").write_text("half")
    raise ModelError("no weights today")


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights today"):
        make_folder(Recipe("toy", {}, fails), tmp_path / "m")
    assert listing(tmp_path) == set()


def test_a_failed_rebuild_keeps_the_old_model(tmp_path: Path) -> None:
    make_folder(recipe("old"), tmp_path / "m")
    with pytest.raises(ModelError):
        make_folder(Recipe("toy", {}, fails), tmp_path / "m", force=True)
    assert (tmp_path / "m" / "weights").read_text() == "old"
    assert listing(tmp_path) == {"m"}


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match=r"could not write the model toy to .*m: No space left"):
        make_folder(Recipe("toy", {}, full), tmp_path / "m")
    assert listing(tmp_path) == set()


def test_a_parent_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(ModelError, match="could not write the model toy"):
        make_folder(recipe(), tmp_path / "f" / "m")


BUILDER = """
import os, sys, time
from pathlib import Path
from sglang_ext.models.folder import Recipe, make_folder

out, log, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def build(folder):
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b"start\\n")
    (folder / "weights").write_text(str(os.getpid()))
    time.sleep(0.3)
    (folder / "more").write_text(str(os.getpid()))
    while mode == "hang":
        time.sleep(1)
    os.write(descriptor, b"end\\n")

print(make_folder(Recipe("toy", {}, build), out, force=mode == "force").fresh)
"""


def start(out: Path, log: Path, mode: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, str(out), str(log), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("mode", "builds"), [("plain", 1), ("force", 4)])
def test_processes_take_turns(tmp_path: Path, mode: str, builds: int) -> None:
    out, log = tmp_path / "models" / "m", tmp_path / "log"
    processes = [start(out, log, mode) for _ in range(4)]
    said = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(said) == sorted(["True"] * builds + ["False"] * (4 - builds))
    assert log.read_text() == "start\nend\n" * builds  # never two at once
    assert (out / "weights").read_text() == (out / "more").read_text()
    assert listing(out.parent) == {"m"}


def test_one_who_waited_holds_a_lock_that_others_see(tmp_path: Path) -> None:
    # The first holder removes the file that the second one waits for: a lock on a removed file
    # would keep nobody out.
    path = tmp_path / "lock"
    seen: list[bool] = []

    def second() -> None:
        with _lock(path):
            seen.append(path.exists())

    with _lock(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        inode = path.stat().st_ino
        deadline = time.monotonic() + 60
        while f":{inode} " not in blocked_locks():
            assert time.monotonic() < deadline, "the second one never waited"
            time.sleep(0.01)
    waiting.join(timeout=60)
    assert seen == [True]
    assert listing(tmp_path) == set()


def blocked_locks() -> str:
    """Lines of the kernel's lock table that wait for another."""
    return "\n".join(line for line in Path("/proc/locks").read_text().splitlines() if "->" in line)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    out, log = tmp_path / "models" / "m", tmp_path / "log"
    process = start(out, log, "hang")
    while not (out.with_name(".m.partial") / "more").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, 9)
    process.communicate(timeout=60)
    assert not out.exists()
    assert listing(out.parent) == {".m.partial", ".m.lock"}
    make_folder(recipe("new"), out)
    assert listing(out.parent) == {"m"}
    assert listing(out) == {"weights", MARKER}
