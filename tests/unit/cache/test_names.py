"""Digests of names that clients give."""

import hashlib

from sglang_ext.cache.names import named, session_of, tenant_of
from sglang_ext.cache.sessions import session_hint


def test_who_lacks_the_key_cannot_guess_names():
    digest = session_hint(user="alice@example.com", key=b"secret")
    guess = hashlib.blake2b(b"user:alice@example.com", digest_size=16).hexdigest()
    assert digest not in (guess, session_hint(user="alice@example.com"))
    assert digest == session_hint(user="alice@example.com", key=b"secret")
    assert len(digest) == 32


def test_where_a_part_ends_counts():
    assert named(b"k", "ab", "c") != named(b"k", "a", "bc")
    assert tenant_of(b"k", "x", None) != tenant_of(b"k", None, "x")
    assert tenant_of(b"k", "", None) == ""


def test_sessions_of_two_tenants_differ():
    a, b = (session_of(b"k", tenant_of(b"k", None, salt), "s") for salt in "ab")
    assert len({a, b, session_of(b"k", "", "s")}) == 3


def test_names_that_are_no_text():
    assert len(named(b"k", "\ud800")) == 32
