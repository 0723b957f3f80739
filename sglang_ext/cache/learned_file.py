"""Where what a policy has learned survives a restart: one file, replaced as a whole.

Pure: neither torch nor SGLang is imported.
"""

import logging
import os
from pathlib import Path

from sglang_ext.cache.policy import Policy
from sglang_ext.errors import StateError

__all__ = ["LearnedFile"]

logger = logging.getLogger(__name__)

# Longest state that is read: far above what a policy writes.
_MOST_BYTES = 64_000_000


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

    def load(self, policy: Policy, now: float) -> bool:
        """Take back what was written, if it is there and good; returns whether it was."""
        self._saved_s = now
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(_MOST_BYTES)
            policy.load(data, now)
        except FileNotFoundError:
            return False
        except (OSError, StateError) as error:
            logger.warning("The policy begins anew: %s: %s", self._file, error)
            return False
        return True

    def save(self, policy: Policy, now: float, *, anyway: bool = False) -> bool:
        """Write, if it is time to; returns whether it was written. Takes some 50 ms."""
        if not anyway and now - self._saved_s < self._every_s:
            return False
        self._saved_s = now
        fresh = self._file.with_name(f"{self._file.name}.{os.getpid()}.new")  # replicas share it
        try:
            fresh.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
                file.write(policy.save())
            fresh.replace(self._file)
        except OSError as error:
            logger.warning("What was learned is not kept: %s: %s", self._file, error)
            return False
        return True
