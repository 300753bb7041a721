"""GPUs that the plan knows: memory, bandwidth and matrix rates by precision, and the seconds of an operation on them.

Source: NVIDIA's data sheets of the T4, L4, A10, A100 80GB SXM, H100 SXM and H200 SXM, its Ada whitepaper for the RTX
4090, and AWS's page of G5 instances for the A10G; dense rates, which are half of those "with sparsity".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Shares of the data sheet that kernels reach. Large 16-bit products on an H100 run near 600 of 989 TFLOP/s, because its
# power limit lowers the clock. Elementwise kernels, reductions and casts in a row reach less of the bandwidth than a
# long copy: with this share, four speeds of a memory-bound model that were measured on an H200 (docs/evidence/gpu.md)
# are predicted within 5 % (tests/oof/model/test_predicted_time.py). `make bench-gpu` measures both rates on a card.
MATRIX_EFFICIENCY = 0.6
BANDWIDTH_EFFICIENCY = 0.62


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        memory: bytes.
        bandwidth: bytes per second.
        rates: FLOP per second of dense matrix products by dtype; PyTorch leaves TF32 off unless it is asked for.
        capability: compute capability.
    """

    memory: float
    bandwidth: float
    rates: dict[str, float]
    capability: tuple[int, int]

    def dtype(self, name: str) -> str:
        """Return the precision of a member here: bfloat16 for "auto", and float16 in place of bfloat16 without it."""
        name = "bfloat16" if name == "auto" else name
        return name if name in self.rates or name != "bfloat16" else "float16"

    def seconds(self, dtype: str, flops: Any, moved: Any) -> Any:
        """Return the time of operations: arithmetic and memory traffic overlap, and the longer one decides.

        Args:
            dtype: of the factors.
            flops, moved: floating-point operations and bytes, numbers or (n,) arrays.
        """
        rate = self.rates.get(dtype, self.rates["float32"])
        return np.maximum(flops / (rate * MATRIX_EFFICIENCY), moved / (self.bandwidth * BANDWIDTH_EFFICIENCY))


def _rates(sixteen_bits: float, float32: float, bfloat16: bool = True) -> dict[str, float]:
    """Return rates by dtype from TFLOP per second."""
    names = ("float16", "bfloat16") if bfloat16 else ("float16",)
    return {name: sixteen_bits * 1e12 for name in names} | {"float32": float32 * 1e12}


CARDS: dict[str, Card] = {
    "T4": Card(16e9, 320e9, _rates(65, 8.1, bfloat16=False), (7, 5)),
    "L4": Card(24e9, 300e9, _rates(121, 30.3), (8, 9)),
    "A10G": Card(24e9, 600e9, _rates(70, 31.5), (8, 6)),
    "RTX 4090": Card(24e9, 1008e9, _rates(165.2, 82.6), (8, 9)),
    "A100-80": Card(80e9, 2039e9, _rates(312, 19.5), (8, 0)),
    "H100": Card(80e9, 3350e9, _rates(989, 67), (9, 0)),
    "H200": Card(141e9, 4800e9, _rates(989, 67), (9, 0)),
}


def card_named(gpu: str) -> str | None:
    """Return the name in :data:`CARDS` of a GPU as its driver names it, or None where it is not listed."""
    words = gpu.replace("-", " ").replace("Tesla", "").split()
    # "A100-80" is told from its 40 GB sibling by its memory, which the driver names.
    names = [
        name for name in CARDS if all(word in words or f"{word}GB" in words for word in name.replace("-", " ").split())
    ]
    return names[0] if names else None
