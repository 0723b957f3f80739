"""All symbols of SGLang that are touched: the rows of each room, one room a line."""

from sglang_ext.upstream import (
    context_parallel,
    device,
    requests,
    serving,
    storage,
    tools,
    tree,
)
from sglang_ext.upstream.symbols import Symbol

__all__ = ["SYMBOLS"]

SYMBOLS: tuple[Symbol, ...] = (
    *serving.SYMBOLS,
    *device.SYMBOLS,
    *context_parallel.SYMBOLS,
    *storage.SYMBOLS,
    *requests.SYMBOLS,
    *tree.SYMBOLS,
    *tools.SYMBOLS,
)
