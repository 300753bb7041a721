"""Cost of every shipped recipe by ``make plan``: hours of each stage, wall hours and money, as one page.

    python -m benchmarks.recipes [--only lmsys wsdm] [--price-per-hour 2.5] [--write docs/reference/recipes.md]

The head of each configuration says which cards it is for (``# Cards: 8 x H100 or A100-80``) and what it gives up
(``# Gives up: …``). Nothing is measured and nothing downloaded: the hours are predictions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, argument_parser, chosen, run_script
from oof import config as configuration
from oof.common.atomic_files import replacing
from oof.plan import Totals, make_plan, plan_totals

CONFIGS = ROOT / "configs"
WITHOUT_A_CARD = ("demo",)
# US dollars for an hour of one card, round figures of on-demand offers; they differ by provider and by month.
PRICES = {"T4": 0.4, "L4": 0.7, "A10G": 1.0, "A100-80": 1.8, "H100": 2.5}
CARDS_LINE = re.compile(r"^# Cards: (\d+) x (.+)$", re.M)
GIVES_UP = re.compile(r"^# Gives up: (.+(?:\n#   (?!make).+)*)$", re.M)

HEAD = """# Recipes

Written by `make recipes ARGS="--write docs/reference/recipes.md"`. Every figure is a prediction of `make plan` for the
LMSYS competition's number of battles and their lengths; none is measured. `make plan CONFIG=… DATA=train.csv` plans
with your data. Stage one, fold students and final student are in hours of one card. Wall hours run from the start to
the end on all cards, with the waves of jobs and idle cards. Test battles are not counted, nor stage two, which needs no
GPU.
"""


@dataclass(frozen=True)
class Recipe:
    """A shipped configuration for GPUs.

    Attributes:
        path: of the configuration.
        n_cards: for which it is made.
        cards: kinds, any of which will do: names of the plan.
        gives_up: what it leaves out, a sentence without its first capital.
    """

    path: Path
    n_cards: int
    cards: tuple[str, ...]
    gives_up: str

    @property
    def name(self) -> str:
        return self.path.stem


def recipes() -> list[Recipe]:
    """Return every shipped recipe in the order of the names.

    Raises:
        ValueError: a configuration's head lacks its cards or what it gives up.
    """
    return [read_recipe(path) for path in sorted(CONFIGS.glob("*.yaml")) if path.stem not in WITHOUT_A_CARD]


def read_recipe(path: Path) -> Recipe:
    """Return the recipe that a configuration's head declares."""
    text = path.read_text(encoding="utf-8")
    cards, gives_up = CARDS_LINE.search(text), GIVES_UP.search(text)
    if cards is None or gives_up is None:
        raise ValueError(f"{path}: its head needs the lines '# Cards: N x CARD' and '# Gives up: …'")
    return Recipe(path, int(cards[1]), tuple(cards[2].split(" or ")), re.sub(r"\n#\s+", " ", gives_up[1]))


def totals(recipe: Recipe, price: float | None = None) -> dict[str, Totals | None]:
    """Return the totals of a recipe on each of its cards, with its own settings; None where a model does not fit.

    Args:
        recipe: to plan.
        price: of one card for an hour; None = that of ``PRICES``.
    """
    config = configuration.load(recipe.path)
    plan = make_plan(config, recipe.cards)
    prices = {card: PRICES[card] if price is None else price for card in recipe.cards}
    return {card: plan_totals(plan, card, recipe.n_cards, prices[card]) for card in recipe.cards}


def page(listed: Sequence[Recipe], price: float | None = None) -> str:
    """Return the page with the totals of some recipes."""
    return "\n".join([HEAD, *_table(listed, price), "", "## What each recipe gives up", "", *_sentences(listed)]) + "\n"


def _table(listed: Sequence[Recipe], price: float | None) -> Iterator[str]:
    each = [f"{card} {PRICES[card]:.2f}" for card in PRICES] if price is None else [f"any card {price:.2f}"]
    yield "Money is wall hours x cards x the assumed price of a card for an hour, in dollars:"
    yield f"{', '.join(each)}. Give yours with `make recipes PRICE=2.5`, or plan"
    yield "one recipe with `make plan CONFIG=configs/lmsys.yaml PRICE=2.5`. Kaggle's T4 cost nothing, 30 hours a week."
    yield ""
    yield "| recipe | cards | stage one | fold students | final student | wall hours | dollars |"
    yield "|---|---|---|---|---|---|---|"
    for recipe in listed:
        for card, result in totals(recipe, price).items():
            yield f"| `configs/{recipe.path.name}` | {recipe.n_cards} x {card} | {_cells(result)} |"


def _cells(result: Totals | None) -> str:
    if result is None:
        return "does not fit | | | |"
    hours = (result.stage_one_hours, result.fold_student_hours, result.final_student_hours, result.wall_hours)
    return " | ".join([*(f"{value:,.1f}" for value in hours), f"{result.money or 0:,.0f}"])


def _sentences(listed: Sequence[Recipe]) -> Iterator[str]:
    for recipe in listed:
        yield f"- `configs/{recipe.path.name}`: {recipe.gives_up}"


def main() -> None:
    """Print the page, or write it."""
    parser = argument_parser(__doc__, whole_text=True)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="recipes to plan; default: all")
    parser.add_argument("--price-per-hour", type=float, help="of one card, of any kind")
    parser.add_argument("--write", type=Path, help="page to write; default: print it")
    arguments = parser.parse_args()
    shipped = {recipe.name: recipe for recipe in recipes()}
    text = page([shipped[name] for name in chosen(arguments.only, shipped)], arguments.price_per_hour)
    if arguments.write is None:
        print(text, end="")
        return
    with replacing(arguments.write) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
