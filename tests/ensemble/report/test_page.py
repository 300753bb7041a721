"""Report page: its numbers are those of report.json, texts of users are escaped, no external references."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main
from ensemble.report.make import plain, write_comparison, write_report
from ensemble.report.run_comparison import shared_rows
from ensemble.report.run_data import load_run
from ensemble.report.stack_summary import scores_tables
from ensemble.report.truncation import QUANTILES, truncation_report
from oof.common.atomic_files import write_json
from oof.config import load as load_config
from tests.fixtures.report_runs import hostile_run, make_report_arena, write_run


class Page(HTMLParser):
    """Elements, attributes and <data> values with their text, as a browser would parse them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[float, str]] = []
        self.value: float | None = None
        self.cells: list[str] = []  # text of table cells outside <data>
        self.cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.value = float(str(dict(attrs)["value"]))
        if tag == "td":
            self.cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "data":
            self.value = None
        self.cell = self.cell and tag != "td"

    def handle_data(self, text: str) -> None:
        if self.value is not None:
            self.data.append((self.value, text))
        elif self.cell:
            self.cells[-1] += text


def numbers(tree: Any) -> set[float]:
    if isinstance(tree, dict):
        return set().union(*(numbers(value) for value in tree.values())) if tree else set()
    if isinstance(tree, list):
        return set().union(*(numbers(value) for value in tree)) if tree else set()
    return {float(tree)} if isinstance(tree, int | float) and not isinstance(tree, bool) else set()


def strings(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        return set(tree).union(*(strings(value) for value in tree.values()))
    if isinstance(tree, list):
        return set().union(*(strings(value) for value in tree)) if tree else set()
    return {tree} if isinstance(tree, str) else set()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = hostile_run(tmp_path_factory.mktemp("hostile") / "run")
    return write_report(run).parent


def test_every_number_on_the_page_is_in_report_json(small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("adapter", "student"))
    folder = write_report(run).parent
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert len(page.data) > 300
    assert {value for value, _ in page.data} <= numbers(report)
    members = re.compile("|".join(map(re.escape, report["summary"]["members"])))  # gemma2, llama3_1
    words = {text for text in page.cells if re.search(r"\d", members.sub("", text))}
    assert words <= strings(report)  # audit, versions
    for value, text in page.data:
        shown = text.replace(",", "").replace(" %", "")
        assert abs(float(shown) - (100 * value if "%" in text else value)) <= 0.5001 * 10 ** -len(
            shown.partition(".")[2]
        )
    sections = [attrs.get("id") for tag, attrs in page.tags if tag == "section"]
    expected = ["story", "leaderboard", "pair-0", "seen", "ties", "quality", "calibration", "position", "battles"]
    assert sections == [*expected, "stack", "distillation", "slices", "cascade", "data", "run"]


def test_every_number_of_combiners_and_ablations_is_on_the_page(hostile: Path) -> None:
    """The small run has too few battles for ablations."""
    html = (hostile / "index.html").read_text(encoding="utf-8")
    report = json.loads((hostile / "report.json").read_text(encoding="utf-8"))
    assert {value for value, _ in Page(html).data} <= numbers(report)
    section = Page(html[html.index('<section id="stack"') : html.index('<section id="distillation"')])
    shown = {value for value, _ in section.data}
    for part in ("combiners", "importances", "folds"):
        assert numbers(report["stack"][part]) <= shown
    for part in ("full", "without", "learning_curve"):
        assert numbers(report["stack"]["ablations"][part]) <= shown
    for name in ("combiners", "gain", "studies", "ablations", "learning", "families"):
        assert f'id="{name}-figure_1"' in html


def test_token_counts_are_the_tokenizer_s(small_run: Path) -> None:
    from oof.encoding.encode import encode_battles
    from oof.model.classifier import load_tokenizer

    run = load_run(small_run)
    config = load_config("configs/demo.yaml")
    tokenizer = load_tokenizer(config.members["gemma2"].checkpoint)
    encoded = encode_battles(run.table, tokenizer, config.prompts, 320)
    tokens, kept = encoded.n_tokens.sum(axis=1), encoded.n_kept.sum(axis=1)
    [row] = [row for row in truncation_report(run) if "gemma2" in row["readers"]]
    assert row["budget"] == 320
    assert row["quantiles"] == np.quantile(tokens, QUANTILES).tolist()
    assert row["truncated"] == np.mean(kept < tokens)
    assert row["kept"] == pytest.approx(kept.sum() / tokens.sum())


def test_hostile_battles_stay_text(hostile: Path) -> None:
    html = (hostile / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"img", "iframe", "object", "embed", "form", "input", "b", "image", "foreignobject"}
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in html


def test_the_page_is_small_and_has_no_external_references(hostile: Path) -> None:
    html = (hostile / "index.html").read_text(encoding="utf-8")
    assert len(html.encode()) < 3_000_000
    for tag, attrs in Page(html).tags:
        for name in ("href", "src", "xlink:href", "srcset", "action"):
            target = attrs.get(name)
            assert target is None or target.startswith("#") or target == "data:,", (tag, name, target)
    style = re.search(r"<style>.*?</style>", html, re.S)
    assert style is not None
    assert "url(" not in style.group()
    assert "@import" not in style.group()
    assert set(re.findall(r"https?://[\w.]+", html)) <= {"http://evil.example"}  # as text, in the hostile battles


def test_every_figure_has_an_alternative_text_and_unique_ids(hostile: Path) -> None:
    page = Page((hostile / "index.html").read_text(encoding="utf-8"))
    figures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(figures) >= 12
    assert all(len(str(attrs["aria-label"])) > 20 and attrs["role"] == "img" for attrs in figures)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_the_same_run_gives_the_same_page(hostile: Path) -> None:
    before = {path.name: path.read_bytes() for path in hostile.iterdir()}
    write_report(hostile.parent)
    assert {path.name: path.read_bytes() for path in hostile.iterdir()} == before


@pytest.mark.slow
def test_prompts_in_a_corpus_have_their_section(tmp_path: Path) -> None:
    from ensemble.contamination.check import check_contamination

    arena = make_report_arena(600, seed=13)
    prompts = [[" ".join(f"w{7 * i + k * k}" for k in range(9))] for i in range(600)]
    arena = arena._replace(table=arena.table.with_columns(prompt=pl.Series(prompts)))
    run = write_run(tmp_path / "run", arena)
    texts = [prompt[0] for prompt, included in zip(prompts, arena.in_corpus, strict=True) if included]
    pl.DataFrame({"text": texts}).write_csv(tmp_path / "corpus.csv")
    check_contamination(run, [str(tmp_path / "corpus.csv")], threshold=0.95)
    page = write_report(run).read_text(encoding="utf-8")
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["seen"]["n_seen"] == len(texts)
    effect = report["members"][0]["seen"]
    assert effect["difference"]["value"] == pytest.approx(effect["seen"]["value"] - effect["unseen"]["value"])
    assert "It cannot show that training on the corpus is the cause" in page
    assert "corpus.csv" in page


@pytest.mark.slow
def test_many_battles_have_a_scatter_of_a_sample_and_a_heat_map_of_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_report_arena(2100, seed=15), stages=False)
    page = write_report(run).read_text(encoding="utf-8")
    [pair] = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))["members"]
    assert pair["points"]["n_shown"] == len(pair["points"]["first"]) == 2000
    assert np.sum(pair["grid"]["counts"]) == 2100
    assert "A random 2,000 of 2,100 battles, one mark per battle, by the probability of the verdict, of one" in page
    scatter = page[page.index('id="pair0-scatter-figure_1"') : page.index("</figure>", page.index("pair0-scatter-"))]
    assert len(re.findall(r"<use [^>]*/>", scatter)) - len(re.findall("xtick|ytick", scatter)) == 2000 + 3  # legend
    assert "Heat map of all battles" in page


def test_both_tables_of_scores_json_are_shown() -> None:
    loss, difference = {"value": 1.1, "low": 1.0, "high": None}, {"value": -0.1, "low": None, "high": None, "groups": 3}
    scores = {"predictors": {"stack": {"log_loss": loss, "n": 7}},
              "paired": [{"first": "stack", "second": "mean", "groups": 3, "log_loss": difference}]}  # fmt: skip
    assert scores_tables({"key": "x", "files": {}, **scores}) == {
        "predictors": [{"name": "stack", "log_loss value": 1.1, "log_loss low": 1.0, "n": 7}],
        "paired": [{"first": "stack", "second": "mean", "groups": 3, "log_loss value": -0.1}],
    }
    assert scores_tables({}) == {}


@pytest.mark.slow
def test_a_run_of_stage_one_alone_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_report_arena(120, seed=9), stages=False)
    page = write_report(run).read_text(encoding="utf-8")
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    assert [row["predictor"] for row in report["summary"]["table"]] == ["one", "two"]
    assert report["distillation"] is None
    assert 'id="pair-0"' in page
    [coding] = report["data"]["codings"]
    assert list(coding["verdicts"].values()) == np.bincount(make_report_arena(120, seed=9).labels).tolist()
    assert coding["coding"] in page
    battles = json.loads((run / "battles.json").read_text(encoding="utf-8"))
    del battles["codings"]  # as earlier versions wrote it
    write_json(run / "battles.json", battles)
    assert "How the verdicts were read" not in write_report(run).read_text(encoding="utf-8")


def test_a_missing_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "make oof" in capsys.readouterr().err


@pytest.mark.slow
def test_several_runs_give_a_page_each_and_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / name, make_report_arena(60, seed=14), stages=False)) for name in ("a", "b")]
    assert main(["report", *runs]) == 0
    pages = ["a/report/index.html", "b/report/index.html", "a/report/compare/index.html"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [f"report: {tmp_path / page}" for page in pages]
    assert lines[-1].startswith("report: written, ")
    assert all((tmp_path / page).is_file() for page in pages)


def test_runs_are_paired_on_the_battles_they_share(tmp_path: Path) -> None:
    arena = make_report_arena(300, seed=10)
    one = write_run(tmp_path / "one", arena)
    less = arena._replace(
        table=arena.table.head(200), labels=arena.labels[:200], groups=arena.groups[:200],
        logits={name: 0.1 * z[:200] for name, z in arena.logits.items()},
    )  # fmt: skip
    two = write_run(tmp_path / "two", less)
    page = write_comparison([one, two])
    comparison = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    [pair] = comparison["pairs"]
    assert (pair["n_shared"], pair["n_first"], pair["n_second"]) == (200, 300, 200)
    rows = {row["predictor"]: row for row in pair["rows"]}
    assert set(rows) == {"one", "two", "prior", "mean", "stack", "calibrated", "student"}
    assert rows["one"]["difference"]["value"] == pytest.approx(rows["one"]["second"] - rows["one"]["first"])
    assert rows["prior"]["difference"]["value"] == 0
    shown = {value for value, _ in Page(page.read_text(encoding="utf-8")).data}
    assert shown <= numbers(comparison)


def test_a_battle_whose_verdict_differs_is_not_shared(tmp_path: Path) -> None:
    arena = make_report_arena(100, seed=11)
    changed = arena.table.with_columns(label=pl.Series([(arena.labels[0] + 1) % 3, *arena.labels[1:]], dtype=pl.Int8))
    runs = [
        load_run(write_run(tmp_path / name, arena._replace(table=table)))
        for name, table in (("a", arena.table), ("b", changed))
    ]
    assert shared_rows(*runs) == (list(range(1, 100)), list(range(1, 100)))


def test_runs_without_common_battles_are_warned_of_at_the_top(tmp_path: Path) -> None:
    arena = make_report_arena(60, seed=16)
    other = arena._replace(table=arena.table.with_columns(id=pl.col("id") + "x"))
    runs = [write_run(tmp_path / name, a, stages=False) for name, a in (("a", arena), ("b", other))]
    html = write_comparison(runs).read_text(encoding="utf-8")
    assert html.index("No battles in common") < html.index("Log loss by run")
    assert "Findings" not in html


def test_a_stage_that_has_not_run_is_one_line_with_its_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_report_arena(60, seed=17), stages=False)
    html = write_report(run).read_text(encoding="utf-8")
    assert re.search(r'<section class="empty" id="stack">.*?arena-distill stack --run RUN', html, re.S)
    assert "#stack" not in html
    assert f"<code>arena-distill stack --run {run}</code>" in html  # the next command, at the head


def test_the_same_run_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "run", make_report_arena(60, seed=12), stages=False))
    assert main(["report", run, run]) == 2
    assert "named twice" in capsys.readouterr().err


def test_numbers_that_are_not_finite_become_null() -> None:
    assert plain({"a": float("nan"), "b": [float("inf"), 1]}) == {"a": None, "b": [None, 1]}


@pytest.mark.slow
def test_the_report_imports_no_torch() -> None:
    modules = "ensemble.report.make, ensemble.contamination.check"
    code = f"import sys, {modules}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == ["False", "False"]
