"""Sixty-row files of each known dataset, through the command line: counts and verdicts as written by hand here.

The builders follow the dataset cards; every third row has the first, second and third verdict of the format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oof.__main__ import main
from oof.common.errors import UserError
from oof.config import Data
from oof.data.battles import read_file
from tests.fixtures.battle_files import encode

Row = dict[str, Any]


def say(i: int, answer: str) -> list[Row]:
    return [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": answer}]


def arena(i: int, winner: str, **more: Any) -> Row:
    sides = {f"conversation_{side}": say(i, f"answer {side}") for side in "ab"}
    return {"model_a": "x", "model_b": "y", "winner": winner, **sides, **more}


def alpaca_eval(i: int) -> Row:
    outputs = {"output_1": "answer a", "output_2": "answer b", "generator_1": "x", "generator_2": "y"}
    preference = (1.0, 2.0, 1.5)[i % 3]
    return {"instruction": f"question {i}", **outputs, "annotator": "gpt4", "preference": preference}


def help_steer(i: int) -> Row:
    context = [*say(i, "earlier"), {"role": "user", "content": "and now?"}]
    score = (-2, 3, 0)[i % 3]
    remarks = {"reasoning": "r", "feedback1": "f", "feedback2": "g"}
    votes = [{"score": s, **remarks} for s in ((-3, -1, 1), (3, 2, 2), (0, 1, -1))[i % 3]]
    texts = {"domain": "general", "language": "english", "context": context, "response1": "answer a"}
    return {**texts, "response2": "answer b", "overall_preference": score, "individual_preference": votes}


def nectar(i: int) -> Row:
    answers = [{"answer": f"answer {r}", "model": f"m{r}", "rank": float(r)} for r in (2, 1, 3)]
    prompt = f"\n\nHuman: question {i}\n\nAssistant: "
    return {"prompt": prompt, "answers": answers, "turns": 1, "num_responses": 3, "source": ["s"], "good_natured": True}


def ultrafeedback(i: int) -> Row:
    completions = [
        {"model": f"m{s}{j}", "response": f"answer {j}", "overall_score": s} for j, s in enumerate((7, 9, 7))
    ]
    return {"source": "s", "instruction": f"question {i}", "models": ["m"], "completions": completions}


def reward_bench_2(i: int) -> Row:
    counts = {"num_correct": 1, "num_incorrect": 3, "total_completions": 4}
    responses = {"chosen": ["good"], "rejected": ["bad 1", "bad 2", "bad 3"]}
    return {"id": str(i), "prompt": f"question {i}", **responses, **counts, "models": ["m"], "subset": "Math"}


def reward_bench(i: int) -> Row:
    row = {"prompt": f"question {i}", "chosen": "good", "chosen_model": "x", "rejected": "bad", "rejected_model": "y"}
    return {**row, "subset": "easy" if i < 30 else "hard", "id": i % 30}


def binarized(i: int) -> Row:
    scores = {"score_chosen": 9.0, "score_rejected": 5.0}
    return {
        "prompt": f"question {i}",
        "prompt_id": str(i),
        "chosen": say(i, "good"),
        "rejected": say(i, "bad"),
        **scores,
    }


def mt_bench(i: int) -> Row:
    row = arena(i, ("model_a", "model_b", "tie (inconsistent)")[i % 3])
    return {"question_id": 80 + i, **row, "judge": "expert_1", "turn": 1}


def arena_55k(i: int) -> Row:
    flags = {name: int(i % 3 == k) for k, name in enumerate(("winner_model_a", "winner_model_b", "winner_tie"))}
    texts = {"prompt": json.dumps([f"question {i}"]), "response_a": '["answer a"]', "response_b": '["answer b"]'}
    return {"id": i, "model_a": "x", "model_b": "y", **texts, **flags}


def arena_100k(i: int) -> Row:
    row = arena(i, ("model_a", "model_b", "tie (bothbad)")[i % 3], turn=1, anony=True, language="English", tstamp=1.0)
    return {"question_id": f"q{i}", **row, "is_code": False, "is_refusal": False, "judge_hash": "h"}


def arena_140k(i: int) -> Row:
    row = arena(i, ("model_a", "model_b", "both_bad")[i % 3], language="en", is_code=False, evaluation_order=1)
    for side in "ab":
        for message in row[f"conversation_{side}"]:
            message["content"] = [{"type": "text", "text": message["content"], "image": None, "mimeType": None}]
    return {"id": f"u{i}", **row, "evaluation_session_id": f"s{i}"}


def wsdm(i: int) -> Row:
    texts = {"prompt": f"question {i}", "response_a": "answer a", "response_b": "answer b"}
    return {"id": f"w{i}", **texts, "winner": ("model_a", "model_b")[i % 2], "model_a": "x", "model_b": "y"}


THIRDS, NO_TIES = "a 20 (33.3 %), b 20 (33.3 %), tie 20 (33.3 %)", "tie 0 (0.0 %)"
CASES = [
    (alpaca_eval, "AlpacaEval", 60, THIRDS, "preference: 1 → A, 2 → B, 1.5 and 0 → tie"),
    (help_steer, "HelpSteer3", 60, THIRDS, "overall_preference: negative → A, positive → B, 0 → tie; each"),
    (nectar, "Nectar: rankings as pairs", 180, NO_TIES, "chosen → the winner"),
    (ultrafeedback, "UltraFeedback: rankings as pairs", 180, "tie 60 (33.3 %)", "chosen → the winner"),
    (reward_bench_2, "RewardBench 2: rankings as pairs", 180, NO_TIES, "chosen → the winner"),
    (reward_bench, "RewardBench", 60, NO_TIES, "chosen → the winner"),
    (binarized, "chosen/rejected pairs", 60, NO_TIES, "chosen → the winner"),
    (mt_bench, "MT-bench human judgements", 60, THIRDS, "model_b → B, tie (inconsistent) → tie"),
    (arena_55k, "Kaggle LMSYS (lists of turns)", 60, THIRDS, "winner_model_a=1 → A"),
    (arena_100k, "arena-human-preference-100k", 60, THIRDS, "tie (bothbad) → tie (both bad)"),
    (arena_140k, "arena-human-preference-140k", 60, THIRDS, "both_bad → tie (both bad)"),
    (wsdm, "WSDM Cup 2025 (plain texts)", 60, "a 30 (50.0 %), b 30 (50.0 %)", "model_a → A, model_b → B"),
]


@pytest.mark.parametrize(
    ("maker", "schema", "n", "counts", "coding"), CASES, ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_check_reads_a_known_format_as_it_comes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    maker: Any,
    schema: str,
    n: int,
    counts: str,
    coding: str,
    form: str,
) -> None:
    folder = tmp_path / "mein Ordner ä"
    folder.mkdir()
    path = folder / f"{maker.__name__}.{form}"
    path.write_bytes(encode([maker(i) for i in range(60)], form))
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out
    for words in (schema, f"{n} read", counts, coding, "can be used as it is, for training and scoring"):
        assert words in out
    assert out.count(" wins (") + out.count(": tie (") == 2


def test_the_better_response_wins_wherever_it_is_shown(tmp_path: Path) -> None:
    for maker, best in ((nectar, {"answer 1", "answer 2"}), (ultrafeedback, {"answer 1"}), (reward_bench_2, {"good"})):
        path = tmp_path / f"{maker.__name__}.jsonl"
        path.write_bytes(encode([maker(i) for i in range(60)], "jsonl"))
        table = read_file(path, "train").table
        winners = [row[f"response_{'ab'[row['label']]}"] for row in table.iter_rows(named=True) if row["label"] < 2]
        assert {winner[0] for winner in winners} == best
        assert len(set(table["label"].to_list())) >= 2
        assert table["prompt"].to_list()[0] == ["question 0"]
    context = tmp_path / "h.jsonl"
    context.write_bytes(encode([help_steer(0)], "jsonl"))
    row = read_file(context, "train").table.row(0, named=True)
    assert (row["prompt"], row["response_a"]) == (["question 0", "and now?"], ["earlier", "answer a"])


def test_answers_that_belong_to_different_questions_are_a_named_row(tmp_path: Path) -> None:
    other = [{"role": "assistant", "content": "answer b"}, {"role": "user", "content": "something else"}]
    whole = {"response2": [*other, {"role": "assistant", "content": "another answer"}]}
    (tmp_path / "h.jsonl").write_bytes(encode([help_steer(0), {**help_steer(1), **whole}], "jsonl"))
    with pytest.raises(UserError, match="row 2, column response_b: its user messages differ from response_a's"):
        read_file(tmp_path / "h.jsonl", "train")


def test_a_row_that_is_no_ranking_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    rows = [nectar(0), {**nectar(1), "answers": "none"}, nectar(2)]
    (tmp_path / "n.jsonl").write_bytes(encode(rows, "jsonl"))
    battles = read_file(tmp_path / "n.jsonl", "train", Data(on_bad_row="drop"))
    assert battles.table["row"].to_list() == [1, 1, 1, 3, 3, 3]
    assert battles.dropped["row"].to_list() == [2]
    assert battles.counts["rows_read"] == 7


def test_each_battle_of_a_ranking_that_cannot_be_used_is_listed(tmp_path: Path) -> None:
    rows = [nectar(0), {**nectar(1), "prompt": [{"role": "tool", "content": "42"}]}]
    (tmp_path / "n.jsonl").write_bytes(encode(rows, "jsonl"))
    battles = read_file(tmp_path / "n.jsonl", "train", Data(on_bad_row="drop"))
    assert (battles.table.height, battles.dropped.height, battles.counts["rows_read"]) == (3, 3, 6)
    assert "3 of 6 rows cannot be used, column chosen: row 2: role 'tool'" in str(battles.problems[0])


def test_a_response_that_begins_with_a_bracket_is_no_ranking(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "[1] a source", "rejected": "none", "num_correct": 1}
    (tmp_path / "r.jsonl").write_bytes(encode([row], "jsonl"))
    battles = read_file(tmp_path / "r.jsonl", "train")
    assert next(iter(battles.schemas.values())) == "chosen/rejected pairs"


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_individual_preferences_of_helpsteer3_are_soft_labels_with_its_tie_band(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"h.{form}"
    rows = [help_steer(i) for i in range(4)]
    rows[3]["individual_preference"] = []
    if form == "csv":
        rows = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    path.write_bytes(encode(rows, form))
    soft = ("soft_a", "soft_b", "soft_tie")
    table = read_file(path, "train").table
    assert table["label"].to_list() == [0, 1, 2, 0]
    assert table.select(soft).rows() == [
        pytest.approx((2 / 3, 1 / 3, 0.0)),
        (0.0, 1.0, 0.0),
        pytest.approx((1 / 3, 1 / 3, 1 / 3)),
        (None, None, None),
    ]
    table = read_file(path, "train", data=Data(tie_band=1)).table
    assert table.select(soft).rows()[:2] == [pytest.approx((1 / 3, 0.0, 2 / 3)), (0.0, 1.0, 0.0)]


def test_scores_of_several_annotators_alone_are_votes(tmp_path: Path) -> None:
    texts = {"prompt": "p", "response_a": "a", "response_b": "b"}
    rows = [{**texts, "prompt": str(i), "scores": s} for i, s in enumerate(([-1, -2, 3], [1], [-1, 2]))]
    (tmp_path / "s.jsonl").write_bytes(encode(rows, "jsonl"))
    columns = {"signed_scores": "scores"}
    battles = read_file(tmp_path / "s.jsonl", "train", Data(columns=columns, positive_score="a"))
    assert battles.table["label"].to_list() == [1, 0, 2]
    assert battles.table["soft_b"].to_list() == [pytest.approx(2 / 3), 0.0, 0.5]
    rows[1]["scores"] = "many"
    (tmp_path / "s.jsonl").write_bytes(encode(rows, "jsonl"))
    with pytest.raises(UserError, match=r"row 2, column signed_scores: .*write a list of scores"):
        read_file(tmp_path / "s.jsonl", "train", Data(columns=columns, positive_score="a"))
