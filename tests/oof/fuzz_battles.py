"""Seeded fuzzer of the battle readers: ``python tests/oof/fuzz_battles.py --files 2000 --seed 0``.

Each file is a valid one of a known schema and format, broken on purpose: bytes flipped, fields dropped, types
changed, encodings mixed. It must load to a valid table with every row accounted for, or end in one UserError.
Anything else (another exception, a slow file, a lost row) fails, and the file is kept for a look.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import io
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from battle_files import (
    Row,
    arena,
    encode,
    generator,
    hh,
    labels,
    lmsys,
    lmsys_lists,
    lmsys_test,
    mt_bench,
    ultrafeedback,
    wsdm,
)

from oof.battles import SCHEMA, BattleSet, content_fingerprint, read_file, swap_order
from oof.check import check_files
from oof.errors import UserError

SECONDS = 10.0  # a file of a few hundred kilobytes that takes longer hangs
ROLES = ("train", "train", "extra", "unlabelled", "test")
UNLABELLED = ("unlabelled", "test")
CELLS: tuple[Any, ...] = (
    None, "", 0, 1, -1, 2.0, 0.5, float("nan"), float("inf"), True, 10**30, "NaN", "nan", "[]", "[null]", "[[]]", "{}",
    '["a"', '["a", 1]', '[["a"]]', '"text"', [], [None], [1], ["a", "b", "c"], {}, {"role": "user"},
    [{"role": "tool"}],
    "[" * 3000, '["' + "x" * 200_000 + '"]',
    "\ud800", "1.0", "1e3", "both_bad", "tie (bothbad)", "model_c", "\udc80", "\0", "a/../b",
)  # fmt: skip


MAKERS: tuple[tuple[Callable[[random.Random, int], Row], tuple[str, ...]], ...] = (
    (lmsys, ("csv", "csv", "jsonl", "parquet")),
    (lmsys_lists, ("jsonl", "parquet", "json")),
    (lmsys_test, ("csv",)),
    (wsdm, ("csv", "parquet", "jsonl")),
    (arena, ("jsonl", "parquet")),
    (mt_bench, ("jsonl", "parquet")),
    (ultrafeedback, ("jsonl", "parquet")),
    (hh, ("jsonl", "csv")),
    (labels, ("csv", "parquet")),
)


# --- breaking ------------------------------------------------------------------------------------------------


def break_rows(rng: random.Random, rows: list[Row]) -> list[Row]:
    """Break cells, columns and rows; the number of rows that the file will hold is the length of the result."""
    kind = rng.randrange(9)
    names = list(rows[0]) if rows else []
    if kind == 0 and rows:
        for _ in range(rng.randint(1, 6)):
            rng.choice(rows)[rng.choice(names)] = rng.choice(CELLS)
    elif kind == 1 and names:
        gone = rng.choice(names)
        rows = [{name: cell for name, cell in row.items() if name != gone} for row in rows]
    elif kind == 2 and names:
        old, new = rng.choice(names), rng.choice(["promt", "label", "winner", "id", "text", "", "turn", "fold"])
        rows = [{new if name == old else name: cell for name, cell in row.items()} for row in rows]
    elif kind == 3 and rows:
        rows = rows + [dict(rng.choice(rows)) for _ in range(rng.randint(1, 4))]
    elif kind == 4 and names:
        column, cell = rng.choice(names), rng.choice(CELLS)
        rows = [{**row, column: cell} for row in rows]
    elif kind == 5:
        rows = [{**row, "fold": rng.choice([0, 1, "2", 3.0, "x", None])} for row in rows]
    elif kind == 6:
        rows = rows[: rng.randint(0, 2)]
    elif kind == 7 and rows:
        rng.choice(rows)[rng.choice(names)] = rng.choice(rows)[rng.choice(names)]
    return rows


def break_bytes(rng: random.Random, data: bytes) -> bytes:
    kind, at = rng.randrange(11), rng.randrange(len(data) + 1)
    span = rng.randint(1, max(1, len(data) // 4))
    if kind == 0:
        flipped = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            if flipped:
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return data[:at] + data[at + span :]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return (
            data[:at]
            + rng.choice([b'"', b"\n", b"\r", b",", b"\0", b"\xff", b"\xed\xa0\x80", b"\x1a", b"{", b"]"])
            + data[at:]
        )
    if kind == 4:
        return data[:at] + data[at : at + span] + data[at:]
    if kind == 5:
        return b"\xef\xbb\xbf" + data
    if kind == 6:
        return data.replace(b"\n", b"\r\n")
    if kind == 7:
        return data[:at] + rng.randbytes(rng.randint(1, 200)) + data[at:]
    if kind == 8:
        return data.replace(b",", rng.choice([b";", b"\t", b",,"]), rng.choice([1, -1]))
    if kind == 9 and rng.random() < 0.5:
        return data.decode("utf-8", "replace").encode(rng.choice(["utf-16", "latin-1", "utf-32"]), "replace")
    return data


def pack(rng: random.Random, data: bytes, name: str) -> tuple[bytes, str]:
    way = rng.choice(["", "", "", "", ".gz", ".zst", ".zip"])
    if way == ".gz":
        return gzip.compress(data, 1), name + way
    if way == ".zst":
        return zstandard.compress(data, 1), name + way
    if way == ".zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, data)
        return buffer.getvalue(), name + way
    return data, name


@dataclass(frozen=True)
class Case:
    path: Path
    role: str
    on_bad_row: str
    n_rows: int | None  # records in the file, where the damage cannot have changed their number


def make_case(seed: int, number: int, folder: Path, parquet: float = 1.0) -> Case:
    """Return a broken file; of those drawn as Parquet (slow: a process each) only a share stays ``parquet``."""
    rng = generator(f"{seed}/{number}")
    maker, forms = rng.choice(MAKERS)
    form = rng.choice(forms)
    form = "jsonl" if form == "parquet" and rng.random() >= parquet else form
    rows = [maker(rng, i) for i in range(rng.randint(1, 25))]
    n_rows: int | None = None
    level = rng.random()
    if level < 0.55:
        rows = break_rows(rng, rows)
        n_rows = len(rows)
    data = encode(rows, form)
    if level >= 0.5:
        data, n_rows = break_bytes(rng, data), None
    ending = form if rng.random() < 0.9 else rng.choice(["csv", "jsonl", "parquet", "txt"])
    name = f"case{number}.{ending}"
    if ending != form:
        n_rows = None
    data, name = pack(rng, data, name)
    if rng.random() < 0.1:
        data, n_rows = break_bytes(rng, data), None
    path = folder / name
    path.write_bytes(data)
    roles = UNLABELLED if maker is lmsys_test and rng.random() < 0.9 else ROLES
    return Case(path, rng.choice(roles), rng.choice(["error", "drop"]), n_rows)


# --- judging -------------------------------------------------------------------------------------------------


def invalid(battles: BattleSet, case: Case) -> str | None:
    """Return what is wrong with a table that was loaded, or None."""
    table, read = battles.table, battles.counts["rows_read"]
    texts = [table[name] for name in ("prompt", "response_a", "response_b")]
    flat = [text for series in texts for turns in series.to_list() for text in turns]
    never_null = table.drop("label", "model_a", "model_b", "language", "group_key", "fold")
    known, unknown = int(table["label"].is_in([0, 1, 2]).sum()), table["label"].null_count()
    kept, dropped = (set(frame.select("file", "row").rows()) for frame in (table, battles.dropped))
    claims = {
        "columns or dtypes differ": dict(table.schema) == SCHEMA,
        "rows out + dropped != rows read": table.height + battles.dropped.height == read,
        "rows read != rows written": case.n_rows is None or read == case.n_rows,
        "a dropped row has no reason": not (battles.dropped["reason"].fill_null("") == "").any(),
        "rows dropped under 'error'": case.on_bad_row == "drop" or not battles.dropped.height,
        "a row is both kept and dropped, or twice": not kept & dropped and len(kept) + len(dropped) == read,
        "ids repeat": table["id"].n_unique() == table.height,
        "a cell is null": not any(series.null_count() for series in never_null),
        "turns are unequal": all((texts[0].list.len() == series.list.len()).all() for series in texts[1:]),
        "a battle has no turn": not (texts[0].list.len() == 0).any(),
        "a turn is null or holds NUL": all(text is not None and "\0" not in text for text in flat),
        "labels are off": (known if case.role in ("train", "extra") else unknown) == table.height,
        "swap is not an involution": swap_order(swap_order(table)).equals(table),
        "fingerprint depends on order": content_fingerprint(table) == content_fingerprint(table.reverse()),
    }
    return next((claim for claim, holds in claims.items() if not holds), None)


def judge(case: Case) -> tuple[str, str | None]:
    """Return (outcome, failure or None) of reading one file."""
    try:
        battles = read_file(case.path, case.role, on_bad_row=case.on_bad_row)
    except UserError as error:
        message = str(error)
        if case.path.name not in message or "\n" in message or len(message) > 5000 or not message.isprintable():
            return "refused", f"poor message: {message[:300]!r}"
        return "refused", None
    return ("loaded, rows dropped" if battles.dropped.height else "loaded"), invalid(battles, case)


def run(files: int, seed: int, keep: Path | None = None, parquet: float = 1.0) -> tuple[Counter[str], list[str]]:
    """Return the outcomes of ``files`` broken files, and the failures. Each tenth file goes through ``check`` too."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(files):
            case = make_case(seed, number, Path(folder), parquet)
            start = time.monotonic()
            try:
                outcome, failure = judge(case)
                if number % 10 == 0 and failure is None:
                    with contextlib.redirect_stdout(io.StringIO()):
                        status = check_files([str(case.path)])
                    failure = None if status in (0, 1) else f"check exits {status}"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome, failure = "crashed", f"{type(error).__name__}: {str(error)[:300]}"
            seconds = time.monotonic() - start
            if failure is None and seconds > SECONDS:
                failure = f"took {seconds:.0f} s"
            outcomes[outcome] += 1
            if failure:
                failures.append(f"{case.path.name} ({case.role}, {case.on_bad_row}): {failure}")
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(case.path, keep)
            case.path.unlink()
    return outcomes, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that fail")
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(120 + arguments.files, exit=True)  # a true hang ends here, with its place
    start = time.monotonic()
    outcomes, failures = run(arguments.files, arguments.seed, arguments.keep)
    for failure in failures:
        print(f"FAILED {failure}")
    shown = ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))
    print(f"{arguments.files} files in {time.monotonic() - start:.0f} s: {shown}; {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
