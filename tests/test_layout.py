"""Layout of the tests: they mirror the source folders, and share helpers through tests/fixtures alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.demo_run import ROOT

TESTS = ROOT / "tests"
# Suites of a folder that test no single module.
SUITES = {
    "oof/data/test_known_formats.py": "files of each known dataset, through the command line",
    "oof/distributed/test_environment.py": "WORLD_SIZE and RANK left over in the environment, through the command line",
    "oof/model/test_placement.py": "the device that weights are read to, and drivers that torch cannot use",
    "ensemble/distillation/test_pretrained_student.py": "students and nested members after pretraining, in a real run",
    "ensemble/report/test_browser.py": "the page in a real browser",
    "ensemble/report/test_numbers.py": "every number of report.json against an independent computation",
    "ensemble/report/test_planted_effects.py": "planted effects are found by the whole report",
    "ensemble/report/test_planted_runs.py": "numbers and sentences of whole reports of planted runs",
    "ensemble/stacking/test_hostile_logits.py": "broken and malicious files of logits",
    "ensemble/stacking/test_killed_tuning.py": "stage two killed while tuning",
    "ensemble/stacking/test_known_optimum.py": "the stack on data with a known best possible loss",
    "ensemble/stacking/test_never_worse.py": "the default against the best candidate over many seeds",
    "oof/config/test_hostile_config.py": "broken and malicious configurations",
    "oof/folds/test_template_rule.py": "the template rule against an independent one",
    "oof/model/test_hostile_weights.py": "broken and malicious checkpoints and adapters",
    "oof/model/test_no_code.py": "checkpoints that hold code",
    "oof/model/test_private_attributes.py": "undocumented attributes of libraries",
    "oof/test_cuda.py": "logits, training and memory on a GPU",
    "oof/test_cuda_training.py": "training in float16, with 8-bit moments, bad steps and interruptions on a GPU",
    "oof/test_cuda_kernels.py": "attentions, fused layers and quantisation on a GPU",
}


def mirrored() -> list[Path]:
    return [path for package in ("oof", "ensemble") for path in sorted((TESTS / package).rglob("test_*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", mirrored(), ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_file_mirrors_a_module_or_is_a_named_suite(path: Path) -> None:
    name = str(path.relative_to(TESTS))
    folder, tested = ROOT / path.parent.relative_to(TESTS), path.stem.removeprefix("test_")
    modules = {module.stem for module in folder.glob("*.py")}
    # test_groups.py or, for one aspect of the module, test_groups_by_key.py
    mirrors = any(tested == module or tested.startswith(f"{module}_") for module in modules)
    assert mirrors != (name in SUITES), "no module of this name, or a suite that has one"


def test_every_named_suite_exists() -> None:
    assert [name for name in SUITES if not (TESTS / name).is_file()] == []


def test_no_test_imports_another_test_or_conftest() -> None:
    wrong = {
        str(path.relative_to(TESTS)): module
        for path in TESTS.rglob("*.py")
        for module in imports(path)
        if any(part.startswith("test_") or part == "conftest" for part in module.split(".")[:-1])
        or (module.startswith("tests.") and not module.startswith("tests.fixtures."))
    }
    assert wrong == {}
