"""Packed linear layers: the same products, following the weight."""

import pytest
import torch

pytest.importorskip("sglang")

from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

from sglang_ext.device.linear import PackedLinearMethod, pack_linear_layers

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def make_layer(dtype=torch.float32, outputs=96, inputs=64):
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.randn(outputs, inputs).to(dtype), requires_grad=False)
    layer.quant_method = UnquantizedLinearMethod()
    return layer


def dense(layer, x, bias):
    """In float64."""
    product = x.double() @ layer.weight.double().T
    return product if bias is None else product + bias.double()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (257, 64), (2, 5, 64), (0, 64)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product_is_that_of_float64(shape, with_bias):
    layer = make_layer()
    assert pack_linear_layers(layer) == 1
    x = torch.randn(shape)
    bias = torch.randn(96) if with_bias else None
    product = layer.quant_method.apply(layer, x, bias)
    assert product.shape == (*shape[:-1], 96)
    torch.testing.assert_close(product.double(), dense(layer, x, bias), rtol=1e-5, atol=2e-5)


def test_packed_copy_is_used_and_follows_the_weight():
    layer = make_layer()
    pack_linear_layers(layer)
    x = torch.randn(4, 64)
    before = layer.quant_method.apply(layer, x)
    packed = layer.quant_method._packed
    layer.quant_method.apply(layer, x)
    assert layer.quant_method._packed is packed
    layer.weight.mul_(2)
    torch.testing.assert_close(layer.quant_method.apply(layer, x), before * 2)
    layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight), requires_grad=False)
    assert not layer.quant_method.apply(layer, x).any()


def test_other_dtypes_and_methods_are_left_to_sglang():
    class Quantised(UnquantizedLinearMethod):
        pass

    half, quantised, plain = make_layer(torch.bfloat16), make_layer(), make_layer()
    quantised.quant_method = Quantised()
    model = torch.nn.Module()
    model.half, model.quantised, model.plain = half, quantised, plain
    assert pack_linear_layers(model) == 1
    assert type(half.quant_method) is UnquantizedLinearMethod
    assert type(quantised.quant_method) is Quantised
    assert type(plain.quant_method) is PackedLinearMethod


def test_input_of_another_dtype_is_refused_as_by_sglang():
    layer = make_layer()
    pack_linear_layers(layer)
    with pytest.raises(RuntimeError):
        layer.quant_method.apply(layer, torch.randn(2, 64, dtype=torch.bfloat16))
