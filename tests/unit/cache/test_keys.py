"""Keys of pages: the bytes of SGLang's own helper, chained."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.cache.keys import WIDE_TAG, page_keys

IDS = st.lists(st.integers(0, 2**40), max_size=70)


def oracle(tokens, prior, page):
    """The definition, one token at a time."""
    keys = []
    for start in range(0, len(tokens), page):
        part = tokens[start : start + page]
        wide = any(token > 0xFFFFFFFF for token in part)
        text = b"".join(struct.pack("<Q" if wide else "<I", token) for token in part)
        prior = hashlib.sha256((prior or b"") + (WIDE_TAG if wide else b"") + text).digest()
        keys.append(prior.hex())
    return keys


def test_keys_of_sglangs_own_helper():
    # Printed by sglang 0.5.23's compiled get_hash; tests/compat runs it where it can be built.
    assert page_keys([1, 2, 3, 4, 5], None, 2) == [
        "34fb5c825de7ca4aea6e712f19d439c1da0c92c37b423936c5f618545ca4fa1f",
        "c57b445f90651b9a650e516ab2238c965b21af35608a31c303e6d9e407f2915c",
        "e1fd781b60f933e64fe17100c521f3130659b4761e25f7b79abcf81ae5aa23cf",
    ]
    assert page_keys([2**33, 7], bytes(32), None) == [
        "2c5903198397a9115a4a7d3b5ee168bf85e52f834b59d8454e139df96f645d42"
    ]


@given(IDS, st.integers(1, 17), st.none() | st.binary(min_size=32, max_size=32))
def test_keys_equal_the_definition(tokens, page, prior):
    assert page_keys(tokens, prior, page) == oracle(tokens, prior, page)


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=60), st.integers(1, 8))
def test_a_prefix_has_the_keys_of_its_whole_pages(tokens, page):
    cut = len(tokens) // 2 // page * page
    assert page_keys(tokens, None, page)[: cut // page] == page_keys(tokens[:cut], None, page)


def test_units_of_several_ids_are_one_after_another():
    assert page_keys([(1, 2), (2, 3)], None, 2) == oracle([1, 2, 2, 3], None, 4)


def test_empty_prompt():
    assert page_keys([], None, 16) == []
    assert page_keys([], None, None) == [hashlib.sha256(b"").hexdigest()]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([1], b"short", 4), ValueError),
        (([1], None, 0), ValueError),
        (([-1], None, 4), ValueError),
        (([2**64], None, 4), OverflowError),
    ],
)
def test_bad_input_is_refused(arguments, error):
    with pytest.raises(error):
        page_keys(*arguments)
