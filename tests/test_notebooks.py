"""Both notebooks run from first to last cell, without a network and with the listed packages alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from oof.data.synth import write_arena
from tests.fixtures.demo_run import BASES, ROOT, SMALL
from tests.fixtures.notebooks import canonical, closure, listed_wheels, requirements, run_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = [
    "stack.trials=2", "stack.rounds=20", "jobs.device=cpu",
    *(f"{recipe}.{setting}" for recipe in ("members.gemma2", "members.llama3_2", "distill.student")
      for setting in ("dtype=float32", "train.epochs=0.3")),
]  # fmt: skip


def text_of_outputs(notebook: Any) -> str:
    return "\n".join(json.dumps(cell.get("outputs", [])) for cell in notebook["cells"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_as_shipped_shows_no_error_and_no_path_of_a_machine(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    outputs = text_of_outputs(notebook)
    assert '"output_type": "error"' not in outputs
    assert re.findall(r"/(?:root|home|tmp|work|Users)/[\w.-]+", outputs) == []
    assert all("execution" not in cell["metadata"] for cell in notebook["cells"])


def test_the_kaggle_notebook_lists_every_package_but_torch() -> None:
    listed = listed_wheels(ROOT / "notebooks" / "kaggle.ipynb")
    assert listed is not None
    direct = {canonical(re.split(r"[<>=~!]", name)[0]) for name in requirements()}
    assert direct - listed == {"torch"}
    assert closure(requirements()) <= listed | closure(["torch"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_runs(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    folder = tmp_path / "a folder"
    notebook = run_notebook(ROOT / "notebooks" / "quickstart.ipynb", folder, {"OVERRIDES": " ".join(SMALL)})
    assert (folder / "runs" / "demo" / "report" / "index.html").is_file()
    outputs = text_of_outputs(notebook)
    assert "image/png" in outputs
    assert "llama3_1" in outputs
    assert re.search(r"\('(a|b|tie)',\s+\{'a': ", outputs.replace("\\n", " "))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kaggle_notebook_trains_and_predicts_offline(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    files = write_arena(tmp_path / "competition", 90, 0, 14)
    parameters = {
        "COMPETITION": str(tmp_path / "competition"),
        "WHEELS": str(tmp_path),  # everything is installed: pip finds that out without the network
        "STUDENT": "",
        "BASES": {"gemma2": str(BASES / "tiny-gemma2"), "llama3_2": str(BASES / "tiny-llama")},
        "SETTINGS": TINY,
        "DTYPE": "float32",
        "TOKENS_PER_BATCH": 2048,
    }
    notebook = run_notebook(ROOT / "notebooks" / "kaggle.ipynb", tmp_path / "working", parameters)
    assert "14 battles, 0 of them not reached in time" in text_of_outputs(notebook)
    submission = pl.read_csv(tmp_path / "working" / "submission.csv")
    assert submission.columns == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert submission["id"].to_list() == pl.read_csv(files["test"])["id"].to_list()
    np.testing.assert_allclose(submission.drop("id").to_numpy().sum(axis=1), 1)

    # Another session with a student, whose time is up: the battles get the shares of the classes.
    parameters |= {"STUDENT": str(tmp_path / "working" / "run" / "distill" / "student"), "HOURS": 0.0, "RESERVE": 60}
    notebook = run_notebook(ROOT / "notebooks" / "kaggle.ipynb", tmp_path / "late", parameters)
    assert "14 battles, 14 of them not reached in time" in text_of_outputs(notebook)
    late = pl.read_csv(tmp_path / "late" / "submission.csv").drop("id")
    shares = np.bincount(pl.read_csv(files["train"]).select("^winner.*$").to_numpy().argmax(axis=1)) / 90
    np.testing.assert_allclose(late.to_numpy(), np.tile(shares, (14, 1)))
