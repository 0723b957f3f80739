"""SIGKILL and power loss at any instant: no wrong byte, no leaked space, what was durable is hit.

``SGLANG_EXT_CHAOS_ROUNDS``: how many rounds, 25 by default. ``CHAOS_SEED``: the seed, printed.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.store_child import LENGTH, NAMES, size_of
from support.store_crash import crash
from support.store_disks import PowerLossDisk
from support.store_pages import NAMESPACE, chain, options, pages_of, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.format import RecordKind
from sglang_ext.cache.store.options import MIB

ROUNDS = int(os.environ.get("SGLANG_EXT_CHAOS_ROUNDS", "25"))
TESTS = Path(__file__).parents[1]


@pytest.fixture
def chance(record_property):
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    sys.stderr.write(f"CHAOS_SEED={seed} SGLANG_EXT_CHAOS_ROUNDS={ROUNDS}\n")
    record_property("seed", seed)
    return random.Random(seed)


def read_all(store, mixed):
    """Every page that can be read; the first wrong byte fails the test."""
    hits = set()
    for name in range(NAMES):
        keys = chain(name, LENGTH)
        got = read(store, keys, size_of(name, mixed))
        hits.update(key for key, hit in zip(keys, got, strict=True) if hit)
    return hits


def checked(folder, capacity, mixed):
    """Open, check, and give the store and the pages that are hit."""
    store = PageStore(folder, options(capacity))
    read_all(store, mixed)  # drops what does not match, with its descendants
    hits = read_all(store, mixed)
    store.check_integrity()
    assert hits == set(store._catalog.index.rows), "a page is resident that cannot be read"
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    segments = {f"{number:06d}.seg" for number in store._catalog.segments.by_number}
    rest = files - segments - {"STORE", "lock"}
    assert sorted(name.split("-")[0] for name in rest) in (["journal"], ["index", "journal"]), (
        f"space is leaked: {rest}"
    )
    return store, hits


def expected_state(notes):
    """What is resident for certain."""
    state = None
    # The kernel stops a long write for SIGKILL, too: a line without its end says nothing.
    for line in notes.read_text().split("\n")[:-1]:
        word, *rest = line.split()
        if word == "state":
            state = {bytes.fromhex(key) for key in rest}
        elif word == "gone" and state is not None:
            state -= {bytes.fromhex(key) for key in rest}
    return state


def wait_for(notes, text, child):
    end = time.monotonic() + 60
    while time.monotonic() < end and child.poll() is None:
        if notes.exists() and text in notes.read_text():
            return
        time.sleep(0.002)


def killed(folder, notes, chance, capacity, mixed):
    """Start a child and kill it: during recovery, or while it works, or as it ends."""
    command = [sys.executable, "-m", "support.store_child", str(folder), str(notes)]
    command += [str(chance.randrange(2**32)), str(capacity), "mixed" if mixed else "equal"]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        if chance.random() < 0.3:
            wait_for(notes, "opening", child)
            time.sleep(chance.random() * 0.02)
        else:
            wait_for(notes, "state", child)
            time.sleep(chance.random() ** 2 / 2)
    finally:
        child.kill()
        child.wait()


def test_killed_at_any_instant(tmp_path, chance):
    recoveries = Counter()
    folder = tmp_path / "store"
    known, capacity, mixed = set(), MIB, False
    for number in range(ROUNDS):
        if number % 8 == 0:
            shutil.rmtree(folder, ignore_errors=True)
            known, mixed = set(), chance.random() < 0.3
            capacity = chance.choice((MIB, 2 * MIB, 8 * MIB))
        notes = tmp_path / f"notes-{number}"
        killed(folder, notes, chance, capacity, mixed)
        state = expected_state(notes) if notes.exists() else None
        expected = known if state is None else state
        store, hits = checked(folder, capacity, mixed)
        recoveries[store.stats().recovery] += 1
        lost = expected - hits
        assert not lost, f"round {number}: {len(lost)} pages are lost"
        known = set(store._catalog.index.rows)
        store.flush()  # what was dropped just now is not to come back as expected
        # The next child recovers from a journal or from a checkpoint.
        crash(store) if chance.random() < 0.7 else store.close()
    sys.stderr.write(f"recoveries: {dict(recoveries)}\n")
    assert recoveries["journal"] > ROUNDS // 4


class Watch:
    """Takes images of a store at random operations, with what must be hit in each."""

    def __init__(self, disk, folder, chance, most):
        self.disk = disk
        self.folder = folder
        self.chance = chance
        self.most = most
        self.images = []
        self.store = None
        self.puts = Counter()
        self.durable = {}
        disk.on_operation = self.on_operation

    def watch(self, store):
        """Count how often each page was put: a page that came back is another one."""
        record = store._catalog._record

        def counted(entry):
            if entry.kind == RecordKind.PUT:
                self.puts[entry.key] += 1
            record(entry)

        store._catalog._record = counted
        self.store = store

    def resident(self):
        if self.store is None:
            return {}
        return {key: self.puts[key] for key in list(self.store._catalog.index.rows)}

    def flush(self):
        resident = self.resident()
        self.store.flush()
        self.durable = resident

    def on_operation(self, operation):
        # Metadata operations are rare and the interesting ones.
        rate = 0.01 if operation == "write" else 0.03
        if len(self.images) < self.most and self.chance.random() < rate:
            resident = self.resident()
            must = {key for key, puts in self.durable.items() if resident.get(key) == puts}
            image = self.folder / f"image-{len(self.images)}"
            image.mkdir(mode=0o700)
            self.disk.image(image, self.chance)
            self.images.append((image, must))


def used(store, watch, chance, mixed):
    """Some work."""
    for _ in range(chance.randrange(20, 80)):
        name, count = chance.randrange(NAMES), chance.randrange(1, LENGTH + 1)
        what = chance.random()
        if what < 0.65:
            store.write(NAMESPACE, pages_of(chain(name, count), size_of(name, mixed)))
        elif what < 0.7:
            store.touch(chain(name, count)[-1])
        elif what < 0.98:
            watch.flush()
        else:
            store.clear()


def is_complete(image):
    """Whether the image has a superblock: before that is durable there is no store to lose."""
    return (image / "STORE").exists()


def test_power_loss_at_any_instant(tmp_path, chance):
    checks = Counter()
    for number in range(ROUNDS):
        folder = tmp_path / f"round-{number}"
        folder.mkdir()
        mixed = chance.random() < 0.3
        capacity = chance.choice((MIB, 2 * MIB))
        disk = PowerLossDisk(folder / "store")
        watch = Watch(disk, folder, chance, most=2)
        interval = chance.choice((0.005, 3600.0))
        store = PageStore(folder / "store", options(capacity, sync_interval_s=interval), disk=disk)
        watch.watch(store)
        used(store, watch, chance, mixed)
        store.close()
        watch.disk.on_operation = lambda operation: None
        for image, must in watch.images:
            recovered_after_power_loss(image, must, chance, capacity, mixed, checks)
        shutil.rmtree(folder)
    sys.stderr.write(f"power losses: {dict(checks)}\n")
    assert checks["images"] >= ROUNDS
    assert checks["durable pages"] > 10 * ROUNDS


def recovered_after_power_loss(image, must, chance, capacity, mixed, checks):
    """Check an image, and images that power losses during its recovery leave."""
    again = PowerLossDisk(image)
    again.load()
    watch = Watch(again, image.parent, chance, most=1)
    watch.images = []
    copy = image.with_name(image.name + "-copy")
    shutil.copytree(image, copy)
    if is_complete(image) and chance.random() < 0.5:
        # A power loss during recovery. What was durable before still is.
        def lose(operation):
            if not watch.images and chance.random() < 0.1:
                second = image.with_name(image.name + "-again")
                second.mkdir(mode=0o700)
                again.image(second, chance)
                watch.images.append((second, must))

        again.on_operation = lose
        crash(PageStore(image, options(capacity), disk=again))
        checks["during recovery"] += len(watch.images)
    for path, pages in [(copy, must), *watch.images]:
        store, hits = checked(path, capacity, mixed)
        checks["images"] += 1
        checks["durable pages"] += len(pages)
        checks[store.stats().recovery] += 1
        lost = pages - hits
        assert not lost, f"{len(lost)} durable pages are lost ({store.stats().recovery})"
        # And it can be used.
        keys = chain("after", 5)
        assert all(write(store, keys))
        assert all(read(store, keys))
        store.close()
