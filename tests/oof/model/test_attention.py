"""Self-check of attention implementations: it accepts eager attention's function and rejects any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from oof.model import blockwise_attention
from oof.model.attention import agrees_with_eager

SHAPE = (4, 2, 8)


def accepted(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> bool:
    """Return whether the self-check accepts ``function`` in place of blockwise attention."""
    monkeypatch.setitem(AttentionInterface._global_mapping, blockwise_attention.NAME, function)
    return agrees_with_eager.__wrapped__(blockwise_attention.NAME, SHAPE, torch.float32, "cpu")


def changed(**change: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: blockwise_attention.attention(*args, **kwargs | change)


def test_an_attention_without_the_cap_or_window_or_with_a_wrong_one_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert accepted(monkeypatch, blockwise_attention.attention)
    for change in ({"softcap": 60.0}, {"softcap": 1.8}, {"sliding_window": None}, {"sliding_window": 17}):
        assert not accepted(monkeypatch, changed(**change)), change


def test_an_attention_that_raises_or_gives_nan_or_wrong_gradients_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel for this card\nand a long story")

    def broken(*args: Any, **kwargs: Any) -> Any:
        out, _ = blockwise_attention.attention(*args, **kwargs)
        return out * torch.tensor(float("nan")), None

    def half_gradient(*args: Any, **kwargs: Any) -> Any:
        out, _ = blockwise_attention.attention(*args, **kwargs)
        return out * 0.5 + out.detach() * 0.5, None

    for function in (fails, broken, half_gradient):
        assert not accepted(monkeypatch, function), function.__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 2, 24), (8, 1, 16), (3, 3, 8)])
def test_blockwise_attention_is_accepted_at_every_shape(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert agrees_with_eager(blockwise_attention.NAME, shape, dtype, "cpu")
