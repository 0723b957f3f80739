"""A secret of a server, kept in its folder: marks mean the same after a restart.

Pure: neither torch nor SGLang is imported.
"""

import os
import secrets
from pathlib import Path

from sglang_ext.errors import ConfigError

__all__ = ["folder_secret"]

_BYTES = 16


def folder_secret(folder: Path) -> bytes:
    """The secret of a folder; made with mode 0600 where there is none yet.

    Raises:
        ConfigError: the file is not an ordinary one of ours, or cannot be read or made.
    """
    path = folder / "secret"
    try:
        try:
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            secret = _read(path)
            if len(secret) == _BYTES:
                return secret
            path.unlink()  # torn while it was made: marks of that start mean nothing
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(made, "wb") as file:
            secret = secrets.token_bytes(_BYTES)
            file.write(secret)
        return secret
    except OSError as error:
        raise ConfigError(
            f"--ext-l3-dir: cannot use {path}: {error.strerror}", fix="remove that file"
        ) from None


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_BYTES + 1)
