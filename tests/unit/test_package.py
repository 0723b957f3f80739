"""The package as a whole: what importing it costs, and where its arrows point."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sglang_ext
from sglang_ext import errors

PACKAGE = Path(sglang_ext.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# A room may import from those right of it.
ALLOWED = {
    "cache": {"errors"},
    "context_parallel": {"device", "errors"},
    "device": {"errors"},
    "models": {"errors"},
    "patching": {"errors", "upstream"},
    "config": {"errors"},
    "upstream": {"errors"},
    "errors": set(),
    "arguments": {"cache", "config", "context_parallel", "errors"},
    "serve_help": set(),
    "plugin": {
        *("arguments", "cache", "config", "context_parallel", "device", "errors", "serve_help"),
        *("tools", "upstream"),
    },
    "tools": {"errors"},
    "bench": {"cache", "context_parallel", "device", "errors", "models", "replay", "tools"},
    "replay": {"cache", "errors"},
}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "sglang_ext",
        "sglang_ext.config",
        "sglang_ext.arguments",
        "sglang_ext.plugin",
        "sglang_ext.plugin.server",
        "sglang_ext.upstream.table",
        "sglang_ext.cache.curves",
        "sglang_ext.cache.faults",
        "sglang_ext.cache.folder",
        "sglang_ext.cache.hits",
        "sglang_ext.cache.advice",
        "sglang_ext.cache.carrier",
        "sglang_ext.cache.front",
        "sglang_ext.cache.hooks",
        "sglang_ext.cache.index",
        "sglang_ext.cache.install",
        "sglang_ext.cache.keys",
        "sglang_ext.cache.mirror",
        "sglang_ext.cache.namespace",
        "sglang_ext.cache.placement",
        "sglang_ext.cache.quiet",
        "sglang_ext.cache.opening",
        "sglang_ext.cache.refresh",
        "sglang_ext.cache.regret",
        "sglang_ext.cache.requests",
        "sglang_ext.cache.traffic",
        "sglang_ext.cache.upkeep",
        "sglang_ext.cache.weights",
        "sglang_ext.cache.store",
        "sglang_ext.context_parallel.hooks",
        "sglang_ext.context_parallel.names",
        "sglang_ext.context_parallel.plan",
        "sglang_ext.cli.main",
        "sglang_ext.tools.bounded",
        "sglang_ext.tools.calls",
        "sglang_ext.tools.complete",
        "sglang_ext.tools.decoding",
        "sglang_ext.tools.ebnf",
        "sglang_ext.tools.answers",
        "sglang_ext.tools.endpoints",
        "sglang_ext.tools.grammar_cache",
        "sglang_ext.tools.grammars",
        "sglang_ext.tools.requests",
        "sglang_ext.tools.sampling",
        "sglang_ext.tools.schema",
        "sglang_ext.tools.texts",
        "sglang_ext.tools.warming",
        "sglang_ext.models",
    ],
)
def test_import_needs_neither_torch_nor_sglang(module):
    code = f"import sys; sys.modules['torch'] = sys.modules['sglang'] = None; import {module}"
    result = run(code)
    assert result.returncode == 0, result.stderr


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "sglang_ext":
                names = [f"sglang_ext.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("sglang_ext."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = ALLOWED.get(room)
    if allowed is None:  # the command line stands above all rooms
        assert room in ("cli", "__init__")
        return
    above = {r for r in imported_rooms(path) if r not in allowed | {room, "__version__"}}
    assert not above, f"{room} imports from {sorted(above)}"


def test_py_typed_is_shipped():
    assert (PACKAGE / "py.typed").exists()


def test_every_error_is_drawn_and_exported():
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SglangExtError)
    }
    assert set(errors.__all__) == classes
    for name in classes:
        assert name in (errors.__doc__ or "")


def test_version_is_one():
    from importlib.metadata import version

    assert sglang_ext.__version__ == version("sglang-ext")
