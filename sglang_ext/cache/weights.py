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

__all__ = ["contents_digest", "find_model", "weights_fingerprint"]

# Files that decide what the weights mean: read whole. SGLang reads a dozen of them (config.json,
# params.json, hf_quant_config.json, quant_model_description.json, adapter_config.json, ...), and
# each release more, so all count but those that come after a page is known by its token ids, or
# are about what is generated.
_WHOLE_SUFFIXES = (".json", ".py")
_OTHERS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "tekken.json", "chat_template.json", "generation_config.json"),
)
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
    each tensor. Blocks for as long as that takes. Beside a model that is one file, SGLang reads
    the configurations in its folder.

    Args:
        model: a model or an adapter; a folder or a file of weights.

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
            beside = (path for path in model.parent.iterdir() if _is_whole(path))
            files = [model, *sorted(beside)]
        if not any(path.suffix in _WEIGHTS_SUFFIXES for path in files):
            raise ModelError(f"{model} holds no weights (*{', *'.join(_WEIGHTS_SUFFIXES)})")
        with ThreadPoolExecutor(_THREADS) as threads:
            digests = list(threads.map(_file_digest, files))
    except OSError as error:
        raise _unreadable(model, error) from error
    whole = hashlib.sha256(b"sglang-ext weights 1\0")
    for path, digest in zip(files, digests, strict=True):
        whole.update(f"{'' if path == model else path.name}\0".encode())
        whole.update(digest)
    return whole.hexdigest()


def contents_digest(path: Path) -> str:
    """64 hexadecimal digits that follow from what a file, or a folder of weights, holds.

    Raises:
        ModelError: it cannot be read.
    """
    if path.is_dir():
        return weights_fingerprint(path)
    try:
        return _file_digest(path).hex()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{error.filename or path} cannot be read: {error.strerror}")


def _is_whole(path: Path) -> bool:
    return path.name.endswith(_WHOLE_SUFFIXES) and path.name not in _OTHERS and path.is_file()


def _matters(path: Path) -> bool:
    return _is_whole(path) or (path.suffix in _WEIGHTS_SUFFIXES and path.is_file())


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
