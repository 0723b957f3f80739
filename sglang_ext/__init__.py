"""Extension that makes a stock SGLang server fit for agent workloads.

Importing this package needs neither torch nor SGLang; rooms that need them import them
themselves. See ``docs/architecture.md`` for the rooms and the direction of the arrows.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
