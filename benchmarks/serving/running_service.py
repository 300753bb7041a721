"""Parts of the serving benchmarks: a running service, battles of mixed lengths, clients that check every answer."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
import psutil
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, LlamaConfig

from benchmarks.common import ROOT
from ensemble import Judge
from ensemble.distillation.student import write_prompts
from ensemble.serving.judge import Battle, battles_table, read_battle
from oof.classes import CLASSES, WINNER_COLUMNS
from oof.common.errors import UserError
from oof.config import Prompts
from oof.data.schemas import TEXTS
from oof.data.synth import make_battles
from oof.model.classifier import load_tokenizer

LENGTHS = (1, 1, 1, 2, 4, 8)  # times the length of an arena's responses; the longest are cut
TOLERANCE = 1e-4  # of a probability; float32 differs by the batch
TOKENIZER = ROOT / "configs" / "bases" / "tiny-llama"


@contextmanager
def student_of(folder: str | None, width: int, layers: int) -> Iterator[Path]:
    """Yield the folder of a student: the one given, or a Llama of random weights.

    The time of an answer does not depend on the values of the weights.
    """
    if folder:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = load_tokenizer(str(TOKENIZER))
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=width // 64, num_key_value_heads=width // 64, num_labels=len(CLASSES),
            id2label=dict(enumerate(WINNER_COLUMNS)), pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        AutoModelForSequenceClassification.from_config(config).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_prompts(Path(temporary), Prompts(max_tokens=512))
        yield Path(temporary)


def mixed_battles(n: int, seed: int) -> list[Battle]:
    """Return n battles of the synthetic arena with responses of very different lengths."""
    prompts, a, b, _ = make_battles(n, seed)
    rng = np.random.default_rng(seed)
    battles = []
    for i, sides in enumerate(zip(prompts, a, b, strict=True)):
        turns = [list(side.turns) for side in sides]
        for side in turns[1:]:
            side[0] = " ".join([side[0] or ""] * int(rng.choice(LENGTHS)))
        battles.append(read_battle(f"battle {i}", *turns))
    return [(a, b, c) for a, b, c in battles_table(battles).iter_rows()]  # cleaned: JSON holds no lone surrogates


def offline(judge: Judge, battles: list[Battle]) -> NDArray[np.float64]:
    """Return the (n, 3) probabilities of the judge in Python."""
    return judge.compare_many(*(list(column) for column in zip(*battles, strict=True)))


@dataclass
class Service:
    """A running service."""

    url: str
    process: psutil.Process
    peak_mb: float = 0.0

    def watch(self) -> float:
        """Note and return the resident memory in MB."""
        resident = self.process.memory_info().rss / 1e6
        self.peak_mb = max(self.peak_mb, resident)
        return resident


@contextmanager
def running(student: Path) -> Iterator[Service]:
    """Serve a student in a process of its own; it must end in order."""
    command = [sys.executable, "-m", "ensemble.command", "serve", str(student), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UserError("the service did not start; its message is above")
        yield Service(line.split()[1], psutil.Process(process.pid))
        process.send_signal(signal.SIGTERM)
        if process.wait(120) != 75:
            raise UserError(f"the service ended with status {process.returncode}")


@dataclass
class Answers:
    """Answers that well-behaved clients got."""

    seconds: list[float] = field(default_factory=list)  # of each right answer
    wrong: int = 0  # other numbers than offline
    failed: int = 0  # no answer, or another status than 200
    in_window: int = 0  # right answers that came within the seconds of the measurement
    largest: float = 0.0  # difference of a probability

    def add(self, other: Answers) -> None:
        """Count the answers of other clients, too."""
        self.seconds += other.seconds
        self.wrong += other.wrong
        self.failed += other.failed
        self.in_window += other.in_window
        self.largest = max(self.largest, other.largest)

    def percentile(self, p: float) -> float:
        """Return a percentile of the time until an answer, in milliseconds."""
        return 1000 * float(np.percentile(self.seconds, p)) if self.seconds else float("nan")


async def ask_for(
    service: Service,
    battles: list[Battle],
    expected: NDArray[np.float64],
    clients: int,
    seconds: float,
    warm_up: float = 0.0,
) -> Answers:
    """Let ``clients`` clients send one battle after another, and check each answer.

    After ``warm_up`` seconds the window of ``seconds`` begins, in which answers count for the rate: the clients keep
    the service busy before it begins, and what they wait for at its end is answered, but does not count.
    """
    answers, begin = Answers(), time.monotonic() + warm_up
    until = begin + seconds
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=service.url, timeout=120, limits=limits) as http:

        async def client(number: int) -> None:
            rng = np.random.default_rng(number)
            while time.monotonic() < until:
                right = await _ask(http, answers, battles, expected, int(rng.integers(len(battles))))
                answers.in_window += right and begin <= time.monotonic() < until

        async def memory() -> None:
            while time.monotonic() < until:
                service.watch()
                await asyncio.sleep(0.2)

        await asyncio.gather(memory(), *(client(i) for i in range(clients)))
    return answers


async def _ask(
    http: httpx2.AsyncClient, answers: Answers, battles: list[Battle], expected: NDArray[np.float64], i: int
) -> bool:
    """Send a battle and note its answer; return whether it is right."""
    begun = time.perf_counter()
    try:
        answer = await http.post("/v1/compare", json=dict(zip(TEXTS, battles[i], strict=True)))
        answer.raise_for_status()
    except httpx2.HTTPError:
        answers.failed += 1
        return False
    verdict = answer.json()
    difference = float(np.abs(np.array([verdict[name] for name in CLASSES]) - expected[i]).max())
    answers.largest = max(answers.largest, difference)
    if difference > TOLERANCE:
        answers.wrong += 1
        return False
    answers.seconds.append(time.perf_counter() - begun)
    return True
