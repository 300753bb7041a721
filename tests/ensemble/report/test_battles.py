"""Battles to read: the largest losses and distances, found by loops, with what of their texts is left out."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from ensemble.report.battles import END, READ, START, battles_to_read, excerpt
from oof.metrics import softmax_mean
from tests.fixtures.report_runs import make_report_arena


def test_the_most_wrong_and_most_disagreed_battles_are_those_of_a_loop_over_all() -> None:
    arena = make_report_arena(200, seed=20)
    long = arena.table.with_columns(response_a=pl.Series([["é" * (START + END + i)] for i in range(200)]))
    probs = {name: softmax_mean(z) for name, z in arena.logits.items()}
    whole = np.tile([9, 20, 30], (200, 2))
    less = whole - [0, 0, 0, 0, 1, 7] * (np.arange(200)[:, None] % 2 == 0)
    reads = {"one": whole, "two": less, "student": less}
    found = battles_to_read(long, probs, arena.labels, "two", reads)
    losses = [-math.log(p[label]) for p, label in zip(probs["two"], arena.labels, strict=True)]
    distances = [sum(abs(x - y)) / 2 for x, y in zip(probs["one"], probs["two"], strict=True)]
    for kind, values in (("wrong", losses), ("disagreed", distances)):
        rows = sorted(range(200), key=lambda i, v=values: -v[i])[:READ]
        assert [case["id"] for case in found[kind]] == [arena.table["id"][i] for i in rows]
        assert [case["value"] for case in found[kind]] == pytest.approx([values[i] for i in rows], abs=1e-6)
        for case, i in zip(found[kind], rows, strict=True):
            assert case["verdict"] == ("a", "b", "tie")[arena.labels[i]]
            shown = case["texts"]["response_a"]
            assert len(shown["start"] + shown["end"]) == START + END
            assert shown["hidden"] == i
            cut = {"readers": ["two", "student"], "tokens": [9, 20, 30], "kept": [9, 19, 23]}
            assert case["cut"] == ([] if i % 2 else [cut])
            np.testing.assert_allclose(case["probs"]["one"], probs["one"][i])


def test_a_predictor_alone_disagrees_with_none() -> None:
    arena = make_report_arena(40, seed=21)
    assert set(battles_to_read(arena.table, {"one": softmax_mean(arena.logits["one"])}, arena.labels, "one", {})) == {
        "wrong"
    }


def test_an_excerpt_is_the_beginning_and_the_end_of_a_text_and_counts_what_is_between() -> None:
    text = "".join(chr(1000 + i) for i in range(1234))
    parts = excerpt(text)
    assert text == parts["start"] + text[START : START + parts["hidden"]] + parts["end"]
    assert excerpt(text[: START + END]) == {"start": text[: START + END], "hidden": 0, "end": ""}
