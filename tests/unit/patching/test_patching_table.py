import pytest

from sglang_ext.errors import PatchError
from sglang_ext.patching import table
from sglang_ext.patching.series import find_patches


def test_the_committed_table_is_current():
    folder = find_patches(None)
    assert table.updated(folder) == (folder / "README.md").read_text(), (
        "run `sglang-ext patches table`"
    )


def test_a_table_is_made_from_the_headers(patches, good_patch):
    good_patch.write_text(good_patch.read_text().replace("answers 42\n", "says 4|2\n"))
    assert table.render(patches).splitlines()[2:] == [
        "| [1.0/0001-answer.patch](1.0/0001-answer.patch) | says 4\\|2 | no | no "
        "| upstream says 4\\|2 | 2026-01-31 |"
    ]


def test_text_around_the_table_is_kept(patches, good_patch):
    begin, end = "<!-- table: written by `sglang-ext patches table` -->", "<!-- end of table -->"
    (patches / "README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    text = table.updated(patches)
    assert text == f"before\n{begin}\n{table.render(patches)}\n{end}\nafter\n"


def test_a_readme_without_a_place_for_the_table_is_refused(patches, good_patch):
    (patches / "README.md").write_text("hello\n")
    with pytest.raises(PatchError, match="needs the lines"):
        table.updated(patches)
