import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_ext.errors import ConfigError
from sglang_ext.models import MODELS, default_folder, make_model
from sglang_ext.models.tiny import TinyOptions, random_weight, tiny_config, tiny_shapes

ARCHITECTURES = {
    "tiny-llama": "LlamaForCausalLM",
    "tiny-qwen2": "Qwen2ForCausalLM",
    "tiny-qwen3": "Qwen3ForCausalLM",
    "tiny-qwen3-moe": "Qwen3MoeForCausalLM",
    "tiny-deepseek-v3": "DeepseekV3ForCausalLM",
    "tiny-deepseek-v32": "DeepseekV32ForCausalLM",
}
NAMES = tuple(ARCHITECTURES)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "sglang-ext-model.json"
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes(
    tiny_folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    again = make_model(name, tmp_path / "again").path
    other = make_model(name, tmp_path / "other", seed=1).path
    assert hashes(again) == hashes(tiny_folders[name])
    differing = {key for key, value in hashes(other).items() if hashes(again)[key] != value}
    assert differing == {"model.safetensors"}


def test_weights_are_these_bytes_on_every_machine() -> None:
    assert random_weight(0, "model.norm.weight", (4,), 1.0).tobytes().hex() == (
        "d906753fdf4d803f52bf7b3fa7667d3f"
    )
    assert random_weight(7, "x", (2, 3), 2.0).tolist() == [
        [-0.35007286071777344, -0.6749591827392578, 0.9921262264251709],
        [1.9945697784423828, 0.2289414405822754, 1.7036981582641602],
    ]


def test_weights_have_the_size_that_is_documented() -> None:
    weight = random_weight(0, "w", (400, 900), 2.0)
    assert weight.dtype == np.float32
    assert float(weight.std()) == pytest.approx(2.0 / 30, rel=0.01)
    assert abs(float(weight.mean())) < 0.001
    vector = random_weight(0, "v", (1000,), 1.0)
    assert 0.9 <= float(vector.min()) < float(vector.max()) <= 1.1


@pytest.mark.parametrize("name", NAMES)
def test_transformers_finds_every_weight_and_no_other(
    tiny_folders: dict[str, Path], name: str
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        tiny_folders[name], output_loading_info=True
    )
    assert type(model).__name__ == ARCHITECTURES[name]
    assert not any(loading.values()), loading
    assert model.dtype == torch.float32
    check_that_mistakes_would_show(model, torch)


def check_that_mistakes_would_show(model: Any, torch: Any) -> None:
    """Logits spread, greedy text does not repeat, an early token is felt at the end."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 49000, (1, 96), generator=generator)
    changed = ids.clone()
    changed[0, 20] = 77
    with torch.no_grad():
        logits = model(ids).logits[0]
        moved = (model(changed).logits[0, -1] - logits[-1]).abs().max()
        answer = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
        )[0, 96:]
    assert 1.5 < float(logits.std()) < 2.5
    best = logits.topk(2, -1).values
    assert float((best[:, 0] - best[:, 1]).median()) > 0.1
    assert len(set(answer.tolist())) >= 14
    assert float(moved) > 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_heads_and_experts_divide_over_ranks(name: str, ranks: int) -> None:
    config = tiny_config(name, TinyOptions())
    keys = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    moe = ("num_experts", "n_routed_experts", "moe_intermediate_size")
    values = {key: config[key] for key in (*keys, *moe) if key in config}
    assert {key: value % ranks for key, value in values.items()} == dict.fromkeys(values, 0)


def test_options_reach_the_config_and_the_shapes() -> None:
    config = tiny_config("tiny-llama", TinyOptions(layers=3, kv_heads=8))
    shapes = tiny_shapes("tiny-llama", config)
    assert config["num_hidden_layers"] == 3
    assert shapes["model.layers.2.self_attn.k_proj.weight"][0] == (512, 128)
    assert "model.layers.3.input_layernorm.weight" not in shapes
    assert tiny_config("tiny-deepseek-v32", TinyOptions(index_topk=64))["index_topk"] == 64


def test_the_qwen_models_have_biases_or_norms_of_heads() -> None:
    llama = set(tiny_shapes("tiny-llama", tiny_config("tiny-llama", TinyOptions())))
    for name, more in (
        ("tiny-qwen2", {"q_proj.bias": 128, "k_proj.bias": 32, "v_proj.bias": 32}),
        ("tiny-qwen3", {"q_norm.weight": 64, "k_norm.weight": 64}),
    ):
        shapes = tiny_shapes(name, tiny_config(name, TinyOptions(layers=2, kv_heads=2)))
        expected = {
            f"model.layers.{layer}.self_attn.{part}": (size,)
            for layer in range(2)
            for part, size in more.items()
        }
        assert {key: shapes[key][0] for key in shapes.keys() - llama} == expected
        assert llama <= shapes.keys()


def test_the_deepseek_model_has_a_dense_and_an_expert_layer() -> None:
    shapes = tiny_shapes("tiny-deepseek-v32", tiny_config("tiny-deepseek-v32", TinyOptions()))
    by_layer = {
        layer: {key.split(".", 3)[3] for key in shapes if key.startswith(f"model.layers.{layer}.")}
        for layer in (0, 1)
    }
    indexer = {key for key in by_layer[0] if ".indexer." in key}
    assert indexer == {
        f"self_attn.indexer.{part}"
        for part in ("wq_b.weight", "wk.weight", "k_norm.weight", "k_norm.bias")
    } | {"self_attn.indexer.weights_proj.weight"}
    assert indexer <= by_layer[1]
    assert by_layer[0] - by_layer[1] == {f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")}
    experts = {
        f"mlp.{block}.{part}_proj.weight"
        for block, part in itertools.product(
            [*(f"experts.{i}" for i in range(8)), "shared_experts"], ("gate", "up", "down")
        )
    }
    assert by_layer[1] - by_layer[0] == experts | {
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tiny-llama", {"kv_heads": 3}, "--kv-heads 3 does not divide 8 heads"),
        ("tiny-llama", {"layers": 0}, "--layers 0 is out of range: expected 1 to 128"),
        ("tiny-llama", {"seed": -1}, "--seed -1 is out of range"),
        ("tiny-llama", {"index_topk": 4}, "--index-topk 4 does not apply to tiny-llama"),
        ("tiny-deepseek-v32", {"kv_heads": 4}, "--kv-heads 4 does not apply"),
        ("tiny-deepseek-v32", {"index_topk": 0}, "--index-topk 0 is out of range"),
        ("smollm2", {"seed": 0}, "--seed 0 does not apply to smollm2: only to tiny-llama"),
        ("smollm2", {"dtype": "int4"}, "unknown dtype 'int4': expected one of float32, bfloat16"),
        ("gpt", {}, "unknown model 'gpt': expected one of smollm2, tiny-llama"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(name, tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_halves_the_weights(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    half = make_model("tiny-llama", tmp_path / "m", dtype="bfloat16").path
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = load_file(half / "model.safetensors")
    exact = load_file(tiny_folders["tiny-llama"] / "model.safetensors")
    assert rounded.keys() == exact.keys()
    assert all(torch.equal(rounded[key], exact[key].bfloat16()) for key in exact)


def test_the_default_folder_is_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    root = Path("/home/someone/.cache/sglang-ext/models")
    assert [default_folder(name) for name in MODELS] == [root / name for name in MODELS]
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_folder("smollm2") == Path("/cache/sglang-ext/models/smollm2")
