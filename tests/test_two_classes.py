"""Data without ties, as the WSDM Cup's: two classes from training to export, a tie has no probability, winners."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn import metrics as sk
from transformers import AutoModelForSequenceClassification

from ensemble import Judge
from ensemble.__main__ import main as ensemble_main
from oof.__main__ import main as oof_main
from oof.audit.run import audit_run
from oof.data.battles import read_file
from oof.jobs.dataset import load_battles
from tests.fixtures.demo_run import BASES, ROOT
from tests.fixtures.wsdm_files import N_TEST, write_wsdm

N = 180  # 60 battles for each of three folds
MODELS = {
    "members.gemma2": BASES / "tiny-gemma2",
    "members.qwen2_5": BASES / "tiny-llama",
    "distill.student": BASES / "tiny-gemma2",
}
NO_TIE = 1e-12  # largest probability of a tie
FAST = ["folds.k=3", "prompts.max_tokens=320", "prompts.score_max_tokens=320", "stack.trials=2", "stack.rounds=20"]


def arguments(run: Path, files: dict[str, Path]) -> list[str]:
    """Return the arguments of configs/wsdm.yaml with tiny bases in place of the large ones."""
    models = [
        f"{owner}.{setting}"
        for owner, base in MODELS.items()
        for setting in (f"checkpoint={base}", "dtype=float32", "train.lr=2e-3", "train.head_lr=5e-3", "train.epochs=1")
    ]
    data = [f"data.{role}=[{path}]" for role, path in files.items()]
    return [str(ROOT / "configs" / "wsdm.yaml"), f"run={run}", *data, *models, *FAST]


def test_files_of_the_wsdm_cup_are_read_as_they_are(tmp_path: Path) -> None:
    files = write_wsdm(tmp_path, 30)
    train, test = read_file(files["train"], "train"), read_file(files["test"], "test")
    assert list(train.schemas.values()) == ["WSDM Cup 2025 (plain texts)"]
    assert set(train.table["label"]) == {0, 1}
    assert any("no battle has the verdict tie" in str(problem) for problem in train.problems)
    assert test.table["id"].to_list() == pl.read_parquet(files["test"])["id"].to_list()
    assert test.table["label"].null_count() == N_TEST


@pytest.mark.parametrize("ties", ["true", "false"])
@pytest.mark.parametrize("calibrator", [pytest.param("temperature", marks=pytest.mark.slow), "vector"])
def test_the_stack_of_logits_without_ties_gives_a_tie_next_to_no_probability(
    tmp_path: Path, calibrator: str, ties: str
) -> None:
    rng = np.random.default_rng(0)
    signal, ids = rng.normal(size=240), [f"b{i}" for i in range(240)]
    label = (rng.random(240) > 1 / (1 + np.exp(-2 * signal))).astype(int)
    pl.DataFrame({"id": ids, "label": label}).write_csv(tmp_path / "labels.csv")
    for name in ("one", "two"):
        margin = signal + rng.normal(size=240) / 2
        columns = {"id": ids, "ab_a": margin, "ab_b": -margin}
        columns |= {"ab_tie": np.full(240, -4.0)} if ties == "true" else {}
        pl.DataFrame(columns).write_csv(tmp_path / f"{name}.csv")
    logits = [f"stack.logits.{name}={tmp_path / name}.csv" for name in ("one", "two")]
    demo = [str(ROOT / "configs" / "demo.yaml"), f"run={tmp_path / 'run'}", f"data.train=[{tmp_path / 'labels.csv'}]"]
    settings = [f"stack.calibrator={calibrator}", f"data.ties={ties}", *FAST[3:]]
    assert ensemble_main(["stack", *demo, *logits, *settings]) == 0
    predicted = pl.read_parquet(tmp_path / "run" / "stack" / "predictions.parquet")
    probs = predicted.select(pl.col("^.*[|](a|b|tie)$")).to_numpy()
    assert np.isfinite(probs).all()
    assert predicted["calibrated|tie"].max() < (0.05 if ties == "true" else NO_TIE)


@pytest.mark.slow
def test_every_stage_runs_on_data_without_ties_and_the_submission_names_the_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, files = tmp_path / "run", write_wsdm(tmp_path, N, seed=3)
    given = arguments(run, files)
    assert oof_main(["oof", *given]) == 0
    with_ties = tmp_path / "with_ties.yaml"
    with_ties.write_text(Path(given[0]).read_text("utf-8").replace("ties: false", "ties: true"), encoding="utf-8")
    assert ensemble_main(["stack", str(with_ties), *given[1:]]) == 2
    assert "stage one was made with data.ties=False, now it is True" in capsys.readouterr().err
    for subcommand in ("stack", "distill", "predict", "table", "ablate"):
        assert ensemble_main([subcommand, *given]) == 0
    assert ensemble_main(["report", str(run)]) == 0
    assert [finding.check for finding in audit_run(run) if finding.status == "violated"] == []

    labels = load_battles(run)["label"].to_numpy()
    losses = json.loads((run / "metrics.json").read_text())["log_loss"]
    stacked = pl.read_parquet(run / "stack" / "predictions.parquet")
    assert (stacked.select(pl.col("^.*[|]tie$")).to_numpy() < NO_TIE).all()
    for name in ("prior", "length_only", "text", "mean", "combiner:logistic", "stack", "calibrated"):
        two = stacked.select(f"{name}|a", f"{name}|b").to_numpy()
        assert losses[name]["value"] == pytest.approx(sk.log_loss(labels, two), abs=1e-9)
    report = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"Imbalance|tie recall|<h2>Ties|tie calibration error|verdict: tie", report)
    assert losses["calibrated"]["value"] < np.log(2)  # of a coin
    assert pl.read_parquet(run / "distill" / "predictions.parquet")["student|tie"].max() < NO_TIE

    winners = pl.read_csv(run / "submission.csv")
    assert winners.columns == ["id", "winner"]
    assert winners["id"].to_list() == pl.read_parquet(files["test"])["id"].to_list()
    assert set(winners["winner"]) == {"model_a", "model_b"}
    for model in ("student", "ensemble"):
        assert ensemble_main(["predict", *given, "predict.format=probabilities", f"predict.model={model}"]) == 0
        probs = pl.read_csv(run / "submission.csv")
        assert probs["winner_tie"].max() < NO_TIE
        if model == "student":
            more_probable = np.where(probs["winner_model_a"] >= probs["winner_model_b"], "model_a", "model_b")
            assert winners["winner"].to_list() == more_probable.tolist()
    _exported_student_is_a_plain_classifier_of_two_labels(run)


def _exported_student_is_a_plain_classifier_of_two_labels(run: Path) -> None:
    folder = run / "distill" / "student"
    plain = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    assert plain.config.id2label == {0: "winner_model_a", 1: "winner_model_b"}
    assert plain.score.weight.shape[0] == plain.config.num_labels == 2
    judge = Judge.from_pretrained(folder)
    table = load_battles(run).head(2)
    encoded = judge.encode(table)
    with torch.inference_mode():
        logits = plain(input_ids=torch.from_numpy(encoded.sequence(0, 0)[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(judge.logits(table)[0, 0, :2], logits, atol=1e-4)
    verdict = judge.compare("What is it?", "A word.", "Nothing at all.")
    assert verdict.tie < NO_TIE
    assert verdict.a + verdict.b == pytest.approx(1)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "It has two classes" in card
    assert "winner_tie" not in card
