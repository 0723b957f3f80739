import base64
import hashlib
import importlib.metadata
from types import SimpleNamespace

import pytest

from sglang_ext.errors import CompatibilityError, ConfigError
from sglang_ext.patching import source
from sglang_ext.patching.series import read_series

RECORD_OF = "sglang/answers.py"


@pytest.fixture
def installed(package, monkeypatch):
    """A distribution "sglang 1.0" whose files are those of `package`."""
    info = package.parent / "sglang-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 1.0\n")
    # hashlib.sha256(PLAIN) in the form of RECORD, as `pip install` writes it
    (info / "RECORD").write_text(f"{RECORD_OF},sha256={_record_hash(package / 'answers.py')},1\n")
    distribution = importlib.metadata.PathDistribution(info)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    return package


def _record_hash(path):
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")


def test_release_and_folder_of_the_installed_package(installed):
    assert source.installed_release() == ("1.0", installed)


def test_sglang_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(CompatibilityError, match="sglang is not installed"):
        source.installed_release()


def test_an_editable_install_has_no_source_to_check(monkeypatch, tmp_path):
    editable = SimpleNamespace(version="1.0", locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: editable)
    with pytest.raises(CompatibilityError, match="not against an editable install"):
        source.installed_release()


def test_files_as_the_wheel_has_them_are_pristine(installed, patches, good_patch):
    source.check_pristine(read_series(patches, "1.0"))


def test_an_edited_file_is_found(installed, patches, good_patch):
    (installed / "answers.py").write_text("edited\n")
    with pytest.raises(CompatibilityError, match=r"answers\.py is not the file of the wheel"):
        source.check_pristine(read_series(patches, "1.0"))


def test_an_edited_file_that_no_patch_touches_does_not_matter(installed, patches):
    (installed / "answers.py").write_text("edited\n")
    source.check_pristine(read_series(patches, "1.0"))


def test_a_copy_shares_no_file_with_the_package(package, tmp_path):
    source.copy_release(package, tmp_path / "tree")
    copy = tmp_path / "tree/python/sglang/answers.py"
    assert copy.stat().st_ino != (package / "answers.py").stat().st_ino
    assert not copy.is_symlink()
    copy.write_text("changed\n")
    assert (package / "answers.py").read_text() != "changed\n"


def test_a_folder_that_is_no_package_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no __init__\.py"):
        source.copy_release(tmp_path, tmp_path / "tree")
