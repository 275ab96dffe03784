"""What `/metrics` tells Prometheus. Labels come from fixed lists: no client can add a series."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
STEP_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """The series of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("editar_requests", "Answers.", ["endpoint", "code"], registry=own)
        self._running = Gauge("editar_pictures_running", "Pictures that are edited now.", registry=own)
        self._waiting = Gauge("editar_pictures_waiting", "Pictures that wait for a place.", registry=own)
        self._rows_used = Gauge("editar_rows_used", "Rows of the KV cache in use.", registry=own)
        self._rows_limit = Gauge("editar_rows_limit", "Rows of the KV cache.", registry=own)
        self.queue_seconds = Histogram("editar_queue_seconds", "Wait for a place.", registry=own, buckets=SECONDS)
        self.first_row_seconds = Histogram(
            "editar_time_to_first_row_seconds",
            "From arrival to the first row of tokens.",
            registry=own,
            buckets=SECONDS,
        )
        self.request_seconds = Histogram(
            "editar_request_seconds", "From arrival to the answer's end.", registry=own, buckets=SECONDS
        )
        self.prefill_seconds = Histogram(
            "editar_prefill_seconds", "From a place to the first token.", registry=own, buckets=SECONDS
        )
        self._steps = Histogram("editar_step_seconds", "Decode steps.", registry=own, buckets=STEP_SECONDS)
        self._batch = Histogram("editar_batch_pictures", "Pictures that step together.", registry=own, buckets=PICTURES)
        self._drawn = Counter("editar_tokens_drawn", "Tokens that were sampled.", registry=own)
        self._known = Counter("editar_tokens_known", "Tokens that masks and earlier results gave.", registry=own)
        self.previews = Counter("editar_preview_seconds", "Time that partial pictures took.", registry=own)
        self._cancelled = Counter("editar_cancelled", "Requests that were cancelled.", ["why"], registry=own)
        self._rejected = Counter("editar_rejected", "Requests that were refused.", ["why"], registry=own)
        self._build = Info("editar_build", "Version, bundle and backend.", registry=own)

    def describe(self, version: str, bundle: str, backend: str) -> None:
        self._build.info({"version": version, "bundle": bundle, "backend": backend})

    def answered(self, endpoint: str, code: int) -> None:
        self._requests.labels(endpoint, str(code)).inc()

    def cancelled(self, why: str) -> None:
        self._cancelled.labels(why).inc()

    def rejected(self, why: str) -> None:
        self._rejected.labels(why).inc()

    def loads(self, waiting: int, running: int, rows: int, limit: int) -> None:
        self._waiting.set(waiting)
        self._running.set(running)
        self._rows_used.set(rows)
        self._rows_limit.set(limit)

    def step(self, seconds: float, pictures: int) -> None:
        self._steps.observe(seconds)
        self._batch.observe(pictures)

    def tokens(self, drawn: int, known: int) -> None:
        self._drawn.inc(drawn)
        self._known.inc(known)

    def page(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self.registry)

    def families(self) -> list[Metric]:
        """The series, to be sent to another process."""
        return list(self.registry.collect())


class Together(Collector):
    """The series of several servers, each with the label `replica`.

    Args:
        servers: their `Metrics.families` by name.
    """

    def __init__(self, servers: Mapping[str, Iterable[Metric]]) -> None:
        self._servers = servers

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for replica, families in self._servers.items():
            for family in families:
                own = found.setdefault(family.name, Metric(family.name, family.documentation, family.type, family.unit))
                own.samples += [each._replace(labels={**each.labels, "replica": replica}) for each in family.samples]
        return found.values()

    def page(self) -> bytes:
        """The text of `/metrics`."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
