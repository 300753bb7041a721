"""Class, dtype, arithmetic and bytes of single operations, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from oof.model.operations import COPY, ELEMENTWISE, HEAD, MATRIX, NORM, SOFTMAX, Operation, OperationLog


def log_of(function: Callable[[], object]) -> list[Operation]:
    log = OperationLog()
    with log:
        function()
    return log.operations


@pytest.mark.parametrize(
    ("function", "kind", "dtype", "moved", "flops"),
    [
        (lambda: torch.mm(torch.ones(4, 8).bfloat16(), torch.ones(8, 2).bfloat16()), MATRIX, "bfloat16", 112, 128),
        (lambda: torch.ones(4, 8) + torch.ones(4, 8), ELEMENTWISE, "float32", 384, 32),
        (lambda: torch.ones(4, 8).mul_(torch.ones(4, 1)), ELEMENTWISE, "float32", 272, 32),
        (lambda: torch.ones(4, 8).softmax(-1), SOFTMAX, "float32", 256, 32),
        (lambda: torch.ones(4, 8).bfloat16(), COPY, "bfloat16", 192, 0),
        (lambda: torch.ones(4, 1).expand(4, 8).contiguous(), COPY, "float32", 144, 0),
        (lambda: torch.ones(4, 8).zero_(), COPY, "float32", 128, 0),
        # The chosen rows are read, not the table.
        (lambda: nn.functional.embedding(torch.tensor([1, 2]), torch.ones(1000, 8)), COPY, "float32", 144, 0),
    ],
)
def test_an_operation_is_counted_as_by_hand(
    function: Callable[[], object], kind: str, dtype: str, moved: float, flops: float
) -> None:
    last = log_of(function)[-1]
    assert (last.kind, last.dtype, last.bytes, last.flops) == (kind, dtype, moved, flops)


def test_views_and_empty_tensors_move_nothing() -> None:
    x = torch.ones(4, 8)
    assert log_of(lambda: (x.t(), x.view(-1), x[1:], x.expand(3, 4, 8), torch.empty(9), x.detach())) == []


class Small(nn.Module):
    """A norm, a product and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.score = nn.RMSNorm(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(self.linear(self.norm(x)) * 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("recomputed", [False, True])
def test_operations_of_both_passes_belong_to_their_module(recomputed: bool) -> None:
    model, log, x = Small(), OperationLog(), torch.ones(4, 8, requires_grad=True)
    with log.inside(model), log:
        out = checkpoint(model, x, use_reentrant=False) if recomputed else model(x)
        out.sum().backward()
    kinds = [each.kind for each in log.operations if each.product]
    # Forward, and two products of each layer backward; recomputation repeats the forward pass to the last saved tensor.
    assert kinds.count(MATRIX) == (4 if recomputed else 3)
    assert kinds.count(HEAD) == 3
    assert sum(each.kind == NORM for each in log.operations) > 3
    assert any(each.kind == ELEMENTWISE and each.name == "mul" for each in log.operations)
