"""Our radix cache with SGLang's real tree core, pools and requests; no model and no scheduler."""

from array import array

import torch
from sglang.srt.managers.kv_hints import decode_kv_hints_envelope
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_ext.cache import install
from sglang_ext.cache.carrier import ACTION, action
from sglang_ext.cache.settings import TreeSettings
from sglang_ext.cache.tree import ExtRadixCache
from support.tree_driver import init_params


class Buffers:
    """As much of a KV pool as an allocator asks for."""

    def __init__(self, size):
        self.size = size


class ExtCache:
    """A cache, and requests that arrive, are inserted and end as a scheduler has them do."""

    def __init__(self, tokens=1000, page=1, **settings):
        install.register()
        params = init_params(page)
        params.tree_core_backend = install.BACKEND
        buffers = Buffers(tokens)
        params.token_to_kv_pool_allocator = TokenToKVPoolAllocator(
            tokens, torch.float32, "cpu", buffers, need_sort=False
        )
        self.cache = ExtRadixCache(params, settings=TreeSettings(secret=b"k", **settings))
        self.allocator = params.token_to_kv_pool_allocator

    def request(self, rid, tokens, told=None, **fields):
        """A request; ``told`` is what the process that takes requests says of it."""
        hints = {"protocol_version": "1", "message_id": ACTION, "actions": [action(told or {})]}
        return Req(
            rid,
            "",
            array("q", tokens),
            SamplingParams(max_new_tokens=4),
            kv_hints=decode_kv_hints_envelope(hints),
            vocab_size=1 << 20,
            **fields,
        )

    def arrive(self, req):
        """The scheduler looks its prefix up."""
        key = RadixKey(req.origin_input_ids, req.extra_key, cache_salt=req.cache_salt)
        return self.cache.match_prefix(MatchPrefixParams(key=key, req=req))

    def insert(self, req):
        """What was computed goes into the tree; room is made first."""
        tokens = req.origin_input_ids
        missing = len(tokens) - self.allocator.available_size()
        if missing > 0:
            self.cache.evict(EvictParams(num_tokens=missing))
        value = self.allocator.alloc(len(tokens))
        key = RadixKey(tokens, req.extra_key, cache_salt=req.cache_salt)
        known = self.cache.requests.get(req.rid)
        return self.cache._for(known, self.cache.insert, InsertParams(key=key, value=value))

    def finish(self, req, answer=(7,)):
        """Its answer is complete."""
        req.output_ids.extend(answer)
        req.finished_reason = FINISH_LENGTH(len(answer))
        self.cache.on_release(req, checkpointed=True)

    def claim(self, req, answer=(7,)):
        """A streaming session keeps the record of a finished request."""
        req.output_ids.extend(answer)
        req.finished_reason = FINISH_LENGTH(len(answer))
        self.cache.session.try_cache_finished_req = lambda req: True
        return self.cache.claim_kv_row(req)

    def serve(self, req):
        """All of it."""
        self.arrive(req)
        self.insert(req)
        self.finish(req)
