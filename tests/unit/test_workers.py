"""The cores of the tests' own workers."""

import pytest
from support.workers import cores_of_worker


def worker(number, workers):
    return {"PYTEST_XDIST_WORKER": f"gw{number}", "PYTEST_XDIST_WORKER_COUNT": str(workers)}


@pytest.mark.parametrize(
    ("workers", "cores", "expected"),
    [
        (2, [0, 1], [[0], [1]]),
        (2, [3, 5, 6, 7, 9], [[3, 5], [6, 7]]),
        (3, [4, 6], [[4], [6], [4]]),
        (2, [1], [[1], [1]]),
    ],
)
def test_workers_share_the_cores_evenly(workers, cores, expected):
    found = [cores_of_worker(worker(number, workers), cores) for number in range(workers)]
    assert found == expected


def test_a_process_that_is_no_worker_keeps_its_cores():
    assert cores_of_worker({}, [0, 1]) == []
