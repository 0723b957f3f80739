"""The page store: pages of KV cache on an SSD, usable by itself (neither torch nor SGLang).

::

    with PageStore(folder, StoreOptions(capacity_bytes=500 * 10**9)) as store:
        store.write(namespace, [Page(key, parent, [k_bytes, v_bytes]), ...])   # parents first
        count = store.prefix(keys, read_ahead=True)
        hits = store.read(namespace, keys[:count], [[k_buffer, v_buffer], ...])
        store.touch(keys[count - 1])                                # used in another tier

Keys and namespaces have 32 bytes; a root has no parent. ``write`` and ``read`` block, ``stall_s``
at most. Nothing but ``ValueError`` (wrong arguments) comes out of them: a fault of the disk is a
False that is counted in ``stats()``. A page that ``read`` delivers has been checked against its
key, namespace, length and checksum. Buffers are used until the call returns and never after it.

A page is accepted only while its parent is resident (or comes before it in the same call), and goes
only after all its children: the resident set is prefix-closed. ``touch`` refreshes a page and all
its ancestors, at the cost of one; touch the last page of a chain, not each. ``read`` touches by
itself.

``PageStore.follow`` is a read-only view beside a writer in another process. ``verify_store`` checks
a folder that no server uses. Errors are in ``sglang_ext.errors``: ``StoreError`` and its kinds.

Layout, promises and their costs: ``docs/design/store.md``.
"""

from sglang_ext.cache.store.options import Buffer, Page, StoreOptions, StoreStats
from sglang_ext.cache.store.store import PageStore
from sglang_ext.cache.store.verify import Finding, verify_store

__all__ = [
    "Buffer",
    "Finding",
    "Page",
    "PageStore",
    "StoreOptions",
    "StoreStats",
    "verify_store",
]
