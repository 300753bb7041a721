"""CONTRIBUTING's table "to change one thing": its names exist, and following a row gives a working change.

The script below follows each row in a copy of the packages: it adds a trivial entry at the places that the row names,
nowhere else, and runs the row's own tests, which must then cover the new entry.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fixtures.demo_run import ROOT

ROW = re.compile(r"^\| (?P<change>an? [a-z ]+|the [a-z' ]+) \| (?P<steps>.*) \| (?P<check>.*) \|$", re.M)
ROWS = {row["change"]: row for row in ROW.finditer((ROOT / "CONTRIBUTING.md").read_text("utf-8"))}


def files_of(row: re.Match[str]) -> list[str]:
    """Return the files that a row tells the reader to change."""
    return [name for name in re.findall(r"`([^`]+)`", row["steps"]) if "/" in name]


def test_the_table_has_its_rows() -> None:
    assert set(ROWS) == {*RECIPES, "a base model", "the demo's checkpoints"}


def test_a_row_names_files_and_what_they_hold() -> None:
    for change, row in ROWS.items():
        sources = " ".join((ROOT / file).read_text("utf-8") for file in files_of(row))
        names = [name for name in re.findall(r"`([^`]+)`", row["steps"]) if re.fullmatch(r"\w+", name)]
        for name in names if sources else []:
            assert re.search(rf"\b{name}\b", sources), f"{change}: {name} is not in {files_of(row)}"
        assert (ROOT / re.findall(r"`([^`]+)`", row["check"])[0]).is_file(), change


Edit = Callable[[str], str]


def insert(anchor: str, text: str) -> Edit:
    """Return an edit that inserts text after the only match of a pattern."""

    def edit(source: str) -> str:
        matches = list(re.finditer(anchor, source, re.M | re.S))
        assert len(matches) == 1, f"{anchor}: {len(matches)} matches"
        return source[: matches[0].end()] + text + source[matches[0].end() :]

    return edit


def insert_before(name: str, text: str) -> Edit:
    """Return an edit that inserts text before a module-level assignment or function."""
    return insert(rf"\A.*?(?=^(?:def )?{name}\b)", text)


def replace_in(function: str, old: str, new: str) -> Edit:
    """Return an edit that replaces text within one function."""

    def edit(source: str) -> str:
        body = re.search(rf"^def {function}\(.*?(?=^\S|\Z)", source[source.index(f"def {function}(") :], re.M | re.S)
        assert body
        assert old in body[0], f"{function}: no {old}"
        return source.replace(body[0], body[0].replace(old, new))

    return edit


def choice(section: str, setting: str, name: str) -> Edit:
    """Return an edit that adds a name to the choices of a setting."""
    anchor = rf"^class {section}:(?:(?!^class ).)*?^    {setting}: str = setting\((?:(?!choices=).)*?choices=\("
    return insert(anchor, f'"{name}", ')


def raised(name: str) -> Edit:
    """Return an edit that raises a version by one."""
    return lambda source: re.sub(rf"^{name} = (\d+)", lambda m: f"{name} = {int(m[1]) + 1}", source, flags=re.M)


@dataclass(frozen=True)
class Recipe:
    """Edits by file, the pytest selection that covers the new entry, and statements that use it."""

    edits: dict[str, list[Edit]]
    tests: list[str]
    use: str
    least: int = field(default=1)  # tests that must run


LOSS = """def absolute_error(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (log_softmax(logits, dim=-1).exp() - targets).abs().sum(dim=-1)


"""
RECIPES = {
    "a template": Recipe(
        {
            "oof/encoding/templates.py": [
                insert(r"^FAMILIES = \(", '\n    Family("trivial", "<turn>", "\\n", "</turn>\\n"),')
            ]
        },
        ["tests/oof/encoding/test_templates.py", "-k", "template_text_of_each_family and not gemma2 and not llama3.1"],
        """
from tests.fixtures import tokenizer_files
from oof.encoding.templates import family_of, prepare_tokenizer
tokenizer_files.SPECIALS["trivial"] = ["<s>", "</s>", "<unk>", "<turn>", "</turn>"]
tokenizer_files.NAMES["trivial"] = tokenizer_files.NAMES["plain"]
tokenizer = tokenizer_files.tiny("trivial")
prepare_tokenizer(tokenizer)
assert family_of(tokenizer).name == "trivial"
text = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False)
assert text == "<s><turn>Prompt\\nWhy?</turn>\\n<turn>Verdict\\n", text
""",
    ),
    "a feature": Recipe(
        {
            "ensemble/features/battle_features.py": [
                insert_before(
                    "FAMILIES",
                    'def trivial(texts: TextBlock) -> Columns:\n    """The constant 1 for every battle."""\n'
                    '    return {"trivial": np.ones(texts.table.height)}\n\n\n',
                ),
                insert(r"^FAMILIES[^\n]*= \{", '\n    "trivial": trivial,'),
            ],
            "ensemble/features/design_matrix.py": [raised("FEATURES_VERSION")],
        },
        ["tests/ensemble/features/test_battle_features.py", "-k", "any_text or alone or described or listed or family"],
        """
from ensemble.features.design_matrix import describe
assert "trivial" in describe()
""",
    ),
    "a calibrator": Recipe(
        {
            "ensemble/stacking/calibration.py": [
                insert_before(
                    "CALIBRATORS",
                    "def fit_trivial(logits: Floats, labels: Integers, groups: Integers) -> Calibrator:\n"
                    "    return fit_temperature_scaling(logits, labels, groups)\n\n\n",
                ),
                insert(r"^CALIBRATORS[^\n]*= \{", '\n    "trivial": fit_trivial,'),
            ],
            "oof/config/schema.py": [choice("Stack", "calibrator", "trivial")],
        },
        ["tests/ensemble/stacking/test_calibration.py", "-k", "trivial or choices"],
        'load("configs/demo.yaml", ["stack.calibrator=trivial"])',
        least=2,
    ),
    "a combiner": Recipe(
        {
            "ensemble/stacking/combiners.py": [
                insert_before("COMBINERS", 'class Trivial(LogPool):\n    kind: ClassVar[str] = "trivial"\n\n\n'),
                insert(r"^COMBINERS[^\n]*\n[^\n]*for c in \(", "Trivial, "),
            ],
            "oof/config/schema.py": [choice("Stack", "final", "trivial")],
            "ensemble/stacking/__init__.py": [raised("STACKING_VERSION")],
        },
        ["tests/ensemble/stacking/test_combiners.py", "-k", "trivial"],
        'load("configs/demo.yaml", ["stack.final=trivial"])',
        least=5,
    ),
    "a loss": Recipe(
        {
            "oof/training/losses.py": [
                insert_before("distill_loss", LOSS),
                replace_in(
                    "distill_loss",
                    "(weights.mse, lambda teacher: centred_mse(logits, teacher)),",
                    "(weights.mse, lambda teacher: centred_mse(logits, teacher)),\n"
                    "        (weights.absolute, lambda teacher: absolute_error(logits, teacher)),",
                ),
            ],
            "oof/config/schema.py": [
                insert(
                    r"^class Losses:\n    \"\"\".*?\"\"\"\n",
                    '\n    absolute: float = setting(0.0, "sum of the absolute differences", range=WEIGHTS)',
                ),
                lambda source: source.replace("self.cosine + self.mse", "self.cosine + self.mse + self.absolute"),
            ],
        },
        ["tests/oof/training/test_losses.py", "-k", "formula or soft_kl"],
        """
import torch
from ensemble.distillation.plan import _check_settings
from oof.training.losses import distill_loss
config = load("configs/demo.yaml", ["distill.losses={kl: 0, absolute: 2}"])
_check_settings(config)
teacher = torch.tensor([[1.0, 0.0, 0.0]])
loss = distill_loss(torch.zeros(1, 3), torch.cat([teacher, teacher], dim=1), config.distill.losses, 1.0)
assert abs(loss.item() - 4 / 3) < 1e-6, loss
""",
    ),
    "a file schema": Recipe(
        {
            "oof/data/schemas.py": [
                insert(
                    r"^def recognise\(.*?verdict = form_of\(names, mapped\)\n",
                    '    if {*TEXTS, "grader"} <= names:\n        return Schema("graded", "turns", verdict)\n',
                ),
                insert(r'^FILE_COLUMNS = \([^\n]*\n    "id", ', '"grader", '),
            ]
        },
        ["tests/oof/data/test_schemas.py"],
        """
import polars as pl
from oof.data.battles import read_file
row = {"prompt": "p", "response_a": "a", "response_b": "b", "label": "tie", "grader": "me"}
pl.DataFrame([row]).write_csv("graded.csv")
assert read_file("graded.csv", "train").table["label"].to_list() == [2]
assert [name for name in read_file("graded.csv", "train").schemas.values() if "graded" in name]
""",
    ),
    "a report slice": Recipe(
        {
            "ensemble/report/slices.py": [
                insert(r"^    properties = table\.select\(\n", "        odd=prompt.str.len_chars() % 2 == 1,\n"),
                insert(
                    r"^def slices_of\(.*?    slices \+= \[\n",
                    '        Slice("parity", "odd prompts", properties["odd"].to_numpy()),\n',
                ),
            ]
        },
        ["tests/ensemble/report/test_numbers.py", "-k", "slice"],
        """
from tests.fixtures.report_runs import make_report_arena
from ensemble.report.slices import battle_properties, slices_of
arena = make_report_arena(100)
slices = slices_of(battle_properties(arena.table), arena.labels)
assert "odd prompts" in [part.name for part in slices]
""",
    ),
    "a setting": Recipe(
        {
            "oof/config/schema.py": [
                insert(
                    r"^class Stack:\n    \"\"\".*?\"\"\"\n",
                    '\n    patience: int = setting(5, "trials without a gain", unit="trials", range=(1, 9))\n',
                )
            ]
        },
        ["tests/oof/config/test_schema.py", "-k", "documented or bounds or choice or loaded or page"],
        """
assert load("configs/demo.yaml", ["stack.patience=9"]).stack.patience == 9
from oof.config.reference import settings_reference
assert "patience" in settings_reference()
""",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", RECIPES)
def test_following_a_row_gives_a_working_change(change: str, tmp_path: Path) -> None:
    recipe, named = RECIPES[change], files_of(ROWS[change])
    assert set(recipe.edits) <= set(named), "an edit at a place that the row does not name"
    assert recipe.tests[0] in ROWS[change]["check"]
    for name in ("oof", "ensemble", "tests", "configs", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, edits in recipe.edits.items():
        path = tmp_path / file
        before = path.read_text("utf-8")
        for edit in edits:
            path.write_text(edit(path.read_text("utf-8")), encoding="utf-8")
        assert path.read_text("utf-8") != before, file
    python(tmp_path, "-c", f"from oof.config import load\n{recipe.use}")
    output = python(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", *recipe.tests)
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) >= recipe.least, output


def python(folder: Path, *arguments: str) -> str:
    """Run Python in a copy of the repository; return its output."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_a_base_model_is_an_entry_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    text = (ROOT / "configs" / "demo.yaml").read_text("utf-8")
    entry = "  another:\n    checkpoint: some/base\n"
    path.write_text(re.sub(r"^members:.*\n", lambda m: m[0] + entry, text, flags=re.M), encoding="utf-8")
    command = "from oof.config import load; import sys; print(load(sys.argv[1], []).members['another'].checkpoint)"
    assert python(ROOT, "-c", command, str(path)).strip() == "some/base"
