"""Marks of prompts: equal where prompts are, under one key."""

import random
from array import array

import pytest

from sglang_ext.cache.marks import Marks


def prompt(count, seed=0):
    generator = random.Random(seed)
    return array("q", [generator.randrange(50_000) for _ in range(count)])


def test_equal_prefix_has_equal_marks_and_nothing_else_has():
    marks, tokens = Marks(b"key", 16), prompt(1000)
    known = marks(tokens)
    assert len(known) == len(set(known)) == 1000 // 16
    assert marks(tokens[:320]) == known[:20]
    changed = array("q", tokens)
    changed[320] += 1
    other = marks(changed)
    assert other[:20] == known[:20]
    assert not set(other[20:]) & set(known)


def test_moved_blocks_have_other_marks():
    marks, tokens = Marks(b"key", 16), prompt(64)
    swapped = tokens[16:32] + tokens[:16] + tokens[32:]
    assert not set(marks(swapped)) & set(marks(tokens))


@pytest.mark.parametrize("other", [Marks(b"another", 16), Marks(b"", 16)])
def test_key_changes_all(other):
    tokens = prompt(64)
    assert not set(Marks(b"key", 16)(tokens)) & set(other(tokens))
    assert Marks(b"key", 16)(tokens) == Marks(b"key", 16)(tokens)


def test_spaces_are_apart():
    marks, tokens = Marks(b"key", 16), prompt(64)
    plain, salted = marks(tokens), marks(tokens, ("salt", None))
    assert not set(plain) & set(salted)
    assert salted != marks(tokens, (None, "salt"))
    assert marks(tokens, (None, None)) == plain


def test_less_than_a_block_has_none():
    assert Marks(b"key", 16)(prompt(15)) == []


def test_numbers_fit_a_signed_word():
    assert all(0 <= mark < 2**63 for mark in Marks(b"key", 1)(prompt(2000)))
