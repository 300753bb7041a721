"""First weights of the score head, random or zero: what members of few steps learn from each.

    python -m benchmarks.quality.head_init                        # synthetic arenas; rerun to go on
    python -m benchmarks.quality.head_init --sets arena chats --data DIR --models DIR --battles 400 --tokens 256

Each member's fold jobs are trained twice, with ``train.head_init`` *random* and *zero*, and all else equal. Every loss
is out of fold, of the mean of both orders' logits: as they are, and at the temperature of the other folds. Differences
are zero minus random, paired, with 95 % intervals over groups of near-duplicate prompts, of all arenas together. Steps
are those of a fold job.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import argument_parser, cell, paragraphs, run_script, write_page
from benchmarks.quality.students import parts
from benchmarks.quality.students_page import GROUPS_OF_A_PART
from benchmarks.quality.students_settings import ARENA, HALVES, REAL, Part
from ensemble.distillation.plan import cross_fitted_temperature
from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.common.atomic_files import read_parquet
from oof.common.errors import UserError
from oof.common.logging_setup import quiet_libraries
from oof.common.logits_format import logits_of
from oof.config import Config
from oof.jobs.dataset import load_battles
from oof.metrics import row_log_loss, softmax

INITS = ("random", "zero")


def trained(part: Part, init: str) -> Config:
    """Train the missing fold jobs of a part's members with one kind of head; return the run's configuration."""
    overrides = [*part.overrides, f"run={Path(part.config.run).with_name(init)}"]
    overrides += [f"members.{name}.train.head_init={init}" for name in part.config.members]
    if oof_main(["oof", str(part.path), *overrides]):
        raise UserError("oof failed; see above")
    return configuration.load(str(part.path), overrides)


def member_losses(config: Config, table: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Return member -> (n, 2) out-of-fold losses of the battles, as they are and calibrated."""
    labels, folds, groups = (table[name].to_numpy().astype(np.int64) for name in ("label", "fold", "group"))
    found = {}
    for name in config.members:
        frame = read_parquet(Path(config.run) / "oof" / name / "logits.parquet")
        rows = table.select("id").join(frame, on="id", how="left", validate="1:1", maintain_order="left")
        logits = logits_of(rows).astype(np.float64).mean(axis=1)
        calibrated = cross_fitted_temperature(logits, labels, folds, groups)[0]
        found[name] = np.column_stack([row_log_loss(probs, labels) for probs in (softmax(logits), calibrated)])
    return found


def section(name: str, of_section: Sequence[Part]) -> Iterator[str]:
    """Train what is missing; yield the lines of a section of the page."""
    losses: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    groups: list[NDArray[np.int64]] = []
    for part in of_section:
        configs = {init: trained(part, init) for init in INITS}
        table = load_battles(Path(configs[INITS[0]].run)).filter(pl.col("role") == "train")
        groups.append(table["group"].to_numpy() + part.seed * GROUPS_OF_A_PART)
        for init, config in configs.items():
            for member, of_member in member_losses(config, table).items():
                losses.setdefault(member, {}).setdefault(init, []).append(of_member)
    unit, config = np.concatenate(groups), configs[INITS[0]]
    yield f"## {name[0].upper()}{name[1:]}"
    yield ""
    runs = f" of {len(of_section)} seeds" if len(of_section) > 1 else ""
    yield f"{len(unit):,} battles in {len(np.unique(unit)):,} groups{runs}, {config.folds.k} folds."
    yield ""
    yield "| member | steps | random | zero | zero minus random | calibrated: random | zero | zero minus random |"
    yield "|---|---|---|---|---|---|---|---|"
    for member, by_init in losses.items():
        random, zero = (np.concatenate(by_init[init]) for init in INITS)
        train = config.members[member].train
        battles = len(unit) / len(of_section) * (1 - 1 / config.folds.k)
        cells = [member, f"{math.ceil(battles * train.epochs / train.batch_battles)}"]
        for column in range(2):
            cells += [f"{values[:, column].mean():.4f}" for values in (random, zero)]
            cells.append(cell(zero[:, column] - random[:, column], unit, "+"))
        yield f"| {' | '.join(cells)} |"
    yield ""


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=[ARENA, *REAL], default=[ARENA])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the arenas")
    parser.add_argument("--half", nargs="+", choices=HALVES, default=HALVES[:1], help="of the real prompts")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the real battles")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of smollm2-135m and gemma3-270m")
    parser.add_argument("--battles", type=int, default=0, help="of each part; 0: 2,000, 1,200 or 1,500")
    parser.add_argument("--tokens", type=int, default=0, help="of a real battle; 0: 256 or 384")
    parser.add_argument("--epochs", type=float, default=0.0, help="on real battles; 0: 2 or 1")
    parser.add_argument("--out", type=Path, default=Path("runs/head-init"))
    parser.add_argument("--write", type=Path, help="the page, e.g. docs/evidence/head-init.md; default: in --out")
    arguments = parser.parse_args()
    quiet_libraries()
    sections: dict[str, list[Part]] = {}
    for part in parts(arguments):
        sections.setdefault(part.section, []).append(part)
    lines = [paragraphs(__doc__, 2), ""]
    for name, of_section in sections.items():
        lines += section(name, of_section)
    path = arguments.write or arguments.out / "head-init.md"
    print(write_page(path, "First weights of the score head", lines[:-1]))


if __name__ == "__main__":
    run_script(main)
