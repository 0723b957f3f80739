"""``--ext-cache`` and the flags beside it: the tiered cache."""

from dataclasses import dataclass

from sglang_ext.config.flag import Flag, parse_dir, parse_file
from sglang_ext.config.sizes import format_size, parse_size, parse_tokens
from sglang_ext.errors import ConfigError

__all__ = ["DEFAULT_PAGE_TOKENS", "FLAGS", "POLICIES", "CacheConfig", "check_together"]

# ext: the learned policy; lru: recency, leaf first; stock: SGLang's own tree and policy.
POLICIES = ("ext", "lru", "stock")

# Pages of this many tokens unless the user says otherwise: the largest page at which a
# 1,500-token shared prefix still loses less than 5 % to the unfinished page at its end.
DEFAULT_PAGE_TOKENS = 64

# Less than any page is a size whose unit was forgotten.
_LEAST_L2_BYTES = 1_000_000


@dataclass(frozen=True)
class CacheConfig:
    """The tiered cache. Sizes are totals of one server, in bytes; ``None`` means default."""

    enabled: bool = False
    l1_tokens: int | None = None
    l2_bytes: int | None = None
    l3_dir: str | None = None
    l3_bytes: int | None = None
    l3_write_limit_bytes: int | None = None
    l3_admit: str | None = None
    policy: str | None = None
    record: str | None = None
    record_bytes: int | None = None

    @property
    def steered(self) -> bool:
        """Whether the radix tree is ours to steer."""
        return self.enabled and self.policy != "stock"


def _parse_policy(text: str) -> str:
    if text not in POLICIES:
        raise ConfigError(f"{text!r} is not a policy; expected {', '.join(POLICIES)}")
    return text


def _parse_admit(text: str) -> str:
    if text not in ("all", "second"):
        raise ConfigError(f"{text!r} is not a rule; expected all or second")
    return text


FLAGS: tuple[Flag, ...] = (
    Flag(
        "--ext-cache",
        "enabled",
        "Tiered radix KV cache: device memory (L1), host memory (L2) and, with --ext-l3-dir, disk "
        "(L3). Sets SGLang's hierarchical cache, its write-through policy and a page of "
        f"{DEFAULT_PAGE_TOKENS} tokens.",
    ),
    Flag(
        "--ext-l1-tokens",
        "l1_tokens",
        "Capacity of the device tier in tokens, such as 200k. Default: what fits into device "
        "memory beside the weights.",
        parse_tokens,
        "TOKENS",
    ),
    Flag(
        "--ext-l2-size",
        "l2_bytes",
        "Host memory of the whole server for the second tier, such as 64GB; its ranks share it "
        "evenly. Default: twice the device tier.",
        parse_size,
        "SIZE",
    ),
    Flag(
        "--ext-l3-dir",
        "l3_dir",
        "Folder of the third tier; made with mode 0700 where it is missing. Default: no third "
        "tier.",
        parse_dir,
        "DIR",
    ),
    Flag(
        "--ext-l3-size",
        "l3_bytes",
        "Disk space of the third tier for the whole server, such as 500GB; an exact bound on all "
        "of its files. Needed with --ext-l3-dir: a cache without a bound fills its disk.",
        parse_size,
        "SIZE",
    ),
    Flag(
        "--ext-l3-write-limit",
        "l3_write_limit_bytes",
        "Bytes that the whole server writes to the third tier in a day, such as 2TB; an SSD wears "
        "out by writing. Pages above it are not kept. Default: no limit.",
        parse_size,
        "SIZE",
    ),
    Flag(
        "--ext-l3-admit",
        "l3_admit",
        "What is written to the third tier: all, or second for what was offered before. Default: "
        "all.",
        _parse_admit,
        "{all,second}",
    ),
    Flag(
        "--ext-cache-policy",
        "policy",
        "Which prefixes stay: ext learns how sessions return, lru keeps what was used last (both "
        "leaf first, for L1 and L2), stock leaves it to SGLang. Default: ext. Models with sliding "
        "windows or recurrent layers get stock, and the log says so.",
        _parse_policy,
        "{ext,lru,stock}",
    ),
    Flag(
        "--ext-cache-record",
        "record",
        "File to which a line for each request is appended: keyed marks of its prompt's blocks and "
        "counts, no text. sglang-ext replay --record makes a trace of it. Default: none.",
        parse_file,
        "FILE",
    ),
    Flag(
        "--ext-cache-record-size",
        "record_bytes",
        "Bound of that file; a line that would exceed it, and all after it, are not written. "
        "Default: 1GB.",
        parse_size,
        "SIZE",
    ),
)


def check_together(cache: CacheConfig) -> None:
    """Refuse flags that need one another and are not together.

    Raises:
        ConfigError: names the flags.
    """
    if not cache.enabled:
        given = [f.name for f in FLAGS if f.field != "enabled" and getattr(cache, f.field)]
        if given:
            raise ConfigError(f"{given[0]} does nothing without --ext-cache; add --ext-cache")
        return
    if cache.l2_bytes is not None and cache.l2_bytes < _LEAST_L2_BYTES:
        raise ConfigError(
            f"--ext-l2-size: {format_size(cache.l2_bytes)} holds next to nothing; a number without "
            "a unit counts bytes, expected a size such as 64GB"
        )
    if cache.l3_dir and not cache.l3_bytes:
        raise ConfigError(
            "--ext-l3-dir needs --ext-l3-size, such as 500GB: a cache without a bound fills its "
            "disk"
        )
    if cache.record_bytes and not cache.record:
        raise ConfigError("--ext-cache-record-size needs --ext-cache-record, the file it bounds")
    if cache.record and not cache.steered:
        raise ConfigError(
            "--ext-cache-record needs a policy of ours, which sees the requests; drop "
            "--ext-cache-policy stock"
        )
    for flag in FLAGS:
        if flag.name.startswith("--ext-l3-") and getattr(cache, flag.field) and not cache.l3_dir:
            raise ConfigError(f"{flag.name} needs --ext-l3-dir, the folder of the third tier")
