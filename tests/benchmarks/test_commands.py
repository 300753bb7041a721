"""Each benchmark that a document names runs to its end, with so little of everything that its figures say nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fixtures.demo_run import ROOT
from tests.fixtures.sandbox import DOCUMENTS, cut_down_copy, run

DATA = ROOT.parent / "shared" / "data"
TINY = "configs/bases/tiny-gemma2", "configs/bases/tiny-llama"
# The scripts' arguments; ``DATA`` stands for the folder of real battles, without which that test skips.
SMALL = {
    "bench_stack": "--battles 300 --trials 2 --limit 15 --only ours tuner sklearn",
    "canary": "",
    "choice": "--data DATA --seeds 1 --trials 2 --out choice.md",
    "distill": f"--data DATA/ukpconvarg1_dev.csv --gemma {TINY[0]} --smollm {TINY[1]} --sizes 48,24,24,540 "
    "--out runs/ukp --report ukp.md stack.trials=2",
    "distill_demo": "--only 'hard labels only'",
    "features": "--battles 200",
    "final_student": "",
    "frozen": "--battles 30 --epochs 0.5",
    "fuzz": "--files 20",
    "groups": "--sizes 400 800",
    "growth": "--battles 40 60 --tolerance 9",
    "judge": "runs/demo/distill/student --battles 8 --run runs/demo --config configs/demo.yaml",
    "quality": "--data DATA --models models --quick --sets chats",  # which reads the files of both sets
    "report": "--battles 300 --corpus 500",
    "training": f"--model {TINY[1]} --battles 4 --max-tokens 128 --peer-batch 2",
    "ukp_stack": f"--data DATA/ukpconvarg1_dev.csv --model {TINY[1]} --battles 120 --epochs 0.3 --out ukp.md",
}
ELSEWHERE = {"attention": "needs a GPU", "faults": "tests/benchmarks/test_faults.py is its short version"}


def test_every_benchmark_of_the_documents_is_among_them() -> None:
    named = {name for path in DOCUMENTS for name in re.findall(r"benchmarks/(\w+)\.py", path.read_text("utf-8"))}
    recipes = re.findall(r"benchmarks/(\w+)\.py", (ROOT / "Makefile").read_text("utf-8"))
    assert named | set(recipes) <= set(SMALL) | set(ELSEWHERE)


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
        pytest.skip("no real battles here")
    run(sandbox, f"python benchmarks/{name}.py {arguments.replace('DATA', str(DATA))}")
