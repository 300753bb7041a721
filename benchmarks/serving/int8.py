"""Student in int8 on CPUs: drift on battles that it never saw, and battles per second beside float32.

    python -m benchmarks.serving.int8 STUDENT --speed-of gemma3-270m --write docs/evidence/serving-int8.md
    python -m benchmarks.serving.int8 runs/demo/distill/student --battles 100 --rounds 1

Drift is measured on new battles of the demo's synthetic arena, both orders averaged, with a 95 % interval over groups
of near-duplicate prompts. A small student spends much of its time outside the matrix products that int8 makes faster.
So speed is also measured of pretrained checkpoints (--speed-of) and of Llamas of some widths (--widths, --layers) with
random heads: the values of the weights do not change the time. float32 and int8 take turns; the median of the rounds
counts. Asked for: a drift below 0.002, and 1.5 times the battles per second.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import rel_entr

from benchmarks.common import argument_parser, median_seconds, paragraphs, require, run_script, write_page
from benchmarks.serving.running_service import mixed_battles, student_of
from ensemble import Judge
from ensemble.distillation.int8_card import processor
from ensemble.distillation.student import write_prompts
from ensemble.serving.judge import battles_table
from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.interval_words import in_words
from oof.classes import CLASSES
from oof.config import Groups, Member, Prompts
from oof.data.battles import read_file
from oof.data.synth import write_arena
from oof.folds.groups import group_battles
from oof.metrics import row_log_loss, softmax
from oof.model.classifier import load_base, load_tokenizer

SEED = 9_000  # of the new battles: not one of the demo's
MOST_DRIFT, LEAST_SPEED = 0.002, 1.5


def judges_of(folder: Path) -> tuple[Judge, Judge]:
    """Return a student in float32 and in int8."""
    return Judge.from_pretrained(folder, "float32"), Judge.from_pretrained(folder, "int8")


def drift_lines(folder: Path, n: int) -> tuple[list[str], float]:
    """Return the lines on drift, and the drift of the log loss, on n new battles."""
    with tempfile.TemporaryDirectory() as temporary:
        table = read_file(write_arena(Path(temporary), n, SEED, 1)["train"], "train").table
    labels = table["label"].to_numpy().astype(np.int64)
    exact, quantised = (softmax(judge.logits(table).mean(axis=1)) for judge in judges_of(folder))
    difference = row_log_loss(quantised, labels) - row_log_loss(exact, labels)
    groups = group_battles(table, Groups())
    divergence = rel_entr(exact, quantised).sum(axis=1)
    drift = float(difference.mean())
    lines = [
        f"| drift on {n:,} new battles | |",
        "|---|---|",
        f"| log loss, int8 - float32 | {in_words(group_interval(difference, groups, SEED), '+.5f')} |",
        f"| log loss, float32 | {row_log_loss(exact, labels).mean():.4f} |",
        f"| mean KL(float32, int8) | {divergence.mean():.1e} |",
        f"| largest change of a probability | {np.abs(exact - quantised).max():.4f} |",
        f"| verdicts with another winner | {int((exact.argmax(1) != quantised.argmax(1)).sum())} |",
    ]
    return lines, drift


def speed_row(name: str, folder: Path, n: int, rounds: int) -> tuple[str, float]:
    """Return the row of a student's speed on n battles of mixed lengths, and how much faster int8 is."""
    pair = judges_of(folder)
    parameters = sum(p.numel() for p in pair[0].model.parameters()) / 1e6
    encoded = pair[0].encode(battles_table(mixed_battles(n, 3)))
    slow, fast = median_seconds([lambda judge=judge: judge.logits_of(encoded) for judge in pair], rounds)
    tokens = int(np.mean(encoded.lengths))
    return (
        f"| {name} | {parameters:.0f} M | {tokens} | {n / slow:.2f} | {n / fast:.2f} | {slow / fast:.2f} |",
        slow / fast,
    )


def with_random_head(checkpoint: Path, folder: Path) -> None:
    """Save a pretrained checkpoint as a student with a random head."""
    member = Member(checkpoint=str(checkpoint), dtype="float32")
    tokenizer = load_tokenizer(member.checkpoint)
    model: Any = load_base(member, tokenizer, 0, len(CLASSES))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_prompts(folder, Prompts(max_tokens=512))


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path, help="a trained student")
    parser.add_argument("--speed-of", type=Path, action="append", default=[], metavar="FOLDER", help="a checkpoint")
    parser.add_argument("--widths", type=int, nargs="*", default=[512, 1024, 2048], help="multiples of 64")
    parser.add_argument("--layers", type=int, default=4, help="of the Llamas")
    parser.add_argument("--battles", type=int, default=2000, help="for the drift")
    parser.add_argument("--speed-battles", type=int, default=8, help="for the speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", metavar="PAGE")
    arguments = parser.parse_args()
    require([arguments.folder, *arguments.speed_of], "a student's folder, and checkpoints after --speed-of")
    lines, drift = drift_lines(arguments.folder, arguments.battles)
    row, ratio = speed_row("the student", arguments.folder, 20 * arguments.speed_battles, arguments.rounds)
    rows, ratios = [row], [ratio]
    for checkpoint in arguments.speed_of:
        with tempfile.TemporaryDirectory() as temporary:
            with_random_head(checkpoint, Path(temporary))
            row, ratio = speed_row(checkpoint.name, Path(temporary), arguments.speed_battles, arguments.rounds)
        rows, ratios = [*rows, row], [*ratios, ratio]
    for width in arguments.widths:
        with student_of(None, width, arguments.layers) as folder:
            name = f"a Llama of width {width}, {arguments.layers} layers"
            row, ratio = speed_row(name, folder, arguments.speed_battles, arguments.rounds)
        rows, ratios = [*rows, row], [*ratios, ratio]
    result = f"drift {'below' if drift < MOST_DRIFT else '**not** below'} {MOST_DRIFT}; "
    result += f"{sum(r >= LEAST_SPEED for r in ratios)} of {len(ratios)} models at least {LEAST_SPEED} times as fast"
    page = [
        paragraphs(__doc__, 2),
        "",
        f"Processor: {processor()}; {torch.get_num_threads()} threads. Result: {result}.",
        "",
        *lines,
        "",
        "| speed of | parameters | tokens of a sequence | float32, battles/s | int8, battles/s | times float32 |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(page))
    if arguments.write:
        write_page(Path(arguments.write), "Serving: int8 on CPUs", page)
    return 0


if __name__ == "__main__":
    run_script(main)
