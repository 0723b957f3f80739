"""The one AllGather of a layer, over gloo in several processes: exact, counted, overlapped."""

import multiprocessing
import os
import sys

import pytest
import torch
from support import gather_ranks

from sglang_ext.context_parallel.collective import Part, RowExchange, RowLayout
from sglang_ext.context_parallel.plan import plan
from sglang_ext.errors import DeviceError

# Each rank is a process of its own; torch is imported once for all of them.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["support.gather_ranks"])


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Python 3.11 gives its fork server no path; what that cannot import, every rank imports."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def layers_on(ranks, folder, what="nothing"):
    """(attention error, cache error, AllGathers, received bytes) of each rank."""
    children = [
        SERVER.Process(target=gather_ranks.main, args=(rank, ranks, what, str(folder)))
        for rank in range(ranks)
    ]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(120)
        codes = [child.exitcode for child in children]
    finally:
        for child in children:
            child.kill()
    assert codes == [0] * ranks
    results = []
    for rank in range(ranks):
        numbers = (folder / f"{rank}.txt").read_text(encoding="utf-8").split()
        results.append((float(numbers[0]), float(numbers[1]), int(numbers[2]), int(numbers[3])))
    return results


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_has_all_keys_and_the_right_answers(ranks, tmp_path):
    rows = plan(gather_ranks.EXTEND, gather_ranks.PREFIX, ranks).rows
    row_bytes = 2 * gather_ranks.KV_HEADS * gather_ranks.DIM * 4
    for attention_error, cache_error, calls, received in layers_on(ranks, tmp_path):
        assert attention_error < 2e-6
        assert cache_error == 0
        assert calls == gather_ranks.LAYERS  # exactly one a layer, and none besides
        # (ranks - 1) / ranks * tokens * row, tokens padded to equal rows
        assert received == (ranks - 1) * rows * row_bytes * gather_ranks.LAYERS


def test_what_is_here_is_attended_to_before_anything_arrives(tmp_path):
    """Rank 1 sends nothing until rank 0 is done with its prefix and its own keys."""
    assert all(error < 2e-6 for error, *_ in layers_on(2, tmp_path, "rank 0 first"))


@pytest.mark.parametrize("what", ["swapped index", "shifted slice", "stale slot"])
def test_a_damaged_exchange_is_noticed(what, tmp_path):
    results = layers_on(2, tmp_path, what)
    assert max(attention_error for attention_error, *_ in results) > 1e-2
    assert max(cache_error for _, cache_error, *_ in results) > 1e-2


def test_parts_of_several_types_share_a_row():
    """Latent, rotary part and indexer key of a DSA model; the latter of one byte a value."""
    layout = RowLayout(
        (
            Part((8,), torch.bfloat16),
            Part((1, 3), torch.bfloat16),
            Part((5,), torch.float8_e4m3fn),
        )
    )
    assert layout.offsets == (0, 16, 32, 48)
    buffer = torch.zeros(4, layout.row_bytes, dtype=torch.uint8)
    parts = [torch.randn(4, *part.shape).to(part.dtype) for part in layout.parts]
    for view, part in zip(layout.views(buffer), parts, strict=True):
        view.copy_(part)
    for view, part in zip(layout.views(buffer), parts, strict=True):
        assert view.float().tolist() == part.float().tolist()


def test_latent_rotary_part_and_indexer_key_of_a_layer_travel_together():
    """A DSA layer in bfloat16: the latent's row, the indexer's key in fp8 and its scale."""
    found, slots = plan([61, 3, 0, 130], [0, 40, 7, 33], 2), 1 + torch.randperm(194)
    layout = RowLayout(
        (
            Part((1, 512 + 64), torch.bfloat16),
            Part((128,), torch.float8_e4m3fn),
            Part((1,), torch.float32),
        )
    )
    whole = [torch.randn(194, *part.shape).to(part.dtype) for part in layout.parts]
    of_rank = [[part[torch.from_numpy(found.rows_of(rank))] for part in whole] for rank in (0, 1)]
    both = Loopback()
    sent = [RowExchange(found, rank, slots).begin(both, layout, of_rank[rank]) for rank in (0, 1)]
    gathered = torch.cat([flight.gathered[: found.rows] for flight in sent])
    for flight in sent:
        flight.gathered.copy_(gathered)
        caches = [torch.zeros(200, *part.shape, dtype=part.dtype) for part in layout.parts]
        flight.land(caches)
        for cache, part in zip(caches, whole, strict=True):
            assert torch.equal(cache[slots].view(torch.uint8), part.view(torch.uint8))
    assert both.calls == 2  # one a rank
    assert layout.row_bytes == 1152 + 128 + 16


class Loopback:
    """Two ranks of which the other one sends what we send."""

    ranks = 2
    calls = 0

    def start(self, output, rows):
        self.calls += 1
        output.copy_(rows.repeat(2, 1))
        return self

    def wait(self):
        pass


def test_padding_goes_to_the_slot_that_is_kept_for_it():
    found = plan([5], [0], 2)
    exchange = RowExchange(found, 0, torch.arange(10, 15))
    assert sorted(exchange.destinations.tolist()) == [0, 10, 11, 12, 13, 14]


def test_wrong_shapes_are_told():
    found = plan([5], [0], 2)
    with pytest.raises(DeviceError, match="one slot"):
        RowExchange(found, 0, torch.arange(4))
    exchange = RowExchange(found, 0, torch.arange(5))
    layout = RowLayout((Part((2,), torch.float32),))
    tokens = int(found.tokens[0])
    exchange.begin(Loopback(), layout, [torch.zeros(tokens, 2)])
    for wrong in (torch.zeros(tokens + 1, 2), torch.zeros(tokens, 2, dtype=torch.float64)):
        with pytest.raises(DeviceError, match="give"):
            exchange.begin(Loopback(), layout, [wrong])
