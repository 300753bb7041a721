"""Blockwise soft-capped attention against transformers' eager attention: outputs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, Gemma2Config, LlamaConfig

from oof.common.errors import UserError
from oof.model import blockwise_attention
from oof.model.attention import resolve_attention
from tests.fixtures.attention import CAP, SCALING, eager, tensors


def blockwise(window: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    module = torch.nn.Identity()
    return blockwise_attention.attention(module, query, key, value, None, SCALING, softcap=CAP, sliding_window=window)[
        0
    ]


@given(
    batch=st.integers(1, 4),
    n=st.integers(1, 2),
    groups=st.integers(1, 3),
    length=st.integers(1, 70),
    window=st.integers(1, 80),
    in_cache=st.sampled_from([1, 300, 2_000, 2**19]),
)
def test_outputs_and_gradients_are_those_of_eager_attention(
    batch: int, n: int, groups: int, length: int, window: int, in_cache: int
) -> None:
    query, key, value = tensors(batch, n, groups, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blockwise_attention.SCORES, "cpu", in_cache)
        out, expected = blockwise(window, query, key, value), eager(groups, window, query, key, value)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(out, (query, key, value), upstream)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    expected_gradients = torch.autograd.grad(expected, (query, key, value), upstream)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


def test_its_bfloat16_error_is_at_most_that_of_eager_attention() -> None:
    exact = tensors(2, 2, 2, 200)
    rounded = [x.detach().bfloat16() for x in exact]
    truth = eager(2, 200, *[x.float() for x in rounded])
    block_error, eager_error = (
        (out.float() - truth).abs().mean() for out in (blockwise(200, *rounded), eager(2, 200, *rounded))
    )
    assert block_error <= 1.1 * eager_error


def test_the_largest_cap_neither_overflows_nor_vanishes() -> None:
    query, key, value = tensors(1, 1, 1, 30)
    for sign in (1.0, -1.0):  # every score is at the cap, so the output is the mean of the visible values
        out, _ = blockwise_attention.attention(
            torch.nn.Identity(),
            query * 0 + 1e3,
            key * 0 + sign * 1e3,
            value,
            None,
            1.0,
            softcap=blockwise_attention.LARGEST_CAP,
        )
        mean = value.cumsum(dim=2) / torch.arange(1, 31)[:, None]
        torch.testing.assert_close(out.transpose(1, 2), mean, atol=1e-5, rtol=1e-5)


def test_a_model_with_left_padding_gives_the_logits_of_eager_attention() -> None:
    ids = torch.randint(1, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :7] = mask[2, :13] = 0
    logits, weights = [], None
    for attention in ("eager", blockwise_attention.NAME):
        config = Gemma2Config(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, sliding_window=6, pad_token_id=0, num_labels=3, initializer_range=0.5,
        )  # fmt: skip
        model: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)  # type: ignore[no-untyped-call]
        weights = weights or model.state_dict()
        model.load_state_dict(weights)
        logits += [model(input_ids=ids, attention_mask=mask).logits, model(input_ids=ids).logits]
    torch.testing.assert_close(logits[0], logits[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1], logits[3], atol=1e-5, rtol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_in_float16_a_score_at_the_cap_does_not_overflow() -> None:
    query, key, value = (x.detach() for x in tensors(1, 1, 1, 40))
    settings: dict[str, Any] = {"scaling": 20.0, "softcap": 50.0}  # exp(50) is far beyond 65,504
    half, _ = blockwise_attention.attention(
        torch.nn.Identity(), query.half(), key.half(), value.half(), None, **settings
    )
    exact = [x.half().float() for x in (query, key, value)]
    full, _ = blockwise_attention.attention(torch.nn.Identity(), *exact, None, **settings)
    torch.testing.assert_close(half.float(), full, atol=0.03, rtol=0.01)


@pytest.mark.parametrize("change", [{"softcap": None}, {"softcap": 100.0}, {"softcap": 5.0, "dropout": 0.1}])
def test_an_attention_without_a_soft_cap_or_with_dropout_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use eager"):
        blockwise_attention.attention(torch.nn.Identity(), *tensors(1, 1, 1, 9), None, SCALING, **change)


def test_it_is_chosen_for_soft_capped_families_only() -> None:
    gemma = Gemma2Config()
    assert resolve_attention(gemma, blockwise_attention.NAME) == blockwise_attention.NAME
    others: list[Any] = [LlamaConfig(), Gemma2Config(attention_dropout=0.1), Gemma2Config(attn_logit_softcapping=99.0)]
    for config in others:
        with pytest.raises(UserError, match="attn=blockwise"):
            resolve_attention(config, blockwise_attention.NAME)
    with pytest.raises(UserError, match="attn=blockwise"):
        resolve_attention(gemma, blockwise_attention.NAME, softcap="off")
    if not torch.cuda.is_available():
        assert [resolve_attention(config, "auto") for config in others] == ["sdpa", "eager", "eager"]


def test_keys_of_a_cache_are_refused() -> None:
    query, key, value = tensors(1, 1, 1, 9)
    with pytest.raises(ValueError, match="use_cache"):
        blockwise(9, query[:, :, -1:], key, value)
