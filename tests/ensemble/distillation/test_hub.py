"""Students on the hub: what an upload holds, and that a copy gives the same numbers, by commit and offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from ensemble import Judge
from ensemble.distillation.hub import student_folder
from oof.common.errors import UserError
from tests.fixtures.demo_run import ROOT
from tests.fixtures.model_hub import TOKEN, ModelHub, model_hub
from tests.fixtures.served_students import BATTLE, untrained_student

NAME = "me/preference-judge"
CARD = '---\nlicense: apache-2.0\n---\n# A judge\n\njudge = Judge.from_pretrained("this folder")\n'
FOLDERS = """
import json, sys
from ensemble.distillation.hub import student_folder
from oof.common.errors import UserError
for name, revision in json.load(sys.stdin):
    try:
        print(student_folder(name, revision))
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[ModelHub]:
    with model_hub() as served:
        yield served


@pytest.fixture
def run(tmp_path: Path) -> Path:
    student = untrained_student(tmp_path / "run" / "distill" / "student")
    (student / "README.md").write_text(CARD)
    (student / "notes.txt").write_text("private")
    (student / "code.py").write_text("raise SystemExit")
    return tmp_path / "run"


def environment(hub_url: str, home: Path, offline: bool = False) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline)), "PYTHONPATH": str(ROOT)}
    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | own


def push(
    hub: ModelHub, home: Path, *words: str, token: str = TOKEN, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ensemble.command", "push", *words]
    env = environment(hub.url, home) | {"HF_TOKEN": token}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=seconds)  # noqa: S603


def folders(hub_url: str, home: Path, *students: tuple[str, str | None], offline: bool = False) -> list[str]:
    """Return each student's folder, or its error, from a process of its own."""
    command, given = [sys.executable, "-c", FOLDERS], json.dumps(students)
    env = environment(hub_url, home, offline)
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=env, check=True)  # noqa: S603
    return done.stdout.splitlines()


def test_a_push_is_one_commit_of_the_students_files_with_its_name_in_the_card(
    hub: ModelHub, run: Path, tmp_path: Path
) -> None:
    done = push(hub, tmp_path / "home", str(run), "me/files")
    assert done.returncode == 0, done.stderr
    commit = done.stdout.split("/commit/")[1].split()[0]
    assert f'Judge.from_pretrained("me/files", revision="{commit}")' in done.stdout
    assert list(hub.commits["me/files"]) == [commit]
    assert hub.private["me/files"]
    files = hub.commits["me/files"][commit]
    expected = {path.name for path in (run / "distill" / "student").iterdir()} - {"notes.txt", "code.py"}
    assert set(files) == expected
    assert {"model.safetensors", "prompts.json", "tokenizer.json", "README.md"} <= expected
    assert files["README.md"].decode() == CARD.replace("this folder", "me/files")
    assert files["prompts.json"] == (run / "distill" / "student" / "prompts.json").read_bytes()
    again = push(hub, tmp_path / "home", str(run), "me/files", "--public")
    assert again.returncode == 0, again.stderr
    assert hub.private["me/files"]  # a repository that exists stays as it is
    assert push(hub, tmp_path / "home", str(run), "me/open", "--public").returncode == 0
    assert not hub.private["me/open"]


@pytest.mark.slow
def test_a_push_that_is_killed_leaves_no_part_of_a_commit_and_the_next_one_is_whole(
    hub: ModelHub, run: Path, tmp_path: Path
) -> None:
    begun = time.monotonic()
    assert push(hub, tmp_path / "home", str(run), "me/whole").returncode == 0
    whole, files = time.monotonic() - begun, next(iter(hub.commits["me/whole"].values()))
    files = files | {"README.md": files["README.md"].replace(b"me/whole", b"me/killed")}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    killed = 0
    for share in np.random.default_rng(0).uniform(0.4, 1.0, 6):
        try:
            push(hub, tmp_path / "home", str(run), "me/killed", seconds=share * whole)
        except subprocess.TimeoutExpired:  # after SIGKILL
            killed += 1
        assert all(commit == files for commit in hub.commits.get("me/killed", {}).values())
    assert killed > 2
    done = push(hub, tmp_path / "home", str(run), "me/killed")
    assert done.returncode == 0, done.stderr
    assert list(hub.commits["me/killed"].values())[-1] == files
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["{run}", "me/x"], "hf_reader", "log in with 'hf auth login'"),
        (["{run}", "noowner"], TOKEN, "name it with its owner, as user/name"),
        (["{run}", "me/-x-"], TOKEN, "does not take it"),
        (["{run}/distill", "me/x"], TOKEN, "give a run with a student"),
    ],
)
def test_a_push_that_cannot_work_is_refused_in_a_sentence(
    words: list[str], token: str, message: str, hub: ModelHub, run: Path, tmp_path: Path
) -> None:
    done = push(hub, tmp_path / "home", *(word.format(run=run) for word in words), token=token)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_hub_that_cannot_be_reached_is_named_in_a_sentence(run: Path, tmp_path: Path) -> None:
    nobody = ModelHub()
    nobody.url = "http://127.0.0.1:9"
    done = push(nobody, tmp_path / "home", str(run), "me/x")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("error: me/x: the hub does not take it (")


@pytest.mark.slow
def test_a_student_of_the_hub_gives_its_numbers_by_commit_offline_and_without_the_hub(
    hub: ModelHub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(hub, tmp_path / "home", str(run), NAME).returncode == 0
    commit, home = next(iter(hub.commits[NAME])), tmp_path / "other-home"
    newest, pinned, missing, nobody = folders(
        hub.url, home, (NAME, None), (NAME, commit), (NAME, "v9"), ("me/nothing", None)
    )
    assert newest == pinned
    assert Path(newest).name == commit
    assert "the hub has no revision 'v9' of this student" in missing
    assert "me/nothing: no such folder, and the hub has no such student" in nobody
    for url, offline in ((hub.url, True), ("http://127.0.0.1:9", False)):
        copy, absent = folders(url, home, (NAME, commit), ("me/absent", None), offline=offline)
        assert copy == newest
        assert "no copy from the hub here" in absent
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    expected = Judge.from_pretrained(run / "distill" / "student").compare(*BATTLE.values())
    for revision in (None, commit):
        np.testing.assert_array_equal(
            Judge.from_pretrained(NAME, revision=revision).compare(*BATTLE.values()), expected
        )


def test_a_folder_comes_first_and_has_no_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "judge").mkdir(parents=True)
    assert student_folder("me/judge") == Path("me/judge")
    assert student_folder("/no/such/folder") == Path("/no/such/folder")
    with pytest.raises(UserError, match="revision=v1: me/judge is a folder"):
        student_folder("me/judge", "v1")
