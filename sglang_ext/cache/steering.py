"""Chooses what SGLang's tree core evicts, from device and from host memory.

The core asks nobody whom to evict, but its controller does in two steps: which leaf is next, and
evict that leaf. The first is answered here. Host memory has no such second step; there every node
that is in host memory alone carries a host lock of ours, and only the chosen one is let go before
the core is told to evict.

A wrong leaf would end the scheduler (the Rust core panics, and its lock is lost), so each is looked
at in the core itself before it is named. Where nothing can be named, or what is known here
contradicts the core, the core chooses itself, as in stock SGLang.

Source: ``mem_cache/unified_cache/unified_tree_core_interface.py`` and
``UnifiedRadixCache._evict_components``, release 0.5.23; measured in docs/design/tree.md.
"""

import zlib
from collections.abc import Sequence
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.rust_tree_core.adapter import RustUnifiedTreeCore
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore
from sglang.srt.mem_cache.unified_cache.unified_tree_core_interface import (
    DriveHostEvictionResult,
    EvictDeviceNextNodeResult,
)

from sglang_ext.cache.following import FollowingMixin
from sglang_ext.cache.leaf_check import Entry, LeafCheck
from sglang_ext.cache.mirror import Node, PathEntries, PathEntry
from sglang_ext.errors import MirrorError

__all__ = ["SteeredPythonCore", "SteeredRustCore", "SteeringMixin"]

FULL = ComponentType.FULL
# A leaf is cut instead of evicted whole where that keeps more than this part of its path's length:
# cutting walks the path once, 6 ns a token; what is kept is not loaded or computed again.
_CUT = 64


class SteeringMixin(FollowingMixin):
    """Goes in front of one of SGLang's tree cores; all calls come from the scheduler's thread.

    Attributes:
        need_tokens: what the eviction that is going on has to free; what the core is told may be
            more.
        victims_digest: of all that was evicted, in order; equal on ranks that evict alike.
        compares_victims: have SGLang compare it over the ranks, and end the server where it is not
            equal. What goes on after that would wait for ever, or be wrong.
    """

    need_tokens = 0
    victims_digest = 0
    compares_victims = False
    _want = 0
    _own_walk = False  # the core's own walk has been started

    def steer(self, *args: Any, **kwargs: Any) -> None:
        """As `FollowingMixin.steer`."""
        self._check = LeafCheck(self._plain_core(), self._told_path)
        super().steer(*args, **kwargs)

    def _plain_core(self) -> Any:
        """The core itself: the pins of a check are let go at once, and nobody need follow them."""
        return super(FollowingMixin, self)

    def _told_path(self, node_id: int) -> Sequence[Entry]:
        return self.path_entries(node_id)

    # --- device memory

    def evict_device_start(self, component_type: ComponentType, request_cnt: int) -> None:
        """Begin to evict from a memory of the device."""
        self._own_walk = self.index is None or component_type is not FULL
        self._want = request_cnt
        self._check.begin()
        if self._own_walk:
            super().evict_device_start(component_type, request_cnt)

    def evict_device_next_node(self, component_type: ComponentType, tracker: Any) -> Any:
        """Name the next leaf to evict."""
        if not self._own_walk:
            if tracker[FULL] >= self._want:
                return EvictDeviceNextNodeResult()
            result = EvictDeviceNextNodeResult()
            victim = self._try(self._next_device_leaf, tracker[FULL], result)
            if victim is not None:
                result.node_id, result.made_progress = victim.id, True
                return result
            if self.full_evictable_size() <= 0:
                return result
            # Something is left that is not known here: the core finds it.
            self.counts["own_walks"] += 1
            self._own_walk = True
            super().evict_device_start(component_type, self._want)
        return super().evict_device_next_node(component_type, tracker)

    def evict_device_end(self, component_type: ComponentType) -> None:
        """End what `evict_device_start` began."""
        if self._own_walk:
            super().evict_device_end(component_type)
        self._own_walk = False

    def evict_device_leaf(self, node_id: int, is_write_back: bool) -> Any:
        """Evict a leaf that was named."""
        backed = self.is_backuped(node_id)
        result = super().evict_device_leaf(node_id, is_write_back)
        self._note_victim(node_id)
        if self.index is not None and result.backup_kv is None:
            self._try(self._note_evicted, node_id, backed)
        return result

    def _note_victim(self, node_id: int) -> None:
        self.victims_digest = zlib.crc32(node_id.to_bytes(8, "little"), self.victims_digest)

    def demote(self, node_id: int) -> Any:
        """Evict a leaf whose copy in host memory was just made."""
        result = super().demote(node_id)
        if self.index is not None:
            self._try(self._note_evicted, node_id, True)
        return result

    def drop_subtree_no_host(self, node_id: int) -> Any:
        """Evict a leaf for which host memory has no room."""
        result = super().drop_subtree_no_host(node_id)
        if self.index is not None and result.is_dropped:
            self._try(self._note_evicted, node_id, False)
        return result

    def _note_evicted(self, node_id: int, backed: bool) -> None:
        index, now = self._steered(), self._clock()
        node = index.get(node_id)
        if node is None:
            raise MirrorError(f"node {node_id} was evicted and is unknown")
        if backed:
            self.counts["demoted"] += len(node)
            index.to_host(node, now)
            if node.pin is None:
                self._pin(node)
        else:
            self.counts["lost_device"] += len(node)
            self._on_lost(node, now)
            index.gone(node, now)
        self._check.evicted(node_id, gone=not backed)

    def _next_device_leaf(self, freed: int, result: Any) -> Node | None:
        index, now = self._steered(), self._clock()
        while True:
            node = index.device.lowest(now)
            if node is None:
                return None
            if self._check.agrees(node):
                self._cut(node, self.need_tokens - freed, result)
                return node
            index.device.discard(node)
            self.counts["refused"] += 1

    def _cut(self, node: Node, tokens: int, result: Any) -> None:
        """Split a victim that is much longer than what is needed, so that only its end goes.

        What is worth more than its end stays as well.
        """
        page = self.page_size
        if len(node) <= page:
            return
        tokens = min(tokens, node.end - self._steered().rank.run_begin(node))
        keep = (len(node) - max(tokens, 1)) // page * page
        if tokens <= 0 or keep <= 0 or keep * _CUT < node.end:
            return
        mirror, behind = self._steered().mirror, 1 if self.is_eagle else 0
        *_, top = mirror.path(node)
        text = mirror.text(node, node.begin + keep + behind)
        if text is None or not isinstance(top.key, tuple):
            return
        extra_key, cache_salt, _ = top.key
        params = MatchPrefixParams(key=RadixKey(text, extra_key, cache_salt=cache_salt))
        turn, self.turn = self.turn, None  # it is nobody's request
        try:
            result.cache_actions.extend(self.match_prefix(params).cache_actions)
        finally:
            self.turn = turn
        self.counts["cuts"] += 1

    # --- host memory

    def drive_host_eviction(self, component_type: ComponentType, num_tokens: int) -> Any:
        """Evict from host memory."""
        if self.index is None or component_type is not FULL or self.is_write_back:
            return super().drive_host_eviction(component_type, num_tokens)
        self._check.begin()
        result = DriveHostEvictionResult()
        aside: list[Node] = []
        while result.tracker[FULL] < num_tokens:
            if not self._try(self._evict_next_host_leaf, num_tokens, result, aside):
                break
        if self.index is None:
            if result.tracker[FULL] < num_tokens:
                self._let_go(result, num_tokens - result.tracker[FULL])
            return result
        now = self._clock()
        for node in aside:
            self.index.refresh(node, now)
        return result

    def _evict_next_host_leaf(self, num_tokens: int, result: Any, aside: list[Node]) -> bool:
        """Evict the host leaf of least worth; False: there is none."""
        index, now = self._steered(), self._clock()
        node = index.host.lowest(now)
        if node is None:
            return False
        if self._demote_lesser(node, num_tokens - result.tracker[FULL], result):
            node = index.host.lowest(now) or node
        if node.pin is not None:
            self._cut(node, num_tokens - result.tracker[FULL], result)
            self._unpin(node)
        freed = self._let_go(result, 1)
        if freed:
            if freed != len(node):
                raise MirrorError(f"{freed} tokens left host memory in place of node {node.id}")
            self._note_victim(node.id)
            self.counts["lost_host"] += freed
            self._on_lost(node, now)
            index.gone(node, now)
        else:  # somebody else holds it too
            self._pin(node)
            index.host.discard(node)
            aside.append(node)
        return True

    def _demote_lesser(self, node: Node, tokens: int, result: Any) -> bool:
        """Take the least device leaf from the device if it is worth less than host leaf ``node``.

        What is on the device keeps its copy in host memory. Without this the least of all, a
        request that will hardly come back and has just ended, would outlast what is worth more.
        """
        index, now = self._steered(), self._clock()
        least = index.device.lowest(now)
        if least is None or least.children or not index.is_lesser(least, node, now):
            return False
        if not self.is_backuped(least.id):
            return False
        if not self._check.agrees(least):
            index.device.discard(least)
            self.counts["refused"] += 1
            return False
        self._cut(least, tokens, result)
        evicted = self.evict_device_leaf(least.id, self.is_write_back)
        for mine, theirs in (
            (result.device_frees, evicted.device_frees),
            (result.host_frees, evicted.host_frees),
        ):
            for component in list(theirs):
                mine[component].extend(theirs.pop(component))
        result.cache_actions.extend(evicted.cache_actions)
        evicted.cache_actions.clear()
        self.counts["demoted_early"] += len(least)
        return True

    def _let_go(self, result: Any, tokens: int) -> int:
        """Have the core evict what nobody holds; returns tokens freed."""
        step = super().drive_host_eviction(FULL, tokens)
        freed = step.tracker.get(FULL, 0)
        for component in list(step.device_frees):
            result.device_frees[component].extend(step.device_frees.pop(component))
        for component in list(step.host_frees):
            result.host_frees[component].extend(step.host_frees.pop(component))
        for component, tokens in step.tracker.items():
            result.tracker[component] += tokens
        result.cache_actions.extend(step.cache_actions)
        step.cache_actions.clear()
        return int(freed)


class SteeredRustCore(SteeringMixin, RustUnifiedTreeCore):
    """SGLang's Rust core, steered."""

    @property
    def write_back_duplicate_reclaim_digest(self) -> int:
        """What SGLang compares over ranks, at each look at its transfers: our victims, too."""
        digest = super().write_back_duplicate_reclaim_digest
        return int(digest) ^ (self.victims_digest if self.compares_victims else 0)

    def path_entries(self, node_id: int) -> Sequence[PathEntry]:
        """The path to a node, without the detour through SGLang's records."""
        return PathEntries(self._told_path(node_id))

    def _told_path(self, node_id: int) -> Sequence[Entry]:
        (path,) = self._binding.collect_path_info([node_id])
        told: Sequence[Entry] = path
        return told

    def _plain_core(self) -> Any:
        """Without the adapter, which would add nothing."""
        return self._binding

    def run_tokens(self, node_id: int) -> int:
        """Length of a node's own run."""
        (tokens,) = self._binding.get_node_key_lengths([node_id])
        return int(tokens)


class SteeredPythonCore(SteeringMixin, UnifiedTreeCore):
    """SGLang's Python core, steered: where SGLang has no Rust core for a device."""
