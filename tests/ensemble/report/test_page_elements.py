"""Bars of intervals."""

from __future__ import annotations

from ensemble.report.page_elements import bar


def test_bars_stay_on_their_scale() -> None:
    inside = bar({"low": 0.0, "value": 0.25, "high": 2.0}, (0.0, 1.0))
    assert "left:0.0%;width:100.0%" in inside
    assert 'em style="left:25.0%' in inside
    assert "beyond" in bar({"low": 1.5, "value": 2.0, "high": 3.0}, (0.0, 1.0))
    assert "left:50.0%;width:0.0%" in bar({"low": None, "value": 0.5, "high": None}, (0.0, 1.0))
