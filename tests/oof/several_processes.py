"""What each process of tests/oof/test_shards.py runs: ``torchrun … several_processes.py FOLDER``, or alone with 1.

Every scenario trains the same 4 steps and writes ``FOLDER/<scenario>.json`` and ``.npz``.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import LlamaModel

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "oof")]

from oof import bases, interrupts, ranks  # noqa: E402
from oof.adapters import add_adapters, save_classifier  # noqa: E402
from oof.batches import TrainingSteps, cut  # noqa: E402
from oof.config import Lora, Member, Prompts, Train  # noqa: E402
from oof.errors import UserError  # noqa: E402
from oof.jobs import both_orders  # noqa: E402
from oof.losses import cross_entropy  # noqa: E402
from oof.models import load_base, load_classifier, load_tokenizer  # noqa: E402
from oof.predict import predict_logits  # noqa: E402
from oof.prompts import encode_battles  # noqa: E402
from oof.shortcuts import checkpoint_trainable_layers  # noqa: E402
from oof.train import ClassifierTrainer, train_classifier  # noqa: E402

MEMBER = Member(
    checkpoint=str(ROOT / "configs" / "bases" / "tiny-llama"),
    dtype="float32",
    score_tokens_per_batch=1500,
    lora=Lora(rank=4, alpha=8),
    # 18 sequences a step at most: the last stretch of a step is too short for two processes now and then.
    train=Train(
        epochs=1, lr=1e-3, head_lr=1e-3, batch_battles=9, tokens_per_batch=800, warmup_share=0.0, checkpoint_steps=1
    ),
)
BATTLES = 33


def run(folder: Path, name: str, member: Member = MEMBER, shards: int = 1, checkpointed: bool = False) -> None:
    """Train, score, save and read back; keep weights, gradients, logits and facts."""
    tokenizer = load_tokenizer(member.checkpoint)
    table, _, _ = bases.transcripts(BATTLES, 5)
    encoded = encode_battles(table, tokenizer, Prompts(max_tokens=256), 256)
    targets = both_orders(np.random.default_rng(0).dirichlet(np.ones(3), size=BATTLES))
    weights = np.random.default_rng(1).uniform(0.2, 2, BATTLES)
    steps = TrainingSteps(encoded, targets, weights, member.train, tokenizer.pad_token_id, seed=2)
    base = load_base(member, tokenizer, 1, shards)
    frozen = [p.to_local() if isinstance(p, DTensor) else p for n, p in base.named_parameters() if "score" not in n]
    facts: dict[str, Any] = {"frozen_bytes": sum(p.numel() * p.element_size() for p in frozen)}
    model = add_adapters(base, member.lora, 1)
    if checkpointed:
        facts["checkpointed"] = checkpoint_trainable_layers(model)
    gradients: list[np.ndarray] = []
    clip = ClassifierTrainer._clip_grad_norm

    def kept(self: Any, trained: Any) -> Any:
        gradients.append(np.concatenate([p.grad.flatten().numpy() for p in self.trained]).copy())
        return clip(self, trained)

    ClassifierTrainer._clip_grad_norm = kept  # type: ignore[method-assign]
    try:
        facts |= train_classifier(model, member, steps, cross_entropy, folder / name / "checkpoints", 3, name)
    finally:
        ClassifierTrainer._clip_grad_norm = clip  # type: ignore[method-assign]
    if ranks.rank() == 0:
        save_classifier(model, folder / name / "adapter", member)
    ranks.wait()
    found = load_classifier(member, folder / name / "adapter", tokenizer, 9, shards)
    logits = predict_logits(found, member, encoded, tokenizer.pad_token_id, name)
    again = rescored(found, member, encoded, tokenizer.pad_token_id, logits, folder / name / "partial")
    trained = np.concatenate([p.detach().flatten().numpy() for p in model.parameters() if p.requires_grad])
    if ranks.rank() == 0:
        np.savez(folder / f"{name}.npz", trained=trained, logits=logits, again=again, gradients=np.stack(gradients))
    (folder / f"{name}-{ranks.rank()}.json").write_text(json.dumps(facts))


def rescored(model: Any, member: Member, encoded: Any, pad_id: int, logits: np.ndarray, partial: Path) -> np.ndarray:
    """Score again where the first process has its rows already, and nonsense in the rows of the others."""
    if ranks.rank() == 0:
        flat = np.full((logits.shape[0] * 2, 3), 7.0, dtype=np.float32)
        mine = np.concatenate(cut(encoded.lengths.reshape(-1), member.score_tokens_per_batch)[:: ranks.ranks()])
        presented = np.stack([logits[:, 0], logits[:, 1][:, [1, 0, 2]]], axis=1).reshape(-1, 3)
        flat[mine] = presented[mine]
        np.save(partial.with_name("partial-0.npy"), flat)
    ranks.wait()
    return predict_logits(model, member, encoded, pad_id, "again", partial)


def short_of_memory(work: Callable[[], None]) -> None:
    """Do ``work`` while the last process alone has room for 600 tokens."""
    forward = LlamaModel.forward

    def limited(self: LlamaModel, input_ids: torch.Tensor, **more: Any) -> Any:
        if input_ids.numel() > 600 and ranks.rank() == ranks.ranks() - 1:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return forward(self, input_ids, **more)

    LlamaModel.forward = limited  # type: ignore[method-assign]
    try:
        work()
    finally:
        LlamaModel.forward = forward  # type: ignore[method-assign]


def stopped_in_the_middle(folder: Path, name: str, shards: int) -> None:
    """Stop when one process (the last) is asked to after its second step; then go on."""
    due, asked = interrupts.due, iter([False] * 1 + [True] * 99)
    interrupts.due = lambda seconds=0.0: "asked" if ranks.rank() == ranks.ranks() - 1 and next(asked) else ""
    try:
        run(folder, name, shards=shards)
        raise AssertionError("not stopped")
    except interrupts.Stopped:
        pass
    finally:
        interrupts.due = due
    assert (folder / name / "checkpoints" / "checkpoint-2" / "whole").is_file()
    run(folder, name, shards=shards)


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(100, exit=True)
    ranks.start()
    n = ranks.ranks()
    if n == 1:
        big = replace(MEMBER, train=replace(MEMBER.train, tokens_per_batch=10**6))
        run(folder, "one", big)
        return
    run(folder, "ddp")
    wide = replace(MEMBER, train=replace(MEMBER.train, tokens_per_batch=4096))
    short_of_memory(lambda: run(folder, "ddp-short", wide))
    stopped_in_the_middle(folder, "ddp-stopped", 1)
    run(folder, "fsdp", shards=n)
    run(folder, "fsdp-checkpointed", shards=n, checkpointed=True)
    stopped_in_the_middle(folder, "fsdp-stopped", n)
    try:
        run(folder, "fsdp-nf4", replace(MEMBER, quantise="nf4"), n)
    except UserError as error:
        (folder / f"refused-{ranks.rank()}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
