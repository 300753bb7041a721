"""GPU tests: each attention, fused layer and quantisation that this machine can run, in whole classifiers.

The reference is eager attention in float32. In 16 bits an implementation may be twice as far from it as eager
attention in the same precision is. ``make test-gpu`` runs these tests on a CUDA GPU with whatever FlashAttention and
liger-kernel are installed; on a CPU they run with narrower models, and with a stand-in for the fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from oof.config import Lora, Member, Train
from oof.model import attention, fused_layers
from oof.model.attention import model_attention, this_machine
from oof.model.attention_table import candidates
from oof.model.fused_layers import FusedLayers
from oof.model.optimizations import FusedLora, LastTokens
from oof.model.precision import DTYPES, device, precision_context
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.exactness import batch, gradients
from tests.fixtures.fused_kernels import STAND_IN
from tests.fixtures.real_heads import FAMILIES, ON_GPU, REAL_HEADS
from tests.fixtures.tiny_classifiers import training_steps, with_random_adapter
from tests.fixtures.tiny_models import save_tiny

ON_A_CPU = () if torch.cuda.is_available() else (pytest.mark.slow,)
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600), *ON_A_CPU]

RECIPE = Train(epochs=1, lr=1e-3, head_lr=1e-3, batch_battles=8, tokens_per_batch=4096, warmup_share=0.0)
EXACT = 1e-3  # largest relative error in float32
WINDOW, CAP = 16, 2.0  # tokens, and about the size of the scores


@pytest.fixture(scope="module", params=FAMILIES)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """Return a member in float32 with eager attention."""
    return member_of(request.param, tmp_path_factory.mktemp(request.param))


def member_of(family: str, folder: Path, window: int = WINDOW, cap: float = CAP) -> Member:
    shape = REAL_HEADS[family]
    if family == "gemma2":
        shape = shape | {"sliding_window": window, "attn_logit_softcapping": cap}
    return Member(
        checkpoint=save_tiny(family, folder, scale=2.0, **shape),
        dtype="float32",
        attn="eager",
        fused_layers="off",
        lora=Lora(rank=8),
        train=RECIPE,
    )


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fused layers run here: with liger-kernel on a GPU, with the stand-in on a CPU."""
    if ON_GPU:
        pytest.importorskip("liger_kernel")
    else:
        monkeypatch.setattr(fused_layers, "DEVICES", ("cpu",))
        monkeypatch.setattr(fused_layers, "load_kernels", lambda: STAND_IN)


Result = tuple[torch.Tensor, torch.Tensor]


def result(member: Member, prepare: Callable[[Any, int], object] = lambda model, pad: None) -> Result:
    """Return the logits of a padded batch and the gradients of all trained weights, each as one vector."""
    model = with_random_adapter(member, 0.05).to(device())
    pad = model.config.pad_token_id
    prepare(model, pad)
    with precision_context(member):
        logits, grads = gradients(model, batch(pad, (150, 40, 97, 3)))
    return logits.float().cpu().flatten(), torch.cat([grad.float().cpu().flatten() for grad in grads.values()])


def error(tested: Result, expected: Result) -> float:
    """Return the larger relative error of logits and gradients."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(tested, expected, strict=True))


def assert_as_good_as_eager(member: Member, dtype: str, tested: Result, expected: Result) -> None:
    allowed = EXACT if dtype == "float32" else 2.0 * error(result(replace(member, dtype=dtype)), expected)
    assert error(tested, expected) <= allowed


def implementations(member: Member, dtype: str) -> tuple[str, ...]:
    config = AutoConfig.from_pretrained(member.checkpoint)
    return candidates(model_attention(config, "on"), DTYPES[dtype], this_machine())


def test_the_reference_depends_on_soft_capping_and_on_the_window(tmp_path: Path) -> None:
    """Otherwise the tests below would not see an attention without them."""

    expected = result(member_of("gemma2", tmp_path / "both"))
    assert error(result(member_of("gemma2", tmp_path / "window", window=1000)), expected) > 0.1
    assert error(result(member_of("gemma2", tmp_path / "cap", cap=1000.0)), expected) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_attention_of_this_machine_gives_eager_s_logits_and_gradients(
    dtype: str, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = result(member)
    names = implementations(member, dtype)
    assert names[-1] == "eager"
    assert len(names) > 1
    config = AutoConfig.from_pretrained(member.checkpoint)
    for name in names[:-1]:
        assert attention._passes(name, model_attention(config, "on"), DTYPES[dtype], this_machine()), name
        monkeypatch.setattr("oof.model.classifier.resolve_attention", lambda *_, name=name: name)
        assert_as_good_as_eager(member, dtype, result(replace(member, dtype=dtype)), expected)
        monkeypatch.undo()


@pytest.mark.usefixtures("fusing")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fused_layers_give_eager_s_logits_and_gradients(dtype: str, member: Member) -> None:
    expected = result(member)
    in_dtype = replace(member, dtype=dtype, fused_layers="auto")
    kinds: list[str] = []

    def prepare(model: Any, pad: int) -> None:
        LastTokens(model, pad)
        FusedLora(model)
        kinds.extend(FusedLayers(model, in_dtype).kinds)

    assert_as_good_as_eager(member, dtype, result(in_dtype, prepare), expected)
    assert kinds == ["geglu" if "gemma" in member.checkpoint else "rms_norm", *kinds[1:]]
    assert len(kinds) == 2


def losses(member: Member, folder: Path) -> list[float]:
    """Return the loss of each of 4 optimizer steps in the trainer of fold jobs."""
    steps, _ = training_steps(member)
    model = with_random_adapter(member, 0.0).to(device())
    summary: Any = train_classifier(model, member, steps, cross_entropy, folder, 3, "test")
    assert summary["skipped_steps"] == []
    return [entry["loss"] for entry in summary["history"]]


@pytest.mark.usefixtures("fusing")
def test_training_with_everything_that_auto_takes_follows_eager_in_float32(member: Member, tmp_path: Path) -> None:
    fast = replace(member, dtype="bfloat16", attn="auto", fused_layers="auto")
    assert losses(fast, tmp_path / "fast") == pytest.approx(losses(member, tmp_path / "eager"), rel=0.05)


@pytest.mark.parametrize(("quantise", "tolerance"), [("int8", 0.1), ("nf4", 0.7)])
def test_a_quantised_base_scores_and_trains_near_the_unquantised_one(
    quantise: str, tolerance: float, member: Member, tmp_path: Path
) -> None:
    plain = replace(member, dtype="bfloat16", attn="auto")
    quantised = replace(plain, quantise=quantise)
    assert 0.0 < error(result(quantised), result(plain)) < tolerance
    assert losses(quantised, tmp_path / "q") == pytest.approx(losses(plain, tmp_path / "p"), rel=0.1)
