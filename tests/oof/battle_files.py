"""Small battle files of every known schema and format, with the hostile content that real ones have."""

from __future__ import annotations

import csv
import io
import json
import random
from typing import Any

import polars as pl

Row = dict[str, Any]
HOSTILE = (
    "",
    " ",
    'a,b\n"c"\r\nd',
    "naïve ✓ 漢字 🦙",
    "\ud83d",
    "x\0y",
    "[1]",
    "null",
    "=1+1",
    "\\ud800",
    "\U0001d4b3" * 50,
)
WORDS = ("why", "is", "the", "sky", "blue", "so", "42", "ok")


def generator(seed: int | str) -> random.Random:
    return random.Random(seed)


def words(rng: random.Random) -> str:
    return rng.choice(HOSTILE) if rng.random() < 0.15 else " ".join(rng.choices(WORDS, k=5))


def turns(rng: random.Random, n: int) -> list[str | None]:
    return [None if rng.random() < 0.05 else words(rng) for _ in range(n)]


def messages(prompt: list[Any], answers: list[Any], parts: bool = False) -> list[Row]:
    def content(text: Any) -> Any:
        return [{"type": "text", "text": text}] if parts else text

    pairs = zip(prompt, answers, strict=True)
    return [
        m
        for u, a in pairs
        for m in ({"role": "user", "content": content(u)}, {"role": "assistant", "content": content(a)})
    ]


def lmsys(rng: random.Random, i: int) -> Row:
    n, verdict = rng.choice([1, 1, 2]), rng.randrange(3)
    texts = {name: json.dumps(turns(rng, n)) for name in ("prompt", "response_a", "response_b")}
    flags = {name: int(verdict == k) for k, name in enumerate(("winner_model_a", "winner_model_b", "winner_tie"))}
    return {"id": i, "model_a": "m1", "model_b": "m2", **texts, **flags}


def lmsys_lists(rng: random.Random, i: int) -> Row:
    row = lmsys(rng, i)
    return {
        name: json.loads(cell) if name in ("prompt", "response_a", "response_b") else cell for name, cell in row.items()
    }


def lmsys_test(rng: random.Random, i: int) -> Row:
    return {name: cell for name, cell in lmsys(rng, i).items() if not name.startswith(("winner", "model"))}


def wsdm(rng: random.Random, i: int) -> Row:
    texts = {name: words(rng) for name in ("prompt", "response_a", "response_b")}
    return {"id": f"h{i}", **texts, "winner": rng.choice(["model_a", "model_b"]), "language": "English"}


def arena(rng: random.Random, i: int) -> Row:
    prompt = turns(rng, rng.choice([1, 2]))
    sides = {f"conversation_{s}": messages(prompt, turns(rng, len(prompt)), parts=i % 2 == 0) for s in "ab"}
    winner = rng.choice(["model_a", "model_b", "tie", "tie (bothbad)", "both_bad"])
    return {"question_id": f"q{i}", "model_a": "x", "model_b": "y", **sides, "winner": winner, "anony": True}


def mt_bench(rng: random.Random, i: int) -> Row:
    row = {name: cell for name, cell in arena(rng, 1).items() if name != "anony"}
    return {**row, "question_id": 80 + i % 3, "judge": f"expert_{i % 5}", "turn": rng.choice([1, 2])}


def ultrafeedback(rng: random.Random, i: int) -> Row:
    prompt = words(rng)
    return {
        "prompt": prompt,
        "chosen": messages([prompt], turns(rng, 1)),
        "rejected": messages([prompt], turns(rng, 1)),
    }


def hh(rng: random.Random, i: int) -> Row:
    start = f"\n\nHuman: {words(rng)}\n\nAssistant: ok\n\nHuman: {i}\n\nAssistant: "
    return {"chosen": start + words(rng), "rejected": start + words(rng)}


def labels(rng: random.Random, i: int) -> Row:
    return {"id": i, "label": rng.randrange(3)}


def plain(cell: Any) -> Any:
    """Return what CSV can hold: text, with lists and dicts as JSON."""
    return json.dumps(cell) if isinstance(cell, list | dict) else cell


def encode(rows: list[Row], form: str) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["id", "prompt", "response_a", "response_b"]
    if form == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(names)
        writer.writerows([plain(row.get(name)) for name in names] for row in rows)
        return text.getvalue().encode("utf-8", "surrogatepass")
    if form == "parquet":
        buffer = io.BytesIO()
        parquet_frame(rows, names).write_parquet(buffer)
        return buffer.getvalue()
    lines = [json.dumps(row) for row in rows]
    return ("[" + ",".join(lines) + "]" if form == "json" else "\n".join(lines)).encode()


def parquet_frame(rows: list[Row], names: list[str]) -> pl.DataFrame:
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        try:
            columns[name] = pl.Series(name, cells, strict=True)
            pl.DataFrame([columns[name]]).write_parquet(io.BytesIO())
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):  # mixed types, surrogates
            text = [None if cell is None else str(plain(cell)).encode("utf-8", "replace").decode() for cell in cells]
            columns[name] = pl.Series(name, text, dtype=pl.String)
    return pl.DataFrame(columns)
