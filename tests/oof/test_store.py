from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from oof import store
from oof.errors import UserError


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with store.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_step_is_done_only_with_its_key_and_intact_files(tmp_path: Path) -> None:
    step = store.Step(tmp_path / "s", "key")
    assert not step.done
    step.begin()
    (step.folder / "a").write_bytes(b"1234")
    assert not step.done
    step.finish({"fact": 1})
    manifest = step.manifest()
    assert manifest is not None
    assert manifest["fact"] == 1
    assert not store.Step(tmp_path / "s", "other").done
    (step.folder / "a").write_bytes(b"1235")
    assert not step.done


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "key"}', '{"key": "key", "files": 3}'])
def test_a_damaged_manifest_is_not_done(tmp_path: Path, damage: str) -> None:
    step = store.Step(tmp_path, "key")
    step.finish()
    assert step.done
    step.manifest_path.write_text(damage)
    assert not step.done


def test_begin_keeps_what_an_interrupted_attempt_left_but_clears_another_key(tmp_path: Path) -> None:
    step = store.Step(tmp_path / "s", "one")
    step.begin()
    (step.folder / "checkpoint").write_text("x")
    step.begin()
    assert (step.folder / "checkpoint").is_file()
    store.Step(tmp_path / "s", "two").begin()
    assert not (step.folder / "checkpoint").is_file()


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = "import sys, pathlib\nfrom oof import store\nwith store.locked(pathlib.Path(sys.argv[1])): pass"
    with store.locked(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)  # noqa: S603
        assert "in use by process" in done.stderr
    crash = code.replace("pass", "import os; os._exit(9)")
    subprocess.run([sys.executable, "-c", crash, str(tmp_path)], check=False)  # noqa: S603
    with store.locked(tmp_path):
        pass


def test_digest_sees_values_shapes_and_types() -> None:
    parts = [np.zeros(2), np.zeros((2, 1)), np.zeros(2, dtype=np.float32), "a", ["a"], {"a": 1}, 1, 1.5]
    assert len({store.digest(part) for part in parts}) == len(parts)
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1})


def test_logits_frame_round_trips() -> None:
    logits = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    frame = store.logits_frame(pl.Series("id", ["x", "y"]), logits, 1)
    assert frame.columns == ["id", "fold", "ab_a", "ab_b", "ab_tie", "ba_a", "ba_b", "ba_tie"]
    np.testing.assert_array_equal(frame.select(store.LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3), logits)


def test_a_broken_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        store.read_parquet(tmp_path / "x.parquet")
