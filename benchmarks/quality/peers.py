"""Our member, stack and student beside other libraries' judges: pairjudge, and TRL's RewardTrainer.

    python -m benchmarks.quality.peers --data DIR --models DIR                         # arguments; rerun to go on
    python -m benchmarks.quality.peers --sets chats --data DIR --models DIR --minutes 60
    python -m benchmarks.quality.peers --data DIR --models DIR --battles 60 --tokens 96 --epochs 0.5 --validation 8

All train on the same battles of the same folds, from SmolLM2-135M, for the same epochs with eight battles a step, and
with adapters of rank 16 and alpha 32; each battle is scored in both orders by the judge that was not trained on its
fold, with the same limit of tokens. Every fold of every library runs in a process of its own, on as many cores of one
machine; folds of two libraries may run side by side, on cores of their own. pairjudge 0.3.0 has its own template,
learning rate and truncation, adapters in all layers, and chooses its epoch on battles of other prompts, which ours does
not have; ``pairjudge-lr`` has our learning rate, ``pairjudge-layout`` our template. RewardTrainer scores one response
at a time and learns from decided battles alone, at our learning rate; a threshold, fitted on the out-of-fold rewards of
the other folds, makes ties of small differences.
Ours is the recipe for CPUs: adapters in the upper half of the layers, the hidden states below them computed once for
all folds and epochs. On a processor with bfloat16 units ours and RewardTrainer compute in bfloat16; pairjudge takes
float32 alone on a CPU.

``calibrated``: at the temperature (RewardTrainer: scale and threshold) of the other folds. Training is the time of the
training loop, for ours with reading the base and saving the adapter; scoring runs from texts to probabilities, of
battles that are new to the judge. ``steps`` and the CPU seconds, from the start of a process to its end, are those of
all folds together. The stack has the one member and the TF-IDF baseline. The student starts from the member, as is the
default where both have one base, and scores at its speed. Its training comes on top of the member's.

Every fold is kept in ``--out``, so a call can be stopped, and the next one goes on; a fold that was interrupted begins
again. ``--minutes`` begins no fold after that time. The page has the folds that every contender has finished.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import argument_parser, paragraphs, require, run_script, write_page
from benchmarks.peer_environment import JUDGES, peer_python
from benchmarks.quality.peers_page import Scored, beside_rewards, class_shares, speed, table
from benchmarks.quality.peers_runs import MEMBER, OTHERS, OURS, Folds, finished, prepared, run_fold, scores
from benchmarks.quality.students_runs import measure, plan_of, student_probs, students_step
from benchmarks.quality.students_settings import FROM_MEMBER, HALVES, MEMBERS, REAL, real
from ensemble.stacking.stage import read_predictions
from oof.common import interrupts
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries

LATER = ("stack", "student")  # ours, after every fold of the member
CONTENDERS = (OURS, *LATER, *OTHERS)


def folds_of(name: str, arguments: argparse.Namespace) -> Folds:
    """Return the run of a set of real battles, with its files."""
    sizes = {key: getattr(arguments, key) for key in ("battles", "tokens", "epochs", "folds")}
    files = [arguments.data / file for file in (*REAL[name].files, *REAL[name].unlabelled)]
    base = MEMBERS[MEMBER]
    require([*files, arguments.models / base], "--data and --models")
    where = arguments.out, arguments.data, arguments.models
    part = real(name, arguments.half, *where, sizes, {MEMBER: base}, base)
    return prepared(part, name, arguments.half, arguments.data, arguments.validation)


def run(folds: Folds, arguments: argparse.Namespace, python: str, deadline: float) -> dict[str, str]:
    """Run the missing folds of the contenders, one fold of each in turn; return contender -> why it failed."""
    problems: dict[str, str] = {}
    for fold in range(folds.config.folds.k):
        for name in (name for name in arguments.contenders if name not in {*LATER, *problems}):
            if time.monotonic() > deadline:
                raise interrupts.Stopped("the time limit")
            print(f"{folds.part.section}: {name}, fold {fold} …", file=sys.stderr, flush=True)
            if problem := run_fold(folds, name, fold, python):
                problems[name] = problem
                print(f"{name}: {problem}", file=sys.stderr, flush=True)
    if later := [name for name in arguments.contenders if name in LATER]:
        measure(folds.part, [FROM_MEMBER] if "student" in later else [], deadline)
    return problems


def scored(folds: Folds, contenders: Sequence[str], problems: dict[str, str]) -> Scored | None:
    """Return the folds that all contenders with any have finished; None if these are fewer than two."""
    done = {name: facts for name in (OURS, *OTHERS) if name in contenders and (facts := finished(folds, name))}
    common = sorted(set.intersection(*(set(facts) for facts in done.values()))) if done else []
    if len(common) < 2:
        return None
    battles = pl.concat([folds.table.filter(pl.col("fold") == fold) for fold in common])
    columns = (battles[name].to_numpy().astype(np.int64) for name in ("label", "fold", "group"))
    result = Scored(*columns, problems=problems)
    result.add_calibrated("prior", class_shares(result.labels, result.folds))
    for name, facts in done.items():
        values = np.concatenate([scores(folds, name, fold) for fold in common])
        of_rewards = values.ndim == 2
        add = result.add_rewards if of_rewards else result.add_logits if name == OURS else result.add_probs
        add(name, values)
        result.costs[name] = [facts[fold] for fold in common]
    add_later(folds, contenders, battles["id"], result)
    return result


def add_later(folds: Folds, contenders: Sequence[str], ids: pl.Series, result: Scored) -> None:
    """Add the stack and the student, where the run has them."""
    predictions = Path(folds.config.run) / "stack" / "predictions.parquet"
    if "stack" in contenders and predictions.is_file():
        result.add_calibrated("stack", read_predictions(predictions, ids)["calibrated"])
    if "student" not in contenders:
        return
    try:
        plan = plan_of([str(folds.part.path), *folds.part.overrides, *folds.part.settings[FROM_MEMBER]])
    except UserError:  # stage two is not finished
        return
    step = students_step(plan)
    if step.done:
        where = {each: row for row, each in enumerate(plan.inputs.table["id"])}
        result.add_calibrated("student", student_probs(plan)[[where[each] for each in ids]])
        jobs = [read_json(path) for path in sorted(step.folder.glob("fold-*/job.json"))]
        result.costs["student"] = [{"train_seconds": job["seconds"], "trained": job["n_trained"]} for job in jobs]


def section(folds: Folds, arguments: argparse.Namespace, problems: dict[str, str]) -> list[str]:
    """Return a section of the page."""
    config, contenders = folds.config, arguments.contenders
    result = scored(folds, contenders, problems)
    lines = [f"## {folds.part.section[0].upper()}{folds.part.section[1:]}", ""]
    if result is None:
        return [*lines, "Fewer than two folds are finished.", ""]
    epochs, k = config.members[MEMBER].train.epochs, config.folds.k
    used = len(np.unique(result.folds))
    lines.append(
        f"{len(result.labels):,} battles in {len(np.unique(result.groups)):,} groups, {used} of {k} folds; epochs: "
        f"{epochs:g}; at most {config.prompts.max_tokens} tokens. {folds.validation.height} validation battles."
    )
    lines += ["", *table(result, epochs), "", *beside_rewards(result), *speed(result, epochs)]
    missing = [name for name in contenders if name not in result.plain and name not in problems]
    lines += [f"Not measured yet: {', '.join(missing)}.", ""] if missing else []
    return lines + [line for name, problem in problems.items() for line in (f"{name}: {problem}.", "")]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=REAL, default=["arguments"])
    parser.add_argument("--half", choices=HALVES, default=HALVES[0], help="of the prompts")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[OURS, "pairjudge", "reward-trainer"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the real battles")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of smollm2-135m")
    parser.add_argument("--battles", type=int, default=0, help="scored ones; 0: 1,200 or 1,500")
    parser.add_argument("--validation", type=int, default=60, help="battles on which pairjudge chooses its epoch")
    parser.add_argument("--tokens", type=int, default=0, help="of a battle; 0: 256 or 384")
    parser.add_argument("--epochs", type=float, default=0.0, help="0: 2 or 1")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no fold after this time; 0: no limit")
    parser.add_argument("--peer-python", default="", help="of an environment that has pairjudge and TRL already")
    parser.add_argument("--table", action="store_true", help="run nothing, write the page of what is finished")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--write", type=Path, help="the page, e.g. docs/evidence/peers.md; default: in --out")
    arguments = parser.parse_args()
    quiet_libraries()
    interrupts.install()
    deadline = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    python, reason = "", ""
    if not arguments.table and set(arguments.contenders) & set(OTHERS):
        python, reason = peer_python(arguments.peer_python, JUDGES)
    if reason:
        raise UserError(f"{reason}; install them yourself and give --peer-python")
    lines = [paragraphs(__doc__, 2, 4), ""]
    for name in arguments.sets:
        folds, problems = folds_of(name, arguments), {}
        try:
            problems = {} if arguments.table else run(folds, arguments, python, deadline)
        except interrupts.Stopped as stop:
            print(f"stopped by {stop}; run the same command again to go on", file=sys.stderr)
        lines += section(folds, arguments, problems)
    print(write_page(arguments.write or arguments.out / "peers.md", "Judges of other libraries", lines[:-1]))


if __name__ == "__main__":
    run_script(main)
