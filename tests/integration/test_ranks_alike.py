"""Two ranks with their own clocks and hash seeds evict the same nodes in the same order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.learned_file import LearnedFile
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.sessions import Arrival

TESTS = Path(__file__).parents[1]


def run_ranks(folder, seed, requests):
    """Both ranks' reports."""
    ranks = []
    for rank, offset in enumerate((0.0, 7_777.7)):
        path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONHASHSEED": str(11 + rank), "PYTHONPATH": path}
        command = [sys.executable, "-m", "support.rank_child"]
        command += [str(rank), str(folder), str(seed), str(requests), str(offset)]
        with (folder / f"{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
            )
    found = []
    for rank, process in enumerate(ranks):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, (folder / f"{rank}.log").read_text()[-3000:]
        found.append(json.loads(out.splitlines()[-1]))
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_two_ranks_evict_the_same_nodes_for_long(tmp_path, seed):
    one, two = run_ranks(tmp_path, seed, 6000)
    assert one["victims"] == two["victims"]
    assert one["digest"] == two["digest"] != 0
    assert one["lead"] == two["lead"]
    assert one["counts"] == two["counts"]
    assert one["counts"].get("refused", 0) == one["counts"].get("lost", 0) == 0
    assert one["steps"] == two["steps"] > 200, "nothing was learned, so nothing was compared"
    assert len(one["victims"]) > 2000
    assert (one["state"], two["state"]) == (True, False), "the first rank writes for all"


def test_what_one_rank_finds_is_what_all_know(tmp_path):
    policy = Policy()
    for number in range(40):
        turn, _ = policy.arrive(float(number), Arrival(10, [1, number], "s"))
        policy.finish(turn, number + 0.5, Stop.TOOL, 5)
    LearnedFile(tmp_path / "0.state").close(policy, 0.0)
    (tmp_path / "1.state").write_bytes(b"something else")
    one, two = run_ranks(tmp_path, 3, 300)
    assert one["known_at_start"] == two["known_at_start"] == policy.inspect()["returns"] > 0
    assert one["victims"] == two["victims"]
    assert one["lead"] == two["lead"]
