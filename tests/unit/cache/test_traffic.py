"""Pages and speed of calls."""

from sglang_ext.cache.traffic import Traffic


def test_calls_that_moved_something_are_told_once():
    traffic = Traffic()
    assert traffic.measure(1000, lambda: [True, False, True]) == [True, False, True]
    traffic.measure(1000, lambda: [False])
    pages, speeds = traffic.take()
    assert pages == [2]
    assert speeds[0] > 0
    assert traffic.take() == ([], [])


def test_nobody_asks_for_a_long_time():
    traffic = Traffic()
    for _ in range(5000):
        traffic.measure(1000, lambda: [True])
    assert len(traffic.take()[0]) == 1000
