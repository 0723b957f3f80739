"""Starting real servers and asking them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from sglang_ext.bench.server import ServerProcess, free_port, sglang_command

RENAMED_SYMBOL = Path(__file__).parent / "renamed_symbol"
START_S = 240
END_S = 10


def start(model: Path, log: Path, *flags: str, env: dict[str, str] | None = None) -> ServerProcess:
    """A started server; the caller stops it."""
    server = ServerProcess(
        lambda port: sglang_command(model, port, "--dtype", "float32", *flags),
        log=log,
        health_path="/health_generate",
        timeout_s=START_S,
        env=env,
    )
    server.start()
    return server


def launch(*flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a server command that is expected to end by itself; returns its code and output.

    On a free port unless ``--port`` is among the flags. Fails if anything of it is left running.
    """
    port = () if "--port" in flags else ("--port", str(free_port()))
    command = [sys.executable, "-m", "sglang.launch_server", "--host", "127.0.0.1", *port, *flags]
    return run_to_its_end(command, {**os.environ, **(env or {})}, START_S)


def run_to_its_end(
    command: list[str], env: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run the command in a session of its own, of which nothing may be left at the end."""
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
        left = wait_for_end(process.pid)
        assert not left, f"left running: {left}"
    finally:
        # On a time-out, an interrupt or a finding: the whole group, and what left the group.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        for member in living(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def living(session: int) -> list[psutil.Process]:
    """The processes of a session; those that ended and were not waited for are left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for_end(session: int) -> list[psutil.Process]:
    """What is left of a session; its children get a moment to notice that their parent ended."""
    deadline = time.monotonic() + END_S
    while (left := living(session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def flush(server: ServerProcess) -> None:
    """Empty L1 and L2. With a time-out, as it answers 400 while pages are being written."""
    post(server, "/flush_cache?timeout=60", {})


def get(server: ServerProcess, path: str) -> Any:
    with urllib.request.urlopen(server.base_url + path, timeout=60) as answer:
        return json.load(answer)


def post(server: ServerProcess, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        server.base_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        text = answer.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


def generate(
    server: ServerProcess, prompt: list[int], new_tokens: int = 8, **body: Any
) -> dict[str, Any]:
    """Greedy answer: ``output_ids``, and ``meta_info`` with the cached tokens."""
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    answer = post(server, "/generate", {"input_ids": prompt, "sampling_params": sampling, **body})
    assert isinstance(answer, dict)
    return answer


def served_by(answer: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt tokens that came from device, host and storage."""
    details = answer["meta_info"].get("cached_tokens_details") or {}
    return details.get("device", 0), details.get("host", 0), details.get("storage", 0)
