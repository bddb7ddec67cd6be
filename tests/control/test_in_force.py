"""The index finds the orders about an agent: exactly those that a look through all would find."""

from __future__ import annotations

from datetime import datetime, timezone

from haltwire.wire.names import AgentRef
from haltwire.wire.orders import Kill
from haltwire.wire.selectors import Selector
from haltwire_control.in_force import InForce
from haltwire_control.state import Order

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
SELECTORS = (
    "agent://acme/prod/mailer",
    "agent://acme/prod/mailer~i-1",
    "agent://acme/prod/*",
    "agent://acme/**",
    "agent://other/prod/mailer",
    "agent://*/dev/mailer",
    "agent://**",
)


def test_an_index_agrees_with_a_look_through_all():
    kills = [
        Kill(f"K{n}", Selector.parse(text), "cut", None, "key:ada", NOW, n)
        for n, text in enumerate(SELECTORS)
    ]
    index = InForce(Order(kill, None, kill.revision) for kill in kills)
    for text in ("agent://acme/prod/mailer", "agent://other/dev/mailer", "agent://x/y"):
        agent = AgentRef.parse(text)
        expected = {kill for kill in kills if kill.selector.matches_agent(agent)}
        assert set(index.about(agent)) == expected
    assert index.by_id["K3"].kill is kills[3]


def test_without_orders_nothing_is_about_anybody():
    assert InForce(()).about(AgentRef.parse("agent://a/b")) == []
