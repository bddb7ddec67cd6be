"""How long failing credentials wait, told with a clock that the test moves."""

import pytest
from haltwire_proxy.guesses import (
    FIRST_S,
    FREE,
    LONGEST_S,
    SOURCES,
    WAITING,
    WAITING_PER_SOURCE,
    WINDOW_S,
    Guesses,
)

EVE, ADA = "192.0.2.66", "192.0.2.7"


@pytest.fixture
def guesses():
    return Guesses()


def fail(guesses, address, times, now=0.0):
    """The delays of so many failures, each answered before the next."""
    delays = []
    for _ in range(times):
        delays.append(guesses.failed(address, now))
        if delays[-1]:
            guesses.answered(address)
    return delays


def test_the_first_few_are_answered_at_once_and_then_ever_later_up_to_a_limit(guesses):
    delays = fail(guesses, EVE, FREE + 12)
    assert delays[: FREE + 3] == [0.0] * FREE + [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert delays[-1] == LONGEST_S
    assert delays == sorted(delays)


def test_another_source_is_not_slowed(guesses):
    fail(guesses, EVE, 50)
    assert guesses.failed(ADA, 0.0) == 0.0


def test_a_window_later_it_begins_anew(guesses):
    fail(guesses, EVE, 50)
    assert guesses.failed(EVE, WINDOW_S - 1) == LONGEST_S
    guesses.answered(EVE)
    assert guesses.failed(EVE, WINDOW_S) == 0.0


def test_a_network_of_ipv6_is_one_source(guesses):
    """Each host has 2^64 addresses to fail from."""
    for number in range(FREE):
        assert guesses.failed(f"2001:db8:1:2::{number:x}", 0.0) == 0.0
    assert guesses.failed("2001:db8:1:2:ffff::1", 0.0) == FIRST_S
    assert guesses.failed("2001:db8:1:3::1", 0.0) == 0.0


def test_few_answers_of_a_source_wait_and_the_rest_get_none(guesses):
    fail(guesses, EVE, FREE)
    waiting = [guesses.failed(EVE, 0.0) for _ in range(WAITING_PER_SOURCE)]
    assert None not in waiting
    assert guesses.failed(EVE, 0.0) is None
    guesses.answered(EVE)
    assert guesses.failed(EVE, 0.0) is not None


def test_few_answers_wait_in_all(guesses):
    for number in range(WAITING // WAITING_PER_SOURCE):
        address = f"192.0.2.{number}"
        fail(guesses, address, FREE)
        for _ in range(WAITING_PER_SOURCE):
            assert guesses.failed(address, 0.0)
    fail(guesses, EVE, FREE)
    assert guesses.failed(EVE, 0.0) is None
    guesses.answered("192.0.2.0")
    assert guesses.failed(EVE, 0.0)


def test_memory_is_bounded_and_who_waits_is_not_forgotten(guesses):
    fail(guesses, EVE, FREE)
    assert guesses.failed(EVE, 0.0)
    for number in range(2 * SOURCES):
        guesses.failed(f"10.0.{number // 256}.{number % 256}", 0.0)
    assert len(guesses._sources) == SOURCES
    assert guesses.failed(EVE, WINDOW_S * 2) == 2 * FIRST_S
    guesses.answered(EVE)
    guesses.answered(EVE)
    assert guesses.failed(EVE, WINDOW_S * 2) == 0.0
