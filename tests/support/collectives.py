"""What `counted_collectives` wrote down."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "counted_collectives"


@dataclass(frozen=True)
class Call:
    """One collective of one rank."""

    process: int
    name: str
    ranks: int
    dtype: str
    rows: int
    sent_bytes: int

    @property
    def of_attention(self) -> bool:
        """Whether it is a layer's AllGather of packed rows: nothing else sends bytes."""
        return self.name == "all_gather_into_tensor" and self.dtype == "torch.uint8"


class Collectives:
    """The collectives of a server, one test at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen = 0

    @property
    def environment(self) -> dict[str, str]:
        """What the server is started with."""
        path = os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH"))))
        return {"COUNT_COLLECTIVES": str(self.file), "PYTHONPATH": path}

    def since_last(self) -> list[Call]:
        """Those of several ranks that were started since the last call."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        new, self._seen = lines[self._seen :], len(lines)
        calls = []
        for line in new:
            process, name, ranks, dtype, rows, size = line.split()
            calls.append(Call(int(process), name, int(ranks), dtype, int(rows), int(size)))
        return [call for call in calls if call.ranks > 1]


def ask_while_running(
    collectives: Collectives,
    ask: Callable[[list[int], int], dict[str, Any]],
    short: Sequence[list[int]],
    long: Sequence[list[int]],
) -> tuple[list[tuple[list[int], dict[str, Any]]], list[Call]]:
    """Long prompts that arrive while short ones are being answered.

    Args:
        collectives: Those of the server.
        ask: Answers a prompt with so many new tokens.
        short: Prompts that are answered with 128 tokens.
        long: Prompts that are sent once a batch of the short ones was split.

    Returns:
        Each prompt with its answer, and the AllGathers of attention meanwhile. More rows in a layer
        than tokens of prompts, one a forward aside, are tokens of requests that were running.
    """
    collectives.since_last()
    with ThreadPoolExecutor(len(short) + len(long)) as clients:
        asked = [(prompt, clients.submit(ask, prompt, 128)) for prompt in short]
        calls: list[Call] = []
        deadline = time.monotonic() + 60
        while not calls and time.monotonic() < deadline:
            time.sleep(0.05)
            calls = collectives.since_last()
        asked += [(prompt, clients.submit(ask, prompt, 24)) for prompt in long]
        answers = [(prompt, answer.result()) for prompt, answer in asked]
    calls += collectives.since_last()
    return answers, [call for call in calls if call.of_attention]
