"""Copies between SGLang's own device and host pools."""

from types import SimpleNamespace

import pytest
import torch

from sglang_ext.device import host_transfer
from sglang_ext.errors import DeviceError

LAYERS, PAGE, HEADS, DIM = 3, 4, 2, 8
DEVICE_PAGES, HOST_PAGES = 6, 9


def make_pool(layout, device_type="cpu"):
    """The buffers of SGLang's MHA host pool, laid out as its init_kv_buffer does."""
    shape = (LAYERS, DEVICE_PAGES * PAGE, HEADS, DIM)
    device_k, device_v = torch.randn(shape), torch.randn(shape)
    if layout == "page_first_direct":
        host = torch.zeros(2, HOST_PAGES, LAYERS, PAGE, HEADS, DIM).transpose(1, 2)
    else:
        host = torch.zeros(2, LAYERS, HOST_PAGES * PAGE, HEADS, DIM)
    return SimpleNamespace(
        layout=layout,
        page_size=PAGE,
        target_layer_num=LAYERS,
        device_k_buffers=tuple(device_k),
        device_v_buffers=tuple(device_v),
        k_data_refs=list(host[0]),
        v_data_refs=list(host[1]),
    )


def slots(*pages):
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def never(*_args, **_kwargs):
    raise AssertionError("SGLang's own kernel was called on a CPU")


@pytest.mark.parametrize("layout", ["page_first_direct", "layer_first"])
def test_pages_come_back_as_they_went(layout):
    torch.manual_seed(0)
    pool = make_pool(layout)
    before = [b.clone() for b in (*pool.device_k_buffers, *pool.device_v_buffers)]
    host_transfer.backup_all_layers(never, pool, None, slots(7, 2), slots(1, 5), "direct")
    for buffer in (*pool.device_k_buffers, *pool.device_v_buffers):
        buffer[slots(1, 5)] = -1
    for layer in range(LAYERS):
        host_transfer.load_layer(never, pool, None, slots(7, 2), slots(1, 5), layer, "direct")
    after = (*pool.device_k_buffers, *pool.device_v_buffers)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("layout", ["page_first_direct", "layer_first"])
def test_only_the_named_pages_and_layer_change(layout):
    torch.manual_seed(1)
    pool = make_pool(layout)
    host_transfer.backup_all_layers(never, pool, None, slots(3), slots(0), "direct")
    before = [b.clone() for b in pool.device_k_buffers]
    host_transfer.load_layer(never, pool, None, slots(3), slots(4), 1, "direct")
    assert torch.equal(pool.device_k_buffers[1][slots(4)], before[1][slots(0)])
    kept = slots(0, 1, 2, 3, 5)
    assert torch.equal(pool.device_k_buffers[1][kept], before[1][kept])
    assert torch.equal(pool.device_k_buffers[0], before[0])
    assert torch.equal(pool.device_k_buffers[2], before[2])


def test_layer_of_another_model_part_is_left_alone():
    pool = make_pool("page_first_direct")
    before = [b.clone() for b in pool.device_k_buffers]
    host_transfer.load_layer(never, pool, None, slots(0), slots(0), LAYERS, "direct")
    assert all(torch.equal(a, b) for a, b in zip(pool.device_k_buffers, before, strict=True))


@pytest.mark.parametrize(
    ("layout", "backend"), [("page_first", "direct"), ("page_first_direct", "kernel")]
)
def test_what_a_cpu_cannot_do_is_refused_by_name(layout, backend):
    pool = make_pool("page_first_direct")
    pool.layout = layout
    with pytest.raises(DeviceError, match=f"{backend} and --hicache-mem-layout {layout}"):
        host_transfer.backup_all_layers(never, pool, None, slots(0), slots(0), backend)


def test_other_devices_keep_sglangs_kernels():
    calls = []
    pool = SimpleNamespace(
        device_k_buffers=(torch.empty(1, device="meta"),), layout="page_first", page_size=1
    )
    host_transfer.backup_all_layers(
        lambda *args: calls.append(args), pool, None, slots(0), slots(0), "kernel"
    )
    assert len(calls) == 1
