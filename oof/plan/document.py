"""The plan as one JSON document, for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from oof.plan.members import MemberPlan, Plan
from oof.plan.totals import plan_totals

AMOUNTS = ("flops", "bytes", "seconds")
OF_A_MEMBER = (
    "name", "checkpoint", "batch", "tokens", "epoch_tokens", "train_flops", "score_flops", "pretrain_tokens",
    "pretrain_flops", "disk_bytes", "operations_card",
)  # fmt: skip
OF_TOTALS = (
    "n_cards", "n_jobs", "stage_one_hours", "fold_student_hours", "final_student_hours", "test_hours", "card_hours",
    "wall_hours", "money",
)  # fmt: skip


def plan_document(plan: Plan, n_cards: int | None = None, price: float | None = None) -> dict[str, Any]:
    """Return the plan of every member and the totals of every card.

    Args:
        plan: of :func:`oof.plan.members.make_plan`.
        n_cards: cards; None = ``jobs.workers`` x ``jobs.nproc``.
        price: of one card for an hour.
    """
    return {"members": [_member(member) for member in plan.members], "totals": list(_totals(plan, n_cards, price))}


def _member(plan: MemberPlan) -> dict[str, Any]:
    return {
        **{name: getattr(plan, name) for name in OF_A_MEMBER},
        **asdict(plan.cost),
        "operations": [
            {
                "class": kind,
                "dtype": dtype,
                "training": dict(zip(AMOUNTS, training.tolist(), strict=True)),
                "scoring": dict(zip(AMOUNTS, scoring.tolist(), strict=True)),
            }
            for (kind, dtype), (training, scoring) in plan.operations.items()
        ],
        "cards": {
            card: {"configured": setting and asdict(setting), "fastest": fastest and asdict(fastest)}
            for (card, setting), fastest in zip(plan.configured.items(), plan.fastest.values(), strict=True)
        },
    }


def _totals(plan: Plan, n_cards: int | None, price: float | None) -> Iterator[dict[str, Any]]:
    for settings in ("configured", "fastest"):
        for card in plan.cards:
            totals = plan_totals(plan, card, n_cards, price, settings == "configured")
            values = {name: getattr(totals, name, None) for name in OF_TOTALS}
            yield {"card": card, "settings": settings, "fits": totals is not None, **values}
