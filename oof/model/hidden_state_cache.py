"""What the frozen lower layers make of a text is computed once and kept (a member's ``frozen: stored``).

With adapters in the upper half of the layers alone, the lower half is one function for every fold, every epoch and
every student of one base. Its output, a hidden state per token, is kept by content: a shard
``CACHE/<function>/<name>.safetensors`` holds the hashes of some sequences and their states, as float32. Any file there
may be deleted at any time, and several processes may share the folder: shards are written once, whole, and never
changed.

A sequence's states are computed by themselves, not in a batch: so they do not depend on which others were missing, and
a run that was killed ends with the same bytes. Attention is causal, so they hold whatever padding follows.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from oof.common import interrupts
from oof.common.atomic_files import replacing
from oof.common.digests import checkpoint_digest, digest
from oof.config import Member
from oof.encoding.encode import Encoded
from oof.model.classifier import device, precision_context, resolve_dtype
from oof.model.optimizations import decoder_layers

logger = logging.getLogger(__name__)

CHUNK = 256  # sequences of one shard: a kill loses so many
HASH_BYTES = 16
TENSORS = ("hashes", "offsets", "states")  # of a shard: (n, 16) uint8, (n + 1,) int64, (tokens, d) float32
Place = tuple[Any, int, int]  # a shard's states, and the first and last + 1 of one sequence's


class _Reached(Exception):  # noqa: N818  # nothing went wrong
    """The last frozen layer is done; what is above it is not needed."""


@contextmanager
def stored_states(model: nn.Module, member: Member, encoded: Encoded, pad_id: int, cache: Path) -> Iterator[None]:
    """Inside, the model's frozen lower layers are not computed: it reads their output for ``encoded``'s sequences.

    What is missing is computed and stored first. Nothing happens where the member does not ask for it.

    Args:
        model: a classifier with its adapters, not merged.
        member: ``frozen``, checkpoint and precision.
        encoded: the sequences that the model will see.
        pad_id: the tokenizer's.
        cache: folder that keeps states between calls.
    """
    depth = n_frozen(model)
    if member.frozen == "recompute" or not depth:
        yield
        return
    n_orders = encoded.lengths.shape[1]
    sequences = [encoded.sequence(i // n_orders, i % n_orders) for i in range(encoded.lengths.size)]
    places = _Shards(cache / _function(member, model, depth), member).places(model, depth, sequences)
    batch: list[torch.Tensor] = []

    def remember(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        batch[:] = [args[0]]

    def look_up(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(output.shape, dtype=torch.float32)
        for i, ids in enumerate(batch[0].cpu().numpy().astype(np.int32)):
            length = int(np.flatnonzero(ids != pad_id)[-1]) + 1
            states, start, stop = places[ids[:length].tobytes()]
            out[i, :length] = states[start:stop]
        return out.to(output.device, output.dtype)

    lower = decoder_layers(model)[:depth]
    embedding = model.get_input_embeddings()  # type: ignore[operator]  # PeftModel and PreTrainedModel have it
    handles = [embedding.register_forward_pre_hook(remember), lower[-1].register_forward_hook(look_up)]
    for layer in lower:
        layer.forward = _pass_on
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in lower:
            del layer.forward  # the class's own again


def n_frozen(model: nn.Module) -> int:
    """Return how many of the lowest layers have no adapter; 0 where the whole model is trained."""
    adapted = [any("lora_" in name for name, _ in layer.named_parameters()) for layer in decoder_layers(model)]
    return adapted.index(True) if True in adapted else 0


def _pass_on(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden


def _function(member: Member, model: nn.Module, depth: int) -> str:
    """Return the digest of what the frozen layers compute."""
    config: Any = model.config
    facts = member.attn_softcap, member.quantise, str(resolve_dtype(member.dtype)), config._attn_implementation, depth
    return digest(checkpoint_digest(member.checkpoint), *facts)[:16]


class _Shards:
    """The stored states of one function of token sequences."""

    def __init__(self, folder: Path, member: Member) -> None:
        self.folder, self.member = folder, member
        self.known: dict[bytes, Place] = {}
        self.read: set[str] = set()

    def places(self, model: nn.Module, depth: int, sequences: Sequence[NDArray[np.int32]]) -> dict[bytes, Place]:
        """Return where the states of each sequence lie, by its bytes; compute those that no shard has."""
        by_hash = {hashlib.blake2b(s.tobytes(), digest_size=HASH_BYTES).digest(): s for s in sequences}
        self._refresh()
        missing = sorted(by_hash.keys() - self.known.keys())
        bar = tqdm(total=len(missing), desc="frozen layers", disable=not sys.stderr.isatty(), leave=False)
        chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
        first = os.getpid() % max(1, len(chunks))  # several processes begin at different ones
        for chunk in chunks[first:] + chunks[:first]:
            interrupts.check()
            self._refresh()
            todo = [name for name in chunk if name not in self.known]
            if todo:
                self._write(todo, [_states(model, self.member, depth, by_hash[name]) for name in todo])
            bar.update(len(chunk))
        bar.close()
        self._refresh()
        return {sequence.tobytes(): self.known[name] for name, sequence in by_hash.items()}

    def _write(self, names: Sequence[bytes], states: Sequence[torch.Tensor]) -> None:
        offsets = np.cumsum([0, *map(len, states)])
        tensors = {
            "hashes": torch.from_numpy(np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, HASH_BYTES).copy()),
            "offsets": torch.from_numpy(offsets),
            "states": torch.cat(list(states)),
        }
        path = self.folder / f"{digest([name.hex() for name in names])[:16]}.safetensors"
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"checksum": _checksum(tensors)})

    def _refresh(self) -> None:
        """Read the shards that are new; one that is damaged is named and removed, and its states are computed again."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self.read:
                continue
            try:
                with safe_open(path, "pt") as shard:
                    found = {name: shard.get_tensor(name) for name in TENSORS}
                    if shard.metadata()["checksum"] != _checksum(found):
                        raise ValueError("checksum differs")
                names = [row.tobytes() for row in found["hashes"].numpy()]
                spans = pairwise(found["offsets"].tolist())
                self.known |= {name: (found["states"], *span) for name, span in zip(names, spans, strict=True)}
                self.read.add(path.name)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                logger.warning("%s: damaged (%s); it is made again", path, error)
                path.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    sha = hashlib.blake2b(digest_size=HASH_BYTES)
    for name in TENSORS:
        sha.update(tensors[name].numpy().data)
    return sha.hexdigest()


def _states(model: nn.Module, member: Member, depth: int, sequence: NDArray[np.int32]) -> torch.Tensor:
    """Return (t, d) float32 output of the lowest ``depth`` layers for one sequence."""
    taken: list[torch.Tensor] = []

    def reached(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        taken.append(output)
        raise _Reached

    ids = torch.from_numpy(sequence.astype(np.int64))[None].to(device())
    handle = decoder_layers(model)[depth - 1].register_forward_hook(reached)
    try:
        with torch.no_grad(), precision_context(member):
            model(input_ids=ids)
    except _Reached:
        pass
    finally:
        handle.remove()
    return taken[0][0].float().cpu()
