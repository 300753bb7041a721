"""Metrics of the service, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ensemble.serving.batching import Batcher

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PATHS = frozenset({"/", "/v1/compare", "/classify", "/v1/models", "/health", "/metrics", "/docs", "/openapi.json"})


def path_label(path: str) -> str:
    """Return a path of the service as it is, and any other, which a client may have made up, as "other"."""
    return path if path in PATHS else "other"


class ServiceMetrics:
    """Counters of one service."""

    def __init__(self, batcher: Batcher) -> None:
        self.registry = CollectorRegistry()
        labels = ["path", "status"]
        self._requests = Counter(
            "arena_distill_requests", "Answers, by path and status; 0 = gone before", labels, registry=self.registry
        )
        self._seconds = Histogram(
            "arena_distill_request_seconds", "Time until the answer", ["path"], registry=self.registry, buckets=SECONDS
        )
        self.battles = Counter("arena_distill_battles", "Battles compared", registry=self.registry)
        for name, text, value in (
            ("sequences_in_work", "Sequences that wait or are being scored", lambda: batcher.taken),
            ("scored_tokens", "Tokens scored since the start, without padding", lambda: batcher.scored_tokens),
            ("passes", "Forward passes since the start", lambda: batcher.passes),
        ):
            Gauge(f"arena_distill_{name}", text, registry=self.registry).set_function(value)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(path_label(path), status).inc()
        self._seconds.labels(path_label(path)).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self.registry)
