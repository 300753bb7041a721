"""Judge: probabilities of (a, b, tie) for two responses, from an exported student.

    from ensemble import Judge
    judge = Judge.from_pretrained("runs/demo/distill/student")
    judge.compare("How do I boil an egg?", "Seven minutes.", "No idea.").winner

Texts are truncated exactly as in training, and the logits of both orders are averaged, so that swapping A and B swaps
their probabilities. ``arena-distill judge`` does the same for JSON lines, in bounded memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.distillation.student import Student
from oof.classes import CLASSES
from oof.common.errors import UserError
from oof.data import conversations
from oof.data.parse_cells import CellError
from oof.data.schemas import TEXTS
from oof.data.text_columns import turn_lists
from oof.metrics import softmax

T = TypeVar("T")
Message = Mapping[str, object]  # {"role": "user", "content": "Hello"}
Text = str | Sequence[str] | Sequence[Message]  # one text, the turns of a conversation, or chat messages
Turns = list[str | None]
Battle = tuple[Turns, Turns, Turns]  # of prompt, response A and response B, as given
CHUNK = 512  # battles encoded and scored at a time
MAX_LINE = 64 << 20  # characters of one JSON line


class Verdict(NamedTuple):
    """Probabilities that A wins, that B wins, and of a tie; they sum to 1.

    Unpack it as a tuple: ``a, b, tie = verdict``.
    """

    a: float
    b: float
    tie: float

    @property
    def winner(self) -> Literal["a", "b", "tie"]:
        """The most probable outcome: "a", "b" or "tie"."""
        best = max(self)
        return "a" if self.a == best else "b" if self.b == best else "tie"

    @property
    def probabilities(self) -> dict[str, float]:
        """The three probabilities by outcome: ``{"a": …, "b": …, "tie": …}``."""
        return self._asdict()


class Judge(Student):
    """A distilled preference model that compares responses: see the module's docstring for an example.

    Open one with :meth:`from_pretrained`. Swapping A and B swaps their probabilities.
    """

    def compare(self, prompt: Text | None, response_a: Text, response_b: Text) -> Verdict:
        """Return the verdict on one battle.

        Args:
            prompt: a text, the user's turns of a conversation, or the chat messages so far, each with role and
                content. None, if both responses are whole conversations of messages.
            response_a: a text; as many turns as the prompt has; or the messages that follow the prompt's.
            response_b: the same.

        Raises:
            UserError: the numbers of turns differ, or something is not text.
        """
        a, b, tie = self.compare_many([prompt], [response_a], [response_b])[0]
        return Verdict(float(a), float(b), float(tie))

    def compare_many(
        self, prompts: Sequence[Text | None], responses_a: Sequence[Text], responses_b: Sequence[Text]
    ) -> NDArray[np.float64]:
        """Return (n, 3) float64 probabilities of (a, b, tie) of n battles.

        Args:
            prompts: n prompts, each as in :meth:`compare`; a list, an array, or a column of a data frame.
            responses_a: n responses.
            responses_b: n responses.

        Raises:
            UserError: the lists differ in length, numbers of turns differ, or something is not text.
        """
        prompts, responses_a, responses_b = _listed(prompts), _listed(responses_a), _listed(responses_b)
        n = len(prompts)
        if isinstance(prompts, str) or not len(responses_a) == len(responses_b) == n:
            raise UserError("compare_many needs three lists of equal length, one element per battle")
        texts = zip(prompts, responses_a, responses_b, strict=True)
        battles = [read_battle(f"battle {i}", *battle) for i, battle in enumerate(texts)]
        chunks = [_probabilities(self, battles[i : i + CHUNK]) for i in range(0, n, CHUNK)]
        return np.concatenate([np.empty((0, 3)), *chunks])


def _probabilities(judge: Judge, battles: Sequence[Battle]) -> NDArray[np.float64]:
    """Return (n, 3) probabilities of (n) battles."""
    if not battles:
        return np.empty((0, 3))
    return softmax(judge.logits(battles_table(battles)).mean(axis=1))


def battles_table(battles: Sequence[Battle]) -> pl.DataFrame:
    """Return (n) battles, at least one, as the table that :meth:`Judge.encode` and :meth:`Judge.logits` read.

    Texts are cleaned as in files: null is empty, NUL and lone surrogates are removed.
    """
    columns = (turn_lists([battle[i] for battle in battles], Counter()) for i in range(len(TEXTS)))
    return pl.DataFrame(dict(zip(TEXTS, columns, strict=True)))


def _listed(column: Sequence[T]) -> Sequence[T]:
    """Return a column of a data frame, or an array, as a list of plain values."""
    as_list = getattr(column, "to_list", None) or getattr(column, "tolist", None)
    values: Sequence[T] = as_list() if as_list else column
    return values


def read_battle(place: str, *texts: object) -> Battle:
    """Return the turns of a prompt and two responses, given as in :meth:`Judge.compare`.

    Raises:
        UserError: the numbers of turns differ, or something is not text; ``place`` names the battle.
    """
    if any(map(_is_messages, texts)):
        texts = _turns_of_messages(place, *texts)
    prompt, a, b = (_turns(text, f"{place}: {name}") for name, text in zip(TEXTS, texts, strict=True))
    if not len(prompt) == len(a) == len(b):
        raise UserError(
            f"{place}: {len(prompt)} turns in prompt, {len(a)} in response_a, {len(b)} in response_b; give equally many"
        )
    return prompt, a, b


def _is_messages(value: object) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def _turns_of_messages(place: str, prompt: object, *responses: object) -> tuple[object, object, object]:
    """Return prompt, response A and response B as turns, where one of them is a list of messages."""
    sides = []
    for name, response in zip(TEXTS[1:], responses, strict=True):
        answer = list(response) if isinstance(response, list | tuple) else response
        try:
            before = list(prompt) if isinstance(prompt, list | tuple) else prompt
            sides.append(conversations.split_turns(conversations.answered(before or None, answer)))
        except CellError as error:
            raise UserError(
                f"{place}: {name} after the prompt: {error}; give messages such as "
                '{"role": "user", "content": "Hello"}, or texts alone'
            ) from error
    (users, a), (others, b) = sides
    if users != others:
        raise UserError(f"{place}: the user's messages before response_a and before response_b differ")
    return users, a, b


def _turns(value: object, place: str) -> Turns:
    """Return the turns of a text."""
    turns = [value] if isinstance(value, str) or value is None else value
    if not isinstance(turns, list | tuple) or not turns or not all(t is None or isinstance(t, str) for t in turns):
        raise UserError(f"{place}: expected a text or a list of texts, one for each turn, not {value!r:.60}")
    return list(turns)


# --- JSON lines ------------------------------------------------------------------------------------------


def judge_lines(judge: Judge, lines: Iterable[str], chunk: int = CHUNK) -> Iterator[str]:
    """Yield ``{"id", "a", "b", "tie"}`` as one JSON line for each line that is not blank.

    Args:
        judge: scores the battles.
        lines: JSON objects with ``prompt``, ``response_a``, ``response_b`` and optionally ``id``, which is copied; the
            default is the line's number, from 1.
        chunk: lines read and scored at a time.

    Raises:
        UserError: a line is not such an object; the lines before it have been answered.
    """
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
        for name, row in zip(ids, _probabilities(judge, battles).tolist(), strict=True):
            yield json.dumps({"id": name, **dict(zip(CLASSES, row, strict=True))})
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
