"""A disk that fails is left alone for a while, and asked again."""

import errno
import logging

from sglang_ext.cache.store.health import Health


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def sick(times=1):
    clock = Clock()
    health = Health("reading", clock)
    for _ in range(times):
        health.failed(OSError(errno.EIO, "bad"))
    return health, clock


def test_all_is_allowed_while_all_is_well():
    health = Health("reading")
    assert all(health.allows() for _ in range(10))
    assert health.is_good


def test_after_a_fault_nothing_then_one():
    health, clock = sick()
    assert not health.allows()
    clock.now += 0.6
    assert health.allows()
    assert not health.allows(), "the next waits for what the first finds"


def test_the_pause_doubles_up_to_a_bound():
    health, clock = sick()
    pauses = []
    for _ in range(10):
        before = clock.now
        while not health.allows():
            clock.now += 0.25
        pauses.append(clock.now - before)
        health.failed(None)
    assert pauses[0] <= 0.75
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 31


def test_it_comes_back():
    health, clock = sick(5)
    clock.now += 60
    assert health.allows()
    health.succeeded()
    assert health.is_good
    assert health.allows()
    assert health.allows()


def test_faults_are_counted_by_name_and_logged_seldom(caplog):
    with caplog.at_level(logging.WARNING):
        health, clock = sick(50)
        health.failed(None)
        clock.now += 31
        health.failed(OSError(errno.EIO, "bad"))
    assert health.errors == {"EIO": 51, "STALL": 1}
    assert len(caplog.records) == 3
