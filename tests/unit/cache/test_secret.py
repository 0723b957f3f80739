"""The secret of a server's folder."""

import stat

import pytest

from sglang_ext.cache.secret import folder_secret
from sglang_ext.errors import ConfigError


def test_secret_stays(tmp_path):
    secret = folder_secret(tmp_path)
    assert len(secret) == 16
    assert folder_secret(tmp_path) == secret
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_two_folders_differ(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert folder_secret(tmp_path / "a") != folder_secret(tmp_path / "b")


def test_torn_one_is_made_anew(tmp_path):
    (tmp_path / "secret").write_bytes(b"torn")
    secret = folder_secret(tmp_path)
    assert len(secret) == 16
    assert folder_secret(tmp_path) == secret


def test_link_is_refused(tmp_path):
    (tmp_path / "target").write_bytes(b"0" * 16)
    (tmp_path / "secret").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="cannot use"):
        folder_secret(tmp_path)
