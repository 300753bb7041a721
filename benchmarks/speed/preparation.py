"""Time and memory of preparation: read, group, fold, tokenise and truncate the competition's battles.

    python -m benchmarks.speed.preparation --tokenizer models/tokenizer-gemma2 --write docs/evidence/preparation.md

Three measurements in one fresh process, whose peak memory is theirs alone:

1. read + group + fold + encode (tokenise and truncate, both orders) of a CSV in the competition's schema, then
   the same encode again from its cache;
2. encode without a cache beside the tokenizer's own batch call over each distinct text once, the lower bound of any
   preparation: in turns on slices of the table, the best of a few repeats of each, so that other work on the machine
   affects both alike;
3. per-row preparation as in competition code (encode each text of a row, drop tokens one by one from the longer
   response until the row fits, decode, encode the joined prompt; again for the other order), on a sample of each
   slice.

Texts are random fragments of Python's own manual (English prose and code; some rows Chinese or Cyrillic).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.common import argument_parser, paragraphs, peak_gb, run_script, timed, write_page
from oof.classes import WINNER_COLUMNS
from oof.config import Data, Groups, Prompts
from oof.data.battles import read_battles
from oof.data.schemas import TEXTS
from oof.encoding.encode import encode_battles
from oof.encoding.templates import prepare_tokenizer
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles

LIMITS = {"seconds": 150.0, "gigabytes": 4.0, "over_batch_call": 1.3, "over_per_row": 4.0, "cached_seconds": 5.0}
AT_LEAST = "over_per_row"  # the only limit from below
TOKENS_PER_WORD = 1.35  # of the manual, cut at spaces (code and runs of spaces included), Gemma 2 tokenizer
REPEATED, MULTI_TURN, FOREIGN, EMPTY = 0.10, 0.13, 0.08, 0.005  # shares of battles


def synthetic_texts(rng: np.random.Generator, n: int) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Return prompts, responses A and responses B (lists of turns) with the arena's lengths in tokens."""
    words = " ".join(topics.values()).split(" ")
    total = rng.lognormal(np.log(455), np.where(rng.random(n) < 0.12, 0.95, 0.57))
    prompt = np.minimum(rng.lognormal(np.log(37), 1.25, n), 6_000)
    balance = np.clip(rng.normal(0.5, 0.13, n), 0.05, 0.95)
    sizes = np.stack([prompt, total * balance, total * (1 - balance)])
    sizes[1:][rng.random((2, n)) < EMPTY] = 0
    turns = np.where(rng.random(n) < MULTI_TURN, rng.integers(2, 6, n), 1)
    foreign = rng.random(n) < FOREIGN
    columns: list[list[list[str]]] = [[], [], []]
    for i in range(n):
        for column, size in zip(columns, sizes[:, i], strict=True):
            per_turn = max(int(size / TOKENS_PER_WORD / turns[i]), 0 if size == 0 else 1)
            column.append([_text(rng, words, per_turn, bool(foreign[i])) for _ in range(turns[i])])
    for i in np.flatnonzero(rng.random(n) < REPEATED).tolist():
        columns[0][i] = list(columns[0][rng.integers(n)])
        columns[1][i], columns[2][i] = (_fit(column[i], len(columns[0][i])) for column in columns[1:])
    return columns[0], columns[1], columns[2]


def _fit(turns: list[str], n: int) -> list[str]:
    return (turns * n)[:n]


def _text(rng: np.random.Generator, words: list[str], n: int, foreign: bool) -> str:
    """Join fragments of about seven words from random places."""
    if foreign:
        low, high = (0x4E00, 0x5200) if rng.random() < 0.5 else (0x430, 0x44F)
        return "".join(map(chr, rng.integers(low, high, 2 * n)))
    starts = rng.integers(0, len(words) - 7, -(-n // 7))
    return " ".join([word for start in starts for word in words[start : start + 7]][:n])


def write_csv(path: Path, n: int, seed: int) -> None:
    """Write battles in the competition's schema."""
    rng = np.random.default_rng(seed)
    columns = synthetic_texts(rng, n)
    frame = {"id": np.arange(n), "model_a": ["m1"] * n, "model_b": ["m2"] * n}
    frame |= {name: [json.dumps(turns) for turns in column] for name, column in zip(TEXTS, columns, strict=True)}
    label = rng.choice(3, size=n, p=[0.349, 0.342, 0.309])
    pl.DataFrame(frame | {name: (label == i).astype(int) for i, name in enumerate(WINNER_COLUMNS)}).write_csv(path)


def per_row(table: pl.DataFrame, tokenizer: Any, max_tokens: int) -> int:
    """Prepare row by row, as competition code does; return the number of tokens."""
    n_tokens = 0
    for swapped in (False, True):
        for row in table.select(TEXTS).iter_rows():
            prompt, a, b = (" ".join("\n".join(turns).split(" ")[:700]) for turns in row)
            n_prompt, ids_a, ids_b = len(tokenizer.encode(prompt)), tokenizer.encode(a), tokenizer.encode(b)
            if n_prompt + len(ids_a) + len(ids_b) > max_tokens:
                if n_prompt > max_tokens // 4:
                    prompt = tokenizer.decode(tokenizer.encode(prompt)[: max_tokens // 4], skip_special_tokens=True)
                room = max_tokens - len(tokenizer.encode(prompt))
                ids_a, ids_b = tokenizer.encode(a), tokenizer.encode(b)
                while len(ids_a) + len(ids_b) > room:
                    if len(ids_a) >= len(ids_b):
                        ids_a = ids_a[:-1]
                    else:
                        ids_b = ids_b[:-1]
                a, b = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (ids_a, ids_b))
            first, second = (b, a) if swapped else (a, b)
            joined = f"Prompt:\n{prompt}\nResponse A:\n{first}\nResponse B:\n{second}\nVerdict:\n"
            n_tokens += len(tokenizer.encode(joined))
    return n_tokens


def batch_call(texts: list[str], tokenizer: Any) -> None:
    """Encode each text once through the tokenizer's fastest batch call, in chunks so that memory stays bounded."""
    for start in range(0, len(texts), 4096):
        tokenizer.backend_tokenizer.encode_batch_fast(texts[start : start + 4096], add_special_tokens=False)


def compare(table: pl.DataFrame, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Return seconds of encode and of the batch call over the whole table, and rows per second of each method."""
    rng = np.random.default_rng(0)
    config, limit, slices = Prompts(), arguments.max_tokens, max(1, min(8, table.height // 1000))
    ours = floor = slow = 0.0
    n_slow = max(1, arguments.sample // slices)
    for part in table.iter_slices(-(-table.height // slices)):
        texts = distinct(part)
        pairs = [
            (
                timed(partial(batch_call, texts, tokenizer))[1],
                timed(partial(encode_battles, part, tokenizer, config, limit))[1],
            )
            for _ in range(arguments.repeats)
        ]
        floor, ours = floor + min(pair[0] for pair in pairs), ours + min(pair[1] for pair in pairs)
        rows = rng.choice(part.height, min(n_slow, part.height), replace=False)
        slow += timed(partial(per_row, part[rows.tolist()], tokenizer, limit))[1] / len(rows)
    return {
        "encode_seconds": ours,
        "batch_call_seconds": floor,
        "over_batch_call": ours / floor,
        "rows_per_second": table.height / ours,
        "rows_per_second_per_row": slices / slow,
        "over_per_row": table.height / ours * slow / slices,
    }


def distinct(table: pl.DataFrame) -> list[str]:
    return list(dict.fromkeys(text.strip() for name in TEXTS for text in table[name].explode().to_list()))


def measure(csv: Path, cache: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all measurements on one CSV."""
    from transformers import AutoTokenizer

    logging.basicConfig(level=logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    prepare_tokenizer(tokenizer)
    config, limit = Prompts(), arguments.max_tokens
    data = Data(train=[str(csv)])
    table, read = timed(lambda: read_battles(data, seed=0, roles=("train",)).table)
    groups, group = timed(lambda: group_battles(table, Groups()))
    _, fold = timed(lambda: assign_folds(table, groups, 5, 0))
    encoded, encode = timed(lambda: encode_battles(table, tokenizer, config, limit, cache=cache))
    gigabytes = peak_gb()
    again, cached = timed(lambda: encode_battles(table, tokenizer, config, limit, cache=cache))
    if not np.array_equal(encoded.ids, again.ids):
        raise AssertionError("the cache changed the ids")
    return {
        "battles": table.height,
        "distinct_texts": len(distinct(table)),
        "lengths": describe(encoded.n_tokens),
        "seconds": {
            "read": read,
            "group": group,
            "fold": fold,
            "encode": encode,
            "together": read + group + fold + encode,
            "encode_cached": cached,
        },
        "gigabytes": gigabytes,
        "comparison": compare(table, tokenizer, arguments),
    }


def describe(n_tokens: NDArray[np.int32]) -> dict[str, float]:
    """Return the figures that the synthetic lengths should share with real arena battles."""
    total = n_tokens.sum(axis=1)
    figures = dict(zip(("prompt", "a", "b"), n_tokens.mean(axis=0).tolist(), strict=True))
    figures |= {"median": float(np.median(total)), "p90": float(np.quantile(total, 0.9))}
    figures |= {"p99": float(np.quantile(total, 0.99))}
    figures |= {f"over_{n}": float((total > n).mean()) for n in (1024, 2048)}
    return {name: round(value, 3) for name, value in figures.items()}


def lines_of(result: dict[str, Any]) -> list[str]:
    """Return the lines of the page: what was measured, then each figure beside its limit."""
    seconds, lengths, comparison = result["seconds"], result["lengths"], result["comparison"]
    tokens = sum(lengths[part] for part in ("prompt", "a", "b"))
    parts = ", ".join(f"{name} {seconds[name]:.1f} s" for name in ("read", "group", "fold", "encode"))
    figures = {
        "read, group, fold and encode, seconds": (seconds["together"], "seconds"),
        "peak memory, GB": (result["gigabytes"], "gigabytes"),
        "encode beside the tokenizer's batch call, times its seconds": (
            comparison["over_batch_call"],
            "over_batch_call",
        ),
        "encode beside row by row, times its battles/s": (comparison["over_per_row"], AT_LEAST),
        "encode again from the cache, seconds": (seconds["encode_cached"], "cached_seconds"),
    }
    rows = []
    for name, (value, limit) in figures.items():
        bound = "at least" if limit == AT_LEAST else "at most"
        rows.append(
            f"| {name} | {value:.2f} | {bound} {LIMITS[limit]:g} | {'yes' if kept(limit, value) else '**no**'} |"
        )
    return [
        f"{result['battles']:,} battles of {tokens:.0f} tokens on average, {lengths['over_2048']:.1%} of them longer "
        f"than 2,048; {result['distinct_texts']:,} distinct texts. {parts}.",
        "",
        "| | measured | limit | kept |",
        "|---|---|---|---|",
        *rows,
    ]


def kept(limit: str, value: float) -> bool:
    """Return whether a figure keeps its limit."""
    return value >= LIMITS[limit] if limit == AT_LEAST else value <= LIMITS[limit]


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--tokenizer", default="models/tokenizer-gemma2", help="a Hugging Face tokenizer folder")
    parser.add_argument("--battles", type=int, default=57_477)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--sample", type=int, default=400, help="battles of the per-row measurement")
    parser.add_argument("--repeats", type=int, default=2, help="of encode and of the batch call; the best one counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--no-limits", action="store_true", help="exit with status 0 even if a limit is missed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "train.csv"
        write_csv(csv, arguments.battles, arguments.seed)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            result = fresh.submit(measure, csv, Path(folder) / "cache", arguments).result()
    lines = lines_of(result)
    print("\n".join(lines))
    if arguments.write:
        write_page(arguments.write, "Preparation", [paragraphs(__doc__, 2), "", *lines])
    return int("**no**" in "".join(lines) and not arguments.no_limits)


if __name__ == "__main__":
    run_script(main)
