"""Keeps the mirror of a tree core true while SGLang's controller calls the core.

Source: ``mem_cache/unified_cache/unified_tree_core_interface.py``, release 0.5.23.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.radix_cache import RadixKey

from sglang_ext.cache.conversation import Turn
from sglang_ext.cache.index import TreeIndex
from sglang_ext.cache.mirror import Node, PathEntry
from sglang_ext.cache.use import NEVER
from sglang_ext.errors import MirrorError

__all__ = ["FollowingMixin"]

logger = logging.getLogger(__name__)

_Core: Any = Any if TYPE_CHECKING else object


class FollowingMixin(_Core):
    """Goes in front of one of SGLang's tree cores; all calls come from the scheduler's thread.

    Attributes:
        index: what is known of the tree; None: nothing is steered, the core chooses.
        turn, tenant: of the request on whose behalf the tree is called now.
        counts: tokens and events by name, for metrics.
    """

    index: TreeIndex | None = None
    turn: Turn | None = None
    tenant = ""
    # Where the last look-up of a request ended, and whose it was.
    _met: tuple[Turn | None, Node | None] = (None, None)

    def steer(
        self,
        make: Callable[[int], TreeIndex],
        clock: Callable[[], float] = time.time,
        on_lost: Callable[[Node, float], None] = lambda node, now: None,
    ) -> None:
        """Begin to steer; the tree is empty.

        Args:
            make: an index for a tree with this root.
            clock: seconds, equal on all ranks.
            on_lost: called with each node that is about to leave memory, and the time.
        """
        self._make_index = make
        self._clock = clock
        self._on_lost = on_lost
        self.counts: Counter[str] = Counter()
        self._begin_index()

    def _begin_index(self) -> None:
        self.index = self._make_index(self.root_node_handle())

    def lose(self, error: Exception) -> None:
        """Stop to steer until the next reset: what is known of the tree is not true."""
        index, self.index = self.index, None
        self.counts["lost"] += 1
        logger.error("The cache is steered by SGLang until it is flushed: %s", error, exc_info=True)
        if index is not None:
            for node in index.mirror:
                if node.pin is not None:
                    with contextlib.suppress(Exception):
                        self._unpin(node)
            index.mirror.abandon()

    # --- structure

    def reset(self) -> None:
        """Empty the tree; steering begins anew."""
        super().reset()
        if hasattr(self, "_make_index"):
            if self.index is not None:
                self.index.mirror.abandon()
            self._begin_index()

    def begin_insert(self, params: Any) -> Any:
        """Insert, as the core does."""
        self._inserting = params.key
        return self._inserted(super().begin_insert(params))

    def resume_insert(self) -> Any:
        """Go on with an insert."""
        return self._inserted(super().resume_insert())

    def _inserted(self, step: Any) -> Any:
        if self.index is not None and step.result is not None:
            self._try(self._note_insert, step.result.last_device_node, self._inserting)
        return step

    def _note_insert(self, node_id: int, key: RadixKey) -> None:
        index, now = self._steered(), self._clock()
        node, fresh = self._learned(node_id, key, now, touched=True)
        for above in index.mirror.path(node):  # an insert brings what it passes to the device
            if above.device and above not in fresh:
                break
            index.to_device(above, now)
        index.touch(node, self.turn, now)

    def match_prefix(self, params: Any) -> Any:
        """Look a prefix up, as the core does."""
        result = super().match_prefix(params)
        if self.index is not None and result.last_visited_node_id is not None:
            self._try(self._note_match, result.last_visited_node_id, params.key)
        return result

    def _note_match(self, node_id: int, key: RadixKey) -> None:
        node, _ = self._learned(node_id, key, self._clock())
        self._met = self.turn, node

    def insert_host(self, node_id: int, key: RadixKey, host_value: Any, hash_value: Any) -> Any:
        """A prefix has arrived from storage."""
        result = super().insert_host(node_id, key, host_value, hash_value)
        if self.index is not None and result.inserted_host_node is not None:
            self._try(self._note_host_insert, node_id, result.inserted_host_node, key)
        return result

    def _note_host_insert(self, above_id: int, node_id: int, key: RadixKey) -> None:
        index, now = self._steered(), self._clock()
        above = index.get(above_id)
        if above is None:
            raise MirrorError(f"a prefix was read below node {above_id}, which is unknown")
        node = index.get(node_id)
        if node is None:
            node, _ = self._learn(node_id, key, now, above, touched=True)
        self.counts["promoted_storage"] += len(node) if node.use.touch == NEVER else 0
        index.touch(node, self.turn, now)

    def commit_load_back(self, node_id: int, device_indices: Any, kv_xfer: Any, comp: Any) -> Any:
        """A prefix is on its way to the device."""
        actions = super().commit_load_back(node_id, device_indices, kv_xfer, comp)
        if self.index is not None:
            self._try(self._note_load_back, kv_xfer.nodes_to_load or ())
        return actions

    def _note_load_back(self, node_ids: Any) -> None:
        index, now = self._steered(), self._clock()
        for loaded in node_ids:
            node = index.get(loaded)
            if node is None:
                raise MirrorError(f"node {loaded} was loaded and is unknown")
            if not node.device:
                self.counts["promoted_host"] += len(node)
            index.to_device(node, now)

    def _learned(
        self, node_id: int, key: RadixKey, now: float, *, touched: bool = False
    ) -> tuple[Node, list[Node]]:
        node = self._steered().get(node_id)
        if node is not None:
            return node, []
        return self._learn(node_id, key, now, touched=touched)

    def _learn(
        self,
        node_id: int,
        key: RadixKey,
        now: float,
        above: Node | None = None,
        *,
        touched: bool = False,
    ) -> tuple[Node, list[Node]]:
        first = 0 if above is None else above.end
        key_at = self._keys(key, first, above)
        path = self._grown(node_id, key, key_at) if above is None else ()
        path = path or self.path_entries(node_id)
        if not path:
            raise MirrorError(f"the tree has another root, {node_id}")
        node, fresh = self._steered().learn(path, key_at, now, self.tenant, touched=touched)
        if node.tokens is None:
            behind = 1 if self.is_eagle else 0
            node.tokens = key.token_ids[node.begin - first : node.end - first + behind]
        for new in fresh:
            if not new.device:
                self._pin(new)
        return node, fresh

    def _grown(
        self, node_id: int, key: RadixKey, key_at: Callable[[int], Hashable]
    ) -> Sequence[PathEntry]:
        """The end of a path that goes on from where its request was already; else nothing.

        Most new nodes are what a request adds to its own path, whose nodes are known: no need to
        read them. A node is known to hang there where its length leaves no room for another, and is
        not the upper part of one that was there.
        """
        turn, (met_by, met) = self.turn, self._met
        places = () if turn is None else (turn.place, met if met_by is turn else None)
        known = [at for at in places if isinstance(at, Node) and at.parent is not None]
        above = max(known, key=lambda at: at.end, default=None)
        if above is None or not above.tokens:
            return ()
        begin, end = above.end, len(key) // self.page_size * self.page_size
        if end <= begin or None in above.children or key_at(begin) in above.children:
            return ()
        run = key.token_ids[above.begin : above.begin + len(above.tokens)]
        if run != above.tokens or self.run_tokens(node_id) != end - begin:
            return ()
        return (PathEntry(node_id, above.id, begin, end, end - begin, 0),)

    def _keys(self, key: RadixKey, first: int, above: Node | None) -> Callable[[int], Hashable]:
        """Under which keys the nodes of a path hang on their parents.

        Args:
            key: of the path, from offset ``first`` on.
            first: its offset.
            above: where it hangs.
        """
        tokens, page = key.token_ids, self.page_size + (1 if self.is_eagle else 0)
        space = key.extra_key, key.cache_salt

        def key_at(begin: int) -> Hashable:
            begin -= first
            if begin < 0:
                return None
            run = tokens[begin : begin + page].tobytes()
            return (*space, run) if not begin and (above is None or above.parent is None) else run

        return key_at

    def keys_of(self, key: RadixKey) -> Callable[[int], Hashable]:
        """Under which key a prompt goes on at an offset."""
        return self._keys(key, 0, None)

    # --- locks

    def inc_lock_ref(self, node_id: int, skip_lock_components: Any = ()) -> Any:
        """Hold a path."""
        result = super().inc_lock_ref(node_id, skip_lock_components)
        self._try(self._note_lock, node_id)
        return result

    def dec_lock_ref(self, node_id: int, params: Any, skip_swa: bool = False) -> Any:
        """Let go of a path."""
        result = super().dec_lock_ref(node_id, params, skip_swa)
        self._try(self._note_unlock, node_id)
        return result

    def inc_full_pin(self, node_id: int) -> None:
        """Hold a path, with its keys and values alone."""
        super().inc_full_pin(node_id)
        self._try(self._note_lock, node_id)

    def dec_full_pin(self, node_id: int) -> None:
        """Let go of a path that `inc_full_pin` holds."""
        super().dec_full_pin(node_id)
        self._try(self._note_unlock, node_id)

    def _note_lock(self, node_id: int) -> None:
        node = self.index.get(node_id) if self.index is not None else None
        if node is not None and node.parent is not None:
            self._steered().lock(node)

    def _note_unlock(self, node_id: int) -> None:
        node = self.index.get(node_id) if self.index is not None else None
        if node is not None and node.parent is not None:
            self._steered().unlock(node, self._clock())

    def _pin(self, node: Node) -> None:
        node.pin = self.inc_host_lock_ref(node.id).to_dec_params()

    def _unpin(self, node: Node) -> None:
        pin, node.pin = node.pin, None
        self.dec_host_lock_ref(node.id, pin)

    # --- small things

    def run_tokens(self, node_id: int) -> int:
        """Length of a node's own run; 0 where the core does not say.

        Raises:
            KeyError: there is no such node.
        """
        return 0

    def path_entries(self, node_id: int) -> Sequence[PathEntry]:
        """The path to a node.

        Raises:
            KeyError: there is no such node.
        """
        (path,) = super().collect_path_info([node_id])
        return [
            PathEntry(
                entry.node_id,
                entry.parent_id,
                entry.path_start,
                entry.path_end,
                entry.full_value_len,
                entry.num_children,
            )
            for entry in path
        ]

    def _steered(self) -> TreeIndex:
        if self.index is None:
            raise MirrorError("nothing is steered")
        return self.index

    def _try(self, step: Callable[..., Any], *values: Any) -> Any:
        """Whatever goes wrong here must not end the scheduler."""
        try:
            return step(*values)
        except Exception as error:
            self.lose(error)
            return None
