"""Ends a store as SIGKILL would, without ending the process."""

import time


def crash(store):
    """Nothing is flushed or written any more; files are closed and the lock is free."""
    keeper = store._keeper
    keeper._ended = True
    keeper._wake.set()
    keeper._thread.join(5)
    store._reader.ahead.forget()
    store._engine.close(time.monotonic() + 30)
    keeper.journal.close()
    for segment in keeper.catalog.segments:
        keeper.files.close(segment)
    keeper.folder.release()
    store._closed = True
