"""Request traces with prefix reuse: reading, start times, block sizes.

A trace is gzip (or plain) JSON lines. Line 1 is a header ``{name, block, timed, ...}``; ``block``
is tokens a block. Then a request a line: ``t`` seconds (from the trace's start when ``timed`` is
``global``, from its session's start when ``session``; without meaning when ``none``), ``in`` and
``out`` tokens, ``p`` the earlier request that shares the longest block prefix (-1: none), ``lcp``
blocks shared with it, ``n`` blocks of this prompt. ``s`` (session), ``a`` (seconds the answer
took), ``m`` (model), ``stop`` and ``sub`` (a sub-agent) may be there.

The prompt of request i is ``path(p)[:lcp]`` and then ``n - lcp`` blocks that nobody had before: the
exact tree of hashes, without a hash.
"""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from sglang_ext.errors import TraceError

__all__ = ["TIMED", "Trace", "open_text", "read_trace"]

TIMED = ("global", "session", "none")
# Sessions are numbered below this. Default: ten million. Cost: 8 bytes for each number below the
# highest.
SESSIONS = 10_000_000
# Different blocks of a trace, at most: their numbers have 32 bits.
BLOCKS = 1 << 31

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """One trace, a request a row.

    Arrays are of one length and in the file's order. ``answer_s`` is 0 and ``output_tokens`` -1
    where the trace does not say; ``session`` is -1 without one.
    """

    name: str
    block_tokens: int
    timed: str
    time_s: FloatArray
    session: IntArray
    input_tokens: IntArray
    output_tokens: IntArray
    parent: IntArray
    shared: IntArray
    blocks: IntArray
    answer_s: FloatArray
    model: Sequence[str]
    stop: Sequence[str]
    agent: Sequence[bool]

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def footprint_tokens(self) -> int:
        """Tokens of all distinct blocks: what an infinite cache would hold."""
        return int((self.blocks - self.shared).sum()) * self.block_tokens

    @property
    def ideal_hit(self) -> float:
        """Share of input blocks that an infinite cache has."""
        return float(self.shared.sum() / max(1, self.blocks.sum()))

    def coarser(self, block_tokens: int) -> "Trace":
        """The same requests in larger blocks; a prompt's last, partial block is dropped.

        Raises:
            TraceError: ``block_tokens`` is not a multiple of the trace's.
        """
        times, rest = divmod(block_tokens, self.block_tokens)
        if rest or times < 1:
            raise TraceError(
                f"blocks of {block_tokens} tokens from a trace of {self.block_tokens}",
                fix=f"give a multiple of {self.block_tokens}",
            )
        if times == 1:
            return self
        shared, blocks = self.shared // times, self.blocks // times
        return replace(self, block_tokens=block_tokens, shared=shared, blocks=blocks)

    def starts(self, seed: int, window_s: float) -> FloatArray:
        """When each request arrives, in seconds.

        Sessions that are timed from their own start begin at random within ``window_s``, drawn by
        ``numpy.random.default_rng(seed).uniform(0, window_s, sessions)``, sessions in file order.
        A trace without times gets one request a second.
        """
        if self.timed == "global":
            return self.time_s
        if self.timed == "none":
            return np.arange(len(self), dtype=np.float64)
        sessions = int(self.session.max(initial=-1)) + 1
        offsets = np.random.default_rng(seed).uniform(0, window_s, sessions)
        return np.asarray(self.time_s + offsets[self.session], dtype=np.float64)


def read_trace(file: Path) -> Trace:
    """Read a trace.

    Raises:
        OSError: the file cannot be read.
        TraceError: it is not a trace, or a request of it cannot be true.
    """
    try:
        with open_text(file) as stream:
            lines = [json.loads(line) for line in stream if line.strip()]
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise TraceError(f"{file}: not JSON lines ({error})", fix="see docs/replay.md") from error
    if not lines or not isinstance(lines[0], dict) or "block" not in lines[0]:
        raise TraceError(f"{file}: no header with 'block'", fix="see docs/replay.md")
    if len(lines) == 1:
        raise TraceError(f"{file}: a header and no request", fix="see docs/replay.md")
    for number, line in enumerate(lines):
        if not isinstance(line, dict):
            raise TraceError(f"{file}: request {number - 1} is no object", fix="see docs/replay.md")
    try:
        trace = _trace(file, lines[0], lines[1:])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"a request without {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(f"{file}: {what}", fix="see docs/replay.md") from error
    _check(file, trace)
    return trace


def open_text(file: Path, errors: str = "strict") -> TextIO:
    """Open a text file, gzip or plain.

    Args:
        file: to be read.
        errors: what is done with what is no UTF-8, as for `open`.
    """
    with file.open("rb") as start:
        zipped = start.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(file, "rt", encoding="utf-8", errors=errors)
    return file.open(encoding="utf-8", errors=errors)


def _trace(file: Path, header: dict[str, Any], rows: list[dict[str, Any]]) -> Trace:
    def whole(name: str, default: int | None = None) -> IntArray:
        values = [row[name] if default is None else row.get(name, default) for row in rows]
        return np.array([default if v is None else v for v in values], dtype=np.int64)

    shared, blocks, parent = whole("lcp"), whole("n"), whole("p")
    return Trace(
        name=str(header.get("name", file.name.partition(".")[0])),
        block_tokens=int(header["block"]),
        timed=str(header.get("timed", "global")),
        time_s=np.array([row["t"] for row in rows], dtype=np.float64),
        session=whole("s", -1),
        input_tokens=whole("in"),
        output_tokens=whole("out", -1),
        parent=parent,
        shared=np.where(parent < 0, 0, np.minimum(shared, blocks)),
        blocks=blocks,
        answer_s=np.array([row.get("a") or 0.0 for row in rows], dtype=np.float64),
        model=[str(row.get("m", "")) for row in rows],
        stop=[str(row.get("stop", "")) for row in rows],
        agent=[bool(row.get("sub", 0)) for row in rows],
    )


def _check(file: Path, trace: Trace) -> None:
    """Refuse what cannot be."""

    def refuse(row: int, what: str) -> None:
        raise TraceError(f"{file}: request {row} {what}", fix="see docs/replay.md")

    _check_times(trace, refuse)
    _check_blocks(trace, refuse)


def _check_times(trace: Trace, refuse: Callable[[int, str], None]) -> None:
    """Times are finite, and a session has them where they are of it."""
    if trace.timed not in TIMED:
        refuse(0, f"is timed {trace.timed!r}; expected one of {', '.join(TIMED)}")
    many = trace.session >= SESSIONS
    if many.any():
        refuse(int(np.argmax(many)), f"has a session of {SESSIONS:,} or more")
    if trace.timed == "session" and (trace.session < 0).any():
        refuse(int(np.argmax(trace.session < 0)), "has no session, though times are of sessions")
    if not (np.isfinite(trace.time_s).all() and np.isfinite(trace.answer_s).all()):
        refuse(0, "or a later one has a time that is not finite")
    if (trace.answer_s < 0).any():
        refuse(int(np.argmax(trace.answer_s < 0)), "is answered before it is asked")


def _check_blocks(trace: Trace, refuse: Callable[[int, str], None]) -> None:
    """A request may only share what its parent has, and its parent comes before it."""
    if trace.block_tokens < 1:
        refuse(0, f"has blocks of {trace.block_tokens} tokens")
    many = trace.blocks >= BLOCKS
    if many.any():
        refuse(int(np.argmax(many)), f"has {BLOCKS:,} blocks or more")
    rows = np.arange(len(trace))
    late = trace.parent >= rows
    if late.any():
        refuse(int(np.argmax(late)), "has a parent that is not before it")
    limit = np.where(trace.parent < 0, 0, trace.blocks[np.maximum(trace.parent, 0)])
    bad = (trace.shared > limit) | (trace.shared < 0) | (trace.blocks < 0)
    if bad.any():
        refuse(int(np.argmax(bad)), "shares more blocks than its parent has")
    if int((trace.blocks - trace.shared).sum()) >= BLOCKS:
        refuse(0, f"and those after it have {BLOCKS:,} different blocks or more")
