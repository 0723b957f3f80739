"""Texts of structural tags that were compiled, in a file that outlives the server.

A text names tools and holds their schemas, nothing else of a request. A file is ``SGXG``, the
form's number and the 16 bytes of its owner, then for each text its keyed BLAKE2b-128, its length
and its bytes, the one used last first. What is wrong is left out and counted; nothing raises.

Pure: neither torch nor SGLang is imported.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import struct
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FORM", "Stored", "TextLimits", "Texts", "digest", "owner", "read", "write"]

# Counts up whenever the file or what the texts are for changes.
FORM = 1
_MAGIC = b"SGXG"
_HEAD = struct.Struct("<4sI16s")
_ENTRY = struct.Struct("<16sI")
_NAME = re.compile(r"grammars-[0-9a-f]{32}-\d+\.(texts|texts\.\d+\.new|[\d.]+\.warming)")
# Files of other models, releases and replicas that a folder keeps beside the one that is written.
_MOST_FILES = 32


@dataclass(frozen=True)
class TextLimits:
    """Bounds of one file. Speed: 10 ms a MB to write, 20 ms a MB to read, in the background."""

    count: int = 1_000
    total_bytes: int = 16 * 1024 * 1024
    text_bytes: int = 1024 * 1024  # a set of tools at every bound of a request has half of it


@dataclass
class Stored:
    """What was read.

    Attributes:
        texts: the one used last first.
        skipped: how many were left out, by reason.
    """

    texts: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class Texts:
    """Texts by when they were used last, within bounds; safe to use from several threads.

    Args:
        limits: the least recently used text goes first where they would be exceeded.
    """

    def __init__(self, limits: TextLimits | None = None) -> None:
        self._limits = limits or TextLimits()
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._held_bytes = 0
        self.changes = 0  # counts up with everything that a file does not have yet

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, text: str) -> None:
        """Keep ``text`` as the one used last; one too large is not kept."""
        size = _size(text)
        if size is None or size > min(self._limits.text_bytes, self._room()):
            return
        with self._lock:
            self._drop(text)
            self._sizes[text] = size
            self._held_bytes += size
            while len(self._sizes) > self._limits.count or self._held_bytes > self._room():
                self._drop(next(iter(self._sizes)))
            self.changes += 1

    def use(self, text: str) -> None:
        """Note that ``text`` was used, if it is kept."""
        with self._lock:
            if text in self._sizes and next(reversed(self._sizes)) != text:
                self._sizes.move_to_end(text)
                self.changes += 1

    def remember(self, texts: Iterable[str]) -> None:
        """Take what a file has, the one used last first, behind all that was used since."""
        for text in texts:
            size = _size(text)
            with self._lock:
                if size is None or text in self._sizes:
                    continue
                count = len(self._sizes) + 1
                if count > self._limits.count or self._held_bytes + size > self._room():
                    return
                self._sizes[text] = size
                self._sizes.move_to_end(text, last=False)
                self._held_bytes += size

    def forget(self, text: str) -> None:
        """No longer keep ``text``."""
        with self._lock:
            self._drop(text)
            self.changes += 1

    def latest(self) -> list[str]:
        """All of them, the one used last first."""
        with self._lock:
            return list(reversed(self._sizes))

    def _room(self) -> int:
        return self._limits.total_bytes - _HEAD.size

    def _drop(self, text: str) -> None:
        self._held_bytes -= self._sizes.pop(text, 0)


def _size(text: str) -> int | None:
    """Bytes in a file; None: half a character cannot be stored."""
    if text.isascii():
        return _ENTRY.size + len(text)
    try:
        return _ENTRY.size + len(text.encode())
    except UnicodeEncodeError:
        return None


def owner(*parts: str) -> bytes:
    """Whose texts they are, from all that a compiled grammar depends on. 16 bytes."""
    return hashlib.blake2b(json.dumps([FORM, *parts]).encode(), digest_size=16).digest()


def digest(text: str, whose: bytes) -> bytes:
    """What tells a text of an owner from any other. 16 bytes."""
    return _digest(text.encode(errors="surrogatepass"), whose)


def _digest(data: bytes, whose: bytes) -> bytes:
    return hashlib.blake2b(data, key=whose, digest_size=16).digest()


def write(file: Path, whose: bytes, texts: Iterable[str]) -> None:
    """Replace ``file``, for its owner alone; it is whole at any time.

    Raises:
        OSError: the disk does not take it; the old file stays.
    """
    # Two servers of one model may share a folder: the last one to write is read.
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        new.unlink()  # of a writer that was killed
    with os.fdopen(os.open(new, flags, 0o600), "wb") as made:
        made.write(_HEAD.pack(_MAGIC, FORM, whose))
        for text in texts:
            data = text.encode()
            made.write(_ENTRY.pack(_digest(data, whose), len(data)) + data)
        made.flush()
        os.fsync(made.fileno())
    new.rename(file)
    with contextlib.suppress(OSError):  # another server may be doing the same
        _forget_old_files(file)


def _forget_old_files(file: Path) -> None:
    """Bound what the folder holds: files of servers that are gone, and what killed ones left."""
    others = [other for other in file.parent.iterdir() if _NAME.fullmatch(other.name)]
    others = [other for other in others if other.name != file.name]
    others.sort(key=lambda other: other.lstat().st_mtime)
    for other in others[:-_MOST_FILES]:
        other.unlink(missing_ok=True)


def read(file: Path, whose: bytes, limits: TextLimits | None = None) -> Stored:
    """What of a file can be trusted; whatever it holds, it costs no more than its bounds."""
    limits = limits or TextLimits()
    stored = Stored()
    try:
        data = _contents(file, limits.total_bytes)
    except FileNotFoundError:
        return stored
    except OSError:
        data = None
    if data is None:
        stored.skipped["file"] += 1
        return stored
    if len(data) < _HEAD.size or _HEAD.unpack_from(data)[:2] != (_MAGIC, FORM):
        stored.skipped["damaged"] += 1
    elif data[_HEAD.size - 16 : _HEAD.size] != whose:
        stored.skipped["foreign"] += 1
    else:
        _read_entries(memoryview(data)[_HEAD.size :], whose, limits, stored)
    return stored


def _contents(file: Path, most_bytes: int) -> bytes | None:
    """The bytes of a file that is ours alone and no larger than ours are; None: it is not."""
    # A FIFO would make the server wait for a writer.
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_mode & 0o077 or status.st_size > most_bytes:
            return None
        data = opened.read(most_bytes + 1)
    return data if len(data) <= most_bytes else None


def _read_entries(data: memoryview, whose: bytes, limits: TextLimits, stored: Stored) -> None:
    seen: set[str] = set()
    while data and len(stored.texts) < limits.count:
        if len(data) < _ENTRY.size:
            stored.skipped["damaged"] += 1
            return
        expected, length = _ENTRY.unpack_from(data)
        body, data = data[_ENTRY.size : _ENTRY.size + length], data[_ENTRY.size + length :]
        if len(body) < length or _ENTRY.size + length > limits.text_bytes:
            stored.skipped["damaged"] += 1  # what follows a wrong length cannot be told
            return
        text = _text(bytes(body)) if _digest(bytes(body), whose) == expected else None
        if text is None or text in seen:
            stored.skipped["damaged"] += 1
        else:
            seen.add(text)
            stored.texts.append(text)
    if data:
        stored.skipped["too many"] += 1


def _text(data: bytes) -> str | None:
    """A structural tag as text; None: it is none."""
    try:
        text = data.decode()
        tag = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(tag, dict) and ("format" in tag or "structures" in tag)
    return text if whole else None
