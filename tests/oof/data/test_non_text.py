"""Images and tool calls: refused with the two settings, left out and listed, or read as placeholders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oof.__main__ import main
from oof.common.errors import UserError
from oof.config import Data, load
from oof.data.battles import BattleSet, read_file
from tests.fixtures.demo_run import ROOT

PLAIN = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}]
IMAGE = [{"type": "text", "text": "p"}, {"type": "image", "image": "data"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}]}
TOOLS = [PLAIN[0], CALL, {"role": "tool", "content": "42"}, {"role": "assistant", "content": "a"}]


def say(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i * 7919}"}, PLAIN[1]]


def read(tmp_path: Path, conversation: Any, winner: str = "tie", **settings: str) -> BattleSet:
    with_image = [{"role": "user", "content": IMAGE}, PLAIN[1]]
    rows: list[dict[str, Any]] = [
        {"question_id": 1, "conversation_a": PLAIN, "conversation_b": PLAIN, "winner": winner},
        {"question_id": 2, "conversation_a": conversation, "conversation_b": PLAIN, "winner": "model_a"},
        {"question_id": 3, "conversation_a": with_image, "conversation_b": with_image, "winner": "model_b"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_file(tmp_path / "a.jsonl", "train", data=Data(**settings))


def test_they_are_refused_with_both_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, TOOLS)
    message = str(caught.value)
    assert "row 2, column conversation_a: role 'assistant': a tool call, which is not text" in message
    assert "row 3, column conversation_a: contains content of type 'image'" in message
    assert "data.non_text=drop, or =placeholder" in message


def test_drop_leaves_them_out_and_lists_them(tmp_path: Path) -> None:
    battles = read(tmp_path, TOOLS, non_text="drop")
    assert battles.table["id"].to_list() == ["1"]
    assert battles.dropped["row"].to_list() == [2, 3]
    assert [problem.severity for problem in battles.problems if "left out" in problem.message] == ["note"] * 2


def test_drop_does_not_hide_that_both_bad_is_read_as_a_tie(tmp_path: Path) -> None:
    problems = read(tmp_path, PLAIN, winner="both_bad", non_text="drop").problems
    assert any('1 battles were judged "both bad" and are read as ties' in str(problem) for problem in problems)


@pytest.mark.parametrize("conversation", [TOOLS, json.dumps(TOOLS)])
def test_placeholders_stand_for_them(tmp_path: Path, conversation: Any) -> None:
    table = read(tmp_path, conversation, non_text="placeholder").table
    assert table["prompt"].to_list() == [["p"], ["p"], ["p\n[image]"]]
    assert table["response_a"].to_list()[1] == ["[tool call: search]\n\n[tool result]\n\na"]


def test_a_run_reads_its_battles_again_with_another_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mein Ordner ä"
    folder.mkdir()
    monkeypatch.chdir(folder)
    image = [{"role": "user", "content": IMAGE}, PLAIN[1]]
    rows = [
        {"question_id": i, **{f"conversation_{s}": image if i % 3 else say(i) for s in "ab"}, "winner": "tie"}
        for i in range(60)
    ]
    Path("bïlder.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call = ["prepare", str(ROOT / "configs" / "demo.yaml"), "data.train=bïlder.jsonl", "run=läuf"]
    assert main(call) != 0
    assert "set data.non_text=drop, or =placeholder" in capsys.readouterr().err
    main([*call, "data.non_text=drop"])
    assert "prepare: 20 battles" in capsys.readouterr().out
    main(["prepare", "run=läuf", "data.non_text=placeholder"])
    assert "prepare: 60 battles" in capsys.readouterr().out
    assert main(["check", "bïlder.jsonl", "data.non_text=drop", "--write", "lesen.yaml"]) == 0
    assert load("lesen.yaml").data.non_text == "drop"
