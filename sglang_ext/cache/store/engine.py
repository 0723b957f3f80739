"""The I/O engine: worker threads, reads before writes, and callers that do not wait for ever.

Threads with ``preadv``/``pwritev``: the kernel, the hash and large copies run without the GIL, and
a worker takes one operation from the disk to the caller's memory without another hand-over.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

__all__ = ["Batch", "Engine", "EngineClosedError", "Operation", "Urgency"]

logger = logging.getLogger(__name__)

Urgency = Literal["read", "ahead", "write"]

# How long after a read more of them are expected.
_READS_ABOUT_S = 1.0


class EngineClosedError(Exception):
    """Nothing is queued any more: nobody would do it."""


class Operation(Protocol):
    """One thing for a worker to do."""

    def run(self) -> None:
        """Do it. Called by one worker; must not raise."""


class Batch:
    """Operations that one caller waits for.

    A worker touches the caller's memory only between ``borrow`` and ``give_back``; after
    ``abandon`` no worker does any more.
    """

    def __init__(self, operations: int) -> None:
        self.abandoned = False
        self._left = operations
        self._borrowed = 0
        self._changed = threading.Condition(threading.Lock())
        self._finished = threading.Lock()
        if operations:
            self._finished.acquire()

    def done(self) -> None:
        """One operation ended."""
        with self._changed:
            self._left -= 1
            last = self._left == 0
        if last:
            self._finished.release()

    def wait(self, deadline: float) -> bool:
        """Block until all operations ended, or until ``deadline`` (monotonic); whether they did."""
        try:
            finished = self._finished.acquire(timeout=max(0.0, deadline - time.monotonic()))
        except BaseException:  # the caller is interrupted, and has its memory back
            self.abandon()
            raise
        if finished:
            self._finished.release()
        return finished

    def borrow(self) -> bool:
        """Ask for the caller's memory; False where the caller has taken it back."""
        with self._changed:
            if self.abandoned:
                return False
            self._borrowed += 1
            return True

    def give_back(self) -> None:
        """Done with the caller's memory."""
        with self._changed:
            self._borrowed -= 1
            if self.abandoned:
                self._changed.notify_all()

    def abandon(self) -> None:
        """The caller takes its memory back; waits for copies that are under way, never for I/O."""
        with self._changed:
            self.abandoned = True
            while self._borrowed:
                self._changed.wait()


class Engine:
    """Worker threads behind three queues.

    Args:
        threads: operations in flight. Writes take at most half of them for a while after each read
            was asked for, so that reads find threads; otherwise all.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str = "page-store") -> None:
        self.operations = 0
        self._changed = threading.Condition()
        self._reads: deque[Operation] = deque()
        self._ahead: deque[Operation] = deque()
        self._writes: deque[Operation] = deque()
        self._half = max(1, threads // 2)
        self._no_read_since = time.monotonic() - _READS_ABOUT_S
        self._writing = 0
        self._running = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, operations: list[Operation], urgency: Urgency) -> None:
        """Queue operations; never blocks.

        Raises:
            EngineClosedError: the engine was closed, and none is queued.
        """
        queue = {"read": self._reads, "ahead": self._ahead, "write": self._writes}[urgency]
        with self._changed:
            if self._closed:
                raise EngineClosedError
            if urgency != "write":
                self._no_read_since = time.monotonic()
            queue.extend(operations)
            self._changed.notify(len(operations))

    def cancel_ahead(self, operation: Operation) -> bool:
        """Take a read-ahead operation back; False where a worker has it already."""
        with self._changed:
            try:
                self._ahead.remove(operation)
            except ValueError:
                return False
            return True

    def call(self, action: Callable[[], None], urgency: Urgency, deadline: float) -> bool:
        """Let a worker do ``action``; False where it has not come back by ``deadline``.

        Raises:
            EngineClosedError: the engine was closed, and nobody will do it.
        """
        batch = Batch(1)
        self.submit([_Call(action, batch)], urgency)
        return batch.wait(deadline)

    def start(self, action: Callable[[], None], urgency: Urgency) -> None:
        """Let a worker do ``action`` some time; nobody does once the engine is closed."""
        with contextlib.suppress(EngineClosedError):
            self.submit([_Call(action, Batch(1))], urgency)

    def close(self, deadline: float) -> bool:
        """End the workers once the queues are empty; False where one hangs at ``deadline``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while True:
            with self._changed:
                while (taken := self._take()) is None:
                    if self._closed:
                        return
                    self._changed.wait()
            operation, writes = taken
            try:
                operation.run()
            except Exception:
                # A worker that dies would hang every caller; the operation's own batch is
                # noticed by its deadline.
                logger.exception("page store: an operation failed in an unforeseen way")
            if writes:
                with self._changed:
                    self._writing -= 1
                    if self._writes:
                        self._changed.notify()

    def _take(self) -> tuple[Operation, bool] | None:
        """The most urgent operation, and whether it is a write; the lock is held."""
        if self._reads:
            taken = self._reads.popleft(), False
        elif self._ahead:
            taken = self._ahead.popleft(), False
        elif self._writes and (self._writing < self._half or not self._reads_are_about()):
            taken = self._writes.popleft(), True
            self._writing += 1
        else:
            return None
        self.operations += 1
        return taken

    def _reads_are_about(self) -> bool:
        return time.monotonic() - self._no_read_since < _READS_ABOUT_S


class _Call:
    def __init__(self, action: Callable[[], None], batch: Batch) -> None:
        self._action = action
        self._batch = batch

    def run(self) -> None:
        try:
            self._action()
        finally:
            self._batch.done()
