"""Devices that SGLang does not know: today the reference device, a plain CPU."""

__all__ = ["ATTENTION_BACKEND"]

# The name of our attention backend in SGLang's registry.
ATTENTION_BACKEND = "sglang_ext_cpu"
