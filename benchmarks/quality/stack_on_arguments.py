"""Stage two on real judgements of arguments, with a LoRA member trained here: docs/results-ukp-stack.md.

    python -m benchmarks.quality.stack_on_arguments              # about an hour on 2 cores; run again to go on
    python -m benchmarks.quality.stack_on_arguments --battles 120 --run runs/ukp-slice --out runs/ukp-slice/table.md   # time it first

UKPConvArg1 (Habernal & Gurevych, ACL 2016): pairs of arguments on one side of a debate, which of two convinces more.
A side of a debate is one prompt, hence one group, so every battle is judged by a member that never saw its debate's
side. Prompts are cut to title and side, the rest being instructions of the site. Stages one and two run through the
project's own commands and keep what is done.

Stage two runs twice: as by default (``stack.final: auto``, the simplest combiner within one standard error) and with
``stack.final: lightgbm``, which ``benchmarks/quality/combiner_choice.py`` found better on other sets of about a thousand battles.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import cell, made
from benchmarks.quality.arguments import title_and_side
from ensemble.stacking.inputs import Inputs
from ensemble.stacking.stage import load_inputs, read_predictions
from ensemble.statistics.bootstrap import group_interval
from oof import config as configuration
from oof.common.atomic_files import read_json, replacing, write_json
from oof.config import Config
from oof.metrics import row_log_loss

MEMBER = "smollm2"
FINAL = "lightgbm"


def settings(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the configuration; JSON is YAML."""
    train = {"epochs": arguments.epochs, "lr": arguments.lr, "head_lr": 2e-3, "batch_battles": 8}
    train |= {"swap": "random", "tokens_per_batch": 2048, "checkpoint_steps": 25}
    member = {"checkpoint": arguments.model, "dtype": "auto", "train": train}
    member["lora"] = {"rank": 16, "alpha": 32, "layers": "upper_half"}
    return {
        "run": str(arguments.run),
        "data": {"train": [str(arguments.run / "sample.csv")]},
        "folds": {"k": 3},
        "prompts": {"max_tokens": 160},
        "members": {MEMBER: member},
        "stack": {"trials": 30, "text_member": True},
        "jobs": {"workers": 2},
    }


def sample(data: Path, n: int, seed: int, out: Path) -> None:
    """Write n random battles of the file, in the file's order, each with its prompt cut to title and side."""
    table = pl.read_csv(data, infer_schema=False)
    rows = np.sort(np.random.default_rng(seed).permutation(table.height)[:n])
    short = table[rows].with_columns(pl.col("prompt").map_elements(title_and_side, return_dtype=pl.String))
    with replacing(out) as temporary:
        short.write_csv(temporary)


def losses_of(config: Config, inputs: Inputs) -> dict[str, NDArray[np.float64]]:
    """Return each predictor's (n,) losses, out of fold."""
    path = Path(config.run) / "stack" / "predictions.parquet"
    probs = read_predictions(path, inputs.table["id"])
    return {name: row_log_loss(p, inputs.labels) for name, p in probs.items()}


def report(config: Config, auto: NDArray[np.float64], command: str, seconds: Mapping[str, float]) -> str:
    """Return the Markdown page of a finished run; ``auto`` are (n,) losses of the default's calibrated stack."""
    inputs = load_inputs(config)
    losses = losses_of(config, inputs)
    members = [name for name in losses if name.startswith("member:")]
    best = min(members, key=lambda name: float(losses[name].mean()))
    text = "text"
    rows = ["prior", "length_only", text, *members, "mean", *(n for n in losses if n.startswith("combiner:"))]
    recipe = config.members[MEMBER]
    lines = [
        "# Stage two on arguments from debates",
        "",
        f"`{command}`: {len(inputs.labels):,} battles in {len(np.unique(inputs.groups))} groups "
        f"(one a side of a debate) and "
        f"{config.folds.k} folds. {Path(recipe.checkpoint).name}, LoRA of rank {recipe.lora.rank} on "
        f"{recipe.lora.layers} layers, {recipe.train.epochs:g} epochs at {recipe.train.lr:g}, "
        f"{config.prompts.max_tokens} tokens; "
        f"{config.stack.trials} trials. Seconds over all calls: "
        + ", ".join(f"{stage} {value:,.0f}" for stage, value in seconds.items())
        + ".",
        "",
        f"{made()}. "
        "The member's recipe was fixed beforehand; `stack.text_member` had been tried once, on 1,000 battles of "
        "this file. An earlier table (all layers, bfloat16, as inner folds the two outer ones that are left, the "
        "default choice) said no twice: 0.8872, -0.0056 [-0.0238, +0.0148] beside the member, -0.0222 "
        "[-0.0501, +0.0078] beside the text. Inner folds and the logistic combiner's ridge were changed after it, and "
        "`stack.final: lightgbm` was set here after a first look at the default's figures below, each by what "
        "`benchmarks/quality/combiner_choice.py` says of PandaLM, Tulu and synthetic battles.",
        "",
        "Log loss out of fold with 95 % intervals over groups, which are few: the intervals are wide. The text "
        "baseline is a row of its own and, nested in the training folds, a member of the stack (`stack.text_member`).",
        "",
        "| predictor | log loss | calibrated minus it |",
        "|---|---|---|",
    ]
    losses["calibrated, `stack.final: auto`"] = auto
    for name in [*rows, "stack", "calibrated", "calibrated, `stack.final: auto`"]:
        apart = cell(losses["calibrated"] - losses[name], inputs.groups, "+") if name != "calibrated" else ""
        lines.append(f"| {name} | {cell(losses[name], inputs.groups)} | {apart} |")
    lines += [
        "",
        "| better, by a paired interval below 0 | `stack.final: lightgbm` | `auto`, the default |",
        "|---|---|---|",
    ]
    for name in (best, text):
        said = []
        for loss in (losses["calibrated"], auto):
            apart = loss - losses[name]
            holds = group_interval(apart, inputs.groups, 0)["high"] < 0
            said.append(f"{'yes' if holds else '**no**'}: {cell(apart, inputs.groups, '+')}")
        lines.append(f"| than {name} | {' | '.join(said)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ukpconvarg1_dev.csv"))
    parser.add_argument("--model", default="../shared/models/smollm2-135m")
    parser.add_argument("--run", type=Path, default=Path("runs/ukp-stack"))
    parser.add_argument("--out", type=Path, default=Path("docs/results-ukp-stack.md"))
    parser.add_argument("--battles", type=int, default=1600)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=5e-4)
    arguments = parser.parse_args()
    if not arguments.data.is_file() or not Path(arguments.model).is_dir():
        print(f"error: {arguments.data} or {arguments.model}: not there; give --data and --model", file=sys.stderr)
        return 2
    run = arguments.run
    sample(arguments.data, arguments.battles, 0, run / "sample.csv")
    config = run / "config-ukp.yaml"
    write_json(config, settings(arguments))
    clock = run / "seconds.json"
    seconds: dict[str, float] = read_json(clock) if clock.is_file() else {}
    losses: list[NDArray[np.float64]] = []
    for package, verb, final in (("oof", "oof", "auto"), ("ensemble", "stack", "auto"), ("ensemble", "stack", FINAL)):
        begun = time.monotonic()
        command = [sys.executable, "-m", package, verb, str(config), f"stack.final={final}"]
        status = subprocess.run(command, check=False).returncode
        seconds[verb] = seconds.get(verb, 0.0) + time.monotonic() - begun
        write_json(clock, seconds)
        if status:
            return status
        if verb == "stack":
            loaded = configuration.load(str(config), [f"stack.final={final}"])
            losses.append(losses_of(loaded, load_inputs(loaded))["calibrated"])
    options = (f"--{name} {getattr(arguments, name):g}" for name in ("battles", "epochs", "lr"))
    page = report(loaded, losses[0], " ".join(["python -m benchmarks.quality.stack_on_arguments", *options]), seconds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
