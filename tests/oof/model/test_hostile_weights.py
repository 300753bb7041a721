"""Damaged checkpoints and adapters: refused in one sentence, or a model of the right shape; no code runs, no crash.

A loader cannot detect damage that leaves a valid file of valid shapes (a flipped bit inside a weight). A run's own
adapters have checksums for that.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from oof.common.errors import UserError
from oof.config import Lora, Member
from oof.model.classifier import load_base, load_classifier, load_tokenizer, load_trained
from oof.model.lora import add_adapters, save_classifier
from tests.fixtures.demo_run import ROOT

TINY = ROOT / "configs" / "bases" / "tiny-llama"
MEMBER = Member(checkpoint=str(TINY), dtype="float32", lora=Lora(rank=2))
TOKENIZER = load_tokenizer(str(TINY))
WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(TINY, folder / "base")
    save_classifier(add_adapters(load_base(MEMBER, TOKENIZER, 0), MEMBER.lora, 0), folder / "adapter", MEMBER)
    return folder


def load(folder: Path, kind: str) -> torch.nn.Module | None:
    """Return the model of a folder, or None where it was refused in one sentence that names the folder."""
    try:
        if kind == "adapter":
            return load_classifier(MEMBER, folder, TOKENIZER, 0)
        member = Member(checkpoint=str(folder), dtype="float32")
        return load_base(member, load_tokenizer(str(folder)), 0)
    except UserError as error:
        message = str(error)
    assert folder.name in message
    assert message.isprintable()
    return None


def copy_of(good: Path, kind: str, to: Path) -> Path:
    shutil.rmtree(to / kind, ignore_errors=True)
    return Path(shutil.copytree(good / kind, to / kind))


def file_of(kind: str) -> str:
    return ADAPTER if kind == "adapter" else WEIGHTS


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def edit_header(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrite a safetensors header and keep the data."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + size :])


@pytest.mark.parametrize("kind", ["base", "adapter"])
@given(share=st.floats(0, 0.999), flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 7)), max_size=3))
@settings(max_examples=12)
def test_truncated_safetensors_are_refused_and_flipped_bits_never_crash(
    good: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, share: float, flips: list[tuple[int, int]]
) -> None:
    folder = copy_of(good, kind, tmp_path_factory.getbasetemp())
    path = folder / file_of(kind)
    data = bytearray(path.read_bytes())
    if flips:
        for at, bit in flips:  # the header is in the first bytes
            data[at % len(data)] ^= 1 << bit
    else:
        del data[int(len(data) * share) :]
    path.write_bytes(data)
    model = load(folder, kind)
    event("refused" if model is None else "loaded")
    if not flips:
        assert model is None, "a truncated file was loaded"


def wrong_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name in tensors if tensors[name].dim() == 2)
    return {**tensors, name: tensors[name][:, :-1].contiguous()}


def all_missing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(1)}


def one_missing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[1:])


def not_a_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}


# Only adapters are checked for non-finite weights: checking a base would read gigabytes, so its logits are checked.
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, change) for kind in ("base", "adapter") for change in (wrong_shape, all_missing, one_missing)),
        ("adapter", not_a_number),
    ],
)
def test_missing_or_misshapen_weights_are_refused(
    good: Path, tmp_path: Path, kind: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    folder = copy_of(good, kind, tmp_path)
    path = folder / file_of(kind)
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    assert load(folder, kind) is None


def huge_offsets(header: dict) -> None:
    header[next(name for name in header if name != "__metadata__")]["data_offsets"] = [0, 2**60]


def huge_shape(header: dict) -> None:
    header[next(name for name in header if name != "__metadata__")]["shape"] = [2**31, 2**31]


@pytest.mark.parametrize("kind", ["base", "adapter"])
@pytest.mark.parametrize("change", [huge_offsets, huge_shape])
def test_a_header_with_impossible_sizes_is_refused(
    good: Path, tmp_path: Path, kind: str, change: Callable[[dict], None]
) -> None:
    folder = copy_of(good, kind, tmp_path)
    edit_header(folder / file_of(kind), change)
    assert load(folder, kind) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', '{"a": NaN}', "[" * 100_000, "{}"])
@pytest.mark.parametrize(
    ("kind", "name"), [("base", "config.json"), ("adapter", "adapter_config.json"), ("adapter", "arena.json")]
)
def test_json_of_another_structure_is_refused(good: Path, tmp_path: Path, kind: str, name: str, text: str) -> None:
    folder = copy_of(good, kind, tmp_path)
    (folder / name).write_text(text, encoding="utf-8")
    assert load(folder, kind) is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"hidden_size": -1}),
        ("config.json", {"hidden_size": "x"}),
        ("config.json", {"num_hidden_layers": 5}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"vocab_size": 7}),
        ("config.json", {"model_type": "../llama"}),
        ("config.json", {"model_type": "bert"}),
        ("config.json", {"model_type": None}),
        ("adapter_config.json", {"r": 10**6}),
        ("adapter_config.json", {"r": -1}),
        ("adapter_config.json", {"r": "x"}),
        ("adapter_config.json", {"peft_type": "MINE"}),
        ("adapter_config.json", {"target_modules": ["(a+)+$"]}),
        ("adapter_config.json", {"target_modules": None}),
        ("adapter_config.json", {"auto_mapping": {"base_model_class": "x", "parent_library": "antigravity"}}),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(
    good: Path, tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    kind = "base" if name == "config.json" else "adapter"
    folder = copy_of(good, kind, tmp_path)
    edit_json(folder / name, **changes)
    model = load(folder, kind)
    if "auto_mapping" in changes:
        assert model is not None  # the key is ignored: the member sets the base
    else:
        assert model is None


TRAP = "from pathlib import Path\nPath({ran!r}).mkdir()\nclass Anything: pass\n"


@pytest.mark.parametrize(
    "auto_class", ["AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer"]
)
@pytest.mark.parametrize("kind", ["base", "student"])
def test_code_in_a_checkpoint_folder_never_runs(good: Path, tmp_path: Path, kind: str, auto_class: str) -> None:
    folder, ran = copy_of(good, "base", tmp_path), tmp_path / "ran"
    (folder / "mine.py").write_text(TRAP.format(ran=str(ran)), encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(
            folder / name,
            auto_map={auto_class: "mine.Anything" if auto_class != "AutoTokenizer" else ["mine.Anything", None]},
        )
    try:
        if kind == "base":
            load(folder, "base")
        else:
            load_trained(Member(checkpoint=str(folder), dtype="float32"), load_tokenizer(str(folder)))
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()
    assert not ran.exists()
    assert not list(folder.rglob("__pycache__"))
