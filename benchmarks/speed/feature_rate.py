"""How fast are the battle features? Synthetic battles of the arena's lengths, one thread, no logits.

    python -m benchmarks.speed.feature_rate                   20,000 battles
    python -m benchmarks.speed.feature_rate --families        and the time of each family on its own

A battle has in the mean 350 + 1,250 + 1,250 characters (87 + 296 + 295 tokens), with heavy tails; a tenth of
them are Chinese or Cyrillic.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["POLARS_MAX_THREADS"] = "1"

import numpy as np
import polars as pl

from ensemble.features import battle_features
from ensemble.features.battle_features import FAMILIES, Texts

WORDS = (
    *("the", "model", "answer", "of", "a", "list", "code", "and", "is", "python", "to", "`x`", "12", "example"),
    *("however,", "http", "function.", "new", "**bold**", "in"),
)
FOREIGN = ("模型", "回答", "列表", "代码", "例子", "это", "ответ", "модели", "пример", "кода")
MARKS = (" ", " ", " ", " ", " ", ". ", "\n", "\n- ", "\n\n## ", "\n```\n")


def text(rng: np.random.Generator, characters: float) -> str:
    words = FOREIGN if rng.random() < 0.1 else WORDS
    n = max(1, int(rng.lognormal(np.log(characters / 6.5) - 0.5, 1.0)))
    drawn = zip(rng.integers(len(words), size=n), rng.integers(len(MARKS), size=n), strict=True)
    return "".join(words[w] + MARKS[m] for w, m in drawn)


def battles(n: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    columns = {"prompt": 350, "response_a": 1250, "response_b": 1250}
    return pl.DataFrame({name: [[text(rng, size)] for _ in range(n)] for name, size in columns.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--battles", type=int, default=20_000)
    parser.add_argument("--families", action="store_true")
    arguments = parser.parse_args()
    table = battles(arguments.battles)
    size = table.select(pl.sum_horizontal(pl.all().list.join("").str.len_chars()).mean()).item()
    start, used = time.perf_counter(), time.process_time()
    frame, _ = battle_features.text_features(table)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    rate = f"{table.height / seconds:,.0f}/s ({table.height / used:,.0f} per second of CPU)"
    print(f"{table.height:,} battles of {size:,.0f} characters: {frame.width} columns in {seconds:.1f} s, {rate}")
    if arguments.families:
        for family, function in FAMILIES.items():
            start = time.perf_counter()
            for block in table.iter_slices(battle_features.BLOCK):
                function(Texts(block))
            print(f"  {family:<12} {1e6 * (time.perf_counter() - start) / table.height:6.0f} microseconds a battle")


if __name__ == "__main__":
    main()
