"""Page of the service in a real browser, wide and narrow, light and dark; skipped without Chromium."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from ensemble import Judge
from ensemble.serving.page import page
from tests.fixtures.abstaining import some_abstention
from tests.fixtures.browser import CHROMIUM, FAINT, Browser, browser
from tests.fixtures.served_students import serving, untrained_student

SHOTS = os.environ.get("PAGE_SHOTS")  # a folder for screenshots to look at
KEY = "s3cret"
LONG = "'why does it rain? '.repeat(200)"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder = untrained_student(tmp_path_factory.mktemp("student") / "tiny")
    some_abstention().write(folder)
    return Judge.from_pretrained(folder)


@pytest.fixture(scope="module")
def url(judge: Judge) -> Iterator[str]:
    with serving(judge) as address:
        yield address


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def until(tab: Browser, condition: str) -> None:
    """Wait until a condition of the page holds."""
    poll = f"const t = setInterval(() => {{ if ({condition}) {{ clearInterval(t); ok(1); }} }}, 20)"
    assert tab.evaluate(f"new Promise(ok => {{ {poll} }})") == 1


def shown(tab: Browser) -> list[str]:
    """Return the numbers beside the bars: A, tie, B."""
    return [
        str(text) for text in tab.evaluate("[...document.querySelectorAll('#bars .number')].map(n => n.textContent)")
    ]


def picture(tab: Browser, name: str) -> None:
    if SHOTS:
        tab.screenshot(Path(SHOTS) / f"{name}.png")


def test_the_page_is_one_file_under_a_strict_policy(url: str) -> None:
    policy = httpx2.get(f"{url}/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"|url\(|@import|\son\w+=|style=", page()) == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_example_shows_the_verdict_in_both_orders(
    width: int, scheme: str, tab: Browser, url: str, judge: Judge
) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(url, width)
    tab.evaluate("document.getElementById('example').click()")
    until(tab, "!document.getElementById('result').hidden")
    texts = tab.evaluate("['prompt', 'a', 'b'].map(id => document.getElementById(id).value)")
    verdict = judge.compare(*texts)
    assert shown(tab) == [f"{100 * p:.1f} %" for p in (verdict.a, verdict.tie, verdict.b)]
    widths = tab.evaluate(
        "[...document.querySelectorAll('.fill')].map(f => f.getBoundingClientRect().width / f.parentNode.clientWidth)"
    )
    assert widths[0] == pytest.approx(verdict.a, abs=0.3)  # the bar grows for a moment
    assert tab.evaluate("document.querySelectorAll('#orders tr').length") == 2
    picture(tab, f"{scheme}-{width}")
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(FAINT) == []
    assert tab.log_entries() == []
    assert [address for address in tab.requests() if not address.startswith((url, "data:"))] == []


@needs_browser
def test_the_keyboard_alone_compares_and_says_what_was_cut(tab: Browser, url: str) -> None:
    tab.open(url, 1280)
    until(tab, "document.activeElement.id === 'prompt'")  # autofocus comes after the page's load
    tab.evaluate(f"document.activeElement.value = {LONG}")
    order = []
    until(tab, "!document.getElementById('level-row').hidden")
    for _ in range(6):
        press(tab, "Tab", 9)
        order.append(tab.evaluate("document.activeElement.id"))
    assert order == ["a", "b", "level", "compare", "swap", "example"]
    tab.evaluate("document.getElementById('b').focus()")
    tab.send("Input.insertText", text="Clouds.")
    press(tab, "Enter", 13, control=True)
    until(tab, "!document.getElementById('result').hidden")
    cut = tab.evaluate("[...document.querySelectorAll('#tokens .cut')].map(c => c.textContent)")
    assert len(cut) == 1
    assert re.fullmatch(r"[\d,]+, cut", cut[0])
    picture(tab, "cut")
    before = shown(tab)
    tab.evaluate("document.getElementById('swap').click()")
    tab.evaluate("document.getElementById('compare').click()")
    until(tab, f"document.querySelector('#bars .number').textContent !== {before[0]!r}")
    assert shown(tab) == before[::-1]
    assert tab.log_entries() == []


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_a_level_of_error_is_chosen_by_keyboard_and_the_judge_abstains(
    width: int, scheme: str, tab: Browser, url: str, judge: Judge
) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(url, width)
    until(tab, "!document.getElementById('level-row').hidden")
    offered = tab.evaluate("[...document.getElementById('level').options].map(o => o.value)")
    assert offered == ["", *map(str, httpx2.get(f"{url}/health").json()["max_errors"])]
    tab.evaluate("document.getElementById('level').focus()")
    press(tab, "ArrowDown", 40)
    level = float(tab.evaluate("document.getElementById('level').value"))
    tab.evaluate("document.getElementById('example').click()")
    until(tab, "!document.getElementById('result').hidden")
    verdict = judge.compare(
        *tab.evaluate("['prompt', 'a', 'b'].map(id => document.getElementById(id).value)"), max_error=level
    )
    assert not verdict.answered
    assert tab.evaluate("document.getElementById('winner').textContent") == "The judge abstains"
    assert f"at most {100 * level:g} %" in tab.evaluate("document.getElementById('unsure').textContent")
    assert shown(tab) == [f"{100 * p:.1f} %" for p in (verdict.a, verdict.tie, verdict.b)]
    assert verdict.warnings
    assert "; ".join(verdict.warnings) in tab.evaluate("document.getElementById('warning').textContent")
    picture(tab, f"abstains-{scheme}-{width}")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(FAINT) == []
    assert tab.log_entries() == []
    tab.evaluate("document.getElementById('level').value = ''")
    tab.evaluate("document.getElementById('compare').click()")
    until(tab, "document.getElementById('unsure').hidden")
    assert "abstains" not in tab.evaluate("document.getElementById('winner').textContent")


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_docs_show_every_path_and_ask_nobody_else(width: int, scheme: str, tab: Browser, url: str) -> None:
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(f"{url}/docs", width)
    document = httpx2.get(f"{url}/openapi.json").json()
    text = tab.evaluate("document.body.textContent")
    assert all(path in text for path in document["paths"])
    broken = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.querySelector(a.hash)).length"
    assert tab.evaluate(broken) == 0
    picture(tab, f"docs-{scheme}-{width}")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(FAINT) == []
    assert tab.log_entries() == []
    assert [address for address in tab.requests() if not address.startswith((url, "data:"))] == []


@needs_browser
def test_a_key_is_asked_for_and_errors_are_said(tab: Browser, judge: Judge) -> None:
    with serving(judge, key=KEY) as address:
        tab.open(address, 390)
        tab.evaluate("document.getElementById('example').click()")
        until(tab, "!document.getElementById('error').hidden")
        assert "needs its key" in tab.evaluate("document.getElementById('error').textContent")
        assert tab.evaluate("document.activeElement.id") == "key"
        picture(tab, "key")
        tab.send("Input.insertText", text=KEY)
        press(tab, "Enter", 13)
        until(tab, "!document.getElementById('result').hidden")
        assert tab.evaluate("document.getElementById('error').hidden") is True
    tab.evaluate("document.getElementById('compare').click()")
    until(tab, "!document.getElementById('error').hidden")
    assert "does not answer" in tab.evaluate("document.getElementById('error').textContent")


def press(tab: Browser, key: str, code: int, control: bool = False) -> None:
    """Press and release a key."""
    event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
    text = {"text": "\r"} if key == "Enter" and not control else {}
    tab.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event, **text)
    tab.send("Input.dispatchKeyEvent", type="keyUp", **event)
