"""RMSNorm and gated activations (GeGLU, SwiGLU) as one kernel each, by liger-kernel on a CUDA GPU.

Eager PyTorch reads and writes the activations several times for each of them, in float32 inside RMSNorm, and keeps
copies for the backward pass. A fused kernel reads and writes once. Only these layers of the loaded model are replaced,
instance by instance: liger-kernel's own patches would change transformers' classes for the whole process, and replace
rotary embeddings and losses as well. Adapters, quantised projections, hooks and activation checkpointing are not
touched, because the projections stay where they are.

A layer is replaced only if its class is known and the kernel agrees with it on this machine, in outputs and gradients,
at the model's width and precision. Results differ by rounding.

Source: Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training, 2024, arXiv:2410.10989.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import GELUTanh, SiLUActivation
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP, Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from oof.config import Member
from oof.model.precision import largest_difference, resolve_dtype

logger = logging.getLogger(__name__)

Gated = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (gate, up) -> activation(gate) * up


class Kernels(NamedTuple):
    """The fused functions, with gradients.

    Attributes:
        rms_norm: (x, weight, eps, offset, casting, in_place) -> normalised x times (offset + weight).
        geglu, swiglu: (gate, up) -> activation(gate) * up. The backward pass overwrites both.
    """

    rms_norm: Callable[..., torch.Tensor]
    geglu: Gated
    swiglu: Gated


class Norm(NamedTuple):
    """One definition of RMSNorm: where its class keeps epsilon, what it adds to the weight, and when it rounds."""

    eps: str
    offset: float
    casting: str


GEMMA_NORM, LLAMA_NORM = Norm("eps", 1.0, "gemma"), Norm("variance_epsilon", 0.0, "llama")
NORMS: dict[type, Norm] = {
    Gemma2RMSNorm: GEMMA_NORM,
    Gemma3RMSNorm: GEMMA_NORM,
    LlamaRMSNorm: LLAMA_NORM,
    Qwen2RMSNorm: LLAMA_NORM,
    Qwen3RMSNorm: LLAMA_NORM,
}
FEED_FORWARDS = (Gemma2MLP, Gemma3MLP, LlamaMLP, Qwen2MLP, Qwen3MLP)
ACTIVATIONS: dict[type, str] = {GELUTanh: "geglu", SiLUActivation: "swiglu", nn.SiLU: "swiglu"}

DEVICES = ("cuda",)
CHECK_ROWS = 37
# liger-kernel normalises widths up to 256 (Gemma3's and Qwen3's heads) by another kernel from 32,768 rows.
NARROW, CHECK_ROWS_OF_NARROW = 256, 32_800
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest output or gradient


class FusedLayers:
    """Replaces a classifier's known RMSNorms and gated activations by fused kernels, where they pass their self-check.

    Attributes:
        kinds: of the replaced layers ("geglu", "rms_norm", "swiglu"), for logs and ``job.json``.
    """

    def __init__(self, model: nn.Module, member: Member) -> None:
        """Replace the layers of ``model``, which is on its device, for the precisions of ``member``."""
        self.layers: list[nn.Module] = []
        self.kinds: list[str] = []
        device = next(model.parameters()).device.type
        kernels = load_kernels() if member.fused_layers == "auto" and device in DEVICES else None
        if kernels is None:
            return
        for layer in model.modules():
            self._replace(layer, kernels, member, device)
        _log_kinds(type(getattr(model, "base_model", model)).__name__, tuple(self.kinds))

    def remove(self) -> None:
        for layer in self.layers:
            del layer.forward  # the class's own forward is used again

    def _replace(self, layer: Any, kernels: Kernels, member: Member, device: str) -> None:
        kind = _kind(layer)
        if not kind or "forward" in vars(layer):  # another library has replaced it
            return
        layer_class: type = type(layer)
        if kind == "rms_norm":
            width, weight = len(layer.weight), layer.weight
        else:  # a quantised weight has another shape
            width, weight = layer.intermediate_size, layer.gate_proj.weight
        dtypes = computed_in(weight, member)
        checked = frozenset(t for t in dtypes if _agrees(kernels, layer_class, kind, width, t, device))
        if not checked:
            return
        fuse(layer, kernels, checked)
        self.layers.append(layer)
        self.kinds = sorted({*self.kinds, kind})


def fuse(layer: Any, kernels: Kernels, dtypes: frozenset[torch.dtype]) -> None:
    """Let a layer of a known class compute by ``kernels`` in these precisions; any other layer stays as it is."""
    kind = _kind(layer)
    if kind:
        forward = _norm_forward if kind == "rms_norm" else _feed_forward
        layer.forward = MethodType(forward(kernels, kind, layer, dtypes), layer)


def load_kernels() -> Kernels | None:
    """Return liger-kernel's functions, or None where it is not installed or does not load."""
    try:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError as error:
        _log_missing(f"{error}")
        return None
    return Kernels(LigerRMSNormFunction.apply, LigerGELUMulFunction.apply, LigerSiLUMulFunction.apply)


def computed_in(weight: torch.Tensor, member: Member) -> frozenset[torch.dtype]:
    """Return the precisions in which a layer may compute: its weight's, autocast's, and that of float16 scoring."""
    scoring = {torch.float16} if member.score_dtype == "float16" else set()
    return frozenset({weight.dtype, resolve_dtype(member.dtype)} | scoring) & TOLERANCE.keys()


def _kind(layer: Any) -> str:
    """Return the kind of a layer whose class is known, else ""."""
    if type(layer) in NORMS:
        return "rms_norm"
    return ACTIVATIONS.get(type(layer.act_fn), "") if type(layer) in FEED_FORWARDS else ""


def _norm_forward(kernels: Kernels, kind: str, layer: Any, checked: frozenset[torch.dtype]) -> Callable[..., Any]:
    norm = NORMS[type(layer)]
    eps = float(getattr(layer, norm.eps))

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.dtype not in checked or x.dtype != self.weight.dtype:  # the classes differ in the type that they return
            return type(self).forward(self, x)  # type: ignore[no-any-return]
        # Not in place: that would overwrite the gradient of the output, which a residual connection reads, too.
        return kernels.rms_norm(x, self.weight, eps, norm.offset, norm.casting, False)

    return forward


def _feed_forward(kernels: Kernels, kind: str, layer: Any, checked: frozenset[torch.dtype]) -> Callable[..., Any]:
    gated: Gated = getattr(kernels, kind)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        fused = gate.dtype == up.dtype and gate.dtype in checked
        # The backward pass writes gradients over gate and up; no projection and no adapter reads its own output.
        return self.down_proj(gated(gate, up) if fused else self.act_fn(gate) * up)  # type: ignore[no-any-return]

    return forward


# Self-check


@cache
def _agrees(kernels: Kernels, layer_class: type, kind: str, width: int, dtype: torch.dtype, device: str) -> bool:
    """Return whether a kernel gives the outputs and gradients of eager PyTorch in float32, on this machine."""
    label = f"fused {kind} of {layer_class.__name__}, width {width}, {str(dtype).removeprefix('torch.')}"
    many = kind == "rms_norm" and width <= NARROW and device == "cuda"
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            differences = [
                _difference(kernels, layer_class, kind, (rows, width), dtype, device)
                for rows in (CHECK_ROWS, *([CHECK_ROWS_OF_NARROW] if many else []))
            ]
    except Exception as error:  # a kernel or its compiler can fail in many ways; eager is used after any of them
        reason = (f"{error}".splitlines() or [type(error).__name__])[0]
        logger.warning("%s is not usable here (%s)", label, reason[:120])
        return False
    wrong = [difference for difference in differences if not difference <= TOLERANCE[dtype]]  # also a NaN
    if wrong:
        logger.warning("%s differs from eager by %.2g here and is not used", label, wrong[0])
        return False
    return True


def _difference(
    kernels: Kernels, layer_class: type, kind: str, shape: tuple[int, int], dtype: torch.dtype, device: str
) -> float:
    """Return the largest difference of output and gradients, relative to eager's largest value of each."""
    generator = torch.Generator().manual_seed(shape[0])
    second = shape[1:] if kind == "rms_norm" else shape  # the norm's weight, or up
    first, other, upstream = (torch.randn(s, generator=generator).to(device, dtype) for s in (shape, second, shape))
    exact = [x.float().requires_grad_() for x in (first, other)]
    tested = [x.clone().requires_grad_() for x in (first, other)]
    if kind == "rms_norm":
        norm, eager = NORMS[layer_class], layer_class(shape[1]).to(device)
        eager.weight = nn.Parameter(exact[1].detach())
        exact[1] = eager.weight
        expected = eager(exact[0])
        output = kernels.rms_norm(*tested, float(getattr(eager, norm.eps)), norm.offset, norm.casting, False)
    else:
        activation = next(a for a, name in ACTIVATIONS.items() if name == kind)()
        expected, output = activation(exact[0]) * exact[1], getattr(kernels, kind)(*tested)
    return largest_difference(
        (output, *torch.autograd.grad(output, tested, upstream)),
        (expected, *torch.autograd.grad(expected, exact, upstream.float())),
    )


@cache
def _log_missing(reason: str) -> None:
    logger.info("RMSNorm and gated activations are not fused: %s; run 'make setup EXTRAS=gpu'", reason)


@cache
def _log_kinds(model: str, kinds: tuple[str, ...]) -> None:
    logger.info("fused layers of %s: %s", model, ", ".join(kinds) or "none; its layers are unknown or failed the check")
