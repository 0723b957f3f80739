"""What others published of context-parallel prefill, beside what arithmetic says about it.

No figure here was measured on this machine. A published time fixes what a device reaches; the
others are then predicted from operations alone and from the bytes of one AllGather a layer.

Source: Context Parallelism for Scalable Million-Token Inference (arXiv:2411.01783): Llama 3 405B
on 16 hosts of 8 H100, tensor parallel within a host and context parallel over hosts: 1M tokens in
77 s (93 % parallel efficiency), 128K in 3.8 s. The model's shape: its config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Shape", "describe_anchors"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense model, as far as its prefill's work and traffic go."""

    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def operations(self, tokens: int) -> float:
        """Floating-point operations of a cold causal prefill."""
        pairs = tokens * (tokens + 1) / 2
        return 2 * self.parameters * tokens + 4 * self.layers * self.heads * self.head_dim * pairs

    def row_bytes(self, value_bytes: int = 2) -> int:
        """Bytes of a token's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * value_bytes


LLAMA_405B = Shape(parameters=405e9, layers=126, heads=128, kv_heads=8, head_dim=128)
TENSOR_RANKS = 8  # GPUs of a host, among which heads are split
DEVICES = 128
FIXED_BY = (1_000_000, 77.0)  # tokens and seconds from which the device's rate follows
PREDICTED = (131_072, 3.8)
WHAT_IF_DEVICES = (8, 32, 128)
INTERCONNECTS_GB_S = (12.5, 50.0)  # of a GPU: 100 and 400 Gbit/s


def describe_anchors() -> dict[str, Any]:
    """What ``--json`` has under ``anchors``.

    ``rate_tflops`` is what a device reaches by one figure, ``check`` what follows for the other,
    ``what_if`` the seconds on fewer devices, once with every AllGather hidden behind attention and
    once with none.
    """
    tokens, seconds = FIXED_BY
    rate = LLAMA_405B.operations(tokens) / DEVICES / seconds
    known, published = PREDICTED
    predicted = LLAMA_405B.operations(known) / DEVICES / rate
    return {
        "source": "arXiv:2411.01783",
        "model": "Llama 3 405B",
        "published": [
            {"devices": DEVICES, "tokens": FIXED_BY[0], "seconds": FIXED_BY[1]},
            {"devices": DEVICES, "tokens": PREDICTED[0], "seconds": PREDICTED[1]},
        ],
        "rate_tflops": round(rate / 1e12, 1),
        "check": {
            "tokens": known,
            "published_s": published,
            "model_s": round(predicted, 2),
            "error": round(predicted / published - 1, 3),
        },
        "what_if": [
            _what_if(rate, devices, tokens, gb_s)
            for tokens in (PREDICTED[0], FIXED_BY[0])
            for devices in WHAT_IF_DEVICES
            for gb_s in INTERCONNECTS_GB_S
        ],
    }


def _what_if(rate: float, devices: int, tokens: int, gb_s: float) -> dict[str, Any]:
    ranks = devices // TENSOR_RANKS
    compute = LLAMA_405B.operations(tokens) / devices / rate
    received = tokens * (ranks - 1) / ranks * LLAMA_405B.row_bytes() / TENSOR_RANKS
    gathers = LLAMA_405B.layers * received / (gb_s * 1e9)
    return {
        "devices": devices,
        "ranks": ranks,
        "tokens": tokens,
        "interconnect_gb_s": gb_s,
        "hidden_s": round(max(compute, gathers), 2),
        "exposed_s": round(compute + gathers, 2),
    }
