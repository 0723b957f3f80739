"""Ends a store as SIGKILL would, without ending the process."""

import shutil
import threading
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


def killed_when(disk, store, hangs, act):
    """A copy of the folder as a SIGKILL leaves it while ``act`` is in an operation."""
    reached = threading.Event()

    def hang(operation, path):
        if not hangs(operation, path):
            return False
        reached.set()
        return True

    disk.hang(hang)
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    assert reached.wait(5)
    copy = store.with_name("copy")
    shutil.copytree(store, copy)
    disk.resume()
    thread.join()
    return copy
