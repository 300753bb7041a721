"""Broken and malicious configurations are refused in one sentence, or load correctly."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from oof.__main__ import main
from oof.common.errors import UserError
from oof.config import Config, load, to_dict
from tests.fixtures.demo_run import ROOT
from tests.fixtures.outcomes import record

DEMO = (ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8")
SCALARS: tuple[Any, ...] = (
    None, True, "", "../x", "a\0b", -1, 0, 1, 2.5, 10**30, -(10**400), float("nan"), float("inf"), "${run}",
    "${oc.env:HOME}", "???", "<script>", "1e400", "\ud7ff\ue000", [], {}, [[]], {"a": {"a": {}}}, ["x", 1, None],
    {1: 2}, {"": ""}, "!!python/object/apply:os.mkdir [ran]",
)  # fmt: skip
values = st.sampled_from(SCALARS) | st.text(max_size=12) | st.floats() | st.integers()


def paths_of(tree: object, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = [prefix] if prefix else []
    if isinstance(tree, dict):
        for key, inner in tree.items():
            paths += paths_of(inner, (*prefix, str(key)))
    return paths


PATHS = paths_of(yaml.safe_load(DEMO)) + [(f.name,) for f in fields(Config)] + paths_of(to_dict(Config()))


def put(tree: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[path[-1]] = value


def loads_or_is_one_sentence(path: Path, overrides: list[str]) -> Config | None:
    try:
        config = load(path, overrides)
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert message.isprintable(), repr(message)
        assert 10 < len(message) < 1500, message
        record("refused")
        return None
    record("taken")
    assert isinstance(config, Config)
    assert all(type(getattr(config, f.name)) is type(getattr(Config(), f.name)) for f in fields(Config))
    return config


def broken_values(folder: Path, changes: list[tuple[tuple[str, ...], object]]) -> None:
    tree = yaml.safe_load(DEMO)
    for path, value in changes:
        put(tree, path, value)
    (folder / "broken.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    loads_or_is_one_sentence(folder / "broken.yaml", [])


changes = st.lists(st.tuples(st.sampled_from(PATHS), values), min_size=1, max_size=3)
PIECES = ["\t", "{", "]", ":", "\0", "*a", "&a ", "!!", "'", "- ", "%"]
splices = st.tuples(st.integers(0, len(DEMO)), st.integers(0, 60), st.text(max_size=20) | st.sampled_from(PIECES))


@given(changes)
@settings(max_examples=40)
def test_any_value_of_any_setting_is_taken_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[str, ...], object]]
) -> None:
    broken_values(tmp_path_factory.getbasetemp(), changes)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@given(changes)
@settings(max_examples=4000)
def test_any_value_of_any_setting_at_length(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[str, ...], object]]
) -> None:
    broken_values(tmp_path_factory.getbasetemp(), changes)


@given(splices)
@settings(max_examples=40)
def test_broken_yaml_is_one_sentence(tmp_path_factory: pytest.TempPathFactory, splice: tuple[int, int, str]) -> None:
    at, gone, put_in = splice
    path = tmp_path_factory.getbasetemp() / "spliced.yaml"
    path.write_bytes((DEMO[:at] + put_in + DEMO[at + gone :]).encode("utf-8", "surrogatepass"))
    loads_or_is_one_sentence(path, [])


@given(st.sampled_from([".".join(path) for path in PATHS]) | st.text(max_size=12), st.text(max_size=30))
@settings(max_examples=50)
def test_any_override_is_taken_or_refused_in_one_sentence(key: str, value: str) -> None:
    loads_or_is_one_sentence(ROOT / "configs" / "demo.yaml", [f"{key}={value}"])


BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(20)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "members: &m\n  a: *m\n",
        "stack: " + "[" * 2000,
        "stack: " + "[" * 900_000,
        "stack: " + "{a: " * 3000 + "1" + "}" * 3000,
        "\n".join("  " * i + "a:" for i in range(400)),
        "run: !!python/object/apply:os.system ['touch ran']",
        "run: !!binary aGFsbG8=",
        "? [a, b]\n: 1",
        "seed: " + "9" * 100_000,
        "seed: 1\nseed: 2\nrun: ${run}\n",
        "run: ${data.train}\ndata: {train: '${run}'}\n",
        "folds: {k: .inf}\nstack: {trials: 1.0e+400}\n",
        "run: '" + "x" * 900_000 + "'",
        "seed: 0o777777777777777777777777777777\nfolds: {k: 2001-01-01}\n",
        "<<: {seed: 1}\n",
        "--- {}\n--- {}\n",
        "\ufeff: [",
    ],
)
def test_yaml_that_exhausts_or_attacks_a_parser_is_refused_at_once(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    status = main(["prepare", str(path), f"run={tmp_path / 'run'}", "data.synth.battles=nonsense"])
    message = capsys.readouterr().err
    assert status == 2, message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hostile.yaml"]


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("key", ["distill.student.train.warmup_share", "members.gemma2.train.lr", "seed", "data.train"])
def test_a_number_too_long_for_a_float_is_named(tmp_path: Path, key: str, sign: str) -> None:
    number = f"{sign}1{'0' * 400}"
    tree = yaml.safe_load(DEMO)
    put(tree, tuple(key.split(".")), int(number))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for path, overrides in ((tmp_path / "c.yaml", []), (ROOT / "configs" / "demo.yaml", [f"{key}={number}"])):
        with pytest.raises(UserError, match=f"{key}: a number of more than 308 digits") as refused:
            load(path, overrides)
        assert len(str(refused.value)) < 300


def test_a_long_number_inside_a_mapping_is_one_sentence(tmp_path: Path) -> None:
    tree = yaml.safe_load(DEMO)
    tree["distill"]["losses"] = {"kl": 10**400}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert loads_or_is_one_sentence(tmp_path / "c.yaml", []) is None


@pytest.mark.parametrize("name", ["../evil", "..", ".", "a/b", "/etc/x", "a\\b", "", "a\nb", "x" * 65, "-rf"])
def test_a_member_s_name_cannot_leave_the_run_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"members": {name: {"checkpoint": "x"}}}), encoding="utf-8")
    with pytest.raises(UserError, match="member name"):
        load(path)


def test_a_run_path_with_dots_writes_to_the_folder_it_names_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    run = tmp_path / "runs" / ".." / "elsewhere"
    arguments = [
        str(ROOT / "configs" / "demo.yaml"),
        f"run={run}",
        "data.synth.battles=60",
        "data.synth.test_battles=6",
    ]
    (tmp_path / "runs").mkdir()
    assert main(["prepare", *arguments]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "keep.txt", "runs"]
    assert (tmp_path / "keep.txt").read_text() == "mine"
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("run", ["/proc/nothing/run", "a\0b", "x" * 300, "/dev/null/run", "/dev/null"])
def test_a_run_that_cannot_be_a_folder_is_one_sentence(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(ROOT / "configs" / "demo.yaml"), f"run={run}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
