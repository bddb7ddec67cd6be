"""Shares the event loop between the connections that are read inside, so that orders are heard in between.

A turn of the loop runs whatever is ready. A hundred busy connections under mitmproxy are a tenth of
a second, and 64 KB of one-byte chunks half a second, in which no kill arrives and no lease is renewed.
Here each turn of the loop has a budget; what is over it waits, in the order of its coming and with the
agents taking turns. Orders never wait here: they are applied as soon as they are read.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

BUDGET_S = 0.005
"""Per turn of the loop. A kill takes two turns, to be read and to be acknowledged; less would add
nothing as long as a single TLS handshake takes 3 ms."""


class Turnstile:
    """One per event loop."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lines: dict[Hashable, deque[Callable[[], None]]] = {}
        "What waits, by who waits; whose turn is next stands first."
        self._ends_at = 0.0
        self._serving = False

    def is_free(self) -> bool:
        """Whether who comes now may begin at once, until `is_over`."""
        if not self._serving:
            self._begin_turn()
            return True
        return not self._lines and not self.is_over()

    def is_over(self) -> bool:
        """Whether the budget of this turn of the loop is used up."""
        return self._clock() >= self._ends_at

    def wait(self, line: Hashable, step: Callable[[], None]) -> None:
        """Have `step` called in a later turn of the loop; those of one line stay in order."""
        self._lines.setdefault(line, deque()).append(step)
        if not self._serving:
            self._begin_turn()

    def _begin_turn(self) -> None:
        # First of all, so that the next turn comes whatever happens in this one.
        asyncio.get_running_loop().call_soon(self._serve)
        self._serving = True
        self._ends_at = self._clock() + BUDGET_S

    def _serve(self) -> None:
        self._serving = False
        if not self._lines:
            return
        self._begin_turn()
        while self._lines and not self.is_over():
            line = next(iter(self._lines))
            steps = self._lines.pop(line)
            step = steps.popleft()
            if steps:
                self._lines[line] = steps  # behind the others
            step()


@dataclass(slots=True, eq=False)
class _Entry:
    handling: Iterator[None]
    "What is still to be done for an event."
    waiter: asyncio.Future[None] | None = None
    is_handled: bool = False

    def handled(self) -> None:
        """Tell who waits for it."""
        self.is_handled = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Course[E]:
    """The events of one connection, handled one after the other, as the turnstile lets them."""

    def __init__(
        self, turnstile: Turnstile, line: Hashable, handle: Callable[[E], Iterator[None]]
    ) -> None:
        """`handle` raises nothing; it yields where it may be left standing, when the turn is over."""
        self._turnstile = turnstile
        self._line = line
        self._handle = handle
        self._entries: deque[_Entry] = deque()
        self._has_ended = False

    async def take(self, event: E) -> None:
        """Return when the event and all before it are handled.

        A caller that is cancelled meanwhile hears of it then: half an event is no state to leave a
        protocol in, and some layer may wait for this one.
        """
        if self._has_ended:
            return
        handling = self._handle(event)
        if not self._entries and self._turnstile.is_free() and not _rests(handling):
            return
        entry = _Entry(handling)
        self._entries.append(entry)
        if len(self._entries) == 1:
            self._turnstile.wait(self._line, self._go_on)
        cancelled = False
        while not entry.is_handled:
            entry.waiter = asyncio.get_running_loop().create_future()
            try:
                await entry.waiter
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    def end(self, last: Callable[[], None]) -> None:
        """Handle no event from here on; `last` is done in a turn of its own."""
        self._has_ended = True
        for entry in self._entries:
            entry.handled()
        self._entries.clear()
        self._turnstile.wait(self._line, last)

    def _go_on(self) -> None:
        while self._entries:
            if _rests(self._entries[0].handling):
                return self._turnstile.wait(self._line, self._go_on)
            self._entries.popleft().handled()
            if self._entries and self._turnstile.is_over():
                return self._turnstile.wait(self._line, self._go_on)
        return None


def _rests(handling: Iterator[None]) -> bool:
    """Go on with it; whether it rests, rather than being done."""
    return next(handling, True) is None
