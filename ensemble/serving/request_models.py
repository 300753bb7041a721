"""Requests and answers of the service, as pydantic models: the OpenAPI page describes them.

``/v1/compare`` takes battles and gives the numbers of :class:`ensemble.Judge`. ``/classify`` has the form of vLLM's
endpoint of that name: prompts that are rendered already, or their token ids, in one order.

Source: https://docs.vllm.ai, "Classification API"; vllm/entrypoints/pooling/classify/protocol.py.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

MESSAGE = {
    "type": "object",
    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
    "required": ["role", "content"],
}
# The judge reads texts itself, as in Python: it cleans them, and its errors say what to do.
Text = Annotated[
    object,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "description": "one text for each turn"},
                {"type": "array", "items": MESSAGE, "description": "chat messages"},
            ]
        }
    ),
]
MOST_BATTLES = 256  # of one request; more are many requests, which share the batches
MOST_INPUTS = 2 * MOST_BATTLES  # of /classify: both orders


class Options(BaseModel):
    """What a request may ask for beside its battles."""

    model_config = ConfigDict(extra="forbid")

    max_error: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of wrong verdicts among the answered ones; less sure verdicts have answered = false",
    )


class BattleRequest(Options):
    """One battle."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"prompt": "How do I boil an egg?", "response_a": "Seven minutes.", "response_b": "No idea."}
        }
    )

    prompt: Text = Field(None, description="The prompt; left out where both responses are whole chats")
    response_a: Text = Field(description="Response A")
    response_b: Text = Field(description="Response B")


class Battles(Options):
    """Many battles; max_error here is for those that have none of their own."""

    battles: list[BattleRequest] = Field(min_length=1, max_length=MOST_BATTLES, fail_fast=True)


def _one_or_many(body: object) -> str:
    return "many" if isinstance(body, dict) and "battles" in body else "one"


UNION_TAGS = ("one", "many")
CompareRequest = Annotated[
    Annotated[BattleRequest, Tag("one")] | Annotated[Battles, Tag("many")], Discriminator(_one_or_many)
]


class Probabilities(BaseModel):
    """Probabilities that A wins, that B wins, and of a tie."""

    a: float
    b: float
    tie: float


class TokenCount(BaseModel):
    """Tokens of a text as given, and those that the model read."""

    given: int
    kept: int


class TokenCounts(BaseModel):
    """Tokens of the three texts of a battle, over all turns."""

    prompt: TokenCount
    response_a: TokenCount
    response_b: TokenCount


class OrderProbabilities(BaseModel):
    """Probabilities by the order in which the model read the responses; their mean in log space is the verdict."""

    ab: Probabilities
    ba: Probabilities


class VerdictAnswer(Probabilities):
    """The verdict on one battle."""

    winner: Literal["a", "b", "tie"]
    orders: OrderProbabilities
    tokens: TokenCounts
    truncated: bool = Field(description="Whether a text was cut to the student's length")
    answered: bool = Field(True, description="False where max_error was asked for and the verdict is not sure enough")
    warnings: list[str] = Field([], description="With max_error: how the battle is unlike the training battles")


class CompareAnswer(BaseModel):
    """Verdicts on many battles, in their order."""

    verdicts: list[VerdictAnswer]


TOKEN_IDS = {"type": "array", "items": {"type": "integer"}}
Inputs = Annotated[
    object,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "description": "a rendered prompt"},
                {"type": "array", "items": {"type": "string"}},
                TOKEN_IDS,
                {"type": "array", "items": TOKEN_IDS},
            ]
        }
    ),
]


class ClassifyRequest(BaseModel):
    """Rendered prompts or token ids, as vLLM takes them; fields of vLLM that change no number are ignored."""

    model: str | None = None
    input: Inputs
    add_special_tokens: bool = Field(
        False,
        description="Add BOS before each text. Unlike vLLM's, the default is false: a rendered prompt begins with it",
    )
    use_activation: bool = Field(True, description="Probabilities; false = logits")
    truncate_prompt_tokens: None = Field(None, description="Not supported: it would change the numbers")


def inputs_of(value: object) -> list[str] | list[list[int]]:
    """Return the inputs of a request as texts, or as lists of token ids.

    Raises:
        ValueError: they are neither, or too many.
    """
    inputs: Any = [value] if isinstance(value, str) or (isinstance(value, list) and _all(value, int)) else value
    listed = isinstance(inputs, list) and 0 < len(inputs) <= MOST_INPUTS
    if not listed or not (_all(inputs, str) or all(isinstance(ids, list) and _all(ids, int) for ids in inputs)):
        raise ValueError(
            f"input: give a rendered prompt or its token ids, or a list of at most {MOST_INPUTS}; none is empty"
        )
    texts_or_ids: list[str] | list[list[int]] = inputs
    return texts_or_ids


def _all(values: list[object], kind: type) -> bool:
    return bool(values) and all(type(value) is kind and value != "" for value in values)


class ClassData(BaseModel):
    """Probabilities, or logits, of one input, in the order of the student's labels."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class ClassifyAnswer(BaseModel):
    """Answer of ``/classify``, as vLLM gives it."""

    id: str = Field(default_factory=lambda: f"classify-{uuid.uuid4().hex}")
    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    data: list[ClassData]
    usage: Usage


class HealthAnswer(BaseModel):
    """State of the service."""

    status: Literal["ok"] = "ok"
    model: str
    dtype: str = Field(description="Floating-point type of the weights, or int8")
    labels: list[str]
    max_tokens: int
    max_errors: list[float] = Field(description="Usual levels of max_error at which the student answers anything")
    version: str
