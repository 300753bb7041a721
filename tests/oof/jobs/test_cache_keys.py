"""Content keys of trainings: pinned for older configurations, and free of settings that change speed only."""

from __future__ import annotations

from dataclasses import Field, replace
from typing import Any

import pytest

from oof import config as configuration
from oof.common.digests import digest
from oof.config import Config, Member, Train, without_speed_settings
from oof.config.load import OVERRIDES, parse_overrides, read_yaml, resolve
from oof.config.setting import default_of, settings
from oof.config.stored import with_older_values
from oof.jobs import cache_keys
from oof.jobs.fold_job import FoldJob
from oof.jobs.pretrain import PretrainJob, pretrain_job
from tests.fixtures.demo_run import ROOT

# First digits of the keys that commit bbc8c8a gave (fold 1, pretraining): run folders made by it must stay valid. Its
# configurations other than the demo are in tests/fixtures/golden/configs, since the shipped ones have changed.
MEMBER_KEYS = {
    ("demo", "gemma2"): ("d9db75dc7518a4ed", "567e181001f72a55"),
    ("demo", "llama3_1"): ("f04c2091b17bb716", "40d45d226ff2f0e8"),
    ("lmsys-24gb", "gemma2"): ("b21ce98da52970b6", "30428675b2056f31"),
    ("lmsys-24gb", "llama3_1"): ("58eba02fc3c36428", "0a6cd152d42f206f"),
    ("lmsys-2xt4", "gemma2"): ("cd642613dddced5f", "85d3f6a907adfcb7"),
    ("lmsys-2xt4", "llama3_2"): ("c1df1957b002539b", "97921bfa7c3bbabd"),
    ("lmsys-8gpu", "gemma2"): ("3f0f2325a695746a", "707b576e1b9ce9c8"),
    ("lmsys-8gpu", "llama3_1"): ("56a0431ecac5af24", "ce4162ad9d133fde"),
    ("lmsys", "gemma2"): ("3f0f2325a695746a", "707b576e1b9ce9c8"),
    ("lmsys", "llama3_1"): ("56a0431ecac5af24", "ce4162ad9d133fde"),
}
# The same of stage three's settings, its pretraining, and stage two's settings. lmsys-24gb and lmsys-2xt4 are missing:
# their students set activation checkpointing, which that commit wrongly had in the key.
LATER_KEYS = {
    "demo": ("96f8a625e8a9f084", "ee3744f5c12b4deb", "904ac5ea46234556"),
    "lmsys-8gpu": ("920ac09a39acfbbb", "707b576e1b9ce9c8", "c7b3635d8dcabcef"),
    "lmsys": ("920ac09a39acfbbb", "707b576e1b9ce9c8", "c7b3635d8dcabcef"),
}
GOLDEN = ROOT / "tests" / "fixtures" / "golden" / "configs"
SPEED_ONLY = {
    "activation_checkpointing": "on",
    "frozen": "stored",
    "score_tokens_per_batch": 512,
}


def older(name: str, *overrides: str) -> Config:
    changes = parse_overrides(["pretrain.data=[x]", *overrides])
    return resolve(
        {name: with_older_values(read_yaml(GOLDEN / f"{name}.yaml")), OVERRIDES: changes}, run=f"runs/{name}"
    )


@pytest.fixture(autouse=True)
def _checkpoints_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_keys, "checkpoint_digest", lambda checkpoint: checkpoint)


@pytest.mark.parametrize(("config", "member"), MEMBER_KEYS)
def test_keys_of_fold_jobs_and_pretraining_are_those_of_existing_runs(config: str, member: str) -> None:
    loaded = older(config)
    keys = FoldJob(loaded, member, 1, "battles").step.key, PretrainJob(loaded, member, "pairs").step.key
    assert tuple(key[:16] for key in keys) == MEMBER_KEYS[config, member]


@pytest.mark.parametrize("config", LATER_KEYS)
def test_settings_of_stages_two_and_three_digest_as_in_existing_runs(config: str) -> None:
    loaded = older(config, "stack.final=auto", "stack.calibrator=temperature")  # the defaults of that commit
    student = digest(without_speed_settings(replace(loaded.distill, variants=[])))
    keys = student, PretrainJob(loaded, None, "pairs").step.key, digest(without_speed_settings(loaded.stack))
    assert tuple(key[:16] for key in keys) == LATER_KEYS[config]


@pytest.mark.parametrize("setting", SPEED_ONLY)
def test_a_speed_only_setting_changes_no_key(setting: str) -> None:
    name = f"train.{setting}" if setting == "activation_checkpointing" else setting
    overrides = [f"{owner}.{name}={SPEED_ONLY[setting]}" for owner in ("members.gemma2", "distill.student")]
    before, after = older("demo"), older("demo", *overrides)
    assert before != after
    for name_or_student in ("gemma2", None):
        jobs = [PretrainJob(config, name_or_student, "pairs") for config in (before, after)]
        assert jobs[0].step.key == jobs[1].step.key
    assert FoldJob(before, "gemma2", 0, "b").step.key == FoldJob(after, "gemma2", 0, "b").step.key
    assert without_speed_settings(before.distill) == without_speed_settings(after.distill)


@pytest.mark.parametrize("setting", ["train.lr=0.5", "train.tokens_per_batch=64", "lora.rank=3", "dtype=bfloat16"])
def test_any_other_setting_changes_the_key_and_is_named(setting: str) -> None:
    before, after = (FoldJob(c, "gemma2", 0, "b") for c in (older("demo"), older("demo", f"members.gemma2.{setting}")))
    assert before.step.key != after.step.key
    changed = [name for name, value in before.depends.items() if after.depends[name] != value]
    assert changed == [setting.split("=")[0]]


def test_the_classes_are_in_the_key_where_a_battle_cannot_end_in_a_tie() -> None:
    before, after = (FoldJob(c, "gemma2", 0, "b") for c in (older("demo"), older("demo", "data.ties=false")))
    assert {name for name, value in after.depends.items() if before.depends.get(name) != value} == {"data.ties"}
    assert before.step.key != after.step.key


def as_older(field: Field[Any]) -> bool:
    return bool(field.metadata["added"] and default_of(field) == field.metadata["older"])


def test_every_setting_of_a_member_is_in_its_key_unless_it_changes_speed_only() -> None:
    parts = cache_keys.training_key_parts(Config(), Member(), "battles")
    plain = configuration.to_dict(Member())
    own = {name for name in plain if name not in ("lora", "train")}
    nested = {f"{section}.{name}" for section in ("lora", "train") for name in plain[section]}
    added = {name for name, field in settings(Member).items() if as_older(field)}
    added |= {f"train.{name}" for name, field in settings(Train).items() if as_older(field)}
    assert "train.head_init" not in added  # whose default is new
    assert {"frozen", "revision"} <= added  # left out of the keys while they have their defaults
    assert set(parts) == (own | nested | {"prompts", "seed", "battles"}) - added


def test_the_students_own_prompts_are_in_the_key_of_its_pretraining_and_in_no_members() -> None:
    before, after = older("demo"), older("demo", "distill.prompts.hints=lengths")
    assert FoldJob(before, "gemma2", 0, "b").step.key == FoldJob(after, "gemma2", 0, "b").step.key
    keys = [[pretrain_job(config, name, "pairs") for config in (before, after)] for name in ("gemma2", None)]
    (member, same), (student, other) = [[job.step.key for job in jobs if job] for jobs in keys]
    assert member == same
    assert student != other
    assert other == PretrainJob(older("demo", "prompts.hints=lengths"), None, "pairs").step.key
