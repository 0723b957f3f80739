"""A line for each request: marks of its prompt's blocks and counts, no text.

``sglang-ext replay --record`` makes a trace of it (`sglang_ext.replay.record` reads what is written
here). Lines are written by a thread of their own; the file never exceeds its bound.

Pure: neither torch nor SGLang is imported.
"""

import contextlib
import json
import logging
import os
import queue
import stat
import threading
from pathlib import Path
from typing import Any

from sglang_ext.cache.conversation import STOP_NAMES, Stop
from sglang_ext.cache.requests import Known

__all__ = ["RequestLog"]

logger = logging.getLogger(__name__)

# Lines that wait to be written; more are dropped and counted. Cost: 270 KB each at 100,000 tokens,
# in blocks of 16.
_WAITING = 256
# Longest wait at the end for what waits, twice.
_CLOSE_S = 5.0


class RequestLog:
    """Appends requests to a file.

    Args:
        file: made with mode 0600 where it is missing.
        most_bytes: bound of the file; nothing is written that would exceed it.
        block_tokens: tokens that a mark stands for.

    Attributes:
        written, dropped: requests.
        full: the bound was reached.
    """

    def __init__(self, file: Path, most_bytes: int, block_tokens: int) -> None:
        self.written = self.dropped = 0
        self.full = False
        self._file = file
        self._most_bytes = most_bytes
        self._head = json.dumps({"block": block_tokens}).encode() + b"\n"
        self._lines: queue.Queue[tuple[Known, Stop, int, float] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="sglang-ext-record", daemon=True)
        self._thread.start()

    def put(self, known: Known, stop: Stop, output_tokens: int, now: float) -> None:
        """A request has ended. Returns at once; called by the scheduler's thread."""
        if self.full:
            return
        try:
            self._lines.put_nowait((known, stop, output_tokens, now))
        except queue.Full:
            self.dropped += 1

    def describe(self) -> dict[str, Any]:
        """Counters as plain values."""
        return {"written": self.written, "dropped": self.dropped, "full": self.full}

    def close(self) -> None:
        """Write what waits and end. Idempotent."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):  # its disk hangs
                self._lines.put(None, timeout=_CLOSE_S)
            self._thread.join(timeout=_CLOSE_S)

    def _run(self) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            descriptor = os.open(self._file, flags, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                # Each server says its own: pages may have changed since the last.
                head = self._head if _is_whole(self._file) else b"\n" + self._head
                while (item := self._lines.get()) is not None:
                    size = os.fstat(descriptor).st_size  # replicas may write to it, too
                    line = head + _line(*item)
                    if size + len(line) > self._most_bytes:
                        self.full = True
                        logger.warning("The log of requests %s is full", self._file)
                        return
                    if file.write(line) == len(line):
                        self.written += 1
                        head = b""
                    else:  # the disk is full; after what was cut off comes a header
                        self.dropped += 1
                        head = b"\n" + self._head
        except OSError as error:
            self.full = True
            logger.warning("The log of requests %s ends: %s", self._file, error.strerror)


def _is_whole(file: Path) -> bool:
    """Whether nothing or a whole line was written last: not so after power was lost."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _line(known: Known, stop: Stop, output_tokens: int, now: float) -> bytes:
    row: dict[str, object] = {
        "t": round(known.arrived_s, 3),
        "in": known.tokens,
        "out": output_tokens,
        "a": round(max(0.0, now - known.arrived_s), 3),
        "stop": STOP_NAMES.get(stop, "other"),
        "keys": list(known.marks),
    }
    if known.session is not None:
        row["s"] = known.session
    if known.agent:
        row["sub"] = 1
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"
