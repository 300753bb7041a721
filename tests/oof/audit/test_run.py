"""Audit: a sound run passes, and each deliberately broken run is caught by the check for that fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from oof.audit import prompts as prompt_audit
from oof.audit.run import audit_run, format_findings
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS
from oof.config import Groups
from tests.fixtures.audit_runs import K, N, battles, change_table, in_fold, violated, write_job, write_sound_run
from tests.fixtures.small_tables import HEADER, WORDS, groups_of, sentence, table_of
from tests.fixtures.text_similarity import similarity


def change_job(run: Path, change: Callable[[pl.DataFrame, pl.Series], tuple[pl.DataFrame, pl.Series]]) -> None:
    """Change one fold job's logits or list of trained battles; its manifest stays consistent."""
    job = run / "oof" / "two" / "fold-1"
    logits, trained = change(pl.read_parquet(job / "logits.parquet"), pl.read_parquet(job / "trained.parquet")["id"])
    write_job(job, logits, trained)


def zeroed(logits: pl.DataFrame, order: str, value: float) -> pl.DataFrame:
    """Set the three logits of the first battle in one order to one value."""
    first = pl.int_range(pl.len()) == 0
    constant = pl.lit(value, pl.Float32)
    return logits.with_columns(
        *(pl.when(first).then(constant).otherwise(c).alias(c) for c in LOGIT_COLUMNS if c.startswith(order))
    )


def test_a_sound_run_passes_every_check(run: Path) -> None:
    findings = audit_run(run)
    assert {finding.status for finding in findings} == {"ok"}
    assert [f.message for f in findings if f.check == "scored battles repeated in extra"] == [
        "1, each held out together with its battle"
    ]
    assert len([f for f in findings if f.check.startswith("job ")]) == 2 * K
    assert format_findings(findings).endswith(f"audit: {len(findings)} ok, 0 warning, 0 violated")


def test_a_battle_moved_out_of_its_groups_fold_is_caught(run: Path) -> None:
    change_table(run, in_fold("b0", (pl.col("fold") + 1) % K))
    findings = audit_run(run)
    expected = {"groups across folds", "near-duplicate prompts across folds", "scored battles repeated in extra"}
    jobs = {f"job {member}/fold-{fold}" for member in ("one", "two") for fold in range(K)}
    assert violated(findings) - jobs == expected | {"equal prompts across folds"}  # b0 is also in extra, word for word
    assert violated(findings) & jobs


def test_grouping_switched_off_is_caught(tmp_path: Path) -> None:
    table = battles().with_columns(group_key=pl.col("id"))
    write_sound_run(tmp_path, table, Groups(column="id"))
    assert {"near-duplicate prompts across folds", "equal prompts across folds"} <= violated(audit_run(tmp_path))


def test_near_duplicates_in_groups_of_their_own_are_caught_without_equal_prompts(run: Path) -> None:
    """b100 is b20 with one more word: regrouped and moved, it is found by the exact comparison only."""
    before = pl.read_parquet(run / "battles.parquet")
    assert before.filter(pl.col("id").is_in(["b20", "b100"]))["group"].n_unique() == 1

    def change(table: pl.DataFrame) -> pl.DataFrame:
        own = pl.when(pl.col("id") == "b100").then(100_000).otherwise("group").alias("group")
        return in_fold("b100", (pl.col("fold") + 1) % K)(table.with_columns(own))

    change_table(run, change)
    findings = audit_run(run)
    assert violated(findings) == {"near-duplicate prompts across folds"}
    assert "battles b100 and b20" in format_findings(findings) or "battles b20 and b100" in format_findings(findings)


def test_an_extra_battle_free_to_train_on_beside_its_scored_twin_is_caught(run: Path) -> None:
    change_table(run, in_fold(f"b{N}", pl.lit(-1)))
    assert {"scored battles repeated in extra", "groups across folds"} <= violated(audit_run(run))


def test_an_extra_twin_is_caught_even_with_an_empty_prompt(run: Path) -> None:
    def change(table: pl.DataFrame) -> pl.DataFrame:
        twin = pl.col("id").is_in(["b0", f"b{N}"])
        table = table.with_columns(prompt=pl.when(twin).then(pl.lit([""])).otherwise("prompt"))
        alone = pl.when(pl.col("id") == f"b{N}").then(100_000).otherwise("group").alias("group")
        return in_fold(f"b{N}", pl.lit(-1))(table.with_columns(alone))

    change_table(run, change)
    assert violated(audit_run(run)) == {"scored battles repeated in extra"}


def test_a_job_that_trained_on_a_predicted_group_is_caught_by_name(run: Path) -> None:
    table = pl.read_parquet(run / "battles.parquet").filter(pl.col("role") == "train")
    pair = table.filter((pl.col("fold") == 1) & pl.col("group").is_duplicated()).sort("group")["id"][:2]

    def swap(logits: pl.DataFrame, trained: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        return logits, pl.concat([trained, pair[:1]])

    change_job(run, swap)
    findings = audit_run(run)
    assert violated(findings) == {"job two/fold-1"}
    assert f"{pair[1]} was predicted, {pair[0]} trained on" in format_findings(findings)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits, trained: (logits[1:], trained),  # a battle without a prediction
        lambda logits, trained: (pl.concat([logits, logits[:1]]), trained),  # predicted twice
        lambda logits, trained: (logits.with_columns(fold=pl.lit(2, pl.Int32)), trained),  # another fold's name
        lambda logits, trained: (logits.with_columns(id=pl.lit("stranger") + pl.col("id")), trained),
        lambda logits, trained: (logits.with_columns(ab_tie=pl.lit(float("nan"), pl.Float32)), trained),
        lambda logits, trained: (zeroed(logits, "ba", 0.0), trained),  # a row that no process scored
        lambda logits, trained: (zeroed(logits, "ab", 0.5), trained),  # a constant row
        lambda logits, trained: (logits.with_columns(ba_a=pl.lit(None, pl.Float32)), trained),
        lambda logits, trained: (logits.with_columns(ab_a=pl.col("ab_a") + 1), trained),  # joined file is stale
        lambda logits, trained: (logits, pl.concat([trained, trained[:1]])),  # trained twice on one battle
        lambda logits, trained: (logits, pl.concat([trained, pl.Series(["stranger"])])),
    ],
)
def test_broken_predictions_are_caught(
    run: Path, change: Callable[[pl.DataFrame, pl.Series], tuple[pl.DataFrame, pl.Series]]
) -> None:
    change_job(run, change)
    assert violated(audit_run(run))
    assert all("two" in check for check in violated(audit_run(run)))


def test_files_changed_after_the_job_are_caught(run: Path) -> None:
    path = run / "oof" / "one" / "fold-0" / "trained.parquet"
    pl.read_parquet(path).reverse().write_parquet(path)
    assert violated(audit_run(run)) == {"job one/fold-0"}


def test_a_job_that_trained_on_more_than_it_lists_is_caught(run: Path) -> None:
    path = run / "oof" / "one" / "fold-0" / "job.json"
    facts = read_json(path)
    path.write_text(json.dumps({**facts, "n_trained": facts["n_trained"] + 1}))
    assert violated(audit_run(run)) == {"job one/fold-0"}


@pytest.mark.parametrize("name", ["job.json", "logits.parquet", "trained.parquet"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_missing_and_damaged_job_files_are_violations_not_tracebacks(run: Path, name: str, damage: str) -> None:
    path = run / "oof" / "one" / "fold-2" / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"[1, 2]")
    findings = audit_run(run)
    assert violated(findings)
    assert "two" not in " ".join(violated(findings))


def test_a_missing_fold_job_is_caught(run: Path) -> None:
    shutil.rmtree(run / "oof" / "one" / "fold-3")
    assert "predictions of one" in violated(audit_run(run))


def test_a_job_left_from_another_number_of_folds_is_caught(run: Path) -> None:
    shutil.copytree(run / "oof" / "one" / "fold-3", run / "oof" / "one" / f"fold-{K}")
    assert "predictions of one" in violated(audit_run(run))


def test_a_member_without_joined_logits_is_caught(run: Path) -> None:
    (run / "oof" / "one" / "logits.parquet").unlink()
    assert violated(audit_run(run)) == {"predictions of one"}


def test_logits_from_elsewhere_are_a_warning(run: Path) -> None:
    for fold in range(K):
        shutil.rmtree(run / "oof" / "one" / f"fold-{fold}")
    findings = audit_run(run)
    assert not violated(findings)
    assert [f.check for f in findings if f.status == "warning"] == ["predictions of one"]


def test_a_run_without_members_is_caught(run: Path) -> None:
    shutil.rmtree(run / "oof")
    assert violated(audit_run(run)) == {"predictions"}


def test_tables_that_disagree_are_caught(run: Path) -> None:
    folds = pl.read_parquet(run / "folds.parquet")
    in_fold("b5", (pl.col("fold") + 1) % K)(folds).write_parquet(run / "folds.parquet")
    assert violated(audit_run(run)) == {"tables"}


def test_repeated_ids_are_caught(run: Path) -> None:
    change_table(run, lambda table: pl.concat([table, table[:1]]))
    assert "tables" in violated(audit_run(run))


def test_an_empty_fold_is_caught(run: Path) -> None:
    change_table(run, lambda table: table.with_columns(fold=pl.col("fold").replace(3, 2)))
    assert "fold balance" in violated(audit_run(run))


def test_uneven_folds_are_a_warning(run: Path) -> None:
    def change(table: pl.DataFrame) -> pl.DataFrame:
        ties = (pl.col("group") % 2 == 0) & (pl.col("fold") == 0)
        return table.with_columns(label=pl.when(ties).then(2).otherwise("label").cast(pl.Int8))

    change_table(run, change)
    assert [f.check for f in audit_run(run) if f.status != "ok"] == ["fold balance"]


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"battles\.parquet: no such file"):
        audit_run(tmp_path)
    write_sound_run(tmp_path)
    (tmp_path / "folds.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"folds\.parquet"):
        audit_run(tmp_path)


def test_without_run_json_the_default_settings_are_used(run: Path) -> None:
    (run / "run.json").unlink()
    assert not violated(audit_run(run))
    (run / "run.json").write_text(json.dumps({"config": {"groups": {"no such": 1}}}))
    with pytest.raises(UserError, match=r"run\.json"):
        audit_run(run)


def test_prompts_alike_by_a_template_alone_are_not_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    header = sentence(rng, 30)
    write_sound_run(tmp_path, table_of([f"{header}: {sentence(rng, 3)}" for _ in range(60)]))
    assert not violated(audit_run(tmp_path))


@pytest.mark.parametrize("threshold", [pytest.param(0.5, marks=pytest.mark.slow), 0.7, 0.9])
def test_nothing_is_reported_if_each_group_is_a_fold(threshold: float) -> None:
    """The hardest folds for the audit: templates, templates inside templates, small edits and edited copies."""
    rng = np.random.default_rng(0)
    inner = [f"{HEADER} {sentence(rng, 8)}" for _ in range(3)]
    prompts = [f"{HEADER}: {' '.join(rng.choice(WORDS, rng.integers(1, 4)))}" for _ in range(150)]
    prompts += [f"{inner[i % 3]} {' '.join(rng.choice(WORDS, rng.integers(1, 20)))}" for i in range(150)]
    prompts += [f"{prompt} please" for prompt in prompts[::3]] + [p.replace("river", "lake", 1) for p in prompts[::3]]
    groups = groups_of(*prompts, config=Groups(threshold=threshold))
    assert prompt_audit.near_duplicates(table_of(prompts, fold=groups), threshold, 1000)[1] == []


def test_near_duplicates_under_a_template_in_different_folds_are_reported() -> None:
    rng = np.random.default_rng(0)
    header = sentence(rng, 30)
    prompts = [f"{header}: {sentence(rng, 20)}" for _ in range(60)]
    table = table_of([*prompts, f"{prompts[7]} please"], fold=[0] * 60 + [1])
    _, split = prompt_audit.near_duplicates(table, 0.7, 1000)
    assert {(pair.one, pair.other) for pair in split} <= {("b7", "b60"), ("b60", "b7")}
    assert len(split) == 1


def test_near_duplicates_by_brute_force() -> None:
    """Every reported pair is alike by Python sets, and without templates every clear pair is reported."""
    rng = np.random.default_rng(0)
    prompts = [sentence(rng, 20) for _ in range(40)]
    for i in range(40):
        words = prompts[i].split()
        for at in rng.choice(6, int(rng.integers(0, 5)), replace=False):
            words[at] = "edited"
        prompts.append(" ".join(words))
    folds = rng.integers(0, 3, 80)
    table = table_of(prompts, fold=folds.tolist())
    _, split = prompt_audit.near_duplicates(table, 0.7, 1000)
    expected = {
        frozenset((f"b{i}", f"b{j}"))
        for i in range(80)
        for j in range(i)
        if folds[i] != folds[j] and similarity(prompts[i], prompts[j]) >= 0.75
    }
    assert {frozenset((pair.one, pair.other)) for pair in split} == expected
    assert len(expected) > 5
