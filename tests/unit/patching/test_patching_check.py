import hashlib
import os
import time
from pathlib import Path

import pytest
from support.patching_tree import GOOD_TEST, MODULE, PLAIN, TEST

from sglang_ext.errors import ConfigError
from sglang_ext.patching.check import check_series
from sglang_ext.patching.series import read_series

FIXED = PLAIN.replace("41", "42")


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check(patches, package, **kwargs):
    return check_series(read_series(patches, "1.0"), package, **kwargs)


def test_a_good_patch_is_proved(patches, package, good_patch):
    (proof,) = check(patches, package)
    assert (proof.ok, proof.applies, proof.fails_without, proof.passes_with) == (True,) * 4
    assert proof.tests == 2
    assert proof.failed_without == {"test_answers.TestAnswers.test_new": "AssertionError: 41 != 42"}
    assert proof.as_json()["ok"] is True


def test_the_reason_is_the_first_error_and_not_what_wrapped_it(patches, package, add_patch):
    wraps = GOOD_TEST.replace(
        "        self.assertEqual(answers.answer(), 42)",
        "        try:\n"
        "            self.assertEqual(answers.answer(), 42)\n"
        "        except AssertionError:\n"
        "            raise RuntimeError('gave up')",
    )
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: wraps})
    (proof,) = check(patches, package)
    assert list(proof.failed_without.values()) == ["AssertionError: 41 != 42"]


def test_the_installed_package_stays_as_it_is(patches, package, add_patch):
    # The test writes into the package that it imports, as a build step or a cache might.
    writes = "pathlib.Path(answers.__file__).with_name('new.py').write_text('')"
    vandal = GOOD_TEST.replace("import unittest\n", "import pathlib\nimport unittest\n").replace(
        "class Test", f"{writes}\n\n\nclass Test"
    )
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: vandal})
    before = digest(package)
    (proof,) = check(patches, package)
    assert proof.ok
    assert digest(package) == before


def test_the_copy_is_removed(patches, package, good_patch, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert check(patches, package)[0].ok
    assert list(scratch.iterdir()) == []


def test_a_patch_is_checked_on_top_of_the_ones_before_it(patches, package, good_patch, add_patch):
    add_patch(
        "0002-more.patch",
        {
            MODULE: FIXED.replace("42", "43"),
            TEST: GOOD_TEST.replace("42", "43"),
        },
    )
    seen = []
    proofs = check(patches, package, jobs=2, done=lambda proof: seen.append(proof.patch))
    assert [proof.ok for proof in proofs] == [True, True]
    assert seen == ["0001-answer.patch", "0002-more.patch"]
    assert "42 != 43" in proofs[1].failed_without["test_answers.TestAnswers.test_new"]


def test_a_test_that_passes_without_the_patch_proves_nothing(patches, package, add_patch):
    add_patch(
        "0001-answer.patch", {MODULE: FIXED, TEST: GOOD_TEST.replace("42", "answers.answer()")}
    )
    (proof,) = check(patches, package)
    assert (proof.ok, proof.applies, proof.fails_without) == (False, True, False)
    assert "all 2 tests pass without the patch" in proof.error


def test_a_test_that_fails_with_the_patch_is_found(patches, package, add_patch):
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: GOOD_TEST.replace("42", "99")})
    (proof,) = check(patches, package)
    assert (proof.ok, proof.fails_without, proof.passes_with) == (False, True, False)
    assert proof.failed_with == {"test_answers.TestAnswers.test_new": "AssertionError: 42 != 99"}


def test_a_test_that_is_skipped_with_the_patch_proves_nothing(patches, package, add_patch):
    skips = GOOD_TEST.replace(
        "        self.assertEqual(answers.answer(), 42)",
        "        if answers.answer() == 42:\n"
        "            self.skipTest('tired')\n"
        "        self.fail('x')",
    )
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: skips})
    (proof,) = check(patches, package)
    assert not proof.ok
    assert "was not run with it" in proof.error


def test_a_failed_import_proves_nothing(patches, package, add_patch):
    imports = GOOD_TEST.replace("from sglang import answers", "from sglang.answers import more")
    add_patch("0001-answer.patch", {MODULE: FIXED + "more = 1\n", TEST: imports})
    (proof,) = check(patches, package)
    assert not proof.ok
    assert "cannot be imported: ImportError" in proof.error


def test_a_patch_for_another_source_is_found(patches, package, good_patch):
    (package / "answers.py").write_text("def answer():\n    return 7\n")
    (proof,) = check(patches, package)
    assert (proof.ok, proof.applies) == (False, False)
    assert "does not apply to the copy" in proof.error
    assert "answers.py" in proof.error


def test_a_source_that_is_not_the_copy_is_found(patches, package, add_patch, tmp_path):
    # A test that puts another SGLang in front would be shown on the wrong source.
    other = tmp_path / "other"
    (other / "sglang").mkdir(parents=True)
    (other / "sglang" / "__init__.py").write_text("")
    (other / "sglang" / "answers.py").write_text(PLAIN)
    hijack = f"import sys\nsys.path.insert(0, {str(other)!r})\n" + GOOD_TEST
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: hijack})
    (proof,) = check(patches, package)
    assert not proof.ok
    assert "not against the patched copy" in proof.error


def test_a_test_that_hangs_is_ended_with_its_children(patches, package, add_patch, tmp_path):
    pid_file = tmp_path / "pid"
    hangs = GOOD_TEST.replace(
        "        self.assertEqual(answers.answer(), 42)",
        "        import pathlib, subprocess, time\n"
        "        child = subprocess.Popen(['sleep', '600'])\n"
        f"        pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
        "        time.sleep(600)",
    )
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: hangs})
    (proof,) = check(patches, package, timeout_s=3)
    assert "did not end within 3 s" in proof.error
    child = Path("/proc") / pid_file.read_text()
    deadline = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the child of the test is still running"
        time.sleep(0.05)


def test_a_test_that_kills_its_process_is_found(patches, package, add_patch):
    dies = GOOD_TEST.replace("self.assertEqual(answers.answer(), 42)", "__import__('os')._exit(3)")
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: dies})
    (proof,) = check(patches, package)
    assert "ended with code 3 and no result" in proof.error


def test_plugins_and_settings_of_the_caller_stay_outside(patches, package, add_patch, monkeypatch):
    monkeypatch.setenv("SGLANG_PLATFORM", "mine")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    sees = GOOD_TEST.replace(
        "        self.assertTrue(callable(answers.answer))",
        "        import os\n"
        "        self.assertEqual(os.environ['SGLANG_PLUGINS'], 'none')\n"
        "        self.assertNotIn('SGLANG_PLATFORM', os.environ)\n"
        "        self.assertNotIn('/nowhere', os.environ['PYTHONPATH'])",
    )
    add_patch("0001-answer.patch", {MODULE: FIXED, TEST: sees})
    assert check(patches, package)[0].ok


def test_without_git_the_error_says_so(patches, package, good_patch, monkeypatch, tmp_path):
    series = read_series(patches, "1.0")
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git is not on the PATH"):
        check_series(series, package)
