"""SGLang's own pools, layers and batches around the attention backend, and a float64 oracle.

Every slot of a pool starts as NaN: a key read from a slot that is not the request's own shows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_ext.device.attention import ReferenceAttentionBackend

BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
DIM, SLOTS = 16, 4096


@dataclass
class Request:
    """One request: ``cached`` tokens in the pool, ``new`` ones to compute."""

    cached: int
    new: int
    seed: int

    @property
    def tokens(self) -> int:
        return self.cached + self.new


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scattered(total: int, longest_run: int, seed: int) -> list[int]:
    """Distinct slots above 0, in runs of 1 to ``longest_run`` consecutive ones."""
    rng = random.Random(seed)
    runs, cursor = [], 1
    while cursor <= total:
        length = min(rng.randint(1, longest_run), total + 1 - cursor)
        runs.append(range(cursor, cursor + length))
        cursor += length
    rng.shuffle(runs)
    return [slot for run in runs for slot in run]


class World:
    """A pool, a table and layers of one geometry, and the oracle for them."""

    def __init__(
        self,
        *,
        heads: int = 9,
        kv_heads: int = 3,
        dtype: torch.dtype = torch.float32,
        window: int = -1,
        layers: int = 1,
        v_dim: int = DIM,
        min_run: int = 8,
        pool=None,
        **layer_options,
    ) -> None:
        self.dtype = dtype
        self.pool = pool or MHATokenToKVPool(
            SLOTS - 1, 1, dtype, kv_heads, DIM, layers, "cpu", False, v_head_dim=v_dim
        )
        for buffer in self.buffers():
            buffer.fill_(torch.nan)
        self.table = ReqToTokenPool(16, 1024, "cpu", False)
        self.layers = torch.nn.ModuleList(
            RadixAttention(
                heads,
                layer_options.get("head_dim", DIM),
                0.3,
                kv_heads,
                layer_id,
                v_head_dim=v_dim,
                sliding_window_size=window,
                logit_cap=layer_options.get("logit_cap", 0.0),
            )
            for layer_id in range(layers)
        )
        runner = SimpleNamespace(
            device="cpu",
            dtype=dtype,
            model=self.layers,
            req_to_token_pool=self.table,
            token_to_kv_pool=self.pool,
            model_config=SimpleNamespace(has_attention_sinks=False),
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )
        self.runner = runner
        self.backend = ReferenceAttentionBackend(runner, min_run)

    def buffers(self) -> list[torch.Tensor]:
        pools = [self.pool]
        if isinstance(self.pool, SWAKVPool):
            pools = [self.pool.full_kv_pool, self.pool.swa_kv_pool]
        found = []
        for pool in pools:
            mla = isinstance(pool, MLATokenToKVPool)
            found += pool.kv_buffer if mla else [*pool.k_buffer, *pool.v_buffer]
        return found

    def qkv(self, request: Request, layer_id: int = 0) -> tuple[torch.Tensor, ...]:
        """The request's queries, keys and values at all positions, ``[tokens, heads, dim]``."""
        layer = self.layers[layer_id]
        seed, tokens = request.seed * 97 + layer_id * 3, request.tokens
        return (
            draw(seed, tokens, layer.tp_q_head_num, layer.qk_head_dim).to(self.dtype),
            draw(seed + 1, tokens, layer.tp_k_head_num, layer.qk_head_dim).to(self.dtype),
            draw(seed + 2, tokens, layer.tp_v_head_num, layer.v_head_dim).to(self.dtype),
        )

    def batch(
        self,
        requests: Sequence[Request],
        slots: Sequence[int],
        mode: ForwardMode,
        store: bool = True,
    ) -> ForwardBatch:
        """A batch with slots handed out in order; its cached tokens are stored unless told not."""
        rest, written = list(slots), []
        for entry, request in enumerate(requests, start=1):
            own, rest = (
                torch.tensor(rest[: request.tokens], dtype=torch.int64),
                rest[request.tokens :],
            )
            self.table.req_to_token[entry, : request.tokens] = own
            for layer_id, layer in enumerate(self.layers if store else ()):
                _, k, v = self.qkv(request, layer_id)
                cached = own[: request.cached]
                self.pool.set_kv_buffer(layer, cached, k[: request.cached], v[: request.cached])
            written.append(own[request.cached :])
        lens = torch.tensor([request.tokens for request in requests])
        extend = mode != ForwardMode.DECODE
        return ForwardBatch(
            forward_mode=mode,
            batch_size=len(requests),
            input_ids=torch.zeros(sum(r.new for r in requests), dtype=torch.long),
            req_pool_indices=torch.arange(1, len(requests) + 1),
            seq_lens=lens,
            out_cache_loc=torch.cat(written),
            seq_lens_sum=int(lens.sum()),
            extend_seq_lens=torch.tensor([r.new for r in requests]) if extend else None,
            extend_prefix_lens=torch.tensor([r.cached for r in requests]) if extend else None,
        )

    def run(self, batch: ForwardBatch, requests: Sequence[Request], **options) -> torch.Tensor:
        """Output of the last layer, ``[rows, heads * v_dim]``; all layers are run."""
        self.backend.init_forward_metadata(batch)
        for layer_id, layer in enumerate(self.layers):
            parts = [[t[r.cached :] for t in self.qkv(r, layer_id)] for r in requests]
            q, k, v = (torch.cat(tensors).flatten(1) for tensors in zip(*parts, strict=True))
            if options.get("without_kv"):
                k = v = None
            save = options.get("save_kv_cache", True)
            with forward_context(ForwardContext(attn_backend=self.backend), forward_batch=batch):
                out = layer(q, k, v, batch, save_kv_cache=save)
        return out

    def expected(self, requests: Sequence[Request], layer_id: int = 0) -> torch.Tensor:
        """Float64 ``[rows, heads * v_dim]``, from dense scores over all positions."""
        layer, rows = self.layers[layer_id], []
        group = layer.tp_q_head_num // layer.tp_k_head_num
        for request in requests:
            q, k, v = (t.double() for t in self.qkv(request, layer_id))
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", q[request.cached :], k) * layer.scaling
            if layer.logit_cap:
                scores = layer.logit_cap * torch.tanh(scores / layer.logit_cap)
            at = torch.arange(request.cached, request.tokens)[:, None]
            of = torch.arange(request.tokens)[None]
            hidden = of > at
            if layer.sliding_window_size >= 0:
                hidden |= of < at - layer.sliding_window_size
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            rows.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        return torch.cat(rows)

    def check(self, requests: Sequence[Request], slots: Sequence[int], mode: ForwardMode) -> None:
        out = self.run(self.batch(requests, slots, mode), requests)
        assert out.dtype == self.dtype
        expected = self.expected(requests, len(self.layers) - 1)
        torch.testing.assert_close(out.double(), expected, atol=BOUND[self.dtype], rtol=0)


class LatentWorld(World):
    """Latent attention: one key head of latent and rotary part, values its first columns."""

    def __init__(self, *, latent: int = 24, rotary: int = 8, **options) -> None:
        layers = options.get("layers", 1)
        dtype = options.get("dtype", torch.float32)
        pool = MLATokenToKVPool(SLOTS - 1, 1, dtype, latent, rotary, layers, "cpu", False)
        # Otherwise each write asks a server's settings whether slots belong to several ranks.
        pool.write_loc_is_dcp_resolved = True
        self.latent = latent
        width = latent + rotary
        super().__init__(kv_heads=1, v_dim=latent, head_dim=width, pool=pool, **options)

    def qkv(self, request: Request, layer_id: int = 0) -> tuple[torch.Tensor, ...]:
        q, k, _ = super().qkv(request, layer_id)
        return q, k, k[..., : self.latent].contiguous()
