"""Models that all tests share, made once into the user's cache; and cores that workers share."""

import os
from pathlib import Path

import hypothesis
import pytest

# Before anything imports the hub's client: a test that needs the network shall fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from support.workers import cores_of_worker

from sglang_ext.models import make_model

# How long an example takes says something about the machine and nothing about the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# A worker of pytest-xdist, and all that it starts: processes beside each other with a thread a core
# would wait for each other at every step. Before torch is imported, which counts the cores.
if cores := cores_of_worker(os.environ, sorted(os.sched_getaffinity(0))):
    os.sched_setaffinity(0, cores)


# The longest first: all wait for what a worker takes last.
FIRST = ("compat/test_patches.py", "compat", "chaos/test_store_crash.py", "property")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is in tests/unit, and put what takes long in front."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(tests / "unit"):
            item.add_marker("unit")
    items.sort(
        key=lambda item: next(
            (rank for rank, name in enumerate(FIRST) if item.path.is_relative_to(tests / name)),
            len(FIRST),
        )
    )


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
