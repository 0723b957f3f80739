"""Releases and symbols, against the real metadata and against made-up ones."""

import pytest

from sglang_ext.errors import CompatibilityError
from sglang_ext.upstream import releases, symbols


def versions(monkeypatch, **found):
    real = releases.installed
    monkeypatch.setattr(releases, "installed", lambda name: found.get(name, real(name)))


def test_tested_release_passes(monkeypatch):
    versions(monkeypatch, sglang="0.5.23")
    assert releases.check_release() == "0.5.23"


@pytest.mark.parametrize("override", ["0.6.0", "any"])
def test_other_release_passes_when_it_is_named(monkeypatch, override):
    versions(monkeypatch, sglang="0.6.0")
    with pytest.raises(CompatibilityError, match=r"SGLANG_EXT_ALLOW_RELEASE=0\.6\.0"):
        releases.check_release()
    monkeypatch.setenv(releases.RELEASE_OVERRIDE, override)
    assert releases.check_release() == "0.6.0"


def test_override_for_one_release_does_not_let_another_pass(monkeypatch):
    versions(monkeypatch, sglang="0.6.1")
    monkeypatch.setenv(releases.RELEASE_OVERRIDE, "0.6.0")
    with pytest.raises(CompatibilityError):
        releases.check_release()


def test_missing_sglang_says_how_to_install_it(monkeypatch):
    versions(monkeypatch, sglang=None)
    with pytest.raises(CompatibilityError, match="pip install --no-deps sglang=="):
        releases.check_release()


def test_local_version_of_torch_is_its_public_one(monkeypatch):
    pytest.importorskip("torchvision")
    versions(monkeypatch, torch=f"{releases.TESTED_TORCH}+vendor")
    releases.check_torch()


def test_version_in_a_vendors_own_scheme_is_left_alone(monkeypatch):
    versions(monkeypatch, torch="2.14.1-rocm7-vendor")
    releases.check_torch()


def test_torch_without_its_match(monkeypatch):
    pytest.importorskip("torchvision")
    versions(monkeypatch, torch="2.0.0")
    with pytest.raises(CompatibilityError, match=r"torch 2\.0\.0 is not the match"):
        releases.check_torch()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("json:no_such_name", "json:no_such_name is not in this SGLang"),
        ("sglang_no_such_package:name", "cannot be imported"),
    ],
)
def test_what_is_not_there_is_named(path, said):
    with pytest.raises(CompatibilityError, match=said):
        symbols.resolve(path)


def test_missing_package_under_sglang_is_not_blamed_on_the_release(tmp_path, monkeypatch):
    (tmp_path / "needs_absent.py").write_text("import a_package_that_is_absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CompatibilityError, match="install that package"):
        symbols.resolve("needs_absent:anything")
