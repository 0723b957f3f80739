"""The tokenizer of SmolLM2, rebuilt from the vocabulary and merges in the GGUF.

A GGUF names its pre-tokenizer but does not hold it. ``smollm`` means: digits one by one, then the
GPT-2 byte-level split (Source: ``tokenizer.json`` of the published model, and llama.cpp
``src/llama-vocab.cpp``, pre-tokenizer type ``smollm``). ``transformers`` 5.19 leaves the digit
split out when it converts a GGUF, which changes how digits outside ASCII are encoded, such as a
superscript two after a blank.
"""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_ext.errors import ModelError
from sglang_ext.models.folder import write_json
from sglang_ext.models.gguf_source import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["build_tokenizer", "chat_template", "special_token_ids", "write_tokenizer"]

_CONTROL = 3  # gguf.TokenType.CONTROL: a token that text must never be encoded into by merging


def chat_template() -> str:
    """Source of the chat template (Jinja), with tools in the form of the ``hermes`` parser."""
    return (resources.files("sglang_ext.models") / "chat_template.jinja").read_text("utf-8")


def special_token_ids(source: GgufFile) -> dict[str, int]:
    """Ids of the ``bos``, ``eos``, ``unk`` and ``pad`` tokens."""
    return {
        "bos": int(source.metadata("tokenizer.ggml.bos_token_id")),
        "eos": int(source.metadata("tokenizer.ggml.eos_token_id")),
        "unk": int(source.metadata("tokenizer.ggml.unknown_token_id")),
        "pad": int(source.metadata("tokenizer.ggml.padding_token_id")),
    }


def build_tokenizer(source: GgufFile) -> "Tokenizer":
    """The tokenizer, as the ``tokenizers`` library runs it.

    Raises:
        ModelError: the GGUF holds a tokenizer of another kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (source.metadata("tokenizer.ggml.model"), source.metadata("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ModelError(
            f"{source.path} holds a tokenizer of kind {kind[0]}/{kind[1]}, expected gpt2/smollm"
        )
    tokens: list[str] = source.metadata("tokenizer.ggml.tokens")
    types: list[int] = source.metadata("tokenizer.ggml.token_type")
    merges: list[str] = source.metadata("tokenizer.ggml.merges")
    pairs = []
    for merge in merges:
        left, right = merge.split(" ")
        pairs.append((left, right))
    tokenizer = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind_of in zip(tokens, types, strict=True)
            if kind_of == _CONTROL
        ]
    )
    return tokenizer


def write_tokenizer(source: GgufFile, folder: Path, max_tokens: int) -> None:
    """Write the tokenizer's files and the chat template into ``folder``.

    Args:
        source: The GGUF with the vocabulary.
        folder: An existing folder; files of the same name are replaced.
        max_tokens: Longest input of the model, in tokens.
    """
    tokenizer = build_tokenizer(source)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens: list[str] = source.metadata("tokenizer.ggml.tokens")
    special = {f"{name}_token": tokens[i] for name, i in special_token_ids(source).items()}
    config: dict[str, Any] = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
        # Not GPT2Tokenizer: transformers 5 rebuilds that class's pre-tokenizer without the digit
        # split. This class takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": [special["bos_token"], special["eos_token"]],
        **special,
        # Also in chat_template.jinja: older readers know only this place.
        "chat_template": chat_template(),
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")
