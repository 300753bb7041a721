"""The page in a real browser, wide and narrow. Skips where there is no Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from test_report_page import HOSTILE, hostile_run

from ensemble.report.make import write_comparison, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")
SHOTS = os.environ.get("REPORT_SHOTS")  # a folder for screenshots to look at
HIDDEN = """[...document.querySelectorAll('figure svg')].filter(svg => {
  const box = svg.getBoundingClientRect();
  return box.width < 250 || box.height < 80 || box.left < 0 || box.right > innerWidth + 0.5
    || !svg.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) || !svg.querySelector('path');
}).map(svg => svg.getAttribute('aria-label'))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(small_run, folder / "run", ignore=shutil.ignore_patterns("adapter", "student"))
    hostile = hostile_run(folder / "hostile")
    found = {"run": write_report(folder / "run"), "hostile": write_report(hostile)}
    shutil.copytree(folder / "run", folder / "again")
    return found | {"comparison": write_comparison([folder / "run", folder / "again", hostile])}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run", "hostile", "comparison"])
def test_the_page_is_whole_and_quiet(name: str, width: int, tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages[name], width)
    if SHOTS:
        tab.screenshot(Path(SHOTS) / f"{name}-{width}.png")
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.querySelectorAll('figure svg').length") >= (1 if name == "comparison" else 12)
    assert tab.evaluate(HIDDEN) == []
    assert tab.complaints() == []
    local = ("data:", pages[name].resolve().as_uri())
    assert [url for url in tab.requests() if not url.startswith(local)] == []
    assert pages[name].stat().st_size < 3_000_000


def test_hostile_battles_show_as_text(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["hostile"], 1280)
    shown = tab.evaluate("document.body.textContent")
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3]):
        assert text in shown
    assert tab.evaluate("document.querySelectorAll('img, iframe, [onmouseover]').length") == 0
    assert tab.evaluate("document.scripts.length") == 1


def test_a_table_is_sorted_by_a_click_and_copied(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["run"], 1280)
    rows = "[...document.querySelector('#pair-0 table').tBodies[0].rows]"
    column = rows + ".map(r => Number(r.cells[2].textContent.replace(',', '')))"
    click = "document.querySelector('#pair-0 table').tHead.rows[0].cells[2].querySelector('button').click()"
    tab.evaluate(click)
    assert tab.evaluate(column) == sorted(tab.evaluate(column))
    tab.evaluate(click)
    assert tab.evaluate(column) == sorted(tab.evaluate(column), reverse=True)
    tab.evaluate("document.querySelector('#pair-0 .copy').click()")
    copied = "new Promise(done => setTimeout(() => done(document.querySelector('#pair-0 .copy').textContent), 100))"
    assert tab.evaluate(copied) == "copied"
    assert tab.evaluate("document.querySelector('#pair-0 details').open") is True
    assert tab.complaints() == []


def test_dark_pages_have_light_ink(tab: Browser, pages: dict[str, Path]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.open(pages["run"], 390)
        if SHOTS and scheme == "dark":
            tab.screenshot(Path(SHOTS) / "dark-390.png")
        ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
        paper = "getComputedStyle(document.body).backgroundColor"
        colours[scheme] = [tab.evaluate(ink), tab.evaluate(paper)]
    assert colours["light"] == ["rgb(27, 31, 36)", "rgb(255, 255, 255)"]
    assert colours["dark"] == ["rgb(228, 231, 234)", "rgb(20, 23, 26)"]
