"""Stage two killed in the middle of tuning: the next call ends with the same files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.fixtures.demo_run import ROOT

STACK = """
import sys
from pathlib import Path
from ensemble.stacking.cross_fit import cross_fit
from oof.config import Stack
from tests.fixtures.arenas import make_arena

if __name__ == "__main__":  # worker processes import this file
    out = Path(sys.argv[1])
    arena = make_arena(240)
    config = Stack(trials=8, rounds=30, order="symmetric", final="lightgbm", workers=2)
    battles = arena.design, arena.labels, arena.folds, arena.groups
    result = cross_fit(*battles, config, 0, out / "studies")
    result.save(out / "model")
    (out / "calibrated.bin").write_bytes(result.predictions["calibrated"].tobytes())
"""


def start(script: Path, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(out)]
    return subprocess.Popen(  # noqa: S603  # our own interpreter
        command, env=environment, text=True, stderr=subprocess.PIPE, start_new_session=True
    )


def files(out: Path) -> dict[str, bytes]:
    paths = [path for path in (out / "model").rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in [*paths, out / "calibrated.bin"]}


def finish(script: Path, out: Path) -> dict[str, bytes]:
    process = start(script, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return files(out)


def written(out: Path) -> int:
    return sum(path.stat().st_size for path in (out / "studies").glob("*.log")) if out.is_dir() else 0


@pytest.mark.slow
def test_kill_9_in_the_middle_of_tuning_ends_with_the_same_booster_files(tmp_path: Path) -> None:
    script = tmp_path / "stack.py"
    script.write_text(STACK)
    whole = finish(script, tmp_path / "whole")
    assert {"model/booster.txt", "model/calibrator.json", "calibrated.bin"} <= set(whole)
    out = tmp_path / "killed"
    for share, killed in ((0.2, "all processes"), (0.6, "the parent alone")):
        process = start(script, out)
        while written(out) < share * written(tmp_path / "whole"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        if killed == "all processes":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive  # no process is left that writes to the same journals
        assert not (out / "model").exists()
    assert finish(script, out) == whole
