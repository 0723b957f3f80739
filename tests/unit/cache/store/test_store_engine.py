"""The engine: reads before writes, and callers that do not wait for ever."""

import threading
import time

import pytest

from sglang_ext.cache.store.engine import Batch, Engine, EngineClosedError


class Job:
    def __init__(self, action, batch=None):
        self.action = action
        self.batch = batch

    def run(self):
        self.action()
        if self.batch is not None:
            self.batch.done()


def later(seconds):
    return time.monotonic() + seconds


def test_operations_run_at_the_same_time():
    engine = Engine(4)
    barrier = threading.Barrier(4)
    batch = Batch(4)
    engine.submit([Job(lambda: barrier.wait(5), batch) for _ in range(4)], "read")
    assert batch.wait(later(5))
    assert engine.close(later(5))


def writing_at_once(engine, operations):
    """How many of ``operations`` writes run at the same time, with 4 workers."""
    release, began = threading.Event(), threading.Semaphore(0)
    batch = Batch(operations)

    def write():
        began.release()
        release.wait(5)

    engine.submit([Job(write, batch) for _ in range(operations)], "write")
    count = 0
    while began.acquire(timeout=0.2):
        count += 1
    if count < 4:
        assert engine.call(lambda: None, "read", later(5)), "no worker was left for a read"
    release.set()
    assert batch.wait(later(5))
    assert engine.close(later(5))
    return count


def test_writes_take_all_workers_while_nobody_reads():
    assert writing_at_once(Engine(4), 4) == 4


def test_writes_take_at_most_half_of_the_workers_while_reads_are_about():
    engine = Engine(4)
    assert engine.call(lambda: None, "read", later(5))
    assert writing_at_once(engine, 8) == 2


def test_reads_go_before_what_was_queued_earlier():
    engine = Engine(2)
    gate = threading.Event()
    order = []
    hold = Batch(2)
    engine.submit([Job(lambda: gate.wait(5), hold) for _ in range(2)], "read")
    time.sleep(0.05)
    batch = Batch(3)
    for urgency in ("write", "ahead", "read"):
        engine.submit([Job(lambda urgency=urgency: order.append(urgency), batch)], urgency)
    gate.set()
    assert batch.wait(later(5))
    assert order[0] == "read"
    assert engine.close(later(5))


def test_who_waits_gives_up_at_the_deadline():
    engine = Engine(2)
    gate = threading.Event()
    begin = time.monotonic()
    assert not engine.call(lambda: gate.wait(5) and None, "read", later(0.1))
    assert time.monotonic() - begin < 2
    gate.set()
    assert engine.close(later(5))


def test_abandoning_waits_for_copies_and_forbids_new_ones():
    batch = Batch(1)
    assert batch.borrow()
    events = []
    thread = threading.Thread(target=lambda: (batch.abandon(), events.append("abandoned")))
    thread.start()
    time.sleep(0.05)
    assert not events
    assert not batch.borrow()
    batch.give_back()
    thread.join(5)
    assert events == ["abandoned"]


def test_a_worker_survives_an_unforeseen_failure(caplog):
    engine = Engine(2)
    engine.submit([Job(lambda: 1 / 0) for _ in range(4)], "read")
    assert engine.call(lambda: None, "read", later(5))
    assert engine.close(later(5))
    assert "unforeseen" in caplog.text


def test_a_queued_read_ahead_can_be_taken_back():
    engine = Engine(2)
    gate = threading.Event()
    hold = Batch(2)
    engine.submit([Job(lambda: gate.wait(5), hold) for _ in range(2)], "read")
    time.sleep(0.05)
    ran = []
    job = Job(lambda: ran.append(1))
    engine.submit([job], "ahead")
    assert engine.cancel_ahead(job)
    assert not engine.cancel_ahead(job)
    gate.set()
    assert engine.close(later(5))
    assert not ran


def test_a_closed_engine_refuses_at_once():
    engine = Engine(2)
    assert engine.close(later(5))
    begin = time.monotonic()
    for urgency in ("read", "ahead", "write"):
        with pytest.raises(EngineClosedError):
            engine.submit([Job(lambda: None)], urgency)
        with pytest.raises(EngineClosedError):
            engine.call(lambda: None, urgency, later(5))
    engine.start(lambda: None, "write")
    assert time.monotonic() - begin < 1
