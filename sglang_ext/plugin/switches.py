"""The environment's switches: stock SGLang, and going on without a seam that failed."""

import os

__all__ = ["DISABLE", "STRICT", "disabled", "strict"]

DISABLE = "SGLANG_EXT_DISABLE"
STRICT = "SGLANG_EXT_STRICT"


def disabled() -> bool:
    """Whether ``SGLANG_EXT_DISABLE`` asks for stock SGLang."""
    return os.environ.get(DISABLE, "0") not in ("", "0")


def strict() -> bool:
    """Whether a seam that failed stops the process (the default)."""
    return os.environ.get(STRICT, "1") != "0"
