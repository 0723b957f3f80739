"""What the model classes for split batches refuse before any weight is made."""

from types import SimpleNamespace

import pytest

from sglang_ext.context_parallel.models.dense import Attention
from sglang_ext.context_parallel.models.qwen2 import Qwen2ForCausalLM
from sglang_ext.errors import ModelError


def test_attention_in_two_chunks_is_refused():
    config = SimpleNamespace(dual_chunk_attention_config={"chunk_size": 262144})
    with pytest.raises(ModelError, match="leave out --ext-cp-size"):
        Qwen2ForCausalLM.attention(config, 0, None, "")


def test_biases_are_those_of_the_weights():
    plain = SimpleNamespace(attention_bias=False)
    assert Attention.biases(plain) == (False, False)
    assert Attention.biases(SimpleNamespace(attention_bias=True)) == (True, True)
    assert Qwen2ForCausalLM.attention.biases(plain) == (True, False)
