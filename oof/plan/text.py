"""The plan as text to print."""

from __future__ import annotations

from collections.abc import Iterator

from oof.model.cost_model import USABLE_MEMORY
from oof.plan.members import UTILISATION, CardSetting, MemberPlan, Plan
from oof.plan.totals import Totals, plan_totals


def format_plan(plan: Plan, n_cards: int | None = None, price: float | None = None) -> str:
    """Return the plan of every member and the totals of every card as text.

    Args:
        plan: of :func:`oof.plan.members.make_plan`.
        n_cards: cards; None = ``jobs.workers`` x ``jobs.nproc``.
        price: of one card for an hour.
    """
    lines = [line for member in plan.members for line in _member(member)]
    lines.append(
        f"Hours are per fold job, at {UTILISATION:.0%} of a card's peak rate; at most {USABLE_MEMORY:.0%} of its "
        "memory is planned."
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
    for card, setting in plan.fastest.items():
        yield f"    {_describe(card, setting)}"


def _describe(card: str, setting: CardSetting | None) -> str:
    if setting is None:
        return f"{card:8} does not fit, even in 4 bits and with activation checkpointing"
    settings = [f"{setting.tokens_per_batch} tokens per batch"]
    settings += [f"quantise={setting.quantise}"] if setting.quantise != "none" else []
    settings += ["activation checkpointing"] if setting.checkpointing else []
    settings += [f"{setting.pretrain_hours:.2f} h of pretraining, once"] if setting.pretrain_hours else []
    return f"{card:8} {setting.hours:8.2f} h {setting.gigabytes:7.1f} GB  {', '.join(settings)}"


def _totals(plan: Plan, n_cards: int | None, price: float | None) -> Iterator[str]:
    for as_configured in (True, False):
        each = {card: plan_totals(plan.config, card, n_cards, price, as_configured, plan) for card in plan.cards}
        yield "Totals with the configuration's settings" if as_configured else "Totals with the fastest settings"
        yield (
            f"  {'card':8} {'stage one':>10} {'fold students':>14} {'final student':>14} {'test':>9} "
            f"{'card hours':>11} {'cards':>6} {'wall hours':>11}" + (f" {'price':>10}" if price is not None else "")
        )
        for card, totals in each.items():
            yield f"  {card:8} {_row(totals) if totals else 'does not fit'}"


def _row(totals: Totals) -> str:
    test = "no file" if totals.test_hours is None else f"{totals.test_hours:.1f}"
    money = "" if totals.money is None else f" {totals.money:10,.0f}"
    return (
        f"{totals.stage_one_hours:10.1f} {totals.fold_student_hours:14.1f} {totals.final_student_hours:14.1f} "
        f"{test:>9} {totals.card_hours:11.1f} {totals.n_cards:6} {totals.wall_hours:11.1f}{money}"
    )
