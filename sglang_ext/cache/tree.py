"""SGLang's radix cache with our choice of what to evict, and the eyes of the policy in it.

`create` is what ``--radix-cache-backend sglang_ext`` stands for; ``--ext-cache`` sets it. The cache
is SGLang's own `UnifiedRadixCache`; its tree core is steered (`sglang_ext.cache.steering`), and
what it is asked to do tells the policy when requests arrive and how they end.

Source: ``mem_cache/registry.py`` and ``mem_cache/unified_radix_cache.py``, release 0.5.23.
"""

import logging
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    create_unified_radix_cache,
    default_radix_cache_factory,
)
from sglang.srt.mem_cache.unified_cache.tree_core_registry import resolve_tree_core_backend
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.runtime_context import get_parallel

from sglang_ext.cache.advice import Advised
from sglang_ext.cache.alike import AlikeRanks
from sglang_ext.cache.carrier import carried_by
from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.disk_order import DiskOrder
from sglang_ext.cache.forgetting import Forgetting, TreePaths
from sglang_ext.cache.hooks import disk_tier, set_tree
from sglang_ext.cache.index import TreeIndex
from sglang_ext.cache.install import BACKEND
from sglang_ext.cache.learned_file import LearnedFile
from sglang_ext.cache.marks import Marks
from sglang_ext.cache.mirror import Node
from sglang_ext.cache.policy import Policy, PolicyLimits
from sglang_ext.cache.probes import is_probe
from sglang_ext.cache.quiet import LogGate
from sglang_ext.cache.ranks import Learned, Recency
from sglang_ext.cache.regret import Regret
from sglang_ext.cache.request_log import RequestLog
from sglang_ext.cache.requests import Clock, Known, Requests
from sglang_ext.cache.server import learn_alike, tool_calls, unsupported, writes_log
from sglang_ext.cache.settings import TreeSettings
from sglang_ext.cache.steering import SteeredPythonCore, SteeredRustCore
from sglang_ext.cache.stops import ToolCalls
from sglang_ext.cache.tree_metrics import TreeMetrics

__all__ = ["ExtRadixCache", "create", "create_core"]

logger = logging.getLogger(__name__)

# When what was learned is taken back, in front of it.
_NOW = struct.Struct("<d")
# Requests between two looks at the learned curves, which take a millisecond.
_CURVES_EVERY = 64


def create(settings: TreeSettings, ctx: TreeCacheBuildContext) -> Any:
    """The cache of one scheduler; SGLang's own where it cannot be steered, which the log says."""
    why = unsupported(ctx)
    if why:
        logger.warning("The cache policy is SGLang's own: %s", why)
        return default_radix_cache_factory(ctx)
    ctx.params.tree_core_backend = BACKEND
    settings = replace(settings, writes=writes_log(get_parallel()))
    # What SGLang calls for a class, it calls with the parameters alone.
    make: Any = partial(ExtRadixCache, settings=settings)
    return create_unified_radix_cache(ctx, cache_class=make)


def create_core(params: Any, components: Any) -> Any:
    """SGLang's factory of a tree core; the Rust core wherever SGLang has one."""
    if resolve_tree_core_backend("rust", params) == "rust":
        return SteeredRustCore(params)
    return SteeredPythonCore(params, components)


class ExtRadixCache(UnifiedRadixCache):
    """SGLang's cache, evicting what the policy values least."""

    def __init__(self, params: Any, *, settings: TreeSettings) -> None:
        """Make an empty cache, on all ranks that must evict alike together.

        Args:
            params: SGLang's.
            settings: what was asked for.
        """
        super().__init__(params)
        ranks = AlikeRanks.of(params)
        allocator = params.token_to_kv_pool_allocator
        self.device_tokens = int(getattr(allocator, "size", 0))
        page = params.page_size
        policy = None
        block = -(-settings.block_tokens // page) * page
        if settings.policy == "ext" and learn_alike(ranks):
            limits = PolicyLimits(pin_tokens=int(self.device_tokens * settings.pin_share))
            policy = Policy(limits=limits, block_tokens=block)
        told = settings.clock == "requests"
        clock = Clock("told" if told else "received" if ranks else "")
        marks = Marks(settings.secret, block)
        ended = partial(self._note, "ended", self._ended)
        self.requests = Requests(policy, marks, clock, ended, settings.secret)
        self.policy = policy
        self.block_tokens = block
        self.regret = Regret()
        self.advised = Advised()
        self._parser = settings.tool_call_parser
        self._tool_calls: ToolCalls | None = None
        self.totals: Counter[str] = Counter()
        self._gate = LogGate()
        self._host_tokens = self.device_tokens
        rank = Recency() if policy is None else Learned(policy, policy.guard(self.device_tokens))
        self._host_rank = None if policy is None else Learned(policy)

        def make(root: int) -> TreeIndex:
            tokens = self.device_tokens, self._host_tokens
            return TreeIndex(root, rank, *tokens, self._host_rank)

        self.tree_core.steer(make, clock, self._lost)
        self.tree_core.compares_victims = bool(ranks) and params.pp_size == 1
        self._log = None
        if settings.record_file and params.pp_rank == 0 and settings.writes:
            self._log = RequestLog(Path(settings.record_file), settings.record_bytes, block)
        self._metrics = (
            TreeMetrics(self.metrics_collector.labels) if params.enable_metrics else None
        )
        if self._metrics is not None and policy is not None:
            self._metrics.show_curves(policy.inspect()["curves"])
        self._ended_requests = 0
        self._forgetting: Forgetting | None = None
        self._learned: LearnedFile | None = None
        if policy is not None and settings.state_file:
            file = LearnedFile(Path(settings.state_file), settings.state_bytes)
            learned = self._restored(file, policy, ranks)
            self._learned = None if told else learned  # times that were told are no other's
        set_tree(self)

    @staticmethod
    def _restored(file: LearnedFile, policy: Policy, ranks: AlikeRanks) -> LearnedFile | None:
        """Give the policy what the first rank finds; returns the file where it is this rank's."""
        mine = _NOW.pack(time.time()) + file.read() if ranks.is_first else b""
        told = ranks.from_first(mine)
        file.load(policy, told[_NOW.size :], _NOW.unpack_from(told)[0])
        return file if ranks.is_first else None

    def init_hicache(self, server_args: Any, params: Any) -> None:
        """Attach host memory; what it holds beside L1's tokens is shared among tenants."""
        super().init_hicache(server_args, params)
        tokens = int(self.cache_controller.mem_pool_host.size)
        self._host_tokens = max(0, tokens - self.device_tokens)
        index = self.tree_core.index
        if index is not None:
            index.host_shares.capacity = self._host_tokens
        if self.policy is not None and self._host_rank is not None:
            self._host_rank.guard = self.policy.guard(max(tokens, self.device_tokens))
            self._forgetting = self._order_disk(self.policy, max(tokens, self.device_tokens))

    def _order_disk(self, policy: Policy, tokens: int) -> Forgetting | None:
        """Begin to order the third tier, which also holds what the ``tokens`` above it hold."""
        tier = disk_tier()
        capacity = 0 if tier is None else tier.capacity_tokens(self.page_size)
        if tier is None or not capacity:
            return None
        order = DiskOrder(policy, policy.guard(max(tokens, capacity)))
        return Forgetting(order, tier.advice, TreePaths(self.get_last_hash_value))

    def match_prefix(self, params: Any) -> Any:
        """Look a prefix up; the first look-up of a request is its arrival."""
        if params.req is None or self.disable:
            return super().match_prefix(params)
        known = self._note("seen", self._arrive, params.req)
        result = self._for(known, super().match_prefix, params)
        if known is not None:
            self._note("looked up", self._matched, known, result, params.key)
        return result

    def checkpoint_into_tree(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        """Insert what a request has computed."""
        known = self.requests.get(req.rid)
        self._for(known, super().checkpoint_into_tree, req, up_to=up_to, **kwargs)

    def on_release(self, req: Any, *, checkpointed: bool) -> None:
        """A request gives its memory back: its answer is complete, or it was retracted."""
        super().on_release(req, checkpointed=checkpointed)
        if req.finished():
            self._note("finished", self._finish, req)

    def claim_kv_row(self, req: Any) -> bool:
        """A streaming session keeps what a request has; then nothing is released."""
        claimed: bool = super().claim_kv_row(req)
        if claimed and req.finished():
            self._note("finished", self._finish, req)
        return claimed

    def release_aborted_request(self, request: Any) -> None:
        """A request will not be answered."""
        super().release_aborted_request(request)
        self._note("aborted", self._aborted, request.rid)

    def _handle_prefetch_result(self, operation: Any) -> None:
        known = self.requests.get(operation.handle.rid)
        self._for(known, super()._handle_prefetch_result, operation)

    def _evict(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        self.tree_core.need_tokens = params.num_tokens
        return super()._evict(params, *args, **kwargs)

    def reset(self) -> None:
        """Empty the tree."""
        super().reset()
        policy = getattr(self, "policy", None)  # None while this is made
        if policy is not None:
            self._note("unpinned", policy.unpin, self.requests.clock())

    def shutdown(self) -> None:
        """The process ends."""
        super().shutdown()
        if self._learned and self.policy:
            self._note("saved", self._learned.close, self.policy, self.requests.clock())
        if self._log is not None:
            self._log.close()

    def advise(self, action: str, session: str, seconds: float) -> int:
        """Advice of a client; returns how many conversations it is about."""
        changed = self.requests.advise(action, session, seconds)
        self._reconsider(changed)
        return len(changed)

    def _for(self, known: Known | None, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Call on behalf of a request: what it makes in the tree is its own."""
        core = self.tree_core
        core.turn, core.tenant = (known.turn, known.place) if known else (None, "")
        try:
            return call(*args, **kwargs)
        finally:
            core.turn, core.tenant = None, ""

    def _note(self, what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Keep the books; None where that fails. The scheduler would end on the exception."""
        try:
            return call(*args, **kwargs)
        except Exception:
            self.totals["faults"] += 1
            others = self._gate.admits(what)
            if others is not None:
                logger.exception(
                    "Requests are served, but one that was %s is not in the books of the cache "
                    "policy; %d more since the last line",
                    *(what, others),
                )
            return None

    def _arrive(self, req: Any) -> Known | None:
        known = self.requests.get(req.rid)
        if known is not None:
            return known
        carried = carried_by(req.kv_hints)
        if req.finished() or (is_probe(req.rid) and not carried):
            return None
        known, changed = self.requests.arrive(
            req.rid,
            req.origin_input_ids,
            (req.extra_key, req.cache_salt),
            carried,
            session=req.session_id,
            model=req.lora_id or "",
        )
        for advice in self.advised.fresh(carried.get("advice")):
            self.totals[f"advice_{advice[0]}"] += self._note("advised", self.advise, *advice) or 0
        index = self.tree_core.index
        if index is not None:
            known.place = index.tenants.seen(known.tenant, known.arrived_s)
        self._reconsider(changed)
        return known

    def _matched(self, known: Known, result: Any, key: Any) -> None:
        """The path that was found belongs to the request from now on."""
        index = self.tree_core.index
        if index is None or known.matched:
            return
        known.matched = True
        node = index.get(result.last_visited_node_id)
        if node is None:
            node = index.mirror.root
        else:
            index.touch(node, known.turn, known.arrived_s)
        self.regret.asked(node.id, node.end, self.tree_core.keys_of(key), len(key), known.arrived_s)

    def _finish(self, req: Any) -> None:
        known = self.requests.get(req.rid)
        if known is None:
            return
        stop, tokens = Stop.OTHER, -1
        try:
            self._count_hits(req, known.tokens)
            stop, tokens = self._stop(req, known), len(req.output_ids)
        finally:  # or it ran for ever
            self._reconsider(self.requests.end(req.rid, stop, tokens))
        if self._forgetting is not None and known.turn is not None:
            self._try_disk(self._forgetting.finished, known.turn)

    def _count_hits(self, req: Any, asked: int) -> None:
        for tier in ("device", "host", "storage"):
            tokens = int(getattr(req, f"cached_tokens_{tier}", 0))
            self.totals[f"hit_{tier}"] += tokens
            self.totals["hit"] += tokens
        self.totals["asked"] += asked

    def _stop(self, req: Any, known: Known) -> Stop:
        """How the answer ended."""
        reason = str(req.finished_reason.to_json().get("type", ""))
        if self._tool_calls is None:
            self._tool_calls = tool_calls(self._parser, req.tokenizer)
        return self._tool_calls.stop(reason, req.output_ids, known.tools)

    def _aborted(self, rid: str) -> None:
        self._reconsider(self.requests.end(rid, Stop.OTHER, -1))

    def _reconsider(self, turns: Any) -> None:
        index = self.tree_core.index
        if index is not None and turns:
            index.reconsider(turns, self.requests.clock())
        if self._forgetting is not None and turns:
            self._try_disk(self._forgetting.changed, turns)

    def _try_disk(self, tell: Callable[[Any, float], None], about: Any) -> None:
        """Advice to the third tier; whatever goes wrong, it goes on by use."""
        try:
            tell(about, self.requests.clock())
        except Exception:
            logger.exception("The third tier is ordered by use from now on")
            self._forgetting, tier = None, disk_tier()
            if tier is not None:
                tier.advice.name([], trusted=False)

    def _lost(self, node: Node, now: float) -> None:
        self._note("evicted", self.regret.lost, node, now)

    def describe(self) -> dict[str, Any]:
        """State and counters as plain values, for ``/server_info``."""
        index = self.tree_core.index
        shown: dict[str, Any] = {
            "policy": "lru" if self.policy is None else "ext",
            "steered": index is not None,
            "nodes": 0 if index is None else len(index.mirror),
            "device_leaves": 0 if index is None else len(index.device),
            "host_leaves": 0 if index is None else len(index.host),
            "requests": len(self.requests),
            "regretted_tokens": self.regret.tokens,
            "tokens": self._totals(),
            "moves": {**self.tree_core.counts, **self._disk_moves()},
        }
        if self._forgetting is not None:
            order = self._forgetting.order
            shown["disk"] = {"conversations": len(order), "trusted": order.trusted}
        if self.policy is not None:
            shown["learned"] = self.policy.inspect()
        if self._log is not None:
            shown["record"] = self._log.describe()
        return shown

    def _totals(self) -> dict[str, int]:
        refused = 0 if self.policy is None else self.policy.pins.refused
        return {**self.totals, **({"advice_pin_refused": refused} if refused else {})}

    def _disk_moves(self) -> dict[str, int]:
        """Tokens that were written to the third tier, and evicted from it."""
        tier = disk_tier()
        moved = {} if tier is None else tier.moved
        return {f"{name}_storage": pages * self.page_size for name, pages in moved.items()}

    def _ended(self, known: Known, stop: Stop, output_tokens: int) -> None:
        """A request has ended: its line in the log, and counts in the metrics."""
        if self._log is not None:
            self._log.put(known, stop, output_tokens, self.requests.clock())
        if self._learned and self.policy:
            now, busy = self.requests.clock(), bool(len(self.requests))
            self._learned.save(self.policy, now, busy=busy)
        if self._metrics is None:
            return
        counts = {**self._totals(), **self.tree_core.counts, **self._disk_moves()}
        counts["missed"] = counts.get("asked", 0) - counts.get("hit", 0)
        counts["regretted"] = self.regret.tokens
        self._metrics.show(counts)
        if self.policy is not None and self._ended_requests % _CURVES_EVERY == 0:
            self._metrics.show_curves(self.policy.inspect()["curves"])
        self._ended_requests += 1
