"""Ends of chains of pages that somebody looks after.

A chain is named by the page at which it ended when it was told; as pages of its end are evicted,
what is left keeps the name.

Not thread-safe: the catalog's lock is held by every caller. Pure.
"""

from collections import OrderedDict

__all__ = ["Ends"]

# Default: 65,536. Cost: 250 bytes each.
_MOST = 65_536


class Ends:
    """Chains by name and by the row where they end."""

    def __init__(self) -> None:
        self._rows: OrderedDict[bytes, int | None] = OrderedDict()  # None: still to come
        self._names: dict[int, bytes] = {}

    def know(self, name: bytes, row: int | None) -> None:
        """A chain ends with the page ``name``, at ``row``; None: it is still to come."""
        self.forget(name)
        self._rows[name] = None
        if row is not None:
            self.move(name, row)
        if len(self._rows) > _MOST:
            self.forget(next(iter(self._rows)))

    def came(self, name: bytes, row: int) -> None:
        """A page has come; it may be one that was told before."""
        if name in self._rows:
            self.move(name, row)

    def move(self, name: bytes, row: int) -> None:
        """The chain ends at ``row`` now; another name that it had there is forgotten."""
        before = self._rows.get(name)
        if before is not None:
            del self._names[before]
        older = self._names.get(row)
        if older is not None and older != name:
            del self._rows[older]
        self._names[row] = name
        self._rows[name] = row

    def forget(self, name: bytes) -> None:
        """Nobody looks after a chain any more."""
        row = self._rows.pop(name, None)
        if row is not None:
            del self._names[row]

    def gone(self, row: int) -> None:
        """A row is free."""
        name = self._names.pop(row, None)
        if name is not None:
            del self._rows[name]

    def row_of(self, name: bytes) -> int | None:
        """Where a chain ends; None: not known."""
        return self._rows.get(name)

    def name_of(self, row: int) -> bytes | None:
        """Whose end a row is; None: nobody's."""
        return self._names.get(row)

    def is_sound(self) -> bool:
        """Whether both ways to look agree."""
        return {row: name for name, row in self._rows.items() if row is not None} == self._names
