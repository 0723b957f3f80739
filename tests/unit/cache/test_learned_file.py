"""What was learned survives a restart."""

import stat

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.learned_file import LearnedFile
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.sessions import Arrival


def taught():
    policy = Policy()
    for number in range(3):
        turn, _ = policy.arrive(float(number), Arrival(10, [number], "s"))
        policy.finish(turn, number + 0.5, Stop.TOOL, 5)
    return policy


def test_round_trip(tmp_path):
    file = LearnedFile(tmp_path / "policy.state")
    assert file.save(taught(), 100.0)
    assert stat.S_IMODE((tmp_path / "policy.state").stat().st_mode) == 0o600
    policy = Policy()
    assert LearnedFile(tmp_path / "policy.state").load(policy, 200.0)
    assert policy.inspect()["conversations"] == taught().inspect()["conversations"]
    assert [path.name for path in tmp_path.iterdir()] == ["policy.state"]


def test_not_more_often_than_asked(tmp_path):
    file, policy = LearnedFile(tmp_path / "policy.state", every_s=60.0), taught()
    assert file.save(policy, 100.0)
    assert not file.save(policy, 159.0)
    assert file.save(policy, 159.0, anyway=True)
    assert file.save(policy, 220.0)


def test_damage_is_a_fresh_start(tmp_path):
    path = tmp_path / "policy.state"
    policy = Policy()
    assert not LearnedFile(path).load(policy, 0.0)
    LearnedFile(path).save(taught(), 100.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not LearnedFile(path).load(policy, 0.0)
    assert policy.inspect()["conversations"] == 0


def test_folder_that_is_gone_stops_nothing(tmp_path):
    assert not LearnedFile(tmp_path / "no" / "policy.state").save(taught(), 100.0)
