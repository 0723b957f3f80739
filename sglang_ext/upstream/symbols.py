"""A symbol of SGLang, and whether it is still where it was read and takes what we pass."""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from sglang_ext.errors import CompatibilityError
from sglang_ext.upstream.releases import INSTALL_TESTED

__all__ = ["Symbol", "check_symbol", "resolve"]


@dataclass(frozen=True)
class Symbol:
    """One name of SGLang that we hook, call or read.

    ``parameters`` are those we pass or receive by name or position; others may come and go.
    """

    path: str  # module:qualified.name
    relied_on: str
    parameters: tuple[str, ...] = ()


def resolve(path: str) -> Any:
    """The object at ``module:qualified.name``.

    Raises:
        CompatibilityError: the module or the name is not there.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        absent = getattr(error, "name", None) or ""
        if isinstance(error, ModuleNotFoundError) and absent.split(".")[0] != "sglang":
            raise CompatibilityError(
                f"{module_name} cannot be imported: {error}",
                fix="install that package (requirements/server.txt names what SGLang needs)",
            ) from error
        raise CompatibilityError(
            f"{path} is not in this SGLang ({error})", fix=INSTALL_TESTED
        ) from error
    # A broken shared library under it, or a platform that SGLANG_PLATFORM names and nobody has.
    except (OSError, RuntimeError, KeyError) as error:
        raise CompatibilityError(f"{module_name} cannot be imported: {error}") from error
    return found


def check_symbol(symbol: Symbol) -> None:
    """Check that ``symbol`` exists and has the parameters that are relied on.

    Raises:
        CompatibilityError: it moved, or its signature changed.
    """
    found = resolve(symbol.path)
    if not symbol.parameters:
        return
    present = inspect.signature(found).parameters
    missing = [name for name in symbol.parameters if name not in present]
    if missing:
        raise CompatibilityError(
            f"{symbol.path} no longer takes {', '.join(missing)} (it takes {', '.join(present)})",
            fix=INSTALL_TESTED,
        )
