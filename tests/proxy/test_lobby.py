"""The lobby: whoever has been silent longest makes way, and nobody who has just come."""

from __future__ import annotations

import asyncio

import pytest
from haltwire_proxy import lobby as module
from haltwire_proxy.limits import DEFAULTS, fitted
from haltwire_proxy.lobby import SPARED_S, Lobby


class Guest:
    def __init__(self, lobby, address="192.0.2.1"):
        self.lobby, self.address, self.because = lobby, address, None

    def enter(self, descriptor=10):
        return self.lobby.enter(self, self.address, descriptor)

    def make_way(self, limit):
        self.because = limit


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lobby_of(clock, live=0, **limits):
    fitting = fitted(DEFAULTS, 1 << 20)
    for name, value in limits.items():
        object.__setattr__(fitting, name, value)
    return Lobby(fitting, lambda: live, clock=clock)


def crowd(lobby, count, address="192.0.2.1"):
    guests = [Guest(lobby, address) for _ in range(count)]
    assert all(guest.enter() for guest in guests)
    return guests


async def test_the_oldest_of_a_crowded_address_make_way_and_no_others(clock):
    lobby = lobby_of(clock, address_waiting=3)
    (elsewhere,) = crowd(lobby, 1, "192.0.2.2")
    guests = crowd(lobby, 5)
    clock.now += SPARED_S
    lobby._make_room()
    assert [guest.because for guest in guests] == ["address_waiting"] * 2 + [None] * 3
    assert elsewhere.because is None
    assert lobby.count == 4


async def test_nobody_who_has_just_come_makes_way(clock):
    """Thousands may be accepted in one turn of the loop, and the heads of all are still in the kernel."""
    lobby = lobby_of(clock, address_waiting=3, waiting=3)
    guests = crowd(lobby, 500)
    clock.now += SPARED_S - 0.1
    lobby._make_room()
    assert all(guest.because is None for guest in guests)


async def test_too_many_from_everywhere_make_way_where_most_come_from(clock):
    lobby = lobby_of(clock, waiting=10)
    few, many = crowd(lobby, 2, "192.0.2.2"), crowd(lobby, 15)
    clock.now += SPARED_S
    lobby._make_room()
    assert [guest.because for guest in few] == [None, None]
    assert sum(guest.because == "waiting" for guest in many) == 7


async def test_a_crowd_is_thinned_by_itself(monkeypatch):
    monkeypatch.setattr(module, "SPARED_S", 0.02)
    lobby = lobby_of(asyncio.get_running_loop().time, address_waiting=1)
    guests = crowd(lobby, 3)
    async with asyncio.timeout(2):
        while lobby.count > 1:
            await asyncio.sleep(0.01)
    assert [guest.because for guest in guests] == ["address_waiting", "address_waiting", None]


async def test_when_all_is_full_somebody_silent_makes_way(clock):
    lobby = lobby_of(clock, live=6, connections=10)
    guests = crowd(lobby, 4)
    clock.now += SPARED_S
    assert Guest(lobby).enter()
    assert [guest.because for guest in guests] == ["connections", None, None, None]


async def test_when_all_is_full_of_agents_a_newcomer_finds_no_room(clock):
    lobby = lobby_of(clock, live=10, connections=10)
    assert not Guest(lobby).enter()
    assert lobby.count == 0


async def test_a_flood_of_one_address_that_fills_all_is_not_spared(clock):
    """Else everybody would be kept out for as long as newcomers are spared."""
    lobby = lobby_of(clock, connections=10, address_waiting=4)
    guests = crowd(lobby, 10)
    assert Guest(lobby, "192.0.2.2").enter()
    assert guests[0].because == "connections"


async def test_descriptors_that_run_out_are_as_good_as_full(clock):
    lobby = lobby_of(clock)
    lobby._most_descriptors = 1000
    assert Guest(lobby).enter(descriptor=999)
    newcomer = Guest(lobby, "192.0.2.2")
    assert not newcomer.enter(descriptor=1000)
    clock.now += SPARED_S
    assert newcomer.enter(descriptor=1000)


async def test_who_leaves_is_not_counted_and_may_leave_again(clock):
    lobby = lobby_of(clock)
    first, second = crowd(lobby, 2)
    lobby.leave(first, first.address)
    lobby.leave(first, first.address)
    assert lobby.count == 1
    lobby.leave(second, second.address)
    assert (lobby.count, lobby._addresses) == (0, {})


async def test_who_waits_again_is_counted_once_and_stands_last(clock):
    lobby = lobby_of(clock, address_waiting=1)
    first, second = crowd(lobby, 2)
    lobby.wait(first, first.address)
    assert lobby.count == 2
    clock.now += SPARED_S
    lobby._make_room()
    assert (first.because, second.because) == (None, "address_waiting")
