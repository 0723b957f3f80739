"""Grammars of before a restart, compiled in the background: what `texts` kept is what is asked for.

A grammar that is warm is handed to its first request as a compile that is already done, not as one
that was cached: SGLang's ranks agree on what is done, and take what is cached as equal on all.

Source: SGLang 0.5.23, ``constrained/grammar_manager.py``; xgrammar 0.2.7.
"""

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sglang_ext.tools.texts import Texts, digest, owner, read, write

__all__ = [
    *("Figures", "Keeper", "Places", "WarmCache", "keep_in", "keeper_of", "warm_up"),
]

logger = logging.getLogger(__name__)

# A warm-up ends then, whatever is left. Default 60 s. Cost: one core or more beside requests.
_MOST_S = 60.0
_PAUSE_S = 0.02  # between looks whether requests still compile: they go first
# New texts are written together. Default 5 s. Cost: what a kill loses.
_WRITE_S = 5.0
_ORDER_S = 300.0  # what was used again, without anything new, is written this often

_FULL = "no room"
_folder: str | None = None


def keep_in(folder: str | None) -> None:
    """Keep texts in ``folder`` from now on; set before the scheduler makes its grammars."""
    global _folder
    _folder = folder


@dataclass
class Figures:
    """Of the warm-up of one scheduler: grammars, seconds, and what was left out by reason."""

    warmed: int = 0
    found: int = 0  # requests whose compile was done or running
    seconds: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)


class WarmCache(Protocol):
    """What a warm-up needs of the cache that requests are served from."""

    figures: Figures

    def begin(self, key: Any) -> Future[Any] | None:
        """A compile of ``key`` that requests wait for from now on; None: there is one, or it is."""

    def busy(self) -> bool:
        """Whether requests wait for a compile."""

    def room(self) -> int:
        """Bytes that are left."""

    def put_warm(self, key: Any, grammar: Any) -> bool:
        """Hold ``grammar`` for the first request that asks; whether there was room."""


@dataclass(frozen=True)
class Places:
    """Files of one scheduler: the texts, and which of them is being compiled.

    Attributes:
        writes: whether this rank keeps the texts for all; each reads them.
    """

    texts: Path
    warming: Path
    whose: bytes
    writes: bool

    @classmethod
    def of(cls, folder: Path, whose: bytes, *, replica: int, rank: int) -> "Places":
        """Those of a rank of a data-parallel replica."""
        stem = f"grammars-{whose.hex()}-{replica}"
        return cls(
            folder / f"{stem}.texts", folder / f"{stem}.{rank}.warming", whose, writes=rank == 0
        )


def warm_up(
    cache: WarmCache,
    places: Places,
    texts: Iterable[str],
    compile_text: Callable[[Any], Any],
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Compile ``texts`` in their order while there is time and room; requests go first.

    A server that a text ends finds it named in ``places.warming`` when it starts again, and
    leaves it out from then on.

    Args:
        cache: where they are put.
        places: where the text that is being compiled is named.
        texts: the one used last first.
        compile_text: from a key to a grammar; what has no ``ctx`` is a refusal.
        clock: monotonic seconds.

    Returns:
        Texts that are not worth keeping.
    """
    begin, left, bad = clock(), list(texts), []
    fatal = _named(places.warming)
    figures = cache.figures
    with _naming(places.warming) as name:
        while left:
            if clock() - begin > _MOST_S:
                figures.skipped["no time"] += len(left)
                break
            if cache.busy():
                time.sleep(_PAUSE_S)
                continue
            named = digest(left[0], places.whose)
            name(named)
            why = "ended a server" if named == fatal else _warm_one(cache, left[0], compile_text)
            if why == _FULL:
                figures.skipped[why] += len(left)
                break
            text = left.pop(0)
            if why:
                figures.skipped[why] += 1
                bad.append(text)
    figures.seconds = clock() - begin
    return bad


def _warm_one(cache: WarmCache, text: str, compile_text: Callable[[Any], Any]) -> str:
    """Why it is not warm; empty where it is, or where a request was faster."""
    if cache.room() <= 0:
        return _FULL
    key = ("structural_tag", text)
    future = cache.begin(key)
    if future is None:
        return ""
    try:
        grammar = compile_text(key)
    except BaseException as error:  # a request may wait: it hears what it would have heard
        future.set_exception(error)
        return "refused"
    why = ""
    if getattr(grammar, "ctx", None) is None:
        why = "refused"
    elif cache.put_warm(key, grammar):
        cache.figures.warmed += 1
    else:
        why = _FULL
    future.set_result(grammar)  # last: from then on it is looked for in the cache
    return why


def _named(file: Path) -> bytes:
    """The text that a server was compiling when it ended; nothing where it was done."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            return opened.read(16)
    except OSError:
        return b""


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[Callable[[bytes], None]]:
    """Within, the text at hand is named in ``file``, which is gone afterwards."""
    with contextlib.suppress(OSError):
        file.unlink()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError:  # the disk takes nothing: without it
        yield lambda _digest: None
        return
    try:
        yield lambda named: _overwrite(descriptor, named)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            file.unlink()


def _overwrite(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, data, 0)


class Keeper:
    """Warms a scheduler's grammars up and keeps their texts; both in a thread of its own.

    Args:
        cache: the scheduler's.
        texts: noted by the cache as they are used.
        find: where the files are; asked in the thread, for a tokenizer's fingerprint takes a while.
        compile_text: see `warm_up`.
    """

    def __init__(
        self,
        cache: WarmCache,
        texts: Texts,
        find: Callable[[], Places],
        compile_text: Callable[[Any], Any],
    ) -> None:
        self._cache, self._texts = cache, texts
        self._find, self._compile = find, compile_text
        self._new = threading.Event()
        self._failed = False
        self.thread = threading.Thread(target=self._run, name="sglang-ext-grammars", daemon=True)

    def start(self) -> None:
        """Begin, in the background; the thread ends with the process."""
        self.thread.start()

    def wake(self) -> None:
        """There is a new text; called by the scheduler, does no more than set a flag."""
        self._new.set()

    def _run(self) -> None:
        try:
            places = self._find()
            self._warm(places)
            self._keep(places)
        except Exception:  # the server goes on as if nothing had been asked for
            logger.exception("Grammars are no longer kept for the next start")

    def _warm(self, places: Places) -> None:
        stored = read(places.texts, places.whose)
        figures = self._cache.figures
        figures.skipped.update(stored.skipped)
        self._texts.remember(stored.texts)
        bad = warm_up(self._cache, places, stored.texts, self._compile)
        for text in bad:
            self._texts.forget(text)
        if bad:
            self._new.set()
        if stored.texts or figures.skipped:
            logger.info(
                "Compiled %d grammars of before in %.1f s; left out: %s",
                figures.warmed,
                figures.seconds,
                dict(figures.skipped) or "none",
            )

    def _keep(self, places: Places) -> None:
        written = 0  # what the file had is no change
        while places.writes:
            if self._new.wait(_ORDER_S):
                time.sleep(_WRITE_S)
            self._new.clear()
            changes = self._texts.changes
            if changes != written and self._write(places):
                written = changes

    def _write(self, places: Places) -> bool:
        try:
            write(places.texts, places.whose, self._texts.latest())
        except OSError as error:
            if not self._failed:
                logger.warning("Texts of grammars cannot be kept in %s: %s", places.texts, error)
            self._failed = True
            return False
        self._failed = False
        return True


def keeper_of(cache: WarmCache, texts: Texts, backend: Any) -> Keeper | None:
    """The keeper of SGLang's xgrammar backend; None where nothing is to be kept."""
    if _folder is None:
        return None
    folder = Path(_folder)
    return Keeper(
        cache,
        texts,
        lambda: _places(folder, backend._tokenizer_info),  # noqa: SLF001 - see `bound_caches`
        lambda key: backend._init_value_dispatch(key, False),  # noqa: SLF001 - what requests get
    )


def _places(folder: Path, tokenizer_info: Any) -> Places:
    from importlib.metadata import version

    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    return Places.of(
        folder,
        owner(tokenizer_info.serialize_json(), version("xgrammar")),
        replica=parallel.dp_rank or 0,
        rank=parallel.pp_rank * parallel.tp_size + parallel.tp_rank,
    )
