"""Numbers of report.json: equal to an independent computation by scikit-learn, scipy or loops over rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import entropy, linregress
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score

from ensemble.report.data_summary import dropped_rows
from ensemble.report.make import collect
from ensemble.report.predictor_comparison import probability_points
from ensemble.report.run_data import RunData, load_run
from ensemble.report.slices import battle_properties
from tests.fixtures.report_runs import ABLATIONS, ReportArena, make_report_arena, write_run

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def arena() -> ReportArena:
    return make_report_arena(500, seed=3)


@pytest.fixture(scope="module")
def run(arena: ReportArena, tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load_run(write_run(tmp_path_factory.mktemp("numbers") / "run", arena))


@pytest.fixture(scope="module")
def report(run: RunData) -> dict[str, Any]:
    return collect(run, price_per_hour=3.6)


def softmax(z: Any) -> Any:
    z = np.asarray(z, dtype=np.float64)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def probs(arena: ReportArena) -> dict[str, Any]:
    pooled = (arena.logits["one"] + arena.logits["two"]) / 2
    members = {name: softmax(z.astype(np.float64).mean(axis=1)) for name, z in arena.logits.items()}
    return members | {
        "prior": np.full((500, 3), 1 / 3),
        "mean": softmax(pooled.astype(np.float64).mean(axis=1)),
        "stack": softmax(pooled.astype(np.float64).mean(axis=1)),
        "calibrated": softmax((0.7 * pooled).astype(np.float64).mean(axis=1)),
        "student": softmax((0.5 * pooled).astype(np.float32).astype(np.float64).mean(axis=1)),
    }


def losses(p: Any, labels: Any) -> Any:
    return np.array([-np.log(row[label]) for row, label in zip(p, labels, strict=True)])


def naive_interval(values: Any, groups: Any) -> tuple[float, float]:
    rng = np.random.default_rng(9)
    rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    means = [
        values[np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])].mean() for _ in range(1500)
    ]
    return tuple(np.quantile(means, [0.025, 0.975]))  # type: ignore[return-value]


def assert_interval(bounds: dict[str, float], values: Any, groups: Any) -> None:
    low, high = naive_interval(np.asarray(values, dtype=float), groups)
    assert bounds["value"] == pytest.approx(np.mean(values))
    assert bounds["low"] == pytest.approx(low, abs=0.12 * (high - low) + 1e-12)
    assert bounds["high"] == pytest.approx(high, abs=0.12 * (high - low) + 1e-12)


def test_scores_and_paired_differences(report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]) -> None:
    rows = {row["predictor"]: row for row in report["summary"]["table"]}
    assert list(rows) == ["prior", "one", "two", "mean", "stack", "calibrated", "student"]
    for name, row in rows.items():
        p = probs[name]
        assert row["log_loss"]["value"] == pytest.approx(log_loss(arena.labels, p, labels=[0, 1, 2]), abs=1e-6)
        assert row["brier"] == pytest.approx(np.mean(((p - np.eye(3)[arena.labels]) ** 2).sum(axis=1)), abs=1e-6)
        if name != "prior":  # its three classes share the maximum, which scikit-learn gives to the first
            assert row["accuracy"] == pytest.approx(accuracy_score(arena.labels, p.argmax(axis=1)))
            recall = recall_score(arena.labels, p.argmax(axis=1), labels=[2], average=None)[0]
            assert row["tie_recall"] == pytest.approx(recall)
    assert_interval(rows["one"]["log_loss"], losses(probs["one"], arena.labels), arena.groups)
    for row in report["summary"]["paired"]:
        difference = losses(probs[row["first"]], arena.labels) - losses(probs[row["second"]], arena.labels)
        assert_interval(row["difference"], difference, arena.groups)
    assert report["summary"]["n"] == 500


def test_member_pairs_by_slice(report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]) -> None:
    [pair] = report["members"]
    assert (pair["first"], pair["second"]) == ("one", "two")
    first, second = (losses(probs[name], arena.labels) for name in ("one", "two"))
    rows = arena.table.to_dicts()
    chars = [tuple(len("\n".join(row[c])) for c in ("prompt", "response_a", "response_b")) for row in rows]
    total = np.array([sum(c) for c in chars])
    ratio = np.array([max(c[1] + 1, c[2] + 1) / min(c[1] + 1, c[2] + 1) for c in chars])
    flags = {
        "one": np.array([len(row["prompt"]) == 1 for row in rows]),
        "several": np.array([len(row["prompt"]) > 1 for row in rows]),
        "tie": arena.labels == 2,
        "decided": arena.labels != 2,
        "2 times and more": ratio >= 2,
        "under 1.1 times": ratio < 1.1,
        "shortest quarter": total <= np.quantile(total, 0.25),
        "longest quarter": total > np.quantile(total, 0.75),
    }
    slices = {row["slice"]: row for row in pair["slices"]}
    assert set(flags) <= set(slices)
    assert not {"Latin script", "without code", "junk"} & set(slices)  # all battles, or none
    for name, at in flags.items():
        row = slices[name]
        assert row["n"] == at.sum()
        assert row["n_groups"] == len({g for g, inside in zip(arena.groups, at, strict=True) if inside})
        assert row["loss_first"] == pytest.approx(first[at].mean(), abs=1e-6)
        assert row["loss_second"] == pytest.approx(second[at].mean(), abs=1e-6)
        assert_interval(row["advantage"], (second - first)[at], arena.groups[at])
    assert_interval(pair["overall"]["advantage"], second - first, arena.groups)
    raw = sorted(row["p"] for row in pair["slices"])
    adjusted = sorted(row["p_adjusted"] for row in pair["slices"])
    expected = np.maximum.accumulate([min(1, p * (len(raw) - i)) for i, p in enumerate(raw)])
    assert adjusted == pytest.approx(expected.tolist())


def test_right_alone_grid_and_strongest_cases(
    report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]
) -> None:
    [pair] = report["members"]
    counts: Counter[tuple[str, int]] = Counter()
    for one, two, label in zip(probs["one"], probs["two"], arena.labels, strict=True):
        hits = one.argmax() == label, two.argmax() == label
        case = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "neither"}[hits]
        counts[case, int(label)] += 1
    for case, row in pair["right_alone"].items():
        assert [row["a"], row["b"], row["tie"]] == [counts[case, c] for c in range(3)]
        assert row["n"] == sum(counts[case, c] for c in range(3))
    x, y = (probs[name][np.arange(500), arena.labels] for name in ("one", "two"))
    expected, _, _ = np.histogram2d(y, x, bins=20, range=[[0, 1], [0, 1]])
    np.testing.assert_array_equal(pair["grid"]["counts"], expected)
    assert pair["grid"]["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    best = pair["strongest"]["first"][0]
    gap = losses(probs["two"], arena.labels) - losses(probs["one"], arena.labels)
    assert best["value"] == pytest.approx(gap.max(), abs=1e-6)
    assert best["id"] == arena.table["id"][int(gap.argmax())]


def test_the_scatter_has_every_battle_or_a_seeded_sample(
    report: dict[str, Any], arena: ReportArena, probs: dict[str, Any], run: RunData
) -> None:
    for content, names in ((report["members"][0], ("one", "two")), (report["distillation"], ("student", "calibrated"))):
        points = content["points"]
        assert (points["n"], points["n_shown"]) == (500, 500)
        assert points["verdict"] == arena.labels.tolist()
        for key, name in zip(("first", "second"), names, strict=True):
            exact = [row[label] for row, label in zip(probs[name], arena.labels, strict=True)]
            np.testing.assert_allclose(points[key], exact, atol=0.00051)
    both = probs["one"], probs["two"]
    some = probability_points(both, arena.labels, seed=1, n_points=100)
    assert (some["n"], some["n_shown"]) == (500, 100)
    every = set(zip(*(report["members"][0]["points"][key] for key in ("first", "second", "verdict")), strict=True))
    assert set(zip(some["first"], some["second"], some["verdict"], strict=True)) <= every
    assert some == probability_points(both, arena.labels, seed=1, n_points=100)
    assert some != probability_points(both, arena.labels, seed=2, n_points=100)


def test_combiners_importances_studies_and_ablations(
    report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]
) -> None:
    stack = report["stack"]
    rows = {row["combiner"]: row["log_loss"]["value"] for row in stack["combiners"]}
    assert list(rows.values()) == sorted(rows.values())
    for name, predictor in (("mean", "mean"), ("greedy", "one"), ("pool or choice of each fold (stack)", "stack")):
        assert rows[name] == pytest.approx(log_loss(arena.labels, probs[predictor], labels=[0, 1, 2]), abs=1e-6)
    shares = [(row["feature"], row["gain_share"], row["splits"]) for row in stack["importances"]]
    assert shares == [("g", (1 / 4 + 1) / 2, 7), ("f", (3 / 4 + 0) / 2, 4)]  # no split uses h
    assert stack["studies"] == {"fold-0": {"values": [1.03, 1.05, 1.01], "best": [1.03, 1.03, 1.01]}}
    assert stack["folds"] == [{"fold": 0, "rounds": 9}, {"fold": 1, "rounds": 8}]
    ablations = stack["ablations"]
    assert ablations["without"] == ABLATIONS["without"][::-1]  # the largest difference comes first
    assert ablations["learning_curve"] == ABLATIONS["learning_curve"]
    assert ablations["full"] == ABLATIONS["full"]
    assert [row["family"] for row in ablations["gain"]] == ["turns", "lengths"]


@pytest.mark.parametrize("name", ["one", "calibrated", "student"])
def test_ties(name: str, report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]) -> None:
    tie_report, p, ties = report["ties"]["predictors"][name], probs[name], arena.labels == 2
    loss = losses(p, arena.labels)
    np.testing.assert_array_equal(tie_report["confusion"], confusion_matrix(arena.labels, p.argmax(axis=1)))
    assert tie_report["n_ties"] == ties.sum()
    assert tie_report["recall"] == pytest.approx(np.mean(p[ties].argmax(axis=1) == 2))
    assert tie_report["precision"] == pytest.approx(np.mean(ties[p.argmax(axis=1) == 2]))
    assert tie_report["named_ties"] == np.sum(p.argmax(axis=1) == 2)
    assert tie_report["gap"]["value"] == pytest.approx(p[ties, 2].mean() - p[~ties, 2].mean(), abs=1e-6)
    assert tie_report["loss_on_ties"] == pytest.approx(loss[ties].mean(), abs=1e-6)
    assert tie_report["loss_on_decided"] == pytest.approx(loss[~ties].mean(), abs=1e-6)
    assert tie_report["prior_on_ties"] == pytest.approx(-np.log(ties.sum() / 500))
    assert tie_report["cost"] + loss[~ties].sum() / 500 == pytest.approx(loss.mean(), abs=1e-6)
    assert tie_report["cost_share"] == pytest.approx(loss[ties].sum() / loss.sum(), abs=1e-6)
    assert_interval(tie_report["mean_p_tie"], p[:, 2], arena.groups)
    assert_interval(tie_report["excess"], loss[ties] + np.log(ties.mean()), arena.groups[ties])
    assert_interval(tie_report["recall_interval"], p[ties].argmax(axis=1) == 2, arena.groups[ties])
    assert sum(row["n"] for row in tie_report["calibration"]) == 500
    weights = [row["n"] / 500 for row in tie_report["calibration"]]
    assert np.dot(weights, [row["value"] for row in tie_report["calibration"]]) == pytest.approx(ties.mean())
    assert np.dot(weights, [row["predicted"] for row in tie_report["calibration"]]) == pytest.approx(
        p[:, 2].mean(), abs=1e-6
    )


def test_tie_rates_by_origin(report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]) -> None:
    short = np.array([all(len(" ".join(row[c]).split()) < 20 for c in ("response_a", "response_b"))
                      for row in arena.table.to_dicts()])  # fmt: skip
    rows = {row["origin"]: row for row in report["ties"]["origins"]}
    assert rows["both short"]["n"] == short.sum()
    assert rows["other"]["n"] == 500 - short.sum()
    assert rows["both short"]["tie_rate"]["value"] == pytest.approx(np.mean(arena.labels[short] == 2))
    assert rows["both short"]["share_of_ties"] == pytest.approx(
        np.sum(short & (arena.labels == 2)) / np.sum(arena.labels == 2)
    )
    short_rows = rows["both short"]["predictors"]["two"]
    assert short_rows["mean_p_tie"] == pytest.approx(probs["two"][short, 2].mean(), abs=1e-6)
    assert short_rows["loss"] == pytest.approx(losses(probs["two"], arena.labels)[short].mean(), abs=1e-6)


def test_reliability_diagrams_and_temperatures(
    report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]
) -> None:
    calibration = report["calibration"]
    assert calibration["before_after"] == [["stack", "calibrated"], ["student, uncalibrated", "student"]]
    p = probs["calibrated"]
    for c, name in enumerate(("a", "b", "tie")):
        edges = np.quantile(p[:, c], np.linspace(0, 1, 11)[1:-1])
        bins = (p[:, c][:, None] > edges).sum(axis=1)
        points = calibration["predictors"]["calibrated"]["diagrams"][name]
        for k, point in enumerate(points):
            inside = bins == k
            assert abs(point["n"] - inside.sum()) <= 1  # float32 logits on an edge
            assert point["predicted"] == pytest.approx(p[inside, c].mean(), abs=1e-3)
            assert point["value"] == pytest.approx(np.mean(arena.labels[inside] == c), abs=0.03)
    assert [t["temperature"] for t in calibration["temperatures"]] == [1.4, 1.5, 1.1, 1.2]
    assert [t["tie_scale"] for t in calibration["temperatures"]] == [None, 0.875, None, None]
    assert [t["first_shown_scale"] for t in calibration["temperatures"]] == [None, 1.125, None, None]


def test_position_and_length_bias(
    report: dict[str, Any], arena: ReportArena, probs: dict[str, Any], run: RunData
) -> None:
    bias = report["position"]
    for name in ("one", "two"):
        ab, ba = (softmax(arena.logits[name][:, order]) for order in (0, 1))
        model = bias["models"][name]
        assert_interval(model["disagreement"], ab.argmax(axis=1) != ba.argmax(axis=1), arena.groups)
        first = [(x[0] - x[1] + y[1] - y[0]) / 2 for x, y in zip(ab, ba, strict=True)]
        assert_interval(model["first_shown"], np.array(first), arena.groups)
        distance = [sum(abs(x - y)) / 2 for x, y in zip(ab, ba, strict=True)]
        assert_interval(model["distance"], np.array(distance), arena.groups)
    margin = np.array([{0: 1, 1: -1, 2: 0}[int(label)] for label in arena.labels])
    assert_interval(bias["verdicts"], margin, arena.groups)
    x = np.array(
        [np.log((len(a[0]) + 1) / (len(b[0]) + 1)) for a, b in arena.table.select("response_a", "response_b").rows()]
    )
    slopes = bias["length"]["slopes"]
    assert slopes["verdicts"] == pytest.approx(linregress(x, margin).slope)
    assert slopes["one"] == pytest.approx(linregress(x, probs["one"][:, 0] - probs["one"][:, 1]).slope, abs=1e-6)
    assert sum(row["n"] for row in bias["length"]["verdicts"]) == 500
    weights = np.array([row["n"] for row in bias["length"]["verdicts"]]) / 500
    assert weights @ [row["value"] for row in bias["length"]["verdicts"]] == pytest.approx(margin.mean())
    assert weights @ bias["length"]["log_ratio"] == pytest.approx(battle_properties(run.table)["log_ratio"].mean())


def test_student_against_teacher(report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]) -> None:
    distillation, student, teacher = report["distillation"], probs["student"], probs["calibrated"]
    assert_interval(distillation["agreement"], student.argmax(axis=1) == teacher.argmax(axis=1), arena.groups)
    divergence = np.array([entropy(t, s) for t, s in zip(teacher, student, strict=True)])
    assert distillation["divergence"]["value"] == pytest.approx(divergence.mean(), abs=1e-5)
    advantage = losses(teacher, arena.labels) - losses(student, arena.labels)
    assert distillation["comparison"]["overall"]["advantage"]["value"] == pytest.approx(advantage.mean(), abs=1e-6)


def test_data_and_cost(report: dict[str, Any], arena: ReportArena, probs: dict[str, Any]) -> None:
    data = report["data"]
    sizes = Counter(arena.groups.tolist())
    assert data["n_groups"] == len(sizes)
    assert data["largest_group"] == max(sizes.values())
    assert data["n_groups_of_several"] == sum(size > 1 for size in sizes.values())
    assert data["shares"] == pytest.approx([np.mean(arena.labels == c) for c in range(3)])
    lengths = [len("\n".join(prompt)) for prompt in arena.table["prompt"].to_list()]
    assert data["lengths"]["prompt"] == pytest.approx(np.quantile(lengths, data["quantiles"]).tolist())
    assert sum(data["histogram"]["counts"]) == 500
    for row in data["folds"]:
        at = arena.table["fold"].to_numpy() == row["fold"]
        assert row["n"] == at.sum()
        assert row["shares"] == pytest.approx([np.mean(arena.labels[at] == c) for c in range(3)])
        assert row["log_loss"]["one"] == pytest.approx(losses(probs["one"], arena.labels)[at].mean(), abs=1e-6)
    assert {row["stage"]: row["seconds"] for row in report["cost"]["stages"]} == {"one": 12.5, "two": 12.5, "stack": 5}
    assert report["cost"]["seconds"] == 30.0
    assert report["cost"]["cost"] == pytest.approx(30 * 3.6 / 3600)
    assert report["curves"]["one"]["fold-0"]["loss"] == pytest.approx([1 / step for step in range(1, 10)])


def test_reasons_of_dropped_rows_are_counted(tmp_path: Path) -> None:
    rows = {"file": ["f.csv"] * 3, "row": [1, 2, 3], "id": ["x", "y", "z"],
            "reason": ["label 'q' is unknown", "label 'r' is unknown", "no text in row 3"]}  # fmt: skip
    pl.DataFrame(rows).write_csv(tmp_path / "dropped.csv")
    reasons = dropped_rows(tmp_path / "dropped.csv")
    assert reasons == [{"reason": "label … is unknown", "n": 2}, {"reason": "no text in row …", "n": 1}]
    assert dropped_rows(tmp_path / "nowhere.csv") == []


def test_an_arena_without_junk_has_none(report: dict[str, Any]) -> None:
    assert report["quality"]["n_junk"] == 0
    assert report["quality"]["n"] == 500
    assert [kind["n"] for kind in report["quality"]["kinds"]] == [0] * 5
