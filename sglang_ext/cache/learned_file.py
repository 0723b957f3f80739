"""Where what a policy has learned survives a restart: one file, replaced as a whole.

Pure: neither torch nor SGLang is imported.
"""

import logging
import os
from pathlib import Path

from sglang_ext.cache.policy import Policy
from sglang_ext.errors import StateError

__all__ = ["LearnedFile", "read_state", "write_state"]

logger = logging.getLogger(__name__)

# Longest state that is read: far above what a policy writes.
_MOST_BYTES = 64_000_000


def read_state(file: Path) -> bytes:
    """A state that `write_state` wrote.

    Raises:
        OSError: it cannot be read, or is a link.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
        return stream.read(_MOST_BYTES)


def write_state(file: Path, state: bytes) -> None:
    """Replace ``file``, of mode 0600, as a whole.

    Raises:
        OSError: it cannot be written.
    """
    fresh = file.with_name(f"{file.name}.{os.getpid()}.new")  # replicas share it
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(fresh, flags, 0o600), "wb") as stream:
        stream.write(state)
    fresh.replace(file)


class LearnedFile:
    """A policy's state on disk; nothing that goes wrong with it ends the server.

    Args:
        file: made with mode 0600 in a folder of ours.
        every_s: time between two writes. Default a minute: a killed server forgets no more.
    """

    def __init__(self, file: Path, every_s: float = 60.0) -> None:
        self._file = file
        self._every_s = every_s
        self._saved_s = 0.0

    def read(self) -> bytes:
        """What was written; empty where there is nothing, or where it cannot be read."""
        try:
            return read_state(self._file)
        except FileNotFoundError:
            return b""
        except OSError as error:
            logger.warning("The policy begins anew: %s: %s", self._file, error)
            return b""

    def load(self, policy: Policy, data: bytes, now: float) -> bool:
        """Give a policy what `read` found; returns whether it was good."""
        self._saved_s = now
        try:
            if data:
                policy.load(data, now)
        except StateError as error:
            logger.warning("The policy begins anew: %s: %s", self._file, error)
            return False
        return bool(data)

    def save(self, policy: Policy, now: float, *, anyway: bool = False) -> bool:
        """Write, if it is time to; returns whether it was written. Takes some 50 ms."""
        if not anyway and now - self._saved_s < self._every_s:
            return False
        self._saved_s = now
        try:
            write_state(self._file, policy.save())
        except OSError as error:
            logger.warning("What was learned is not kept: %s: %s", self._file, error)
            return False
        return True
