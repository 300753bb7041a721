"""LoRA adapters: added to a classifier, saved with a record of the function they were trained on, and loaded.

An adapter fits one function: base weights, soft-capping, quantisation. ``arena.json`` beside the adapter records the
last two, and loading under other settings is refused, because mixing them gives wrong numbers without an error. It
also records a head of other than three classes, so that whoever loads the adapter builds that head.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import manual_seed, nn

from oof.classes import CLASSES
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError
from oof.config import Lora, Member

RECORD = "arena.json"
RECORDED = ("attn_softcap", "quantise")  # fields of Member
HEAD_CLASSES = "classes"  # in the record, where they are not three
UNORDERED = ("target_modules", "modules_to_save", "exclude_modules")  # sets in adapter_config.json
MAX_RANK = 16_384  # above any useful rank


def add_adapters(model: Any, lora: Lora, seed: int, revision: str = "") -> Any:
    """Return the model with LoRA adapters and a trainable head (``rank`` 0: every weight trainable).

    Args:
        model: a classifier.
        lora: its adapters.
        seed: of the adapters' first values.
        revision: commit of the base on the hub, for ``adapter_config.json``; "" = none.
    """
    if lora.rank == 0:
        return model
    manual_seed(seed)  # peft draws A from the global generator
    upper_half = lora.layers == "upper_half"
    targets: str | list[str] = [name.strip() for name in lora.targets.split(",")]
    if lora.targets == "all-linear":
        targets = _linear_names(model) if upper_half else "all-linear"  # with layers, peft needs module names
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft's annotation says int; it only divides
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=list(range(n_layers // 2, n_layers)) if upper_half else None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        revision=revision or None,
    )
    try:
        return without_card(get_peft_model(model, config))
    except ValueError as error:
        raise UserError(f"lora.targets={lora.targets!r} does not fit this model: {error}") from error


def without_card(model: Any) -> Any:
    """Return the model, which then saves no README.md of empty headings: a sixth of a short job's time."""
    model.create_or_update_model_card = lambda folder: None
    return model


def _linear_names(model: nn.Module) -> list[str]:
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rsplit(".", 1)[-1] for name in linear} - {"score"})


def save_classifier(model: nn.Module, folder: Path, member: Member) -> None:
    """Save the adapter and head (or, for full fine-tuning, the whole model) in the library's own format."""
    model.save_pretrained(folder)  # type: ignore[operator]  # PeftModel, PreTrainedModel have it
    settings = folder / "adapter_config.json"
    if settings.is_file():  # peft 0.21 writes sets in an order that differs between processes
        unsorted = read_json(settings)
        write_json(
            settings, {k: sorted(v) if k in UNORDERED and isinstance(v, list) else v for k, v in unsorted.items()}
        )
    config: Any = model.config
    classes = {} if config.num_labels == len(CLASSES) else {HEAD_CLASSES: config.num_labels}
    write_json(folder / RECORD, {name: getattr(member, name) for name in RECORDED} | classes)


def saved_classes(folder: Path) -> int:
    """Return the number of classes of the head that :func:`save_classifier` saved; without a record 3.

    Raises:
        UserError: the record has another value than 2 or 3.
    """
    n = read_record(folder).get(HEAD_CLASSES, len(CLASSES))
    if n not in (2, 3):
        raise UserError(f"{folder / RECORD}: {HEAD_CLASSES} is {str(n)[:40]!r}, not 2 or 3")
    return int(n)


def read_record(folder: Path) -> dict[str, Any]:
    """Return ``arena.json`` of an adapter's folder; {} for an adapter made elsewhere, without a record.

    Raises:
        UserError: it is not a JSON object.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a JSON object; take the adapter's folder from where it was made")
    return record


def scored_member(member: Member) -> Member:
    """Return the member with the base's quantisation in scoring (``score_quantise``) in place of that in training."""
    return member if member.score_quantise == "same" else replace(member, quantise=member.score_quantise)


def refuse_another_function(member: Member, folder: Path) -> None:
    """Refuse to load an adapter into a base that computes another function than it was trained with.

    The one exception is a base that ``score_quantise`` quantises for scoring.

    Raises:
        UserError: soft-capping or quantisation differ from the adapter's record.
    """
    if not (folder / RECORD).is_file():
        return  # an adapter made elsewhere, without a record
    record = read_record(folder)
    for name in RECORDED:
        was, now = record.get(name), getattr(member, name)
        quantised_for_scoring = name == "quantise" and was == "none" and now == member.score_quantise
        if was != now and not quantised_for_scoring:
            raise UserError(f"{folder}: trained with {name}={was}, now it is {now}; score it as it was trained")


def check_settings(folder: Path) -> None:
    """Refuse an adapter with an impossible configuration, before memory is allocated for it.

    Raises:
        UserError: ``adapter_config.json`` is not an object, or its rank is out of range.
    """
    path = folder / "adapter_config.json"
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a JSON object; take the adapter's folder from where it was made")
    rank = settings.get("r", 8)
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise UserError(f"{path}: r is {str(rank)[:40]!r}, not a rank of 1 to {MAX_RANK:,}")


def check_weights(model: Any, folder: Path) -> None:
    """Refuse an adapter file that lacks weights of the model's adapter: peft would leave them at random values.

    Raises:
        UserError: a weight is missing, unknown or not finite.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return  # an adapter made elsewhere, in another format
    tensors = load_file(path)
    expected = get_peft_model_state_dict(model).keys()
    wrong = sorted(tensors.keys() ^ expected) or [n for n, tensor in tensors.items() if not tensor.isfinite().all()]
    if wrong:
        problem = "not finite" if wrong[0] in expected and wrong[0] in tensors else "missing or unknown"
        raise UserError(f"{path}: {len(wrong)} weights are {problem}, first {wrong[0]}; train the adapter again")
