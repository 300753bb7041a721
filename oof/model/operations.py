"""Operations of a traced pass: class, dtype, arithmetic and bytes moved of each, as a GPU would run them.

A dispatch mode sees every operation of a forward and backward pass on fake tensors. Each is put into a class by what
it is (matrix product, attention, softmax, copy or cast, elementwise) or, inside a norm, the score head or the loss, by
the module that it belongs to. An operation of the backward pass belongs to the module of the forward operation that
made its autograd node.

Bytes are those of all inputs and outputs, each moved once: PyTorch's eager kernels read their inputs from memory and
write their outputs back. Views move nothing, and of a table from which rows are gathered only these rows count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from oof.model.fake_tensors import TensorMeter, tensors_in

MATRIX, ATTENTION, NORM, SOFTMAX = "matrix products", "attention", "norms", "softmax"
ELEMENTWISE, COPY, HEAD, OPTIMIZER = "elementwise", "copies and casts", "head and loss", "optimizer"
DEQUANTISE = "dequantisation"
CLASSES_OF_OPERATIONS = (MATRIX, ATTENTION, NORM, SOFTMAX, ELEMENTWISE, COPY, DEQUANTISE, HEAD, OPTIMIZER)

aten = torch.ops.aten
FORMULA_OF = {aten.addmm_: aten.addmm}  # in-place operations without a formula of their own
# Operators by name.
SOFTMAXES = {"_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"}
GATHERS = {"embedding", "index", "index_select", "gather"}  # they read the chosen rows of their first input
OVERWRITES = {"copy_", "fill_", "zero_"}
COPIES = GATHERS | OVERWRITES | {
    "_to_copy", "arange", "cat", "clone", "full", "full_like", "index_copy", "index_put", "index_put_", "masked_fill_",
    "new_zeros", "ones", "ones_like", "repeat", "select_backward", "slice_backward", "stack", "zeros", "zeros_like",
}  # fmt: skip
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach"}
KINDS = {
    **dict.fromkeys(SOFTMAXES, SOFTMAX), **dict.fromkeys(COPIES, COPY), "dequantised": DEQUANTISE,
    "planned_attention": ATTENTION, "planned_attention_backward": ATTENTION, "fused_norm": NORM,
    "fused_norm_backward": NORM,
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operation of a pass.

    Attributes:
        name: of the operator, such as "mm".
        kind: one of :data:`CLASSES_OF_OPERATIONS`.
        dtype: of the factors of a matrix product, else of the result, such as "bfloat16".
        flops: floating-point operations; 0 for attention, whose cost depends on its implementation.
        bytes: read and written.
        shape: of the result.
        product: whether it is a matrix product, wherever it is.
    """

    name: str
    kind: str
    dtype: str
    flops: float
    bytes: float
    shape: tuple[int, ...]
    product: bool = False


class OperationLog(TorchDispatchMode):
    """Records the operations inside, in order.

    Args:
        meter: counts the memory of their results, if given.

    Attributes:
        operations: those so far.
        stack: class of the operations of each module whose forward pass runs, the innermost last; "" = told apart.
        default: class of operations outside of all modules; "" = told apart.
    """

    def __init__(self, meter: TensorMeter | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.meter = meter
        self.operations: list[Operation] = []
        self.stack: list[str] = []
        self.default = ""
        self._kinds: dict[int, str] = {}  # sequence number of an autograd node -> class of its forward pass

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Follow the modules of a model, so that operations know the module that they belong to."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                kind = _module_kind(name, module)
                enter = module.register_forward_pre_hook(lambda *_, kind=kind: self.stack.append(kind))
                leave = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            yield

    def _leave(self) -> None:
        self.stack.pop()

    @contextmanager
    def as_kind(self, kind: str) -> Iterator[None]:
        """Put every operation inside into one class."""
        before, self.default = self.default, kind
        try:
            yield
        finally:
            self.default = before

    def _kind(self) -> str:
        if self.stack:  # also while activation checkpointing recomputes a layer inside the backward pass
            # That of the innermost module that has one: a head may be wrapped, a norm may have parts.
            kind = next((kind for kind in reversed(self.stack) if kind), self.default)
        else:
            node = torch._C._current_autograd_node()
            if node is not None:
                return self._kinds.get(node._sequence_nr(), "")
            kind = self.default
        # The node of a differentiable operation has just been made, and has the last number.
        self._kinds.setdefault(torch._C._autograd._get_sequence_nr() - 1, kind)
        return kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.meter is not None:
            for tensor in tensors_in(out):
                self.meter.add(tensor)
        operation = operation_of(func, args, kwargs, out, self._kind())
        if operation is not None:
            self.operations.append(operation)
        return out


def _module_kind(name: str, module: nn.Module) -> str:
    """Return the class of all operations of a module, or "" where they are told apart."""
    if "Norm" in type(module).__name__:
        return NORM
    return HEAD if name.split(".")[-1] == "score" else ""


def operation_of(func: Any, args: Any, kwargs: Any, out: Any, module_kind: str) -> Operation | None:
    """Return the record of an operation, or None where it neither computes nor moves anything."""
    packet = func._overloadpacket
    results, inputs = tensors_in(out), tensors_in([*args, *kwargs.values()])
    mutable = func._schema.is_mutable
    if packet.__name__ in FREE or not (results or mutable):
        return None
    if not mutable and any(_same_storage(result, value) for result in results for value in inputs):
        return None  # a view
    formula = flop_registry.get(FORMULA_OF.get(packet, packet))
    kind = MATRIX if formula is not None else KINDS.get(packet.__name__, ELEMENTWISE)
    if module_kind and kind != ATTENTION:
        kind = module_kind
    result = (results or inputs)[0]
    dtype = inputs[-1].dtype if formula is not None else result.dtype
    flops = 0.0
    if formula is not None:
        flops = float(formula(*args, **kwargs, out_val=out))
    elif kind not in (COPY, ATTENTION, DEQUANTISE):
        flops = float(max(value.numel() for value in (*results, *inputs)))
    moved = args[0].numel() * (args[1] + 2.0) if kind == DEQUANTISE else _bytes(func, inputs, results, args)
    shape = tuple(result.shape)
    name, label = packet.__name__, str(dtype).removeprefix("torch.")
    return Operation(name, kind, label, flops, moved, shape, formula is not None)


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _bytes(func: Any, inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor], args: Any) -> float:
    """Return the bytes that an operation reads and writes."""
    name = func._overloadpacket.__name__
    written = sum(_stored(value) for value in results)
    if func._schema.is_mutable:
        targets = [arg for arg, of in zip(args, func._schema.arguments, strict=False) if of.is_write]
        written = sum(_stored(value) for value in tensors_in(targets))
    if name in GATHERS:
        return float(2 * written + sum(_stored(value) for value in inputs[1:]))
    if name in OVERWRITES:  # the target is written, not read
        return float(written + sum(_stored(value) for value in inputs[1:]))
    return float(written + sum(_stored(value) for value in inputs))


def _stored(value: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements, of expanded ones only those in memory."""
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
