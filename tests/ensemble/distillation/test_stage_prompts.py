"""A student that reads battles by settings of its own (`distill.prompts`): trained, exported and served by them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble import Judge
from ensemble.__main__ import main as ensemble_main
from ensemble.distillation.plan import plan_student
from ensemble.distillation.student import read_prompts
from oof import config as configuration
from oof.common.logits_format import logits_of
from oof.data.battles import read_file
from oof.encoding.encode import encode_battles
from oof.model.classifier import load_classifier, load_tokenizer
from oof.training.inference import predict_logits
from tests.fixtures.command_line import digests
from tests.fixtures.demo_run import small_arguments

OWN = [
    "distill.prompts.layout=rounds",
    "distill.prompts.hints=lengths",
    "distill.prompts.max_tokens=150",
    "distill.prompts.score_max_tokens=130",
    "distill.prompts.marker=count",
]


def key_of(run: Path, *settings: str) -> tuple[str, dict[str, str]]:
    path, *overrides = small_arguments(run, *settings)
    plan = plan_student(configuration.load(path, overrides))
    return plan.key, plan.depends


def test_students_depend_on_what_they_read_not_on_where_it_is_set(small_run: Path) -> None:
    key, depends = key_of(small_run)
    assert key == json.loads((small_run / "distill" / "manifest.json").read_text())["key"]
    same, _ = key_of(small_run, "distill.prompts.max_tokens=320", "distill.prompts.hints=none")
    assert same == key
    for setting in OWN:
        other, now = key_of(small_run, setting)
        assert other != key
        assert {name for name, value in now.items() if depends.get(name) != value} == {setting.split("=")[0]}


@pytest.mark.slow
def test_a_student_reads_by_its_own_settings_in_training_scoring_and_serving(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    before = {stage: digests(run / stage) for stage in ("oof", "stack")}
    assert ensemble_main(["distill", f"run={run}", *OWN]) == 0
    assert ensemble_main(["predict", f"run={run}"]) == 0
    assert {stage: digests(run / stage) for stage in ("oof", "stack")} == before  # no new stage one or two
    folder = run / "distill" / "student"
    settings = json.loads((folder / "prompts.json").read_text())
    names = ("layout", "hints", "marker", "max_tokens")
    assert [settings[name] for name in names] == ["rounds", "lengths", "count", 130]
    card = (folder / "README.md").read_text("utf-8")
    assert "`rounds`" in card
    assert "longer than 130 tokens" in card

    # The fold student's stored logits are those of its weights on texts read by its own settings.
    config = configuration.load(run / "config.yaml", [f"run={run}"])
    member, own = config.distill.student, config.for_student().prompts
    tokenizer = load_tokenizer(member.checkpoint, "lengths")
    table = pl.read_parquet(run / "battles.parquet", glob=False).filter(fold=0, role="train")
    encoded = encode_battles(table, tokenizer, own, 130)
    assert encoded.lengths.max() <= 130
    model = load_classifier(member, run / "distill" / "fold-0" / "adapter", tokenizer, seed=0)
    logits = predict_logits(model, member, encoded, tokenizer.pad_token_id, "again")
    stored = pl.read_parquet(run / "distill" / "fold-0" / "logits.parquet", glob=False)
    stored = table.select("id").join(stored, on="id", how="left", maintain_order="left")
    np.testing.assert_allclose(logits_of(stored), logits, atol=1e-4)

    judge = Judge.from_pretrained(folder)
    test = read_file(run / "synth" / "test.csv", "test").table
    assert np.array_equal(judge.encode(table).ids, encoded.ids)
    text = judge.tokenizer.decode(encoded.ids)
    assert " characters, " in text  # hints
    assert " tokens] …" in text  # counts of trimmed texts
    columns = [test[name].to_list() for name in ("prompt", "response_a", "response_b")]
    submission = pl.read_csv(run / "submission.csv", glob=False).drop("id").to_numpy()
    np.testing.assert_allclose(judge.compare_many(*columns), submission, atol=1e-9)


def test_a_student_of_an_older_version_is_read_with_plain_markers(small_run: Path, tmp_path: Path) -> None:
    settings = json.loads((small_run / "distill" / "student" / "prompts.json").read_text())
    assert settings.pop("marker") == "plain"  # older versions had no such setting
    (tmp_path / "prompts.json").write_text(json.dumps(settings))
    assert read_prompts(tmp_path) == read_prompts(small_run / "distill" / "student")


def test_too_few_tokens_of_a_student_name_its_own_setting(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    assert ensemble_main(["distill", f"run={run}", "distill.prompts.max_tokens=32"]) == 2
    message = capsys.readouterr().err
    assert "distill.prompts.max_tokens" in message
    assert "use at least" in message
