"""What Prometheus is told. Numbers only: no agent, instance, key, host or reason is ever a label, so anybody may ask."""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Iterable, Iterator
from typing import Protocol

from haltwire import __version__
from haltwire.wire.orders import MODES
from haltwire.wire.refusals import CODES
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from haltwire_control.hub import Peer
from haltwire_control.state import NewEvent, State
from haltwire_control.totals import Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HALTED_WITHIN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"A kill takes 5 to 50 ms; one that waits for a silent proxy, a lease; a drain, its grace of 30 s."


class Facts(Protocol):
    """What is asked at each scrape (see service.Service)."""

    state: State

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The proxies that have not been seen to end."""

    @property
    def store_failures(self) -> int:
        """Changes that the store did not take."""


class Metrics:
    """Everything that is counted here, and what is looked up when somebody asks."""

    def __init__(self, facts: Facts) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each of ours, which says when we began
        self.totals = Totals()
        self._registry = CollectorRegistry()
        self._events = {
            "kill.issued": self._counter("kills_issued", "Kills issued or strengthened."),
            "kill.confirmed": self._counter(
                "kills_confirmed", "Kills proven to be enforced by every proxy."
            ),
            "resume.issued": self._counter("resumes_issued", "Resumes."),
            "proxy.lost": self._counter("proxies_lost", "Links to proxies that ended."),
        }
        self._halted = Histogram(
            "haltwire_kill_halted_seconds",
            "From a kill's arrival until nothing of what it matches could move.",
            buckets=HALTED_WITHIN_S,
            registry=self._registry,
        )
        self.heartbeats = self._counter("heartbeats", "Heartbeats taken.")
        self._registry.register(_Now(facts, self.totals))

    def note(self, events: Iterable[NewEvent]) -> None:
        """Count what has been committed."""
        for event in events:
            counter = self._events.get(event.event_type)
            if counter is not None:
                counter.inc()
            took_ms = event.details.get("halted_in_ms") if event.details else None
            if event.event_type == "kill.confirmed" and isinstance(took_ms, (int, float)):
                self._halted.observe(took_ms / 1000)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)

    def _counter(self, name: str, says: str) -> Counter:
        return Counter(f"haltwire_{name}", says, registry=self._registry)


class _Now(Collector):
    """What is true at the moment of a scrape."""

    def __init__(self, facts: Facts, totals: Totals) -> None:
        self._facts = facts
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """All families."""
        state, peers = self._facts.state, self._facts.peers
        yield InfoMetricFamily("haltwire_build", "This program.", value={"version": __version__})
        yield _gauge("revision", "Changes of orders, tokens and keys so far.", state.revision)
        modes = Counted(order.kill.mode for order in state.orders)
        yield _labelled(
            GaugeMetricFamily(
                "haltwire_orders_in_force", "Orders that are in force.", labels=["mode"]
            ),
            [(mode, modes[mode]) for mode in MODES],
        )
        yield _gauge(
            "orders_volatile",
            "Orders in force that are not stored, and end with this process.",
            len(state.volatile),
        )
        yield CounterMetricFamily(
            "haltwire_store_errors",
            "Changes that the store did not take.",
            value=self._facts.store_failures,
        )
        linked = [peer for peer in peers if peer.outlet is not None]
        states = Counted(
            "fenced" if peer.lapsed else "connected" if peer.outlet else "disconnected"
            for peer in peers
        )
        yield _labelled(
            GaugeMetricFamily(
                "haltwire_proxies",
                "Proxies that have not ended; a fenced one has no lease, linked or not.",
                labels=["state"],
            ),
            [(state, states[state]) for state in ("connected", "disconnected", "fenced")],
        )
        yield _gauge(
            "connections",
            "Live connections of agents at connected proxies.",
            sum(peer.connections for peer in linked),
        )
        yield from self._of_proxies()

    def _of_proxies(self) -> Iterator[Metric]:
        sums = self._totals.sums()
        for name, says in (
            ("requests", "Requests let through; a tunnel counts as one."),
            (
                "leases_lost",
                "Leases that ran out at a proxy: what lived there stood still, or was cut.",
            ),
            (
                "leases_overrun",
                "Those of them beyond which a proxy passed traffic, as on_stale = keep wants it.",
            ),
        ):
            yield CounterMetricFamily(f"haltwire_{name}", says, value=sums.get(name, 0))
        yield CounterMetricFamily(
            "haltwire_stale_seconds",
            "Time that proxies were without a lease that they had had.",
            value=sums.get("stale_ms", 0) / 1000,
        )
        for family, label, kind, says in (
            ("refusals", "code", "refused.", "Refusals by code."),
            ("limits_hit", "limit", "limit.", "Times that a limit was come up against."),
        ):
            found = {
                name.removeprefix(kind): n for name, n in sums.items() if name.startswith(kind)
            }
            if label == "code":
                found = {code: n for code, n in found.items() if code in CODES}
            yield _labelled(
                CounterMetricFamily(f"haltwire_{family}", says, labels=[label]),
                sorted(found.items()),
            )


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"haltwire_{name}", says, value=value)


def _labelled[F: (GaugeMetricFamily, CounterMetricFamily)](
    family: F, values: Iterable[tuple[str, int]]
) -> F:
    for label, value in values:
        family.add_metric([label], value)
    return family
