"""Copies of KV pages between device and host memory where both are plain memory.

SGLang moves pages with kernels of ``sgl_kernel``, which exist for CUDA, ROCm and XPU only. These
are the same two moves in torch, for the two layouts that SGLang's ``direct`` I/O backend knows.

Indices name token slots. SGLang allocates whole pages, so the first slot of every page says where
the page lies; copies are made page by page and not token by token.

Source: ``sglang/srt/mem_cache/pool_host/mha.py``, release 0.5.23.
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang_ext.errors import DeviceError

__all__ = ["backup_all_layers", "load_layer"]


def load_layer(
    original: Callable[..., None],
    pool: Any,
    device_pool: Any,
    host_indices: torch.Tensor,
    device_indices: torch.Tensor,
    layer_id: int,
    io_backend: str,
    *,
    is_draft: bool = False,
) -> None:
    """Copy one layer of some pages from the host pool to the device pool (L2 to L1).

    AROUND hook of ``MHATokenToKVPoolHost.load_to_device_per_layer``. Blocks until the copy is
    done; called by the scheduler thread.

    Args:
        original: SGLang's own method; used for pools that do not live on a CPU.
        pool: the host pool, ``[pages, layers, page_size, kv_heads, head_dim]`` for K and for V
            (``page_first_direct``) or ``[layers, tokens, kv_heads, head_dim]`` (``layer_first``).
        device_pool: the device pool; its buffers are taken from ``pool``.
        host_indices: int64 ``[tokens]``, slots in the host pool, whole pages.
        device_indices: int64 ``[tokens]``, slots in the device pool, whole pages.
        layer_id: layer of the device pool.
        io_backend: SGLang's ``--hicache-io-backend``.
        is_draft: whether the layer belongs to a draft model packed behind the target's layers.
    """
    if not _is_ours(pool, io_backend):
        original(
            pool, device_pool, host_indices, device_indices, layer_id, io_backend, is_draft=is_draft
        )
        return
    if not is_draft and not 0 <= layer_id < pool.target_layer_num:
        return
    source, target = _page_starts(pool, host_indices), _page_starts(pool, device_indices)
    for host, device in (
        (pool.k_data_refs[layer_id], pool.device_k_buffers[layer_id]),
        (pool.v_data_refs[layer_id], pool.device_v_buffers[layer_id]),
    ):
        _device_pages(device, pool.page_size).index_copy_(
            0, target, _host_pages(host, pool).index_select(0, source)
        )


def backup_all_layers(
    original: Callable[..., None],
    pool: Any,
    device_pool: Any,
    host_indices: torch.Tensor,
    device_indices: torch.Tensor,
    io_backend: str,
) -> None:
    """Copy all layers of some pages from the device pool to the host pool (L1 to L2).

    AROUND hook of ``MHATokenToKVPoolHost.backup_from_device_all_layer``; arguments as in
    `load_layer`. Blocks until the copy is done; called by the scheduler thread.
    """
    if not _is_ours(pool, io_backend):
        original(pool, device_pool, host_indices, device_indices, io_backend)
        return
    source, target = _page_starts(pool, device_indices), _page_starts(pool, host_indices)
    for host_layers, device_layers in (
        (pool.k_data_refs, pool.device_k_buffers),
        (pool.v_data_refs, pool.device_v_buffers),
    ):
        for host, device in zip(host_layers, device_layers, strict=True):
            _host_pages(host, pool).index_copy_(
                0, target, _device_pages(device, pool.page_size).index_select(0, source)
            )


def _is_ours(pool: Any, io_backend: str) -> bool:
    if pool.device_k_buffers[0].device.type != "cpu":
        return False
    if io_backend != "direct" or pool.layout not in ("page_first_direct", "layer_first"):
        raise DeviceError(
            f"the reference device cannot move KV pages with --hicache-io-backend {io_backend} and "
            f"--hicache-mem-layout {pool.layout}; use direct with page_first_direct or layer_first"
        )
    return True


def _page_starts(pool: Any, indices: torch.Tensor) -> torch.Tensor:
    return indices[:: pool.page_size].to(torch.int64) // pool.page_size


def _device_pages(buffer: torch.Tensor, page_size: int) -> torch.Tensor:
    pages = buffer.shape[0] // page_size
    return buffer[: pages * page_size].view(pages, page_size, *buffer.shape[1:])


def _host_pages(layer: torch.Tensor, pool: Any) -> torch.Tensor:
    # page_first_direct is in pages already; layer_first is a run of tokens.
    return layer if pool.layout == "page_first_direct" else _device_pages(layer, pool.page_size)
