import os
from pathlib import Path

import pytest

from sglang_ext.bench.store import machine
from sglang_ext.bench.store.machine import (
    bytes_from_disk,
    check_folder,
    cpu_seconds,
    describe,
    drop_caches,
    own_folder,
)
from sglang_ext.errors import ConfigError


def test_a_folder_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"GB free and 1000000000\.0 GB are needed"):
        check_folder(tmp_path / "new", 10**18)
    check_folder(tmp_path / "new", 1)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_system_without_direct_transfers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, flags: int, mode: int = 0) -> int:
        assert flags & os.O_DIRECT
        raise OSError(22, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(ConfigError, match="refuses O_DIRECT"):
            check_folder(tmp_path, 1)


def test_files_are_made_cold_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_DROP_CACHES", tmp_path / "missing" / "drop_caches")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(os.urandom(1 << 20))
    assert drop_caches(tmp_path) == "posix_fadvise"
    before = bytes_from_disk()
    assert len((tmp_path / "deep" / "file").read_bytes()) == 1 << 20
    after = bytes_from_disk()
    if before is not None and after is not None:
        assert after - before >= 1 << 20


def test_an_own_folder_is_fresh_and_goes(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()

    def fail(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"), own_folder(tmp_path, "x") as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []


def test_cpu_time_only_grows() -> None:
    before = cpu_seconds()
    sum(range(10**5))
    assert cpu_seconds() >= before


def test_the_machine_is_described(tmp_path: Path) -> None:
    found = describe(tmp_path)
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 20
    assert found["file_system"] != "unknown"
