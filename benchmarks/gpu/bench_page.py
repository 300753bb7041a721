"""Markdown page of the GPU benchmark: goals, and one table per part, from the parts' rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.gpu.parts import ARENA, EAGER_LAYERS, PARTS, PROBLEM, Case, Context, Row
from ensemble.statistics.bootstrap import Interval
from ensemble.statistics.interval_words import in_words

TITLE = "GPU benchmark"
TRAINING_GOAL, SCORING_GOAL, TRAINER_GOAL = 0.45, 0.55, 1.5
NO_ROWS, NO_CASES = "Not measured yet.", 'Not run: give `ARGS="--models DIR --data DIR"`.'
Rows = Mapping[Case, Row]


def body(card: Mapping[str, Any], rows: Mapping[str, Rows], context: Context) -> list[str]:
    """Return the page's lines below its title.

    Args:
        card: of :func:`benchmarks.gpu.card.describe`.
        rows: part -> case -> row; parts that have not run are empty.
        context: options of the call.
    """
    rate = matrix_rate(rows["rates"])
    lines = [*machine_lines(card), ""]
    if context.quick:
        lines += [
            "**Tiny shapes and a step or two**: this page shows that the command runs; its figures mean nothing.",
            "",
        ]
    lines += ["## Goals", "", *goal_lines(rows, rate, context), ""]
    sections = {
        "Rates of the card": ("rates", rate_lines(rows["rates"])),
        "LoRA training": ("training", training_lines(rows["training"], rate, context)),
        "Plain Trainer with peft": ("trainer", trainer_lines(rows, rate)),
        "Scoring in both orders": ("scoring", scoring_lines(rows["scoring"], rate)),
        "QLoRA": ("qlora", training_table(rows["qlora"], rate)),
        "Operations": ("operations", operation_lines(rows["operations"])),
        "The demo": ("demo", stage_lines(rows["demo"])),
        "Real judgements": ("real", [*real_introduction(context), "", *stage_lines(rows["real"])]),
    }
    for title, (part, section) in sections.items():
        without = NO_ROWS if PARTS[part].cases(context) else NO_CASES
        lines += [f"## {title}", "", *(section if rows[part] else [without]), ""]
    unfinished = [f"{part} ({n} rows)" for part in PARTS if (n := unmeasured(part, rows[part], context))]
    if unfinished:
        lines += [f"Not measured yet: {', '.join(unfinished)}. The same command goes on."]
    commits = sorted({str(row["commit"]) for part in rows.values() for row in part.values() if "commit" in row})
    if len(commits) > 1:
        lines += ["", f"Rows were measured at the commits {', '.join(commits)}."]
    return lines


def unmeasured(part: str, rows: Rows, context: Context) -> int:
    return sum(case not in rows for case in PARTS[part].cases(context))


def machine_lines(card: Mapping[str, Any]) -> list[str]:
    if not card.get("gpu"):
        return [f"No GPU. {named(card['versions'])}."]
    words = f"{card['gpu']}, {card['memory_gb']:.0f} GB, compute capability {card['capability']}"
    return [f"{words}, driver {card['driver'] or 'unknown'}, CUDA {card['cuda']}. {named(card['versions'])}."]


def named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def matrix_rate(rows: Rows) -> float | None:
    """Return the best measured rate of bfloat16 matrix products in FLOP/s, or None."""
    found = [row.get("flops_per_second") for case, row in rows.items() if case[:2] == ("matrix product", "bfloat16")]
    return max((value for value in found if value), default=None)


def table(header: str, rows: Iterable[Iterable[str]]) -> list[str]:
    cells = [name.strip() for name in header.split("|")]
    return [
        f"| {' | '.join(cells)} |",
        f"|{'---|' * len(cells)}",
        *(f"| {' | '.join(values)} |" for values in rows),
    ]


def figure(row: Row, name: str, form: str = ",.0f") -> str:
    """Return a figure of a row as text, or "" without it."""
    return "" if row.get(name) is None else format(row[name], form)


def share(row: Row, rate: float | None) -> float | None:
    """Return a row's share of the card's own matrix-product rate; None where either is not measured."""
    return row["flops_per_second"] / rate if rate and row.get("flops_per_second") else None


def share_cell(row: Row, rate: float | None) -> str:
    value = share(row, rate)
    return "" if value is None else f"{value:.0%}"


def speed_cells(row: Row, rate: float | None) -> list[str]:
    """Return the cells from "fused layers" to "planned GB" of a row of training or scoring."""
    return [
        ", ".join(row["fused_layers"]) or "no",
        figure(row, "tokens_per_second"),
        share_cell(row, rate),
        figure(row, "peak_gb", ".1f"),
        figure(row, "planned_gb", ".1f"),
    ]


def problem_lines(rows: Rows) -> list[str]:
    """Return one line per reason why cases could not be measured."""
    reasons: dict[str, list[str]] = {}
    for case, row in rows.items():
        if PROBLEM in row:
            reasons.setdefault(str(row[PROBLEM]), []).append(" ".join(case))
    lines = [f"- {'; '.join(cases)}: {reason}" for reason, cases in reasons.items()]
    return ["", "Not measured:", "", *lines] if lines else []


def measured(rows: Rows) -> list[tuple[Case, Row]]:
    return [(case, row) for case, row in rows.items() if PROBLEM not in row]


# Goals


def goal_lines(rows: Mapping[str, Rows], rate: float | None, context: Context) -> list[str]:
    """Return the goals for the first shape at the arena's lengths, each met, not met or not measured."""
    shape = next(iter(context.size.shapes))
    ours = automatic(rows["training"], shape, ARENA)
    scoring, peer = rows["scoring"].get((shape, "bfloat16"), {}), rows["trainer"].get((shape, ARENA), {})
    trained, scored = (share(row, rate) for row in (ours, scoring))
    faster = None
    if ours.get("tokens_per_second") and peer.get("tokens_per_second"):
        faster = ours["tokens_per_second"] / peer["tokens_per_second"]
    goals = [
        (f"LoRA training of {shape}: share of the card's bfloat16 rate", TRAINING_GOAL, trained, ".0%"),
        (f"scoring of {shape}: share of that rate", SCORING_GOAL, scored, ".0%"),
        ("tokens/s of the plain Trainer, times", TRAINER_GOAL, faster, ".2f"),
    ]
    lines = table(
        "goal | at least | measured | ",
        [[name, format(goal, form), *verdict(value, goal, form)] for name, goal, value, form in goals],
    )
    if any(value is not None and value < goal for _, goal, value, _ in goals):
        lines += ["", "Below a goal, the section [Operations](#operations) has the time of each kind of operation."]
    return lines


def verdict(value: float | None, goal: float, form: str) -> list[str]:
    if value is None:
        return ["", "not measured"]
    return [format(value, form), "met" if value >= goal else "**not met**"]


def automatic(rows: Rows, shape: str, lengths: str) -> Row:
    """Return the row of the attention that ``attn: auto`` takes; {} where it is not measured."""
    found = (row for case, row in rows.items() if case[:2] == (shape, lengths) and row.get("auto"))
    return next(found, {})


# Tables


def rate_lines(rows: Rows) -> list[str]:
    cells = []
    for case, row in measured(rows):
        if case == ("copy",):
            cells.append(["copy, bytes read and written", f"{row['gb_per_second']:,.0f} GB/s"])
        elif row.get("flops_per_second"):
            cells.append([f"{case[1]}, {case[2]}", f"{row['flops_per_second'] / 1e12:,.1f} TFLOP/s"])
    return [*table("operation | rate", cells), *problem_lines(rows)]


def training_lines(rows: Rows, rate: float | None, context: Context) -> list[str]:
    size = context.size
    return [
        f"Random weights, LoRA of rank {size.rank} on all linear layers, {size.step_sequences} sequences an optimizer "
        "step, in the trainer of fold jobs. The share is that of the arithmetic of the real tokens, without padding "
        "and recomputation, in the card's own bfloat16 rate. The row in bold is what `attn: auto` takes. Predicted "
        "seconds are those of `make plan` for this card; empty where it does not list the card.",
        "",
        *training_table(rows, rate),
    ]


def training_table(rows: Rows, rate: float | None) -> list[str]:
    header = (
        "shape | lengths | attention | fused layers | tokens/s | share of rate | peak GB | planned GB | seconds | "
        "predicted | batch, tokens | recomputes"
    )
    cells = []
    for case, row in measured(rows):
        halved = f" (halved {row['halvings']} times)" if row["halvings"] else ""
        name = row["attention"] if case[2] in (row["attention"], "auto") else f"{case[2]}: {row['attention']}"
        cells.append(
            [
                *case[:2],
                f"**{name}**" if row["auto"] else name,
                *speed_cells(row, rate),
                figure(row, "seconds", ".1f"),
                figure(row, "predicted_seconds", ".1f"),
                figure(row, "tokens_per_batch") + halved,
                "yes" if row["checkpointing"] else "no",
            ]
        )
    return [*table(header, cells), *problem_lines(rows)]


def trainer_lines(rows: Mapping[str, Rows], rate: float | None) -> list[str]:
    cells = []
    for case, row in measured(rows["trainer"]):
        ours = automatic(rows["training"], *case).get("tokens_per_second")
        cells.append(
            [
                *case,
                "; ".join([row["attention"], *row.get("failures", [])]),
                figure(row, "tokens_per_second"),
                f"{ours / row['tokens_per_second']:.2f}" if ours else "",
                share_cell(row, rate),
                figure(row, "peak_gb", ".1f"),
                f"{row['batch']}{', recomputes' if row['checkpointing'] else ''}",
            ]
        )
    header = "shape | lengths | attention | tokens/s | ours, times | share of rate | peak GB | sequences at a time"
    text = (
        "The same shapes, texts and sequences per optimizer step in transformers' `Trainer` with peft: bfloat16, "
        '`train_sampling_strategy="group_by_length"`, the best attention that transformers has here, and the largest '
        "batch that fits."
    )
    return [text, "", *table(header, cells), *problem_lines(rows["trainer"])]


def scoring_lines(rows: Rows, rate: float | None) -> list[str]:
    cells = []
    for (shape, kind), row in measured(rows):
        cells.append(
            [
                shape,
                "bfloat16" if kind == EAGER_LAYERS else kind,
                row["attention"],
                *speed_cells(row, rate),
                figure(row, "kl", ".1e"),
                figure(row, "largest_difference", ".2g"),
                figure(row, "largest_logit", ".2g"),
            ]
        )
    header = (
        "shape | base in | attention | fused layers | tokens/s | share of rate | peak GB | planned GB | KL from the "
        "first row | largest difference of a logit | largest logit"
    )
    text = (
        "KL and difference of logits are those from the shape's first row, for the same random weights, rounded or "
        "quantised; a trained model's are others."
    )
    return [text, "", *table(header, cells), *problem_lines(rows)]


def operation_lines(rows: Rows) -> list[str]:
    lines = [
        "Shares of the time of the kernels (on a CPU: of PyTorch's operations) at the arena's lengths, in two "
        "optimizer steps and in the scoring of both orders."
    ]
    kinds = list(dict.fromkeys(kind for _, row in measured(rows) for kind in by_share(row["shares"])))
    cells = []
    for case, row in measured(rows):
        values = [f"{row['shares'][kind]:.0%}" if kind in row["shares"] else "" for kind in kinds]
        cells.append([*case, row["attention"], *values])
    lines += ["", *table(" | ".join(["shape", "pass", "attention", *kinds]), cells), *problem_lines(rows)]
    for (shape, what), row in measured(rows):
        names = [
            [f"`{name.replace('|', '/')}`", f"{part:.1%}", f"{part * row['kernel_seconds'] * 1000:,.0f}"]
            for name, part in by_share(row["longest"]).items()
        ]
        lines += ["", f"Longest in {what} of {shape}:", "", *table("operation | share | ms", names)]
    return lines


def by_share(shares: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def real_introduction(context: Context) -> list[str]:
    size = context.size
    return [
        f"Arguments (UKPConvArg1) and chats (PandaLM, Tulu), up to {size.battles:,} battles, {size.folds} folds, texts "
        f"of at most {size.tokens} tokens, members SmolLM2-135M and Gemma3-270M, a Gemma3-270M student."
    ]


def stage_lines(rows: Rows) -> list[str]:
    names = list(dict.fromkeys(name for row in rows.values() for name in row.get("log_loss", {})))
    cells = [
        [
            ", ".join(case),
            f"{'over ' if row['continued'] else ''}{sum(row['seconds'].values()):,.0f}",
            *(loss_cell(row["log_loss"].get(name)) for name in names),
        ]
        for case, row in measured(rows)
    ]
    text = (
        "Log loss out of fold, with 95 % intervals. The seconds of a run that took several calls lack those of stages "
        "that were stopped: it took over the seconds that are given."
    )
    return [text, "", *table(" | ".join(["run", "seconds", *names]), cells), *problem_lines(rows)]


def loss_cell(value: Interval | None) -> str:
    return in_words(value, ".4f") if value else ""
