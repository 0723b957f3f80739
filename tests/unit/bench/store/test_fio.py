import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sglang_ext.bench.store import fio as fio_module
from sglang_ext.bench.store.figures import Sample
from sglang_ext.bench.store.fio import SETTINGS, Fio, Setting, find_fio, read_report
from sglang_ext.bench.store.load import Load
from sglang_ext.errors import BenchError, ConfigError

LOAD = Load(64 * 1024, 8 << 20)


def report(**changes: Any) -> str:
    job = {
        "error": 0,
        "job_runtime": 4000,
        "usr_cpu": 2.5,
        "sys_cpu": 10.0,
        "read": {
            "io_bytes": 2_000_000_000,
            "bw_bytes": 1_000_000_000,
            "clat_ns": {"percentile": {"50.000000": 1_500_000, "99.000000": 9_000_000}},
        },
        **changes,
    }
    return json.dumps({"jobs": [job]})


def test_a_report_becomes_a_sample() -> None:
    assert read_report("fio: a warning\n" + report(), "read") == Sample(
        payload_bytes=2_000_000_000, seconds=2.0, cpu_s=0.5, p50_ms=1.5, p99_ms=9.0
    )


@pytest.mark.parametrize(
    ("text", "op", "said"),
    [
        ("", "read", "cannot be read"),
        ("{}", "read", "cannot be read"),
        (report(), "write", "cannot be read"),
        (report(error=5), "read", "error 5"),
        (report(read={"io_bytes": 0, "bw_bytes": 0, "clat_ns": {}}), "read", "cannot be read"),
    ],
)
def test_a_report_without_figures_is_an_error(text: str, op: Any, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        read_report(text, op)


def test_a_missing_fio_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install fio"):
        find_fio()


class Recorded(Fio):
    """fio with given speeds; a setting without one fails."""

    def __init__(self, folder: Path, speeds: dict[str, float]) -> None:
        super().__init__(folder, LOAD)
        self.speeds = speeds

    def _run(self, op: Any, arguments: Any) -> Sample:
        named = dict(one.removeprefix("--").split("=", 1) for one in arguments)
        if "iodepth" not in named:
            return Sample(1, 1.0, 0.0, 0.0, 0.0)
        setting = Setting(named["ioengine"], int(named["numjobs"]), int(named["iodepth"]))
        if str(setting) not in self.speeds:
            raise BenchError(f"{setting} is refused")
        return Sample(10**6, 1 / self.speeds[str(setting)], 0.0, 0.0, 0.0)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fio_module, "find_fio", lambda: "fio")


@pytest.mark.usefixtures("found")
def test_the_two_fastest_settings_go_on_and_refused_ones_do_not_matter(tmp_path: Path) -> None:
    slow, middle, fast = (str(setting) for setting in SETTINGS[-3:])
    chosen = Recorded(tmp_path, {slow: 1.0, fast: 9.0, middle: 5.0}).choose()
    assert {op: [str(one) for one in settings] for op, settings in chosen.items()} == {
        "write": [fast, middle],
        "read": [fast, middle],
    }


@pytest.mark.usefixtures("found")
def test_no_setting_that_works_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no setting that works"):
        Recorded(tmp_path, {}).choose()


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_fio_itself(tmp_path: Path) -> None:
    fio = Fio(tmp_path, LOAD)
    fio._lay_out()
    for op in ("write", "read"):
        sample = fio.measure(op, Setting("psync", 2, 1))
        assert sample.payload_bytes == LOAD.payload_bytes
        assert sample.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["fio.read"]


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_a_failing_fio_is_reported_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"exit code 1: fio: .*no-such-engine"):
        Fio(tmp_path, LOAD).measure("write", Setting("no-such-engine", 1, 1))
