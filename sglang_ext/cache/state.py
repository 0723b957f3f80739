"""What a policy has learned, written so that it survives a restart.

A file is ``SGXP``, the form's number, the BLAKE2b-128 of the rest, and one JSON object: plain
values and base64 arrays, no pickle. Wrong bytes are told apart: damaged, of another form, or of a
policy with other bounds.

Pure: neither torch nor SGLang is imported.
"""

import hashlib
import json
import logging
import os
import stat
import struct
from pathlib import Path
from typing import Any

from sglang_ext.cache.secret import has_secret
from sglang_ext.errors import ConfigError, DamagedStateError, StateFormError

__all__ = ["FORM", "STATE_NAME", "check_state", "from_bytes", "set_damage_aside", "to_bytes"]

logger = logging.getLogger(__name__)

# Name of the file in the folder of the third tier.
STATE_NAME = "policy.state"
# Counts up whenever features, bins or fields change: what was learned in another form is dropped.
FORM = 1
_HEAD = struct.Struct("<4sI16s")
_MAGIC = b"SGXP"


def to_bytes(state: dict[str, Any]) -> bytes:
    """``state`` as bytes."""
    body = json.dumps(state, separators=(",", ":")).encode("utf-8")
    return _HEAD.pack(_MAGIC, FORM, _digest(body)) + body


def from_bytes(data: bytes) -> dict[str, Any]:
    """What `to_bytes` was given.

    Raises:
        DamagedStateError: it is not a state, or some of it is missing or wrong.
        StateFormError: it was written in another form.
    """
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise DamagedStateError("a policy's state without its head", fix="start without it")
    _, form, digest = _HEAD.unpack_from(data)
    if form != FORM:
        raise StateFormError(
            f"a policy's state of form {form}; this release writes {FORM}", fix="start without it"
        )
    body = data[_HEAD.size :]
    if _digest(body) != digest:
        raise DamagedStateError("a policy's state with a wrong checksum", fix="start without it")
    try:
        state = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DamagedStateError(f"a policy's state: {error}", fix="start without it") from error
    if not isinstance(state, dict):
        raise DamagedStateError("a policy's state that is no object", fix="start without it")
    return state


def check_state(file: Path, flag: str = "--ext-l3-dir") -> None:
    """Refuse a file of that name that is not ours; it would be replaced.

    Args:
        file: need not be there.
        flag: by which it was named.

    Raises:
        ConfigError: it is somebody else's, or cannot be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as state:
            ours = stat.S_ISREG(os.fstat(descriptor).st_mode) and _is_state(state.read(len(_MAGIC)))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(
            f"{flag}: cannot use {file}: {error.strerror}", fix="remove that file"
        ) from None
    if not ours:
        raise ConfigError(
            f"{flag}: {file} is not the state of a cache policy",
            fix="give another folder or name, or remove that file if it is nobody's",
        )


def set_damage_aside(file: Path) -> None:
    """Rename a file that is no state, in a folder of ours: the policy begins anew, nothing is lost.

    Half a write leaves a state that is cut, a disk that lost power one of zeros.

    Args:
        file: in a folder that has the `secret` of a server, else it stays; need not be there.

    Raises:
        ConfigError: it cannot be renamed.
    """
    if not has_secret(file.parent) or file.is_symlink() or not file.is_file():
        return  # `check_state` says what is wrong
    aside = file.with_name(f"{file.name}.damaged")
    try:
        with file.open("rb") as state:
            if _is_state(state.read(len(_MAGIC))):
                return
        file.replace(aside)
    except OSError as error:
        raise ConfigError(
            f"--ext-l3-dir: {file} is damaged, and cannot be set aside: {error.strerror}",
            fix="remove that file",
        ) from None
    logger.warning("The policy begins anew: %s is no state; it is now %s", file, aside)


def _is_state(head: bytes) -> bool:
    """Whether a file that begins so is a state, whole or not; an empty one was being made."""
    return not head or head[: len(_MAGIC)] == _MAGIC


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
