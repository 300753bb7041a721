"""The plan as text to print."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from oof.model.cards import BANDWIDTH_EFFICIENCY, MATRIX_EFFICIENCY
from oof.model.cost_model import USABLE_MEMORY
from oof.model.operations import CLASSES_OF_OPERATIONS
from oof.plan.card_settings import CardSetting
from oof.plan.members import MemberPlan, Plan
from oof.plan.totals import STAGE_ONE, Totals, plan_totals

SHOWN_SHARE = 0.001  # operations below it, in FLOPs, bytes and time, are added up in one line


def format_plan(plan: Plan, n_cards: int | None = None, price: float | None = None) -> str:
    """Return the plan of every member and the totals of every card as text.

    Args:
        plan: of :func:`oof.plan.members.make_plan`.
        n_cards: cards; None = ``jobs.workers`` x ``jobs.nproc``.
        price: of one card for an hour.
    """
    lines = [line for member in plan.members for line in _member(member)]
    lines.append(
        f"Hours: each operation at {MATRIX_EFFICIENCY:.0%} of the card's rate for its precision, or "
        f"{BANDWIDTH_EFFICIENCY:.0%} of its bandwidth where that takes longer. Memory: at most {USABLE_MEMORY:.0%} is "
        "planned. FlashAttention 4 and fused layers are those of the gpu extra."
    )
    return "\n".join([*lines, "", *_totals(plan, n_cards, price)])


def _member(plan: MemberPlan) -> Iterator[str]:
    cost = plan.cost
    yield f"{plan.name} ({plan.checkpoint})"
    yield f"  parameters {cost.parameters / 1e9:.3f} G, trainable {cost.trainable / 1e6:.2f} M"
    yield (
        f"  one training pass of {plan.batch} x {plan.tokens} tokens: {cost.flops / 1e12:.2f} TFLOP, "
        f"{cost.peak_bytes / 1e9:.2f} GB (weights {cost.weight_bytes / 1e9:.2f} GB)"
    )
    yield (
        f"  one fold job: {plan.epoch_tokens / 1e6:.2f} M tokens per epoch, training "
        f"{plan.train_flops / 1e15:.2f} PFLOP, scoring {plan.score_flops / 1e15:.2f} PFLOP; "
        f"disk {plan.disk_bytes / 1e9:.2f} GB"
    )
    if plan.pretrain_tokens:
        yield (
            f"  pretraining, once before the folds: {plan.pretrain_tokens / 1e6:.2f} M tokens, "
            f"{plan.pretrain_flops / 1e15:.2f} PFLOP (all of pretrain.data, before decontamination)"
        )
    yield from _operations(plan)
    yield "  one fold job, with the fastest setting that fits:"
    for card, setting in plan.fastest.items():
        yield f"    {card:8} {_describe(setting)}"
        if setting is not None and setting.others:
            listed = ", ".join(f"{name} {hours:.2f} h" for name, hours in setting.others.items())
            yield f"    {'':8} {'':10} other attention, where its memory suffices: {listed}"


def _describe(setting: CardSetting | None) -> str:
    if setting is None:
        return "does not fit, even in 4 bits and with activation checkpointing"
    settings = [setting.attention, setting.dtype, f"{setting.tokens_per_batch} tokens per batch"]
    settings += [f"quantise={setting.quantise}"] if setting.quantise != "none" else []
    settings += ["activation checkpointing"] if setting.checkpointing else []
    settings += [f"{setting.pretrain_hours:.2f} h of pretraining, once"] if setting.pretrain_hours else []
    return f"{setting.hours:8.2f} h {setting.gigabytes:7.1f} GB  {', '.join(settings)}"


def _operations(plan: MemberPlan) -> Iterator[str]:
    """Yield the table of operations: shares of a fold job's FLOPs, bytes and time."""
    if not plan.operations:
        return
    rows = {row: np.concatenate(amounts) for row, amounts in plan.operations.items()}
    total = sum(rows.values())
    shares = {row: np.divide(amounts, total, where=total > 0, out=np.zeros(6)) for row, amounts in rows.items()}
    order = sorted(shares, key=lambda row: (CLASSES_OF_OPERATIONS.index(row[0]), row[1]))
    yield f"  operations on {plan.operations_card}, as configured: shares of FLOPs, bytes, time: training, scoring"
    small = np.zeros(6)
    for row in order:
        if shares[row].max() < SHOWN_SHARE:
            small += shares[row]
        else:
            yield f"    {row[0]:17} {row[1]:9}{_percent(shares[row])}"
    yield f"    {'all others':27}{_percent(small)}"


def _percent(shares: np.ndarray) -> str:
    return "".join(f"{'  ' if i == 3 else ''}{share:8.1%}" for i, share in enumerate(shares))


def _totals(plan: Plan, n_cards: int | None, price: float | None) -> Iterator[str]:
    for as_configured in (True, False):
        each = {card: plan_totals(plan, card, n_cards, price, as_configured) for card in plan.cards}
        counted = next((totals for totals in each.values() if totals), None)
        settings = "the configuration's settings" if as_configured else "the fastest settings that fit"
        yield f"Totals in hours with {settings}" + (f" ({_counts(counted)})" if counted else "")
        yield (
            f"  {'card':8} {'stage one':>10} {'fold students':>14} {'final student':>14} {'test':>9} "
            f"{'card hours':>11} {'cards':>6} {'wall hours':>11}" + (f" {'price':>10}" if price is not None else "")
        )
        for card, totals in each.items():
            yield f"  {card:8} {_row(totals) if totals else 'does not fit'}"
    if plan.lengths.test is None:
        yield "Scoring of test battles is not included: data.test is not set (make plan TEST=test.csv)."


def _counts(totals: Totals) -> str:
    return ", ".join(
        f"{count} jobs in {part}" if part == STAGE_ONE else f"{count} in {part}"
        for part, count in totals.n_jobs.items()
    )


def _row(totals: Totals) -> str:
    test = "-" if totals.test_hours is None else f"{totals.test_hours:.1f}"
    money = "" if totals.money is None else f" {totals.money:10,.0f}"
    return (
        f"{totals.stage_one_hours:10.1f} {totals.fold_student_hours:14.1f} {totals.final_student_hours:14.1f} "
        f"{test:>9} {totals.card_hours:11.1f} {totals.n_cards:6} {totals.wall_hours:11.1f}{money}"
    )
