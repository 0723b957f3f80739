"""What tests of tool calls share: SmolLM2's vocabulary, and parts that are switched off and on."""

import pytest

from sglang_ext.tools import parts


@pytest.fixture(scope="session")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def compiler(tokenizer):
    import xgrammar

    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer))


@pytest.fixture
def switched():
    """Switches parts; all are on again afterwards."""
    yield parts.use
    parts.use(parts.Parts())
