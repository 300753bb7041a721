"""The student in use: two responses in, probabilities of (a, b, tie) out.

    from ensemble import Judge
    judge = Judge.from_pretrained("runs/demo/distill/student")
    judge.compare("How do I boil an egg?", "Seven minutes.", "No idea.")

Texts are cut exactly as in training (``prompts.json`` of the folder), and both orders are averaged, so that
exchanging A and B exchanges their probabilities and nothing else. ``python -m ensemble judge`` does the same for
JSON lines, in bounded memory.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES
from oof.common.atomic_files import read_json
from oof.common.errors import UserError
from oof.config import Member, Prompts
from oof.data.text_columns import turn_lists
from oof.encoding.encode import Encoded, encode_battles
from oof.metrics import softmax
from oof.model.classifier import DTYPES, device, load_tokenizer, load_trained
from oof.training.inference import predict_logits

Text = str | Sequence[str]  # a text, or a conversation's turns
PARTS = ("prompt", "response_a", "response_b")
CHUNK = 512  # battles encoded and scored at a time
MAX_LINE = 64 << 20  # characters of one JSON line


class Verdict(NamedTuple):
    """Probabilities that A wins, that B wins, and of a tie; they sum to 1."""

    a: float
    b: float
    tie: float


class Judge:
    """A distilled preference model: see the module's docstring."""

    def __init__(self, model: Any, tokenizer: Any, member: Member, prompts: Prompts) -> None:
        self.model, self.tokenizer, self.member, self.prompts = model, tokenizer, member, prompts

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: str = "auto", tokens_per_batch: int | None = None, attn: str = "auto"
    ) -> Judge:
        """Open an exported student: ``RUN/distill/student`` or one of its variants.

        Args:
            folder: holds the weights, the tokenizer and ``prompts.json``.
            dtype: auto (as saved), float32 or bfloat16.
            tokens_per_batch: padded tokens of one forward pass (default: what suits the device).
            attn: attention implementation, as in a member's recipe.

        Raises:
            UserError: the folder is not an exported student.
        """
        folder = Path(folder)
        for name in ("config.json", "prompts.json"):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: missing; give the folder of an exported student ('make distill')")
        if dtype == "auto":
            dtype = str(read_json(folder / "config.json").get("dtype", "float32"))
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r}; choose one of auto, {', '.join(DTYPES)}")
        prompts = read_prompts(folder)
        member = Member(checkpoint=str(folder), dtype=dtype, score_tokens_per_batch=tokens_per_batch, attn=attn)
        tokenizer = load_tokenizer(str(folder), prompts.hints)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports a cast at every layer of every call
        model = load_trained(member, tokenizer)
        if not getattr(model, "is_quantized", False):  # bitsandbytes places its own weights
            model = model.to(device())
        return cls(model.eval(), tokenizer, member, prompts)

    def compare(self, prompt: Text, response_a: Text, response_b: Text) -> Verdict:
        """Return the verdict on one battle.

        Args:
            prompt: a text, or the user's turns of a conversation.
            response_a, response_b: a text, or as many turns.

        Raises:
            UserError: turns do not match, or something is not text.
        """
        a, b, tie = self.compare_many([prompt], [response_a], [response_b])[0]
        return Verdict(float(a), float(b), float(tie))

    def compare_many(
        self, prompts: Sequence[Text], responses_a: Sequence[Text], responses_b: Sequence[Text]
    ) -> NDArray[np.float64]:
        """Return (n, 3) probabilities of (a, b, tie) of n battles, given as :meth:`compare`'s arguments.

        Raises:
            UserError: the three differ in length, turns do not match, or something is not text.
        """
        n = len(prompts)
        if isinstance(prompts, str) or not len(responses_a) == len(responses_b) == n:
            raise UserError("compare_many wants three lists of equal length, one element per battle")
        rows = [_battle(i, *battle) for i, battle in enumerate(zip(prompts, responses_a, responses_b, strict=True))]
        chunks = [self._score(rows[i : i + CHUNK]) for i in range(0, n, CHUNK)]
        return np.concatenate([np.empty((0, 3)), *chunks])

    def _score(self, rows: list[tuple[list[str], ...]]) -> NDArray[np.float64]:
        if not rows:
            return np.empty((0, 3))
        columns = {part: [row[i] for row in rows] for i, part in enumerate(PARTS)}
        table = pl.DataFrame(columns, schema=dict.fromkeys(PARTS, pl.List(pl.String)))
        return softmax(self.logits(table).mean(axis=1))

    def encode(self, table: pl.DataFrame) -> Encoded:
        """Return the ids of battles, a table with lists of turns: what a server must be sent to agree with us."""
        return encode_battles(table, self.tokenizer, self.prompts, self.prompts.max_tokens)

    def logits(self, table: pl.DataFrame) -> NDArray[np.float64]:
        """Return (n, 2, 3) calibrated logits in both orders, canonical classes, of a table with turns per battle."""
        pad = self.tokenizer.pad_token_id
        return predict_logits(self.model, self.member, self.encode(table), pad, "judge").astype(np.float64)


def read_prompts(folder: Path) -> Prompts:
    """Return how the student in ``folder`` reads its texts.

    Raises:
        UserError: ``prompts.json`` is not what ``make distill`` wrote.
    """
    facts = read_json(folder / "prompts.json")
    try:
        return replace(Prompts(), **facts)
    except TypeError as error:
        raise UserError(f"{folder / 'prompts.json'}: not written by this version ({error}); export again") from error


def _battle(i: int, *texts: object) -> tuple[list[str], ...]:
    parts = [_turns(text, f"battle {i}: {name}") for name, text in zip(PARTS, texts, strict=True)]
    n, a, b = (len(part) for part in parts)
    if not n == a == b:
        raise UserError(f"battle {i}: {n} turns in prompt, {a} in response_a, {b} in response_b; give equally many")
    return tuple(parts)


def _turns(value: object, name: str) -> list[str]:
    """Return clean turns: a null turn is empty; NUL and lone surrogates go, as when battles are read from files."""
    turns = [value] if isinstance(value, str) or value is None else value
    if not isinstance(turns, list | tuple) or not turns or not all(t is None or isinstance(t, str) for t in turns):
        raise UserError(f"{name}: expected a text or a list of texts, one for each turn, not {value!r:.60}")
    # As when battles are read from files, where lone surrogates and NUL characters go too.
    return list(turn_lists([turns], Counter())[0])


# --- JSON lines ------------------------------------------------------------------------------------------


def judge_lines(judge: Judge, lines: Iterable[str], chunk: int = CHUNK) -> Iterator[str]:
    """Yield one JSON line per line: ``{"id", "a", "b", "tie"}``; ``id`` is copied, or the line's number from 1.

    Raises:
        UserError: names the line that is not an object with ``prompt``, ``response_a`` and ``response_b``. The
            lines before it have been answered.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    while batch := list(islice(numbered, chunk)):
        battles, fault = [], None
        for number, line in batch:
            try:
                battles.append(_read_line(number, line))
            except UserError as error:  # what came before it is answered first
                fault = error
                break
        probs = judge._score([texts for _, texts in battles])
        for (name, _), row in zip(battles, probs.tolist(), strict=True):
            yield json.dumps({"id": name, **dict(zip(CLASSES, row, strict=True))})
        if fault:
            raise fault


def _read_line(number: int, line: str) -> tuple[object, tuple[list[str], ...]]:
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE:,} characters")
        battle = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"line {number}: not JSON ({error}); give one object per line") from error
    missing = [part for part in PARTS if not isinstance(battle, dict) or part not in battle]
    if missing:
        raise UserError(f"line {number}: no {missing[0]!r}; give an object with {', '.join(PARTS)}")
    try:
        return battle.get("id", number), _battle(number, *(battle[part] for part in PARTS))
    except UserError as error:
        raise UserError(str(error).replace("battle", "line", 1)) from error
