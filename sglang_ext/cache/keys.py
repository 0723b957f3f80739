"""Content keys of KV pages: the chain of hashes by which storage knows a page.

A page's key is the SHA-256 of its parent's key and its own token ids, so equal keys mean equal
prefixes. The bytes are those of SGLang's C++ helper, which is compiled on the first request (12 s
on two cores, and a compiler and OpenSSL's headers have to be there); this needs neither.

Pure: neither torch nor SGLang is imported.

Source: ``sglang/srt/mem_cache/cpp_utils/hash_binding.cpp``, release 0.5.23.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["WIDE_TAG", "page_keys"]

# An odd number of bytes tells a page of 64-bit ids from one of 32-bit ids.
WIDE_TAG = b"\xff"
_MAX_NARROW = 2**32 - 1

IntArray = npt.NDArray[np.int64]


def page_keys(
    units: Sequence[Sequence[int]] | Sequence[int],
    prior: bytes | None,
    page_units: int | None,
) -> list[str]:
    """Keys of the pages of ``units``, each chained to the one before it.

    Args:
        units: token ids; or, where one cache unit is several ids (bigrams), a sequence of them.
        prior: the 32-byte digest of the parent page, or None at the root.
        page_units: units a page; the last page may be short. None: one key for all of ``units``.

    Returns:
        Keys as 64 hexadecimal digits.

    Raises:
        ValueError: ``prior`` is not a digest, a page is not positive, or an id is negative.
        OverflowError: an id does not fit 63 bits.
    """
    if prior is not None and len(prior) != hashlib.sha256().digest_size:
        raise ValueError(f"the parent's digest has {len(prior)} bytes; expected 32")
    if page_units is not None and page_units < 1:
        raise ValueError(f"a page of {page_units} units; expected at least 1")
    tokens = np.asarray(units, dtype=np.int64) if len(units) else np.empty(0, np.int64)
    if tokens.size and tokens.min() < 0:
        raise ValueError(f"token id {tokens.min()} is negative")
    pages = _pages(tokens.reshape(-1), page_units, tokens.size // max(len(units), 1))
    keys = []
    for page in pages:
        digest = hashlib.sha256(prior or b"")
        digest.update(page)
        prior = digest.digest()
        keys.append(prior.hex())
    return keys


def _pages(tokens: IntArray, page_units: int | None, width: int) -> Iterator[bytes | memoryview]:
    """What is hashed for each page: 32-bit ids, or 64-bit ids behind `WIDE_TAG`."""
    step = (page_units or tokens.size) * width
    if not step:
        if page_units is None:
            yield b""
        return
    narrow = tokens.astype("<u4")  # ids that do not fit are looked at page by page below
    all_narrow = bool(tokens.max() <= _MAX_NARROW)
    for start in range(0, tokens.size, step):
        page = tokens[start : start + step]
        if all_narrow or page.max() <= _MAX_NARROW:
            yield narrow[start : start + step].data
        else:
            yield WIDE_TAG + page.astype("<u8").tobytes()
