from pathlib import Path

import pytest

from sglang_ext.cli import doctor


def test_a_folder_that_a_server_would_refuse_is_a_finding_with_its_fix(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (finding,) = doctor._l3_dir(str(tmp_path))
    assert finding.state == doctor.FAILED
    assert "can be opened by other users" in finding.detail
    assert ";" not in finding.detail
    assert "folder of its own" in finding.fix


@pytest.mark.parametrize("name", ["", "not/yet/made"])
def test_a_folder_that_a_server_would_take_is_looked_at_for_space(
    tmp_path: Path, name: str
) -> None:
    tmp_path.chmod(0o700)
    (finding,) = doctor._l3_dir(str(tmp_path / name))
    assert finding.state != doctor.FAILED
    assert finding.detail.endswith("free")
    assert not (tmp_path / "not").exists()


def test_a_place_where_nothing_can_be_made_is_a_finding() -> None:
    """Root may write /proc as far as permissions go; the kernel refuses all the same."""
    (finding,) = doctor._l3_dir("/proc/kv")
    assert finding.state == doctor.FAILED
    assert "/proc" in finding.detail
    assert finding.fix


def test_piped_findings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    fix = "run: " + "a very long command " * 20
    doctor._print([doctor.Finding("disk", "/kv[1]", doctor.NOTE, "small", fix)], verbose=False)
    line, counts = capsys.readouterr().out.splitlines()
    assert line == f"note: disk: /kv[1]: small -- {fix}"
    assert counts == "0 good, 1 note, 0 failed"


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (finding,) = doctor._l3_dir(str(file))
    assert finding.state == doctor.FAILED
