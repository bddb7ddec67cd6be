"""How long a source of failing credentials waits for its answer.

Nobody guesses 32 random bytes: this keeps a client that fails for ever from being a load. Only failing
answers wait, so a valid secret passes at once, also from behind an address that others fail from.
"""

from __future__ import annotations

from dataclasses import dataclass

from haltwire.wire.names import source_of

FREE = 5
"Failures within a window that are answered at once: a typing error is not a guess."
WINDOW_S = 60.0
FIRST_S, LONGEST_S = 0.05, 1.0
"The first delay, doubled by each further failure up to the longest."
SOURCES = 1000
"Remembered at once; beyond them, who failed longest ago is forgotten."
WAITING, WAITING_PER_SOURCE = 256, 16
"Answers that wait at once, in all and for one source; who comes on top is closed without one."


@dataclass(slots=True)
class _Source:
    since: float
    failures: int = 0
    waiting: int = 0


class Guesses:
    """The failures of each source, within one worker."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        "In the order of their latest failure."
        self._waiting = 0

    def failed(self, address: str, now: float) -> float | None:
        """Count a failure: the seconds its answer waits, 0.0 for none; None when there is to be no answer.

        Whoever gets more than 0.0 calls `answered` afterwards, whatever has come of it.
        """
        name = source_of(address)
        source = self._sources.pop(name, None)
        if source is None or (now - source.since >= WINDOW_S and not source.waiting):
            source = _Source(now)
        self._sources[name] = source
        if len(self._sources) > SOURCES:
            self._forget_one()
        source.failures += 1
        over = source.failures - FREE
        if over <= 0:
            return 0.0
        if source.waiting >= WAITING_PER_SOURCE or self._waiting >= WAITING:
            return None
        source.waiting += 1
        self._waiting += 1
        return min(LONGEST_S, FIRST_S * 2.0 ** min(over - 1, 10))

    def answered(self, address: str) -> None:
        """An answer waits no longer."""
        self._waiting -= 1
        source = self._sources.get(source_of(address))
        if source is not None and source.waiting:
            source.waiting -= 1

    def _forget_one(self) -> None:
        # At most WAITING of them wait, so one that does not is found soon.
        oldest = next((name for name, one in self._sources.items() if not one.waiting), None)
        if oldest is not None:
            del self._sources[oldest]
