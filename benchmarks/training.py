"""How fast a fold job trains and predicts, beside transformers' own Trainer on the same battles in the same run.

    python benchmarks/training.py --model ../models/smollm2-135m --battles 48        # any checkpoint
    python benchmarks/training.py --model gemma2-12x640 --battles 48                 # a random Gemma2, 12 layers of 640

Peers: ``Trainer`` with ``DataCollatorWithPadding`` (a) in random order, (b) ``train_sampling_strategy=
"group_by_length"``, (c) padding to ``max_length``; all with the same adapters, dtype, battles per optimizer step,
steps and tokens. Peers train on ``--peer-batch`` sequences at a time (padding to the longest of them), accumulate to
the same 8 battles a step, and predict 8 at a time. Each contender runs in a process of its own. Battles have the
arena's lengths (about 680 tokens on average, capped at ``--max-tokens``). One table row each: battles per second in
training and prediction, the ratio of ours, the loss at the end, and the share of this machine's own matrix-product
rate at the model's shapes that the arithmetic of the real tokens reaches; then a profile of a few of our steps, in
training and prediction together: where the time goes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, Gemma2Config, Gemma2ForCausalLM, Trainer, TrainingArguments

from oof.adapters import add_adapters
from oof.batches import TrainingSteps
from oof.blueprint import trace
from oof.config import Lora, Member, Train
from oof.jobs import both_orders
from oof.log import quiet_libraries
from oof.losses import cross_entropy
from oof.models import load_base, load_tokenizer, resolve_dtype
from oof.predict import predict_logits
from oof.prompts import Encoded
from oof.train import train_classifier

BATCH = 8  # battles per optimizer step, of one order here, as the peers know no pairs
Battles = tuple[Encoded, np.ndarray]
OURS = ("ours", "ours, upper half")
PROFILE = "profile"
PROFILED = 8  # battles of which each operation is timed
PEERS = ("random", "group_by_length", "max_length")


def arena_lengths(n: int, cap: int, seed: int = 0) -> np.ndarray:
    """Draw n token counts: log-normal with the arena's median 563 and p90 1,243."""
    return np.clip(np.random.default_rng(seed).lognormal(np.log(563), 0.62, n), 40, cap).astype(int)


def make_battles(n: int, cap: int, vocabulary: int, seed: int) -> tuple[Encoded, np.ndarray]:
    """Return random token sequences whose label shows in their last tokens, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    lengths, labels = arena_lengths(n, cap, seed), rng.integers(3, size=n)
    rows = [rng.integers(100, vocabulary - 100, size) for size in lengths]
    for row, label in zip(rows, labels, strict=True):
        row[-8:] = 50 + label
    offsets, none = np.concatenate([[0], np.cumsum(lengths)]), np.zeros((n, 3), dtype=np.int32)
    return Encoded(np.concatenate(rows).astype(np.int32), offsets, 1, none, none), labels


class Rows(Dataset[dict[str, Any]]):
    """The battles as the stock Trainer reads them."""

    def __init__(self, encoded: Encoded, labels: np.ndarray) -> None:
        self.rows = [{"input_ids": encoded.sequence(i, 0).tolist()} for i in range(len(labels))]
        for row, label in zip(self.rows, labels, strict=True):
            row |= {"labels": int(label), "length": len(row["input_ids"])}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value for name, value in self.rows[index].items() if name != "length"}


def fresh(member: Member, tokenizer: Any) -> Any:
    return add_adapters(load_base(member, tokenizer, 0), member.lora, 0)


def peer(
    member: Member, tokenizer: Any, data: Rows, held: Rows, kind: str, arguments: argparse.Namespace, folder: Path
) -> dict[str, float]:
    cap, at_once = arguments.max_tokens, arguments.peer_batch
    padding: dict[str, Any] = {"padding": "max_length", "max_length": cap} if kind == "max_length" else {}
    bf16 = resolve_dtype(member.dtype) == torch.bfloat16
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=BATCH // at_once,
        per_device_eval_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=member.train.lr,
        warmup_steps=0,
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length" if kind == "group_by_length" else "random",
        bf16=bf16,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        seed=0,
    )
    model = fresh(member, tokenizer)
    collator = DataCollatorWithPadding(tokenizer, **padding)
    trainer = Trainer(model=model, args=settings, train_dataset=data, eval_dataset=held, data_collator=collator)
    train = timed(trainer.train)
    out: list[Any] = []
    predict = timed(lambda: out.append(trainer.predict(held)))
    logits, labels = np.asarray(out[0].predictions, dtype=np.float64), out[0].label_ids
    return measured(train, predict, loss_of(logits, labels))


def ours(member: Member, tokenizer: Any, data: Battles, held: Battles, folder: Path) -> dict[str, float]:
    encoded, labels = data
    model, pad = fresh(member, tokenizer), tokenizer.pad_token_id
    targets = both_orders(np.eye(3)[labels])
    steps = TrainingSteps(encoded, targets, np.ones(len(labels)), member.train, pad, 0)
    train = timed(lambda: train_classifier(model, member, steps, cross_entropy, folder, 0, "ours"))
    out: list[np.ndarray] = []
    predict = timed(lambda: out.append(predict_logits(model, member, held[0], pad, "ours")[:, 0]))
    return measured(train, predict, loss_of(out[0].astype(np.float64), held[1]))


def profile(call: Callable[[], object]) -> dict[str, float]:
    """Return the share of the time that each operation took by itself, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    shares = {name: time_us / sum(spent.values()) for name, time_us in spent.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:12])


def measured(train: float, predict: float, loss: float) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"train_s": train, "predict_s": predict, "loss": loss, "peak_gb": peak}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def loss_of(logits: np.ndarray, labels: np.ndarray) -> float:
    logp = torch.log_softmax(torch.from_numpy(logits), dim=1)
    return float(-logp[torch.arange(len(labels)), torch.from_numpy(np.asarray(labels))].mean())


def matrix_rate(width: int, inner: int, dtype: torch.dtype, tokens: int = 2048) -> float:
    """Return this machine's FLOP/s in the model's largest product, the best of five."""
    a, b = torch.randn(tokens, width).to(dtype), torch.randn(width, inner).to(dtype)
    return max(2.0 * tokens * width * inner / timed(lambda: a @ b) for _ in range(5))


def checkpoint_of(name: str, folder: Path) -> str:
    if name != "gemma2-12x640":
        return name
    source = Path(__file__).resolve().parents[1] / "configs" / "bases" / "tiny-gemma2"
    shape = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 12, "head_dim": 80}
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=8192, num_attention_heads=8, num_key_value_heads=4, pad_token_id=0, **shape)
    Gemma2ForCausalLM(config).save_pretrained(folder / name)
    load_tokenizer(str(source)).save_pretrained(folder / name)
    return str(folder / name)


def contend(name: str, arguments: argparse.Namespace, checkpoint: str, folder: Path) -> dict[str, float]:
    """Train and predict as contender ``name``, in this process."""
    member, tokenizer = member_of(arguments, checkpoint), load_tokenizer(checkpoint)
    vocabulary = min(len(tokenizer), 8000)
    data = make_battles(arguments.battles, arguments.max_tokens, vocabulary, 0)
    held = make_battles(arguments.battles, arguments.max_tokens, vocabulary, 1)
    if name in PEERS:
        return peer(member, tokenizer, Rows(*data), Rows(*held), name, arguments, folder)
    if name == "ours, upper half":
        member = replace(member, lora=replace(member.lora, layers="upper_half"))
    if name == PROFILE:
        few = make_battles(PROFILED, arguments.max_tokens, vocabulary, 0)
        return profile(lambda: ours(member, tokenizer, few, few, folder))
    return ours(member, tokenizer, data, held, folder)


def member_of(arguments: argparse.Namespace, checkpoint: str) -> Member:
    train = Train(lr=1e-3, head_lr=1e-3, batch_battles=BATCH, swap="none", warmup_share=0.0, tokens_per_batch=2048)
    lora = Lora(rank=16, alpha=32)
    return Member(checkpoint, dtype=arguments.dtype, lora=lora, train=train, score_tokens_per_batch=2048)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="gemma2-12x640")
    parser.add_argument("--battles", type=int, default=48)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--peer-batch", type=int, default=8, help="Trainer's default; 8 eager Gemma2 need over 24 GB")
    parser.add_argument("--contenders", nargs="*", default=[*OURS[1:], *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "CHECKPOINT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.one:
        name, checkpoint, folder = arguments.one
        print(json.dumps(contend(name, arguments, checkpoint, Path(folder))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoint_of(arguments.model, Path(scratch))
        rows = {}
        # Each in a process of its own: none inherits another's memory.
        for name in dict.fromkeys(("ours", *arguments.contenders, PROFILE)):
            own = [sys.executable, *sys.argv, "--one", name, checkpoint, str(Path(scratch) / name)]
            said = subprocess.run(own, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows[name] = json.loads(said.splitlines()[-1])
            print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
        shares = rows.pop(PROFILE)
        report(rows, arguments, checkpoint)
        print("profile of ours: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    return 0


def report(rows: dict[str, dict[str, float]], arguments: argparse.Namespace, checkpoint: str) -> None:
    member, n, base = member_of(arguments, checkpoint), arguments.battles, rows["ours"]
    lengths = {
        what: arena_lengths(n, arguments.max_tokens, seed) for seed, what in enumerate(("training", "prediction"))
    }
    tokens = np.mean(lengths["training"])
    print(f"{arguments.model}: {n} battles, {tokens:.0f} tokens each, {resolve_dtype(member.dtype)}")
    print(f"{'':18} {'train/s':>8} {'ours x':>7} {'predict/s':>10} {'ours x':>7} {'loss':>7} {'peak GB':>8}")
    for name, row in rows.items():
        train, predict = row["train_s"] / base["train_s"], row["predict_s"] / base["predict_s"]
        rates = f"{n / row['train_s']:8.2f} {train:7.2f} {n / row['predict_s']:10.2f} {predict:7.2f}"
        print(f"{name:18} {rates} {row['loss']:7.4f} {row['peak_gb']:8.1f}")
    attention = "eager" if "gemma2" in arguments.model else "sdpa"
    shape = load_base(member, load_tokenizer(checkpoint), 0).config
    rate = matrix_rate(shape.hidden_size, shape.intermediate_size, resolve_dtype(member.dtype))
    for what, sizes in lengths.items():
        cost = trace(member, 1, int(np.mean(sizes)), what == "training", False, attention)
        reached = cost.flops * n / base["train_s" if what == "training" else "predict_s"] / rate
        print(f"{what}: {reached:.0%} of the machine's own {rate / 1e9:.0f} GFLOP/s")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
