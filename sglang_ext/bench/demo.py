"""The demonstration: agents on a three-tier cache, a kill, a replay, and a check against no cache.

1. A stock SGLang server with ``--ext-cache`` serves several agents; device (L1) and host (L2) are
   too small for the load, so prefixes also come from disk (L3).
2. The server is killed with SIGKILL and started again on the same L3 folder; the recorded
   requests are sent again.
3. A server without any prefix cache answers the same requests; it is the reference that the
   outputs of both runs before are compared with.
"""

import json
import shutil
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sglang_ext.bench import bfcl
from sglang_ext.bench.agents import Agent, parse_arguments, replay, run_agents, workload
from sglang_ext.bench.answers import Exchange, Tokens, make_client
from sglang_ext.bench.compare import Comparison, compare
from sglang_ext.bench.server import ServerProcess, sglang_command
from sglang_ext.errors import DemoError

__all__ = ["WARM_SHARE", "Outcome", "Run", "Screen", "Settings", "run_demo"]

# Share of the prompt tokens that the restarted server has to serve from its cache.
WARM_SHARE = 0.90

# At most this long for KV pages to reach the disk before the kill. Default 60 s; it took less
# than a second wherever it was seen.
_WRITE_BACK_S = 60

# float32 by name: left alone, SGLang serves a float32 model in float16.
_COMMON_FLAGS = (
    *("--dtype", "float32"),
    *("--tool-call-parser", "hermes"),
    *("--grammar-backend", "xgrammar"),
)

# SmolLM2's context.
_CONTEXT_TOKENS = 8_192

# KV of one token of SmolLM2-135M: 30 layers, keys and values, 3 heads of 64, float32.
_TOKEN_BYTES = 30 * 2 * 3 * 64 * 4


@dataclass(frozen=True)
class Settings:
    """What the demonstration runs with; tier sizes are chosen to be too small on purpose."""

    model: Path
    workdir: Path
    agents: int = 4
    turns: int = 6
    l1_tokens: int = 5_632
    l2_tokens: int = 8_960
    l3_size: str = "4GB"

    def cache_flags(self, l3_dir: Path) -> tuple[str, ...]:
        """Flags of the server with three tiers."""
        return (
            "--ext-cache",
            *("--ext-l1-tokens", str(self.l1_tokens)),
            *("--ext-l2-size", str(self.l2_tokens * _TOKEN_BYTES)),
            *("--ext-l3-dir", str(l3_dir)),
            *("--ext-l3-size", self.l3_size),
            *_COMMON_FLAGS,
        )


@dataclass(frozen=True)
class Run:
    """All exchanges with one server."""

    exchanges: Sequence[Exchange]

    @property
    def tokens(self) -> Tokens:
        """Prompt tokens of all requests."""
        return sum((exchange.answer.tokens for exchange in self.exchanges), Tokens())

    @property
    def calls(self) -> tuple[int, int]:
        """Calls whose arguments could be read, so that they were executed; and all calls."""
        arguments = [call.arguments for one in self.exchanges for call in one.answer.calls]
        return sum(parse_arguments(text) is not None for text in arguments), len(arguments)

    @property
    def cached_share(self) -> float:
        """Share of the prompt tokens that were not computed; 0 for a run without requests."""
        tokens = self.tokens
        return tokens.cached / tokens.prompt if tokens.prompt else 0.0

    @property
    def ttft_s(self) -> float:
        """Median time to the first token at the client."""
        return statistics.median(exchange.answer.ttft_s for exchange in self.exchanges)

    def by_turn(self) -> Iterator[tuple[int, "Run"]]:
        """The exchanges of each turn, all agents together."""
        for turn in sorted({exchange.turn for exchange in self.exchanges}):
            yield turn, Run([one for one in self.exchanges if one.turn == turn])

    def to_json(self) -> dict[str, Any]:
        """Totals as plain values."""
        tokens = self.tokens
        return {
            "requests": len(self.exchanges),
            "calls_executed": self.calls[0],
            "prompt_tokens": tokens.prompt,
            "l1_tokens": tokens.l1,
            "l2_tokens": tokens.l2,
            "l3_tokens": tokens.l3,
            "computed_tokens": tokens.computed,
            "ttft_median_s": round(self.ttft_s, 4),
        }


@dataclass(frozen=True)
class Outcome:
    """What the demonstration found."""

    tiered: Run
    warm: Run
    plain: Run
    tiered_equal: Comparison
    warm_equal: Comparison

    @property
    def findings(self) -> list[str]:
        """What was not as it has to be, in words; empty when all is well."""
        tokens = self.tiered.tokens
        found = [
            f"{name} served no tokens: the load did not reach it"
            for name, served in (("L1", tokens.l1), ("L2", tokens.l2), ("L3", tokens.l3))
            if not served
        ]
        if self.warm.cached_share < WARM_SHARE:
            found.append(
                f"the restarted server took {self.warm.cached_share:.1%} of the prompt tokens from "
                f"its cache; {WARM_SHARE:.0%} are expected"
            )
        if not self.warm.tokens.l3:
            found.append("L3 gave nothing back after the restart")
        if self.plain.tokens.cached:
            found.append(
                f"the reference server served {self.plain.tokens.cached} tokens from a cache; it "
                "must have none"
            )
        for name, comparison in (("first", self.tiered_equal), ("warm", self.warm_equal)):
            found += [
                f"{name} run, {one.place}: output token {one.position} differs from the server "
                "without a cache"
                for one in comparison.failures
            ]
        return found

    @property
    def outputs_equal(self) -> bool:
        """Whether both runs generated what the server without a cache did, flips aside."""
        return not (self.tiered_equal.failures or self.warm_equal.failures)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of ``--out``; fields are an interface."""
        tokens = self.tiered.tokens
        return {
            "ok": not self.findings,
            "prompt_tokens": tokens.prompt,
            "l1_tokens": tokens.l1,
            "l2_tokens": tokens.l2,
            "l3_tokens": tokens.l3,
            "computed_tokens": tokens.computed,
            "warm_restart_cached_share": round(self.warm.cached_share, 4),
            "outputs_equal": self.outputs_equal,
            "ttft_cold_s": round(self.plain.ttft_s, 4),
            "ttft_warm_s": round(self.warm.ttft_s, 4),
            "flips": len(self.tiered_equal.flips) + len(self.warm_equal.flips),
            "findings": self.findings,
            "turns": [{"turn": turn, **run.to_json()} for turn, run in self.tiered.by_turn()],
            "warm_restart": self.warm.to_json(),
            "no_cache": self.plain.to_json(),
        }


class Screen(Protocol):
    """Where the demonstration shows what it does; calls come from several threads."""

    def say(self, text: str) -> None:
        """One line."""

    def starting(self, what: str) -> AbstractContextManager[Callable[[float], None]]:
        """A server is starting; the function takes the seconds so far."""

    def serving(self, what: str, total: int) -> AbstractContextManager[Callable[[Exchange], None]]:
        """Requests are running; the function takes each as it is done."""


def run_demo(settings: Settings, screen: Screen, on_run: Callable[[str, Run], None]) -> Outcome:
    """Run the whole demonstration; blocks for minutes.

    Args:
        settings: what to run.
        screen: where progress is shown.
        on_run: called with a title after each of the three runs.

    Raises:
        DemoError: a request failed, or the agents could not be made.
        ServerError: a server did not start or died.
    """
    load = workload(settings.turns)
    tasks = bfcl.load_tasks(load.classes)
    numbers = range(1, settings.agents + 1)
    agents = [Agent(number, settings.agents, tasks, load) for number in numbers]
    total = settings.agents * load.turns
    settings.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)

    with _fresh_folder(settings.workdir) as l3_dir:
        flags = settings.cache_flags(l3_dir)
        with _server(settings, "three tiers", flags, screen) as server:
            client = make_client(server.base_url)
            with _explained(server), screen.serving("agents on three tiers", total) as done:
                tiered = Run(run_agents(client, agents, done))
            on_run("Three tiers", tiered)
            seconds = _wait_for_write_back(server)
            screen.say(
                f"All KV pages are on disk ({seconds:.1f} s after the last answer, asked through "
                "/flush_cache). SIGKILL."
            )
            server.kill()

        # Room for all agents at once, and no more: by default the pool takes most of the memory.
        # It starts together with the other one, most of whose start is imports on one processor,
        # and sleeps until it is asked.
        room = str(settings.agents * _CONTEXT_TOKENS)
        plain_flags = ("--disable-radix-cache", "--max-total-tokens", room, "--sleep-on-idle")
        reference = _make_server(settings, "no prefix cache", (*plain_flags, *_COMMON_FLAGS))
        with _starting_meanwhile(reference) as started:
            with _server(settings, "same L3 folder", flags, screen) as server:
                client = make_client(server.base_url)
                with _explained(server), screen.serving("replay after the kill", total) as done:
                    warm = Run(replay(client, tiered.exchanges, done))
                on_run("Restarted on the same L3 folder", warm)

            started()
            client = make_client(reference.base_url)
            with _explained(reference):
                with screen.serving("replay without a cache", total) as done:
                    plain = Run(replay(client, tiered.exchanges, done))
                on_run("No prefix cache", plain)
                gap = _gap_from(reference)
                equal = [compare(_pairs(plain, run), gap) for run in (tiered, warm)]
    return Outcome(tiered, warm, plain, *equal)


@contextmanager
def _fresh_folder(workdir: Path) -> Iterator[Path]:
    """An empty folder for L3: what an earlier run left would make the first run warm."""
    folder = Path(tempfile.mkdtemp(prefix="l3-", dir=workdir.absolute()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_server(
    settings: Settings,
    what: str,
    flags: Sequence[str],
    on_wait: Callable[[float], None] | None = None,
) -> ServerProcess:
    return ServerProcess(
        lambda port: sglang_command(settings.model, port, *flags),
        log=settings.workdir / f"server-{what.replace(' ', '-')}.log",
        on_wait=on_wait,
    )


@contextmanager
def _server(
    settings: Settings, what: str, flags: Sequence[str], screen: Screen
) -> Iterator[ServerProcess]:
    """A started server, killed at the end: it has nothing to save, and nobody is to wait for it."""
    with screen.starting(f"server: {what}") as waiting:
        server = _make_server(settings, what, flags, waiting)
        server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def _starting_meanwhile(server: ServerProcess) -> Iterator[Callable[[], None]]:
    """Start ``server`` in a thread; the function waits until it serves. Killed at the end."""
    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            start = pool.submit(server.start)
            try:
                yield start.result
            finally:
                server.kill()  # if it still starts, this ends the thread that waits for it
    finally:
        server.kill()  # the thread may have started it after the first of these


@contextmanager
def _explained(server: ServerProcess) -> Iterator[None]:
    """An error in requests to a server that died says so, with the end of its log."""
    try:
        yield
    except DemoError as error:
        if server.running:
            raise
        raise DemoError(
            f"{error}\nThe server is dead. The last lines of {server.log}:\n{server.log_tail()}"
        ) from error


def _wait_for_write_back(server: ServerProcess) -> float:
    """Block until every KV page is on disk; returns the seconds it took.

    SGLang has no endpoint that tells. ``/flush_cache?timeout=`` answers 200 only once nothing is
    running, copies to the host and writes to the storage included (0.5.23, ``is_fully_idle`` in
    ``managers/scheduler.py``). It then empties L1 and L2, which the kill does anyway, and leaves
    L3 alone.

    Raises:
        DemoError: not idle within the bound.
    """
    begin = time.monotonic()
    try:
        _http(f"{server.base_url}/flush_cache?timeout={_WRITE_BACK_S}", None, _WRITE_BACK_S + 10)
    except (OSError, urllib.error.URLError) as error:
        raise DemoError(
            f"the server was not idle {_WRITE_BACK_S} s after its last answer ({error}); its "
            f"writes to L3 may hang, see {server.log}"
        ) from error
    return time.monotonic() - begin


def _http(url: str, body: Mapping[str, Any] | None, timeout_s: float) -> bytes:
    request = urllib.request.Request(  # noqa: S310 - our own http URL
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
        return bytes(answer.read())


def _pairs(
    plain: Run, run: Run
) -> Iterator[tuple[str, Sequence[int], Sequence[int], Sequence[int]]]:
    for expected, found in zip(plain.exchanges, run.exchanges, strict=True):
        if expected.answer.prompt_ids != found.answer.prompt_ids:
            raise DemoError(f"{found.place}: the two servers read different prompts")
        yield (
            found.place,
            expected.answer.prompt_ids,
            expected.answer.output_ids,
            found.answer.output_ids,
        )


def _gap_from(server: ServerProcess) -> Callable[[Sequence[int], int, int], float]:
    """Asks ``server`` how far the log-probabilities of two next tokens are apart."""

    def gap(tokens: Sequence[int], left: int, right: int) -> float:
        answer = json.loads(
            _http(
                f"{server.base_url}/generate",
                {
                    "input_ids": list(tokens),
                    "sampling_params": {"temperature": 0, "max_new_tokens": 1},
                    "return_logprob": True,
                    "token_ids_logprob": [left, right],
                },
                120,
            )
        )
        rows = answer["meta_info"]["output_token_ids_logprobs"][0]
        values = {token: value for value, token, *_ in rows}
        return abs(float(values[left]) - float(values[right]))

    return gap
