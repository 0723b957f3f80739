"""The server's tree and the cache of ``replay`` drop the same blocks, request by request."""

import random

import pytest
from support.traces import made
from support.tree_driver import Driver, init_params

from sglang_ext.cache import policy as policy_room
from sglang_ext.cache.conversation import STOP_NAMES, Stop
from sglang_ext.cache.curves import place_of
from sglang_ext.cache.index import TreeIndex
from sglang_ext.cache.order import EvictionOrder
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.ranks import Learned as LearnedLive
from sglang_ext.cache.sessions import Arrival
from sglang_ext.cache.steering import SteeredRustCore
from sglang_ext.replay.cache import PrefixCache
from sglang_ext.replay.rankings import Learned, block_paths
from sglang_ext.replay.tree import PromptTree

STOPS = {name: stop for stop, name in STOP_NAMES.items()}
# Up to here a victim is cut to what is needed, so eviction is exact to a block.
LONGEST = 60


def trace_of(seed, requests=260):
    """Sessions that share openings, grow, and now and then rewrite what they had."""
    rng = random.Random(seed)
    parent, shared, blocks, session, stop, times, agent = [], [], [], [], [], [], []
    last, now = {}, 0.0
    for request in range(requests):
        now += rng.expovariate(0.2)
        who = rng.randrange(14)
        before = last.get(who)
        if before is None or rng.random() < 0.1:  # new, after what somebody else began with
            above = rng.randrange(request) if request and rng.random() < 0.8 else -1
            common = rng.randrange(blocks[above] // 2 + 1) if above >= 0 else 0
        else:
            above = before
            common = blocks[above] if rng.random() < 0.85 else rng.randrange(blocks[above] + 1)
        total = min(LONGEST, common + rng.randrange(1, 7))
        parent.append(above)
        shared.append(min(common, total))
        blocks.append(total)
        session.append(who if who % 3 else -1)
        stop.append(rng.choice(["tool_use", "tool_use", "end_turn"]))
        agent.append(False)
        times.append(now)
        last[who] = request
    return made(parent, shared, blocks, time_s=times, session=session, stop=stop)


def blocks_of(tree, paths):
    """Block numbers of each node, shallow first."""
    held = {}
    for leaf, path in zip(tree.leaf, paths, strict=True):
        for node in tree.path(leaf):
            held[node] = path[tree.begin[node] : tree.end[node]].tolist()
    return held


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    """Worths in steps, looked at anew each time: else they depend on when that was last."""

    def worth_in_steps(curve, begin, now):
        place, until = place_of(begin, now)
        return curve[place], until

    monkeypatch.setattr(policy_room, "worth_at", worth_in_steps)
    peek = EvictionOrder.peek

    def peek_anew(self, now):
        for leaf, (_, _, touch, *_) in list(self._held.items()):
            self.add(leaf, touch, now)
        return peek(self, now)

    monkeypatch.setattr(EvictionOrder, "peek", peek_anew)


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_tree_and_replay_hold_the_same_blocks(seed, guarded):
    trace = trace_of(seed)
    capacity = 60 + 25 * seed
    tree, paths = PromptTree.of(trace), block_paths(trace)
    replayed = Learned(tree, trace, range(len(trace)), Policy(seed=seed))
    rank = replayed.tier(capacity) if guarded else (replayed.rank, lambda: replayed.policy.is_cold)
    cache = PrefixCache(tree, capacity, *rank, replayed.turn)
    policy = Policy(seed=seed)
    guard = policy.guard(capacity) if guarded else None
    clock = [0.0]
    core = SteeredRustCore(init_params(1))
    core.steer(
        lambda root: TreeIndex(root, LearnedLive(policy, guard), 10**6, 10**6), lambda: clock[0]
    )
    driver = Driver(core, write_through=False)
    blocks, shared = blocks_of(tree, paths), 0
    for step, now in enumerate(trace.time_s.tolist()):
        for leaf in (*replayed.arrive(step, step, now), *replayed.finish(step, now)):
            cache.reconsider(leaf, now)
        cache.access(tree.leaf[step], step, now)
        cache.check_integrity()
        clock[0] = now
        serve(driver, policy, trace, step, paths[step].tolist(), now)
        held = sum(len(node) for node in core.index.mirror)
        if held > capacity:
            driver.evict(held - capacity)
        core.index.check_integrity()
        live = {
            core.index.mirror.text(node)[place]
            for node in core.index.mirror
            for place in range(node.begin, node.end)
        }
        expected = {b for node, count in enumerate(cache.resident) for b in blocks[node][:count]}
        assert live == expected, (seed, step)
        shared += any(
            len(policy._shadow.turns(node.use.turn, node.end - 1)) > 1
            for node in core.index.mirror
            if node in core.index.device
        )
    assert policy.model.steps > 10
    assert shared or not guarded, "no leaf was ever shared: the trace shows nothing of that"
    assert core.counts["refused"] == core.counts["own_walks"] == core.counts["lost"] == 0


def serve(driver, policy, trace, step, tokens, now):
    """One request and its answer, at one instant."""
    core, session = driver.core, int(trace.session[step])
    arrival = Arrival(len(tokens), tokens, str(session) if session >= 0 else None, False, "m")
    turn, changed = policy.arrive(now, arrival)
    core.index.reconsider(changed, now)
    core.turn = turn
    driver.match(tokens)
    driver.insert(tokens)
    core.turn = None
    stop = STOPS.get(trace.stop[step], Stop.OTHER)
    policy.finish(turn, now, stop, int(trace.output_tokens[step]))
    core.index.reconsider([turn], now)
