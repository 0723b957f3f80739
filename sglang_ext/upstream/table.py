"""All symbols of SGLang that are touched: the rows of each room, one room a line."""

from sglang_ext.upstream import device, requests, serving, storage, tree
from sglang_ext.upstream.symbols import Symbol

__all__ = ["SYMBOLS"]

SYMBOLS: tuple[Symbol, ...] = (
    *serving.SYMBOLS,
    *device.SYMBOLS,
    *storage.SYMBOLS,
    *requests.SYMBOLS,
    *tree.SYMBOLS,
)
