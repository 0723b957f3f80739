"""What a policy has learned, written so that it survives a restart.

A file is ``SGXP``, the form's number, the BLAKE2b-128 of the rest, and one JSON object: plain
values and base64 arrays, no pickle. Wrong bytes are told apart: damaged, of another form, or of a
policy with other bounds.

Pure: neither torch nor SGLang is imported.
"""

import hashlib
import json
import struct
from typing import Any

from sglang_ext.errors import DamagedStateError, StateFormError

__all__ = ["FORM", "from_bytes", "to_bytes"]

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
    except ValueError as error:
        raise DamagedStateError(f"a policy's state: {error}", fix="start without it") from error
    if not isinstance(state, dict):
        raise DamagedStateError("a policy's state that is no object", fix="start without it")
    return state


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
