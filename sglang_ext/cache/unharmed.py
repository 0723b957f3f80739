"""Faults in what is learned of requests must not end the scheduler, which serves them.

Pure: neither torch nor SGLang is imported.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from sglang_ext.cache.quiet import LogGate

__all__ = ["unharmed"]

logger = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_gate = LogGate()


def unharmed(otherwise: object) -> Callable[[_Function], _Function]:
    """Make a function that logs what it raises, once in a while, and returns ``otherwise``.

    Args:
        otherwise: the result of a call that failed.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> object:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                others = _gate.admits(f"{function.__qualname__} {type(error).__name__}")
                if others is not None:
                    logger.exception(
                        "The cache policy missed something; requests are served all the same "
                        "(%d more not logged)",
                        others,
                    )
                return otherwise

        return cast("_Function", call)

    return decorate
