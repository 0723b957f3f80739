"""A tiny model whose layers attend to a window and to everything in turn; random weights."""

import json
import shutil
from pathlib import Path


def make_sliding_window_model(tokenizer_of: Path, folder: Path) -> Path:
    """Make it in ``folder``, with the tokenizer of another model."""
    import torch
    from transformers import MellumConfig, MellumForCausalLM

    told = json.loads((tokenizer_of / "config.json").read_text())
    torch.manual_seed(0)
    config = MellumConfig(
        vocab_size=told["vocab_size"],
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        layer_types=["sliding_attention", "full_attention"] * 2,
        mlp_layer_types=["dense"] * 4,
        sliding_window=128,
        bos_token_id=told.get("bos_token_id"),
        eos_token_id=told.get("eos_token_id"),
        max_position_embeddings=8192,
    )
    MellumForCausalLM(config).float().save_pretrained(folder)
    for path in tokenizer_of.iterdir():
        if path.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(path, folder / path.name)
    return folder
