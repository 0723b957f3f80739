import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import sglang_ext.cli.bench_store as cli_module
from sglang_ext.bench import store as store_module
from sglang_ext.bench.store import PAGE_BYTES, StoreBench, _rotated, bench_store
from sglang_ext.bench.store import fio as fio_module
from sglang_ext.bench.store.fio import Setting
from sglang_ext.cli.bench_store import store
from sglang_ext.errors import ConfigError

KIB64 = 64 * 1024


def test_the_page_sizes_of_the_goal() -> None:
    assert [size // 1024 for size in PAGE_BYTES] == [64, 128, 360, 1024, 4096]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rounds": 0}, "at least one round"),
        ({"engines": ()}, "one engine"),
        ({"page_sizes": ()}, "one page size"),
        ({"engines": ("ext", "leveldb", "x")}, "no engine is called leveldb, x; there are ext"),
        ({"page_sizes": (1000,)}, "multiple of 4 KiB"),
        ({"data_bytes": 3 << 20, "page_sizes": (1 << 20,)}, "give more --bytes"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        StoreBench(folder=Path("x"), **wrong)


def test_nobody_always_follows_the_same_one() -> None:
    entrants: Sequence[Any] = ["a", "b", "c"]
    assert ["".join(_rotated(entrants, number)) for number in range(4)] == [
        "abc",
        "bca",
        "cab",
        "abc",
    ]


def test_missing_programs_are_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install fio"):
        bench_store(StoreBench(folder=tmp_path / "new", engines=("fio",)))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fio_module, "SETTINGS", [Setting("psync", jobs, 1) for jobs in (1, 2, 4)])
    bench = StoreBench(
        folder=tmp_path,
        data_bytes=8 << 20,
        rounds=2,
        engines=("file", "fio"),
        page_sizes=(KIB64,),
    )
    steps: list[tuple[str, int]] = []
    result = bench_store(bench, lambda what, done: steps.append((what, done)))
    assert [(row["engine"], row["op"], row["page_bytes"]) for row in result["rows"]] == [
        ("file", "write", KIB64),
        ("file", "read", KIB64),
        ("fio", "write", KIB64),
        ("fio", "read", KIB64),
    ]
    fields = {"engine", "op", "page_bytes", "mb_s", "p50_ms", "p99_ms", "cpu_s_per_gb"}
    assert all(fields <= set(row) for row in result["rows"])
    assert result["reachable"] == {"file": 0.0}
    assert result["findings"] == []
    assert [done for _, done in steps] == list(range(bench.steps))
    assert list(tmp_path.iterdir()) == []
    json.dumps(result)


RESULT = {
    "rows": [
        {
            "engine": engine,
            "op": "read",
            "page_bytes": KIB64,
            "mb_s": mb_s,
            "p50_ms": 1.0,
            "p99_ms": 2.0,
            "cpu_s_per_gb": 0.4,
        }
        for engine, mb_s in (("ext", 750.0), ("fio", 1000.0))
    ],
    "reachable": {"ext": 1.0, "file": 0.0},
    "goals": [{"what": "a goal", "target": 0.7, "found": 0.75, "met": True}],
    "findings": [],
    "rounds": 5,
}


def run(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], *arguments: str) -> Any:
    asked = []

    def measured(bench: StoreBench, on_step: Any) -> dict[str, Any]:
        asked.append(bench)
        on_step("a step", 0)
        return result

    monkeypatch.setattr(cli_module, "bench_store", measured)
    done = CliRunner().invoke(store, arguments)
    return done, asked


def test_the_command_prints_a_table_with_the_share_of_fio_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep" / "out.json"
    done, (asked,) = run(
        monkeypatch,
        RESULT,
        *("--json", str(file), "--bytes", "2GiB", "--rounds", "7", "--dir", str(tmp_path)),
        *("--engines", "ext, fio", "--page-sizes", "64KiB,1MiB"),
    )
    assert done.exit_code == 0
    assert "75%" in done.output
    assert "1,000" in done.output
    assert "met: a goal" in done.output
    assert json.loads(file.read_text()) == RESULT
    assert asked == StoreBench(tmp_path, 2 << 30, 7, ("ext", "fio"), (KIB64, 1 << 20))


def test_a_finding_is_exit_code_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = run(monkeypatch, {**RESULT, "findings": ["a page is wrong"]})
    assert done.exit_code == 1
    assert "FINDING: a page is wrong" in done.output


def test_wrong_use_is_told_by_the_error_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    done, asked = run(monkeypatch, RESULT, "--page-sizes", "64parsecs")
    assert isinstance(done.exception, ConfigError)
    assert done.exception.exit_code == 2
    assert asked == []


@pytest.mark.parametrize(("ext", "findings"), [(1.0, 0), (0.9, 1)])
def test_pages_that_nobody_can_reach_are_a_finding(ext: float, findings: int) -> None:
    assert len(store_module._unreachable({"ext": ext, "file": 0.0})) == findings
    assert store_module._unreachable({"file": 0.0}) == []
