"""Bounds on the arithmetic of the real shapes: 16-bit products, and no float32 copies of activations."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import pytest
import torch
from torch import nn

from oof.config import Lora, Member
from oof.model import pass_trace, planned_operators
from oof.model.checkpoint_shapes import base_config
from oof.model.operations import HEAD, NORM, OPTIMIZER, SOFTMAX, Operation, OperationLog
from oof.model.pass_trace import trace_pass

SHAPES = ("google/gemma-2-9b-it", "meta-llama/Llama-3.1-8B-Instruct")
BATCH, TOKENS, DEPTH = 2, 1024, 2
WIDE_ALLOWED = {NORM, SOFTMAX, HEAD, OPTIMIZER}  # classes in which a float32 copy of an activation is meant


def operations(member: Member, training: bool, checkpointing: bool = False) -> tuple[Operation, ...]:
    return trace_pass(member, DEPTH, BATCH, TOKENS, training, checkpointing, False).operations


def share_of_16_bits(traced: tuple[Operation, ...]) -> float:
    """Return the share of the matrix products' FLOPs whose factors have 16 bits."""
    products = [each for each in traced if each.product]
    return sum(each.flops for each in products if each.dtype == "bfloat16") / sum(each.flops for each in products)


def float32_copies(traced: Sequence[Operation], elements: int) -> list[Operation]:
    """Return the operations that write a float32 tensor of at least ``elements`` where none is meant."""
    copies = [each for each in traced if each.dtype == "float32" and torch.Size(each.shape).numel() >= elements]
    return [each for each in copies if each.kind not in WIDE_ALLOWED]


def wide(traced: tuple[Operation, ...], member: Member) -> list[Operation]:
    """Return the float32 copies of activations outside of norms, softmax, head and loss."""
    return float32_copies(traced, BATCH * TOKENS * base_config(member.checkpoint).hidden_size)


def test_a_float32_copy_of_an_activation_is_found_where_it_is_not_meant() -> None:
    x, log, norm = torch.ones(4, 8).bfloat16(), OperationLog(), nn.RMSNorm(8)
    with log.inside(norm), log:
        wide_x = x.float()
        norm(wide_x)
    assert [each.name for each in float32_copies(log.operations, 32)] == ["_to_copy"]
    assert float32_copies(log.operations, 33) == []


@pytest.mark.slow
@pytest.mark.parametrize("fused", ["auto", "off"])
@pytest.mark.parametrize("quantise", ["none", "nf4"])
@pytest.mark.parametrize(("training", "checkpointing"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("checkpoint", SHAPES)
def test_products_have_16_bits_and_no_activation_is_copied_to_float32(
    checkpoint: str, training: bool, checkpointing: bool, quantise: str, fused: str
) -> None:
    member = Member(checkpoint, lora=Lora(rank=64), quantise=quantise, fused_layers=fused)
    traced = operations(member, training, checkpointing)
    assert share_of_16_bits(traced) >= 0.995
    assert wide(traced, member) == []
    assert {each.dtype for each in traced if each.kind == "attention"} == {"bfloat16"}


def test_the_bounds_find_peft_s_cast_of_each_input_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unfused:
        def __init__(self, model: nn.Module) -> None:
            """peft's own forward pass."""

        def remove(self) -> None:
            """Nothing to undo."""

    monkeypatch.setattr(pass_trace, "FusedLora", Unfused)
    member = Member(SHAPES[0], lora=Lora(rank=63))  # another rank: no trace of it is cached
    found = wide(operations(member, training=True), member)
    # Each adapted layer but those of the last token alone, forward and backward.
    assert len(found) > 10
    assert {each.name for each in found} == {"_to_copy"}


def test_the_bounds_find_float32_products() -> None:
    member = Member(SHAPES[1], lora=Lora(rank=62))
    with patch.object(pass_trace, "traced_dtype", lambda _: torch.float32):
        traced = operations(member, training=False)
    assert share_of_16_bits(traced) == 0.0
    assert wide(traced, member)


def test_quantised_weights_are_unpacked_in_both_passes_and_never_kept() -> None:
    plain, nf4 = (Member(SHAPES[1], lora=Lora(rank=8), quantise=kind) for kind in ("none", "nf4"))
    both = [trace_pass(each, DEPTH, 1, 64, True, False, False) for each in (plain, nf4)]
    unpacked = [each for each in both[1].operations if each.kind == "dequantisation"]
    # Seven layers forward; backward all that pass a gradient on: not those whose input has no gradient (q, k, v of the
    # lowest layer).
    assert len(unpacked) == DEPTH * 7 + DEPTH * 7 - 3
    weights = sum(each.flops for each in both[0].operations if each.product)
    assert sum(each.flops for each in both[1].operations if each.product) == pytest.approx(weights, rel=0.01)
    per_weight = unpacked[0].bytes / torch.Size(unpacked[0].shape).numel()
    assert per_weight == pytest.approx(planned_operators.BYTES_PER_WEIGHT["nf4"] + 2)
    largest = max(torch.Size(each.shape).numel() for each in unpacked) * 2
    assert both[1].peak_bytes < both[0].peak_bytes + 3 * largest


def test_fused_layers_move_fewer_bytes_and_keep_less() -> None:
    eager, fused = (
        trace_pass(Member(SHAPES[0], lora=Lora(rank=64), fused_layers=each), DEPTH, 2, 512, True, False, False)
        for each in ("off", "auto")
    )
    moved = [sum(each.bytes for each in trace.operations) for trace in (eager, fused)]
    assert moved[1] < 0.7 * moved[0]
    assert fused.peak_bytes < eager.peak_bytes
