"""Device of the base's weights and of a process, shown without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from oof.common.errors import UserError
from oof.config import Member
from oof.model import classifier, precision
from tests.fixtures.demo_run import BASES


@pytest.mark.parametrize("quantise", ["none", "nf4"])
@pytest.mark.parametrize(("place", "device_map"), [("cuda", {"": torch.device("cuda", 3)}), ("cpu", None)])
def test_weights_are_read_straight_to_the_gpu_of_the_process(
    monkeypatch: pytest.MonkeyPatch, quantise: str, place: str, device_map: dict[str, torch.device] | None
) -> None:
    received: dict[str, Any] = {}

    def record(*_: object, **arguments: Any) -> None:
        received.update(arguments)
        raise UserError("recorded")

    tokenizer = classifier.load_tokenizer(str(BASES / "tiny-llama"))
    monkeypatch.setattr(classifier, "device", lambda: torch.device(place))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(classifier.AutoModelForSequenceClassification, "from_pretrained", record)
    member = Member(checkpoint=str(BASES / "tiny-llama"), quantise=quantise, dtype="float32", attn="eager")
    with pytest.raises(UserError, match="recorded"):
        classifier.load_base(member, tokenizer, seed=0)
    expected = device_map if quantise == "none" or device_map else {"": torch.device("cpu")}
    assert received.get("device_map") == expected


@pytest.mark.parametrize(("visible", "warns"), [(None, True), ("0", True), ("", False), ("-1", False)])
def test_a_driver_that_torch_cannot_use_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    visible: str | None,
    warns: bool,
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  450.80.02\nGCC version: 9\n")
    monkeypatch.setattr(precision, "DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    precision._warn_of_unusable_gpu.cache_clear()
    assert precision.device() == precision.device() == torch.device("cpu")
    named = [r for r in caplog.messages if "Kernel Module 450.80.02" in r and torch.__version__ in r]
    assert len(named) == (1 if warns else 0)
