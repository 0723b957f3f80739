"""A server of tiny-llama on three tiers, and prompts that fill them."""

import random
from pathlib import Path
from typing import Any

from sglang_ext.bench.server import ServerProcess
from support.serving import get

__all__ = ["CHAIN", "PAGE", "PROMPT", "WHOLE", "flags", "prompts", "tier"]

PAGE = 64
PROMPT = 1500
CHAIN = PROMPT // PAGE
WHOLE = CHAIN * PAGE


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of ``PROMPT`` tokens that share nothing."""
    generator = random.Random(seed)
    return [[generator.randrange(1000, 40_000) for _ in range(PROMPT)] for _ in range(count)]


def flags(folder: Path, size: str = "200MB") -> tuple[str, ...]:
    """Of the server. A token is 4 KiB: two prompts fit into L1, four into L2."""
    return (
        *("--ext-cache", "--ext-l1-tokens", "4k", "--ext-l2-size", "25MB"),
        *("--ext-l3-dir", str(folder), "--ext-l3-size", size),
    )


def tier(server: ServerProcess) -> dict[str, Any]:
    """What the server's one disk tier tells of itself."""
    (state,) = get(server, "/server_info")["internal_states"]
    told: dict[str, Any] = state["sglang_ext"]["disk_tier"]
    return told
