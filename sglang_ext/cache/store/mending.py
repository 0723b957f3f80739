"""A segment's header that is damaged, found out from what else is known.

The store's id, the file's number and its length are known; the slot size is told by what is left of
the header, or by the first page. Every page is compared with its own header and checksum when it is
read, so a wrong guess costs pages and never gives a wrong byte.
"""

from sglang_ext.cache.store.format import (
    BLOCK_BYTES,
    SEGMENT_MAGIC,
    PageHeader,
    SegmentHeader,
    slot_bytes_of,
)

__all__ = ["is_ours", "mended"]

# How many bits of a header may differ from the right one that it is still taken for.
_MOST_BITS = 16
_SLOT_BITS = 32


def mended(
    block: memoryview, page: memoryview, store: bytes, number: int, size_bytes: int
) -> SegmentHeader | None:
    """What the header of a segment was.

    Args:
        block: first block of the file, not a good header.
        page: the block after it: the header of the first page, where there is one.
        store: id of the store.
        number: of the segment, as in its name.
        size_bytes: length of the file.

    Returns:
        The header, or None where nothing tells it.
    """
    found = _from_remains(block, store, number)
    if found is None:
        first = PageHeader.unpack(page)
        if first is None:
            return None
        found = SegmentHeader(store, number, slot_bytes_of(first.payload_bytes))
    pages_bytes = size_bytes - BLOCK_BYTES
    return found if pages_bytes > 0 and pages_bytes % found.slot_bytes == 0 else None


def is_ours(block: memoryview, page: memoryview) -> bool:
    """Whether a file whose header is bad was made by a store, as far as its first blocks tell.

    One that is empty or all zeros was being made when the process or the machine went down.
    """
    if bytes(block[: len(SEGMENT_MAGIC)]) == SEGMENT_MAGIC or not any(block):
        return True
    return PageHeader.unpack(page) is not None


def _from_remains(block: memoryview, store: bytes, number: int) -> SegmentHeader | None:
    """The header that ``block`` differs from in a few bits: its checksum agrees as well."""
    told = SegmentHeader.remains(block)
    for slot_bytes in (told, *(told ^ 1 << bit for bit in range(_SLOT_BITS))):
        header = SegmentHeader(store, number, slot_bytes)
        data = header.pack()
        differ = int.from_bytes(data) ^ int.from_bytes(block[: len(data)])
        if differ.bit_count() <= _MOST_BITS:
            return header
    return None
