"""Digests and keys: equal for what is equal, different for everything else."""

import json
import subprocess
import sys

import pytest

from sglang_ext.cache.namespace import DIGEST_BYTES, KeySpace, namespace_digest

IDENTITY = {"weights": "a" * 64, "tp": [0, 2], "arguments": {"dtype": "float32", "page_size": 64}}
POOL = {"name": "kv", "layout": "page_first", "pieces": [4096, 4096]}
HASH = "5d" * 32


def test_order_of_names_does_not_matter():
    turned = dict(reversed(IDENTITY.items()))
    assert namespace_digest(turned) == namespace_digest(IDENTITY)
    assert len(namespace_digest(IDENTITY)) == DIGEST_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "b" * 64},
        {"tp": [1, 2]},
        {"tp": [0, 1]},
        {"arguments": {"dtype": "bfloat16", "page_size": 64}},
        {"arguments": {"dtype": "float32"}},
        {"more": None},
    ],
)
def test_every_difference_is_another_namespace(change):
    assert namespace_digest({**IDENTITY, **change}) != namespace_digest(IDENTITY)


def test_it_is_the_same_in_another_process():
    code = (
        "import json, sys; from sglang_ext.cache.namespace import namespace_digest; "
        "print(namespace_digest(json.loads(sys.argv[1])).hex())"
    )
    command = [sys.executable, "-c", code, json.dumps(IDENTITY)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == namespace_digest(IDENTITY).hex()


@pytest.mark.parametrize("value", [object(), float("nan"), b"bytes"])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        namespace_digest({"value": value})


def test_keys_depend_on_namespace_pool_and_hash():
    namespace = namespace_digest(IDENTITY)
    keys = {
        KeySpace(namespace, POOL).key(HASH),
        KeySpace(namespace, {**POOL, "name": "indexer"}).key(HASH),
        KeySpace(namespace, {**POOL, "pieces": [8192]}).key(HASH),
        KeySpace(namespace_digest({}), POOL).key(HASH),
        KeySpace(namespace, POOL).key("5e" * 32),
    }
    assert len(keys) == 5
    assert {len(key) for key in keys} == {32}
    assert KeySpace(namespace, POOL).keys([HASH, HASH]) == [KeySpace(namespace, POOL).key(HASH)] * 2


def test_what_is_no_digest_is_refused():
    with pytest.raises(ValueError, match="namespace of 3 bytes"):
        KeySpace(b"abc", POOL)
    space = KeySpace(namespace_digest(IDENTITY), POOL)
    with pytest.raises(ValueError, match="page hash of 4 bytes"):
        space.key("00" * 4)
    with pytest.raises(ValueError, match="hexadecimal"):
        space.key("not hexadecimal")
