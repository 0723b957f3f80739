import pytest
from support.patching_tree import GOOD_TEST, MODULE, PLAIN, TEST, git

from sglang_ext.errors import ConfigError, PatchError
from sglang_ext.patching.series import read_series
from sglang_ext.patching.target import apply_series

FIXED = PLAIN.replace("41", "42")
OTHER = "python/sglang/other.py"


@pytest.fixture
def series(patches, good_patch, add_patch):
    add_patch(
        "0002-more.patch",
        {
            MODULE: FIXED.replace("42", "43"),
            OTHER: "x = 1\n",
            TEST: GOOD_TEST.replace("42", "43"),
        },
    )
    return read_series(patches, "1.0")


def test_the_series_is_applied(upstream, series):
    applied = apply_series(upstream, series, "1.0")
    assert applied.already == ()
    assert applied.now == ("0001-answer.patch", "0002-more.patch")
    assert applied.files == (MODULE, OTHER, TEST)
    assert (upstream / MODULE).read_text() == FIXED.replace("42", "43")
    assert (upstream / TEST).is_file()
    # Git sees what the patches say, and nothing else.
    changed = {x[3:] for x in git(upstream, "status", "--short", "-uall").splitlines()}
    assert changed == set(applied.files)


def test_a_second_time_nothing_is_done(upstream, series):
    apply_series(upstream, series, "1.0")
    before = (upstream / MODULE).stat().st_mtime_ns
    applied = apply_series(upstream, series, "1.0")
    assert (applied.now, applied.files) == ((), ())
    assert applied.already == ("0001-answer.patch", "0002-more.patch")
    assert (upstream / MODULE).stat().st_mtime_ns == before


def test_a_series_that_has_grown_is_continued(upstream, series):
    apply_series(upstream, series[:1], "1.0")
    applied = apply_series(upstream, series, "1.0")
    assert (applied.already, applied.now) == (("0001-answer.patch",), ("0002-more.patch",))


def test_a_patch_that_does_not_apply_changes_nothing(upstream, series):
    # The first patch would apply; the second finds a file that it wants to create.
    (upstream / OTHER).write_text("mine\n")
    with pytest.raises(PatchError, match=r"0002-more\.patch does not apply"):
        apply_series(upstream, series, "1.0")
    assert (upstream / MODULE).read_text() == PLAIN
    assert not (upstream / TEST).exists()
    assert (upstream / OTHER).read_text() == "mine\n"
    assert list(upstream.rglob("*.sglang-ext-new")) == []


def test_an_installed_package_is_refused(package, series):
    for target in (package, package.parent):
        with pytest.raises(ConfigError, match="is an installed package"):
            apply_series(target, series, "1.0", any_release=True)
    assert (package / "answers.py").read_text() == PLAIN


def test_a_link_to_an_installed_package_is_refused(package, series, tmp_path):
    (tmp_path / "tree" / "python").mkdir(parents=True)
    (tmp_path / "tree" / "python" / "sglang").symlink_to(package)
    with pytest.raises(ConfigError, match="is an installed package"):
        apply_series(tmp_path / "tree", series, "1.0", any_release=True)
    assert (package / "answers.py").read_text() == PLAIN


def test_a_folder_made_by_pip_target_is_refused(upstream, series):
    (upstream / "python" / "sglang-1.0.dist-info").mkdir()
    with pytest.raises(ConfigError, match="is an installed package"):
        apply_series(upstream, series, "1.0")


@pytest.mark.parametrize("place", ["outside.py", "clone/python/sglang/inside.py"])
def test_a_linked_file_is_not_written(upstream, series, tmp_path, place):
    linked = tmp_path / place
    linked.write_text(PLAIN)
    (upstream / MODULE).unlink()
    (upstream / MODULE).symlink_to(linked)
    with pytest.raises(ConfigError, match="is a link"):
        apply_series(upstream, series, "1.0")
    assert linked.read_text() == PLAIN


def test_a_linked_folder_that_leads_outside_is_not_written(upstream, series, tmp_path):
    (tmp_path / "outside").mkdir()
    (upstream / "test").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match="lies outside"):
        apply_series(upstream, series, "1.0")
    assert list((tmp_path / "outside").iterdir()) == []


def test_another_release_is_refused(upstream, series):
    git(upstream, "tag", "-d", "v1.0")
    git(upstream, "tag", "v2.0")
    with pytest.raises(ConfigError, match=r"is SGLang 2\.0, and the series is for 1\.0"):
        apply_series(upstream, series, "1.0")
    assert apply_series(upstream, series, "1.0", any_release=True).now


def test_a_release_that_a_build_wrote_down_counts(upstream, series):
    (upstream / "python/sglang/_version.py").write_text("__version__ = version = '3.0'\n")
    with pytest.raises(ConfigError, match=r"is SGLang 3\.0"):
        apply_series(upstream, series, "1.0")


def test_commits_on_top_of_the_tag_are_the_same_release(upstream, series):
    git(upstream, "commit", "--allow-empty", "-qm", "mine")
    assert apply_series(upstream, series, "1.0").now


def test_a_tree_that_does_not_tell_its_release_is_refused(upstream, series):
    git(upstream, "tag", "-d", "v1.0")
    with pytest.raises(ConfigError, match="does not tell its release"):
        apply_series(upstream, series, "1.0")


def test_a_folder_that_is_no_source_tree_is_refused(tmp_path, series):
    with pytest.raises(ConfigError, match=r"has no python/sglang/__init__\.py"):
        apply_series(tmp_path / "nothing", series, "1.0")
