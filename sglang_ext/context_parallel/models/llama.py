"""Dense Llama under context parallelism; see ``dense.py``."""

from sglang_ext.context_parallel.models.dense import DenseForCausalLM

__all__ = ["EntryClass", "LlamaForCausalLM"]


class LlamaForCausalLM(DenseForCausalLM):
    """Takes the place of SGLang's class of this name."""


EntryClass = LlamaForCausalLM
