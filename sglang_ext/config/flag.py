"""One ``--ext-*`` flag, and how the values of flags are read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_ext.errors import ConfigError

__all__ = ["Flag", "parse_dir", "parse_file", "read"]


@dataclass(frozen=True)
class Flag:
    """One ``--ext-*`` flag: its place in the config, how it is read, and its documentation."""

    name: str
    field: str
    help: str
    read: Callable[[str], Any] | None = None  # None: a switch without a value
    metavar: str | None = None

    @property
    def dest(self) -> str:
        """The attribute that argparse gives the flag."""
        return self.name.lstrip("-").replace("-", "_")


def read(flags: Iterable[Flag], values: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for ``flags``, by field of the config.

    Args:
        flags: of one capability.
        values: raw flag values, keyed by argparse attribute (`Flag.dest`).

    Raises:
        ConfigError: a value cannot be read; names its flag.
    """
    given: dict[str, Any] = {}
    for flag in flags:
        raw = values.get(flag.dest)
        if raw is None or raw is False:
            continue
        try:
            given[flag.field] = True if flag.read is None else flag.read(raw)
        except ConfigError as error:
            raise ConfigError(f"{flag.name}: {error}") from None
    return given


def parse_dir(text: str) -> str:
    """The absolute path of a folder.

    Raises:
        ConfigError: not a path.
    """
    if not text.strip():
        raise ConfigError("an empty path is not a folder; expected one such as /nvme/kv")
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{text} is not a path: {error}") from None


def parse_file(text: str) -> str:
    """The absolute path of a file.

    Raises:
        ConfigError: not a path.
    """
    if not text.strip():
        raise ConfigError("an empty path is not a file; expected one such as /var/log/requests.log")
    return parse_dir(text)
