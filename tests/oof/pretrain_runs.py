"""A small run with training before the folds: its battles, its pairs, its settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import torch
from conftest import ROOT, small_arguments
from safetensors.torch import load_file

from oof.__main__ import main as oof_main
from oof.synth import write_arena

LLAMA = "members.llama3_1"
STILL = [f"{LLAMA}.train.lr=0", f"{LLAMA}.train.head_lr=0"]  # fold jobs that stay where they started
MOVING = ["pretrain.lr=2e-3", "pretrain.head_lr=5e-3", "pretrain.batch_battles=8"]
FRESH = 24  # pairs about nothing that any battle asks


def write_data(folder: Path) -> list[str]:
    """Write battles, and pairs of which some have a scored battle's prompt; return the overrides that name them."""
    paths = write_arena(folder, 60, 0, 8)
    asked = {name: [json.loads(text) for text in pl.read_csv(paths[name])["prompt"]] for name in ("train", "test")}
    single = {name: [turns[0] for turns in prompts if len(turns) == 1] for name, prompts in asked.items()}
    rng = np.random.default_rng(0)
    prompts = [" ".join(f"w{n}" for n in rng.integers(10_000, size=12)) for _ in range(FRESH)]
    prompts += [single["train"][0], single["train"][1].upper() + "!!", f"please, {single['test'][0]}"]
    rows = [
        {"prompt": prompt, "chosen": f"a good and long answer to number {i}", "rejected": f"bad {i}"}
        for i, prompt in enumerate(prompts)
    ]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [
        f"data.train=[{paths['train']}]",
        f"data.test=[{paths['test']}]",
        f"pretrain.data=[{folder / 'pairs.jsonl'}]",
    ]


def only_llama(folder: Path) -> Path:
    text = (ROOT / "configs" / "demo.yaml").read_text()
    path = folder / "one.yaml"
    path.write_text(text[: text.index("  gemma2:")] + text[text.index("  llama3_1:") :])
    return path


def overrides_in(folder: Path) -> list[str]:
    """Return the configuration and its overrides, without a run; the data are written to ``folder``."""
    shared = [a for a in small_arguments(Path("unused"))[2:] if "gemma2" not in a and "synth" not in a]
    return [
        str(only_llama(folder)),
        *shared,
        *write_data(folder),
        "folds.k=2",
        *MOVING,
        *STILL,
        f"{LLAMA}.train.checkpoint_steps=1",
    ]


def finished(base: list[str], run: Path) -> Path:
    """Make the run and return its folder."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        assert oof_main(["oof", *base, f"run={run}"]) == 0
    finally:
        os.chdir(before)
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def starts(run: Path) -> dict[str, torch.Tensor]:
    return weights(run / "pretrain" / "member-llama3_1" / "adapter")
