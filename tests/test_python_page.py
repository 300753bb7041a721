"""The examples of the reference page of the Python API run as they are, with polars and with pandas."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oof.data.synth import write_arena
from tests.fixtures.demo_run import ROOT

PAGE = ROOT / "docs" / "reference" / "python-api.md"


@pytest.mark.parametrize("library", ["polars", "pandas"])
def test_five_things_work_from_the_page_alone(
    library: str, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    shutil.copy(write_arena(tmp_path / "arena", 120, 0, 8)["train"], tmp_path / "train.csv")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(small_run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 5
    if library == "pandas":  # its frames are made alike
        blocks[0] = f"import pandas\n{blocks[0].replace('pl.', 'pandas.')}"
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  # our own page

    assert set(names["folds"].tolist()) == {0, 1, 2}
    assert names["table"]["label"].to_list() == [0, 1]
    assert (tmp_path / "table.svg").stat().st_size > 1000
    assert names["temperature"].temperature_ > 0
    for probs in (names["probabilities"], names["out_of_fold"], names["new"]):
        np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert names["verdict"].winner in ("a", "b", "tie")
    assert names["a"] + names["b"] + names["tie"] == pytest.approx(1)
    assert "log_pool" in capsys.readouterr().out
