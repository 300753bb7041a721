"""Choice of attention: the first candidate that passes its self-check, on machines that are simulated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import AttentionInterface, Gemma2Config, Gemma3TextConfig, LlamaConfig

from oof.common.errors import UserError
from oof.model import attention, attention_check, blockwise_attention
from oof.model.attention import model_attention, resolve_attention, this_machine
from oof.model.attention_table import HUB_KERNELS, Machine

FA4, FA2, KERNEL2 = "flash_attention_4", "flash_attention_2", HUB_KERNELS["flash_attention_2"]
H100, A100, T4 = (9, 0), (8, 0), (7, 5)
GEMMA, LLAMA = Gemma2Config(num_attention_heads=16, num_key_value_heads=8, head_dim=256), LlamaConfig()
Simulate = Callable[..., list[str]]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Return a function that simulates a machine and the implementations that fail there; it returns those checked."""

    def simulate(capability: tuple[int, int], installed: set[str], failing: tuple[str, ...] = ()) -> list[str]:
        checked: list[str] = []

        def agrees(name: str, *_: Any) -> bool:
            checked.append(name)
            return name not in failing

        monkeypatch.setattr(attention, "this_machine", lambda: Machine(capability, frozenset(installed)))
        monkeypatch.setattr(attention, "agrees_with_eager", agrees)
        monkeypatch.setattr(attention, "lazy_import_flash_attention", lambda name: None)
        attention._log_choice.cache_clear()
        return checked

    return simulate


@pytest.mark.parametrize(
    ("capability", "installed", "failing", "config", "dtype", "expected"),
    [
        (H100, {FA4, FA2}, (), GEMMA, torch.bfloat16, [FA4]),
        (H100, {FA4, FA2}, (FA4,), GEMMA, torch.bfloat16, [FA4, FA2]),
        (H100, {FA4, KERNEL2}, (FA4,), GEMMA, torch.float16, [FA4, KERNEL2]),
        (H100, {FA4}, (FA4,), GEMMA, torch.bfloat16, [FA4, "blockwise"]),
        (H100, {FA4}, (FA4, "sdpa"), LLAMA, torch.bfloat16, [FA4, "sdpa", "eager"]),
        (H100, {FA4}, (FA4, "blockwise"), GEMMA, torch.bfloat16, [FA4, "blockwise", "eager"]),
        (H100, {FA4}, (), GEMMA, torch.float32, ["blockwise"]),
        (A100, {FA4, FA2}, (), GEMMA, torch.bfloat16, [FA2]),
        (T4, {FA4, FA2}, (), GEMMA, torch.float16, ["blockwise"]),
        (T4, {FA4, FA2}, (), LLAMA, torch.float16, ["sdpa"]),
    ],
)
def test_auto_is_the_first_candidate_that_passes_its_self_check(
    simulate: Simulate,
    capability: tuple[int, int],
    installed: set[str],
    failing: tuple[str, ...],
    config: Any,
    dtype: torch.dtype,
    expected: list[str],
) -> None:
    checked = simulate(capability, installed, failing)
    assert resolve_attention(config, "auto", dtype=dtype) == expected[-1]
    assert checked == [name for name in expected if name != "eager"]


@pytest.mark.parametrize(
    ("wanted", "capability", "installed", "dtype", "message"),
    [
        (FA4, (0, 0), set(), torch.bfloat16, "attn=flash_attention_4 cannot run here: it needs a CUDA GPU; use attn="),
        (FA4, H100, set(), torch.bfloat16, "package flash-attn-4 is not installed; run 'make setup EXTRAS=gpu'"),
        (FA2, A100, set(), torch.bfloat16, "package flash-attn is not installed; install it, or use attn=auto"),
        (FA2, A100, {FA2}, torch.float32, "16 bits, not in float32; use dtype=bfloat16 or attn=auto"),
        (FA2, T4, {FA2}, torch.float16, "compute capability 8.0 or higher, not 7.5; use attn=auto"),
        (FA4, A100, {FA4}, torch.bfloat16, "compute capability 9.0 or higher, not 8.0; use attn=auto"),
    ],
)
def test_a_chosen_attention_that_cannot_run_is_refused_with_reason_and_remedy(
    simulate: Simulate, wanted: str, capability: tuple[int, int], installed: set[str], dtype: torch.dtype, message: str
) -> None:
    simulate(capability, installed)
    with pytest.raises(UserError) as refusal:
        resolve_attention(GEMMA, wanted, dtype=dtype)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_chosen_attention_that_fails_its_self_check_is_refused(simulate: Simulate) -> None:
    simulate(H100, {FA4}, (FA4, "sdpa"))
    for config, wanted in ((GEMMA, FA4), (LLAMA, "sdpa")):
        with pytest.raises(UserError, match="does not compute eager's attention"):
            resolve_attention(config, wanted, dtype=torch.bfloat16)


def test_a_cached_kernel_takes_the_place_of_a_chosen_package_that_is_not_installed(simulate: Simulate) -> None:
    simulate(A100, {KERNEL2})
    assert resolve_attention(GEMMA, FA2, dtype=torch.bfloat16) == KERNEL2


def test_a_kernel_that_does_not_load_is_skipped_and_none_is_downloaded(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offline: list[bool] = []

    def load(name: str) -> None:
        offline.append(constants.HF_HUB_OFFLINE)
        raise ValueError("built for another torch")

    checked = simulate(A100, {KERNEL2})
    monkeypatch.setattr(attention, "lazy_import_flash_attention", load)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert resolve_attention(GEMMA, "auto", dtype=torch.bfloat16) == "blockwise"
    assert (checked, offline, constants.HF_HUB_OFFLINE) == (["blockwise"], [True], False)
    assert "built for another torch" in caplog.text


def test_a_slower_attention_on_a_card_for_flash_attention_is_logged_once_with_the_reasons(
    simulate: Simulate, caplog: pytest.LogCaptureFixture
) -> None:
    simulate(A100, {FA4})
    with caplog.at_level(logging.INFO, logger="oof"):
        for _ in range(2):
            resolve_attention(GEMMA, "auto", dtype=torch.bfloat16)
    (chosen, warning) = caplog.messages
    assert chosen == "attention: blockwise"
    assert "flash_attention_4: it needs a GPU of compute capability 9.0 or higher, not 8.0" in warning
    assert "flash_attention_2: the package flash-attn is not installed" in warning


def test_sdpa_is_checked_on_this_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_causal(module: Any, query: torch.Tensor, *_: Any, **__: Any) -> Any:
        return query.transpose(1, 2), None

    attention_check.agrees_with_eager.cache_clear()
    monkeypatch.setattr(attention, "this_machine", Machine)
    assert resolve_attention(LLAMA, "auto") == "sdpa"
    attention_check.agrees_with_eager.cache_clear()
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", not_causal)
    assert resolve_attention(LLAMA, "auto") == "eager"
    attention_check.agrees_with_eager.cache_clear()


def test_this_machine_lists_packages_and_cached_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(attention, "is_flash_attn_4_available", lambda: True)
    monkeypatch.setattr(attention, "is_kernels_available", lambda: True)
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    assert this_machine() == Machine((9, 0), frozenset({FA4}))
    refs = tmp_path / "models--kernels-community--flash-attn2" / "refs"
    refs.mkdir(parents=True)
    (refs / f"v{attention.FLASH_ATTN_KERNEL_VERSIONS[KERNEL2] - 1}").touch()  # a version that is not loaded
    assert this_machine().installed == {FA4}
    (refs / f"v{attention.FLASH_ATTN_KERNEL_VERSIONS[KERNEL2]}").touch()
    assert this_machine().installed == {FA4, KERNEL2}


def test_the_attention_of_a_configuration() -> None:
    gemma = model_attention(GEMMA, "on")
    assert (gemma.capped, gemma.blockwise, gemma.flash, gemma.shape) == (True, True, True, (16, 8, 256))
    uncapped = model_attention(GEMMA, "off")
    assert (uncapped.capped, uncapped.blockwise) == (False, False)
    llama = model_attention(LlamaConfig(hidden_size=64, num_attention_heads=4, attention_dropout=0.1), "on")
    assert (llama.capped, llama.flash, llama.dropout, llama.shape) == (False, True, True, (4, 4, 16))
    assert not model_attention(Gemma3TextConfig(use_bidirectional_attention=True), "on").flash


def test_soft_capped_attention_never_runs_on_sdpa(simulate: Simulate) -> None:
    for capability in ((0, 0), T4, A100, H100):
        checked = simulate(capability, {FA4, FA2, KERNEL2}, (FA4, FA2, KERNEL2, blockwise_attention.NAME))
        assert resolve_attention(GEMMA, "auto", dtype=torch.bfloat16) == "eager"
        assert "sdpa" not in checked
