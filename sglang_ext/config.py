"""The ``--ext-*`` flags as one frozen tree, parsed once and carried to every process.

Pure: neither torch nor SGLang is imported. `plugin.py` puts the flags on SGLang's parser,
calls `parse`, and lays the result on the server's record of arguments, which SGLang pickles
to each of its processes.

One flag switches a capability on and sets the stock flags it needs (`STOCK_SETTINGS`). A stock
flag that the user gave himself and that contradicts it is an error that names both.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from sglang_ext.errors import ConfigError, FlagConflictError

__all__ = [
    "CACHE_RESERVED",
    "FLAGS",
    "POLICIES",
    "STEERED_RESERVED",
    "CacheConfig",
    "ExtConfig",
    "Flag",
    "StockSetting",
    "check_conflicts",
    "check_l1_holds_a_page",
    "check_l2_fits",
    "describe",
    "format_size",
    "parse",
    "parse_size",
    "parse_tokens",
    "prepare_l3_dir",
    "stock_settings",
]

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGTP", start=1)},
    **{f"{p}IB": 1024**i for i, p in enumerate("KMGTP", start=1)},
}
# ext: the learned policy; lru: recency, leaf first; stock: SGLang's own tree and policy.
POLICIES = ("ext", "lru", "stock")

_MAX_BYTES = 10**18
_MAX_TOKENS = 10**12
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_TOKENS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?)\s*", re.ASCII)
_SHOWN = 40

# Pages of this many tokens unless the user says otherwise: the largest page at which a
# 1,500-token shared prefix still loses less than 5 % to the unfinished page at its end.
_DEFAULT_PAGE_TOKENS = 64

# Less than any page is a size whose unit was forgotten.
_LEAST_L2_BYTES = 1_000_000
# The third tier of one rank is not smaller: its index and journal want some of it too.
_LEAST_L3_BYTES = 8_000_000


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


def _parse_dir(text: str) -> str:
    if not text.strip():
        raise ConfigError("an empty path is not a folder; expected one such as /nvme/kv")
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{text} is not a path: {error}") from None


def _parse_policy(text: str) -> str:
    if text not in POLICIES:
        raise ConfigError(f"{text!r} is not a policy; expected {', '.join(POLICIES)}")
    return text


def _parse_file(text: str) -> str:
    if not text.strip():
        raise ConfigError("an empty path is not a file; expected one such as /var/log/requests.log")
    return _parse_dir(text)


def _parse_admit(text: str) -> str:
    if text not in ("all", "second"):
        raise ConfigError(f"{text!r} is not a rule; expected all or second")
    return text


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


FLAGS: tuple[Flag, ...] = (
    Flag(
        "--ext-cache",
        "enabled",
        "Tiered radix KV cache: device memory (L1), host memory (L2) and, with --ext-l3-dir, disk "
        "(L3). Sets SGLang's hierarchical cache, its write-through policy and a page of "
        f"{_DEFAULT_PAGE_TOKENS} tokens.",
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
        _parse_dir,
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
        _parse_file,
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


@dataclass(frozen=True)
class ExtConfig:
    """Everything that sglang-ext was asked for; frozen, so that all processes agree.

    ``secret`` keys the marks of prompts; it is never shown.
    """

    cache: CacheConfig = CacheConfig()
    secret: bytes = field(default=b"", repr=False)

    @property
    def active(self) -> bool:
        """Whether any capability was switched on."""
        return self.cache.enabled


def parse(values: Mapping[str, Any]) -> ExtConfig:
    """The config from raw flag values, keyed by argparse attribute (`Flag.dest`).

    Raises:
        ConfigError: a value cannot be read, or flags that need one another are not together.
    """
    cache: dict[str, Any] = {}
    for flag in FLAGS:
        raw = values.get(flag.dest)
        if raw is None or raw is False:
            continue
        try:
            cache[flag.field] = True if flag.read is None else flag.read(raw)
        except ConfigError as error:
            raise ConfigError(f"{flag.name}: {error}") from None
    config = CacheConfig(**cache)
    _check_together(config)
    return ExtConfig(cache=config)


def _check_together(cache: CacheConfig) -> None:
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


def prepare_l3_dir(path: str) -> None:
    """Make the folder of the third tier, or check that an existing one can be used.

    Raises:
        ConfigError: not a folder, not ours, open to others, or not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except FileExistsError:
        raise ConfigError(
            f"--ext-l3-dir: {path} is not a folder", fix="give another path"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"--ext-l3-dir: cannot make or open {path}: {error.strerror}",
            fix="give a folder that this user may write",
        ) from None
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"--ext-l3-dir: {path} belongs to user id {status.st_uid}, and this server runs as "
            f"{os.geteuid()}; cached prompts must not be shared between users",
            fix="give a folder of your own, or run as its owner",
        )
    if status.st_mode & 0o077:
        raise ConfigError(
            f"--ext-l3-dir: {path} can be opened by other users (mode "
            f"{status.st_mode & 0o777:o}), who could read or plant cached prompts",
            fix=f"give a folder of its own below it, such as {folder / 'kv'}, or, where nobody "
            "else needs this one, make it yours alone (mode 700)",
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--ext-l3-dir: {path} is not writable for this user",
            fix="give it mode 700, or give a folder on a disk that is mounted for writing",
        )


@dataclass(frozen=True)
class StockSetting:
    """A stock flag that a capability sets.

    ``overridable`` settings are defaults: a value given by the user wins. The others are what
    the capability stands on: a different value given by the user is a conflict.
    """

    field: str  # attribute of SGLang's record of arguments
    value: Any
    because: str  # the --ext-* flag that asks for it
    overridable: bool = False

    @property
    def stock_flag(self) -> str:
        """The stock flag as typed on the command line."""
        return "--" + self.field.replace("_", "-")


# Stock flags that no value makes compatible with --ext-cache, and why.
CACHE_RESERVED: dict[str, str] = {
    "disable_radix_cache": "switches off the prefix cache that --ext-cache tiers",
    "enable_lmcache": "replaces the cache that --ext-cache installs",
    "enable_unified_cache_external_linker": "excludes SGLang's hierarchical cache",
    "radix_cache_backend": "replaces the cache that --ext-cache installs",
    "enable_hisparse": "cannot share a server with the radix cache",
}


# The same where the tree is steered (--ext-cache-policy ext or lru).
STEERED_RESERVED: dict[str, str] = {
    "enable_session_radix_cache": "it orders the cache by sessions of its own",
    "enable_kv_cache_sharding": "SGLang allows it with its own radix cache alone",
    "radix_eviction_policy_config": "it configures the policy that is replaced",
}


def stock_settings(
    config: ExtConfig, *, ranks: int, identity: Mapping[str, Any] | None = None
) -> tuple[StockSetting, ...]:
    """The stock flags that ``config`` sets on a server of ``ranks`` processes.

    Args:
        config: what was asked for.
        ranks: processes that hold KV. SGLang's own sizes are per rank.
        identity: model and arguments that decide what a cached page means, as plain values.

    Raises:
        ConfigError: a size does not suffice for so many ranks.
    """
    cache = config.cache
    if not cache.enabled:
        return ()
    settings = [
        StockSetting("enable_hierarchical_cache", True, "--ext-cache"),
        StockSetting("hicache_write_policy", "write_through", "--ext-cache"),
        StockSetting("page_size", _DEFAULT_PAGE_TOKENS, "--ext-cache", overridable=True),
        StockSetting("enable_cache_report", True, "--ext-cache", overridable=True),
    ]
    if cache.steered:
        settings += [
            StockSetting("radix_cache_backend", "sglang_ext", "--ext-cache"),
            StockSetting("radix_eviction_policy", "lru", "--ext-cache"),
        ]
    if cache.l1_tokens:
        settings.append(StockSetting("max_total_tokens", cache.l1_tokens, "--ext-l1-tokens"))
    if cache.l2_bytes:
        # The stock flag counts whole gigabytes (10^9) a rank; the code behind it takes
        # fractions, and so do we (relied on: see upstream.py).
        gigabytes = cache.l2_bytes / ranks / 1e9
        settings.append(StockSetting("hicache_size", gigabytes, "--ext-l2-size"))
    if cache.l3_dir:
        settings += [
            StockSetting("hicache_storage_backend", "dynamic", "--ext-l3-dir"),
            StockSetting(
                "hicache_storage_prefetch_policy", "wait_complete", "--ext-l3-dir", overridable=True
            ),
            StockSetting(
                "hicache_storage_backend_extra_config",
                _l3_extra(cache, ranks, identity or {}),
                "--ext-l3-dir",
            ),
        ]
    return tuple(settings)


def _l3_extra(cache: CacheConfig, ranks: int, identity: Mapping[str, Any]) -> str:
    """Which class SGLang loads and how it is called; the rest is for that class."""
    least_bytes = ranks * _LEAST_L3_BYTES
    if (cache.l3_bytes or 0) < least_bytes:
        raise ConfigError(
            f"--ext-l3-size: {format_size(cache.l3_bytes or 0)} for {ranks} ranks holds next to "
            f"nothing; give at least {format_size(least_bytes)}"
        )
    return json.dumps(
        {
            "backend_name": "sglang_ext",
            "module_path": "sglang_ext.cache.storage",
            "class_name": "PageStorage",
            "interface_v1": 1,
            "hicache_storage_pass_prefix_keys": True,
            # Below this many tokens a look-up on disk costs more than it brings.
            "prefetch_threshold": _DEFAULT_PAGE_TOKENS,
            "sglang_ext": {
                "folder": cache.l3_dir,
                "capacity_bytes": cache.l3_bytes,
                "write_limit_bytes_per_day": cache.l3_write_limit_bytes,
                "admission": cache.l3_admit or "all",
                "identity": identity,
            },
        }
    )


def check_conflicts(
    config: ExtConfig, settings: tuple[StockSetting, ...], given: Mapping[str, Any]
) -> None:
    """Refuse stock flags that contradict ``config``.

    Args:
        config: what was asked for.
        settings: from `stock_settings`.
        given: stock arguments that the user gave himself, by attribute.

    Raises:
        FlagConflictError: names both flags.
    """
    if not config.cache.enabled:
        return
    _check_reserved(config, given)
    for setting in settings:
        if setting.overridable or setting.field not in given:
            continue
        if given[setting.field] != setting.value:
            raise FlagConflictError(
                f"{setting.stock_flag} {given[setting.field]} contradicts {setting.because}, which "
                f"sets it to {setting.value}; drop one of them"
            )
    if config.cache.l3_dir:
        _check_l3_conflicts(given)
    if (given.get("tokenizer_worker_num") or 1) > 1:
        raise FlagConflictError(
            f"--tokenizer-worker-num {given['tokenizer_worker_num']} contradicts --ext-cache: "
            "SGLang loads no plugins in the extra workers; drop one of them"
        )
    if config.cache.l2_bytes and "hicache_ratio" in given:
        raise FlagConflictError(
            "--hicache-ratio contradicts --ext-l2-size, which sizes the host tier; drop one of them"
        )


def _check_reserved(config: ExtConfig, given: Mapping[str, Any]) -> None:
    for name, why in CACHE_RESERVED.items():
        if given.get(name):
            raise FlagConflictError(
                f"--{name.replace('_', '-')} contradicts --ext-cache: it {why}; drop one of them"
            )
    if not config.cache.steered:
        return
    for name, why in STEERED_RESERVED.items():
        if given.get(name):
            raise FlagConflictError(
                f"--{name.replace('_', '-')} contradicts --ext-cache: {why}; drop one of them, or "
                "give --ext-cache-policy stock"
            )


def check_l1_holds_a_page(config: ExtConfig, page_tokens: int | None) -> None:
    """Refuse a device tier that no page fits into; ``page_tokens``: None where SGLang decides.

    Raises:
        ConfigError: names both sizes.
    """
    page_tokens = 1 if page_tokens is None else page_tokens
    if page_tokens < 1:
        raise ConfigError(f"--page-size {page_tokens} is no page; expected at least one token")
    tokens = config.cache.l1_tokens
    if tokens is not None and tokens < page_tokens:
        raise ConfigError(
            f"--ext-l1-tokens {tokens} is less than one page of {page_tokens} tokens; give as many "
            "tokens as the longest request has, or a smaller --page-size"
        )


def _check_l3_conflicts(given: Mapping[str, Any]) -> None:
    if (given.get("dcp_size") or 1) > 1:
        raise FlagConflictError(
            f"--dcp-size {given['dcp_size']} contradicts --ext-l3-dir: with decode context "
            "parallelism SGLang takes no storage but its own file and mooncake; drop one of them"
        )
    if given.get("disaggregation_decode_enable_offload_kvcache"):
        raise FlagConflictError(
            "--disaggregation-decode-enable-offload-kvcache contradicts --ext-l3-dir: it writes "
            "pages without saying which pages they follow; drop one of them"
        )


def check_l2_fits(config: ExtConfig, memory_bytes: int) -> None:
    """Refuse a host tier that is larger than the machine's memory, before minutes of start.

    Raises:
        ConfigError: names both sizes.
    """
    size_bytes = config.cache.l2_bytes or 0
    if size_bytes >= memory_bytes:
        raise ConfigError(
            f"--ext-l2-size: {format_size(size_bytes)} do not fit into this machine's memory of "
            f"{format_size(memory_bytes)}; give less than what is free of it"
        )


def describe(config: ExtConfig) -> dict[str, Any]:
    """The config as plain values, for `/server_info` and the log."""
    return {
        f"cache_{field.name}": getattr(config.cache, field.name) for field in fields(CacheConfig)
    }
