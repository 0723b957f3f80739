"""Pages of SGLang's host pools as memory that can be read from and written into.

A pool says where a page lies (`get_page_buffer_meta`: addresses and lengths), and the store moves
bytes there without another copy. Layouts in which a page is not addressable go through the pool's
own flat copy of a page instead.

Source: ``sglang/srt/mem_cache/pool_host/base.py``, release 0.5.23.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["CopiedPages", "HostPages", "InPlacePages", "MarkerPages", "host_pages", "memory_at"]

logger = logging.getLogger(__name__)

_WRITABLE = 0x200  # PyBUF_WRITE
_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view.restype = ctypes.py_object

# What is stored for a page that holds no bytes of its own.
_MARKER = b"sglang-ext page without bytes\0\0\0"

Buffers = Sequence[memoryview]


def memory_at(address: int, length: int) -> memoryview:
    """Writable view of ``length`` bytes at ``address``.

    The view does not keep the memory alive: SGLang's pools live as long as the scheduler, and a
    page is locked until the call that was handed its indices returns.
    """
    view = _view(address, length, _WRITABLE)
    assert isinstance(view, memoryview)  # noqa: S101 - what the function of CPython returns
    return view


class HostPages(Protocol):
    """The pages of one host pool. Indices are SGLang's: those of all tokens of the pages."""

    def outgoing(self, indices: Any, count: int) -> list[Buffers]:
        """The bytes of ``count`` pages; valid until the caller's pages are unlocked."""

    def incoming(self, indices: Any, count: int) -> tuple[list[Buffers], Callable[[int], None]]:
        """Memory for ``count`` pages; the function is called for each page that was filled."""


class InPlacePages:
    """Pages that are read and written where they lie."""

    def __init__(self, pool: Any) -> None:
        """Pages of ``pool``, whose layout has to be addressable."""
        self._pool = pool

    def outgoing(self, indices: Any, count: int) -> list[Buffers]:
        """See `HostPages`."""
        addresses, lengths = self._pool.get_page_buffer_meta(indices)
        pieces = len(addresses) // count
        if pieces * count != len(addresses) or len(lengths) != len(addresses):
            raise ValueError(
                f"{type(self._pool).__name__} gave {len(addresses)} addresses and {len(lengths)} "
                f"lengths for {count} pages"
            )
        views = [
            memory_at(address, length) for address, length in zip(addresses, lengths, strict=True)
        ]
        return [views[i : i + pieces] for i in range(0, len(views), pieces)]

    def incoming(self, indices: Any, count: int) -> tuple[list[Buffers], Callable[[int], None]]:
        """See `HostPages`; there is nothing left to do for a page that was filled."""
        return self.outgoing(indices, count), lambda _page: None


class CopiedPages:
    """Pages that go through a flat copy, which the pool makes and takes."""

    def __init__(self, pool: Any) -> None:
        """Pages of ``pool``."""
        self._pool = pool

    def outgoing(self, indices: Any, count: int) -> list[Buffers]:
        """See `HostPages`."""
        return [
            [_flat(self._pool.get_data_page(first, flat=True))]
            for first in self._first_tokens(indices, count)
        ]

    def incoming(self, indices: Any, count: int) -> tuple[list[Buffers], Callable[[int], None]]:
        """See `HostPages`."""
        firsts = self._first_tokens(indices, count)
        copies = [self._pool.get_dummy_flat_data_page().contiguous() for _ in firsts]

        def take(page: int) -> None:
            self._pool.set_from_flat_data_page(firsts[page], copies[page])

        return [[_flat(copy)] for copy in copies], take

    def _first_tokens(self, indices: Any, count: int) -> list[int]:
        every = len(indices) // count
        return [int(index) for index in indices[::every].tolist()]


class MarkerPages:
    """Pages of a pool that counts pages and holds no bytes; its sidecars hold them."""

    def outgoing(self, indices: Any, count: int) -> list[Buffers]:
        """See `HostPages`."""
        return [[memoryview(_MARKER)] for _ in range(count)]

    def incoming(self, indices: Any, count: int) -> tuple[list[Buffers], Callable[[int], None]]:
        """See `HostPages`."""
        return [[memoryview(bytearray(len(_MARKER)))] for _ in range(count)], lambda _page: None


def _flat(page: Any) -> memoryview:
    """The bytes of a tensor in host memory."""
    import torch

    return memoryview(page.contiguous().view(-1).view(torch.uint8).numpy())


def host_pages(pool: Any) -> tuple[HostPages, list[int]]:
    """How the pages of ``pool`` are moved, and the lengths of the pieces of one page."""
    import torch

    if getattr(pool, "kv_buffer", pool) is None and not getattr(pool, "size_per_token", 1):
        return MarkerPages(), [len(_MARKER)]
    first = torch.arange(int(getattr(pool, "page_size", 1) or 1), dtype=torch.int64)
    try:
        addresses, lengths = pool.get_page_buffer_meta(first)
        if addresses:
            return InPlacePages(pool), [int(length) for length in lengths]
    except (ValueError, NotImplementedError, TypeError, AttributeError) as error:
        logger.info(
            "Pages of %s are copied on their way to and from disk: %s", type(pool).__name__, error
        )
    dummy = pool.get_dummy_flat_data_page()
    return CopiedPages(pool), [dummy.numel() * dummy.element_size()]
