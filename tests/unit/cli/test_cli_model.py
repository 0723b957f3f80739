import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf")


def run(*arguments: str | Path, home: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sglang_ext.cli", "model", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    environment["HOME"] = str(home)
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=environment
    )


def test_the_command_makes_a_model_once(tmp_path: Path) -> None:
    first = run("tiny-llama", "--json", tmp_path / "1.json", home=tmp_path)
    folder = tmp_path / ".cache" / "sglang-ext" / "models" / "tiny-llama"
    assert first.returncode == 0, first.stderr
    assert f"made tiny-llama in {folder}" in first.stdout
    assert (folder / "model.safetensors").is_file()
    again = run("tiny-llama", "--json", tmp_path / "2.json", home=tmp_path)
    assert again.returncode == 0
    assert "already in" in again.stdout
    results = [json.loads((tmp_path / name).read_text()) for name in ("1.json", "2.json")]
    assert [result["made"] for result in results] == [True, False]
    for result in results:
        assert result.keys() == {"name", "path", "made", "bytes", "seconds", "options"}
        assert result["path"] == str(folder)
        assert result["options"]["seed"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt"], "'gpt' is not one of"),
        (["tiny-llama", "--kv-heads", "3"], "--kv-heads 3 does not divide 8 heads"),
        (["smollm2", "--layers", "2"], "--layers 2 does not apply to smollm2"),
        (["tiny-llama", "--out", "."], "is not a model made by sglang-ext"),
        (["tiny-llama", "--out", ".", "--force"], "is not a model made by sglang-ext"),
    ],
)
def test_wrong_use_exits_with_two_and_says_why(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(Path(__file__).parent) if word == "." else word for word in arguments]
    before = sorted(Path(__file__).parent.iterdir())
    result = run(*arguments, home=tmp_path)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert sorted(Path(__file__).parent.iterdir()) == before
    assert list(tmp_path.iterdir()) == []
