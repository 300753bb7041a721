"""Exported student: opening its folder and scoring battles with it.

``prompts.json`` in the folder tells how texts are laid out and cut, so that they are read exactly as in training.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.distillation.hub import student_folder
from oof.classes import ORDERS, swap_classes
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.config import Config, Member, Prompts
from oof.encoding.encode import Encoded, encode_battles
from oof.model.classifier import load_tokenizer, load_trained
from oof.model.int8_layers import Int8Linear, use_int8_layers
from oof.model.precision import DTYPES, device
from oof.training.inference import predict_logits

PROMPTS = "prompts.json"
INT8 = "int8"


class Student:
    """A trained preference model with its tokenizer and prompt settings."""

    def __init__(self, model: Any, tokenizer: Any, member: Member, prompts: Prompts) -> None:
        self.model, self.tokenizer, self.member, self.prompts = model, tokenizer, member, prompts

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: str = "auto",
        tokens_per_batch: int | None = None,
        attn: str = "auto",
        revision: str | None = None,
    ) -> Self:
        """Open an exported student: ``RUN/distill/student``, one of its quantised variants, or one of the hub.

        Args:
            folder: holds the weights, the tokenizer and ``prompts.json``; or ``user/name`` on the Hugging Face hub, of
                which a copy is kept in its local cache.
            dtype: auto (as saved), float32, bfloat16, float16, or int8: float32 with int8 products, on CPUs.
            tokens_per_batch: padded tokens of one forward pass; None = a default for the device.
            attn: attention implementation, as in a member's recipe.
            revision: branch, tag or commit of a student of the hub; None = its main branch.

        Raises:
            UserError: the folder is not an exported student, the hub has none, or ``dtype`` is no choice.
        """
        folder = student_folder(folder, revision)
        for name in ("config.json", PROMPTS):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: missing; give the folder of an exported student ('make distill')")
        if dtype == "auto":
            dtype = str(read_json(folder / "config.json").get("dtype", "float32"))
        if dtype not in (*DTYPES, INT8):
            raise UserError(f"dtype={dtype!r}; choose one of auto, {', '.join(DTYPES)}, {INT8}")
        if dtype == INT8 and device().type != "cpu":
            raise UserError("dtype=int8 is for CPUs; on a GPU take dtype=bfloat16, or distill.variants=[int8]")
        of_weights = "float32" if dtype == INT8 else dtype
        prompts = read_prompts(folder)
        member = Member(checkpoint=str(folder), dtype=of_weights, score_tokens_per_batch=tokens_per_batch, attn=attn)
        tokenizer = load_tokenizer(str(folder), prompts.hints)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs a cast at every layer of every call
        model = load_trained(member, tokenizer)
        if not getattr(model, "is_quantized", False):  # bitsandbytes places its own weights
            model = model.to(device())
        if dtype == INT8:
            use_int8_layers(model)
        return cls(model.eval(), tokenizer, member, prompts)

    @classmethod
    def of_run(cls, config: Config) -> Self:
        """Open the student of a run with the settings by which it scores there."""
        recipe = config.distill.student
        folder = Path(config.run) / "distill" / "student"
        return cls.from_pretrained(folder, recipe.dtype, recipe.score_tokens_per_batch, recipe.attn)

    @property
    def precision(self) -> str:
        """``dtype`` of :meth:`from_pretrained`; that of the weights where it was auto."""
        in_int8 = any(isinstance(module, Int8Linear) for module in self.model.modules())
        return INT8 if in_int8 else str(self.model.dtype).removeprefix("torch.")

    def encode(self, table: pl.DataFrame, orders: tuple[str, ...] = ORDERS) -> Encoded:
        """Return the token ids of (n) battles, for a server that is to give the same verdicts.

        Args:
            table: columns ``prompt``, ``response_a``, ``response_b``: a list of turns per battle.
            orders: both, or one of them.
        """
        return encode_battles(table, self.tokenizer, self.prompts, self.prompts.max_tokens, orders)

    def logits(self, table: pl.DataFrame, orders: tuple[str, ...] = ORDERS) -> NDArray[np.float64]:
        """Return calibrated (n, orders, 3) logits, in class order (a, b, tie) whatever the order.

        Args:
            table: as in :meth:`encode`.
            orders: as in :meth:`encode`.
        """
        logits = self.logits_of(self.encode(table, orders))
        return swap_classes(logits) if orders == ORDERS[1:] else logits  # which swaps only where it sees both orders

    def logits_of(self, encoded: Encoded) -> NDArray[np.float64]:
        """Return the logits of (n) encoded battles."""
        pad_id = self.tokenizer.pad_token_id
        return predict_logits(self.model, self.member, encoded, pad_id, "student").astype(np.float64)


def write_prompts(folder: Path, prompts: Prompts) -> None:
    """Write ``prompts.json``: the settings by which the student reads battles when it scores them."""
    settings: dict[str, object] = {
        name: getattr(prompts, name) for name in ("layout", "prompt_share", "hints", "marker")
    }
    settings["max_tokens"] = prompts.score_max_tokens or prompts.max_tokens
    (folder / PROMPTS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_prompts(folder: Path) -> Prompts:
    """Return the settings in ``prompts.json``.

    Raises:
        UserError: the file is not one that :func:`write_prompts` of this version wrote.
    """
    settings = read_json(folder / PROMPTS)
    try:
        return replace(Prompts(), **settings)
    except TypeError as error:
        raise UserError(
            f"{folder / PROMPTS}: not written by this version ({error}); export the student again"
        ) from error
