"""Linear layers of the reference device in float32: weights packed once for oneDNN.

torch hands a float32 product to MKL, which packs the weight again at every call and is slow for
the few rows of a decode step. oneDNN takes a weight packed once. On two cores of a Zen 4 the
layers of SmolLM2-135M took 0.44 ms instead of 1.69 at 2 rows, and 61 instead of 81 at 3,001 rows
(docs/LOG.md). bfloat16 goes to oneDNN without us.

The packed copy costs the memory of the weight once more.
"""

import logging
from typing import Any

import torch
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

__all__ = ["PackedLinearMethod", "pack_linear_layers"]

logger = logging.getLogger(__name__)


class PackedLinearMethod(UnquantizedLinearMethod):
    """SGLang's unquantised linear method on a packed copy of the weight.

    The copy follows the weight: it is made again when the weight was written to or replaced.

    Source: ``sglang/srt/layers/quantization/unquant.py``, release 0.5.23.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: torch.Tensor | None = None
        self._made_of: tuple[int, int] | None = None

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x @ weight.T + bias``.

        Args:
            layer: holds ``weight`` ``[out, in]``.
            x: ``[..., in]``.
            bias: ``[out]`` or None.

        Returns:
            ``[..., out]``; another dtype than float32 is left to SGLang.
        """
        weight = layer.weight
        if weight.dtype != torch.float32 or x.dtype != torch.float32:
            return super().apply(layer, x, bias)
        state = (weight.data_ptr(), weight._version)  # noqa: SLF001 - torch's write counter
        if self._packed is None or state != self._made_of:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001 - no public
                weight.detach()  # name; tests/unit/device/test_linear.py pins it
            )
            self._made_of = state
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            x, self._packed, bias, "none", [], ""
        )
        return product


def pack_linear_layers(model: torch.nn.Module) -> int:
    """Give every unquantised float32 linear layer of ``model`` a packed weight.

    Does nothing where torch was built without oneDNN.

    Returns:
        The number of layers that now have one.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    layers = [module for module in model.modules() if _is_plain(module)]
    for layer in layers:
        layer.quant_method = PackedLinearMethod()
    if layers:
        logger.info("Packed the weights of %d linear layers for oneDNN", len(layers))
    return len(layers)


def _is_plain(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return (
        type(getattr(module, "quant_method", None)) is UnquantizedLinearMethod
        and isinstance(weight, torch.Tensor)
        and weight.dim() == 2
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
    )
