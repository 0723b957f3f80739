import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_ext.errors import ModelError
from sglang_ext.models.gguf_source import GgufFile, unpermute_rope_rows
from sglang_ext.models.smollm2 import read_config, read_weights


def test_the_config_is_that_of_the_real_model(source: GgufFile) -> None:
    config = read_config(source, "float32")
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "rope_theta": 100000,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected


def test_rows_go_back_to_halves() -> None:
    # One row a (head, half, position); llama.cpp's order interleaves the halves.
    ours = np.array([[100 * h + 10 * j + i] for h in range(2) for j in range(2) for i in range(3)])
    theirs = np.array(
        [[100 * h + 10 * j + i] for h in range(2) for i in range(3) for j in range(2)]
    )
    back = unpermute_rope_rows(theirs.astype(np.float32), heads=2)
    assert back.tolist() == ours.tolist()


def test_a_tensor_without_a_place_is_refused(source: GgufFile) -> None:
    config = {**read_config(source, "float32"), "num_hidden_layers": 29}
    with pytest.raises(ModelError, match=r"no place for: blk\.29\.attn_k\.weight"):
        list(read_weights(source, config))


def test_another_architecture_is_refused(source: GgufFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "metadata", lambda key: "mamba")
    with pytest.raises(ModelError, match="holds a 'mamba' model, expected 'llama'"):
        read_config(source, "float32")


def test_the_model_answers_in_transformers(smollm2_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, loading = AutoModelForCausalLM.from_pretrained(smollm2_folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert ask(model, tokenizer, "What is the capital of France?") == (
        "The capital of France is Paris.<|im_end|>"
    )


def ask(model: Any, tokenizer: Any, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :]))


def test_the_folder_holds_what_a_server_reads(smollm2_folder: Path) -> None:
    assert {path.name for path in smollm2_folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "sglang-ext-model.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        "chat_template.jinja",
    }
    special = json.loads((smollm2_folder / "special_tokens_map.json").read_text())
    assert (special["bos_token"], special["eos_token"]) == ("<|im_start|>", "<|im_end|>")
