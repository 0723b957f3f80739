"""Turns a server's log of requests into a trace: hashes and counts only, no text.

A log is JSON lines, plain or gzip, a request a line, in any order: ``t`` seconds, ``in`` tokens
and ``keys``, the chained keys of the prompt's blocks, shallow first (strings or numbers; equal keys
mean equal prefixes). ``out``, ``s`` (the session's name or digest), ``a``, ``m``, ``stop`` and
``sub`` as in a trace. A line with ``block`` and no ``keys`` is a header; without one the block size
is given. SGLang's own log is understood too (`sglang_ext.replay.sglang_log`). The last line, or one
before a header, may be cut off, as where power was lost: it is left out.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from sglang_ext.errors import TraceError
from sglang_ext.replay import sglang_log
from sglang_ext.replay.trace import open_text

__all__ = ["record"]

_OPTIONAL = ("a", "m", "stop", "sub")


def record(
    log: Path,
    trace: Path,
    *,
    name: str | None = None,
    block_tokens: int | None = None,
    on_step: Callable[[int], None] = lambda requests: None,
) -> dict[str, Any]:
    """Write ``trace`` (gzip) from ``log``.

    Args:
        log: see the module.
        trace: overwritten.
        name: of the trace; the log's file name by default.
        block_tokens: tokens a key stands for, where the log does not say.
        on_step: called with the requests done, now and then.

    Returns:
        ``{name, block, requests, skipped, cut, sessions, input_tokens, footprint_tokens}``; skipped
        are requests whose prompts are not in the log, and cut are lines that were cut off.

    Raises:
        OSError: a file cannot be read or written.
        TraceError: a line is not a request, or nobody says how long a block is.
    """
    if trace.exists() and trace.samefile(log):
        raise TraceError(f"{trace} is the log itself", fix="name another file")
    found = _Log(log, block_tokens)
    rows, block = found.rows, found.block
    if not isinstance(block, int) or block < 1:
        raise TraceError(
            f"{log}: no line says how many tokens a key stands for", fix="give --block-tokens"
        )
    rows.sort(key=lambda row: float(row["t"]))
    title = name or log.name.partition(".")[0]
    head = {"name": title, "block": block, "timed": "global"}
    sessions: dict[str, int] = {}
    trace.parent.mkdir(parents=True, exist_ok=True)
    new_blocks = 0
    with trace.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as zipped:
        zipped.write(_line(head))
        for done, row in enumerate(_shared(rows), start=1):
            if "s" in row:
                row["s"] = sessions.setdefault(str(row["s"]), len(sessions))
            new_blocks += row["n"] - row["lcp"]
            zipped.write(_line(row))
            on_step(done)
    return {
        "name": title,
        "block": block,
        "requests": len(rows),
        "skipped": found.skipped,
        "cut": found.cut,
        "sessions": len(sessions),
        "input_tokens": sum(int(row["in"]) for row in rows),
        "footprint_tokens": new_blocks * block,
    }


class _Log:
    """The requests of a log.

    Attributes:
        block: tokens a key stands for; None where nobody says.
        rows: requests with their keys, in the log's order.
        skipped: requests whose prompts are not in it.
        cut: lines that were cut off.
    """

    def __init__(self, log: Path, block_tokens: int | None) -> None:
        self.block: Any = block_tokens
        self.rows: list[dict[str, Any]] = []
        self.skipped = self.cut = 0
        self._given = block_tokens is not None
        self._said: Any = None  # by the last header
        self._log = log
        with open_text(log, errors="replace") as stream:
            self._read(enumerate(stream, start=1))
        if not self.rows:
            fix = f"log with {sglang_log.FLAGS}" if self.skipped else "see docs/replay.md"
            raise TraceError(f"{log}: no request with its prompt's keys or token ids", fix=fix)

    def _read(self, lines: Iterable[tuple[int, str]]) -> None:
        broken: tuple[int, Exception] | None = None  # the line before, if it is no JSON
        for number, text in lines:
            if not text.strip():
                continue
            try:
                row = json.loads(sglang_log.without_time(text))
            except (ValueError, RecursionError) as error:
                if broken is not None:
                    raise self._refusal(*broken) from broken[1]
                broken = number, error
                continue
            if broken is not None:
                if not _is_header(row):
                    raise self._refusal(*broken) from broken[1]
                self.cut, broken = self.cut + 1, None
            try:
                good = self._add(row)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                raise self._refusal(number, error) from error
            if not good:
                raise self._refusal(number)
        self.cut += broken is not None

    def _refusal(self, number: int, error: Exception | None = None) -> TraceError:
        why = "" if error is None else f" ({type(error).__name__} {error})"
        return TraceError(
            f"{self._log}: line {number} is no request{why}", fix="see docs/replay.md"
        )

    def _add(self, row: dict[str, Any]) -> bool:
        """Take a line; False where it is none."""
        if sglang_log.is_event(row):
            if row["event"] != sglang_log.FINISHED:
                return True
            self.block = self.block or sglang_log.BLOCK_TOKENS
            request = sglang_log.row_of(row, self.block)
            if request is None:
                self.skipped += 1
                return True
            row = request
        if _is_header(row):
            said = row["block"]
            if self.rows and self._said not in (None, said):
                raise ValueError(f"keys of {said} tokens after keys of {self._said}; split the log")
            self._said = said
            self.block = self.block if self._given else said
            return True
        if "keys" not in row and "lcp" in row:
            raise ValueError("this is a trace: replay it without --record")
        keys, when, tokens = row["keys"], float(row["t"]), int(row["in"])
        int(-1 if row.get("out") is None else row["out"])
        answer_s = float(row.get("a") or 0.0)
        self.rows.append(row)
        good = isinstance(keys, list) and isfinite(when) and tokens >= 0
        good = good and isfinite(answer_s) and answer_s >= 0.0
        return good and all(isinstance(key, (str, int)) for key in keys)


def _is_header(row: Any) -> bool:
    """Whether a line says how many tokens a key stands for."""
    return isinstance(row, dict) and "keys" not in row and "block" in row


def _shared(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of a trace: keys replaced by the request and the depth that share them."""
    first_with: dict[str | int, int] = {}
    begin = float(rows[0]["t"]) if rows else 0.0
    for request, row in enumerate(rows):
        keys = row["keys"]
        depth = len(keys)
        while depth and keys[depth - 1] not in first_with:
            depth -= 1
        parent = first_with[keys[depth - 1]] if depth else -1
        for key in keys[depth:]:
            first_with[key] = request
        out = row.get("out")
        line = {
            "t": round(float(row["t"]) - begin, 6),
            "in": int(row["in"]),
            "out": -1 if out is None else int(out),
            "p": parent,
            "lcp": depth,
            "n": len(keys),
        }
        if row.get("s") is not None:
            line["s"] = row["s"]
        yield {**line, **{name: row[name] for name in _OPTIONAL if row.get(name) is not None}}


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode("utf-8") + b"\n"
