"""Mutation check: small changes of the code that numbers depend on, and whether a test notices each.

    python -m benchmarks.robustness.mutants --write docs/evidence/mutants.md   # hours; the next call does the rest
    python -m benchmarks.robustness.mutants --only oof/metrics.py

mutmut changes one operator, number, argument or name at a time and runs those fast tests of the module (``MODULES``)
that reach the changed function. A change that no test notices is listed below with its lines, and so is one whose tests
ran into the time limit, marked "timeout": its loop may have no end, or the machine was busy. Those that cannot change a
result do not count: `benchmarks/robustness/equivalent_mutants.json` has them with the reason, one by one or by a rule.
Texts of messages are not changed.

mutmut is installed into ``--out`` and works there on copies of the tracked files, one for each module. Another call
tries only those changes that nothing has noticed yet and that are not argued away.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, argument_parser, chosen, paragraphs, run_script, write_page
from oof.common.atomic_files import read_json
from oof.common.errors import UserError

MUTMUT = "mutmut==3.8.1"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
# Modules that numbers depend on, and the tests of each.
MODULES = {
    "oof/metrics.py": ["tests/oof/test_metrics.py"],
    "oof/folds/assignment.py": ["tests/oof/folds"],
    "oof/folds/given_folds.py": ["tests/oof/folds"],
    "oof/folds/groups.py": ["tests/oof/folds"],
    "oof/encoding/batches.py": ["tests/oof/encoding"],
    "oof/encoding/truncation.py": ["tests/oof/encoding"],
    "oof/training/losses.py": ["tests/oof/training/test_losses.py"],
    "ensemble/stacking/calibration.py": [
        "tests/ensemble/stacking/test_calibration.py",
        "tests/ensemble/stacking/test_cross_fit_without_ties.py",
    ],
    "ensemble/stacking/calibration_fit.py": ["tests/ensemble/stacking/test_calibration_fit.py"],
    "ensemble/stacking/cross_fit.py": [
        "tests/ensemble/stacking/test_cross_fit.py",
        "tests/ensemble/stacking/test_cross_fit_without_ties.py",
    ],
    "ensemble/distillation/targets.py": ["tests/ensemble/distillation/test_targets.py"],
    "ensemble/cascade/policy.py": ["tests/ensemble/cascade"],
    "ensemble/cascade/policy_choice.py": ["tests/ensemble/cascade"],
    "ensemble/cascade/scores.py": ["tests/ensemble/cascade"],
}
# Lines whose change is one of a message, a name for people, or nothing that runs.
UNCHANGED_LINES = ["UserError\\(", "ValueError\\(", "logger\\.", '^\\s*f?"', "TypeVar\\("]
SETTINGS, PRELOADED = "pyproject.toml", "preloaded.txt"
# Libraries whose import takes seconds, imported once before mutmut forks a process for each change. Ours are imported
# after that, from mutmut's copy.
LIBRARIES = ["torch", "transformers.models.auto.modeling_auto", "transformers.modeling_utils", "peft", "lightgbm"]
LIBRARIES += ["optuna", "polars", "scipy.optimize", "sklearn.model_selection", "hypothesis", "huggingface_hub.repocard"]
KILLED = ("killed", "segfault")


@dataclass(frozen=True)
class Mutant:
    """A change of the code, and what became of it.

    Attributes:
        name: mutmut's.
        module: path of the file.
        function: its name, a method's with its class.
        status: killed, survived, timeout, no tests …
        change: removed and added lines, without indentation.
    """

    name: str
    module: str
    function: str
    status: str
    change: tuple[str, ...] = ()

    @property
    def key(self) -> list[str]:
        return [self.module, self.function, *self.change]


def install(packages: Path) -> None:
    """Install mutmut into a folder unless it is there."""
    if not (packages / "mutmut").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(packages), MUTMUT]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"{MUTMUT} could not be installed; its message is above")


def prepare(tree: Path, module: str) -> None:
    """Copy the tracked files with mutmut's settings for a module beside them; unchanged files stay.

    Each module has a folder of its own, since mutmut forgets all results where the list of tests changes.
    """
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in set(filter(None, listed.split("\0"))) - {SETTINGS}:
        source, target = ROOT / name, tree / name
        if source.is_file() and not (target.is_file() and source.read_bytes() == target.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    settings = {
        "source_paths": ["oof", "ensemble"],
        "only_mutate": [module],
        "also_copy": ["benchmarks", "configs", "docs", "README.md", "Makefile", "constraints.txt"],
        "pytest_add_cli_args_test_selection": MODULES[module],
        "do_not_mutate_patterns": UNCHANGED_LINES,
        "process_isolation": "forkserver",  # torch's threads do not survive a fork
        "forkserver_warmup": "import",
        "preload_modules_file": PRELOADED,
    }
    tree.mkdir(parents=True, exist_ok=True)
    (tree / PRELOADED).write_text("\n".join(LIBRARIES), encoding="utf-8")
    # Strings, and lists of strings, are written alike in JSON and TOML.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = "\n".join([(ROOT / SETTINGS).read_text(encoding="utf-8"), "[tool.mutmut]", *lines, ""])
    path = tree / SETTINGS
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        shutil.rmtree(tree / "mutants", ignore_errors=True)  # mutmut would change no file that it has copied as it is
        path.write_text(text, encoding="utf-8")


def forget_survivors(tree: Path, packages: Path) -> None:
    """Let mutmut try those changes again that no test noticed and nothing argues away: tests may have come since."""
    paths = list((tree / "mutants").rglob("*.meta"))
    if not paths:
        return
    known = read_json(EQUIVALENT)
    again = {m.name for m in results(tree, packages) if m.status not in KILLED and not reason_of(m, known)}
    for path in paths:
        saved = read_json(path)
        codes = saved["exit_code_by_key"]
        saved["exit_code_by_key"] = {name: None if name in again else code for name, code in codes.items()}
        path.write_text(json.dumps(saved), encoding="utf-8")


def mutmut(tree: Path, packages: Path, *arguments: str) -> str:
    """Run a command of mutmut in the copy; return its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTEST_ADDOPTS": "-p benchmarks.robustness.quickest_first", "HYPOTHESIS_PROFILE": "unshrunk"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"mutmut {arguments[0]}: status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def results(tree: Path, packages: Path) -> list[Mutant]:
    """Return every mutant; those that were tried and not noticed with their change."""
    found = []
    for line in mutmut(tree, packages, "results", "--all", "true").splitlines():
        name, _, status = line.strip().rpartition(": ")
        if "__mutmut_" not in name:
            continue
        dotted, _, function = name.rpartition(".")
        function = function.rpartition("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        change = () if status in (*KILLED, "not checked") else _change(mutmut(tree, packages, "show", name))
        found.append(Mutant(name, f"{dotted.replace('.', '/')}.py", function, status, change))
    return found


def _change(diff: str) -> tuple[str, ...]:
    lines = (line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    return tuple(f"{line[0]} {line[1:].strip()}" for line in lines)


def reason_of(mutant: Mutant, known: dict[str, list[dict[str, Any]]]) -> str:
    """Return why a change that no test noticed is no error; empty: nothing says that it is none."""
    if mutant.status in KILLED:
        return ""
    listed = (entry["reason"] for entry in known["equivalent"] if mutant.key in entry["mutants"])
    by_rule = (rule["reason"] for rule in known["rules"] if re.fullmatch(rule["change"], "\n".join(mutant.change)))
    return next(chain(listed, by_rule), "")


def page(mutants: Sequence[Mutant]) -> list[str]:
    """Return the lines of the page: shares by module, then the survivors, then those argued away, by reason."""
    known = read_json(EQUIVALENT)
    because = [reason_of(mutant, known) for mutant in mutants]
    equivalent = [mutant for mutant, reason in zip(mutants, because, strict=True) if reason]
    counted = [mutant for mutant, reason in zip(mutants, because, strict=True) if not reason]
    survivors = [mutant for mutant in counted if mutant.status not in KILLED]
    lines = [
        paragraphs(__doc__, 2, 3),
        "",
        "| module | changes | noticed | equivalent | not noticed |",
        "|---" * 5 + "|",
    ]
    numbers = [Counter(mutant.module for mutant in of) for of in (counted, equivalent, survivors)]
    for module in [*sorted({mutant.module for mutant in mutants}), "all"]:
        n, same, alive = (of.total() if module == "all" else of[module] for of in numbers)
        lines.append(f"| {module} | {n + same} | {n - alive} ({(n - alive) / max(n, 1):.1%}) | {same} | {alive} |")
    lines += ["", "## Not noticed", "", *([f"- {_words(mutant)}" for mutant in survivors] or ["None."])]
    lines += ["", "## Equivalent"]
    for reason in filter(None, dict.fromkeys(because)):
        lines += ["", f"{reason}:", ""]
        lines += [f"- {_words(mutant)}" for mutant, its in zip(mutants, because, strict=True) if its == reason]
    return lines if equivalent else [*lines, "", "None."]


def _words(mutant: Mutant) -> str:
    change = ", ".join(f"`{line}`" for line in mutant.change)
    status = "" if mutant.status == "survived" else f" ({mutant.status})"
    return f"`{mutant.module}`, `{mutant.function}`: {change}{status}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="MODULE", help="default: all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/mutants"))
    parser.add_argument("--write", type=Path, help="the page; default: in --out")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    packages = out / "packages"
    install(packages)
    found: list[Mutant] = []
    for module in chosen(arguments.only, MODULES):
        tree = out / module.removesuffix(".py")
        prepare(tree, module)
        forget_survivors(tree, packages)
        mutmut(tree, packages, "run", "--max-children", str(arguments.workers))
        found += results(tree, packages)
    print(write_page(arguments.write or out / "mutants.md", "Mutation check", page(found)))


if __name__ == "__main__":
    run_script(main)
