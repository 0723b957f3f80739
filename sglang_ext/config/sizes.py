"""Sizes and numbers of tokens, as people write them."""

import re
from decimal import Decimal

from sglang_ext.errors import ConfigError

__all__ = ["format_size", "parse_size", "parse_tokens"]

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGTP", start=1)},
    **{f"{p}IB": 1024**i for i, p in enumerate("KMGTP", start=1)},
}

_MAX_BYTES = 10**18
_MAX_TOKENS = 10**12
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_TOKENS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?)\s*", re.ASCII)
_SHOWN = 40


def parse_size(text: str) -> int:
    """Bytes from ``500GB``, ``64MiB``, ``1.5TB`` or a plain number of bytes.

    Decimal units (KB, MB, …) count by 1000, binary ones (KiB, MiB, …) by 1024; case does not
    matter.

    Raises:
        ConfigError: not a size, or less than one byte.
    """
    match = _SIZE.fullmatch(text)
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS:
        raise ConfigError(
            f"{_shown(text)} is not a size; expected a number and a unit such as 500GB, 64MiB or "
            "1.5TB"
        )
    size_bytes = int(Decimal(match.group(1)) * _UNITS[unit])
    if not 1 <= size_bytes <= _MAX_BYTES:
        raise ConfigError(
            f"{_shown(text)} is not a size; expected between one byte and 1000 PB, such as 64MiB"
        )
    return size_bytes


def parse_tokens(text: str) -> int:
    """A positive number of tokens from ``8192``, ``8k`` or ``1.5M`` (k and M count by 1000).

    Raises:
        ConfigError: not a positive whole number of tokens.
    """
    match = _TOKENS.fullmatch(text)
    factor = {"": 1, "k": 1_000, "m": 1_000_000}[match.group(2).lower()] if match else 0
    tokens = Decimal(match.group(1)) * factor if match else Decimal(0)
    if not 1 <= tokens <= _MAX_TOKENS or tokens != int(tokens):
        raise ConfigError(
            f"{_shown(text)} is not a number of tokens; expected a whole number from 1 to "
            f"{_MAX_TOKENS:,} such as 8192, 200k or 1.5M"
        )
    return int(tokens)


def _shown(text: str) -> str:
    """``text`` as a message quotes it: not more of it than a line holds."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def format_size(size_bytes: int) -> str:
    """``size_bytes`` as people write it: the largest decimal unit that keeps it above one."""
    value = float(size_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"
