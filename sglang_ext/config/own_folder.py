"""Folders that hold what nobody but this user may read or plant."""

import os
from pathlib import Path

from sglang_ext.errors import ConfigError

__all__ = ["prepare_own_dir"]


def prepare_own_dir(path: str, *, flag: str, kept: str, below: str) -> None:
    """Make a folder for this user alone, or check that an existing one is.

    Args:
        path: of the folder.
        flag: by which it was named.
        kept: what is kept in it, as a message says it.
        below: name of a folder to suggest below one that is open to others.

    Raises:
        ConfigError: not a folder, not ours, open to others, or not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except FileExistsError:
        raise ConfigError(f"{flag}: {path} is not a folder", fix="give another path") from None
    except OSError as error:
        raise ConfigError(
            f"{flag}: cannot make or open {path}: {error.strerror}",
            fix="give a folder that this user may write",
        ) from None
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{flag}: {path} belongs to user id {status.st_uid}, and this server runs as "
            f"{os.geteuid()}; {kept} must not be shared between users",
            fix="give a folder of your own, or run as its owner",
        )
    if status.st_mode & 0o077:
        raise ConfigError(
            f"{flag}: {path} can be opened by other users (mode "
            f"{status.st_mode & 0o777:o}), who could read or plant {kept}",
            fix=f"give a folder of its own below it, such as {folder / below}, or, where nobody "
            "else needs this one, make it yours alone (mode 700)",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{flag}: {path} is not writable for this user",
            fix="give it mode 700, or give a folder on a disk that is mounted for writing",
        )
