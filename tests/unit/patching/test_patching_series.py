from pathlib import Path

import pytest
from support.patching_tree import HEADERS, MODULE, PLAIN, TEST

from sglang_ext.errors import ConfigError, PatchError
from sglang_ext.patching.series import HEADERS as REQUIRED
from sglang_ext.patching.series import find_patches, read_patch, read_series


def test_a_patch_is_read(patches, good_patch):
    (patch,) = read_series(patches, "1.0")
    assert patch.name == "0001-answer.patch"
    assert patch.subject == "Answer a question"
    assert patch.files == (MODULE, TEST)
    assert patch.tests == (TEST,)
    assert tuple(patch.headers) == REQUIRED
    assert patch.headers["Remove-When"] == "upstream answers 42"


def test_a_folded_subject_is_joined(good_patch):
    text = good_patch.read_text()
    good_patch.write_text(text.replace("Answer a question", "Answer\n a question"))
    assert read_patch(good_patch).subject == "Answer a question"


@pytest.mark.parametrize("header", REQUIRED)
def test_each_header_is_required(good_patch, header):
    lines = good_patch.read_text().splitlines(keepends=True)
    good_patch.write_text("".join(x for x in lines if not x.startswith(f"{header}: ")))
    with pytest.raises(PatchError, match=header):
        read_patch(good_patch)


def test_a_date_is_a_date(good_patch):
    good_patch.write_text(good_patch.read_text().replace("2026-01-31", "soon"))
    with pytest.raises(PatchError, match="'soon'"):
        read_patch(good_patch)


def test_a_patch_without_a_test_is_refused(add_patch):
    path = add_patch("0001-answer.patch", {MODULE: PLAIN.replace("41", "42")}, HEADERS)
    with pytest.raises(PatchError, match="has no test"):
        read_patch(path)


def test_a_patch_outside_of_the_package_is_refused(add_patch):
    path = add_patch("0001-answer.patch", {"setup.cfg": "x", TEST: "x"}, HEADERS)
    with pytest.raises(PatchError, match=r"touches setup\.cfg"):
        read_patch(path)


def test_a_bare_diff_is_refused(good_patch):
    good_patch.write_text(good_patch.read_text().partition("\n---\n")[2])
    with pytest.raises(PatchError, match="git format-patch"):
        read_patch(good_patch)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0001-answer.patch", "listed twice"),
        ("0002-gone.patch", "no such file"),
        ("../secret", "NNNN-topic.patch"),
    ],
)
def test_a_series_names_each_file_once(patches, good_patch, line, message):
    with (patches / "1.0" / "series").open("a") as series:
        series.write(f"{line}\n")
    with pytest.raises(PatchError, match=message):
        read_series(patches, "1.0")


def test_a_patch_that_is_not_listed_is_found(patches, good_patch):
    (patches / "1.0" / "series").write_text("")
    with pytest.raises(PatchError, match=r"0001-answer\.patch .* is not listed"):
        read_series(patches, "1.0")


def test_an_unknown_release_names_the_known_ones(patches):
    with pytest.raises(ConfigError, match=r"there is a series for 1\.0"):
        read_series(patches, "2.0")


def test_a_missing_folder_is_wrong_use(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        find_patches(tmp_path / "none")


def test_the_folder_of_the_checkout_is_found():
    assert (find_patches(None) / "README.md").is_file()


def test_without_a_checkout_the_error_says_where_the_patches_are(monkeypatch, tmp_path):
    monkeypatch.setattr("sglang_ext.patching.series.__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(ConfigError, match=r"clone the repository and pass --patches"):
        find_patches(None)


def test_every_committed_series_can_be_read():
    folder = find_patches(None)
    for series in folder.glob("*/series"):
        assert read_series(folder, series.parent.name)


def test_no_patch_holds_a_path_of_the_machine_it_was_made_on():
    for path in find_patches(None).glob("*/*.patch"):
        assert str(Path.home()) not in path.read_text()
