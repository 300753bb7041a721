"""Benchmark of other libraries' judges: its ties, its table against plain formulas, the battles that it hands over."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import students_settings
from benchmarks.quality.other_judges import _reward_ids
from benchmarks.quality.peers_page import (
    Scored,
    beside_rewards,
    class_shares,
    cross_fitted_ties,
    fit_ties,
    speed,
    table,
)
from benchmarks.quality.peers_runs import MEMBER, prepared, write_fold
from benchmarks.quality.students_settings import RealSet, real
from oof.classes import WINNER_COLUMNS
from tests.fixtures.demo_run import BASES


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_fitted_scale_and_threshold_are_those_that_verdicts_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    margins, truth, threshold = rng.normal(0, 2, 20_000), 0.7, 0.5
    noise = rng.logistic(size=len(margins))  # A wins where scale * margin + noise > threshold
    utility = truth * margins + noise
    labels = np.where(utility > threshold, 0, np.where(utility < -threshold, 1, 2))
    assert fit_ties(margins, labels, scaled=True) == pytest.approx((truth, threshold), abs=0.03)
    assert fit_ties(margins * truth, labels, scaled=False) == pytest.approx((1.0, threshold), abs=0.03)


def test_ties_of_a_fold_do_not_depend_on_its_verdicts() -> None:
    rng = np.random.default_rng(1)
    margins, labels, folds = rng.normal(size=90), rng.integers(3, size=90), np.arange(90) % 3
    changed = np.where(folds == 1, 2, labels)
    before, after = (cross_fitted_ties(margins, each, folds, scaled=True) for each in (labels, changed))
    np.testing.assert_array_equal(before[folds == 1], after[folds == 1])
    assert np.abs(before[folds == 0] - after[folds == 0]).max() > 0.01


def rows(lines: list[str]) -> dict[str, list[str]]:
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0]: cells[1:] for cells in split}


def test_the_table_is_plain_formulas_of_scores_and_costs() -> None:
    rng = np.random.default_rng(2)
    labels, folds, groups = rng.integers(3, size=60), np.arange(60) % 3, np.arange(60) // 2
    scored = Scored(labels, folds, groups)
    scored.add_calibrated("prior", class_shares(labels, folds))
    logits, probs = rng.normal(size=(60, 2, 3)), rng.dirichlet([2, 2, 2], size=(60, 2))
    scored.add_logits("member", logits)
    scored.add_probs("pairjudge", probs)
    scored.add_rewards("reward-trainer", rng.normal(size=(60, 2)))
    scored.costs["member"] = [{"trained": 40, "train_seconds": 10, "steps": 5, "scored": 20, "score_seconds": 4}] * 3
    peer = {"trained": 40, "train_seconds": 20, "steps": 5, "scored": 20, "score_seconds": 5, "cpu_seconds": 400}
    scored.costs["pairjudge"] = [peer | {"peak_gb": peak} for peak in (1.25, 1.5, 1.25)]
    found = rows(table(scored, epochs=2.0))
    ours, theirs = [], []
    for i, label in enumerate(labels):
        z = logits[i].mean(axis=0)
        ours.append(-(z[label] - math.log(sum(math.exp(value) for value in z))))
        theirs.append(-math.log((probs[i, 0, label] + probs[i, 1, label]) / 2))
    member, other = found["ours: member"], found["pairjudge"]
    assert (member[0], other[0]) == (f"{sum(ours) / 60:.4f}", f"{sum(theirs) / 60:.4f}")
    assert member[1].split(" ")[0] == f"{(sum(ours) - sum(theirs)) / 60:+.4f}"
    assert other[1] == other[3] == ""
    right = sum(int(z.mean(axis=0).argmax()) == label for z, label in zip(logits, labels, strict=True))
    assert member[4] == f"{right / 60:.1%}"
    assert member[5:] == ["15", "8.00", "5.00", "", ""]  # 40 battles x 2 epochs in 10 s, 20 in 4 s
    assert other[5:] == ["15", "4.00", "4.00", "1,200", "1.50"]
    others = [labels[folds != fold] for fold in folds]
    shares = [((other == label).sum() + 1) / (len(other) + 3) for other, label in zip(others, labels, strict=True)]
    assert found["class shares"][0] == f"{-np.log(shares).mean():.4f}"
    assert found["RewardTrainer, tie threshold"][5:] == [""] * 5
    assert speed(scored, 2.0)[0].startswith("Our member trains 2.00 times and scores 1.25 times")
    calibrated = {name: float(cells[2]) for name, cells in found.items() if name.startswith(("ours", "Reward"))}
    (sentence, _) = beside_rewards(scored)
    difference = float(sentence.removeprefix("Minus RewardTrainer, both calibrated: ours: member ").split(" ")[0])
    rewards = calibrated["RewardTrainer, tie threshold"]
    assert difference == pytest.approx(calibrated["ours: member"] - rewards, abs=1e-4)
    assert beside_rewards(Scored(labels, folds, groups, calibrated={"member": scored.calibrated["member"]})) == []


@pytest.fixture
def battles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with 80 judged battles of 40 prompts, the set "chats"."""
    words = np.random.default_rng(0).choice([f"word{i}" for i in range(4000)], size=(40, 12))
    prompts = [json.dumps([" ".join(row)]) for row in words]
    frame = pl.DataFrame({"id": [str(i) for i in range(80)]}).with_columns(
        prompt=pl.Series([prompts[i // 2] for i in range(80)]),
        response_a=pl.format('["yes {}"]', pl.int_range(80)), response_b=pl.format('["no {}"]', pl.int_range(80)),
        **{name: (pl.int_range(80) % 3 == i).cast(pl.Int8) for i, name in enumerate(WINNER_COLUMNS)},
    )  # fmt: skip
    frame.write_csv(tmp_path / "chats.csv")
    monkeypatch.setitem(students_settings.REAL, "chats", RealSet(("chats.csv",), (), 96, 30, 1.0))
    return tmp_path


def test_other_libraries_get_the_fold_s_battles_with_verdicts_and_validation_battles_of_other_prompts(
    battles: Path, tmp_path: Path
) -> None:
    sizes = {"battles": 0, "tokens": 0, "epochs": 0.0, "folds": 2}
    part = real("chats", "develop", tmp_path, battles, BASES, sizes, {MEMBER: "tiny-llama"}, "tiny-llama")
    folds = prepared(part, "chats", "develop", battles, 10)
    out = tmp_path / "fold"
    out.mkdir()
    write_fold(folds, "pairjudge", 1, out)

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]

    train, held_out, validation = read("train"), read("held_out"), read("validation")
    of_fold = folds.table.filter(pl.col("fold") == 1)["id"].to_list()
    assert [row["id"] for row in held_out] == of_fold
    assert {row["id"] for row in train} == set(folds.table["id"]) - set(of_fold)
    assert len(train) + len(held_out) == 30
    assert len(validation) == 10
    scored_prompts = {tuple(row["prompt"]) for row in [*train, *held_out]}
    assert scored_prompts.isdisjoint(tuple(row["prompt"]) for row in validation)
    for row in [*train, *held_out, *validation]:
        number = int(row["response_a"][0].split(" ")[1])
        verdict = [row["winner_model_a"], row["winner_model_b"], row["winner_tie"]]
        assert verdict == [float(number % 3 == i) for i in range(3)]
    job = json.loads((out / "job.json").read_text())
    assert (job["tokens"], job["epochs"], job["batch"], job["rank"], job["labels"]) == (96, 1.0, 8, 16, "hard")
    assert job["settings"] == {"packer": {"min_tail_budget": 24}}


class Characters:
    """A tokenizer of single characters."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}


@given(
    st.lists(st.tuples(st.text("ab", max_size=60), st.text("cd", max_size=60)), min_size=1, max_size=3),
    st.integers(40, 300),
)
def test_a_reward_model_reads_the_last_response_and_what_comes_before_it(
    turns: list[tuple[str, str]], limit: int
) -> None:
    row = {"prompt": [prompt for prompt, _ in turns], "response_a": [response for _, response in turns]}
    text = "".join(map(chr, _reward_ids(Characters(), row, "a", limit)))
    whole = "\n\n".join(f"### Prompt\n{prompt}\n\n### Response\n{response}" for prompt, response in turns)
    assert len(text) == min(len(whole), limit)
    before, _, response = text.rpartition("### Response\n")
    assert turns[-1][1].startswith(response)
    assert before in whole
    assert len(response) >= min(len(turns[-1][1]), limit // 2)
