"""Predicted seconds: against measurements, by hand, and in their dependence on card, precision and lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Gemma2Config

from benchmarks.speed.token_sequences import arena_lengths
from oof.config import Lora, Member, Train
from oof.encoding.batches import SPARE, cut
from oof.model import checkpoint_shapes, pass_trace
from oof.model.cards import CARDS
from oof.model.operations import DEQUANTISE, MATRIX, OPTIMIZER
from oof.model.predicted_time import (
    Batches,
    Prediction,
    attentions_on,
    predicted_on_this_gpu,
    predicted_training_seconds,
    representative,
    scoring_batches,
    seconds,
    training_batches,
)

GEMMA = Member("google/gemma-2-2b-it", lora=Lora(rank=16), train=Train(tokens_per_batch=4096))
LLAMA = Member("meta-llama/Llama-3.2-1B-Instruct", lora=Lora(rank=16), train=Train(tokens_per_batch=4096))
LENGTHS = arena_lengths(64, 2048)


class Unoptimised:
    def __init__(self, *_: object, **__: object) -> None:
        """The measured model had none of our optimizations."""

    def remove(self) -> None:
        """Nothing to undo."""


# docs/evidence/gpu.md: tokens per second on an H200, of four layers with Gemma2-9B's heads.
MEASURED = {
    ("eager", True): 116_504,
    ("eager", False): 264_181,
    ("blockwise", True): 92_906,
    ("blockwise", False): 242_818,
}


@pytest.fixture
def four_layers(monkeypatch: pytest.MonkeyPatch) -> Member:
    """Return the model of benchmarks/gpu/attention_kernels.py, as it was measured."""
    shape = {"vocab_size": 1000, "hidden_size": 3584, "intermediate_size": 1024, "num_hidden_layers": 4}
    shape |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256}
    monkeypatch.setitem(checkpoint_shapes.KNOWN_SHAPES, "four layers", (Gemma2Config, shape))
    monkeypatch.setattr(pass_trace, "LastTokens", Unoptimised)
    monkeypatch.setattr(pass_trace, "FusedLora", Unoptimised)
    return Member("four layers", lora=Lora(rank=16), fused_layers="off")


@pytest.mark.slow
@pytest.mark.parametrize(("case", "per_second"), MEASURED.items())
def test_speeds_measured_on_an_h200_are_predicted_within_5_percent(
    four_layers: Member, case: tuple[str, bool], per_second: float
) -> None:
    attention, training = case
    lengths = arena_lengths(128, 2048)
    padded = -(-lengths // 8) * 8
    shapes = np.array([(len(rows), padded[rows].max()) for rows in cut(lengths, 16384, SPARE["cuda"])])
    batches = Batches(shapes, 0, float(lengths.sum()))
    prediction = Prediction(four_layers, CARDS["H200"], attention)
    rows = prediction.training(batches, checkpointing=False) if training else prediction.scoring(batches)
    assert shapes.prod(axis=1).sum() / seconds(rows) == pytest.approx(per_second, rel=0.05)


@pytest.mark.slow
def test_time_is_priced_at_the_precision_s_own_rate() -> None:
    batches = training_batches(LENGTHS, LLAMA.train, 4096)

    def products(card: str, dtype: str) -> float:
        member = replace(LLAMA, dtype=dtype)
        rows = Prediction(member, CARDS[card], "sdpa").training(batches, False)
        return sum(float(amounts[2]) for (kind, _), amounts in rows.items() if kind == MATRIX)

    assert products("T4", "float32") > 6 * products("T4", "bfloat16")
    assert products("T4", "bfloat16") == products("T4", "float16")
    assert products("H100", "bfloat16") < products("T4", "bfloat16") / 8


@pytest.mark.slow
def test_an_nf4_base_pays_for_its_dequantisation() -> None:
    batches = training_batches(LENGTHS, LLAMA.train, 4096)
    plain, nf4 = (
        Prediction(replace(LLAMA, quantise=kind), CARDS["L4"], "sdpa").training(batches, False)
        for kind in ("none", "nf4")
    )
    assert nf4[DEQUANTISE, "bfloat16"][1] > 0
    assert (DEQUANTISE, "bfloat16") not in plain
    assert 1.02 * seconds(plain) < seconds(nf4) < 2 * seconds(plain)


@pytest.mark.parametrize("attention", ["blockwise", "flash_attention_4"])
def test_attention_costs_more_per_token_in_long_sequences(attention: str) -> None:
    def at(tokens: int) -> dict[tuple[str, str], np.ndarray]:
        shape = np.array([[4096 // tokens, tokens]])
        return Prediction(GEMMA, CARDS["H100"], attention).scoring(Batches(shape, 0, 1.0))

    short, long = at(256), at(4096)
    assert seconds(short) < seconds(long)
    flops = [rows["attention", "bfloat16"][0] for rows in (short, long)]
    growth = flops[1] / flops[0]
    # Twice the length, twice the scores per token; blockwise attention also computes a masked part of each block.
    assert growth == pytest.approx(4097 / 257, rel=0.01) if attention == "flash_attention_4" else growth > 8
    products = [rows["matrix products", "bfloat16"][0] for rows in (short, long)]
    assert products[0] == pytest.approx(products[1], rel=0.01)


def test_representative_shapes_keep_tokens_and_nearly_the_attention() -> None:
    shapes = training_batches(LENGTHS, LLAMA.train, 4096).shapes
    few = list(representative(shapes))
    assert 2 <= len(few) <= 6
    padded = shapes.prod(axis=1)
    assert sum(count * sequences * tokens for count, sequences, tokens in few) == pytest.approx(padded.sum())
    squares = sum(count * sequences * tokens**2 for count, sequences, tokens in few)
    assert squares == pytest.approx((padded * shapes[:, 1]).sum(), rel=0.02)


def test_batches_are_those_of_a_gpu() -> None:
    batches = training_batches(LENGTHS, replace(LLAMA.train, batch_battles=16), 4096)
    assert batches.steps == 4
    assert batches.tokens == 2 * LENGTHS.sum()
    assert batches.shapes.prod(axis=1).max() <= 4096
    assert batches.shapes[:, 0].sum() == 2 * len(LENGTHS)
    scored = scoring_batches(LENGTHS, LLAMA)
    assert scored.shapes.prod(axis=1).max() <= 16384
    assert scored.shapes[:, 0].sum() == 2 * len(LENGTHS)


def test_the_optimizer_runs_once_a_step() -> None:
    batches = training_batches(LENGTHS, LLAMA.train, 4096)
    prediction = Prediction(LLAMA, CARDS["H100"], "sdpa")
    once, twice = (prediction.training(replace(batches, steps=steps), False)[OPTIMIZER, "float32"] for steps in (1, 2))
    np.testing.assert_allclose(twice, 2 * once)
    trained = 11.27e6 + 3 * 2048  # weights of rank 16 in all linear layers, and the head
    # Weights, gradients and two moments are read, all but the gradients are written, and clipping reads the gradients.
    assert once[1] > 4 * 8 * trained


def test_training_and_scoring_seconds_follow_the_recipe() -> None:
    arguments = LENGTHS, 4096, False, "sdpa"
    one = predicted_training_seconds("H100", LLAMA, *arguments)
    two = predicted_training_seconds("H100", replace(LLAMA, train=replace(LLAMA.train, epochs=2.0)), *arguments)
    assert two == pytest.approx(2 * one)
    scored = seconds(Prediction(LLAMA, CARDS["H100"], "sdpa").scoring(scoring_batches(LENGTHS, LLAMA)))
    assert scored < one / 2  # there is no backward pass


@pytest.mark.slow
def test_a_job_s_prediction_is_that_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = LLAMA, LENGTHS, 4096, False, "sdpa"
    assert predicted_on_this_gpu(*arguments) == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    unfused = replace(LLAMA, fused_layers="off")  # liger-kernel is not installed here
    expected = predicted_training_seconds("H100", unfused, *arguments[1:])
    assert predicted_on_this_gpu(*arguments) == {"predicted_seconds": pytest.approx(expected, abs=0.051)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another GPU")
    assert predicted_on_this_gpu(*arguments) == {}


@pytest.mark.parametrize(
    ("card", "gemma", "llama"),
    [
        ("T4", ("blockwise", "eager"), ("sdpa", "eager")),
        ("L4", ("blockwise", "eager"), ("sdpa", "eager")),
        ("A100-80", ("blockwise", "eager"), ("sdpa", "eager")),
        ("H100", ("flash_attention_4", "blockwise", "eager"), ("flash_attention_4", "sdpa", "eager")),
    ],
)
def test_attentions_of_each_card(card: str, gemma: tuple[str, ...], llama: tuple[str, ...]) -> None:
    assert attentions_on(CARDS[card], GEMMA) == gemma
    assert attentions_on(CARDS[card], LLAMA) == llama
    assert attentions_on(CARDS[card], replace(GEMMA, attn="eager")) == ("eager",)
    flash = attentions_on(CARDS[card], replace(GEMMA, attn="flash_attention_4"))
    assert flash == (("flash_attention_4",) if card == "H100" else ())
    assert attentions_on(CARDS[card], replace(LLAMA, dtype="float32")) == ("sdpa", "eager")
