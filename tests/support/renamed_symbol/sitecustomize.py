"""Renames one symbol of SGLang as soon as its module is imported, as a new release might.

Python imports this by its name from PYTHONPATH; ``RENAME_SYMBOL=module:qualified.name``.
"""

import importlib.abc
import importlib.machinery
import os
import sys

MODULE, _, NAME = os.environ.get("RENAME_SYMBOL", "").partition(":")


class Renamer(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            owner = module
            *parents, last = NAME.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            setattr(owner, last + "_moved", getattr(owner, last))
            delattr(owner, last)

        spec.loader.exec_module = exec_module
        return spec


if MODULE:
    sys.meta_path.insert(0, Renamer())
