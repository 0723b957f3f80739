"""Processors of the ranks of a server on the reference device."""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["bind_threads", "init_threads", "rank_cpus"]

logger = logging.getLogger(__name__)


def bind_threads(original: Callable[..., Any], *, device: str) -> list[int] | None:
    """AROUND ``_bind_threads_if_cpu``: processors of this rank.

    SGLang allows no more ranks than the machine has NUMA nodes unless every rank's processors are
    spelled out; here the processors are split evenly, and ``SGLANG_CPU_OMP_THREADS_BIND`` wins.
    """
    if device != "cpu":
        return original(device=device)  # type: ignore[no-any-return]
    from sglang.srt.runtime_context import get_device, get_parallel

    parallel = get_parallel()
    return rank_cpus(
        get_device().gpu_id,
        parallel.dp_size * parallel.tp_size * parallel.pp_size,
        os.environ.get("SGLANG_CPU_OMP_THREADS_BIND"),
    )


def init_threads(
    _original: Callable[..., None],
    *,
    local_omp_cpuid: list[int] | None,
    dist_init_method: str | None = None,
) -> None:
    """AROUND ``_init_cpu_threads_env``: bind the process and its OpenMP threads.

    SGLang binds with ``sgl_kernel``, which is not there.
    """
    del dist_init_method  # names shared-memory segments of sgl_kernel's all-reduce
    if not local_omp_cpuid:
        return
    os.sched_setaffinity(0, local_omp_cpuid)
    torch.set_num_threads(len(local_omp_cpuid))
    logger.info("Bound to processors %s", local_omp_cpuid)


def rank_cpus(rank: int, ranks: int, binding: str | None = None) -> list[int]:
    """The processors of one rank.

    Args:
        rank: index of the rank on this machine.
        ranks: number of ranks on this machine.
        binding: ``SGLANG_CPU_OMP_THREADS_BIND``: processors of each rank such as ``0-3|4-7``.
            ``None`` or ``all`` splits the processors that this process may use into equal runs;
            with more ranks than processors, ranks take turns.

    Raises:
        ValueError: ``binding`` names fewer ranks than there are, or is not a list of processors.
    """
    if binding and binding != "all":
        groups = binding.split("|")
        if rank >= len(groups):
            raise ValueError(
                f"SGLANG_CPU_OMP_THREADS_BIND={binding} names processors for {len(groups)} ranks, "
                f"and rank {rank} has none; give {ranks} groups separated by '|', or unset it"
            )
        return _parse_cpus(groups[rank])
    cpus = sorted(os.sched_getaffinity(0))
    if ranks > len(cpus):
        return [cpus[rank % len(cpus)]]
    share = len(cpus) // ranks
    return cpus[rank * share : (rank + 1) * share]


def _parse_cpus(text: str) -> list[int]:
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        try:
            cpus.extend(range(int(first), int(last or first) + 1))
        except ValueError:
            raise ValueError(
                f"SGLANG_CPU_OMP_THREADS_BIND: {text!r} is not a list of processors such as 0-3,8"
            ) from None
    return cpus
