"""A flag of SGLang itself that one of ours sets."""

from dataclasses import dataclass
from typing import Any

__all__ = ["StockSetting"]


@dataclass(frozen=True)
class StockSetting:
    """A stock flag that a capability sets.

    ``overridable`` settings are defaults: a value given by the user wins. The others are what
    the capability stands on: a different value given by the user is a conflict.
    """

    field: str  # attribute of SGLang's record of arguments
    value: Any
    because: str  # the --ext-* flag that asks for it
    overridable: bool = False

    @property
    def stock_flag(self) -> str:
        """The stock flag as typed on the command line."""
        return "--" + self.field.replace("_", "-")
