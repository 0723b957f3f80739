"""Prompts of token ids to a server of ours, and how long their answers take."""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

from sglang_ext.bench.server import ServerProcess
from sglang_ext.errors import ConfigError, ServerError

__all__ = ["generate", "vocabulary_size"]

_REQUEST_TIMEOUT_S = 300


def vocabulary_size(model: Path) -> int:
    """Token ids that a model has.

    Raises:
        ConfigError: it is no model folder.
    """
    try:
        return int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{model} is not a model folder ({error}); make one with `sglang-ext model smollm2`"
        ) from error


def generate(server: ServerProcess, prompt: list[int], new_tokens: int) -> tuple[float, int]:
    """Seconds until the whole answer is here, and cached prompt tokens.

    Raises:
        ServerError: the server does not answer.
    """
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True},
    }
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{server.base_url}/generate",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    begin = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_S) as answer:  # noqa: S310
            result = json.load(answer)
    except urllib.error.URLError as error:
        raise ServerError(
            f"{server.base_url}/generate failed: {error}\n{server.log_tail()}"
        ) from error
    return time.perf_counter() - begin, int(result["meta_info"]["cached_tokens"])
