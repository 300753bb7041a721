"""All three stages on the card: the demo, and small pre-trained models on real judgements at sizes for a GPU.

Members are SmolLM2-135M and Gemma3-270M with adapters in every layer, the student is a Gemma3-270M. A run that its time
box ends is continued by the next call; its seconds then lack those of the stage that was stopped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, require
from benchmarks.gpu.parts import MODELS, Case, Context, Row
from benchmarks.quality.real_battles import FILES, read_judgements, write_csv
from oof.common.atomic_files import read_json, write_json
from oof.common.errors import UserError

STAGES = {"oof": "oof", "stack": "ensemble", "distill": "ensemble", "table": "ensemble"}  # subcommand: its package
PROGRESS = "progress.json"
ROWS = ("prior", "length_only", "mean", "stack", "calibrated", "student")


def measure(case: Case, context: Context) -> Row:
    """Run every stage of one case; return its seconds and log losses.

    Raises:
        UserError: a stage failed.
    """
    folder = context.folder / "-".join(case).replace(" ", "-")
    progress = folder / PROGRESS
    if not progress.is_file() or "log_loss" in read_json(progress):
        shutil.rmtree(folder, ignore_errors=True)  # stages of a finished run would be skipped and take no time
    if case == ("demo",):
        arguments = [str(ROOT / "configs" / "demo.yaml"), f"run={folder / 'run'}", *context.size.demo]
    else:
        arguments = [str(folder / "config.yaml")]
        settings = real_settings(case[0], int(case[1].removeprefix("seed ")), folder, context)
        write_json(folder / "config.yaml", settings)  # JSON is YAML
    return run_stages(folder / "run", arguments, progress)


def real_settings(name: str, seed: int, folder: Path, context: Context) -> dict[str, Any]:
    """Write the battles of one set; return the configuration of a run on them.

    Raises:
        UserError: a file of judgements or a model is missing.
    """
    size, models, data = context.size, context.models or Path("models"), context.data or Path("data")
    files = [data / file for file in FILES[name]]
    require([*files, *(models / model for model in MODELS)], "--data and --models")
    battles = read_judgements(files)
    count = min(size.battles, battles.height)
    write_csv(folder / "battles.csv", battles.sample(count, seed=0))  # the same battles for every seed

    def trained(checkpoint: str) -> dict[str, Any]:
        train = {"epochs": size.epochs, "lr": 2e-4, "head_lr": 2e-4, "batch_battles": 16, "tokens_per_batch": 16384}
        return {
            "checkpoint": str((models / checkpoint).resolve()),
            "dtype": "auto",
            "lora": {"rank": size.rank, "alpha": 16},
            "train": train | {"checkpoint_steps": 100},
        }

    return {
        "seed": seed,
        "run": str(folder / "run"),
        "data": {"train": [str(folder / "battles.csv")]},
        "folds": {"k": size.folds},
        "prompts": {"max_tokens": size.tokens},
        "members": {"smollm2": trained(MODELS[0]), "gemma3": trained(MODELS[1])},
        "stack": {"trials": size.trials, "text_member": True},
        "distill": {"student": trained(MODELS[1])},
        "jobs": {"workers": 1 if context.quick else 4},  # models that small leave most of a card idle
    }


def run_stages(run: Path, arguments: list[str], progress: Path) -> Row:
    """Run the stages with these arguments; return the seconds of each and the losses of ``metrics.json``.

    Args:
        run: the run's folder.
        arguments: configuration and overrides.
        progress: file of the row so far, written after each stage.
    """
    earlier = read_json(progress) if progress.is_file() else {"seconds": {}}
    row: Row = {"seconds": earlier["seconds"], "continued": progress.is_file()}
    write_json(progress, row)
    for stage, package in STAGES.items():
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", package, stage, *arguments], cwd=ROOT, check=False)
        if done.returncode:
            raise UserError(f"python -m {package} {stage} ended with status {done.returncode}; see the part's log")
        row["seconds"][stage] = row["seconds"].get(stage, 0.0) + time.perf_counter() - begun
        write_json(progress, row)
    losses = read_json(run / "metrics.json")["log_loss"]
    kept = {name: losses[name] for name in ROWS if name in losses}
    kept |= {f"member {name}": value for name, value in losses.get("members", {}).items()}
    row |= {"log_loss": kept}
    write_json(progress, row)
    return row
