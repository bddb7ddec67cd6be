"""Credentials that did not fit, as audit events: the first of a kind at once, then their count once a minute.

Whoever can connect makes these rows, so their number is bounded: a minute adds at most
`4 * KINDS_KEPT + 4` of them, whatever comes from wherever, and what is not told apart is counted together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from haltwire.wire.names import AgentRef, source_of
from haltwire.wire.selectors import Selector

from haltwire_control.state import SYSTEM, NewEvent

WINDOW = timedelta(minutes=1)
KINDS_KEPT = 32
"""Told apart at once, of those with a valid secret and again of those without one: 20 MB of audit log a
day under an attack that never ends. So outsiders crowd out no insider who forges a name."""
OTHERS = "others"

Key = tuple[str, str, str | None]


@dataclass(frozen=True, slots=True)
class _Count:
    since: datetime
    count: int


class Mismatches:
    """Counts per source, kind and agent claimed."""

    def __init__(self) -> None:
        self._counts: dict[Key, _Count] = {}

    def add(
        self, source: str, kind: str, agent: str | None, count: int, now: datetime
    ) -> NewEvent | None:
        """Count; the event to write at once, for the first within a window."""
        key: Key = (source_of(source), kind, agent)
        if key not in self._counts and self._is_full(insider=agent is not None):
            key = (OTHERS, "several", "several" if agent is not None else None)
        known = self._counts.get(key)
        if known is None:
            self._counts[key] = _Count(now, 0)
            return _event(key, count, now)
        self._counts[key] = replace(known, count=known.count + count)
        return None

    def _is_full(self, *, insider: bool) -> bool:
        return sum((agent is not None) is insider for _, _, agent in self._counts) >= KINDS_KEPT

    def due(self, now: datetime) -> list[NewEvent]:
        """The events of windows that are over."""
        events = []
        for key, known in list(self._counts.items()):
            if now - known.since >= WINDOW:
                if known.count:
                    events.append(_event(key, known.count, now))
                    self._counts[key] = _Count(now, 0)
                else:
                    del self._counts[key]
        return events


def _event(key: Key, count: int, now: datetime) -> NewEvent:
    source, kind, agent = key
    details = {"source": source, "kind": kind, "claimed": agent, "count": count}
    selector = None
    if agent is not None:
        try:
            selector = Selector.of(AgentRef.parse(agent))
        except ValueError:
            selector = None  # what it claimed to be is no agent's name
    return NewEvent("identity.mismatch", now, SYSTEM, selector, details=details)
