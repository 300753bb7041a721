"""CUDA's autocast on fake CPU tensors: the casts that a GPU run makes, without a GPU.

Autograd refuses fake CUDA tensors in a build of PyTorch without CUDA, so traces run on fake CPU tensors. Autocast of
the CPU casts the same operations to 16 bits as CUDA's (matrix products, scaled_dot_product_attention) but leaves out
CUDA's float32 list. A function mode adds it: powers, exponentials, softmax, sums, norms and losses compute in float32.
A test compares the casts with those of ``torch.autocast("cuda")`` on fake CUDA tensors, which works without gradients.

Source: aten/src/ATen/autocast_mode.h of PyTorch 2.13, AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

FLOAT32 = {
    "__pow__", "__rpow__", "acos", "asin", "binary_cross_entropy_with_logits", "cosh", "cosine_similarity", "dist",
    "erfinv", "exp", "expm1", "group_norm", "huber_loss", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p",
    "log2", "logsumexp", "mse_loss", "nll_loss", "pow", "reciprocal", "renorm", "rms_norm", "rsqrt", "sinh",
    "smooth_l1_loss", "softplus", "tan",
}  # fmt: skip
# These convert while they compute, and make no copy.
FLOAT32_UNLESS_DTYPE = {
    "cumprod", "cumsum", "linalg_matrix_norm", "linalg_vector_norm", "log_softmax", "norm", "prod", "softmax", "sum",
}  # fmt: skip


class Float32List(TorchFunctionMode):
    """Casts the arguments of the operations of CUDA's float32 list while autocast is on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        if name in FLOAT32:
            args, kwargs = tree_map(_in_float32, (args, kwargs))
        elif name in FLOAT32_UNLESS_DTYPE and kwargs.get("dtype") is None and _is_sixteen_bits(args[0]):
            kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


def _in_float32(value: Any) -> Any:
    return value.float() if _is_sixteen_bits(value) else value


def _is_sixteen_bits(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)


@contextmanager
def emulated_autocast(dtype: torch.dtype) -> Iterator[None]:
    """Inside, operations on CPU tensors are cast as ``torch.autocast("cuda", dtype)`` casts them; none in float32."""
    if dtype == torch.float32:
        yield
        return
    with Float32List(), torch.autocast("cpu", dtype=dtype):
        yield
