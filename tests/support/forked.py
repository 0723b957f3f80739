"""A process that `launcher` forked, with the part of `subprocess.Popen` that is used of it."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from sglang_ext.bench.server import ServerProcess

__all__ = ["ForkedProcess", "ForkedServer"]

_LAUNCHER = Path(__file__).with_name("launcher.py")
_LOCK = threading.Lock()
_POLL_S = 0.05


@functools.cache
def _launcher() -> subprocess.Popen[str]:
    """One for all; it ends with this process, as its stdin does."""
    return subprocess.Popen(
        [sys.executable, "-P", str(_LAUNCHER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _asked(**request: Any) -> Any:
    with _LOCK:
        process = _launcher()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    assert answer, f"the launcher has ended: {process.poll()}"
    return json.loads(answer)


class ForkedProcess:
    """SGLang's launcher with ``flags``; what it writes is appended to two files, or to one."""

    def __init__(self, flags: list[str], stdout: Path, stderr: Path) -> None:
        self.pid: int = _asked(flags=flags, stdout=str(stdout), stderr=str(stderr))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _asked(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                assert timeout is not None
                raise subprocess.TimeoutExpired("launcher", timeout)
            time.sleep(_POLL_S)
        return code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class ForkedServer(ServerProcess):
    """A server whose first process is a fork; the others are what they always are."""

    def _spawn(self, output: BinaryIO) -> Any:
        del output  # opened again by its name
        module = self.command.index("sglang.launch_server")
        return ForkedProcess(self.command[module + 1 :], self.log, self.log)
