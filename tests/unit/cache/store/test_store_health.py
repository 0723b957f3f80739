"""A disk that fails is left alone for a while, and asked again."""

import errno
import logging

import pytest

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


def test_what_was_counted_is_a_copy():
    health, _ = sick(2)
    counted = health.counted()
    health.failed(None)
    assert counted == {"EIO": 2}


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


def pause(health, clock):
    """How long nothing is asked from now on."""
    before = clock.now
    while not health.allows():
        clock.now += 0.25
    return clock.now - before


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "bad"), None])
@pytest.mark.parametrize("takes_s", [0.0, 0.25, 10.0])
def test_the_pause_doubles_up_to_a_bound(fault, takes_s):
    health, clock = sick()
    pauses = []
    for _ in range(9):
        pauses.append(pause(health, clock))
        clock.now += takes_s
        health.failed(fault)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_what_was_begun_before_does_not_prolong_the_pause():
    health, clock = sick(20)
    assert pause(health, clock) == 0.5
    for _ in range(20):  # of one call, all at once
        health.failed(OSError(errno.EIO, "bad"))
    assert pause(health, clock) == 1


def test_after_an_outage_the_pause_is_short_again():
    health, clock = sick()
    for _ in range(5):
        pause(health, clock)
        health.failed(None)
    pause(health, clock)
    health.succeeded()
    health.failed(None)
    assert pause(health, clock) == 0.5


def test_an_outage_is_more_than_one_fault():
    health, clock = sick(20)
    assert not health.succeeded()
    health.failed(None)
    pause(health, clock)
    health.failed(None)
    assert health.succeeded()
    assert not health.succeeded()


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
