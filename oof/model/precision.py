"""Device and floating-point types of training and scoring.

Frozen weights have the member's ``dtype``; autocast runs the matrix products in it. Adapters, head and losses are
float32. float16 ends at 65,504 and at 6e-8, so its training needs loss scaling
(:mod:`oof.training.classifier_trainer`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import torch

from oof.config import Member

logger = logging.getLogger(__name__)

DRIVER = Path("/proc/driver/nvidia/version")  # exists where NVIDIA's kernel module is loaded
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device() -> torch.device:
    """Return the GPU of this process, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    _warn_of_unusable_gpu()
    return torch.device("cpu")


@cache
def _warn_of_unusable_gpu() -> None:
    """Warn, once per process, where a driver is loaded but torch cannot use it (usually: it is too old)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not DRIVER.is_file():
        return
    lines = DRIVER.read_text(encoding="utf-8", errors="replace").splitlines() or ["unknown"]
    logger.warning(
        "no GPU is used: torch %s (CUDA %s) cannot use the NVIDIA driver of this machine (%s); update the driver, or "
        "install a torch for its CUDA version",
        torch.__version__,
        torch.version.cuda or "none: a build for CPUs",
        " ".join(lines[0].removeprefix("NVRM version:").split()),
    )


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype of a member's setting.

    "auto" is bfloat16 where the hardware computes in it, else float16 on a GPU and float32 on a CPU.
    """
    if name != "auto":
        return DTYPES[name]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def largest_difference(tested: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """Return the largest difference of two lists of tensors, relative to the largest value of each; NaN if one is."""
    pairs = zip(tested, expected, strict=True)
    each = [(mine.float() - theirs).detach().abs().max() / theirs.detach().abs().max() for mine, theirs in pairs]
    return float(torch.stack(each).max())  # Python's max would lose a NaN that is not the first


def weights_dtype(member: Member) -> torch.dtype:
    """Return the dtype in which a member's base is loaded.

    That of its products; but weights that are all trained (``lora.rank`` 0) in float16 are held in float32, because
    updates would be rounded away and the gradients could not be scaled.
    """
    dtype = resolve_dtype(member.dtype)
    return torch.float32 if dtype == torch.float16 and member.lora.rank == 0 else dtype


def precision_context(member: Member) -> AbstractContextManager[object]:
    """Return the autocast context that training and scoring share."""
    dtype = resolve_dtype(member.dtype)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device().type, dtype=dtype)
