"""Steps of a run: content keys, manifests, locks, atomic files, damage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from oof.common.atomic_files import read_json, read_parquet, replacing, rewrite_json, verified
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.logits_format import LOGIT_COLUMNS, logits_frame
from oof.common.steps import UNFINISHED, Step, locked


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_damaged_log_of_a_training_does_not_repeat_the_training(tmp_path: Path) -> None:
    step = Step(tmp_path / "s", "key")
    step.begin()
    for name in ("fold-0/metrics.jsonl", "tensorboard/events.1", "adapter/weights"):
        (step.folder / name).parent.mkdir(exist_ok=True)
        (step.folder / name).write_bytes(b"1234")
    step.finish()
    for name in ("fold-0/metrics.jsonl", "tensorboard/events.1"):
        (step.folder / name).write_bytes(b"1235")
    assert step.done
    (step.folder / "adapter" / "weights").write_bytes(b"1235")
    assert not step.done


def test_a_step_is_done_only_with_its_key_and_intact_files(tmp_path: Path) -> None:
    step = Step(tmp_path / "s", "key")
    assert not step.done
    step.begin()
    (step.folder / "a").write_bytes(b"1234")
    assert not step.done
    step.finish({"fact": 1})
    manifest = step.manifest()
    assert manifest is not None
    assert manifest["fact"] == 1
    assert not Step(tmp_path / "s", "other").done
    (step.folder / "a").write_bytes(b"1235")
    assert not step.done


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "key"}', '{"key": "key", "files": 3}'])
def test_a_damaged_manifest_is_not_done(tmp_path: Path, damage: str) -> None:
    step = Step(tmp_path, "key")
    step.finish()
    assert step.done
    step.manifest_path.write_text(damage)
    assert not step.done


def test_begin_keeps_files_of_an_interrupted_attempt_but_not_those_of_another_key(tmp_path: Path) -> None:
    step = Step(tmp_path / "s", "one")
    step.begin()
    (step.folder / "checkpoint").write_text("x")
    step.begin()
    assert (step.folder / "checkpoint").is_file()
    Step(tmp_path / "s", "two").begin()
    assert not (step.folder / "checkpoint").is_file()


def test_a_second_process_is_refused_and_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    code = "import sys, pathlib\nfrom oof.common.steps import locked\nwith locked(pathlib.Path(sys.argv[1])): pass"
    with locked(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)  # noqa: S603
        assert "in use by process" in done.stderr
    crash = code.replace("pass", "import os; os._exit(9)")
    subprocess.run([sys.executable, "-c", crash, str(tmp_path)], check=False)  # noqa: S603
    with locked(tmp_path):
        pass


def test_digests_differ_for_other_values_shapes_and_types() -> None:
    values = [np.zeros(2), np.zeros((2, 1)), np.zeros(2, dtype=np.float32), "a", ["a"], {"a": 1}, 1, 1.5]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_logits_frame_round_trips() -> None:
    logits = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    frame = logits_frame(pl.Series("id", ["x", "y"]), logits, 1)
    assert frame.columns == ["id", "fold", "ab_a", "ab_b", "ab_tie", "ba_a", "ba_b", "ba_tie"]
    np.testing.assert_array_equal(frame.select(LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3), logits)


def test_a_broken_parquet_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_parquet(tmp_path / "x.parquet")


def finished(folder: Path, **files: str) -> Step:
    step = Step(folder, "key")
    step.begin()
    for name, content in files.items():
        (step.folder / name).write_text(content)
    step.finish({"fact": 1.5})
    return step


def test_a_damaged_file_is_named_and_the_intact_ones_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    step = finished(tmp_path / "s", one="1", two="2", three="3")
    (step.folder / "one").write_text("x")
    (step.folder / "two").unlink()
    assert not step.done
    assert [
        f"{step.folder / 'one'}: damaged (checksum differs)",
        f"{step.folder / 'two'}: damaged (missing)",
    ] == sorted(caplog.messages)
    step.begin()
    assert sorted(path.name for path in step.folder.iterdir()) == [UNFINISHED, "three"]
    Step(step.folder, "other").begin()
    assert [path.name for path in step.folder.iterdir()] == [UNFINISHED]


def test_one_changed_digit_of_a_manifest_is_detected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    step = finished(tmp_path / "s", one="1")
    text = step.manifest_path.read_text()
    step.manifest_path.write_text(text.replace("1.5", "1.7"))
    assert not step.done
    assert caplog.messages == [f"{step.manifest_path}: damaged (its checksum differs)"]
    with pytest.raises(UserError, match="its checksum differs"):
        read_json(step.manifest_path)
    step.manifest_path.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "checksum"}))
    assert step.done  # a manifest of an earlier version


def test_begin_and_the_lock_remove_temporary_files_of_a_killed_write(tmp_path: Path) -> None:
    step = Step(tmp_path / "oof" / "one" / "fold-0", "key")
    step.begin()
    leftovers = [step.folder / ".a.x.tmp", tmp_path / ".b.x.tmp", tmp_path / "tokens" / ".c.x.tmp"]
    leftovers[2].parent.mkdir()
    for path in leftovers:
        path.write_text("half")
    with locked(tmp_path):
        assert [path.exists() for path in leftovers] == [True, False, False]  # a job elsewhere may be writing the first
    step.begin()
    assert not leftovers[0].exists()


def test_rewriting_a_damaged_file_logs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.json"
    for content in ({"a": {"1": 1.5}}, {"a": (1, 2)}):
        rewrite_json(path, content)
        assert {k: v for k, v in read_json(path).items() if k != "checksum"} == json.loads(json.dumps(content))
    assert caplog.messages == []
    path.write_bytes(path.read_bytes().replace(b"2", b"3"))
    rewrite_json(path, {"a": 1})
    assert caplog.messages == [f"{path}: damaged (its checksum differs); written again"]


def test_a_file_is_verified_by_the_manifest_beside_it(tmp_path: Path) -> None:
    step = finished(tmp_path / "s", one="1")
    path = step.folder / "one"
    assert verified(path, "manifest.json", "make it") == path
    assert verified(path, "absent.json", "make it") == path
    path.write_text("2")
    with pytest.raises(UserError, match=r"one: damaged \(checksum differs\); run 'make it' again"):
        verified(path, "manifest.json", "make it")
    step.manifest_path.write_text("{")
    with pytest.raises(UserError, match="run 'make it' again"):
        verified(path, "manifest.json", "make it")


def test_a_refused_command_leaves_no_lock_and_no_new_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    with pytest.raises(UserError), locked(run):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    with locked(run):
        (run / "kept").write_text("x")
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(UserError), locked(run):
        raise UserError("refused")
    assert sorted(path.name for path in run.iterdir()) == before


def test_earlier_work_has_another_key(tmp_path: Path) -> None:
    step = Step(tmp_path / "s", "one")
    assert step.earlier() is None
    step.begin()
    assert step.earlier() is None
    assert Step(step.folder, "two").earlier() == {}
    step.finish({"fact": 1})
    assert step.earlier() is None
    earlier = Step(step.folder, "two").earlier()
    assert earlier is not None
    assert earlier["fact"] == 1
