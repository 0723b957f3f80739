"""Bad input ends with one clear line, a non-zero code, and nothing left running."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.serving import RENAMED_SYMBOL, generate, get, launch, start

SYMBOL = "sglang.srt.distributed.bootstrap:_init_cpu_threads_env"
# SGLang itself does not call this on one rank.
UNUSED_SYMBOL = "sglang.srt.distributed.parallel_state:GroupCoordinator.all_gather_into_tensor"


def ours(result):
    """Our one line; and that there is no traceback around it."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("sglang-ext: error:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.fixture
def foreign(tmp_path):
    """A folder that belongs to somebody else, where the test may make one."""
    folder = tmp_path / "foreign"
    folder.mkdir(mode=0o755)
    try:
        os.chown(folder, 65534, 65534)
    except PermissionError:
        pytest.skip("only root can give a folder away")
    return folder


def test_bad_size(tiny_llama):
    result = launch("--model-path", str(tiny_llama), "--ext-cache", "--ext-l2-size", "lots")
    assert result.returncode == 2
    assert "--ext-l2-size: 'lots' is not a size" in ours(result)


def test_flags_that_contradict_each_other(tiny_llama):
    result = launch("--model-path", str(tiny_llama), "--ext-cache", "--disable-radix-cache")
    assert result.returncode == 2
    line = ours(result)
    assert "--disable-radix-cache" in line
    assert "--ext-cache" in line


def test_missing_model(tmp_path):
    result = launch("--model-path", str(tmp_path / "nothing"), "--ext-cache")
    assert result.returncode == 2
    assert "does not exist" in ours(result)


def test_port_in_use(tiny_llama):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        result = launch("--model-path", str(tiny_llama), "--ext-cache", "--port", port)
    assert result.returncode == 2
    assert f"--port {port}" in ours(result)


def test_l3_folder_of_somebody_else(tiny_llama, foreign):
    result = launch(
        *("--model-path", str(tiny_llama), "--ext-cache"),
        *("--ext-l3-dir", str(foreign), "--ext-l3-size", "1GB"),
    )
    assert result.returncode == 2
    assert "belongs to user id" in ours(result)


def release(folder, package, version):
    """Metadata that says the package has this version, in front of the installed one's."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def test_another_release_of_sglang(tiny_llama, tmp_path):
    env = release(tmp_path, "sglang", "0.5.99")
    result = launch("--model-path", str(tiny_llama), "--ext-cache", env=env)
    assert result.returncode == 1
    line = ours(result)
    assert "SGLang 0.5.99" in line
    assert "pip install --no-deps sglang==0.5.23" in line
    assert "SGLANG_EXT_ALLOW_RELEASE=0.5.99" in line


def test_torch_without_its_match(tiny_llama, tmp_path):
    env = release(tmp_path, "torch", "2.13.0+cpu")
    result = launch("--model-path", str(tiny_llama), "--ext-cache", env=env)
    assert result.returncode == 1
    assert "torch 2.13.0+cpu is not the match of torchvision" in ours(result)


def renamed(symbol=SYMBOL, **more):
    return {"PYTHONPATH": str(RENAMED_SYMBOL), "RENAME_SYMBOL": symbol, **more}


def test_hook_whose_target_moved_stops_the_server(tiny_llama):
    result = launch("--model-path", str(tiny_llama), "--ext-cache", env=renamed())
    assert result.returncode == 1
    line = ours(result)
    assert SYMBOL in line
    assert "0.5.23" in line
    assert "SGLANG_EXT_STRICT=0" in line


def test_doctor_finds_the_hook_whose_target_moved():
    command = [sys.executable, "-m", "sglang_ext.cli", "doctor", "--json", "/dev/stdout"]
    env = {**os.environ, **renamed()}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert SYMBOL in result.stdout
    healthy = subprocess.run(command, capture_output=True, text=True, check=False)
    assert healthy.returncode == 0, healthy.stdout


@pytest.mark.server
def test_lenient_server_goes_on_and_says_so(tiny_llama, tmp_path):
    log = tmp_path / "server.log"
    env = renamed(UNUSED_SYMBOL, SGLANG_EXT_STRICT="0")
    server = start(tiny_llama, log, "--ext-cache", "--max-total-tokens", "4096", env=env)
    try:
        info = get(server, "/server_info")["sglang_ext"]
        assert info["degraded"] is True
        failed = [seam["name"] for seam in info["seams"] if seam["state"] == "failed"]
        assert failed == [UNUSED_SYMBOL.replace(":", ".")]
        assert "sglang-ext goes on without" in log.read_text()
        assert generate(server, list(range(1000, 1100)))["output_ids"]
    finally:
        server.stop()


def test_disabled_is_stock_sglang(tiny_llama):
    result = launch("--model-path", str(tiny_llama), "--ext-cache", env={"SGLANG_EXT_DISABLE": "1"})
    assert result.returncode == 2
    assert "unrecognized arguments: --ext-cache" in result.stderr


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_flags_are_in_the_help():
    result = run(sys.executable, "-m", "sglang.launch_server", "--help")
    for flag in (
        "--ext-cache",
        "--ext-l1-tokens",
        "--ext-l2-size",
        "--ext-l3-dir",
        "--ext-l3-size",
    ):
        assert flag in result.stdout


def test_sglang_serve_takes_the_flags(tiny_llama):
    script = str(Path(sys.executable).with_name("sglang"))
    result = run(script, "serve", str(tiny_llama), "--ext-cache", "--ext-l2-size", "lots")
    assert result.returncode == 2
    assert "--ext-l2-size: 'lots' is not a size" in ours(result)
