"""Judge: probabilities of (a, b, tie) for two responses, from an exported student.

    from ensemble import Judge
    judge = Judge.from_pretrained("runs/demo/distill/student")
    judge.compare("How do I boil an egg?", "Seven minutes.", "No idea.").winner

Texts are truncated exactly as in training, and the logits of both orders are averaged, so that swapping A and B swaps
their probabilities. ``arena-distill judge`` does the same for JSON lines, in bounded memory. With ``max_error`` a
verdict also says whether it is sure enough to be used (:mod:`ensemble.abstention.thresholds` says what is guaranteed).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.abstention.stored import Abstention, checked_level
from ensemble.distillation.student import Student
from ensemble.serving.verdicts import Answers, Verdict
from oof.common.errors import UserError
from oof.data import conversations
from oof.data.parse_cells import CellError
from oof.data.schemas import TEXTS
from oof.data.text_columns import turn_lists
from oof.encoding.encode import Encoded
from oof.metrics import softmax

logger = logging.getLogger(__name__)

T = TypeVar("T")
Message = Mapping[str, object]  # {"role": "user", "content": "Hello"}
Text = str | Sequence[str] | Sequence[Message]  # one text, the turns of a conversation, or chat messages
Turns = list[str | None]
Battle = tuple[Turns, Turns, Turns]  # of prompt, response A and response B, as given
CHUNK = 512  # battles encoded and scored at a time


class Judge(Student):
    """A distilled preference model that compares responses: see the module's docstring for an example.

    Open one with :meth:`from_pretrained`. Swapping A and B swaps their probabilities.
    """

    @cached_property
    def abstention(self) -> Abstention:
        """Thresholds of abstention, and ranges of the training battles.

        Raises:
            UserError: the student's folder has none, or they are damaged.
        """
        return Abstention.read(Path(self.member.checkpoint))

    def compare(
        self, prompt: Text | None, response_a: Text, response_b: Text, max_error: float | None = None
    ) -> Verdict:
        """Return the verdict on one battle.

        Args:
            prompt: a text, the user's turns of a conversation, or the chat messages so far, each with role and
                content. None, if both responses are whole conversations of messages.
            response_a: a text; as many turns as the prompt has; or the messages that follow the prompt's.
            response_b: the same.
            max_error: share of wrong verdicts among the answered ones that is kept; ``verdict.answered`` is False where
                this verdict is not sure enough.

        Raises:
            UserError: the numbers of turns differ, something is not text, or the student has no thresholds.
        """
        battle = [prompt], [response_a], [response_b]
        if max_error is None:
            a, b, tie = self.compare_many(*battle)[0].tolist()
            return Verdict(a, b, tie)
        probs, answered, warnings = self.compare_many(*battle, max_error=max_error)
        a, b, tie = probs[0].tolist()
        return Verdict(a, b, tie, bool(answered[0]), warnings[0])

    @overload
    def compare_many(
        self,
        prompts: Sequence[Text | None],
        responses_a: Sequence[Text],
        responses_b: Sequence[Text],
        max_error: None = None,
    ) -> NDArray[np.float64]: ...

    @overload
    def compare_many(
        self,
        prompts: Sequence[Text | None],
        responses_a: Sequence[Text],
        responses_b: Sequence[Text],
        max_error: float,
    ) -> Answers: ...

    def compare_many(
        self,
        prompts: Sequence[Text | None],
        responses_a: Sequence[Text],
        responses_b: Sequence[Text],
        max_error: float | None = None,
    ) -> NDArray[np.float64] | Answers:
        """Return (n, 3) float64 probabilities of (a, b, tie) of n battles; with ``max_error`` inside :class:`Answers`.

        Args:
            prompts: n prompts, each as in :meth:`compare`; a list, an array, or a column of a data frame.
            responses_a: n responses.
            responses_b: n responses.
            max_error: as in :meth:`compare`.

        Raises:
            UserError: the lists differ in length, numbers of turns differ, something is not text, or the student has
                no thresholds.
        """
        prompts, responses_a, responses_b = _listed(prompts), _listed(responses_a), _listed(responses_b)
        n = len(prompts)
        if isinstance(prompts, str) or not len(responses_a) == len(responses_b) == n:
            raise UserError("compare_many needs three lists of equal length, one element per battle")
        texts = zip(prompts, responses_a, responses_b, strict=True)
        battles = [read_battle(f"battle {i}", *battle) for i, battle in enumerate(texts)]
        chunks = [answers(self, battles[i : i + CHUNK], max_error) for i in range(0, max(n, 1), CHUNK)]
        probs, answered = (np.concatenate(parts) for parts in list(zip(*chunks, strict=True))[:2])
        if max_error is None:
            return probs
        return Answers(probs, answered, [row for chunk in chunks for row in chunk.warnings])

    def unlike_training(self, table: pl.DataFrame, encoded: Encoded) -> list[tuple[str, ...]]:
        """Return how each of (n) battles is unlike the training battles; each kind is also logged once."""
        warnings = self.abstention.ranges.warnings(table, encoded.n_tokens, encoded.n_kept)
        for message in dict.fromkeys(chain.from_iterable(warnings)):
            if message not in self._logged:
                self._logged.add(message)
                logger.warning("max_error promises nothing for battles unlike those of training: one is %s", message)
        return warnings

    @cached_property
    def _logged(self) -> set[str]:
        return set()


def answers(judge: Judge, battles: Sequence[Battle], max_error: float | None) -> Answers:
    """Return the verdicts on (n) battles, all answered without ``max_error``.

    Raises:
        UserError: ``max_error`` is no share, or the student has no thresholds.
    """
    if max_error is not None:
        _ = judge.abstention, checked_level(max_error)  # raises before anything is scored
    if not battles:
        return Answers(np.empty((0, 3)), np.empty(0, dtype=np.bool_), [])
    table = battles_table(battles)
    encoded = judge.encode(table)
    probs = softmax(judge.logits_of(encoded).mean(axis=1))
    if max_error is None:
        return Answers(probs, np.ones(len(battles), dtype=np.bool_), [()] * len(battles))
    return Answers(probs, judge.abstention.answered(probs, max_error), judge.unlike_training(table, encoded))


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
