"""Checkpoints and adapters with code in them are refused, and the code never runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from oof.common.errors import UserError
from oof.config import Lora, Member
from oof.model.classifier import load_base, load_classifier, load_tokenizer
from oof.model.lora import add_adapters, save_classifier
from tests.fixtures.demo_run import ROOT

TINY = ROOT / "configs" / "bases" / "tiny-llama"
MEMBER = Member(checkpoint=str(TINY), dtype="float32", lora=Lora(rank=2))


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


def test_unpickling_the_trap_makes_the_folder(ran: Path, tmp_path: Path) -> None:
    torch.save(Touch(ran), tmp_path / "trap.bin")
    torch.load(tmp_path / "trap.bin", weights_only=False)
    assert ran.exists()


def test_a_pickled_checkpoint_with_code_is_refused(checkpoint: Path, ran: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        path.unlink()
    torch.save({"model.embed_tokens.weight": Touch(ran)}, checkpoint / "pytorch_model.bin")
    member = Member(checkpoint=str(checkpoint), dtype="float32")
    with pytest.raises(UserError, match=r"safetensors"):
        load_base(member, load_tokenizer(str(checkpoint)), 0)
    assert not ran.exists()


def test_a_pickled_adapter_with_code_is_refused(tmp_path: Path, ran: Path) -> None:
    tokenizer, adapter = load_tokenizer(str(TINY)), tmp_path / "adapter"
    save_classifier(add_adapters(load_base(MEMBER, tokenizer, 0), MEMBER.lora, 0), adapter, MEMBER)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": Touch(ran)}, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"safetensors"):
        load_classifier(MEMBER, adapter, tokenizer, 0)
    assert not ran.exists()


def test_a_checkpoint_s_own_module_is_not_imported(checkpoint: Path, ran: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (checkpoint / "theirs.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass Config: pass\n", encoding="utf-8")
    with pytest.raises(UserError, match="custom code"):
        load_base(Member(checkpoint=str(checkpoint), dtype="float32"), load_tokenizer(str(TINY)), 0)
    assert not ran.exists()


def test_the_checkpoint_s_chat_template_is_replaced_and_never_rendered(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}", encoding="utf-8")
    template = load_tokenizer(str(checkpoint)).chat_template
    assert template == load_tokenizer(str(TINY)).chat_template
    assert "__class__" not in template
