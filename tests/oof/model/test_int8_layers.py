"""int8 layers: near the float32 product, each token by itself, and no saturation at the largest values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oof.common.errors import UserError
from oof.model.int8_layers import LEVELS, WEIGHT_LEVELS, Int8Linear, use_int8_layers

pytestmark = [
    pytest.mark.skipif(
        "fbgemm" not in torch.backends.quantized.supported_engines, reason="int8 products need an x86 processor"
    ),
    pytest.mark.filterwarnings("error::UserWarning"),  # torch's about its own operators are not for users
]


def rounded_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the product of both sides rounded as documented, computed in float64."""
    x, weight = x.double(), weight.double()
    token, output = x.abs().amax(-1, keepdim=True) / LEVELS, weight.abs().amax(1, keepdim=True) / WEIGHT_LEVELS
    return (x / token).round() @ (weight / output).round().T * token * output.T


@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 9), st.floats(-6, 6), st.integers(0, 99))
def test_products_are_those_of_rounded_tokens_and_weights(
    width: int, outputs: int, tokens: int, log_scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, outputs, bias=bool(seed % 2))
    x = torch.randn(tokens, width, generator=generator) * 10**log_scale
    x[-1] *= 1000  # an outlier that would coarsen the others' steps if they shared it
    bias = 0 if linear.bias is None else linear.bias.detach().double()
    expected = rounded_product(x, linear.weight.detach()) + bias
    got = Int8Linear(linear)(x).detach().double()
    step = x.double().abs().amax(-1, keepdim=True) / LEVELS * linear.weight.abs().max()  # ties may round either way
    assert ((got - expected).abs() <= 2.1 * step * (1 + width / 20) + 1e-5 * expected.abs()).all()


def test_the_largest_values_do_not_saturate_and_zeros_stay() -> None:
    linear = nn.Linear(512, 4, bias=False)
    nn.init.constant_(linear.weight, 0.5)
    x = torch.ones(3, 512)
    x[1], x[2] = -1, 0
    np.testing.assert_allclose(Int8Linear(linear)(x).detach(), x @ linear.weight.detach().T, rtol=1e-5)


def test_all_linear_layers_but_the_head_are_replaced_and_variants_refused() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8, bias=False)])
            self.score = nn.Linear(8, 3, bias=False)

    model = Classifier()
    use_int8_layers(model)
    assert [type(layer) for layer in model.layers] == [Int8Linear, Int8Linear]
    assert type(model.score) is nn.Linear
    model.is_quantized = True  # type: ignore[assignment]
    with pytest.raises(UserError, match="quantised variant"):
        use_int8_layers(model)
