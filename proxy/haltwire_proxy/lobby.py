"""Who has connected and is nobody yet, or has been refused: bounded, and the longest there makes way first.

Whoever means it sends his head in the moment in which he connects, so the oldest are the ones to close:
a crowd of slow strangers can neither keep an agent out nor take a descriptor that it needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Protocol

from haltwire_proxy.limits import MOST_DESCRIPTORS, Limits

SPARED_S = 2.0
"""Nobody makes way earlier: thousands of honest clients may be accepted in one turn of the loop, before
the head of any has been read."""
_READ_S = 0.01
"What has arrived is read before anybody is judged by his silence, however late the loop is."


class Guest(Protocol):
    """A connection of which nothing is known."""

    def make_way(self, limit: str) -> None:
        """Close it now, because of this limit. It leaves the lobby within the call."""


class Lobby:
    """One per worker."""

    def __init__(
        self,
        limits: Limits,
        live: Callable[[], int],
        most_descriptors: int = MOST_DESCRIPTORS,
        clock: Callable[[], float] = time.monotonic,
        name: str = "address_waiting",
    ) -> None:
        """`live` counts the connections that have left the lobby for somewhere in this worker."""
        self._limits = limits
        self._live = live
        self._most_descriptors = most_descriptors
        self._clock = clock
        self._name = name
        self._addresses: dict[Hashable, dict[Guest, float]] = {}
        "Since when who waits, by address, oldest first."
        self._timer: asyncio.TimerHandle | None = None
        self.count = 0

    def enter(self, guest: Guest, address: Hashable, descriptor: int) -> bool:
        """Let it wait; False when there is no room for one more connection at all."""
        full = self.count + self._live() >= self._limits.connections
        # The kernel gives the lowest number that is free, so that many are in use at least.
        if (full or descriptor >= self._most_descriptors) and not self._make_way():
            return False
        self.wait(guest, address)
        limits = self._limits
        crowded = len(self._addresses[address]) > limits.address_waiting
        if self._timer is None and (crowded or self.count > limits.waiting):
            self._timer = asyncio.get_running_loop().call_later(SPARED_S, self._look)
        return True

    def wait(self, guest: Guest, address: Hashable) -> None:
        """Let one wait that is in already; from now on, if it has waited before."""
        waiting = self._addresses.setdefault(address, {})
        if waiting.pop(guest, None) is None:
            self.count += 1
        waiting[guest] = self._clock()

    def leave(self, guest: Guest, address: Hashable) -> None:
        """It is somebody, or has gone. Idempotent."""
        waiting = self._addresses.get(address)
        if waiting is None or waiting.pop(guest, None) is None:
            return
        self.count -= 1
        if not waiting:
            del self._addresses[address]

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_READ_S, self._make_room)

    def _make_room(self) -> None:
        limits = self._limits
        for address in tuple(self._addresses):
            while len(self._addresses.get(address, ())) > limits.address_waiting:
                if not self._close_oldest(address, self._name):
                    break
        while self.count > limits.waiting and self._close_oldest(self._fullest(), "waiting"):
            pass
        again = self._is_crowded()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SPARED_S, self._look) if again else None

    def _make_way(self) -> bool:
        """Close one for the sake of another, of the address that has the most."""
        if not self.count:
            return False
        address = self._fullest()
        is_crowd = len(self._addresses[address]) > self._limits.address_waiting
        return self._close_oldest(address, "connections", is_spared=not is_crowd)

    def _is_crowded(self) -> bool:
        most = len(self._addresses[self._fullest()]) if self.count else 0
        return self.count > self._limits.waiting or most > self._limits.address_waiting

    def _fullest(self) -> Hashable:
        return max(self._addresses, key=lambda address: len(self._addresses[address]))

    def _close_oldest(self, address: Hashable, limit: str, is_spared: bool = True) -> bool:
        guest, since = next(iter(self._addresses[address].items()))
        if is_spared and self._clock() - since < SPARED_S:
            return False
        guest.make_way(limit)
        self.leave(guest, address)
        return True


def inner_lobby(limits: Limits) -> Lobby:
    """The same inside TLS, where the address is the agent and nothing else is bounded."""
    no_bound = 1 << 30
    inside = replace(
        limits, address_waiting=limits.agent_waiting, waiting=no_bound, connections=no_bound
    )
    return Lobby(inside, lambda: 0, name="agent_waiting")
