"""What /metrics shows (Prometheus text format), in a registry of its own so that several servers fit in one process."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rlkd_nemo.gsrm.service.core import ScoringCore
from rlkd_nemo.types import Failure

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 120)


class Metrics:
    """Counters of one server, and the state of the core's backends read when asked."""

    def __init__(self, core: ScoringCore) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gsrm_requests", "HTTP requests by path and status", ["path", "status"], registry=self.registry
        )
        self._items = Counter("gsrm_items", "Items scored by the core", ["status", "failure"], registry=self.registry)
        self.cached = Counter("gsrm_items_cached", "Items answered from the cache", registry=self.registry)
        self.coalesced = Counter("gsrm_items_coalesced", "Items that waited for an equal one", registry=self.registry)
        self.faults = Counter("gsrm_faults", "Faults of the program", registry=self.registry)
        self.seconds = Histogram(
            "gsrm_item_seconds", "Seconds to a result, cached ones left out", buckets=_SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("gsrm_items_in_flight", "Distinct items being scored or waiting", registry=self.registry)
        self.cache_bytes = Gauge("gsrm_cache_bytes", "Size of the result cache", registry=self.registry)
        self.draining = Gauge("gsrm_draining", "1 while the server refuses new items", registry=self.registry)
        self.registry.register(_Backends(core))

    def count(self, status: str, failure: Failure | None) -> None:
        """One item has its result."""
        self._items.labels(status, failure.value if failure else "").inc()

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


class _Backends:
    """Reads the core's backends at the time of the question."""

    def __init__(self, core: ScoringCore) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        """One family a number."""
        labels = ["role", "backend"]
        is_open = GaugeMetricFamily("gsrm_backend_open", "1: its breaker is open, 0.5: half open", labels=labels)
        in_flight = GaugeMetricFamily("gsrm_backend_in_flight", "Calls in flight", labels=labels)
        counters: dict[str, CounterMetricFamily] = {}
        for state in self._core.backends():
            where = [state.role, state.name]
            is_open.add_metric(where, {"closed": 0.0, "half_open": 0.5, "open": 1.0}[state.breaker])
            in_flight.add_metric(where, state.in_flight)
            for name, value in state.counters.items():
                family = counters.setdefault(
                    name, CounterMetricFamily(f"gsrm_backend_{name}", f"{name} so far", labels=labels)
                )
                family.add_metric(where, value)
        yield is_open
        yield in_flight
        yield from counters.values()
