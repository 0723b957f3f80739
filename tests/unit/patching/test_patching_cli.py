import subprocess
import sys
from pathlib import Path


def command(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sglang_ext.cli", "patches", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_apply_says_what_it_did(upstream: Path, patches: Path, good_patch: Path):
    apply = ("apply", "--release", "1.0", "--patches", patches, "--target", upstream)
    code, output = command(*apply)
    assert (code, "0001-answer.patch: applied" in output) == (0, True)
    code, output = command(*apply)
    assert code == 0
    assert "0001-answer.patch: already applied" in output
    assert "nothing to do" in output


def test_apply_to_an_installed_package_is_wrong_use(package, patches, good_patch):
    code, output = command("apply", "--release", "1.0", "--patches", patches, "--target", package)
    assert code == 2
    assert "installed package" in output


def test_a_patch_that_does_not_apply_is_a_finding(upstream, patches, good_patch):
    (upstream / "python/sglang/answers.py").write_text("x\n")
    code, output = command("apply", "--release", "1.0", "--patches", patches, "--target", upstream)
    assert code == 1
    assert "0001-answer.patch does not apply" in output


def test_a_release_that_is_not_installed_is_wrong_use(patches, good_patch):
    code, output = command("check", "--release", "1.0", "--patches", patches)
    assert code == 2
    assert "1.0" in output


def test_a_json_file_that_cannot_be_made_is_wrong_use_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    code, output = command("check", "--json", tmp_path / "file" / "out.json")
    assert code == 2
    assert str(tmp_path / "file") in output


def test_a_stale_table_is_a_finding(patches, good_patch):
    begin, end = "<!-- table: written by `sglang-ext patches table` -->", "<!-- end of table -->"
    (patches / "README.md").write_text(f"{begin}\n{end}\n")
    assert command("table", "--check", "--patches", patches)[0] == 1
    assert command("table", "--patches", patches)[0] == 0
    assert command("table", "--check", "--patches", patches)[0] == 0
