"""``--ext-cache`` and the flags beside it: the tiered cache."""

from dataclasses import dataclass

from sglang_ext.config.flag import Flag, parse_dir, parse_file
from sglang_ext.config.sizes import format_size, parse_size, parse_tokens
from sglang_ext.errors import ConfigError

__all__ = ["CLOCKS", "DEFAULT_PAGE_TOKENS", "FLAGS", "POLICIES", "CacheConfig", "check_together"]

# ext: the learned policy; lru: recency, leaf first; stock: SGLang's own tree and policy.
POLICIES = ("ext", "lru", "stock")
# system: the machine's; requests: what each request says (`sglang_ext.cache.carrier`).
CLOCKS = ("system", "requests")

# Pages of this many tokens unless the user says otherwise: the largest page at which a
# 1,500-token shared prefix still loses less than 5 % to the unfinished page at its end.
DEFAULT_PAGE_TOKENS = 64

# Beyond this share of device memory pins would leave too little to everybody else.
_MOST_PINNED = 50
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
    clock: str | None = None
    pin_share: float | None = None

    @property
    def steered(self) -> bool:
        """Whether the radix tree is ours to steer."""
        return self.enabled and self.policy != "stock"


def _parse_policy(text: str) -> str:
    if text not in POLICIES:
        raise ConfigError(f"{text!r} is not a policy; expected {', '.join(POLICIES)}")
    return text


def _parse_clock(text: str) -> str:
    if text not in CLOCKS:
        raise ConfigError(f"{text!r} is not a clock; expected {', '.join(CLOCKS)}")
    return text


def _parse_admit(text: str) -> str:
    if text not in ("all", "second"):
        raise ConfigError(f"{text!r} is not a rule; expected all or second")
    return text


def _parse_share(text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0.0 <= percent <= _MOST_PINNED:
        raise ConfigError(
            f"{text!r} is not a share that may be pinned; expected a percentage between 0 and "
            f"{_MOST_PINNED}"
        )
    return percent / 100.0


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
        "counts, no text. sglang-ext replay --record makes a trace of it. Marks are alike over "
        "restarts with --ext-l3-dir; without it their key is new at each start. Default: none.",
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
    Flag(
        "--ext-cache-clock",
        "clock",
        "By which clock the policy measures pauses: system, or requests, the header X-Request-Time "
        "(seconds) of each request, to send recorded traffic again faster than it came; whoever "
        "may send requests sets that clock. Default: system.",
        _parse_clock,
        "{system,requests}",
    ),
    Flag(
        "--ext-cache-pins",
        "pin_share",
        "Percentage of the device tier that the pins of one tenant may hold, for an hour at most; "
        "0 refuses pins. Default: 5. Pins are taken on trust: more "
        "costs hits where they are wrong.",
        _parse_share,
        "PERCENT",
    ),
)


def check_together(cache: CacheConfig) -> None:
    """Refuse flags that need one another and are not together.

    Raises:
        ConfigError: names the flags.
    """
    if not cache.enabled:
        given = [
            flag.name
            for flag in FLAGS
            if flag.field != "enabled" and getattr(cache, flag.field) is not None
        ]
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
    _check_policy(cache)
    for flag in FLAGS:
        if flag.name.startswith("--ext-l3-") and getattr(cache, flag.field) and not cache.l3_dir:
            raise ConfigError(f"{flag.name} needs --ext-l3-dir, the folder of the third tier")


def _check_policy(cache: CacheConfig) -> None:
    """Refuse what the policy that was chosen does not do."""
    if cache.record and not cache.steered:
        raise ConfigError(
            "--ext-cache-record needs a policy of ours, which sees the requests; drop "
            "--ext-cache-policy stock"
        )
    if cache.clock and not cache.steered:
        raise ConfigError(
            "--ext-cache-clock is of a policy of ours, which measures pauses; drop "
            "--ext-cache-policy stock"
        )
    if cache.pin_share is not None and cache.policy not in (None, "ext"):
        raise ConfigError(
            f"--ext-cache-pins is of the learned policy; drop --ext-cache-policy {cache.policy}"
        )
