"""Datasets of the hub by name: fetched once as Parquet by commit, then read offline; one sentence without them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oof.__main__ import main
from tests.fixtures.battle_files import encode
from tests.fixtures.demo_run import ROOT
from tests.fixtures.hub_server import COMMIT, hub_of

REPO = "arena/battles-60"
ROWS = [
    {
        "id": str(i),
        "prompt": f"p{i}",
        "response_a": "a",
        "response_b": "b",
        "winner": ("model_a", "model_b", "tie")[i % 3],
    }
    for i in range(60)
]
README = b"""---
configs:
- config_name: human
  data_files:
  - split: train
    path: train.jsonl
  - split: validation
    path: more/validation.jsonl
- config_name: machine
  data_files: machine.jsonl
---
"""
needs_datasets = pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="the extra hub is not installed")


def oof(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process, with a hub that does not answer unless the environment names one."""
    hub = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    folder = home.parent / "mein Ordner ä"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "oof", *words]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(  # noqa: S603
        command, cwd=folder, env=kept | hub | environment, capture_output=True, text=True, check=False, timeout=120
    )


def cached(home: Path, name: str = "default-default") -> Path:
    """Put a dataset into the cache as an earlier download leaves it."""
    folder = home / "arena-distill" / REPO.replace("/", "--")
    (folder / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    path = folder / COMMIT / f"{name}.parquet"
    path.write_bytes(encode(ROWS, "parquet"))
    return path


def test_a_fetched_dataset_is_read_without_a_network_and_its_commit_is_recorded_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cached(tmp_path / "home")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "mein Ordner ä").mkdir()
    monkeypatch.chdir(tmp_path / "mein Ordner ä")
    assert main(["check", f"hf:{REPO}"]) == 0
    assert "a 20 (33.3 %), b 20 (33.3 %), tie 20 (33.3 %)" in capsys.readouterr().out
    settings = [str(ROOT / "configs" / "demo.yaml"), f"data.train=hf:{REPO}", f"data.test=hf:{REPO}"]
    main(["prepare", *settings, "run=läuf"])
    recorded = json.loads(Path("läuf/files.json").read_text())["files"]["data.train"]
    assert [file["path"] for file in recorded] == [str(path)]
    assert COMMIT in str(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    main(["prepare", "run=../mein Ordner ä/läuf", f"data.train=hf:{REPO}"])
    assert "60 battles" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "mein Ordner ä")
    path.write_bytes(encode(ROWS[:30], "parquet"))
    assert main(["prepare", "run=läuf"]) != 0
    assert "has changed since the run was made from it" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "home")
    assert main(["prepare", "run=läuf"]) != 0
    assert f"hf:{REPO}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:battles", "name a dataset of the hub as hf:org/name, or hf:org/name/config:split@revision"),
        (f"hf:{REPO}:", "name a dataset of the hub as hf:org/name"),
        (f"hf:{REPO}", "or download the dataset's files and name these"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence_with_a_remedy(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "none" / "datasets").mkdir(parents=True)  # stands for an environment without the package
    (tmp_path / "none" / "datasets" / "__init__.py").write_text("raise ImportError('no datasets')")
    path = os.pathsep.join([str(tmp_path / "none"), str(ROOT)])
    done = oof(tmp_path / "home", "check", name, PYTHONPATH=path)
    assert done.returncode != 0
    assert done.stderr.startswith(f"error: {name}: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "home" / "arena-distill").exists()


@needs_datasets
def test_without_a_network_the_page_of_the_files_is_named(tmp_path: Path) -> None:
    done = oof(tmp_path / "home", "check", f"hf:{REPO}")
    assert done.returncode != 0
    assert (
        f"download its files (Parquet, CSV or JSONL) from https://huggingface.co/datasets/{REPO}/tree/main"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


@needs_datasets
@pytest.mark.slow
def test_a_dataset_is_fetched_by_config_split_and_commit(tmp_path: Path) -> None:
    parts = {"train": ROWS[:42], "more/validation": ROWS[42:], "machine": ROWS}
    files = {f"{name}.jsonl": encode(rows, "jsonl") for name, rows in parts.items()} | {"README.md": README}
    with hub_of(REPO, files) as address:
        for name, words in (
            (f"hf:{REPO}", "has several configs; write hf:org/name/CONFIG with one of human, machine"),
            (f"hf:{REPO}/human:test", "has no split 'test'; write hf:org/name:SPLIT with one of train, validation"),
            ("hf:arena/other", "the hub has no dataset arena/other that you have access to"),
        ):
            refused = oof(tmp_path / "home", "check", name, HF_ENDPOINT=address)
            assert refused.returncode != 0
            assert words in refused.stderr
        for name, n in ((f"hf:{REPO}/human", 42), (f"hf:{REPO}/human:validation", 18), (f"hf:{REPO}/machine@main", 60)):
            fetched = oof(tmp_path / "home", "check", name, HF_ENDPOINT=address)
            assert fetched.returncode == 0, fetched.stderr
            assert f"{n} read" in fetched.stdout
            assert COMMIT in fetched.stdout
    offline = oof(tmp_path / "home", "check", f"hf:{REPO}/human:validation")
    assert (offline.returncode, "18 read" in offline.stdout) == (0, True)
