"""Every benchmark runs to its end with so little of everything that its figures mean nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fixtures.demo_run import ROOT
from tests.fixtures.sandbox import DOCUMENTS, cut_down_copy, run

DATA = ROOT.parent / "shared" / "data"
TINY = "configs/bases/tiny-gemma2", "configs/bases/tiny-llama"
# The scripts' arguments; ``DATA`` stands for the folder of real judgements, without which the test skips.
SMALL = {
    "gpu.bench": "--quick --only rates",
    "quality.abstention": "--data DATA --repeats 2 --groups 2000 --out abstention.md",
    "quality.cascade": "--data DATA --run runs/demo --out cascade.md",
    "quality.choice": "--data DATA --only king2-300 arena-200 --contenders ours --trials 2 --seeds 1",
    "quality.fold_job_scales": "--seeds 2 --battles 300 --out scales.md",
    "quality.head_init": "--seeds 0 --battles 60",
    "quality.label_canary": "",
    "quality.peers": "--data DATA --battles 24 --tokens 96 --epochs 0.5 --contenders member stack student",
    "quality.real_logits": "--data DATA --battles 300 --trials 2 --out real-logits.md",
    "quality.stress": "runs/demo --data DATA",
    "quality.students": "--seeds 0 --battles 120 --only 'plain student' pseudo-labels",
    "quality.final_student": "--seeds 0 --battles 120 --write final-student.md",  # of the students before it
    "robustness.fuzz": "--files 20",
    "serving.hostile_clients": "runs/demo/distill/student --seconds 2 --only malformed --write hostile.md",
    "serving.int8": f"runs/demo/distill/student --speed-of {TINY[1]} --widths 64 --battles 30 "
    "--speed-battles 1 --rounds 1 --write int8.md",
    "serving.service_load": "--width 64 --layers 1 --seconds 3 --clients 8 --write load.md",
    "speed.fold_jobs": f"--model {TINY[1]} --battles 4 --max-tokens 128 --peer-batch 2 --write jobs.md",
    "speed.grouping": "--sizes 400 800",
    "speed.growth": "--battles 40 60 --tolerance 9 --write growth.md",
    "speed.judge_rate": "runs/demo/distill/student --battles 8 --run runs/demo --config configs/demo.yaml",
    "speed.preparation": f"--tokenizer {TINY[0]} --battles 400 --sample 8 --repeats 1 --no-limits --write prep.md",
    "speed.report_size": "--battles 300 --corpus 500 --write report-size.md",
    "speed.stack_peers": "--battles 300 --trials 2 --limit 15 --only ours tuner sklearn --no-position",
    "speed.unlabelled_memory": "--battles 30",
}
ELSEWHERE = {
    "evidence": "tests/benchmarks/test_evidence.py",
    "recipes": "tests/benchmarks/test_recipes.py",
    "gpu.attention_kernels": "needs a GPU",
    "quality.other_calibrators": "started by quality.choice, in an environment of its own",
    "quality.other_judges": "started by quality.peers, in an environment of its own",
    "quality.our_fold_job": "started by quality.peers",
    "robustness.clean_machine": "installs everything with each Python, for 15 minutes each",
    "robustness.installation": "downloads gigabytes",
    "robustness.faults": "tests/benchmarks/test_faults.py is its short version",
    "robustness.mutants": "runs for hours; test_mutants.py tests its page",
    "robustness.subcommand_server": "started by robustness.faults",
    "serving.attackers": "started by serving.hostile_clients",
    "speed.other_stackers": "started by speed.stack_peers",
}


def modules(folder: Path) -> dict[str, Path]:
    """Return the Python files below a folder by dotted name without the folder's own."""
    paths = (path for path in folder.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(folder).with_suffix("").parts): path for path in paths}


BENCHMARKS = modules(ROOT / "benchmarks")


def test_every_script_runs_in_this_test_or_is_listed_with_a_reason() -> None:
    scripts = {name for name, path in BENCHMARKS.items() if '__name__ == "__main__"' in path.read_text("utf-8")}
    assert scripts == set(SMALL) | set(ELSEWHERE)


def test_every_benchmark_that_documents_or_make_targets_name_is_a_script() -> None:
    texts = [path.read_text("utf-8") for path in (*DOCUMENTS, ROOT / "Makefile")]
    named = {name for text in texts for name in re.findall(r"-m benchmarks\.(\w+\.\w+)", text)}
    assert named <= set(SMALL) | set(ELSEWHERE)


def test_no_benchmark_has_the_name_of_a_source_module() -> None:
    sources = {path.stem for package in ("oof", "ensemble") for path in modules(ROOT / package).values()}
    assert {path.stem for path in BENCHMARKS.values()} & sources == set()


@pytest.mark.parametrize("name", sorted({*SMALL, *ELSEWHERE} - {"robustness.subcommand_server"}))
def test_a_script_s_docstring_shows_its_command(name: str) -> None:
    assert f"\n    python -m benchmarks.{name}" in BENCHMARKS[name].read_text("utf-8")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = cut_down_copy(tmp_path_factory.mktemp("benchmarks") / "repository")
    for name, base in (("gemma3-270m", TINY[0]), ("smollm2-135m", TINY[1])):
        (folder / "models").mkdir(exist_ok=True)
        (folder / "models" / name).symlink_to(folder / base)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs_to_its_end(name: str, sandbox: Path) -> None:
    arguments = SMALL[name]
    if "DATA" in arguments and not (DATA / "ukpconvarg1_dev.csv").is_file():
        pytest.skip("no real judgements here")
    run(sandbox, f"python -m benchmarks.{name} {arguments.replace('DATA', str(DATA))}")
