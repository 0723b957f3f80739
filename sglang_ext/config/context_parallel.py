"""``--ext-cp-size``: a prefill batch is split over ranks."""

from dataclasses import dataclass

from sglang_ext.config.flag import Flag
from sglang_ext.errors import ConfigError

__all__ = ["FLAGS", "ContextParallelConfig", "check_together"]

# On more ranks one plan in twenty takes more than 5 ms (docs/context_parallel.md).
_MOST_RANKS = 16


@dataclass(frozen=True)
class ContextParallelConfig:
    """Context parallelism; ``size`` is the number of ranks, ``None`` where it is off."""

    size: int | None = None

    @property
    def enabled(self) -> bool:
        """Whether batches are split."""
        return (self.size or 1) > 1


def _parse_ranks(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST_RANKS:
        raise ConfigError(
            f"{text!r} is not a number of ranks; expected a whole number from 1 to {_MOST_RANKS}"
        )
    return int(text)


FLAGS: tuple[Flag, ...] = (
    Flag(
        "--ext-cp-size",
        "size",
        "Ranks over which the new tokens of every prefill batch are split, evenly and with one "
        "AllGather a layer. Sets SGLang's context parallelism and, unless given, --tp-size. "
        "Default: 1, no splitting.",
        _parse_ranks,
        "RANKS",
    ),
)


def check_together(_config: ContextParallelConfig) -> None:
    """There is one flag, which needs no other."""
