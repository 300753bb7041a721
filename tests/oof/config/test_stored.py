"""Settings that a run remembers: what is stored, what a later command starts from, runs of older versions."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import yaml

from oof.common.errors import UserError
from oof.config import load, to_dict
from oof.config.stored import FILES, STORED, load_for_run, store_settings, stored_settings, with_older_values
from tests.fixtures.demo_run import ROOT

DEMO = str(ROOT / "configs" / "demo.yaml")


def stored(run: Path, *overrides: str) -> Path:
    """Store the demo's settings in a run folder; return it."""
    run.mkdir(parents=True, exist_ok=True)
    store_settings(load(DEMO, [f"run={run}", *overrides]))
    return run


def test_a_later_command_starts_from_the_stored_settings(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "stack.trials=7", "members.gemma2.attn_softcap=off", "data.train=[é ü.csv]")
    assert load_for_run(None, [f"run={run}"]) == load(
        DEMO, [f"run={run}", "stack.trials=7", "members.gemma2.attn_softcap=off", "data.train=[é ü.csv]"]
    )
    changed = load_for_run(None, [f"run={run}", "stack.trials=8"])
    assert (changed.stack.trials, changed.data.train) == (8, ["é ü.csv"])


def test_the_stored_file_is_a_configuration_that_a_person_can_read(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "data.train=[é.csv]")
    text = (run / STORED).read_text("utf-8")
    assert text.startswith("# Settings of this run")
    assert "- é.csv" in text
    assert load(run / STORED, []) == load_for_run(None, [f"run={run}"])


def test_a_configuration_that_is_named_replaces_all_stored_settings(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "stack.trials=7")
    assert load_for_run(DEMO, [f"run={run}"]).stack.trials == 12
    assert load_for_run(None, [f"run={tmp_path / 'new'}"], default=DEMO).stack.trials == 12
    assert load_for_run(None, [f"run={run}"], default=DEMO).stack.trials == 7


def test_a_stage_stores_only_the_settings_that_it_reads_first(tmp_path: Path) -> None:
    run = stored(tmp_path / "run")
    config = load(DEMO, [f"run={run}", "stack.trials=7", "seed=3", "data.test=[b.csv]", "predict.model=ensemble"])
    store_settings(config, ("predict", "data.test"))
    now = load_for_run(None, [f"run={run}"])
    assert (now.predict.model, now.data.test, now.seed, now.stack.trials) == ("ensemble", ["b.csv"], 0, 12)


def test_a_mapping_that_is_given_as_a_whole_is_not_merged_with_the_stored_one(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "stack.logits={a: a.csv, b: b.csv}", "data.columns={prompt: q}")
    config = load_for_run(None, [f"run={run}", "stack.logits={c: c.csv}", "data.columns.id=key"])
    assert config.stack.logits == {"c": "c.csv"}
    assert config.data.columns == {"prompt": "q", "id": "key"}


def test_paths_start_where_the_run_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first ü", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    monkeypatch.chdir(first)
    run = stored(Path("runs/mine"), "data.train=[train.csv]")
    (run / FILES).write_text(json.dumps({"folder": str(first), "files": {}}))
    monkeypatch.chdir(second)
    config = load_for_run(None, [f"run={first / 'runs/mine'}", "data.test=[test.csv]"])
    assert Path.cwd() == first
    assert config.run == "runs/mine"  # as it was first written: content keys hold it
    assert config.data.train == ["train.csv"]
    assert config.data.test == [str(second / "test.csv")]
    os.rename(first / "runs", second / "runs")  # a moved run has a path of its own
    monkeypatch.chdir(second)
    assert load_for_run(None, ["run=runs/mine"]).run == str(second / "runs/mine")


def test_settings_of_an_older_run_are_those_of_its_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = to_dict(load(DEMO, [f"run={tmp_path}", "stack.trials=7"]))
    tree["jobs"]["parallel"] = "fsdp"  # a setting that is gone
    tree["members"]["gemma2"]["gone"] = 1
    del tree["predict"]  # a section that was added later
    (tmp_path / "run.json").write_text(json.dumps({"config": tree}))
    with caplog.at_level(logging.WARNING):
        config = load_for_run(None, [f"run={tmp_path}"])
    assert config == load(DEMO, [f"run={tmp_path}", "stack.trials=7"])
    assert "jobs.parallel: this version has no such setting" in caplog.text
    store_settings(config, ("distill",))
    assert yaml.safe_load((tmp_path / STORED).read_text("utf-8"))["stack"]["trials"] == 7


def test_a_setting_that_is_gone_is_left_out_of_what_a_run_remembers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored(tmp_path)
    before = load_for_run(None, [f"run={tmp_path}"])
    tree = yaml.safe_load((tmp_path / STORED).read_text())
    tree["distill"]["names"] = False
    tree["pretrain"] = None  # emptied by hand
    (tmp_path / STORED).write_text(yaml.safe_dump(tree))
    with caplog.at_level(logging.WARNING):
        assert load_for_run(None, [f"run={tmp_path}"]) == before
    assert f"{tmp_path / STORED}: distill.names: this version has no such setting; it is left out" in caplog.text


def test_a_run_that_was_made_before_a_setting_keeps_what_it_did(tmp_path: Path) -> None:
    stored(tmp_path)
    tree = yaml.safe_load((tmp_path / STORED).read_text())
    for recipe in (*(member["train"] for member in tree["members"].values()), tree["distill"]["student"]["train"]):
        assert recipe.pop("head_init") == "zero"
    (tmp_path / STORED).write_text(yaml.safe_dump(tree))
    again = load_for_run(None, [f"run={tmp_path}"])
    models = [*again.members.values(), again.distill.student]
    assert [model.train.head_init for model in models] == ["random"] * 3
    assert load_for_run(DEMO, [f"run={tmp_path}"]).members["gemma2"].train.head_init == "zero"


@pytest.mark.parametrize("content", ["- a", "a: [", "\x00", ""])
def test_damaged_settings_are_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    run = stored(tmp_path / "run")
    (run / STORED).write_text(content)
    if content == "":
        assert stored_settings(run) == with_older_values({})
        return
    with pytest.raises(UserError, match=r"config.yaml: damaged.*CONFIG=FILE"):
        load_for_run(None, [f"run={run}"])
    store_settings(load(DEMO, [f"run={run}"]), ("stack",))
    assert load_for_run(None, [f"run={run}"]).stack.trials == 12


def test_a_run_that_remembers_nothing_is_named_with_those_that_do(tmp_path: Path) -> None:
    for name in ("a", "b"):
        stored(tmp_path / name)
    with pytest.raises(UserError, match=rf"runs here: {tmp_path}/a, {tmp_path}/b"):
        load_for_run(None, [f"run={tmp_path / 'c'}"])
    with pytest.raises(UserError, match="name a configuration"):
        load_for_run(None, ["stack.trials=3"])
