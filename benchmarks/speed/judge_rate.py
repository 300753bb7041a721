"""Latency and throughput of a student, alone and beside the ensemble.

    python -m benchmarks.speed.judge_rate runs/demo/distill/student                       # latency and throughput
    python -m benchmarks.speed.judge_rate runs/demo/distill/student --config configs/demo.yaml --run runs/demo
    python -m benchmarks.speed.judge_rate --base models/smollm2-135m                      # any base, with a fresh head

``--base`` measures a checkpoint without training: the time of a comparison does not depend on the weights' values.
With ``--run`` the ensemble is timed on the same battles in the same process: members x folds models read every battle,
then features and stack are computed. Each model takes turns with the student, so that a machine whose speed drifts
slows both. Medians after a warm-up, both orders averaged; set threads with OMP_NUM_THREADS.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.common import argument_parser, median_seconds, paragraphs, run_script, write_page
from ensemble import Judge
from ensemble.stacking.stage import load_inputs, load_stack
from oof import config as configuration
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.config import Config, Member, Prompts
from oof.data.battles import read_file
from oof.data.synth import write_arena
from oof.jobs.dataset import load_battles
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import fold_jobs
from oof.model.classifier import load_base, load_classifier, load_tokenizer
from oof.model.precision import device
from oof.training.inference import predict_logits

SHORT = (
    "What is the capital of France, and why is it famous?",
    "The capital of France is Paris. It is famous for its museums, its food and the Eiffel Tower.",
    "Paris.",
)


def untrained(base: str, dtype: str) -> Judge:
    """Return a judge with a fresh head on any base checkpoint."""
    member, prompts = Member(checkpoint=base, dtype=dtype), Prompts()
    tokenizer = load_tokenizer(base)
    return Judge(load_base(member, tokenizer, 0).to(device()).eval(), tokenizer, member, prompts)


def battles(config: Config | None, n: int) -> pl.DataFrame:
    """Return ``n`` battles of the run, or synthetic ones."""
    if config is not None:
        return load_inputs(config).table.head(n)  # with the token counts that features read
    with tempfile.TemporaryDirectory() as folder:
        return read_file(write_arena(Path(folder), n, 0, 1)["train"], "train").table


def beside_ensemble(judge: Judge, config: Config, table: pl.DataFrame, rounds: int) -> tuple[float, dict[str, float]]:
    """Return the student's seconds over the battles and, for each part of the ensemble, its multiple of them."""
    texts = EncodedBattles(judge.member, table, config)
    student = partial(predict_logits, judge.model, judge.member, texts.scoring, judge.tokenizer.pad_token_id, "student")
    student_seconds, multiples, logits = [], {}, {}
    for job in fold_jobs(config, load_battles(Path(config.run))):
        texts = EncodedBattles(job.member, table, config)
        model = load_classifier(job.member, job.folder / "adapter", texts.tokenizer, seed=0)
        call = partial(predict_logits, model, job.member, texts.scoring, texts.tokenizer.pad_token_id, job.label)
        ours, theirs = median_seconds([student, call], rounds)
        student_seconds.append(ours)
        multiples[job.label] = theirs / ours
        logits[job.name] = call()
    result = load_stack(config, load_inputs(config))
    ours, theirs = median_seconds([student, lambda: result.predict(result.design(table, logits))], rounds)
    multiples["features and stack"] = theirs / ours
    return float(np.median(student_seconds)), multiples


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", nargs="?", help="an exported student")
    parser.add_argument("--base", help="instead of a student: a base checkpoint")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--config", help="with --run: the run's configuration")
    parser.add_argument("--run", help="compare with this run's ensemble")
    parser.add_argument("--battles", type=int, default=300)
    parser.add_argument("--write", type=Path, help="the page; default: runs/judge-rate.md")
    arguments = parser.parse_args()
    quiet_libraries()
    if bool(arguments.folder) == bool(arguments.base) or bool(arguments.run) != bool(arguments.config):
        raise UserError("give either a student's folder or --base, and --run together with --config")
    config = configuration.load(arguments.config, [f"run={arguments.run}"]) if arguments.run else None
    if arguments.base:
        judge = untrained(arguments.base, "float32" if arguments.dtype == "auto" else arguments.dtype)
    else:
        judge = Judge.from_pretrained(arguments.folder, arguments.dtype)
    lines = [paragraphs(__doc__, 2), "", *figures(judge, config, battles(config, arguments.battles))]
    print(write_page(arguments.write or Path("runs/judge-rate.md"), "Speed of a student", lines))


def figures(judge: Judge, config: Config | None, table: pl.DataFrame) -> list[str]:
    """Return the lines of the page: the student alone, then beside the ensemble."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"{Path(judge.member.checkpoint).name} ({judge.member.dtype}) on {where}:", ""]
    latency = median_seconds([lambda: judge.compare(*SHORT)], 15)[0]
    lines.append(f"- one short comparison: {1000 * latency:.1f} ms")
    all_battles = median_seconds([lambda: judge.logits(table)], 3)[0]
    lines.append(f"- {table.height} battles: {table.height / all_battles:.1f} a second")
    if config is not None:
        assert judge.prompts.max_tokens == (config.prompts.score_max_tokens or config.prompts.max_tokens)
        student, multiples = beside_ensemble(judge, config, table, rounds=5)
        whole, models = sum(multiples.values()), len(config.members) * config.folds.k
        lines.append(f"- ensemble of {models} models: {table.height / (student * whole):.1f} battles a second")
        lines.append(f"- so the student is {whole:.2f} times as fast (members x folds x 0.8 = {0.8 * models:.1f})")
        lines += ["", "| part of the ensemble | times the student's time |", "|---|---|"]
        lines += [f"| {name} | {ratio:.2f} |" for name, ratio in multiples.items()]
    return lines


if __name__ == "__main__":
    run_script(main)
