"""Models that all tests share, made once into the user's cache."""

import os
from pathlib import Path

import hypothesis
import pytest

# Before anything imports the hub's client: a test that needs the network shall fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from sglang_ext.models import make_model

# How long an example takes says something about the machine and nothing about the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return make_model("smollm2").path


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    return make_model("tiny-llama").path


@pytest.fixture(scope="session")
def tiny_qwen2() -> Path:
    return make_model("tiny-qwen2").path


@pytest.fixture(scope="session")
def tiny_qwen3() -> Path:
    return make_model("tiny-qwen3").path


@pytest.fixture(scope="session")
def tiny_qwen3_moe() -> Path:
    return make_model("tiny-qwen3-moe").path


@pytest.fixture(scope="session")
def tiny_deepseek_v3() -> Path:
    return make_model("tiny-deepseek-v3").path
