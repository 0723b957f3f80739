"""Benchmarks and the demonstration: each drives a real SGLang server or the real code."""
