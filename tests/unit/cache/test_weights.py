"""Fingerprints of models: contents alone."""

import json
import os
import shutil
import struct

import pytest

from sglang_ext.cache.weights import find_model, weights_fingerprint
from sglang_ext.errors import ModelError

TENSOR_BYTES = 40_000


def safetensors(tensors):
    header, data, offset = {"__metadata__": {"format": "pt"}}, b"", 0
    for name, content in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(content)]}
        header[name]["data_offsets"] = [offset, offset + len(content)]
        data, offset = data + content, offset + len(content)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "tokenizer.json").write_text("{}")
    tensors = {f"layer.{i}": bytes([i]) * TENSOR_BYTES for i in range(20)}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


def test_a_copy_elsewhere_at_another_time_is_the_same(model, tmp_path):
    copy = tmp_path / "another-name"
    shutil.copytree(model, copy)
    os.utime(copy / "model.safetensors", (1, 1))
    assert weights_fingerprint(copy) == weights_fingerprint(model)


def test_a_hub_snapshot_of_links_is_the_same(model, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert weights_fingerprint(snapshot) == weights_fingerprint(model)


def test_what_is_not_about_weights_does_not_matter(model):
    before = weights_fingerprint(model)
    (model / "tokenizer.json").write_text('{"other": true}')
    (model / "generation_config.json").write_text('{"temperature": 0}')
    (model / "README.md").write_text("hello")
    assert weights_fingerprint(model) == before


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "params.json", "hf_quant_config.json", "quant_model_description.json"),
        *("sparse_attention_config.json", "adapter_config.json", "modeling_custom.py"),
    ],
)
def test_configuration_and_model_code_do(model, name):
    before = weights_fingerprint(model)
    (model / name).write_text('{"hidden_size": 16}')
    assert weights_fingerprint(model) != before


@pytest.mark.parametrize("tensor", [0, 7, 19])
def test_one_tensor_that_was_trained_is_another_model(model, tensor):
    before = weights_fingerprint(model)
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = len(content) - 20 * TENSOR_BYTES + tensor * TENSOR_BYTES
    content[start : start + TENSOR_BYTES] = b"\xaa" * TENSOR_BYTES
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights_fingerprint(model) != before


def test_a_file_that_was_cut_or_renamed_is_another_model(model):
    path = model / "model.safetensors"
    before = {weights_fingerprint(model)}
    path.rename(model / "other.safetensors")
    before.add(weights_fingerprint(model))
    content = (model / "other.safetensors").read_bytes()
    (model / "other.safetensors").write_bytes(content[:-1])
    before.add(weights_fingerprint(model))
    assert len(before) == 3


@pytest.mark.parametrize(
    "header", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 4) + b"nope"]
)
def test_a_broken_header_is_read_in_places_instead(model, header):
    path = model / "model.safetensors"
    path.write_bytes(header + bytes(TENSOR_BYTES))
    before = weights_fingerprint(model)
    path.write_bytes(header + bytes(TENSOR_BYTES - 1) + b"\x01")  # the end is one of the places
    assert weights_fingerprint(model) != before


def test_a_single_file_is_a_model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(5000))
    assert len(weights_fingerprint(path)) == 64


def test_configuration_beside_a_single_file_matters(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(5000))
    before = weights_fingerprint(path)
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert weights_fingerprint(path) == before
    (tmp_path / "config.json").write_text("{}")
    assert weights_fingerprint(path) != before


def test_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds no weights"):
        weights_fingerprint(tmp_path)


def test_weights_that_cannot_be_read(model):
    (model / "broken.safetensors").symlink_to(model / "nowhere")
    weights_fingerprint(model)  # a link to nothing is no file
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        weights_fingerprint(model)


def test_models_by_path_by_name_and_elsewhere(model, tmp_path, monkeypatch):
    assert find_model(str(model)) == model
    assert find_model("s3://bucket/model") is None
    assert find_model("") is None
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    assert find_model("org/name") is None
    snapshot = hub / "models--org--name" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    refs = hub / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc123\n")
    assert find_model("org/name") == snapshot
    assert find_model("org/name", "abc123") == snapshot
    assert find_model("org/name", "v2") is None
