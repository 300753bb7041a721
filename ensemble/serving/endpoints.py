"""Client of endpoints that serve a student: ours, vLLM's ``/classify`` and SGLang's.

Sources: https://docs.vllm.ai, "Classification API"; https://docs.sglang.io, "Classification API".
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from ensemble.serving.batching import Sequence32
from ensemble.serving.judge import Battle
from oof.classes import CLASSES, ORDERS
from oof.common.errors import UserError
from oof.data.schemas import TEXTS

COMPARE, CLASSIFY = "/v1/compare", "/classify"
TIMEOUT = 120.0  # seconds for one answer
Floats = NDArray[np.float64]


class Endpoint:
    """One address that answers for a student.

    Args:
        url: of a server, or of its ``/v1/compare`` or ``/classify``.
        key: sent as ``Authorization: Bearer KEY``; "" = none.
        wait: seconds for a server that is still starting.
    """

    def __init__(self, url: str, key: str = "", wait: float = 0.0) -> None:
        self.base = url.rstrip("/")
        self.paths: tuple[str, ...] = ()
        for path in (COMPARE, CLASSIFY):
            if self.base.endswith(path):
                self.base, self.paths = self.base.removesuffix(path), (path,)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx2.Client(base_url=self.base, headers=headers, timeout=TIMEOUT)
        except (httpx2.InvalidURL, ValueError) as error:
            raise UserError(f"{url}: {error}; give an address such as http://localhost:8000") from error
        self._wait(wait)
        health = self._get("/health")
        self.dtype = str(health.get("dtype", ""))  # of our service; others do not tell
        self.paths = self.paths or ((COMPARE, CLASSIFY) if self.dtype else (CLASSIFY,))
        listed = self._get("/v1/models").get("data")
        self._model = {"model": listed[0]["id"]} if listed else {}

    def compare(self, battles: Sequence[Battle]) -> tuple[Floats, Floats]:
        """Return (n, 3) verdicts and (n, 2, 3) probabilities by order, in class order, of n battles.

        Raises:
            UserError: the endpoint does not answer so.
        """
        body = {"battles": [dict(zip(TEXTS, battle, strict=True)) for battle in battles]}
        answer = self._post(COMPARE, body)
        try:
            verdicts = answer["verdicts"]
            rows = np.array([[verdict[name] for name in CLASSES] for verdict in verdicts], dtype=np.float64)
            orders = [[[v["orders"][order][name] for name in CLASSES] for order in ORDERS] for v in verdicts]
            return rows.reshape(len(battles), 3), np.array(orders, dtype=np.float64).reshape(len(battles), 2, 3)
        except (KeyError, TypeError, ValueError) as error:
            raise self._unknown_form(COMPARE, error) from error

    def classify(self, sequences: Sequence[Sequence32]) -> tuple[Floats, bool]:
        """Return (n, classes) values of n sequences of token ids, and whether the form is SGLang's, of logits.

        Raises:
            UserError: the endpoint does not answer so.
        """
        ids = [sequence.tolist() for sequence in sequences]
        answer = self._post(CLASSIFY, self._model | {"input": ids}, self._model | {"input_ids": ids})
        try:
            if isinstance(answer, list):
                return np.array([row["embedding"] for row in answer], dtype=np.float64).reshape(len(ids), -1), True
            rows = sorted(answer["data"], key=lambda row: row["index"])
            return np.array([row["probs"] for row in rows], dtype=np.float64).reshape(len(ids), -1), False
        except (KeyError, TypeError, ValueError) as error:
            raise self._unknown_form(CLASSIFY, error) from error

    def _wait(self, seconds: float) -> None:
        """Wait until the server accepts connections."""
        until = time.monotonic() + seconds
        while True:
            try:
                self._client.get("/health")
                return
            except httpx2.HTTPError as error:
                if time.monotonic() >= until:
                    raise UserError(f"{self.base}: {error}; is it running? --wait 60 waits while it starts") from error
                time.sleep(0.5)

    def _get(self, path: str) -> dict[str, Any]:
        """Return a JSON object; an empty one from servers that have none there."""
        try:
            content = self._client.get(path).json()
        except (httpx2.HTTPError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _post(self, path: str, *bodies: dict[str, Any]) -> Any:
        """Return the answer to the first body that the server takes."""
        for body in bodies:
            try:
                answer = self._client.post(path, json=body)
                if answer.is_success:
                    return answer.json()
            except (httpx2.HTTPError, ValueError) as error:
                raise UserError(f"{self.base}{path}: {str(error) or type(error).__name__}") from error
        raise UserError(f"{self.base}{path}: status {answer.status_code}: {' '.join(answer.text.split())[:300]}")

    def _unknown_form(self, path: str, error: Exception) -> UserError:
        reason = f"{type(error).__name__}: {error}"[:100]
        return UserError(f"{self.base}{path}: not the answer of a judge or of vLLM's or SGLang's classifier ({reason})")
