"""Pages of SGLang's own host pools as memory."""

import pytest

pytest.importorskip("sglang")

import torch
from support.host_pools import PAGE, PAGE_BYTES, CopyOnlyPool, contents, mha_pool, tokens
from support.store_pages import NAMESPACE, chain, options

from sglang_ext.cache.host_pages import (
    CopiedPages,
    InPlacePages,
    MarkerPages,
    host_pages,
    memory_at,
)
from sglang_ext.cache.store import Page, PageStore

LAYOUTS = ["layer_first", "page_first", "page_first_direct"]


def test_memory_is_read_and_written_where_it_lies():
    tensor = torch.arange(8, dtype=torch.uint8)
    view = memory_at(tensor.data_ptr() + 2, 3)
    assert bytes(view) == b"\x02\x03\x04"
    view[:] = b"\x09\x09\x09"
    assert tensor.tolist() == [0, 1, 9, 9, 9, 5, 6, 7]
    assert (view.format, view.contiguous, view.readonly) == ("B", True, False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("copied", [False, True])
def test_pages_of_one_pool_arrive_in_another(layout, copied):
    source, target = mha_pool(layout, seed=1), mha_pool(layout)
    if copied:
        out, into = CopiedPages(source), CopiedPages(target)
    else:
        out, into = InPlacePages(source), InPlacePages(target)
    payloads = out.outgoing(tokens(3, 0, 7), 3)
    buffers, take = into.incoming(tokens(5, 1, 2), 3)
    assert [sum(map(len, payload)) for payload in payloads] == [PAGE_BYTES] * 3
    for page in (0, 2):
        whole = b"".join(bytes(piece) for piece in payloads[page])
        for piece in buffers[page]:
            piece[:], whole = whole[: len(piece)], whole[len(piece) :]
        take(page)
    arrived, expected = contents(target, 5, 2), contents(source, 3, 7)
    assert all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))
    assert not contents(target, 1)[0].any()
    untouched = set(range(40)) - {5, 2}
    assert not any(page.any() for page in contents(target, *untouched))


def test_a_page_that_was_not_filled_is_not_taken():
    target = mha_pool(seed=2)
    before = target.kv_buffer.clone()
    CopiedPages(target).incoming(tokens(1, 2), 2)
    assert torch.equal(target.kv_buffer, before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_addressable_layouts_are_used_in_place(layout):
    pages, pieces = host_pages(mha_pool(layout))
    assert isinstance(pages, InPlacePages)
    assert sum(pieces) == PAGE_BYTES


@pytest.mark.parametrize("layout", ["page_first", "page_first_direct"])
@pytest.mark.parametrize("threads", [0, 2])
def test_pages_of_sglangs_memory_go_to_the_disk_without_a_copy(layout, threads, tmp_path):
    from sglang.srt.environ import envs
    from sglang.srt.mem_cache.pool_host.common import HostTensorAllocator

    pool = mha_pool(layout)
    pool.head_dim = 128
    shape = (*pool.kv_buffer.shape[:-1], 128)
    with envs.SGLANG_HICACHE_HOST_PARALLEL_ALLOC_THREADS.override(threads):
        pool.kv_buffer = HostTensorAllocator().allocate(shape, torch.float32, "cpu")
    pool.kv_buffer.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    before = pool.kv_buffer.clone()
    pages, pieces = host_pages(pool)
    assert all(piece % 4096 == 0 for piece in pieces)
    keys = chain("pool", 3)
    payloads = pages.outgoing(tokens(3, 0, 7), 3)
    parents = [None, *keys]
    offered = [Page(key, up, data) for key, up, data in zip(keys, parents, payloads, strict=False)]
    with PageStore(tmp_path / "store", options()) as store:
        assert all(store.write(NAMESPACE, offered))
        assert store.stats().uncopied_pages == 3
        pool.kv_buffer.zero_()
        buffers, _ = pages.incoming(tokens(3, 0, 7), 3)
        assert all(store.read(NAMESPACE, keys, buffers))
    assert torch.equal(torch.stack(contents(pool, 3, 0, 7)), _contents_of(pool, before, 3, 0, 7))


def _contents_of(pool, buffer, *pages):
    pool.kv_buffer = buffer
    return torch.stack(contents(pool, *pages))


def test_others_are_copied():
    pages, pieces = host_pages(CopyOnlyPool(mha_pool()))
    assert isinstance(pages, CopiedPages)
    assert pieces == [PAGE_BYTES]


def test_an_anchor_without_bytes_has_a_marker():
    from sglang.srt.mem_cache.memory_pool_host import LogicalHostPool

    pages, pieces = host_pages(LogicalHostPool(8 * PAGE, PAGE))
    assert isinstance(pages, MarkerPages)
    (payload,) = pages.outgoing(tokens(0), 1)
    (buffer,), _ = pages.incoming(tokens(1), 1)
    assert [len(payload[0])] == pieces == [len(buffer[0])]


def test_a_pool_that_miscounts_is_named():
    class Miscounting:
        def get_page_buffer_meta(self, indices):
            return [0, 0, 0], [1, 1, 1]

    with pytest.raises(ValueError, match="Miscounting gave 3 addresses"):
        InPlacePages(Miscounting()).outgoing(tokens(0, 1), 2)
