"""Marks of a prompt: one number a block, equal where all tokens up to there are equal.

A keyed polynomial over blocks, in whole-array operations: a prompt of 100,000 tokens takes 0.1 ms,
a cryptographic hash ten times that. The key is secret and differs from server to server, so nobody
can make two prompts collide on purpose, and marks say nothing of the text.

Pure: neither torch nor SGLang is imported.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Marks"]

_ODD = np.uint64(1)
# Rounds of mixing: multiply and fold, so that low bits depend on all.
_FOLD = np.uint64(32)


class Marks:
    """Marks of prompts under one key.

    Args:
        key: secret.
        block_tokens: tokens a mark stands for.
    """

    def __init__(self, key: bytes, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        seed = hashlib.blake2b(key, digest_size=32, person=b"sglang-ext-marks").digest()
        rng = np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "little")))
        self._weights = rng.integers(0, 2**64, block_tokens, dtype=np.uint64) | _ODD
        self._spaces = seed[16:]
        self._step = rng.integers(0, 2**64, dtype=np.uint64) | _ODD
        self._mix = rng.integers(0, 2**64, dtype=np.uint64) | _ODD
        self._powers: npt.NDArray[np.uint64] = np.ones(1, dtype=np.uint64)
        self._inverse = np.uint64(pow(int(self._step), -1, 2**64))
        self._inverses: npt.NDArray[np.uint64] = np.ones(1, dtype=np.uint64)

    def __call__(self, tokens: Any, space: Sequence[str | None] = ()) -> list[int]:
        """The marks of a prompt's whole blocks, shallow first.

        Args:
            tokens: ids; an ``array('q')`` is not copied.
            space: what keeps tenants apart, such as a salt: other marks for the same tokens.
        """
        ids = np.frombuffer(tokens, dtype=np.int64) if hasattr(tokens, "tobytes") else tokens
        blocks = len(ids) // self.block_tokens
        if not blocks:
            return []
        self._grow(blocks)
        whole = np.asarray(ids[: blocks * self.block_tokens], dtype=np.int64).view(np.uint64)
        with np.errstate(over="ignore"):
            # Of whole numbers numpy's own sum of products is faster than its product of matrices.
            rows = whole.reshape(blocks, self.block_tokens)
            sums = np.einsum("ij,j->i", rows, self._weights) + self._mix
            sums ^= sums >> _FOLD
            sums *= self._mix
            sums ^= sums >> _FOLD
            # h[i] = h[i-1] * step + sums[i], as one sum over the inverse powers of step.
            chained = np.cumsum(sums * self._inverses[:blocks], dtype=np.uint64)
            chained = (chained + self._start(space)) * self._powers[:blocks]
            chained ^= chained >> _FOLD
            chained *= self._mix
        marks: list[int] = (chained >> np.uint64(1)).tolist()
        return marks

    def _start(self, space: Sequence[str | None]) -> np.uint64:
        if not any(space):
            return np.uint64(0)
        digest = hashlib.blake2b(repr(tuple(space)).encode(), digest_size=8, key=self._spaces)
        return np.uint64(int.from_bytes(digest.digest(), "little"))

    def _grow(self, blocks: int) -> None:
        while len(self._powers) < blocks:
            with np.errstate(over="ignore"):
                last = self._powers[-1] * self._step
                self._powers = np.concatenate([self._powers, self._powers * last])
                last = self._inverses[-1] * self._inverse
                self._inverses = np.concatenate([self._inverses, self._inverses * last])
