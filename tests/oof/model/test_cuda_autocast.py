"""The emulated casts are those of ``torch.autocast("cuda")``, which runs on fake CUDA tensors without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from oof.model.cuda_autocast import FLOAT32, FLOAT32_UNLESS_DTYPE, emulated_autocast
from oof.model.operations import OperationLog

# What forward passes of decoder models and losses call, by a name: x and y are 16-bit matrices, w is a float32 one.
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CALLS: dict[str, Call] = {
    "linear": lambda x, y, w: functional.linear(x, w),
    "matmul": lambda x, y, w: x @ w,
    "mm": lambda x, y, w: torch.mm(x, w),
    "bmm": lambda x, y, w: torch.bmm(x.unsqueeze(0), w.unsqueeze(0)),
    "addmm": lambda x, y, w: torch.addmm(x, y, w),
    "baddbmm": lambda x, y, w: torch.baddbmm(x.unsqueeze(0), y.unsqueeze(0), w.unsqueeze(0)),
    "addmm_": lambda x, y, w: (x + 0).addmm_(x, y),
    "sdpa": lambda x, y, w: functional.scaled_dot_product_attention(x[None], w[None], y[None]),
    "pow": lambda x, y, w: x.pow(2),
    "**": lambda x, y, w: x**2,
    "rsqrt": lambda x, y, w: torch.rsqrt(x),
    "exp": lambda x, y, w: x.exp(),
    "log": lambda x, y, w: x.log(),
    "logsumexp": lambda x, y, w: x.logsumexp(-1),
    "softmax": lambda x, y, w: x.softmax(-1),
    "functional.softmax": lambda x, y, w: functional.softmax(x, -1),
    "softmax with a dtype": lambda x, y, w: x.softmax(-1, dtype=torch.bfloat16),
    "log_softmax": lambda x, y, w: functional.log_softmax(x, -1),
    "sum": lambda x, y, w: x.sum(),
    "sum over a dimension": lambda x, y, w: x.sum(-1),
    "cumsum": lambda x, y, w: x.cumsum(-1),
    "norm": lambda x, y, w: x.norm(),
    "vector_norm": lambda x, y, w: torch.linalg.vector_norm(x),
    "rms_norm": lambda x, y, w: functional.rms_norm(x, (8,)),
    "layer_norm": lambda x, y, w: functional.layer_norm(x, (8,)),
    "cosine_similarity": lambda x, y, w: functional.cosine_similarity(x, y),
    "kl_div": lambda x, y, w: functional.kl_div(x, y),
    "mse_loss": lambda x, y, w: functional.mse_loss(x, y),
    "mean": lambda x, y, w: x.mean(-1),
    "mul": lambda x, y, w: x * y,
    "mul of two types": lambda x, y, w: x * w,
    "add": lambda x, y, w: x + y,
    "tanh": lambda x, y, w: x.tanh(),
    "gelu": lambda x, y, w: functional.gelu(x, approximate="tanh"),
    "silu": lambda x, y, w: functional.silu(x),
}


@contextmanager
def real_autocast(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast("cuda")`` without its check for a GPU."""
    context = torch.autocast("cuda", dtype=dtype, enabled=False)
    context._enabled = True
    with context:
        yield


def dtypes(call: Call, dtype: torch.dtype, device: str) -> list[tuple[str, torch.dtype]]:
    """Return the operations and their dtypes, and the result's dtype, of one call on fake tensors."""
    log = OperationLog()
    autocast = real_autocast if device == "cuda" else emulated_autocast
    with FakeTensorMode():
        x, y = (torch.empty(8, 8, dtype=dtype, device=device) for _ in range(2))
        w = torch.empty(8, 8, device=device)
        with torch.no_grad(), log, autocast(dtype):
            result = call(x, y, w)
    casts = sorted(each.dtype for each in log.operations if each.name == "_to_copy")
    return [*((name, result.dtype) for name in casts), ("result", result.dtype)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CALLS)
def test_emulated_casts_are_those_of_cuda(name: str, dtype: torch.dtype) -> None:
    try:
        expected = dtypes(CALLS[name], dtype, "cuda")
    except RuntimeError as error:  # a build without CUDA cannot trace an indexing or a fused kernel
        pytest.skip(str(error).splitlines()[0])
    emulated = dtypes(CALLS[name], dtype, "cpu")
    if dtype == torch.float16:  # CUDA's softmax reads float16 and writes float32 without a cast; traces use bfloat16
        emulated, expected = emulated[-1:], expected[-1:]
    assert emulated == expected


def test_the_comparison_sees_what_autocast_of_the_cpu_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dtypes(CALLS["pow"], torch.bfloat16, "cuda")
    monkeypatch.setattr("oof.model.cuda_autocast.FLOAT32", FLOAT32 - {"pow"})
    assert dtypes(CALLS["pow"], torch.bfloat16, "cpu") != expected


def test_the_lists_are_those_of_the_installed_pytorch() -> None:
    header = (torch.utils.cmake_prefix_path.split("/share")[0] + "/include/ATen/autocast_mode.h").replace("//", "/")
    text = open(header, encoding="utf-8").read()  # noqa: SIM115
    for name in FLOAT32 | FLOAT32_UNLESS_DTYPE:
        known = name.strip("_").removeprefix("r") if name.startswith("__") else name
        assert f"_({known}" in text or f"linalg_{known}" in text or f"ADD_NS({known})" in text, name


def test_float32_is_not_cast() -> None:
    with emulated_autocast(torch.float32):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
