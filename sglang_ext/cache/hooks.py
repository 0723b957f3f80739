"""What SGLang's cache does differently with sglang-ext, as hooks. `plugin.py` installs them."""

from collections.abc import Callable
from typing import Any

from sglang_ext.cache.keys import page_keys

__all__ = ["hash_without_compiler"]


def hash_without_compiler(
    _original: Callable[..., str | list[str]],
    token_ids: Any,
    prior_digest: bytes | None,
    page_size: int | None = None,
) -> str | list[str]:
    """AROUND ``get_native_hash``: the same keys without a C++ build on the first request.

    Args:
        _original: SGLang's own, which compiles its helper.
        token_ids: SGLang's radix key, or a sequence of token ids.
        prior_digest: digest of the parent page.
        page_size: tokens a page; None for one key over all.

    Returns:
        A list of keys, or a single key when ``page_size`` is None.
    """
    units = _units(token_ids)
    keys = page_keys(units, prior_digest, page_size)
    return keys if page_size is not None else keys[0]


def _units(token_ids: Any) -> Any:
    """The units of SGLang's radix key: ids, or pairs of neighbours for a bigram key."""
    raw_token_ids = getattr(token_ids, "raw_token_ids", None)
    raw = raw_token_ids() if raw_token_ids else getattr(token_ids, "token_ids", token_ids)
    length = len(token_ids)
    if not getattr(token_ids, "is_bigram", False):
        return raw[:length]
    return [(raw[i], raw[i + 1]) for i in range(length)]
