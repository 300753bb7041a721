"""Shipped recipes and checkpoints beside a configuration: where a name or a relative path leads."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from oof.common.digests import checkpoint_digest
from oof.common.errors import UserError
from oof.config import load
from oof.config.shipped_recipes import find_recipe, recipes_folder
from oof.jobs.cache_keys import training_key_parts
from tests.fixtures.demo_run import BASES, ROOT

DEMO = ROOT / "configs" / "demo.yaml"


def project(folder: Path) -> Path:
    """Write a configuration with the demo's bases beside it; return its path."""
    folder.mkdir(parents=True)
    shutil.copy(DEMO, folder)
    shutil.copytree(BASES, folder / "bases")
    return folder / "demo.yaml"


def test_a_checkpoint_beside_the_configuration_is_found_from_every_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(tmp_path / "mein Projekt" / "configs")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for here, named, checkpoint in (
        (path.parent, "demo.yaml", "bases/tiny-llama"),
        (path.parent.parent, "configs/demo.yaml", "configs/bases/tiny-llama"),
        (path.parent.parent, str(path), "configs/bases/tiny-llama"),
        (elsewhere, str(path), str(path.parent / "bases/tiny-llama")),
        (elsewhere, os.path.relpath(path, elsewhere), str(elsewhere / "../mein Projekt/configs/bases/tiny-llama")),
    ):
        monkeypatch.chdir(here)
        config = load(named)
        assert config.members["llama3_1"].checkpoint == checkpoint
        assert Path(config.distill.student.checkpoint).is_dir()


def test_a_checkpoint_that_is_not_beside_the_configuration_starts_in_the_working_folder(tmp_path: Path) -> None:
    """As in all configurations written before; hub names and absolute paths stay as they are."""
    path = tmp_path / "mine.yaml"
    names = {"a": "configs/bases/tiny-llama", "b": "google/gemma-2-9b-it", "c": str(BASES / "tiny-llama"), "d": ""}
    members = "".join(f"  {name}: {{checkpoint: '{checkpoint}'}}\n" for name, checkpoint in names.items())
    path.write_text(f"members:\n{members}", encoding="utf-8")
    assert {name: member.checkpoint for name, member in load(path).members.items()} == names


def test_the_place_of_a_checkpoint_is_in_no_content_key(tmp_path: Path) -> None:
    """So a run of a version that named ``configs/bases`` in the configuration stays up to date."""
    before = load(DEMO, ["members.llama3_1.checkpoint=configs/bases/tiny-llama"])
    for now in (load(DEMO), load(project(tmp_path / "copy"))):
        parts = [training_key_parts(config, config.members["llama3_1"], "battles") for config in (before, now)]
        assert parts[0] == parts[1]
    assert parts[0]["checkpoint"] == checkpoint_digest(str(BASES / "tiny-llama"))


def test_a_recipe_is_named_by_its_file_or_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipes_folder() == ROOT / "configs"
    assert (
        find_recipe("lmsys") == find_recipe("lmsys.yaml") == find_recipe("configs/lmsys.yaml") == "configs/lmsys.yaml"
    )
    monkeypatch.chdir(tmp_path)
    assert find_recipe("lmsys") == str(ROOT / "configs" / "lmsys.yaml")
    (tmp_path / "demo").mkdir()
    assert find_recipe("demo") == str(DEMO)  # a folder of this name is no configuration
    (tmp_path / "lmsys.yaml").write_text("seed: 3\n")
    assert find_recipe("lmsys.yaml") == "lmsys.yaml"  # the user's own file comes first
    assert find_recipe("nowhere.yaml") == "nowhere.yaml"  # reading it is an error with its name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "configs/lmsys.yaml",
            "'arena-distill init' writes configs/lmsys.yaml, or name the shipped recipe: CONFIG=lmsys",
        ),
        ("some", "some: a folder, not a configuration; to go on with a run, name it run=some (RUN=some)"),
    ],
)
def test_a_path_that_is_no_configuration_is_one_sentence(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        load(find_recipe(name))
