"""Starts a real server process, waits until it answers, and leaves nothing of it behind.

Used by the demonstration, the benchmarks and the tests. The process gets a session and a process
group of its own; its output goes to a file; whatever happens, leaving the context ends the
process and all that it started. Nothing is looked for by name: only what descends from our own
process, or is in its group, is ended.
"""

import contextlib
import logging
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from sglang_ext.errors import ServerError

__all__ = ["ServerProcess", "free_port", "sglang_command"]

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_POLL_S = 0.2
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LEAST_PORT = 20_000
_PORT_TRIES = 100
_LOG_LINES = 20
# How long SIGKILL may take. A process in an uninterruptible read of a slow disk takes seconds;
# one that is still there after this will not go, and a hang would say less than an error.
_END_S = 30.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment.

    Not one that the system itself gives out: a server opens dozens of those while it starts, and
    may well get the very one that it is to serve on.
    """
    given_out_from = int(_PORT_RANGE.read_text(encoding="ascii").split()[0])
    for _ in range(_PORT_TRIES):
        port = _LEAST_PORT + secrets.randbelow(max(given_out_from - _LEAST_PORT, 1))
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((_HOST, port))
            return port
    raise ServerError(f"no free port below {given_out_from} in {_PORT_TRIES} tries on {_HOST}")


def sglang_command(model: Path, port: int, *flags: str) -> list[str]:
    """The command line of a stock SGLang server for ``model`` on 127.0.0.1:``port``."""
    return [
        sys.executable,
        *("-m", "sglang.launch_server"),
        *("--model-path", str(model)),
        *("--host", _HOST),
        *("--port", str(port)),
        *flags,
    ]


class ServerProcess:
    """A server process as a context manager: running inside, gone outside.

    Args:
        command: the command line; a function is called with the port.
        log: file that its stdout and stderr are appended to; its folder is made.
        port: where the server will listen; a free one is taken by default.
        health_path: path that answers 200 once the server is ready. SGLang answers 503 before.
        timeout_s: how long a start may take. Default 300: a cold start of SGLang on two cores
            takes about 30 s, most of it imports; the cost of a high limit is a late report.
        env: additions to the environment.
        on_wait: called several times a second during the start, with the seconds so far.

    ``process`` and ``pid`` belong to this object; ``kill`` may be called from another thread.
    """

    def __init__(
        self,
        command: Sequence[str] | Callable[[int], Sequence[str]],
        *,
        log: Path,
        port: int | None = None,
        health_path: str = "/health",
        timeout_s: float = 300.0,
        env: Mapping[str, str] | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self.port = free_port() if port is None else port
        self.command = list(command(self.port) if callable(command) else command)
        self.log = log
        self.timeout_s = timeout_s
        self._health_path = health_path
        self._env = {**os.environ, **(env or {})}
        self._on_wait = on_wait or (lambda seconds: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._root: _Member | None = None
        self._ended = False

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:PORT``, without a slash at the end."""
        return f"http://{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server; raises ``ServerError`` before ``start``."""
        if self._process is None:
            raise ServerError(f"the server {self._named()} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's first process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> "ServerProcess":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and block until it answers.

        Raises:
            ServerError: the port is taken, the process ended, or it did not answer in time. The
                last lines of its log are in the message, and nothing is left running.
        """
        if self._process is not None:
            raise ServerError(f"the server {self._named()} is already started")
        self._check_port()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerError(f"cannot run {self._named()}: {error}") from error
        # Not yet waited for, so the id is still the child's, even if it has ended.
        self._root = self._process.pid, _start_time(self._process.pid) or 0
        try:
            self._wait()
        except BaseException:  # KeyboardInterrupt too: nothing may stay behind
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL the whole tree at once, as a crash would; blocks until it is gone.

        Raises:
            ServerError: something of it is still alive after 30 s.
        """
        if self._root is not None and not self._ended:
            self._end(_tree(self._root))

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the server to end, and kill what is left after ``grace_s`` seconds; blocks.

        Raises:
            ServerError: something of it is still alive 30 s after it was killed.
        """
        if self._process is None or self._root is None or self._ended:
            return
        # Read before the parent ends: a child that left the session is then found by descent only.
        members = _tree(self._root)
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=grace_s)
        self._end(members)

    def _end(self, members: set["_Member"]) -> None:
        """SIGKILL ``members`` and what belongs to our process, until nothing of it is alive."""
        if self._process is None or self._root is None:
            return
        deadline = time.monotonic() + _END_S
        # Again until none is left: a process may have been forking while the tree was read, and
        # a signal that was sent is not yet a process that is gone.
        while members := (members & set(_processes())) | _tree(self._root):
            if time.monotonic() > deadline:
                left = ", ".join(str(process_id) for process_id, _ in sorted(members))
                raise ServerError(
                    f"processes {left} of the server {self._named()} are still alive "
                    f"{_END_S:.0f} s after SIGKILL; end them by hand"
                )
            for process_id, _ in members:
                # Not ours to signal (it changed its user): the deadline tells of it.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process_id, signal.SIGKILL)
            time.sleep(_POLL_S / 10)
            self._process.poll()  # takes the exit code, so that it is no zombie
        self._process.wait()
        self._ended = True  # from here on the system may give the id to somebody else

    def log_tail(self, lines: int = _LOG_LINES) -> str:
        """The last lines of the log, for messages."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _named(self) -> str:
        return shlex.join(self.command)

    def _check_port(self) -> None:
        with socket.socket() as probe:
            # As servers do: a port in TIME_WAIT is free, one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, self.port))
            except OSError as error:
                raise ServerError(
                    f"port {self.port} of {_HOST} is in use ({error.strerror}); choose another, "
                    "or end the process that listens there"
                ) from error

    def _wait(self) -> None:
        begin = time.monotonic()
        while (seconds := time.monotonic() - begin) < self.timeout_s:
            self._on_wait(seconds)
            if not self.running:
                code = self._process.returncode if self._process else None
                raise ServerError(self._failure(f"ended with exit code {code} while it started"))
            if self._healthy():
                logger.info("server %d answers on port %d", self.pid, self.port)
                return
            time.sleep(_POLL_S)
        raise ServerError(self._failure(f"did not answer within {self.timeout_s:.0f} s"))

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(  # noqa: S310 - our own http URL
                self.base_url + self._health_path, timeout=5
            ) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _failure(self, what: str) -> str:
        return (
            f"the server {what}: {self._named()}\n"
            f"The last lines of {self.log}:\n{self.log_tail() or '(it is empty)'}"
        )


# (process id, start time in clock ticks): a pair, because the system uses ids again.
_Member = tuple[int, int]


def _start_time(pid: int) -> int | None:
    """When the process started, in clock ticks; zombies too; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _processes() -> dict[_Member, tuple[int, int]]:
    """All living processes with their parent and session, from /proc; zombies left out."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # The name, in parentheses, may itself hold blanks and parentheses.
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[0] not in "ZX":
            found[int(stat.parent.name), int(fields[19])] = int(fields[1]), int(fields[3])
    return found


def _tree(root: _Member) -> set[_Member]:
    """``root``, its session, and all that descend from either."""
    pid, started = root
    if _start_time(pid) not in (None, started):
        # The id was used again, which the system does only once the session has no member left.
        return set()
    processes = _processes()
    members = {key for key, (_, session) in processes.items() if key == root or session == pid}
    while True:
        ids = {member[0] for member in members}
        more = {key for key, (parent, _) in processes.items() if parent in ids} - members
        if not more:
            return members
        members |= more
