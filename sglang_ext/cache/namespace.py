"""What has to agree before one server may use the pages of another, as a digest.

A namespace stands in the header of every page and is compared on every read. The key of a page
is a digest of the namespace, of the pool that the page belongs to, and of SGLang's own hash of
the page: the chain of the token ids up to its end. A tenant's salt (``cache_salt``,
``extra_key``, an adapter's id) is the first link of that chain, so it is part of every key.

Pure: neither torch nor SGLang is imported.

Source: ``storage_namespace_seed`` in ``sglang/srt/mem_cache/utils.py``, release 0.5.23.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["DIGEST_BYTES", "KeySpace", "namespace_digest"]

DIGEST_BYTES = 32

_NAMESPACE_TAG = b"sglang-ext namespace 1\0"
_POOL_TAG = b"sglang-ext pool 1\0"


def namespace_digest(identity: Mapping[str, Any]) -> bytes:
    """32 bytes that differ whenever anything in ``identity`` does.

    Args:
        identity: plain values (what JSON can hold); the order of names does not matter.

    Raises:
        TypeError: a value is not plain.
    """
    return hashlib.sha256(_NAMESPACE_TAG + _canonical(identity)).digest()


def _canonical(identity: Mapping[str, Any]) -> bytes:
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


class KeySpace:
    """Keys of the pages of one pool in one namespace."""

    def __init__(self, namespace: bytes, pool: Mapping[str, Any]) -> None:
        """Pages of ``pool`` (plain values: its name, dtype, layout and shape) in ``namespace``.

        Raises:
            ValueError: ``namespace`` is not a digest.
            TypeError: a value of ``pool`` is not plain.
        """
        if len(namespace) != DIGEST_BYTES:
            raise ValueError(f"a namespace of {len(namespace)} bytes; expected {DIGEST_BYTES}")
        self._prefix = hashlib.sha256(_POOL_TAG + namespace + _canonical(pool))

    def key(self, page_hash: str) -> bytes:
        """The store's key of the page that SGLang knows by ``page_hash``.

        Raises:
            ValueError: ``page_hash`` is not a digest in hexadecimal digits.
        """
        digest = bytes.fromhex(page_hash)
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"a page hash of {len(digest)} bytes; expected {DIGEST_BYTES}")
        whole = self._prefix.copy()
        whole.update(digest)
        return whole.digest()

    def keys(self, page_hashes: Iterable[str]) -> list[bytes]:
        """The keys of several pages, in order."""
        return [self.key(page_hash) for page_hash in page_hashes]
