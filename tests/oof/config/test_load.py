"""Configuration files: shipped ones load, overrides apply, faults are one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from oof.common.errors import UserError
from oof.config import load, to_dict
from tests.fixtures.demo_run import ROOT


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    config = load(path)
    assert config.members
    assert config.run == f"runs/{path.stem}"


def test_overrides_replace_values_of_the_file_and_may_be_lists(tmp_path: Path) -> None:
    config = load(write(tmp_path, "stack: {trials: 7}\nseed: 3"), ["stack.trials=5", "data.train=[a.csv,b c.csv]"])
    assert (config.stack.trials, config.seed, config.data.train) == (5, 3, ["a.csv", "b c.csv"])
    assert to_dict(config)["stack"]["trials"] == 5


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("members: {g: {checkpoint: x, lora: {rnk: 3}}}", [], "did you mean members.g.lora.rank"),
        ("seed: 1", ["stack.trails=5"], "did you mean stack.trials"),
        ("seed: abc", [], "seed"),
        ("seed: .nan", [], "seed"),
        ("- a", [], "key: value"),
        ("a: &a [1]\nb: *a", [], "aliases"),
        ("folds: {k: 1}", [], "between 2 and 100"),
        ("data: 3", [], "data"),
        ("members: [1]", [], "c.yaml"),
        ("members: {../x: {}}", [], "member name"),
        ("stack: {order: left}", [], "choose one of"),
        ("seed: 1", ["trials"], "expected key.sub=value"),
        ("seed: [", [], "not valid YAML"),
        ("members: {g: {train: {lr: .inf}}}", [], "between"),
        ("run: !!python/object/apply:os.system [ls]", [], "not valid YAML"),
    ],
)
def test_a_bad_configuration_is_one_sentence(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=r".+") as caught:
        load(write(tmp_path, text), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")
