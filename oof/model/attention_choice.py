"""Choice between blockwise and eager attention for a training, by predicted time and planned memory.

Blockwise attention stores no scores but moves more memory, so which of the two is faster depends on card and lengths.
Every other implementation of :data:`oof.model.attention_table.ORDER` is predicted to be faster than eager on every card
that it runs on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from oof.config import Member
from oof.encoding.batches import TrainingSteps
from oof.model import blockwise_attention
from oof.model.attention import resolve_attention
from oof.model.cards import CARDS, card_named
from oof.model.checkpoint_shapes import shared_config
from oof.model.cost_model import USABLE_MEMORY, as_installed, longest_batch, trace
from oof.model.precision import resolve_dtype
from oof.model.predicted_time import Batches, Prediction, seconds, training_batches

logger = logging.getLogger(__name__)

RECOMPUTE = {"off": (False,), "on": (True,), "auto": (False, True)}  # activation checkpointing to try, in order


def faster_attention(
    prediction: Prediction, batches: Batches, longest: tuple[int, int], checkpointing: bool, usable: float
) -> Prediction:
    """Return the prediction with eager attention, if ``attn: auto`` gains time by it and its memory suffices.

    Args:
        prediction: with the attention that the table gives.
        batches: of one epoch of the training.
        longest: sequences and padded tokens of the longest batch.
        checkpointing: activation checkpointing.
        usable: bytes of the card.
    """
    if prediction.member.attn != "auto" or prediction.attention != blockwise_attention.NAME:
        return prediction
    eager = replace(prediction, attention="eager")
    if seconds(eager.training(batches, checkpointing)) >= seconds(prediction.training(batches, checkpointing)):
        return prediction
    return eager if trace(eager.member, *longest, True, checkpointing, "eager").peak_bytes <= usable else prediction


def with_attention_for(member: Member, steps: TrainingSteps) -> Member:
    """Return the member with the faster attention for a training on this GPU, if the plan lists the GPU."""
    card = card_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if member.attn != "auto" or card is None:
        return member
    config = shared_config(member.checkpoint, member.revision)
    attention = resolve_attention(config, member.attn, member.attn_softcap, resolve_dtype(member.dtype))
    if attention != blockwise_attention.NAME:
        return member
    lengths = steps.encoded.lengths.max(axis=1)
    longest = longest_batch(steps)
    usable = torch.cuda.mem_get_info()[1] * USABLE_MEMORY
    planned = Prediction(as_installed(member), CARDS[card], attention)
    for checkpointing in RECOMPUTE[member.train.activation_checkpointing]:
        if trace(planned.member, *longest, True, checkpointing, "sdpa").peak_bytes <= usable:
            batches = training_batches(lengths, member.train, steps.budget)
            chosen = faster_attention(planned, batches, longest, checkpointing, usable).attention
            if chosen == attention:
                return member
            logger.info("attention: %s, predicted to be faster than %s here", chosen, attention)
            return replace(member, attn=chosen)
    return member
