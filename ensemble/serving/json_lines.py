"""JSON lines in, verdicts out: ``arena-distill judge`` in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ensemble.serving.judge import CHUNK, Battle, Judge, answers, read_battle
from oof.classes import CLASSES
from oof.common.errors import UserError
from oof.data.schemas import TEXTS

MAX_LINE = 64 << 20  # characters of one JSON line


def judge_lines(
    judge: Judge, lines: Iterable[str], chunk: int = CHUNK, max_error: float | None = None
) -> Iterator[str]:
    """Yield ``{"id", "a", "b", "tie"}`` as one JSON line for each line that is not blank.

    With ``max_error`` it also has ``answered`` and ``warnings``.

    Args:
        judge: scores the battles.
        lines: JSON objects with ``prompt``, ``response_a``, ``response_b`` and optionally ``id``, which is copied; the
            default is the line's number, from 1.
        chunk: lines read and scored at a time.
        max_error: as in :meth:`Judge.compare`.

    Raises:
        UserError: a line is not such an object; the lines before it have been answered. Or, before any line is read,
            the student has no thresholds.
    """
    answers(judge, [], max_error)
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    while batch := list(islice(numbered, chunk)):
        ids, battles, bad_line = [], [], None
        for number, line in batch:
            try:
                name, battle = _read_line(number, line)
            except UserError as error:  # raised after the lines before it are answered
                bad_line = error
                break
            ids.append(name)
            battles.append(battle)
        probs, answered, warnings = answers(judge, battles, max_error)
        for name, row, sure, unlike in zip(ids, probs.tolist(), answered.tolist(), warnings, strict=True):
            verdict: dict[str, Any] = {"id": name, **dict(zip(CLASSES, row, strict=True))}
            yield json.dumps(verdict if max_error is None else verdict | {"answered": sure, "warnings": unlike})
        if bad_line:
            raise bad_line


def _read_line(number: int, line: str) -> tuple[object, Battle]:
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE:,} characters")
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"line {number}: not JSON ({error}); give one object per line") from error
    missing = [name for name in TEXTS if not isinstance(content, dict) or name not in content]
    if missing:
        raise UserError(f"line {number}: no {missing[0]!r}; give an object with {', '.join(TEXTS)}")
    return content.get("id", number), read_battle(f"line {number}", *(content[name] for name in TEXTS))
