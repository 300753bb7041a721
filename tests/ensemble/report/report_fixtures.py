"""Small arenas with planted effects, in memory and as run folders that stages one to three might have left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.stack import predictions_frame, softmax_mean
from oof import store

WORDS = ("how", "do", "cook", "rice", "and", "fish", "with", "lemon", "plan", "week", "people", "walks", "old", "towns")


class Arena(NamedTuple):
    table: pl.DataFrame
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]
    seen: NDArray[np.bool_]
    truth: NDArray[np.float64]


STACK = {
    "final": {"combiner": "mean", "reason": "simplest"},
    "features": ["f", "g", "h"],
    "seconds": 5,
    "folds": [
        {"fold": 0, "temperature": 1.4, "rounds": 9, "gain": [3.0, 1.0, 0.0], "splits": [4, 2, 0]},
        {"fold": 1, "temperature": 1.5, "rounds": 8, "gain": [0.0, 6.0, 0.0], "splits": [0, 5, 0]},
    ],
}
STUDY = [  # four trials of an Optuna journal, of which one failed
    {"op_code": 6, "trial_id": trial, "state": state, "values": [value]}
    for trial, state, value in ((0, 1, 1.03), (2, 1, 1.05), (1, 3, 0.5), (3, 1, 1.01))
]


def _ablation(name: str, loss: float, **more: object) -> dict[str, object]:
    about = {"low": loss - 0.1, "value": loss, "high": loss + 0.1}
    return {"name": name, "log_loss": about, "difference": {key: value - 1 for key, value in about.items()}, **more}


ABLATIONS = {
    "n": 9,
    "note": "nothing is tuned anew",
    "full": {"low": 0.9, "value": 1.0, "high": 1.1},
    "without": [_ablation("without-member-one", 1.01, kind="member"), _ablation("without-a-b", 1.2, kind="family")],
    "learning_curve": [_ablation("battles-0.5", 1.3, battles=200.0), _ablation("full", 1.0, battles=400.0)],
    "gain": {"lengths": 0.25, "turns": 0.75},
}


def sentence(rng: np.random.Generator, n: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=n))


def make_arena(n: int = 600, seed: int = 0, seen_gain: float = 0.0, blind: bool = False, k: int = 3) -> Arena:
    """Members ``one`` and ``two`` are equally noisy; ``one`` is better on seen prompts by ``seen_gain`` (0..1).

    With ``blind``, ``two`` gives ties the same probability everywhere.
    """
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(n * 2 // 3, size=n))
    seen = np.isin(groups, rng.permutation(n * 2 // 3)[: n // 4])
    truth_logits = rng.normal(0, 1.2, (n, 3))
    truth = np.exp(truth_logits) / np.exp(truth_logits).sum(axis=1, keepdims=True)
    labels = (rng.random(n)[:, None] > truth.cumsum(axis=1)[:, :2]).sum(axis=1)
    logits = {}
    for name in ("one", "two"):
        noise = np.full(n, 1.0)
        if name == "one":
            noise[seen] = 1.0 - seen_gain
        z = (
            truth_logits[:, None, :]
            + noise[:, None, None] * rng.normal(0, 1, (n, 1, 3))
            + rng.normal(0, 0.2, (n, 2, 3))
        )
        if name == "two" and blind:
            z[:, :, 2] = np.log(0.4) + np.logaddexp(z[:, :, 0], z[:, :, 1])  # P(tie) = 0.4 / 1.4 whatever the battle
        logits[name] = z.astype(np.float32)
    table = pl.DataFrame(
        {
            "id": [f"b{i:05d}" for i in range(n)],
            "role": ["train"] * n,
            "weight": np.ones(n),
            "label": pl.Series(labels, dtype=pl.Int8),
            "prompt": [[sentence(rng, 8)] * int(rng.integers(1, 3)) for _ in range(n)],
            "response_a": [[sentence(rng, int(rng.integers(5, 60)))] for _ in range(n)],
            "response_b": [[sentence(rng, int(rng.integers(5, 60)))] for _ in range(n)],
            "model_a": ["m"] * n,
            "model_b": ["m"] * n,
            "language": pl.Series([None] * n, dtype=pl.String),
            "fold": pl.Series(groups % k, dtype=pl.Int32),
            "group": groups,
        }
    )
    return Arena(table, labels, groups, logits, seen, truth)


def write_run(folder: Path, arena: Arena, stages: bool = True) -> Path:
    """Write the arena as a run folder; with ``stages``, stages two and three too."""
    folder.mkdir(parents=True, exist_ok=True)
    store.write_parquet(folder / "battles.parquet", arena.table)
    store.write_parquet(folder / "folds.parquet", arena.table.select("id", "role", "group", "fold"))
    files = {name: store.file_digest(folder / name) for name in ("battles.parquet", "folds.parquet")}
    battles = {"key": "k", "files": files, "counts": {"rows_read": arena.table.height}, "schemas": {"f.csv": "ours"}}
    store.write_json(folder / "battles.json", battles)
    config = {
        "seed": 0,
        "folds": {"k": 3},
        "groups": {"threshold": 0.7},
        "members": {name: {} for name in arena.logits},
    }
    store.write_json(folder / "run.json", {"config": config, "versions": {"numpy": "2"}, "hardware": {"machine": "m"}})
    ids, fold = arena.table["id"], arena.table["fold"].to_numpy()
    for name, logits in arena.logits.items():
        store.write_parquet(folder / "oof" / name / "logits.parquet", store.logits_frame(ids, logits, fold))
        history = [{"step": step, "loss": 1.0 / step, "epoch": step / 9} for step in range(1, 10)]
        job = {"history": history, "seconds": 12.5, "parameters": 1000, "trainable": 10, "log_loss": 1.0}
        store.write_json(folder / "oof" / name / "fold-0" / "job.json", job)
    if stages:
        pooled = np.mean(list(arena.logits.values()), axis=0)
        mean = softmax_mean(pooled)
        flat = np.full((len(ids), 3), 1 / 3)
        stack = {"prior": flat, "mean": mean, "stack": mean, "calibrated": softmax_mean(0.7 * pooled)}
        stack |= {"combiner:mean": mean, "combiner:greedy": softmax_mean(arena.logits["one"]), "teacher": flat}
        store.write_parquet(folder / "stack" / "predictions.parquet", predictions_frame(ids, stack))
        store.write_json(folder / "stack" / "manifest.json", STACK)
        store.write_json(folder / "stack" / "ablations.json", ABLATIONS)
        (folder / "stack" / "studies").mkdir()
        (folder / "stack" / "studies" / "fold-0.log").write_text(
            "\n".join(map(json.dumps, STUDY)) + '\n{"torn', "utf-8"
        )
        logits = pooled * 0.5
        store.write_parquet(folder / "distill" / "logits.parquet", store.logits_frame(ids, logits, fold))
        student = {"student": softmax_mean(logits)}
        store.write_parquet(folder / "distill" / "predictions.parquet", predictions_frame(ids, student))
        store.write_json(folder / "distill" / "manifest.json", {"fold_temperatures": [1.1], "temperature": 1.2})
    return folder
