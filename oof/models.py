"""Checkpoint -> three-class LoRA sequence classifier: attention, precision, head, pad token.

The classes and the forward pass are the stock ones of transformers and peft, so that any other tool opens
what we save. Two details are ours: the ``score`` head is computed in float32 whatever the base's precision,
and the attention implementation is chosen per family and checked, because Gemma2's soft-capping is silently
lost where an implementation lacks it.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.import_utils import is_flash_attn_2_available

from oof.config import Lora, Member
from oof.errors import UserError
from oof.prompts import prepare_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SOFTCAPPED = {"gemma2"}  # model types whose attention caps its logits; sdpa has no such term


class Float32Head(nn.Linear):
    """The stock bias-free ``score`` layer, computed in float32 outside autocast.

    Three classes of a pooled vector cost nothing, and bf16 would round their differences to 3 digits.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(checkpoint: str, hints: str = "none") -> Any:
    """Return the checkpoint's fast tokenizer with our chat template and a safe pad token.

    ``hints`` is ``prompts.hints``: it is part of the template.

    Raises:
        UserError: the folder or hub model cannot be opened.
    """
    with _readable_errors(checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    prepare_tokenizer(tokenizer, hints)
    return tokenizer


def resolve_attention(model_type: str, wanted: str) -> str:
    """Return the attention implementation for a model family, refusing one that drops soft-capping."""
    if model_type in SOFTCAPPED and wanted == "sdpa":
        raise UserError(f"attn=sdpa drops the soft-capping of {model_type}; use attn=auto")
    if wanted != "auto":
        return wanted
    if model_type not in SOFTCAPPED:
        return "sdpa"
    flash = torch.cuda.is_available() and is_flash_attn_2_available()
    return "flash_attention_2" if flash else "eager"


def load_base(member: Member, tokenizer: Any, seed: int) -> Any:
    """Return the checkpoint as a sequence classifier with a fresh float32 ``score`` head.

    The fresh head depends on ``seed`` alone, not on what ran before in the process.

    Raises:
        UserError: the checkpoint cannot be opened or brings no sequence classifier.
    """
    with _readable_errors(member.checkpoint):
        config = AutoConfig.from_pretrained(member.checkpoint, trust_remote_code=False)
        config.num_labels = len(LABELS)
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {name: i for i, name in enumerate(LABELS)}
        # Float targets would otherwise switch the stock loss to BCE and the pipeline to a sigmoid.
        config.problem_type = "single_label_classification"
        config.pad_token_id = tokenizer.pad_token_id
        config.use_cache = False
        attention = resolve_attention(config.model_type, member.attn)
        with _quiet_loading():
            model = AutoModelForSequenceClassification.from_pretrained(
                member.checkpoint,
                config=config,
                dtype=DTYPES[member.dtype],
                attn_implementation=attention,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a reward model's head of another size gives way to a fresh one
            )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(f"{member.checkpoint}: {type(model).__name__} has no linear 'score' head; use a decoder model")
    model.score = _fresh_head(model.score.in_features, config.get_text_config().initializer_range, seed)
    logger.debug("%s: %s, attention %s, %s", member.checkpoint, config.model_type, attention, member.dtype)
    return model


def _fresh_head(width: int, std: float, seed: int) -> Float32Head:
    head = Float32Head(width, len(LABELS), bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    return head


def add_adapters(model: Any, lora: Lora, seed: int) -> Any:
    """Return the model with LoRA adapters and a trainable head (``rank`` 0: every weight trainable)."""
    if lora.rank == 0:
        return model
    torch.manual_seed(seed)  # peft draws A from the global generator
    upper_half = lora.layers == "upper_half"
    targets: str | list[str] = [name.strip() for name in lora.targets.split(",")]
    if lora.targets == "all-linear":
        targets = _linear_names(model) if upper_half else "all-linear"  # peft takes layers with names only
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
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora.targets={lora.targets!r} does not fit this model: {error}") from error


def _linear_names(model: nn.Module) -> list[str]:
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rsplit(".", 1)[-1] for name in linear} - {"score"})


def save_classifier(model: nn.Module, folder: Path) -> None:
    """Save the adapter and head (or, for full fine-tuning, the whole model) in the library's own format."""
    model.save_pretrained(folder)  # type: ignore[operator]  # PeftModel and PreTrainedModel both have it


def load_classifier(member: Member, folder: Path, tokenizer: Any, seed: int) -> Any:
    """Return the classifier that :func:`save_classifier` wrote, on this machine's device, in eval mode."""
    if not (folder / "adapter_config.json").is_file():
        member = Member(checkpoint=str(folder), dtype=member.dtype, attn=member.attn)
        trained: Any = load_trained(member, tokenizer)
    else:
        base = load_base(member, tokenizer, seed)
        trained = PeftModel.from_pretrained(base, str(folder))
    return trained.to(device()).eval()


def load_trained(member: Member, tokenizer: Any) -> Any:
    """Return a saved three-class classifier with its own head, computed in float32."""
    with _readable_errors(member.checkpoint), _quiet_loading():
        config = AutoConfig.from_pretrained(member.checkpoint, trust_remote_code=False)
        if config.num_labels != len(LABELS):
            raise UserError(f"{member.checkpoint}: a classifier of {config.num_labels} classes; expected 3")
        model = AutoModelForSequenceClassification.from_pretrained(
            member.checkpoint,
            dtype=DTYPES[member.dtype],
            attn_implementation=resolve_attention(config.model_type, member.attn),
            trust_remote_code=False,
        )
    head = Float32Head(model.score.in_features, len(LABELS), bias=False)
    head.weight = nn.Parameter(model.score.weight.detach().float())
    model.score = head
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def precision_context(member: Member) -> Any:
    """Return the autocast context that training and scoring share."""
    if member.dtype == "float32":
        return nullcontext()
    return torch.autocast(device().type, dtype=DTYPES[member.dtype])


def describe(model: nn.Module) -> dict[str, object]:
    """Return what a log or ``job.json`` says of a model."""
    config: Any = model.config
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "architecture": config.architectures[0] if config.architectures else type(model).__name__,
        "attention": config._attn_implementation,
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, trained in sizes if trained),
    }


@contextmanager
def _readable_errors(checkpoint: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        if not checkpoint:
            raise UserError("a member or the student has no checkpoint; set members.NAME.checkpoint") from error
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"checkpoint {checkpoint!r} cannot be opened: {first[:300]}") from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hold back transformers' report that the score head is new: it always is, by design."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
