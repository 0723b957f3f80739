"""What a model is, told from its files: a fingerprint of its contents, never of names or times.

Two servers may share cached pages only if they compute with the same weights. A path says nothing
about that, and a time of change says too much: a copied folder would be another model.

Pure: neither torch nor SGLang is imported.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sglang_ext.errors import ModelError

__all__ = ["find_model", "weights_fingerprint"]

# Files that decide what the weights mean: read whole. The tokenizer is not among them, because a
# page is known by its token ids.
_WHOLE = ("config.json", "hf_quant_config.json", "quantize_config.json", "quant_config.json")
_WHOLE_SUFFIXES = (".index.json", ".py")
_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")

# Bytes read at each place, and places in a file that does not list its tensors in front. A tensor
# of a safetensors file is read at one place.
_SAMPLE_BYTES = 4096
_PLACES = 256
_THREADS = 8
# The format's own limit.
_MAX_HEADER_BYTES = 100_000_000


def find_model(name: str, revision: str | None = None) -> Path | None:
    """The files of a model given as a path, or by its name on a hub.

    Args:
        name: what ``--model-path`` says.
        revision: branch, tag or commit on the hub; None for ``main``.

    Returns:
        A folder or a file on this machine; None where the weights come from elsewhere (a URL), so
        that nothing can be said about them.
    """
    if not name or "://" in name:
        return None
    try:
        path = Path(name).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError):
        return None
    return _in_hub_cache(name, revision or "main")


def _in_hub_cache(name: str, revision: str) -> Path | None:
    home = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    model = hub / f"models--{name.replace('/', '--')}"
    try:
        commit = (model / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = model / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def weights_fingerprint(model: Path) -> str:
    """64 hexadecimal digits that follow from what the model's files hold.

    Reads configurations and model code whole; of weights the size, the header, and a sample of
    each tensor. Blocks for as long as that takes.

    ASSUMPTION: weights that were changed differ in the 4 KiB in the middle of at least one
    tensor. Training, merging and quantising change all of a tensor. An edit of single numbers by
    hand need not: clear the cache after one.

    Raises:
        ModelError: there is nothing that could be weights, or a file cannot be read.
    """
    try:
        if model.is_dir():
            files = sorted(path for path in model.iterdir() if _matters(path))
        else:
            files = [model]
        if not any(path.suffix in _WEIGHTS_SUFFIXES for path in files):
            raise ModelError(f"{model} holds no weights (*{', *'.join(_WEIGHTS_SUFFIXES)})")
        with ThreadPoolExecutor(_THREADS) as threads:
            digests = list(threads.map(_file_digest, files))
    except OSError as error:
        raise ModelError(f"{error.filename or model} cannot be read: {error.strerror}") from error
    whole = hashlib.sha256(b"sglang-ext weights 1\0")
    for path, digest in zip(files, digests, strict=True):
        whole.update(f"{path.name if model.is_dir() else ''}\0".encode())
        whole.update(digest)
    return whole.hexdigest()


def _matters(path: Path) -> bool:
    name = path.name
    return path.is_file() and (
        name in _WHOLE or name.endswith(_WHOLE_SUFFIXES) or path.suffix in _WEIGHTS_SUFFIXES
    )


def _file_digest(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        if path.suffix not in _WEIGHTS_SUFFIXES:
            return hashlib.file_digest(file, "sha256").digest()
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        digest = hashlib.sha256(struct.pack("<Q", size))
        header = _safetensors_header(descriptor, size) if path.suffix == ".safetensors" else b""
        digest.update(header)
        for offset in _places(header, size):
            digest.update(os.pread(descriptor, _SAMPLE_BYTES, offset))
        return digest.digest()


def _safetensors_header(descriptor: int, size: int) -> bytes:
    """The header of a safetensors file; empty where there is none."""
    prefix = os.pread(descriptor, 8, 0)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
        return b""
    return os.pread(descriptor, length, 8)


def _places(header: bytes, size: int) -> Iterator[int]:
    """Where samples are read: the middle of each tensor; or spread over the file, ends included."""
    try:
        tensors = json.loads(header) if header else {}
        spans = [
            tensor["data_offsets"]
            for name, tensor in sorted(tensors.items())
            if name != "__metadata__"
        ]
        base = 8 + len(header)
        middles = [base + start + (end - start) // 2 for start, end in spans]
    except (ValueError, KeyError, TypeError, AttributeError):  # not what the format promises
        middles = []
    if middles:
        # Half a sample before the middle, so that tensors of one sample are read whole.
        yield from (max(0, middle - _SAMPLE_BYTES // 2) for middle in middles)
        return
    last = max(0, size - _SAMPLE_BYTES)
    yield from (last * place // (_PLACES - 1) for place in range(_PLACES))
