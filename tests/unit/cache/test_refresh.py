"""Hits on their way to the disk tier."""

import threading
import time

import pytest

from sglang_ext.cache.refresh import Refresher

WAIT_S = 10


def never():
    raise AssertionError("the pages were asked for")


class Disk:
    """Remembers which pages it was asked to refresh; has only some."""

    def __init__(self, *pages):
        self.pages = set(pages)
        self.asked = []
        self.gate = threading.Event()
        self.gate.set()

    def touch(self, page):
        self.gate.wait(WAIT_S)
        self.asked.append(page)
        if page == "bad":
            raise OSError("a fault")
        return page in self.pages


@pytest.fixture
def disk():
    return Disk("p1", "p2", "p3")


@pytest.fixture
def refresher(disk):
    made = Refresher(disk.touch, interval_s=0.001)
    yield made
    disk.gate.set()
    made.close()


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_hit_refreshes_its_last_page(disk, refresher):
    refresher.hit("p3", never)
    until(lambda: refresher.refreshed == 1)
    assert disk.asked == ["p3"]


def test_hits_of_one_prefix_that_wait_are_one(disk, refresher):
    disk.gate.clear()
    refresher.hit("p1", never)
    until(lambda: not refresher._hits)  # taken, and held at the gate
    for _ in range(100):
        refresher.hit("p3", never)
    disk.gate.set()
    until(lambda: refresher.refreshed == 2)
    assert disk.asked == ["p1", "p3"]


def test_a_prefix_longer_than_on_disk_refreshes_what_is_there(disk, refresher):
    chain = ["p1", "p2", "p3", "p4", "p5"]
    refresher.hit("p5", never)  # not on disk, and nothing known of it
    until(lambda: "p5" in refresher._wanted)
    refresher.hit("p5", lambda: chain)
    until(lambda: refresher.refreshed == 1)
    assert disk.asked[-1] == "p3"
    refresher.hit("p5", never)  # the deepest page that is there is remembered
    until(lambda: refresher.refreshed == 2)
    assert disk.asked[-2:] == ["p5", "p3"]


def test_what_is_nowhere_is_not_asked_for_again_and_again(disk, refresher):
    refresher.hit("gone", never)
    until(lambda: "gone" in refresher._wanted)
    refresher.hit("gone", lambda: ["gone"])
    until(lambda: refresher.absent == 2)
    for _ in range(3):
        refresher.hit("gone", never)
        until(lambda: not refresher._hits)
    assert refresher.failed == 0


def test_a_fault_does_not_end_it(disk, refresher):
    refresher.hit("bad", never)
    refresher.hit("p1", never)
    until(lambda: refresher.refreshed == 1)
    assert refresher.failed == 1


def test_closing_twice_and_with_hits_that_wait(disk):
    refresher = Refresher(disk.touch, interval_s=3600)
    refresher.hit("p1", never)
    refresher.close()
    refresher.close()
    assert not refresher._thread.is_alive()
