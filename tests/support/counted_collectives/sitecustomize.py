"""Writes down every collective that torch starts, a line each, as soon as torch is imported.

Python imports this by its name from PYTHONPATH; ``COUNT_COLLECTIVES=FILE``. A line is the process,
the name of the collective, the ranks, and type, rows and bytes of what this rank sends.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys

FILE = os.environ.get("COUNT_COLLECTIVES", "")
MODULE = "torch.distributed.distributed_c10d"
# What is sent, among the positional arguments.
SENT = {
    "all_gather_into_tensor": 1,
    "all_gather_single": 1,
    "all_gather": 1,
    "all_reduce": 0,
    "all_to_all_single": 1,
    "reduce_scatter_tensor": 1,
    "reduce_scatter_single": 1,
}

inside = []


def counted(module, name, sent):
    plain = getattr(module, name)

    @functools.wraps(plain)
    def call(*args, **kwargs):
        if inside:  # an older name calls the newer one
            return plain(*args, **kwargs)
        names = ("input_tensor", "tensor", "input")
        tensor = args[sent] if len(args) > sent else next(kwargs[n] for n in names if n in kwargs)
        ranks = module.get_world_size(kwargs.get("group"))
        size = tensor.numel() * tensor.element_size()
        rows = tensor.shape[0] if tensor.dim() else 1
        with open(FILE, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {name} {ranks} {tensor.dtype} {rows} {size}\n")
        inside.append(name)
        try:
            return plain(*args, **kwargs)
        finally:
            inside.pop()

    return call


class Counter(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for name, sent in SENT.items():
                setattr(module, name, counted(module, name, sent))

        spec.loader.exec_module = exec_module
        return spec


if FILE:
    sys.meta_path.insert(0, Counter())
