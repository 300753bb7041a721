"""Disk cache of frozen-layer hidden states (a member's ``frozen: stored``).

With adapters in the upper half of the layers only, the lower half is the same function for every fold, every epoch and
every student of one base. Its output, a hidden state per token, is kept by content: a shard
``CACHE/<function>/<name>.safetensors`` holds the hashes of some sequences and their float32 states. Any shard may be
deleted at any time, and several processes may share the folder: a shard is written once, atomically, and never changed.

Each sequence is computed alone, not in a batch, so its states do not depend on which others were missing, and a killed
run ends with the same bytes. Attention is causal, so the states are valid whatever padding follows.
"""

from __future__ import annotations

import hashlib
import logging
import os
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

from oof.common import interrupts
from oof.common.atomic_files import replacing
from oof.common.digests import checkpoint_digest, digest
from oof.common.progress import progress
from oof.config import Member
from oof.encoding.encode import Encoded
from oof.model.optimizations import decoder_layers
from oof.model.precision import device, precision_context, resolve_dtype

logger = logging.getLogger(__name__)

CHUNK = 256  # sequences of one shard; a kill loses at most so many
HASH_BYTES = 16
TENSORS = ("hashes", "offsets", "states")  # of a shard: (n, 16) uint8, (n + 1,) int64, (tokens, d) float32
StoredSequence = tuple[torch.Tensor, int, int]  # a shard's states, and the first and last + 1 of the sequence's rows


class _FrozenLayersDone(Exception):  # noqa: N818  # control flow, not an error
    """The last frozen layer is computed; the layers above it are not needed."""


@contextmanager
def stored_states(model: nn.Module, member: Member, encoded: Encoded, pad_id: int, cache: Path) -> Iterator[None]:
    """Inside, the model reads its frozen lower layers' output for ``encoded``'s sequences instead of computing it.

    States that the cache lacks are computed and stored first. Without ``frozen: stored`` nothing happens.

    Args:
        model: a classifier with its adapters, not merged.
        member: ``frozen``, checkpoint and precision are read.
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
    shards = _Shards(cache / _function(member, model, depth), member)
    stored = shards.stored(model, depth, sequences)
    current_ids: list[torch.Tensor] = []

    def remember_ids(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        current_ids[:] = [args[0]]

    def replace_output(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(output.shape, dtype=torch.float32)
        for i, ids in enumerate(current_ids[0].cpu().numpy().astype(np.int32)):
            length = int(np.flatnonzero(ids != pad_id)[-1]) + 1
            states, start, stop = stored[ids[:length].tobytes()]
            out[i, :length] = states[start:stop]
        return out.to(output.device, output.dtype)

    frozen_layers = decoder_layers(model)[:depth]
    embedding = model.get_input_embeddings()  # type: ignore[operator]  # PeftModel and PreTrainedModel have it
    handles = [
        embedding.register_forward_pre_hook(remember_ids),
        frozen_layers[-1].register_forward_hook(replace_output),
    ]
    for layer in frozen_layers:
        layer.forward = _pass_on
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in frozen_layers:
            del layer.forward  # the class's own forward is used again


def n_frozen(model: nn.Module) -> int:
    """Return how many of the lowest layers have no adapter; 0 where the whole model is trained."""
    adapted = [any("lora_" in name for name, _ in layer.named_parameters()) for layer in decoder_layers(model)]
    return adapted.index(True) if True in adapted else 0


def _pass_on(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return hidden


def _function(member: Member, model: nn.Module, depth: int) -> str:
    """Return the digest of everything that decides the frozen layers' output."""
    config: Any = model.config
    settings = [member.attn_softcap, member.quantise, str(resolve_dtype(member.dtype))]
    settings += [member.revision] if member.revision else []
    return digest(checkpoint_digest(member.checkpoint), *settings, config._attn_implementation, depth)[:16]


class _Shards:
    """The stored states of one function of token sequences."""

    def __init__(self, folder: Path, member: Member) -> None:
        self.folder, self.member = folder, member
        self.by_hash: dict[bytes, StoredSequence] = {}
        self.read: set[str] = set()

    def stored(
        self, model: nn.Module, depth: int, sequences: Sequence[NDArray[np.int32]]
    ) -> dict[bytes, StoredSequence]:
        """Return the stored states of each sequence, by its bytes; compute and store those that no shard has."""
        hashed = {hashlib.blake2b(s.tobytes(), digest_size=HASH_BYTES).digest(): s for s in sequences}
        self._read_new_shards()
        missing = sorted(hashed.keys() - self.by_hash.keys())
        chunks = [missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)]
        first = os.getpid() % max(1, len(chunks))  # several processes begin at different chunks
        with progress("frozen layers", len(missing), "sequences") as shown:
            for chunk in chunks[first:] + chunks[:first]:
                interrupts.check()
                self._read_new_shards()
                todo = [name for name in chunk if name not in self.by_hash]
                if todo:
                    self._write(todo, [_states(model, self.member, depth, hashed[name]) for name in todo])
                shown.update(len(chunk))
        self._read_new_shards()
        return {sequence.tobytes(): self.by_hash[name] for name, sequence in hashed.items()}

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

    def _read_new_shards(self) -> None:
        """Read the shards that are new. A damaged one is named and removed, and its states are computed again."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self.read:
                continue
            try:
                with safe_open(path, "pt") as shard:
                    tensors = {name: shard.get_tensor(name) for name in TENSORS}
                    if shard.metadata()["checksum"] != _checksum(tensors):
                        raise ValueError("checksum differs")
                names = [row.tobytes() for row in tensors["hashes"].numpy()]
                spans = pairwise(tensors["offsets"].tolist())
                self.by_hash |= {name: (tensors["states"], *span) for name, span in zip(names, spans, strict=True)}
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
    outputs: list[torch.Tensor] = []

    def stop(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        outputs.append(output)
        raise _FrozenLayersDone

    ids = torch.from_numpy(sequence.astype(np.int64))[None].to(device())
    handle = decoder_layers(model)[depth - 1].register_forward_hook(stop)
    try:
        with torch.no_grad(), precision_context(member):
            model(input_ids=ids)
    except _FrozenLayersDone:
        pass
    finally:
        handle.remove()
    return outputs[0][0].float().cpu()
