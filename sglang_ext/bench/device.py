"""What the reference device costs: prefill cold, prefill after a prefix hit, and decode.

Two real servers with the same weights, ours and SGLang's ``torch_native`` attention on the same
platform, are asked in turn; the one that waits sleeps. Beside both stands what the machine could
do: the same matrix products and the same bytes, measured in the same run.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_ext.bench.server import ServerProcess, sglang_command
from sglang_ext.bench.timed import generate, vocabulary_size
from sglang_ext.device import ATTENTION_BACKEND
from sglang_ext.errors import ConfigError, ServerError

__all__ = ["Samples", "bench_device", "machine_limit"]

RIVAL = "torch_native"


@dataclass
class Samples:
    """Seconds of each round on one server, and tokens a second of decode."""

    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    decode_tokens_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians, their ratio, and the spread (fastest and slowest round)."""
        cold, warm = statistics.median(self.cold_s), statistics.median(self.warm_s)
        return {
            "cold_prefill_s": round(cold, 4),
            "warm_prefill_s": round(warm, 4),
            "ratio": round(cold / warm, 2),
            "decode_tokens_s": round(statistics.median(self.decode_tokens_s), 2),
            "spread": {
                "cold_prefill_s": [round(min(self.cold_s), 4), round(max(self.cold_s), 4)],
                "warm_prefill_s": [round(min(self.warm_s), 4), round(max(self.warm_s), 4)],
            },
        }


def bench_device(
    model: Path,
    *,
    prompt_tokens: int = 3001,
    decode_tokens: int = 32,
    rounds: int = 5,
    workdir: Path,
    on_step: Callable[[str], None] = lambda _step: None,
) -> dict[str, Any]:
    """Measure both backends in alternation.

    Args:
        model: folder of the model.
        prompt_tokens: length of each prompt; all but its last token are cached for a warm prefill.
        decode_tokens: tokens of each decode measurement, at a context of ``prompt_tokens``.
        rounds: rounds; medians are reported.
        workdir: where the servers' logs go.
        on_step: called before each step with what it is.

    Returns:
        The object that ``--json`` writes: our medians at the top, the rival's under its name, and
        the machine's limit under ``limit``.

    Raises:
        ConfigError: too few rounds or tokens.
        ServerError: a server failed, or cached something else than what was to be measured.
    """
    if rounds < 1 or prompt_tokens < 2 or decode_tokens < 2:
        raise ConfigError(
            f"rounds {rounds}, prompt tokens {prompt_tokens}, decode tokens {decode_tokens}: "
            "expected at least 1, 2 and 2"
        )
    samples = {ATTENTION_BACKEND: Samples(), RIVAL: Samples()}
    vocabulary = vocabulary_size(model)
    with ExitStack() as stack:
        servers = {}
        for backend in samples:
            on_step(f"starting a server with {backend}")
            servers[backend] = stack.enter_context(_server(model, backend, workdir))
        prompts = _prompts(vocabulary, prompt_tokens)
        for backend, server in servers.items():  # one unmeasured round warms allocators up
            on_step(f"warming {backend}")
            _round(server, next(prompts), decode_tokens, Samples())
        for number in range(rounds):
            for backend, server in servers.items():
                on_step(f"round {number + 1} of {rounds}, {backend}")
                _round(server, next(prompts), decode_tokens, samples[backend])
    on_step("measuring the machine")
    return {
        "prompt_tokens": prompt_tokens,
        "rounds": rounds,
        **samples[ATTENTION_BACKEND].summary(),
        RIVAL: samples[RIVAL].summary(),
        "limit": machine_limit(model, prompt_tokens),
    }


def _server(model: Path, backend: str, workdir: Path) -> ServerProcess:
    def command(port: int) -> list[str]:
        return sglang_command(
            model,
            port,
            *("--dtype", "float32"),
            *("--attention-backend", backend),
            *("--max-total-tokens", "32768"),
            # One chunk: the whole prompt in one forward.
            *("--chunked-prefill-size", "-1"),
            "--sleep-on-idle",
        )

    return ServerProcess(
        command, log=workdir / f"bench-device-{backend}.log", health_path="/health_generate"
    )


def _prompts(vocabulary: int, tokens: int) -> Iterator[list[int]]:
    """Prompts that share no prefix: random token ids, seeded."""
    generator = random.Random(0)  # noqa: S311 - reproducible, not secret
    while True:
        yield [generator.randrange(vocabulary // 2, vocabulary) for _ in range(tokens)]


def _round(server: ServerProcess, prompt: list[int], decode: int, samples: Samples) -> None:
    """Cold prefill of all but the last token; warm prefill of the last; then decode."""
    seconds, cached = generate(server, prompt[:-1], 1)
    _expect(cached == 0, f"the cold prompt had {cached} cached tokens, expected none")
    samples.cold_s.append(seconds)
    seconds, cached = generate(server, prompt, 1)
    _expect(
        cached == len(prompt) - 1,
        f"the warm prompt had {cached} cached tokens, expected {len(prompt) - 1}",
    )
    samples.warm_s.append(seconds)
    # The same prompt once more is a prefill of one token (SGLang computes the last one again), so
    # what is beyond the first answer token is decode.
    first, _ = generate(server, prompt, 1)
    total, _ = generate(server, prompt, decode)
    samples.decode_tokens_s.append((decode - 1) / (total - first))


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ServerError(f"{message}; what was measured is not what was meant")


def machine_limit(model: Path, prompt_tokens: int, repeats: int = 5) -> dict[str, float]:
    """What this machine could do with the model's weights at best.

    Prefill is bounded by its matrix products, at the rate that torch reaches on a large square
    one; decode by reading every weight once a token, at the rate of a large sum.
    ASSUMPTION: attention, norms and sampling cost nothing.

    Returns:
        ``gflops``, ``read_gb_s``, ``cold_prefill_s`` and ``decode_tokens_s``.
    """
    import torch

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    heads = config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    attention = hidden * head_dim * (heads + config["num_attention_heads"])
    layer_weights = attention + 3 * hidden * config["intermediate_size"]
    weights = layers * layer_weights
    head_weights = hidden * config["vocab_size"]  # applied to the last token only

    square = 2048
    left, right = torch.randn(square, square), torch.randn(square, square)
    product_s = _fastest(lambda: left @ right, repeats)
    gflops = 2 * square**3 / product_s / 1e9
    block = torch.ones(64 << 20)  # 256 MiB of float32: larger than any cache
    read_gb_s = block.numel() * 4 / _fastest(block.sum, repeats) / 1e9
    return {
        "gflops": round(gflops, 1),
        "read_gb_s": round(read_gb_s, 2),
        "cold_prefill_s": round(2 * (weights * prompt_tokens + head_weights) / gflops / 1e9, 4),
        "decode_tokens_s": round(read_gb_s * 1e9 / (4 * (weights + head_weights)), 1),
    }


def _fastest(work: Callable[[], Any], repeats: int) -> float:
    def seconds() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return min(seconds() for _ in range(repeats + 1))
