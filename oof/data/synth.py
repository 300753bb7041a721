"""Synthetic arena: battles in the competition's schema whose true class probabilities are known.

Planted causes, so that each stage has something real to find:

* **quality** – the share of a response's sentences that are on the topic of the *prompt* (a refusal counts
  as off topic, an empty response as worse than that), averaged over turns: readable only from both texts;
* **verbosity** – the log ratio of the responses' word counts moves the verdict towards the longer one;
* **position bias** – the response shown first has a small advantage;
* **tie band** – an ordered logit with thresholds at +-``TIE``: P(a) = s(d - TIE), P(b) = s(-d - TIE);
* **models** of different strength and verbosity; multi-turn rows; near-duplicate prompts; unicode,
  ``null`` turns, lone surrogates and empty responses at the rates below.

The verdict is drawn from these probabilities, which go to ``truth.csv``. No training code reads that file, only the
table's row of the best possible loss. The advantage depends on the text alone, so truth.csv is P(verdict | text).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from oof.classes import WINNER_COLUMNS
from oof.common.errors import UserError

QUALITY, VERBOSITY, POSITION, TIE = 4.0, 1.4, 0.2, 1.1
EMPTY_QUALITY = -0.4
MULTI_TURN, NEAR_DUPLICATE, REFUSED, UNICODE, NULL, EMPTY, SURROGATE = 0.15, 0.25, 0.03, 0.04, 0.01, 0.01, 0.003
MAX_SENTENCES = 4
N_MODELS = 12
VERSION = 2  # increase it when the same seed would give other battles

# A topic is a set of words that belong together; no word occurs in two topics.
TOPICS: dict[str, tuple[str, ...]] = {
    "baking": ("oven", "flour", "dough", "yeast", "butter", "crust", "pastry", "sugar", "whisk", "cake"),
    "sailing": ("mast", "anchor", "rudder", "harbor", "deck", "keel", "tide", "rope", "buoy", "crew"),
    "garden": ("soil", "seed", "compost", "shovel", "weed", "tomato", "root", "hedge", "mulch", "blossom"),
    "music": ("guitar", "melody", "drum", "chord", "violin", "rhythm", "piano", "tempo", "choir", "song"),
    "coding": ("compiler", "loop", "function", "bug", "array", "pointer", "server", "script", "parser", "thread"),
    "space": ("orbit", "rocket", "planet", "comet", "galaxy", "telescope", "moon", "crater", "asteroid", "star"),
    "money": ("bank", "loan", "interest", "budget", "invoice", "tax", "salary", "bond", "credit", "pension"),
    "health": ("doctor", "fever", "vaccine", "nurse", "clinic", "pulse", "surgery", "allergy", "bandage", "virus"),
}

QUESTIONS = (
    "How do I choose a {} and a {}?",
    "Tell me about the {} and the {}.",
    "Why does a {} need a {}?",
    "What is the link between {} and {}?",
    "Explain {} with an example of {}.",
    "Is a {} worth more than a {}?",
)
FOLLOW_UPS = ("And what about the {}?", "Now compare it with a {}.", "Can you add the {}?")
SENTENCES = (
    "The {} goes with the {}.",
    "A good {} helps every {}.",
    "First check the {} and the {}.",
    "You need a {} for the {}.",
    "Most people forget the {} or the {}.",
    "Keep the {} close to a {}.",
)
REFUSAL_TEXT = "I am sorry, but I cannot help with that."
# Parts of real texts that do not matter for the verdict.
UNICODE_TEXTS = ("naïve café", "数据", "🙂", "Привет", "½ “quoted”", "e\u0301t\u00e9")
POLITE = ("Please, {}", "{} Thanks!", "  {}", "{} please", "hello, {}")
NAMES = list(TOPICS)


@dataclass(frozen=True)
class Response:
    """One response: its turns (None = a null turn), its mean quality, and which sentences are on topic."""

    turns: list[str | None]
    quality: float
    on_topic: list[bool]

    @property
    def n_words(self) -> int:
        return sum(len((turn or "").split()) for turn in self.turns)


@dataclass(frozen=True)
class Prompt:
    turns: list[str]
    topic: str


def class_probabilities(advantage: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (n, 3) probabilities of (a, b, tie) from the (n,) latent advantage of A."""
    a, b = expit(advantage - TIE), expit(-advantage - TIE)
    return np.stack([a, b, 1.0 - a - b], axis=1)


def _pick(rng: np.random.Generator, items: tuple[str, ...] | list[str]) -> str:
    return items[rng.integers(len(items))]


def _fill(rng: np.random.Generator, frame: str, topic: str) -> str:
    words = rng.choice(len(TOPICS[topic]), size=frame.count("{}"), replace=False)
    return frame.format(*(TOPICS[topic][w] for w in words))


def make_prompt(rng: np.random.Generator) -> Prompt:
    """Draw a prompt of one topic; some have a second turn on the same topic."""
    topic = _pick(rng, NAMES)
    turns = [_fill(rng, _pick(rng, QUESTIONS), topic)]
    if rng.random() < MULTI_TURN:
        turns.append(_fill(rng, _pick(rng, FOLLOW_UPS), topic))
    return Prompt(turns, topic)


def _near_duplicate(rng: np.random.Generator, prompt: Prompt) -> Prompt:
    """Return the same request in other words of politeness, or in another case, spacing or punctuation."""
    first = prompt.turns[0]
    edit = rng.integers(3)
    if edit == 0:
        first = _pick(rng, POLITE).format(first)
    elif edit == 1:
        first = first.lower().rstrip("?.")
    return Prompt([first, *prompt.turns[1:]], prompt.topic)


def _turn(rng: np.random.Generator, topic: str, skill: float, verbosity: float) -> tuple[str | None, float, list[bool]]:
    """Draw one turn: its text, its quality and, sentence by sentence, whether it is on topic."""
    chance = rng.random()
    if chance < NULL:
        return None, EMPTY_QUALITY, []
    if chance < NULL + EMPTY:
        return "", EMPTY_QUALITY, []
    if chance < NULL + EMPTY + REFUSED:
        return REFUSAL_TEXT, 0.0, [False]
    n = 1 + rng.binomial(MAX_SENTENCES - 1, verbosity)
    on_topic = rng.random(n) < rng.beta(4 * skill, 4 * (1 - skill))  # responses of one model differ, too
    other = _pick(rng, [name for name in NAMES if name != topic])  # off topic means: on this one other topic
    sentences = [_fill(rng, _pick(rng, SENTENCES), topic if on else other) for on in on_topic]
    if rng.random() < UNICODE:
        sentences.append(_pick(rng, UNICODE_TEXTS))
    if rng.random() < SURROGATE:
        sentences.append("\ud83d")
    return " ".join(sentences), float(on_topic.mean()), on_topic.tolist()


def make_response(rng: np.random.Generator, prompt: Prompt, skill: float, verbosity: float) -> Response:
    """Draw a response: one turn for each turn of the prompt."""
    drawn = [_turn(rng, prompt.topic, skill, verbosity) for _ in prompt.turns]
    quality = float(np.mean([quality for _, quality, _ in drawn]))
    return Response([text for text, _, _ in drawn], quality, [on for _, _, flags in drawn for on in flags])


def advantage(a: Response, b: Response) -> float:
    """Return the latent advantage of A, shown first, over B."""
    length = np.log((1 + a.n_words) / (1 + b.n_words))
    return float(QUALITY * (a.quality - b.quality) + VERBOSITY * length + POSITION)


def make_battles(n: int, seed: int) -> tuple[list[Prompt], list[Response], list[Response], NDArray[np.int64]]:
    """Draw ``n`` battles; return prompts, responses A, responses B and (n, 2) model numbers."""
    rng = np.random.default_rng(seed)
    skill, verbosity = np.linspace(0.35, 0.85, N_MODELS), rng.uniform(0.25, 0.65, N_MODELS)
    prompts: list[Prompt] = []
    models = np.stack([rng.choice(N_MODELS, size=2, replace=False) for _ in range(n)]) if n else np.zeros((0, 2), int)
    sides: tuple[list[Response], list[Response]] = ([], [])
    for pair in models:
        repeat = prompts and rng.random() < NEAR_DUPLICATE
        prompt = _near_duplicate(rng, prompts[rng.integers(len(prompts))]) if repeat else make_prompt(rng)
        prompts.append(prompt)
        for side, model in zip(sides, pair, strict=True):
            side.append(make_response(rng, prompt, skill[model], verbosity[model]))
    return prompts, sides[0], sides[1], models


def _frame(first_id: int, n: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    prompts, a, b, models = make_battles(n, seed)
    truth = class_probabilities(np.array([advantage(x, y) for x, y in zip(a, b, strict=True)]))
    draw = np.random.default_rng([seed, 1]).random(n)
    label = (draw[:, None] > np.cumsum(truth, axis=1)[:, :2]).sum(axis=1)
    ids = np.arange(first_id, first_id + n)
    battles = pl.DataFrame(
        {"id": ids}
        | {f"model_{side}": [f"model-{m:02d}" for m in models[:, i]] for i, side in enumerate("ab")}
        | {"prompt": [json.dumps(p.turns) for p in prompts]}
        | {"response_a": [json.dumps(r.turns) for r in a], "response_b": [json.dumps(r.turns) for r in b]}
        | {name: (label == i).astype(np.int8) for i, name in enumerate(WINNER_COLUMNS)}
    )
    return battles, pl.DataFrame({"id": ids} | {name: truth[:, i] for i, name in enumerate(WINNER_COLUMNS)})


def write_arena(out: Path, battles: int, seed: int, test_battles: int = 300) -> dict[str, Path]:
    """Write ``train.csv``, ``test.csv`` (no models, no winners) and ``truth.csv`` under ``out``.

    Prompts of the two files are drawn independently, and ids do not overlap. Returns the paths by name.

    Raises:
        UserError: a count is not positive, or ``out`` cannot be written.
    """
    if battles < 1 or test_battles < 1 or seed < 0:
        raise UserError(
            f"synth needs --battles and --test-battles of at least 1 and --seed of at least 0, "
            f"not {battles}, {test_battles} and {seed}"
        )
    paths = {name: out / f"{name}.csv" for name in ("train", "test", "truth")}
    train, truth = _frame(0, battles, 2 * seed)
    test, test_truth = _frame(battles, test_battles, 2 * seed + 1)
    try:
        out.mkdir(parents=True, exist_ok=True)
        train.write_csv(paths["train"])
        test.select("id", "prompt", "response_a", "response_b").write_csv(paths["test"])
        pl.concat([truth, test_truth]).write_csv(paths["truth"])
    except OSError as error:
        raise UserError(
            f"{out}: cannot write the synthetic arena ({error.strerror or error}); choose another folder"
        ) from error
    return paths
