"""Shipped recipes: each names its cards, fits on them by the plan, and stands on the generated page with its totals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.recipes import WITHOUT_A_CARD, Recipe, main, page, read_recipe, recipes, totals
from oof import config as configuration
from oof.common.errors import UserError
from oof.model.cards import CARDS
from tests.fixtures.demo_run import ROOT

PAGE = ROOT / "docs" / "reference" / "recipes.md"
KAGGLE_WEEK = 30  # hours of two T4
by_name = pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)


def test_every_shipped_configuration_is_a_recipe_for_cards_or_needs_none() -> None:
    shipped = {path.stem for path in (ROOT / "configs").rglob("*.yaml")}
    assert shipped == {recipe.name for recipe in recipes()} | set(WITHOUT_A_CARD)


@by_name
def test_a_recipe_names_cards_of_the_plan_and_as_many_as_its_jobs_use(recipe: Recipe) -> None:
    jobs = configuration.load(recipe.path).jobs
    assert set(recipe.cards) <= set(CARDS)
    assert jobs.workers * jobs.nproc == recipe.n_cards
    assert recipe.gives_up.endswith(".")


@by_name
def test_the_page_says_what_a_recipe_gives_up_and_has_a_row_for_each_card(recipe: Recipe) -> None:
    text = PAGE.read_text("utf-8")
    assert f"- `configs/{recipe.path.name}`: {recipe.gives_up}\n" in text
    for card in recipe.cards:
        assert f"| `configs/{recipe.path.name}` | {recipe.n_cards} x {card} | " in text


def test_hours_that_the_readme_cites_are_those_of_the_page() -> None:
    text, cited = PAGE.read_text("utf-8"), (ROOT / "README.md").read_text("utf-8")
    for card in ("H100", "A100-80"):
        row = re.search(rf"^\| `configs/lmsys.yaml` \| 1 x {card} \|.* ([\d.,]+) \| ([\d,]+) \|$", text, re.M)
        assert row
        assert f"{float(row[1]):.0f} hours on an {card.removesuffix('-80')}" in cited
        assert row[2] in cited


def test_eight_cards_all_have_a_fold_job_and_only_one() -> None:
    config = configuration.load(ROOT / "configs" / "lmsys-8gpu.yaml")
    assert len(config.members) * config.folds.k == config.jobs.workers == 8


@pytest.mark.slow
def test_all_stages_on_two_t4_fit_into_a_kaggle_week() -> None:
    result = totals(read_recipe(ROOT / "configs" / "lmsys-2xt4.yaml"))["T4"]
    assert result is not None
    assert 0 < result.stage_one_hours + result.fold_student_hours + result.final_student_hours <= 2 * result.wall_hours
    assert result.wall_hours <= KAGGLE_WEEK


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_recipe_fits_on_its_cards_and_the_page_is_what_the_command_writes() -> None:
    text = page(recipes())
    assert "does not fit" not in text
    assert text == PAGE.read_text("utf-8"), 'run make recipes ARGS="--write docs/reference/recipes.md"'


@pytest.mark.slow
def test_a_price_of_ones_own_replaces_the_stated_ones() -> None:
    [recipe] = [recipe for recipe in recipes() if recipe.name == "lmsys-2xt4"]
    rows = re.findall(r"\| 2 x T4 \|.* ([\d.,]+) \| ([\d,]+) \|$", page([recipe], 100.0), re.M)
    [(wall, dollars)] = rows
    assert float(dollars.replace(",", "")) == pytest.approx(200 * float(wall), abs=10)


def test_a_recipe_that_is_not_shipped_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["recipes", "--only", "lmsis", "--write", str(written)])
    with pytest.raises(UserError, match="no recipe 'lmsis'; there are: "):
        main()
    assert not written.exists()


def test_a_configuration_without_its_cards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text("# A recipe.\nseed: 0\n")
    with pytest.raises(ValueError, match="Cards: N x CARD"):
        read_recipe(path)
