"""The self-check lets pass what computes eager's function, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AttentionInterface, Gemma2Config, LlamaConfig

from oof.model import blockwise_attention, flex
from oof.model.attention import FLEX, agrees_with_eager, resolve_attention
from tests.fixtures.attention import CAP, SCALING, eager, tensors

SHAPE = (4, 2, 8)


def planted(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> bool:
    """Return whether the check lets blockwise attention pass after a change to it."""
    monkeypatch.setitem(AttentionInterface._global_mapping, blockwise_attention.NAME, function)
    return agrees_with_eager.__wrapped__(blockwise_attention.NAME, SHAPE, torch.float32, "cpu")


def changed(**change: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: blockwise_attention.attention(*args, **kwargs | change)


def test_an_attention_without_a_cap_or_a_window_or_with_another_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planted(monkeypatch, blockwise_attention.attention)
    for change in ({"softcap": 60.0}, {"softcap": 1.8}, {"sliding_window": None}, {"sliding_window": 17}):
        assert not planted(monkeypatch, changed(**change)), change


def test_one_that_fails_or_is_not_finite_or_wrong_backwards_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel for this card\nand a long story")

    def broken(*args: Any, **kwargs: Any) -> Any:
        out, _ = blockwise_attention.attention(*args, **kwargs)
        return out * torch.tensor(float("nan")), None

    def half_gradient(*args: Any, **kwargs: Any) -> Any:
        out, _ = blockwise_attention.attention(*args, **kwargs)
        return out * 0.5 + out.detach() * 0.5, None

    for function in (fails, broken, half_gradient):
        assert not planted(monkeypatch, function), function.__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 2, 24), (8, 1, 16), (3, 3, 8)])
def test_blockwise_attention_passes_at_every_shape(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert agrees_with_eager(blockwise_attention.NAME, shape, dtype, "cpu")


def test_flex_attention_of_a_soft_capped_family_is_ours() -> None:
    assert resolve_attention(Gemma2Config(), FLEX) == flex.NAME
    assert resolve_attention(LlamaConfig(), FLEX) == FLEX


@pytest.mark.slow  # it compiles
def test_flex_attention_is_eager_s_function_and_is_compiled_a_few_times_for_all_shapes() -> None:
    """Without gradients, which it has on a GPU alone: see test_cuda."""
    before = counters["stats"]["unique_graphs"]
    for batch, length in ((2, 200), (3, 100), (4, 300), (1, 400), (7, 530), (5, 130), (6, 620), (2, 500), (9, 129)):
        for window in (64, 1000):
            query, key, value = (x.detach() for x in tensors(batch, 2, 2, length))
            settings: dict[str, Any] = {"softcap": CAP, "sliding_window": window}
            with torch.no_grad():
                out, _ = flex.attention(torch.nn.Identity(), query, key, value, None, SCALING, **settings)
            expected = eager(2, window, query, key, value)
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] - before <= 10


@pytest.mark.parametrize("change", [{"softcap": None}, {"softcap": 5.0, "dropout": 0.1}])
def test_what_flex_attention_does_not_compute_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use eager"):
        flex.attention(torch.nn.Identity(), *tensors(1, 1, 1, 9), None, SCALING, **change)
