import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_ext.bench import server as server_module
from sglang_ext.bench.server import (
    ServerProcess,
    _start_time,
    _tree,
    free_port,
    sglang_command,
)
from sglang_ext.errors import ServerError

# A server that answers /health, with a child and a grandchild in a session of its own; their
# process ids go to the file named by the second argument.
SERVER = """
import http.server, os, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
open(sys.argv[2], "w").write(" ".join(str(child.pid) for child in children))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def with_children(tmp_path: Path) -> ServerProcess:
    return ServerProcess(
        lambda port: [sys.executable, "-c", SERVER, str(port), str(tmp_path / "pids")],
        log=tmp_path / "log",
        timeout_s=30,
    )


def pids(tmp_path: Path) -> list[int]:
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_it_answers_inside_and_all_of_it_is_gone_outside(tmp_path: Path) -> None:
    with with_children(tmp_path) as server:
        assert server.running
        tree = [server.pid, *pids(tmp_path)]
        assert all(alive(pid) for pid in tree)
    assert not server.running
    assert not any(alive(pid) for pid in tree)


def test_kill_ends_the_whole_tree_and_a_new_one_can_take_the_port(tmp_path: Path) -> None:
    with with_children(tmp_path) as server:
        tree = [server.pid, *pids(tmp_path)]
        server.kill()
        assert not any(alive(pid) for pid in tree)
        with ServerProcess(
            [sys.executable, "-c", SERVER, str(server.port), str(tmp_path / "pids")],
            log=tmp_path / "log",
            port=server.port,
            timeout_s=30,
        ) as again:
            assert again.running


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_stopped_when_the_body_raises(tmp_path: Path, error: type[BaseException]) -> None:
    server = with_children(tmp_path)
    with pytest.raises(error), server:
        raise error
    assert not any(alive(pid) for pid in [server.pid, *pids(tmp_path)])


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    server = ServerProcess(
        lambda port: [sys.executable, "-c", stubborn, str(port), str(tmp_path / "pids")],
        log=tmp_path / "log",
        timeout_s=30,
    )
    server.start()
    tree = [server.pid, *pids(tmp_path)]
    server.stop(grace_s=0.5)
    assert not any(alive(pid) for pid in tree)


def test_a_process_that_ends_at_start_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    server = ServerProcess(
        [sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)"],
        log=tmp_path / "deep" / "log",
        timeout_s=30,
    )
    with pytest.raises(ServerError, match=r"exit code 3[\s\S]*no such model"):
        server.start()


def test_a_process_that_never_answers_is_given_up_and_killed(tmp_path: Path) -> None:
    seen: list[float] = []
    server = ServerProcess(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        log=tmp_path / "log",
        timeout_s=0.5,
        on_wait=seen.append,
    )
    with pytest.raises(ServerError, match="did not answer within"):
        server.start()
    assert seen
    assert not server.running


def test_a_server_that_answers_503_is_not_ready(tmp_path: Path) -> None:
    busy = SERVER.replace("200", "503")
    server = ServerProcess(
        lambda port: [sys.executable, "-c", busy, str(port), str(tmp_path / "pids")],
        log=tmp_path / "log",
        timeout_s=1.5,
    )
    with pytest.raises(ServerError, match="did not answer within"):
        server.start()
    assert not any(alive(pid) for pid in pids(tmp_path))


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    other = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    try:
        server = ServerProcess(["true"], log=tmp_path / "log", port=other.server_port)
        with pytest.raises(ServerError, match=f"port {other.server_port} .* in use"):
            server.start()
    finally:
        other.server_close()
    assert not (tmp_path / "log").exists()


def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    server = ServerProcess(["/nonexistent/server"], log=tmp_path / "log")
    with pytest.raises(ServerError, match="cannot run /nonexistent/server"):
        server.start()


def test_an_interrupt_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(seconds: float) -> None:
        if (tmp_path / "pids").exists() and (tmp_path / "pids").read_text():
            raise KeyboardInterrupt

    server = ServerProcess(
        lambda port: [sys.executable, "-c", SERVER, str(port), str(tmp_path / "pids")],
        log=tmp_path / "log",
        health_path="/health",
        timeout_s=30,
        on_wait=interrupt,
    )
    # The server may be faster than the first look; then it is interrupted inside.
    with pytest.raises(KeyboardInterrupt), server:
        interrupt(0)
    assert not any(alive(pid) for pid in pids(tmp_path))


def test_an_orphan_of_the_server_is_ended_too(tmp_path: Path) -> None:
    # The shell between is gone at once, so that no descent leads to the sleeping process.
    orphan = (
        "import subprocess, sys\n"
        "subprocess.run(['sh', '-c', 'sleep 600 & echo $! > ' + sys.argv[2] + '.orphan'])\n"
    )
    with ServerProcess(
        lambda port: [sys.executable, "-c", orphan + SERVER, str(port), str(tmp_path / "pids")],
        log=tmp_path / "log",
        timeout_s=30,
    ) as server:
        pid = int((tmp_path / "pids.orphan").read_text())
        assert alive(pid)
        server.kill()
        assert not alive(pid)


def test_other_processes_are_left_alone(tmp_path: Path) -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"], {})
    try:
        with with_children(tmp_path) as server:
            server.kill()
        assert alive(pid)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else, leader of a session as a server is."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep, start_new_session=True) as process:
        yield process
        process.kill()


def test_an_id_that_was_used_again_is_not_our_tree(stranger: subprocess.Popen[bytes]) -> None:
    started = _start_time(stranger.pid)
    assert started is not None
    assert _tree((stranger.pid, started)) == {(stranger.pid, started)}
    assert _tree((stranger.pid, started - 1)) == set()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_after_the_end_nothing_more_is_ended(
    tmp_path: Path, stranger: subprocess.Popen[bytes], end: str
) -> None:
    with with_children(tmp_path) as server:
        server.kill()
        # As if the system had given the id to a stranger, in the same clock tick.
        server._root = stranger.pid, _start_time(stranger.pid) or 0
        getattr(server, end)()
        assert alive(stranger.pid)


def test_a_process_that_cannot_be_killed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(pid, number)

    with with_children(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server_module, "_END_S", 0.3)
            patch.setattr(os, "kill", refuse)
            with pytest.raises(ServerError, match=rf"{server.pid}[\s\S]* still alive"):
                server.kill()
        assert server.running
    assert not any(alive(pid) for pid in pids(tmp_path))  # and the next try ends it


def test_kill_may_come_from_another_thread(tmp_path: Path) -> None:
    with with_children(tmp_path) as server:
        thread = threading.Thread(target=server.kill)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()
        assert not server.running


def test_the_command_line_names_model_and_port() -> None:
    port = free_port()
    command = sglang_command(Path("/models/a"), port, "--ext-cache")
    assert command[-1] == "--ext-cache"
    assert command[command.index("--port") + 1] == str(port)
    assert command[command.index("--model-path") + 1] == "/models/a"
    assert command[command.index("--host") + 1] == "127.0.0.1"
