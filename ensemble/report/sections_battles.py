"""Page section with battles to read: both responses side by side, what of them is not shown, and what models cut."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

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
             "Verdicts are people's, and some of these are mistakes or matters of taste. The middle of a long text is "
             "left out here; what a model did not read of it stands below the text.")
    ]  # fmt: skip
    titles = {
        "wrong": (f"Most wrong: largest loss of {predictor_name(choice)}", "loss {value} nats"),
        "disagreed": ("Most disagreed: largest distance between two predictors", "distance {value}"),
    }
    anchors: set[str] = set()
    for kind, cases in content.items():
        caption, measure = titles[kind]
        shown = [_battle(case, measure, _anchor(case["id"], anchors)) for case in cases]
        blocks.append(Block("battles", caption=caption, battles=shown))
    return Section("battles", "Battles to read", blocks)


def _anchor(identifier: str, taken: set[str]) -> str:
    """Return the target of links to a battle, of letters that are safe in one; a second showing has a target, too."""
    anchor = f"battle-{quote(identifier, safe='')}"
    anchor = f"again-{anchor}" if anchor in taken else anchor
    taken.add(anchor)
    return anchor


def _battle(case: Report, measure: str, anchor: str) -> Battle:
    outcome = OUTCOMES[CLASSES.index(case["verdict"])]
    probs = [[predictor_name(name), *(number(p, 2) for p in row)] for name, row in case["probs"].items()]
    title = say("Battle {id}: verdict {outcome}, ", id=case["id"], outcome=outcome)
    title += say(measure, value=number(case["value"], 2))
    texts: list[tuple[str, str, Markup | None]] = [
        (heading, _shown(case["texts"][name]), _cut(case["cut"], i))
        for i, (name, heading) in enumerate(HEADINGS.items())
    ]
    return Battle(title, probs, texts, anchor)


def _shown(excerpt: Report) -> Markup:
    """Return a text with a marker in place of the characters that are left out."""
    marker = say("<mark>… {n} characters …</mark>", n=count(excerpt["hidden"])) if excerpt["hidden"] else ""
    return say("{start}{marker}{end}", start=excerpt["start"], marker=marker, end=excerpt["end"])


def _cut(cuts: list[Report], i: int) -> Markup | None:
    """Say which models read a part of the i-th text alone; None where all have read it whole."""
    rows = [
        say("{kept} of {all} tokens read by {readers}", kept=count(cut["kept"][i]), all=count(cut["tokens"][i]),
            readers=", ".join(cut["readers"]))
        for cut in cuts if cut["kept"][i] < cut["tokens"][i]
    ]  # fmt: skip
    return Markup("; ").join(rows) if rows else None


def strongest(cases: list[Report]) -> list[Battle]:
    """Return the battles on which one predictor has the largest advantage."""
    battles = []
    for case in cases:
        outcome = OUTCOMES[CLASSES.index(case["verdict"])]
        title = say("Battle {id}: verdict {outcome}, advantage {value} nats", id=case["id"], outcome=outcome,
                    value=number(case["value"], 2, signed=True))  # fmt: skip
        battles.append(Battle(title, [], [(heading, case[name], None) for name, heading in HEADINGS.items()]))
    return battles
