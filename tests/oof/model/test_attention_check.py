"""Self-check of attention implementations: it accepts eager attention's function and rejects any other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from oof.model import blockwise_attention
from oof.model.attention_check import agrees_with_eager
from oof.model.precision import device

SHAPE = (4, 2, 8)
Attention = Callable[..., Any]


def accepted(
    monkeypatch: pytest.MonkeyPatch,
    function: Attention,
    name: str = blockwise_attention.NAME,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Return whether the self-check accepts ``function`` in place of a registered attention."""
    monkeypatch.setitem(AttentionInterface._global_mapping, name, function)
    return agrees_with_eager.__wrapped__(name, SHAPE, dtype, "cpu", name == blockwise_attention.NAME)


def changed(**change: Any) -> Attention:
    return lambda *args, **kwargs: blockwise_attention.attention(*args, **kwargs | change)


def window_larger_by_one(*args: Any, sliding_window: int | None, **kwargs: Any) -> Any:
    window = sliding_window and sliding_window + 1
    return blockwise_attention.attention(*args, sliding_window=window, **kwargs)


def other_key_heads(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> Any:
    """Query head i reads key head i % n, not i // groups."""
    order = torch.arange(query.shape[1]).view(-1, key.shape[1]).t().flatten()
    out, _ = blockwise_attention.attention(module, query[:, order], key, value, **kwargs)
    return out[:, :, order.argsort()], None


def looks_ahead(module: Any, *args: Any, attention_mask: Any, sliding_window: Any, **kwargs: Any) -> Any:
    mask = torch.zeros(1, 1, args[0].shape[2], args[0].shape[2])
    return eager_attention_forward(module, *args, mask, **kwargs)


WRONG = {
    "no soft-cap": changed(softcap=60.0),
    "another soft-cap": changed(softcap=1.8),
    "no window": changed(sliding_window=None),
    "a window for full attention": changed(sliding_window=17),
    "a window larger by one": window_larger_by_one,
    "other key heads": other_key_heads,
    "not causal": looks_ahead,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("error", list(WRONG))
def test_an_attention_of_another_function_is_rejected_with_one_log_line(
    error: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert accepted(monkeypatch, blockwise_attention.attention, dtype=dtype)
    with caplog.at_level(logging.INFO):
        assert not accepted(monkeypatch, WRONG[error], dtype=dtype)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "blockwise" in caplog.text


def test_an_attention_that_raises_or_gives_nan_or_wrong_gradients_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no kernel for this card\nand a long story")

    def fails_without_a_message(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    def broken(*args: Any, **kwargs: Any) -> Any:
        out, _ = blockwise_attention.attention(*args, **kwargs)
        return out * torch.tensor(float("nan")), None

    def half_gradient(*args: Any, **kwargs: Any) -> Any:
        out, _ = blockwise_attention.attention(*args, **kwargs)
        return out * 0.5 + out.detach() * 0.5, None

    def nan_gradient_of_value(module: Any, query: torch.Tensor, key: Any, value: Any, *rest: Any, **kwargs: Any) -> Any:
        value.register_hook(lambda gradient: gradient * float("nan"))
        return blockwise_attention.attention(module, query, key, value, *rest, **kwargs)

    def nan_of_long_texts(module: Any, query: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        out, _ = blockwise_attention.attention(module, query, *rest, **kwargs)
        return out * float("nan") if query.shape[2] > 100 else out, None

    functions = (fails, fails_without_a_message, broken, half_gradient, nan_gradient_of_value, nan_of_long_texts)
    for function in functions:
        assert not accepted(monkeypatch, function), function.__name__


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 2, 24), (8, 1, 16), (3, 3, 8)])
def test_blockwise_attention_and_sdpa_are_accepted_at_every_shape(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    assert agrees_with_eager(blockwise_attention.NAME, shape, dtype, device().type)
    assert agrees_with_eager("sdpa", shape, dtype, device().type, capped=False)


def test_sdpa_with_a_wrong_scale_or_for_soft_capped_scores_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_scale(*args: Any, scaling: float, **kwargs: Any) -> Any:
        return sdpa_attention_forward(*args, scaling=1.1 * scaling, **kwargs)

    assert accepted(monkeypatch, sdpa_attention_forward, "sdpa")
    assert not accepted(monkeypatch, wrong_scale, "sdpa")
    assert not agrees_with_eager("sdpa", SHAPE, torch.float32, "cpu", capped=True)
