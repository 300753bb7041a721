"""Fused layers compute what the eager layers compute, and only known layers that pass their self-check are replaced.

The parity tests run with a stand-in of PyTorch, and with liger-kernel's own kernels where it is installed (see
:mod:`tests.fixtures.fused_kernels`): on a GPU, or on a CPU with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from oof.config import Lora, Member
from oof.model import fused_layers
from oof.model.classifier import load_base, load_tokenizer
from oof.model.fused_layers import NORMS, FusedLayers, Kernels, load_kernels
from oof.model.optimizations import FusedLora, LastTokens, checkpoint_trainable_layers
from oof.model.precision import device, precision_context
from oof.training.inference import predict_logits
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier
from tests.fixtures.exactness import assert_exact, batch, gradients
from tests.fixtures.fused_kernels import STAND_IN, liger
from tests.fixtures.tiny_classifiers import encoded_transcripts, training_steps, with_random_adapter
from tests.fixtures.tiny_models import FAMILIES, MEMBER, save_tiny

KINDS = {"gemma2": ["geglu", "rms_norm"], "gemma3_text": ["geglu", "rms_norm"]}
LORA = Lora(rank=4, alpha=8)


@pytest.fixture(params=["stand-in", "liger-kernel"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    return STAND_IN if request.param == "stand-in" else liger(monkeypatch)


@pytest.fixture
def fused(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Let ``fused_layers: auto`` use these kernels on a CPU, too."""
    with_kernels(monkeypatch, kernels)
    return kernels


def with_kernels(monkeypatch: pytest.MonkeyPatch, kernels: Kernels | None) -> None:
    monkeypatch.setattr(fused_layers, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(fused_layers, "load_kernels", lambda: kernels)
    fused_layers._agrees.cache_clear()
    fused_layers._log_kinds.cache_clear()


def member_of(family: str, folder: Path, **changes: Any) -> Member:
    return replace(Member(checkpoint=save_tiny(family, folder), dtype="float32", lora=LORA), **changes)


def adapted(member: Member) -> tuple[nn.Module, int]:
    return with_random_adapter(member, 0.1).to(device()), load_tokenizer(member.checkpoint).pad_token_id


def n_layers(model: nn.Module, name: str) -> int:
    return sum(type(layer).__name__.endswith(name) for layer in model.modules())


@pytest.mark.gpu
@pytest.mark.parametrize("family", list(FAMILIES))
def test_fused_layers_give_the_same_logits_and_gradients(family: str, fused: Kernels, tmp_path: Path) -> None:
    member = member_of(family, tmp_path)
    model, pad = adapted(member)
    optimization = assert_exact(model, pad, lambda: FusedLayers(model, member))
    assert optimization.kinds == KINDS.get(family, ["rms_norm", "swiglu"])
    assert len(optimization.layers) == n_layers(model, "RMSNorm") + n_layers(model, "MLP")


@pytest.mark.gpu
@pytest.mark.parametrize("lora", [Lora(rank=0), Lora(rank=4, alpha=8, dora=True), Lora(rank=4, alpha=8, dropout=0.3)])
def test_full_fine_tuning_dora_and_dropout_keep_their_gradients(lora: Lora, fused: Kernels, tmp_path: Path) -> None:
    """The backward pass overwrites gate and up: peft's variants must not read them."""
    member = member_of("gemma2", tmp_path, lora=lora)
    model, pad = adapted(member)
    assert_exact(model.eval(), pad, lambda: FusedLayers(model, member))


@pytest.mark.gpu
def test_fused_layers_go_with_the_other_optimizations_and_recomputation(fused: Kernels, tmp_path: Path) -> None:
    member = member_of("llama", tmp_path, lora=Lora(rank=4, alpha=8, layers="upper_half"))
    model, pad = adapted(member)
    logits, grads = gradients(model, batch(pad))
    assert checkpoint_trainable_layers(model) == 2
    optimizations = (LastTokens(model, pad), FusedLora(model), FusedLayers(model, member))
    optimized, optimized_grads = gradients(model.train(), batch(pad))
    torch.testing.assert_close(optimized, logits, atol=1e-5, rtol=1e-4)
    for name, grad in grads.items():
        torch.testing.assert_close(optimized_grads[name], grad, atol=1e-4, rtol=1e-3, msg=name)
    for optimization in optimizations:
        optimization.remove()
    assert not any("forward" in vars(layer) for layer in model.modules())


@pytest.mark.gpu
@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_fused_layers_go_with_a_quantised_base(quantise: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_kernels(monkeypatch, STAND_IN)
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    checkpoint = save_tiny("gemma2", tmp_path, **wide)
    member = Member(checkpoint=checkpoint, dtype="bfloat16", quantise=quantise, lora=LORA)
    model, pad = adapted(member)
    with precision_context(member):
        logits, grads = gradients(model, batch(pad))
        optimization = FusedLayers(model, member)
        fused, fused_grads = gradients(model, batch(pad))
    assert optimization.kinds == KINDS["gemma2"]
    torch.testing.assert_close(fused, logits, atol=0.02 * float(logits.abs().max()), rtol=0)
    for name, grad in grads.items():
        torch.testing.assert_close(fused_grads[name], grad, atol=0.05 * float(grad.abs().max()), rtol=0, msg=name)


def test_training_and_scoring_with_fused_layers_follow_those_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(setting: str) -> tuple[list[float], Any, object]:
        member = replace(MEMBER, fused_layers=setting, train=replace(MEMBER.train, tokens_per_batch=2048))
        steps, tokenizer = training_steps(member, 16)
        model = with_random_adapter(member, 0.01)
        summary: Any = train_classifier(model, member, steps, cross_entropy, tmp_path / setting, 3, "test")
        logits = predict_logits(model, member, encoded_transcripts(4, tokenizer), tokenizer.pad_token_id, "test")
        return [entry["loss"] for entry in summary["history"]], torch.from_numpy(logits), summary["fused_layers"]

    calls: list[str] = []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append("norm")
        return STAND_IN.rms_norm(*arguments)

    losses, logits, kinds = run("off")
    with_kernels(monkeypatch, STAND_IN._replace(rms_norm=counted))
    fused_losses, fused_logits, fused_kinds = run("auto")
    assert (kinds, fused_kinds) == ([], ["rms_norm", "swiglu"])
    assert len(calls) > 20
    assert fused_losses == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(fused_logits, logits, atol=1e-3, rtol=1e-3)


# Which layers are replaced


def test_layers_of_unknown_classes_and_activations_stay_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OtherNorm(LlamaRMSNorm):
        pass

    with_kernels(monkeypatch, STAND_IN)
    config = LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, hidden_act="relu")
    model = nn.ModuleList([OtherNorm(8), LlamaMLP(config)])
    with caplog.at_level(logging.INFO, logger="oof"):
        assert FusedLayers(model, MEMBER).layers == []
    assert "none; its layers are unknown" in caplog.text


def test_a_forward_that_another_library_has_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels(monkeypatch, STAND_IN)
    norm: Any = LlamaRMSNorm(8)
    norm.forward = hooked = lambda x: x
    FusedLayers(nn.ModuleList([norm]), MEMBER).remove()
    assert norm.forward is hooked


def test_another_model_of_the_same_class_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels(monkeypatch, STAND_IN)
    norms = LlamaRMSNorm(8), LlamaRMSNorm(8)
    FusedLayers(nn.ModuleList([norms[0]]), MEMBER)
    assert ["forward" in vars(norm) for norm in norms] == [True, False]


def without_offset(*arguments: Any) -> torch.Tensor:
    return STAND_IN.rms_norm(*arguments[:3], 0.0, *arguments[4:])


def failing(*arguments: Any) -> torch.Tensor:
    raise RuntimeError("no compiler found\nmore")


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * float("nan")


def with_nan_gradient_of_up(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return STAND_IN.geglu(gate, _NanGradient.apply(up))  # type: ignore[no-untyped-call]


def without_gradient_of_up(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return STAND_IN.geglu(gate, up.detach()) + 0 * up


@pytest.mark.parametrize(
    ("broken", "kept", "reason"),
    [
        (STAND_IN._replace(rms_norm=without_offset), ["geglu"], "fused rms_norm of Gemma2RMSNorm"),
        (STAND_IN._replace(rms_norm=failing), ["geglu"], "is not usable here (no compiler found)"),
        (STAND_IN._replace(geglu=STAND_IN.swiglu), ["rms_norm"], "differs from eager by"),
        (STAND_IN._replace(geglu=without_gradient_of_up), ["rms_norm"], "fused geglu of Gemma2MLP"),
        (STAND_IN._replace(geglu=with_nan_gradient_of_up), ["rms_norm"], "differs from eager by nan"),
    ],
)
def test_a_kernel_that_fails_its_self_check_is_not_used(
    broken: Kernels,
    kept: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    with_kernels(monkeypatch, broken)
    member = member_of("gemma2", tmp_path)
    model, pad = adapted(member)
    with torch.inference_mode():
        logits = model.eval()(**batch(pad)).logits
        assert FusedLayers(model, member).kinds == kept
        torch.testing.assert_close(model(**batch(pad)).logits, logits, atol=1e-5, rtol=1e-4)
    assert reason in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_pass_the_self_check_in_every_precision(norm: type, dtype: torch.dtype, kernels: Kernels) -> None:
    for width in (24, 256, 300):
        assert fused_layers._agrees(kernels, norm, "rms_norm", width, dtype, device().type)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["geglu", "swiglu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gated_activations_pass_the_self_check_in_every_precision(
    kind: str, dtype: torch.dtype, kernels: Kernels
) -> None:
    if kernels is not STAND_IN and device().type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter computes products of bfloat16 wrong")
    assert fused_layers._agrees(kernels, LlamaMLP, kind, 200, dtype, device().type)


@pytest.mark.gpu
def test_the_kernel_for_many_rows_of_narrow_norms_passes_the_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = liger(monkeypatch)
    shape = (fused_layers.CHECK_ROWS_OF_NARROW, 8)
    difference = fused_layers._difference(kernels, Gemma2RMSNorm, "rms_norm", shape, torch.float32, device().type)
    assert difference <= fused_layers.TOLERANCE[torch.float32]


def test_inputs_of_another_precision_than_the_weights_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes differ in the precision that they return then."""
    with_kernels(monkeypatch, STAND_IN._replace(rms_norm=failing_after_check()))
    norm = LlamaRMSNorm(8)
    x = torch.randn(2, 8).bfloat16()
    expected = norm(x)
    FusedLayers(nn.ModuleList([norm]), replace(MEMBER, dtype="bfloat16"))
    assert norm(x).dtype == expected.dtype == torch.float32
    torch.testing.assert_close(norm(x), expected)
    with pytest.raises(RuntimeError, match="fused"):
        norm(x.float())


def failing_after_check() -> Any:
    """Return a norm that works on the self-check's shapes only."""

    def norm(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(x) != fused_layers.CHECK_ROWS:
            raise RuntimeError("fused")
        return STAND_IN.rms_norm(x, *arguments)

    return norm


# Which machines use them


def test_a_cpu_and_the_setting_off_use_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "load_kernels", lambda: pytest.fail("loaded"))
    FusedLayers(nn.ModuleList([LlamaRMSNorm(8)]), MEMBER)
    monkeypatch.setattr(fused_layers, "DEVICES", ("cpu", "cuda"))
    FusedLayers(nn.ModuleList([LlamaRMSNorm(8)]), replace(MEMBER, fused_layers="off"))


def test_without_liger_kernel_a_log_line_gives_the_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "liger_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    fused_layers._log_missing.cache_clear()
    with caplog.at_level(logging.INFO, logger="oof"):
        assert load_kernels() is None
    assert "not fused" in caplog.text
    assert "make setup EXTRAS=gpu" in caplog.text


def test_float16_scoring_checks_float16_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checked: list[torch.dtype] = []

    def agrees(*arguments: Any) -> bool:
        checked.append(arguments[4])
        return True

    with_kernels(monkeypatch, STAND_IN)
    monkeypatch.setattr(fused_layers, "_agrees", agrees)
    member = member_of("llama", tmp_path, score_dtype="float16")
    FusedLayers(load_base(member, load_tokenizer(member.checkpoint), 0), member)
    assert set(checked) == {torch.float32, torch.float16}
    checked.clear()
    FusedLayers(load_base(member, load_tokenizer(member.checkpoint), 0).bfloat16(), replace(member, score_dtype="same"))
    assert set(checked) == {torch.float32, torch.bfloat16}


@pytest.mark.gpu
def test_the_kernels_are_found_where_liger_kernel_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert liger(monkeypatch)._fields == ("rms_norm", "geglu", "swiglu")


def test_a_plain_transformers_classifier_is_fused_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kernels(monkeypatch, STAND_IN)
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    assert FusedLayers(model, MEMBER).kinds == ["rms_norm", "swiglu"]
