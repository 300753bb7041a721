"""Checkpoint -> three-class LoRA sequence classifier: attention, precision, head, pad token.

The classes and the forward pass are the stock ones of transformers and peft, so that any other tool opens
what we save. Two details are ours: the ``score`` head is computed in float32 whatever the base's precision,
and the attention implementation is chosen per family and checked, because Gemma2's soft-capping is silently
lost where an implementation lacks it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.config import Member
from oof.encoding.encode import prepare_tokenizer
from oof.model.attention import resolve_attention, sdpa_allowed
from oof.model.lora import add_adapters, check_settings, check_weights, refuse_another_function

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

HEAD = "score.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Float32Head(nn.Linear):
    """The stock bias-free ``score`` layer, computed in float32 outside autocast.

    Three classes of a pooled vector cost nothing, and bf16 would round their differences to 3 digits.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype of a member's setting; "auto" is bfloat16 where the hardware computes in it, else float32."""
    if name != "auto":
        return DTYPES[name]
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(checkpoint: str, hints: str = "none") -> Any:
    """Return the checkpoint's fast tokenizer with our chat template and a safe pad token.

    ``hints`` is ``prompts.hints``: it is part of the template.

    Raises:
        UserError: the folder or hub model cannot be opened.
    """
    with readable_errors(checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    prepare_tokenizer(tokenizer, hints)
    return tokenizer


def load_base(member: Member, tokenizer: Any, seed: int) -> Any:
    """Return the checkpoint as a sequence classifier with a fresh float32 ``score`` head.

    The fresh head depends on ``seed`` alone, not on what ran before in the process.

    Raises:
        UserError: the checkpoint cannot be opened, or its architecture has no sequence classifier.
    """
    with readable_errors(member.checkpoint):
        config = AutoConfig.from_pretrained(member.checkpoint, trust_remote_code=False)
        own_head = _brings_our_head(member.checkpoint, config)
        _make_classifier(config, tokenizer, member)
        model = _from_pretrained(member, config)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(f"{member.checkpoint}: {type(model).__name__} has no linear 'score' head; use a decoder model")
    if own_head:
        _compute_head_in_float32(model)
    else:
        model.score = _fresh_head(model.score.in_features, config.get_text_config().initializer_range, seed)
    attention = model.config._attn_implementation
    logger.debug("%s: %s, attention %s, %s", member.checkpoint, config.model_type, attention, model.dtype)
    return model


def _brings_our_head(checkpoint: str, config: Any) -> bool:
    """Return whether the checkpoint is a classifier of our three classes already; say so if it is of others."""
    if not _claims_a_head(config):
        return False
    ours = tuple(config.id2label.get(i, "") for i in range(config.num_labels)) == WINNER_COLUMNS
    if not ours:
        logger.info("%s: its head has %d outputs; a fresh one for ours is trained", checkpoint, config.num_labels)
    return ours


def _claims_a_head(config: Any) -> bool:
    return bool((config.architectures or [""])[0].endswith("ForSequenceClassification"))


def _make_classifier(config: Any, tokenizer: Any, member: Member) -> None:
    """Set what makes a base model's configuration that of our classifier."""
    config.num_labels = len(WINNER_COLUMNS)
    config.id2label = dict(enumerate(WINNER_COLUMNS))
    config.label2id = {name: i for i, name in enumerate(WINNER_COLUMNS)}
    # Float targets would otherwise switch the stock loss to BCE and the pipeline to a sigmoid.
    config.problem_type = "single_label_classification"
    config.use_cache = False
    if tokenizer.pad_token_id >= config.get_text_config().vocab_size:
        raise UserError(f"{member.checkpoint}: its tokenizer has tokens that the model has no embedding for")
    for part in (config, config.get_text_config()):
        part.pad_token_id = tokenizer.pad_token_id
    if member.attn_softcap == "off" and getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        config.get_text_config().attn_logit_softcapping = None


def _from_pretrained(member: Member, config: Any) -> Any:
    dtype = resolve_dtype(member.dtype)
    attention = resolve_attention(config, member.attn, member.attn_softcap, dtype)
    with _quiet_loading(), sdpa_allowed(config, attention):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            member.checkpoint,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a reward model's head of another size gives way to a fresh one
            output_loading_info=True,
            **_quantisation(member.quantise, dtype),
        )
    # Weights that are absent, or of another shape, have been drawn at random by now: only a head may be.
    absent = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])} - {HEAD})
    if absent:
        raise UserError(
            f"checkpoint {member.checkpoint!r}: {len(absent)} of its weights are missing or of another shape than its "
            f"config.json says, first {absent[0]}; get it again"
        )
    if HEAD in found["missing_keys"] and _claims_a_head(config):
        raise UserError(f"checkpoint {member.checkpoint!r}: a classifier without weights of its head; get it again")
    return model


def _quantisation(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the loading arguments of a quantised base.

    Nothing is said about modules to skip: a list of ours would replace the one that keeps ``score`` whole.
    """
    if kind == "none":
        return {}
    if not is_bitsandbytes_available():
        raise UserError(f"quantise={kind} needs bitsandbytes; run 'make setup EXTRAS=dev,gpu'")
    if kind == "int8":
        options: dict[str, Any] = {"load_in_8bit": True}
    else:
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        options["bnb_4bit_compute_dtype"] = dtype
    settings = BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]
    return {"quantization_config": settings, "device_map": {"": device()}}


def _fresh_head(width: int, std: float, seed: int) -> Float32Head:
    head = Float32Head(width, len(WINNER_COLUMNS), bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    return head


def _compute_head_in_float32(model: Any) -> None:
    head = Float32Head(model.score.in_features, len(WINNER_COLUMNS), bias=False)
    head.weight = nn.Parameter(model.score.weight.detach().float())
    model.score = head


def load_classifier(member: Member, folder: Path, tokenizer: Any, seed: int) -> Any:
    """Return the classifier that :func:`oof.model.lora.save_classifier` wrote, on this device, in eval mode.

    Raises:
        UserError: the adapter was trained on another function (soft-capping, quantisation), or cannot be opened.
    """
    refuse_another_function(member, folder)
    if not (folder / "adapter_config.json").is_file():
        trained: Any = load_trained(replace(member, checkpoint=str(folder), quantise="none"), tokenizer)
    else:
        trained = _with_adapter(load_base(member, tokenizer, seed), folder)
    return trained.to(device()).eval()


def load_trainable(member: Member, start: Path | None, tokenizer: Any, seed: int) -> Any:
    """Return a classifier to train, on this device: fresh (``start`` None), or as it was saved in ``start``.

    Raises:
        UserError: as :func:`load_classifier`.
    """
    if start is None:
        return add_adapters(load_base(member, tokenizer, seed), member.lora, seed).to(device())
    refuse_another_function(member, start)
    if not (start / "adapter_config.json").is_file():  # a whole classifier is a checkpoint that brings our head
        return load_base(replace(member, checkpoint=str(start)), tokenizer, seed).to(device())
    return _with_adapter(load_base(member, tokenizer, seed), start, trainable=True).to(device())


def _with_adapter(base: Any, folder: Path, trainable: bool = False) -> Any:
    with readable_errors(str(folder)):
        check_settings(folder)
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
        check_weights(model, folder)
    return model


def load_trained(member: Member, tokenizer: Any) -> Any:
    """Return a saved three-class classifier with its own head, computed in float32."""
    with readable_errors(member.checkpoint):
        config = AutoConfig.from_pretrained(member.checkpoint, trust_remote_code=False)
        if config.num_labels != len(WINNER_COLUMNS):
            raise UserError(f"{member.checkpoint}: a classifier of {config.num_labels} classes; expected 3")
        if getattr(config.get_text_config(), "attn_logit_softcapping", 0) is None:
            member = replace(member, attn_softcap="off")  # as it was trained
        model = _from_pretrained(member, config)
    _compute_head_in_float32(model)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def precision_context(member: Member) -> Any:
    """Return the autocast context that training and scoring share."""
    dtype = resolve_dtype(member.dtype)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device().type, dtype=dtype)


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
def readable_errors(checkpoint: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except UnpicklingError as error:  # torch's own advice, to load it all the same, is the wrong one
        raise UserError(
            f"checkpoint {checkpoint!r}: its weights are a pickle of more than tensors; get them as .safetensors"
        ) from error
    except Exception as error:  # a broken file ends in any of a dozen kinds
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
