"""SGLang's real tree cores, steered, against dictionaries that know nothing of nodes."""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sglang.srt.mem_cache.unified_cache.components.full import FullComponent
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from support.tree_driver import FULL, Driver, init_params

from sglang_ext.cache import install
from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.following import FollowingMixin
from sglang_ext.cache.index import TreeIndex
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.ranks import Learned, Recency
from sglang_ext.cache.sessions import Arrival
from sglang_ext.cache.steering import SteeredPythonCore, SteeredRustCore

SEEDS, STEPS = 25, 100
# Up to here any victim is cut to what is needed, so eviction is exact to a page.
LONGEST = 60


def make_core(kind, page, rank, clock=lambda: 0.0, *, eagle=False):
    params = init_params(page)
    params.is_eagle = eagle
    core = SteeredRustCore(params) if kind == "rust" else python_core(params)
    core.steer(lambda root: TreeIndex(root, rank, 10**6, 10**6), clock)
    return core


def python_core(params):
    """The core that SGLang falls back to; a component of its own is one of the reasons."""
    override = {FULL: FullComponent}
    params = replace(params, component_registry_override=override, tree_core_backend="sglang_ext")
    install.register()
    core = UnifiedRadixCache(params).tree_core
    assert isinstance(core, SteeredPythonCore)
    return core


def next_tokens(rng, earlier, page, more=0):
    """Whole pages, and ``more`` tokens, that share a prefix with an earlier prompt mostly."""
    base = list(rng.choice(earlier)) if earlier and rng.random() < 0.8 else []
    tokens = base[: rng.randrange(len(base) + 1)] + rng.choices(range(3), k=rng.randrange(1, 14))
    units = max(0, min(len(tokens), LONGEST) - more) // page * page
    tokens = tokens[: units + more] if units else []
    if tokens:
        earlier.append(tokens)
    return tokens


class Oracle:
    """Two tiers of pages under LRU, leaf first; a page is the tuple of all tokens up to its end.

    ``more`` is 1 where what is cached of a token also depends on the next one (EAGLE).
    """

    def __init__(self, page, more=0):
        self.page = page
        self.more = more
        self.touch = {}
        self.device, self.host = set(), set()
        self.locked = Counter()
        self.now = 0

    def pages(self, tokens):
        more = self.more
        return [
            tuple(tokens[: end + more])
            for end in range(self.page, len(tokens) - more + 1, self.page)
        ]

    def insert(self, tokens):
        self.now += 1
        for page in self.pages(tokens):
            self.device.add(page)
            self.host.discard(page)
            self.touch[page] = self.now

    def read_from_storage(self, tokens):
        self.now += 1
        for page in self.pages(tokens):
            if page not in self.device:
                self.host.add(page)
            self.touch[page] = max(self.now, self.touch.get(page, 0))

    def load(self, tokens):
        for page in self.pages(tokens):
            if page in self.host:
                self.host.discard(page)
                self.device.add(page)

    def matched(self, tokens):
        """Tokens on the device, and on the device or in host memory."""
        pages = self.pages(tokens)
        device = next((n for n, p in enumerate(pages) if p not in self.device), len(pages))
        held = self.device | self.host
        return device * self.page, next(
            (n for n, p in enumerate(pages) if p not in held), len(pages)
        ) * self.page

    def lock(self, tokens, by):
        for page in self.pages(tokens):
            self.locked[page] += by

    def evict(self, tokens, *, backed):
        for _ in range(-(-tokens // self.page)):
            page = self._least(self.device, self.device, self.locked)
            if page is None:
                return
            self.device.discard(page)
            if backed:
                self.host.add(page)

    def evict_host(self, tokens):
        for _ in range(-(-tokens // self.page)):
            held = self.host | self.device
            page = self._least(self.host, held, {})
            if page is None:
                return
            lesser = self._least(self.device, self.device, self.locked)
            alone = lesser and all(other[: -self.page] != lesser for other in self.host)
            if alone and self.touch[lesser] < self.touch[page]:
                self.device.discard(lesser)
            else:
                self.host.discard(page)

    def _least(self, tier, held, locked):
        parents = {page[: -self.page] for page in held if page in tier or tier is not self.device}
        leaves = [p for p in tier if p not in parents and not locked.get(p)]
        return min(leaves, key=lambda page: self.touch[page], default=None)


def resident(core, page):
    """Page prefixes of each tier, read from the core itself."""
    device, host = set(), set()
    for node in core.index.mirror:
        entry = core.path_entries(node.id)[-1]
        tokens = list(core.index.mirror.text(node))
        for end in range(entry.start + page, entry.end + 1, page):
            held = tuple(tokens[: end + bool(core.is_eagle)])
            (host if entry.device_tokens is None else device).add(held)
    return device, host


@pytest.mark.parametrize("kind", ["rust", "python"])
@pytest.mark.parametrize("write_through", [True, False])
@pytest.mark.parametrize("eagle", [False, True], ids=["plain", "eagle"])
def test_both_tiers_hold_what_the_oracle_holds(kind, write_through, eagle):
    for seed in range(SEEDS):
        rng = random.Random(seed)
        page = rng.choice([1, 4])
        core = make_core(kind, page, Recency(), eagle=eagle)
        driver, oracle = Driver(core, write_through=write_through), Oracle(page, int(eagle))
        earlier, locks = [], []
        for step in range(STEPS):
            act(rng, driver, oracle, next_tokens(rng, earlier, page, oracle.more), locks)
            assert core.index is not None
            core.index.check_integrity()
            core.sanity_check([], [])
            assert resident(core, page) == (oracle.device, oracle.host), (seed, step)
            leaves = {node.id for node in core.index.mirror if node in core.index.device}
            assert driver.device_leaves() == leaves, (seed, step)
        assert core.counts["refused"] == core.counts["own_walks"] == core.counts["lost"] == 0


def act(rng, driver, oracle, tokens, locks):
    """One random step, on both."""
    core, kind = driver.core, rng.random()
    if kind < 0.4 and tokens:
        driver.insert(tokens)
        oracle.insert(tokens)
    elif kind < 0.55:
        result = driver.match(tokens)
        found = oracle.matched(tokens)
        assert (result.device_prefix_len, result.device_prefix_len + result.host_hit_length) == (
            found
        )
        if rng.random() < 0.5:
            path = tokens[: found[0] + oracle.more]
            locks.append(
                (result.last_device_node, core.inc_lock_ref(result.last_device_node), path)
            )
            oracle.lock(path, 1)
        elif result.host_hit_length:
            driver.load_back(result.best_match_node)
            oracle.load(tokens[: found[1] + oracle.more])
    elif kind < 0.65 and locks:
        node, lock, path = locks.pop(rng.randrange(len(locks)))
        core.dec_lock_ref(node, lock.to_dec_params())
        oracle.lock(path, -1)
    elif kind < 0.8:
        count = rng.randrange(1, 30)
        driver.evict(count)
        oracle.evict(count, backed=driver.write_through)
    elif kind < 0.9 and driver.write_through:
        count = rng.randrange(1, 20)
        driver.evict_host(count)
        oracle.evict_host(count)
    elif driver.write_through:
        result = driver.match(tokens)
        rest = tokens[result.device_prefix_len + result.host_hit_length :]
        if len(rest) > oracle.more:
            driver.read_from_storage(result.last_host_node, rest)
            oracle.read_from_storage(tokens)


def test_policy_keeps_all_tiers_closed_and_is_never_overruled():
    for seed in range(SEEDS):
        rng = random.Random(seed)
        clock = SimpleNamespace(now=0.0)
        policy = Policy(seed=seed)
        core = make_core("rust", 1, Learned(policy), lambda clock=clock: clock.now)
        driver, earlier, running = Driver(core), [], []
        for step in range(STEPS * 2):
            clock.now += rng.expovariate(0.1)
            tokens = next_tokens(rng, earlier, 1)
            if rng.random() < 0.6:
                session = str(rng.randrange(5)) if rng.random() < 0.7 else None
                arrival = Arrival(
                    len(tokens), [hash(tuple(tokens[:n])) for n in range(len(tokens))], session
                )
                turn, changed = policy.arrive(clock.now, arrival)
                core.turn = turn
                core.index.reconsider(changed, clock.now)
                driver.match(tokens)
                driver.insert(tokens)
                core.turn = None
                running.append(turn)
            elif running and rng.random() < 0.7:
                turn = running.pop(rng.randrange(len(running)))
                policy.finish(turn, clock.now, rng.choice(list(Stop)[:3]), rng.randrange(300))
                core.index.reconsider([turn], clock.now)
            if rng.random() < 0.5:
                driver.evict(rng.randrange(1, 20))
            if rng.random() < 0.4:
                driver.evict_host(rng.randrange(1, 20))
            core.index.check_integrity()
            core.sanity_check([], [])
            device, host = resident(core, 1)
            assert all(p[:-1] in device for p in device if len(p) > 1), (seed, step)
            assert all(p[:-1] in device | host for p in host if len(p) > 1), (seed, step)
        assert policy.model.steps or policy.model.closed < 32
        assert core.counts["refused"] == core.counts["own_walks"] == core.counts["lost"] == 0


def test_ids_of_a_shared_prefix_are_kept_once():
    core = make_core("rust", 16, Recency())
    driver = Driver(core)
    prefix = list(range(3200))
    for number in range(20):
        driver.insert([*prefix, *[10**6 + number] * 32])
    mirror = core.index.mirror
    kept = {id(node.tokens): len(node.tokens) for node in mirror if node.tokens is not None}
    assert sum(kept.values()) == sum(len(node) for node in mirror) == 3200 + 20 * 32


def test_core_chooses_itself_once_the_index_is_lost():
    core = make_core("rust", 1, Recency())
    driver = Driver(core)
    for start in (0, 100, 200):
        driver.insert(list(range(start, start + 20)))
    driver.evict(20)
    core.lose(ValueError("made up"))
    assert driver.evict(40)[1] == 40
    assert driver.evict_host(60) == 60
    core.reset()
    assert core.index is not None
    driver.insert(list(range(20)))
    core.index.check_integrity()
    assert driver.evict(5)[1] == 5
    core.index.check_integrity()


def test_a_victim_that_is_cut_is_not_taken_for_the_path_of_the_request():
    policy, same = Policy(), list(range(100, 120))
    core = make_core("rust", 1, Learned(policy))
    driver = Driver(core, write_through=False)
    for first in (2, 1):
        driver.insert([first])
        driver.insert([first, *same])
    core.turn, _ = policy.arrive(0.0, Arrival(21, [1, 2], "s"))
    driver.match([1, *same])
    core.inc_lock_ref(driver.match([1, *same]).last_device_node)
    assert driver.evict(5)[1] == 5
    assert core.counts["cuts"] == 1
    # Alike from the second token to where the other one was cut, and then not.
    driver.insert([1, *same[:15], 7, 7, 7])
    core.index.check_integrity()
    node = core.index.get(driver.insert([1, *same[:15], 7, 7, 7]).last_device_node)
    assert list(core.index.mirror.text(node)) == [1, *same[:15], 7, 7, 7]


def test_what_was_known_before_a_flush_is_forgotten():
    policy = Policy()
    core = make_core("rust", 1, Learned(policy))
    driver = Driver(core)
    core.turn, _ = policy.arrive(0.0, Arrival(4, [1, 2], "s"))
    driver.insert([1, 2, 3, 4])
    turn, core.turn = core.turn, None
    core.reset()
    core.index.reconsider([turn], 1.0)
    assert core.index.device.lowest(1.0) is None
    driver.insert([1, 2, 3, 4])
    core.index.check_integrity()


@pytest.mark.parametrize("wrong", ["unknown", "inner", "locked"])
def test_wrong_leaf_is_not_named(wrong):
    core = make_core("rust", 1, Recency())
    driver = Driver(core, write_through=False)
    first = driver.insert([1, 2, 3, 4]).last_device_node
    inner = core.index.get(first)
    leaf = core.index.get(driver.insert([1, 2, 3, 4, 5, 6]).last_device_node)
    if wrong == "unknown":
        leaf.id += 1000
    elif wrong == "inner":
        core.index.device.discard(leaf)
        core.index.device.add(inner, 0, 0.0)
    else:
        super(FollowingMixin, core).inc_lock_ref(leaf.id)
    victims, freed = driver.evict(2)
    assert core.counts["refused"] == 1
    assert (freed == 0 and not victims) if wrong == "locked" else freed == 2
