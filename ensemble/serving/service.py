"""HTTP service of a student: verdicts on battles, vLLM's classification, health, metrics and a page to try it.

Every verdict equals that of :class:`ensemble.Judge` in the same precision: the same encoding, both orders, the same
passes through the model, shared with the requests of other clients (:mod:`ensemble.serving.batching`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from ensemble.abstention.thresholds import LEVELS
from ensemble.serving.batching import Batcher, QueueFullError, Sequence32
from ensemble.serving.docs_page import docs_headers, docs_page
from ensemble.serving.judge import Battle, Judge, read_battle
from ensemble.serving.page import page, page_headers
from ensemble.serving.request_limits import INTERNAL_ERROR, Limits, RequestError, RequestLimits, error_document
from ensemble.serving.request_models import (
    UNION_TAGS,
    BattleRequest,
    Battles,
    ClassData,
    ClassifyAnswer,
    ClassifyRequest,
    CompareAnswer,
    CompareRequest,
    HealthAnswer,
    Usage,
    VerdictAnswer,
    inputs_of,
)
from ensemble.serving.service_metrics import ServiceMetrics
from ensemble.serving.shared_encoding import SharedEncoder
from ensemble.serving.verdicts import Verdict
from oof.classes import CLASSES, ORDERS, swap_classes
from oof.common.errors import UserError
from oof.data.schemas import TEXTS
from oof.encoding.encode import Encoded
from oof.metrics import softmax
from oof.subcommand import version

SHOWN_ERRORS = 3  # of an invalid request


class Service:
    """Answers of one student to the requests of many clients.

    Args:
        judge: its model is used by the service alone.
        name: of the model, in answers.
        limits: of the requests.
    """

    def __init__(self, judge: Judge, name: str, limits: Limits) -> None:
        self.judge, self.name, self.limits = judge, name, limits
        labels: dict[int, str] = judge.model.config.id2label
        self.labels = [labels[i] for i in range(len(labels))]
        self.vocabulary = int(judge.model.config.vocab_size)
        self.max_errors = _max_errors(judge)
        self.batcher = Batcher(judge, len(ORDERS) * limits.waiting)
        self.metrics = ServiceMetrics(self.batcher)
        self.encoder = SharedEncoder(judge)

    def close(self) -> None:
        """End the threads, once they have answered what was taken."""
        self.encoder.close()
        self.batcher.close()

    async def compare(self, battles: Sequence[Battle], levels: Sequence[float | None]) -> list[VerdictAnswer]:
        """Return the verdicts on n battles.

        Args:
            battles: n battles.
            levels: n times the share of wrong verdicts to be kept, or None.

        Raises:
            QueueFullError: too many battles are waiting.
            RequestError: a level is given and the student has no thresholds.
            UserError: the model cannot score them.
        """
        asked = any(level is not None for level in levels)
        if asked:
            _check_thresholds(self.judge)
        with self.batcher.place(len(ORDERS) * len(battles)):
            read = await self.encoder.read(battles, asked)
            encoded = read.encoded
            sequences = [encoded.sequence(i, order) for i in range(len(battles)) for order in range(len(ORDERS))]
            logits = (await self.batcher.logits(sequences)).reshape(-1, len(ORDERS), len(CLASSES))
        logits[:, 1] = swap_classes(logits[:, 1])
        self.metrics.battles.inc(len(battles))
        answers = _verdicts(logits, encoded)
        if not asked:
            return answers
        return [self._decide(*of_battle) for of_battle in zip(answers, levels, read.unlike, strict=True)]

    def _decide(self, answer: VerdictAnswer, level: float | None, unlike: tuple[str, ...]) -> VerdictAnswer:
        """Return a verdict that says whether it is sure enough."""
        if level is None:
            return answer
        probs = np.array([[answer.a, answer.b, answer.tie]])
        answered = bool(self.judge.abstention.answered(probs, level)[0])
        return answer.model_copy(update={"answered": answered, "warnings": list(unlike)})

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Return the probabilities or logits of rendered prompts.

        Raises:
            QueueFullError: too many sequences are waiting.
            RequestError: an input is too long, or no sequence of this student's token ids.
            UserError: the model cannot score them.
        """
        try:
            inputs: list[Any] = [*inputs_of(request.input)]
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        with self.batcher.place(len(inputs)):
            if isinstance(inputs[0], str):
                inputs = await self.encoder.run(partial(self._tokenize, inputs, request.add_special_tokens))
            sequences = [self._checked(i, ids) for i, ids in enumerate(inputs)]
            logits = (await self.batcher.logits(sequences))[:, : len(self.labels)]
        rows = softmax(logits) if request.use_activation else logits
        data = [
            ClassData(index=i, label=self.labels[int(row.argmax())], probs=row.tolist(), num_classes=len(row))
            for i, row in enumerate(rows)
        ]
        tokens = sum(map(len, sequences))
        return ClassifyAnswer(model=self.name, data=data, usage=Usage(prompt_tokens=tokens, total_tokens=tokens))

    def health(self) -> HealthAnswer:
        """Return what is served."""
        most = self.judge.prompts.max_tokens
        return HealthAnswer(
            model=self.name,
            dtype=self.judge.precision,
            labels=self.labels,
            max_tokens=most,
            max_errors=self.max_errors,
            version=version(),
        )

    def _tokenize(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        ids: list[list[int]] = self.judge.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def _checked(self, index: int, ids: list[int]) -> Sequence32:
        """Return token ids as an array.

        Raises:
            RequestError: they are none of this student's, or too many.
        """
        most, pad = self.judge.prompts.max_tokens, self.judge.tokenizer.pad_token_id
        if not 0 < len(ids) <= most:
            raise RequestError(400, f"input {index} has {len(ids)} tokens; this student takes 1 to {most}")
        if not all(0 <= token < self.vocabulary for token in ids) or ids[-1] == pad:
            raise RequestError(
                400, f"input {index}: token ids are 0 to {self.vocabulary - 1}, and the last is not the pad token {pad}"
            )
        return np.array(ids, dtype=np.int32)


def _verdicts(logits: NDArray[np.float64], encoded: Encoded) -> list[VerdictAnswer]:
    """Return the answers for (n, 2, 3) logits in class order."""
    verdicts = []
    for row, orders, given, kept in zip(
        softmax(logits.mean(axis=1)).tolist(), softmax(logits).tolist(), encoded.n_tokens, encoded.n_kept, strict=True
    ):
        verdict = Verdict(*row)
        tokens = {name: {"given": int(n), "kept": int(k)} for name, n, k in zip(TEXTS, given, kept, strict=True)}
        by_order = {
            order: dict(zip(CLASSES, values, strict=True)) for order, values in zip(ORDERS, orders, strict=True)
        }
        verdicts.append(
            VerdictAnswer.model_validate(
                verdict.probabilities
                | {
                    "winner": verdict.winner,
                    "orders": by_order,
                    "tokens": tokens,
                    "truncated": bool((kept < given).any()),
                }
            )
        )
    return verdicts


def _max_errors(judge: Judge) -> list[float]:
    """Return the usual levels of ``max_error`` at which the student answers anything; none without thresholds."""
    try:
        thresholds = judge.abstention.thresholds
    except UserError:
        return []
    return [level for level in LEVELS if thresholds.at(level) is not None]


def _check_thresholds(judge: Judge) -> None:
    try:
        _ = judge.abstention
    except UserError as error:
        raise RequestError(400, f"max_error: {error}") from error


def _battle(index: int, request: BattleRequest) -> Battle:
    try:
        return read_battle(f"battle {index}", request.prompt, request.response_a, request.response_b)
    except UserError as error:
        raise RequestError(400, str(error)) from error


def build_app(service: Service, key: str = "") -> ASGIApp:
    """Return the ASGI application of a service.

    Args:
        service: answers the requests; closed at the end.
        key: that clients must send; "" = none.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    api = FastAPI(title="arena-distill", version=version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(api)

    @api.post("/v1/compare", summary="Compare two responses, or many pairs of them")
    async def compare(request: CompareRequest) -> VerdictAnswer | CompareAnswer:
        if isinstance(request, Battles):
            battles = [_battle(i, battle) for i, battle in enumerate(request.battles)]
            levels = [request.max_error if b.max_error is None else b.max_error for b in request.battles]
            return CompareAnswer(verdicts=await service.compare(battles, levels))
        return (await service.compare([_battle(0, request)], [request.max_error]))[0]

    @api.post("/classify", summary="Classify rendered prompts, as vLLM does")
    async def classify(request: ClassifyRequest) -> ClassifyAnswer:
        return await service.classify(request)

    @api.get("/v1/models", summary="The one model, as vLLM lists it")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": service.name, "object": "model"}]}

    @api.get("/health", summary="What is served")
    async def health() -> HealthAnswer:
        return service.health()

    @api.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @api.get("/", include_in_schema=False)
    async def start() -> Response:
        return HTMLResponse(page(), headers=page_headers())

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(api.openapi()), headers=docs_headers())

    return RequestLimits(api, service.limits, service.metrics, key)


def _add_errors(api: FastAPI) -> None:
    """Answer every expected failure with one sentence."""

    def answer(status: int, message: str) -> Response:
        headers = {"Retry-After": "1"} if status == 429 else None
        return JSONResponse(error_document(status, message), status, headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        problems = [f"{_place(problem['loc'])}: {problem['msg']}" for problem in error.errors()]
        more = f"; and {len(problems) - SHOWN_ERRORS} more" if len(problems) > SHOWN_ERRORS else ""
        return answer(400, f"{'; '.join(problems[:SHOWN_ERRORS])}{more}; /docs shows what is expected")

    @api.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return answer(error.status, error.message)

    @api.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> Response:
        return answer(429, f"the queue is full: {error}; try again in a second, or send fewer battles")

    @api.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return answer(500, INTERNAL_ERROR)  # starlette raises the error again, and RequestLimits logs it

    @api.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        hint = "; /docs lists the paths" if error.status_code in (404, 405) else ""
        return answer(error.status_code, f"{error.detail}{hint}")


def _place(location: Sequence[object]) -> str:
    """Return where in a request's body an error is: "battles.1.response_a"."""
    return ".".join(str(part) for part in location[1:] if part not in UNION_TAGS) or "body"
