"""One rank on one core against two ranks on two cores: seconds of a prefill on real servers."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sglang_ext.bench.server import ServerProcess, sglang_command
from sglang_ext.bench.timed import generate, vocabulary_size
from sglang_ext.errors import ConfigError, ServerError

__all__ = ["RANKS", "SPEEDUP_TOKENS", "Timings", "measure_prefills", "speedup"]

RANKS = (1, 2)
SPEEDUP_TOKENS = 4096
_WARM_UPS = 3  # prompts that are not timed

# Seconds of each round, by ranks and tokens of the prompt.
Timings = dict[tuple[int, int], list[float]]


def measure_prefills(
    model: Path,
    lengths: Sequence[int],
    rounds: int,
    workdir: Path,
    on_step: Callable[[str], None] = lambda _step: None,
) -> Timings:
    """Times cold prompts on both servers in alternation; the one that waits sleeps.

    A rank has one core. Seconds are a client's, from the request to the first token.

    Args:
        model: folder of the model.
        lengths: tokens of the prompts.
        rounds: how often each is measured.
        workdir: where the servers' logs go.
        on_step: called before each step with what it is.

    Raises:
        ConfigError: this machine has fewer cores than ranks, or the model is none.
        ServerError: a server failed, or had a prompt cached.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < max(RANKS):
        raise ConfigError(
            f"{len(cores)} processor for {max(RANKS)} ranks: a rank on no core of its own says "
            "nothing; run it on a machine with more, or leave out --model"
        )
    prompts = _prompts(vocabulary_size(model))
    found: Timings = {(ranks, tokens): [] for ranks in RANKS for tokens in lengths}
    with ExitStack() as stack:
        servers = {}
        for ranks in RANKS:
            on_step(f"starting {ranks} rank{'s' if ranks > 1 else ''}")
            server = _server(model, cores[:ranks], 2 * max(lengths), workdir)
            servers[ranks] = stack.enter_context(server)
        for ranks, server in servers.items():
            on_step(f"warming {ranks} up")
            for _ in range(_WARM_UPS):
                _prefill(server, [next(prompts) for _ in range(min(lengths))])
        for number in range(rounds):
            on_step(f"round {number + 1} of {rounds}")
            for tokens in lengths:
                for ranks, server in servers.items():
                    prompt = [next(prompts) for _ in range(tokens)]
                    found[ranks, tokens].append(_prefill(server, prompt))
    return found


def speedup(timings: Timings) -> dict[str, Any]:
    """What ``--json`` has under ``speedup``: medians at `SPEEDUP_TOKENS`, and all else measured."""
    first, last = ((ranks, SPEEDUP_TOKENS) for ranks in RANKS)
    medians = {key: statistics.median(seconds) for key, seconds in timings.items()}
    return {
        "ranks": RANKS[-1],
        "t1_s": round(medians[first], 4),
        "t2_s": round(medians[last], 4),
        "ratio": round(medians[first] / medians[last], 3),
        "prompt_tokens": SPEEDUP_TOKENS,
        "rounds": len(timings[first]),
        "points": [
            {
                "ranks": ranks,
                "prompt_tokens": tokens,
                "median_s": round(medians[ranks, tokens], 4),
                "fastest_s": round(min(seconds), 4),
                "slowest_s": round(max(seconds), 4),
            }
            for (ranks, tokens), seconds in sorted(timings.items())
        ],
    }


def _server(model: Path, cores: Sequence[int], tokens: int, workdir: Path) -> ServerProcess:
    ranks = len(cores)

    def command(port: int) -> list[str]:
        split = ("--ext-cp-size", str(ranks)) if ranks > 1 else ()
        return sglang_command(
            model,
            port,
            *("--dtype", "float32", "--max-total-tokens", str(tokens)),
            # The whole prompt in one forward, and nothing of it cached.
            *("--chunked-prefill-size", "-1", "--disable-radix-cache", "--sleep-on-idle"),
            *split,
        )

    return ServerProcess(
        command,
        log=workdir / f"bench-prefill-{ranks}.log",
        health_path="/health_generate",
        env={"SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, cores)), "OMP_NUM_THREADS": "1"},
    )


def _prompts(vocabulary: int) -> Iterator[int]:
    """Token ids without end, the same ones every time."""
    generator = random.Random(0)  # noqa: S311 - reproducible, not secret
    while True:
        yield generator.randrange(vocabulary // 2, vocabulary)


def _prefill(server: ServerProcess, prompt: list[int]) -> float:
    seconds, cached = generate(server, prompt, 1)
    if cached:
        raise ServerError("a prompt that was to be computed was cached; nothing was measured")
    return seconds
