"""LoRA sequence classifier from a decoder checkpoint: attention, precision, score head, pad token.

Classes and forward pass are the stock ones of transformers and peft, so that any other tool opens what is saved here.
Two details differ: the ``score`` head is computed in float32 whatever the base's precision, and the attention
implementation is chosen per family and checked (:mod:`oof.model.attention`), because an implementation without
soft-capping computes another function of Gemma2 without an error.

The head has three classes, or two (A wins, B wins) with ``data.ties=false``; a saved classifier says which.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.import_utils import is_bitsandbytes_available

from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError
from oof.config import Member
from oof.encoding.templates import prepare_tokenizer
from oof.model.attention import resolve_attention, sdpa_allowed
from oof.model.lora import (
    add_adapters,
    check_settings,
    check_weights,
    refuse_another_function,
    saved_classes,
    without_card,
)
from oof.model.precision import device, resolve_dtype, weights_dtype
from oof.model.quantization import compute_in, quantization_config
from oof.model.score_head import compute_head_in_float32, fresh_head

logger = logging.getLogger(__name__)

HEAD = "score.weight"
MAIN = "main"  # the hub's default branch


def load_tokenizer(checkpoint: str, hints: str = "none", revision: str = "") -> Any:
    """Return the checkpoint's fast tokenizer with our chat template and a safe pad token.

    Args:
        checkpoint: folder or hub name.
        hints: ``prompts.hints``, which is part of the template.
        revision: branch, tag or commit on the hub; "" = main.

    Raises:
        UserError: the folder or hub model cannot be opened.
    """
    with readable_errors(checkpoint, revision):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision or MAIN, trust_remote_code=False)
    prepare_tokenizer(tokenizer, hints)
    return tokenizer


def load_base(member: Member, tokenizer: Any, seed: int, n_classes: int = 3, head_init: str = "random") -> Any:
    """Return the checkpoint as a sequence classifier with a fresh float32 ``score`` head.

    A random head depends on ``seed`` alone, not on what ran before in the process. A checkpoint that is a classifier
    of these classes of ours already keeps its own head.

    Raises:
        UserError: the checkpoint cannot be opened, or its architecture has no sequence classifier.
    """
    with readable_errors(member.checkpoint, member.revision):
        config = _read_config(member)
        own_head = _brings_our_head(member.checkpoint, config, n_classes)
        _configure_classifier(config, tokenizer, member, n_classes)
        model = _from_pretrained(member, config)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(f"{member.checkpoint}: {type(model).__name__} has no linear 'score' head; use a decoder model")
    if own_head:
        compute_head_in_float32(model)
    else:
        std = 0.0 if head_init == "zero" else config.get_text_config().initializer_range
        head = fresh_head(model.score.in_features, std, seed, n_classes)
        model.score = head.to(model.device)
    attention = model.config._attn_implementation
    logger.debug("%s: %s, attention %s, %s", member.checkpoint, config.model_type, attention, model.dtype)
    return model


def load_classifier(member: Member, folder: Path, tokenizer: Any, seed: int) -> Any:
    """Return the classifier that :func:`oof.model.lora.save_classifier` wrote, on this device, in eval mode.

    Raises:
        UserError: the adapter was trained on another function (soft-capping, quantisation), or cannot be opened.
    """
    refuse_another_function(member, folder)
    if not (folder / "adapter_config.json").is_file():
        quantise = member.quantise if member.quantise == member.score_quantise else "none"
        whole = replace(member, checkpoint=str(folder), revision="", quantise=quantise)
        trained = load_trained(whole, tokenizer)
    else:
        trained = with_adapter(load_base(member, tokenizer, seed, saved_classes(folder)), folder)
    return trained.to(device()).eval()


def load_trainable(member: Member, start: Path | None, tokenizer: Any, seed: int, n_classes: int = 3) -> Any:
    """Return a classifier to train, on this device: fresh (``start`` None), or as it was saved in ``start``.

    Raises:
        UserError: as :func:`load_classifier`.
    """
    if start is None:
        base = load_base(member, tokenizer, seed, n_classes, member.train.head_init)
        return add_adapters(base, member.lora, seed, member.revision).to(device())
    refuse_another_function(member, start)
    if not (start / "adapter_config.json").is_file():  # a whole classifier is a checkpoint with our head
        return load_base(replace(member, checkpoint=str(start), revision=""), tokenizer, seed, n_classes).to(device())
    return with_adapter(load_base(member, tokenizer, seed, n_classes), start, trainable=True).to(device())


def load_trained(member: Member, tokenizer: Any) -> Any:
    """Return a saved classifier of our three or two classes with its own head, computed in float32."""
    with readable_errors(member.checkpoint, member.revision):
        config = _read_config(member)
        if config.num_labels not in (2, 3):
            raise UserError(f"{member.checkpoint}: a classifier of {config.num_labels} classes; expected 3, or 2")
        if getattr(config.get_text_config(), "attn_logit_softcapping", 0) is None:
            member = replace(member, attn_softcap="off")  # as it was trained
        compute_in(config, resolve_dtype(member.dtype))
        model = _from_pretrained(member, config)
    compute_head_in_float32(model)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def model_summary(model: nn.Module) -> dict[str, object]:
    """Return a model's architecture, attention and numbers of weights, for logs and ``job.json``."""
    config: Any = model.config
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "architecture": config.architectures[0] if config.architectures else type(model).__name__,
        "attention": config._attn_implementation,
        "parameters": sum(n for n, _ in sizes),
        "trainable": sum(n for n, trained in sizes if trained),
    }


def _read_config(member: Member) -> Any:
    return AutoConfig.from_pretrained(member.checkpoint, revision=member.revision or MAIN, trust_remote_code=False)


def _brings_our_head(checkpoint: str, config: Any, n_classes: int) -> bool:
    """Return whether the checkpoint is a classifier of these classes of ours; log it if it has another head."""
    if not _claims_a_head(config):
        return False
    labels = tuple(config.id2label.get(i, "") for i in range(config.num_labels))
    ours = WINNER_COLUMNS[:n_classes]
    if labels != ours:
        sizes = (config.num_labels, n_classes)
        logger.info("%s: its head of size %d is replaced by a fresh one of size %d", checkpoint, *sizes)
    return labels == ours


def _claims_a_head(config: Any) -> bool:
    return bool((config.architectures or [""])[0].endswith("ForSequenceClassification"))


def _configure_classifier(config: Any, tokenizer: Any, member: Member, n_classes: int) -> None:
    """Turn a base model's configuration into that of our classifier, in place."""
    config.num_labels = n_classes
    config.id2label = dict(enumerate(WINNER_COLUMNS[:n_classes]))
    config.label2id = {name: i for i, name in config.id2label.items()}
    # Float targets would otherwise switch the stock loss to BCE and the pipeline to a sigmoid.
    config.problem_type = "single_label_classification"
    config.use_cache = False
    text_config = config.get_text_config()
    if tokenizer.pad_token_id >= text_config.vocab_size:
        raise UserError(f"{member.checkpoint}: its tokenizer has tokens that the model has no embedding for")
    config.pad_token_id = text_config.pad_token_id = tokenizer.pad_token_id
    if member.attn_softcap == "off" and getattr(text_config, "attn_logit_softcapping", None) is not None:
        text_config.attn_logit_softcapping = None


def _from_pretrained(member: Member, config: Any) -> Any:
    dtype = resolve_dtype(member.dtype)
    attention = resolve_attention(config, member.attn, member.attn_softcap, dtype)
    with _quiet_loading(), sdpa_allowed(config, attention):
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
            member.checkpoint,
            revision=member.revision or MAIN,
            config=config,
            dtype=weights_dtype(member),
            attn_implementation=attention,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a reward model's head of another size is replaced by a fresh one
            output_loading_info=True,
            **_placement_and_quantisation(member.quantise, dtype),
        )
    # transformers has drawn weights that are missing, or of another shape, at random: only a head may be.
    mismatched = {name for name, *_ in loading_info["mismatched_keys"]}
    absent = sorted({*loading_info["missing_keys"], *mismatched} - {HEAD})
    if absent:
        raise UserError(
            f"checkpoint {member.checkpoint!r}: {len(absent)} of its weights are missing or of another shape than its "
            f"config.json says, first {absent[0]}; get it again"
        )
    if HEAD in loading_info["missing_keys"] and _claims_a_head(config):
        raise UserError(f"checkpoint {member.checkpoint!r}: a classifier without weights of its head; get it again")
    return model


def _placement_and_quantisation(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that quantise a base as ``kind``, and read it straight to a GPU.

    Without the latter each process first holds the whole base in host memory: eight workers with a 9B base, 150 GB.
    The index is named because Trainer takes a model on another device than its own for a model spread over several.
    """
    place = device()
    if place.type == "cuda":
        place = torch.device("cuda", torch.cuda.current_device())
    if kind == "none":
        return {"device_map": {"": place}} if place.type == "cuda" else {}
    if not is_bitsandbytes_available():
        raise UserError(f"quantise={kind} needs bitsandbytes; run 'make setup EXTRAS=gpu'")
    return {"device_map": {"": place}, "quantization_config": quantization_config(kind, dtype)}


def with_adapter(base: Any, folder: Path, trainable: bool = False) -> Any:
    """Return the base with the saved adapter and head in ``folder``, to score with or (``trainable``) to train on."""
    with readable_errors(str(folder)):
        check_settings(folder)
        model = without_card(PeftModel.from_pretrained(base, str(folder), is_trainable=trainable))
        check_weights(model, folder)
    return model


@contextmanager
def readable_errors(checkpoint: str, revision: str = "") -> Iterator[None]:
    """Turn any error while a checkpoint is opened into one sentence that names it, and its revision on the hub.

    Raises:
        UserError: instead of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except UnpicklingError as error:  # torch's message advises loading without its safety check
        raise UserError(
            f"checkpoint {checkpoint!r}: its weights are a pickle of more than tensors; get them as .safetensors"
        ) from error
    except Exception as error:  # a broken file raises any of a dozen types
        if not checkpoint:
            raise UserError("a member or the student has no checkpoint; set members.NAME.checkpoint") from error
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        at_revision = f" at revision {revision}" if revision else ""
        raise UserError(f"checkpoint {checkpoint!r}{at_revision} cannot be opened: {first[:300]}") from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Suppress transformers' report that the score head is new, which is by design."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
