"""Planted runs: main numbers recomputed by plain numpy, and the sentences that must follow from them.

Intervals are judged by another method, the cluster-robust normal interval. A planted run has differences that are far
from its ends, so that both methods must agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from numpy.typing import NDArray

from ensemble.report.advice import advice
from ensemble.report.conclusion import conclusion, trust
from ensemble.report.make import collect
from ensemble.report.page import render_report
from ensemble.report.run_data import RunData
from ensemble.report.story import story
from tests.fixtures.report_runs import make_report_arena

Array = NDArray[Any]
N = 400
FAST = ("healthy", "student worse", "few groups")
SPEC = {"one": ("truth", 1.0), "two": ("truth", 1.0), "stack": ("truth", 0.3), "calibrated": ("stack", 0.02),
        "student": ("calibrated", 0.02)}  # fmt: skip  # predictor -> what its logits are made of, and their noise


def plant(spec: dict[str, tuple[str, float]], scale: dict[str, float], n_groups: int = 300, ties: bool = True,
          skew: float = 0.0, **more: Any) -> RunData:  # fmt: skip
    """Return a run of predictors of known quality; ``skew`` favours A, ``scale`` multiplies logits."""
    rng = np.random.default_rng(5)
    arena = make_report_arena(N, seed=5)
    logits: dict[str, Array] = {"truth": 1.5 * np.log(arena.truth) + [skew, 0, 0 if ties else -30]}
    p = softmax(logits["truth"])
    labels = (rng.random(N)[:, None] > p.cumsum(axis=1)[:, :2]).sum(axis=1)
    for name, (base, noise) in spec.items():
        logits[name] = scale.get(name, 1.0) * (logits[base] + noise * rng.normal(size=(N, 3)))
    groups = np.sort(rng.integers(n_groups, size=N))
    members = [name for name in spec if name not in ("stack", "calibrated", "student")]
    config = {"data": {"ties": ties}, "prompts": {"max_tokens": 64}, "members": {name: {} for name in members}}
    return RunData(
        folder=Path("planted"),
        record={"config": config},
        table=arena.table.with_columns(label=labels.astype(np.int8), group=groups, fold=(groups % 3).astype(np.int32)),
        labels=labels,
        groups=groups,
        folds=groups % 3,
        logits={name: np.stack([logits[name]] * 2, axis=1).astype(np.float32) for name in members},
        probs={"prior": np.tile(np.bincount(labels, minlength=3) / N, (N, 1))}
        | {name: softmax(logits[name]) for name in spec},
        **more,
    )


def planted(spec: dict[str, tuple[str, float] | None] | None = None, change: Callable[[RunData], None] | None = None,
            scale: dict[str, float] | None = None, **more: Any) -> RunData:  # fmt: skip
    chosen = {name: row for name, row in (SPEC | (spec or {})).items() if row}
    run = plant(chosen, scale or {}, **more)
    if change:
        change(run)
    return run


def shift_ties(run: RunData, shift: float | None) -> None:
    """Lower P(tie) of ensemble and student, or with None make it the same for every battle."""
    for name in ("calibrated", "student"):
        z = np.log(run.probs[name])
        z[:, 2] = np.logaddexp(z[:, 0], z[:, 1]) - 1 if shift is None else z[:, 2] + shift
        run.probs[name] = softmax(z)


def cheat(run: RunData) -> None:
    """Let member two see the verdicts, beside the true probabilities of a synthetic arena."""
    run.probs["bayes"] = run.probs["one"]
    run.probs["two"] = softmax(np.log(run.probs["two"]) + 2 * np.eye(3)[run.labels])


def cut(run: RunData) -> None:
    tokens = np.tile([10, 40, 40, 10, 25, 25], (N, 1))
    tokens[: N // 2, 3:] = tokens[: N // 2, :3]
    run.reads["one"] = tokens


def in_sample(run: RunData) -> None:
    run.manifests["stack"] = {"possibly_in_sample": {"two": ["lead"]}}


def own_logits(run: RunData) -> None:
    run.record["config"]["stack"] = {"logits": {"one": "one.csv"}}


SUBMIT_STUDENT, SUBMIT_ENSEMBLE = "Use the student", "Use the ensemble"
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "healthy": ({}, [SUBMIT_STUDENT, "The student may replace the ensemble", "Stacking the members lowers"]),
    "better member": ({"spec": {"two": ("truth", 3.0)}}, ["one is better than two"]),
    "better second member": ({"spec": {"one": ("truth", 3.0)}}, ["two is better than one"]),
    "no better member": ({"spec": {"two": ("one", 0.01)}}, ["Neither one nor two is shown to be better overall"]),
    "three members": ({"spec": {"three": ("truth", 3.0)}}, ["better than three"]),
    "useless stack": ({"spec": {"two": ("one", 0.01), "stack": ("one", 0.01)}}, ["Stacking is not shown to improve"]),
    "harmful stack": ({"spec": {"stack": ("truth", 3.0)}}, ["Stacking did harm"]),
    "student worse": ({"spec": {"student": ("truth", 2.0)}}, [SUBMIT_ENSEMBLE, "The student does not match"]),
    "student better": ({"spec": {"calibrated": ("truth", 2.0), "student": ("truth", 0.1)}},
                       [SUBMIT_STUDENT, "The student is better than the ensemble"]),
    "student worse than a member": ({"spec": {"calibrated": ("truth", 3.0), "student": ("truth", 3.0)}},
                                    ["worse than the best member"]),
    "few groups": ({"n_groups": 4}, ["too few groups for a verdict (4)", "no comparison on this page is decided"]),
    "tens of groups": ({"n_groups": 30}, ["Stacking the members lowers"]),
    "binary": ({"ties": False}, [SUBMIT_STUDENT]),
    "one member": ({"spec": {"two": None, "stack": ("one", 0.01)}}, ["There is one member, one"]),
    "own logits": ({"spec": {"student": None}, "change": own_logits}, [SUBMIT_ENSEMBLE]),
    "stage one alone": ({"spec": {"stack": None, "calibrated": None, "student": None}}, ["has not run"]),
    "in-sample member": ({"change": in_sample}, ["Do not trust these numbers yet", "two is possibly in-sample"]),
    "better than the truth": ({"change": cheat}, ["Do not trust these numbers yet", "two is better than the true"]),
    "truncated data": ({"change": cut}, ["50.0 % of the battles are cut at 64 tokens for one"]),
    "blind to ties": ({"change": lambda run: shift_ties(run, None)}, ["does not see them coming"]),
    "weak on ties": ({"change": lambda run: shift_ties(run, -6.0)}, ["On ties it loses more than the class shares"]),
    "calibration helps": ({"scale": {"stack": 2.5, "calibrated": 0.4}}, ["Calibration lowers the log loss"]),
    "calibration harms": ({"scale": {"calibrated": 2.5}}, ["Calibration raises the log loss"]),
    "first shown wins": ({"skew": 2.0}, ["The verdicts favour the response shown first"]),
    "second shown wins": ({"skew": -2.0}, ["The verdicts favour the response shown second"]),
}  # fmt: skip


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def losses(run: RunData, name: str) -> Array:
    return np.array([-np.log(row[label]) for row, label in zip(run.probs[name], run.labels, strict=True)])


def verdict(values: Array, groups: Array) -> tuple[int, float]:
    """Return the sign that the cluster-robust interval shows (0: none) and its half width."""
    sums = np.array([(values - values.mean())[groups == g].sum() for g in np.unique(groups)])
    half = 1.96 * float(np.sqrt((sums**2).sum())) / len(values)
    mean = float(values.mean())
    return (0 if abs(mean) <= half else int(np.sign(mean))), half


def shown_sign(interval: dict[str, Any]) -> int:
    return int(interval["low"] > 0) - int(interval["high"] < 0)


def ece(p: Array, labels: Array) -> float:
    """Return the error of the most probable class's probability in fifteen bins of equally many battles."""
    order = np.argsort(p.max(axis=1), kind="stable")
    bins = np.zeros(len(p), dtype=int)
    bins[order] = np.arange(len(p)) * 15 // len(p)
    gap = p.max(axis=1) - (p.argmax(axis=1) == labels)
    return float(sum(abs(gap[bins == k].sum()) for k in range(15)) / len(p))


def check_numbers(run: RunData, report: dict[str, Any]) -> None:
    few = len(np.unique(run.groups)) < 6
    loss = {name: losses(run, name) for name in run.predictors}
    for row in report["summary"]["table"]:
        p, name = run.probs[row["predictor"]], row["predictor"]
        assert row["log_loss"]["value"] == pytest.approx(loss[name].mean(), abs=1e-9)
        assert row["brier"] == pytest.approx(np.mean(((p - np.eye(3)[run.labels]) ** 2).sum(axis=1)))
        if name != "prior":  # all its rows are one bin, and its classes may share the maximum
            assert row["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == run.labels))
            assert row["ece"] == pytest.approx(ece(p, run.labels), abs=1e-9)
    assert report["summary"]["best_member"] == min(run.members, key=lambda name: float(loss[name].mean()))
    for row in report["summary"]["paired"]:
        values = loss[row["first"]] - loss[row["second"]]
        assert row["difference"]["value"] == pytest.approx(values.mean(), abs=1e-9)
        sign, half = verdict(values, run.groups)
        clear = abs(abs(values.mean()) - half) > 0.25 * half  # else the two methods may differ
        assert few == (row["difference"]["low"] is None)
        assert few or not clear or shown_sign(row["difference"]) == sign
    for pair in report["members"]:
        for row in pair["slices"]:
            if row["family"] == "verdict":
                at = (run.labels == 2) == (row["slice"] == "tie")
                for key, name in (("loss_first", pair["first"]), ("loss_second", pair["second"])):
                    assert row[key] == pytest.approx(loss[name][at].mean(), abs=1e-9)
    for name, content in report["ties"]["predictors"].items():
        counts = [[int(np.sum((run.labels == i) & (run.probs[name].argmax(axis=1) == j))) for j in range(3)]
                  for i in range(3)]  # fmt: skip
        assert content["confusion"] == counts
        assert content["cost_share"] == pytest.approx(loss[name][run.labels == 2].sum() / loss[name].sum())


def check_sentences(run: RunData, report: dict[str, Any], shown: str) -> None:
    """Compare the sentences with the verdicts of the recomputed differences."""
    loss = {name: losses(run, name) for name in run.predictors}
    best = min(run.members, key=lambda name: float(loss[name].mean()))
    sentences = {
        ("stack", best): ("Stacking the members lowers", "Stacking is not shown to improve", "Stacking did harm"),
        ("calibrated", "stack"): ("Calibration lowers", "Calibration is not shown", "Calibration raises"),
        ("student", "calibrated"): ("The student is better", "The student may replace", "The student does not match"),
    }
    for (first, second), by_sign in sentences.items():
        if not {first, second} <= set(loss) or len(np.unique(run.groups)) < 6:
            assert not any(sentence in shown for sentence in by_sign)
            continue
        values = loss[first] - loss[second]
        sign, half = verdict(values, run.groups)
        if abs(abs(values.mean()) - half) > 0.25 * half and (first != "stack" or len(run.members) > 1):
            assert [sentence in shown for sentence in by_sign] == [sign == k for k in (-1, 0, 1)]
    if {"stack", "calibrated"} <= set(loss):
        rises = ece(run.probs["calibrated"], run.labels) > ece(run.probs["stack"], run.labels)
        assert f"(ECE) {'rises' if rises else 'falls'}" in shown
        assert ("Both can be true" in shown) == (rises and loss["calibrated"].mean() < loss["stack"].mean())


def numbers(tree: Any) -> set[float]:
    if isinstance(tree, dict | list):
        return set().union(*map(numbers, tree.values() if isinstance(tree, dict) else tree))
    return {float(tree)} if isinstance(tree, int | float) and not isinstance(tree, bool) else set()


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_numbers_are_recomputed_and_sentences_follow_from_them(name: str) -> None:
    arguments, expected = CASES[name]
    run = planted(**arguments)
    report = collect(run)
    check_numbers(run, report)
    html = "\n".join([conclusion(report), trust(report)[1], *story(report), *advice(report)])
    shown = " ".join(Markup(html).striptags().split())  # noqa: S704  # not a page
    check_sentences(run, report, shown)
    for sentence in expected:
        assert sentence in shown + " ".join(report["summary"]["warnings"])
    page = render_report(report)
    assert {float(value) for value in re.findall(r'<data value="([^"]+)"', page)} <= numbers(report)
    table = re.search(r"whose most probable class is the verdict.*?</table>", page, re.S)
    titles = Markup(table[0].split("</thead>")[0]).striptags() if table else ""  # noqa: S704  # not a page
    assert ("ties" in titles) == bool((run.labels == 2).any())
