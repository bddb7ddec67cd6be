"""What an agent has under way is counted once, whichever of a request and its connection ends first."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from haltwire.wire.names import AgentRef
from haltwire_proxy.connections import Connections
from haltwire_proxy.exchanges import Exchange, exchange_facts
from haltwire_proxy.identity import Identity
from haltwire_proxy.tally import Tallies

AGENT = AgentRef.parse("agent://acme/prod/reader")


def now():
    return datetime.now(timezone.utc)


def exchange():
    return Exchange("GET", "a.test", "/", now())


class Side:
    written = 0

    def fileno(self):
        return -1

    def unwritten(self):
        return 0

    def abort(self):
        pass


@pytest.fixture
def connections():
    return Connections(Tallies(), now)


@pytest.fixture
def opened(connections):
    def register():
        identity = Identity(AGENT, "i-1", "T1", None, True, "hwa_x")
        return connections.register(identity, "inspected", "a.test", Side())

    return register


def load(connections):
    found = connections.load_of(AGENT)
    return found.connections, found.requests


def test_requests_of_all_connections_of_an_agent_are_one_load(connections, opened):
    first, second = opened(), opened()
    one, other = exchange(), exchange()
    first.begin(one)
    second.begin(other)
    assert load(connections) == (2, 2)
    first.finish(one)
    first.finish(one)
    assert load(connections) == (2, 1)


@pytest.mark.parametrize("how", ["cut", "forget"])
def test_a_connection_that_ends_takes_its_requests_with_it(connections, opened, how):
    """mitmproxy tells of their end only afterwards: that must not be counted a second time."""
    first, second = opened(), opened()
    one, other = exchange(), exchange()
    first.begin(one)
    second.begin(other)
    if how == "cut":
        connections.cut([first])
    connections.forget(first)
    assert load(connections) == (1, 1)
    first.finish(one)
    assert load(connections) == (1, 1)
    first.begin(exchange())
    assert load(connections) == (1, 1)


def test_of_an_agent_that_has_gone_nothing_is_kept(connections, opened):
    connection = opened()
    connections.forget(connection)
    assert load(connections) == (0, 0)
    assert connections._loads == {}


def test_what_no_upstream_has_been_given_was_not_sent():
    facts = exchange_facts(exchange())
    assert (facts.sent, facts.bytes_up_acked) == ("none", 0)
