"""How fast a fold job trains and predicts, beside transformers' own Trainer on the same battles in the same run.

    python -m benchmarks.speed.fold_jobs --model ../models/smollm2-135m                     # any checkpoint
    python -m benchmarks.speed.fold_jobs --model gemma2-12x640                              # a random Gemma2, 12 layers of 640

Peers: ``Trainer`` with ``DataCollatorWithPadding`` (a) in random order, (b) ``train_sampling_strategy=
"group_by_length"``, (c) padding to ``max_length``; all with the same adapters, dtype, battles per optimizer step,
steps and tokens. Peers train and predict ``--peer-batch`` sequences at a time (padding to the longest of them) and
accumulate to the same 8 battles a step. Where 8 do not fit into the memory, they do what Trainer offers and recompute
activations; a further row takes the other way out, 2 at a time without that. Each contender runs in a process of its
own. Battles have the arena's lengths (644 tokens on average where capped at 2,048), adapters the rank
of configs/lmsys.yaml. One table row each: battles per second in training and prediction, the ratio of ours, the
evaluation loss of these few steps; then the share of this machine's own matrix-product rate at the model's shapes that
the arithmetic of the real tokens reaches, a profile of a few of our steps, in training and prediction together, and
ours against (a) in evaluation loss after many steps on short battles, with the paired difference's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, Gemma2Config, Gemma2ForCausalLM, Trainer, TrainingArguments

from ensemble.statistics.bootstrap import group_interval
from oof.common.logging_setup import quiet_libraries
from oof.common.process_tuning import prepare_process
from oof.config import Lora, Member, Train
from oof.encoding.batches import TrainingSteps
from oof.encoding.encode import Encoded
from oof.jobs.run_fold_job import both_orders
from oof.model.classifier import load_base, load_tokenizer, resolve_dtype
from oof.model.cost_model import trace
from oof.model.lora import add_adapters
from oof.training.inference import predict_logits
from oof.training.losses import cross_entropy
from oof.training.trainer import train_classifier

BATCH = 8  # battles per optimizer step, of one order here, as the peers know no pairs
Battles = tuple[Encoded, np.ndarray]
OURS = ("ours", "ours, upper half")
PROFILE = "profile"
PROFILED = 8  # battles of which each operation is timed
PEERS = {"random": 0, "group_by_length": 0, "max_length": 0, "random, 2 at a time": 2}  # 0 = --peer-batch sequences
SHORT = "short of memory"
# A few steps on long battles time well and say nothing of quality; these are many steps on short ones.
SHORT_BATTLES, SHORT_TOKENS, NOISE = 480, 48, 0.4
QUALITY = {"ours, short battles": "ours", "random, short battles": "random"}
RECOMPUTES = "  (recomputes activations, as 8 at a time did not fit)"
Facts = dict[str, Any]


# Tokens of prompt and responses together of 700 arena battles (Gemma2's tokenizer): median 563, 16 % above 1,024, p90
# 1,243, 2.6 % above 2,048, p99 3,087. The ends are chosen so that, capped at 2,048, the mean is the measured 644, and
# padding costs what it did there: 2.23 times the tokens in random batches of 8, 3.18 times up to the cap.
QUANTILES = {0.0: 120, 0.5: 563, 0.84: 1024, 0.9: 1243, 0.974: 2048, 0.99: 3087, 1.0: 6000}


def arena_lengths(n: int, cap: int, seed: int = 0) -> np.ndarray:
    """Return n token counts of the arena's distribution, one from each n-th of it, in random order."""
    shares = (np.random.default_rng(seed).permutation(n) + 0.5) / n
    return np.minimum(np.exp(np.interp(shares, list(QUANTILES), np.log(list(QUANTILES.values())))), cap).astype(int)


def make_battles(n: int, cap: int, vocabulary: int, seed: int) -> tuple[Encoded, np.ndarray]:
    """Return random token sequences whose last tokens show the label or, in a share ``NOISE`` of them, any label.

    Without noise both contenders end near 0, where a difference says nothing.
    """
    rng = np.random.default_rng(seed)
    lengths, labels = arena_lengths(n, cap, seed), rng.integers(3, size=n)
    shown = np.where(rng.random(n) < NOISE, rng.integers(3, size=n), labels)
    rows = [rng.integers(100, vocabulary - 100, size) for size in lengths]
    for row, label in zip(rows, shown, strict=True):
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
) -> Facts:
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
        train_sampling_strategy="group_by_length" if kind == "group_by_length" else "random",
        bf16=bf16,
        activation_checkpointing=arguments.recompute,
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
        train = timed(trainer.train)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        return {SHORT: True}
    out: list[Any] = []
    predict = timed(lambda: out.append(trainer.predict(held)))
    logits, labels = np.asarray(out[0].predictions, dtype=np.float64), out[0].label_ids
    return measured(train, predict, losses_of(logits, labels)) | {"recomputes": arguments.recompute}


def stay_within_memory() -> None:
    """Make an allocation beyond this machine's memory an error of this process instead of the machine's trouble."""
    if not torch.cuda.is_available():
        free = psutil.virtual_memory().available
        resource.setrlimit(resource.RLIMIT_DATA, (int(free * 0.8), resource.RLIM_INFINITY))


def ours(member: Member, tokenizer: Any, data: Battles, held: Battles, folder: Path) -> Facts:
    prepare_process()  # as every fold job does
    encoded, labels = data
    model, pad = fresh(member, tokenizer), tokenizer.pad_token_id
    targets = both_orders(np.eye(3)[labels])
    steps = TrainingSteps(encoded, targets, np.ones(len(labels)), member.train, pad, 0)
    train = timed(lambda: train_classifier(model, member, steps, cross_entropy, folder, 0, "ours"))
    out: list[np.ndarray] = []
    predict = timed(lambda: out.append(predict_logits(model, member, held[0], pad, "ours")[:, 0]))
    return measured(train, predict, losses_of(out[0].astype(np.float64), held[1]))


def profile(call: Callable[[], object]) -> dict[str, float]:
    """Return the share of the time that each operation took by itself, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    shares = {name: time_us / sum(spent.values()) for name, time_us in spent.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:12])


def measured(train: float, predict: float, losses: list[float]) -> Facts:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"train_s": train, "predict_s": predict, "losses": losses, "peak_gb": peak}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def losses_of(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    logp = torch.log_softmax(torch.from_numpy(logits), dim=1)
    return (-logp[torch.arange(len(labels)), torch.from_numpy(np.asarray(labels))]).tolist()


def matrix_rate(width: int, inner: int, dtype: torch.dtype, tokens: int = 2048) -> float:
    """Return this machine's FLOP/s in the model's largest product, the best of five."""
    a, b = torch.randn(tokens, width).to(dtype), torch.randn(width, inner).to(dtype)
    return max(2.0 * tokens * width * inner / timed(lambda: a @ b) for _ in range(5))


def checkpoint_of(name: str, folder: Path) -> str:
    if name != "gemma2-12x640":
        return name
    source = Path(__file__).resolve().parents[2] / "configs" / "bases" / "tiny-gemma2"
    shape = {"hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 12, "head_dim": 80}
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=8192, num_attention_heads=8, num_key_value_heads=4, pad_token_id=0, **shape)
    Gemma2ForCausalLM(config).save_pretrained(folder / name)
    load_tokenizer(str(source)).save_pretrained(folder / name)
    return str(folder / name)


def contend(name: str, arguments: argparse.Namespace, checkpoint: str, folder: Path) -> Facts:
    """Train and predict as contender ``name``, in this process."""
    member, tokenizer = member_of(arguments, checkpoint), load_tokenizer(checkpoint)
    vocabulary, n, cap = min(len(tokenizer), 8000), arguments.battles, arguments.max_tokens
    if name in QUALITY:
        name, n, cap = QUALITY[name], SHORT_BATTLES, SHORT_TOKENS
    data, held = (make_battles(n, cap, vocabulary, seed) for seed in (0, 1))
    if name in PEERS:
        stay_within_memory()
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="gemma2-12x640")
    parser.add_argument("--battles", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--peer-batch", type=int, default=8, help="sequences at a time; 8 is Trainer's default")
    parser.add_argument("--contenders", nargs="*", default=[*OURS[1:], *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--out", type=Path, help="keep the figures here as JSON; those that are there are not repeated")
    parser.add_argument("--recompute", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "CHECKPOINT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.one:
        name, checkpoint, folder = arguments.one
        print(json.dumps(contend(name, arguments, checkpoint, Path(folder))))
        return 0
    rows: dict[str, Facts] = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = checkpoint_of(arguments.model, Path(scratch))
        for name in dict.fromkeys(("ours", *arguments.contenders, PROFILE, *QUALITY)):
            if name not in rows:
                short = any(row.get("recomputes") for row in rows.values()) and not PEERS.get(name)
                rows[name] = run_apart(name, checkpoint, str(Path(scratch) / name), short)
                said = {key: value for key, value in rows[name].items() if key != "losses"}
                print(f"{name}: {said}", file=sys.stderr, flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=2) + "\n")
        report({name: row for name, row in rows.items() if name in (*OURS, *PEERS)}, arguments, checkpoint)
        ours, random = (rows[name] for name in QUALITY)
        losses = f"ours {np.mean(ours['losses']):.4f}, (a) {np.mean(random['losses']):.4f}"
        what = f"loss after {SHORT_BATTLES // BATCH} steps on battles of at most {SHORT_TOKENS} tokens"
        print(f"{what}: {losses}, {difference(ours, random)}")
        print("profile of ours: " + ", ".join(f"{name} {share:.0%}" for name, share in rows[PROFILE].items()))
    return 0


def run_apart(name: str, checkpoint: str, folder: str, short: bool) -> Facts:
    """Run a contender in a process of its own: none inherits another's memory. ``short``: as others recomputed."""
    own = [sys.executable, *sys.argv, "--one", name, checkpoint, folder]
    facts: Facts = {SHORT: True}
    for command in ([*own, "--recompute"],) if short else (own, [*own, "--recompute"]):
        if SHORT in facts:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode not in (0, -signal.SIGKILL):  # the latter is the system, short of memory
                sys.exit(f"{name} failed (status {done.returncode})")
            facts = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {SHORT: True}
    return facts


def report(rows: dict[str, Facts], arguments: argparse.Namespace, checkpoint: str) -> None:
    member, n, base = member_of(arguments, checkpoint), arguments.battles, rows["ours"]
    lengths = {
        what: arena_lengths(n, arguments.max_tokens, seed) for seed, what in enumerate(("training", "prediction"))
    }
    tokens = np.mean(lengths["training"])
    print(f"{arguments.model}: {n} battles, {tokens:.0f} tokens each, {resolve_dtype(member.dtype)}")
    print(f"{'':20} {'train/s':>8} {'ours x':>7} {'predict/s':>10} {'ours x':>7} {'loss':>7} {'peak GB':>8}")
    for name, row in rows.items():
        if SHORT in row:
            print(f"{name:20} short of memory, recomputing too")
            continue
        train, predict = row["train_s"] / base["train_s"], row["predict_s"] / base["predict_s"]
        rates = f"{n / row['train_s']:8.2f} {train:7.2f} {n / row['predict_s']:10.2f} {predict:7.2f}"
        figures = f"{rates} {np.mean(row['losses']):7.4f} {row['peak_gb']:8.1f}"
        print(f"{name:20} {figures}{RECOMPUTES if row.get('recomputes') else ''}")
    attention = "eager" if "gemma2" in arguments.model else "sdpa"
    shape = load_base(member, load_tokenizer(checkpoint), 0).config
    rate = matrix_rate(shape.hidden_size, shape.intermediate_size, resolve_dtype(member.dtype))
    for what, sizes in lengths.items():
        cost = trace(member, 1, int(np.mean(sizes)), what == "training", False, attention)
        reached = cost.flops * n / base["train_s" if what == "training" else "predict_s"] / rate
        print(f"{what}: {reached:.0%} of the machine's own {rate / 1e9:.0f} GFLOP/s")


def difference(ours: Facts, peer: Facts) -> str:
    paired = np.array(ours["losses"]) - np.array(peer["losses"])
    interval = group_interval(paired, np.arange(len(paired)), seed=0)
    return f"difference {interval['value']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"


if __name__ == "__main__":
    sys.exit(main())
