"""The one promise, checked from the origin's side over all that ever arrives.

From the moment at which a confirmed receipt says that an agent is halted, until the first call that may
resume it, nothing of the agent arrives: nothing that it began to send after that moment, at all, and
after `SLACK_S` nothing that it began earlier either, such as what a frozen proxy had not yet read.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from support.numbered import Arrival

REMEMBERED_S = 120.0
"A receipt may be confirmed that long after the moment that it names."
SLACK_S = 0.5
"What the kernels had when the agent was halted is read by an origin within this."
CLOCKS_S = 0.01
"How exactly a wall clock's time can be told on the monotonic one."


@dataclass(slots=True)
class Window:
    """A time in which nothing of the agent may arrive."""

    agent: str
    kill_id: str
    mode: str
    start: float
    end: float = float("inf")


@dataclass(frozen=True, slots=True)
class Violation:
    """Something of a stopped agent that has arrived."""

    arrival: Arrival
    window: Window
    what: str

    def __str__(self) -> str:
        a, w = self.arrival, self.window
        return (
            f"{a.agent} by {a.way}, number {a.number}: {self.what}; sent {a.sent - w.start:+.3f} s and read "
            f"{a.at - w.start:+.3f} s from the halt by {w.mode} {w.kill_id} at {w.start:.3f}"
        )


@dataclass
class Checker:
    """Told of every arrival, halt and resume, in any order; says what must not have been."""

    lag: Callable[[], float] = lambda: 0.0
    "How late this program is at the moment, in seconds: what it reads may have come that much earlier."
    violations: list[Violation] = field(default_factory=list)
    windows: dict[str, list[Window]] = field(default_factory=dict)
    arrivals: int = 0
    halts: int = 0
    _recent: deque[tuple[Arrival, float]] = field(default_factory=deque)

    def arrived(self, arrival: Arrival) -> None:
        """An origin has read a mark."""
        self.arrivals += 1
        slack = SLACK_S + 2 * self.lag()
        self._recent.append((arrival, slack))
        while self._recent[0][0].at < arrival.at - REMEMBERED_S:
            self._recent.popleft()
        for window in self.windows.get(arrival.agent, ()):
            self._judge(arrival, window, slack)

    def halted(self, agents: Iterable[str], kill_id: str, mode: str, start: float) -> None:
        """A receipt has said so; one window per agent and order is kept, the first."""
        for agent in agents:
            windows = self.windows.setdefault(agent, [])
            if any(w.kill_id == kill_id for w in windows):
                continue
            window = Window(agent, kill_id, mode, start)
            windows.append(window)
            self.halts += 1
            for arrival, slack in self._recent:
                if arrival.agent == agent:
                    self._judge(arrival, window, slack)

    def resuming(self, kill_ids: Iterable[str], at: float) -> None:
        """These orders may be lifted from now on."""
        ending = set(kill_ids)
        for windows in self.windows.values():
            # What arrives is judged when it is read, so a window that is over has no more to say.
            windows[:] = [w for w in windows if w.kill_id not in ending or w.start > at]

    def _judge(self, arrival: Arrival, window: Window, slack: float) -> None:
        if arrival.sent > window.start:
            self.violations.append(Violation(arrival, window, "sent after the halt"))
        elif arrival.at > window.start + slack:
            self.violations.append(Violation(arrival, window, f"read {slack:.2f} s after the halt"))


def moment_of(said: str, known: float) -> float:
    """A receipt's `halted_at` on the monotonic clock; never later than the receipt itself was `known`."""
    wall = datetime.fromisoformat(said).timestamp()
    offset = time.monotonic() - time.time()
    return min(known, wall + offset + CLOCKS_S)


class Lag:
    """How late this program's loop is: the worst of the last two seconds."""

    TICK_S = 0.05

    def __init__(self) -> None:
        self._late: deque[float] = deque([0.0], maxlen=40)
        self._due = time.monotonic()

    def __call__(self) -> float:
        # Also what is late right now, before the next tick can say so.
        return max(*self._late, time.monotonic() - self._due, 0.0)

    async def watch(self) -> None:
        """Measure, until cancelled."""
        while True:
            self._due = time.monotonic() + self.TICK_S
            await asyncio.sleep(self.TICK_S)
            self._late.append(time.monotonic() - self._due)
