"""Whether this machine, and a page, can hold what was asked of the tiers of the cache."""

from sglang_ext.config.cache import CacheConfig
from sglang_ext.config.own_folder import prepare_own_dir
from sglang_ext.config.sizes import format_size
from sglang_ext.errors import ConfigError

__all__ = ["check_l1_holds_a_page", "check_l2_fits", "prepare_l3_dir"]


def check_l1_holds_a_page(cache: CacheConfig, page_tokens: int | None) -> None:
    """Refuse a device tier that no page fits into; ``page_tokens``: None where SGLang decides.

    Raises:
        ConfigError: names both sizes.
    """
    page_tokens = 1 if page_tokens is None else page_tokens
    if page_tokens < 1:
        raise ConfigError(f"--page-size {page_tokens} is no page; expected at least one token")
    tokens = cache.l1_tokens
    if tokens is not None and tokens < page_tokens:
        raise ConfigError(
            f"--ext-l1-tokens {tokens} is less than one page of {page_tokens} tokens; give as many "
            "tokens as the longest request has, or a smaller --page-size"
        )


def check_l2_fits(cache: CacheConfig, memory_bytes: int) -> None:
    """Refuse a host tier that is larger than the machine's memory, before minutes of start.

    Raises:
        ConfigError: names both sizes.
    """
    size_bytes = cache.l2_bytes or 0
    if size_bytes >= memory_bytes:
        raise ConfigError(
            f"--ext-l2-size: {format_size(size_bytes)} do not fit into this machine's memory of "
            f"{format_size(memory_bytes)}; give less than what is free of it"
        )


def prepare_l3_dir(path: str) -> None:
    """Make the folder of the third tier, or check that an existing one can be used.

    Raises:
        ConfigError: not a folder, not ours, open to others, or not writable.
    """
    prepare_own_dir(path, flag="--ext-l3-dir", kept="cached prompts", below="kv")
