"""The real GGUF and the folders made from it, made once for all tests here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf")

from sglang_ext.models import make_model
from sglang_ext.models.gguf_source import GgufFile, packaged_gguf
from sglang_ext.models.tiny import TINY
from sglang_ext.models.tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def source() -> GgufFile:
    return packaged_gguf()


@pytest.fixture(scope="session")
def tokenizer_folder(source: GgufFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(source, folder, 8192)
    # AutoTokenizer chooses a class by the model's type, so it has to see one.
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def render(tokenizer: Any) -> Callable[..., str]:
    """Render messages as text: ``render(messages, tools=None, add_generation_prompt=False)``."""

    def text(messages: list[dict[str, Any]], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    return text


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: make_model(name, root / name).path for name in TINY}


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("smollm2", tmp_path_factory.mktemp("real") / "smollm2").path
