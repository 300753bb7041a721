"""Report page in a real browser, wide and narrow; skipped without Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble.report.make import write_comparison, write_report
from tests.fixtures.browser import CHROMIUM, FAINT, Browser, browser
from tests.fixtures.report_runs import HOSTILE, hostile_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")
SHOTS = os.environ.get("REPORT_SHOTS")  # a folder for screenshots to look at
AXE = os.environ.get("AXE_CORE")  # axe.min.js of the npm package axe-core, to check the rules of WCAG AA
HIDDEN = """[...document.querySelectorAll('figure svg')].filter(svg => {
  const box = svg.getBoundingClientRect();
  return box.width < 250 || box.height < 80 || box.left < 0 || box.right > innerWidth + 0.5
    || !svg.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}) || !svg.querySelector('path');
}).map(svg => svg.getAttribute('aria-label'))"""


# Texts of a figure that are cut off or overlap.
CUT = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')];
  const boxes = texts.map(text => text.getBoundingClientRect());
  const straight = texts.map(text => !/rotate\\(-?[1-9]/.test(text.getAttribute('transform') || ''));
  return texts.filter((text, i) => {
    const a = boxes[i];
    if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
      return true;
    return boxes.some((b, j) => j < i && straight[i] && straight[j] && a.left < b.right - 1 && b.left < a.right - 1
      && a.top < b.bottom - 3 && b.top < a.bottom - 3);
  }).map(text => svg.getAttribute('aria-label').slice(0, 40) + ': ' + text.textContent);
})"""
FIGURES = {"run": 18, "hostile": 19, "comparison": 1}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small run's page."""
    run = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(small_run, run, ignore=shutil.ignore_patterns("adapter", "student"))
    return write_report(run)


@pytest.fixture(scope="module")
def pages(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    run, folder = page.parents[1], tmp_path_factory.mktemp("pages")
    hostile = hostile_run(folder / "hostile")
    paths = {"run": page, "hostile": write_report(hostile)}
    shutil.copytree(run, folder / "again")
    return paths | {"comparison": write_comparison([run, folder / "again", hostile])}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("name", ["run", "hostile", "comparison"])
def test_figures_are_complete_and_the_console_stays_empty(
    name: str, width: int, tab: Browser, pages: dict[str, Path]
) -> None:
    tab.open(pages[name], width)
    if SHOTS:
        tab.screenshot(Path(SHOTS) / f"{name}-{width}.png")
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.querySelectorAll('figure svg').length") >= FIGURES[name]
    assert tab.evaluate(HIDDEN) == []
    assert tab.evaluate(CUT) == []
    assert tab.log_entries() == []
    local = ("data:", pages[name].resolve().as_uri())
    assert [url for url in tab.requests() if not url.startswith(local)] == []
    assert pages[name].stat().st_size < 3_000_000


@pytest.mark.slow
def test_hostile_battles_are_shown_as_text(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["hostile"], 1280)
    shown = tab.evaluate("document.body.textContent")
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3]):
        assert text in shown
    assert tab.evaluate("document.querySelectorAll('img, iframe, [onmouseover]').length") == 0
    assert tab.evaluate("document.scripts.length") == 1


def test_a_table_is_sorted_by_a_click_and_copied(tab: Browser, page: Path) -> None:
    tab.open(page, 1280)
    rows = "[...document.querySelector('#pair-0 table').tBodies[0].rows]"
    column = rows + ".map(r => Number(r.cells[2].textContent.replace(',', '')))"
    click = "document.querySelector('#pair-0 table').tHead.rows[0].cells[2].querySelector('button').click()"
    tab.evaluate(click)
    assert tab.evaluate(column) == sorted(tab.evaluate(column))
    tab.evaluate(click)
    assert tab.evaluate(column) == sorted(tab.evaluate(column), reverse=True)
    tab.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    tab.evaluate("document.querySelector('#pair-0 .copy').click()")
    copied = [line.split("\t") for line in str(tab.evaluate("navigator.clipboard.readText()")).splitlines()]
    assert copied[0][:3] == ["slice of", "battles with", "n"]
    assert [int(row[2].replace(",", "")) for row in copied[1:]] == tab.evaluate(column)
    assert {len(row) for row in copied} == {9}
    assert tab.evaluate("document.querySelector('#pair-0 .copy').textContent") == "copied"
    assert tab.evaluate("document.querySelector('#pair-0 details').open") is True
    assert tab.log_entries() == []


def test_print_fits_the_paper_and_is_light(tab: Browser, page: Path) -> None:
    """An A4 page has about 720 pixels between its margins."""
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    tab.send("Emulation.setEmulatedMedia", media="print", features=[dark])
    try:
        tab.open(page, 720)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 720
        wide = (
            "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth).length"
        )
        assert tab.evaluate(wide) == 0
        assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        tab.send("Emulation.setEmulatedMedia", media="", features=[])


def test_text_has_enough_contrast_on_light_and_dark_pages(tab: Browser, page: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.open(page, 390)
        tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
        if SHOTS:
            tab.screenshot(Path(SHOTS) / f"{scheme}-390.png")
        ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
        paper = "getComputedStyle(document.body).backgroundColor"
        assert tab.evaluate(FAINT) == []
        colours[scheme] = [tab.evaluate(ink), tab.evaluate(paper)]
    assert colours["light"] == ["rgb(27, 31, 36)", "rgb(244, 246, 248)"]
    assert colours["dark"] == ["rgb(228, 231, 234)", "rgb(15, 19, 23)"]


def test_the_section_in_view_is_marked_and_links_lead_to_their_section(tab: Browser, page: Path) -> None:
    tab.open(page, 1280)
    assert tab.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))") is True
    tab.evaluate("document.querySelector('nav a[href=\"#ties\"]').click()")
    moved = """new Promise(done => { const look = () => {
      const marked = document.querySelector('nav a[aria-current]')?.hash;
      if (marked === '#ties') done(marked); else setTimeout(look, 20);
    }; look(); })"""
    assert tab.evaluate(moved) == "#ties"
    assert tab.evaluate("location.hash") == "#ties"


def test_battles_are_paged_and_searched_and_rows_are_filtered(tab: Browser, page: Path) -> None:
    tab.open(page, 1280)
    tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    shown = """[...document.querySelector('#battles .battles').querySelectorAll('.battle')]
      .filter(battle => !battle.hidden).map(battle => battle.querySelector('h3').textContent)"""
    first = tab.evaluate(shown)
    assert len(first) == 4
    tab.evaluate("document.querySelector('#battles .tools button:nth-of-type(2)').click()")
    second = tab.evaluate(shown)
    assert len(second) == 4
    assert not set(first) & set(second)
    search = """((where, words) => { const box = document.querySelector(where); box.value = words;
      box.dispatchEvent(new Event('input')); })('%s .tools input', %r)"""
    tab.evaluate(search % ("#battles", second[0]))  # "Battle ID: verdict A wins, loss 1.23 nats"
    assert second[0] in tab.evaluate(shown)
    texts = tab.evaluate(shown.replace(".querySelector('h3')", ""))  # another battle may have the words, too
    assert all(word in text for word in second[0].split() for text in texts)
    tab.evaluate(search % ("#battles", "no battle has these words"))
    assert tab.evaluate(shown) == []
    assert tab.evaluate("document.querySelector('#battles .tools [role=status]').textContent") == "none found"
    rows = "[...document.querySelector('#stack .table:has(input)').querySelectorAll('tbody tr')].filter(r => !r.hidden)"
    before = tab.evaluate(f"{rows}.length")
    last = tab.evaluate(f"[...{rows}.at(-1).cells].map(cell => cell.textContent.trim()).join(' ')")
    tab.evaluate(search % ("#stack .table", last))
    found = tab.evaluate(f"{rows}.map(row => row.textContent)")
    assert 0 < len(found) < before
    assert all(word in text for text in found for word in last.split())
    assert tab.log_entries() == []


@pytest.mark.slow
def test_a_link_to_a_battle_opens_its_page_and_its_address_is_copied(tab: Browser, pages: dict[str, Path]) -> None:
    tab.allow("clipboardReadWrite", "clipboardSanitizedWrite")
    for name in ("run", "hostile"):
        tab.open(pages[name], 1280)
        target = tab.evaluate(
            "[...document.querySelectorAll('#battles .battle')][17].id"
        )  # on a later page of its list
        where = f"document.getElementById({target!r})"
        assert tab.evaluate(f"{where}.checkVisibility()") is False
        tab.evaluate(f"{where}.querySelector('.copy').click()")
        address = str(tab.evaluate("navigator.clipboard.readText()"))
        assert address.endswith(f"/index.html#{target}")
        tab.open("about:blank", 1280)
        tab.open(address, 1280)
        box = f"{where}.getBoundingClientRect()"
        assert tab.evaluate(f"{where}.checkVisibility()") is True
        assert tab.evaluate(f"{box}.top >= 0 && {box}.top < innerHeight") is True
        assert tab.evaluate(f"{where}.matches(':target')") is True
        assert tab.log_entries() == []


@pytest.mark.slow
def test_the_pointer_shows_the_value_of_a_mark_and_a_place_in_a_scatter_plot(tab: Browser, page: Path) -> None:
    tab.open(page, 1280)
    place = """(() => { const mark = document.querySelector(%r); mark.scrollIntoView({block: 'center'});
      const box = mark.getBoundingClientRect(); return [box.left + box.width / 2, box.top + box.height / 2]; })()"""
    tip = "(() => { const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.textContent; })()"
    for selector, start in (
        ("#leaderboard svg .hover use, #leaderboard svg .hover path", ""),
        ("svg[data-square]", "gemma2 0."),
    ):
        x, y = tab.evaluate(place % selector)
        tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        assert tab.evaluate(tip).startswith(start)
        assert any(digit in tab.evaluate(tip) for digit in "0123456789")


@pytest.mark.slow
def test_the_keyboard_reaches_every_control(tab: Browser, page: Path) -> None:
    tab.open(page, 1280)
    controls = "[...document.querySelectorAll('a[href], button, summary, input')].filter(c => c.checkVisibility())"
    assert tab.evaluate(f"{controls}.every(control => control.tabIndex === 0)") is True
    assert (
        tab.evaluate(f"{controls}.every(control => (control.getAttribute('aria-label') || control.textContent).trim())")
        is True
    )
    tab.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert tab.evaluate("document.activeElement.className") == "skip"


@pytest.mark.slow
def test_the_page_is_whole_without_scripts(tab: Browser, page: Path) -> None:
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page, 1280)
        if SHOTS:
            tab.screenshot(Path(SHOTS) / "without-scripts.png")
    finally:
        tab.send("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.evaluate("document.querySelectorAll('.battle[hidden], tr[hidden]').length") == 0
    assert tab.evaluate("document.querySelectorAll('figure svg').length") >= FIGURES["run"]


@pytest.mark.slow
@pytest.mark.skipif(not AXE, reason="AXE_CORE names no axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 820, 390])
@pytest.mark.parametrize("name", ["run", "hostile", "comparison"])
def test_axe_finds_no_violation_of_wcag_aa(
    name: str, width: int, scheme: str, tab: Browser, pages: dict[str, Path]
) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(pages[name], width)
    tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    tab.evaluate(Path(str(AXE)).read_text(encoding="utf-8") + ";0")
    rules = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']"
    found = tab.evaluate(
        f"axe.run(document, {{runOnly: {rules}}}).then(result => result.violations.map("
        "violation => [violation.id, violation.nodes.slice(0, 3).map(node => node.html.slice(0, 200))]))"
    )
    assert found == []
