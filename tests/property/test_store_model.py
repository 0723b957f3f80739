"""The store against a dictionary: whatever is done, in whatever order, and across crashes."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.store_crash import crash
from support.store_pages import NAMESPACE, options, pages_of, payload

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.options import MIB

SIZES = (3072, 9216)
CHAINS = st.integers(0, 9)
DEPTH = 12


def keys_of(chain):
    """Chains 0 to 4 branch off each other: chain n shares its first n pages with chain 0."""
    size = SIZES[chain % 2]
    shared = chain // 2 if chain % 2 == 0 else 0
    owner = [0 if number < shared else chain for number in range(DEPTH)]
    return [f"{o}/{n}/{size}".encode().ljust(32, b".") for n, o in enumerate(owner)], size


class Model(RuleBasedStateMachine):
    """``known``: what was written and not dropped by us; the store may have evicted of it."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "store"
        self.known = {}
        self.parents = {}
        self.roots = 0

    @initialize(capacity=st.sampled_from([MIB, 2 * MIB]))
    def begin(self, capacity):
        self.options = options(capacity, io_threads=2, read_ahead_bytes=MIB // 2)
        self.open()

    def open(self):
        self.store = PageStore(self.folder, self.options)
        # The store's own thread does this whenever it wakes up; here it is a step like others.
        catalog = self.store._catalog
        self.idle_segment, catalog.idle_segment = catalog.idle_segment, lambda: None

    @rule(chain=CHAINS, start=st.integers(0, DEPTH - 1), count=st.integers(1, DEPTH))
    def write(self, chain, start, count):
        keys, size = keys_of(chain)
        before = {key for key in keys if self.store.prefix([key])}
        parent = keys[start - 1] if start else None
        part = keys[start : start + count]
        results = self.store.write(NAMESPACE, pages_of(part, size, parent))
        for number, (key, done) in enumerate(zip(part, results, strict=True)):
            if number == 0 and parent is not None:
                assert done == (key in before or parent in before) or not done
        self.note(part, parent, results, size)

    def note(self, keys, parent, results, size):
        for key, above, done in zip(keys, [parent, *keys], results, strict=False):
            if done:
                self.known[key] = size
                self.parents[key] = above
                assert self.store.prefix([key]) == 1

    @rule(size=st.sampled_from(SIZES), chains=st.integers(1, 40))
    def write_roots(self, size, chains):
        """Chains of one size after another: once others are in the way, they have to go."""
        for _ in range(chains):
            self.roots += 1
            keys = [f"root {self.roots}/{n}/{size}".encode().ljust(32, b".") for n in range(4)]
            pinned = bool(self.store._catalog.index.pins)
            results = self.store.write(NAMESPACE, pages_of(keys, size))
            assert results[0] or pinned, f"the store takes no page: {self.store.stats().refused}"
            self.note(keys, None, results, size)

    @rule(chain=CHAINS, ahead=st.booleans())
    def read(self, chain, ahead):
        keys, size = keys_of(chain)
        count = self.store.prefix(keys, read_ahead=ahead)
        targets = [[bytearray(size)] for _ in keys]
        hits = self.store.read(NAMESPACE, keys, targets)
        assert hits[:count] == [True] * count, "nothing is damaged, so what is resident is read"
        for key, target, hit in zip(keys, targets, hits, strict=True):
            assert hit == bool(self.store.prefix([key]))
            if hit:
                assert self.known[key] == size
                assert bytes(target[0]) == payload(key, size)
            else:
                assert not any(target[0])

    @rule(chain=CHAINS, number=st.integers(0, DEPTH - 1))
    def touch(self, chain, number):
        self.store.touch(keys_of(chain)[0][number])

    @rule()
    def flush(self):
        self.store.flush()

    @rule()
    def recycle(self):
        segment = self.idle_segment()
        if segment is not None:
            self.store._keeper._room._forget(segment)
            self.store._keeper._room._let_go()

    @rule()
    def clear(self):
        self.store.clear()
        self.known.clear()
        assert self.store.stats().pages == 0

    @rule(killed=st.booleans())
    def reopen(self, killed):
        resident = {key for key in self.known if self.store.prefix([key])}
        if killed:
            crash(self.store)
        else:
            self.store.close()
        self.open()
        assert {key for key in self.known if self.store.prefix([key])} == resident
        assert self.store.stats().pages == len(resident)

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def sound(self):
        self.store.check_integrity()
        resident = {key for key in self.known if self.store.prefix([key])}
        assert self.store.stats().pages == len(resident), "a page that nobody wrote"
        for key in resident:
            parent = self.parents[key]
            assert parent is None or parent in resident, "a child outlived its parent"

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.folder.parent)


Model.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_the_store_is_a_bounded_dictionary = Model.TestCase
