"""Our flags in ``sglang serve --help``, which SGLang prints before it loads any plugin.

No hook reaches that: hooks are put in place by the loader that has not run. What does run in time
is our platform's entry point, while ``sglang`` is being imported. For this one command line it
waits for the module of the command and has its help load the plugins first.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["load_plugins_before_help"]

_COMMAND = "sglang.cli.serve"


def load_plugins_before_help(argv: Sequence[str]) -> None:
    """Arrange it where ``argv`` is ``sglang serve`` asking for help; does nothing elsewhere.

    Source: ``_print_general_help`` in ``sglang/cli/serve.py``, release 0.5.23.
    """
    asked = "-h" in argv or "--help" in argv
    if argv[1:2] == ["serve"] and asked and _COMMAND not in sys.modules:
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Finds nothing itself; changes the command's module once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, with our change behind its execution."""
        if fullname != _COMMAND:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _change(module: ModuleType) -> None:
    plain: Callable[..., Any] | None = getattr(module, "_print_llm_help", None)
    if plain is None:
        return  # help without our flags is still help; `doctor` names the symbol that moved

    @functools.wraps(plain)
    def print_help(*args: Any) -> Any:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        return plain(*args)

    setattr(module, plain.__name__, print_help)
