"""Audit of the weights that students start from: a start that has seen the student's fold is caught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oof.audit.run import audit_run, format_findings
from oof.audit.student_start import NAME
from tests.fixtures.audit_runs import K, violated


def write_students(run: Path, shift: int = 0, key: str = "k") -> None:
    """Write manifests of fold students k that started from member one's fold job k + ``shift``."""
    for fold in range(K):
        folder = run / "distill" / f"fold-{fold}"
        folder.mkdir(parents=True)
        start = {"member": "one", "fold": (fold + shift) % K, "key": key}
        (folder / "job.json").write_text(json.dumps({"fold": fold, "start": [start]}))


@pytest.mark.parametrize(
    ("shift", "key", "caught"), [(0, "k", False), (1, "k", True), (1, "of an earlier version", False)]
)
def test_a_start_that_trained_on_the_fold_of_its_student_is_caught(
    run: Path, shift: int, key: str, caught: bool
) -> None:
    write_students(run, shift, key)
    assert violated(audit_run(run)) == ({NAME} if caught else set())
    text = format_findings(audit_run(run))
    assert f"{K} fold students" in text
    assert ("student fold 0 started from one/fold-1, which trained on the group of b" in text) == caught


def test_students_of_the_base_have_no_finding_and_a_damaged_manifest_is_violated(run: Path) -> None:
    write_students(run)
    manifest = run / "distill" / "fold-0" / "job.json"
    manifest.write_text(json.dumps({"fold": 0, "start": ["one"]}))
    assert violated(audit_run(run)) == {NAME}
    for path in (run / "distill").glob("*/job.json"):
        path.write_text(json.dumps({"fold": 0}))
    assert NAME not in {finding.check for finding in audit_run(run)}
