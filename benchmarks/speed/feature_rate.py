"""Speed of the battle features on one thread.

    python -m benchmarks.speed.feature_rate                   20,000 battles
    python -m benchmarks.speed.feature_rate --families        and the time of each feature family

Synthetic battles of the arena's lengths (``benchmarks/speed/synthetic_arena.py``), no logits.
"""

from __future__ import annotations

import os

os.environ["POLARS_MAX_THREADS"] = "1"  # read when polars is imported

import time

import polars as pl

from benchmarks.common import argument_parser, run_script, timed
from benchmarks.speed.synthetic_arena import battles
from ensemble.features import battle_features
from ensemble.features.battle_features import FAMILIES, TextBlock


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--battles", type=int, default=20_000)
    parser.add_argument("--families", action="store_true")
    arguments = parser.parse_args()
    table = battles(arguments.battles)
    size = table.select(pl.sum_horizontal(pl.all().list.join("").str.len_chars()).mean()).item()
    cpu_begun = time.process_time()
    (frame, _), seconds = timed(lambda: battle_features.text_features(table))
    rate = f"{table.height / seconds:,.0f}/s ({table.height / (time.process_time() - cpu_begun):,.0f} per CPU second)"
    print(f"{table.height:,} battles of {size:,.0f} characters: {frame.width} columns in {seconds:.1f} s, {rate}")
    if arguments.families:
        for family, function in FAMILIES.items():
            _, seconds = timed(lambda f=function: [f(TextBlock(b)) for b in table.iter_slices(battle_features.BLOCK)])
            print(f"  {family:<12} {1e6 * seconds / table.height:6.0f} microseconds a battle")


if __name__ == "__main__":
    run_script(main)
