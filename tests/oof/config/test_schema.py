"""The schema's metadata: every setting is documented, and defaults lie within what the metadata allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from oof.__main__ import main
from oof.common.errors import UserError
from oof.config import Config, Member, Stack, load, without_speed_settings
from oof.config.reference import settings_reference
from oof.config.setting import default_of, named_sections, sections, setting, settings

METADATA = {"doc", "unit", "range", "choices", "speed_only", "added", "older"}


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for name, field in settings(schema).items():
        yield f"{prefix}{name}", field
    for name, nested in sections(schema).items():
        yield from leaves(nested, f"{prefix}{name}.")
    for name, nested in named_sections(schema).items():
        yield from leaves(nested, f"{prefix}{name}.NAME.")


LEAVES = dict(leaves(Config))
UNREPEATED = [path for path in LEAVES if not path.startswith("distill.student.")]  # its settings are a member's
RANGED = {path: LEAVES[path] for path in UNREPEATED if LEAVES[path].metadata["range"]}


def number(path: str, bound: float) -> float:
    return int(bound) if "int" in str(LEAVES[path].type) else float(bound)


def test_the_settings_of_the_schema_are_those_of_a_loaded_configuration() -> None:
    def paths(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in tree.items():
            if isinstance(value, dict) and name not in ("columns", "verdicts", "logits", "test_logits", "members"):
                yield from paths(value, f"{prefix}{name}.")
            elif name == "members":
                yield from paths(value["x"], "members.NAME.")
            else:
                yield f"{prefix}{name}"

    assert set(paths(dataclasses.asdict(Config(members={"x": Member()})))) == set(LEAVES)


@pytest.mark.parametrize("path", LEAVES)
def test_a_setting_is_documented_beside_its_field(path: str) -> None:
    field = LEAVES[path]
    default, metadata = default_of(field), field.metadata
    assert set(metadata) == METADATA
    assert len(metadata["doc"]) > 5
    assert not metadata["doc"].endswith(".")
    if metadata["choices"] is not None and default is not None:
        assert {default, metadata["older"]} <= set(metadata["choices"])
    assert metadata["added"] or metadata["older"] == default
    if isinstance(default, int | float) and not isinstance(default, bool):
        low, high = metadata["range"]
        assert low <= default <= high
        assert metadata["unit"] or path.rpartition(".")[2] not in ("epochs", "tokens_per_batch", "time_limit", "chunk")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "empty.yaml"
    path.write_text("seed: 1\n")
    return path


@pytest.mark.parametrize("end", [0, 1], ids=["lowest", "highest"])
def test_the_bounds_of_a_range_are_allowed_and_nothing_beyond(config: Path, end: int) -> None:
    bounds = {path: number(path, field.metadata["range"][end]) for path, field in RANGED.items()}
    load(config, [f"{path.replace('NAME', 'x')}={bound}" for path, bound in bounds.items()])
    for path, bound in bounds.items():
        beyond = bound + (1 if end else -1)
        with pytest.raises(UserError, match=f"{path.replace('NAME', 'x')}={beyond}; it must lie between"):
            load(config, [f"{path.replace('NAME', 'x')}={beyond}"])


@pytest.mark.parametrize("path", [path for path in UNREPEATED if LEAVES[path].metadata["choices"]])
def test_every_choice_is_allowed_and_nothing_else(config: Path, path: str) -> None:
    key = path.replace("NAME", "x")
    for choice in LEAVES[path].metadata["choices"]:
        load(config, [f"{key}={choice}"])
    with pytest.raises(UserError, match="choose one of"):
        load(config, [f"{key}=nothing-like-it"])


def test_mutable_defaults_are_not_shared() -> None:
    one, other = Config(), Config()
    one.data.train.append("x")
    assert other.data.train == []


def test_omegaconf_accepts_the_schema_and_returns_it() -> None:
    config = OmegaConf.to_object(OmegaConf.structured(Config))
    assert config == Config()
    assert isinstance(config, Config)


def test_the_reference_lists_every_setting_once() -> None:
    rows = [line.split("`")[1] for line in settings_reference().splitlines() if line.startswith("| `")]
    assert len(rows) == len(set(rows))
    assert set(rows) == set(UNREPEATED)
    repeated = set(LEAVES) - set(UNREPEATED)
    assert {path.replace("distill.student.", "members.NAME.") for path in repeated} <= set(rows)


def test_the_subcommand_prints_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_reference()


def test_the_reference_shows_default_range_choices_and_the_speed_only_mark() -> None:
    rows = {line.split("`")[1]: line for line in settings_reference().splitlines() if line.startswith("| `")}
    assert "| `0.7` |" in rows["groups.threshold"]
    assert "| 0.1 to 1 |" in rows["groups.threshold"]
    assert "| `paired` |  | `none`, `random`, `paired` |" in rows["members.NAME.train.swap"]
    marked = {path for path, line in rows.items() if "*Speed only.*" in line}
    assert marked == {path for path, field in LEAVES.items() if field.metadata["speed_only"] and path in rows}
    assert {"stack.workers", "members.NAME.train.activation_checkpointing", "predict.chunk"} <= marked
    cells = {line.replace("\\|", "").count("|") for line in rows.values()}
    assert cells == {6}


def test_plain_values_of_another_version_keep_what_the_schema_does_not_know() -> None:
    values = {"members": {"x": {"attn": "old", "gone": 1, "frozen": "stored"}}, "stack": {"workers": 3}, "removed": 2}
    kept = without_speed_settings(values, Config)
    assert kept["removed"] == 2
    assert kept["members"]["x"] == {
        "attn": "old",
        "gone": 1,
        "score_tokens_per_batch": 0,
    }
    assert kept["stack"] == {"workers": 0}
    added = {"test_logits", "strict"}
    older = {name: value for name, value in dataclasses.asdict(Stack(workers=0)).items() if name not in added}
    assert without_speed_settings(Stack(workers=5)) == older


def test_a_setting_added_later_leaves_older_runs_valid() -> None:
    @dataclasses.dataclass(frozen=True)
    class Section:
        old: int = setting(1, "there from the start")
        new: float = setting(2.0, "added later", added=True)

    assert without_speed_settings(Section()) == {"old": 1}
    assert without_speed_settings({"old": 1}, Section) == without_speed_settings({"old": 1, "new": 2.0}, Section)
    assert without_speed_settings(Section(new=3.0)) == {"old": 1, "new": 3.0}
