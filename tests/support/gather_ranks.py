"""Ranks of a context-parallel layer over gloo, each a process; driven by test_exchange.py."""

from datetime import timedelta

import torch
from torch import distributed

from sglang_ext.context_parallel.attention import attend_slices, tasks_of
from sglang_ext.context_parallel.collective import (
    CountedGroup,
    Part,
    ProcessGroup,
    RowExchange,
    RowLayout,
)
from sglang_ext.context_parallel.plan import plan

EXTEND, PREFIX = [61, 3, 0, 130, 1, 16], [0, 40, 7, 33, 95, 2]
HEADS, KV_HEADS, DIM, LAYERS = 6, 2, 16, 3
SCALE = DIM**-0.5


def batch_tensors():
    """Slots of every request, and queries, keys and values of all its tokens in each layer."""
    generator = torch.Generator().manual_seed(7)
    lengths = [new + cached for new, cached in zip(EXTEND, PREFIX, strict=True)]
    slots = (1 + torch.randperm(sum(lengths) + 50, generator=generator))[: sum(lengths)]
    layers = [
        [
            torch.randn(sum(lengths), heads, DIM, generator=generator)
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        ]
        for _ in range(LAYERS)
    ]
    return list(slots.split(lengths)), [[t.split(lengths) for t in layer] for layer in layers]


def expected(q, k, v, cached):
    """Attention of the new tokens in float64, scores written out."""
    q, k, v = q[cached:].double(), k.double(), v.double()
    group = HEADS // KV_HEADS
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    hidden = torch.arange(k.shape[0])[None, :] > cached + torch.arange(q.shape[0])[:, None]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def damaged(exchange, what):
    """An exchange that is wrong in one way."""
    if what == "swapped index":
        # Of two ranks: neighbours of one slice would give every query that sees both the same.
        at, there = exchange.destinations.clone(), exchange.plan.rows
        at[[0, there]] = at[[there, 0]]
        exchange.destinations = at
    if what == "stale slot":
        exchange.destinations = exchange.destinations.clone()
        exchange.destinations[5] = 0
    return exchange


def run(rank, ranks, what, store):
    """Error of this rank's attention, error of its cache, AllGathers, bytes received."""
    found = plan(EXTEND, PREFIX, ranks)
    slots, layers = batch_tensors()
    new_slots = torch.cat([s[c:] for s, c in zip(slots, PREFIX, strict=True)])
    exchange = damaged(RowExchange(found, rank, new_slots), what)
    tasks = tasks_of(found, rank)
    group = CountedGroup(ProcessGroup())
    layout = RowLayout((Part((KV_HEADS, DIM), torch.float32),) * 2)
    rows = torch.from_numpy(found.rows_of(rank))
    if what == "shifted slice":
        rows = (rows + 1) % len(new_slots)
    attention_error = cache_error = 0.0
    for number, (q, k, v) in enumerate(layers):
        caches = [torch.zeros(500, KV_HEADS, DIM) for _ in range(2)]
        for cache, values in zip(caches, (k, v), strict=True):
            for at, tokens, cached in zip(slots, values, PREFIX, strict=True):
                cache[at[:cached]] = tokens[:cached]
        mine = tuple(
            torch.cat([t[c:] for t, c in zip(tokens, PREFIX, strict=True)])[rows]
            for tokens in (q, k, v)
        )
        if what == "rank 0 first" and rank:
            # Nothing of ours leaves before rank 0 has attended to all that it can have by then.
            store.wait([f"attended {number}"], timedelta(seconds=60))
        flight = exchange.begin(group, layout, mine[1:])

        def read(request, first, end, caches=caches):
            return tuple(cache[slots[request][first:end]] for cache in caches)

        def land(flight=flight, caches=caches, number=number):
            if what == "rank 0 first" and not rank:
                store.set(f"attended {number}", "yes")
            flight.land(caches)

        out = attend_slices(tasks, mine, SCALE, read, land)
        wanted = torch.cat([expected(*one) for one in zip(q, k, v, PREFIX, strict=True)])
        error = (out - wanted[torch.from_numpy(found.rows_of(rank))]).abs().max()
        attention_error = max(attention_error, float(error))
        for cache, values in zip(caches, (k, v), strict=True):
            error = (cache[torch.cat(slots)] - torch.cat(values)).abs().max()
            cache_error = max(cache_error, float(error))
    return attention_error, cache_error, group.calls, group.received_bytes


def main(rank, ranks, what, folder):
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", ranks)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    result = run(rank, ranks, what, store)
    with open(f"{folder}/{rank}.txt", "w", encoding="utf-8") as file:
        file.write(" ".join(map(repr, result)))
    distributed.barrier()
    distributed.destroy_process_group()
