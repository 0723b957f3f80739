"""Where what a policy has learned survives a restart: one file, replaced as a whole.

Pure: neither torch nor SGLang is imported.
"""

import logging
import os
import threading
from pathlib import Path

from sglang_ext.cache.policy import Policy
from sglang_ext.errors import StateError

__all__ = ["MOST_BYTES", "LearnedFile", "read_state", "write_state"]

logger = logging.getLogger(__name__)

MOST_BYTES = 8 << 20  # of a state; a full one has 6 MB


def read_state(file: Path, most_bytes: int = -1) -> bytes:
    """A state that `write_state` wrote; not more than ``most_bytes`` of it.

    Raises:
        OSError: it cannot be read, or is a link.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
        return stream.read(most_bytes)


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
        stream.flush()
        os.fsync(stream.fileno())  # or a disk that loses power keeps the name and not the state
    fresh.replace(file)


class LearnedFile:
    """A policy's state on disk; nothing that goes wrong with it ends the server.

    Args:
        file: made with mode 0600 in a folder of ours.
        most_bytes: bound of the file; a longer state is not kept. Default 8 MiB: a full one has 6.
        idle_s: time between two writes of a server that pauses now and then. Default a minute.
        busy_s: of one that never does. Default ten minutes: a killed server forgets no more, and
            the 60 ms that its requests wait are one in ten thousand.
    """

    def __init__(
        self,
        file: Path,
        most_bytes: int = MOST_BYTES,
        *,
        idle_s: float = 60.0,
        busy_s: float = 600.0,
    ) -> None:
        self._file = file
        self._most_bytes = most_bytes
        self._idle_s = idle_s
        self._busy_s = busy_s
        self._saved_s = 0.0
        self._thread: threading.Thread | None = None
        self._written = False

    def read(self) -> bytes:
        """What was written; empty where there is nothing, or where it cannot be read."""
        try:
            return read_state(self._file, self._most_bytes)
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

    def save(self, policy: Policy, now: float, *, busy: bool) -> bool:
        """Begin to write, if it is time to; returns whether it was begun.

        A disk that hangs holds up nobody: nothing is begun while the last write is under way.

        Args:
            policy: whose state.
            now: seconds.
            busy: requests wait for the 60 ms that packing takes.
        """
        if now - self._saved_s < (self._busy_s if busy else self._idle_s):
            return False
        return self._begin(policy, now)

    def close(self, policy: Policy, now: float, wait_s: float = 5.0) -> bool:
        """Write for the last time; returns whether it was written, in ``wait_s`` at most."""
        self._join(wait_s)
        if not self._begin(policy, now):
            logger.warning("What was learned is not kept: %s: the disk hangs", self._file)
            return False
        return self._join(wait_s) and self._written

    def _begin(self, policy: Policy, now: float) -> bool:
        if self._thread is not None and self._thread.is_alive():
            return False
        self._saved_s = now
        self._thread = threading.Thread(
            target=self._write, args=(policy.save(),), name="policy-state", daemon=True
        )
        self._thread.start()
        return True

    def _join(self, wait_s: float) -> bool:
        if self._thread is None:
            return True
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _write(self, data: bytes) -> None:
        self._written = False
        if len(data) > self._most_bytes:
            logger.warning(
                "What was learned is not kept: %d bytes, and %s may have %d; give a larger "
                "--ext-l3-size",
                *(len(data), self._file, self._most_bytes),
            )
            return
        try:
            write_state(self._file, data)
            self._written = True
        except OSError as error:
            logger.warning("What was learned is not kept: %s: %s", self._file, error)
