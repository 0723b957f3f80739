import pytest
from support.patching_tree import MODULE, PLAIN, TEST
from support.patching_tree import git as run_git

from sglang_ext.errors import PatchError
from sglang_ext.patching import git

FIXED = PLAIN.replace("41", "42")


@pytest.fixture
def tree(upstream, good_patch):
    """The source without its repository."""
    (upstream / ".git").rename(upstream.parent / "moved")
    return upstream


def test_a_patch_goes_in_and_out(tree, good_patch):
    git.apply(tree, good_patch)
    assert (tree / MODULE).read_text() == FIXED
    git.apply(tree, good_patch, reverse=True)
    assert (tree / MODULE).read_text() == PLAIN
    assert not (tree / TEST).exists()


def test_only_the_files_asked_for_are_written(tree, good_patch):
    git.apply(tree, good_patch, only="test/*")
    assert (tree / TEST).is_file()
    assert (tree / MODULE).read_text() == PLAIN


def test_a_folder_inside_a_repository_is_patched(tmp_path, tree, good_patch):
    # In a sub-folder of a repository `git apply` skips files without a word.
    run_git(tmp_path, "init", "-q")
    git.apply(tree, good_patch)
    assert (tree / MODULE).read_text() == FIXED


def test_settings_of_git_from_outside_do_not_count(tmp_path, tree, good_patch, monkeypatch):
    # Set by a hook of git or by a user; the folder would be a sub-folder of that repository.
    run_git(tmp_path, "init", "-q", "elsewhere")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    git.apply(tree, good_patch)
    assert (tree / MODULE).read_text() == FIXED


def test_a_patch_that_does_not_apply_gives_the_reason_of_git(tree, good_patch):
    (tree / MODULE).write_text("x\n")
    with pytest.raises(PatchError, match=r"0001-answer\.patch does not apply .*answers\.py:1"):
        git.apply(tree, good_patch)
    assert not (tree / TEST).exists()
