"""Page section with battles to read: both responses side by side, and what of them is not shown."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from ensemble.report.conclusion import say
from ensemble.report.names import predictor_name
from ensemble.report.page_elements import Battle, Block, Section, count, number, text
from ensemble.report.run_data import OUTCOMES
from oof.classes import CLASSES

Report = dict[str, Any]
HEADINGS = {"prompt": "Prompt", "response_a": "Response A", "response_b": "Response B"}


def battles(report: Report) -> Section:
    """Return the section with the most wrong and the most disagreed battles; absent where battles have no texts."""
    content, choice = report["battles"], report["summary"]["submit"]["choice"]
    if not content:
        return Section("battles", "Battles to read", [])
    blocks = [
        text("The battles on which the model in use is most wrong, and those on which two predictors differ most. "
             "Verdicts are people's, and some of these are mistakes or matters of taste.")
    ]  # fmt: skip
    titles = {
        "wrong": (f"Most wrong: largest loss of {predictor_name(choice)}", "loss {value} nats"),
        "disagreed": ("Most disagreed: largest distance between two predictors", "distance {value}"),
    }
    for kind, cases in content.items():
        caption, measure = titles[kind]
        blocks.append(Block("battles", caption=caption, battles=[_battle(case, measure) for case in cases]))
    return Section("battles", "Battles to read", blocks)


def _battle(case: Report, measure: str) -> Battle:
    outcome = OUTCOMES[CLASSES.index(case["verdict"])]
    probs = [[predictor_name(name), *(number(p, 2) for p in row)] for name, row in case["probs"].items()]
    title = say("Battle {id}: verdict {outcome}, ", id=case["id"], outcome=outcome)
    title += say(measure, value=number(case["value"], 2))
    texts = [(HEADINGS[name], shown, _cut(shown, case["characters"][name])) for name, shown in case["texts"].items()]
    return Battle(title, probs, texts)


def _cut(shown: str, n: int) -> Markup | None:
    """Say how much of a text is shown; None where all of it is."""
    return (
        say("{shown} of {all} characters are shown", shown=f"{len(shown):,}", all=count(n)) if n > len(shown) else None
    )


def strongest(cases: list[Report]) -> list[Battle]:
    """Return the battles on which one predictor has the largest advantage."""
    battles = []
    for case in cases:
        outcome = OUTCOMES[CLASSES.index(case["verdict"])]
        title = say("Battle {id}: verdict {outcome}, advantage {value} nats", id=case["id"], outcome=outcome,
                    value=number(case["value"], 2, signed=True))  # fmt: skip
        battles.append(Battle(title, [], [(heading, case[name], None) for name, heading in HEADINGS.items()]))
    return battles
