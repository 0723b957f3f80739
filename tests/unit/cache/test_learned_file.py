"""What was learned survives a restart."""

import os
import stat
import threading
from pathlib import Path

import pytest

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.learned_file import LearnedFile, write_state
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.secret import folder_secret
from sglang_ext.cache.sessions import Arrival
from sglang_ext.cache.state import check_state, set_damage_aside
from sglang_ext.errors import ConfigError


def taught():
    policy = Policy()
    for number in range(3):
        turn, _ = policy.arrive(float(number), Arrival(10, [number], "s"))
        policy.finish(turn, number + 0.5, Stop.TOOL, 5)
    return policy


def restored(file, policy, now):
    return file.load(policy, file.read(), now)


def test_round_trip(tmp_path):
    file = LearnedFile(tmp_path / "policy.state")
    assert file.close(taught(), 100.0)
    assert stat.S_IMODE((tmp_path / "policy.state").stat().st_mode) == 0o600
    policy = Policy()
    assert restored(LearnedFile(tmp_path / "policy.state"), policy, 200.0)
    assert policy.inspect()["conversations"] == taught().inspect()["conversations"]
    assert [path.name for path in tmp_path.iterdir()] == ["policy.state"]


def test_not_more_often_than_asked(tmp_path):
    file, policy = LearnedFile(tmp_path / "policy.state", idle_s=60.0, busy_s=600.0), taught()

    def saves(now, *, busy):
        begun = file.save(policy, now, busy=busy)
        assert file._join(10.0)
        return begun

    assert saves(1000.0, busy=False)
    assert not saves(1059.0, busy=False)
    assert saves(1060.0, busy=False)
    assert not saves(1659.0, busy=True)
    assert saves(1660.0, busy=True)


def test_a_disk_that_hangs_holds_up_nobody(tmp_path, monkeypatch):
    comes_back = threading.Event()
    replace = Path.replace

    def hangs(self, target):
        assert comes_back.wait(10.0)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", hangs)
    file, policy = LearnedFile(tmp_path / "policy.state"), taught()
    assert file.save(policy, 1000.0, busy=False)
    assert not file.save(policy, 2000.0, busy=False)
    assert not file.close(policy, 3000.0, wait_s=0.01)
    comes_back.set()
    assert file._join(10.0)
    assert file.save(policy, 2000.0, busy=False)
    assert file.close(policy, 3000.0)


def test_damage_is_a_fresh_start(tmp_path):
    path = tmp_path / "policy.state"
    policy = Policy()
    assert not restored(LearnedFile(path), policy, 0.0)
    LearnedFile(path).close(taught(), 100.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not restored(LearnedFile(path), policy, 0.0)
    assert policy.inspect()["conversations"] == 0


def test_folder_that_is_gone_stops_nothing(tmp_path):
    assert not LearnedFile(tmp_path / "no" / "policy.state").close(taught(), 100.0)


def test_a_state_that_is_too_long_is_not_kept(tmp_path):
    path = tmp_path / "policy.state"
    assert not LearnedFile(path, most_bytes=100).close(taught(), 100.0)
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "policy.state"
    check_state(path)
    assert LearnedFile(path).close(taught(), 100.0)
    check_state(path)
    path.write_text("my note")
    with pytest.raises(ConfigError, match="not the state of a cache policy"):
        check_state(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot use"):
        check_state(path)


@pytest.mark.parametrize("garbage", [bytes(5000), b"\xff" * 10, b"my note"])
def test_what_is_no_state_is_set_aside_where_a_server_was(tmp_path, garbage, caplog):
    path, aside = tmp_path / "policy.state", tmp_path / "policy.state.damaged"
    path.write_bytes(garbage)
    set_damage_aside(path)
    assert path.read_bytes() == garbage, "no server was here"
    folder_secret(tmp_path)
    set_damage_aside(path)
    check_state(path)
    assert aside.read_bytes() == garbage
    assert not path.exists()
    assert "begins anew" in caplog.text


def test_what_may_be_a_state_stays(tmp_path):
    folder_secret(tmp_path)
    path = tmp_path / "policy.state"
    set_damage_aside(path)
    assert LearnedFile(path).close(taught(), 100.0)
    for data in (path.read_bytes(), path.read_bytes()[:100], b""):
        path.write_bytes(data)
        set_damage_aside(path)
        assert path.read_bytes() == data
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    set_damage_aside(path)
    with pytest.raises(ConfigError, match="cannot use"):
        check_state(path)


def test_a_state_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "policy.state", []

    def fsync(descriptor):
        (fresh,) = tmp_path.iterdir()
        synced.append((fresh.name != path.name, fresh.stat().st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    write_state(path, b"x" * 100)
    assert synced == [(True, 100)]
    assert path.read_bytes() == b"x" * 100
