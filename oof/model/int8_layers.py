"""int8 linear layers for scoring on x86 processors: 8 bits per token for activations, 7 bits per output for weights.

An activation is divided by its token's largest magnitude, so its quantisation step does not depend on the other tokens
of the batch: a verdict is the same whoever else is scored, up to rounding. Weights have 7 bits because AVX2 adds pairs
of products in 16 bits: 255 x 64 x 2 fits, 255 x 127 x 2 saturates. The products are torch's (fbgemm). torchao's
operator of this kind, ``torch._int_mm``, has no fast kernel before AVX-512.

The score head, embeddings, norms and attention stay float32.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from oof.common.errors import UserError

LEVELS = 127  # of an activation, to each side of zero
WEIGHT_LEVELS = 64  # of a weight
SPARED = ("score",)
SMALLEST = 1e-30  # in place of the scale of a row of zeros


class Int8Linear(nn.Module):
    """A linear layer that multiplies in int8; made from a float32 one, for inference alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        scales = (weight.abs().amax(1) / WEIGHT_LEVELS).clamp_min(SMALLEST).double()
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.quantize_per", UserWarning)  # to be replaced in a later torch
            quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(quantised, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST)
        # The step is fixed at 1 / LEVELS of the token's scale; LEVELS + 1 is zero among unsigned 8 bits.
        product: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / scale, 1 / LEVELS, LEVELS + 1, self._packed
        )
        product = product.mul_(scale)
        return product if self.bias is None else product + self.bias


def use_int8_layers(model: nn.Module) -> None:
    """Replace a float32 classifier's linear layers, its head excepted, by int8 ones, in place.

    Raises:
        UserError: this processor or torch has no int8 products of this kind, or the weights are quantised already.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise UserError("dtype=int8 needs an x86 processor with AVX2; take dtype=float32")
    if getattr(model, "is_quantized", False):
        raise UserError("dtype=int8: this student is a quantised variant; open the student itself")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name not in SPARED:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Int8Linear(module))
