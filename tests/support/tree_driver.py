"""Drives one of SGLang's real tree cores as its controller does, memory and transfers aside."""

from array import array

import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.cache_action import BackupKV
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

from sglang_ext.cache.steering import SteeringMixin

FULL = ComponentType.FULL


def init_params(page=1):
    return CacheInitParams(
        disable=False,
        req_to_token_pool=None,
        token_to_kv_pool_allocator=None,
        page_size=page,
        tree_components=(FULL,),
    )


class Driver:
    """Calls of a controller with two memories of slots that never run out.

    ``write_through`` false: nothing is copied to host memory.
    """

    def __init__(self, core, *, write_through=True):
        self.core = core
        self.write_through = write_through
        self._slots = 0
        if write_through:
            core.set_hicache_enabled()
            core.write_through_threshold = 1

    def slots(self, count):
        self._slots += count
        return torch.arange(self._slots - count, self._slots, dtype=torch.int64)

    def match(self, tokens, **space):
        result = self.core.match_prefix(
            MatchPrefixParams(key=RadixKey(array("q", tokens), **space))
        )
        self.apply(result.cache_actions)
        return result

    def insert(self, tokens, **space):
        key = RadixKey(array("q", tokens), **space)
        step = self.core.begin_insert(InsertParams(key=key, value=self.slots(len(tokens))))
        while True:
            self.apply(step.actions)
            if step.result is not None:
                break
            step = self.core.resume_insert()
        self.apply(self.core.end_insert())
        return step.result

    def apply(self, actions):
        for action in list(actions):
            if isinstance(action, BackupKV) and self.write_through:
                for node in action.node_ids:
                    self.backup(node)

    def backup(self, node):
        value, transfers = self.core.build_backup_spec(node)
        if not value.numel():
            return
        self.core.commit_backup(node, self.slots(value.numel()), transfers)
        lock = self.core.inc_lock_ref(node).to_dec_params()
        self.core.mark_write_through_pending([node], node)
        self.core.finish_write_through([node], node)
        self.core.dec_lock_ref(node, lock)

    def evict(self, tokens):
        """Evict from the device; returns the nodes in order."""
        core, tracker, victims = self.core, {FULL: 0}, []
        core.need_tokens = tokens
        core.evict_device_start(FULL, tokens)
        try:
            while True:
                step = core.evict_device_next_node(FULL, tracker)
                self._drain(step, tracker)
                if step.node_id is None:
                    if not step.made_progress:
                        break
                    continue
                victims.append(step.node_id)
                self._drain(core.evict_device_leaf(step.node_id, False), tracker)
        finally:
            core.evict_device_end(FULL)
        return victims, tracker[FULL]

    def evict_host(self, tokens):
        """Evict from host memory; returns tokens freed."""
        tracker = {FULL: 0}
        self._drain(self.core.drive_host_eviction(FULL, tokens), tracker)
        return tracker[FULL]

    def load_back(self, node):
        """Host memory to the device, as `UnifiedRadixCache.load_back`; returns tokens loaded."""
        core = self.core
        host = core.inc_host_lock_ref(node).to_dec_params()
        device = core.inc_lock_ref(node).to_dec_params()
        transfer, others = core.build_load_back_spec(node)
        tokens = len(transfer.host_indices)
        core.dec_lock_ref(node, device)
        if tokens:
            self.apply(core.commit_load_back(node, self.slots(tokens), transfer, others))
            device = core.inc_lock_ref(node).to_dec_params()
            core.finish_load_back(node)
            core.dec_lock_ref(node, device)
        core.dec_host_lock_ref(node, host)
        return tokens

    def read_from_storage(self, node, tokens):
        """A prefix below ``node`` arrives in host memory."""
        page = self.core.page_size
        hashes = [f"{tokens[:end]}" for end in range(page, len(tokens) + 1, page)]
        key = RadixKey(array("q", tokens))
        result = self.core.insert_host(node, key, self.slots(len(tokens)), hashes)
        self.apply(result.cache_actions)
        return result

    def path(self, node):
        (path,) = self.core.collect_path_info([node])
        return path

    def device_leaves(self):
        """What the core itself would evict: its unlocked device leaves."""
        core, found = self.core, set()
        walk = super(SteeringMixin, core)
        walk.evict_device_start(FULL, 1 << 60)
        while True:
            step = walk.evict_device_next_node(FULL, {FULL: 0})
            if step.node_id is None:
                break
            found.add(step.node_id)
        walk.evict_device_end(FULL)
        return found

    def _drain(self, step, tracker):
        for component, tokens in step.tracker.items():
            tracker[component] = tracker.get(component, 0) + tokens
        step.device_frees.clear()
        step.host_frees.clear()
        actions = list(step.cache_actions)
        step.cache_actions.clear()
        self.apply(actions)
