"""A state's bytes: what is wrong with them is told apart."""

import struct

import pytest

from sglang_ext.cache.state import FORM, from_bytes, to_bytes
from sglang_ext.errors import DamagedStateError, StateFormError


def test_a_state_comes_back():
    state = {"a": [1, 2.5, None], "b": {"c": "text"}}
    assert from_bytes(to_bytes(state)) == state


def test_each_byte_counts():
    data = to_bytes({"a": 1})
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        with pytest.raises((DamagedStateError, StateFormError)):
            from_bytes(bytes(broken))
    for end in range(len(data)):
        with pytest.raises(DamagedStateError):
            from_bytes(data[:end])


def test_another_form_is_told_apart():
    data = bytearray(to_bytes({}))
    struct.pack_into("<I", data, 4, FORM + 1)
    with pytest.raises(StateFormError, match=f"form {FORM + 1}"):
        from_bytes(bytes(data))


def test_what_is_no_object_is_refused():
    with pytest.raises(DamagedStateError, match="no object"):
        from_bytes(to_bytes([1]))  # type: ignore[arg-type]
