"""Judge: probabilities, symmetry, equality with the submission, and error messages."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from transformers import AutoModelForSequenceClassification

from ensemble import Judge
from ensemble.__main__ import main as ensemble_main
from ensemble.serving import judge as judge_module
from ensemble.serving.json_lines import judge_lines
from ensemble.serving.verdicts import Verdict
from oof.common.errors import UserError
from oof.data.battles import read_file
from oof.data.text_columns import turn_lists
from tests.fixtures.chat_template import chat_text
from tests.fixtures.demo_run import ROOT

TEXT = st.text(st.characters(codec=None), max_size=60)  # lone surrogates and NUL too
TURNS = st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.lists(TEXT, min_size=n, max_size=n)] * 3))


@pytest.fixture(scope="module")
def judge(small_run: Path) -> Judge:
    return Judge.from_pretrained(small_run / "distill" / "student")


@pytest.mark.slow
def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, ensemble; assert 'torch' not in sys.modules; ensemble.Judge; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603
    assert done.stdout.strip() == "True"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import ensemble

    with pytest.raises(AttributeError, match="Jugde"):
        _ = ensemble.Jugde  # type: ignore[attr-defined]


def test_a_verdict_is_the_mean_of_both_orders_by_plain_transformers(small_run: Path, judge: Judge) -> None:
    folder = small_run / "distill" / "student"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    battle = ["How do I choose an oven?", "A good oven helps."], ["It is big.", "No."], ["Read the manual.", "Yes."]
    logits = []
    for a, b, classes in ((1, 2, [0, 1, 2]), (2, 1, [1, 0, 2])):
        text = chat_text(battle[0], battle[a], battle[b], judge.tokenizer, judge.prompts.layout)
        ids = judge.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits.append(model(input_ids=ids).logits[0].numpy()[classes])
    np.testing.assert_allclose(judge.compare(*battle), softmax(np.mean(logits, axis=0)), atol=1e-5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(TURNS)
def test_swapping_a_and_b_swaps_their_probabilities(judge: Judge, turns: tuple[list[str], ...]) -> None:
    prompt, a, b = turns
    verdict, swapped = judge.compare(prompt, a, b), judge.compare(prompt, b, a)
    assert sum(verdict) == pytest.approx(1)
    np.testing.assert_allclose(swapped, [verdict.b, verdict.a, verdict.tie], atol=1e-6)


def test_compare_many_equals_compare_and_the_submission(small_run: Path, judge: Judge) -> None:
    table = read_file(small_run / "synth" / "test.csv", "test").table
    columns = [table[name].to_list() for name in ("prompt", "response_a", "response_b")]
    many = judge.compare_many(*columns)
    one = [judge.compare(*battle) for battle in zip(*columns, strict=True)]
    np.testing.assert_allclose(many, one, atol=1e-6)
    submission = pl.read_csv(small_run / "submission.csv", glob=False).drop("id").to_numpy()
    np.testing.assert_allclose(many, submission, atol=1e-9)


def test_strings_are_conversations_of_one_turn(judge: Judge) -> None:
    assert judge.compare("p", "a", "b") == judge.compare(["p"], ("a",), ["b"])
    assert isinstance(judge.compare("p", "", None), Verdict)  # type: ignore[arg-type]
    assert judge.compare_many([], [], []).shape == (0, 3)


def test_a_verdict_has_a_winner_and_probabilities() -> None:
    for verdict, winner in (
        (Verdict(0.5, 0.2, 0.3), "a"),
        (Verdict(0.2, 0.5, 0.3), "b"),
        (Verdict(0.3, 0.3, 0.4), "tie"),
    ):
        assert verdict.winner == winner
        assert verdict.probabilities == dict(zip(("a", "b", "tie"), verdict, strict=True))


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def test_messages_are_turns_of_a_conversation(judge: Judge) -> None:
    one = judge.compare("p", "a", "b")
    assert judge.compare([message("user", "p")], [message("assistant", "a")], "b") == one
    assert judge.compare("p", "a", [message("assistant", [{"type": "text", "text": "b"}])]) == one
    whole = [[message("user", "p"), message("assistant", side)] for side in "ab"]
    assert judge.compare(None, *whole) == one
    two = judge.compare(["p", "q"], ["x", "a"], ["x", "b"])
    history = [message("user", "p"), message("assistant", "x"), message("user", "q")]
    assert judge.compare(history, "a", "b") == two
    assert judge.compare(tuple(history), (message("assistant", "a"),), "b") == two


def test_columns_of_data_frames_are_compared(judge: Judge) -> None:
    expected = judge.compare_many(["p", "q"], ["a", "c"], ["b", "d"])
    columns = {"p": [["p"], ["q"]], "a": ["a", "c"], "b": ["b", "d"]}
    frame = pl.DataFrame(columns)
    np.testing.assert_array_equal(judge.compare_many(frame["p"], frame["a"], frame["b"]), expected)  # type: ignore[arg-type]
    arrays = [np.array(values, dtype=object) for values in columns.values()]
    np.testing.assert_array_equal(judge.compare_many(*arrays), expected)  # type: ignore[arg-type]
    pandas = pytest.importorskip("pandas").DataFrame(columns)
    np.testing.assert_array_equal(judge.compare_many(pandas["p"], pandas["a"], pandas["b"]), expected)


def test_texts_of_all_battles_are_cleaned_at_once(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text by text it takes longer than encoding them, and in the HTTP service others wait."""
    columns = []

    def counted(turns: list[list[str | None]], counts: Counter[str]) -> pl.Series:
        columns.append(len(turns))
        return turn_lists(turns, counts)

    monkeypatch.setattr(judge_module, "turn_lists", counted)
    judge.compare_many(["p\0"] * 40, ["a\ud83d"] * 40, [None] * 40)  # type: ignore[list-item]
    assert columns == [40, 40, 40]


def test_a_long_text_is_truncated(judge: Judge) -> None:
    long = "word " * 5000
    assert sum(judge.compare(long, long, "short")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("battle", "message"),
    [
        ((["p", "q"], "a", "b"), "2 turns in prompt, 1 in response_a"),
        ((5, "a", "b"), "battle 0: prompt: expected a text"),
        (("p", ["a", 5], "b"), "response_a: expected a text"),
        (([], [], []), "prompt: expected a text"),
        (([{"role": "user"}], [{"role": "judge", "content": "a"}], "b"), "response_a after the prompt: role 'judge'"),
        ((["p"], [{"role": "assistant", "content": "a"}], "b"), "expected a message with role and content, not 'p'"),
        ((None, [{"role": "user", "content": "p"}], [{"role": "user", "content": "q"}]), "user's messages.*differ"),
        (("p", [{"role": "assistant", "content": [{"type": "image"}]}], "b"), "type 'image', which is not text"),
    ],
)
def test_an_invalid_battle_is_refused_in_a_sentence(judge: Judge, battle: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge.compare(*battle)  # type: ignore[arg-type]


def test_lists_of_different_lengths_are_refused(judge: Judge) -> None:
    for lists in ((["p"], ["a", "b"], ["c"]), ("text", "text", "text")):
        with pytest.raises(UserError, match="three lists of equal length"):
            judge.compare_many(*lists)


def test_a_folder_that_is_not_a_student_is_refused_in_a_sentence(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make distill"):
        Judge.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"prompts\.json: missing"):
        Judge.from_pretrained(ROOT / "configs" / "bases" / "tiny-gemma2")
    with pytest.raises(UserError, match="dtype"):
        Judge.from_pretrained(small_run / "distill" / "student", dtype="float8")


def test_the_subcommand_reads_json_lines(
    small_run: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"id": "x\ud83d", "prompt": "p", "response_a": "a", "response_b": "b"},
        {"prompt": ["p", "q"], "response_a": ["a", None], "response_b": ["b", "c"]},
    ]
    text = json.dumps(lines[0]) + "\n\n" + json.dumps(lines[1]) + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert ensemble_main(["judge", str(small_run / "distill" / "student")]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["id"] == "x\ud83d"
    assert second["id"] == 3  # the line's number
    np.testing.assert_allclose([first[c] for c in ("a", "b", "tie")], judge.compare("p", "a", "b"), atol=1e-7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: no 'prompt'"),
        ('{"prompt": "p", "response_a": "a"}', "line 2: no 'response_b'"),
        ('{"prompt": "p", "response_a": "a", "response_b": 3}', "line 2: response_b: expected a text"),
    ],
)
def test_lines_before_an_invalid_one_are_answered(judge: Judge, line: str, message: str) -> None:
    answers = judge_lines(judge, ['{"prompt": "p", "response_a": "a", "response_b": "b"}', line])
    assert json.loads(next(answers))["id"] == 1
    with pytest.raises(UserError, match=message):
        next(answers)


def test_lines_are_read_one_chunk_ahead(judge: Judge) -> None:
    lines_read = []

    def endless() -> object:
        while True:
            lines_read.append(1)
            yield '{"prompt": "p", "response_a": "a", "response_b": "b"}'

    answers = judge_lines(judge, endless(), chunk=4)  # type: ignore[arg-type]
    for _ in range(5):
        next(answers)
    assert len(lines_read) == 8
