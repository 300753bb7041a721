"""Battle features: finite on any text, swapped exactly, and with the values that their names say."""

from __future__ import annotations

import unicodedata

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ensemble.__main__ import main
from ensemble.features import battle_features, text_statistics
from ensemble.features.battle_features import text_features
from ensemble.features.design_matrix import build_design, describe, with_counts
from oof.classes import swap_orders
from oof.common.logits_format import COUNT_COLUMNS, logits_frame
from tests.fixtures.arenas import swap_table
from tests.fixtures.small_tables import texts_table

TURN = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    st.sampled_from(
        [
            "",
            " ",
            "\n\n",
            "```",
            "I'm sorry, I can’t",
            "might, perhaps",
            "- a\n- b\n# c\n| d |",
            "👩‍💻" * 3,
            "İ" * 4,
            "中文",
        ]
    ),
)
BATTLE = st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.lists(TURN, min_size=n, max_size=n)] * 3))


def features_of(prompt: str, a: str, b: str) -> dict[str, float]:
    frame, _ = text_features(texts_table([([prompt], [a], [b])]))
    return frame.row(0, named=True)


@settings(max_examples=60)
@given(st.lists(BATTLE, min_size=1, max_size=4), st.integers(0, 2**31))
@example([([""], ["\n" * 9], ["x" * 1_000_000]), (["a", ""], ["", ""], ["🦙" * 9000, "é"])], 0)
def test_any_text_gives_finite_columns_that_swap_exactly(
    battles: list[tuple[list[str], list[str], list[str]]], seed: int
) -> None:
    table = texts_table(battles)
    logits = {"m": np.random.default_rng(seed).normal(0, 3, size=(len(battles), 2, 3)).astype(np.float32)}
    design = build_design(table, logits)
    swapped = build_design(swap_table(table), {"m": swap_orders(logits["m"])})
    assert np.isfinite(design.x).all()
    np.testing.assert_array_equal(swapped.x, design.x_swapped)
    np.testing.assert_array_equal(swapped.x_swapped, design.x)


def test_a_battle_has_the_same_features_alone_and_among_others() -> None:
    rng = np.random.default_rng(0)
    battles = [([f"what {i}?"], ["word " * rng.integers(50)], ["- 本 " * rng.integers(9)]) for i in range(600)]
    whole, _ = text_features(texts_table(battles))
    for row in (0, 255, 256, 599):
        alone, _ = text_features(texts_table([battles[row]]))
        assert alone.row(0) == whole.row(row)


def test_blocks_hold_every_battle_once_and_no_more_text_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(battle_features, "BLOCK", 5)
    monkeypatch.setattr(battle_features, "BLOCK_BYTES", 100)
    sizes = [*np.random.default_rng(0).integers(0, 40, 60).tolist(), 500, 3, 250, 0, 0]
    table = texts_table([(["p" * size], ["é"], [""]) for size in sizes])
    blocks = list(battle_features.blocks_of(table))
    assert pl.concat(blocks).equals(table.drop("id"))
    for block in blocks:
        assert 1 <= block.height <= 5
        assert block.height == 1 or block["prompt"].list.join("").str.len_bytes().sum() + 2 * block.height <= 100


def test_every_column_has_a_family_with_a_meaning() -> None:
    counts = {name: pl.Series([1], dtype=pl.Int32) for name in COUNT_COLUMNS}
    frame, families = text_features(texts_table([(["p"], ["a"], ["b"])]).with_columns(**counts))
    assert list(families) == frame.columns
    assert set(families.values()) == set(battle_features.FAMILIES)
    assert all(len(describe()[family]) > 20 for family in battle_features.FAMILIES)
    sided = {name[:-2] for name in frame.columns if name.endswith(("_a", "_b"))}
    assert all({f"{name}_a", f"{name}_b"} <= set(frame.columns) for name in sided)


def test_battles_without_text_have_features_of_logits_alone() -> None:
    table = texts_table([([""], [""], [""])] * 3)
    design = build_design(table, {"m": np.zeros((3, 2, 3))})
    assert set(design.families.values()) == {"member:m", "between"}


@pytest.mark.parametrize(
    ("a", "column", "value"),
    [
        ("text ```py\nx\n``` end", "code_diff", np.log(3)),
        ("- one\n 2) two\n-no", "list_diff", np.log(3)),
        ("# Head\n### More\n#no", "heading_diff", np.log(3)),
        ("a **b** c", "bold_diff", np.log(3)),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "table_diff", np.log(4)),
        ("see https://x.org or [it](y)", "link_diff", np.log(3)),
        ("2024", "digit_diff", np.log(5)),
        ("why? how?", "question_diff", np.log(3)),
        ("I’m sorry, but I cannot", "refusal_a", 1),
        ("cannot say, an apiai", "refusal_a", 0),
        ("Perhaps. It depends; mighty", "hedges_a", np.log(3)),
        ("it breaks off in the mid", "unfinished_a", 1),
        ("it ends.  \n", "unfinished_a", 0),
        ("完了。", "unfinished_a", 0),
        ("", "unfinished_a", 0),
        ("```py\nprint(", "open_fence_a", 1),
        ("```py\n```", "open_fence_a", 0),
        ("one\ntwo\none\none", "repeated_lines_a", 0.5),
        ("a\nb\nc", "log_lines_a", np.log(3)),
        ("", "empty_a", 1),
        ("same", "identical", 0),
        ("b", "identical", 1),
    ],
)
def test_a_text_has_the_feature_that_its_name_says(a: str, column: str, value: float) -> None:
    assert features_of("p", a, "b")[column] == pytest.approx(value, abs=1e-6)


def grams(text: str) -> set[str]:
    padded = text.lower() + "\0" * 4
    return {padded[i : i + 5] for i in range(len(text.lower()))}


def test_overlap_and_repetition_near_exact_sets_of_character_grams() -> None:
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcdefgh éЖ中"), size=rng.integers(2, 9))) for _ in range(400)]
    for n in (1, 8, 60, 300):
        p, a, b = (" ".join(rng.choice(words, size=n)) for _ in range(3))
        row, (gp, ga, gb) = features_of(p, a + p, b), map(grams, (p, a + p, b))
        assert row["repeats_prompt_a"] == pytest.approx(len(gp & ga) / len(gp), abs=0.05)
        assert row["repeats_prompt_b"] == pytest.approx(len(gp & gb) / len(gp), abs=0.05)
        assert row["common"] == pytest.approx(len(ga & gb) / len(ga | gb), abs=0.05)
        assert row["repeated_grams_b"] == pytest.approx(1 - len(gb) / len(b), abs=0.05)


def test_scripts_agree_with_the_names_of_characters() -> None:
    """Oracle: the first word of a letter's Unicode name."""
    named = {
        "LATIN": "latin", "GREEK": "greek", "CYRILLIC": "cyrillic", "HEBREW": "hebrew", "ARABIC": "arabic",
        "DEVANAGARI": "indic", "TAMIL": "indic", "THAI": "thai", "HANGUL": "hangul", "HIRAGANA": "kana",
        "KATAKANA": "kana", "CJK": "han",
    }  # fmt: skip
    letters = "aZzßéŁαΩжЯשاहதกขहन가힣ひカ中文字國"
    shares_of = text_statistics.script_shares(
        np.array([ord(c) for c in letters], dtype=np.uint32), np.arange(len(letters)), len(letters)
    )
    for letter, shares in zip(letters, shares_of, strict=True):
        assert text_statistics.SCRIPTS[int(shares.argmax())] == named[unicodedata.name(letter).split()[0]], letter
    nothing = text_statistics.script_shares(np.array([ord(c) for c in "1 .🦙、"], dtype=np.uint32), np.zeros(5, int), 1)
    assert nothing.sum() == 0


def test_an_answer_in_another_script_than_the_question_matches_it_less() -> None:
    row = features_of("как дела? wow", "хорошо ok", "fine, thanks")
    assert row["script_match_a"] > 0.7
    assert row["script_match_b"] == pytest.approx(row["latin_prompt"])
    assert row["script_match_diff"] == pytest.approx(row["script_match_a"] - row["script_match_b"])
    assert features_of("?", "123", "words")["script_match_b"] == 1


def test_the_command_prints_every_family_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features"]) == 0
    output = capsys.readouterr().out
    for family, meaning in describe().items():
        assert f"| {family} | {meaning} |" in output


def test_token_counts_become_features_and_swap() -> None:
    battles = [(["what?"], ["one two"], ["three"]), (["and?"], [""], ["four"])]
    counts = np.array([[5, 100, 40, 5, 60, 40], [3, 0, 7, 3, 0, 7]])
    table = texts_table(battles)
    frame = logits_frame(table["id"].reverse(), np.zeros((2, 2, 3)), 0, counts[::-1])
    counted = with_counts(table, frame)
    columns, families = text_features(counted)
    assert families["cut_a"] == "tokens"
    np.testing.assert_allclose(columns["log_tokens_a"], np.log([101, 1]), rtol=1e-6)
    np.testing.assert_allclose(columns["log_tokens_diff"], np.log([101 / 41, 1 / 8]), rtol=1e-6)
    np.testing.assert_allclose(columns["cut_a"], [0.4, 0], rtol=1e-6)
    np.testing.assert_allclose(columns["cut_diff"], [0.4, 0], rtol=1e-6)
    logits = np.zeros((2, 2, 3), dtype=np.float32)
    design, swapped = (build_design(t, {"m": logits}) for t in (counted, swap_table(counted)))
    np.testing.assert_array_equal(swapped.x, design.x_swapped)
    without = with_counts(table, logits_frame(table["id"], logits, 0))
    assert "tokens" not in text_features(without)[1].values()
