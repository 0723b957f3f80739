"""The secret of a server's folder."""

import os
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


@pytest.mark.parametrize("text", [b"", b"my note", b"0" * 17])
def test_a_file_of_somebody_else_stays(tmp_path, text):
    path = tmp_path / "secret"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="not the secret of a server"):
        folder_secret(tmp_path)
    assert path.read_bytes() == text
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_pipe_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "secret", 0o600)
    with pytest.raises(ConfigError, match="not the secret of a server"):
        folder_secret(tmp_path)


def test_what_was_being_made_is_made_anew(tmp_path):
    fresh = tmp_path / f"secret.{os.getpid()}.new"
    fresh.write_bytes(b"torn")
    assert len(folder_secret(tmp_path)) == 16
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_link_is_refused(tmp_path):
    (tmp_path / "target").write_bytes(b"0" * 16)
    (tmp_path / "secret").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="cannot use"):
        folder_secret(tmp_path)
