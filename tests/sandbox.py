"""A copy of the repository in which the documents' commands and the benchmarks run, with a demo cut down to seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import yaml
from conftest import ROOT


def cut_down_copy(folder: Path) -> Path:
    """Make a copy of the repository, its demo cut down and run, with the files that the documents speak of."""
    skipped = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=skipped)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    demo = folder / "configs" / "demo.yaml"
    tree = yaml.safe_load(demo.read_text())
    tree["data"]["synth"] |= {"battles": 150, "test_battles": 20}
    tree["jobs"]["workers"] = 1
    tree["stack"] |= {"trials": 2, "rounds": 20}
    for recipe in (*tree["members"].values(), tree["distill"]["student"]):
        recipe["train"]["epochs"] = 0.3
    demo.write_text(yaml.safe_dump(tree))
    run(folder, "make demo")
    synth, made = folder / "runs" / "demo" / "synth", folder / "runs" / "demo"
    for source, name in (("train", "train.csv"), ("train", "labels.csv"), ("test", "test.csv")):
        shutil.copy(synth / f"{source}.csv", folder / name)
    shutil.copytree(made, folder / "runs" / "as-made")
    shutil.copytree(made, folder / "runs" / "a")
    shutil.copytree(made, folder / "runs" / "b")
    members = sorted(path.parent.name for path in (made / "oof").glob("*/fold-0"))
    for name, write in zip(("a.csv", "b.parquet"), (pl.DataFrame.write_csv, pl.DataFrame.write_parquet), strict=True):
        paths = sorted((made / "oof" / members[name == "a.csv"]).glob("fold-*/logits.parquet"))
        write(pl.concat([pl.read_parquet(path) for path in paths]).select("id", "^(ab|ba)_.*$"), folder / name)
    battles = pl.read_csv(synth / "train.csv")
    (folder / "battles.jsonl").write_text(
        "".join(
            f'{{"id": {i}, "prompt": {row[0]}, "response_a": {row[1]}, "response_b": {row[2]}}}\n'
            for i, row in enumerate(battles.select("prompt", "response_a", "response_b").head(5).iter_rows())
        )
    )
    (folder / "ultrafeedback.jsonl").write_text(
        "".join(
            f'{{"prompt": "What is {i} times {j}?", "chosen": "It is {i * j}.", "rejected": "Who knows."}}\n'
            for i in range(5, 9)
            for j in range(20, 26)
        )
    )
    (folder / "lmsys-chat-1m").mkdir()
    battles.select("prompt").head(40).write_parquet(folder / "lmsys-chat-1m" / "part.parquet")
    return folder


def run(folder: Path, command: str) -> None:
    """Run a block as a user would, who has activated the environment: the first command that fails ends it."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PYTEST_ADDOPTS": "--collect-only",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    line = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
