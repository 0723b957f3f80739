import numpy as np
import pytest

from sglang_ext.bench.store import load as load_module
from sglang_ext.bench.store.load import CALL_PAGES, Load, PageMemory, keys_of
from sglang_ext.errors import ConfigError

PAGE = 8192


@pytest.mark.parametrize("pages", [4, 5, 100, 1000, 1281])
def test_chains_hold_every_page_once_and_in_order(pages: int) -> None:
    load = Load(PAGE, pages * PAGE + 1)
    batches = [batch for chain in load.chains() for batch in chain]
    numbers = [batch.first + index for batch in batches for index in range(len(batch.keys))]
    assert numbers == list(range(pages))
    assert len({key for batch in batches for key in batch.keys}) == load.pages == pages
    assert load.payload_bytes == pages * PAGE
    assert len(load.chains()) >= 4


def test_calls_are_as_sglang_makes_them_and_know_their_parent() -> None:
    chain = Load(PAGE, 2000 * PAGE).chains()[1]
    assert [len(batch.keys) for batch in chain] == [CALL_PAGES, CALL_PAGES, 64]
    assert [batch.parent for batch in chain] == [None, chain[0].keys[-1], chain[1].keys[-1]]
    assert {len(key) for key in keys_of(chain)} == {32}
    assert len(keys_of(chain)) == 320


def test_pages_of_another_size_are_other_pages() -> None:
    assert not set(keys_of(Load(PAGE, 1 << 20).chains()[0])) & set(
        keys_of(Load(2 * PAGE, 1 << 20).chains()[0])
    )


@pytest.mark.parametrize("page_bytes", [0, 4095, 4097, 65536 + 512])
def test_a_page_that_is_not_aligned_is_refused(page_bytes: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 4 KiB"):
        Load(page_bytes, 1 << 30)


def test_too_few_pages_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hold 3 pages .* give more --bytes"):
        Load(PAGE, 4 * PAGE - 1)


def test_no_two_blocks_are_equal() -> None:
    load = Load(PAGE, 40 * PAGE)
    memory = PageMemory(load)
    memory.fill()
    pages = [page for chain in load.chains() for batch in chain for page in memory.views(batch)]
    blocks = {bytes(page[start : start + 4096]) for page in pages for start in range(0, PAGE, 4096)}
    assert len(blocks) == 80


def test_wiped_pages_are_wrong_until_they_are_what_they_were() -> None:
    load = Load(PAGE, 40 * PAGE)
    memory = PageMemory(load)
    memory.fill()
    assert memory.wrong() == 0
    batch = load.chains()[2][0]
    saved = [bytes(page) for page in memory.views(batch)]
    memory.wipe()
    assert memory.wrong() == load.pages
    for page, content in zip(memory.views(batch), saved, strict=True):
        page[:] = content
    assert memory.wrong() == load.pages - len(batch.keys)


@pytest.mark.parametrize("position", [0, 7, 8, 4095, 4096, PAGE - 1])
def test_one_flipped_bit_is_seen(position: int) -> None:
    load = Load(PAGE, 40 * PAGE)
    memory = PageMemory(load)
    memory.fill()
    memory.views(load.chains()[1][0])[3][position] ^= 1
    assert memory.wrong() == 1


def test_a_page_in_the_place_of_another_is_wrong() -> None:
    load = Load(PAGE, 40 * PAGE)
    memory = PageMemory(load)
    memory.fill()
    first = memory.views(load.chains()[0][0])[0]
    other = memory.views(load.chains()[1][0])[6]  # page 16 has the pattern of page 0
    assert np.frombuffer(first, np.uint8)[8:4096].tolist() == list(other[8:4096])
    first[:] = other
    assert memory.wrong() == 1


def test_more_pages_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "_available_bytes", lambda: 1 << 20)
    with pytest.raises(ConfigError, match="do not fit into memory"):
        PageMemory(Load(PAGE, 1 << 20))


def test_memory_is_aligned_for_direct_transfers() -> None:
    load = Load(PAGE, 40 * PAGE)
    memory = PageMemory(load)
    for page in memory.views(load.chains()[0][0]):
        assert np.frombuffer(page, np.uint8).ctypes.data % 4096 == 0
