"""Which cores a worker of pytest-xdist has."""

from collections.abc import Mapping

__all__ = ["cores_of_worker"]


def cores_of_worker(environment: Mapping[str, str], cores: list[int]) -> list[int]:
    """An equal part of ``cores`` for this worker; none if the process is no worker.

    With more workers than cores, workers take turns. What is left over is nobody's.
    """
    name = environment.get("PYTEST_XDIST_WORKER", "")
    if not name:
        return []
    worker, workers = int(name.removeprefix("gw")), int(environment["PYTEST_XDIST_WORKER_COUNT"])
    share = len(cores) // workers
    if not share:
        return [cores[worker % len(cores)]]
    return cores[worker * share : (worker + 1) * share]
