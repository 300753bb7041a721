"""Training and prediction speed of a fold job beside transformers' own Trainer on the same battles.

    python -m benchmarks.speed.fold_jobs --model gemma2-12x640 models/smollm2-135m --write docs/evidence/fold-jobs.md
    python -m benchmarks.speed.fold_jobs --battles 8 --contenders 'random, 2 at a time'          # gemma2-12x640 alone

``gemma2-12x640`` is a Gemma2 of 12 layers and width 640 with random weights; any other name is a checkpoint.

Peers: ``Trainer`` with ``DataCollatorWithPadding`` (a) in random order, (b) ``train_sampling_strategy=
"group_by_length"``, (c) padding to ``max_length``; all with the same adapters, dtype, battles per optimizer step,
steps and tokens. Peers train and predict ``--peer-batch`` sequences at a time (padding to the longest of them) and
accumulate to the same 8 battles a step. Where 8 do not fit into memory, they use Trainer's activation checkpointing;
further rows take 2 at a time without it, which is nearest to our 2,048 tokens a pass. Each contender runs in a process
of its own. Battles have the arena's lengths (644 tokens on average where capped at 2,048), adapters the rank of
configs/lmsys.yaml.

Output: for each contender, battles per second in training and prediction, the multiple of our time, and the evaluation
loss of these few steps. Then the share of this machine's own matrix-product rate, at the model's shapes, that the
arithmetic of the real tokens reaches; a profile of a few of our steps, training and prediction together; and ours
against (a) in evaluation loss after many steps on short battles, with the paired difference's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, Gemma2Config, Gemma2ForCausalLM, Trainer, TrainingArguments

from benchmarks.common import (
    ROOT,
    ResumableRows,
    argument_parser,
    cell,
    origin,
    paragraphs,
    peak_gb,
    run_script,
    timed,
    write_page,
)
from benchmarks.speed.token_sequences import arena_lengths, make_battles
from oof.common.logging_setup import quiet_libraries
from oof.common.process_tuning import prepare_process
from oof.config import Lora, Member, Train
from oof.encoding.batches import TrainingSteps, targets_in_both_orders
from oof.encoding.encode import Encoded
from oof.model.classifier import load_base, load_tokenizer
from oof.model.cost_model import trace
from oof.model.lora import add_adapters
from oof.model.precision import resolve_dtype
from oof.training.inference import predict_logits
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier

BATCH = 8  # battles per optimizer step, each in one order, because the peers know no pairs
Battles = tuple[Encoded, np.ndarray]
OURS = ("ours", "ours, upper half")
PROFILE = "profile"
PROFILED = 8  # battles of which each operation is timed
# Sequences at a time; 0 = --peer-batch.
PEERS = {
    "random": 0,
    "group_by_length": 0,
    "max_length": 0,
    "random, 2 at a time": 2,
    "group_by_length, 2 at a time": 2,
}
OUT_OF_MEMORY = "out of memory"
# A few steps on long battles measure speed but not quality; these are many steps on short ones.
SHORT_BATTLES, SHORT_TOKENS = 480, 48
QUALITY = {"ours, short battles": "ours", "random, short battles": "random"}
CHECKPOINTING = ", activations recomputed: they did not fit"
Row = dict[str, Any]


class Rows(Dataset[dict[str, Any]]):
    """Battles in the form that the stock Trainer reads."""

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
) -> Row:
    """Train and predict with transformers' Trainer."""
    cap, at_once = arguments.max_tokens, PEERS[kind] or arguments.peer_batch
    padding: dict[str, Any] = {"padding": "max_length", "max_length": cap} if kind == "max_length" else {}
    bf16 = resolve_dtype(member.dtype) == torch.bfloat16
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=BATCH // at_once,
        per_device_eval_batch_size=at_once,
        num_train_epochs=1,
        learning_rate=member.train.lr,
        warmup_steps=0,
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length" if kind.startswith("group_by_length") else "random",
        bf16=bf16,
        activation_checkpointing=arguments.checkpointing,
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
    try:
        _, train = timed(trainer.train)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        return {OUT_OF_MEMORY: True}
    output, predict = timed(lambda: trainer.predict(held))
    losses = losses_of(np.asarray(output.predictions, dtype=np.float64), output.label_ids)
    return row(train, predict, losses) | {"checkpointing": arguments.checkpointing}


def limit_memory() -> None:
    """Let an allocation beyond this machine's memory fail in this process, before the system kills processes."""
    if not torch.cuda.is_available():
        free = psutil.virtual_memory().available
        resource.setrlimit(resource.RLIMIT_DATA, (int(free * 0.8), resource.RLIM_INFINITY))


def ours(member: Member, tokenizer: Any, data: Battles, held: Battles, folder: Path) -> Row:
    """Train and predict through the functions of a fold job."""
    prepare_process()  # as every fold job does
    encoded, labels = data
    model, pad = fresh(member, tokenizer), tokenizer.pad_token_id
    targets = targets_in_both_orders(np.eye(3)[labels])
    steps = TrainingSteps(encoded, targets, np.ones(len(labels)), member.train, pad, 0)
    _, train = timed(lambda: train_classifier(model, member, steps, cross_entropy, folder, 0, "ours"))
    logits, predict = timed(lambda: predict_logits(model, member, held[0], pad, "ours")[:, 0])
    return row(train, predict, losses_of(logits.astype(np.float64), held[1]))


def profile(call: Callable[[], object]) -> dict[str, float]:
    """Return each operation's share of the time, without the operations that it calls, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    spent = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    shares = {name: time_us / sum(spent.values()) for name, time_us in spent.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:12])


def row(train: float, predict: float, losses: list[float]) -> Row:
    return {"train_s": train, "predict_s": predict, "losses": losses, "peak_gb": peak_gb()}


def losses_of(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    logp = torch.log_softmax(torch.from_numpy(logits), dim=1)
    return (-logp[torch.arange(len(labels)), torch.from_numpy(np.asarray(labels))]).tolist()


def matrix_rate(width: int, inner: int, dtype: torch.dtype, tokens: int = 2048) -> float:
    """Return this machine's FLOP/s in the model's largest product, the best of five."""
    a, b = torch.randn(tokens, width).to(dtype), torch.randn(width, inner).to(dtype)
    return max(2.0 * tokens * width * inner / timed(lambda: a @ b)[1] for _ in range(5))


def checkpoint_of(name: str, folder: Path) -> str:
    if name != "gemma2-12x640":
        return name
    source = ROOT / "configs" / "bases" / "tiny-gemma2"
    shape = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 12, "head_dim": 80}
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=8192, num_attention_heads=8, num_key_value_heads=4, pad_token_id=0, **shape)
    Gemma2ForCausalLM(config).save_pretrained(folder / name)
    load_tokenizer(str(source)).save_pretrained(folder / name)
    return str(folder / name)


def contend(name: str, arguments: argparse.Namespace, checkpoint: str, folder: Path) -> Row:
    """Train and predict as contender ``name``, in this process."""
    member, tokenizer = member_of(arguments, checkpoint), load_tokenizer(checkpoint)
    vocabulary, n, cap = min(len(tokenizer), 8000), arguments.battles, arguments.max_tokens
    if name in QUALITY:
        name, n, cap = QUALITY[name], SHORT_BATTLES, SHORT_TOKENS
    data, held = (make_battles(n, cap, vocabulary, seed) for seed in (0, 1))
    if name in PEERS:
        limit_memory()
        return peer(member, tokenizer, Rows(*data), Rows(*held), name, arguments, folder)
    if name == "ours, upper half":
        member = replace(member, lora=replace(member.lora, layers="upper_half"))
    if name == PROFILE:
        few = make_battles(PROFILED, cap, vocabulary, 0)
        return profile(lambda: ours(member, tokenizer, few, few, folder))
    return ours(member, tokenizer, data, held, folder)


def member_of(arguments: argparse.Namespace, checkpoint: str) -> Member:
    train = Train(lr=1e-3, head_lr=1e-3, batch_battles=BATCH, swap="none", warmup_share=0.0, tokens_per_batch=2048)
    lora = Lora(rank=64, alpha=128)
    return Member(checkpoint, dtype=arguments.dtype, lora=lora, train=train, score_tokens_per_batch=2048)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", nargs="+", default=["gemma2-12x640"])
    parser.add_argument("--battles", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--peer-batch", type=int, default=8, help="sequences at a time; 8 is Trainer's default")
    parser.add_argument("--contenders", nargs="*", default=[*OURS[1:], *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--out", type=Path, help="JSON file that keeps the figures; a second call measures the rest")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "CHECKPOINT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.one:
        name, checkpoint, folder = arguments.one
        print(json.dumps(contend(name, arguments, checkpoint, Path(folder))))
        return
    lines = [paragraphs(__doc__, 2)]
    for model in arguments.model:
        with tempfile.TemporaryDirectory() as scratch:
            lines += ["", f"## {Path(model).name}", "", *section(model, arguments, Path(scratch))]
    print("\n".join([origin(), *lines]))
    if arguments.write:
        write_page(arguments.write, "Fold jobs against transformers' Trainer", lines)


def section(model: str, arguments: argparse.Namespace, scratch: Path) -> list[str]:
    """Return the page's lines on one model, whose contenders run unless ``--out`` has their figures."""
    saved, rows = ResumableRows(arguments.out), {}
    key = [model, arguments.battles, arguments.max_tokens, arguments.dtype, arguments.peer_batch]
    checkpoint = checkpoint_of(model, scratch)
    for name in dict.fromkeys(("ours", *arguments.contenders, PROFILE, *QUALITY)):
        kept = saved.get(f"{model}: {name}", key)
        if kept is None:
            too_large = any(r.get("checkpointing") for r in rows.values()) and not PEERS.get(name)
            kept = run_apart(name, checkpoint, str(scratch / name), too_large)
            saved.put(f"{model}: {name}", key, kept)
            summary = {field: value for field, value in kept.items() if field != "losses"}
            print(f"{name}: {summary}", file=sys.stderr, flush=True)
        rows[name] = kept
    shares = sorted(rows[PROFILE].items(), key=lambda item: -item[1])
    return [
        *speeds({name: kept for name, kept in rows.items() if name in (*OURS, *PEERS)}, arguments, checkpoint),
        "Operations of ours, by their share of the time: "
        + ", ".join(f"{op} {share:.0%}" for op, share in shares)
        + ".",
        "",
        quality(*(np.array(rows[name]["losses"]) for name in QUALITY)),
    ]


def run_apart(name: str, checkpoint: str, folder: str, too_large: bool) -> Row:
    """Run a contender in a process of its own, so that none inherits another's memory.

    If memory does not suffice, or ``too_large`` says so in advance, it runs with activation checkpointing.
    """
    plain = [sys.executable, "-m", "benchmarks.speed.fold_jobs", *sys.argv[1:], "--one", name, checkpoint, folder]
    checkpointing = [*plain, "--checkpointing"]
    result: Row = {OUT_OF_MEMORY: True}
    for command in (checkpointing,) if too_large else (plain, checkpointing):
        if OUT_OF_MEMORY in result:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode not in (0, -signal.SIGKILL):  # SIGKILL is the system's answer to a lack of memory
                sys.exit(f"{name} failed (status {done.returncode})")
            result = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {OUT_OF_MEMORY: True}
    return result


def speeds(rows: dict[str, Row], arguments: argparse.Namespace, checkpoint: str) -> list[str]:
    """Return the table of speeds and the share of the machine's matrix-product rate that ours reaches."""
    member, n, base = member_of(arguments, checkpoint), arguments.battles, rows["ours"]
    phases = ("training", "prediction")
    lengths = {phase: arena_lengths(n, arguments.max_tokens, seed) for seed, phase in enumerate(phases)}
    tokens = np.mean(lengths["training"])
    lines = [
        f"{n} battles of {tokens:.0f} tokens on average, {str(resolve_dtype(member.dtype)).removeprefix('torch.')}.",
        "",
        "| contender | training, battles/s | ours, times | prediction, battles/s | ours, times | loss | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in rows.items():
        if OUT_OF_MEMORY in cost:
            lines.append(f"| {name} | out of memory, also with activations recomputed | | | | | |")
            continue
        times = [
            "" if name == "ours" else f"{cost[f'{part}_s'] / base[f'{part}_s']:.2f}" for part in ("train", "predict")
        ]
        label = f"{name}{CHECKPOINTING if cost.get('checkpointing') else ''}"
        cells = [label, f"{n / cost['train_s']:.2f}", times[0], f"{n / cost['predict_s']:.2f}", times[1]]
        lines.append(f"| {' | '.join(cells)} | {np.mean(cost['losses']):.4f} | {cost['peak_gb']:.1f} |")
    attention = "eager" if "gemma2" in checkpoint else "sdpa"
    shape = load_base(member, load_tokenizer(checkpoint), 0).config
    rate = matrix_rate(shape.hidden_size, shape.intermediate_size, resolve_dtype(member.dtype))
    shares = []
    for phase, sizes in lengths.items():
        flops = trace(member, 1, int(np.mean(sizes)), phase == "training", False, attention).flops
        reached = flops * n / base["train_s" if phase == "training" else "predict_s"] / rate
        shares.append(f"{reached:.0%} in {phase}")
    return [*lines, "", f"Share of the machine's own {rate / 1e9:.0f} GFLOP/s: {' and '.join(shares)}.", ""]


def quality(ours: np.ndarray, random: np.ndarray) -> str:
    """Return a sentence on (n,) evaluation losses of ours and of peer (a) after many steps on short battles."""
    steps = f"{SHORT_BATTLES // BATCH} steps on battles of at most {SHORT_TOKENS} tokens"
    difference = cell(ours - random, np.arange(len(ours)), "+")
    return f"Evaluation loss after {steps}: ours {ours.mean():.4f}, (a) {random.mean():.4f}, difference {difference}."


if __name__ == "__main__":
    run_script(main)
