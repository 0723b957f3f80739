"""A secret of a server, kept in its folder: marks mean the same after a restart.

Pure: neither torch nor SGLang is imported.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from sglang_ext.errors import ConfigError

__all__ = ["folder_secret", "has_secret"]

_BYTES = 16


def folder_secret(folder: Path) -> bytes:
    """The secret of a folder; made with mode 0600 where there is none yet.

    Raises:
        ConfigError: there is another file of that name, or it cannot be read or made.
    """
    path = folder / "secret"
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        _make(path)
        return _read(path)
    except OSError as error:
        raise ConfigError(
            f"--ext-l3-dir: cannot use {path}: {error.strerror}", fix="remove that file"
        ) from None


def has_secret(folder: Path) -> bool:
    """Whether a server has used the folder: its secret is there, and whole."""
    try:
        return len(_read(folder / "secret")) == _BYTES
    except (ConfigError, OSError):
        return False


def _read(path: Path) -> bytes:
    # A FIFO would make the server wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        secret = file.read(_BYTES + 1) if regular else b""
    if len(secret) != _BYTES:
        raise ConfigError(
            f"--ext-l3-dir: {path} is not the secret of a server ({_BYTES} bytes)",
            fix="give the server a folder of its own, or remove that file if it is nobody's",
        )
    return secret


def _make(path: Path) -> None:
    """Make it whole or not at all; of two at once the first one counts."""
    fresh = path.with_name(f"secret.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    made = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(made, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
