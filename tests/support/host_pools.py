"""SGLang's own host pools with small buffers, made without a device pool behind them."""

from typing import Any

import torch

LAYERS, PAGE, HEADS, DIM, PAGES = 3, 4, 2, 8, 40
PAGE_BYTES = 2 * LAYERS * PAGE * HEADS * DIM * 4


def mha_pool(layout: str = "page_first_direct", seed: int | None = None) -> Any:
    """A pool of keys and values with SGLang's methods; random contents with a seed."""
    from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost

    shapes = {
        "layer_first": (2, LAYERS, PAGES * PAGE, HEADS, DIM),
        "page_first": (2, PAGES * PAGE, LAYERS, HEADS, DIM),
        "page_first_direct": (2, PAGES, LAYERS, PAGE, HEADS, DIM),
    }
    pool = MHATokenToKVPoolHost.__new__(MHATokenToKVPoolHost)
    pool.layout, pool.page_size, pool.layer_num = layout, PAGE, LAYERS
    pool.size, pool.page_num = PAGES * PAGE, PAGES
    pool.head_num, pool.head_dim, pool.dtype = HEADS, DIM, torch.float32
    pool.device, pool.pin_memory = "cpu", False
    pool.start_layer, pool.end_layer = 0, LAYERS
    pool.size_per_token = PAGE_BYTES // PAGE
    pool.kv_buffer = torch.zeros(shapes[layout])
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        pool.kv_buffer = torch.randn(shapes[layout], generator=generator)
    return pool


class CopyOnlyPool:
    """A pool whose pages have no address, as SGLang's layouts without one."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        if name == "get_page_buffer_meta":
            raise AttributeError(name)
        return getattr(self._pool, name)


def tokens(*pages: int) -> torch.Tensor:
    """SGLang's indices of pages: those of all of their tokens."""
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def contents(pool: Any, *pages: int) -> list[torch.Tensor]:
    """What the pages hold."""
    return [pool.get_data_page(page * PAGE).clone() for page in pages]
