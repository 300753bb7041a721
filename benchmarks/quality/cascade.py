"""Cascade: how much of the ensemble's gain a share of its compute keeps, on finished runs and on real logits.

    python -m benchmarks.quality.cascade --data DIR                        # writes docs/evidence/cascade.md
    python -m benchmarks.quality.cascade --data DIR --run runs/demo --run runs/mine --out runs/cascade.md

Every figure is out of fold: the policy that decides on a battle was chosen without its fold. Costs are shares of what
the ensemble needs for all battles. A budget is a limit: more than the student costs is spent only where that is shown
to help, by groups, on battles on which the policy was not fitted; the same holds for each score. *Random* sends battles
on by chance. Two rules that cannot exist show what is possible between student and ensemble. One knows the ensemble's
answer beforehand and sends on the battles where it differs most (KL divergence): no rule that sees less can be expected
to do better if the ensemble is calibrated. The other knows the verdict, too, and sends on only those where the ensemble
is better. Where the first one keeps less than 95 % at a budget, the gain lies in more battles than the budget pays for,
and no policy can be expected to keep it; what *best* loses beside that rule is what a student's uncertainty does not
tell about the ensemble's answer.

The real logits are those of two models of the LMSYS competition that are not ours: 13,638 battles, one order each.
One of them, with a temperature, plays the student, and the log-linear pool of both the ensemble. The battles are cut
into halves, and everything that is fitted for one half is fitted on the other. The student is taken to cost 0.1 of
the ensemble, as one model in place of two with five fold jobs each, and none of its work counts as done for the
ensemble.

On synthetic logits whose best policy is known, the chosen one costs at most 2 % more at equal loss
(`tests/ensemble/cascade/test_policy.py`). Where the members are the student with noise, it is worse than the student by
less than 0.0005 on average over eight seeds (`test_policy_choice.py` there).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import ROOT, argument_parser, paragraphs, require, run_script, write_page
from benchmarks.quality.choice_settings import KING, real_logits
from ensemble.cascade.curve import SHOWN_BUDGET, Battles, curve
from ensemble.cascade.policy import Levels
from ensemble.cascade.policy_choice import unused
from ensemble.cascade.run import load_cascade
from ensemble.cascade.scores import Output, expected_gain
from ensemble.stacking.calibration import shrunk_temperature
from ensemble.stacking.log_pool import fit_pool, pool_logits
from ensemble.statistics.interval_words import in_words
from oof.config.stored import load_for_run
from oof.metrics import row_log_loss, softmax

MEMBERS = ("king", "king2")
STUDENT_COST = 0.1
SHOWN = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHARE = 0.95


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"folder of {KING}")
    parser.add_argument("--run", action="append", default=[], help="a finished run; several can be given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/cascade.md"))
    arguments = parser.parse_args()
    require([arguments.data / KING, *map(Path, arguments.run)], "--data and --run")
    sets = {f"Run {name_of(Path(run))}": run_battles(run) for run in arguments.run}
    for i, student in enumerate(MEMBERS):
        sets[f"Real logits, {student} as the student"] = real_battles(arguments.data / KING, i, arguments.seed)
    lines = [paragraphs(__doc__, 2)]
    for name, battles in sets.items():
        lines += ["", f"## {name}", "", *section(battles, arguments.seed)]
    print(write_page(arguments.out, "Cascade: loss against compute", lines))


def name_of(run: Path) -> str:
    """Return the run's name; where that is "run", as in ``benchmarks.quality.students``, its folder's."""
    run = run.resolve()
    return run.parent.name if run.name == "run" else run.name


def run_battles(run: str) -> Battles:
    """Return the battles of a finished run, with the costs that it measured."""
    with chdir(ROOT):
        return load_cascade(load_for_run(None, [f"run={Path(run).resolve()}"])).battles()


def real_battles(path: Path, student: int, seed: int) -> Battles:
    """Return the real logits, one of the two members as the student and the pool of both as the ensemble."""
    data = real_logits(MEMBERS, 0, path, seed)
    pool, labels, groups = data.design.pool, data.labels, data.groups

    def fit(rows: NDArray[np.int64]) -> list[Output]:
        alone = pool[:, student]
        temperature = shrunk_temperature(alone[rows], labels[rows], groups[rows])
        weights = fit_pool(pool[rows], labels[rows])
        ensemble = softmax(pool_logits(pool, weights[:-1], float(weights[-1])))
        return [Output(softmax(alone / temperature)), Output(ensemble)]

    levels = Levels(("student", "ensemble"), (("student",), ("members",)), {"student": STUDENT_COST, "members": 1.0})
    return Battles(levels, fit, labels, data.folds % 2, groups, 0)


def section(battles: Battles, seed: int) -> Iterable[str]:
    """Yield the lines of one set: costs, the gain, the table and what is kept."""
    content = curve(battles, seed)
    costs = ", ".join(f"{level['name']} {level['cost_share']:.3f}" for level in content["levels"])
    possible = {name: possible_losses(battles, known) for name, known in (("answer", False), ("verdict", True))}
    ends, gain = content["ends"], content["gain"]
    yield f"{content['n']:,} battles. Cost of each level alone: {costs}."
    yield f"Log loss of the student minus the ensemble: {in_words(gain)}."
    yield ""
    yield "| budget | cost | log loss | accuracy | margin | entropy | random | knows the answer | knows the verdict |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield row("student", ends["student"])
    by_kind = {kind: {p["budget"]: p for p in points} for kind, points in content["policies"].items()}
    for budget in (budget for budget in SHOWN if budget in by_kind["best"]):
        others = [f"{by_kind[kind][budget]['log_loss']['value']:.4f}" for kind in ("margin", "entropy", "random")]
        others += [f"{loss:.4f}" for loss in (at(losses, battles, budget) for losses in possible.values())]
        yield row(f"{budget:.2f}", by_kind["best"][budget], others)
    yield row("ensemble", ends["ensemble"])
    yield ""
    shown = by_kind["best"].get(SHOWN_BUDGET)
    if shown and (words := unused(shown["cost"], SHOWN_BUDGET)):
        yield f"At a budget of {SHOWN_BUDGET}: {words}."
        yield ""
    yield from kept(content, possible, battles)


def row(name: str, point: dict[str, Any], others: Sequence[str] = ("",) * 5) -> str:
    """Return a line of the table."""
    cells = [name, f"{point['cost']:.3f}", in_words(point["log_loss"], ".4f"), f"{point['accuracy']['value']:.3f}"]
    return "| " + " | ".join([*cells, *others]) + " |"


def possible_losses(battles: Battles, verdict_known: bool) -> NDArray[np.float64]:
    """Return (n + 1,) mean losses after sending 0, 1, … battles to the ensemble by an impossible rule."""
    outputs = battles.fit(np.arange(len(battles.labels)))
    student, ensemble = outputs[battles.student], outputs[-1]
    before, after = (row_log_loss(output.probs, battles.labels) for output in (student, ensemble))
    order = np.argsort(-(before - after if verdict_known else expected_gain(student, ensemble)), kind="stable")
    saved = np.append(0.0, np.cumsum((before - after)[order])) / len(order)
    return np.asarray(before.mean() - saved)


def at(losses: NDArray[np.float64], battles: Battles, budget: float) -> float:
    """Return the least loss of an impossible rule within a budget; it need not send on all that it pays for."""
    sent = int((budget - battles.levels.cost((battles.student,))) * len(battles.labels))
    return float(losses[: max(sent, 0) + 1].min())


def kept(content: dict[str, Any], possible: dict[str, NDArray[np.float64]], battles: Battles) -> Iterable[str]:
    """Yield the sentences on the share of the gain that is kept."""
    best = content["gain_kept"]["best"]
    if best["share"] is None:
        yield "The ensemble's gain over the student is not established here, so there is nothing to keep."
        return
    before, after = (content["ends"][name]["log_loss"]["value"] for name in ("student", "ensemble"))
    for kind in ("best", "gain", "margin", "entropy", "random"):
        share, cost = content["gain_kept"][kind]["share"], content["gain_kept"][kind]["cost_of_95"]
        yield f"- {kind}: {in_words(share, '.2f')} of the gain at a budget of {SHOWN_BUDGET}; 95 % at {words(cost)}."
    for name, losses in possible.items():
        share = (before - at(losses, battles, SHOWN_BUDGET)) / (before - after)
        enough = np.flatnonzero(losses <= before - SHARE * (before - after))
        cost = battles.levels.cost((battles.student,)) + enough[0] / len(battles.labels) if len(enough) else None
        yield f"- a rule that knows the {name}: {share:.2f} at {SHOWN_BUDGET}; 95 % at {words(cost)}."


def words(cost: float | None) -> str:
    return "no cost up to 1" if cost is None else f"a cost of {cost:.2f}"


if __name__ == "__main__":
    run_script(main)
